//! The recovery partition: what is generated for nodes that are yet to be installed, against the real readers of such documents, and what is made on
//! disks, with the real tools.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails with it, helpers included")]

mod documents;

use std::process::{Command, Output, Stdio};

const BINARY: &str = env!("CARGO_BIN_EXE_recovery");

fn recovery(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).stdin(Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
