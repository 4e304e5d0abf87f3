//! The rooms of `src/tools` against the node's programs: the real ostree on a real sysroot, and the stand-ins of the others. And the
//! emulated node itself: what the other tests rely on is seen here.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use recovery::error::exit_code;
use recovery::node::dir::RecoveryDir;
use recovery::node::hold;
use recovery::tools::{crictl, ostree, rpm_ostree, systemctl};
use rustix::fs::FlockOperation;
use serde_json::Value;
use testing::node::{Kind, Node, Options, Wrong, checked, wait_for};

/// How long a busy rpm-ostree is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const CONTROL_PLANE: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

/// Waits until all of an OpenShift node runs: from then on kubelet makes nothing new by itself.
fn wait_for_all(node: &Node) -> Result<()> {
    let operators: Vec<&str> = recovery::node::profile::OPENSHIFT.operator_containers.iter().map(|c| c.container).collect();
    node.wait_containers(&[&CONTROL_PLANE[..], &operators].concat())
}

fn options(kind: Kind) -> Result<Options> {
    Ok(Options { files: 10, ..Options::new(kind, &testing::etcd::Version::V34.program("etcd")?) })
}

/// A node, and the directory it is removed with.
fn new_node(kind: Kind) -> Result<(tempfile::TempDir, Node)> {
    let dir = tempfile::tempdir()?;
    let node = Node::build(&dir.path().join("node"), &options(kind)?)?;
    Ok((dir, node))
}

/// `*` booted, `s` staged, `p` pending, `r` rollback, `P` pinned; a word for each deployment, its version first.
fn shape(all: &[ostree::Deployment]) -> String {
    let row = |d: &ostree::Deployment| -> String {
        let marks = [(d.booted, '*'), (d.staged, 's'), (d.pending, 'p'), (d.rollback, 'r'), (d.pinned, 'P')];
        let marks: String = marks.iter().filter_map(|(is, mark)| is.then_some(*mark)).collect();
        format!("{}{marks}", d.version.as_deref().unwrap_or("?"))
    };
    all.iter().map(row).collect::<Vec<_>>().join(" ")
}

#[test]
fn deployments_are_pinned_rolled_back_and_removed() -> Result<()> {
    let (_dir, node) = new_node(Kind::OpenShift)?;
    let agent = node.agent();
    assert!(ostree::is_ostree(&agent));
    let see = || -> Result<String> {
        let all = ostree::deployments(&agent)?;
        assert_eq!(all, rpm_ostree::deployments(&agent)?, "ostree and rpm-ostree see the same");
        Ok(shape(&all))
    };
    assert_eq!(see()?, "4.16.4*");
    let old = ostree::deployments(&agent)?.remove(0);
    assert_eq!(ostree::kernel_arguments(&agent, &old)?, ["root=LABEL=root", "psi=1"]);
    ostree::pin(&agent, &old)?;
    ostree::pin(&agent, &old)?;
    assert_eq!(see()?, "4.16.4*P");
    // The same commit with another argument is another deployment, staged until the node goes down.
    checked(node.tool("ostree").args(["admin", "deploy", "--stage", "--karg-append=nosmt", "os/4.16.4"]))?;
    assert_eq!(see()?, "4.16.4sp 4.16.4*P");
    let staged = ostree::deployments(&agent)?.remove(0);
    assert_eq!((staged.serial, staged.checksum.as_str()), (1, old.checksum.as_str()));
    assert_eq!(exit_code(&ostree::pin(&agent, &staged).unwrap_err()), 78);
    assert_eq!(exit_code(&ostree::kernel_arguments(&agent, &staged).unwrap_err()), 78, "a staged one has no boot loader entry");
    assert!(rpm_ostree::rollback(&agent, PATIENCE).unwrap_err().to_string().contains("Staged deployment"));
    rpm_ostree::cleanup_pending(&agent, PATIENCE)?;
    rpm_ostree::cleanup_pending(&agent, PATIENCE)?;
    assert_eq!(see()?, "4.16.4*P");
    assert!(rpm_ostree::rollback(&agent, PATIENCE).unwrap_err().to_string().contains("No rollback deployment found"));
    // The upgrade, and back.
    node.upgrade_platform()?;
    assert_eq!(see()?, "4.17.0* 4.16.4rP");
    let new = ostree::deployments(&agent)?.remove(0);
    for wrong in [&new, &old] {
        assert_eq!(exit_code(&ostree::undeploy(&agent, wrong).unwrap_err()), 78, "booted, or pinned");
    }
    // With one pending and one behind, the latter comes first.
    checked(node.tool("ostree").args(["admin", "deploy", "--karg-append=nosmt", "os/4.17.0"]))?;
    assert_eq!(see()?, "4.17.0p 4.17.0* 4.16.4rP");
    let said = checked(node.tool("rpm-ostree").arg("rollback"))?;
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some(format!("Moving '{}.{}' to be first deployment", old.checksum, old.serial).as_str()));
    assert!(lines.next().is_some_and(|line| line.starts_with("Bootloader updated; bootconfig swap: yes;")), "{said}");
    assert_eq!(see()?, "4.16.4pP 4.17.0 4.17.0*");
    // What is pinned stays, however far ahead.
    rpm_ostree::cleanup_pending(&agent, PATIENCE)?;
    assert_eq!(see()?, "4.16.4pP 4.17.0*");
    assert_eq!(checked(node.tool("rpm-ostree").args(["cleanup", "-p"]))?, "Deployments unchanged.\n");
    // The index that was known before is the other one's now.
    ostree::pin(&agent, &new)?;
    assert_eq!(see()?, "4.16.4pP 4.17.0*P");
    ostree::unpin(&agent, &new)?;
    node.reboot()?;
    assert_eq!(see()?, "4.16.4*P 4.17.0r");
    ostree::undeploy(&agent, &new)?;
    ostree::undeploy(&agent, &new)?;
    assert_eq!(see()?, "4.16.4*P");
    assert_eq!(exit_code(&ostree::pin(&agent, &new).unwrap_err()), 78, "it is gone");
    ostree::unpin(&agent, &old)?;
    assert_eq!(see()?, "4.16.4*");
    Ok(())
}

/// The keys of an object, sorted.
fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = object.as_object().into_iter().flat_map(|fields| fields.keys().map(String::as_str)).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn rpm_ostree_is_busy_as_the_real_one_is() -> Result<()> {
    let (_dir, node) = new_node(Kind::OpenShift)?;
    let agent = node.agent();
    let status = || -> Result<Value> { Ok(serde_json::from_str(&checked(node.tool("rpm-ostree").args(["status", "--json"]))?)?) };
    let refused = |args: &[&str], text: &str| -> Result<()> {
        let said = node.tool("rpm-ostree").args(args).output()?;
        assert_eq!((said.status.code(), String::from_utf8_lossy(&said.stderr).as_ref()), (Some(1), text), "{args:?}");
        Ok(())
    };
    let quark = "cleanup: Invoking cleanup: GDBus.Error:org.gtk.GDBus.UnmappedGError.Quark._g_2dio_2derror_2dquark.Code26: ";
    // What 2025.1 printed while machine-config-daemon had a rebase done: the same keys everywhere, and values of the same kind.
    let real: Value = serde_json::from_str(include_str!("fixtures/rpm-ostree/real-transaction-in-progress.json"))?;
    assert_eq!(status()?["transaction"], Value::Null);

    // A registry that is slow, and a client that is killed: the transaction goes on.
    let slow = node.at("/run/slow-registry");
    std::fs::write(&slow, "")?;
    let mut client = node.tool("rpm-ostree").args(["rebase", "os/4.16.4"]).spawn()?;
    wait_for("the rebase to begin", || Ok(status()?["transaction"].is_array()))?;
    client.kill()?;
    client.wait()?;
    let emulated = status()?;
    assert_eq!(keys(&emulated), keys(&real));
    assert_eq!(emulated["transaction"], real["transaction"]);
    let (mine, theirs) = (&emulated["deployments"][0], &real["deployments"][0]);
    assert_eq!(keys(mine), keys(theirs));
    for key in keys(theirs) {
        assert_eq!(std::mem::discriminant(&mine[key]), std::mem::discriminant(&theirs[key]), "{key}: {} and {}", mine[key], theirs[key]);
    }
    let busy = "Transaction in progress: rebase :os/4.16.4 \n You can cancel the current transaction with `rpm-ostree cancel`\n";
    refused(&["rollback"], &format!("error: {busy}"))?;
    refused(&["cleanup", "-p"], &format!("error: {quark}{busy}"))?;
    let error = format!("{:#}", rpm_ostree::rollback(&agent, Duration::ZERO).unwrap_err());
    assert!(error.contains("another transaction (Rebase)") && error.contains("in progress: rebase"), "{error}");
    assert!(format!("{:#}", rpm_ostree::idle(&agent, Duration::ZERO).unwrap_err()).contains("another transaction (Rebase)"));
    // It has the lock: ostree itself waits for it, and then finds another list than it was asked about.
    std::thread::scope(|scope| {
        let ends = scope.spawn(|| {
            let asked = || Ok(node.calls()?.iter().any(|call| call.tool == "ostree" && call.args.contains("pin")));
            wait_for("the pin to be asked for", asked)?;
            std::fs::remove_file(&slow).context("ending the wait")
        });
        let pinned = ostree::pin(&agent, &ostree::deployments(&agent)?[0]);
        assert!(format!("{:#}", pinned.unwrap_err()).contains("Cannot pin staged deployment"));
        ends.join().expect("the registry answers")
    })?;
    rpm_ostree::idle(&agent, PATIENCE)?;
    assert_eq!(shape(&ostree::deployments(&agent)?), "4.16.4sp 4.16.4*");

    // An `ostree admin` that has the lock: nothing names it, and it is waited for as well.
    let lock = std::fs::File::options().create(true).append(true).open(node.place().sysroot().join("ostree/lock"))?;
    rustix::fs::fcntl_lock(&lock, FlockOperation::LockExclusive)?;
    refused(&["rollback"], "error: System transaction in progress\n")?;
    refused(&["cleanup", "-p"], &format!("error: {quark}System transaction in progress\n"))?;
    assert_eq!(status()?["transaction"], Value::Null);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(1));
            drop(lock);
        });
        rpm_ostree::cleanup_pending(&agent, PATIENCE)
    })?;
    assert_eq!(shape(&ostree::deployments(&agent)?), "4.16.4*");
    Ok(())
}

#[test]
fn containers_are_listed_stopped_and_removed() -> Result<()> {
    let (_dir, node) = new_node(Kind::OpenShift)?;
    let agent = node.agent();
    wait_for_all(&node)?;
    let all = crictl::containers(&agent)?;
    let etcd = all.iter().find(|c| c.name == "etcd").context("etcd")?;
    assert_eq!((etcd.namespace.as_str(), etcd.pod.as_str(), etcd.running), ("openshift-etcd", "etcd-sno-node-0", true));
    let images = crictl::images(&agent)?;
    assert!(images.iter().any(|image| image.digests.contains(&etcd.image) && image.tags[0].contains("/etcd:4.16.4")));
    assert!(images.iter().any(|image| image.pinned && !all.iter().any(|c| image.digests.contains(&c.image))), "that of the sandboxes");
    assert!(crictl::log_tail(&agent, &etcd.id, 3).lines().count() <= 3);
    assert!(crictl::log_tail(&agent, &etcd.id, 3).contains('{'), "etcd logs JSON");
    assert_eq!(crictl::log_tail(&agent, "0123456789ab", 3), "");
    let sandboxes = crictl::sandboxes(&agent)?;
    let sandbox = sandboxes.iter().find(|s| s.id == etcd.sandbox).context("etcd's sandbox")?;
    assert_eq!((sandbox.labels["revision"].as_str(), sandbox.ready), ("3", true));
    assert!(crictl::is_host_network(&agent, &sandbox.id)?);
    let operator = sandboxes.iter().find(|s| s.namespace == "openshift-etcd-operator").context("the operator's sandbox")?;
    assert!(!crictl::is_host_network(&agent, &operator.id)?);
    assert!(!crictl::is_host_network(&agent, "0123456789ab")?, "one that is gone");

    // While kubelet runs it starts another in the place of each that ends.
    let deadline = agent.clock().deadline(Duration::from_secs(60));
    crictl::stop(&agent, std::slice::from_ref(&etcd.id), Duration::from_secs(5), &deadline)?;
    wait_for("etcd's next attempt", || {
        Ok(crictl::containers(&agent)?.iter().any(|c| c.name == "etcd" && c.running && c.attempt == 1 && c.id != etcd.id))
    })?;

    systemctl::stop(&agent, "kubelet.service")?;
    let running: Vec<String> = crictl::containers(&agent)?.into_iter().filter(|c| c.running).map(|c| c.id).collect();
    assert!(running.len() > 10, "kubelet leaves its containers running");
    let ids: Vec<String> = running.iter().cloned().chain(["0123456789ab".to_owned()]).collect();
    crictl::stop(&agent, &ids, Duration::from_secs(5), &deadline)?;
    assert!(crictl::containers(&agent)?.iter().all(|c| !c.running && c.state == "CONTAINER_EXITED"));

    // One that cannot be removed is named, and the others go all the same.
    node.fault("crictl", &format!("rmp -f {}", sandbox.id), None, Wrong::Fail("level=fatal msg=\"device busy\"".into(), 1))?;
    let ids: Vec<String> = crictl::sandboxes(&agent)?.into_iter().map(|s| s.id).chain(["0123456789ab".to_owned()]).collect();
    let error = crictl::remove_sandboxes(&agent, &ids, &deadline).unwrap_err().to_string();
    assert!(error.contains(&sandbox.id) && error.contains("device busy") && !error.contains("0123456789ab"), "{error}");
    assert_eq!(crictl::sandboxes(&agent)?.len(), 1);
    node.clear_faults()?;
    // A network plugin that failed once is no complaint: the second removal leaves it out.
    node.fault("crictl", &format!("rmp -f {}", sandbox.id), Some(1), Wrong::Fail("level=fatal msg=\"plugin failed (delete)\"".into(), 1))?;
    crictl::remove_sandboxes(&agent, &ids, &deadline)?;
    assert!(crictl::sandboxes(&agent)?.is_empty() && crictl::containers(&agent)?.is_empty());

    assert!(crictl::answers(&agent));
    systemctl::stop(&agent, "crio.service")?;
    assert!(!crictl::answers(&agent));
    assert!(crictl::containers(&agent).unwrap_err().to_string().contains("connect: no such file or directory"));
    systemctl::start(&agent, "crio.service")?;
    assert_eq!(crictl::images(&agent)?, images, "images stay after an orderly stop");

    // A new kubelet makes everything anew.
    systemctl::start(&agent, "kubelet.service")?;
    node.wait_containers(&CONTROL_PLANE)?;
    assert!(crictl::containers(&agent)?.iter().all(|c| !running.contains(&c.id)));
    Ok(())
}

#[test]
fn a_held_kubelet_does_not_start_and_a_power_cut_costs_the_images() -> Result<()> {
    let (_dir, node) = new_node(Kind::OpenShift)?;
    let agent = node.agent();
    let dir = RecoveryDir::new(&agent, Path::new("/var/recovery"));
    // Where CRI-O has no mark of an orderly stop, as the telco profile has it, a power cut costs nothing.
    let no_mark = node.at("/etc/crio/crio.conf.d/99-crio-disable-wipe.toml");
    std::fs::write(&no_mark, "[crio]\nclean_shutdown_file = \"\"\n")?;
    let images = crictl::images(&agent)?;
    node.power_cut()?;
    node.boot()?;
    assert_eq!(crictl::images(&agent)?, images);
    std::fs::remove_file(&no_mark)?;
    assert!(systemctl::show(&agent, "kubelet.service")?.is_active());
    systemctl::stop(&agent, "kubelet.service")?;
    systemctl::stop(&agent, "no-such.service")?;
    assert!(!systemctl::show(&agent, "no-such.service")?.exists());
    let error = systemctl::start(&agent, "no-such.service").unwrap_err().to_string();
    assert!(format!("{error:#}").contains("starting no-such.service"), "{error}");

    // A hold without the drop-in holds nothing, and nor does a drop-in that systemd has not read.
    hold::place(&agent, &dir, "r1")?;
    systemctl::start(&agent, "kubelet.service")?;
    systemctl::stop(&agent, "kubelet.service")?;
    hold::install(&node.at("/etc"), &dir)?;
    systemctl::start(&agent, "kubelet.service")?;
    systemctl::stop(&agent, "kubelet.service")?;
    systemctl::daemon_reload(&agent)?;
    let error = systemctl::start(&agent, "kubelet.service").unwrap_err().to_string();
    assert!(error.contains("a condition of its unit file is not met"), "{error}");
    assert!(!systemctl::show(&agent, "kubelet.service")?.condition);

    // A boot reads it, and holds.
    node.power_cut()?;
    assert!(!node.at("/etc/machine-id").exists(), "nothing is mounted while it is off");
    assert_eq!(node.place().processes()?, Vec::<i32>::new());
    node.boot()?;
    assert!(!systemctl::show(&agent, "kubelet.service")?.is_active());
    assert!(crictl::images(&agent)?.is_empty(), "CRI-O wipes its store when it was not stopped in order");
    hold::lift(&agent)?;
    systemctl::start(&agent, "kubelet.service")?;
    let started = systemctl::show(&agent, "kubelet.service")?.started.context("kubelet's start")?;
    systemctl::restart(&agent, "kubelet.service")?;
    let now = systemctl::show(&agent, "kubelet.service")?;
    assert!(now.is_active() && now.started > Some(started), "{now:?} after {started:?}");
    assert!(agent.clock().since_monotonic(started) < Duration::from_secs(60));

    // A reboot is proved by the boot id alone.
    let before = agent.clock().boot_id()?;
    let (_, boots) = node.power()?;
    node.fault("systemctl", "reboot", Some(1), Wrong::FailAfter("Call to Reboot failed: Connection reset by peer".into(), 1))?;
    let said = systemctl::reboot(&agent)?.context("it says that it failed")?;
    assert!(said.contains("Connection reset by peer"), "{said}");
    node.wait_boot(boots)?;
    assert_ne!(agent.clock().boot_id()?, before);
    Ok(())
}

#[test]
fn tools_that_hang_fail_and_babble_have_their_exit_codes() -> Result<()> {
    let (_dir, node) = new_node(Kind::OpenShift)?;
    let agent = node.agent();
    for tool in ["crictl", "systemctl", "ostree", "rpm-ostree"] {
        node.fault(tool, "", None, Wrong::Print("Segmentation fault, but politely\n".into()))?;
    }
    assert_eq!(exit_code(&crictl::containers(&agent).unwrap_err()), 1);
    assert_eq!(exit_code(&systemctl::show(&agent, "kubelet.service").unwrap_err()), 1);
    assert_eq!(exit_code(&ostree::deployments(&agent).unwrap_err()), 1);
    assert_eq!(exit_code(&rpm_ostree::deployments(&agent).unwrap_err()), 1);
    node.clear_faults()?;
    // D-Bus needs a moment now and then.
    let activation = "error: Loading sysroot: exit status: 1\nCould not activate remote peer: activation request failed";
    node.fault("rpm-ostree", "status", Some(2), Wrong::Fail(activation.into(), 1))?;
    assert_eq!(rpm_ostree::deployments(&agent)?.len(), 1);
    let asked = node.calls()?.iter().filter(|call| call.tool == "rpm-ostree").count();
    assert_eq!(asked, 4, "once for nothing printed, and three times until it answered");
    // An ostree that has --json is asked for that, and one that has not is not believed for failing.
    let json = include_str!("fixtures/ostree/json-05-booted-plus-pinned-rollback.json");
    node.fault("ostree", "admin status --json", Some(1), Wrong::Print(json.into()))?;
    assert_eq!(shape(&ostree::deployments(&agent)?), "415.92.202402201450-0* 412.86.202301061548-0rP");
    assert_eq!(shape(&ostree::deployments(&agent)?), "4.16.4*");
    // Nor one whose JSON is another version's: the text form says the same.
    for unknown in [r#"{"deployments":{"0":{}}}"#, r#"{"deployments":[{"checksum":"x"}]}"#, "No deployments."] {
        node.fault("ostree", "admin status --json", Some(1), Wrong::Print(unknown.into()))?;
        assert_eq!(shape(&ostree::deployments(&agent)?), "4.16.4*", "{unknown}");
    }
    // One that never ends is ended.
    node.fault("crictl", "version", None, Wrong::Hang)?;
    assert!(!crictl::answers(&agent));
    std::fs::remove_file(node.place().tools().join("crictl"))?;
    assert_eq!(exit_code(&crictl::images(&agent).unwrap_err()), 78);
    Ok(())
}

#[test]
fn a_failed_upgrade_can_be_told_from_the_node_before_it() -> Result<()> {
    let (_dir, node) = new_node(Kind::OpenShift)?;
    wait_for_all(&node)?;
    let before = node.snapshot()?;
    assert_eq!(before.differences(&node.snapshot()?), Vec::<String>::new());
    let old: Vec<String> = crictl::containers(&node.agent())?.into_iter().map(|c| c.id).collect();
    node.reboot()?;
    assert!(crictl::containers(&node.agent())?.iter().all(|c| !old.contains(&c.id)), "CRI-O keeps nothing over a reboot");
    node.wait_api()?;
    wait_for_all(&node)?;
    assert_eq!(before.differences(&node.snapshot()?), Vec::<String>::new(), "a reboot changes nothing");
    ostree::pin(&node.agent(), &ostree::deployments(&node.agent())?.remove(0))?;

    node.ruin()?;
    assert_eq!(shape(&ostree::deployments(&node.agent())?), "4.17.0* 4.16.4rP");
    node.wait_containers(&["etcd"])?;
    // kubelet may have read the manifest just before it was broken.
    let serves = || crictl::containers(&node.agent()).map(|all| all.iter().any(|c| c.running && c.name == "kube-apiserver"));
    wait_for("the API server to be gone", || Ok(!serves()?))?;
    let ruined = before.differences(&node.snapshot()?);
    for part in
        ["/etc/site/odd/acl: was", "/etc/site/odd/immutable: was", "/opt/site/new-in-the-release.conf: is new", "key /kubernetes.io/"]
    {
        assert!(ruined.iter().any(|line| line.contains(part)), "nothing of {part} among\n{}", ruined.join("\n"));
    }
    node.roll_back_platform()?;
    assert_eq!(shape(&ostree::deployments(&node.agent())?), "4.16.4*P 4.17.0r");
    assert!(!node.at("/etc/site/after-the-boot.conf").exists(), "/etc belongs to a deployment");
    let rolled_back = before.differences(&node.snapshot()?);
    assert!(rolled_back.iter().any(|line| line.contains("/etc/site/odd/acl: was")), "the daemon wrote before it rebooted");
    Ok(())
}

#[test]
fn kubelet_asks_for_certificates_and_waits_for_them() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::build(&dir.path().join("node"), &Options { bootstrap: true, ..options(Kind::OpenShift)? })?;
    let begun = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(60);
    let client = recovery::kube::Client::of(&node.agent(), &recovery::node::profile::OPENSHIFT)?;
    // Somebody else asks as well, and is not this agent's to judge.
    let foreign = serde_json::json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": "csr-foreign", "uid": "0", "creationTimestamp": "2099-01-01T00:00:00Z"},
        "spec": {
            "request": data_encoding::BASE64.encode(node.certificate_request("another-node")?.as_bytes()),
            "signerName": "kubernetes.io/kube-apiserver-client-kubelet", "usages": ["digital signature", "client auth"],
            "username": "system:bootstrap:abcdef", "groups": ["system:bootstrappers"],
        },
    });
    node.put_key("/kubernetes.io/certificatesigningrequests/csr-foreign", &foreign.to_string())?;
    wait_for("the node to be not Ready", || Ok(!client.node_ready("sno-node-0", None)?))?;
    let mut approved = Vec::new();
    wait_for("the node to be Ready", || {
        approved.extend(client.approve_requests("sno-node-0", begun)?);
        client.node_ready("sno-node-0", None)
    })?;
    assert_eq!(approved.len(), 2, "one as the bootstrapper, one as the node");
    Ok(())
}

#[test]
fn a_node_of_kubeadms_kind_runs_without_ostree() -> Result<()> {
    let (_dir, node) = new_node(Kind::Kubeadm)?;
    let agent = node.agent();
    assert!(!ostree::is_ostree(&agent));
    node.wait_containers(&CONTROL_PLANE)?;
    let before = node.snapshot()?;
    node.ruin()?;
    assert!(!before.differences(&node.snapshot()?).is_empty());
    let old: Vec<String> = crictl::containers(&agent)?.into_iter().filter(|c| c.running).map(|c| c.id).collect();
    assert!(!old.is_empty());
    node.power_cut()?;
    node.boot()?;
    let kept = crictl::containers(&agent)?;
    assert!(old.iter().any(|id| kept.iter().any(|c| c.id == *id && !c.running)), "containerd keeps what has ended");
    node.wait_containers(&["etcd"])?;
    assert_eq!(crictl::images(&agent)?.len(), 12, "containerd keeps its images");
    Ok(())
}
