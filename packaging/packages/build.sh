#!/usr/bin/env bash
# The agent as packages: packaging/packages/build.sh BINARY OUT makes OUT/recovery_VERSION-1_ARCH.deb and OUT/recovery-VERSION-1.ARCH.rpm:
# the same bytes for the same binary and commit. It lays out what is in them, and calls cargo-deb (with what Cargo.toml says) and rpmbuild
# (recovery.spec). Not cargo-generate-rpm: up to 0.21.1 it makes no entry for a folder, so that a removed package leaves empty ones behind
# (findings/cargo-generate-rpm-no-folders.sh).
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: $0 BINARY OUT" >&2; exit 2; }
binary=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
cd "$(dirname "$0")/../.."
case "$(od -An -tx2 -j18 -N2 "$binary" | tr -d ' ')" in   # e_machine of the ELF header
  003e) machine=x86_64 debian=amd64 ;;
  00b7) machine=aarch64 debian=arm64 ;;
  *) echo "$binary is not a program for x86-64 or ARM64" >&2; exit 1 ;;
esac
# Man pages and completions are the same for every architecture, and are asked from an agent that runs here.
native=${NATIVE:-$binary}
"$native" --version >/dev/null || { echo "$native does not run here: NATIVE=a binary of the same commit that does" >&2; exit 1; }
cargo_deb=$(packaging/tool.sh cargo-deb)
# Times in the packages are the commit's.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH

# One at a time: Cargo.toml has this path.
tree=$PWD/target/package
exec 9>"$tree.lock"
flock 9
rm -rf "$tree"
umask 022
install -D -m 0755 "$binary" "$tree/usr/bin/recovery"
put() { install -D -m 0644 --target-directory="$tree/$1" "${@:2}"; }
units=usr/lib/systemd/system
put $units systemd/recovery-*
put $units/kubelet.service.d systemd/10-recovery-hold.conf
put $units/crio-wipe.service.d systemd/10-recovery-images.conf
put $units-preset packaging/packages/85-recovery.preset
put usr/lib/systemd/catalog systemd/recovery.catalog
# To be copied to /etc on a node that has the partition, and in no folder of systemd's: of a mount unit that it finds,
# RequiresMountsFor=/var/recovery would make every boot wait for a partition that most nodes have not.
put usr/share/recovery systemd/var-recovery.mount systemd/10-partlabel.conf packaging/prometheus/recovery.rules.yaml
put usr/share/doc/recovery README.md CHANGELOG.md
"$native" generate man "$tree/usr/share/man/man8"
gzip -9 --no-name "$tree"/usr/share/man/man8/*
"$native" generate bash "$tree/usr/share/bash-completion/completions"
mv "$tree"/usr/share/bash-completion/completions/recovery{.bash,}
"$native" generate zsh "$tree/usr/share/zsh/vendor-completions"
"$native" generate fish "$tree/usr/share/fish/vendor_completions.d"
find "$tree" -exec touch --date="@$SOURCE_DATE_EPOCH" {} +

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
# In both formats, "~" sorts before the end: 0.2.0~rc.1 comes before 0.2.0.
version=${version//-/\~}
"$cargo_deb" --no-build --no-strip --offline --target $machine-unknown-linux-gnu --output "$out/recovery_$version-1_$debian.deb" >/dev/null

# Debian's zsh looks for what packages bring in a folder of its own.
mv "$tree"/usr/share/zsh/{vendor-completions,site-functions}
# Debian's packages have the licence in `copyright`.
put usr/share/licenses/recovery LICENSE
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rpmbuild -bb --quiet --target $machine-linux --define "_topdir $work" --define "VERSION $version" --define "TREE $tree" --define "_rpmdir $out" \
  --define "_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm" --define "_buildhost recovery" --define "_binary_payload w19.zstdio" \
  --define "use_source_date_epoch_as_buildtime 1" --define "clamp_mtime_to_source_date_epoch 1" packaging/packages/recovery.spec
