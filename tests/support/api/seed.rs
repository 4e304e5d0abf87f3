//! Fills an empty store with a plausible single-node cluster.

use anyhow::{Context, Result};
use serde_json::Value;

use super::Store;
use super::resources::{RESOURCES, Resource};

pub use super::objects::{Seed, objects};

/// Writes them, replacing what is there.
///
/// # Errors
/// When the store cannot be written.
pub async fn fill(store: &Store, objects: &[Value]) -> Result<()> {
    for object in objects {
        let resource = resource_of(object).with_context(|| format!("no resource for {} {}", object["apiVersion"], object["kind"]))?;
        let name = object["metadata"]["name"].as_str().context("an object without a name")?;
        let key = resource.key(object["metadata"]["namespace"].as_str(), name);
        let mut object = object.clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.shift_remove("resourceVersion");
        }
        let there = store.get(&key).await?.map_or(0, |item| item.revision);
        store.put(&key, &object, there).await?.with_context(|| format!("{key} changed meanwhile"))?;
    }
    Ok(())
}

fn resource_of(object: &Value) -> Option<&'static Resource> {
    let (version, kind) = (object["apiVersion"].as_str()?, object["kind"].as_str()?);
    RESOURCES.iter().find(|r| r.kind == kind && r.api_version() == version)
}
