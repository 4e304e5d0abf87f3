//! The end that speaks through Open Cluster Management: a `ManifestWork` in the cluster's namespace on the hub, carried out by OCM's agent on the spoke.

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use kube::Client;

use super::{Look, Spoke, Trouble, Try};
use crate::hub::api::GateState;
use crate::kube::Permission;

/// A cluster that is reached by OCM's agent.
pub struct ByManifestWork;

impl ByManifestWork {
    /// The way to the managed cluster `cluster`.
    #[must_use]
    pub fn new(_hub: &Client, _cluster: &str) -> Self {
        Self
    }
}

fn no<T: Send + 'static>() -> BoxFuture<'static, Result<T, Trouble>> {
    async { Err(Trouble::Refused("spec.reach ManifestWork is not supported yet".to_owned())) }.boxed()
}

impl Spoke for ByManifestWork {
    fn look<'a>(&'a self, _: &'a Try) -> BoxFuture<'a, Result<Look, Trouble>> {
        no()
    }
    fn clear<'a>(&'a self, _: &'a Try) -> BoxFuture<'a, Result<(), Trouble>> {
        no()
    }
    fn start<'a>(&'a self, _: &'a Try) -> BoxFuture<'a, Result<(), Trouble>> {
        no()
    }
    fn watch<'a>(&'a self, _: &'a Try) -> BoxFuture<'a, Result<BoxStream<'static, ()>, Trouble>> {
        no()
    }
    fn remove<'a>(&'a self, _: &'a Try, _: bool) -> BoxFuture<'a, Result<(), Trouble>> {
        no()
    }
    fn gate<'a>(&'a self, _: &'a Permission, _: bool) -> BoxFuture<'a, Result<GateState, Trouble>> {
        no()
    }
}
