#!/usr/bin/env bash
# open-cluster-management.io/ocm v1.2.0, work agent: `updateStrategy: CreateOnly` creates more than once, and what it has reported of an object stays when
# the object is gone.
#
# A Pod in a ManifestWork with CreateOnly that is deleted on the managed cluster is made again: by the resync (four to six minutes), by any change of the
# work, a label's too, and by every start of the agent. Between, its feedback still has the uid of the one that is gone; only the condition Available is
# False. `ReadOnly`, set once the uid was seen, is what keeps it from being made again.
#
# Needs Go, a module proxy, ten minutes for the agent, kube-apiserver and etcd when they are not built yet, and openssl.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
top=$here/..
"$top/tests/hub/ocm-tools/build.sh"
"$top/tests/node/tools/build.sh"
"$top/tests/etcd-tools/build.sh" "$top/target/etcd-tools" 3.6.8
kubernetes=$top/target/node-tools/kubernetes etcd=$top/target/etcd-tools/3.6.8 ocm=$top/target/ocm-tools
dir=$(mktemp -d)
jobs=()
trap 'kill "${jobs[@]}" 2>/dev/null || true; wait; rm -rf "$dir"' EXIT
cd "$dir"

# One API server is hub and managed cluster in one.
openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca 2>/dev/null
issue() { # NAME SUBJECT
  openssl req -newkey rsa:2048 -nodes -keyout "$1.key" -out "$1.csr" -subj "$2" 2>/dev/null
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out "$1.crt" 2>/dev/null \
    -extfile <(echo "subjectAltName=IP:127.0.0.1")
}
issue server /CN=server
issue admin /O=system:masters/CN=admin
"$etcd/etcd" --data-dir etcd --listen-client-urls http://127.0.0.1:19379 --advertise-client-urls http://127.0.0.1:19379 \
  --listen-peer-urls http://127.0.0.1:19380 >etcd.log 2>&1 &
jobs+=($!)
"$kubernetes/kube-apiserver" --etcd-servers=http://127.0.0.1:19379 --bind-address=127.0.0.1 --secure-port=19443 --cert-dir=certs \
  --tls-cert-file=server.crt --tls-private-key-file=server.key --client-ca-file=ca.crt --service-account-issuer=https://localhost \
  --service-account-key-file=server.crt --service-account-signing-key-file=server.key --disable-admission-plugins=ServiceAccount \
  --service-cluster-ip-range=10.96.0.0/16 >api.log 2>&1 &
jobs+=($!)
cat >kubeconfig <<YAML
{apiVersion: v1, kind: Config, current-context: x, contexts: [{name: x, context: {cluster: c, user: u}}],
 clusters: [{name: c, cluster: {server: "https://127.0.0.1:19443", certificate-authority: $dir/ca.crt}}],
 users: [{name: u, user: {client-certificate: $dir/admin.crt, client-key: $dir/admin.key}}]}
YAML
export KUBECONFIG=$dir/kubeconfig
kubectl() { "$kubernetes/kubectl" "$@"; }
until_is() { # SECONDS WANTED COMMAND...: its output, within that time
  local end=$((SECONDS + $1)) wanted=$2 found
  shift 2
  while found=$("$@" 2>/dev/null || true) && [ "$found" != "$wanted" ]; do
    [ "$SECONDS" -lt "$end" ] || { echo "changed: $* says \"$found\", not \"$wanted\"" >&2; exit 1; }
    sleep 0.2
  done
}
until_is 60 ok kubectl get --raw /readyz
kubectl apply -f "$ocm/crds" >/dev/null
kubectl wait --for=condition=Established --timeout=30s crd --all >/dev/null
kubectl create namespace one >/dev/null
start_agent() {
  "$ocm/work-agent" --spoke-cluster-name=one --workload-source-config="$dir/kubeconfig" --spoke-kubeconfig="$dir/kubeconfig" \
    --kubeconfig="$dir/kubeconfig" --namespace=default --disable-leader-election --status-sync-interval=1s --listen=127.0.0.1:19444 >>agent.log 2>&1 &
  agent=$!
  jobs+=("$agent")
}
start_agent
kubectl create -f - >/dev/null <<'YAML'
apiVersion: work.open-cluster-management.io/v1
kind: ManifestWork
metadata: {name: once, namespace: one}
spec:
  workload:
    manifests:
    - {apiVersion: v1, kind: Pod, metadata: {name: once, namespace: default}, spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}
  manifestConfigs:
  - resourceIdentifier: {group: "", resource: pods, namespace: default, name: once}
    updateStrategy: {type: CreateOnly}
    feedbackRules: [{type: JSONPaths, jsonPaths: [{name: uid, path: .metadata.uid}]}]
YAML
uid() { kubectl get pod once -o jsonpath='{.metadata.uid}'; }
manifest='{.status.resourceStatus.manifests[0]'
available() { kubectl -n one get manifestwork once -o jsonpath="$manifest.conditions[?(@.type=='Available')].status}"; }
reported() { kubectl -n one get manifestwork once -o jsonpath="$manifest.statusFeedback.values[0].fieldValue.string}"; }
until_is 30 True available
first=$(uid)
until_is 30 "$first" reported
kubectl delete pod once --grace-period=0 --force >/dev/null 2>&1
until_is 30 False available
[ "$(reported)" = "$first" ] || { echo "changed: the uid of what is gone is reported no more" >&2; exit 1; }
kubectl -n one label manifestwork once some=label >/dev/null
until_is 30 True available
second=$(uid)
kill -9 "$agent"
kubectl delete pod once --grace-period=0 --force >/dev/null 2>&1
start_agent
until_is 30 "pod/once" kubectl get pod once -o name
third=$(uid)
if [ "$first" = "$second" ] || [ "$second" = "$third" ]; then echo "changed: it was not created again" >&2; exit 1; fi
echo "created three times: $first $second $third"
kubectl -n one patch manifestwork once --type=json -p '[{"op": "replace", "path": "/spec/manifestConfigs/0/updateStrategy", "value": {"type": "ReadOnly"}}]' >/dev/null
sleep 2
kubectl delete pod once --grace-period=0 --force >/dev/null 2>&1
kubectl -n one label manifestwork once other=label >/dev/null
sleep 5
[ -z "$(kubectl get pod once -o name 2>/dev/null)" ] || { echo "changed: ReadOnly creates too" >&2; exit 1; }
echo "as described: CreateOnly creates again, ReadOnly does not"
