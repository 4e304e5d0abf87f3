//! Watches: what changes is told as it happens, and what has happened since a version.

use std::collections::VecDeque;
use std::time::Duration;

use http::Response;
use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::asked::{Asked, Selector, Target};
use super::rest::{JSON, Refused, bad};
use super::{Shared, Weather};
use crate::https::{self, Body};

/// A watch: what it is about, and how far it has told.
struct Watch {
    shared: Shared,
    cluster: String,
    target: Target,
    selector: Selector,
    from: u64,
    lines: VecDeque<Bytes>,
    changes: watch::Receiver<()>,
    end: Instant,
}

fn line(what: &str, object: &Value) -> Bytes {
    format!("{}\n", json!({"type": what, "object": object})).into()
}

/// The answer to a request that watches.
pub(super) fn watched(shared: &Shared, cluster: &str, asked: &Asked, target: Target) -> Result<Response<Body>, Refused> {
    let selector = Selector::of(asked)?;
    let world = shared.world();
    let spoke = &world.spokes[cluster];
    let mut lines = VecDeque::new();
    let initial = asked.option("sendInitialEvents") == "true";
    let from = match asked.option("resourceVersion") {
        _ if initial => None,
        "" | "0" => None,
        version => Some(version.parse::<u64>().map_err(|_| bad(&format!("resourceVersion: Invalid value: {version:?}")))?),
    };
    if from.is_none() {
        let there = spoke.of(target.resource, target.namespace.as_deref()).filter(|object| selector.takes(object));
        lines.extend(there.map(|object| line("ADDED", object)));
    }
    if initial {
        let version = spoke.version.to_string();
        let metadata = json!({"resourceVersion": version, "annotations": {"k8s.io/initial-events-end": "true"}});
        lines.push_back(line("BOOKMARK", &json!({"kind": target.kind, "apiVersion": target.api_version, "metadata": metadata})));
    }
    let seconds = asked.option("timeoutSeconds").parse().unwrap_or(1800);
    let watch = Watch {
        shared: shared.clone(),
        cluster: cluster.to_owned(),
        from: from.unwrap_or(spoke.version),
        target,
        selector,
        lines,
        changes: spoke.watch(),
        end: Instant::now() + Duration::from_secs(seconds),
    };
    Ok(https::pieces(JSON, futures::stream::unfold(watch, Watch::next)))
}

impl Watch {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            self.changes.mark_unchanged();
            let fair = self.look()?;
            if fair && let Some(line) = self.lines.pop_front() {
                return Some((line, self));
            }
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                () = tokio::time::sleep_until(self.end) => return None,
            }
        }
    }

    /// Takes over what has changed. Whether it may be told; `None`: nobody is there any more to tell it.
    fn look(&mut self) -> Option<bool> {
        let shared = self.shared.clone();
        let world = shared.world();
        let spoke = world.spokes.get(&self.cluster)?;
        match spoke.weather {
            Weather::Fair => {}
            Weather::Hanging => return Some(false),
            Weather::Gone | Weather::Unauthorized => return None,
        }
        if self.from < spoke.version && spoke.changes.front().is_some_and(|first| first.version > self.from + 1) {
            let gone = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Expired", "code": 410,
                "message": format!("too old resource version: {}", self.from),
            });
            self.lines.push_back(line("ERROR", &gone));
            self.end = Instant::now();
        }
        let later = spoke.changes.partition_point(|change| change.version <= self.from);
        for change in spoke.changes.iter().skip(later) {
            let (resource, namespace, _) = &change.key;
            let within = self.target.namespace.as_ref().is_none_or(|one| one == namespace);
            let named = self.target.name.as_ref().is_none_or(|name| *name == change.key.2);
            if resource == self.target.resource && within && named && self.selector.takes(&change.object) {
                self.lines.push_back(line(change.what, &change.object));
            }
        }
        self.from = spoke.version;
        Some(true)
    }
}
