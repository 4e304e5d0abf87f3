//! The container runtime of a node: the socket that kubelet is told to use, and the unit that serves it.
//!
//! kubelet takes its flag `--container-runtime-endpoint` before `containerRuntimeEndpoint` of its configuration (kubernetes
//! `cmd/kubelet/app/options`). Where it is told neither, `/etc/crictl.yaml` names the socket; else the profile knows what is usual.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Deserialize;

use crate::error::{AndNext, again, misfit};
use crate::node::profile::Profile;
use crate::node::{Node, yaml};

/// Where systemd looks for unit files, the place that counts most last.
const UNIT_FOLDERS: [&str; 4] = ["/lib/systemd/system", "/usr/lib/systemd/system", "/run/systemd/system", "/etc/systemd/system"];
/// Files of variables that kubelet's unit reads: kubeadm's own, and those that Debian and RHEL leave to people. Those that come later count more.
const FLAG_FILES: [&str; 3] = ["/var/lib/kubelet/kubeadm-flags.env", "/etc/default/kubelet", "/etc/sysconfig/kubelet"];
/// kubelet's configuration where no flag says another: kubeadm's, and OpenShift's.
const CONFIGS: [&str; 2] = ["/var/lib/kubelet/config.yaml", "/etc/kubernetes/kubelet.conf"];
/// crictl's own configuration.
const CRICTL_CONFIG: &str = "/etc/crictl.yaml";
/// The runtimes: what their sockets' names hold, which is their program's name too, and the usual names of their units.
const RUNTIMES: [(&str, &[&str]); 3] = [
    ("crio", &["crio.service", "cri-o.service"]),
    ("cri-dockerd", &["cri-docker.service", "cri-dockerd.service"]),
    ("containerd", &["containerd.service"]),
];

/// The socket that kubelet is told to use, without `unix://`; `None` when it is told none.
fn told(node: &Node) -> Option<PathBuf> {
    let texts = flags(node);
    let flag = |name: &str| texts.iter().rev().find_map(|text| last_flag(text, name));
    flag("--container-runtime-endpoint").and_then(|value| socket_path(&value)).or_else(|| {
        let mut configs = flag("--config").map(PathBuf::from).into_iter().chain(CONFIGS.map(PathBuf::from));
        configs.find_map(|path| configured(node, &path))
    })
}

/// What kubelet's flags are in, in the order in which they count: its unit, the drop-ins, files of variables.
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

/// The value that a flag has last in a text of unit files or variables; one that is a variable itself says nothing.
fn last_flag(text: &str, name: &str) -> Option<String> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with(['#', ';']));
    let words: Vec<&str> =
        lines.flat_map(|line| line.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\''))).filter(|w| !w.is_empty()).collect();
    // The first word of a quoted variable has the variable's name before it.
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
        // A kubeconfig can be of the same name.
        kind: String,
        container_runtime_endpoint: Option<String>,
    }
    let config: Kubelet = yaml::first(&node.read_text(path).ok()?).ok()?;
    (config.kind == "KubeletConfiguration").then_some(config.container_runtime_endpoint).flatten().and_then(|value| socket_path(&value))
}

/// What crictl takes when it is told nothing else.
fn crictls(node: &Node) -> Option<PathBuf> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Crictl {
        runtime_endpoint: Option<String>,
    }
    let config: Crictl = yaml::first(&node.read_text(CRICTL_CONFIG).ok()?).ok()?;
    socket_path(&config.runtime_endpoint?)
}

/// `/run/…`, as every such socket can be called: `/var/run` is a link to it.
fn socket_path(endpoint: &str) -> Option<PathBuf> {
    let path = Path::new(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
    let path = path.strip_prefix("/var/run").map_or_else(|_| path.to_owned(), |rest| Path::new("/run").join(rest));
    path.is_absolute().then_some(path)
}

/// What crictl must be told: kubelet's socket, where crictl's own configuration does not say the same.
#[must_use]
pub fn crictl_flags(node: &Node) -> Vec<String> {
    match told(node) {
        Some(socket) if crictls(node).as_ref() != Some(&socket) => {
            ["--runtime-endpoint", "--image-endpoint"].map(|flag| format!("{flag}=unix://{}", socket.display())).to_vec()
        }
        _ => Vec::new(),
    }
}

/// The unit of the container runtime: the one whose process listens on the socket; while nothing listens, the one that was recorded, one of the
/// usual names, or the one that runs the socket's program. `usable` says of a unit whether it is there, or will be.
///
/// # Errors
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when there is none; those of `usable`.
pub fn unit(node: &Node, profile: &Profile, recorded: Option<&str>, usable: &dyn Fn(&str) -> Result<bool>) -> Result<String> {
    let socket = told(node).or_else(|| crictls(node));
    if let Some(unit) = socket.as_ref().and_then(|socket| listener(node, socket)) {
        return Ok(unit);
    }
    let known = |name: &str| RUNTIMES.iter().find(|(program, _)| name.contains(program));
    // `/run/docker/containerd/containerd.sock` is another's as well: nothing but its listener tells.
    let runtime = socket.as_ref().map_or_else(|| known(profile.runtime_unit), |socket| known(&socket.file_name()?.to_string_lossy()));
    let mut tried: Vec<String> = recorded.map(str::to_owned).into_iter().collect();
    if let Some((program, names)) = runtime {
        tried.extend(names.iter().map(|name| (*name).to_owned()));
        tried.extend(running(node, program));
    } else {
        tried.push(profile.runtime_unit.to_owned());
    }
    for unit in &tried {
        if usable(unit)? {
            return Ok(unit.clone());
        }
    }
    let of = socket.map_or_else(String::new, |socket| format!(" of {}, which kubelet is told to use", socket.display()));
    Err(misfit(format!(
        "the unit of the container runtime{of} cannot be found: nothing listens there, and there is no {}",
        tried.join(", ")
    ))
    .and_next(again("start the container runtime (`systemctl list-units --type=service` shows it)")))
}

/// The service whose process listens on the socket: by the kernel's list of sockets, the process that holds it open, and its control group. (systemd
/// itself may hold it too, but is no service.)
fn listener(node: &Node, socket: &Path) -> Option<String> {
    // The list of init: the agent's own may be that of another network namespace.
    let sockets = node.read_text("/proc/1/net/unix").ok()?;
    let inode = sockets.lines().find_map(|line| {
        // Num RefCount Protocol Flags Type St Inode Path; flag 0x10000 is __SO_ACCEPTCON: it listens.
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

/// The service of a process, by its control groups: those of version 2, and systemd's own tree of version 1 (`cgroups(7)`). Both can be there,
/// and only one of them be what this systemd goes by.
fn service(cgroups: &str) -> Option<String> {
    let own =
        cgroups.lines().filter_map(|line| line.strip_prefix("0::").or_else(|| line.split_once(":name=systemd:").map(|(_, path)| path)));
    own.flat_map(|path| path.rsplit('/')).find(|part| part.ends_with(".service")).map(str::to_owned)
}

/// The units that run a program of this name, by their files.
fn running(node: &Node, program: &str) -> Vec<String> {
    let runs = |path: &PathBuf| {
        let text = node.read_text(path).unwrap_or_default();
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
    use crate::error::exit_code;
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
        assert_eq!(unit(&node, &OPENSHIFT, Some("crio.service"), &|_| Ok(true)).unwrap(), "site-runtime.service");
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
        let (_dir, node) = node(&[(CONFIG, CRIO), own]);
        let find = |recorded, there: &[&str]| unit(&node, &KUBEADM, recorded, &|unit| Ok(there.contains(&unit)));
        assert_eq!(find(Some("a.service"), &["a.service", "crio.service"]).unwrap(), "a.service");
        assert_eq!(find(Some("a.service"), &["containerd.service", "crio.service"]).unwrap(), "crio.service");
        assert_eq!(find(None, &["containerd.service", "site.service"]).unwrap(), "site.service");
        let error = find(None, &["containerd.service"]).unwrap_err();
        assert_eq!(exit_code(&error), 78);
        assert!(["/run/crio/crio.sock", "crio.service", "next:"].iter().all(|word| error.to_string().contains(word)), "{error}");
    }
}
