//! What `crictl` prints.
#![no_main]

use libfuzzer_sys::fuzz_target;
use recovery::tools::crictl::parse;
use recovery_fuzz::refused;

fuzz_target!(|printed: &[u8]| {
    match parse::containers(printed) {
        Ok(all) => {
            for container in all {
                is_an_argument(&container.id);
                assert_eq!(container.running, container.state == "CONTAINER_RUNNING");
            }
        }
        Err(error) => refused(&error),
    }
    match parse::sandboxes(printed) {
        Ok(all) => all.iter().for_each(|sandbox| is_an_argument(&sandbox.id)),
        Err(error) => refused(&error),
    }
    if let Err(error) = parse::images(printed) {
        refused(&error);
    }
    if let Err(error) = parse::is_host_network(printed) {
        refused(&error);
    }
    if let Some(name) = std::str::from_utf8(printed).ok().and_then(parse::runtime_name) {
        assert_eq!(name.trim(), name);
    }
});

/// crictl is called with it, and must not take it for an option, or for all there are.
fn is_an_argument(id: &str) {
    assert!(!id.is_empty() && !id.starts_with('-'), "{id:?}");
}
