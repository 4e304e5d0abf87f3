//! What else ran on the node comes back with it: pods with addresses, Jobs that were under way in the snapshot, the backup's own among them.

use anyhow::{Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::hands::{runtime_log, typed};
use super::jobs::{self, Job};
use real_node::image::Image;
use real_node::release::BEFORE;
use real_node::{Broken, Limit, Node, Variant};

const AGENT: &str = "/var/recovery/recovery";
/// In use when the backup is taken, and gone when it is restored.
const GONE: &str = "registry.test/site/gone:1";
/// Where the node says which worker may end; no backup holds it.
const LET: &str = "/var/tmp/let";
/// The deadline of a Job, seconds: many times what its backup takes here.
const SHORT: u32 = 60;
const RECOVERY: Limit = Limit::of(1200);

fn deployment(name: &str, image: &str) -> Value {
    let labels = json!({"app": name});
    let pod =
        json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": name, "image": image, "imagePullPolicy": "IfNotPresent"}]});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
    })
}

/// At work until a person lets it end, with the node's own shell.
fn worker(name: &str) -> Value {
    let paths = [("/usr", "/usr"), ("/usr/lib", "/lib"), ("/usr/lib64", "/lib64"), (LET, "/let")];
    let volume = |path: &str| path.replace('/', "v");
    let work = format!("until test -e /let/{name}-end; do sleep 1; done");
    let pod = json!({
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": name, "image": BEFORE.image("pause"), "command": ["/usr/bin/sh", "-c", work], "env": [{"name": "PATH", "value": "/usr/bin"}],
            "volumeMounts": paths.map(|(path, inside)| json!({"name": volume(path), "mountPath": inside})),
        }],
        "volumes": paths.map(|(path, _)| json!({"name": volume(path), "hostPath": {"path": path, "type": "DirectoryOrCreate"}})),
    });
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": "default"},
        "spec": {"template": {"metadata": {"labels": {"app": name}}, "spec": pod}},
    })
}

/// The API has it that the Job has one pod at work.
fn is_at_work(node: &Node, job: &str) -> Result<()> {
    let status = node.get(&["job", job])?["status"].clone();
    ensure!(status["active"] == 1 && status["completionTime"].is_null(), "the Job {job} is not at work: {status}");
    Ok(())
}

/// An image of its own: what two names share is not gone while one of them is there.
fn import_the_image_that_goes(node: &Node) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let tools = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/node-tools");
    let image = Image { names: vec![GONE.to_owned()], programs: vec![tools.join("pause/pause"), tools.join("crictl/made-of")] };
    image.write(&dir.path().join("image.tar"))?;
    let argv = ["ctr", "--namespace=k8s.io", "images", "import", "-"];
    node.exec_with(&argv, &std::fs::read(dir.path().join("image.tar"))?, RECOVERY)?.checked().map(drop)
}

/// Waits until no recovery is open any more: it goes on by itself after each reboot.
fn recovered(node: &Node) -> Result<()> {
    // A node that reboots can be asked nothing.
    let ended = || {
        Ok(node
            .exec(&["sh", "-c", "test -d /var/recovery/history && ! test -e /var/recovery/progress"], Limit::of(60))
            .ok()
            .filter(|done| done.code() == 0))
    };
    RECOVERY.wait("the recovery to end by itself", ended, || node.explain())?;
    node.wait_well()
}

/// All that was there before is there again, and nothing was asked of a registry but the image that is gone.
fn pods_are_back(node: &Node, asker: &Job<'_>, at_work: &str) -> Result<()> {
    asker.completes()?;
    node.wait_containers(&["web"])?;
    node.wait_pods("default", "app=web")?;
    let address = node.kubectl(&["get", "pods", "--selector=app=web", "--output=jsonpath={.items[*].status.podIP}"])?;
    let bridge = node.read("/etc/cni/net.d/10-bridge.conflist")?;
    let network = address.rsplit_once('.').map_or("", |(network, _)| network);
    ensure!(!network.is_empty() && bridge.contains(network), "the pod has the address {address}: {bridge}");
    // At work when the backup was taken: it begins again, and comes to its end.
    node.wait_containers(&[at_work])?;
    is_at_work(node, at_work)?;
    node.put(&format!("{LET}/{at_work}-end"), b"", 0o644)?;
    Job::of(node, "default", at_work).completes()?;
    let waiting = "jsonpath={.items[*].status.containerStatuses[*].state.waiting.reason}";
    let get = ["kubectl", "get", "pods", "--selector=app=gone", "--output", waiting];
    node.wait_output("the pod without an image to say so", &get, |text| text.contains("ImagePull"))?;
    let pulls: Vec<String> = runtime_log(node)?.into_iter().filter(|line| line.contains("PullImage")).collect();
    ensure!(!pulls.is_empty() && pulls.iter().all(|line| line.contains(GONE)), "pulled, or tried to: {pulls:?}");
    Ok(())
}

#[test]
fn pods_come_back_with_the_node_and_the_job_of_the_backup_is_complete() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::up(&dir.path().join("node"), &"kubeadm".parse::<Variant>()?)?;
    jobs::import_image(&node)?;
    import_the_image_that_goes(&node)?;
    node.apply(&[deployment("web", &BEFORE.image("pause")), deployment("gone", GONE), worker("worker-1")])?;
    for pod in ["app=web", "app=gone", "app=worker-1"] {
        node.wait_pods("default", pod)?;
    }
    let hub = Job::of_the_hub(&node, "backup-hub", 300)?;
    hub.completes()?;
    is_at_work(&node, "worker-1")?;

    node.upgrade(Broken::ApiServer)?;
    node.run(&["crictl", "rmi", GONE])?;
    let done = node.exec(&typed(&["recover", "--yes"]), RECOVERY)?;
    ensure!(done.stderr.contains(GONE), "the plan does not name the image that is gone: {}", done.stderr);
    recovered(&node)?;
    pods_are_back(&node, &hub, "worker-1")?;

    // Once more, from a backup of the packaged Job, one phase at a time, and with nothing left of a pod, as under CRI-O. Its command runs again:
    // in another pod where the snapshot knew the container to be running (kubelet then calls the pod failed), in the same one where the
    // snapshot was taken before kubelet had said so.
    node.apply(&[worker("worker-2")])?;
    node.wait_pods("default", "app=worker-2")?;
    let packaged = Job::packaged(&node, "backup-packaged", SHORT)?;
    packaged.completes()?;
    let deadline = packaged.deadline()?;
    is_at_work(&node, "worker-2")?;
    let before = node.run(&["ls", "/var/recovery/backups"])?;
    node.exec(&typed(&["restore-files", "--yes", "--step"]), RECOVERY)?.checked()?;
    node.reboot()?;
    node.wait_output("the runtime to have no pods", &["sh", "-c", "crictl rmp -fa && crictl pods -q | wc -l"], |text| {
        text.trim().ends_with('0')
    })?;
    // Its deadline is over, too.
    let over = || Ok((Timestamp::now() > deadline).then_some(()));
    RECOVERY.wait("the deadline of the Job to be over", over, || node.explain())?;
    node.exec(&[AGENT, "resume", "--step"], RECOVERY)?.checked()?;
    node.wait_well()?;
    let late = Job::of_the_hub(&node, "during-the-recovery", 300)?;
    let end = late.end()?;
    ensure!(end.how == "Failed" && late.ended_container()?.0 == 75, "{end:?}, {:?}: {}", late.ended_container()?, late.log()?);
    ensure!(late.log()?.contains("a recovery is in progress"), "{}", late.log()?);
    node.exec(&[AGENT, "resume"], RECOVERY)?.checked()?;
    recovered(&node)?;
    pods_are_back(&node, &packaged, "worker-2")?;
    let said = packaged.said_at_its_end()?;
    ensure!(said.contains("already done"), "its command did not run again: {said}");
    ensure!(node.run(&["ls", "/var/recovery/backups"])? == before, "there is another backup: {before}");
    node.down()
}
