//! Container images from static programs, as `docker save` writes them: one layer, nothing else. No registry is asked for anything.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::{Compression, write::GzEncoder};
use serde_json::json;
use tar::{Builder, EntryType, Header};

use super::command::sha256;

/// An image that is made.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its names, all of the same content.
    pub names: Vec<String>,
    /// The programs in it, which go to `/usr/local/bin`; the first is what runs.
    pub programs: Vec<PathBuf>,
}

fn header(path: &str, kind: EntryType, size: u64, mode: u32) -> Result<Header> {
    let mut header = Header::new_ustar();
    header.set_path(path)?;
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_cksum();
    Ok(header)
}

/// The layer, compressed, and the hash of what it is uncompressed.
fn layer(programs: &[PathBuf]) -> Result<(Vec<u8>, String)> {
    let mut plain = Vec::new();
    let mut tar = Builder::new(&mut plain);
    for folder in ["tmp/", "etc/", "usr/", "usr/local/", "usr/local/bin/"] {
        let mode = if folder == "tmp/" { 0o1777 } else { 0o755 };
        tar.append(&header(folder, EntryType::Directory, 0, mode)?, std::io::empty())?;
    }
    for program in programs {
        let file = File::open(program).with_context(|| format!("opening {}", program.display()))?;
        let name = program.file_name().context("a program without a name")?.to_string_lossy();
        tar.append(&header(&format!("usr/local/bin/{name}"), EntryType::Regular, file.metadata()?.len(), 0o755)?, file)?;
    }
    tar.into_inner()?;
    let hash = sha256(&plain);
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(&plain)?;
    Ok((packed.finish()?, hash))
}

impl Image {
    /// Writes it to `path`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let (layer, hash) = layer(&self.programs)?;
        let first = self.programs.first().and_then(|path| path.file_name()).context("an image without a program")?.to_string_lossy();
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Entrypoint": [format!("/usr/local/bin/{first}")], "Env": ["PATH=/usr/local/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{hash}")]},
        });
        let config = config.to_string();
        let name = format!("{}.json", sha256(&config));
        let manifest = json!([{"Config": name, "RepoTags": self.names, "Layers": [format!("{hash}/layer.tar")]}]).to_string();
        let mut tar = Builder::new(File::create(path).with_context(|| format!("making {}", path.display()))?);
        for (name, bytes) in
            [(name, config.as_bytes()), ("manifest.json".to_owned(), manifest.as_bytes()), (format!("{hash}/layer.tar"), &layer)]
        {
            tar.append(&header(&name, EntryType::Regular, bytes.len() as u64, 0o644)?, bytes)?;
        }
        tar.into_inner()?;
        Ok(())
    }
}
