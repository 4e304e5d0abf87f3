//! `crictl` (cri-tools): containers, sandboxes and images of the node's container runtime, CRI-O or containerd.
//!
//! JSON only: the columns of the tables change. Containers are told apart by kubelet's labels, never by name alone.

pub mod parse;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::runtime;
use crate::node::Node;
use crate::node::clock::{Deadline, interrupted};
use crate::node::run::Command;

/// The time limit that crictl sets on each call to the runtime. Its default of 2 s is too short on a busy node.
const RPC: Duration = Duration::from_secs(30);
/// The same for removing a sandbox: a CNI plugin whose daemon is gone never answers, and a slow one takes several seconds.
const REMOVE: Duration = Duration::from_secs(60);
/// How much longer than its own limit crictl may take before it is killed.
const SLACK: Duration = Duration::from_secs(15);
/// How many containers are stopped, or sandboxes removed, at the same time: each call mostly waits.
const AT_A_TIME: usize = 8;

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its id, 64 hex digits.
    pub id: String,
    /// Label `io.kubernetes.container.name`, else the name in its metadata.
    pub name: String,
    /// Label `io.kubernetes.pod.namespace`, empty when it was not made by kubelet.
    pub namespace: String,
    /// Label `io.kubernetes.pod.name`; a static pod's ends with the node's name.
    pub pod: String,
    /// True for `CONTAINER_RUNNING`.
    pub running: bool,
    /// `CONTAINER_…` as printed.
    pub state: String,
    /// Sandbox id.
    pub sandbox: String,
    /// The image as the runtime resolved it (`imageRef`: a digest or an id), else as it was requested.
    pub image: String,
    /// When it was made, nanoseconds since the epoch.
    pub created_at: i64,
    /// How many containers came before it in the same sandbox.
    pub attempt: u32,
}

/// A pod sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Its id, 64 hex digits.
    pub id: String,
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// True for `SANDBOX_READY`.
    pub ready: bool,
    /// The pod's labels, and kubelet's own.
    pub labels: BTreeMap<String, String>,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its id.
    pub id: String,
    /// Tags.
    pub tags: Vec<String>,
    /// Digests.
    pub digests: Vec<String>,
    /// Bytes.
    pub size: u64,
    /// True when the runtime keeps the image even if no container uses it: the pause image, which no list of containers names and without
    /// which no pod starts.
    #[serde(default)]
    pub pinned: bool,
}

impl Image {
    /// True when `name` is this image's id (with or without `sha256:`), or one of its tags or digests.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        let bare = |name: &str| name.strip_prefix("sha256:").unwrap_or(name).to_owned();
        self.tags.iter().chain(&self.digests).chain([&self.id]).any(|own| bare(own) == bare(name))
    }
}

fn crictl(node: &Node, limit: Duration) -> Result<Command> {
    let command = node.command("crictl")?.arg(format!("--timeout={}s", limit.as_secs()));
    Ok(command.args(runtime::crictl_flags(node)).limit(limit + SLACK))
}

/// All containers, exited ones too.
///
/// # Errors
/// When the runtime does not answer; when crictl prints anything but its JSON.
pub fn containers(node: &Node) -> Result<Vec<Container>> {
    parse::containers(&crictl(node, RPC)?.args(["ps", "-a", "-o", "json"]).run()?.stdout)
}

/// All sandboxes.
///
/// # Errors
/// As [`containers`].
pub fn sandboxes(node: &Node) -> Result<Vec<Sandbox>> {
    parse::sandboxes(&crictl(node, RPC)?.args(["pods", "-o", "json"]).run()?.stdout)
}

/// All images.
///
/// # Errors
/// As [`containers`].
pub fn images(node: &Node) -> Result<Vec<Image>> {
    parse::images(&crictl(node, RPC)?.args(["images", "-o", "json"]).run()?.stdout)
}

/// Stops containers, several at a time, each with `grace` (whole seconds) before it is killed. It is fine when one is already gone.
///
/// # Errors
/// When one of them still runs afterwards, with crictl's message; the others are stopped all the same, as far as there is time.
pub fn stop(node: &Node, ids: &[String], grace: Duration, deadline: &Deadline) -> Result<()> {
    let said = for_each(ids, deadline, |id| {
        let limit = RPC + grace;
        crictl(node, limit)?.arg("stop").arg(format!("--timeout={}", grace.as_secs())).arg(id).run().map(drop)
    })?;
    if said.is_empty() {
        return Ok(());
    }
    // A failure counts only if the container still runs: it may have ended by itself meanwhile.
    let running: Vec<String> = containers(node)?.into_iter().filter(|c| c.running).map(|c| c.id).collect();
    report("container", "still runs", &said, &running)
}

/// Stops and removes sandboxes by force, several at a time and in no particular order; it is fine when one is already gone. Remove
/// sandboxes of the host's network in a later call than those of the pod network, whose removal may need them.
///
/// # Errors
/// When one of them is still there afterwards, with crictl's message; the others are removed all the same, as far as there is time. A
/// sandbox whose network plugin hangs gets two tries of a minute.
pub fn remove_sandboxes(node: &Node, ids: &[String], deadline: &Deadline) -> Result<()> {
    let remove = |id: &str| crictl(node, REMOVE)?.args(["rmp", "-f"]).arg(id).run().map(drop);
    // CRI-O (1.32 to 1.34) fails when the network plugin does, and skips the plugin at the second try.
    let twice = |id: &str| remove(id).or_else(|first| if deadline.passed() { Err(first) } else { remove(id) });
    let said = for_each(ids, deadline, twice)?;
    if said.is_empty() {
        return Ok(());
    }
    let there: Vec<String> = sandboxes(node)?.into_iter().map(|s| s.id).collect();
    report("sandbox", "is still there", &said, &there)
}

/// True for a sandbox of the host's network (`inspectp`: `status.linux.namespaces.options.network` is `NODE`); false for a sandbox that is
/// gone.
///
/// # Errors
/// As [`containers`].
pub fn is_host_network(node: &Node, sandbox: &str) -> Result<bool> {
    let output = crictl(node, RPC)?.args(["inspectp", "-o", "json"]).arg(sandbox).output()?;
    if output.status.success() {
        return parse::is_host_network(&output.stdout);
    }
    if sandboxes(node)?.iter().any(|s| s.id == sandbox) { Err(output.error()) } else { Ok(false) }
}

/// The last lines of a container's log, of both streams; empty when there is none or crictl cannot get it. For messages only.
#[must_use]
pub fn log_tail(node: &Node, id: &str, lines: u32) -> String {
    let get = || crictl(node, RPC)?.args(["logs", &format!("--tail={lines}"), id]).run();
    let Ok(output) = get() else { return String::new() };
    // crictl prints each stream to its own, so the order between them is lost. Nearly every component logs to only one.
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).trim_end().to_owned()
}

/// True when the runtime is CRI-O. No sandbox or container of CRI-O survives a reboot, not even one that has ended.
///
/// # Errors
/// When the runtime does not answer.
pub fn is_crio(node: &Node) -> Result<bool> {
    let output = crictl(node, RPC)?.arg("version").run()?;
    Ok(parse::runtime_name(output.text()?) == Some("cri-o"))
}

/// True when the runtime answers.
#[must_use]
pub fn answers(node: &Node) -> bool {
    crictl(node, Duration::from_secs(5)).and_then(|version| version.arg("version").run()).is_ok()
}

/// Calls `act` on each id, several at a time, and returns the ids for which it failed, or which had no turn before the deadline, with the
/// error.
///
/// # Errors
/// When the agent is interrupted meanwhile.
fn for_each(ids: &[String], deadline: &Deadline, act: impl Fn(&str) -> Result<()> + Sync) -> Result<Vec<(String, String)>> {
    let (left, said) = (Mutex::new(ids.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..ids.len().min(AT_A_TIME) {
            scope.spawn(|| {
                while let Some(id) = next(&left).filter(|_| interrupted().is_ok()) {
                    let acted = if deadline.passed() { Err(anyhow!("there was no time left for it")) } else { act(id) };
                    if let Err(error) = acted {
                        lock(&said).push((id.clone(), format!("{error:#}")));
                    }
                }
            });
        }
    });
    interrupted()?;
    Ok(said.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn next<T>(left: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    lock(left).next()
}

/// The list is whole even if a worker panicked: under the lock, each change is a single call.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// An error that names each id of `said` that is still among `there`, with what crictl said of it.
fn report(kind: &str, state: &str, said: &[(String, String)], there: &[String]) -> Result<()> {
    let left: Vec<String> =
        said.iter().filter(|(id, _)| there.contains(id)).map(|(id, why)| format!("{kind} {id} {state}: {why}")).collect();
    if left.is_empty() { Ok(()) } else { bail!("{}", left.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_its_id_with_and_without_the_algorithm_by_tag_and_by_digest() {
        let words = |word: &str| vec![word.to_owned()];
        let image =
            Image { id: "sha256:abc".to_owned(), tags: words("pause:3.9"), digests: words("pause@sha256:0f"), size: 1, pinned: false };
        for name in ["sha256:abc", "abc", "pause:3.9", "pause@sha256:0f"] {
            assert!(image.is(name), "{name}");
        }
        for name in ["abd", "", "pause", "0f", "sha256:0f"] {
            assert!(!image.is(name), "{name}");
        }
    }
}
