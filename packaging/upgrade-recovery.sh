#!/bin/sh
# The old tool's name and flags, for those who know it: everything is done by the agent beside this file. `recovery --help` shows more.
set -eu
here=$(dirname "$(readlink -f "$0")")

# Without one of its verbs the old tool starts the recovery: it restores the files and asks for the reboot.
verb=restore-files dir=$here
for flag; do
    case $flag in
        --resume | --step | --restart | --take-backup | -h | --help) verb= ;;
        --dir | --dir=*) dir= ;;
    esac
done

# It did not ask back either: whoever calls it has decided.
set -- --yes "$@"
if [ "$dir" ]; then set -- "--dir=$dir" "$@"; fi
if [ "$verb" ]; then set -- "$verb" "$@"; fi
exec "$here/recovery" "$@"
