//! The hub at work: the controllers of the three kinds, in the replica that has the Lease, until it is stopped.

use std::future::ready;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::channel::mpsc::{UnboundedSender, unbounded};
use futures::{Stream, StreamExt, TryStreamExt};
use http::StatusCode;
use kube::runtime::controller::{Action, Config as Pace, Error};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, applier, watcher};
use kube::{Client, Config, ResourceExt};

use super::api::{BackupSchedule, ClusterBackup, ClusterGroupBackup};
use super::at_work::AtWork;
use super::group::{self, Known};
use super::lease::Leader;
use super::numbers::{self, Numbers};
use super::own::{self, Failed, Own};
use super::{FIELD_MANAGER, backup, chain, schedule, serve};
use crate::error::{misfit, unanswered};
use crate::node::clock::interrupted;

/// The time limit of one request to the hub's API; watches last longer, and are silent no longer than this much.
const LIMIT: Duration = Duration::from_secs(30);
const SILENT: Duration = Duration::from_secs(330);
/// For how long a replica is ready after its API has answered.
const READY: Duration = Duration::from_secs(30);
/// How many objects of a kind are looked at at a time.
const AT_A_TIME: u16 = 256;

/// The hub's container in its pod, as in `packaging/hub/deployment.yaml`.
const CONTAINER: &str = "hub";

/// What a hub is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The namespace whose objects it looks at; all unless given.
    pub namespace: Option<String>,
    /// The namespace of its Lease.
    pub lease: String,
    /// The agent's image, where a group names none; unless given, that of the pod that the replica is.
    pub image: Option<String>,
    /// Where its pages are.
    pub listen: SocketAddr,
    /// What this replica is called: its pod, where it is one.
    pub name: String,
}

/// What the controllers share.
pub struct Hub {
    /// The hub's own API.
    pub client: Client,
    /// The agent's image, where a group names none.
    pub image: String,
    /// The objects, as last heard of.
    pub backups: Store<ClusterBackup>,
    /// The same.
    pub groups: Store<ClusterGroupBackup>,
    /// Who tells of events.
    pub recorder: Recorder,
    /// What is counted.
    pub numbers: Numbers,
    /// The spokes.
    pub at_work: AtWork,
    /// What is known beside the objects.
    pub known: Known,
    /// Has a `ClusterBackup` looked at.
    pub wake: UnboundedSender<ObjectRef<ClusterBackup>>,
}

/// The client of the hub's API: from a kubeconfig (`KUBECONFIG`, `~/.kube/config`), else from the pod that this runs in.
///
/// # Errors
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when there is neither.
pub async fn client() -> Result<Client> {
    let mut config = Config::infer().await.map_err(|error| misfit(format!("no way to the hub's API: {}", chain(&error))))?;
    (config.connect_timeout, config.write_timeout, config.read_timeout) = (Some(LIMIT), Some(LIMIT), Some(SILENT));
    Client::try_from(config).map_err(|error| misfit(format!("no way to the hub's API: {}", chain(&error))))
}

/// Runs a hub until it is interrupted.
///
/// # Errors
/// [`FailureKind::Interrupted`](crate::error::FailureKind::Interrupted) when it loses its Lease; [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered)
/// when its resources are not defined; when its pages cannot be served.
pub fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the hub's runtime")?;
    runtime.block_on(async {
        let client = client().await?;
        let active: Arc<Mutex<Option<Arc<Hub>>>> = Arc::default();
        let answered: Arc<Mutex<Option<Instant>>> = Arc::default();
        let pages = {
            let (active, answered) = (active.clone(), answered.clone());
            serve::serve(options.listen, move |path| page(path, &active, &answered))
        };
        let image = image(&client, options).await?;
        // Two replicas of one name would both be the active one.
        let identity = format!("{}_{}", options.name, uuid::Uuid::new_v4());
        let mut leader = Leader::new(&client, &options.lease, identity.clone());
        let mark = || *answered.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let ended = {
            let work = async {
                leader.acquire(mark).await;
                tracing::info!("{identity} is the active replica; clusters run {image} unless their group names another");
                let hub = work(client.clone(), options, &image, &active);
                tokio::select! {
                    lost = leader.keep(mark) => Err(lost),
                    ended = hub => ended,
                }
            };
            tokio::select! {
                ended = work => ended,
                ended = pages => ended,
                () = stopped() => Ok(()),
            }
        };
        leader.release().await;
        ended
    })
}

/// The image that clusters run unless their group names another: the hub's own.
async fn image(client: &Client, options: &Options) -> Result<String> {
    if let Some(image) = &options.image {
        return Ok(image.clone());
    }
    let (namespace, name) = (&options.lease, &options.name);
    let pods = kube::core::Request::new(format!("/api/v1/namespaces/{namespace}/pods"));
    let asked = pods.get(name, &kube::api::GetParams::default()).context("asking for the hub's own pod")?;
    let pod = client.request::<serde_json::Value>(asked).await;
    let pod = pod.map_err(|error| {
        misfit(format!("which image clusters are to run: reading the pod {namespace}/{name}: {}; or give --image", chain(&error)))
    })?;
    // Others may have been put beside it.
    let own = pod.pointer("/spec/containers").and_then(|all| all.as_array()?.iter().find(|one| one["name"] == CONTAINER));
    let image = own.and_then(|container| container["image"].as_str()).map(str::to_owned);
    image.ok_or_else(|| misfit(format!("the pod {namespace}/{name} has no container {CONTAINER} with an image: give --image")))
}

/// Ends when a signal asks for it.
async fn stopped() {
    while interrupted().is_ok() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn page(path: &str, active: &Mutex<Option<Arc<Hub>>>, answered: &Mutex<Option<Instant>>) -> Option<serve::Page> {
    match path {
        "/healthz" | "/livez" => Some((StatusCode::OK, "ok\n".to_owned())),
        "/readyz" => {
            let answered = *answered.lock().unwrap_or_else(PoisonError::into_inner);
            Some(match answered {
                Some(when) if when.elapsed() < READY => (StatusCode::OK, "ok\n".to_owned()),
                Some(when) => {
                    (StatusCode::SERVICE_UNAVAILABLE, format!("the hub's API has not answered for {} s\n", when.elapsed().as_secs()))
                }
                None => (StatusCode::SERVICE_UNAVAILABLE, "the hub's API has not answered yet\n".to_owned()),
            })
        }
        "/metrics" => {
            let hub = active.lock().unwrap_or_else(PoisonError::into_inner).clone();
            Some((StatusCode::OK, numbers::text(hub.as_deref())))
        }
        _ => None,
    }
}

/// The controllers.
async fn work(client: Client, options: &Options, image: &str, active: &Mutex<Option<Arc<Hub>>>) -> Result<()> {
    let scope = options.namespace.as_deref();
    is_defined::<ClusterGroupBackup>(&client, scope).await?;
    is_defined::<ClusterBackup>(&client, scope).await?;
    is_defined::<BackupSchedule>(&client, scope).await?;
    let (backups, backup_writer) = reflector::store();
    let (groups, group_writer) = reflector::store();
    let (schedules, schedule_writer) = reflector::store();
    let (wake, woken) = unbounded();
    let (wake_group, woken_groups) = unbounded();
    let (wake_schedule, woken_schedules) = unbounded();
    let hub = Arc::new(Hub {
        client: client.clone(),
        image: image.to_owned(),
        backups: backups.clone(),
        groups: groups.clone(),
        recorder: Recorder::new(client.clone(), Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(options.name.clone()) }),
        numbers: Numbers::default(),
        at_work: AtWork::default(),
        known: Known::default(),
        wake: wake.clone(),
    });
    *active.lock().unwrap_or_else(PoisonError::into_inner) = Some(hub.clone());
    // Whatever changes is looked at, and what it belongs to.
    let heard_backups = heard(&client, scope, backup_writer, |backup: &ClusterBackup| {
        wake.unbounded_send(ObjectRef::from_obj(backup)).ok();
        wake_group.unbounded_send(group::of_backup(backup)).ok();
    });
    let heard_groups = heard(&client, scope, group_writer, |group: &ClusterGroupBackup| {
        wake_group.unbounded_send(ObjectRef::from_obj(group)).ok();
        if let Some(schedule) = schedule::of_group(group) {
            wake_schedule.unbounded_send(schedule).ok();
        }
    });
    let heard_schedules = heard(&client, scope, schedule_writer, |schedule: &BackupSchedule| {
        wake_schedule.unbounded_send(ObjectRef::from_obj(schedule)).ok();
    });
    // A group's first look must know all its tries, a schedule's all its groups: with some left out, too much is made.
    let all_known = async {
        backups.wait_until_ready().await.context("reading the ClusterBackups")?;
        groups.wait_until_ready().await.context("reading the ClusterGroupBackups")
    };
    let controllers = async {
        all_known.await?;
        backup::go_on(&hub);
        tokio::join!(
            controller(backups.clone(), woken, hub.clone(), backup::reconcile),
            controller(groups.clone(), woken_groups, hub.clone(), group::reconcile),
            controller(schedules, woken_schedules, hub.clone(), schedule::reconcile),
        );
        Ok(())
    };
    tokio::select! {
        () = heard_backups => Err(unanswered("the watch of the ClusterBackups has ended")),
        () = heard_groups => Err(unanswered("the watch of the ClusterGroupBackups has ended")),
        () = heard_schedules => Err(unanswered("the watch of the BackupSchedules has ended")),
        ended = controllers => ended,
    }
}

/// Fails when the API server does not know the resource, or this replica may not read it: without end, nothing would happen.
async fn is_defined<K: Own>(client: &Client, namespace: Option<&str>) -> Result<()> {
    let kind = K::kind(&());
    match own::scoped::<K>(client, namespace).list(&kube::api::ListParams::default().limit(1)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => {
            Err(misfit(format!("the hub's API does not know {kind}: `kubectl apply -k packaging/hub` defines it")))
        }
        Err(kube::Error::Api(status)) if status.code == 403 => {
            Err(misfit(format!("the hub may not read {kind}: {}; `kubectl apply -k packaging/hub` has the roles", status.message)))
        }
        Err(error) => Err(unanswered(format!("reading {kind}: {}", chain(&error)))),
    }
}

/// Hears of every change of a kind: keeps the cache, then says so.
async fn heard<K: Own>(client: &Client, namespace: Option<&str>, writer: reflector::store::Writer<K>, say: impl Fn(&K)) {
    watcher(own::scoped::<K>(client, namespace), watcher::Config::default())
        // Half of an object, and nobody here reads it.
        .modify(|object| object.managed_fields_mut().clear())
        .default_backoff()
        .reflect(writer)
        .touched_objects()
        .for_each(|object| {
            match &object {
                Ok(object) => say(object),
                Err(error) => tracing::warn!("watching {}: {}", K::kind(&()), chain(error)),
            }
            ready(())
        })
        .await;
}

/// Looks at each object that is woken, one look at a time for each.
async fn controller<K: Own, Look>(
    store: Store<K>,
    woken: impl Stream<Item = ObjectRef<K>> + Send + 'static,
    hub: Arc<Hub>,
    reconcile: impl Fn(Arc<K>, Arc<Hub>) -> Look,
) where
    Look: Future<Output = Result<Action, Failed>> + Send + 'static,
{
    let look = |object: Arc<K>, hub: Arc<Hub>| Box::pin(reconcile(object, hub));
    let failed = |_: Arc<K>, error: &Failed, _: Arc<Hub>| own::again(error);
    let woken = woken.map(Ok::<_, std::convert::Infallible>);
    let mut told: Option<(String, Instant)> = None;
    applier(look, failed, hub.clone(), store, woken.into_stream(), Pace::default().concurrency(AT_A_TIME))
        .for_each(|looked| {
            // What is gone meanwhile is not looked at.
            if matches!(looked, Err(Error::ObjectNotFound(_))) {
                return ready(());
            }
            hub.numbers.looked(looked.is_ok());
            let is_everyday = |error: &Error<Failed, _>| matches!(error, Error::ReconcilerFailed(failed, _) if own::is_everyday(failed));
            if let Some(error) = looked.err().filter(|error| !is_everyday(error)) {
                let error = chain(&error);
                // The same of a thousand objects is said once in a while.
                if told.as_ref().is_none_or(|(last, when)| *last != error || when.elapsed() > READY) {
                    tracing::warn!("looking at {}: {error}", K::kind(&()));
                    told = Some((error, Instant::now()));
                }
            }
            ready(())
        })
        .await;
}
