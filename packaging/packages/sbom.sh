#!/usr/bin/env bash
# What the agent is made of: packaging/packages/sbom.sh TARGET OUT.json writes the crates in it, with their licences and sums, as CycloneDX
# 1.5 has bills of materials: the same bytes for the same commit. TARGET is cargo's (`x86_64-unknown-linux-gnu`). The C library of the
# machine that builds it, which is linked statically too, is not in it.
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: $0 TARGET OUT.json" >&2; exit 2; }
out=$(realpath -m "$2")
cd "$(dirname "$0")/../.."
cargo_cyclonedx=$(packaging/tool.sh cargo-cyclonedx)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
# It writes beside each Cargo.toml, and where that is into what it writes.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z | tar --create --null --files-from=- | tar --extract --directory="$copy"
"$cargo_cyclonedx" cyclonedx --manifest-path "$copy/Cargo.toml" --format json --spec-version 1.5 --target "$1" --quiet
mkdir -p "$(dirname "$out")"
sed "s#file://$copy#file:///recovery#g" "$copy/recovery.cdx.json" >"$out"
