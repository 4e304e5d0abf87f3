//! What the API server of a node serves of a resource, from its first answer in a boot on: its audit log has every request and what was answered, and a
//! client that watches begins as soon as it answers at all.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use real_node::{Limit, Node};

const FOLDER: &str = "/var/log/kube-apiserver";
const AUDIT: &str = "/var/log/kube-apiserver/audit.log";
const WATCHED: &str = "/var/log/kube-apiserver/watched";
const POLICY: &str = "/etc/kubernetes/audit-policy.yaml";

/// How long after the first request the client that watches may be answered: it asks anew each time that it is turned away.
const LATEST: jiff::SignedDuration = jiff::SignedDuration::from_secs(5);

/// Before kubelet, and so before any API server: what the boot before has left makes room. Then the client, anew whenever it is turned away.
const WATCHER: &str = "[Unit]
Description=Watch what the API server serves
Before=kubelet.service
[Service]
Environment=KUBECONFIG=/etc/kubernetes/admin.conf
ExecStartPre=/bin/bash -c 'cd /var/log/kube-apiserver && for one in audit.log watched; do [ ! -e $one ] || mv $one $one.before; done'
ExecStart=/bin/bash /var/lib/watch.sh
[Install]
WantedBy=multi-user.target
";

/// From resource version 0, that is: what there is, and from there on every change. (The port takes connections seconds before anybody answers there: who
/// asks too early waits long.)
const WATCH: &str = "while :; do
    until kubectl get --raw /version --request-timeout=500ms > /dev/null 2>&1; do :; done
    kubectl get --raw '/apis/GROUP/managements?watch=true&resourceVersion=0' >> /var/log/kube-apiserver/watched 2> /dev/null
done
";

/// Has the API server keep an audit log of k0rdent's Managements, and a client watch them, in this boot and in those to come.
pub(crate) fn record(node: &Node) -> Result<()> {
    let policy = json!({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "RequestResponse", "resources": [{"group": "k0rdent.mirantis.com", "resources": ["managements", "managements/status"]}]},
            {"level": "None"},
        ],
    });
    node.put(POLICY, policy.to_string().as_bytes(), 0o600)?;
    node.put("/var/lib/watch.sh", WATCH.replace("GROUP", "k0rdent.mirantis.com/v1beta1").as_bytes(), 0o644)?;
    node.put("/etc/systemd/system/watcher.service", WATCHER.as_bytes(), 0o644)?;
    node.run(&["mkdir", "-p", FOLDER])?;
    node.run(&["systemctl", "enable", "--now", "watcher.service"])?;

    let manifest = node.kind().manifest("kube-apiserver");
    let mut pod: Value = serde_saphyr::from_str(&node.read(&manifest)?).context("reading the API server's manifest")?;
    let more = [format!("--audit-policy-file={POLICY}"), format!("--audit-log-path={AUDIT}"), "--audit-log-maxsize=1000".to_owned()];
    let places = [("audit-policy", POLICY, "File"), ("audit-log", FOLDER, "DirectoryOrCreate")];
    let add = |list: &mut Value, more: &mut dyn Iterator<Item = Value>| -> Result<()> {
        list.as_array_mut().context("an API server's manifest without its lists")?.extend(more);
        Ok(())
    };
    let container = &mut pod["spec"]["containers"][0];
    add(&mut container["command"], &mut more.into_iter().map(Value::from))?;
    add(&mut container["volumeMounts"], &mut places.iter().map(|(name, path, _)| json!({"name": name, "mountPath": path})))?;
    let volume = |(name, path, kind): &(&str, &str, &str)| json!({"name": name, "hostPath": {"path": path, "type": kind}});
    add(&mut pod["spec"]["volumes"], &mut places.iter().map(volume))?;
    node.replace(&manifest, serde_saphyr::to_string(&pod)?.as_bytes(), 0o600)?;
    let watched = || Ok(releases(&node.read(AUDIT).unwrap_or_default())?.values().any(|read| read.watches > 0).then_some(()));
    Limit::of(180).wait("the API server that keeps an audit log, and its watcher", watched, || node.explain())?;
    node.wait_ready()
}

/// What one client did.
#[derive(Debug, Default)]
struct Read {
    /// The releases in the objects that it was answered with, and how often.
    releases: BTreeMap<String, usize>,
    watches: usize,
    writes: Vec<String>,
}

/// Who was answered what, by the name that each client gives itself.
fn releases(audit: &str) -> Result<BTreeMap<String, Read>> {
    let mut clients: BTreeMap<String, Read> = BTreeMap::new();
    for line in audit.lines() {
        let event: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let word = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
        let read = clients.entry(word("userAgent")).or_default();
        let answer = &event["responseObject"];
        for object in answer["items"].as_array().into_iter().flatten().chain([answer]) {
            if let Some(release) = object["spec"]["release"].as_str() {
                *read.releases.entry(release.to_owned()).or_default() += 1;
            }
        }
        let (verb, is_dry) = (word("verb"), word("requestURI").contains("dryRun=All"));
        read.watches += usize::from(verb == "watch");
        if !["get", "list", "watch"].contains(&verb.as_str()) && !is_dry && event["objectRef"]["subresource"] != "status" {
            read.writes.push(line.to_owned());
        }
    }
    Ok(clients)
}

/// Since the node booted the API server has served this release, nobody was ever answered with the other, and nobody wrote either.
pub(crate) fn only(node: &Node, release: &str, never: &str) -> Result<()> {
    let has_seen = || Ok(node.exec(&["test", "-s", WATCHED], Limit::of(60))?.status.success().then_some(()));
    Limit::of(60).wait("the client that watches to see it", has_seen, || node.read(AUDIT).unwrap_or_default())?;
    let (audit, watched) = (node.read(AUDIT)?, node.read(WATCHED)?);
    for (what, text) in [("the audit log", &audit), ("what the watching client got", &watched)] {
        let with: Vec<&str> = text.lines().filter(|line| line.contains(never)).take(3).collect();
        ensure!(with.is_empty(), "{what} has {never}, which nobody was to see: {}", with.join("\n"));
    }
    let at = |line: Option<&str>| -> Result<jiff::Timestamp> {
        let event: Value = serde_json::from_str(line.context("the audit log has no such request")?)?;
        Ok(event["requestReceivedTimestamp"].as_str().context("a request without a time")?.parse()?)
    };
    let watch = audit.lines().find(|line| line.contains("\"verb\":\"watch\""));
    let late = at(watch)?.duration_since(at(audit.lines().next())?);
    ensure!(late <= LATEST, "the client that watches was there {late:#} after the first request");
    let first: Value = serde_json::from_str(watched.lines().next().context("the client that watches got nothing")?)?;
    ensure!(first["type"] == "ADDED" && first["object"]["spec"]["release"] == release, "the first that was seen is {first}");
    let clients = releases(&audit)?;
    let said: Vec<String> = clients.iter().map(|(name, read)| format!("{name}: {:?}, {} watches", read.releases, read.watches)).collect();
    writeln!(
        std::io::stderr(),
        "{} events watched, {late:#} after the first request; answered to\n  {}",
        watched.lines().count(),
        said.join("\n  ")
    )?;
    let all: Vec<&String> = clients.values().flat_map(|read| read.releases.keys()).collect();
    ensure!(all.iter().all(|one| *one == release), "{said:?}");
    // What is looked for can be found: what the recovery itself read is there.
    let agent = clients.iter().find(|(name, _)| name.starts_with("recovery/")).context("the agent has not read it back")?;
    ensure!(agent.1.releases.contains_key(release), "{said:?}");
    ensure!(clients.values().all(|read| read.writes.is_empty()), "somebody wrote it: {clients:?}");
    // What an earlier watch was told is in no log.
    ensure!(watch.is_some_and(|watch| watch.contains("\"userAgent\":\"kubectl")), "somebody watched before the client did: {watch:?}");
    Ok(())
}
