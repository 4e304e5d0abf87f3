//! The termination message of a pod's container: why it failed, for people who look at the pod and not into its log.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::node::host::IN_A_POD;

/// Where kubelet mounts the file unless the pod says otherwise (`terminationMessagePath`).
const PATH: &str = "/dev/termination-log";
/// The variable with the number of the open descriptor, for the program on the host: there, the path does not exist.
const HANDED_ON: &str = "RECOVERY_TERMINATION_LOG";
/// The most bytes that kubelet reads of it.
const LIMIT: usize = 4096;

/// The open file in this container.
#[derive(Debug)]
pub struct TerminationLog(File);

impl TerminationLog {
    /// The file of this process, when it runs in a container and kubelet has mounted the file.
    #[must_use]
    pub fn find() -> Option<Self> {
        let handed_on = std::env::var(HANDED_ON).ok().and_then(|number| number.parse::<u32>().ok());
        let path = match handed_on {
            Some(number) => PathBuf::from(format!("/proc/self/fd/{number}")),
            None => std::env::var_os(IN_A_POD).map(|_| Path::new(PATH).to_owned())?,
        };
        OpenOptions::new().write(true).open(path).ok().map(Self)
    }

    /// Keeps the file open for the program that replaces this one. Returns the variable to give to that program.
    ///
    /// # Errors
    /// When the descriptor cannot be kept.
    pub fn hand_on(&self) -> Result<(&'static str, OsString)> {
        fcntl_setfd(&self.0, FdFlags::empty()).context("keeping the termination message open")?;
        Ok((HANDED_ON, self.0.as_raw_fd().to_string().into()))
    }

    /// Writes why the container ends. The log says it too, so an error here is ignored.
    pub fn say(&self, why: &str) {
        let mut end = why.len().min(LIMIT);
        while !why.is_char_boundary(end) {
            end -= 1;
        }
        if let Err(error) = (&self.0).write_all(&why.as_bytes()[..end]) {
            tracing::debug!("the termination message is not written: {error}");
        }
    }
}
