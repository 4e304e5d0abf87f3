//! Inside the node: commands, files, and waits for what runs there.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::Node;
use super::command::{self, Done, Limit};
use super::machine::Power;
use super::release::{COMPONENTS, Kind};

/// For a command that only asks, or that changes little.
const SHORT: Limit = Limit::of(60);
/// From a boot to a Ready node.
const READY: Limit = Limit::of(180);

impl Node {
    /// A command as root in the node's namespaces: as over SSH. Nothing is taken from this machine's environment.
    pub fn command(&self, argv: &[&str]) -> Result<Command> {
        let leader = Power::of(&self.place)?.leader.with_context(|| format!("the node is off: {}", self.place.boots().display()))?;
        let mut command = Command::new("nsenter");
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root");
        command.env("LANG", "C.UTF-8").env("KUBECONFIG", self.kind().kubeconfig());
        command.arg(format!("--target={leader}")).args(["--all", "--"]).args(argv);
        Ok(command)
    }

    /// Runs it, however it ends.
    pub fn exec(&self, argv: &[&str], limit: Limit) -> Result<Done> {
        command::run(&mut self.command(argv)?, &[], limit)
    }

    /// Runs it with this as its standard input, however it ends.
    pub fn exec_with(&self, argv: &[&str], stdin: &[u8], limit: Limit) -> Result<Done> {
        command::run(&mut self.command(argv)?, stdin, limit)
    }

    /// Runs it within a minute; it has to end with 0. What it printed.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        Ok(self.exec(argv, SHORT)?.checked()?.stdout)
    }

    /// `kubectl` with the node's own kubeconfig.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.run(&[&["kubectl"], args].concat())
    }

    /// An object or a list, as the API has it.
    pub fn get(&self, args: &[&str]) -> Result<serde_json::Value> {
        let text = self.kubectl(&[&["get", "--output=json"], args].concat())?;
        serde_json::from_str(&text).with_context(|| format!("reading `kubectl get {}`", args.join(" ")))
    }

    /// `kubectl apply` of these objects.
    pub fn apply(&self, objects: &[serde_json::Value]) -> Result<()> {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let argv = ["kubectl", "apply", "--server-side", "--force-conflicts", "--filename=-"];
        self.exec_with(&argv, list.to_string().as_bytes(), SHORT)?.checked().map(drop)
    }

    /// Writes a file, making its folder.
    pub fn put(&self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let script = r#"mkdir -p "$(dirname "$1")" && rm -f "$1" && cat >"$1" && chmod "$2" "$1""#;
        self.exec_with(&["sh", "-c", script, "put", path, &format!("{mode:o}")], bytes, SHORT)?.checked().map(drop)
    }

    /// Copies a file of this machine into the node.
    pub fn put_file(&self, from: &Path, path: &str, mode: u32) -> Result<()> {
        self.put(path, &std::fs::read(from).with_context(|| format!("reading {}", from.display()))?, mode)
    }

    /// What a file of the node holds.
    pub fn read(&self, path: &str) -> Result<String> {
        self.run(&["cat", path])
    }

    /// True when there is something at the path.
    pub fn exists(&self, path: &str) -> Result<bool> {
        Ok(self.exec(&["test", "-e", path], SHORT)?.status.success())
    }

    /// Waits until it has booted at least so often, systemd takes commands and the file systems are mounted: after something in it asked for a reboot.
    pub fn wait_boots(&self, boots: u32) -> Result<()> {
        let up = || {
            let power = Power::of(&self.place)?;
            ensure!(super::machine::is_on(&self.place)?, "the node is off: {}", power.ended);
            if power.boots < boots || power.leader.is_none() {
                return Ok(None);
            }
            // The system bus is among the last things that systemd needs to be asked something.
            let asked = self.exec(&["systemctl", "is-active", "--quiet", "local-fs.target"], SHORT);
            Ok(asked.is_ok_and(|done| done.status.success()).then_some(()))
        };
        let why = || format!("see {} and {}", self.place.boots().display(), self.place.console().display());
        Limit::of(120).wait(&format!("boot {boots}"), up, why)
    }

    /// Waits until the API server is ready, etcd included.
    pub fn wait_api(&self) -> Result<()> {
        self.wait_output("the API server to be ready", &["kubectl", "get", "--raw=/readyz", "--request-timeout=2s"], |text| text == "ok")
    }

    /// Waits until the node is Ready, by a heartbeat of this boot.
    pub fn wait_ready(&self) -> Result<()> {
        self.wait_api()?;
        let since = Power::of(&self.place)?.since;
        let condition = r#"jsonpath={range .items[*].status.conditions[?(@.type=="Ready")]}{.status} {.lastHeartbeatTime}{end}"#;
        let fresh = |text: &str| {
            let Some((status, at)) = text.trim().split_once(' ') else { return false };
            status == "True" && at.parse::<jiff::Timestamp>().is_ok_and(|at| at.as_second() >= since)
        };
        self.wait_output("the node to be Ready", &["kubectl", "get", "nodes", "--output", condition], fresh)
    }

    /// Waits until all of it is well: the node Ready, the control plane's containers running, on OpenShift its operators too.
    pub fn wait_well(&self) -> Result<()> {
        self.wait_ready()?;
        self.wait_containers(&COMPONENTS)?;
        if self.kind() == Kind::OpenShift {
            self.wait_containers(&super::cluster::DEPLOYMENTS.map(|(_, container)| container))?;
            // An API server that has just started answers "storage is (re)initializing" where it is ready but for its caches.
            let list = ["kubectl", "get", "clusterversions,clusteroperators,etcds", "--output=name"];
            self.wait_output("OpenShift's resources to be served", &list, |text| {
                text.contains("etcd.operator") && !text.contains("Error")
            })?;
        }
        Ok(())
    }

    /// Waits until a container of each of these names runs, by what the container runtime says: the API may still have what was so before
    /// the boot.
    pub fn wait_containers(&self, names: &[&str]) -> Result<()> {
        for name in names {
            let label = format!("--label=io.kubernetes.container.name={name}");
            let argv = ["crictl", "ps", "--quiet", "--state=Running", &label];
            self.wait_output(&format!("a container {name} to run"), &argv, |text| text.len() == 64)?;
        }
        Ok(())
    }

    /// Waits until all pods of a namespace with this label are Ready, by what the API says.
    pub fn wait_pods(&self, namespace: &str, selector: &str) -> Result<()> {
        let statuses = r#"jsonpath={range .items[*].status.conditions[?(@.type=="Ready")]}{.status} {end}"#;
        let argv = ["kubectl", "get", "pods", "--namespace", namespace, "--selector", selector, "--output", statuses];
        let all = |text: &str| !text.is_empty() && text.split_whitespace().all(|status| status == "True");
        self.wait_output(&format!("the pods {selector} of {namespace} to be Ready"), &argv, all)
    }

    /// Waits until what a command prints is so; at the limit, says what it printed last, and what the node's control plane is doing.
    pub fn wait_output(&self, what: &str, argv: &[&str], is_so: impl Fn(&str) -> bool) -> Result<()> {
        let mut last = String::new();
        let waited = READY.wait(
            what,
            || {
                // While it reboots, there is nobody to ask.
                let done = self.exec(argv, SHORT);
                last = done.map_or_else(|error| format!("{error:#}"), |done| format!("{}{}", done.stdout, done.stderr));
                Ok(is_so(last.trim()).then_some(()))
            },
            String::new,
        );
        if let Err(error) = waited {
            bail!("{error}{last}\n{}", self.explain());
        }
        Ok(())
    }

    /// What to look at when the control plane does not come: containers, and the last lines of kubelet.
    #[must_use]
    pub fn explain(&self) -> String {
        let said = |done: Done| format!("{}{}", done.stdout, done.stderr);
        let ask = |argv: &[&str]| self.exec(argv, SHORT).map_or_else(|error| format!("{error:#}"), said);
        let kubelet = ask(&["journalctl", "--unit=kubelet", "--lines=15", "--no-pager", "--output=cat"]);
        format!("{}\n{}\n{kubelet}", ask(&["systemctl", "--failed", "--no-pager", "--plain"]), ask(&["crictl", "ps", "--all"]))
    }
}
