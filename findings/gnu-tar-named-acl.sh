#!/usr/bin/env bash
# GNU tar 1.34 (Debian 12) with --acls --numeric-owner: owners are stored as numbers, but the entries of an ACL still as names.
#
# --numeric-owner is what one gives so that an archive restores on a machine with other names, or with none (a rescue system, an
# initramfs). The pax record SCHILY.acl.access of the same member says `user:daemon:rw-`: where there is no `daemon`, or another one, the
# entry cannot be restored, or goes to somebody else. Seen with tar 1.34+dfsg-1.2+deb12u1, acl 2.3.1-3:
#
#   --numeric-owner:  owner 0/0 in the header, "user:daemon:rw-" in the record
#
# Needs root (to set an ACL for another user), a file system with ACLs at $TMPDIR, and Debian 12's archive.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
chmod 0711 "$dir" # for the user that apt downloads as
cd "$dir"
apt-get download -q tar=1.34+dfsg-1.2+deb12u1 acl=2.3.1-3 libacl1=2.3.1-3 >/dev/null
for package in ./*.deb; do dpkg -x "$package" tools; done
export LD_LIBRARY_PATH="$dir/tools/usr/lib/x86_64-linux-gnu:$dir/tools/lib/x86_64-linux-gnu"
tar=$dir/tools/bin/tar setfacl=$dir/tools/usr/bin/setfacl
[ -x "$setfacl" ] || setfacl=$dir/tools/bin/setfacl

mkdir tree
echo content >tree/file
"$setfacl" --modify user:1:rw tree/file # 1 is daemon in every Debian
"$tar" --version | head -1
"$tar" --create --format=posix --acls --numeric-owner --file=archive.tar --directory=tree file
owner=$("$tar" --list --verbose --file=archive.tar | awk '{print $2}')
acl=$(grep --text --only-matching --max-count=1 'SCHILY.acl.access=.*' archive.tar; grep --text --only-matching '^user:[^:][^:]*:rw-' archive.tar || true)
printf 'owner: %s\n%s\n' "$owner" "$acl"
[ "$owner" = 0/0 ] || { echo "changed: the owner is not a number" >&2; exit 1; }
case "$acl" in *user:daemon:rw-*) echo "as described: the ACL has a name" ;; *) echo "changed: the ACL has no name" >&2; exit 1 ;; esac
