//! `currentconfig` of machine-config-daemon.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use recovery::node::Node;
use recovery::node::machine_config::MachineConfig;
use recovery_fuzz::{directory, refused, stays_inside};

fuzz_target!(|json: &[u8]| {
    let config = match MachineConfig::parse(json) {
        Ok(config) => config,
        Err(error) => return refused(&error),
    };
    let mut paths: Vec<&Path> = config.files.iter().map(|file| file.path.as_path()).collect();
    paths.iter().for_each(|path| stays_inside(path.strip_prefix("/").expect("an absolute path")));
    paths.sort_unstable();
    assert!(paths.is_sorted_by(|a, b| a < b), "a file is managed twice");
    let outside = config.outside_etc();
    assert!(outside.is_sorted() && outside.iter().all(|path| !path.starts_with("/etc")));
    for file in &config.files {
        match file.decode() {
            Ok(content) => assert!(content.len() <= json.len().max(32 << 20)),
            Err(error) => refused(&error),
        }
    }
    // On a node that has nothing, each file is missing; and nothing but what the configuration names is spoken of.
    let dir = directory();
    match config.differences_on_disk(&Node::at(dir.path(), None)) {
        Ok(found) => assert!(paths.iter().all(|path| found.iter().any(|difference| difference.path == *path))),
        Err(error) => refused(&error),
    }
});
