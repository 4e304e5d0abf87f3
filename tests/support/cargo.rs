//! The checkout, and what cargo has built in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// For a build from nothing, on two busy cores, in seconds.
const LIMIT: &str = "1800";

/// A path in the checkout, by its path from there.
pub fn in_checkout(path: &str) -> PathBuf {
    // This package is `tests/support`.
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("/")).join(path)
}

/// The folder that cargo builds into for this profile, from where this test or example is.
pub fn target() -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let folder = me.ancestors().find(|folder| folder.join("deps").is_dir()).context("this is no program of cargo's")?;
    Ok(folder.to_owned())
}

/// An example of the package, up to date, in the profile of the program that runs: `cargo test --test NAME` does not build examples.
pub fn example(name: &str) -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    if me.file_name().is_some_and(|mine| mine == name) {
        return Ok(me);
    }
    let target = target()?;
    let mut cargo = Command::new("timeout");
    cargo.arg(LIMIT).arg(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--example", name]).current_dir(in_checkout(""));
    // Cargo tells a test about its own package; a build script that looks at such variables would run again, and with it the compilation of
    // everything that needs what it builds.
    let ours = |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"].iter().any(|prefix| name.starts_with(prefix));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)) {
        cargo.env_remove(name);
    }
    cargo.env_remove("LD_LIBRARY_PATH");
    if target.file_name().is_some_and(|profile| profile == "release") {
        cargo.arg("--release");
    }
    let output = cargo.output().context("running cargo")?;
    ensure!(output.status.success(), "building {name} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(target.join("examples").join(name))
}
