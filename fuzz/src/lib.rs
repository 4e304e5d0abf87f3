//! What the targets share: where the bytes are put, and what holds for everything that is accepted or refused.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};

use recovery::archive::{Archive, Extra, Selection};
use recovery::error::{EXIT_CODES, exit_code};
use recovery::node::durable;
use recovery::tools::ostree::{Deployment, SYSROOT, root_of, short};

/// A file in memory.
#[derive(Debug)]
pub struct Bytes(File);

impl Bytes {
    /// One with this content.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        let mut file = File::from(rustix::fs::memfd_create("bytes", rustix::fs::MemfdFlags::empty()).expect("a file in memory"));
        file.write_all(content).expect("memory");
        Self(file)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// An empty directory below `$TMPDIR`, which goes with the value.
#[must_use]
pub fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory in $TMPDIR")
}

/// Puts a file there, and the directories above it.
pub fn put(file: &Path, content: &[u8]) {
    std::fs::create_dir_all(file.parent().expect("a directory")).expect("a directory");
    std::fs::write(file, content).expect("a file");
}

/// A refusal has one of the documented exit codes, and says something.
pub fn refused(error: &anyhow::Error) {
    let code = exit_code(error);
    assert!(EXIT_CODES.iter().any(|(known, _)| *known == code), "exit code {code} is not documented: {error:#}");
    assert!(!format!("{error:#}").trim().is_empty());
}

/// A path that is accepted stays in the tree that it is relative to.
pub fn stays_inside(path: &Path) {
    assert!(path.components().all(|part| matches!(part, Component::Normal(_))), "{} leads out of the tree", path.display());
}

/// What holds for every list of deployments, whoever printed it.
pub fn deployments(all: &[Deployment]) {
    for (place, deployment) in all.iter().enumerate() {
        assert_eq!(deployment.index, place);
        let root = root_of(deployment);
        let below = root.strip_prefix(SYSROOT).expect("a deployment is below the physical root");
        stays_inside(below);
        // ostree/deploy/STATEROOT/deploy/CHECKSUM.SERIAL
        assert_eq!(below.components().count(), 5, "{}", root.display());
        assert!(deployment.to_string().starts_with(&deployment.stateroot));
        assert!(!short(&deployment.stateroot, &deployment.checksum, deployment.serial).is_empty());
    }
    // The first one ahead of the booted one, and the first one after it.
    if let Some(booted) = all.iter().position(|deployment| deployment.booted) {
        assert!(all.iter().filter(|deployment| deployment.pending).count() <= 1);
        assert!(all.iter().filter(|deployment| deployment.rollback).count() <= 1);
        assert!(all[..booted].iter().all(|deployment| !deployment.rollback));
        assert!(all[booted + 1..].iter().all(|deployment| !deployment.pending));
    } else {
        assert!(all.iter().all(|deployment| !deployment.pending && !deployment.rollback));
    }
}

/// What holds for every archive: what opens has sound names, and what is whole can be restored as it is, without touching anything else.
pub fn archive(file: &Path) {
    let archive = match Archive::open(file) {
        Ok(archive) => archive,
        Err(error) => return refused(&error),
    };
    let mut seen = HashSet::new();
    for path in archive.paths() {
        stays_inside(path);
        assert!(seen.insert(path), "{} is there twice", path.display());
        assert!(path.parent().is_none_or(|parent| seen.contains(parent) || !archive.holds_root()), "{} has no parent", path.display());
    }
    if let Err(error) = archive.verify(&|_| ()) {
        return refused(&error);
    }
    let dir = directory();
    let (tree, beside) = (dir.path().join("tree"), dir.path().join("beside"));
    put(&beside, b"as it was");
    let all = Selection::all();
    match archive.restore(&tree, &all, Extra::Delete, &|_| ()) {
        Ok(_) => {
            let (changes, _) = archive.compare(&tree, &all, Extra::Delete, &|_| ()).expect("what was restored");
            assert!(changes.is_empty(), "a second restore would change {changes:?}");
        }
        Err(error) => refused(&error),
    }
    assert_eq!(std::fs::read(&beside).expect("what is beside the tree"), b"as it was");
    let names = std::fs::read_dir(dir.path()).expect("the directory").map(|entry| entry.expect("an entry").file_name());
    assert!(names.into_iter().all(|name| name == "tree" || name == "beside"), "something was made beside the tree");
    // Files can be immutable, which keeps the directory from going by itself.
    durable::remove_tree(dir.path()).expect("the directory is removed");
}
