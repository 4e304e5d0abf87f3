//! Files of the agent that end with a checksum, changed by a test and sealed again.

use std::path::Path;

use anyhow::{Context, Result};
use recovery::formats::{seal, unsealed};
use serde_json::Value;

/// What is in such a file.
pub fn read(file: &Path) -> Result<Value> {
    let bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    Ok(serde_json::from_slice(&unsealed(&bytes).context("its checksum does not match")?)?)
}

/// Changes what is in it.
pub fn edit(file: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut document = read(file)?;
    change(&mut document);
    write(file, &document)
}

/// Writes it with a checksum.
pub fn write(file: &Path, document: &Value) -> Result<()> {
    Ok(std::fs::write(file, seal(document)?)?)
}
