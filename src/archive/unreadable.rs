//! What an I/O error means while an archive is read.

use crate::error::damaged;

/// One of our own errors, on its way through [`std::io::Read`].
#[derive(Debug)]
pub(super) struct Carried(pub(super) anyhow::Error);

impl std::fmt::Display for Carried {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "{:#}", self.0)
    }
}

impl std::error::Error for Carried {}

/// What an error while reading compressed data means: the disk's errors have an error number, the decompressor's do not.
pub(super) fn unreadable(error: std::io::Error) -> anyhow::Error {
    if error.raw_os_error().is_some() {
        return anyhow::Error::from(error).context("reading the archive");
    }
    match error.downcast::<Carried>() {
        Ok(Carried(own)) => own,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => damaged("the archive is truncated"),
        Err(error) => damaged(format!("the archive is damaged: {error}")),
    }
}
