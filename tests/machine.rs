//! What `src/node` does where only root can look: directories that belong to root, file systems that are full, mounted, or lose their power.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails with it, helpers included")]

use std::fs::{File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use recovery::error::exit_code;
use recovery::node::Node;
use recovery::node::dir::{DEFAULT, RecoveryDir};
use recovery::node::durable::{create_dir, remove, remove_tree, sync_file_system, write};
use recovery::node::mounts::usage;

#[test]
fn the_second_of_two_is_told_who_holds_the_lock() -> Result<()> {
    let root = tempfile::tempdir()?;
    let dir = RecoveryDir::new(&Node::at(root.path(), None), Path::new(DEFAULT));
    dir.prepare()?;
    assert_eq!(dir.holder(), None);
    let held = dir.lock("backup")?;
    assert!(dir.holder().is_some_and(|holder| holder.starts_with("`recovery backup` (process")));
    let error = dir.lock("resume").unwrap_err();
    assert_eq!(exit_code(&error), 75);
    assert!(error.to_string().contains("`recovery backup` (process"), "{error}");
    drop(held);
    dir.lock("resume").map(drop)
}

#[test]
fn a_directory_others_can_write_to_is_refused() -> Result<()> {
    let root = tempfile::tempdir()?;
    let dir = RecoveryDir::new(&Node::at(root.path(), None), Path::new(DEFAULT));
    dir.prepare()?;
    for path in [dir.path().to_owned(), dir.backups()] {
        std::fs::set_permissions(&path, Permissions::from_mode(0o777))?;
        assert_eq!(exit_code(&dir.prepare().unwrap_err()), 77, "{}", path.display());
        std::fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        dir.check_owner()?;
    }
    Ok(())
}

#[test]
fn a_directory_that_was_there_before_is_left_to_root_alone() -> Result<()> {
    let root = tempfile::tempdir()?;
    let dir = RecoveryDir::new(&Node::at(root.path(), None), Path::new(DEFAULT));
    std::fs::create_dir_all(dir.backups())?;
    for path in [dir.path().to_owned(), dir.backups()] {
        std::fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    }
    dir.prepare()?;
    assert_eq!([dir.path().metadata()?.mode() & 0o7777, dir.backups().metadata()?.mode() & 0o7777], [0o700, 0o700]);
    Ok(())
}

/// A file system of the directory's own that has no room for anything more.
struct Full(tempfile::TempDir);

impl Full {
    fn mount(with_lock: bool) -> (Self, RecoveryDir) {
        let root = tempfile::tempdir().unwrap();
        let dir = RecoveryDir::new(&Node::at(root.path(), None), Path::new(DEFAULT));
        dir.prepare().unwrap();
        let mount = |args: &[&str]| Command::new("mount").args(args).arg(dir.path()).status().unwrap();
        assert!(mount(&["-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs"]).success());
        let full = Self(root);
        if with_lock {
            std::fs::write(dir.path().join("lock"), "").unwrap();
        }
        std::fs::write(dir.path().join("filler"), vec![1; 128 << 10]).unwrap_err();
        // An empty file takes no block of a tmpfs, but a name.
        assert!(mount(&["-o", "remount,nr_inodes=3"]).success());
        std::fs::write(dir.path().join("last"), "").ok();
        (full, dir)
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(self.0.path().join("var/recovery")).status().ok();
    }
}

#[test]
fn a_full_disk_does_not_keep_a_lock_from_being_taken_that_is_there() {
    let (_full, dir) = Full::mount(true);
    dir.lock("prune").unwrap();
}

#[test]
fn a_disk_without_room_for_the_lock_says_what_to_delete_by_hand() {
    let (_full, dir) = Full::mount(false);
    let error = dir.lock("prune").unwrap_err();
    assert_eq!(exit_code(&error), 73);
    assert!(error.to_string().contains("`rm -r /var/recovery/backups/ID`"), "{error}");
}

#[test]
fn a_tree_with_an_immutable_file_is_removed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let tree = dir.path().join("tree");
    create_dir(&tree, 0o700)?;
    write(&tree.join("file"), b"one", 0o600)?;
    let file = File::open(tree.join("file"))?;
    rustix::fs::ioctl_setflags(&file, rustix::fs::ioctl_getflags(&file)? | rustix::fs::IFlags::IMMUTABLE)?;
    assert!(std::fs::remove_dir_all(&tree).is_err());
    remove_tree(&tree)?;
    assert!(!tree.exists());
    Ok(())
}

/// A file system of its own, in a mount namespace of its own: nobody else keeps it from being unmounted.
fn on_a_disk(work: impl FnOnce(&Path, &dyn Fn()) -> Result<()> + Send + 'static) -> Result<()> {
    use nix::sched::{CloneFlags, unshare};
    let disk = || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)?;
        let dir = tempfile::tempdir()?;
        let (image, at) = (dir.path().join("image"), dir.path().join("at"));
        File::create(&image)?.set_len(400 << 20)?;
        std::fs::create_dir(&at)?;
        let sh = |script: &str| {
            let status = Command::new("sh").args(["-euc", script, "sh"]).args([&image, &at]).status();
            assert!(status.is_ok_and(|status| status.success()), "{script}");
        };
        sh("mount --make-rprivate /; mkfs.xfs -q $1; mount -o loop $1 $2");
        // All that is not on disk is lost.
        // A child that another thread forks at that moment holds its files open until it is another program.
        let umount = "n=0; until umount $2 2> $1.busy; do n=$((n + 1)); [ $n -lt 500 ] || { cat $1.busy >&2; exit 1; }; sleep 0.02; done";
        let result = work(&at, &|| sh(&format!("xfs_io -x -c shutdown $2; {umount}; mount -o loop $1 $2")));
        sh("umount -l $2");
        result
    };
    std::thread::spawn(disk).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[test]
fn what_another_made_or_removed_and_did_not_sync_survives_a_power_cut() -> Result<()> {
    on_a_disk(|at, cut_power| {
        let (file, tree, dir) = (at.join("a/file"), at.join("b/tree"), at.join("c/dir"));
        for above in ["a", "b/tree", "c"] {
            std::fs::create_dir_all(at.join(above))?;
        }
        std::fs::write(&file, "one")?;
        sync_file_system(at)?;

        std::fs::remove_file(&file)?;
        remove(&file)?;
        cut_power();
        assert!(!file.exists());
        std::fs::remove_dir(&tree)?;
        remove_tree(&tree)?;
        cut_power();
        assert!(!tree.exists());
        std::fs::create_dir(&dir)?;
        create_dir(&dir, 0o700)?;
        cut_power();
        assert!(dir.exists());
        // With all that was above it.
        std::fs::remove_dir_all(at.join("b"))?;
        remove(&at.join("b/more/file"))?;
        cut_power();
        assert!(!at.join("b").exists());
        Ok(())
    })
}

#[test]
fn names_of_one_file_count_once_holes_and_mounts_not_at_all() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("a"), vec![1_u8; 100_000])?;
    std::fs::hard_link(at("a"), at("b"))?;
    std::fs::File::create(at("hole"))?.set_len(1 << 30)?;
    std::fs::create_dir_all(at("d/mounted here"))?;
    std::fs::write(at("d/c"), vec![1_u8; 50_000])?;
    // A bind mount has the device of its source: only mountinfo tells.
    let bound = dir.path().join("d/mounted here");
    assert!(Command::new("mount").arg("--bind").arg(dir.path().join("d")).arg(&bound).status()?.success());
    let bytes = usage(dir.path());
    assert!(Command::new("umount").arg("--lazy").arg(&bound).status()?.success());
    let bytes = bytes?;
    assert!((150_000..170_000).contains(&bytes), "{bytes}");
    assert_eq!(usage(&at("nothing"))?, 0);
    Ok(())
}
