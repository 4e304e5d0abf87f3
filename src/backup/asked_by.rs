//! Who asked for a backup.
//!
//! A Job's backup has that very Job in its etcd snapshot, as *running*: a recovery brings it back, and it asks again. It is recognised by
//! its id, and must end without another backup.
//!
//! Its pod does not identify it: containerd keeps the ended container over the reboot; CRI-O keeps nothing, so kubelet reports the pod as
//! failed, and the command runs again in a new pod.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::names::check_name;
use crate::node::Node;
use crate::node::mounts::{Mount, mounts};
use crate::tools::crictl;

/// Variables with the Job's UID (downward API: `metadata.labels['batch.kubernetes.io/controller-uid']`); the first that is set counts.
const JOB_VARIABLES: [&str; 2] = ["RECOVERY_JOB_UID", "JOB_UID"];

/// Labels of a Job's pod that hold the Job's UID; the second is the name before Kubernetes 1.27. kubelet copies them to the sandbox.
const JOB_LABELS: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];
/// kubelet's own label of a sandbox: the pod's UID.
const POD_LABEL: &str = "io.kubernetes.pod.uid";

/// The asker of an imported backup.
const OLD_SCRIPT: &str = "upgrade-recovery.sh";

/// The variable that tells the agent on the host who asked in the container: there, neither variables nor mounts say it any more.
pub const HANDED_ON: &str = "RECOVERY_ASKED_BY";

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub enum AskedBy {
    /// A Job, by its UID.
    Job(String),
    /// A pod, by its UID: one of a Job that does not pass its own UID on.
    Pod(String),
    /// A user of the node, by number.
    User(u32),
    /// A schedule of this node, by its name.
    Schedule(String),
    /// The old script: an imported backup.
    OldScript,
    /// An asker unknown to this agent, in the words of the agent that wrote it down.
    Other(String),
}

impl AskedBy {
    /// Who asks now, from this process's environment and mounts. Call it before the namespaces of the host are entered: there, `/etc/hosts`
    /// is the host's own.
    #[must_use]
    pub fn this_process() -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        Self::of(variable, &mounts().unwrap_or_default(), rustix::process::getuid().as_raw())
    }

    /// As [`AskedBy::this_process`], from the given values.
    #[must_use]
    pub fn of(variable: impl Fn(&str) -> Option<String>, mounts: &[Mount], user: u32) -> Self {
        if let Some(asked) = variable(HANDED_ON).and_then(Self::handed_on) {
            return asked;
        }
        if let Some(uid) = JOB_VARIABLES.iter().filter_map(|name| variable(name)).find(|uid| is_uid(uid)) {
            return Self::Job(uid);
        }
        mounts.iter().find_map(pod_of).map_or(Self::User(user), Self::Pod)
    }

    /// Replaces a pod by its Job, for a Job that does not pass its UID on, such as that of the old tool's hub: the container runtime knows
    /// the labels of the pod. Every other asker stays the same, and so does a pod without a Job.
    #[must_use]
    pub fn by_its_job(self, node: &Node) -> Self {
        let Self::Pod(pod) = &self else { return self };
        match crictl::sandboxes(node) {
            Ok(sandboxes) => job_of(pod, sandboxes.iter().map(|sandbox| &sandbox.labels)).map_or(self, Self::Job),
            Err(error) => {
                tracing::warn!("the container runtime does not say to which Job the pod {pod} belongs: {error:#}");
                self
            }
        }
    }

    /// True when a pod with these labels belongs to this asker.
    #[must_use]
    pub fn has_pod(&self, labels: &BTreeMap<String, String>) -> bool {
        let has = |label: &str, uid: &String| labels.get(label) == Some(uid);
        match self {
            Self::Job(uid) => JOB_LABELS.iter().any(|label| has(label, uid)),
            Self::Pod(uid) => has(POD_LABEL, uid),
            _ => false,
        }
    }

    /// The Job or pod that the variable [`HANDED_ON`] names.
    fn handed_on(text: String) -> Option<Self> {
        Some(Self::from(text)).filter(Self::asks_once)
    }

    /// True for askers whose second request is answered "already done". A person who asks twice wants two backups.
    #[must_use]
    pub fn asks_once(&self) -> bool {
        matches!(self, Self::Job(_) | Self::Pod(_))
    }
}

impl fmt::Display for AskedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(uid) => write!(f, "job/{uid}"),
            Self::Pod(uid) => write!(f, "pod/{uid}"),
            Self::User(number) => write!(f, "user/{number}"),
            Self::Schedule(name) => write!(f, "schedule/{name}"),
            Self::OldScript => f.write_str(OLD_SCRIPT),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// Reads the text in a manifest or variable; what this agent would not write the same is kept as [`AskedBy::Other`].
impl From<String> for AskedBy {
    fn from(text: String) -> Self {
        let known = match text.split_once('/') {
            Some(("job", uid)) if is_uid(uid) => Self::Job(uid.to_owned()),
            Some(("pod", uid)) if is_uid(uid) => Self::Pod(uid.to_owned()),
            Some(("schedule", name)) if check_name(name).is_ok() => Self::Schedule(name.to_owned()),
            Some(("user", number)) => number.parse().map_or_else(|_| Self::Other(text.clone()), Self::User),
            _ if text == OLD_SCRIPT => Self::OldScript,
            _ => Self::Other(text.clone()),
        };
        if known.to_string() == text { known } else { Self::Other(text) }
    }
}

impl From<AskedBy> for String {
    fn from(asked_by: AskedBy) -> Self {
        asked_by.to_string()
    }
}

/// The UID of the Job to which the pod `pod` belongs, from the labels of all pods.
fn job_of<'a>(pod: &str, mut all: impl Iterator<Item = &'a BTreeMap<String, String>>) -> Option<String> {
    let labels = all.find(|labels| labels.get(POD_LABEL).is_some_and(|uid| uid == pod))?;
    JOB_LABELS.iter().find_map(|label| labels.get(*label)).filter(|uid| is_uid(uid)).cloned()
}

/// The pod's UID from a mount: kubelet mounts `…/pods/<uid>/etc-hosts` over `/etc/hosts`. The path before `pods` depends on where the file
/// system of `/var/lib/kubelet` begins.
fn pod_of(mount: &Mount) -> Option<String> {
    if mount.point != Path::new("/etc/hosts") || mount.source_root.file_name()? != "etc-hosts" {
        return None;
    }
    let pod = mount.source_root.parent()?;
    let uid = pod.file_name()?.to_str()?;
    (pod.parent()?.file_name()? == "pods" && is_uid(uid)).then(|| uid.to_owned())
}

/// A UID of the API (8-4-4-4-12), or the 32 digits of a static pod.
fn is_uid(text: &str) -> bool {
    (8..=63).contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::mounts::parse;

    const POD: &str = "0a1b2c3d-1111-2222-3333-444455556666";

    fn none(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn a_job_is_known_by_its_variable_before_anything_else() {
        let job = |name: &str| (name == "JOB_UID").then(|| POD.to_owned());
        let mounts = parse(format!("1 2 8:4 /var/lib/kubelet/pods/{POD}/etc-hosts /etc/hosts rw - xfs /dev/x rw\n").as_bytes());
        assert_eq!(AskedBy::of(job, &mounts, 0).to_string(), format!("job/{POD}"));
        let odd = |name: &str| (name == "JOB_UID").then(|| "../../x".to_owned());
        assert_eq!(AskedBy::of(odd, &[], 0), AskedBy::User(0));
    }

    /// Under CRI-O the restored Job runs in a new pod; its own variable or the runtime's labels show that it is the same Job.
    #[test]
    fn a_new_pod_of_the_same_job_is_the_same_job() {
        let job = |name: &str| (name == "RECOVERY_JOB_UID").then(|| "11111111-2222".to_owned());
        let pod = |uid: &str| parse(format!("1 2 8:4 /pods/{uid}/etc-hosts /etc/hosts rw - xfs /dev/x rw\n").as_bytes());
        let asked = ["0a1b2c3d-1111", "0a1b2c3d-2222"].map(|uid| AskedBy::of(job, &pod(uid), 0));
        assert_eq!(asked, [AskedBy::Job("11111111-2222".to_owned()), AskedBy::Job("11111111-2222".to_owned())]);

        let labels = |text: &[(&str, &str)]| text.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>();
        let all = [
            labels(&[(POD_LABEL, "0a1b2c3d-1111"), (JOB_LABELS[0], "11111111-2222"), (JOB_LABELS[1], "11111111-2222")]),
            labels(&[(POD_LABEL, "0a1b2c3d-2222"), (JOB_LABELS[1], "11111111-2222")]),
            labels(&[(POD_LABEL, "0a1b2c3d-3333"), ("app", "x")]),
            labels(&[(POD_LABEL, "0a1b2c3d-4444"), (JOB_LABELS[0], "../x")]),
        ];
        let jobs = ["1111", "2222", "3333", "4444", "5555"].map(|end| job_of(&format!("0a1b2c3d-{end}"), all.iter()));
        assert_eq!(jobs.map(|job| job.is_some_and(|uid| uid == "11111111-2222")), [true, true, false, false, false]);
        let restored = AskedBy::from("job/11111111-2222".to_owned());
        assert_eq!(all.each_ref().map(|labels| restored.has_pod(labels)), [true, true, false, false]);
        let restored = AskedBy::from("pod/0a1b2c3d-3333".to_owned());
        assert_eq!(all.each_ref().map(|labels| restored.has_pod(labels)), [false, false, true, false]);
    }

    #[test]
    fn who_asked_is_handed_on_to_the_host() {
        for asked in [AskedBy::Job(POD.to_owned()), AskedBy::Pod(POD.to_owned())] {
            let variable = |name: &str| (name == HANDED_ON).then(|| asked.to_string());
            assert_eq!(AskedBy::of(variable, &[], 0), asked);
        }
        assert_eq!(AskedBy::of(|_| Some("job/../x".to_owned()), &[], 7), AskedBy::User(7));
    }

    #[test]
    fn a_pod_is_known_by_its_hosts_file() {
        for root in ["/var/lib/kubelet", "/ostree/deploy/rhcos/var/lib/kubelet", "/kubelet", ""] {
            let line = format!("1 2 8:4 {root}/pods/{POD}/etc-hosts /etc/hosts rw,relatime - xfs /dev/vda4 rw\n");
            let asked = AskedBy::of(none, &parse(line.as_bytes()), 0);
            assert_eq!(asked.to_string(), format!("pod/{POD}"));
            assert!(asked.asks_once());
        }
    }

    #[test]
    fn what_a_manifest_says_is_kept_to_the_letter() {
        let read = |text: &str| AskedBy::from(text.to_owned());
        assert_eq!(read("user/1000"), AskedBy::User(1000));
        assert_eq!(read("upgrade-recovery.sh"), AskedBy::OldScript);
        assert_eq!(read("schedule/example-backup"), AskedBy::Schedule("example-backup".to_owned()));
        assert!(!read("schedule/example-backup").asks_once());
        for odd in ["user/007", "user/-1", "job/../x", "hub/0a1b2c3d-1111", "", "job", "schedule/", "schedule/../x"] {
            assert_eq!(read(odd), AskedBy::Other(odd.to_owned()));
            assert!(read(odd).to_string() == odd && !read(odd).asks_once(), "{odd}");
        }
    }

    #[test]
    fn a_person_is_a_number() {
        let docker = parse(b"1 2 8:4 /docker/containers/abc/hosts /etc/hosts rw - ext4 /dev/x rw\n");
        let asked = AskedBy::of(none, &docker, 1000);
        assert_eq!(asked.to_string(), "user/1000");
        assert!(!asked.asks_once());
    }
}
