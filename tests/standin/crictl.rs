//! `crictl` 1.36 before CRI-O 1.34 or containerd 1.6: what it prints, and how it fails, as captured (`tests/fixtures/crictl`).

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::runtime::{Container, Runtime, STORE, Sandbox, digest, remove_sandbox, stop_sandbox};
use crate::systemctl;
use testing::place::{PAUSE_IMAGE, Place, Process};

/// The grace of `stopp` and `rmp`, which take no time-out. Containers here that end at all end at once.
const SANDBOX_GRACE: Duration = Duration::from_secs(2);

/// Arguments, sorted out.
#[expect(clippy::struct_excessive_bools, reason = "they are crictl's own flags")]
#[derive(Default)]
struct Args {
    verb: String,
    ids: Vec<String>,
    all: bool,
    force: bool,
    json: bool,
    quiet: bool,
    timeout: u64,
    endpoint: Option<String>,
    tail: Option<usize>,
    labels: Vec<(String, String)>,
}

pub(crate) fn run(place: &Place, args: &[String]) -> Result<ExitCode> {
    let args = match parse(args) {
        Ok(args) => args,
        Err(error) => return Ok(fatal(&format!("{error:#}"))),
    };
    let config = place.config()?;
    let asked = endpoints(place, &args);
    let serves = asked.iter().any(|socket| run_path(socket) == run_path(&config.runtime_socket));
    if !(serves && systemctl::is_active(place, &config.runtime_unit)?) {
        let socket = asked.first().map_or("", String::as_str);
        return Ok(fatal(&format!(
            "validate service connection: validate CRI v1 runtime API for endpoint \"unix://{socket}\": rpc error: code = Unavailable desc = \
             connection error: desc = \"transport: Error while dialing: dial unix {socket}: connect: no such file or directory\""
        )));
    }
    let runtime = Runtime::load(place)?;
    match args.verb.as_str() {
        "version" => {
            let (name, version) = if runtime.crio { ("cri-o", "1.34.11") } else { ("containerd", "1.6.20~ds1") };
            print!("Version:  0.1.0\nRuntimeName:  {name}\nRuntimeVersion:  {version}\nRuntimeApiVersion:  v1\n");
        }
        "info" => {
            show(&json!({"status": {"conditions": [{"type": "RuntimeReady", "status": true}, {"type": "NetworkReady", "status": true}]}}))?;
        }
        "ps" => list_containers(&args, &runtime)?,
        "pods" => list_sandboxes(&args, &runtime)?,
        "images" | "img" => {
            let image = |i: &testing::place::Image| json!({"id": i.id, "repoTags": [i.name], "repoDigests": [digest(i)], "size": i.size.to_string(), "username": "", "pinned": i.name == PAUSE_IMAGE});
            show(&json!({"images": runtime.images.iter().map(image).collect::<Vec<_>>()}))?;
        }
        "logs" => return Ok(logs(place, &args, &runtime)),
        _ => return Ok(for_each(place, &args, &runtime)),
    }
    Ok(ExitCode::SUCCESS)
}

/// The verbs that take ids, one after the other; as crictl does, the first that fails ends it.
fn for_each(place: &Place, args: &Args, runtime: &Runtime) -> ExitCode {
    let mut ids = args.ids.clone();
    if args.all {
        ids = match args.verb.as_str() {
            "rmp" => runtime.sandboxes.iter().map(|s| s.id.clone()).collect(),
            _ => runtime.containers.iter().map(|c| c.id.clone()).collect(),
        };
        if ids.is_empty() {
            eprintln!("{} level=info msg=\"No {} to remove\"", stamp(), if args.verb == "rmp" { "pods" } else { "containers" });
        }
    }
    for id in ids {
        let done = match args.verb.as_str() {
            "inspect" => inspect(runtime, &id),
            "inspectp" => inspect_sandbox(runtime, &id),
            "stop" => stop(runtime, &id, args.timeout),
            "rm" => remove(place, runtime, &id, args.force),
            "stopp" => stop_pod(place, runtime, &id),
            "rmp" => remove_pod(place, runtime, &id, args.force),
            other => Err(anyhow::anyhow!("No help topic for '{other}'")),
        };
        if let Err(error) = done {
            return fatal(&format!("{error:#}"));
        }
    }
    ExitCode::SUCCESS
}

fn parse(words: &[String]) -> Result<Args> {
    let mut args = Args { timeout: 10, ..Args::default() };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let (name, joined) = word.split_once('=').map_or((word.as_str(), None), |(n, v)| (n, Some(v.to_owned())));
        let mut value = || joined.clone().or_else(|| words.next().cloned()).with_context(|| format!("flag needs an argument: {name}"));
        match (args.verb.is_empty(), name) {
            (true, "--runtime-endpoint" | "-r") => args.endpoint = Some(value()?),
            (true, "--timeout" | "-t" | "--image-endpoint" | "-i" | "--config" | "-c") => drop(value()?),
            (_, "--timeout" | "-t") => args.timeout = value()?.parse().context("invalid value for flag -timeout")?,
            (_, "-o" | "--output") => args.json = value()? == "json",
            (_, "--tail") => args.tail = Some(value()?.parse().context("invalid value for flag -tail")?),
            (_, "--label") => {
                let pair = value()?;
                let (key, wanted) = pair.split_once('=').with_context(|| format!("incorrectly formatted input: {pair}"))?;
                args.labels.push((key.to_owned(), wanted.to_owned()));
            }
            (_, "-a" | "--all") => args.all = true,
            (_, "-f" | "--force") => args.force = true,
            (_, "-fa" | "-af") => (args.force, args.all) = (true, true),
            (_, "-q" | "--quiet") => args.quiet = true,
            (_, flag) if flag.starts_with('-') => anyhow::bail!("flag provided but not defined: {flag}"),
            (true, verb) => verb.clone_into(&mut args.verb),
            (false, _) => args.ids.push(word.clone()),
        }
    }
    Ok(args)
}

/// The sockets that crictl asks, one after the other: the one that it is told, that of its configuration, those that are usual.
fn endpoints(place: &Place, args: &Args) -> Vec<String> {
    let configured = || {
        let text = std::fs::read_to_string(place.at("/etc/crictl.yaml")).ok()?;
        text.lines().find_map(|line| Some(line.strip_prefix("runtime-endpoint:")?.trim().trim_matches('"').to_owned()))
    };
    let path = |endpoint: String| endpoint.strip_prefix("unix://").map_or(endpoint.clone(), str::to_owned);
    let usual = ["/run/containerd/containerd.sock", "/run/crio/crio.sock", "/run/cri-dockerd.sock"].map(str::to_owned);
    args.endpoint.clone().or_else(configured).map_or(usual.to_vec(), |one| vec![path(one)])
}

/// `/var/run` is a link to `/run`.
fn run_path(path: &str) -> &str {
    path.strip_prefix("/var").unwrap_or(path)
}

fn stamp() -> String {
    format!("time=\"{}\"", jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ"))
}

fn fatal(message: &str) -> ExitCode {
    eprintln!("{} level=fatal msg={message:?}", stamp());
    ExitCode::FAILURE
}

/// The line that the CRI client logs before crictl fails.
fn client_log(call: &str, error: &str, key: &str, id: &str) {
    let now = jiff::Timestamp::now().strftime("%m%d %H:%M:%S.%6f").to_string();
    eprintln!("E{now} {:>7} remote_runtime.go:569] \"{call} from runtime service failed\" err={error:?} {key}={id:?}", std::process::id());
}

fn show(value: &Value) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

fn has_labels(args: &Args, labels: &Value) -> bool {
    args.labels.iter().all(|(key, value)| labels[key] == *value)
}

fn list_containers(args: &Args, runtime: &Runtime) -> Result<()> {
    let mut chosen: Vec<&Container> = runtime.containers.iter().filter(|c| args.all || c.runs()).collect();
    chosen.sort_by_key(|c| std::cmp::Reverse(c.created_at));
    let rows: Vec<Value> = chosen.into_iter().map(|c| container_row(runtime, c)).filter(|row| has_labels(args, &row["labels"])).collect();
    if args.quiet {
        for row in &rows {
            println!("{}", row["id"].as_str().unwrap_or_default());
        }
        return Ok(());
    }
    if args.json {
        return show(&json!({"containers": rows}));
    }
    // Whoever reads the table gets the columns of this release and none of the promises.
    println!(
        "CONTAINER           IMAGE               CREATED             STATE               NAME                ATTEMPT             POD ID              POD"
    );
    for row in rows {
        println!("{}  {}  {}", &row["id"].as_str().unwrap_or_default()[..13], row["state"], row["metadata"]["name"]);
    }
    Ok(())
}

fn state(container: &Container) -> &'static str {
    if container.runs() { "CONTAINER_RUNNING" } else { "CONTAINER_EXITED" }
}

fn labels(runtime: &Runtime, container: &Container) -> Value {
    let sandbox = runtime.sandbox(&container.sandbox);
    json!({
        "io.kubernetes.container.name": container.name,
        "io.kubernetes.pod.name": sandbox.map(|s| &s.name),
        "io.kubernetes.pod.namespace": sandbox.map(|s| &s.namespace),
        "io.kubernetes.pod.uid": sandbox.map(|s| &s.uid),
    })
}

fn container_row(runtime: &Runtime, container: &Container) -> Value {
    json!({
        "id": container.id,
        "podSandboxId": container.sandbox,
        "metadata": {"name": container.name, "attempt": container.attempt},
        "image": {"image": container.image, "annotations": {}, "userSpecifiedImage": "", "runtimeHandler": "", "imageRef": ""},
        "imageRef": runtime.image_ref(&container.image),
        "state": state(container),
        "createdAt": container.created_at.to_string(),
        "labels": labels(runtime, container),
        "annotations": {
            "io.kubernetes.container.hash": &container.id[..8],
            "io.kubernetes.container.restartCount": container.attempt.to_string(),
            "io.kubernetes.container.terminationMessagePath": "/dev/termination-log",
            "io.kubernetes.container.terminationMessagePolicy": "File",
        },
        "imageId": if runtime.crio { container.image.as_str() } else { "" },
    })
}

fn sandbox_row(runtime: &Runtime, sandbox: &Sandbox) -> Value {
    let mut labels = json!({
        "io.kubernetes.pod.name": sandbox.name,
        "io.kubernetes.pod.namespace": sandbox.namespace,
        "io.kubernetes.pod.uid": sandbox.uid,
    });
    if runtime.crio {
        labels["io.kubernetes.container.name"] = json!("POD");
    }
    for (key, value) in &sandbox.labels {
        labels[key] = json!(value);
    }
    let mut annotations = json!({"kubernetes.io/config.source": sandbox.source});
    if sandbox.source == "file" {
        annotations["kubernetes.io/config.hash"] = json!(sandbox.uid);
    }
    json!({
        "id": sandbox.id,
        "metadata": {"name": sandbox.name, "uid": sandbox.uid, "namespace": sandbox.namespace, "attempt": sandbox.attempt},
        "state": if sandbox.ready { "SANDBOX_READY" } else { "SANDBOX_NOTREADY" },
        "createdAt": sandbox.created_at.to_string(),
        "labels": labels,
        "annotations": annotations,
        "runtimeHandler": "",
    })
}

fn list_sandboxes(args: &Args, runtime: &Runtime) -> Result<()> {
    let rows: Vec<Value> =
        runtime.sandboxes.iter().rev().map(|s| sandbox_row(runtime, s)).filter(|row| has_labels(args, &row["labels"])).collect();
    show(&json!({"items": rows}))
}

fn rfc3339(nanoseconds: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_default().to_string()
}

/// What a runtime answers of an id that it does not know.
fn missing(runtime: &Runtime, what: &str, id: &str) -> String {
    let said = match (runtime.crio, what) {
        (true, "container") => {
            format!("could not find container {id:?}: container with ID starting with {id} not found: ID does not exist")
        }
        (true, _) => format!("could not find pod {id:?}: PodSandbox with ID starting with {id} not found: ID does not exist"),
        (false, "container") => format!("an error occurred when try to find container {id:?}: not found"),
        (false, _) => "an error occurred when try to find sandbox: not found".to_owned(),
    };
    format!("rpc error: code = NotFound desc = {said}")
}

fn found<'a>(runtime: &'a Runtime, id: &str, call: &str, prefix: &str) -> Result<&'a Container> {
    runtime.container(id).ok_or_else(|| {
        let error = missing(runtime, "container", id);
        client_log(call, &error, "containerID", id);
        anyhow::anyhow!("{prefix}: {error}")
    })
}

fn found_sandbox<'a>(runtime: &'a Runtime, id: &str, prefix: &str) -> Result<&'a Sandbox> {
    runtime.sandbox(id).ok_or_else(|| anyhow::anyhow!("{prefix}: {}", missing(runtime, "sandbox", id)))
}

fn inspect(runtime: &Runtime, id: &str) -> Result<()> {
    let container = found(runtime, id, "ContainerStatus", "get the status of containers: get container status")?;
    show(&json!({
        "info": {"pid": container.process.pid, "config": {"command": container.command}},
        "status": {
            "id": container.id,
            "metadata": {"attempt": container.attempt, "name": container.name},
            "state": state(container),
            "createdAt": rfc3339(container.created_at),
            "startedAt": rfc3339(container.created_at),
            "finishedAt": if container.runs() { "0001-01-01T00:00:00Z".to_owned() } else { rfc3339(container.created_at) },
            "exitCode": i32::from(!container.runs()),
            "image": {"image": container.image, "annotations": {}, "userSpecifiedImage": ""},
            "imageRef": runtime.image_ref(&container.image),
            "reason": if container.runs() { "" } else { "Error" },
            "message": "",
            "labels": labels(runtime, container),
        }
    }))
}

fn inspect_sandbox(runtime: &Runtime, id: &str) -> Result<()> {
    let sandbox = found_sandbox(runtime, id, "get the status of pod sandboxes: get pod sandbox status")?;
    let mut status = sandbox_row(runtime, sandbox);
    status["createdAt"] = json!(rfc3339(sandbox.created_at));
    let network = if sandbox.host_network { "NODE" } else { "POD" };
    status["linux"] = json!({"namespaces": {"options": {"ipc": "POD", "network": network, "pid": "CONTAINER", "targetId": ""}}});
    status["network"] = json!({"additionalIps": [], "ip": if sandbox.host_network { "" } else { "10.128.0.5" }});
    show(&json!({"info": {}, "status": status}))
}

/// CRI-O ends well for an id that is gone, and says it back; containerd does not.
fn stop(runtime: &Runtime, id: &str, timeout: u64) -> Result<()> {
    if runtime.crio && runtime.container(id).is_none() {
        println!("{id}");
        return Ok(());
    }
    let container = found(runtime, id, "StopContainer", &format!("stopping the container {id:?}"))?;
    container.process.stop(Duration::from_secs(timeout));
    println!("{}", container.id);
    Ok(())
}

fn remove(place: &Place, runtime: &Runtime, id: &str, force: bool) -> Result<()> {
    let container = found(runtime, id, "ContainerStatus", &format!("getting container status {id:?}"))?;
    anyhow::ensure!(force || !container.runs(), "container {:?} is running, please stop it first", container.id);
    container.process.stop(Duration::ZERO);
    place.change(STORE, |store: &mut Runtime| {
        store.containers.retain(|c| c.id != container.id);
        Ok(())
    })?;
    println!("{}", container.id);
    Ok(())
}

fn stop_pod(place: &Place, runtime: &Runtime, id: &str) -> Result<()> {
    if runtime.crio && runtime.sandbox(id).is_none() {
        println!("Stopped sandbox {id}");
        return Ok(());
    }
    let sandbox = runtime.sandbox(id).ok_or_else(|| {
        let error = format!("rpc error: code = NotFound desc = an error occurred when try to find sandbox {id:?}: not found");
        client_log("StopPodSandbox", &error, "podSandboxID", id);
        anyhow::anyhow!("stopping the pod sandbox {id:?}: {error}")
    })?;
    stop_sandbox(place, &sandbox.id, SANDBOX_GRACE)?;
    println!("Stopped sandbox {}", sandbox.id);
    Ok(())
}

fn remove_pod(place: &Place, runtime: &Runtime, id: &str, force: bool) -> Result<()> {
    let sandbox = found_sandbox(runtime, id, &format!("getting sandbox status of pod {id:?}"))?;
    anyhow::ensure!(force || !sandbox.ready, "pod sandbox {:?} is running, please stop it first", sandbox.id);
    if sandbox.ready {
        stop_sandbox(place, &sandbox.id, SANDBOX_GRACE)?;
        println!("Stopped sandbox {}", sandbox.id);
    }
    remove_sandbox(place, &sandbox.id)?;
    println!("Removed sandbox {}", sandbox.id);
    Ok(())
}

fn logs(place: &Place, args: &Args, runtime: &Runtime) -> ExitCode {
    let id = args.ids.first().map(String::as_str).unwrap_or_default();
    let Ok(container) = found(runtime, id, "ContainerStatus", "get the status of containers") else {
        return fatal(&missing(runtime, "container", id));
    };
    let text = std::fs::read(place.state(&format!("logs/{}", container.id))).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    // Every program here logs to standard error.
    for line in &lines[lines.len().saturating_sub(args.tail.unwrap_or(usize::MAX))..] {
        eprintln!("{line}");
    }
    ExitCode::SUCCESS
}

/// The processes of every container there is.
pub(crate) fn processes(runtime: &Runtime) -> Vec<Process> {
    runtime.containers.iter().map(|c| c.process).collect()
}
