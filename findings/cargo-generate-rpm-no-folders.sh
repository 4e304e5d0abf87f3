#!/usr/bin/env bash
# cargo-generate-rpm 0.21.1: a package has no entry for a folder, and the option for one (`dir = true`) opens the file with the empty name.
#
# A folder that a package brings has to be an entry of the package, or rpm leaves it behind, empty, when the package is removed. An asset is a file: the
# folders above it are made by the way, and are nobody's. An asset with `dir = true` is read (its source counts no more), and handed to the builder as
# the file "", whatever it says: there is no package. Seen with rpm 4.18.0 (Debian 12):
#
#   an asset in a folder:  the package has /usr/share/finding/file alone; after `rpm -e`, usr/share/finding is still there
#   with `dir = true`:     No such file or directory (os error 2)
#
# Needs Rust and crates.io (the tool is built, some minutes), rpm, and root.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
cargo install --quiet --locked --version 0.21.1 --root tool cargo-generate-rpm
mkdir -p src share/finding
echo 'fn main() {}' >src/main.rs
echo content >share/finding/file
# Makes a package with these assets, as it.rpm.
package() {
  cat >Cargo.toml <<END
[package]
name = "finding"
version = "1.0.0"
edition = "2021"
license = "MIT"
description = "It has a folder"

[package.metadata.generate-rpm]
assets = [{ source = "share/finding/file", dest = "/usr/share/finding/file", mode = "644" }$1]
END
  tool/bin/cargo-generate-rpm generate-rpm --auto-req disabled --output it.rpm
}

package ''
listed=$(rpm --query --list --package it.rpm)
mkdir root
rpm --root "$dir/root" --initdb
rpm --root "$dir/root" --install --nodeps it.rpm 2>/dev/null
rpm --root "$dir/root" --erase finding 2>/dev/null
left=$(find root/usr -mindepth 2)
rm it.rpm
said=$(package ', { source = "share/finding", dest = "/usr/share/finding", mode = "755", dir = true }' 2>&1) && said="it is made: $said"
printf 'in the package: %s\nleft when it is removed: %s\nwith dir = true: %s\n' "$listed" "$left" "$said"
[ "$listed" = /usr/share/finding/file ] || { echo "changed: the package has other entries" >&2; exit 1; }
[ "$left" = root/usr/share/finding ] || { echo "changed: something else is left" >&2; exit 1; }
case "$said" in *"No such file or directory (os error 2)") ;; *) echo "changed: the option does something else" >&2; exit 1 ;; esac
[ ! -e it.rpm ] || { echo "changed: there is a package" >&2; exit 1; }
echo "as described: a package has no entry for a folder"
