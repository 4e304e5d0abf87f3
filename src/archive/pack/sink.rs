//! Where the frames of a new archive go: several threads compress them, another writes them in order and hashes them, and another reads
//! them back from the disk some way behind (see [`mod@super::read_back`]).
//!
//! A fixed number of buffers goes from the packer to the compressors, the writer and back, so memory is bounded: a thread that is ahead
//! waits for a buffer.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

use anyhow::{Context, Result, anyhow};
use sha2::{Digest, Sha256};
use zstd::bulk::Compressor;

use super::read_back::ReadBack;
use super::reuse::Unusable;
use crate::archive::frames::Frames;
use crate::archive::index::{Frame, compressor};
use crate::archive::work;

/// The frame that small entries share ends at this many bytes. When one of its entries changes, a later backup packs the whole frame again,
/// so it is small. (At half this size archives grow and nothing is gained; at four times this size, most frames are packed again for a tree
/// in which two files of a hundred have changed.)
pub(super) const FRAME_SIZE: usize = 128 << 10;
/// The size of a buffer: a full frame and one more small file, or a piece of a large one, which is a frame of its own.
const BUFFER_ROOM: usize = 1 << 20;

/// A frame on its way to the file.
#[derive(Default)]
pub(super) struct Buffer {
    /// A piece of the tar stream.
    pub(super) plain: Vec<u8>,
    /// The same, compressed.
    pub(super) packed: Vec<u8>,
}

enum Job {
    /// A piece to compress.
    Plain(Buffer),
    /// A frame to take over from an older archive, by its number.
    Old(Buffer, Arc<Frames>, u32),
    Mark,
    Rewind,
}

enum Done {
    Frame(Buffer, Frame),
    Mark,
    Rewind,
}

/// The packer's handle of the threads that compress and write.
pub(super) struct Sink<'scope> {
    jobs: SyncSender<(u64, Job)>,
    buffers: Receiver<Buffer>,
    sequence: u64,
    frames: u32,
    mark: u32,
    writer: ScopedJoinHandle<'scope, Result<(Written, ReadBack<'scope>)>>,
}

/// What has been written.
pub(super) struct Written {
    pub(super) frames: Vec<Frame>,
    pub(super) end: u64,
    pub(super) sha256: Sha256,
}

impl<'scope> Sink<'scope> {
    /// Starts the threads that compress, and the one that writes to `file` and tells `reader` about it.
    pub(super) fn start<'env>(scope: &'scope Scope<'scope, 'env>, file: &'env File, reader: ReadBack<'scope>) -> Self {
        let threads = work::threads();
        let (jobs, to_do) = sync_channel(threads);
        let (done, finished) = channel();
        let (give_back, buffers) = channel();
        // One buffer that is being filled; and for each compressor one that waits for it, one that it has, and one that waits for the
        // writer.
        for _ in 0..=3 * threads {
            let buffer = Buffer { plain: Vec::with_capacity(BUFFER_ROOM), packed: Vec::new() };
            give_back.send(buffer).unwrap_or_default();
        }
        let to_do = Arc::new(Mutex::new(to_do));
        for _ in 0..threads {
            let (to_do, done) = (to_do.clone(), done.clone());
            scope.spawn(move || compress(&to_do, &done));
        }
        let writer = scope.spawn(move || write(file, &finished, &give_back, &reader).map(|written| (written, reader)));
        Self { jobs, buffers, sequence: 0, frames: 0, mark: 0, writer }
    }

    /// An empty buffer for the next piece of the stream; waits until one is free.
    pub(super) fn buffer(&self) -> Result<Buffer> {
        self.buffers.recv().map_err(|_| stopped())
    }

    /// The number that the next frame will have.
    pub(super) fn next_frame(&self) -> u32 {
        self.frames
    }

    /// Compresses and writes a piece of the stream as a frame.
    pub(super) fn frame(&mut self, buffer: Buffer) -> Result<()> {
        self.frames += 1;
        self.send(Job::Plain(buffer))
    }

    /// Writes a frame of an older archive as it is. When it is damaged, [`Sink::finish`] fails with [`Unusable`].
    pub(super) fn copy(&mut self, frames: &Arc<Frames>, number: u32) -> Result<()> {
        self.frames += 1;
        let job = Job::Old(self.buffer()?, frames.clone(), number);
        self.send(job)
    }

    /// Remembers this place in the archive, in place of the one remembered before.
    pub(super) fn remember(&mut self) -> Result<()> {
        self.mark = self.frames;
        self.send(Job::Mark)
    }

    /// Goes back to the remembered place: what was written after it is removed.
    pub(super) fn rewind(&mut self) -> Result<()> {
        self.frames = self.mark;
        self.send(Job::Rewind)
    }

    /// Waits until all is written.
    ///
    /// # Errors
    /// The error of whichever thread failed.
    pub(super) fn finish(self) -> Result<(Written, ReadBack<'scope>)> {
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

/// The error when another thread has failed; that thread's error says why.
fn stopped() -> anyhow::Error {
    anyhow!("the archive could not be written")
}

fn compress(to_do: &Mutex<Receiver<(u64, Job)>>, done: &Sender<(u64, Result<Done>)>) {
    let mut compressor = compressor();
    loop {
        let next = to_do.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((sequence, job)) = next else { return };
        let result = match job {
            Job::Plain(mut buffer) => match &mut compressor {
                Ok(compressor) => compress_frame(compressor, &mut buffer).map(|frame| Done::Frame(buffer, frame)),
                Err(error) => Err(anyhow!("{error:#}")),
            },
            Job::Old(mut buffer, frames, number) => {
                frames.read(number, &mut buffer.packed).map(|frame| Done::Frame(buffer, frame)).context(Unusable)
            }
            Job::Mark => Ok(Done::Mark),
            Job::Rewind => Ok(Done::Rewind),
        };
        if done.send((sequence, result)).is_err() {
            return;
        }
    }
}

fn compress_frame(compressor: &mut Compressor<'_>, Buffer { plain, packed }: &mut Buffer) -> Result<Frame> {
    packed.clear();
    packed.reserve(zstd::zstd_safe::compress_bound(plain.len()));
    compressor.compress_to_buffer(plain, packed).context("compressing")?;
    let hash = *blake3::hash(packed).as_bytes();
    Ok(Frame { offset: 0, len: u32::try_from(packed.len())?, plain_len: u32::try_from(plain.len())?, hash })
}

/// Writes the frames in the order of the stream, whichever was compressed first.
fn write(file: &File, finished: &Receiver<(u64, Result<Done>)>, give_back: &Sender<Buffer>, reader: &ReadBack<'_>) -> Result<Written> {
    let mut early = BTreeMap::new();
    let mut next = 0;
    let mut written = Written { frames: Vec::new(), end: 0, sha256: Sha256::new() };
    let mut marked = (0, 0, Sha256::new());
    while let Ok((sequence, done)) = finished.recv() {
        early.insert(sequence, done?);
        while let Some(done) = early.remove(&next) {
            next += 1;
            match done {
                Done::Frame(mut buffer, frame) => {
                    file.write_all_at(&buffer.packed, written.end).context("writing the archive")?;
                    written.sha256.update(&buffer.packed);
                    buffer.plain.clear();
                    // The packer has ended when nobody takes the buffer back.
                    give_back.send(buffer).unwrap_or_default();
                    let frame = Frame { offset: written.end, ..frame };
                    written.frames.push(frame);
                    written.end += u64::from(frame.len);
                    reader.add(frame);
                }
                Done::Mark => marked = (written.frames.len(), written.end, written.sha256.clone()),
                Done::Rewind => {
                    written.frames.truncate(marked.0);
                    (written.end, written.sha256) = (marked.1, marked.2.clone());
                    reader.rewind(marked.0);
                }
            }
        }
    }
    Ok(written)
}
