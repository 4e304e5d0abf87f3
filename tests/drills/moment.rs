//! The moments of a recovery: its journal as it grows, and the agent stopped at one of them, for as long as something else has to happen.

use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, getpriority_process, kill_process, setpriority_process};
use serde_json::Value;

use real_node::{Limit, Node};

/// Between two looks: what is to be cut short may take no longer than a few of these.
const GLANCE: Duration = Duration::from_millis(1);

/// The lines of the journal of the open run so far, read without the node's help; none when there is no run.
pub(crate) fn journal(node: &Node) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(inside(node, "var/recovery/progress")?).unwrap_or_default();
    // The last line may be half written.
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Where this machine sees a path of the node, while that is on.
pub(crate) fn inside(node: &Node, path: &str) -> Result<std::path::PathBuf> {
    let leader = node.power()?.leader.context("the node is off")?;
    Ok(format!("/proc/{leader}/root/{path}").into())
}

/// An event of the journal: `resume etcd-data step-done`.
pub(crate) fn said(line: &Value) -> String {
    let word = |name: &str| line[name].as_str().unwrap_or_default();
    format!("{} {} {}", word("phase"), word("step"), word("event"))
}

/// Waits, looking all the time, until the journal has this event.
pub(crate) fn wait_event(node: &Node, event: &str, limit: Limit) -> Result<()> {
    wait(node, event, limit, || has(node, event).then_some(()))
}

fn has(node: &Node, event: &str) -> bool {
    journal(node).unwrap_or_default().iter().any(|line| said(line) == event)
}

fn wait<T>(node: &Node, what: &str, limit: Limit, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + limit.0;
    let _first = First::in_line()?;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() > end {
            let last = journal(node).ok().and_then(|journal| journal.last().map(said));
            bail!("`{what}` does not come; the last event that came is {last:?}");
        }
        std::thread::sleep(GLANCE);
    }
}

/// As long as this lives, its thread comes before whatever else there is to do: on a busy machine it would miss the moment.
struct First(i32);

impl First {
    fn in_line() -> Result<Self> {
        let usual = getpriority_process(None)?;
        setpriority_process(None, -20).context("coming first: drills run as root")?;
        Ok(Self(usual))
    }
}

impl Drop for First {
    fn drop(&mut self) {
        // Back where it was, which is always allowed.
        let _ = setpriority_process(None, self.0);
    }
}

/// The agents of a node, stopped.
#[must_use]
pub(crate) struct Stopped(Vec<Pid>);

impl Stopped {
    /// At this event of the journal.
    pub(crate) fn at(node: &Node, event: &str, limit: Limit) -> Result<Self> {
        Self::when(node, event, limit, || has(node, event))
    }

    /// As soon as it is so and an agent is at work.
    pub(crate) fn when(node: &Node, what: &str, limit: Limit, is_so: impl Fn() -> bool) -> Result<Self> {
        let mut known = Vec::new();
        wait(node, what, limit, || {
            // Beforehand: finding them takes as long as a few steps.
            known.retain(|agent| is_at_work(*agent, "recovery"));
            if known.is_empty() {
                known = agents(node).ok()?;
            }
            if !is_so() {
                return None;
            }
            stop(&known);
            let all = agents(node).ok()?;
            stop(&all);
            (!all.is_empty()).then_some(Self(all))
        })
    }

    /// The most memory that one of them has had, bytes.
    pub(crate) fn peak(&self) -> Result<u64> {
        let peaks = self.0.iter().map(|agent| {
            let kib = field(*agent, "VmHWM:").and_then(|peak| peak.strip_suffix(" kB")?.parse::<u64>().ok());
            Ok(kib.context("an agent does not say how much memory it has")? << 10)
        });
        Ok(peaks.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(0))
    }

    /// They go on, and so does the `nsenter` that has started one: it stops itself with what it waits for.
    pub(crate) fn go_on_with(self, nsenter: &Child) -> Result<()> {
        let pid = Pid::from_child(nsenter);
        let stopped = || Ok(field(pid, "State:").is_some_and(|state| state.starts_with('T')).then_some(()));
        Limit::of(60).wait("nsenter to stop with the agent", stopped, String::new)?;
        self.go_on()?;
        kill_process(pid, Signal::CONT).context("letting nsenter go on")
    }

    /// They go on.
    pub(crate) fn go_on(self) -> Result<()> {
        self.0.into_iter().try_for_each(|agent| kill_process(agent, Signal::CONT).context("letting an agent go on"))
    }
}

fn stop(agents: &[Pid]) {
    for agent in agents {
        // It may have ended.
        let _ = kill_process(*agent, Signal::STOP);
    }
}

/// One that has ended may still be a zombie.
fn is_at_work(pid: Pid, name: &str) -> bool {
    field(pid, "Name:").as_deref() == Some(name) && field(pid, "State:").is_some_and(|state| !state.starts_with('Z'))
}

/// The agents at work on the node, in its containers too, as this machine numbers them.
fn agents(node: &Node) -> Result<Vec<Pid>> {
    at_work(node, "recovery")
}

/// The processes of this name on the node: below its process 1, or called into its PID namespace from outside, as by a person over SSH.
pub(crate) fn at_work(node: &Node, name: &str) -> Result<Vec<Pid>> {
    let leader = node.power()?.leader.and_then(Pid::from_raw).context("the node is off")?;
    let namespace = |pid: Pid| std::fs::read_link(format!("/proc/{}/ns/pid", pid.as_raw_nonzero())).ok();
    let of_the_node = namespace(leader).context("the node is off")?;
    let is_on_the_node = |pid: Pid| {
        namespace(pid).is_some_and(|its| its == of_the_node)
            || std::iter::successors(Some(pid), |pid| parent(*pid)).any(|pid| pid == leader)
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else { continue };
        if is_at_work(pid, name) && is_on_the_node(pid) {
            found.push(pid);
        }
    }
    Ok(found)
}

fn parent(pid: Pid) -> Option<Pid> {
    field(pid, "PPid:")?.parse().ok().and_then(Pid::from_raw)
}

/// What the kernel says of a process; nothing when it has ended.
fn field(pid: Pid, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
}
