//! Patching objects by the rules of a resource modifier, in phase `resume`: in etcd while nobody but the agent can reach it, and then looked at through
//! the API server before anybody else does. Objects that etcd does not have as JSON are patched there (`served`).
//!
//! What an object gets is a function of the backup and the rules alone ([`Objects::run`]). So each object is either as the backup has it, or as the
//! rules make it, and after a crash that is all that has to be known: each is patched once.

mod served;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::modifier::{self, Object, Objects};
use super::run::Doing;
use super::waits;
use crate::error::{AndNext, FailureKind, Next, damaged, kind, run};
use crate::etcd::{Endpoint, Store};
use crate::kube::{Client, Place};
use crate::modifiers::{Difference, Rules, differences};

pub(super) use served::patch_served;

/// How long etcd may take for one answer.
const ONE_ANSWER: std::time::Duration = std::time::Duration::from_secs(10);

/// What is about to be put into etcd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Intent {
    /// Objects that get another value.
    objects: u64,
    /// SHA-256 over key, old and new value of each, whatever the order in which the snapshot is read.
    sha256: String,
}

fn rules(here: &Doing<'_, '_>) -> Result<Rules> {
    modifier::rules(here.rules().context("the journal has no rules of a resource modifier")?)
}

/// Puts every object that the rules change into etcd, as the rules make it.
pub(super) fn patch_objects(here: &mut Doing<'_, '_>) -> Result<()> {
    let (rules, objects) = (rules(here)?, here.objects()?);
    let intent = intent(&objects, &rules)?;
    match here.noted::<Intent>()? {
        Some(noted) if noted != intent => {
            return Err(damaged(
                "the rules, applied to the backup again, make something else of it than before: another agent has begun to patch",
            )
            .and_next(Next::Restart { backup: None }));
        }
        Some(_) => {}
        None => here.note(&intent)?,
    }
    let mut store = Store::open(&Endpoint::of(here.run.session.node, here.run.profile)?, ONE_ANSWER)?;
    let (mut patched, mut already) = (0_u64, 0_u64);
    objects.run(&rules, &mut |object| {
        match put(&mut store, &object)? {
            Put::Now => patched += 1,
            Put::Before => already += 1,
            Put::Nothing => {}
        }
        Ok(())
    })?;
    here.figure("patched", patched);
    if already > 0 {
        here.figure("patched_before", already);
    }
    Ok(())
}

fn intent(objects: &Objects, rules: &Rules) -> Result<Intent> {
    let mut changed = Vec::new();
    objects.run(rules, &mut |object| {
        if object.changed {
            changed.push([&object.key, &object.value, &object.wanted()?].map(Sha256::digest));
        }
        Ok(())
    })?;
    Ok(Intent { objects: changed.len() as u64, sha256: whatever_the_order(changed) })
}

fn whatever_the_order<T: AsRef<[u8]> + Ord>(mut all: Vec<[T; 3]>) -> String {
    all.sort_unstable();
    let mut hash = Sha256::new();
    all.iter().flatten().for_each(|part| hash.update(part));
    data_encoding::HEXLOWER.encode(&hash.finalize())
}

/// A failure that the same rules on the same backup would meet again: etcd is restored once more, perhaps with other rules.
fn again(message: String) -> anyhow::Error {
    anyhow!(message).and_next(run("recovery restart", "restores etcd again; with `--resource-modifier FILE`, by other rules"))
}

enum Put {
    Now,
    Before,
    Nothing,
}

/// Puts one object in its place, if it is still as the backup has it.
fn put(store: &mut Store, object: &Object) -> Result<Put> {
    if !object.changed {
        return Ok(Put::Nothing);
    }
    let wanted = object.wanted()?;
    let target = &object.target;
    let Some((there, revision)) = store.get(&object.key)? else {
        return Err(again(format!("{target} is not in etcd, which was restored from the backup that has it: somebody has removed it")));
    };
    if there == wanted {
        return Ok(Put::Before);
    }
    if there == object.value && store.replace(&object.key, &wanted, revision)? {
        return Ok(Put::Now);
    }
    let (there, old, new) = (modifier::digest(&there), modifier::digest(&object.value), modifier::digest(&wanted));
    Err(again(format!(
        "{target} is in etcd neither as the backup has it nor as the rules make it (SHA-256 {there}, not {old} or {new}): something else has written to \
         etcd since it was restored"
    )))
}

/// Reads every patched object back through the API server, and asks whether it would take it.
pub(super) fn patched_objects(here: &mut Doing<'_, '_>) -> Result<()> {
    let (rules, objects) = (rules(here)?, here.objects()?);
    waits::api(here).map(drop)?;
    let client = Client::of(here.run.session.node, here.run.profile)?;
    let (mut read, mut unread, mut warnings) = (0_u64, 0_u64, Vec::new());
    let wait = here.run.wait;
    here.waiting("reading the patched objects back", |here, task| {
        let deadline = here.run.session.node.clock().deadline(wait);
        objects.run(&rules, &mut |object| {
            task.alive();
            if !object.changed {
                return Ok(());
            }
            if deadline.passed() {
                unread += 1;
                return Ok(());
            }
            read += 1;
            let warning = look(&client, &object)?;
            warnings.extend(warning.filter(|_| warnings.len() < MOST_WARNINGS));
            Ok(())
        })
    })?;
    // They are in etcd as they are to be. A recovery that stopped for that would be no further the next time.
    if unread > 0 {
        warnings.push(format!("{unread} of the patched objects were not read back in {} s, after {read} others", wait.as_secs()));
    }
    warnings.into_iter().for_each(|warning| here.warn(warning));
    here.figure("read_back", read);
    Ok(())
}

/// How many of the objects that could not be looked at are named.
const MOST_WARNINGS: usize = 10;

/// Looks at one object through the API server; what people should know of it.
fn look(client: &Client, object: &Object) -> Result<Option<String>> {
    let target = &object.target;
    let wanted = &object.applied.object;
    let original: Value = serde_json::from_slice(&object.value).context("reading what the backup has")?;
    let api_version = wanted.pointer("/apiVersion").and_then(Value::as_str).unwrap_or_default();
    let (resource, _) = target.resource.split_once('.').unwrap_or((&target.resource, ""));
    let place = Place { api_version, resource, namespace: target.namespace.as_deref(), name: &target.name };
    let served = match client.object(place) {
        Ok(Some(served)) => served,
        Ok(None) => {
            return Ok(Some(format!(
                "{target} is not served as {api_version}, in which it is stored: whether the API server takes it cannot be told"
            )));
        }
        Err(error) if kind(&error) == FailureKind::Interrupted => return Err(error),
        // It is in etcd as it is to be, and the rest of the control plane must not wait for one object that cannot be read.
        Err(error) => return Ok(Some(format!("whether {target} is as the rules make it cannot be told: {error:#}"))),
    };
    if let Some(generation) = object.generation {
        let there = served.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default();
        if there > generation {
            return Ok(Some(format!("{target} has been changed since it was patched: a pod that runs already was at it")));
        }
        if there < generation {
            let what = "the API server serves another object than was patched";
            return Err(again(format!("{target} has not the generation {generation} that it was given: {what}")));
        }
    }
    let unlike = differences(&original, wanted).into_iter().find(|difference| !is_there(&served, difference));
    if let Some(Difference { path, .. }) = unlike {
        return Err(again(format!(
            "{path} of {target} is not what the rules make it, in what the API server serves: see the schema of its CustomResourceDefinition"
        )));
    }
    match client.invalid(place, &served, &original) {
        Ok(None) => Ok(None),
        Ok(Some(why)) => Err(again(format!("the API server would not take {target} as the rules make it: {why}"))),
        Err(error) if kind(&error) == FailureKind::Interrupted => Err(error),
        Err(error) => Ok(Some(format!("whether {target} is valid as the rules make it cannot be told yet: {error:#}"))),
    }
}

/// True when a change is there. The server fills in what a schema has defaults for, so that there may be more than was written, and what was removed may
/// have its default.
fn is_there(served: &Value, difference: &Difference) -> bool {
    difference.after.as_ref().is_none_or(|after| served.pointer(&difference.path).is_some_and(|found| covers(found, after)))
}

fn covers(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| found.get(key).map_or(wanted.is_null(), |found| covers(found, wanted)))
        }
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(found, wanted)| covers(found, wanted))
        }
        _ => found == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_about_to_be_put_is_the_same_in_any_order_and_another_in_any_part() {
        let of = |objects: &[[&str; 3]]| whatever_the_order(objects.to_vec());
        let (a, b) = (["a", "1", "2"], ["b", "1", "2"]);
        assert_eq!(of(&[a, b]), of(&[b, a]));
        assert_ne!(of(&[a, b]), of(&[a, ["b", "1", "3"]]));
        assert_ne!(of(&[a]), of(&[a, a]));
    }

    #[test]
    fn defaults_are_no_difference_and_what_is_missing_is() {
        let change = |after: Option<Value>| Difference { path: "/spec/a".to_owned(), before: None, after };
        let served = json!({"spec": {"a": {"b": [{"c": 1, "default": 2}], "default": true}}});
        assert!(is_there(&served, &change(Some(json!({"b": [{"c": 1}]})))));
        assert!(is_there(&served, &change(None)), "it may have its default");
        for other in [json!({"b": [{"c": 2}]}), json!({"b": []}), json!({"b": [{"c": 1}], "pruned": 1}), json!(1)] {
            assert!(!is_there(&served, &change(Some(other.clone()))), "{other}");
        }
        assert!(!is_there(&json!({"spec": {}}), &change(Some(json!(1)))));
    }
}
