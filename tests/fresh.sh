#!/usr/bin/env bash
# The README's first steps from nothing, as root: `tests/fresh.sh [bookworm|trixie]`. In a minimal tree of that Debian release, with this
# machine's Rust toolchain bound in read-only, it builds the agent from the packages that the README names, and runs tests/try.sh.
# The tree stays in target/fresh/RELEASE until the next run; nothing stays mounted and nothing runs on, however it ends.
set -euo pipefail
cd "$(dirname "$0")/.."
release=${1:-bookworm}
case "$release" in bookworm | trixie) ;; *) echo "usage: tests/fresh.sh [bookworm|trixie]" >&2; exit 2 ;; esac
[ "$(id -u)" = 0 ] || { echo "tests/fresh.sh: needs root: the tree is made of mounts" >&2; exit 77; }
command -v debootstrap >/dev/null || { echo "tests/fresh.sh: no debootstrap: tests/setup.sh installs it" >&2; exit 1; }

# Mounts and processes have namespaces of their own, which end with their first process.
if [ "${2:-}" != --inside ]; then
  unshare --mount --pid --fork --kill-child --mount-proc "$0" "$release" --inside &
  inside=$!
  trap 'kill -KILL $inside; exit 130' INT TERM HUP
  wait $inside
  exit
fi

tree=$PWD/target/fresh/$release
rust=$(rustc --print sysroot)
[ "$rust" != /usr ] || { echo "tests/fresh.sh: the Rust toolchain is the system's own: it takes one of rustup's" >&2; exit 1; }
# shellcheck disable=SC2016  # the README's own marks
packages=$(sed -n 's/.*the build itself: `\([a-z0-9 -]*\)`.*/\1/p' README.md)
[ -n "$packages" ] || { echo "tests/fresh.sh: the README names no packages for the build" >&2; exit 1; }
began=$SECONDS
step() { printf '\n\033[1m### [%d s] %s: %s\033[0m\n' "$((SECONDS - began))" "$release" "$*"; }
TIMEFORMAT='(%0R s; %0U + %0S s of CPU)'

step "a minimal tree (a minute)"
rm -rf --one-file-system "$tree"
mkdir -p "$tree"
# The mirror that this machine takes its own packages from; debootstrap's usual one where it has none.
# shellcheck disable=SC2016  # apt's own variables
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' | head -1)
time debootstrap --variant=minbase "$release" "$tree" ${mirror:+"$mirror"} >"$tree.log" || { tail -20 "$tree.log" >&2; exit 1; }

# How this machine reaches the registries: names, proxies, its own certificate authorities. No package comes in with that.
cp --dereference /etc/resolv.conf /etc/hosts "$tree/etc/"
apt-config dump Acquire | grep -E '^Acquire::(Check-|Retries|ForceIPv|https?::)' >"$tree/etc/apt/apt.conf.d/90host" || true
mkdir -p "$tree/etc/ssl/certs" "$tree/usr/local/share/ca-certificates" "$tree/root/.cargo"
cp /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/"
find /usr/local/share/ca-certificates -name '*.crt' -exec cp {} "$tree/usr/local/share/ca-certificates/" \;
for file in /etc/pip.conf "${CARGO_HOME:-$HOME/.cargo}/config.toml"; do
  [ ! -f "$file" ] || case "$file" in *.toml) cp "$file" "$tree/root/.cargo/" ;; *) cp "$file" "$tree/etc/" ;; esac
done
mapfile -t settings < <(env | grep -iE '^(https?_proxy|all_proxy|no_proxy|PIP_(INDEX_URL|EXTRA_INDEX_URL|TRUSTED_HOST)|GO(PROXY|SUMDB|NOSUMDB)|CARGO_(REGISTRIES|SOURCE|HTTP|NET)_[A-Z_]*)=')
# As in every container: no service is started by its package.
printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d"
chmod +x "$tree/usr/sbin/policy-rc.d"

mount --bind "$tree" "$tree"
mount -t proc proc "$tree/proc"
mount --rbind /sys "$tree/sys"
mount --rbind /dev "$tree/dev"
mkdir "$tree/opt/rust" "$tree/root/recovery"
mount --bind "$rust" "$tree/opt/rust"
mount -o remount,bind,ro "$tree/opt/rust"
# The network is this machine's: so are the locks of the ports that emulated nodes take.
ports=${TMPDIR:-/tmp}/emulated-node-ports
mkdir -p "$ports" "$tree/tmp/emulated-node-ports"
mount --bind "$ports" "$tree/tmp/emulated-node-ports"
# As a checkout has it: everything but what was built.
tar --create --exclude=./target --exclude=./.git . | tar --extract --directory="$tree/root/recovery"
in_tree() {
  chroot "$tree" env -i HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive "${settings[@]}" \
    PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -ec "cd /root/recovery; $1"
}

step "the packages that the README names for the build: $packages"
time in_tree "apt-get update -q && apt-get install -q -y --no-install-recommends $packages" >"$tree.log" || { tail -20 "$tree.log" >&2; exit 1; }

step "cargo build --release (10 minutes of CPU)"
# After whatever else there is to do: where tests run beside it, it takes the time in which they wait.
time in_tree "nice -n 19 cargo build --release --locked"

step "the README's first command"
time in_tree "tests/try.sh"
in_tree "tests/try.sh --clean"

step "Done. The tree stays in $tree: remove it when you like"
