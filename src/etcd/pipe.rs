//! One stream of bytes through three threads: one reads (and decompresses, or receives), the calling one looks (and hashes), one writes
//! (and compresses), all at the same time. Only a few pieces are in memory.

use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{ScopedJoinHandle, scope};

use anyhow::{Context, Result};

use crate::node::clock::interrupted;

/// The size of a piece, bytes.
pub(super) const PIECE: usize = 512 << 10;
/// The most pieces that wait between two threads.
const WAITING: usize = 3;

/// Where the bytes come from.
pub(super) trait Source: Send {
    /// Fills the empty `piece` with up to [`PIECE`] bytes; leaves it empty at the end.
    fn fill(&mut self, piece: &mut Vec<u8>) -> Result<()>;
}

impl<R: Read + Send> Source for R {
    fn fill(&mut self, piece: &mut Vec<u8>) -> Result<()> {
        Ok(self.take(PIECE as u64).read_to_end(piece).map(drop)?)
    }
}

/// Passes everything from `source` through `look` to `sink`, in order; an interruption ends it.
pub(super) fn pump(source: &mut dyn Source, look: &mut dyn FnMut(&[u8]) -> Result<()>, sink: &mut (dyn Write + Send)) -> Result<()> {
    scope(|scope| {
        // Pieces go round: read → look → write → read.
        let (spent, empty) = channel();
        let (read, seen) = sync_channel(WAITING);
        let (passed, written) = sync_channel(WAITING);
        let reader = scope.spawn(move || fill(source, &empty, &read));
        let writer = scope.spawn(move || drain(sink, &written, &spent));
        let looked = inspect(look, seen, passed);
        // A thread that fails closes its channels, which ends the others. The error of the first failure is returned.
        let written = joined(writer);
        let read = joined(reader);
        written.and(looked).and(read)
    })
}

fn fill(source: &mut dyn Source, empty: &Receiver<Vec<u8>>, read: &SyncSender<Vec<u8>>) -> Result<()> {
    loop {
        let mut piece: Vec<u8> = empty.try_recv().unwrap_or_else(|_| Vec::with_capacity(PIECE));
        piece.clear();
        source.fill(&mut piece)?;
        if piece.is_empty() || read.send(piece).is_err() {
            return Ok(());
        }
    }
}

fn inspect(look: &mut dyn FnMut(&[u8]) -> Result<()>, seen: Receiver<Vec<u8>>, passed: SyncSender<Vec<u8>>) -> Result<()> {
    for piece in seen {
        interrupted()?;
        look(&piece)?;
        if passed.send(piece).is_err() {
            break;
        }
    }
    drop(passed);
    Ok(())
}

fn drain(sink: &mut (dyn Write + Send), written: &Receiver<Vec<u8>>, spent: &Sender<Vec<u8>>) -> Result<()> {
    for piece in written {
        sink.write_all(&piece).context("writing what was read")?;
        // At the end nobody reads the returned pieces any more.
        spent.send(piece).ok();
    }
    Ok(())
}

fn joined(thread: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    impl Source for Broken {
        fn fill(&mut self, _: &mut Vec<u8>) -> Result<()> {
            anyhow::bail!("no more")
        }
    }

    #[test]
    fn everything_arrives_in_order() -> Result<()> {
        let bytes: Vec<u8> = (0..=250).cycle().take(3 * PIECE + 17).collect();
        let (mut seen, mut sunk) = (Vec::new(), Vec::new());
        pump(
            &mut bytes.as_slice(),
            &mut |piece| {
                seen.extend_from_slice(piece);
                Ok(())
            },
            &mut sunk,
        )?;
        assert!(seen == bytes && sunk == bytes);
        Ok(())
    }

    #[test]
    fn a_failure_anywhere_ends_it_with_its_error() {
        let error = pump(&mut std::io::repeat(1), &mut |_| Ok(()), &mut Full).unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 73);
        let error = pump(&mut std::io::repeat(1), &mut |_| Err(anyhow::anyhow!("seen enough")), &mut std::io::sink()).unwrap_err();
        assert_eq!(error.to_string(), "seen enough");
        let error = pump(&mut Broken, &mut |_| Ok(()), &mut std::io::sink()).unwrap_err();
        assert_eq!(error.to_string(), "no more");
    }
}
