#!/bin/bash
# build.sh [DIR [VERSION...]]: real etcd, etcdctl and etcdutl in DIR/VERSION/ (default: all versions, in target/etcd-tools).
#
# Built from Go modules, pinned by the go.mod and go.sum beside this script: no download of ready-made binaries. Needs Go 1.24 (3.7:
# 1.26) or later; one from 1.21 on fetches that by itself. 15 to 40 s a version with a cold cache, nothing when
# they are there already; two runs at once wait for each other.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
dir=$(realpath -m "${1:-$here/../../target/etcd-tools}")
[ $# -gt 0 ] && shift
versions=("$@")
[ ${#versions[@]} -gt 0 ] || mapfile -t versions < <(cd "$here" && ls -d [0-9]*/ | tr -d /)
command -v go >/dev/null || { echo "build.sh: no \`go\` in PATH: install Go 1.24 or later" >&2; exit 1; }

mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
# Static: the programs are also run where the builder's libc is not.
export CGO_ENABLED=0
for version in "${versions[@]}"; do
  source=$here/$version
  [ -f "$source/go.mod" ] || { echo "build.sh: no recipe for etcd $version in $here" >&2; exit 1; }
  pins=$(cat "$source"/go.mod "$source"/go.sum "$source"/main.go "$0" | sha256sum | cut -d' ' -f1)
  [ "$(cat "$dir/$version/pins" 2>/dev/null)" = "$pins" ] && continue
  echo "build.sh: building etcd $version in $dir/$version" >&2
  new=$dir/$version.new
  rm -rf "$new"
  mkdir "$new"
  (
    cd "$source"
    # -buildvcs: these modules lie in another project's repository. -mod=readonly: what go.sum does not pin is an error.
    build=(go build -trimpath -buildvcs=false -mod=readonly -ldflags "-s -w")
    "${build[@]}" -o "$new/etcd" .
    "${build[@]}" -o "$new/" go.etcd.io/etcd/etcdctl/v3 go.etcd.io/etcd/etcdutl/v3
  )
  echo "$pins" >"$new/pins"
  rm -rf "${dir:?}/$version"
  mv "$new" "$dir/$version"
done
