#!/bin/bash
# fuzz/run.sh [SECONDS [TARGET...]]: runs targets one after the other, each for so long (600); all of them unless named. Ends with 1 when one
# has found something, which is then in fuzz/artifacts/TARGET.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-600}
shift || true
if [ $# = 0 ]; then
    mapfile -t targets < <(sed -n 's/^name = "\(.*\)"$/\1/p' Cargo.toml | tail -n +2)
    set -- "${targets[@]}"
fi

# Trees are restored and databases made there: in memory, where a sync takes no time.
TMPDIR=$(mktemp -d /dev/shm/recovery-fuzz.XXXXXX)
export TMPDIR
trap 'chattr -R -f -i -a "$TMPDIR" || true; rm -rf "$TMPDIR"' EXIT

found=0
for target; do
    dictionary=text
    [ ! -e "dictionaries/$target.dict" ] || dictionary=$target
    mkdir -p "corpus/$target"
    echo "== $target, $seconds s"
    cargo +nightly fuzz run "$target" "corpus/$target" "seeds/$target" -- -dict="dictionaries/$dictionary.dict" -max_total_time="$seconds" \
        -max_len=65536 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 -verbosity=0 || found=1
done
exit "$found"
