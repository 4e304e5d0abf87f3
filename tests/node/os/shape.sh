#!/bin/bash
# shape.sh TREE: a Debian tree becomes what ostree deploys: `usr/etc`, an empty `var`, links into it, a kernel. Its own `var` is left
# beside it as TREE.var.
set -euo pipefail
cd "$1"
# Only the boot loader looks at these two; the harness plays boot loader, and the kernel is the host's.
mkdir -p usr/lib/modules/6.1.0
echo kernel >usr/lib/modules/6.1.0/vmlinuz
echo initramfs >usr/lib/modules/6.1.0/initramfs.img
: >etc/machine-id
rm -rf home root opt srv media mnt tmp dev usr/local
mv etc usr/etc
mv var "../$(basename "$1").var"
mkdir var sysroot tmp dev
for name in home opt srv mnt; do ln -s "var/$name" "$name"; done
ln -s var/roothome root
ln -s ../var/usrlocal usr/local
ln -s sysroot/ostree ostree
