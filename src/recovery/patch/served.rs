//! Objects of built-in kinds, which etcd has as protobuf: patched through the API server, when it answers and before controllers and scheduler run.
//!
//! What they hold is known only then. One that cannot be patched stays as the backup has it, with a warning: a control plane without its controllers would
//! be a dead node for the sake of one object. An API server that does not answer is waited for.
//!
//! Each is patched once. Before it is put, the journal says which it is, in which version it was read, and what it becomes: after a crash, an object that
//! is still in that version was not patched, and one that is what it was to become was.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::super::modifier::{self, Served};
use super::super::run::Doing;
use super::super::waits::{self, PAUSE};
use super::{MOST_WARNINGS, rules};
use crate::error::{FailureKind, kind};
use crate::formats::notes::ServedObjectV1;
use crate::kube::{Client, Place, Refused};
use crate::modifiers::{Outcome, Rules};

/// How often an object that others write to is tried.
const TRIES: usize = 5;

/// What has become of an object.
enum Patched {
    Now,
    /// Before a crash.
    Before,
    /// It is as the rules make it without being patched.
    Unchanged,
    /// It stays as it is, and why.
    Not(String),
}

/// Patches every object that rules are about and that was not read from etcd.
pub(in crate::recovery) fn patch_served(here: &mut Doing<'_, '_>) -> Result<()> {
    let (rules, objects) = (rules(here)?, here.objects()?);
    let all = objects.served(&rules)?;
    // Nothing looks at the backup's objects any more.
    here.run.objects = None;
    drop(objects);
    if all.is_empty() {
        return Ok(());
    }
    let client = waits::api(here)?;
    let mut notes: Vec<ServedObjectV1> = here.all_noted()?;
    let (mut patched, mut before, mut not) = (0_u64, 0_u64, Vec::new());
    for (number, object) in (0..).zip(&all) {
        match patiently(here, &client, &rules, &mut notes, (number, object))? {
            Patched::Now => patched += 1,
            Patched::Before => before += 1,
            Patched::Unchanged => {}
            Patched::Not(why) => not.push(format!("{} was not patched, and is as the backup has it: {why}", object.target)),
        }
    }
    here.figure("patched", patched);
    if before > 0 {
        here.figure("patched_before", before);
    }
    if !not.is_empty() {
        here.figure("not_patched", not.len());
        let more = not.len().saturating_sub(MOST_WARNINGS);
        not.into_iter().take(MOST_WARNINGS).for_each(|warning| here.warn(warning));
        if more > 0 {
            here.warn(format!("{more} more objects were not patched"));
        }
    }
    Ok(())
}

/// Patches one object, and waits for an API server that is away.
fn patiently(
    here: &mut Doing<'_, '_>,
    client: &Client,
    rules: &Rules,
    notes: &mut Vec<ServedObjectV1>,
    numbered: (u64, &Served),
) -> Result<Patched> {
    let last = std::cell::RefCell::new(String::new());
    here.wait_for(
        "the API server to take a patched object",
        PAUSE,
        |here| match patch(here, client, rules, notes, numbered) {
            Err(error) if kind(&error) == FailureKind::Unanswered => {
                *last.borrow_mut() = format!("{error:#}");
                Ok(None)
            }
            done => done.map(Some),
        },
        |_| last.borrow().clone(),
    )
}

fn patch(
    here: &mut Doing<'_, '_>,
    client: &Client,
    rules: &Rules,
    notes: &mut Vec<ServedObjectV1>,
    (number, object): (u64, &Served),
) -> Result<Patched> {
    let (resource, _) = object.target.resource.split_once('.').unwrap_or((&object.target.resource, ""));
    let (namespace, name) = (object.target.namespace.as_deref(), object.target.name.as_str());
    let place = Place { api_version: &object.api_version, resource, namespace, name };
    let mut last_try = notes.iter().rfind(|note| note.number == number).cloned();
    // Whoever noted that has come past this one.
    let is_past = notes.last().is_some_and(|last| last.number > number);
    for _ in 0..TRIES {
        let Some(served) = client.object(place)? else {
            return Ok(Patched::Not(format!("the API server does not serve it as {}, in which it is stored", object.api_version)));
        };
        let version = served.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
        if let Some(noted) = last_try.take().filter(|noted| noted.resource_version != version) {
            let is_it = is_past || noted.sha256 == digest(&served);
            let why = "it was changed when it was about to be patched, and whether by that cannot be told";
            return Ok(if is_it { Patched::Before } else { Patched::Not(why.to_owned()) });
        }
        let applied = rules.apply(&object.target, &served);
        let fault = applied.outcomes.iter().find_map(|(rule, outcome)| match outcome {
            Outcome::Error { why } | Outcome::TestFailed { why } => Some(format!("rule {} fails on it: {why}", rule + 1)),
            _ => None,
        });
        if let Some(why) = fault {
            return Ok(Patched::Not(why));
        }
        if applied.object == served {
            return Ok(Patched::Unchanged);
        }
        let put = match client.replace(place, &applied.object, true) {
            Ok(becomes) => {
                let note = ServedObjectV1 { number, resource_version: version, sha256: digest(&becomes) };
                here.note(&note)?;
                notes.push(note);
                client.replace(place, &applied.object, false)
            }
            refused => refused,
        };
        match put {
            Ok(_) => return Ok(Patched::Now),
            Err(error) => match error.downcast_ref::<Refused>() {
                // Somebody else was faster: the next try is on what is there then.
                Some(refused) if refused.code == 409 => here.run.session.node.clock().sleep(Duration::from_millis(100))?,
                Some(refused) => return Ok(Patched::Not(format!("the API server does not take it: {}", refused.message))),
                None => return Err(error),
            },
        }
    }
    Ok(Patched::Not(format!("something else wrote to it {TRIES} times meanwhile")))
}

/// The SHA-256 of what an object is, without what the server counts and what its status says.
fn digest(object: &Value) -> String {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.shift_remove("status");
    }
    if let Some(metadata) = object.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        for counted in ["resourceVersion", "generation", "managedFields"] {
            metadata.shift_remove(counted);
        }
    }
    modifier::digest(object.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_object_is_the_same_whatever_its_server_counts() {
        let object = |version: &str, replicas: i64, status: i64| json!({"metadata": {"name": "a", "resourceVersion": version, "generation": status}, "spec": {"replicas": replicas}, "status": {"a": status}});
        assert_eq!(digest(&object("1", 2, 3)), digest(&object("4", 2, 5)));
        assert_ne!(digest(&object("1", 2, 3)), digest(&object("1", 0, 3)));
    }
}
