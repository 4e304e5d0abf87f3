//! What the controllers do with the hub's own API, each with its own kind of object.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Api, DeleteParams, ListParams, ObjectList, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::machine::Over;
use super::run::Hub;
use super::{FIELD_MANAGER, about, chain, last};

/// The most bytes of an event's note: more the API server does not take.
const MOST_NOTE: usize = 1024;
/// How many objects are asked for at a time.
const PAGE: u32 = 500;

/// A kind of objects of the hub's own.
pub trait Own:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Own for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

/// Why a look at an object came to nothing; it is looked at again.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The hub's own API.
    #[error("asking the hub's API: {}", chain(.0))]
    Hub(#[from] Box<kube::Error>),
    /// A state that cannot be.
    #[error(transparent)]
    Over(#[from] Over),
}

impl From<kube::Error> for Failed {
    fn from(error: kube::Error) -> Self {
        Self::Hub(Box::new(error))
    }
}

/// The objects of a kind: of a namespace, or all.
#[must_use]
pub fn scoped<K: Own>(client: &Client, namespace: Option<&str>) -> Api<K> {
    namespace.map_or_else(|| Api::all(client.clone()), |namespace| Api::namespaced(client.clone(), namespace))
}

/// The objects of the kind of `object`, in its namespace.
pub(super) fn api<K: Own>(hub: &Hub, object: &K) -> Api<K> {
    scoped(&hub.client, object.namespace().as_deref())
}

/// All of a list, some at a time. `ask` asks for the part that its parameters say.
///
/// # Errors
/// As `ask`.
pub async fn list<T: Clone, Asked>(labels: &str, ask: impl Fn(ListParams) -> Asked) -> kube::Result<Vec<T>>
where
    Asked: Future<Output = kube::Result<ObjectList<T>>>,
{
    let mut page = ListParams::default().limit(PAGE).labels(labels);
    let mut all = Vec::new();
    loop {
        let list = ask(page.clone()).await?;
        all.extend(list.items);
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// Makes an object; `None` when there is one of its name.
pub(super) async fn create<K: Own>(hub: &Hub, object: &K) -> kube::Result<Option<K>> {
    let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    match api(hub, object).create(&parameters, object).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        made => made.map(Some),
    }
}

/// Writes the status that was decided by this very version of the object.
pub(super) async fn write_status<K: Own>(hub: &Hub, object: &K, status: &impl Serialize) -> Result<(), Failed> {
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": object.name_any(), "resourceVersion": object.resource_version()},
        "status": status,
    });
    api(hub, object).patch_status(&object.name_any(), &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(patch)).await?;
    Ok(())
}

/// Sets what an object that is deleted waits for, as decided by this very version of it. One that is gone waits for nothing.
pub(super) async fn set_finalizers<K: Own>(hub: &Hub, object: &K, finalizers: impl IntoIterator<Item = String>) -> Result<(), Failed> {
    let finalizers: Vec<String> = finalizers.into_iter().collect();
    change(hub, object, json!({"metadata": {"finalizers": finalizers, "resourceVersion": object.resource_version()}})).await
}

/// Changes an object, unless it is gone.
pub(super) async fn change<K: Own>(hub: &Hub, object: &K, change: Value) -> Result<(), Failed> {
    unless_gone(api(hub, object).patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(change)).await)
}

/// Deletes an object, unless it is gone.
pub(super) async fn delete<K: Own>(api: &Api<K>, name: &str) -> Result<(), Failed> {
    unless_gone(api.delete(name, &DeleteParams::background()).await)
}

fn unless_gone<T>(answer: kube::Result<T>) -> Result<(), Failed> {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        answer => Ok(answer.map(drop)?),
    }
}

/// Publishes an event; one that is lost is no failure.
pub(super) async fn publish(hub: &Hub, about: &ObjectReference, kind: EventType, reason: &str, note: &str) {
    let note = if note.len() > MOST_NOTE { last(note, MOST_NOTE) } else { note.to_owned() };
    let event = Event { type_: kind, reason: reason.to_owned(), note: Some(note), action: "Backup".to_owned(), secondary: None };
    if let Err(error) = hub.recorder.publish(&event, about).await {
        tracing::debug!("an event is lost: {}", chain(&error));
    }
}

/// Somebody else has changed the object since it was read.
fn is_conflict(error: &Failed) -> bool {
    answered(error) == Some(409)
}

/// Somebody else has changed the object since it was read, or deleted it.
pub(super) fn is_everyday(error: &Failed) -> bool {
    matches!(answered(error), Some(404 | 409))
}

fn answered(error: &Failed) -> Option<u16> {
    let Failed::Hub(error) = error else { return None };
    if let kube::Error::Api(status) = &**error { Some(status.code) } else { None }
}

/// The pause after a failure.
pub(super) fn again(error: &Failed) -> Action {
    // Somebody else has written meanwhile: that arrives by itself, in a moment.
    Action::requeue(if is_conflict(error) { Duration::from_millis(500) } else { about(Duration::from_secs(5)) })
}
