//! One active replica: whoever holds the Lease `recovery-hub`. As client-go's leader election has it: a holder that does not renew in time is followed by
//! another, and stops by itself before that; what counts is how long this replica has seen the Lease unchanged, by its own clock.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};

use super::about;
use crate::error::interrupted;

/// The name of the Lease.
const NAME: &str = "recovery-hub";
/// How long a Lease counts that is not renewed.
const DURATION: Duration = Duration::from_secs(15);
/// How long its holder goes on without having renewed it: less, so that two never work.
const RENEWED: Duration = Duration::from_secs(10);
/// How often it is renewed, and looked at by those that wait.
const PERIOD: Duration = Duration::from_secs(2);

/// The Lease of a replica.
pub struct Leader {
    api: Api<Lease>,
    identity: String,
    /// The Lease as this replica saw it last, and since when.
    seen: Option<(String, Instant)>,
}

impl Leader {
    /// For the replica `identity`, in this namespace of the hub.
    #[must_use]
    pub fn new(client: &Client, namespace: &str, identity: String) -> Self {
        Self { api: Api::namespaced(client.clone(), namespace), identity, seen: None }
    }

    /// Waits until this replica is the active one. `answered` is called whenever the hub's API has answered.
    pub async fn acquire(&mut self, answered: impl Fn()) {
        loop {
            match tokio::time::timeout(RENEWED, self.try_once()).await {
                Ok(Ok(has)) => {
                    answered();
                    if has {
                        return;
                    }
                }
                Ok(Err(error)) => tracing::warn!("asking for the Lease: {error:#}"),
                Err(_) => tracing::warn!("asking for the Lease: no answer within {} s", RENEWED.as_secs()),
            }
            tokio::time::sleep(about(PERIOD)).await;
        }
    }

    /// Keeps the Lease; ends when it is lost.
    pub async fn keep(&mut self, answered: impl Fn()) -> anyhow::Error {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(PERIOD).await;
            let asked = Instant::now();
            match tokio::time::timeout(RENEWED.saturating_sub(renewed.elapsed()), self.try_once()).await {
                Ok(Ok(true)) => {
                    // Others count from when they see it, which may be before the answer is here.
                    renewed = asked;
                    answered();
                }
                Ok(Ok(false)) => return interrupted("another replica of the hub has the Lease: this one ends, and is started again"),
                Ok(Err(_)) | Err(_) if renewed.elapsed() >= RENEWED => {
                    return interrupted("the hub's Lease could not be renewed in time: this replica ends, and is started again");
                }
                Ok(Err(error)) => tracing::warn!("renewing the Lease: {error:#}"),
                Err(_) => {}
            }
        }
    }

    /// Gives the Lease back, so that another replica need not wait.
    pub async fn release(&mut self) {
        let Ok(Ok(Some(mut lease))) = tokio::time::timeout(PERIOD, self.api.get_opt(NAME)).await else { return };
        if holder(&lease) == Some(&self.identity) {
            if let Some(spec) = &mut lease.spec {
                spec.holder_identity = None;
            }
            tokio::time::timeout(PERIOD, self.api.replace(NAME, &PostParams::default(), &lease)).await.ok();
        }
    }

    /// Asks for the Lease, or renews it; true when this replica has it.
    async fn try_once(&mut self) -> Result<bool> {
        let now = MicroTime(Timestamp::now());
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            ..LeaseSpec::default()
        };
        let Some(mut lease) = self.api.get_opt(NAME).await.context("reading it")? else {
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
            return won(self.api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await);
        };
        let is_own = holder(&lease) == Some(&self.identity);
        if !is_own && holder(&lease).is_some_and(|holder| !holder.is_empty()) && !self.is_over(&lease) {
            return Ok(false);
        }
        let before = lease.spec.take().unwrap_or_default();
        let transitions = before.lease_transitions.unwrap_or(0) + i32::from(!is_own);
        let acquire_time = if is_own { before.acquire_time } else { spec.acquire_time.clone() };
        lease.spec = Some(LeaseSpec { lease_transitions: Some(transitions), acquire_time, ..spec });
        // Of two that ask at once, the API server refuses the second: its version is the older one.
        won(self.api.replace(NAME, &PostParams::default(), &lease).await)
    }

    /// True when the Lease of another has not changed for its whole duration.
    fn is_over(&mut self, lease: &Lease) -> bool {
        let version = lease.resource_version().unwrap_or_default();
        match &self.seen {
            Some((seen, since)) if *seen == version => {
                let lasts =
                    lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).and_then(|seconds| u64::try_from(seconds).ok());
                since.elapsed() >= lasts.map_or(DURATION, Duration::from_secs)
            }
            _ => {
                self.seen = Some((version, Instant::now()));
                false
            }
        }
    }
}

fn holder(lease: &Lease) -> Option<&String> {
    lease.spec.as_ref()?.holder_identity.as_ref()
}

fn won(written: kube::Result<Lease>) -> Result<bool> {
    match written {
        Ok(_) => Ok(true),
        // Another was quicker, or somebody has written an annotation: the next look shows which.
        Err(kube::Error::Api(status)) if status.code == 409 => Err(anyhow::anyhow!("somebody else has written it meanwhile")),
        Err(error) => Err(error).context("writing it"),
    }
}
