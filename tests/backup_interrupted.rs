//! A signal while an unfinished backup is looked through: alone in its process, because a signal is for all of it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use recovery::backup::ETC;
use recovery::backup::store::survey;
use recovery::backup::take::partial::{Finished, JOURNAL, Partial, archives, figures, room_for};
use recovery::backup::take::procedure::{Conditions, Event, HOLD_FILES, INSTALL, Phase, plan};
use recovery::error::exit_code;
use recovery::node::{
    Node,
    clock::{catch_signals, interrupted},
    dir::RecoveryDir,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

#[test]
fn an_interruption_throws_no_finished_archive_away() -> Result<()> {
    let root = tempfile::tempdir()?;
    let random = root.path().join("proc/sys/kernel/random");
    std::fs::create_dir_all(&random)?;
    std::fs::write(random.join("boot_id"), "b-1\n")?;
    let node = Node::at(root.path(), None);
    let dir = RecoveryDir::new(&node, Path::new("/var/recovery"));
    dir.prepare()?;
    let (plan, conditions) = (plan(false, &[ETC]), Conditions::of(&node, None)?);
    let open = || Partial::continue_or_begin(&node, &dir, &mut survey(&dir)?, &plan, &conditions, None);

    let mut partial = open()?;
    let archive = room_for(&partial.path, ETC)?;
    std::fs::write(&archive, "finished")?;
    let sha256: String = Sha256::digest("finished").iter().map(|byte| format!("{byte:02x}")).collect();
    partial.journal.append(&Event::PhaseBegun(Phase::Take), Value::Null)?;
    for step in [INSTALL, HOLD_FILES, ETC] {
        partial.journal.append(&Event::StepIntent(Phase::Take, step.to_owned()), Value::Null)?;
        let done = if step == ETC {
            figures(BTreeMap::from([(ETC.to_owned(), Finished { bytes: 8, stored: 8, sha256: sha256.clone() })]))?
        } else {
            Value::Null
        };
        partial.journal.append(&Event::StepDone(Phase::Take, step.to_owned()), done)?;
    }
    assert_eq!(archives(open()?.journal.reading())?.len(), 1);
    let journal = std::fs::read(partial.path.join(JOURNAL))?;

    catch_signals()?;
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM)?;
    // It may be another thread that is told.
    while interrupted().is_ok() {
        std::thread::yield_now();
    }
    let error = open().err().context("it was not interrupted")?;
    assert_eq!(exit_code(&error), 75, "{error:#}");
    assert_eq!(std::fs::read(&archive)?, b"finished");
    assert_eq!(std::fs::read(partial.path.join(JOURNAL))?, journal);
    Ok(())
}
