#!/usr/bin/env bash
# Every test, from a clean checkout, as root on Debian 12 or 13 with a Rust toolchain: `tests/run.sh`. Arguments go to `cargo test`.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "tests/run.sh: needs root: the tests mount file systems and set owners, labels and device nodes" >&2; exit 77; }
tests/setup.sh
go version >/dev/null 2>&1 || export PATH="$PWD/target/go/bin:$PATH"
tests/etcd-tools/build.sh
tests/node/tools/build.sh
# With one of these set, a test takes itself for the child that it starts, and ends well without having tested anything.
unset RECOVERY_TEST_ROOT RECOVERY_TEST_RESTORE RECOVERY_TEST_POWER
umask 022
# One failure hides no other.
cargo test --no-fail-fast "$@"
