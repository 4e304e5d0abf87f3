#!/bin/bash
# build.sh [DIR]: the real work agent of Open Cluster Management in DIR (default: target/ocm-tools), and in DIR/crds the definitions of
# ManifestWork, AppliedManifestWork and ManagedCluster, of the same release.
#
# Built from Go modules, pinned by the go.mod and go.sum beside this script: no download of ready-made binaries. Needs Go 1.26 or later; one
# from 1.21 on fetches that by itself. Six minutes on two busy cores with a cold cache, nothing when it is there already; two runs at once
# wait for each other.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
dir=$(realpath -m "${1:-$here/../../../target/ocm-tools}")
command -v go >/dev/null || { echo "build.sh: no \`go\` in PATH: install Go 1.26 or later" >&2; exit 1; }

mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
pins=$(cat "$here"/go.mod "$here"/go.sum "$here"/main.go "$0" | sha256sum | cut -d' ' -f1)
[ "$(cat "$dir/pins" 2>/dev/null)" = "$pins" ] && exit
echo "build.sh: building the work agent of Open Cluster Management in $dir" >&2
rm -f "$dir/pins"
cd "$here"
# -buildvcs: these modules lie in another project's repository. -mod=readonly: what go.sum does not pin is an error.
CGO_ENABLED=0 go build -trimpath -buildvcs=false -mod=readonly -ldflags "-s -w" -o "$dir/work-agent" .
api=$(go list -mod=readonly -m -f '{{.Dir}}' open-cluster-management.io/api)
rm -rf "$dir/crds"
mkdir "$dir/crds"
for kind in work/v1/0000_00_work.open-cluster-management.io_manifestworks work/v1/0000_01_work.open-cluster-management.io_appliedmanifestworks \
  cluster/v1/0000_00_clusters.open-cluster-management.io_managedclusters; do
  install -m 644 "$api/$kind.crd.yaml" "$dir/crds/${kind##*_}.yaml"
done
echo "$pins" >"$dir/pins"
