//! The check that comes before a real node: what it says of machines that cannot run one.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The exit code and the words of `tests/node/host.sh` on a machine that has these files and directories (a `/` at the end).
fn says(has: &[&str]) -> Result<(Option<i32>, String)> {
    let root = tempfile::tempdir()?;
    for name in has {
        let path = root.path().join(name);
        std::fs::create_dir_all(if name.ends_with('/') { &path } else { path.parent().context("a file in no directory")? })?;
        if !name.ends_with('/') {
            std::fs::write(&path, "")?;
        }
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/host.sh");
    let output = Command::new(script).arg(root.path()).output().context("running host.sh")?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[test]
fn a_machine_that_cannot_run_a_real_node_is_told_why() -> Result<()> {
    let version_1 = ["sys/fs/cgroup/cpu/", "sys/fs/cgroup/cpuset/", "sys/fs/cgroup/memory/", "sys/fs/cgroup/pids/"];
    let whole = [&version_1[..], &["dev/loop-control"]].concat();
    let hybrid = [&whole[..], &["sys/fs/cgroup/unified/cgroup.controllers"]].concat();
    for machine in [&whole, &hybrid] {
        ensure!(says(machine)? == (Some(0), String::new()), "{machine:?}: {:?}", says(machine)?);
    }
    let version_2 = ["sys/fs/cgroup/cgroup.controllers", "dev/loop-control"];
    for (machine, why) in [(&version_2[..], "version 2 alone"), (&version_1, "/dev/loop-control"), (&whole[1..], "lack `cpu`")] {
        let (code, words) = says(machine)?;
        ensure!(code == Some(78) && words.contains(why), "{machine:?}: {code:?}, {words}");
    }
    Ok(())
}
