//! `manifest.json` of a backup.
#![no_main]

use libfuzzer_sys::fuzz_target;
use recovery::backup::manifest::Manifest;
use recovery::formats::manifest::V3;
use recovery::formats::to_json;
use recovery_fuzz::{refused, stays_inside};

fuzz_target!(|json: &[u8]| {
    let manifest = match Manifest::parse(json) {
        Ok(manifest) => manifest,
        Err(error) => return refused(&error),
    };
    // A pattern may begin with `.`, which leads nowhere.
    manifest.etc_excludes.iter().for_each(|pattern| stays_inside(pattern.strip_prefix(".").unwrap_or(pattern)));
    // What an agent reads, it can write, and reads again as the same.
    let written = to_json(&V3::from(manifest.clone())).expect("JSON");
    assert_eq!(Manifest::parse(&written).expect("what was written"), manifest);
});
