//! Where the frames of a new archive go: compressed by several threads at once, written in order and hashed on the way by another, and by
//! another still read back from the disk some way behind (see [`super::check`]).
//!
//! A fixed number of buffers goes round between the packer and the compressors, so memory is bounded; who is ahead waits.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

use anyhow::{Context, Result, anyhow};
use sha2::{Digest, Sha256};

use super::check::Checker;
use super::index::{Frame, compressor};
use super::work;

/// A frame is cut when it has so many bytes: small, so that a later backup can take over most of them as they are.
pub(super) const FRAME: usize = 512 << 10;
/// What a buffer holds: a full frame, and a file of a frame's size after it.
const BUFFER: usize = 2 * FRAME + (64 << 10);

enum Job {
    /// A piece of the tar stream.
    Plain(Vec<u8>),
    /// A frame of an older archive.
    Packed(Vec<u8>, Frame),
    Mark,
    Rewind,
}

enum Done {
    Frame(Vec<u8>, Frame),
    Mark,
    Rewind,
}

/// The packer's end of it.
pub(super) struct Sink<'scope> {
    jobs: SyncSender<(u64, Job)>,
    buffers: Receiver<Vec<u8>>,
    sequence: u64,
    frames: u32,
    mark: u32,
    writer: ScopedJoinHandle<'scope, Result<(Written, Checker<'scope>)>>,
}

/// What has been written.
pub(super) struct Written {
    pub(super) frames: Vec<Frame>,
    pub(super) end: u64,
    pub(super) sha256: Sha256,
}

impl<'scope> Sink<'scope> {
    /// Starts the threads that compress, and the one that writes to `file` and tells `checker` about it.
    pub(super) fn start<'env>(scope: &'scope Scope<'scope, 'env>, file: &'env File, checker: Checker<'scope>) -> Self {
        let threads = work::threads();
        let (jobs, to_do) = sync_channel(threads);
        let (done, finished) = channel();
        let (give_back, buffers) = channel();
        // One that is filled, one for each compressor, one for each place in the queue.
        (0..=2 * threads).for_each(|_| give_back.send(Vec::with_capacity(BUFFER)).unwrap_or_default());
        let to_do = Arc::new(Mutex::new(to_do));
        for _ in 0..threads {
            let (to_do, done, give_back) = (to_do.clone(), done.clone(), give_back.clone());
            scope.spawn(move || compress(&to_do, &done, &give_back));
        }
        let writer = scope.spawn(move || write(file, &finished, &checker).map(|written| (written, checker)));
        Self { jobs, buffers, sequence: 0, frames: 0, mark: 0, writer }
    }

    /// An empty buffer for the next piece of the stream; waits until one is free.
    pub(super) fn buffer(&self) -> Result<Vec<u8>> {
        self.buffers.recv().map_err(|_| stopped())
    }

    /// The number that the next frame will have.
    pub(super) fn next_frame(&self) -> u32 {
        self.frames
    }

    /// Compresses and writes a piece of the stream as a frame.
    pub(super) fn frame(&mut self, plain: Vec<u8>) -> Result<()> {
        self.frames += 1;
        self.send(Job::Plain(plain))
    }

    /// Writes a frame of an older archive as it is.
    pub(super) fn copy(&mut self, packed: Vec<u8>, frame: Frame) -> Result<()> {
        self.frames += 1;
        self.send(Job::Packed(packed, frame))
    }

    /// Remembers this place in the archive, instead of the last one.
    pub(super) fn mark(&mut self) -> Result<()> {
        self.mark = self.frames;
        self.send(Job::Mark)
    }

    /// Goes back to the remembered place: what was written after it is forgotten.
    pub(super) fn rewind(&mut self) -> Result<()> {
        self.frames = self.mark;
        self.send(Job::Rewind)
    }

    /// Waits until all is written.
    ///
    /// # Errors
    /// What went wrong in any of the threads.
    pub(super) fn finish(self) -> Result<(Written, Checker<'scope>)> {
        drop(self.jobs);
        drop(self.buffers);
        self.writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn send(&mut self, job: Job) -> Result<()> {
        self.jobs.send((self.sequence, job)).map_err(|_| stopped())?;
        self.sequence += 1;
        Ok(())
    }
}

/// Said when another thread has failed; its own error says why.
fn stopped() -> anyhow::Error {
    anyhow!("the archive could not be written")
}

fn compress(to_do: &Mutex<Receiver<(u64, Job)>>, done: &Sender<(u64, Result<Done>)>, give_back: &Sender<Vec<u8>>) {
    let mut compressor = compressor();
    loop {
        let next = to_do.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((sequence, job)) = next else { return };
        let result = match job {
            Job::Plain(mut plain) => {
                let packed = compressor
                    .as_mut()
                    .map_err(|error| anyhow!("{error:#}"))
                    .and_then(|compressor| compressor.compress(&plain).context("compressing"))
                    .and_then(|packed| Ok((frame_of(&packed, plain.len())?, packed)));
                plain.clear();
                // Nobody takes it back once the packer has ended.
                give_back.send(plain).unwrap_or_default();
                packed.map(|(frame, packed)| Done::Frame(packed, frame))
            }
            Job::Packed(packed, frame) => Ok(Done::Frame(packed, frame)),
            Job::Mark => Ok(Done::Mark),
            Job::Rewind => Ok(Done::Rewind),
        };
        if done.send((sequence, result)).is_err() {
            return;
        }
    }
}

fn frame_of(packed: &[u8], plain_len: usize) -> Result<Frame> {
    let hash = *blake3::hash(packed).as_bytes();
    Ok(Frame { offset: 0, len: u32::try_from(packed.len())?, plain_len: u32::try_from(plain_len)?, hash })
}

/// Writes frames in the order of the stream, whichever was compressed first.
fn write(file: &File, finished: &Receiver<(u64, Result<Done>)>, checker: &Checker<'_>) -> Result<Written> {
    let mut early = BTreeMap::new();
    let mut next = 0;
    let mut written = Written { frames: Vec::new(), end: 0, sha256: Sha256::new() };
    let mut marked = (0, 0, Sha256::new());
    while let Ok((sequence, done)) = finished.recv() {
        early.insert(sequence, done?);
        while let Some(done) = early.remove(&next) {
            next += 1;
            match done {
                Done::Frame(packed, frame) => {
                    file.write_all_at(&packed, written.end).context("writing the archive")?;
                    written.sha256.update(&packed);
                    let frame = Frame { offset: written.end, ..frame };
                    written.frames.push(frame);
                    written.end += u64::from(frame.len);
                    checker.add(frame);
                }
                Done::Mark => marked = (written.frames.len(), written.end, written.sha256.clone()),
                Done::Rewind => {
                    written.frames.truncate(marked.0);
                    (written.end, written.sha256) = (marked.1, marked.2.clone());
                    checker.rewind(marked.0);
                }
            }
        }
    }
    Ok(written)
}
