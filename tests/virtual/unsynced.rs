//! The control: a program of which nothing is synced. What it asks of the kernel to that end, the kernel does not do, and says that it has.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;

/// The variable that names the script.
const WORK: &str = "WITHOUT_SYNCING";

/// A command line that runs this script of bash's without syncing.
pub(crate) fn line(script: &str) -> Result<String> {
    Ok(format!("{WORK}={script} {} --ignored --exact unsynced::without_syncing", std::env::current_exe()?.display()))
}

/// Has this thread, and what it is from now on, sync nothing (seccomp(2), `SECCOMP_RET_ERRNO` with no error).
fn sync_nothing() -> Result<()> {
    let calls = [libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_syncfs, libc::SYS_sync, libc::SYS_sync_file_range, libc::SYS_msync];
    let statement = |code: u32, k: u32| libc::sock_filter { code: u16::try_from(code).unwrap_or_default(), jt: 0, jf: 0, k };
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for call in calls {
        program.push(libc::sock_filter { jf: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, u32::try_from(call)?) });
        program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO));
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    let filter = libc::sock_fprog { len: u16::try_from(program.len())?, filter: program.as_mut_ptr() };
    // SAFETY: the filter lives until the call has ended.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, std::ptr::from_ref(&filter)) };
    Errno::result(done).map(drop).context("setting the filter")
}

#[test]
#[ignore = "no test: the virtual machine starts it in place of the agent"]
fn without_syncing() -> Result<()> {
    let script = std::env::var_os(WORK).context("no script")?;
    sync_nothing()?;
    Err(Command::new("bash").arg(script).exec()).context("starting bash")
}
