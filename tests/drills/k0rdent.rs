//! The guide's way, on a single-node cluster that k0rdent manages: a schedule, the gate, an upgrade that goes wrong, and a rollback with the guide's files.
//! kcm itself does not run: the drill writes the status that it would.

use std::io::Write;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::hands::{AGENT, agent, ok, typed, up};
use real_node::{Done, Limit, Node};

const CALL: Limit = Limit::of(60);
const RECOVERED: Limit = Limit::of(600);

/// The guide's first file, to the letter.
const SCHEDULE: &str = include_str!("../fixtures/k0rdent/management-backup.yaml");

/// The guide's second file, with its places filled in.
fn rollback(backup: &str) -> String {
    include_str!("../fixtures/k0rdent/rollback.yaml").replace("example-backup-kcm-0-2-0", backup)
}

/// Writes down, from boot on, which release the API server serves, as often as it can be asked.
const WATCHER: &str = "[Unit]
Description=Watch the release
[Service]
Environment=KUBECONFIG=/etc/kubernetes/admin.conf
ExecStart=/bin/sh /var/watch.sh
[Install]
WantedBy=multi-user.target
";
const WATCH: &str = "echo boot >> /var/seen
while :; do
    release=$(kubectl get managements kcm --request-timeout=2s -o 'jsonpath={.spec.release}' 2> /dev/null) && echo \"$release\" >> /var/seen
    sleep 0.1
done
";

/// The resource, as far as the drill needs it: what `kubectl explain management` shows of kcm's.
fn definition() -> Value {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let spec = json!({
        "type": "object", "required": ["release"],
        "properties": {"release": {"type": "string", "minLength": 1}, "providers": {"type": "array", "items": open}},
    });
    let version = |name: &str, stored: bool| {
        json!({
            "name": name, "served": true, "storage": stored, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": open}}},
        })
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "managements.k0rdent.mirantis.com"},
        "spec": {
            "group": "k0rdent.mirantis.com", "scope": "Cluster",
            "names": {"kind": "Management", "listKind": "ManagementList", "plural": "managements", "singular": "management"},
            "versions": [version("v1alpha1", false), version("v1beta1", true)],
        },
    })
}

/// kcm says that it has arrived where it is asked to be.
fn arrive(node: &Node) -> Result<()> {
    let management = node.get(&["managements", "kcm"])?;
    let status = json!({"status": {
        "release": management["spec"]["release"], "observedGeneration": management["metadata"]["generation"],
        "components": {"kcm": {"success": true}},
        "conditions": [{"type": "Ready", "status": "True", "reason": "Succeeded", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    }});
    node.kubectl(&["patch", "managements", "kcm", "--subresource=status", "--type=merge", "-p", &status.to_string()]).map(drop)
}

fn ask(node: &Node, release: &str) -> Result<Done> {
    let change = json!({"spec": {"release": release}}).to_string();
    node.exec(&["kubectl", "patch", "managements", "kcm", "--type=merge", "-p", &change], CALL)
}

fn json_of(node: &Node, args: &[&str]) -> Result<Value> {
    let done = agent(node, &[args, &["--json"]].concat())?.checked()?;
    serde_json::from_str(&done.stdout).with_context(|| done.stdout.clone())
}

#[test]
fn an_upgrade_of_k0rdent_is_taken_back_with_the_guides_files() -> Result<()> {
    let (_dir, node) = up("kubeadm")?;
    node.apply(&[definition()])?;
    node.kubectl(&["wait", "crd/managements.k0rdent.mirantis.com", "--for=condition=Established", "--timeout=60s"])?;
    node.apply(&[json!({
        "apiVersion": "k0rdent.mirantis.com/v1beta1", "kind": "Management", "metadata": {"name": "kcm"},
        "spec": {"release": "kcm-0-2-0", "providers": [{"name": "cluster-api-provider-docker", "weight": 0.218_446_744_073_709_54}]},
    })])?;
    arrive(&node)?;
    node.put("/etc/systemd/system/watcher.service", WATCHER.as_bytes(), 0o644)?;
    node.put("/var/watch.sh", WATCH.as_bytes(), 0o644)?;
    node.run(&["systemctl", "enable", "--now", "watcher.service"])?;

    node.put("/root/schedule.yaml", SCHEDULE.as_bytes(), 0o600)?;
    let said = ok(&node, &["schedule", "apply", "-f", "/root/schedule.yaml"])?;
    ensure!(said.contains("example-backup") && said.matches('Z').count() >= 3, "{said}");
    ok(&node, &["gate", "install"])?;
    let refused = ask(&node, "kcm-0-3-0")?;
    ensure!(refused.code() != 0 && refused.stderr.contains(AGENT) && refused.stderr.contains("there is no backup"), "{}", refused.stderr);
    let passed = json_of(&node, &["gate", "--take"])?;
    ensure!(passed["release"] == "kcm-0-2-0", "{passed}");
    let listed = json_of(&node, &["list", "-l", "k0rdent.mirantis.com/release-backup=kcm-0-2-0"])?;
    ensure!(listed[0]["name"] == "example-backup-kcm-0-2-0" && listed.as_array().is_some_and(|all| all.len() == 1), "{listed}");
    Limit::of(10).wait("the gate to open", || Ok((ask(&node, "kcm-0-3-0")?.code() == 0).then_some(())), String::new)?;

    // As kcm does it: the backup is taken when the new release is asked for already.
    let busy = agent(&node, &["backup"])?;
    ensure!(busy.code() == 75 && busy.stderr.contains("k0rdent's Management, which goes to kcm-0-3-0"), "{}: {}", busy.code(), busy.stderr);
    let late = json_of(&node, &["backup", "--force", "--name", "late"])?;
    let management = json!({"release": "kcm-0-2-0", "asked": "kcm-0-3-0", "ready": false});
    ensure!(late["manifest"]["management"] == management, "{}", late["manifest"]["management"]);
    arrive(&node)?;
    node.put("/root/rollback.yaml", rollback("late").as_bytes(), 0o600)?;
    let shown = ok(&node, &["recover", "-f", "/root/rollback.yaml", "--dry-run"])?;
    ensure!(shown.contains("/spec/release") && shown.contains("kcm-0-3-0") && shown.contains("kcm-0-2-0"), "{shown}");
    ensure!(node.get(&["managements", "kcm"])?["spec"]["release"] == "kcm-0-3-0", "a dry run has changed something");
    // A rule that matches nothing stops it there.
    let nothing = rollback("late").replace("managements.k0rdent", "management.k0rdent");
    node.put("/root/nothing.yaml", nothing.as_bytes(), 0o600)?;
    let done = agent(&node, &["recover", "--yes", "-f", "/root/nothing.yaml"])?;
    ensure!(done.code() == 65 && done.stderr.contains("is about no object of the backup"), "{}: {}", done.code(), done.stderr);

    let generation = node.get(&["managements", "kcm"])?["metadata"]["generation"].as_i64().context("no generation")?;
    node.run(&["sh", "-c", ": > /var/seen"])?;
    let boots = node.boots()?;
    node.exec(&typed(&["recover", "--yes", "-f", "/root/rollback.yaml"]), CALL)?;
    node.wait_boots(boots + 1)?;
    // kcm, of the old release, says so too: until then the recovery waits for it.
    RECOVERED.wait("the API server", || Ok(node.get(&["managements", "kcm"]).ok()), || node.explain())?;
    arrive(&node)?;
    let is_over = || Ok(ok(&node, &["status"])?.contains("no recovery is in progress").then_some(()));
    RECOVERED.wait("the end of the recovery", is_over, || ok(&node, &["status"]).unwrap_or_default())?;
    let management = node.get(&["managements", "kcm"])?;
    ensure!(management["spec"]["release"] == "kcm-0-2-0" && management["metadata"]["generation"] == generation + 1, "{management}");
    ensure!(management["spec"]["providers"][0]["weight"] == json!(0.218_446_744_073_709_54), "{management}");
    // What was seen in the boot before says the new one; from the mark on, which the watcher writes when it starts, nobody has seen it.
    let seen = node.read("/var/seen")?;
    let after: Vec<&str> =
        seen.rsplit_once("boot\n").context("the watcher did not start")?.1.lines().filter(|line| !line.is_empty()).collect();
    writeln!(std::io::stderr(), "{} looks since the API server served again", after.len())?;
    ensure!(after.len() > 5 && after.iter().all(|line| *line == "kcm-0-2-0"), "{seen}");
    ok(&node, &["up", "--backup", "late", "--hold", "5", "--wait", "60"]).map(drop)
}
