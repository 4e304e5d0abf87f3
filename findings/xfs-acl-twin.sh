#!/usr/bin/env bash
# XFS lists every POSIX ACL twice: as system.posix_acl_access and as trusted.SGI_ACL_FILE, and who removes the second removes the first.
#
# A tool that makes a file's attributes equal to a list that was taken on ext4 finds one attribute too many, removes it, and has taken the
# ACL away that it set a moment before, without an error; run again it puts it back and takes it away again. Seen with Linux 6.18,
# xfsprogs 6.1.0 and attr 2.5.1 (Debian 12):
#
#   after `setfacl -m u:1234:rw file`:  system.posix_acl_access, trusted.SGI_ACL_FILE
#   after `setfattr -x trusted.SGI_ACL_FILE file`:  neither; getfacl shows no entry for 1234
#
# Needs root, a loop device, a kernel with XFS, and Debian 12's archive.
set -euo pipefail
dir=$(mktemp -d)
trap 'umount "$dir/disk" 2>/dev/null || true; rm -rf "$dir"' EXIT
chmod 0711 "$dir" # for the user that apt downloads as
cd "$dir"
apt-get download -q xfsprogs=6.1.0-1 libinih1=55-1 liburcu8=0.13.2-1 libedit2=3.1-20221030-2 attr=1:2.5.1-4 libattr1=1:2.5.1-4 \
  acl=2.3.1-3 libacl1=2.3.1-3 >/dev/null
for package in ./*.deb; do dpkg -x "$package" tools; done
export LD_LIBRARY_PATH="$dir/tools/usr/lib/x86_64-linux-gnu:$dir/tools/lib/x86_64-linux-gnu"
export PATH="$dir/tools/usr/bin:$dir/tools/bin:$dir/tools/sbin:$dir/tools/usr/sbin:$PATH"

truncate --size=320M image
mkfs.xfs -q image
mkdir disk
mount -o loop image disk
names() { getfattr --absolute-names --no-dereference --match=- disk/file | sed -n '/^[a-z]*\./p' | sort | paste -sd ' '; }
echo content >disk/file
setfacl --modify u:1234:rw disk/file
set=$(names)
setfattr --remove=trusted.SGI_ACL_FILE disk/file
removed=$(names)
acl=$(getfacl --absolute-names --numeric --omit-header disk/file | grep -c '^user:1234:' || true)
uname --kernel-release
printf 'with the ACL: %s\nthe twin removed: %s\nentries for 1234 left: %s\n' "$set" "${removed:-nothing}" "$acl"
[ "$set" = "system.posix_acl_access trusted.SGI_ACL_FILE" ] || { echo "changed: the ACL is listed otherwise" >&2; exit 1; }
if [ -n "$removed" ] || [ "$acl" != 0 ]; then echo "changed: the ACL is still there" >&2; exit 1; fi
echo "as described: removing the twin has removed the ACL"
