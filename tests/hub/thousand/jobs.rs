//! What becomes of Jobs: what the job controller, the scheduler and the kubelet would write. The next pod of one that may fail more than
//! once is started at once.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::store::Key;
use super::{Life, Shared};
use crate::kubelet::time;

/// Until the controller has seen a new Job.
const SEEN: Duration = Duration::from_millis(20);

/// A Job that was made.
pub(super) struct Job {
    pub(super) shared: Shared,
    pub(super) cluster: String,
    pub(super) key: Key,
    pub(super) uid: String,
}

/// How a pod has ended.
enum End {
    Itself(Life),
    Deadline,
    /// The Job is gone: nothing is written any more.
    Gone,
}

impl Job {
    /// Counts it, and begins its life.
    pub(super) fn begin(shared: &Shared, world: &mut super::World, cluster: &str, key: &Key, object: &Value) {
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        world.at_work.insert(uid.clone());
        world.most = world.most.max(world.at_work.len());
        if let Some(spoke) = world.spokes.get_mut(cluster) {
            spoke.jobs += 1;
        }
        let job = Self { shared: shared.clone(), cluster: cluster.to_owned(), key: key.clone(), uid };
        tokio::spawn(job.live());
    }

    async fn live(self) {
        tokio::time::sleep(SEEN).await;
        let Some(object) = self.object() else { return };
        let begins = Instant::now();
        let deadline = object["spec"]["activeDeadlineSeconds"].as_u64().map(|seconds| begins + Duration::from_secs(seconds));
        let started = Timestamp::now();
        let tries = object["spec"]["backoffLimit"].as_u64().unwrap_or(6) + 1;
        for failed in 0..tries {
            let active = json!({"active": 1, "ready": 0, "failed": failed, "startTime": time(started)});
            match self.pod(&object, deadline, &active).await {
                End::Gone => return,
                End::Deadline => {
                    let (reason, message) = ("DeadlineExceeded", "Job was active longer than specified deadline");
                    let status = json!({"failed": failed + 1, "startTime": time(started)});
                    return self.ended(&object, status, &["FailureTarget", "Failed"], reason, message).await;
                }
                End::Itself(life) if life.code == 0 => {
                    let now = time(Timestamp::now());
                    let status = json!({"succeeded": 1, "ready": 0, "startTime": time(started), "completionTime": now});
                    let message = "Reached expected number of succeeded pods";
                    return self.ended(&object, status, &["SuccessCriteriaMet", "Complete"], "CompletionsReached", message).await;
                }
                End::Itself(_) => {}
            }
        }
        let status = json!({"failed": tries, "ready": 0, "startTime": time(started)});
        let message = "Job has reached the specified backoff limit";
        self.ended(&object, status, &["FailureTarget", "Failed"], "BackoffLimitExceeded", message).await;
    }

    /// Takes one pod through its life.
    async fn pod(&self, job: &Value, deadline: Option<Instant>, active: &Value) -> End {
        let Some((key, life)) = self.new_pod(job, active) else { return End::Gone };
        let until = |at: Instant| deadline.map_or(at, |deadline| at.min(deadline));
        let starts = Instant::now() + life.starts;
        let ends = starts + life.takes;
        tokio::time::sleep_until(until(starts)).await;
        if self.object().is_none() {
            return End::Gone;
        }
        let started = Timestamp::now();
        if until(starts) == starts {
            self.write_pod(&key, job, "Running", &json!({"running": {"startedAt": time(started)}}));
            let mut ready = active.clone();
            ready["ready"] = 1.into();
            self.write_status(ready);
        }
        tokio::time::sleep_until(until(ends)).await;
        if self.object().is_none() {
            return End::Gone;
        }
        if until(ends) != ends {
            self.shared.world().remove(&self.cluster, &key, false);
            return End::Deadline;
        }
        let (phase, reason) = if life.code == 0 { ("Succeeded", "Completed") } else { ("Failed", "Error") };
        let terminated = json!({
            "exitCode": life.code, "reason": reason, "message": life.message,
            "startedAt": time(started), "finishedAt": time(Timestamp::now()),
        });
        self.write_pod(&key, job, phase, &json!({"terminated": terminated}));
        End::Itself(life)
    }

    /// The Job, if it is still the same.
    fn object(&self) -> Option<Value> {
        let world = self.shared.world();
        world.spokes.get(&self.cluster)?.get(&self.key).filter(|object| object["metadata"]["uid"] == self.uid).cloned()
    }

    fn new_pod(&self, job: &Value, active: &Value) -> Option<(Key, Life)> {
        self.object()?;
        let nth = {
            let mut world = self.shared.world();
            let spoke = world.spokes.get_mut(&self.cluster)?;
            spoke.pods += 1;
            spoke.pods - 1
        };
        let life = (self.shared.script)(&self.cluster, nth);
        let (_, namespace, name) = &self.key;
        let pod = format!("{name}-{nth:05}");
        let mut labels = job["spec"]["template"]["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        for (label, value) in
            [("batch.kubernetes.io/job-name", name), ("job-name", name), ("batch.kubernetes.io/controller-uid", &self.uid)]
        {
            labels.insert(label.to_owned(), value.as_str().into());
        }
        let owner = json!({
            "apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": self.uid, "controller": true, "blockOwnerDeletion": true,
        });
        let object = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {
                "labels": labels, "ownerReferences": [owner],
            },
            "spec": job["spec"]["template"]["spec"],
        });
        let key = ("pods".to_owned(), namespace.clone(), pod);
        if let Some(spoke) = self.shared.world().spokes.get_mut(&self.cluster) {
            spoke.logs.insert(key.clone(), life.log.clone());
            spoke.put(key.clone(), object);
        }
        self.write_pod(&key, job, "Pending", &json!({"waiting": {"reason": "ContainerCreating"}}));
        self.write_status(active.clone());
        Some((key, life))
    }

    fn write_pod(&self, key: &Key, job: &Value, phase: &str, state: &Value) {
        let mut world = self.shared.world();
        let Some(spoke) = world.spokes.get_mut(&self.cluster) else { return };
        let Some(mut pod) = spoke.get(key).cloned() else { return };
        let containers = job["spec"]["template"]["spec"]["containers"].as_array().into_iter().flatten();
        let running = phase == "Running";
        let statuses = containers.map(|container| {
            json!({
                "name": container["name"], "image": container["image"], "ready": running, "started": running, "restartCount": 0,
                "state": state, "lastState": {},
            })
        });
        pod["status"] = json!({"phase": phase, "containerStatuses": statuses.collect::<Vec<_>>()});
        spoke.put(key.clone(), pod);
    }

    fn write_status(&self, status: Value) {
        let Some(mut object) = self.object() else { return };
        object["status"] = status;
        if let Some(spoke) = self.shared.world().spokes.get_mut(&self.cluster) {
            spoke.put(self.key.clone(), object);
        }
    }

    async fn ended(&self, job: &Value, mut status: Value, types: &[&str], reason: &str, message: &str) {
        let now = time(Timestamp::now());
        let conditions = types.iter().map(|kind| {
            json!({
                "type": kind, "status": "True", "reason": reason, "message": message, "lastProbeTime": now, "lastTransitionTime": now,
            })
        });
        status["conditions"] = conditions.collect::<Vec<_>>().into();
        self.write_status(status);
        self.shared.world().at_work.remove(&self.uid);
        if let Some(seconds) = job["spec"]["ttlSecondsAfterFinished"].as_u64() {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            if self.object().is_some() {
                self.shared.world().remove(&self.cluster, &self.key, true);
            }
        }
    }
}
