//! A command that is tried, with all that it works on, and what has to be so when it was stopped in the middle.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use testing::node::Node;

/// What there is after a command, by name.
pub(crate) type State = BTreeMap<String, String>;

/// A command that is tried, with all that it works on.
pub(crate) trait Subject {
    /// Puts everything as it is before the command, whatever an earlier attempt has left.
    fn prepare(&mut self) -> Result<()>;
    /// The command.
    fn command(&self) -> Command;
    /// What was there before, and has to be as long as the command has not ended well, is there.
    fn intact(&self) -> Result<()>;
    /// What there is, and has to be the same in the end.
    fn state(&self) -> Result<State>;
    /// The port of the loopback address that it needs, if any.
    #[allow(dead_code, reason = "a virtual machine has to be told")]
    fn port(&self) -> Option<u16> {
        None
    }
    /// The emulated node that it is on, if any.
    fn node(&self) -> Option<&Node> {
        None
    }
}

/// A subject by its name, and how it is made on a disk.
pub(crate) type Named = (&'static str, fn(&Path) -> Result<Box<dyn Subject>>);

/// How often a command is run again that ends with "not now, run it again", and the pause between: as its unit does.
const AGAIN: (u32, Duration) = (50, Duration::from_millis(200));

/// What was there before is intact, and the command leads to what it leads to untroubled when it is run again.
pub(crate) fn again(subject: &dyn Subject, expected: &State) -> Result<()> {
    subject.intact().context("what was there before")?;
    for _ in 0..AGAIN.0 {
        let output = subject.command().output().context("running it again")?;
        match output.status.code() {
            Some(0) => return same(expected, &subject.state()?).context("after the second run"),
            Some(75) => std::thread::sleep(AGAIN.1),
            code => bail!("the second run ended with {code:?}: {}", String::from_utf8_lossy(&output.stderr)),
        }
    }
    bail!("it always ends with 75")
}

/// Everything is the same.
pub(crate) fn same(expected: &State, state: &State) -> Result<()> {
    let mut differences = Vec::new();
    for name in expected.keys().chain(state.keys().filter(|name| !expected.contains_key(*name))) {
        match (expected.get(name), state.get(name)) {
            (Some(was), Some(is)) if was != is => {
                // From where they part company.
                let at = was.chars().zip(is.chars()).take_while(|(was, is)| was == is).count().saturating_sub(20);
                let part = |text: &str| text.chars().skip(at).take(100).collect::<String>();
                differences.push(format!("{name} is `{}`, and not `{}`", part(is), part(was)));
            }
            (Some(_), None) => differences.push(format!("{name} is missing")),
            (None, Some(_)) => differences.push(format!("{name} is too many")),
            _ => {}
        }
    }
    ensure!(differences.is_empty(), "{} differences: {}", differences.len(), differences[..differences.len().min(3)].join("; "));
    Ok(())
}
