//! How many nodes are on at once, however many tests run: what counts is memory. Of the time of a drill most is waiting, so that three on two
//! cores do not hold each other up.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

use super::base;
use super::command::PAUSE;

const SLOTS: [&str; 3] = ["slot-0", "slot-1", "slot-2"];
/// Two nodes fit into 4 GiB; three get room where there is this much, KiB as `/proc/meminfo` has it.
const ROOM_FOR_ALL: u64 = 7 << 20;
/// Held while one waits for its slots, so that those who wait for all of them get their turn.
const QUEUE: &str = "slots";

/// Room for one node; free again when the file is closed.
pub fn one() -> Result<File> {
    let kept = base::kept();
    let slots = slots()?;
    let _queue = held(&kept, QUEUE)?;
    loop {
        for slot in slots {
            let file = open(&kept, slot)?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return Ok(file);
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// All the room that there is; the first is for the node itself.
pub fn all() -> Result<Vec<File>> {
    let kept = base::kept();
    let slots = slots()?;
    let _queue = held(&kept, QUEUE)?;
    slots.iter().map(|slot| held(&kept, slot)).collect()
}

fn slots() -> Result<&'static [&'static str]> {
    let text = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let total = total.context("/proc/meminfo has no MemTotal")?;
    Ok(if total >= ROOM_FOR_ALL { &SLOTS } else { &SLOTS[..2] })
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
