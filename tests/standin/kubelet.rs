//! kubelet: keeps the pods running that the manifests and, once it is ready, the API ask for.
//!
//! Level-triggered: every round compares what should run with what the runtime has, and takes the next steps. A kubelet that is started
//! again therefore takes over what runs already; one that is stopped leaves it running.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cluster;
use crate::pods::{self, Pod, Spec};
use crate::runtime::{Container, Runtime, STORE, Sandbox, new_id, now, remove_sandbox, stop_sandbox};
use crate::systemctl::{self, daemon};
use testing::place::{Config, Image, PAUSE_IMAGE, Place, REGISTRY};

const MANIFESTS: &str = "/etc/kubernetes/manifests";
const ROUND: Duration = Duration::from_millis(100);
/// What a container that has just died waits for before it is started again.
const BACK_OFF: Duration = Duration::from_millis(500);

pub(crate) fn run(place: &Place) -> Result<ExitCode> {
    let config = place.config()?;
    // The API is asked beside the rounds: it can take its time, and a manifest's change must not wait for it.
    let ready = Arc::new(AtomicBool::new(false));
    std::thread::spawn({
        let (place, config, ready) = (place.clone(), config.clone(), Arc::clone(&ready));
        move || watch_api(&place, &config, &ready)
    });
    loop {
        let begun = Instant::now();
        if systemctl::is_active(place, &config.runtime_unit)? {
            // One round's trouble (a file replaced while it is read) is the next one's work.
            if let Err(error) = round(place, &config, ready.load(Ordering::Relaxed)) {
                eprintln!("kubelet: {error:#}");
            }
        }
        std::thread::sleep(ROUND.saturating_sub(begun.elapsed()));
    }
}

/// Keeps `ready` as the API is, and makes the node Ready when it is first so.
fn watch_api(place: &Place, config: &Config, ready: &AtomicBool) {
    let mut joined = false;
    loop {
        let now = cluster::is_ready(place).unwrap_or(false);
        ready.store(now, Ordering::Relaxed);
        if now && !joined {
            joined = cluster::join(place, config).map_err(|error| eprintln!("kubelet: {error:#}")).is_ok();
        }
        std::thread::sleep(2 * ROUND);
    }
}

fn round(place: &Place, config: &Config, api_ready: bool) -> Result<()> {
    let mut wanted = pods::of_folder(&place.at(MANIFESTS), &config.node);
    if api_ready {
        wanted.extend(config.api_pods.iter().map(api_pod));
    } else {
        // What came from the API before stays as it is while nobody says otherwise.
        let runtime = Runtime::load(place)?;
        let has = |uid: &str| runtime.sandboxes.iter().any(|s| s.ready && s.uid == uid);
        wanted.extend(config.api_pods.iter().map(api_pod).filter(|pod| has(&pod.uid)));
    }
    stop_unwanted(place, &wanted)?;
    for pod in &wanted {
        run_pod(place, pod)?;
    }
    sweep(place)
}

fn api_pod(pod: &testing::place::ApiPod) -> Pod {
    let hash = pods::hash(format!("{}/{}", pod.namespace, pod.name).as_bytes());
    Pod {
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        uid: format!("{}-{}-{}-{}-{}", &hash[..8], &hash[8..12], &hash[12..16], &hash[16..20], &hash[20..32]),
        labels: std::collections::BTreeMap::new(),
        host_network: false,
        containers: vec![Spec {
            name: pod.container.clone(),
            image: pod.image.clone(),
            command: vec![pod.container.clone()],
            args: Vec::new(),
        }],
        source: "api",
    }
}

/// Ends every pod that nobody wants any more, or that is of an older version of its file.
fn stop_unwanted(place: &Place, wanted: &[Pod]) -> Result<()> {
    let runtime = Runtime::load(place)?;
    for sandbox in runtime.sandboxes.iter().filter(|s| s.ready && !wanted.iter().any(|pod| pod.uid == s.uid)) {
        stop_sandbox(place, &sandbox.id, Duration::from_secs(5))?;
    }
    Ok(())
}

/// Makes the pod's sandbox, and starts each of its containers that does not run.
fn run_pod(place: &Place, pod: &Pod) -> Result<()> {
    make_folder(place, pod)?;
    let runtime = Runtime::load(place)?;
    let sandbox = match runtime.sandboxes.iter().find(|s| s.ready && s.uid == pod.uid) {
        Some(sandbox) => sandbox.id.clone(),
        None => make_sandbox(place, pod)?,
    };
    for spec in &pod.containers {
        let last = runtime.containers_of(&sandbox).filter(|c| c.name == spec.name).max_by_key(|c| c.attempt);
        let waits = |last: &Container| last.runs() || now() - last.created_at < i64::try_from(BACK_OFF.as_nanos()).unwrap_or(0);
        if !last.is_some_and(waits) {
            start_container(place, &runtime, &sandbox, spec, last.map_or(0, |last| last.attempt + 1))?;
        }
    }
    Ok(())
}

/// `/var/lib/kubelet/pods/UID`, with what a restore must not trip over.
fn make_folder(place: &Place, pod: &Pod) -> Result<()> {
    let folder = place.at("/var/lib/kubelet/pods").join(&pod.uid);
    if !folder.join("etc-hosts").exists() {
        std::fs::create_dir_all(folder.join("volumes"))?;
        std::fs::write(folder.join("etc-hosts"), "# Kubernetes-managed hosts file (host network).\n127.0.0.1\tlocalhost\n")?;
    }
    Ok(())
}

/// Pulls an image that is not there, where there is a registry that has it.
fn pull(place: &Place, name: &str) -> Result<()> {
    let registry: Vec<Image> = place.load(REGISTRY)?;
    place.change(STORE, |runtime: &mut Runtime| {
        let is_there = runtime.images.iter().any(|image| image.name == name);
        runtime.images.extend(registry.into_iter().find(|image| image.name == name && !is_there));
        Ok(())
    })
}

fn make_sandbox(place: &Place, pod: &Pod) -> Result<String> {
    pull(place, PAUSE_IMAGE)?;
    place.change(STORE, |runtime: &mut Runtime| {
        let is_there = runtime.images.iter().any(|image| image.name == PAUSE_IMAGE);
        anyhow::ensure!(is_there, "{}: creating pod sandbox: unable to pull image: {PAUSE_IMAGE}", pod.name);
        let attempt = u32::try_from(runtime.sandboxes.iter().filter(|s| s.uid == pod.uid).count())?;
        let sandbox = Sandbox {
            id: new_id(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            uid: pod.uid.clone(),
            attempt,
            created_at: now(),
            ready: true,
            host_network: pod.host_network,
            labels: pod.labels.clone(),
            source: pod.source.to_owned(),
        };
        runtime.sandboxes.push(sandbox);
        Ok(runtime.sandboxes.last().map(|s| s.id.clone()).unwrap_or_default())
    })
}

fn start_container(place: &Place, runtime: &Runtime, sandbox: &str, spec: &Spec, attempt: u32) -> Result<()> {
    let Some(image) = runtime.images.iter().find(|image| image.name == spec.image) else {
        // It is started in the next round, where a registry has it.
        eprintln!("kubelet: {}: pulling {}, which is not there", spec.name, spec.image);
        return pull(place, &spec.image);
    };
    let words: Vec<String> = spec.command.iter().chain(&spec.args).cloned().collect();
    let name = words.first().map(|word| word.rsplit('/').next().unwrap_or(word).to_owned()).unwrap_or_default();
    // An image has other programs besides the one that is real here: etcd's side containers come from etcd's image.
    let real = image.program.as_ref().filter(|program| program.file_name().is_some_and(|file| *file == *name));
    let command = match real {
        // A real program knows nothing of the node's root.
        Some(program) => with(Command::new(program), words.iter().skip(1).map(|word| below(&place.root(), word))),
        None if name == "kube-apiserver" => with(Command::new(place.tools().join("kube-apiserver")), words.iter().skip(1).cloned()),
        None => Command::new(place.tools().join("container")),
    };
    let id = new_id();
    std::fs::create_dir_all(place.state("logs"))?;
    let process = daemon(place, command, &format!("logs/{id}"))?;
    place.change(STORE, |runtime: &mut Runtime| {
        runtime.containers.push(Container {
            id,
            sandbox: sandbox.to_owned(),
            name: spec.name.clone(),
            attempt,
            created_at: now(),
            image: image.id.clone(),
            command: words,
            process,
        });
        Ok(())
    })
}

fn with(mut command: Command, args: impl IntoIterator<Item = String>) -> Command {
    command.args(args);
    command
}

/// `--flag=/etc/x` and `/var/x` of the node, as this machine has them.
fn below(root: &Path, word: &str) -> String {
    let (flag, value) = word.find('=').map_or(("", word), |at| word.split_at(at + 1));
    match value.split('/').nth(1) {
        Some("etc" | "var") if value.starts_with('/') => format!("{flag}{}{value}", root.display()),
        _ => word.to_owned(),
    }
}

/// Forgets what is long dead: of each pod all but the last sandbox, of each container all but the last that has exited.
fn sweep(place: &Place) -> Result<()> {
    let runtime = Runtime::load(place)?;
    for (at, dead) in runtime.sandboxes.iter().enumerate().filter(|(_, s)| !s.ready) {
        if runtime.sandboxes[at + 1..].iter().any(|later| later.name == dead.name && !later.ready) {
            remove_sandbox(place, &dead.id)?;
        }
    }
    place.change(STORE, |runtime: &mut Runtime| {
        let last: Vec<(String, String, u32)> = runtime.containers.iter().map(|c| (c.sandbox.clone(), c.name.clone(), c.attempt)).collect();
        runtime.containers.retain(|c| {
            let later = last.iter().filter(|(s, n, attempt)| *s == c.sandbox && *n == c.name && *attempt > c.attempt).count();
            later < 2 || c.runs()
        });
        Ok(())
    })
}

/// A container whose program does not matter here.
pub(crate) fn container() -> Result<ExitCode> {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
