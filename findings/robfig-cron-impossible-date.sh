#!/usr/bin/env bash
# github.com/robfig/cron/v3 v3.0.1, ParseStandard: a date that never comes is no error, and its next time is long past.
#
# `0 0 31 2 *` (31 February) is parsed like any other, and Next answers with Go's zero time, 1 January of the year 1. Whoever asks "is it due?" as
# "is the next time before now?" finds it due at every look, and so does whoever compares with a clock: backups without end from a slip of the pen.
# (29 February is found within the five years that are searched.) Seen with Go 1.26:
#
#   31 February: parsed, next 0001-01-01T00:00:00Z, due now: true
#   29 February: parsed, next 2028-02-29T00:00:00Z, due now: false
#
# Needs Go and a module proxy.
set -euo pipefail
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
export GOFLAGS=-mod=mod GOPATH=$dir/go GOCACHE=$dir/cache
go mod init finding >/dev/null 2>&1
cat >main.go <<'GO'
package main

import (
	"fmt"
	"time"

	"github.com/robfig/cron/v3"
)

func main() {
	now := time.Date(2026, 3, 28, 1, 30, 15, 0, time.UTC)
	for _, day := range []string{"31", "29"} {
		schedule, err := cron.ParseStandard("0 0 " + day + " 2 *")
		if err != nil {
			fmt.Printf("%s February: not parsed: %v\n", day, err)
			continue
		}
		next := schedule.Next(now)
		fmt.Printf("%s February: parsed, next %s, due now: %v\n", day, next.Format(time.RFC3339), next.Before(now))
	}
}
GO
go get github.com/robfig/cron/v3@v3.0.1 >/dev/null 2>&1
found=$(go run .)
echo "$found"
expected='31 February: parsed, next 0001-01-01T00:00:00Z, due now: true
29 February: parsed, next 2028-02-29T00:00:00Z, due now: false'
[ "$found" = "$expected" ] || { echo "changed" >&2; exit 1; }
echo "as described: a date that never comes is always due"
