#!/bin/bash
# `systemctl` and `crictl` of a small node, by the name it is called by: units and calls are files in ../state; one call can be made to fail,
# and one of the two to go wrong in every call.
name=${0##*/} state=$(dirname "$0")/../state
while [[ $1 == --timeout=* || $1 == --*-endpoint=* ]]; do [[ $1 == --runtime-endpoint=* ]] && echo "${1#*=}" > "$state/endpoint"; shift; done
echo "$name $*" >> "$state/calls"
if [[ -s $state/fault && "$name $*" == *"$(cat "$state/fault")"* ]]; then rm "$state/fault"; echo "as told" >&2; exit 1; fi
case $(cat "$state/$name.wrong" 2>/dev/null) in
  hangs) exec sleep 3600 ;;
  fails) echo "as told" >&2; exit 1 ;;
  "prints garbage") printf '\x00\xff{"containers":[{]'; exit 0 ;;
esac
unit() { cat "$state/$1" 2>/dev/null || echo inactive; }
case "$name $1" in
  "systemctl show") [[ $2 == --property=FragmentPath ]] && { echo "FragmentPath=$(cat "$state/mounted-by" 2>/dev/null)"; exit; }
    active=$(unit "$3")
    printf 'ActiveState=%s\nSubState=start\nLoadState=%s\nConditionResult=yes\n' "$active" "$(cat "$state/$3.load" 2>/dev/null || echo loaded)" ;;
  "systemctl start"|"systemctl restart") echo active > "$state/$2" ;;
  "systemctl stop") echo inactive > "$state/$2" ;;
  "systemctl reset-failed") echo inactive > "$state/$2" ;;
  "systemctl daemon-reload"|"systemctl reboot") ;;
  "crictl version") [[ $(unit containerd.service) == active ]] ;;
  "crictl ps") cat "$state/containers.json" ;;
  "crictl pods") echo '{"items":[]}' ;;
  "crictl images") echo '{"images":[{"id":"sha256:1111","repoTags":["registry/etcd:1"],"repoDigests":[],"size":"1"}]}' ;;
  "crictl stop") ;;
  *) echo "nobody knows $name $*" >&2; exit 9 ;;
esac
