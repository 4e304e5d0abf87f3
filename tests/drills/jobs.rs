//! Backups asked for by Jobs: with the manifests of `packaging/kubernetes`, and as the hub of the old tool makes them.

use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use real_node::{Limit, Node, command};

/// The agent under test.
pub(crate) const AGENT: &str = env!("CARGO_BIN_EXE_recovery");
/// Its image. No registry has it: it is imported into the node.
pub(crate) const IMAGE: &str = "localhost/recovery:drill";
/// Where the old tool's hub puts its Jobs.
const HUB: &str = "openshift-talo-backup";
/// What that hub mounts below `/host`, `/host/proc` above all.
const HOST_PATHS: [&str; 13] = [
    "/proc",
    "/etc",
    "/usr",
    "/boot",
    "/sysroot",
    "/run",
    "/dev",
    "/usr/lib64",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/recovery",
    "/var/log",
    "/var/tmp",
];
const MINUTES: Limit = Limit::of(180);

/// What stands for the agent on ARM, in an image that is for both architectures: a program's header and no more. The real one takes minutes
/// to build; no node here could run it.
pub(crate) fn arm_program() -> Result<Vec<u8>> {
    let mut header = vec![0; 64];
    std::fs::File::open(AGENT)?.read_exact(&mut header)?;
    // e_machine: EM_AARCH64.
    header[18..20].copy_from_slice(&183_u16.to_le_bytes());
    Ok(header)
}

/// Makes the image of the agent under test, and of what stands for the one on ARM.
pub(crate) fn build_image(name: &str, archive: &Path) -> Result<()> {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/image/build.sh");
    let arm = archive.with_extension("arm");
    std::fs::write(&arm, arm_program()?)?;
    command::checked(Command::new(recipe).arg(name).arg(archive).arg(AGENT).arg(arm), MINUTES).map(drop)
}

/// Gives the image of the agent under test to the node's container runtime.
pub(crate) fn import_image(node: &Node) -> Result<()> {
    import_image_as(node, IMAGE)
}

/// The same under another name. The runtime takes the one for its machine out of the index.
fn import_image_as(node: &Node, name: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let archive = dir.path().join("image.tar");
    build_image(name, &archive)?;
    let argv = ["ctr", "--namespace=k8s.io", "images", "import", "-"];
    node.exec_with(&argv, &std::fs::read(archive)?, MINUTES)?.checked().map(drop)
}

/// A Job that was asked for.
#[derive(Debug)]
pub(crate) struct Job<'n> {
    node: &'n Node,
    namespace: &'static str,
    name: String,
}

/// How a Job ended.
#[derive(Debug)]
pub(crate) struct End {
    /// `Complete` or `Failed`.
    pub(crate) how: String,
    /// Why it failed, in the API's word.
    pub(crate) reason: String,
}

impl<'n> Job<'n> {
    /// `kubectl apply -k` of an overlay over what is packaged, as the README has people write it.
    pub(crate) fn packaged(node: &'n Node, name: &str, deadline: u32) -> Result<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/kubernetes");
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            node.put_file(&entry.path(), &format!("/var/tmp/kubernetes/base/{}", entry.file_name().display()), 0o644)?;
        }
        let (image, tag) = IMAGE.rsplit_once(':').context("an image without a tag")?;
        let changes = json!([
            {"op": "replace", "path": "/metadata/name", "value": name},
            {"op": "replace", "path": "/spec/activeDeadlineSeconds", "value": deadline},
        ]);
        let overlay = json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": ["../base"],
            "images": [{"name": "recovery", "newName": image, "newTag": tag}],
            "patches": [{"target": {"kind": "Job"}, "patch": changes.to_string(), "options": {"allowNameChange": true}}],
        });
        node.put("/var/tmp/kubernetes/overlay/kustomization.yaml", overlay.to_string().as_bytes(), 0o644)?;
        node.kubectl(&["apply", "--kustomize=/var/tmp/kubernetes/overlay"])?;
        Ok(Self { node, namespace: "recovery", name: name.to_owned() })
    }

    /// The two overlays of `packaging/overlays`: of one, what the API server would make of it, of the other the Job, with the image that it
    /// names.
    pub(crate) fn of_overlays(node: &'n Node) -> Result<(String, Self)> {
        let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
        for folder in ["kubernetes", "overlays/disconnected", "overlays/before-upgrade"] {
            for entry in std::fs::read_dir(packaging.join(folder))? {
                let entry = entry?;
                node.put_file(&entry.path(), &format!("/var/tmp/packaging/{folder}/{}", entry.file_name().display()), 0o644)?;
            }
        }
        let overlay = |name: &str| format!("--kustomize=/var/tmp/packaging/overlays/{name}");
        let seen = node.kubectl(&["apply", &overlay("disconnected"), "--dry-run=server", "--output=yaml"])?;
        import_image_as(node, "quay.example.com/edge/recovery:0.1.0")?;
        node.kubectl(&["apply", &overlay("before-upgrade")])?;
        Ok((seen, Self { node, namespace: "recovery", name: "recovery-backup-before-4-17-3".to_owned() }))
    }

    /// As the old tool's hub makes it, with nothing but the image changed.
    pub(crate) fn of_the_hub(node: &'n Node, name: &str, deadline: u32) -> Result<Self> {
        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": HUB},
            "spec": {
                "activeDeadlineSeconds": deadline, "backoffLimit": 0,
                "template": {"spec": pod_of_the_hub("Never")},
            },
        });
        node.apply(&[namespace_of_the_hub(), account_of_the_hub()])?;
        node.apply(&[job])?;
        Ok(Self { node, namespace: HUB, name: name.to_owned() })
    }

    /// One that is there already.
    pub(crate) fn of(node: &'n Node, namespace: &'static str, name: &str) -> Self {
        Self { node, namespace, name: name.to_owned() }
    }

    /// Waits until it has ended.
    pub(crate) fn end(&self) -> Result<End> {
        let mut last = Value::Null;
        let look = || {
            // In a recovery, the API server comes and goes.
            let Ok(job) = self.node.get(&["job", &self.name, &self.place()]) else { return Ok(None) };
            last = job["status"].clone();
            let ended = |c: &&Value| c["status"] == "True" && (c["type"] == "Complete" || c["type"] == "Failed");
            let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
            Ok(conditions.iter().find(ended).map(|c| End { how: word(&c["type"]), reason: word(&c["reason"]) }))
        };
        let ended = MINUTES.wait(&format!("the Job {} to end", self.name), look, || self.node.explain());
        ended.with_context(|| format!("its status is {last}"))
    }

    /// When it may go on no longer.
    pub(crate) fn deadline(&self) -> Result<Timestamp> {
        let job = self.node.get(&["job", &self.name, &self.place()])?;
        let begun: Timestamp = job["status"]["startTime"].as_str().context("a Job that has not begun")?.parse()?;
        let seconds = job["spec"]["activeDeadlineSeconds"].as_i64().context("a Job without a deadline")?;
        Ok(begun + Duration::from_secs(seconds.try_into()?))
    }

    /// Waits until it has ended, which has to be well.
    pub(crate) fn completes(&self) -> Result<()> {
        let end = self.end()?;
        ensure!(end.how == "Complete", "the Job {} ended {} ({}): {}", self.name, end.how, end.reason, self.log().unwrap_or_default());
        Ok(())
    }

    /// Its deadline is over: waits until its pod is told to end, which one that is stopped does not hear.
    pub(crate) fn is_overdue(&self) -> Result<()> {
        let patch = json!({"spec": {"activeDeadlineSeconds": 1}}).to_string();
        self.node.kubectl(&["patch", "job", &self.name, &self.place(), "--type=merge", "--patch", &patch])?;
        let told = || Ok(self.pod()?["metadata"]["deletionTimestamp"].is_string().then_some(()));
        MINUTES.wait(&format!("the pod of {} to be told to end", self.name), told, || self.node.explain())
    }

    /// Its one pod.
    pub(crate) fn pod(&self) -> Result<Value> {
        let pods = self.node.get(&["pods", &self.place(), &format!("--selector=batch.kubernetes.io/job-name={}", self.name)])?;
        let items = pods["items"].as_array().cloned().unwrap_or_default();
        ensure!(items.len() == 1, "the Job {} has {} pods", self.name, items.len());
        Ok(items[0].clone())
    }

    /// What the one of its pods that ended well said.
    pub(crate) fn said_at_its_end(&self) -> Result<String> {
        let pods = self.node.get(&["pods", &self.place(), &format!("--selector=batch.kubernetes.io/job-name={}", self.name)])?;
        let mut all = pods["items"].as_array().into_iter().flatten();
        let pod = all.find(|pod| pod["status"]["phase"] == "Succeeded").with_context(|| format!("none succeeded: {pods}"))?;
        self.node.kubectl(&["logs", &self.place(), pod["metadata"]["name"].as_str().unwrap_or_default()])
    }

    /// How the container of its one pod ended: exit code and termination message.
    pub(crate) fn ended_container(&self) -> Result<(i64, String)> {
        let pod = self.pod()?;
        let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        let code = ended["exitCode"].as_i64().with_context(|| format!("its container has not ended: {}", pod["status"]))?;
        Ok((code, ended["message"].as_str().unwrap_or_default().to_owned()))
    }

    /// What it said.
    pub(crate) fn log(&self) -> Result<String> {
        self.node.kubectl(&["logs", &self.place(), &format!("job/{}", self.name)])
    }

    /// Its UID, which says who asked for a backup.
    pub(crate) fn uid(&self) -> Result<String> {
        let job = self.node.get(&["job", &self.name, &self.place()])?;
        Ok(job["metadata"]["uid"].as_str().context("a Job without a UID")?.to_owned())
    }

    fn place(&self) -> String {
        format!("--namespace={}", self.namespace)
    }
}

/// The hub's pod, by itself: one whose container is started again when it ends.
pub(crate) fn pod_that_asks_again(node: &Node, name: &str) -> Result<()> {
    let metadata = json!({"name": name, "namespace": HUB});
    node.apply(&[json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_of_the_hub("Always")})])
}

/// What the hub's namespace has of a pod: its log, of the container before or of the one that runs.
pub(crate) fn log_of_pod(node: &Node, name: &str, previous: bool) -> Result<String> {
    node.kubectl(&["logs", &format!("--namespace={HUB}"), name, &format!("--previous={previous}")])
}

/// How often the container of a pod of the hub's namespace has been started again.
pub(crate) fn restarts(node: &Node, name: &str) -> Result<i64> {
    let pod = node.get(&["pod", name, &format!("--namespace={HUB}")])?;
    Ok(pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or(0))
}

fn namespace_of_the_hub() -> Value {
    let labels = json!({"pod-security.kubernetes.io/enforce": "privileged"});
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": HUB, "labels": labels}})
}

fn account_of_the_hub() -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "backup-agent", "namespace": HUB}})
}

fn pod_of_the_hub(restart: &str) -> Value {
    let name = |path: &str| format!("host{}", path.replace('/', "-"));
    let mut mounts = vec![json!({"name": "host", "mountPath": "/host"})];
    mounts.extend(HOST_PATHS.map(|path| json!({"name": name(path), "mountPath": format!("/host{path}")})));
    let mut volumes = vec![json!({"name": "host", "emptyDir": {}})];
    volumes.extend(HOST_PATHS.map(|path| json!({"name": name(path), "hostPath": {"path": path}})));
    json!({
        "restartPolicy": restart, "serviceAccountName": "backup-agent", "hostNetwork": true,
        "containers": [{
            "name": "container-image", "image": IMAGE, "args": ["launchBackup"], "tty": true,
            "securityContext": {"privileged": true, "runAsUser": 0},
            "volumeMounts": mounts,
        }],
        "volumes": volumes,
    })
}
