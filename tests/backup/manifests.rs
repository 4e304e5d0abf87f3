//! What a backup says of itself, as it is written and read.

use std::path::Path;

use anyhow::Result;
use recovery::backup::manifest::Manifest;
use recovery::error::exit_code;
use recovery::formats::manifest::FORMAT;

use testing::manifest::plain;

#[test]
fn it_reads_what_it_wrote() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let written = plain("20260101T000000Z-4.16.8", 3);
    written.write(dir.path())?;
    assert_eq!(Manifest::read(dir.path())?, written);
    Ok(())
}

#[test]
fn another_version_an_unknown_field_and_garbage_are_refused() -> Result<()> {
    let good = serde_json::to_value(plain("a", 1))?;
    let mut newer = good.clone();
    let version = FORMAT.version + 1;
    newer["version"] = version.into();
    newer["news"] = true.into();
    let error = Manifest::parse(&serde_json::to_vec(&newer)?).unwrap_err();
    assert_eq!(exit_code(&error), 64);
    assert!(error.to_string().contains(&format!("version {version}, written by recovery 0.1.0")), "{error}");
    let mut unknown = good;
    unknown["news"] = true.into();
    let error = Manifest::parse(&serde_json::to_vec(&unknown)?).unwrap_err();
    assert_eq!(exit_code(&error), 65);
    assert!(error.to_string().contains("news"), "{error}");
    assert_eq!(exit_code(&Manifest::parse(b"{").unwrap_err()), 65);
    for pattern in ["../shadow", "/etc/shadow", ""] {
        let mut impossible = plain("a", 1);
        impossible.etc_excludes = vec![pattern.into()];
        let error = Manifest::parse(&serde_json::to_vec(&impossible)?).unwrap_err();
        assert_eq!(exit_code(&error), 65, "{pattern}");
        assert!(error.to_string().contains("etc_excludes"), "{error}");
    }
    assert_eq!(exit_code(&Manifest::read(Path::new("/nowhere")).unwrap_err()), 65);
    Ok(())
}

#[test]
fn a_manifest_of_many_megabytes_is_neither_read_nor_written() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut large = plain("a", 1);
    large.etc_excludes = (0..200_000).map(|at| format!("excluded/{at}").into()).collect();
    let error = large.write(dir.path()).unwrap_err();
    assert!(error.to_string().contains("no more than 2097152 are read"), "{error}");
    assert!(!dir.path().join("manifest.json").exists());
    std::fs::write(dir.path().join("manifest.json"), serde_json::to_vec(&large)?)?;
    let error = Manifest::read(dir.path()).unwrap_err();
    assert_eq!(exit_code(&error), 65);
    assert!(error.to_string().contains("no more than 2097152 are read"), "{error}");
    Ok(())
}
