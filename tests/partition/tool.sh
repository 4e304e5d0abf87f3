#!/bin/bash
# The programs of the machine in machine.rs, called by their names through links: the real ones, and what is not there: udev, which makes names of devices, and
# systemd, which mounts. A file `die-before-NAME` or `die-after-NAME` beside the links has a pattern: a call whose arguments match it kills its caller, once.
set -u
name=${0##*/}
base=$(cd "$(dirname "$0")/.." && pwd)
root=$base/root
PATH=/usr/sbin:/usr/bin:/sbin:/bin
mapfile -t disks <"$base/disks"

die() {
  local fault=$base/$1-$name
  if [ -e "$fault" ] && [[ "$2" == $(cat "$fault") ]]; then
    rm "$fault"
    kill -KILL $PPID
    exit 1
  fi
}
# The names that udev would have made of what the disks hold now.
udev() {
  local disk partition by value
  rm -rf "$root"/dev/disk/by-partlabel "$root"/dev/disk/by-label
  for disk in "${disks[@]}"; do
    for partition in /sys/class/block/"$disk"/"$disk"p*; do
      [ -e "$partition/partition" ] || continue
      value=$(partx --raw --noheadings --nr "$(cat "$partition/partition")" -o NAME "/dev/$disk")
      by="by-partlabel"
      for value in "$value" "$(blkid -p -s LABEL -o value "/dev/${partition##*/}")"; do
        mkdir -p "$root/dev/disk/$by"
        [ -z "$value" ] || ln -sf "../../${partition##*/}" "$root/dev/disk/$by/$value"
        by="by-label"
      done
    done
  done
}
units=$root/etc/systemd/system
mount_unit() {
  local what where
  what=$(sed -n 's/^What=//p' "$units/$1")
  where=$root$(sed -n 's/^Where=//p' "$units/$1")
  [ -L "$root$what" ] || { echo "$what is not there" >&2; return 1; }
  mount -t xfs "$root/dev/$(basename "$(readlink "$root$what")")" "$where"
}

die die-before "$*"
status=0
case "$name" in
  blkid)
    # Not the disks of whoever else is on this machine.
    if [[ " $* " == *" -t "* ]]; then
      mapfile -t devices < <(for disk in "${disks[@]}"; do ls /dev/"$disk" /dev/"$disk"p* 2>/dev/null; done)
      blkid "$@" "${devices[@]}" || status=$?
    else
      blkid "$@" || status=$?
    fi
    ;;
  partx | mkfs.xfs)
    "$name" "$@" || status=$?
    udev
    ;;
  boot)
    udev
    cp -a "$units" "$base/loaded"
    for link in "$units"/local-fs.target.wants/*.mount; do
      # systemd passes over a link that leads to nothing.
      [ ! -e "$units/${link##*/}" ] || mount_unit "${link##*/}" || status=$?
    done
    ;;
  systemctl)
    case "$1 ${2-}" in
      "daemon-reload "*) rm -rf "$base/loaded" && cp -a "$units" "$base/loaded" ;;
      "start "*)
        cmp -s "$base/loaded/$2" "$units/$2" || { echo "$2 was not loaded" >&2; exit 1; }
        mount_unit "$2" || status=$?
        ;;
      "show "*)
        active=inactive sub=dead
        if findmnt --noheadings "$root/var/recovery" >/dev/null; then active=active sub=mounted; fi
        printf 'LoadState=loaded\nActiveState=%s\nSubState=%s\nConditionResult=yes\n' $active $sub
        ;;
      *) echo "systemctl $*: unexpected" >&2 && exit 1 ;;
    esac
    ;;
  *) "$name" "$@" || status=$? ;;
esac
[ "$status" != 0 ] || die die-after "$*"
exit "$status"
