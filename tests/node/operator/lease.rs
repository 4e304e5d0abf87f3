//! Leader election by a `Lease`, as client-go does it: whoever finds another's lease waits until that has not been renewed for its whole
//! duration, by a clock of one's own. So an operator that was killed, or that comes back in a restored etcd, does nothing for a while.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use crate::api::Api;

/// Between two renewals.
const RENEW: Duration = Duration::from_secs(2);

/// The lease of an operator.
pub(crate) struct Lease {
    namespace: String,
    name: String,
    me: String,
    /// What was last seen in it, and since when.
    seen: Option<(Value, Instant)>,
    renewed: Option<Instant>,
}

impl Lease {
    /// That of the operator of this operand.
    pub(crate) fn new(operand: &str) -> Result<Self> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
        let me = format!("{}_{}", host.trim(), uuid::Uuid::new_v4());
        Ok(Self {
            namespace: format!("openshift-{operand}-operator"),
            name: format!("openshift-{operand}-operator-lock"),
            me,
            seen: None,
            renewed: None,
        })
    }

    fn collection(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace)
    }

    fn spec(holder: &str, duration: Duration) -> Value {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        json!({"holderIdentity": holder, "leaseDurationSeconds": duration.as_secs().max(1), "acquireTime": now, "renewTime": now})
    }

    /// True while it is held; takes and renews it.
    pub(crate) fn hold(&mut self, api: &Api, duration: Duration) -> Result<bool> {
        if self.renewed.is_some_and(|at| at.elapsed() < RENEW) {
            return Ok(true);
        }
        let path = format!("{}/{}", self.collection(), self.name);
        let Some(mut lease) = api.get(&path)? else {
            let metadata = json!({"name": self.name, "namespace": self.namespace});
            let new = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": Self::spec(&self.me, duration)});
            api.post(&self.collection(), &new)?;
            self.renewed = Some(Instant::now());
            return Ok(true);
        };
        let spec = lease["spec"].clone();
        let holder = spec["holderIdentity"].as_str().unwrap_or_default();
        let theirs = Duration::from_secs(spec["leaseDurationSeconds"].as_u64().unwrap_or(0));
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != spec) {
            self.seen = Some((spec.clone(), Instant::now()));
        }
        let expired = self.seen.as_ref().is_some_and(|(_, since)| since.elapsed() >= theirs);
        if holder != self.me && !holder.is_empty() && !expired {
            self.renewed = None;
            return Ok(false);
        }
        lease["spec"] = Self::spec(&self.me, duration);
        if holder == self.me {
            lease["spec"]["acquireTime"] = spec["acquireTime"].clone();
        }
        api.put(&path, &lease)?;
        self.renewed = Some(Instant::now());
        Ok(true)
    }

    /// Gives it back, so that the next one need not wait: an orderly end.
    pub(crate) fn release(&self, api: &Api) -> Result<()> {
        let path = format!("{}/{}", self.collection(), self.name);
        if self.renewed.is_none() {
            return Ok(());
        }
        let Some(mut lease) = api.get(&path)? else { return Ok(()) };
        if lease["spec"]["holderIdentity"] == self.me.as_str() {
            lease["spec"] = Self::spec("", Duration::from_secs(1));
            api.put(&path, &lease)?;
        }
        Ok(())
    }
}
