//! The recovery partition: what is generated for nodes that are yet to be installed, against the real readers of such documents, and what is made on
//! disks, with the real tools.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails with it, helpers included")]

mod create;
mod documents;
mod machine;
mod refusals;

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

#[test]
#[ignore = "no test: another starts it in a process of its own, to have the power fail in it"]
fn until_the_power_fails() {
    create::until_the_power_fails();
}
