//! What a real kube-apiserver writes into a real etcd, and what it makes of an object that was patched there while it did not run.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};
use recovery::etcd::Store;
use recovery::kube::{Client, Place, Refused};
use recovery::modifiers::{Form, Key, Rules};
use recovery::node::Node;
use recovery::node::profile::KUBEADM;
use serde_json::{Value, json};
use testing::etcd::{Etcd, Options as Start, Version};
use testing::pki::{Authority, Pair, kubeconfig};

const LIMIT: Duration = Duration::from_secs(30);
const KCM: &[u8] = b"/registry/k0rdent.mirantis.com/managements/kcm";
const RULES: &str = "version: v1
resourceModifierRules:
- conditions:
    groupResource: managements.k0rdent.mirantis.com
  patches:
  - operation: replace
    path: \"/spec/release\"
    value: \"kcm-0-2-0\"
";

/// A kube-apiserver, which ends with the test.
struct ApiServer(Child);

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// What all starts of the API server have in common.
struct Cluster<'a> {
    dir: &'a Path,
    etcd: &'a Etcd,
    port: u16,
}

impl<'a> Cluster<'a> {
    fn new(dir: &'a Path, etcd: &'a Etcd) -> Result<Self> {
        let authority = Authority::new("kube-ca")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let Pair { cert, key } = authority.issue("kube-apiserver", None, &["localhost", "127.0.0.1", "10.96.0.1"])?;
        for (name, text) in [("ca.crt", authority.pem()), ("server.crt", cert), ("server.key", key)] {
            std::fs::write(dir.join(name), text)?;
        }
        let admin =
            kubeconfig(&format!("https://localhost:{port}"), &authority, &authority.issue("admin", Some("system:masters"), &[])?, "");
        let path = dir.join("root").join(KUBEADM.kubeconfigs[0].trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().context("no parent")?)?;
        std::fs::write(path, &admin)?;
        std::fs::write(dir.join("admin"), admin)?;
        Ok(Self { dir, etcd, port })
    }

    fn client(&self) -> Result<Client> {
        Client::of(&Node::at(&self.dir.join("root"), None), &KUBEADM)
    }

    fn start(&self) -> Result<ApiServer> {
        let log = std::fs::File::create(self.dir.join("api.log"))?;
        let mut command = Command::new(real_node::base::node_tools()?.join("kubernetes/kube-apiserver"));
        let file = |name: &str| self.dir.join(name).display().to_string();
        command.arg(format!("--etcd-servers={}", self.etcd.client_url)).arg(format!("--secure-port={}", self.port));
        command.args(["--bind-address=127.0.0.1", "--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC"]);
        command.args(["--service-account-issuer=https://localhost", "--disable-admission-plugins=ServiceAccount"]);
        for (flag, path) in [
            ("etcd-cafile", self.etcd.endpoint.ca.display().to_string()),
            ("etcd-certfile", self.etcd.endpoint.cert.display().to_string()),
            ("etcd-keyfile", self.etcd.endpoint.key.display().to_string()),
            ("tls-cert-file", file("server.crt")),
            ("tls-private-key-file", file("server.key")),
            ("client-ca-file", file("ca.crt")),
            ("service-account-key-file", file("server.crt")),
            ("service-account-signing-key-file", file("server.key")),
            ("cert-dir", file("certs")),
        ] {
            command.arg(format!("--{flag}={path}"));
        }
        let server =
            ApiServer(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("starting kube-apiserver")?);
        self.until("the API server to be ready", || self.client()?.ready())?;
        Ok(server)
    }

    /// Makes an object, as soon as the server knows its kind.
    fn create(&self, path: &str, object: &Value) -> Result<()> {
        self.until(path, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let text = std::fs::read_to_string(self.dir.join("admin"))?;
                let config = kube::Config::from_custom_kubeconfig(Kubeconfig::from_yaml(&text)?, &KubeConfigOptions::default()).await?;
                let request = http::Request::post(path).header("content-type", "application/json").body(object.to_string().into_bytes())?;
                Ok(kube::Client::try_from(config)?.request::<Value>(request).await.map(drop)?)
            })
        })
    }

    fn until(&self, what: &str, mut done: impl FnMut() -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let Err(error) = done() else { return Ok(()) };
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(self.dir.join("api.log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(20).collect();
                return Err(error.context(format!("waiting for {what}; kube-apiserver says, the last first:\n{}", tail.join("\n"))));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// A kind with a default, and with rules that an object can break.
fn definition() -> Value {
    let spec = json!({"type": "object", "properties": {
        "release": {"type": "string", "maxLength": 20},
        "paused": {"type": "boolean", "default": false},
    }});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "managements.k0rdent.mirantis.com"},
        "spec": {
            "group": "k0rdent.mirantis.com", "scope": "Cluster",
            "names": {"plural": "managements", "singular": "management", "kind": "Management", "listKind": "ManagementList"},
            "versions": [{
                "name": "v1beta1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": {"type": "object"}}}},
            }],
        },
    })
}

#[test]
fn what_a_real_api_server_writes_is_read_patched_and_served() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let etcd = Etcd::start(Version::V36, &dir.path().join("data"), &Start::default())?;
    let cluster = Cluster::new(dir.path(), &etcd)?;
    let server = cluster.start()?;
    cluster.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition())?;
    let object = json!({
        "apiVersion": "k0rdent.mirantis.com/v1beta1", "kind": "Management", "metadata": {"name": "kcm"}, "spec": {"release": "kcm-0-3-0"},
    });
    cluster.create("/apis/k0rdent.mirantis.com/v1beta1/managements", &object)?;
    drop(server);

    // Where objects are, and in what form.
    let rules = Rules::parse(RULES)?;
    let contents = etcd.contents()?;
    let form = |key: &str| contents.get(key.as_bytes()).map(|(value, _)| Form::of(value));
    ensure!(form("/registry/namespaces/default") == Some(Form::Protobuf), "{:?}", form("/registry/namespaces/default"));
    let definition = "/registry/apiextensions.k8s.io/customresourcedefinitions/managements.k0rdent.mirantis.com";
    ensure!(form(definition) == Some(Form::Json), "{:?}", form(definition));
    let all = Rules::parse(&RULES.replace("managements.k0rdent.mirantis.com", "'**'"))?;
    for (key, (value, _)) in contents.iter().filter(|(key, _)| key.starts_with(b"/registry/")) {
        let name = String::from_utf8_lossy(key);
        let Some(read) = Key::parse("/registry", key) else {
            ensure!(["ranges", "masterleases", "peerserverleases"].iter().any(|own| name.contains(own)), "{name} is no object's key");
            continue;
        };
        let (_, target) = read.meant_unread(&all, value).with_context(|| format!("{name} is about nothing"))?;
        let group = target.resource.split_once('.').map_or("", |(_, group)| group);
        ensure!(read.target().is_some() == (Form::of(value) == Form::Json), "{name} is {:?}", Form::of(value));
        let built_in = read.built_in(value);
        ensure!(built_in.is_some() == read.target().is_none(), "{name}: {built_in:?}");
        ensure!(built_in.is_none_or(|(known, version)| known == target && version.ends_with(char::is_numeric)), "{name}");
        ensure!(
            group.is_empty() || name.contains(group) || value.windows(group.len()).any(|part| part == group.as_bytes()),
            "{target}: {name}"
        );
    }

    // Read from a snapshot, patched, put back.
    let snapshot = dir.path().join("snapshot.db.zst");
    recovery::etcd::save(&etcd.endpoint, &snapshot, LIMIT, &|_| ())?;
    let mut found = Vec::new();
    let mut each = |key: &[u8], value: &[u8]| {
        found.push((key.to_vec(), value.to_vec()));
        Ok(())
    };
    let mut wanted = |key: &[u8]| Key::parse("/registry", key).is_some_and(|key| key.may_be_meant(&rules));
    recovery::etcd::Snapshot::open(&snapshot, &|_| ())?.live(&mut wanted, &mut each)?;
    ensure!(found.len() == 1 && found[0].0 == KCM, "{:?}", found.iter().map(|(key, _)| String::from_utf8_lossy(key)).collect::<Vec<_>>());
    let (key, stored) = &found[0];
    ensure!(stored.starts_with(b"{") && stored.ends_with(b"}\n"), "{}", String::from_utf8_lossy(stored));
    let target = Key::parse("/registry", key).and_then(|key| key.target()).context("no object's key")?;
    let mut patched = rules.apply(&target, &serde_json::from_slice(stored)?).object;
    patched["metadata"]["generation"] = 2.into();
    let mut store = Store::open(&etcd.endpoint, LIMIT)?;
    let (there, revision) = store.get(key)?.context("it is gone")?;
    ensure!(there == *stored && store.replace(key, format!("{patched}\n").as_bytes(), revision)?);

    // Served, and judged.
    let _server = cluster.start()?;
    let client = cluster.client()?;
    let place = Place { api_version: "k0rdent.mirantis.com/v1beta1", resource: "managements", namespace: None, name: "kcm" };
    let now = client.object(place)?.context("it is not served")?;
    ensure!(now["spec"] == json!({"release": "kcm-0-2-0", "paused": false}) && now["metadata"]["generation"] == 2, "{now}");
    ensure!(client.invalid(place, &now, &now)?.is_none());
    for (release, says) in [(json!(5), "must be of type string"), (json!("longer than it may be, by far"), "may not be more than 20")] {
        let mut other = now.clone();
        other["spec"]["release"] = release;
        let why = client.invalid(place, &other, &now)?.context("it is invalid, and the server takes it")?;
        ensure!(why.contains(says), "{why}");
    }
    ensure!(client.object(place)?.as_ref() == Some(&now), "a dry run has changed it");
    // One that is in etcd already is judged whole too, although the server lets it be put there again.
    let (there, revision) = store.get(key)?.context("it is gone")?;
    let invalid = String::from_utf8(there)?.replace("kcm-0-2-0", "longer than it may be, by far");
    ensure!(store.replace(key, invalid.as_bytes(), revision)?);
    let there = client.object(place)?.context("it is not served")?;
    let why = client.invalid(place, &there, &now)?.context("it is invalid, and the server takes it")?;
    ensure!(why.contains("may not be more than 20"), "{why}");
    // What was so before the rules is not theirs.
    ensure!(client.invalid(place, &there, &there)?.is_none());

    // A built-in kind is put there in the version in which it was read, and becomes what a dry run says.
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": "b"}});
    cluster.create("/api/v1/namespaces/default/configmaps", &map)?;
    let place = Place { api_version: "v1", resource: "configmaps", namespace: Some("default"), name: "settings" };
    let read = client.object(place)?.context("it is not served")?;
    let mut wanted = read.clone();
    wanted["data"]["a"] = "c".into();
    let of_the_patch = |mut object: Value| {
        let metadata = object["metadata"].as_object_mut().context("no metadata")?;
        metadata.retain(|field, _| field != "resourceVersion" && field != "managedFields");
        Ok::<_, anyhow::Error>(object.to_string())
    };
    let becomes = client.replace(place, &wanted, true)?;
    ensure!(client.object(place)?.as_ref() == Some(&read), "a dry run has changed it");
    let now = client.replace(place, &wanted, false)?;
    ensure!(now["data"]["a"] == "c" && of_the_patch(becomes)? == of_the_patch(now.clone())?, "{now}");
    ensure!(of_the_patch(client.object(place)?.context("it is gone")?)? == of_the_patch(now)?);
    let again = client.replace(place, &wanted, false).err().context("it was put in a version that is gone")?;
    ensure!(again.downcast_ref::<Refused>().is_some_and(|refused| refused.code == 409), "{again:#}");
    ensure!(client.object(Place { api_version: "k0rdent.mirantis.com/v1alpha1", ..place })?.is_none());
    Ok(())
}
