#!/bin/bash
# debian.sh DIR: a minimal Debian 12 with what a node needs, in DIR. A minute; needs Debian's package mirror (or MIRROR).
#
# Debian 12, because its systemd is the last that boots with the cgroup hierarchies of version 1, which a nested system gets on many hosts.
set -euo pipefail
packages=systemd,systemd-sysv,dbus,ostree,containerd,runc,iptables,iproute2,ca-certificates,socat,conntrack,ethtool,kmod,procps,\
containernetworking-plugins,xfsprogs,jq,strace,zstd,python3-minimal,python3-gi,gir1.2-ostree-1.0
rm -rf "$1.new"
debootstrap --variant=minbase "--include=$packages" bookworm "$1.new" ${MIRROR:+"$MIRROR"}
# What no program reads. A node is copied for each drill.
cd "$1.new"
rm -rf var/cache/apt var/lib/apt usr/share/{doc,info,man,locale,lintian,bash-completion} var/log/*
mkdir -p var/cache/apt var/lib/apt
mv "$1.new" "$1"
