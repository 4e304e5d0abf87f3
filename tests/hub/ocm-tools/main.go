// The work agent of Open Cluster Management, without the registration agent and the webhooks that its own program carries beside it.
package main

import (
	"context"
	"fmt"
	"os"

	"k8s.io/utils/clock"
	"open-cluster-management.io/api/feature"
	"open-cluster-management.io/ocm/pkg/common/options"
	"open-cluster-management.io/ocm/pkg/features"
	"open-cluster-management.io/ocm/pkg/version"
	"open-cluster-management.io/ocm/pkg/work/spoke"
)

func main() {
	common, work := options.NewAgentOptions(), spoke.NewWorkloadAgentOptions()
	run := spoke.NewWorkAgentConfig(common, work).RunWorkloadAgent
	command := common.CommonOpts.NewControllerCommandConfig("work-agent", version.Get(), run, clock.RealClock{}).
		NewCommandWithContext(context.Background())
	common.AddFlags(command.Flags())
	work.AddFlags(command.Flags())
	err := features.SpokeMutableFeatureGate.Add(feature.DefaultSpokeWorkFeatureGates)
	if err == nil {
		features.SpokeMutableFeatureGate.AddFlag(command.Flags())
		err = command.Execute()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "work-agent:", err)
		os.Exit(1)
	}
}
