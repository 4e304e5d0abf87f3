//! Tells the compiler which commit is built: `RECOVERY_COMMIT` of the environment, for sources without a repository; else that of the checkout, in a
//! release (a development build would be made anew with every commit); else none.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=RECOVERY_COMMIT");
    println!("cargo::rerun-if-changed=packaging/build.rs");
    let released = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = std::env::var("RECOVERY_COMMIT").ok().or_else(|| released.then(of_the_checkout).flatten()).unwrap_or_default();
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    println!("cargo::rustc-env=RECOVERY_COMMIT={commit}");
    println!("cargo::rustc-env=RECOVERY_VERSION={version}{}", if commit.is_empty() { String::new() } else { format!(" ({commit})") });
}

/// The commit, with `-dirty` behind it when a file that git knows is not as it is there.
fn of_the_checkout() -> Option<String> {
    // Of this project, not of one that it lies in.
    let above = git(&["rev-parse", "--show-cdup"])?;
    let commit = above.is_empty().then(|| git(&["rev-parse", "--short=12", "HEAD"])).flatten()?;
    // Where a commit or a checkout leaves its trace: git builds its index anew, and appends to the log of HEAD.
    for trace in ["logs/HEAD", "index"] {
        println!("cargo::rerun-if-changed={}", git(&["rev-parse", "--git-path", trace])?);
    }
    // And where an edit does: whether that changes the answer costs no compilation when it does not.
    for edited in ["src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={edited}");
    }
    let clean = Command::new("git").args(["diff", "--quiet", "HEAD", "--"]).status().ok()?.success();
    Some(if clean { commit } else { format!("{commit}-dirty") })
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim_end().to_owned())
}
