//! Reads back from the disk what was written to it, some way behind the writer, so that it takes no extra time.
//!
//! Every frame is compared by its hash. The SHA-256 of the archive is computed from the same bytes before they are written, so it is also
//! that of what is on the disk. Pages are dropped from memory first, so that the bytes read do come from the disk.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Scope, ScopedJoinHandle};

use anyhow::{Context, Result};
use nix::libc::{SYNC_FILE_RANGE_WAIT_AFTER, SYNC_FILE_RANGE_WAIT_BEFORE, SYNC_FILE_RANGE_WRITE};
use rustix::fs::Advice;

use crate::archive::frames::read_frame;
use crate::archive::index::Frame;
use crate::error::damaged;

/// After this many bytes the kernel is asked to begin writing to the disk, so that the disk works at the same time.
const WRITE_OUT: u64 = 4 << 20;
/// How far reading back stays behind the writer, so that it does not wait for the disk, bytes.
const BEHIND: u64 = 24 << 20;
/// The size of a page of memory, on every architecture the agent is built for.
const PAGE: u64 = 4096;

enum Said {
    Written(Frame),
    /// The first so many frames stay, all others will be written again; answered by dropping the sender.
    Rewound(usize, Sender<()>),
}

/// The writer's handle of the thread that reads back.
pub(super) struct ReadBack<'scope> {
    said: Sender<Said>,
    worker: ScopedJoinHandle<'scope, Result<usize>>,
}

impl<'scope> ReadBack<'scope> {
    /// Starts reading back what is written to `file`.
    pub(super) fn start<'env>(scope: &'scope Scope<'scope, 'env>, file: &'env File) -> Self {
        let (said, heard) = channel();
        Self { said, worker: scope.spawn(move || follow(file, &heard)) }
    }

    /// Tells the thread that a frame has been written.
    pub(super) fn add(&self, frame: Frame) {
        // If the thread has failed, `finish` returns its error.
        self.said.send(Said::Written(frame)).unwrap_or_default();
    }

    /// Forgets all frames but the first `count`, which will be written again. Waits until none of them is being read any more.
    pub(super) fn rewind(&self, count: usize) {
        let (heard, waiting) = channel();
        self.said.send(Said::Rewound(count, heard)).unwrap_or_default();
        // Nothing is ever sent: the thread drops the other end when it has read the message, and that ends the wait.
        waiting.recv().unwrap_or_default();
    }

    /// Waits until the thread has read back what it can; returns the number of frames.
    ///
    /// # Errors
    /// When one of them is not as it was written.
    pub(super) fn finish(self) -> Result<usize> {
        drop(self.said);
        self.worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn follow(file: &File, heard: &Receiver<Said>) -> Result<usize> {
    let (mut frames, mut checked, mut begun) = (Vec::<Frame>::new(), 0, 0);
    let end = |frame: Option<&Frame>| frame.map_or(0, |frame| frame.offset + u64::from(frame.len));
    while let Ok(said) = heard.recv() {
        match said {
            Said::Written(frame) => frames.push(frame),
            Said::Rewound(count, _heard) => {
                frames.truncate(count);
                checked = checked.min(count);
                begun = begun.min(end(frames.last()));
            }
        }
        let written = end(frames.last());
        if written < begun + WRITE_OUT {
            continue;
        }
        sync_range(file, begun, written - begun, SYNC_FILE_RANGE_WRITE);
        begun = written;
        // Waits only for the part that the disk has had time to write. The last page is shared with what follows, so it is waited for as
        // well.
        let ready = written.saturating_sub(BEHIND);
        let count = frames[checked..].iter().take_while(|frame| end(Some(frame)) <= ready).count();
        if count > 0 {
            let wait = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
            let from = frames[checked].offset;
            sync_range(file, from, ready + PAGE - from, wait);
            read_back(file, &frames[checked..checked + count])?;
            checked += count;
        }
    }
    Ok(checked)
}

/// Asks the kernel to write a part of a file to disk. Only the `fsync` at the end makes it certain and reports errors.
fn sync_range(file: &File, offset: u64, len: u64, flags: nix::libc::c_uint) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // SAFETY: a system call on an open file that takes no pointers.
    unsafe { nix::libc::sync_file_range(file.as_raw_fd(), offset, len, flags) };
}

/// Reads consecutive frames back from the disk.
///
/// # Errors
/// When one is not as it was written.
pub(super) fn read_back(file: &File, frames: &[Frame]) -> Result<()> {
    let (Some(first), Some(last)) = (frames.first(), frames.last()) else { return Ok(()) };
    drop_pages(file, first.offset, last.offset + u64::from(last.len))?;
    let mut packed = Vec::new();
    frames.iter().try_for_each(|frame| read_frame(file, frame, &mut packed)).context("reading the archive back from the disk")
}

/// As [`read_back`], for what follows the frames.
pub(super) fn read_back_tail(file: &File, offset: u64, tail: &[u8]) -> Result<()> {
    drop_pages(file, offset, offset + tail.len() as u64)?;
    let mut there = vec![0; tail.len()];
    file.read_exact_at(&mut there, offset).context("reading the archive back from the disk")?;
    if there == tail { Ok(()) } else { Err(damaged("the index on the disk is not as it was written: the disk is failing")) }
}

/// Drops whole pages from memory.
fn drop_pages(file: &File, from: u64, to: u64) -> Result<()> {
    let from = from / PAGE * PAGE;
    let len = std::num::NonZeroU64::new(to.next_multiple_of(PAGE) - from);
    rustix::fs::fadvise(file, from, len, Advice::DontNeed).context("dropping the archive from memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_again_is_not_taken_for_damage() {
        let file = tempfile::tempfile().unwrap();
        let len = 1 << 20;
        let write = |reader: &ReadBack<'_>, byte| {
            for n in 0..64 {
                let (bytes, offset) = (vec![byte; len], n * len as u64);
                file.write_all_at(&bytes, offset).unwrap();
                let len = u32::try_from(len).unwrap();
                reader.add(Frame { offset, len, plain_len: len, hash: *blake3::hash(&bytes).as_bytes() });
            }
        };
        let checked = std::thread::scope(|scope| {
            let reader = ReadBack::start(scope, &file);
            for byte in 1..5 {
                write(&reader, byte);
                reader.rewind(0);
            }
            write(&reader, 9);
            reader.finish()
        });
        assert!(checked.unwrap() > 0);
    }
}
