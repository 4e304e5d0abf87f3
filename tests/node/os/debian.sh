#!/bin/bash
# debian.sh DIR bookworm|trixie|forky: a minimal Debian with what a node needs, in DIR. A minute; needs Debian's package mirror: MIRROR, or
# the one that this machine takes its own packages from.
set -euo pipefail
packages=systemd,systemd-sysv,dbus,ostree,containerd,runc,iptables,iproute2,ca-certificates,socat,conntrack,ethtool,kmod,procps,\
containernetworking-plugins,xfsprogs,fdisk,jq,strace,zstd,python3-minimal,python3-gi,gir1.2-ostree-1.0
# What the initramfs runs, and what goes with it afterwards.
[ "$2" = bookworm ] || packages=$packages,ostree-boot
# shellcheck disable=SC2016  # apt's own variables
mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' | grep -v security | head -1 || true)}
rm -rf "$1.new"
# debootstrap does the same for every suite of Debian, but does not know those that are younger than itself.
debootstrap --variant=minbase "--include=$packages" "$2" "$1.new" "${mirror:-http://deb.debian.org/debian}" /usr/share/debootstrap/scripts/sid
# What no program reads. A node is copied for each drill.
cd "$1.new"
rm -rf var/cache/apt var/lib/apt usr/share/{doc,info,man,locale,lintian,bash-completion} var/log/*
mkdir -p var/cache/apt var/lib/apt
mv "$1.new" "$1"
