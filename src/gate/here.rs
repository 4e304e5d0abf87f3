//! Where the cluster is: what a backup before an upgrade has to bring back.

use std::cell::OnceCell;

use anyhow::Result;

use crate::error::{AndNext, busy, run, unsupported};
use crate::kube::{self, Upgraded};
use crate::node::Node;
use crate::node::identity::Identity;
use crate::node::profile::Profile;
use crate::node::static_pod::releases;
use crate::tools::ostree::{self, Deployment};

/// Where the cluster is.
#[derive(Debug)]
pub struct Here {
    /// Which node.
    pub identity: Identity,
    /// Which cluster, and the release of its control plane.
    pub cluster: kube::Cluster,
    /// k0rdent's Management, where the cluster is upgraded through one.
    pub management: Option<kube::Management>,
    booted: OnceCell<Option<Deployment>>,
    profile: &'static Profile,
}

impl Here {
    /// Asks the node and its API server.
    ///
    /// # Errors
    /// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when the API does not answer;
    /// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when this is no single-node control plane.
    pub fn of(node: &Node) -> Result<(Self, kube::Client)> {
        let profile = Profile::of(node)?;
        let client = kube::Client::of(node, profile)?;
        Ok((Self::ask(node, profile, &client)?, client))
    }

    /// Asks both once more: much may have changed in the minutes of a backup, which also pins the booted deployment.
    ///
    /// # Errors
    /// As [`Here::of`].
    pub fn again(&self, node: &Node, client: &kube::Client) -> Result<Self> {
        Self::ask(node, self.profile, client)
    }

    fn ask(node: &Node, profile: &'static Profile, client: &kube::Client) -> Result<Self> {
        let identity = Identity::of(node, profile)?;
        let mut cluster = client.cluster()?;
        let management = if profile.is_openshift() { None } else { client.management()? };
        cluster.progressing |= releases(node, profile)?.len() > 1;
        Ok(Self { identity, cluster, management, booted: OnceCell::new(), profile })
    }

    /// The booted deployment; `None` where the node is no ostree host. It is asked for once, when somebody wants to know.
    ///
    /// # Errors
    /// When ostree fails.
    pub fn booted(&self, node: &Node) -> Result<Option<&Deployment>> {
        if self.booted.get().is_none() {
            let booted = if ostree::is_ostree(node) { ostree::deployments(node)?.into_iter().find(|d| d.booted) } else { None };
            return Ok(self.booted.get_or_init(|| booted).as_ref());
        }
        Ok(self.booted.get().and_then(Option::as_ref))
    }

    /// The object by which this cluster is upgraded; `None` where that is done by hand (kubeadm).
    #[must_use]
    pub fn upgraded(&self) -> Option<Upgraded> {
        Upgraded::of(self.profile, self.management.as_ref())
    }

    /// The release that an upgrade begins at: of k0rdent where it is upgraded through its Management, else of the control plane.
    ///
    /// # Errors
    /// [`FailureKind::Busy`](crate::error::FailureKind::Busy) when the cluster is between two releases.
    pub fn release(&self) -> Result<&str> {
        if self.cluster.progressing {
            return Err(busy(format!(
                "the cluster is being upgraded, or its ClusterVersion is progressing: it was at {}",
                self.cluster.version
            )));
        }
        let Some(management) = self.management.as_ref().filter(|_| self.upgraded() == Some(Upgraded::Management)) else {
            return Ok(&self.cluster.version);
        };
        match &management.release {
            Some(release) if management.ready => Ok(release),
            Some(release) => {
                Err(busy(format!("k0rdent's Management is not ready at the release {release}: `kubectl describe management` says why")))
            }
            None => Err(busy("k0rdent's Management does not say yet which release it is at: `kubectl describe management` says why")),
        }
    }

    /// As [`Here::upgraded`], for whoever needs one.
    ///
    /// # Errors
    /// [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) where there is none.
    pub fn upgraded_object(&self) -> Result<Upgraded> {
        self.upgraded().ok_or_else(|| {
            unsupported("this cluster is upgraded by hand: it has neither a ClusterVersion nor k0rdent's Management")
                .and_next(run("recovery gate --take && kubeadm upgrade apply VERSION", "upgrades it with a good backup behind it"))
        })
    }
}

#[cfg(test)]
impl Here {
    /// The cluster that a backup with this manifest was taken of, its deployment booted and pinned.
    pub(super) fn of_manifest(manifest: &crate::backup::manifest::Manifest) -> Self {
        let booted = manifest.deployment.as_ref().map(|id| Deployment {
            stateroot: id.stateroot.clone(),
            checksum: id.checksum.clone(),
            serial: id.serial,
            booted: true,
            pinned: true,
            ..Deployment::default()
        });
        let cluster = manifest.cluster.clone().expect("a cluster");
        Self {
            identity: manifest.identity.clone(),
            cluster,
            management: None,
            booted: OnceCell::from(booted),
            profile: manifest.profile.profile(),
        }
    }

    /// With another booted deployment.
    pub(super) fn set_booted(&mut self, change: impl FnOnce(&mut Option<Deployment>)) {
        let mut booted = self.booted.take().flatten();
        change(&mut booted);
        self.booted = OnceCell::from(booted);
    }

    /// The same, upgraded through this Management.
    pub(super) fn of_k0rdent(self, release: &str) -> Self {
        let management = Some(kube::Management { release: Some(release.to_owned()), asked: release.to_owned(), ready: true });
        Self { management, profile: &crate::node::profile::KUBEADM, ..self }
    }
}
