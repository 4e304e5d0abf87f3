//! A signal in the middle of the work on etcd: alone in its process, because a signal is for all of it.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use recovery::error::exit_code;
use recovery::etcd::{self, Options};
use testing::etcd::{Etcd, Options as Start, Version};

#[test]
fn an_interruption_is_75_and_leaves_the_old_member() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (data, file) = (dir.path().join("data"), dir.path().join("snapshot.db"));
    let etcd = Etcd::start(Version::V35, &data, &Start::default())?;
    etcd.put_bytes(20_000_000)?;
    etcd::save(&etcd.endpoint, &file, Duration::from_secs(30), &|_| ())?;
    recovery::node::clock::catch_signals()?;
    // The signal comes with the first bytes; 20 MB are more than is on its way then.
    let done = AtomicU64::new(0);
    let signal = |bytes| {
        if done.fetch_add(bytes, Ordering::Relaxed) == 0 {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
        }
    };
    let error = etcd::save(&etcd.endpoint, &dir.path().join("second.db"), Duration::from_secs(30), &signal).unwrap_err();
    assert_eq!(exit_code(&error), 75, "{error:#}");
    assert!(done.load(Ordering::Relaxed) < 20_000_000);
    etcd.stop()?;
    for error in [
        etcd::verify(&file, &|_| ()).unwrap_err(),
        etcd::status(&file, &|_| ()).unwrap_err(),
        etcd::restore(&file, &dir.path().join("new"), &Options::default(), &|_| ()).unwrap_err(),
        etcd::replace(&file, &data, "run", &Options::default(), &|_| ()).unwrap_err(),
    ] {
        assert_eq!(exit_code(&error), 75, "{error:#}");
    }
    let names = |dir: &Path| -> Result<Vec<_>> { std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect() };
    assert_eq!(names(&data)?, ["member"]);
    assert!(!dir.path().join("new").exists() && !etcd::is_replaced(&data, "run"));
    Ok(())
}
