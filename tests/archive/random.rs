//! Small archives made at random, of a few names that are there again and again, as something else, as a further name of something else, and
//! with other attributes: what a restore takes is equal afterwards, and a second one changes nothing.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use recovery::error::exit_code;

use crate::hostile::{entry, pax, sealed, write};
use crate::{compare, pack, restore, run, stamps, text};
use testing::tree::{Scratch, noise};

/// What chooses: the same for the same seed.
struct Dice(Vec<u8>);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        usize::from(self.0.pop().expect("the noise is long enough")) % sides
    }

    fn one<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.roll(of.len())]
    }
}

const FILES: [&str; 6] = ["a", "b", "c", "d/x", "d/y", "d/d/z"];
const DIRECTORIES: [&str; 3] = [".", "d", "d/d"];
const USERS: &str = "user::rwx,user:7:r--,group::r-x,mask::r-x,other::r--";
const GROUPS: &str = "user::rw-,group::r--,group:8:rwx,mask::rwx,other::---";
const CAPABILITY: &str = "\x01\0\0\x02\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A member: an extended header, and a header of some kind. `before` are the names of those before it that are no directories.
fn member(dice: &mut Dice, before: &mut Vec<&'static str>) -> Vec<u8> {
    // Seldom anything, so that it is refused.
    let odd = dice.roll(40) == 0;
    let kind =
        if odd { dice.one(&[b"0", b"1", b"5"]) } else { dice.one(&[b"0", b"0", b"0", b"1", b"1", b"1", b"2", b"5", b"5", b"6", b"3"]) }[0];
    let directory = if odd { dice.roll(2) == 0 } else { kind == b'5' };
    let name = if directory { dice.one(&DIRECTORIES) } else { dice.one(&FILES) };
    let link = match kind {
        b'1' if before.is_empty() || odd => dice.one(&FILES),
        b'1' => dice.one(before),
        b'2' => dice.one(&["a", "nowhere", "/etc"]),
        _ => "",
    };
    if !directory {
        before.push(name);
    }
    let (uid, gid, mtime) = (dice.one(&["0", "5", "70000"]), dice.one(&["0", "6"]), dice.one(&["1", "1000000000.5", "-3.25"]));
    let mut records = vec![("uid", uid), ("gid", gid), ("mtime", mtime)];
    let of_all: [&[(&str, &str)]; 3] = [&[], &[("SCHILY.xattr.trusted.two", "1")], &[("SCHILY.xattr.trusted.two", "2")]];
    let mut mode = dice.one(&["0000644", "0004755", "0002750", "0000000", "0001777"]);
    // The mode that an ACL makes.
    let of_some: [(&str, &[(&str, &str)]); 7] = [
        (mode, &[]),
        (mode, &[("SCHILY.xattr.user.one", "1")]),
        (mode, &[("SCHILY.xattr.user.one", "2"), ("SCHILY.xattr.security.capability", CAPABILITY)]),
        ("0000754", &[("SCHILY.acl.access", USERS)]),
        ("0000670", &[("SCHILY.acl.access", GROUPS)]),
        (mode, &[("SCHILY.fflags", "schg")]),
        (mode, &[("SCHILY.fflags", "sappnd")]),
    ];
    records.extend(of_all[dice.roll(of_all.len())]);
    // A further name may be one of anything; what its header says is not what counts.
    if matches!(kind, b'0' | b'1' | b'5') {
        let (with, besides) = of_some[dice.roll(of_some.len())];
        mode = with;
        records.extend(besides);
    }
    if kind == b'5' && dice.roll(3) == 0 {
        records.push(("SCHILY.acl.default", USERS));
    }
    let content = if kind == b'0' { dice.one(&["", "one", "another"]) } else { "" };
    let mut header = entry(name, kind, link, content.as_bytes());
    header[100..107].copy_from_slice(mode.as_bytes());
    if kind == b'3' {
        header[329..345].copy_from_slice(b"0000001\x000000003\0");
    }
    [pax(&records), sealed(header)].concat()
}

/// What find(1), getfattr(1) and sha256sum(1) say of a tree, without its directories: those that are not in the archive are made by every tar in a way
/// of its own, and where one is there twice, GNU tar leaves the attributes of the first to the second.
fn looked_at(dir: &Path) -> String {
    let script = r#"cd "$1"; shopt -s nullglob
        find . ! -type d -printf '%p %y %m %U:%G %T@ %n %l\n' | sort
        find . ! -type d | sort | while read -r path; do getfattr -hdm - -e hex -- "$path" 2>&1; done
        find . -type f | sort | xargs -r sha256sum"#;
    run("bash", &["-euc", script, "bash", text(dir)])
}

/// `SEEDS=5000 cargo test --test archive random` looks longer.
#[test]
fn what_a_restore_takes_is_equal_and_a_second_one_changes_nothing() {
    let (mut taken, mut refused) = (0, 0);
    let scratch = Scratch::new();
    let used = scratch.path("used");
    for seed in 0..std::env::var("SEEDS").map_or(100, |n| n.parse().unwrap()) {
        let scratch = Scratch::new();
        let (file, new, by_tar) = (scratch.path("a.tar.zst"), scratch.path("new"), scratch.path("by-tar"));
        let (mut dice, mut before) = (Dice(noise(seed + 1, 4000)), Vec::new());
        let members: Vec<_> = (0..2 + dice.roll(9)).map(|_| member(&mut dice, &mut before)).collect();
        write(&file, &members);
        // Onto nothing, and onto what another archive has left.
        for to in [&new, &used] {
            if let Err(error) = restore(&file, to) {
                assert!(matches!(exit_code(&error), 64 | 65 | 78), "{seed}: {error:#}");
                refused += 1;
                continue;
            }
            taken += 1;
            let (changes, _) = compare(&file, to);
            assert!(changes.is_empty(), "{seed}: {changes:?}");
            // The clock of access times is coarse: one that is noted in the tick of the change is noted anew at the next look.
            std::thread::sleep(Duration::from_millis(10));
            let before = stamps(to);
            restore(&file, to).unwrap();
            assert_eq!(stamps(to), before, "{seed}");
        }
        fs::create_dir(&by_tar).unwrap();
        let tar = ["--zstd", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "-xpPf", text(&file), "-C", text(&by_tar)];
        if new.exists() && Command::new("tar").args(tar).output().unwrap().status.success() {
            // The last header of a file is what counts, and a further name has none of its own.
            assert_eq!(looked_at(&new), looked_at(&by_tar), "{seed}");
            // As an archive of ours it is the same.
            let own = scratch.path("own.tar.zst");
            pack(&new, &own);
            restore(&own, &used).unwrap();
            for to in [&new, &used] {
                let (changes, _) = compare(&own, to);
                assert!(changes.is_empty(), "{seed}: {changes:?}");
            }
        }
    }
    assert!(taken > 100 && refused > 30, "{taken} were taken, {refused} refused");
}
