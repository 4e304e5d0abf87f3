#!/usr/bin/env bash
# packaging/tool.sh NAME: prints the path of one of the crates that packages and bills of materials are made with, and builds it first where
# it is not there (a minute each), into target/package-tools. What is made depends on their versions: these.
set -euo pipefail
case "${1:-}" in
  cargo-deb) version=3.8.0 ;;
  cargo-cyclonedx) version=0.5.9 ;;
  *) echo "usage: $0 cargo-deb|cargo-cyclonedx" >&2; exit 2 ;;
esac
root=$(realpath "$(dirname "$0")/..")/target/package-tools
mkdir -p "$root"
exec 9>"$root/lock"
flock 9
if ! [ -e "$root/$1-$version" ]; then
  # Not from the checkout: its settings (`.cargo/config.toml`) are about the agent.
  cd /
  nice -n 10 cargo install --quiet --locked --force --debug --root "$root" "$1@$version" >&2
  touch "$root/$1-$version"
fi
echo "$root/bin/$1"
