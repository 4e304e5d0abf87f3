//! What kubelet has to do with the API: whether it is ready, its certificate requests, the Ready condition of its node. And the objects
//! that a new cluster starts with.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::runtime::Runtime;
use testing::api::seed;
use testing::api::{ApiConfig, Store, store::Etcd};
use testing::csr;
use testing::place::{Config, Place};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const PAUSE: Duration = Duration::from_millis(200);
/// The address that the seed gives the node.
const ADDRESS: &str = "192.0.2.10";

/// kube-apiserver, with its own command line.
pub(crate) fn serve(place: &Place, args: &[String]) -> Result<()> {
    testing::api::serve(ApiConfig::from_args(&place.root(), args)?)
}

/// The port of the API server that runs, if one does.
fn api_port(place: &Place) -> Result<Option<u16>> {
    let runtime = Runtime::load(place)?;
    let server = runtime.containers.iter().find(|c| c.name == "kube-apiserver" && c.runs());
    Ok(server.and_then(|c| c.command.iter().find_map(|word| word.strip_prefix("--secure-port=")?.parse().ok())))
}

/// True once the API server of this node is ready, its etcd included.
pub(crate) fn is_ready(place: &Place) -> Result<bool> {
    if api_port(place)?.is_none() {
        return Ok(false);
    }
    Ok(runtime()?
        .block_on(async {
            let client = client(&place.dir().join("pki/admin.kubeconfig")).await?;
            let ready = client.request_text(http::Request::get("/readyz").body(Vec::new())?);
            anyhow::Ok(tokio::time::timeout(Duration::from_secs(1), ready).await.is_ok_and(|said| said.is_ok()))
        })
        .unwrap_or(false))
}

/// Brings the node to Ready: at once, or with the certificate requests of a kubelet that has lost its certificates.
pub(crate) fn join(place: &Place, config: &Config) -> Result<()> {
    runtime()?.block_on(async {
        let admin = client(&place.dir().join("pki/admin.kubeconfig")).await?;
        if config.bootstrap {
            set_ready(&admin, &config.node, false).await?;
            let subject = format!("system:node:{}", config.node);
            let bootstrapper = client(&place.at("/etc/kubernetes/kubeconfig")).await?;
            let asked = csr::request(&subject, Some("system:nodes"), &[])?;
            certificate(&bootstrapper, "kubernetes.io/kube-apiserver-client-kubelet", "client auth", &asked).await?;
            let node = client(&place.at("/var/lib/kubelet/kubeconfig")).await?;
            let asked = csr::request(&subject, Some("system:nodes"), &[&config.node, ADDRESS])?;
            certificate(&node, "kubernetes.io/kubelet-serving", "server auth", &asked).await?;
        }
        set_ready(&admin, &config.node, true).await
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

async fn client(kubeconfig: &std::path::Path) -> Result<kube::Client> {
    let text = std::fs::read_to_string(kubeconfig).with_context(|| format!("reading {}", kubeconfig.display()))?;
    let config = kube::Config::from_custom_kubeconfig(Kubeconfig::from_yaml(&text)?, &KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
}

/// Makes a certificate request and waits until somebody approves it.
async fn certificate(client: &kube::Client, signer: &str, usage: &str, asked: &str) -> Result<()> {
    let request = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"generateName": "csr-"},
        "spec": {
            "request": data_encoding::BASE64.encode(asked.as_bytes()), "signerName": signer,
            "usages": ["digital signature", "key encipherment", usage],
        },
    });
    let made: Value = client.request(http::Request::post(REQUESTS).body(serde_json::to_vec(&request)?)?).await?;
    let name = made["metadata"]["name"].as_str().context("a request without a name")?;
    loop {
        tokio::time::sleep(PAUSE).await;
        let now: Value = client.request(http::Request::get(format!("{REQUESTS}/{name}")).body(Vec::new())?).await?;
        let has = |kind: &str| now["status"]["conditions"].as_array().into_iter().flatten().any(|condition| condition["type"] == kind);
        if has("Denied") {
            bail!("the certificate request {name} was denied");
        }
        if has("Approved") {
            return Ok(());
        }
    }
}

/// Reports the node's Ready condition, as a kubelet does that has just started.
async fn set_ready(client: &kube::Client, node: &str, ready: bool) -> Result<()> {
    let path = format!("/api/v1/nodes/{node}");
    let mut object: Value = client.request(http::Request::get(&path).body(Vec::new())?).await?;
    let status = if ready { "True" } else { "False" };
    let conditions = object["status"]["conditions"].as_array_mut().context("the node has no conditions")?;
    let condition = conditions.iter_mut().find(|condition| condition["type"] == "Ready").context("the node has no condition Ready")?;
    condition["status"] = json!(status);
    condition["lastHeartbeatTime"] = json!(jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    condition["reason"] = json!(if ready { "KubeletReady" } else { "KubeletNotReady" });
    let put = http::Request::put(format!("{path}/status")).header("content-type", "application/json").body(serde_json::to_vec(&object)?)?;
    client.request::<Value>(put).await.map(drop).context("writing the node's status")
}

/// What `machine seed` takes.
#[derive(Deserialize)]
struct Wanted {
    node: String,
    revisions: [i64; 4],
    config_maps: usize,
    version: String,
}

/// Writes the objects that a new cluster starts with, straight into etcd.
pub(crate) fn fill(place: &Place, wanted: &str) -> Result<()> {
    let Wanted { node, revisions, config_maps, version } = serde_json::from_str(wanted).context("reading what to seed")?;
    let config = place.config()?;
    let mut objects = seed::objects(&seed::Seed { node, revisions, config_maps, version })?;
    if !config.ostree {
        // An upstream cluster knows none of OpenShift's resources.
        objects.retain(|object| !object["apiVersion"].as_str().unwrap_or_default().contains("openshift.io"));
    }
    let pki = |name: &str| place.dir().join("pki").join(name);
    let server = Runtime::load(place)?.containers.into_iter().find(|c| c.name == "kube-apiserver" && c.runs());
    let words = server.context("no API server runs")?.command;
    let flag = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)).map(str::to_owned).context(name.to_owned());
    let store = Store::etcd(Etcd {
        url: flag("--etcd-servers=")?.replace("//localhost:", "//127.0.0.1:"),
        ca: pki("etcd-ca.crt"),
        cert: pki("etcd-client.crt"),
        key: pki("etcd-client.key"),
        prefix: flag("--etcd-prefix=")?,
    });
    runtime()?.block_on(seed::fill(&store, &objects))
}
