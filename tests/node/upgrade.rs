//! An upgrade that fails, in the order in which OpenShift does it: the operators bring new revisions of the static pods, machine-config-daemon
//! writes the new configuration and deploys the new operating system, the node reboots into it, all is well for a moment, and then not.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Node;
use super::cluster::operator_resource;
use super::command::Limit;
use super::managed::{self, CURRENT_CONFIG, Managed};
use super::pods::{RESOURCES, manifest};
use super::release::{AFTER, COMPONENTS, Kind, NODE};

const DEPLOY: Limit = Limit::of(120);
/// What the new release's API server is started with when it is broken: it knows no such plugin, and ends at once.
const RUIN: &str = "--enable-admission-plugins=NodeRestriction,FromTheFuture";

/// What is wrong after the upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Broken {
    /// Nothing: an upgrade that went well.
    Nothing,
    /// The API server's newest revision ends as soon as it starts.
    ApiServer,
    /// etcd's data cannot be read.
    Etcd,
}

impl Node {
    /// Upgrades it to the next release, reboots it into that, and then breaks it. Half a minute.
    pub fn upgrade(&self, broken: Broken) -> Result<()> {
        self.change_objects().context("changing objects, as the next release does")?;
        // /etc is merged when the next release is deployed: what is to be in it comes first.
        self.roll_out().context("rolling out the static pods of the next release")?;
        self.write_configuration().context("writing the next machine configuration")?;
        let deploy =
            ["ostree", "admin", "deploy", "--os=rhcos", "--karg=root=LABEL=root", "--karg=psi=1", "--karg=next=1", &AFTER.branch()];
        self.exec(&deploy, DEPLOY)?.checked()?;
        self.reboot()?;
        self.wait_ready().context("waiting for the upgraded node")?;
        self.renew_kubelet()?;
        self.break_it(broken)
    }

    /// New revisions with the new release's images. Operators do that one after the other while all is running, half a minute each; here
    /// kubelet is stopped first, and the reboot starts them all.
    fn roll_out(&self) -> Result<()> {
        let mut revisions = Vec::new();
        for (component, name) in COMPONENTS.into_iter().enumerate() {
            let old = if self.kind() == Kind::OpenShift { self.revision(name)? } else { 0 };
            let new = AFTER.revisions[component].max(old + 1);
            if self.kind() == Kind::OpenShift {
                self.note_revision(name, new)?;
            }
            revisions.push((old, new));
        }
        self.run(&["systemctl", "stop", "kubelet"])?;
        for (component, (old, new)) in revisions.into_iter().enumerate() {
            let (name, pod) = (COMPONENTS[component], manifest(self.kind(), &AFTER, component, new));
            match self.kind() {
                Kind::OpenShift => self.install_revision(name, old, new, &pod)?,
                Kind::Kubeadm => self.replace(&self.kind().manifest(name), serde_saphyr::to_string(&pod)?.as_bytes(), 0o600)?,
            }
        }
        Ok(())
    }

    /// The revision of the manifest that is in use.
    pub fn revision(&self, component: &str) -> Result<u32> {
        let pod: Value = serde_json::from_str(&self.read(&self.kind().manifest(component))?)?;
        let number = pod["metadata"]["labels"]["revision"].as_str().and_then(|number| number.parse().ok());
        number.with_context(|| format!("the manifest of {component} has no revision"))
    }

    fn install_revision(&self, name: &str, old: u32, new: u32, pod: &Value) -> Result<()> {
        let (from, to) = (format!("{RESOURCES}/{name}-pod-{old}"), format!("{RESOURCES}/{name}-pod-{new}"));
        self.run(&["cp", "--archive", "--no-target-directory", &from, &to])?;
        self.put(&format!("{to}/{name}-pod.yaml"), pod.to_string().as_bytes(), 0o644)?;
        self.replace(&self.kind().manifest(name), pod.to_string().as_bytes(), 0o644)
    }

    /// Writes a file outside the directory that kubelet watches, and moves it in.
    pub fn replace(&self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let staged = "/etc/kubernetes/.staged";
        self.put(staged, bytes, mode)?;
        self.run(&["mv", staged, path]).map(drop)
    }

    /// The running containers of a component.
    pub fn containers(&self, name: &str) -> Result<Vec<String>> {
        let label = format!("--label=io.kubernetes.container.name={name}");
        let ids = self.run(&["crictl", "ps", "--quiet", "--state=Running", &label])?;
        Ok(ids.split_whitespace().map(str::to_owned).collect())
    }

    /// What the operator of a component reports when a revision is installed.
    fn note_revision(&self, name: &str, revision: u32) -> Result<()> {
        let resource = operator_resource(name);
        let reason = self.get(&[&resource, "cluster"])?["spec"]["forceRedeploymentReason"].clone();
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("{name}-pod-{revision}"), "namespace": format!("openshift-{name}")},
            "data": {"forceRedeploymentReason": reason.as_str().unwrap_or_default(), "version": AFTER.version},
        });
        self.apply(&[map])?;
        let node = json!({"nodeName": NODE, "currentRevision": revision});
        let status = json!({"status": {"latestAvailableRevision": revision, "nodeStatuses": [node]}}).to_string();
        self.kubectl(&["patch", &resource, "cluster", "--subresource=status", "--type=merge", "--patch", &status]).map(drop)
    }

    /// Objects that a release changes, and some that it adds.
    fn change_objects(&self) -> Result<()> {
        let map = |name: &str, text: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": {"text": text}});
        self.apply(&[map("settings-000000", "as the next release wants it"), map("added-by-the-upgrade", "the next release's")])?;
        if self.kind() == Kind::OpenShift {
            let history = json!({"state": "Partial", "version": AFTER.version, "image": AFTER.image("release"),
                "startedTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(), "completionTime": null, "verified": false});
            let patch = json!([{"op": "add", "path": "/status/history/0", "value": history}]).to_string();
            self.kubectl(&["patch", "clusterversion", "version", "--subresource=status", "--type=json", "--patch", &patch])?;
        }
        Ok(())
    }

    /// What machine-config-daemon does before it reboots: files and units of the new configuration, and the record of it.
    fn write_configuration(&self) -> Result<()> {
        if self.kind() != Kind::OpenShift {
            return Ok(());
        }
        let files = managed::files(&["openshift", "openshift-next"])?;
        for Managed { path, bytes, mode } in &files {
            if self.exec_with(&["cmp", "--silent", path, "-"], bytes, DEPLOY)?.code() != 0 {
                self.put(path, bytes, *mode)?;
            }
        }
        for (link, target) in files.iter().flat_map(Managed::links) {
            let folder = link.rsplit_once('/').map_or("/", |(folder, _)| folder);
            self.run(&["mkdir", "--parents", folder])?;
            self.run(&["ln", "--symbolic", "--force", &target, &link])?;
        }
        let record = managed::record("rendered-master-9d8c7b6a5f4e3d2c1b0a998877665544", &files, AFTER.version);
        self.put(CURRENT_CONFIG, record.to_string().as_bytes(), 0o644)
    }

    /// kubelet asks for new certificates, under which the cluster that is restored has never seen it.
    fn renew_kubelet(&self) -> Result<()> {
        let kubeconfig = match self.kind() {
            Kind::OpenShift => "/var/lib/kubelet/kubeconfig",
            Kind::Kubeadm => "/etc/kubernetes/kubelet.conf",
        };
        self.kubectl(&["delete", "certificatesigningrequests", "--all"])?;
        self.run(&["systemctl", "stop", "kubelet"])?;
        self.run(&["rm", "--recursive", "--force", "/var/lib/kubelet/pki", kubeconfig])?;
        self.run(&["systemctl", "start", "kubelet"])?;
        self.approve_requests()
    }

    fn break_it(&self, broken: Broken) -> Result<()> {
        let component = match broken {
            Broken::Nothing => return Ok(()),
            Broken::ApiServer => "kube-apiserver",
            Broken::Etcd => "etcd",
        };
        let label = format!("--label=io.kubernetes.container.name={component}");
        self.run(&["systemctl", "stop", "kubelet"])?;
        self.run(&["sh", "-c", &format!("crictl ps --all --quiet {label} | xargs --no-run-if-empty crictl rm --force")])?;
        if broken == Broken::Etcd {
            self.run(&["truncate", "--size=4096", "/var/lib/etcd/member/snap/db"])?;
        } else {
            let path = self.kind().manifest(component);
            let text = self.read(&path)?;
            let ruined = text.replace("--enable-admission-plugins=NodeRestriction", RUIN);
            anyhow::ensure!(ruined != text, "{path} has no admission plugins to ruin");
            self.replace(&path, ruined.as_bytes(), 0o644)?;
        }
        self.run(&["systemctl", "start", "kubelet"])?;
        let ended = ["crictl", "ps", "--all", "--quiet", "--state=Exited", &label];
        self.wait_output(&format!("{component} to fail"), &ended, |text| !text.is_empty())
    }
}
