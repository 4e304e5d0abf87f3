//! The guide's way, on a single-node cluster that k0rdent manages: a schedule, the gate, an upgrade that goes wrong, and a rollback with the guide's files.
//! kcm itself does not run: the drill writes the status that it would.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::hands::{AGENT, agent, ok, typed, up};
use super::served;
use real_node::{Done, Limit, Node};

const CALL: Limit = Limit::of(60);
const RECOVERED: Limit = Limit::of(600);

/// The guide's first file, to the letter.
const SCHEDULE: &str = include_str!("../fixtures/k0rdent/management-backup.yaml");

/// The guide's second file, with its places filled in.
fn rollback(backup: &str) -> String {
    include_str!("../fixtures/k0rdent/rollback.yaml").replace("example-backup-kcm-0-2-0", backup)
}

/// The resources as kcm and Flux define them.
const DEFINITIONS: &str = include_str!("../fixtures/k0rdent/definitions.yaml");

const PROVIDER: &str = "cluster-api-provider-docker";

/// What kcm's chart and its templates make: the releases that there are, and who installs their components.
fn objects() -> Vec<Value> {
    let release = |version: &str| {
        let template = |of: &str| format!("{of}-{}", version.replace('.', "-"));
        json!({
            "apiVersion": "k0rdent.mirantis.com/v1beta1", "kind": "Release", "metadata": {"name": template("kcm")},
            "spec": {
                "version": version, "kcm": {"template": template("kcm")}, "capi": {"template": template("cluster-api")},
                "providers": [{"name": PROVIDER, "template": template(PROVIDER)}],
            },
        })
    };
    let helm = |name: &str| {
        json!({
            "apiVersion": "helm.toolkit.fluxcd.io/v2", "kind": "HelmRelease", "metadata": {"name": name, "namespace": "kcm-system"},
            "spec": {"interval": "10m", "chartRef": {"kind": "HelmChart", "name": name}, "values": {"replicas": 1}},
        })
    };
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kcm-system"}});
    vec![namespace, release("0.2.0"), release("0.3.0"), helm("kcm"), helm("capi"), helm(PROVIDER)]
}

/// The one Management, as its first version has it. What is in a component's configuration is not kcm's to know.
fn management() -> Value {
    json!({
        "apiVersion": "k0rdent.mirantis.com/v1alpha1", "kind": "Management", "metadata": {"name": "kcm"},
        "spec": {
            "release": "kcm-0-2-0", "core": {"kcm": {"config": {"weight": WEIGHT, "admissionWebhook": {"enabled": true}}}, "capi": {}},
            "providers": [{"name": PROVIDER, "config": {"replicas": 2}}],
        },
    })
}

/// With more digits than a number of most readers has.
const WEIGHT: f64 = 0.218_446_744_073_709_54;

fn condition(kind: &str, generation: &Value, reason: &str, message: &str) -> Value {
    let now = "2026-01-01T00:00:00Z";
    json!([{
        "type": kind, "status": "True", "observedGeneration": generation, "reason": reason, "message": message, "lastTransitionTime": now,
    }])
}

fn set_status(node: &Node, resource: &str, name: &str, status: &Value) -> Result<()> {
    let status = json!({"status": status}).to_string();
    let args = ["-n", "kcm-system", "patch", resource, name, "--subresource=status", "--type=merge", "-p", &status];
    node.kubectl(&args).map(drop)
}

/// The resources, with the objects of a k0rdent that is at rest.
fn install(node: &Node) -> Result<()> {
    node.exec_with(&["kubectl", "apply", "--server-side", "--filename=-"], DEFINITIONS.as_bytes(), CALL)?.checked()?;
    let served = ["crd/managements.k0rdent.mirantis.com", "crd/releases.k0rdent.mirantis.com", "crd/helmreleases.helm.toolkit.fluxcd.io"];
    node.kubectl(&[&["wait"], &served[..], &["--for=condition=Established", "--timeout=60s"]].concat())?;
    // A resource is established a moment before it is served.
    Limit::of(30).wait("k0rdent's resources to be served", || Ok(node.apply(&objects()).ok()), String::new)?;
    for release in ["kcm-0-2-0", "kcm-0-3-0"] {
        let conditions = condition("TemplatesValid", &json!(1), "Succeeded", "all templates are valid");
        set_status(node, "releases", release, &json!({"ready": true, "observedGeneration": 1, "conditions": conditions}))?;
    }
    for component in ["kcm", "capi", PROVIDER] {
        let conditions = condition("Ready", &json!(1), "UpgradeSucceeded", "Helm upgrade succeeded");
        let status = json!({"observedGeneration": 1, "lastAttemptedGeneration": 1, "conditions": conditions});
        set_status(node, "helmreleases", component, &status)?;
    }
    node.apply(&[management()])?;
    arrive(node)
}

/// kcm says that it has arrived where it is asked to be.
fn arrive(node: &Node) -> Result<()> {
    let management = node.get(&["managements", "kcm"])?;
    let (release, generation) = (&management["spec"]["release"], &management["metadata"]["generation"]);
    let component = |template: &str, provider: &str| json!({"success": true, "template": template, "exposedProviders": [provider]});
    let status = json!({
        "release": release, "observedGeneration": generation, "availableProviders": ["infrastructure-docker"],
        "capiContracts": {PROVIDER: {"v1beta1": "v1beta1"}},
        "components": {
            "kcm": {"success": true, "template": release}, "capi": component("cluster-api", "cluster-api"),
            PROVIDER: component(PROVIDER, "infrastructure-docker"),
        },
        "conditions": condition("Ready", generation, "AllComponentsHealthy", "All components are successfully installed"),
    });
    set_status(node, "managements", "kcm", &status)
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
    install(&node)?;
    served::record(&node)?;

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
    let generation = node.get(&["managements", "kcm"])?["metadata"]["generation"].as_i64().context("no generation")?;
    let late = json_of(&node, &["backup", "--force", "--name", "late"])?;
    let management = json!({"release": "kcm-0-2-0", "asked": "kcm-0-3-0", "ready": false});
    ensure!(late["manifest"]["management"] == management, "{}", late["manifest"]["management"]);
    let warned = late["manifest"]["warnings"].to_string();
    ensure!(warned.contains("k0rdent is at kcm-0-2-0 and asked to go to kcm-0-3-0 (spec.release of the Management)"), "{warned}");
    arrive(&node)?;
    // Somebody goes on without a backup: what a recovery takes away, its report keeps.
    node.kubectl(&["annotate", "management", "kcm", "recovery/skip-gate=kcm-0-4-0: no time"])?;
    ask(&node, "kcm-0-4-0")?.checked()?;
    let noted = json_of(&node, &["backup", "--force"])?;
    let passed = "an annotation lets the upgrade that it names pass the gate without a good backup: \\\"kcm-0-4-0: no time\\\", written by kubectl-annotate at 20";
    ensure!(noted["manifest"]["warnings"].to_string().contains(passed), "{}", noted["manifest"]["warnings"]);
    ask(&node, "kcm-0-3-0")?.checked()?;
    node.put("/root/rollback.yaml", rollback("late").as_bytes(), 0o600)?;
    let shown = ok(&node, &["recover", "-f", "/root/rollback.yaml", "--dry-run"])?;
    ensure!(shown.contains("/spec/release") && shown.contains("kcm-0-3-0") && shown.contains("kcm-0-2-0"), "{shown}");
    ensure!(node.get(&["managements", "kcm"])?["spec"]["release"] == "kcm-0-3-0", "a dry run has changed something");
    // The rule that it proposes for that takes it back.
    let proposed = json_of(&node, &["recover", "--backup", "late", "--dry-run"])?["warnings"].to_string();
    ensure!(proposed.contains("before it can: {version: v1, resourceModifierRules: "), "{proposed}");
    // A rule that matches nothing stops it there.
    let nothing = rollback("late").replace("managements.k0rdent", "management.k0rdent");
    node.put("/root/nothing.yaml", nothing.as_bytes(), 0o600)?;
    let done = agent(&node, &["recover", "--yes", "-f", "/root/nothing.yaml"])?;
    ensure!(done.code() == 65 && done.stderr.contains("is about no object of the backup"), "{}: {}", done.code(), done.stderr);

    let boots = node.boots()?;
    node.exec(&typed(&["recover", "--yes", "-f", "/root/rollback.yaml"]), CALL)?;
    node.wait_boots(boots + 1)?;
    // kcm, of the old release, says so too: until then the recovery waits for it.
    RECOVERED.wait("the API server", || Ok(node.get(&["managements", "kcm"]).ok()), || node.explain())?;
    arrive(&node)?;
    let is_over = || Ok(ok(&node, &["status"])?.contains("no recovery is in progress").then_some(()));
    RECOVERED.wait("the end of the recovery", is_over, || ok(&node, &["status"]).unwrap_or_default())?;
    served::only(&node, "kcm-0-2-0", "kcm-0-3-0")?;
    let report = node.run(&["sh", "-c", "cat $(ls -t /var/recovery/history/*.json | head -n 1)"])?;
    ensure!(report.contains(passed), "{report}");
    let management = node.get(&["managements", "kcm"])?;
    ensure!(management["spec"]["release"] == "kcm-0-2-0" && management["metadata"]["generation"] == generation + 1, "{management}");
    ensure!(management["spec"]["core"]["kcm"]["config"]["weight"] == json!(WEIGHT), "{management}");
    ok(&node, &["up", "--backup", "late", "--hold", "5", "--wait", "60"]).map(drop)
}
