// validate FILE: reads an Ignition configuration of version 3.2 as each later release of Ignition does, with the code by which Ignition itself reads
// one, and prints what they say. Ends with 1 when one of them says anything.
package main

import (
	"fmt"
	"os"

	v3_2 "github.com/coreos/ignition/v2/config/v3_2"
	v3_3 "github.com/coreos/ignition/v2/config/v3_3"
	v3_4 "github.com/coreos/ignition/v2/config/v3_4"
	v3_5 "github.com/coreos/ignition/v2/config/v3_5"
	"github.com/coreos/vcontext/report"
)

func main() {
	raw, err := os.ReadFile(os.Args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	said := false
	tell := func(version string, r report.Report, err error) {
		if err != nil || len(r.Entries) > 0 {
			said = true
			fmt.Printf("%s: %v: %s\n", version, err, r.String())
		}
	}
	_, r, err := v3_2.Parse(raw)
	tell("3.2", r, err)
	_, r, err = v3_3.ParseCompatibleVersion(raw)
	tell("3.3", r, err)
	_, r, err = v3_4.ParseCompatibleVersion(raw)
	tell("3.4", r, err)
	_, r, err = v3_5.ParseCompatibleVersion(raw)
	tell("3.5", r, err)
	if said {
		os.Exit(1)
	}
}
