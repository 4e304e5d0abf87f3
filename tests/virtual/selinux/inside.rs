//! What is done in the virtual machine: entries of the test program, which `selinux.rs` starts there, as an administrator who has logged in.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use real_node::command::{Done, Limit, run};
use recovery::node::dir::RecoveryDir;
use recovery::node::Node;
use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};

use crate::small_node::{Place, authority};

const AGENT: &str = "/host/recovery";
const ENFORCE: &str = "/sys/fs/selinux/enforce";
/// For one command.
const SOON: Limit = Limit::of(300);

/// What the backup holds below `/etc` and `/usr/local`, and with which types; the running policy does not know the last two.
const FILES: [(&str, &str); 5] = [
    ("/etc/site/plain", "etc_t"),
    ("/etc/site/secret", "shadow_t"),
    ("/usr/local/bin/tool", "bin_t"),
    ("/etc/site/settings", "of_the_next_release_t"),
    ("/usr/local/bin/newer", "of_the_next_release_exec_t"),
];

fn context(kind: &str) -> String {
    format!("system_u:object_r:{kind}:s0\0")
}

fn is_enforcing() -> Result<bool> {
    Ok(fs::read_to_string(ENFORCE)? == "1")
}

/// As an administrator does for a moment: only then does the kernel show and take labels that its policy does not know.
fn permissive<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = fs::read(ENFORCE)?;
    fs::write(ENFORCE, "0")?;
    let result = work();
    fs::write(ENFORCE, before)?;
    result
}

fn label(path: impl AsRef<Path>) -> Result<String> {
    let mut value = vec![0; 256];
    let length = lgetxattr(path.as_ref(), "security.selinux", &mut value).with_context(|| format!("the label of {}", path.as_ref().display()))?;
    Ok(String::from_utf8(value[..length].to_vec())?)
}

fn set_label(path: impl AsRef<Path>, kind: &str) -> Result<()> {
    lsetxattr(path.as_ref(), "security.selinux", context(kind).as_bytes(), XattrFlags::empty())
        .with_context(|| format!("labelling {}", path.as_ref().display()))
}

fn agent(args: &[&str]) -> Result<Done> {
    run(Command::new(AGENT).args(args), &[], SOON)
}

fn is_in_the_machine() -> Result<()> {
    ensure!(Path::new("/host/start").is_file(), "this is a part of a test, and runs in its virtual machine");
    Ok(())
}

#[test]
#[ignore = "no test: its part in the virtual machine"]
fn an_administrator() -> Result<()> {
    is_in_the_machine()?;
    ensure!(is_enforcing()?, "it has not booted enforcing");
    let begun = Instant::now();
    let place = node()?;
    println!("made {:.1}", begun.elapsed().as_secs_f64());
    let done = agent(&["--yes", "--wait", "1", "restore-files"])?;
    println!("{done:?}");
    println!("enforcing {} {:?}", is_enforcing()?, label(place.dir.agent()));
    println!("{:?}", permissive(|| FILES.iter().map(|(path, _)| label(path)).collect::<Result<Vec<_>>>()));
    println!("{:?}", agent(&["status"])?.stdout);
    println!("{:?}", run(Command::new("sh").args(["-c", "journalctl -b --no-pager | grep -iE 'denied|recovery'"]), &[], SOON)?.stdout);
    Ok(())
}

/// This machine as a node of the kubeadm kind, which was backed up as `b1`, and whose files have changed since.
fn node() -> Result<Place> {
    let temporary = tempfile::tempdir()?;
    symlink("/", temporary.path().join("root"))?;
    fs::create_dir("/usr/state")?;
    symlink("/usr/state", temporary.path().join("state"))?;
    fs::copy("/host/tool.sh", "/usr/bin/crictl")?;
    let node = Node::live();
    let dir = RecoveryDir::new(&node, Path::new("/var/recovery"));
    let place = Place { temporary, node, dir };
    place.state("containerd.service", "active");
    place.state("containers.json", r#"{"containers":[]}"#);
    place.put("/etc/kubernetes/pki/ca.crt", authority());
    place.put("/etc/kubernetes/manifests/kube-apiserver.yaml", "before");
    place.put("/var/lib/kubelet/config.yaml", "before");
    place.put("/var/lib/etcd/member/old", "before");
    place.dir.prepare()?;
    for (path, _) in FILES {
        place.put(path, "before");
    }
    permissive(|| {
        FILES.iter().try_for_each(|(path, kind)| set_label(path, kind))?;
        place.back_up("b1", 1);
        Ok(())
    })?;
    for (path, _) in FILES {
        fs::remove_file(path)?;
        place.put(path, "after");
    }
    Ok(place)
}
