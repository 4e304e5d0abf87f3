#!/bin/bash
# Does to a node what OpenShift's cluster-restore.sh does: waits without limit until etcd's container is gone, refuses a data directory with
# more in it than etcd's, moves that aside, and brings etcd back from the newest snapshot with the manifest saved beside it. Two things are
# otherwise here: the node's root is where this file is, because nothing is run in it; and the data are restored at once, by etcdctl, where
# the real one leaves that to a pod in etcd's place.
set -euo pipefail
[[ $# == 1 && -d $1 ]] || { echo "Path to the directory containing backup files is required: ./cluster-restore.sh <path-to-backup>" >&2; exit 1; }
root=$(cd "$(dirname "$0")/../../.." && pwd)
data=$root/var/lib/etcd manifests=$root/etc/kubernetes/manifests
newest() { printf '%s\n' "$@" | sort --version-sort | tail -1; }
snapshot=$(newest "$1"/snapshot*.db) resources=$(newest "$1"/static_kuberesources*.tar.gz)
export ETCDCTL_API=3
etcdctl snapshot status "$snapshot" >&2
while [[ $("$root/../tools/crictl" ps -q --label io.kubernetes.container.name=etcd) ]]; do echo "Waiting for container etcd to stop" >&2; sleep 0.2; done
stray=$(find "$data" -mindepth 1 -maxdepth 1 -not -name member -printf '%f\n')
[[ -z $stray ]] || { echo "$data holds $stray: it is not empty" >&2; exit 1; }
mkdir -p "$data-backup" && rm -rf "$data-backup/member"
[[ ! -d $data/member ]] || mv "$data/member" "$data-backup/"
manifest=$(tar -xzOf "$resources" --wildcards '*/etcd-pod.yaml')
flag() { grep -o -- "--$1=[^\"]*" <<< "$manifest" | head -1; }
etcdctl snapshot restore "$snapshot" --data-dir "$data.new" "$(flag name)" "$(flag initial-cluster)" "$(flag initial-advertise-peer-urls)" >&2
mv "$data.new/member" "$data/" && rmdir "$data.new"
tar -xzOf "$resources" --wildcards '*/etcd-pod.yaml' > "$manifests/etcd-pod.yaml"
