//! The names of the steps, as journals and reports write them: a name that was ever written means the same for ever.
//!
//! What a step does is in its phase's file: `STEPS` there has the constant beside the function.

/// Holding kubelet, whatever boots.
pub const HOLD: &str = "hold";
/// Stopping kubelet.
pub const STOP_KUBELET: &str = "stop-kubelet";
/// Stopping machine-config-daemon.
pub const STOP_DAEMON: &str = "stop-daemon";
/// Holding kubelet in the backup's deployment too.
pub const TARGET_FILES: &str = "target-files";
/// Dropping what would boot before the backup's deployment.
pub const DROP_AHEAD: &str = "drop-ahead";
/// Removing standbys before the backup's deployment.
pub const UNDEPLOY_BETWEEN: &str = "undeploy-between";
/// Rolling back to the backup's deployment.
pub const ROLL_BACK: &str = "roll-back";
/// Stopping containers and removing pod sandboxes.
pub const STOP_CONTAINERS: &str = "stop-containers";
/// Checking that the backup's deployment boots next.
pub const NEXT_BOOT: &str = "next-boot";
/// Checking which deployment is booted and which boots next.
pub const DEPLOYMENT: &str = "deployment";
/// Noting which containers there are.
pub const OLD_CONTAINERS: &str = "old-containers";
/// Stopping the container runtime.
pub const STOP_RUNTIME: &str = "stop-runtime";
/// Removing files that only the newer release put outside /etc.
pub const NEWER_FILES: &str = "newer-files";
/// Restoring /usr/local.
pub const USR_LOCAL: &str = "usr-local";
/// Restoring /etc.
pub const ETC: &str = "etc";
/// Restoring managed files elsewhere.
pub const EXTRAS: &str = "extras";
/// Reloading the unit files.
pub const UNIT_FILES: &str = "unit-files";
/// Checking the backup again.
pub const BACKUP: &str = "backup";
/// Restoring /var/lib/kubelet.
pub const KUBELET_FILES: &str = "kubelet-files";
/// Removing OVN's databases.
pub const NETWORK_DATABASES: &str = "network-databases";
/// Emptying the directory of static pods.
pub const NO_MANIFESTS: &str = "no-manifests";
/// Restoring what the static pods read.
pub const STATIC_PODS: &str = "static-pods";
/// Restoring etcd's data.
pub const ETCD_DATA: &str = "etcd-data";
/// Putting etcd's manifest in place.
pub const ETCD_MANIFEST: &str = "etcd-manifest";
/// Comparing the files with the machine configuration.
pub const MACHINE_CONFIG: &str = "machine-config";
/// Starting the container runtime.
pub const START_RUNTIME: &str = "start-runtime";
/// Lifting the hold on kubelet.
pub const LIFT_HOLD: &str = "lift-hold";
/// Starting kubelet.
pub const START_KUBELET: &str = "start-kubelet";
/// Waiting for etcd.
pub const ETCD_ANSWERS: &str = "etcd-answers";
/// Patching objects in etcd by the rules of a resource modifier.
pub const PATCH_OBJECTS: &str = "patch-objects";
/// Putting the API server's manifest in place.
pub const API_SERVER_MANIFEST: &str = "api-server-manifest";
/// Waiting for the API server.
pub const API_SERVER_READY: &str = "api-server-ready";
/// Reading the patched objects back through the API server.
pub const PATCHED_OBJECTS: &str = "patched-objects";
/// Patching objects of built-in kinds through the API server.
pub const PATCH_SERVED: &str = "patch-served-objects";
/// Giving the backup's own Job time to end.
pub const OWN_JOB: &str = "own-job";
/// Putting the other manifests in place.
pub const MANIFESTS: &str = "manifests";
/// Restarting OVN's pods.
pub const NETWORK_PODS: &str = "network-pods";
/// Waiting for the control plane's containers.
pub const CONTAINERS: &str = "containers";
/// Redeploying etcd.
pub const ETCDS: &str = "etcds";
/// Redeploying kube-apiserver.
pub const KUBEAPISERVERS: &str = "kubeapiservers";
/// Redeploying kube-controller-manager.
pub const KUBECONTROLLERMANAGERS: &str = "kubecontrollermanagers";
/// Redeploying kube-scheduler.
pub const KUBESCHEDULERS: &str = "kubeschedulers";
/// Waiting for the cluster to be as the backup recorded it.
pub const CLUSTER: &str = "cluster";
/// Removing the etcd data that was replaced.
pub const ETCD_COPY: &str = "etcd-copy";
/// Putting back what the recovery changed.
pub const PUT_BACK: &str = "put-back";
