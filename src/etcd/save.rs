//! Saving: the Maintenance `Snapshot` stream, received, checked, compressed, hashed and written at the same time.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use data_encoding::HEXLOWER;
use etcd_client::SnapshotStreaming;
use sha2::{Digest, Sha256};

use super::client::Connection;
use super::pipe::{PIECE, Source, pump};
use super::snapshot::{Trailer, is_compressed};
use super::{Endpoint, Saved, Tick};
use crate::node::durable;

/// zstd's level 1 keeps up with etcd; a database compresses well at any level.
const LEVEL: i32 = 1;
/// The end of the file's name until it is whole.
const PART: &str = ".part";

/// Saves a snapshot; see [`super::save`].
pub(super) fn save(endpoint: &Endpoint, file: &Path, limit: Duration, tick: Tick<'_>) -> Result<Saved> {
    ensure!(file.symlink_metadata().is_err(), "{} is there already: name a file that is not", file.display());
    let mut part = file.as_os_str().to_owned();
    part.push(PART);
    let part = Path::new(&part);
    // Of one that was killed.
    durable::remove(part)?;
    let saved = receive(endpoint, part, is_compressed(file), limit, tick).and_then(|saved| {
        durable::rename(part, file)?;
        Ok(saved)
    });
    if saved.is_err() {
        durable::remove(part)?;
    }
    saved.with_context(|| format!("saving a snapshot of etcd to {}", file.display()))
}

/// Writes the stream to the new file `part`.
fn receive(endpoint: &Endpoint, part: &Path, compressed: bool, limit: Duration, tick: Tick<'_>) -> Result<Saved> {
    let mut stream = Stream::open(endpoint, limit)?;
    let mut trailer = Trailer::default();
    let mut bytes = 0;
    let look = &mut |piece: &[u8]| {
        trailer.update(piece);
        bytes += piece.len() as u64;
        tick(piece.len() as u64);
        Ok(())
    };
    let mut stored = Stored { file: super::new_file(part)?, hash: Sha256::new(), len: 0 };
    if compressed {
        let mut encoder = zstd::Encoder::new(stored, LEVEL)?;
        encoder.include_checksum(true)?;
        pump(&mut stream, look, &mut encoder)?;
        stored = encoder.finish()?;
    } else {
        pump(&mut stream, look, &mut stored)?;
    }
    stored.file.sync_all()?;
    trailer.finish("the snapshot that etcd sent", false)?;
    Ok(Saved { bytes, stored: stored.len, sha256: HEXLOWER.encode(&stored.hash.finalize()) })
}

/// The stream of a snapshot.
struct Stream {
    etcd: Connection,
    pieces: SnapshotStreaming,
}

impl Stream {
    fn open(endpoint: &Endpoint, limit: Duration) -> Result<Self> {
        let mut etcd = Connection::open(endpoint, limit)?;
        let pieces = etcd.answer("asking etcd for a snapshot", async |client| client.snapshot().await)?;
        Ok(Self { etcd, pieces })
    }
}

impl Source for Stream {
    fn fill(&mut self, piece: &mut Vec<u8>) -> Result<()> {
        // etcd sends 32 KiB at a time.
        while piece.len() < PIECE {
            let Some(next) = self.etcd.next("receiving the snapshot", self.pieces.message())? else { break };
            piece.extend_from_slice(next.blob());
        }
        Ok(())
    }
}

/// The file being written, with its hash.
struct Stored {
    file: std::fs::File,
    hash: Sha256,
    len: u64,
}

impl Write for Stored {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.len += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
