//! What is checked before a backup changes anything: whether it can be taken now, and what its manifest will say.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::HumanBytes;
use jiff::Timestamp;

use super::options::TakeOptions;
use super::trees::Trees;
use crate::agent::install;
use crate::backup::manifest::{DeploymentId, Image};
use crate::backup::survey::Survey;
use crate::error::{AndNext, busy, misfit, no_space, not_permitted};
use crate::etcd::{self, Endpoint, Health};
use crate::kube::{self, Upgraded};
use crate::node::certificates::certificates_expire;
use crate::node::identity::Identity;
use crate::node::profile::{OperatorContainer, Profile};
use crate::node::static_pod::releases;
use crate::node::{Node, dir::RecoveryDir, mounts};
use crate::report::Progress;
use crate::tools::needs::{self, Need, UnitFile};
use crate::tools::ostree::{self, Deployment};
use crate::tools::{crictl, runtime};

/// How long etcd may take to answer when it is only asked for its state.
const ETCD_ANSWERS: Duration = Duration::from_secs(30);
/// The size on disk of a byte of content when no earlier backup tells, in thousandths: more than configuration and binaries need, less than
/// what is already compressed.
const COMPRESSED: u64 = 700;
/// The size on disk of what took one byte in the newest backup, in thousandths: a tenth more.
const MORE_THAN_BEFORE: u64 = 1100;

/// Bytes that must stay free after the backup: a recovery writes its journal to the same place, and should not have to make room first.
const RESERVE: u64 = 16 << 20;

/// What the check found.
#[derive(Debug)]
pub struct Facts {
    /// The kind of control plane.
    pub profile: &'static Profile,
    /// Which node.
    pub identity: Identity,
    /// Which cluster and release.
    pub cluster: Option<kube::Cluster>,
    /// The operators' state.
    pub operators: Vec<kube::OperatorState>,
    /// The Deployments, StatefulSets and DaemonSets that are available.
    pub workloads: Option<Vec<kube::Workload>>,
    /// k0rdent's Management, where there is one.
    pub management: Option<kube::Management>,
    /// How etcd is reached.
    pub endpoint: Endpoint,
    /// etcd's state.
    pub health: Health,
    /// The booted deployment, on an ostree host.
    pub booted: Option<(Deployment, DeploymentId)>,
    /// Images in use.
    pub images: Vec<Image>,
    /// The unit of the container runtime.
    pub runtime_unit: Option<String>,
    /// The containers of the profile's operators that run, name and namespace.
    pub operator_containers: Option<Vec<(String, String)>>,
    /// When the first certificate expires, and which one that is.
    pub certificates_expire: Option<(Timestamp, PathBuf)>,
    /// What is archived.
    pub trees: Trees,
    /// Warnings, one sentence each.
    pub warnings: Vec<String>,
}

/// Checks everything; changes nothing.
///
/// # Errors
/// [`FailureKind::NotPermitted`](crate::error::FailureKind::NotPermitted) when not root,
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when this is no single-node control plane,
/// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when etcd or the API do not answer,
/// [`FailureKind::Busy`](crate::error::FailureKind::Busy) when something is being rolled out.
pub fn look(node: &Node, options: &TakeOptions, survey: &Survey, progress: &Progress) -> Result<Facts> {
    if !rustix::process::geteuid().is_root() {
        return Err(not_permitted("only root can take a backup: no other user can read all of the node"));
    }
    progress.say("looking at the node");
    let mut warnings = Vec::new();
    let profile = Profile::of(node)?;
    let identity = Identity::of(node, profile)?;
    let trees = Trees::of(node, profile)?;
    let booted = booted(node, &mut warnings)?;
    clock(node, survey, &mut warnings);
    let endpoint = Endpoint::of(node, profile)?;
    let health = single_member(&endpoint)?;
    let Answers { cluster, operators, workloads, management } = cluster(node, profile, options.force, &mut warnings)?;
    let runtime_unit = needs(node, profile, &mut warnings);
    let containers = crictl::containers(node);
    let operator_containers = containers.as_ref().ok().and_then(|containers| {
        let sandboxes = crictl::sandboxes(node)
            .map_err(|error| warnings.push(format!("the backup does not record which operators run: {error:#}")))
            .ok()?;
        Some(operators_running(profile, containers, &sandboxes, &mut warnings))
    });
    let images = containers.and_then(|containers| images(node, &containers)).unwrap_or_else(|error| {
        warnings.push(format!("the backup does not record the images and containers in use: {error:#}"));
        Vec::new()
    });
    let certificates_expire = certificates_expire(node, profile).unwrap_or_else(|error| {
        warnings.push(format!("the backup does not record when the first certificate expires: {error:#}"));
        None
    });
    if let Some((when, path)) = certificates_expire.as_ref().filter(|(when, _)| *when < node.clock().now()) {
        warnings.push(format!("the certificate {} expired at {when}", path.display()));
    }
    Ok(Facts {
        profile,
        identity,
        cluster,
        operators,
        workloads,
        management,
        endpoint,
        health,
        booted,
        images,
        runtime_unit,
        operator_containers,
        certificates_expire,
        trees,
        warnings,
    })
}

/// The booted deployment. Adds warnings about it and about `/boot`.
fn booted(node: &Node, warnings: &mut Vec<String>) -> Result<Option<(Deployment, DeploymentId)>> {
    if !ostree::is_ostree(node) {
        warnings.push("this is not an ostree host: there is no deployment to pin or to roll back to".to_owned());
        return Ok(None);
    }
    let deployments = ostree::deployments(node)?;
    let Some(booted) = deployments.iter().find(|d| d.booted) else {
        return Err(misfit("ostree shows no booted deployment: in a container, the agent must see the host's /run and /sysroot"));
    };
    for ahead in deployments.iter().take_while(|d| !d.booted) {
        let what = ahead.version.as_deref().unwrap_or(&ahead.checksum);
        warnings.push(format!("the deployment {what} boots next, not the one that this backup belongs to"));
    }
    if let Some(warning) = boot_space(node)? {
        warnings.push(warning);
    }
    let arguments = ostree::kernel_arguments(node, booted)?;
    Ok(Some((booted.clone(), DeploymentId::of(booted, arguments))))
}

/// A warning when the upgrade's kernel will not fit into `/boot`, where the pinned deployment keeps its own.
fn boot_space(node: &Node) -> Result<Option<String>> {
    let boot = node.real_path("/boot");
    let Ok(kernels) = std::fs::read_dir(boot.join("ostree")) else { return Ok(None) };
    let mut largest = 0;
    for kernel in kernels {
        largest = largest.max(mounts::usage(&kernel.context("listing /boot/ostree")?.path())?);
    }
    let (free, _) = mounts::space(&boot)?;
    Ok((free < largest).then(|| {
        format!(
            "/boot has {} free and a kernel takes up to {}: with the booted deployment pinned, the upgrade's kernel may not fit; drop old pins \
             (`ostree admin status`, `recovery prune`)",
            HumanBytes(free),
            HumanBytes(largest)
        )
    }))
}

/// The order of backups does not depend on the clock, but certificates and people do.
fn clock(node: &Node, survey: &Survey, warnings: &mut Vec<String>) {
    let now = node.clock().now();
    if let Some(newest) = survey.backups.iter().map(|b| b.manifest.taken).max().filter(|newest| *newest > now) {
        warnings.push(format!("the clock says {now}, which is before the newest backup was taken ({newest})"));
    }
    let built = std::env::current_exe().and_then(|exe| exe.metadata()).and_then(|meta| meta.modified());
    if let Some(built) = built.ok().and_then(|time| Timestamp::try_from(time).ok()).filter(|built| *built > now) {
        warnings.push(format!("the clock says {now}, which is before this agent was installed ({built})"));
    }
}

fn single_member(endpoint: &Endpoint) -> Result<Health> {
    let health = etcd::health(endpoint, ETCD_ANSWERS).context("asking etcd for its state")?;
    if health.members != 1 {
        return Err(misfit(format!("etcd has {} members: this agent is for clusters of a single node", health.members)));
    }
    Ok(health)
}

/// Which cluster this is, and that nothing is being rolled out: a backup from the middle of a roll-out restores a state that never was.
fn cluster(node: &Node, profile: &'static Profile, force: bool, warnings: &mut Vec<String>) -> Result<Answers> {
    let ask = |warnings: &mut Vec<String>| -> Result<_> {
        let client = kube::Client::of(node, profile)?;
        let mut rolling: Vec<String> =
            client.rolling_out(profile.redeployed)?.iter().map(|one| format!("the static pod of {one}")).collect();
        let (operators, management) = (client.operators()?, client.management()?);
        // kcm says the new release long before every component is there.
        let k0rdent = management.as_ref().filter(|management| management.release.as_deref() != Some(management.asked.as_str()));
        rolling.extend(k0rdent.map(|management| format!("k0rdent's Management, which goes to {}", management.asked)));
        let between = between_releases(node, profile, force, warnings)?;
        let is_between = between.is_some();
        rolling.extend(between);
        let (cluster, ahead) = client.cluster_and_update()?;
        Ok((cluster, rolling, is_between, ahead, Answers { cluster: None, operators, workloads: None, management }, client))
    };
    match ask(warnings) {
        Ok((mut cluster, rolling, is_between, ahead, answers, client)) => {
            warnings.extend(at_rest(&cluster, &answers.operators, &rolling, force)?);
            // No upgrade begins from a backup of there.
            cluster.progressing |= is_between;
            warnings.extend(ahead.map(|release| {
                format!(
                    "the cluster is asked to go to {release} (spec.desiredUpdate of the ClusterVersion): after a recovery from this backup it would again, unless \
                     it is begun with `recovery recover --drop-desired-update`"
                )
            }));
            warnings.extend(answers.management.as_ref().and_then(k0rdent_ahead));
            // A backup may be the last chance to have one: it does not fail for what is only told, or compared with later.
            let skipped = Upgraded::of(profile, answers.management.as_ref()).map(|upgraded| client.skipped(upgraded)).transpose();
            warnings.extend(match skipped {
                Ok(skipped) => skipped.flatten().map(|skipped| skipped.sentence()),
                Err(error) => {
                    Some(format!("whether an annotation lets an upgrade pass the gate without a good backup is not known: {error:#}"))
                }
            });
            let workloads = client.available_workloads();
            let workloads =
                workloads.map_err(|error| warnings.push(format!("which workloads are available is not recorded: {error:#}"))).ok();
            Ok(Answers { cluster: Some(cluster), workloads, ..answers })
        }
        Err(error) if force => {
            warnings.push(format!("the API server did not say which release this is and whether it is at rest: {error:#}"));
            Ok(Answers::default())
        }
        Err(error) => Err(error.context("asking the API server whether the cluster is at rest")),
    }
}

/// The static pods of kubeadm where they are of more than one release, as what is being rolled out. By force, what cannot be read of them is a warning.
fn between_releases(node: &Node, profile: &Profile, force: bool, warnings: &mut Vec<String>) -> Result<Option<String>> {
    let releases = match releases(node, profile) {
        Ok(releases) => releases,
        Err(error) if force => {
            warnings.push(format!("whether the static pods are all of one release is not known: {error:#}"));
            return Ok(None);
        }
        Err(error) => return Err(error.context("looking which releases the static pods are of")),
    };
    Ok((releases.len() > 1).then(|| {
        let releases = releases.into_iter().collect::<Vec<_>>().join(" and ");
        format!("the static pods, which are of {releases} (`kubeadm upgrade` is at work, or stopped half-way)")
    }))
}

/// What to know of a k0rdent that is asked for another release than it is at: it goes there from a restored etcd too.
fn k0rdent_ahead(management: &kube::Management) -> Option<String> {
    let (at, asked) = (management.release.as_ref()?, &management.asked);
    (at != asked && !asked.is_empty()).then(|| {
        format!(
            "k0rdent is at {at} and asked to go to {asked} (spec.release of the Management): after a recovery from this backup it would again, unless it is \
             begun with the rule that `recovery recover --dry-run` then names"
        )
    })
}

/// What the API server said.
#[derive(Debug, Default)]
struct Answers {
    cluster: Option<kube::Cluster>,
    operators: Vec<kube::OperatorState>,
    workloads: Option<Vec<kube::Workload>>,
    management: Option<kube::Management>,
}

/// Refuses a cluster in which something is being rolled out, unless forced; returns warnings.
fn at_rest(cluster: &kube::Cluster, operators: &[kube::OperatorState], rolling: &[String], force: bool) -> Result<Vec<String>> {
    let version = cluster.progressing.then(|| "the ClusterVersion".to_owned());
    let progressing = operators.iter().filter(|o| o.progressing).map(|o| format!("the operator {}", o.name));
    let moving: Vec<String> = version.into_iter().chain(progressing).chain(rolling.iter().cloned()).collect();
    let mut warnings = Vec::new();
    if !moving.is_empty() {
        let what = format!("not at rest: {} (progressing or being rolled out)", moving.join(", "));
        if !force {
            // Only OpenShift has operators to look at.
            let look = if operators.is_empty() { "" } else { " (`oc get clusteroperators`)" };
            return Err(busy(format!("the cluster is {what}; wait for it{look}, or use --force")));
        }
        warnings.push(format!("taken although the cluster was {what}"));
    }
    for operator in operators.iter().filter(|o| o.degraded || !o.available) {
        let how = if operator.available { "degraded" } else { "not available" };
        warnings.push(format!("the operator {} is {how}", operator.name));
    }
    Ok(warnings)
}

/// The unit of the container runtime. If the node lacks something that a recovery needs, that is only a warning: this may be the last
/// chance for a backup.
fn needs(node: &Node, profile: &Profile, warnings: &mut Vec<String>) -> Option<String> {
    let in_etc = |unit: &str| UnitFile::in_folder(node, &Path::new("/etc").join(needs::UNITS_IN_ETC), unit);
    let found = match needs::look(node, profile, &Need { recorded: None, programs: &[], deployment: None, in_etc: &in_etc }) {
        Ok(found) => {
            warnings.extend(found.missing.into_iter().map(|missing| format!("a recovery would be refused here: {missing}")));
            found.runtime
        }
        Err(error) => {
            warnings.push(format!("it is unknown whether the node has what a recovery needs: {error:#}"));
            None
        }
    };
    if ostree::is_ostree(node) {
        let missing = needs::missing_program(node, "rpm-ostree");
        warnings.extend(missing.map(|missing| format!("a recovery that has to roll back would be refused here: {missing}")));
    }
    // A recovery will find what runs now, provided that its unit is repaired until then.
    found.or_else(|| runtime::listening(node))
}

/// The containers of the profile's operators that run, or are being restarted in their pod. A recovery does not wait for an operator that
/// is scaled to zero.
fn operators_running(
    profile: &Profile,
    containers: &[crictl::Container],
    sandboxes: &[crictl::Sandbox],
    warnings: &mut Vec<String>,
) -> Vec<(String, String)> {
    let has_pod = |c: &crictl::Container| sandboxes.iter().any(|sandbox| sandbox.ready && sandbox.id == c.sandbox);
    let is_there = |wanted: &OperatorContainer| {
        containers.iter().any(|c| c.name == wanted.container && c.namespace == wanted.namespace && (c.running || has_pod(c)))
    };
    let (there, gone): (Vec<_>, Vec<_>) = profile.operator_containers.iter().partition(|wanted| is_there(wanted));
    if !gone.is_empty() {
        let names: Vec<_> = gone.iter().map(|wanted| wanted.container).collect();
        warnings.push(format!(
            "{} does not run here: a recovery from this backup will neither wait for it nor make it roll out pods",
            names.join(", ")
        ));
    }
    there.into_iter().map(|wanted| (wanted.container.to_owned(), wanted.namespace.to_owned())).collect()
}

/// The images of the existing containers, and those that the runtime pins (the one from which every pod sandbox is made): an edge site may
/// have no registry from which to pull them again.
fn images(node: &Node, containers: &[crictl::Container]) -> Result<Vec<Image>> {
    let images = crictl::images(node)?;
    let mut used: Vec<Image> = Vec::new();
    for container in containers.iter().filter(|c| !c.image.is_empty()) {
        let image = match images.iter().find(|image| image.is(&container.image)) {
            Some(image) => named(image),
            None => Image { id: container.image.clone(), name: container.image.clone() },
        };
        if !used.contains(&image) {
            used.push(image);
        }
    }
    for image in images.iter().filter(|image| image.pinned).map(named) {
        if !used.contains(&image) {
            used.push(image);
        }
    }
    used.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(used)
}

fn named(image: &crictl::Image) -> Image {
    let name = image.tags.iter().chain(&image.digests).next().unwrap_or(&image.id);
    Image { id: image.id.clone(), name: name.clone() }
}

/// Checks that what is still to be written, beyond the `done` bytes, fits into the recovery directory with room for a recovery.
///
/// # Errors
/// [`FailureKind::NoSpace`](crate::error::FailureKind::NoSpace), with the numbers and what to do.
pub fn space(dir: &RecoveryDir, facts: &Facts, survey: &Survey, done: u64) -> Result<()> {
    let files = facts.trees.usage()? + u64::try_from(facts.health.db_size).unwrap_or(0);
    let backup = (files.saturating_mul(ratio(survey)) / 1000 + install::room(dir)?).saturating_sub(done);
    let needed = backup + RESERVE;
    let (free, size) = mounts::space(dir.path())?;
    if free >= needed {
        return Ok(());
    }
    let shown = dir.shown().display();
    Err(no_space(format!(
        "the backup takes about {} ({} before compression), {} stay free for a recovery, and {shown} has {} free of {}: {} are missing",
        HumanBytes(backup),
        HumanBytes(files),
        HumanBytes(RESERVE),
        HumanBytes(free),
        HumanBytes(size),
        HumanBytes(needed - free)
    ))
    .and_next(dir.make_room_here()))
}

/// The size on disk of a byte of content, in thousandths: as in the newest backup, plus a margin.
fn ratio(survey: &Survey) -> u64 {
    let Some(newest) = survey.backups.first() else { return COMPRESSED };
    let sizes = &newest.manifest.sizes;
    let stored: u64 = sizes.keys().filter_map(|name| newest.file(name).metadata().ok()).map(|meta| meta.len()).sum();
    let bytes: u64 = sizes.values().sum();
    stored.saturating_mul(MORE_THAN_BEFORE).checked_div(bytes).map_or(COMPRESSED, |ratio| ratio.min(1000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;
    use crate::node::profile::KUBEADM;

    fn operator(name: &str, available: bool, progressing: bool, degraded: bool) -> kube::OperatorState {
        kube::OperatorState { name: name.to_owned(), version: None, available, progressing, degraded }
    }

    fn cluster(progressing: bool) -> kube::Cluster {
        kube::Cluster { id: "c".to_owned(), version: "4.16.8".to_owned(), image: None, progressing }
    }

    #[test]
    fn a_k0rdent_that_is_asked_for_another_release_is_told() {
        let at =
            |release: Option<&str>| kube::Management { release: release.map(str::to_owned), asked: "kcm-0-3-0".to_owned(), ready: true };
        let said = k0rdent_ahead(&at(Some("kcm-0-2-0"))).unwrap();
        assert!(said.starts_with("k0rdent is at kcm-0-2-0 and asked to go to kcm-0-3-0 (spec.release of the Management)"), "{said}");
        assert_eq!((k0rdent_ahead(&at(Some("kcm-0-3-0"))), k0rdent_ahead(&at(None))), (None, None));
    }

    #[test]
    fn a_cluster_at_rest_is_backed_up_and_a_busy_one_only_by_force() -> Result<()> {
        let calm = [operator("etcd", true, false, false)];
        assert_eq!(at_rest(&cluster(false), &calm, &[], false)?, Vec::<String>::new());
        let busy = [operator("network", true, true, false)];
        for (cluster, operators, rolling, named) in [
            (cluster(true), &calm, vec![], "the ClusterVersion"),
            (cluster(false), &busy, vec![], "the operator network"),
            (cluster(false), &calm, vec!["the static pod of etcds".to_owned()], "the static pod of etcds"),
        ] {
            let error = at_rest(&cluster, operators, &rolling, false).unwrap_err();
            assert_eq!(exit_code(&error), 75);
            assert!(error.to_string().contains(named), "{error}");
            assert_eq!(at_rest(&cluster, operators, &rolling, true)?.len(), 1);
        }
        let ill = [operator("dns", true, false, true), operator("ingress", false, false, false)];
        assert_eq!(at_rest(&cluster(false), &ill, &[], false)?, ["the operator dns is degraded", "the operator ingress is not available"]);
        Ok(())
    }

    #[test]
    fn a_runtime_that_etc_masks_is_no_runtime() -> Result<()> {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let root = tempfile::tempdir()?;
        let (tools, units) = (root.path().join("tools"), root.path().join("etc/systemd/system"));
        std::fs::create_dir_all(&tools)?;
        std::fs::create_dir_all(&units)?;
        let systemctl = "#!/bin/sh\ncase \"$*\" in *containerd*) load=masked ;; *) load=loaded ;; esac\n\
                         printf 'LoadState=%s\\nActiveState=inactive\\nSubState=dead\\nConditionResult=no\\n' $load\n";
        for (name, script) in [("systemctl", systemctl), ("crictl", "#!/bin/sh\n")] {
            std::fs::write(tools.join(name), script)?;
            std::fs::set_permissions(tools.join(name), std::fs::Permissions::from_mode(0o755))?;
        }
        let node = Node::at(root.path(), Some(&tools));
        let unit = units.join("containerd.service");
        std::fs::write(&unit, "[Service]\nExecStart=/usr/bin/containerd\n")?;
        assert_eq!(needs(&node, &KUBEADM, &mut Vec::new()).as_deref(), Some("containerd.service"));
        std::fs::remove_file(&unit)?;
        symlink("/dev/null", &unit)?;
        let mut warnings = Vec::new();
        assert_eq!(needs(&node, &KUBEADM, &mut warnings), None);
        assert!(
            warnings.iter().any(|warning| warning.contains("the unit containerd.service is masked in the backup's /etc")),
            "{warnings:?}"
        );
        Ok(())
    }
}
