#!/bin/bash
# Programs that only look, for the emulated node, by the name it is called by: what they print is in ../state, where a test puts it.
name=${0##*/} state=$(dirname "$0")/../state
echo "$name $*" >> "$state/looked"
case $name in
  journalctl) cat "$state/log" ;;
  df) echo "Filesystem Type Size Used Avail Use% Mounted on"; echo "/dev/vda4 xfs 100G 20G 80G 20% /sysroot" ;;
  findmnt) echo "as told" >&2; exit 1 ;;
  lsblk) exec sleep 3600 ;;
  *) echo "$name 1.2.3" ;;
esac
