//! `rpm-ostree status --json`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use recovery::tools::rpm_ostree::parse;
use recovery_fuzz::{deployments, refused};

fuzz_target!(|printed: &[u8]| match parse(printed) {
    Ok(all) => deployments(&all),
    Err(error) => refused(&error),
});
