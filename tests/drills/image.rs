//! The image: the agent and nothing else for each architecture, the same bytes each time, and the same image that the Containerfile describes.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::jobs::{self, AGENT};
use real_node::command::sha256;

/// A file of the archive, by its name in it.
fn member(archive: &[u8], name: &str) -> Result<Vec<u8>> {
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        if entry.path()?.as_ref() == Path::new(name) {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            return Ok(bytes);
        }
    }
    anyhow::bail!("there is no {name} in the archive")
}

/// What a descriptor points to; its digest and size have to be right.
fn blob(archive: &[u8], descriptor: &Value) -> Result<Vec<u8>> {
    let digest =
        descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:")).context("a descriptor without a digest")?;
    let bytes = member(archive, &format!("blobs/sha256/{digest}"))?;
    ensure!(sha256(&bytes) == digest && descriptor["size"] == bytes.len(), "the blob {digest} is not what its descriptor says");
    Ok(bytes)
}

#[test]
fn the_image_is_the_agent_alone_and_the_same_each_time() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let build = |name: &str| -> Result<Vec<u8>> {
        jobs::build_image(jobs::IMAGE, &dir.path().join(name))?;
        Ok(std::fs::read(dir.path().join(name))?)
    };
    let (archive, again) = (build("first.tar")?, build("second.tar")?);
    ensure!(archive == again, "the same binary made two images");

    let layout: Value = serde_json::from_slice(&member(&archive, "index.json")?)?;
    ensure!(layout["manifests"].as_array().map(Vec::len) == Some(1), "the archive holds more than one image: {layout}");
    let index: Value = serde_json::from_slice(&blob(&archive, &layout["manifests"][0])?)?;
    let manifests = index["manifests"].as_array().context("an index of nothing")?;
    ensure!(manifests.len() == 2, "{index}");
    for (manifest, (architecture, program)) in manifests.iter().zip([("amd64", std::fs::read(AGENT)?), ("arm64", jobs::arm_program()?)]) {
        ensure!(manifest["platform"] == serde_json::json!({"architecture": architecture, "os": "linux"}), "{manifest}");
        holds_the_agent_alone(&archive, manifest, architecture, &program)?;
    }
    Ok(())
}

/// The image that a manifest describes.
fn holds_the_agent_alone(archive: &[u8], descriptor: &Value, architecture: &str, program: &[u8]) -> Result<()> {
    let manifest: Value = serde_json::from_slice(&blob(archive, descriptor)?)?;
    let config: Value = serde_json::from_slice(&blob(archive, &manifest["config"])?)?;
    ensure!(manifest["layers"].as_array().map(Vec::len) == Some(1) && config["architecture"] == architecture, "{manifest}: {config}");
    let layer = blob(archive, &manifest["layers"][0])?;
    ensure!(config["rootfs"]["diff_ids"][0] == format!("sha256:{}", sha256(&layer)), "the configuration is of another layer: {config}");

    let mut held = Vec::new();
    for entry in tar::Archive::new(layer.as_slice()).entries()? {
        let mut entry = entry?;
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        let header = entry.header();
        ensure!((header.uid()?, header.gid()?) == (0, 0), "{} is not root's", entry.path()?.display());
        held.push((format!("/{}", entry.path()?.display()), header.mode()?, sha256(bytes)));
    }
    ensure!(held == [("/recovery".to_owned(), 0o755, sha256(program))], "the layer holds {held:?}");
    containerfile_says(&held[0].0, held[0].1, &config["config"])
}

/// The other way to the image: every instruction of it is known here, and is what the archive has.
fn containerfile_says(path: &str, mode: u32, config: &Value) -> Result<()> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/image/Containerfile"))?;
    let instructions: Vec<&str> = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    let copy = format!("COPY --chmod=0{mode:o} recovery {path}");
    let [from, copies, entrypoint] = instructions[..] else { anyhow::bail!("the Containerfile does something else too: {instructions:?}") };
    ensure!(from == "FROM scratch" && copies == copy, "{instructions:?}");
    let entrypoint: Value = serde_json::from_str(entrypoint.strip_prefix("ENTRYPOINT ").context("the last instruction is no ENTRYPOINT")?)?;
    ensure!(*config == serde_json::json!({"Entrypoint": entrypoint}), "the Containerfile starts {entrypoint}, the image {config}");
    Ok(())
}
