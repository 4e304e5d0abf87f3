#!/bin/sh
# initramfs.sh SYSROOT DEPLOYMENT AT ARGUMENTS COMMAND...: what an initramfs does between the kernel and systemd, in a mount namespace of
# its own: ostree's own program makes the root, by the kernel's arguments, in AT/sysroot; then COMMAND runs. The programs of the initramfs
# are those of the deployment.
set -e
sysroot=$1 deployment=$2 at=$3 arguments=$4
shift 4
mkdir -p "$at"
mount -t tmpfs -o mode=755 tmpfs "$at"
cd "$at"
mkdir usr proc dev run sysroot
ln -s usr/bin usr/sbin usr/lib usr/lib64 .
mount --bind "$deployment/usr" usr
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
echo "$arguments" >run/arguments
mount --bind run/arguments proc/cmdline
mount --bind "$sysroot" sysroot
chroot . /usr/lib/ostree/ostree-prepare-root /sysroot
cd /
exec "$@"
