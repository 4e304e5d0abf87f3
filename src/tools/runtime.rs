//! The container runtime of a node: the socket that kubelet is configured to use, and the unit that serves it.
//!
//! kubelet's flag `--container-runtime-endpoint` has precedence over `containerRuntimeEndpoint` in its configuration (kubernetes
//! `cmd/kubelet/app/options`). Where neither is set, `/etc/crictl.yaml` names the socket; else the profile has the usual one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Deserialize;

use crate::error::{AndNext, Failure, FailureKind, Next, again, misfit, together};
use crate::node::profile::Profile;
use crate::node::{Node, yaml};
use crate::tools::systemctl;

/// Where systemd looks for unit files; later places have precedence.
const UNIT_FOLDERS: [&str; 4] = ["/lib/systemd/system", "/usr/lib/systemd/system", "/run/systemd/system", "/etc/systemd/system"];
/// Files of variables that kubelet's unit reads: kubeadm's own, and those that Debian and RHEL leave to the administrator. Later ones have
/// precedence.
const FLAG_FILES: [&str; 3] = ["/var/lib/kubelet/kubeadm-flags.env", "/etc/default/kubelet", "/etc/sysconfig/kubelet"];
/// kubelet's configuration where no flag names another: kubeadm's, and OpenShift's.
const CONFIGS: [&str; 2] = ["/var/lib/kubelet/config.yaml", "/etc/kubernetes/kubelet.conf"];
/// crictl's own configuration.
const CRICTL_CONFIG: &str = "/etc/crictl.yaml";
/// The runtimes: a word in the names of their sockets, which is also the name of their program, and the usual names of their units.
const RUNTIMES: [(&str, &[&str]); 3] = [
    ("crio", &["crio.service", "cri-o.service"]),
    ("cri-dockerd", &["cri-docker.service", "cri-dockerd.service"]),
    ("containerd", &["containerd.service"]),
];

/// The socket that kubelet is configured to use, without `unix://`; `None` when none is configured.
fn told(node: &Node) -> Option<PathBuf> {
    let texts = flags(node);
    let flag = |name: &str| texts.iter().rev().find_map(|text| last_flag(text, name));
    flag("--container-runtime-endpoint").and_then(|value| socket_path(&value)).or_else(|| {
        let mut configs = flag("--config").map(PathBuf::from).into_iter().chain(CONFIGS.map(PathBuf::from));
        configs.find_map(|path| configured(node, &path))
    })
}

/// The texts that may hold kubelet's flags, in rising precedence: its unit, the drop-ins, files of variables.
fn flags(node: &Node) -> Vec<String> {
    let units = UNIT_FOLDERS.map(|folder| Path::new(folder).join("kubelet.service"));
    let unit = units.iter().rev().find(|path| node.exists(path)).cloned();
    let drop_ins = UNIT_FOLDERS.iter().flat_map(|folder| files(node, &Path::new(folder).join("kubelet.service.d"), "conf"));
    let all = unit.into_iter().chain(drop_ins).chain(FLAG_FILES.map(PathBuf::from));
    all.filter_map(|path| node.read_text(path).ok()).collect()
}

/// The files of a folder of the node with this ending, sorted by name.
fn files(node: &Node, folder: &Path, ending: &str) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir(node.real_path(folder)).into_iter().flatten().flatten();
    entries.map(|entry| folder.join(entry.file_name())).filter(|path| path.extension().is_some_and(|is| is == ending)).collect()
}

/// The last value of a flag in a text of unit files or variables; a value that is itself a variable does not count.
fn last_flag(text: &str, name: &str) -> Option<String> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with(['#', ';']));
    let words: Vec<&str> =
        lines.flat_map(|line| line.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\''))).filter(|w| !w.is_empty()).collect();
    // In a quoted variable, the variable's name stands before the first word.
    let value = |at: usize| {
        let (_, rest) = words[at].split_once(name).filter(|(before, _)| before.is_empty() || before.ends_with('='))?;
        if rest.is_empty() { words.get(at + 1).copied() } else { rest.strip_prefix('=') }
    };
    (0..words.len()).rev().find_map(value).filter(|value| !value.contains('$')).map(str::to_owned)
}

fn configured(node: &Node, path: &Path) -> Option<PathBuf> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kubelet {
        // A kubeconfig may have the same name.
        kind: String,
        container_runtime_endpoint: Option<String>,
    }
    let config: Kubelet = yaml::first(&node.read_text(path).ok()?).ok()?;
    (config.kind == "KubeletConfiguration").then_some(config.container_runtime_endpoint).flatten().and_then(|value| socket_path(&value))
}

/// The socket in crictl's own configuration.
fn crictls(node: &Node) -> Option<PathBuf> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Crictl {
        runtime_endpoint: Option<String>,
    }
    let config: Crictl = yaml::first(&node.read_text(CRICTL_CONFIG).ok()?).ok()?;
    socket_path(&config.runtime_endpoint?)
}

/// The path of a socket, below `/run`: `/var/run` is a link to it.
fn socket_path(endpoint: &str) -> Option<PathBuf> {
    let path = Path::new(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
    let path = path.strip_prefix("/var/run").map_or_else(|_| path.to_owned(), |rest| Path::new("/run").join(rest));
    path.is_absolute().then_some(path)
}

/// The flags that crictl needs: kubelet's socket, where crictl's own configuration does not name the same one.
#[must_use]
pub fn crictl_flags(node: &Node) -> Vec<String> {
    match told(node) {
        Some(socket) if crictls(node).as_ref() != Some(&socket) => {
            ["--runtime-endpoint", "--image-endpoint"].map(|flag| format!("{flag}=unix://{}", socket.display())).to_vec()
        }
        _ => Vec::new(),
    }
}

/// What is wrong with a unit that cannot be started, or that will be gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// What is wrong, naming the unit.
    pub what: String,
    /// What to do about it.
    pub next: Next,
    /// True when there is no such unit: where several names are tried, that is to be expected.
    pub absent: bool,
}

/// On a node whose unit is unfit, the backup does not fit.
impl From<Unfit> for Failure {
    fn from(Unfit { what, next, .. }: Unfit) -> Self {
        Self { kind: FailureKind::Misfit, message: what, next: Some(next) }
    }
}

/// The unit whose process listens on kubelet's socket; `None` while nothing listens.
#[must_use]
pub fn listening(node: &Node) -> Option<String> {
    listener(node, &socket(node)?)
}

/// The unit of the container runtime that runs now: the one that listens or, while none does, the first possible one that runs or is about
/// to. `recorded` are names that were noted before, perhaps under another release.
///
/// # Errors
/// When systemd does not answer.
pub fn running(node: &Node, profile: &Profile, recorded: &[&str]) -> Result<Option<String>> {
    if let Some(unit) = listening(node) {
        return Ok(Some(unit));
    }
    for unit in usual(node, profile).into_iter().chain(recorded.iter().map(|unit| (*unit).to_owned())) {
        if systemctl::show(node, &unit)?.is_wanted() {
            return Ok(Some(unit));
        }
    }
    Ok(None)
}

/// The unit with which to start the container runtime: the recorded one, the one that listens now, one of the usual names, or one that runs
/// the socket's program. The first of them with which nothing is wrong, as `unfit` says.
///
/// # Errors
/// [`FailureKind::Misfit`] when there is none, with what is wrong with each; the errors of `unfit`.
pub fn unit(node: &Node, profile: &Profile, recorded: Option<&str>, unfit: &dyn Fn(&str) -> Result<Option<Unfit>>) -> Result<String> {
    let mut tried: BTreeSet<String> = BTreeSet::new();
    let mut wrong = Vec::new();
    for unit in recorded.map(str::to_owned).into_iter().chain(listening(node)).chain(usual(node, profile)) {
        if !tried.insert(unit.clone()) {
            continue;
        }
        match unfit(&unit)? {
            None => return Ok(unit),
            Some(why) => wrong.push(why),
        }
    }
    let of = socket(node).map_or_else(String::new, |socket| format!(" of {}, which kubelet is told to use,", socket.display()));
    let what: Vec<&str> = wrong.iter().map(|why| why.what.as_str()).collect();
    let next: Vec<Next> = wrong.iter().filter(|why| !why.absent).map(|why| why.next.clone()).collect();
    let next =
        together(next, ", or ").unwrap_or_else(|| again("start the container runtime (`systemctl list-units --type=service` shows it)"));
    Err(misfit(format!("the container runtime{of} has no unit that can be started: {}", what.join("; "))).and_next(next))
}

fn socket(node: &Node) -> Option<PathBuf> {
    told(node).or_else(|| crictls(node))
}

/// Possible names of the unit: the usual ones, and the units that run the program.
fn usual(node: &Node, profile: &Profile) -> Vec<String> {
    let known = |name: &str| RUNTIMES.iter().find(|(program, _)| name.contains(program));
    // `/run/docker/containerd/containerd.sock` is another containerd's: only its listener is certain.
    let runtime = socket(node).map_or_else(|| known(profile.runtime_unit), |socket| known(&socket.file_name()?.to_string_lossy()));
    let Some((program, names)) = runtime else { return vec![profile.runtime_unit.to_owned()] };
    names.iter().map(|name| (*name).to_owned()).chain(units_that_run(node, program)).collect()
}

/// The service whose process listens on the socket: found by the kernel's list of sockets, the process that holds the socket open, and that
/// process's control group. (systemd may hold the socket too, but is not a service.)
fn listener(node: &Node, socket: &Path) -> Option<String> {
    // The list of process 1: the agent may be in another network namespace.
    let sockets = node.read_text("/proc/1/net/unix").ok()?;
    let inode = sockets.lines().find_map(|line| {
        // Num RefCount Protocol Flags Type St Inode Path; flag 0x10000 is __SO_ACCEPTCON, which means listening.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = fields.get(3) == Some(&"00010000");
        (listens && socket_path(fields.get(7)?).as_deref() == Some(socket)).then(|| fields[6].to_owned())
    })?;
    let wanted = PathBuf::from(format!("socket:[{inode}]"));
    let processes = std::fs::read_dir(node.real_path("/proc")).ok()?.flatten();
    let pids = processes.filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()));
    let holds = |pid: &std::fs::DirEntry| {
        let open = std::fs::read_dir(pid.path().join("fd")).into_iter().flatten().flatten();
        open.map(|fd| fd.path()).any(|fd| std::fs::read_link(fd).is_ok_and(|target| target == wanted))
    };
    pids.filter(holds).find_map(|pid| service(&std::fs::read_to_string(pid.path().join("cgroup")).ok()?))
}

/// The service of a process, by its control groups: those of version 2, and systemd's own tree of version 1 (`cgroups(7)`). Both can exist,
/// and systemd uses only one of them.
fn service(cgroups: &str) -> Option<String> {
    let own =
        cgroups.lines().filter_map(|line| line.strip_prefix("0::").or_else(|| line.split_once(":name=systemd:").map(|(_, path)| path)));
    own.flat_map(|path| path.rsplit('/')).find(|part| part.ends_with(".service")).map(str::to_owned)
}

/// The services that run a program of this name, by their unit files; not those whose program ends at once, such as `crio wipe`.
fn units_that_run(node: &Node, program: &str) -> Vec<String> {
    let runs = |path: &PathBuf| {
        let text = node.read_text(path).unwrap_or_default();
        if text.lines().any(|line| line.trim() == "Type=oneshot") {
            return false;
        }
        let mut commands = text.lines().filter_map(|line| line.strip_prefix("ExecStart=")?.split_whitespace().next());
        commands
            .any(|command| Path::new(command.trim_start_matches(['-', '@', ':', '+', '!'])).file_name().is_some_and(|name| name == program))
    };
    let all = UNIT_FOLDERS.iter().flat_map(|folder| files(node, Path::new(folder), "service")).filter(runs);
    let names: BTreeSet<String> = all.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect();
    names.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{by_hand, exit_code};
    use crate::node::profile::{KUBEADM, OPENSHIFT};
    use std::os::unix::fs::symlink;

    fn node(files: &[(&str, &str)]) -> (tempfile::TempDir, Node) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let node = Node::at(dir.path(), None);
        (dir, node)
    }

    fn unfit(unit: &str, what: &str, absent: bool) -> Unfit {
        Unfit { what: format!("{unit} is {what}"), next: by_hand(format!("see to {unit}")), absent }
    }

    const CONFIG: &str = "/var/lib/kubelet/config.yaml";
    const CRIO: &str = "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: unix:///var/run/crio/crio.sock\n";
    const UNIT: &str = "/usr/lib/systemd/system/kubelet.service";

    #[test]
    fn the_socket_is_what_kubelet_is_told() {
        let drop_in = "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf";
        let flags = "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///run/cri-dockerd.sock --v=2\"\n";
        let openshift = "[Service]\nExecStart=/usr/bin/kubelet \\\n  --config=/etc/kubernetes/own.conf \\\n  --v=2\n";
        let flag = "ExecStart=/usr/bin/kubelet --container-runtime-endpoint /var/run/crio/crio.sock --v=2\n";
        let variable = "# --container-runtime-endpoint=/run/x.sock\nExecStart=kubelet --container-runtime-endpoint=${SOCKET}\n";
        let kubeconfig = "kind: Config\ncontainerRuntimeEndpoint: /run/x.sock\n";
        for (files, expected) in [
            (&[][..], None),
            (&[(CONFIG, "before")], None),
            (&[(CONFIG, CRIO)], Some("/run/crio/crio.sock")),
            (&[(CONFIG, CRIO), ("/var/lib/kubelet/kubeadm-flags.env", flags)], Some("/run/cri-dockerd.sock")),
            (&[(UNIT, openshift), ("/etc/kubernetes/own.conf", CRIO)], Some("/run/crio/crio.sock")),
            (&[(UNIT, variable), ("/etc/kubernetes/kubelet.conf", CRIO)], Some("/run/crio/crio.sock")),
            (&[("/etc/kubernetes/kubelet.conf", kubeconfig)], None),
            (&[(UNIT, "ExecStart=/usr/bin/kubelet\n"), (drop_in, flag)], Some("/run/crio/crio.sock")),
        ] {
            let (_dir, node) = node(files);
            assert_eq!(told(&node).as_deref(), expected.map(Path::new), "{files:?}");
        }
    }

    #[test]
    fn crictl_is_told_only_what_it_would_not_do_by_itself() {
        let (dir, node) = node(&[(CONFIG, CRIO), (CRICTL_CONFIG, "runtime-endpoint: unix:///run/containerd/containerd.sock\n")]);
        assert_eq!(crictl_flags(&node), ["--runtime-endpoint=unix:///run/crio/crio.sock", "--image-endpoint=unix:///run/crio/crio.sock"]);
        std::fs::write(dir.path().join("etc/crictl.yaml"), "runtime-endpoint: \"unix:///run/crio/crio.sock\"\ntimeout: 10\n").unwrap();
        assert_eq!(crictl_flags(&node), Vec::<String>::new());
    }

    #[test]
    fn the_unit_is_the_one_that_listens() {
        let sockets = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                       0000: 00000003 00000000 00000000 0001 03 77 /run/crio/crio.sock\n\
                       0000: 00000002 00000000 00010000 0001 01 78 /var/run/crio/crio.sock\n";
        let (dir, node) = node(&[
            (CONFIG, CRIO),
            ("/proc/1/net/unix", sockets),
            ("/proc/1/cgroup", "0::/init.scope\n"),
            ("/proc/1/fd/.keep", ""),
            ("/proc/41/cgroup", "0::/system.slice/podman.service\n"),
            ("/proc/41/fd/.keep", ""),
            ("/proc/42/cgroup", "2:cpu:/a.service\n1:name=systemd:/system.slice/site-runtime.service/init\n"),
            ("/proc/42/fd/.keep", ""),
        ]);
        for (pid, inode) in [(1, 78), (41, 77), (42, 78)] {
            symlink(format!("socket:[{inode}]"), dir.path().join(format!("proc/{pid}/fd/3"))).unwrap();
        }
        assert_eq!(unit(&node, &OPENSHIFT, None, &|_| Ok(None)).unwrap(), "site-runtime.service");
        assert_eq!(running(&node, &OPENSHIFT, &["crio.service"]).unwrap().as_deref(), Some("site-runtime.service"));
        // The backup's runtime is started, whatever runs in the release that it replaces.
        assert_eq!(unit(&node, &OPENSHIFT, Some("crio.service"), &|_| Ok(None)).unwrap(), "crio.service");
        let gone = |unit: &str| Ok((unit == "site-runtime.service").then(|| unfit(unit, "gone", false)));
        assert_eq!(unit(&node, &OPENSHIFT, None, &gone).unwrap(), "crio.service");
    }

    #[test]
    fn the_service_is_in_whichever_tree_systemd_goes_by() {
        for (cgroups, expected) in [
            ("0::/system.slice/crio.service\n", Some("crio.service")),
            ("9:name=systemd:/\n4:memory:/\n0::/system.slice/crio.service\n", Some("crio.service")),
            ("9:name=systemd:/system.slice/crio.service\n0::/\n", Some("crio.service")),
            ("9:name=systemd:/\n2:cpu:/a.service\n0::/init.scope\n", None),
        ] {
            assert_eq!(service(cgroups).as_deref(), expected, "{cgroups}");
        }
    }

    #[test]
    fn while_nothing_listens_it_is_found_by_what_is_recorded_by_name_and_by_program() {
        let own = ("/etc/systemd/system/site.service", "[Service]\nExecStart=-/opt/bin/crio --config x\n");
        let wipe = ("/usr/lib/systemd/system/crio-wipe.service", "[Service]\nType=oneshot\nExecStart=/usr/bin/crio wipe\n");
        let (_dir, node) = node(&[(CONFIG, CRIO), own, wipe]);
        let find = |recorded, there: &[&str]| {
            unit(&node, &KUBEADM, recorded, &|unit| Ok((!there.contains(&unit)).then(|| unfit(unit, "not there", true))))
        };
        assert_eq!(find(Some("a.service"), &["a.service", "crio.service"]).unwrap(), "a.service");
        assert_eq!(find(Some("a.service"), &["containerd.service", "crio.service"]).unwrap(), "crio.service");
        assert_eq!(find(None, &["containerd.service", "site.service"]).unwrap(), "site.service");
        let error = find(Some("crio.service"), &["containerd.service", "crio-wipe.service"]).unwrap_err();
        assert_eq!(exit_code(&error), 78);
        assert_eq!(
            error.to_string(),
            "the container runtime of /run/crio/crio.sock, which kubelet is told to use, has no unit that can be started: crio.service is \
             not there; cri-o.service is not there; site.service is not there; next: start the container runtime (`systemctl list-units \
             --type=service` shows it), then run this again"
        );
        let masked = |unit: &str| Ok(Some(unfit(unit, "masked", unit != "crio.service")));
        let error = unit(&node, &KUBEADM, None, &masked).unwrap_err().to_string();
        assert!(error.ends_with("; next: see to crio.service"), "{error}");
    }
}
