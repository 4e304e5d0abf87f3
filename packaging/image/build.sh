#!/usr/bin/env bash
# The image without a container engine: packaging/image/build.sh NAME:TAG OUT.tar BINARY... writes an OCI archive with one index, of an
# image for the architecture of each binary: the same bytes for the same binaries. `podman load -i`, `skopeo copy oci-archive:` and `ctr
# images import` read it, and take the one for their machine.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 NAME:TAG OUT.tar BINARY..." >&2; exit 2; }
name=$1 out=$2
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/image/blobs/sha256"

# Every archive is made of names, modes and content alone: no time and no user of this machine.
pack() { tar --create --file="$1" --directory="$2" --format=ustar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner "${@:3}"; }
# Moves a file among the blobs; prints its digest and size as members of a JSON object.
blob() {
  local sum; sum=$(sha256sum "$1" | cut -d' ' -f1)
  local size; size=$(stat -c %s "$1")
  mv "$1" "$work/image/blobs/sha256/$sum"
  printf '"digest":"sha256:%s","size":%s' "$sum" "$size"
}

oci=application/vnd.oci.image
manifests=
for binary; do
  case "$(od -An -tx2 -j18 -N2 "$binary" | tr -d ' ')" in   # e_machine of the ELF header
    003e) architecture=amd64 ;;
    00b7) architecture=arm64 ;;
    *) echo "$binary is not a program for x86-64 or ARM64" >&2; exit 1 ;;
  esac
  case "$manifests" in *"\"$architecture\""*) echo "$binary is a second program for $architecture" >&2; exit 2 ;; esac
  install -D -m 0755 "$binary" "$work/root/recovery"
  pack "$work/layer" "$work/root" recovery
  layer_sum=$(sha256sum "$work/layer" | cut -d' ' -f1)
  layer=$(blob "$work/layer")
  printf '{"architecture":"%s","os":"linux","config":{"Entrypoint":["/recovery"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$architecture" "$layer_sum" > "$work/config"
  config=$(blob "$work/config")
  printf '{"schemaVersion":2,"mediaType":"%s.manifest.v1+json","config":{"mediaType":"%s.config.v1+json",%s},"layers":[{"mediaType":"%s.layer.v1.tar",%s}]}' \
    "$oci" "$oci" "$config" "$oci" "$layer" > "$work/manifest"
  manifest=$(blob "$work/manifest")
  manifests+=$(printf '%s{"mediaType":"%s.manifest.v1+json",%s,"platform":{"architecture":"%s","os":"linux"}}' \
    "${manifests:+,}" "$oci" "$manifest" "$architecture")
done
printf '{"schemaVersion":2,"mediaType":"%s.index.v1+json","manifests":[%s]}' "$oci" "$manifests" > "$work/index"
index=$(blob "$work/index")
# The layout's own index names the image.
printf '{"schemaVersion":2,"manifests":[{"mediaType":"%s.index.v1+json",%s,"annotations":{"org.opencontainers.image.ref.name":"%s","io.containerd.image.name":"%s"}}]}' \
  "$oci" "$index" "${name##*:}" "$name" > "$work/image/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' > "$work/image/oci-layout"
pack "$out" "$work/image" blobs index.json oci-layout
