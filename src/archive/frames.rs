//! Random access to the data of an archive that has an index.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::index::Frame;
use super::unreadable::{Carried, unreadable};
use crate::error::damaged;

/// The frames of an archive.
#[derive(Debug)]
pub(super) struct Frames {
    file: File,
    table: Vec<Frame>,
}

impl Frames {
    pub(super) fn new(file: File, table: Vec<Frame>) -> Self {
        Self { file, table }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn table(&self) -> &[Frame] {
        &self.table
    }

    /// Reads a frame as it is in the file, and checks it against its hash.
    ///
    /// # Errors
    /// `FailureKind::Damaged` when it is not as it was written.
    pub(super) fn read(&self, number: u32, into: &mut Vec<u8>) -> Result<Frame> {
        let frame = usize::try_from(number).ok().and_then(|n| self.table.get(n)).copied();
        let frame = frame.ok_or_else(|| damaged(format!("the archive is damaged: it has no frame {number}")))?;
        read_frame(&self.file, &frame, into)?;
        Ok(frame)
    }
}

/// Reads a frame as it is in the file, and checks it against its hash.
///
/// # Errors
/// `FailureKind::Damaged` when it is not as it was written.
pub(super) fn read_frame(file: &File, frame: &Frame, into: &mut Vec<u8>) -> Result<()> {
    into.resize(usize::try_from(frame.len)?, 0);
    file.read_exact_at(into, frame.offset).map_err(unreadable)?;
    if *blake3::hash(into).as_bytes() == frame.hash {
        return Ok(());
    }
    Err(damaged(format!("the archive is damaged: the frame at byte {} is not as it was written", frame.offset)))
}

/// Reads the decompressed stream from any place in an archive. It keeps its buffers and the current frame, so each worker has its own.
pub(super) struct FrameReader {
    frames: Arc<Frames>,
    decompressor: zstd::bulk::Decompressor<'static>,
    packed: Vec<u8>,
    plain: Vec<u8>,
    /// The frame that `plain` holds.
    number: Option<u32>,
    at: usize,
}

impl FrameReader {
    pub(super) fn new(frames: Arc<Frames>) -> Result<Self> {
        let decompressor = zstd::bulk::Decompressor::new().context("preparing to decompress")?;
        Ok(Self { frames, decompressor, packed: Vec::new(), plain: Vec::new(), number: None, at: 0 })
    }

    /// Goes to a place in the stream.
    ///
    /// # Errors
    /// `FailureKind::Damaged` when there is no such place, or the frame is damaged.
    pub(super) fn seek(&mut self, frame: u32, offset: u32) -> Result<()> {
        if self.number != Some(frame) {
            self.load(frame)?;
        }
        self.at = usize::try_from(offset)?;
        if self.at < self.plain.len() {
            Ok(())
        } else {
            Err(damaged("the archive is damaged: an entry begins beyond the end of its frame"))
        }
    }

    /// The current place: the number of the frame, and the offset in it. The end of a frame is the start of the next.
    pub(super) fn place(&self) -> (u32, usize) {
        match self.number {
            Some(number) if self.at == self.plain.len() => (number + 1, 0),
            Some(number) => (number, self.at),
            None => (0, 0),
        }
    }

    fn load(&mut self, number: u32) -> Result<()> {
        self.number = None;
        let frame = self.frames.read(number, &mut self.packed)?;
        let plain_len = usize::try_from(frame.plain_len)?;
        self.plain.clear();
        self.plain.reserve_exact(plain_len);
        let len = self
            .decompressor
            .decompress_to_buffer(&self.packed, &mut self.plain)
            .map_err(|error| damaged(format!("the archive is damaged: frame {number}: {error}")))?;
        if len != plain_len {
            return Err(damaged(format!("the archive is damaged: frame {number} has another length than the index says")));
        }
        (self.number, self.at) = (Some(number), 0);
        Ok(())
    }
}

impl Read for FrameReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let chunk = self.fill_buf()?;
        let len = chunk.len().min(into.len());
        into[..len].copy_from_slice(&chunk[..len]);
        self.consume(len);
        Ok(len)
    }
}

impl BufRead for FrameReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.plain.len() {
            let next = self.number.map_or(0, |number| number + 1);
            if usize::try_from(next).is_ok_and(|next| next >= self.frames.table.len()) {
                return Ok(&[]);
            }
            self.load(next).map_err(|error| io::Error::other(Carried(error)))?;
        }
        Ok(&self.plain[self.at..])
    }

    fn consume(&mut self, len: usize) {
        self.at += len;
    }
}
