#!/usr/bin/env bash
# The agent on a real node that reboots, from nothing, as root on Debian 12 with a Rust toolchain: `tests/try-node.sh`. What it needs and how
# long it takes is in the README. The node stays on in target/try-node; `tests/try-node.sh --clean` takes it away.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "tests/try-node.sh: needs root: the node is a container with disks of its own" >&2; exit 77; }
target=target/x86_64-unknown-linux-gnu dir=target/try-node
node="$target/debug/examples/node" agent=/var/recovery/recovery
if [ "${1:-}" = --clean ]; then
  [ ! -d "$dir" ] || "$node" down "$dir"
  exit
fi
[ ! -d "$dir" ] || { echo "$dir is there already: look at it, or take it away with tests/try-node.sh --clean" >&2; exit 2; }
# Before anything is installed or built.
tests/node/host.sh
tests/setup.sh
go version >/dev/null 2>&1 || export PATH="$PWD/target/go/bin:$PATH"
tests/etcd-tools/build.sh target/etcd-tools 3.5.21 3.6.8
tests/node/tools/build.sh
cargo build --release
cargo build --example node

began=$SECONDS
say() { printf '\n\033[1m==> [%d s] %s\033[0m\n' "$((SECONDS - began))" "$*"; }
in_node() { "$node" in "$dir" -- "$@"; }
show() { echo "\$ $*"; in_node "$@"; }

say "A node: ostree, systemd, kubelet, etcd, the API server, operators"
"$node" up "$dir"
show kubectl get nodes,pods --all-namespaces

say "The backup before the upgrade, by a Job"
packaging/image/build.sh localhost/recovery:latest target/recovery-image.tar "$target/release/recovery"
in_node sh -c 'cat > /var/tmp/image.tar && ctr --namespace k8s.io images import /var/tmp/image.tar && rm /var/tmp/image.tar' < target/recovery-image.tar
in_node kubectl create configmap written-before --from-literal=upgrade=no
tar --create --directory=packaging kubernetes | in_node tar --extract --directory=/var/tmp
in_node sed -i 's#image: recovery:latest#image: localhost/recovery:latest#' /var/tmp/kubernetes/job.yaml
show kubectl apply --kustomize /var/tmp/kubernetes
in_node kubectl wait --namespace=recovery --for=condition=Complete job/recovery-backup --timeout=120s
show kubectl logs --namespace=recovery job/recovery-backup
show "$agent" list

say "The upgrade, which fails: the next release is booted, its API server does not come up"
in_node kubectl create configmap written-after --from-literal=upgrade=yes
"$node" upgrade "$dir"
show ostree admin status
in_node kubectl get --raw /readyz && { echo "the API server is ready: nothing has failed" >&2; exit 1; }

say "One command; the rest is two reboots and the unit's work. Watch it: $node in $dir -- $agent status --watch"
show "$agent" recover --yes --hold 5
last=
until [ "$last" = "no recovery is in progress" ]; do
  sleep 2
  # It does not answer while it reboots.
  now=$(in_node "$agent" status 2>/dev/null | sed -n '/^no recovery/p; 2s/, since.*//p' | head -1) || now=
  [ -z "$now" ] || [ "$now" = "$last" ] || { say "$now"; last=$now; }
  [ $((SECONDS - began)) -lt 1800 ] || { echo "it takes too long: $node in $dir -- $agent status" >&2; exit 1; }
done
show "$agent" status
show ostree admin status
show kubectl get nodes,pods --all-namespaces
in_node kubectl get configmap written-before
in_node kubectl get configmap written-after && { echo "written-after is still there" >&2; exit 1; }
in_node kubectl wait --namespace=recovery --for=condition=Complete job/recovery-backup --timeout=120s

say "Done. The previous release serves, with what was written before the backup and nothing after it"
cat <<END
Look around:
  $node in $dir -- kubectl get pods -A       or any command, as over SSH
  $node kill $dir; $node boot $dir           a power cut
  tests/try-node.sh --clean                  takes it away
END
