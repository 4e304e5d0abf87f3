//! Saving: the Maintenance `Snapshot` stream, received, checked, compressed, hashed and written at the same time.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use data_encoding::HEXLOWER;
use etcd_client::SnapshotStreaming;
use sha2::{Digest, Sha256};

use super::client::Connection;
use super::pipe::{PIECE, Source, pump};
use super::snapshot::{self, Trailer, is_to_be_compressed};
use super::{Endpoint, Saved, Tick};
use crate::node::durable;

/// The zstd level: 1 keeps up with etcd, and a database compresses well at any level.
const LEVEL: i32 = 1;
/// The suffix of the file's name until the file is whole.
const PART: &str = ".part";

/// Saves a snapshot; see [`super::save()`].
pub(super) fn save(endpoint: &Endpoint, file: &Path, limit: Duration, tick: Tick<'_>) -> Result<Saved> {
    let mut part = file.as_os_str().to_owned();
    part.push(PART);
    let part = Path::new(&part);
    if file.symlink_metadata().is_ok() {
        ensure!(is_same(part, file), "{} exists already: name a new file", file.display());
        return finished(part, file, tick).with_context(|| format!("reading the snapshot {}", file.display()));
    }
    // Left by a call that was killed.
    durable::remove(part)?;
    let saved = receive(endpoint, part, is_to_be_compressed(file), limit, tick).and_then(|saved| {
        durable::name_new(part, file)?;
        Ok(saved)
    });
    if saved.is_err() {
        durable::remove(part)?;
    }
    saved.with_context(|| format!("saving a snapshot of etcd to {}", file.display()))
}

/// True when both are names of one file.
fn is_same(part: &Path, file: &Path) -> bool {
    let id = |path: &Path| path.symlink_metadata().ok().filter(std::fs::Metadata::is_file).map(|meta| (meta.dev(), meta.ino()));
    id(part).is_some_and(|part| id(file) == Some(part))
}

/// Ends a save that was stopped after its whole file had got its name: returns what it saved.
fn finished(part: &Path, file: &Path, tick: Tick<'_>) -> Result<Saved> {
    let whole = snapshot::verify(file, false, tick)?;
    let mut stored = snapshot::open(file)?;
    let (mut hash, mut len) = (Sha256::new(), 0);
    let look = &mut |piece: &[u8]| {
        hash.update(piece);
        len += piece.len() as u64;
        Ok(())
    };
    pump(&mut stored, look, &mut std::io::sink())?;
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    durable::sync_dir(dir)?;
    std::fs::remove_file(part).with_context(|| format!("removing {}", part.display()))?;
    let age = stored.metadata()?.modified()?.elapsed().unwrap_or_default().as_secs();
    tracing::warn!(
        "{} is complete: it was saved {age} s ago by a call that was stopped at its very end; for a newer one, remove it and run this \
         again",
        file.display()
    );
    Ok(Saved { bytes: whole.len + snapshot::TRAILER as u64, stored: len, sha256: HEXLOWER.encode(&hash.finalize()) })
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
    file: File,
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
