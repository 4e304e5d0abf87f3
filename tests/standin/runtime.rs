//! The container runtime's store: sandboxes, containers, images. A container is a real process; whether it runs is asked of the kernel.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use testing::place::{Image, Place, Process};

/// The file it is kept in.
pub(crate) const STORE: &str = "runtime.json";

/// Everything the runtime knows.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Runtime {
    pub(crate) sandboxes: Vec<Sandbox>,
    pub(crate) containers: Vec<Container>,
    pub(crate) images: Vec<Image>,
    /// True for CRI-O, false for containerd.
    #[serde(skip)]
    pub(crate) crio: bool,
}

/// A pod sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) attempt: u32,
    pub(crate) created_at: i64,
    pub(crate) ready: bool,
    pub(crate) host_network: bool,
    pub(crate) labels: BTreeMap<String, String>,
    /// `file` for a static pod, `api` for others.
    pub(crate) source: String,
}

/// A container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) sandbox: String,
    pub(crate) name: String,
    pub(crate) attempt: u32,
    pub(crate) created_at: i64,
    /// Id of its image.
    pub(crate) image: String,
    pub(crate) command: Vec<String>,
    pub(crate) process: Process,
}

impl Container {
    pub(crate) fn runs(&self) -> bool {
        self.process.is_alive()
    }
}

impl Runtime {
    pub(crate) fn load(place: &Place) -> Result<Self> {
        Ok(Self { crio: place.config()?.is_crio(), ..place.load(STORE)? })
    }

    /// What `imageRef` of a container says, of an image's id: CRI-O has NAME@sha256, containerd the id.
    pub(crate) fn image_ref(&self, id: &str) -> String {
        let image = self.images.iter().find(|image| image.id == id);
        image.filter(|_| self.crio).map_or_else(|| id.to_owned(), digest)
    }

    pub(crate) fn sandbox(&self, id: &str) -> Option<&Sandbox> {
        self.sandboxes.iter().find(|s| s.id.starts_with(id))
    }

    pub(crate) fn container(&self, id: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.id.starts_with(id))
    }

    pub(crate) fn containers_of<'a>(&'a self, sandbox: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers.iter().filter(move |c| c.sandbox == sandbox)
    }
}

/// NAME@sha256 of an image.
pub(crate) fn digest(image: &Image) -> String {
    let name = image.name.rsplit_once(':').map_or(image.name.as_str(), |(name, _)| name);
    format!("{name}@sha256:{}", crate::pods::hash(image.id.as_bytes()).repeat(2))
}

/// A new id, as a runtime makes them: 64 random hex digits.
pub(crate) fn new_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// Stops the containers of a sandbox and marks it as not ready. The store is not locked while their grace lasts.
pub(crate) fn stop_sandbox(place: &Place, id: &str, grace: Duration) -> Result<()> {
    let running: Vec<Process> = Runtime::load(place)?.containers_of(id).map(|c| c.process).collect();
    stop_all(&running, grace);
    place.change(STORE, |runtime: &mut Runtime| {
        runtime.sandboxes.iter_mut().filter(|s| s.id == id).for_each(|s| s.ready = false);
        Ok(())
    })
}

/// Forgets a sandbox and its containers.
pub(crate) fn remove_sandbox(place: &Place, id: &str) -> Result<()> {
    place.change(STORE, |runtime: &mut Runtime| {
        runtime.sandboxes.retain(|s| s.id != id);
        runtime.containers.retain(|c| c.sandbox != id);
        Ok(())
    })
}

/// Stops processes side by side: each has the whole grace.
pub(crate) fn stop_all(processes: &[Process], grace: Duration) {
    std::thread::scope(|scope| {
        for process in processes {
            scope.spawn(move || process.stop(grace));
        }
    });
}
