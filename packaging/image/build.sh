#!/usr/bin/env bash
# The image without a container engine: packaging/image/build.sh BINARY NAME:TAG OUT.tar writes an OCI archive, the same bytes for the same
# binary. `podman load -i`, `skopeo copy oci-archive:` and `ctr images import` read it.
set -euo pipefail
[ $# -eq 3 ] || { echo "usage: $0 BINARY NAME:TAG OUT.tar" >&2; exit 2; }
binary=$1 name=$2 out=$3
case "$(od -An -tx2 -j18 -N2 "$binary" | tr -d ' ')" in   # e_machine of the ELF header
  003e) architecture=amd64 ;;
  00b7) architecture=arm64 ;;
  *) echo "$binary is not a program for x86-64 or ARM64" >&2; exit 1 ;;
esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root" "$work/image/blobs/sha256"

# Every archive is made of names, modes and content alone: no time and no user of this machine.
pack() { tar --create --file="$1" --directory="$2" --format=ustar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner "${@:3}"; }
# Moves a file among the blobs; prints its digest and size as members of a JSON object.
blob() {
  local sum; sum=$(sha256sum "$1" | cut -d' ' -f1)
  local size; size=$(stat -c %s "$1")
  mv "$1" "$work/image/blobs/sha256/$sum"
  printf '"digest":"sha256:%s","size":%s' "$sum" "$size"
}

install -m 0755 "$binary" "$work/root/recovery"
pack "$work/layer" "$work/root" recovery
layer_sum=$(sha256sum "$work/layer" | cut -d' ' -f1)
layer=$(blob "$work/layer")
printf '{"architecture":"%s","os":"linux","config":{"Entrypoint":["/recovery"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
  "$architecture" "$layer_sum" > "$work/config"
config=$(blob "$work/config")
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json",%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar",%s}]}' \
  "$config" "$layer" > "$work/manifest"
manifest=$(blob "$work/manifest")
printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",%s,"annotations":{"org.opencontainers.image.ref.name":"%s","io.containerd.image.name":"%s"}}]}' \
  "$manifest" "${name##*:}" "$name" > "$work/image/index.json"
printf '{"imageLayoutVersion":"1.0.0"}' > "$work/image/oci-layout"
pack "$out" "$work/image" blobs index.json oci-layout
