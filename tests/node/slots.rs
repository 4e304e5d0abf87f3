//! How many nodes are on at once: two, however many tests run and however many cores there are, for the memory and the disk are the same.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

use super::base;
use super::command::PAUSE;

const SLOTS: [&str; 2] = ["slot-0", "slot-1"];
/// Held while one waits for its slots, so that those who wait for all of them get their turn.
const QUEUE: &str = "slots";

/// Room for one node; free again when the file is closed.
pub fn one() -> Result<File> {
    let kept = base::kept();
    let _queue = held(&kept, QUEUE)?;
    loop {
        for slot in SLOTS {
            let file = open(&kept, slot)?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return Ok(file);
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// All the room that there is.
pub fn both() -> Result<[File; 2]> {
    let kept = base::kept();
    let _queue = held(&kept, QUEUE)?;
    Ok([held(&kept, SLOTS[0])?, held(&kept, SLOTS[1])?])
}

fn held(kept: &Path, name: &str) -> Result<File> {
    let file = open(kept, name)?;
    flock(&file, FlockOperation::LockExclusive).with_context(|| format!("waiting for {name}"))?;
    Ok(file)
}

fn open(kept: &Path, name: &str) -> Result<File> {
    std::fs::create_dir_all(kept)?;
    File::create(kept.join(name)).with_context(|| format!("making {name} in {}", kept.display()))
}
