//! The client of the node's API server against an emulated one: it goes away and comes back, refuses, hangs, and answers late.

use std::cell::RefCell;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use recovery::error::exit_code;
use recovery::kube::{Client, Refused};
use recovery::node::Node;
use recovery::node::clock::Deadline;
use recovery::node::profile::{KUBEADM, OPENSHIFT, Profile};
use serde_json::{Value, json};
use testing::api::{self, seed};
use testing::etcd::{Etcd, Options as Start, Version};
use testing::{csr, pki};

const NODE: &str = "sno-node-0";
/// The name that the certificate of the emulated server is for, and no other: not `localhost`, and no address.
const SERVER_NAME: &str = "localhost-recovery";

/// A node with an emulated API server, which serves until the test's process ends.
struct Cluster {
    dir: tempfile::TempDir,
    store: Arc<api::Store>,
    authority: pki::Authority,
    port: u16,
    profile: &'static Profile,
}

impl Cluster {
    fn new() -> Result<Self> {
        Self::listening("127.0.0.1:0", &OPENSHIFT, SERVER_NAME)
    }

    fn listening(address: &str, profile: &'static Profile, server_name: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let authority = pki::Authority::new("kube-ca")?;
        let serving = authority.issue("kube-apiserver", None, &[server_name])?;
        let file = |name: &str| dir.path().join(name);
        std::fs::write(file("ca.crt"), authority.pem())?;
        std::fs::write(file("server.crt"), serving.cert)?;
        std::fs::write(file("server.key"), serving.key)?;
        let store = Arc::new(api::Store::memory());
        let listener = TcpListener::bind(address)?;
        let port = listener.local_addr()?.port();
        let operators = api::operators::Operators { root: None, pace: Some(file("pace.json")) };
        let config = api::ApiConfig {
            listener: Some(listener),
            serving: vec![(file("server.crt"), file("server.key"))],
            client_ca: file("ca.crt"),
            store: Arc::clone(&store),
            operators: (*profile == OPENSHIFT).then_some(operators),
            faults: Some(file("faults.json")),
            log: Some(file("requests.log")),
        };
        std::thread::spawn(move || api::serve(config).expect("serving"));
        let cluster = Self { dir, store, authority, port, profile };
        let admin = cluster.authority.issue("system:admin", Some("system:masters"), &[])?;
        let text = pki::kubeconfig(&cluster.url(), &cluster.authority, &admin, "    tls-server-name: localhost-recovery\n");
        cluster.put(profile.kubeconfigs[0], &text)?;
        if *profile == OPENSHIFT {
            cluster.add(&seed::objects(&seed::Seed::default())?)?;
        }
        Ok(cluster)
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    fn node(&self) -> Node {
        Node::at(&self.dir.path().join("root"), None)
    }

    /// A client that does not wait as long as a real one.
    fn client(&self) -> Result<Client> {
        Ok(Client::of(&self.node(), self.profile)?.with_limit(Duration::from_secs(2)).with_hold(Duration::from_millis(800)))
    }

    /// A file of the node.
    fn put(&self, path: &str, text: &str) -> Result<()> {
        let path = self.dir.path().join("root").join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().context("no parent")?)?;
        Ok(std::fs::write(path, text)?)
    }

    fn add(&self, objects: &[Value]) -> Result<()> {
        block_on(seed::fill(&self.store, objects))
    }

    fn stored(&self, key: &str) -> Result<Option<Value>> {
        Ok(block_on(self.store.get(key))?.map(|item| item.value))
    }

    fn steer(&self, file: &str, what: &Value) -> Result<()> {
        steer(self.dir.path(), file, what)
    }

    /// Gives the server this fault. It looks now and then whether it should listen at all, which is waited for.
    fn fault(&self, what: &Value) -> Result<()> {
        self.steer("faults.json", what)?;
        let (listens, end) = (what["fault"] != "refuse", Instant::now() + seconds(20));
        while TcpStream::connect(("127.0.0.1", self.port)).is_ok() != listens {
            ensure!(Instant::now() < end, "the server does not come to {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Takes the faults away after a while.
    fn heal_after(&self, time: Duration) -> std::thread::JoinHandle<Result<()>> {
        let dir = self.dir.path().to_owned();
        std::thread::spawn(move || {
            std::thread::sleep(time);
            steer(&dir, "faults.json", &json!({}))
        })
    }

    fn requests(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(self.dir.path().join("requests.log"))?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

fn steer(dir: &Path, file: &str, what: &Value) -> Result<()> {
    let staged = dir.join(format!("{file}.new"));
    std::fs::write(&staged, what.to_string())?;
    Ok(std::fs::rename(staged, dir.join(file))?)
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn etcds() -> &'static recovery::node::profile::Redeployed {
    &OPENSHIFT.redeployed[0]
}

#[test]
fn facts_are_read() -> Result<()> {
    let cluster = Cluster::new()?;
    let client = cluster.client()?;
    client.ready()?;
    let release = client.cluster()?;
    assert_eq!((release.id.as_str(), release.version.as_str()), ("f6f009e8-52a4-44f0-9da3-8f1555e3132b", "4.16.4"));
    assert!(!release.progressing);
    let operators = client.operators()?;
    assert_eq!(operators.len(), 5);
    assert!(
        operators.iter().all(|o| o.available && !o.progressing && !o.degraded && o.version.as_deref() == Some("4.16.4")),
        "{operators:?}"
    );
    assert!(client.node_ready(NODE, None)?);
    assert!(!client.node_ready("another", None)?);
    assert!(client.node_ready(NODE, Some("2024-01-01T00:00:00Z".parse()?))?);
    assert!(!client.node_ready(NODE, Some(jiff::Timestamp::now()))?, "nobody has reported it since then");
    assert!(client.rolling_out(OPENSHIFT.redeployed)?.is_empty());
    assert!(client.obstacles().is_empty(), "{:?}", client.obstacles());
    Ok(())
}

#[test]
fn an_upgrade_that_failed_is_seen() -> Result<()> {
    let cluster = Cluster::new()?;
    let mut version = cluster.stored("config.openshift.io/clusterversions/version")?.context("no release")?;
    let partial = json!({"state": "Partial", "version": "4.17.1", "image": "registry.example/release@sha256:11", "completionTime": null});
    version["status"]["history"].as_array_mut().context("no history")?.insert(0, partial);
    version["status"]["conditions"] = json!([{"type": "Progressing", "status": "True", "message": "Working towards 4.17.1"}]);
    let mut operator = cluster.stored("config.openshift.io/clusteroperators/machine-config")?.context("no operator")?;
    operator["status"]["conditions"] = json!([{"type": "Degraded", "status": "True", "message": "Unable to apply 4.17.1: error"}]);
    cluster.add(&[version, operator])?;
    let client = cluster.client()?;
    let release = client.cluster()?;
    assert!(release.progressing);
    assert_eq!(release.version, "4.16.4", "the newest completed one");
    let degraded: Vec<String> = client.operators()?.into_iter().filter(|o| o.degraded).map(|o| o.name).collect();
    assert_eq!(degraded, ["machine-config"]);
    assert_eq!(client.obstacles(), ["the operator machine-config is degraded: Unable to apply 4.17.1: error"]);
    Ok(())
}

#[test]
fn an_upstream_cluster_has_no_operators() -> Result<()> {
    let cluster = Cluster::listening("127.0.0.1:0", &KUBEADM, SERVER_NAME)?;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system", "uid": "0f0e-1"}});
    cluster.add(&[namespace])?;
    let client = cluster.client()?;
    let release = client.cluster()?;
    assert_eq!((release.id.as_str(), release.version.as_str()), ("0f0e-1", "v1.29.6+aba1e8d"));
    assert!(client.operators()?.is_empty());
    assert!(client.obstacles().is_empty());
    Ok(())
}

#[test]
fn the_servers_name_is_for_tls_only() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.client()?.ready()?;
    assert_eq!(cluster.requests()?[0]["sni"], SERVER_NAME);
    // A name that no resolver knows is this machine too.
    let admin = cluster.authority.issue("system:admin", Some("system:masters"), &[])?;
    let kubeconfig =
        |server: &str, more: &str| pki::kubeconfig(&format!("https://{server}:{}", cluster.port), &cluster.authority, &admin, more);
    cluster.put(OPENSHIFT.kubeconfigs[0], &kubeconfig("api-int.sno.example.invalid", "    tls-server-name: localhost-recovery\n"))?;
    cluster.client()?.cluster()?;
    // Without that entry the certificate does not fit, and nothing is asked of the server.
    cluster.put(OPENSHIFT.kubeconfigs[0], &kubeconfig("localhost", ""))?;
    let asked = cluster.requests()?.len();
    let error = cluster.client()?.ready().unwrap_err();
    assert_eq!(exit_code(&error), 69);
    assert!(format!("{error:#}").contains("certificate"), "{error:#}");
    assert_eq!(cluster.requests()?.len(), asked);
    Ok(())
}

#[test]
fn a_server_that_listens_by_ipv6_only_is_found() -> Result<()> {
    let cluster = Cluster::listening("[::1]:0", &OPENSHIFT, SERVER_NAME)?;
    cluster.client()?.ready()
}

/// For [`asks_for_another_test`]: the node's root.
const TRACED: &str = "KUBE_TEST_ROOT";

/// No test, and never run among them: the next one starts it, to trace it.
#[test]
#[ignore = "no test: another starts it in a process of its own, to trace it"]
fn asks_for_another_test() -> Result<()> {
    let root = std::env::var(TRACED).context("another test starts this, with its node")?;
    let client = Client::of(&Node::at(Path::new(&root), None), &OPENSHIFT)?.with_limit(seconds(5));
    client.cluster().map(drop)
}

#[test]
fn nothing_is_looked_up_and_no_proxy_is_asked() -> Result<()> {
    let cluster = Cluster::new()?;
    let admin = cluster.authority.issue("system:admin", Some("system:masters"), &[])?;
    let proxy = "    tls-server-name: localhost-recovery\n    proxy-url: http://127.0.0.1:9\n";
    cluster.put(OPENSHIFT.kubeconfigs[0], &pki::kubeconfig(&cluster.url(), &cluster.authority, &admin, proxy))?;
    let trace = cluster.dir.path().join("trace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-e", "trace=openat,open,connect", "-o"]).arg(&trace).arg(std::env::current_exe()?);
    strace.args(["--ignored", "--exact", "asks_for_another_test"]);
    strace.env(TRACED, cluster.dir.path().join("root")).env_remove("HOME");
    for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        strace.env(name, "http://127.0.0.1:9");
    }
    let output = strace.output().context("running strace, which this test needs")?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let trace = std::fs::read_to_string(trace)?;
    // What comes before is the test harness looking for its terminal.
    let (_, trace) = trace.split_once("localhost-recovery.kubeconfig").context("the kubeconfig was not opened")?;
    for file in ["nsswitch.conf", "/etc/hosts", "resolv.conf", "libnss", "/etc/passwd", "nscd"] {
        assert!(!trace.contains(file), "{file} was opened:\n{trace}");
    }
    let connected: Vec<&str> = trace.lines().filter(|line| line.contains("connect(")).collect();
    assert!(!connected.is_empty() && connected.iter().all(|line| line.contains(&format!("htons({})", cluster.port))), "{connected:?}");
    Ok(())
}

#[test]
fn files_that_a_kubeconfig_names_are_the_nodes() -> Result<()> {
    let cluster = Cluster::new()?;
    let admin = cluster.authority.issue("system:admin", Some("system:masters"), &[])?;
    let directory = Path::new(OPENSHIFT.kubeconfigs[0]).parent().and_then(Path::to_str).context("no directory")?;
    cluster.put("/etc/kubernetes/ca.crt", &cluster.authority.pem())?;
    cluster.put(&format!("{directory}/admin.crt"), &admin.cert)?;
    cluster.put(&format!("{directory}/keys/admin.key"), &admin.key)?;
    let text = format!(
        "clusters: [{{name: c, cluster: {{server: '{}', certificate-authority: /etc/kubernetes/ca.crt, tls-server-name: {SERVER_NAME}}}}}]\n\
         users: [{{name: u, user: {{client-certificate: admin.crt, client-key: keys/admin.key}}}}]\n\
         contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n",
        cluster.url()
    );
    cluster.put(OPENSHIFT.kubeconfigs[0], &text)?;
    cluster.client()?.cluster()?;
    std::fs::remove_file(cluster.dir.path().join("root/etc/kubernetes/ca.crt"))?;
    let error = format!("{:#}", cluster.client().unwrap_err());
    assert!(error.contains("localhost-recovery.kubeconfig") && error.contains("/etc/kubernetes/ca.crt"), "{error}");
    Ok(())
}

#[test]
fn a_node_without_a_usable_kubeconfig_does_not_fit() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.put(OPENSHIFT.kubeconfigs[0], "clusters: [{name: c, cluster: {server: 'https://localhost:1'}}]\nusers: [{name: u, user: {}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n")?;
    assert_eq!(exit_code(&cluster.client().unwrap_err()), 78);
    assert_eq!(exit_code(&Client::of(&Node::at(Path::new("/nowhere"), None), &OPENSHIFT).unwrap_err()), 78);
    Ok(())
}

#[test]
fn who_has_no_rights_is_told_so() -> Result<()> {
    let cluster = Cluster::new()?;
    let refused = |user: &pki::Pair| -> Result<Refused> {
        cluster.put(
            OPENSHIFT.kubeconfigs[0],
            &pki::kubeconfig(&cluster.url(), &cluster.authority, user, "    tls-server-name: localhost-recovery\n"),
        )?;
        cluster.client()?.operators().unwrap_err().downcast::<Refused>()
    };
    assert_eq!(refused(&cluster.authority.issue("somebody", None, &[])?)?.code, 403);
    let foreign = refused(&pki::Authority::new("another")?.issue("system:admin", Some("system:masters"), &[])?)?;
    assert_eq!(foreign.code, 401);
    assert!(foreign.message.contains("localhost-recovery.kubeconfig"), "{foreign}");
    Ok(())
}

fn wait_ready(client: &Client, deadline: Deadline) -> Result<()> {
    client.patiently("the API server to be ready", deadline, || client.ready().map(Some))
}

#[test]
fn a_wait_survives_the_server_going_away() -> Result<()> {
    let cluster = Cluster::new()?;
    let client = cluster.client()?.with_limit(seconds(1));
    let deadline = || cluster.node().clock().deadline(seconds(60));
    for fault in [json!({"fault": "refuse"}), json!({"fault": "unavailable"}), json!({"fault": "not_ready"}), json!({"fault": "hang"})] {
        cluster.fault(&fault)?;
        assert!(client.ready().is_err(), "{fault}");
        let (start, time) = (Instant::now(), Duration::from_millis(1500));
        let healed = cluster.heal_after(time);
        wait_ready(&client, deadline())?;
        assert!(start.elapsed() > time, "{fault}");
        healed.join().expect("the thread that heals")?;
    }
    Ok(())
}

#[test]
fn a_server_that_is_busy_for_a_moment_is_asked_again() -> Result<()> {
    let cluster = Cluster::new()?;
    let client = cluster.client()?;
    cluster.fault(&json!({"fault": "busy"}))?;
    let healed = cluster.heal_after(Duration::from_millis(1500));
    client.ready()?;
    assert!(!client.operators()?.is_empty());
    healed.join().expect("the thread that heals")
}

#[test]
fn a_wait_ends_at_its_deadline_with_the_cause() -> Result<()> {
    let cluster = Cluster::new()?;
    let client = cluster.client()?.with_limit(seconds(1));
    for (fault, cause) in [
        (json!({"fault": "refuse"}), "Connection refused"),
        (json!({"fault": "unavailable"}), "503"),
        (json!({"fault": "not_ready"}), "poststarthook/rbac/bootstrap-roles failed"),
        (json!({"fault": "hang"}), "took more than 1 s"),
    ] {
        cluster.fault(&fault)?;
        let error = wait_ready(&client, cluster.node().clock().deadline(seconds(4))).unwrap_err();
        assert_eq!(exit_code(&error), 69);
        let text = format!("{error:#}");
        assert!(text.contains("waited 4 s for the API server to be ready") && text.contains(cause), "{text}");
        assert_eq!(client.obstacles().len(), 1, "a server that is not there is asked once");
    }
    Ok(())
}

#[test]
fn a_redeployment_is_waited_for_by_its_revision() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.steer("pace.json", &json!({"react_ms": 300, "stale_ms": 3500, "install_ms": 1500}))?;
    let client = cluster.client()?;
    let revision = client.force_redeployment(etcds(), "run 1")?;
    assert_eq!(revision, 4);
    let notes = RefCell::new(Vec::new());
    // In the middle the API server goes away: it may be the one that is redeployed.
    cluster.fault(&json!({"fault": "refuse"}))?;
    let healed = cluster.heal_after(seconds(2));
    client
        .wait_revision(etcds(), revision, cluster.node().clock().deadline(seconds(30)), &|note| notes.borrow_mut().push(note.to_owned()))?;
    healed.join().expect("the thread that heals")?;
    let object = cluster.stored("operator.openshift.io/etcds/cluster")?.context("no operator")?;
    assert_eq!(object["status"]["nodeStatuses"], json!([{"nodeName": NODE, "currentRevision": 4}]));
    let notes = notes.into_inner();
    assert!(notes.first().is_some_and(|note| note.contains("Connection refused")), "{notes:?}");
    assert!(notes.iter().any(|note| note.contains("the latest available one is 4")), "{notes:?}");
    assert!(notes.last().is_some_and(|note| note.contains("reached revision 4")), "{notes:?}");
    Ok(())
}

#[test]
fn a_reason_is_set_once_and_its_revision_remembered() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.steer("pace.json", &json!({"react_ms": 0, "stale_ms": 0, "install_ms": 0, "skip": 1}))?;
    let client = cluster.client()?;
    let deadline = cluster.node().clock().deadline(seconds(30));
    assert_eq!(client.force_redeployment(etcds(), "run 1")?, 4);
    // A crash here: asked again before the operator has acted, or after.
    assert_eq!(client.force_redeployment(etcds(), "run 1")?, 4);
    client.wait_revision(etcds(), 4, deadline, &|_| {})?;
    let object = || cluster.stored("operator.openshift.io/etcds/cluster").transpose().context("no operator")?;
    // A revision was skipped.
    assert_eq!(object()?["status"]["latestAvailableRevision"], 5);
    assert_eq!(client.force_redeployment(etcds(), "run 1")?, 4);
    let generation = object()?["metadata"]["generation"].clone();
    client.wait_revision(etcds(), 4, deadline, &|_| {})?;
    assert_eq!(object()?["metadata"]["generation"], generation, "nothing was set again");
    assert_eq!(client.force_redeployment(etcds(), "run 2")?, 6);
    client.wait_revision(etcds(), 6, deadline, &|_| {})?;
    Ok(())
}

#[test]
fn a_revision_that_comes_while_the_reason_is_written_is_seen() -> Result<()> {
    let cluster = Cluster::new()?;
    // The operator's own controllers write all the time; each write makes the one of the client a conflict.
    let store = Arc::clone(&cluster.store);
    let busy = std::thread::spawn(move || -> Result<()> {
        let key = "operator.openshift.io/etcds/cluster";
        let end = Instant::now() + Duration::from_millis(700);
        let mut number = 0;
        while Instant::now() < end {
            number += 1;
            block_on(async {
                let mut item = store.get(key).await?.context("no operator")?;
                item.value["status"]["readyReplicas"] = json!(number);
                store.put(key, &item.value, item.revision).await
            })?;
        }
        Ok(())
    });
    assert_eq!(cluster.client()?.force_redeployment(etcds(), "run 1")?, 4);
    busy.join().expect("the thread that writes")
}

#[test]
fn a_rollout_in_progress_is_seen_before_its_condition_says_so() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.steer("pace.json", &json!({"react_ms": 0, "stale_ms": 60000}))?;
    let client = cluster.client()?;
    client.force_redeployment(etcds(), "run 1")?;
    let deadline = cluster.node().clock().deadline(seconds(10));
    client.patiently("the new revision", deadline, || Ok((!client.rolling_out(OPENSHIFT.redeployed)?.is_empty()).then_some(())))?;
    assert_eq!(client.rolling_out(OPENSHIFT.redeployed)?, ["etcds"]);
    assert!(!client.operators()?.iter().any(|o| o.progressing));
    Ok(())
}

fn webhook() -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "policy"},
        "webhooks": [{
            "name": "check.policy.example", "clientConfig": {"service": {"namespace": "policy", "name": "policy-webhook", "path": "/check"}},
            "rules": [{"operations": ["*"], "apiGroups": ["operator.openshift.io"], "apiVersions": ["*"], "resources": ["*"]}],
        }],
    })
}

#[test]
fn a_stuck_operator_ends_the_wait_with_everything_that_is_in_the_way() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.steer("pace.json", &json!({"react_ms": 0, "stale_ms": 0, "stuck": ["etcds"]}))?;
    let client = cluster.client()?;
    let revision = client.force_redeployment(etcds(), "run 1")?;
    let mut degraded = cluster.stored("config.openshift.io/clusteroperators/etcd")?.context("no operator")?;
    degraded["status"]["conditions"] =
        json!([{"type": "Degraded", "status": "True", "message": "InstallerPodDegraded: no space left\nmore"}]);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "installer-4", "namespace": "openshift-etcd"},
        "status": {"phase": "Pending", "containerStatuses": [{"name": "installer", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]},
    });
    cluster.add(&[webhook(), degraded, pod, request("csr-x", "system:node:other", &[], "s", "", "")])?;
    let error = client.wait_revision(etcds(), revision, cluster.node().clock().deadline(seconds(3)), &|_| {}).unwrap_err();
    assert_eq!(exit_code(&error), 69);
    let text = format!("{error:#}");
    for part in [
        "waited 3 s for etcds to be at revision 4",
        "node sno-node-0 is at revision 3, on the way to 4",
        "the certificate request csr-x of system:node:other is pending (kubectl certificate approve csr-x)",
        "the webhook check.policy.example fails closed and its service policy/policy-webhook has no endpoint \
         (kubectl delete validatingwebhookconfigurations policy)",
        "the operator etcd is degraded: InstallerPodDegraded: no space left",
        "the pod openshift-etcd/installer-4 waits: container installer: ImagePullBackOff",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    Ok(())
}

#[test]
fn a_webhook_that_fails_closed_is_named_by_the_refusal() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.add(&[webhook()])?;
    let client = cluster.client()?;
    let error = client.force_redeployment(etcds(), "run 1").unwrap_err();
    let refused = error.downcast_ref::<Refused>().context("not refused")?;
    assert_eq!(refused.code, 500);
    assert!(refused.message.contains("failed calling webhook \"check.policy.example\""), "{refused}");
    // Somebody answers for it again.
    let subsets = json!([{"addresses": [{"ip": "10.128.0.9"}]}]);
    let endpoints =
        json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "policy-webhook", "namespace": "policy"}, "subsets": subsets});
    cluster.add(&[endpoints])?;
    assert!(client.obstacles().is_empty(), "{:?}", client.obstacles());
    assert_eq!(client.force_redeployment(etcds(), "run 1")?, 4);
    Ok(())
}

const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING: &str = "kubernetes.io/kubelet-serving";
const BOOTSTRAPPER: &str = "system:serviceaccount:openshift-machine-config-operator:node-bootstrapper";
const FRESH: &str = "2026-01-02T00:00:05Z";

/// A certificate request as the API server keeps it; `pem` is what is asked for.
fn request(name: &str, user: &str, groups: &[&str], signer: &str, made: &str, pem: &str) -> Value {
    let usage = if signer == SERVING { "server auth" } else { "client auth" };
    json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name, "creationTimestamp": if made.is_empty() { FRESH } else { made }},
        "spec": {
            "username": user, "groups": groups, "signerName": signer, "usages": ["digital signature", usage],
            "request": data_encoding::BASE64.encode(pem.as_bytes()),
        },
        "status": {},
    })
}

#[test]
fn only_the_nodes_own_fresh_requests_are_approved() -> Result<()> {
    let cluster = Cluster::new()?;
    let me = "system:node:sno-node-0";
    let nodes = ["system:nodes", "system:authenticated"];
    let names = [NODE, "192.0.2.10"];
    let pem = |cn: &str, o: &str, names: &[&str]| csr::request(cn, Some(o), names);
    let (mine, serving) = (pem(me, "system:nodes", &[])?, pem(me, "system:nodes", &names)?);
    let other = "system:node:sno-node-1";
    let mut decided = request("decided", me, &nodes, CLIENT, "", &mine);
    decided["status"] = json!({"conditions": [{"type": "Denied", "status": "True"}]});
    let mut usages = request("usages", me, &nodes, SERVING, "", &serving);
    usages["spec"]["usages"] = json!(["server auth", "client auth"]);
    cluster.add(&[
        // To be approved.
        request("right-bootstrap", BOOTSTRAPPER, &["system:authenticated"], CLIENT, "", &mine),
        request("right-renewal", me, &nodes, CLIENT, "", &mine),
        request("right-serving", me, &nodes, SERVING, "", &serving),
        request("right-token", "system:bootstrap:abcdef", &["system:bootstrappers"], CLIENT, "", &mine),
        // Not to be approved.
        request("older", me, &nodes, CLIENT, "2026-01-01T23:59:59Z", &mine),
        request("other-node", other, &nodes, CLIENT, "", &pem(other, "system:nodes", &[])?),
        request("bootstrap-of-other", BOOTSTRAPPER, &[], CLIENT, "", &pem(other, "system:nodes", &[])?),
        request("other-for-me", other, &nodes, SERVING, "", &serving),
        request("signer", me, &nodes, "kubernetes.io/kube-apiserver-client", "", &mine),
        request("legacy-signer", me, &nodes, "kubernetes.io/legacy-unknown", "", &mine),
        request("foreign-name", me, &nodes, SERVING, "", &pem(me, "system:nodes", &[NODE, "kubernetes.default"])?),
        request("foreign-address", me, &nodes, SERVING, "", &pem(me, "system:nodes", &[NODE, "192.0.2.11"])?),
        request("no-name", me, &nodes, SERVING, "", &mine),
        request("name-in-client", me, &nodes, CLIENT, "", &serving),
        request("masters", me, &nodes, CLIENT, "", &pem(me, "system:masters", &[])?),
        request("no-organisation", me, &nodes, CLIENT, "", &csr::request(me, None, &[])?),
        request("admin", BOOTSTRAPPER, &[], CLIENT, "", &pem("system:admin", "system:nodes", &[])?),
        request("bootstrapper-serves", BOOTSTRAPPER, &[], SERVING, "", &serving),
        request("not-in-group", me, &["system:authenticated"], CLIENT, "", &mine),
        request("other-account", "system:serviceaccount:default:node-bootstrapper", &[], CLIENT, "", &mine),
        request("garbage", me, &nodes, CLIENT, "", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"),
        decided,
        usages,
    ])?;
    let client = cluster.client()?;
    let since = "2026-01-02T00:00:00.7Z".parse()?;
    let approved = client.approve_requests(NODE, since)?;
    assert_eq!(approved, ["right-bootstrap", "right-renewal", "right-serving", "right-token"]);
    let one = cluster.stored("certificatesigningrequests/right-serving")?.context("no request")?;
    assert_eq!(one["status"]["conditions"][0]["type"], "Approved");
    assert_eq!(one["status"]["conditions"][0]["status"], "True");
    assert_eq!(cluster.stored("certificatesigningrequests/decided")?.context("no request")?["status"]["conditions"][0]["type"], "Denied");
    assert!(client.approve_requests(NODE, since)?.is_empty(), "what is approved is not approved again");
    Ok(())
}

#[test]
fn a_request_that_kubelet_really_makes_is_approved() -> Result<()> {
    // The whole way: made through the API by the node itself, which the server writes into it.
    let cluster = Cluster::new()?;
    let kubelet = cluster.authority.issue("system:node:sno-node-0", Some("system:nodes"), &[])?;
    std::fs::write(cluster.dir.path().join("kubelet.crt"), &kubelet.cert)?;
    std::fs::write(cluster.dir.path().join("kubelet.key"), &kubelet.key)?;
    let pem = csr::request("system:node:sno-node-0", Some("system:nodes"), &[NODE, "192.0.2.10"])?;
    let mut body = request("", "liar", &[], SERVING, "", &pem);
    body["metadata"] = json!({"generateName": "csr-"});
    let since = recovery::node::clock::Clock::now(cluster.node().clock());
    let output = Command::new("curl")
        .args(["-sS", "--fail-with-body", "--cacert", "ca.crt", "--cert", "kubelet.crt", "--key", "kubelet.key"])
        .args(["--noproxy", "*", "--resolve", &format!("{SERVER_NAME}:{}:127.0.0.1", cluster.port), "--json", &body.to_string()])
        .arg(format!("https://{SERVER_NAME}:{}/apis/certificates.k8s.io/v1/certificatesigningrequests", cluster.port))
        .current_dir(cluster.dir.path())
        .output()
        .context("running curl, which this test needs")?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(cluster.client()?.approve_requests(NODE, since)?.len(), 1);
    Ok(())
}

#[test]
fn requests_are_approved_while_another_thread_waits() -> Result<()> {
    let cluster = Cluster::new()?;
    cluster.steer("pace.json", &json!({"react_ms": 0, "stale_ms": 4000}))?;
    let client = cluster.client()?;
    let deadline = cluster.node().clock().deadline(seconds(60));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let revision = client.force_redeployment(etcds(), "run 1")?;
            client.wait_revision(etcds(), revision, deadline, &|_| {})
        });
        let me = "system:node:sno-node-0";
        cluster.add(&[request("mine", me, &["system:nodes"], CLIENT, "", &csr::request(me, Some("system:nodes"), &[])?)])?;
        assert_eq!(client.approve_requests(NODE, "2026-01-02T00:00:00Z".parse()?)?, ["mine"]);
        assert!(!waiting.is_finished(), "it was approved while the other waited");
        waiting.join().expect("the thread that waits")
    })
}

#[test]
fn pods_are_deleted_by_their_label() -> Result<()> {
    let cluster = Cluster::new()?;
    let client = cluster.client()?;
    let pod = |app: &str| format!("pods/openshift-ovn-kubernetes/{app}-x7k2p");
    assert_eq!(client.delete_pods("openshift-ovn-kubernetes", &["ovnkube-node"])?, 1);
    assert!(cluster.stored(&pod("ovnkube-node"))?.is_none());
    assert_eq!(client.delete_pods("openshift-ovn-kubernetes", &["ovnkube-node", "ovnkube-control-plane"])?, 1);
    assert!(cluster.stored(&pod("ovnkube-control-plane"))?.is_none());
    assert!(cluster.stored("pods/openshift-etcd/etcd-sno-node-0")?.is_some());
    assert_eq!(client.delete_pods("nowhere", &["x"])?, 0);
    Ok(())
}

#[test]
fn the_emulated_server_is_the_nodes_own_with_its_objects_in_etcd() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let root = dir.path();
    let authority = pki::Authority::new("ca")?;
    let pair = authority.issue("system:admin", Some("system:masters"), &["localhost", "localhost-recovery", "127.0.0.1"])?;
    for (name, text) in [("ca.crt", &authority.pem()), ("server.crt", &pair.cert), ("server.key", &pair.key)] {
        std::fs::write(root.join(name), text)?;
    }
    let running = Etcd::start(Version::V34, &root.join("data"), &Start::default())?;
    for name in ["ca.pem", "client.pem", "client.key"] {
        std::fs::copy(running.certs.dir().join(name), root.join(format!("etcd-{name}")))?;
    }
    let manifest = PathBuf::from("etc/kubernetes/manifests/etcd-pod.yaml");
    for (path, text) in [
        (manifest.as_path(), include_str!("fixtures/static-pods/etcd-pod-rev3.yaml")),
        (Path::new("etc/kubernetes/static-pod-resources/etcd-pod-3/etcd-pod.yaml"), ""),
        (Path::new("etc/kubernetes/static-pod-resources/etcd-pod-3/configmaps/config/x"), "kept"),
        (Path::new("var/lib/emulated/api-operators.json"), r#"{"react_ms": 0, "stale_ms": 100, "install_ms": 100}"#),
    ] {
        std::fs::create_dir_all(root.join(path).parent().context("no parent")?)?;
        std::fs::write(root.join(path), text)?;
    }
    let args: Vec<String> = [
        "--tls-cert-file=/server.crt".to_owned(),
        "--tls-private-key-file=/server.key".to_owned(),
        "--client-ca-file=/ca.crt".to_owned(),
        "--etcd-cafile=/etcd-ca.pem".to_owned(),
        "--etcd-certfile=/etcd-client.pem".to_owned(),
        "--etcd-keyfile=/etcd-client.key".to_owned(),
        "--etcd-prefix=kubernetes.io".to_owned(),
        format!("--etcd-servers={}", running.client_url),
        "--secure-port=0".to_owned(),
    ]
    .into();
    let config = api::ApiConfig::from_args(root, &args)?;
    let port = config.listener.as_ref().context("it listens nowhere")?.local_addr()?.port();
    let objects = seed::objects(&seed::Seed { config_maps: 300, ..seed::Seed::default() })?;
    block_on(seed::fill(&api::ApiConfig::from_args(root, &args)?.store, &objects))?;
    std::thread::spawn(move || api::serve(config).expect("serving"));
    let kubeconfig = root.join(OPENSHIFT.kubeconfigs[0].trim_start_matches('/'));
    std::fs::create_dir_all(kubeconfig.parent().context("no parent")?)?;
    std::fs::write(kubeconfig, pki::kubeconfig(&format!("https://localhost:{port}"), &authority, &pair, ""))?;
    let node = Node::at(root, None);
    let client = Client::of(&node, &OPENSHIFT)?.with_hold(Duration::from_millis(500));
    wait_ready(&client, node.clock().deadline(seconds(20)))?;
    let pod = || recovery::node::static_pod::revision_in_use(&node, &OPENSHIFT, OPENSHIFT.etcd());
    assert_eq!(pod()?, Some(3));
    let revision = client.force_redeployment(etcds(), "run 1")?;
    client.wait_revision(etcds(), revision, node.clock().deadline(seconds(20)), &|_| {})?;
    // The operator has put a new revision on the node's disk.
    assert_eq!(pod()?, Some(4));
    let kept = root.join("etc/kubernetes/static-pod-resources/etcd-pod-4/configmaps/config/x");
    assert_eq!(std::fs::read_to_string(kept)?, "kept");
    // Without etcd it says that it is not ready, as the real one does.
    drop(running);
    let error = client.ready().unwrap_err();
    assert!(format!("{error:#}").contains("etcd failed"), "{error:#}");
    Ok(())
}
