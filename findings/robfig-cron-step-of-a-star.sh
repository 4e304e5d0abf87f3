#!/usr/bin/env bash
# github.com/robfig/cron/v3 v3.0.1, ParseStandard: `*/2` in the day of the month turns "and" into "or".
#
# Where both days are restricted, either will do; where one is `*`, the other decides. In Vixie's cron a field that begins with a star counts as `*`, with a
# step too: `0 0 */2 * 1` comes on Mondays of odd days. Here only the bare star counts: it comes on every odd day, and on every Monday too, more than
# twice as often as meant. Seen with Go 1.26, from Saturday, 28 March 2026:
#
#   "0 0 */2 * 1": Sun 29, Mon 30, Tue 31, Wed 01, Fri 03
#   "0 0 * * 1":   Mon 30, Mon 06, Mon 13, Mon 20, Mon 27
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
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

func main() {
	for _, expression := range []string{"0 0 */2 * 1", "0 0 * * 1"} {
		schedule, err := cron.ParseStandard(expression)
		if err != nil {
			panic(err)
		}
		next, days := time.Date(2026, 3, 28, 1, 30, 15, 0, time.UTC), []string{}
		for range 5 {
			next = schedule.Next(next)
			days = append(days, next.Format("Mon 02"))
		}
		fmt.Printf("%q: %s\n", expression, strings.Join(days, ", "))
	}
}
GO
go get github.com/robfig/cron/v3@v3.0.1 >/dev/null 2>&1
found=$(go run .)
echo "$found"
expected='"0 0 */2 * 1": Sun 29, Mon 30, Tue 31, Wed 01, Fri 03
"0 0 * * 1": Mon 30, Mon 06, Mon 13, Mon 20, Mon 27'
[ "$found" = "$expected" ] || { echo "changed" >&2; exit 1; }
echo "as described: a star with a step is a restriction"
