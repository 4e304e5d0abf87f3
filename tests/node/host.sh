#!/bin/sh
# host.sh [ROOT]: whether this machine (or the one whose root is ROOT) can run the real node. Ends with 0, or with 78 and the reason.
root=${1:-}
refuse() {
  echo "the real node cannot run here: $*" >&2
  exit 78
}
groups=$root/sys/fs/cgroup
# The node's kubelet and containerd keep pods in groups by writing files. In version 2 there is one tree, which belongs to systemd: the one
# of this machine gives no controllers below a group that has processes, the node's own takes those back that it does not need itself.
[ ! -e "$groups/cgroup.controllers" ] || refuse "it needs control groups of version 1, and this machine has version 2 alone.
Boot it with systemd.unified_cgroup_hierarchy=0 (systemd 256 and later: with SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1 beside it; 258 has no
version 1), or use tests/try.sh, which shows the agent's main job without"
for controller in cpu cpuset memory pids; do
  [ -d "$groups/$controller" ] || refuse "the control groups of version 1 lack \`$controller\`: mount it at $groups/$controller"
done
[ -e "$root/dev/loop-control" ] || refuse "its disks are loop devices, and there is no /dev/loop-control: \`modprobe loop\`"
