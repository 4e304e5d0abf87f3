//! Where the objects are: in memory, or in a real etcd as JSON under the keys that a real API server uses.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, GetOptions, Identity, TlsOptions, Txn, TxnOp, TxnOpResponse,
};
use serde_json::Value;

/// How an etcd is reached, and the prefix of the keys in it.
#[derive(Debug, Clone)]
pub struct Etcd {
    /// `https://127.0.0.1:2379`.
    pub url: String,
    /// Its CA, PEM.
    pub ca: PathBuf,
    /// Client certificate, PEM.
    pub cert: PathBuf,
    /// Client key, PEM.
    pub key: PathBuf,
    /// `kubernetes.io` on OpenShift, `registry` upstream.
    pub prefix: String,
}

/// An object, with the revision of its last change.
#[derive(Debug, Clone)]
pub struct Item {
    /// The object, without `metadata.resourceVersion`.
    pub value: Value,
    /// etcd's mod revision.
    pub revision: i64,
}

/// The objects.
pub enum Store {
    /// In memory, for tests of the client alone.
    Memory(Mutex<Memory>),
    /// In etcd.
    Etcd(Box<Etcd>, Mutex<Option<Box<Client>>>),
}

/// See [`Store::memory`].
#[derive(Debug, Default)]
pub struct Memory {
    revision: i64,
    items: BTreeMap<String, Item>,
}

impl Store {
    /// An empty one in memory.
    pub fn memory() -> Self {
        Self::Memory(Mutex::default())
    }

    /// The one in an etcd; it is connected to when it is first used.
    pub fn etcd(etcd: Etcd) -> Self {
        Self::Etcd(Box::new(etcd), Mutex::default())
    }

    /// The object at `key` (a path without the prefix, as `configmaps/default/x`).
    pub async fn get(&self, key: &str) -> Result<Option<Item>> {
        match self {
            Self::Memory(memory) => Ok(lock(memory).items.get(key).cloned()),
            Self::Etcd(etcd, slot) => {
                let mut client = connect(etcd, slot).await?;
                let found = client.get(etcd.full(key), None).await.context("reading from etcd")?;
                found.kvs().first().map(|kv| item(kv.value(), kv.mod_revision())).transpose()
            }
        }
    }

    /// All objects below a key, in order of their keys, and the revision of the whole.
    pub async fn list(&self, below: &str) -> Result<(Vec<Item>, i64)> {
        match self {
            Self::Memory(memory) => {
                let memory = lock(memory);
                let items = memory.items.iter().filter(|(key, _)| key.starts_with(below)).map(|(_, item)| item.clone()).collect();
                Ok((items, memory.revision))
            }
            Self::Etcd(etcd, slot) => {
                let mut client = connect(etcd, slot).await?;
                let found = client.get(etcd.full(below), Some(GetOptions::new().with_prefix())).await.context("reading from etcd")?;
                let items = found.kvs().iter().map(|kv| item(kv.value(), kv.mod_revision())).collect::<Result<_>>()?;
                Ok((items, found.header().map_or(0, etcd_client::ResponseHeader::revision)))
            }
        }
    }

    /// Writes an object if the last change of its key is of revision `expected` (0: there is none). Its new revision, or `None` when
    /// somebody else was faster.
    pub async fn put(&self, key: &str, value: &Value, expected: i64) -> Result<Option<i64>> {
        match self {
            Self::Memory(memory) => {
                let mut memory = lock(memory);
                if memory.items.get(key).map_or(0, |item| item.revision) != expected {
                    return Ok(None);
                }
                memory.revision += 1;
                let revision = memory.revision;
                memory.items.insert(key.to_owned(), Item { value: value.clone(), revision });
                Ok(Some(revision))
            }
            Self::Etcd(etcd, slot) => {
                let key = etcd.full(key);
                let write = TxnOp::put(key.clone(), serde_json::to_vec(value)?, None);
                transact(etcd, slot, &key, expected, write).await
            }
        }
    }

    /// Deletes an object if the last change of its key is of revision `expected`; false when somebody else was faster.
    pub async fn delete(&self, key: &str, expected: i64) -> Result<bool> {
        match self {
            Self::Memory(memory) => {
                let mut memory = lock(memory);
                let same = memory.items.get(key).is_some_and(|item| item.revision == expected);
                if same {
                    memory.revision += 1;
                    memory.items.remove(key);
                }
                Ok(same)
            }
            Self::Etcd(etcd, slot) => {
                let key = etcd.full(key);
                let delete = TxnOp::delete(key.clone(), Some(DeleteOptions::new()));
                Ok(transact(etcd, slot, &key, expected, delete).await?.is_some())
            }
        }
    }
}

impl Etcd {
    fn full(&self, key: &str) -> String {
        format!("/{}/{key}", self.prefix.trim_matches('/'))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn item(json: &[u8], revision: i64) -> Result<Item> {
    Ok(Item { value: serde_json::from_slice(json).context("reading an object in etcd")?, revision })
}

async fn transact(etcd: &Etcd, slot: &Mutex<Option<Box<Client>>>, key: &str, expected: i64, op: TxnOp) -> Result<Option<i64>> {
    let mut client = connect(etcd, slot).await?;
    let txn = Txn::new().when([Compare::mod_revision(key, CompareOp::Equal, expected)]).and_then([op]);
    let done = client.txn(txn).await.context("writing to etcd")?;
    let written = done.op_responses().into_iter().any(|r| matches!(r, TxnOpResponse::Put(_) | TxnOpResponse::Delete(_)));
    Ok((done.succeeded() && written).then(|| done.header().map_or(0, etcd_client::ResponseHeader::revision)))
}

async fn connect(etcd: &Etcd, slot: &Mutex<Option<Box<Client>>>) -> Result<Client> {
    if let Some(client) = lock(slot).clone() {
        return Ok(*client);
    }
    let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(read(&etcd.ca)?))
        .identity(Identity::from_pem(read(&etcd.cert)?, read(&etcd.key)?))
        .domain_name("localhost");
    let limits = ConnectOptions::new().with_tls(tls).with_connect_timeout(Duration::from_secs(2)).with_timeout(Duration::from_secs(5));
    let client = Client::connect([&etcd.url], Some(limits)).await.context("connecting to etcd")?;
    *lock(slot) = Some(Box::new(client.clone()));
    Ok(client)
}
