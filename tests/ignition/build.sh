#!/bin/bash
# build.sh [DIR]: Ignition's own reader and validator of its configurations, DIR/validate (default: in target/ignition).
#
# Built from the Go module that go.mod and go.sum beside this script pin. Needs Go 1.24 or later. Half a minute with a cold cache, nothing when it is there
# already; two runs at once wait for each other.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
dir=$(realpath -m "${1:-$here/../../target/ignition}")
command -v go >/dev/null || { echo "build.sh: no \`go\` in PATH: install Go 1.24 or later" >&2; exit 1; }
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
pins=$(cat "$here"/go.mod "$here"/go.sum "$here"/main.go "$0" | sha256sum | cut -d' ' -f1)
[ "$(cat "$dir/pins" 2>/dev/null)" = "$pins" ] && exit 0
echo "build.sh: building Ignition's validator in $dir" >&2
cd "$here"
# -buildvcs: this module lies in another project's repository. -mod=readonly: what go.sum does not pin is an error.
CGO_ENABLED=0 go build -trimpath -buildvcs=false -mod=readonly -ldflags "-s -w" -o "$dir/validate.new" .
mv "$dir/validate.new" "$dir/validate"
echo "$pins" >"$dir/pins"
