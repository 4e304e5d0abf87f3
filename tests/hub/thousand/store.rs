//! The objects of a cluster, their versions, and what has changed.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::{Weather, World};
use crate::kubelet::time;

/// How many changes are kept for those who begin to watch late: who is later has to list again.
const KEPT: usize = 1000;

/// Where an object is: resource, namespace (none: empty), name.
pub(super) type Key = (String, String, String);

/// A change, as a watch tells it.
pub(super) struct Change {
    pub(super) version: u64,
    /// `ADDED`, `MODIFIED`, `DELETED`.
    pub(super) what: &'static str,
    pub(super) key: Key,
    pub(super) object: Value,
}

/// A cluster.
pub(super) struct Spoke {
    objects: BTreeMap<Key, Value>,
    pub(super) version: u64,
    pub(super) changes: VecDeque<Change>,
    pub(super) weather: Weather,
    pub(super) requests: BTreeMap<String, u64>,
    /// How many Jobs, and pods, there have been.
    pub(super) jobs: usize,
    pub(super) pods: usize,
    /// What pods have printed.
    pub(super) logs: BTreeMap<Key, String>,
    sender: watch::Sender<()>,
}

impl Spoke {
    /// With what a new cluster has in it.
    pub(super) fn new() -> Self {
        let mut spoke = Self {
            objects: BTreeMap::new(),
            version: 1,
            changes: VecDeque::new(),
            weather: Weather::Fair,
            requests: BTreeMap::new(),
            jobs: 0,
            pods: 0,
            logs: BTreeMap::new(),
            sender: watch::Sender::new(()),
        };
        for name in ["default", "kube-system"] {
            spoke.put_namespace(name, json!({"apiVersion": "v1", "kind": "Namespace"}));
        }
        spoke
    }

    /// A new namespace, with the account that each has.
    pub(super) fn put_namespace(&mut self, name: &str, mut object: Value) -> Value {
        object["status"] = json!({"phase": "Active"});
        let object = self.put(("namespaces".to_owned(), String::new(), name.to_owned()), object);
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount"});
        self.put(("serviceaccounts".to_owned(), name.to_owned(), "default".to_owned()), account);
        object
    }

    pub(super) fn set(&mut self, weather: Weather) {
        self.weather = weather;
        self.sender.send_replace(());
    }

    /// Says when something has changed, the weather included.
    pub(super) fn watch(&self) -> watch::Receiver<()> {
        self.sender.subscribe()
    }

    pub(super) fn count(&mut self, what: &str) {
        *self.requests.entry(what.to_owned()).or_default() += 1;
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Value> {
        self.objects.get(key)
    }

    /// All of a resource, in one namespace or all.
    pub(super) fn of(&self, resource: &str, namespace: Option<&str>) -> impl Iterator<Item = &Value> {
        let from = (resource.to_owned(), namespace.unwrap_or_default().to_owned(), String::new());
        self.objects
            .range(from..)
            .take_while(move |((of, within, _), _)| of == resource && namespace.is_none_or(|one| one == within))
            .map(|(_, object)| object)
    }

    /// Stores an object with what the server writes into its metadata; returns it as stored. One that is the same is not changed.
    pub(super) fn put(&mut self, key: Key, mut object: Value) -> Value {
        let before = self.objects.get(&key);
        let metadata = metadata(&mut object);
        metadata.insert("name".to_owned(), key.2.clone().into());
        if !key.1.is_empty() {
            metadata.insert("namespace".to_owned(), key.1.clone().into());
        }
        let what = if let Some(before) = before {
            for field in ["uid", "creationTimestamp", "generation", "resourceVersion"] {
                if !before["metadata"][field].is_null() {
                    metadata.insert(field.to_owned(), before["metadata"][field].clone());
                }
            }
            if object == *before {
                return object;
            }
            if object["spec"] != before["spec"] {
                object["metadata"]["generation"] = (before["metadata"]["generation"].as_u64().unwrap_or(0) + 1).into();
            }
            "MODIFIED"
        } else {
            metadata.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
            metadata.insert("creationTimestamp".to_owned(), time(Timestamp::now()).into());
            metadata.insert("generation".to_owned(), 1.into());
            "ADDED"
        };
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(key.clone(), object.clone());
        self.changed(what, key, object.clone());
        object
    }

    /// What an object is when nothing holds it any more: it is removed next, and that alone is told.
    pub(super) fn last(&mut self, key: &Key, object: &Value) {
        self.objects.insert(key.clone(), object.clone());
    }

    fn remove(&mut self, key: &Key) -> Option<Value> {
        let mut object = self.objects.remove(key)?;
        self.logs.remove(key);
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.changed("DELETED", key.clone(), object.clone());
        Some(object)
    }

    fn changed(&mut self, what: &'static str, key: Key, object: Value) {
        if self.changes.len() == KEPT {
            self.changes.pop_front();
        }
        self.changes.push_back(Change { version: self.version, what, key, object });
        self.sender.send_replace(());
    }
}

impl World {
    /// Removes an object, and what it owns if that is asked for; Jobs that are removed are at work no more.
    pub(super) fn remove(&mut self, cluster: &str, key: &Key, with_dependents: bool) {
        let Some(spoke) = self.spokes.get_mut(cluster) else { return };
        let Some(object) = spoke.remove(key) else { return };
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        self.at_work.remove(uid);
        if !with_dependents {
            return;
        }
        let owned = |object: &Value| {
            let owners = object["metadata"]["ownerReferences"].as_array();
            owners.is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == uid))
        };
        let dependents: Vec<Key> = spoke.objects.iter().filter(|(_, object)| owned(object)).map(|(key, _)| key.clone()).collect();
        for dependent in dependents {
            self.remove(cluster, &dependent, true);
        }
    }

    /// Removes a namespace with all that is in it.
    pub(super) fn remove_namespace(&mut self, cluster: &str, name: &str) {
        let Some(spoke) = self.spokes.get(cluster) else { return };
        let within: Vec<Key> = spoke.objects.keys().filter(|(_, namespace, _)| namespace == name).cloned().collect();
        for key in within {
            self.remove(cluster, &key, false);
        }
        self.remove(cluster, &("namespaces".to_owned(), String::new(), name.to_owned()), false);
    }
}

/// The metadata of an object, made if there are none.
pub(super) fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["metadata"].as_object_mut().expect("it is an object")
}
