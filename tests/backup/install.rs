//! The agent and the old tool's front in the recovery directory. The agent is this test program here: whatever runs puts itself there.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use recovery::agent::Agent;
use recovery::agent::install::{FRONT, install, room};
use recovery::error::exit_code;
use recovery::node::Node;
use recovery::node::dir::RecoveryDir;

use crate::place::{Place, sh};

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn own_length() -> u64 {
    std::env::current_exe().unwrap().metadata().unwrap().len()
}

#[test]
fn what_does_not_fit_leaves_nothing_behind() {
    let place = Place::new();
    let dir = place.dir.path();
    // Nor does what one that was killed left, whether it is needed again or not.
    let left = || std::fs::write(dir.join(".recovery.new"), "part").unwrap();
    std::fs::remove_dir(place.dir.backups()).unwrap();
    {
        let _small = Small::mount(dir);
        left();
        assert_eq!(install(&place.node, &place.dir).map_err(|error| exit_code(&error)), Err(73));
        assert_eq!(names(dir), [""; 0]);
        assert_eq!(room(&place.dir).unwrap(), own_length());
    }
    for _ in 0..2 {
        left();
        std::fs::write(dir.join(".upgrade-recovery.sh.new"), "part").unwrap();
        install(&place.node, &place.dir).unwrap();
        assert_eq!(names(dir), ["recovery", FRONT]);
        assert_eq!(room(&place.dir).unwrap(), 0);
    }
}

#[test]
fn both_are_installed_once_and_can_be_run() {
    let place = Place::new();
    let (binary, front) = (place.dir.agent(), place.dir.path().join(FRONT));
    std::fs::write(&binary, "an older one").unwrap();
    install(&place.node, &place.dir).unwrap();
    let installed = binary.metadata().unwrap();
    assert_eq!((installed.permissions().mode() & 0o7777, installed.len()), (0o755, own_length()));
    // Put there by hand, or copied without its looks, on a host with labels.
    place.put("/sys/fs/selinux/enforce", "1");
    sh(place.dir.path(), "chmod 600 upgrade-recovery.sh && setfattr -n security.selinux -v system_u:object_r:var_t:s0 upgrade-recovery.sh");
    let before = [&binary, &front].map(|path| path.metadata().unwrap().ino());
    install(&place.node, &place.dir).unwrap();
    assert_eq!([&binary, &front].map(|path| path.metadata().unwrap().ino()), before);
    for path in [&binary, &front] {
        let mut label = [0; 100];
        let length = rustix::fs::getxattr(path, "security.selinux", &mut label).unwrap();
        assert_eq!(&label[..length], b"system_u:object_r:bin_t:s0\0", "{}", path.display());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o755, "{}", path.display());
    }
    assert_eq!(std::fs::read_to_string(&front).unwrap(), include_str!("../../packaging/upgrade-recovery.sh"));
}

#[test]
fn a_newer_agent_stays_and_any_other_is_replaced() {
    let place = Place::new();
    let agent = place.dir.agent();
    let version = |path: &Path| Agent::in_file(path).ok().flatten().map(|agent| agent.version.to_string());
    let own = Agent::own().unwrap().version.to_string();
    let newer = of_version("9.9.9");
    let mut of_another_machine = newer.clone();
    testing::agent::pass_for_another_machine(&mut of_another_machine);
    let cut = newer[..newer.len() / 2].to_vec();
    for (there, stays) in [(newer, true), (of_version("0.0.9"), false), (cut, false), (of_another_machine, false)] {
        std::fs::write(&agent, there).unwrap();
        sh(place.dir.path(), "chmod 600 recovery");
        assert_eq!(room(&place.dir).unwrap() == 0, stays);
        install(&place.node, &place.dir).unwrap();
        assert_eq!(version(&agent).as_deref(), Some(if stays { "9.9.9" } else { own.as_str() }));
        assert_eq!(agent.metadata().unwrap().permissions().mode() & 0o7777, 0o755);
    }
    // One that another user has put there.
    std::fs::write(&agent, of_version("9.9.9")).unwrap();
    sh(place.dir.path(), "chown 1000 recovery");
    assert_ne!(room(&place.dir).unwrap(), 0);
    install(&place.node, &place.dir).unwrap();
    assert_eq!((version(&agent).as_deref(), agent.metadata().unwrap().uid()), (Some(own.as_str()), 0));
}

/// On the machine itself, into a recovery directory that is another: only there is one asked whether it runs.
#[test]
fn a_newer_agent_that_does_not_run_is_replaced() {
    let place = tempfile::tempdir().unwrap();
    let (node, dir) = (Node::live(), RecoveryDir::new(&Node::live(), place.path()));
    let version = || Agent::in_file(&dir.agent()).unwrap().unwrap().version.to_string();
    let put = |program: Vec<u8>| {
        // By another process: one that is forked here meanwhile would hold it open, and it could not be run.
        std::fs::write(place.path().join("new"), program).unwrap();
        sh(place.path(), "install --mode=755 new recovery");
    };
    put(of_version("9.9.9"));
    install(&node, &dir).unwrap();
    assert_eq!(version(), "9.9.9");
    // What a disk can make of it: the beginning and the sections are whole, and all code is zeros.
    let mut rotten = of_version("9.9.9");
    let entry = usize::try_from(u64::from_le_bytes(rotten[24..32].try_into().unwrap())).unwrap();
    let end = (entry + (16 << 20)).min(rotten.len() - (4 << 20));
    rotten[entry - 0x1000..end].fill(0);
    put(rotten);
    assert_eq!(version(), "9.9.9");
    install(&node, &dir).unwrap();
    assert_eq!(version(), Agent::own().unwrap().version.to_string());
}

/// The agent as one of another version, of the same length.
fn of_version(version: &str) -> Vec<u8> {
    let mut program = std::fs::read(env!("CARGO_BIN_EXE_recovery")).unwrap();
    testing::agent::pass_for(&mut program, version);
    program
}

/// A small file system, mounted as long as this lives.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn mount(at: &'a Path) -> Self {
        sh(Path::new("/"), &format!("mount -t tmpfs -o size=1m,mode=700 tmpfs {}", at.display()));
        Self(at)
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        // Lazily: a child that another thread forks at that moment holds files of it open until it is another program.
        sh(Path::new("/"), &format!("umount --lazy {}", self.0.display()));
    }
}
