#!/usr/bin/env bash
# The tests, from a clean checkout, on Debian 12 or 13 with a Rust toolchain: `tests/run.sh --help`.
set -euo pipefail
cd "$(dirname "$0")/.."
help() {
  cat <<'END'
usage: tests/run.sh [all | unit | room ROOM | node | drills | sweep | power] [TEST...]

  all         everything, as CI does; this is what it does without a word
  unit        the library's own tests: a minute, no root (which is given up), nothing to install beside what the build needs
  room ROOM   the tests of a room from outside: archive, backup, cli, etcd, hub, kube, machine,
              packages, partition, recovery, schedule, sweep, tools or virtual
  node        the real node by itself: it reboots, loses its power and comes back
  drills      backups and recoveries on real nodes
  sweep       faults at every place where a command changes something, which takes hours; the room of that name tries a sample.
              SWEEP='SUBJECT... KIND...' leaves the others out, SWEEP_POINT='SUBJECT KIND NUMBER' tries one place;
              damage, damage-restore, damage-notes, swaps and races are words for SWEEP too
              'sweep size' is load and size instead: an hour, and 14 GB of disk
  power       power cuts in a virtual machine, 200 of each stretch of each command: half an hour; the room virtual tries some.
              POWER='COMMAND... NUMBER' leaves the other commands out, and tries so many

TEST: only tests whose names contain it (or one of several); `tests/run.sh unit --list` shows the names.
Each word installs and builds what its tests need, and no more. All but `unit` need root: they make mounts, owners, labels and device nodes.
END
}
usage() { printf 'tests/run.sh: %s\n\n' "$*" >&2; help >&2; exit 2; }

word=${1:-all}
[ $# -eq 0 ] || shift
# What is installed, and what is handed to cargo.
case "$word" in
  -h | --help | help) help; exit ;;
  all) groups=(build files etcd emulated packages real go browser promtool virtual) targets=() ;;
  unit) groups=() ;;
  node | drills) groups=(build files etcd emulated real go) targets=(--test "$word") ;;
  sweep)
    groups=(build files etcd emulated) targets=(--test sweep)
    # The large snapshot is of an etcd that is built.
    [ "${1:-}" != size ] || groups+=(go)
    ;;
  power) groups=(build files etcd emulated virtual) targets=(--test virtual) ;;
  room)
    room=${1:-}
    [ $# -eq 0 ] || shift
    targets=(--test "$room")
    case "$room" in
      archive) groups=(build files) ;;
      backup) groups=(build files etcd emulated) targets+=(--test backup_interrupted) ;;
      cli) groups=(build files emulated) ;;
      etcd) groups=(build files etcd go) targets+=(--test etcd_interrupted) ;;
      hub) groups=(build files go) ;;
      kube) groups=(build files etcd emulated) ;;
      machine) groups=(build files) ;;
      packages) groups=(build emulated packages) ;;
      partition) groups=(build files emulated go) ;;
      recovery) groups=(build files etcd emulated go browser promtool) ;;
      schedule) groups=(build files etcd emulated) ;;
      sweep) groups=(build files etcd emulated) ;;
      tools) groups=(build files etcd emulated) ;;
      virtual) groups=(build files etcd emulated virtual) ;;
      *) usage "no room \"$room\"" ;;
    esac
    ;;
  *) usage "no word \"$word\"" ;;
esac
if [ "$word" != unit ]; then
  [ "$(id -u)" = 0 ] || { echo "tests/run.sh: $word needs root: the tests mount file systems and set owners, labels and device nodes" >&2; exit 77; }
  case "$word" in node | drills) tests/node/host.sh ;; esac
  tests/setup.sh "${groups[@]}"
  umask 022
fi
# A test that needs etcd or Kubernetes has it built.
go version >/dev/null 2>&1 || export PATH="$PWD/target/go/bin:$PATH"
# One failure hides no other. More threads than there is room for nodes: a test that waits for room waits for nothing else.
tests() { cargo test --no-fail-fast "${targets[@]}" -- "$@"; }
# The library's own tests need no root. Whoever is root runs them as nobody who owns what root owns: the checkout may lie in /root.
unit() {
  targets=(--lib)
  [ "$(id -u)" != 0 ] || targets+=(--config 'target."cfg(unix)".runner = "unshare --user --map-user=65534 --map-group=65534"')
  tests "$@"
}
on_real_nodes() { targets=(--test node --test drills) && tests --test-threads=5 "$@"; }
case "$word" in
  all) ;;
  unit) unit "$@"; exit ;;
  drills) tests --test-threads=5 "$@"; exit ;;
  sweep)
    if [ "${1:-}" = size ]; then
      # What is installed is measured.
      cargo build --release
      RECOVERY=${RECOVERY:-$PWD/target/x86_64-unknown-linux-gnu/release/recovery} tests --ignored --nocapture --test-threads=1 size::
      exit
    fi
    tests --ignored --exact --nocapture "$([ -n "${SWEEP_POINT:-}" ] && echo one_place || echo every_place)"
    exit
    ;;
  power) tests --ignored --exact --nocapture many_power_cuts; exit ;;
  *) tests "$@"; exit ;;
esac

# On real nodes most time is waiting: that is done beside all the others, and reported after them.
for file in tests/[dn]*.rs tests/[dn]*/main.rs; do
  case "$file" in tests/drills/main.rs | *'*'*) ;; *) echo "tests/run.sh: $file would not be run: choose another first letter" >&2; exit 1 ;; esac
done
tests/etcd-tools/build.sh
tests/ignition/build.sh
tests/node/tools/build.sh
tests/hub/ocm-tools/build.sh
cargo test --no-run
set -m
on_real_nodes "$@" >target/real-nodes.log 2>&1 </dev/null &
set +m
beside=$!
trap 'kill -- -$beside 2>/dev/null || true' EXIT
failed=0
unit "$@" || failed=$?
targets=(--bins --test '[!dn]*')
tests "$@" || failed=$?
targets=(--doc)
tests "$@" || failed=$?
printf '\nOn real nodes, beside these:\n'
wait $beside || failed=$?
cat target/real-nodes.log
exit $failed
