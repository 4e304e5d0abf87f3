#!/usr/bin/env bash
# The agent's main job on a throw-away node, from nothing, as root on Debian 12 with a Rust toolchain: `tests/try.sh`.
# The node stays in target/try; `tests/try.sh --clean` takes it away.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "tests/try.sh: needs root: the node is made of mounts, and of files with owners and labels" >&2; exit 77; }
target=target/x86_64-unknown-linux-gnu
demo="$target/debug/examples/demo"
if [ "${1:-}" = --clean ]; then
  [ ! -d target/try ] || "$demo" target/try --clean
  exit
fi
tests/setup.sh
go version >/dev/null 2>&1 || export PATH="$PWD/target/go/bin:$PATH"
tests/etcd-tools/build.sh target/etcd-tools 3.5.21 3.6.8
cargo build --release
cargo build --example demo --example standin
export RECOVERY="$target/release/recovery"
exec "$demo" target/try --etcd target/etcd-tools/3.5.21/etcd --etcd-after target/etcd-tools/3.6.8/etcd
