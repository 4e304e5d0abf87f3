//! What is in the cluster: the seed of the emulated API server, and direct work on etcd.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, Identity, SortOrder, SortTarget, TlsOptions};
use serde_json::json;

use super::{Node, checked, pods, wait_for};
use crate::csr;

/// Keys read at a time: a page stays below etcd's limit of a message.
const PAGE: i64 = 1000;

impl Node {
    /// Fills the new cluster.
    pub(super) fn seed(&self) -> Result<()> {
        self.wait_api()?;
        let seed = json!({
            "node": super::layout::NODE_NAME,
            "revisions": pods::BEFORE.revisions,
            "config_maps": self.options.settings,
            "version": pods::BEFORE.tag,
        });
        checked(Command::new(self.place.tools().join("machine")).arg("seed").arg(seed.to_string())).map(drop)
    }

    /// Runs `work` with a client of the node's etcd.
    pub fn with_etcd<T>(&self, work: impl AsyncFnOnce(&mut Client) -> Result<T>) -> Result<T> {
        let pki = |name: &str| std::fs::read(self.place.dir().join("pki").join(name)).with_context(|| format!("reading {name}"));
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(pki("etcd-ca.crt")?))
            .identity(Identity::from_pem(pki("etcd-client.crt")?, pki("etcd-client.key")?))
            .domain_name("localhost");
        let options =
            ConnectOptions::new().with_tls(tls).with_connect_timeout(Duration::from_secs(5)).with_timeout(Duration::from_secs(30));
        self.runtime.block_on(async {
            let mut client = Client::connect([format!("https://127.0.0.1:{}", self.ports.etcd)], Some(options)).await?;
            work(&mut client).await
        })
    }

    /// Puts one key, as somebody else might.
    pub fn put_key(&self, key: &str, value: &str) -> Result<()> {
        self.with_etcd(async |client| client.put(key, value, None).await.map(drop).context("writing a key"))
    }

    /// Waits until etcd serves.
    pub fn wait_etcd(&self) -> Result<()> {
        wait_for("etcd to serve", || {
            Ok(self.with_etcd(async |client| client.get("ready?", None).await.map(drop).map_err(anyhow::Error::from)).is_ok())
        })
    }

    /// A certificate request (PEM) of somebody who calls himself that node's kubelet.
    pub fn certificate_request(&self, node: &str) -> Result<String> {
        csr::request(&format!("system:node:{node}"), Some("system:nodes"), &[])
    }

    /// Every key with its value, in order, once etcd serves them all: kubelet may be about to start it anew.
    pub fn keys(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut keys = Err(anyhow::anyhow!("not read yet"));
        let served = wait_for("etcd to serve its keys", || {
            keys = self.read_keys();
            Ok(keys.is_ok())
        });
        let keys = keys?;
        served.map(|()| keys)
    }

    fn read_keys(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.with_etcd(async |client| {
            let (mut all, mut from) = (Vec::new(), vec![0_u8]);
            loop {
                let options = GetOptions::new().with_from_key().with_limit(PAGE).with_sort(SortTarget::Key, SortOrder::Ascend);
                let page = client.get(from, Some(options)).await.context("reading the keys")?;
                all.extend(page.kvs().iter().map(|kv| (kv.key().to_vec(), kv.value().to_vec())));
                if !page.more() {
                    return Ok(all);
                }
                from = [all.last().map(|(key, _)| key.as_slice()).unwrap_or_default(), &[0]].concat();
            }
        })
    }
}
