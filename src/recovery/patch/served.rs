//! Objects of built-in kinds, which etcd has as protobuf: patched through the API server, when it answers and before controllers and scheduler run.
//!
//! What they hold is known only then. One that cannot be patched stays as the backup has it, with a warning: a control plane without its controllers would
//! be a dead node for the sake of one object. Only an API server that is away is waited for, until the step's deadline.
//!
//! Each is patched once. Before it is put, the journal says which it is, in which version it was read, and what it becomes. As long as it is in that version
//! it can be put again: of several puts of one version the API server carries out one. Once it is in another, it was patched if it is what it was to become;
//! if it is not, and a put has ended without an answer, nobody can tell, and that is said. What was given up is noted too.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::super::modifier::{self, Served};
use super::super::run::Doing;
use super::super::waits::{self, PAUSE};
use super::{MOST_WARNINGS, rules};
use crate::error::{FailureKind, kind, unanswered};
use crate::formats::notes::ServedObjectV1;
use crate::kube::{Client, Place, Refused};
use crate::modifiers::{Outcome, Rules};
use crate::node::clock::Deadline;

/// How long the API server may take for one answer: longer than it waits for a webhook, which is 10 s by default and 30 s at most. Its own answer says which
/// webhook it was.
const ONE_ANSWER: Duration = Duration::from_secs(40);
/// How often an object is tried that a ready API server does not answer for, or meets an error of its own at.
const FAILURES: usize = 3;
/// How often an object that others write to is tried.
const CONFLICTS: usize = 5;

/// What has become of an object.
enum Patched {
    Now,
    /// By an earlier try, before a crash or one that was not answered.
    Before,
    /// It is as the rules make it without being patched.
    Unchanged,
    /// It stays as it is, or nobody can tell: what people are told.
    Not(String),
}

/// How one try ended.
enum Tried {
    Done(Patched),
    /// It is of no use to try again, and why.
    Refused(String),
    /// Somebody else was faster: the next try is on what is there then.
    Conflict,
    /// No answer, or an error of the API server's own, which may pass.
    Failed(anyhow::Error),
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
    let client = waits::api(here)?.with_limit(ONE_ANSWER);
    let wait = here.run.wait;
    let (mut patched, mut before, mut not) = (0_u64, 0_u64, Vec::new());
    here.waiting("patching objects through the API server", |here, task| {
        let deadline = here.run.session.node.clock().deadline(wait);
        let mut patching = Patching { client: &client, rules: &rules, deadline, notes: here.all_noted()? };
        for (number, object) in (0..).zip(&all) {
            task.alive();
            match patching.patch(here, number, object)? {
                Patched::Now => patched += 1,
                Patched::Before => before += 1,
                Patched::Unchanged => {}
                Patched::Not(warning) => not.push(warning),
            }
        }
        Ok(())
    })?;
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

struct Patching<'a> {
    client: &'a Client,
    rules: &'a Rules,
    deadline: Deadline,
    notes: Vec<ServedObjectV1>,
}

impl Patching<'_> {
    /// Patches one object, which is the one of this number.
    fn patch(&mut self, here: &mut Doing<'_, '_>, number: u64, object: &Served) -> Result<Patched> {
        let last = self.last(number);
        if let Some(warning) = last.and_then(|last| last.given_up.clone()) {
            return Ok(Patched::Not(warning));
        }
        // A put that was noted before a crash has perhaps been carried out, or will be yet.
        let mut is_open = last.is_some();
        // Whoever noted a later one had come past this one, and did not give it up.
        if is_open && self.notes.last().is_some_and(|last| last.number > number) {
            return Ok(Patched::Before);
        }
        if !is_open && self.deadline.passed() {
            return Ok(Patched::Not(not(object, &format!("no time was left of {} s", here.run.wait.as_secs()))));
        }
        let (mut failures, mut conflicts) = (0, 0);
        let why = loop {
            match self.attempt(here, number, object, &mut is_open)? {
                Tried::Done(patched) => return Ok(patched),
                Tried::Refused(why) => break why,
                Tried::Conflict => {
                    conflicts += 1;
                    if conflicts == CONFLICTS {
                        break format!("something else wrote to it {CONFLICTS} times meanwhile");
                    }
                    here.run.session.node.clock().sleep(Duration::from_millis(100))?;
                }
                Tried::Failed(error) => {
                    failures += usize::from(self.is_ready(here, &error)?);
                    if failures == FAILURES || (failures > 0 && self.deadline.passed()) {
                        break format!("{error:#}");
                    }
                    here.run.session.node.clock().sleep(PAUSE)?;
                }
            }
        };
        let warning = if is_open { format!("whether {} was patched cannot be told: {why}", object.target) } else { not(object, &why) };
        // What was to be put is noted, and that it was not is no less so.
        if let Some(last) = self.last(number) {
            let note = ServedObjectV1 { given_up: Some(warning.clone()), ..last.clone() };
            self.note(here, note)?;
        }
        Ok(Patched::Not(warning))
    }

    /// True when the API server is ready, so that it is the object that it fails at; false when it is away, for which there is time until the deadline.
    fn is_ready(&self, here: &Doing<'_, '_>, error: &anyhow::Error) -> Result<bool> {
        match self.client.ready() {
            Ok(()) => Ok(true),
            Err(away) if kind(&away) == FailureKind::Interrupted => Err(away),
            Err(away) if self.deadline.passed() => {
                let wait = here.run.wait.as_secs();
                Err(unanswered(format!("waited {wait} s for the API server to take a patched object: {error:#}; {away:#}")))
            }
            Err(_) => Ok(false),
        }
    }

    /// One try. `is_open` is true while nobody knows how a put has ended.
    fn attempt(&mut self, here: &mut Doing<'_, '_>, number: u64, object: &Served, is_open: &mut bool) -> Result<Tried> {
        let (resource, _) = object.target.resource.split_once('.').unwrap_or((&object.target.resource, ""));
        let (namespace, name) = (object.target.namespace.as_deref(), object.target.name.as_str());
        let place = Place { api_version: &object.api_version, resource, namespace, name };
        let served = match self.client.object(place) {
            Ok(Some(served)) => served,
            Ok(None) => {
                let why = format!("the API server does not serve it as {}, in which it is stored", object.api_version);
                return Ok(Tried::Refused(why));
            }
            Err(error) => return tried(error),
        };
        let version = served.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
        if self.last(number).is_some_and(|last| last.resource_version != version) {
            let is = digest(&served);
            if self.notes.iter().any(|note| note.number == number && note.sha256 == is) {
                return Ok(Tried::Done(Patched::Before));
            }
            if *is_open {
                return Ok(Tried::Refused("something has changed it when it was about to be patched".to_owned()));
            }
        }
        let applied = self.rules.apply(&object.target, &served);
        let fault = applied.outcomes.iter().find_map(|(rule, outcome)| match outcome {
            Outcome::Error { why } | Outcome::TestFailed { why } => Some(format!("rule {} fails on it: {why}", rule + 1)),
            _ => None,
        });
        if let Some(why) = fault {
            return Ok(Tried::Refused(why));
        }
        if applied.object == served {
            return Ok(Tried::Done(Patched::Unchanged));
        }
        let becomes = match self.client.replace(place, &applied.object, true) {
            Ok(becomes) => becomes,
            Err(error) => return tried(error),
        };
        let note = ServedObjectV1 { number, resource_version: version, sha256: digest(&becomes), given_up: None };
        if self.last(number) != Some(&note) {
            self.note(here, note)?;
        }
        match self.client.replace(place, &applied.object, false) {
            Ok(_) => Ok(Tried::Done(Patched::Now)),
            Err(error) => {
                let tried = tried(error)?;
                *is_open |= matches!(tried, Tried::Failed(_));
                Ok(tried)
            }
        }
    }

    /// The last note of an object.
    fn last(&self, number: u64) -> Option<&ServedObjectV1> {
        self.notes.iter().rfind(|note| note.number == number)
    }

    fn note(&mut self, here: &mut Doing<'_, '_>, note: ServedObjectV1) -> Result<()> {
        here.note(&note)?;
        self.notes.push(note);
        Ok(())
    }
}

fn not(object: &Served, why: &str) -> String {
    format!("{} was not patched, and is as the backup has it: {why}", object.target)
}

/// What it means that a request has failed.
fn tried(error: anyhow::Error) -> Result<Tried> {
    if kind(&error) == FailureKind::Interrupted {
        return Err(error);
    }
    Ok(match error.downcast_ref::<Refused>() {
        Some(Refused { code: 409, .. }) => Tried::Conflict,
        Some(refused) if refused.code < 500 => Tried::Refused(refused.to_string()),
        _ => Tried::Failed(error),
    })
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
