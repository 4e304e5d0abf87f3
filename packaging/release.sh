#!/usr/bin/env bash
# A release: packaging/release.sh [--skip-checks], as root on Debian 12 or 13, from a checkout in which everything is committed. It runs the
# checks, builds for both architectures, and leaves all of it in target/release-VERSION, with SHA256SUMS. With --skip-checks it is something
# to look at, not to hand out.
set -euo pipefail
cd "$(dirname "$0")/.."
checks=true
case "${1:-}" in
  '') ;;
  --skip-checks) checks=false ;;
  *) echo "usage: $0 [--skip-checks]" >&2; exit 2 ;;
esac
step() { printf '\n=== [%d s] %s\n' "$SECONDS" "$*"; }

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
commit=$(git rev-parse HEAD)
step "recovery $version, from $commit"
changes=$(git status --porcelain)
[ -z "$changes" ] || { printf 'not committed:\n%s\n' "$changes" >&2; exit 1; }
if $checks; then
  day=$(sed -nE "s/^## \[${version//./\\.}\] - ([0-9]{4}-[0-9]{2}-[0-9]{2})$/\1/p" CHANGELOG.md)
  [ "$(date --date="${day:-none}" +%F 2>/dev/null)" = "${day:-none}" ] ||
    { echo "CHANGELOG.md has no \"## [$version] - YYYY-MM-DD\": what was unreleased goes below it" >&2; exit 1; }
  .ci/run
else
  echo "NOT CHECKED: --skip-checks"
fi

step "what the builds need"
tests/setup.sh build packages release
rustup target list --installed | grep -qx aarch64-unknown-linux-gnu || rustup target add aarch64-unknown-linux-gnu

out=target/release-$version
rm -rf "$out"
mkdir -p "$out"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
binaries=()
for machine in x86_64 aarch64; do
  target=$machine-unknown-linux-gnu
  step "$target"
  cargo build --release --locked --target "$target"
  binary=$out/recovery-$version-linux-$machine
  install -m 0755 "target/$target/release/recovery" "$binary"
  file=$(readelf --program-headers "$binary")
  case "$file" in *INTERP*) echo "$binary is not static" >&2; exit 1 ;; esac
  packaging/packages/sbom.sh "$target" "$out/recovery-$version-linux-$machine.cdx.json"
  binaries+=("$binary")
done

step "the one for ARM starts"
native=${binaries[0]} other=${binaries[1]}
[ "$(uname -m)" = x86_64 ] || { native=${binaries[1]}; other=${binaries[0]}; }
"$native" --version
"qemu-${other##*-}-static" "$other" --version

step "packages, image, manifests"
for binary in "${binaries[@]}"; do NATIVE=$native packaging/packages/build.sh "$binary" "$out"; done
packaging/image/build.sh "recovery:$version" "$out/recovery-$version-image.tar" "${binaries[@]}"
# Names, modes and content, with the commit's time.
pack() {
  tar --create --directory="$2" --format=ustar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner "${@:3}" |
    gzip -9 --no-name >"$1"
}
pack "$out/recovery-$version-kubernetes.tar.gz" packaging kubernetes overlays
generated=$(mktemp -d)
trap 'rm -rf "$generated"' EXIT
"$native" generate man "$generated/man"
for shell in bash zsh fish; do "$native" generate $shell "$generated/completions"; done
pack "$out/recovery-$version-man-and-completions.tar.gz" "$generated" man completions
cp LICENSE CHANGELOG.md README.md "$out"

cd "$out"
files=(*)
sha256sum "${files[@]}" >SHA256SUMS
step "done: $out"
sha256sum --check --quiet SHA256SUMS
ls -l
$checks && echo "next: git tag --sign v$version $commit" || echo "NOT CHECKED: not to be handed out"
