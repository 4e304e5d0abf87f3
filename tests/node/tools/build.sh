#!/bin/bash
# build.sh [DIR]: the node's own programs in DIR (default: target/node-tools): Kubernetes, crictl and pause, all static.
#
# Built from Go modules, pinned by the go.mod and go.sum beside this script: no download of ready-made binaries, no image registry.
# Five minutes on two cores with a cold cache, nothing when they are there already; two runs at once wait for each other. etcd comes
# from ../../etcd-tools.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
dir=$(realpath -m "${1:-$here/../../../target/node-tools}")
command -v go >/dev/null || { echo "build.sh: no \`go\` in PATH: install Go 1.24 or later" >&2; exit 1; }

mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
# Static: they run in images that hold nothing else.
export CGO_ENABLED=0
build() { go build -trimpath -buildvcs=false -mod=readonly "$@"; }

kubernetes() { # the last releases that accept cgroup v1: this is what a nested systemd gets on a host with hybrid cgroups
  local version=1.34.4 stamp=k8s.io/component-base/version
  build -ldflags "-s -w -X $stamp.gitVersion=v$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=34" -o "$1/" \
    k8s.io/kubernetes/cmd/{kubelet,kube-apiserver,kube-controller-manager,kube-scheduler,kubectl}
}
crictl() {
  build -ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=1.36.0" -o "$1/crictl" sigs.k8s.io/cri-tools/cmd/crictl
}
pause() { gcc -Os -static -o "$1/pause" pause.c; }

for program in kubernetes crictl pause; do
  source=$here/$program
  # What a program is made of, its recipe and compiler included.
  made_of=$({ cat "$source"/*; declare -f build "$program"; go version; gcc --version; } | sha256sum | cut -d' ' -f1)
  [ "$(cat "$dir/$program/made-of" 2>/dev/null)" = "$made_of" ] && continue
  echo "build.sh: building $program in $dir/$program" >&2
  new=$dir/$program.new
  rm -rf "$new"
  mkdir "$new"
  (cd "$source" && "$program" "$new")
  echo "$made_of" >"$new/made-of"
  rm -rf "${dir:?}/$program"
  mv "$new" "$dir/$program"
done
