//! Sound archives that others have made: taken, or named for what they are; never called damaged.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use recovery::archive::Archive;
use recovery::error::exit_code;

use crate::hostile::{entry, pax, prefixed, sealed, write};
use crate::{compare, pack, restore, run, text};
use testing::tree::{Scratch, noise};

/// Restores into `to`, which must then be equal to the archive; a second time writes nothing.
fn taken(file: &Path, to: &Path) {
    restore(file, to).unwrap_or_else(|error| panic!("{}: {error:#}", file.display()));
    let (changes, _) = compare(file, to);
    assert!(changes.is_empty(), "{}: {changes:?}", file.display());
    Archive::open(file).unwrap().verify(&|_| ()).unwrap();
}

/// The error of opening it, which is that it is not supported, and says so of nothing that is damaged.
fn not_taken(file: &Path) -> String {
    let error = Archive::open(file).expect_err(text(file));
    let said = format!("{error:#}");
    assert_eq!(exit_code(&error), 64, "{said}");
    for word in ["damaged", "hostile", "truncated"] {
        assert!(!said.contains(word), "{said}");
    }
    said
}

fn small_tree(scratch: &Scratch) -> PathBuf {
    let from = scratch.path("from");
    fs::create_dir_all(from.join("etc/sub")).unwrap();
    fs::write(from.join("etc/hosts"), "first").unwrap();
    fs::write(from.join("etc/sub/noise"), noise(1, 300_000)).unwrap();
    fs::hard_link(from.join("etc/hosts"), from.join("etc/name")).unwrap();
    symlink("hosts", from.join("etc/link")).unwrap();
    from
}

fn shell(scratch: &Scratch, script: &str) {
    run("bash", &["-ec", &format!("set -o pipefail; cd {}; {script}", text(&scratch.path("")))]);
}

fn is(file: &Path, content: &str) {
    assert_eq!(fs::read_to_string(file).unwrap(), content, "{}", file.display());
}

#[test]
fn every_way_to_compress_with_zstd_and_gzip_is_taken() {
    let scratch = Scratch::new();
    small_tree(&scratch);
    let make = [
        ("long.tar.zst", "tar -C from -cf - . | zstd -q --long=27 > long.tar.zst"),
        ("ultra.tar.zst", "tar -C from -cf - . | zstd -q --ultra -22 > ultra.tar.zst"),
        ("padded.tar.zst", "tar -C from -cf - . | zstd -q > padded.tar.zst; head -c 7000 /dev/zero >> padded.tar.zst"),
        ("padded.tar.gz", "tar -C from -czf padded.tar.gz .; head -c 300000 /dev/zero >> padded.tar.gz"),
        ("halves.tar.gz", "tar -C from -cf a.tar .; (head -c 5000 a.tar | gzip; tail -c +5001 a.tar | gzip) > halves.tar.gz"),
        ("halves.tar.zst", "tar -C from -cf a.tar .; (head -c 5000 a.tar | zstd -q; tail -c +5001 a.tar | zstd -q) > halves.tar.zst"),
    ];
    for (name, script) in make {
        shell(&scratch, script);
        taken(&scratch.path(name), &scratch.path("to"));
        is(&scratch.path("to/etc/hosts"), "first");
    }
    // What is no padding is no part of an archive.
    for name in ["padded.tar.zst", "padded.tar.gz"] {
        let mut bytes = fs::read(scratch.path(name)).unwrap();
        bytes.extend_from_slice(b"more");
        fs::write(scratch.path("a"), bytes).unwrap();
        assert_eq!(exit_code(&Archive::open(&scratch.path("a")).unwrap_err()), 65, "{name}");
    }
}

#[test]
fn other_compressions_are_named_with_the_way_out() {
    let scratch = Scratch::new();
    small_tree(&scratch);
    shell(&scratch, "tar -C from -cf whole.tar .");
    let heads: [(&str, &[u8], &str); 10] = [
        ("a.tar.xz", b"\xFD7zXZ\0\0\x04", "xz -dc"),
        ("a.tar.bz2", b"BZh91AY&SY", "bzip2 -dc"),
        ("a.tar.lz4", &[0x04, 0x22, 0x4D, 0x18, 0x64], "lz4 -dc"),
        ("a.zip", b"PK\x03\x04\x14\0", "bsdtar -cf"),
        ("a.cpio", b"070701009864F7000081A4", "bsdtar -cf"),
        ("b.cpio", b"\xC7\x71\0\xFE\x01\0", "bsdtar -cf"),
        ("a.xar", b"xar!\0\x1C\0\x01", "bsdtar -cf"),
        ("a.deb", b"!<arch>\ndebian-binary   ", "bsdtar -cf"),
        ("a.mtree", b"#mtree\n./a gname=root", "bsdtar -cf"),
        ("a.shar", b"#!/bin/sh\n# This is a shell archive\n", "sh /"),
    ];
    for (name, head, way) in heads {
        let file = scratch.path(name);
        fs::write(&file, [head, &noise(2, 2000)].concat()).unwrap();
        let said = not_taken(&file);
        assert!(said.contains(way) && said.contains(text(&file)), "{said}");
    }
    // Shorter than a block.
    fs::write(scratch.path("short.cpio"), "0707010098").unwrap();
    assert!(not_taken(&scratch.path("short.cpio")).contains("cpio"));
    // A tar whose first name looks like something else is a tar.
    let file = scratch.path("a.tar");
    fs::write(&file, [entry("BZh91AY&SY", b'0', "", b"1"), vec![0; 1024]].concat()).unwrap();
    taken(&file, &scratch.path("to"));
    let long = scratch.path("a.tar.zst");
    shell(&scratch, "head -c 200000000 /dev/zero | zstd -q --long=30 > a.tar.zst");
    assert!(not_taken(&long).contains("--long=31"));
}

#[test]
fn of_what_is_there_twice_the_last_is_taken() {
    let scratch = Scratch::new();
    let from = small_tree(&scratch);
    shell(&scratch, "(cd from && find etc | tar -cf ../found.tar -T -); tar -C from -cf again.tar etc etc/sub");
    fs::write(from.join("etc/hosts"), "second").unwrap();
    fs::set_permissions(from.join("etc"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::remove_file(from.join("etc/link")).unwrap();
    fs::create_dir(from.join("etc/link")).unwrap();
    shell(&scratch, "tar -C from -rf again.tar etc/hosts; tar -C from -rf again.tar --no-recursion etc etc/link");
    for (name, hosts) in [("found.tar", "first"), ("again.tar", "second")] {
        let to = scratch.path(&format!("{name}.to"));
        taken(&scratch.path(name), &to);
        is(&to.join("etc/hosts"), hosts);
        // As tar itself unpacks it, down to who shares an inode with whom.
        let by_tar = scratch.path(&format!("{name}.tar"));
        fs::create_dir(&by_tar).unwrap();
        run("tar", &["-xpf", text(&scratch.path(name)), "-C", text(&by_tar)]);
        for path in ["etc", "etc/hosts", "etc/name", "etc/link", "etc/sub/noise"] {
            let (ours, its) = (to.join(path).symlink_metadata().unwrap(), by_tar.join(path).symlink_metadata().unwrap());
            assert_eq!((ours.mode(), ours.mtime(), ours.nlink()), (its.mode(), its.mtime(), its.nlink()), "{name}: {path}");
            if ours.is_file() {
                assert_eq!(fs::read(to.join(path)).unwrap(), fs::read(by_tar.join(path)).unwrap(), "{name}: {path}");
            }
        }
    }
}

#[test]
fn a_directory_that_became_something_else_is_told_as_tar_tells_it() {
    let scratch = Scratch::new();
    let from = small_tree(&scratch);
    shell(&scratch, "tar -C from -cf a.tar etc; rm -r from/etc/sub; touch from/etc/sub; tar -C from -rf a.tar etc/sub; mkdir by-tar");
    assert!(not_taken(&scratch.path("a.tar")).contains("--recursive-unlink"));
    // The way out leads there.
    shell(&scratch, "! tar -xf a.tar -C by-tar 2> /dev/null; tar --recursive-unlink -xf a.tar -C by-tar; tar -C by-tar -cf b.tar etc");
    taken(&scratch.path("b.tar"), &scratch.path("to"));
    assert!(scratch.path("to/etc/sub").is_file());
    // The other way round, the last is taken.
    fs::remove_file(from.join("etc/sub")).unwrap();
    shell(&scratch, "mkdir from/etc/sub; touch from/etc/sub/x; tar -C from -rf b.tar etc/sub");
    taken(&scratch.path("b.tar"), &scratch.path("to"));
    assert!(scratch.path("to/etc/sub/x").is_file());
}

#[test]
fn a_hard_link_keeps_what_its_target_was() {
    let scratch = Scratch::new();
    let (file, to, by_tar) = (scratch.path("a.tar.zst"), scratch.path("to"), scratch.path("by-tar"));
    write(
        &file,
        &[
            entry("a", b'0', "", b"old"),
            entry("b", b'1', "a", b""),
            entry("c", b'1', "b", b""),
            entry("a", b'0', "", b"new"),
            entry("d", b'1', "a", b""),
            entry("x", b'0', "", b"same"),
            entry("x", b'1', "x", b""),
        ],
    );
    taken(&file, &to);
    fs::create_dir(&by_tar).unwrap();
    run("tar", &["--zstd", "-xf", text(&file), "-C", text(&by_tar)]);
    for dir in [&to, &by_tar] {
        for (name, content, shares) in [("a", "new", "d"), ("b", "old", "c"), ("x", "same", "x")] {
            is(&dir.join(name), content);
            assert_eq!(dir.join(name).metadata().unwrap().ino(), dir.join(shares).metadata().unwrap().ino(), "{name}");
        }
    }
    assert_eq!(Archive::open(&file).unwrap().read_file(Path::new("c")).unwrap().unwrap(), b"old");
    assert_eq!(Archive::open(&file).unwrap().bytes(), 10);
}

#[test]
fn names_headers_and_types_of_other_tars_are_taken() {
    let scratch = Scratch::new();
    let from = small_tree(&scratch);
    shell(&scratch, "tar --format=gnu --label=weekly -C from -cf label.tar .; tar -C from -cf dot.tar etc/.");
    shell(&scratch, "tar --format=gnu -g state -C from -cf full.tar .; tar --format=posix -g state2 -C from -cf full-posix.tar .");
    for name in ["label.tar", "dot.tar", "full.tar", "full-posix.tar"] {
        taken(&scratch.path(name), &scratch.path(&format!("{name}.to")));
        is(&scratch.path(&format!("{name}.to/etc/hosts")), "first");
    }
    // Of the next ones, the unchanged files are not in them.
    fs::write(from.join("etc/new"), "new").unwrap();
    shell(&scratch, "tar --format=gnu -g state -C from -cf more.tar .; tar --format=posix -g state2 -C from -cf more-posix.tar .");
    for name in ["more.tar", "more-posix.tar"] {
        assert!(not_taken(&scratch.path(name)).contains("incremental"));
    }
    let (file, to) = (scratch.path("a.tar.zst"), scratch.path("a"));
    let mut sized = entry("dir/", b'5', "", b"");
    let size = |block: &mut Vec<u8>| {
        block[124..136].copy_from_slice(b"00000010000\0");
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    };
    size(&mut sized);
    let (mut link, mut last) = (entry("hard", b'1', "dir/x", b""), entry("soft", b'2', "dir", b""));
    size(&mut link);
    size(&mut last);
    let with_content = entry("full/", b'5', "", &[b'x'; 700]);
    let versions =
        [prefixed("dir", "blank", *b"ustar\0  "), prefixed("dir", "zeros", *b"ustar\0\0\0"), prefixed("no", "gnu", *b"ustar  \0")];
    let entries = [vec![sized, entry("dir//x", b'0', "", b"1"), link, with_content], versions.to_vec(), vec![last]].concat();
    write(&file, &entries);
    taken(&file, &to);
    is(&to.join("hard"), "1");
    for name in ["dir/blank", "dir/zeros", "gnu"] {
        is(&to.join(name), "text");
    }
    assert!(to.join("full").is_dir());
    assert_eq!(fs::read_link(to.join("soft")).unwrap(), Path::new("dir"));
}

#[test]
fn names_with_a_slash_before_them_are_names_in_the_tree() {
    let scratch = Scratch::new();
    small_tree(&scratch);
    shell(&scratch, "cd from; for format in gnu posix; do tar --format=$format -cPf ../$format.tar $PWD/etc; done");
    for name in ["gnu.tar", "posix.tar"] {
        let (to, by_tar) = (scratch.path(&format!("{name}.to")), scratch.path(&format!("{name}.by-tar")));
        taken(&scratch.path(name), &to);
        fs::create_dir(&by_tar).unwrap();
        run("tar", &["-xpf", text(&scratch.path(name)), "-C", text(&by_tar)]);
        let below = |dir: &Path| dir.join(scratch.path("from/etc").strip_prefix("/").unwrap());
        is(&below(&to).join("hosts"), "first");
        run("diff", &["-r", "--no-dereference", text(&below(&to)), text(&below(&by_tar))]);
        let inode = |name: &str| below(&to).join(name).metadata().unwrap().ino();
        assert_eq!(inode("hosts"), inode("name"), "{name}: a hard link to a name with a slash before it");
    }
}

#[test]
fn what_is_not_taken_is_named() {
    let scratch = Scratch::new();
    let file = scratch.path("a.tar.zst");
    let pieces = pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "s"), ("GNU.sparse.realsize", "50")]);
    let cases = [
        (vec![entry("a", b'Z', "", b"1")], "'Z'"),
        (vec![entry("a", b'S', "", b"1")], "--sparse-version=1.0"),
        (vec![pax(&[("GNU.sparse.map", "0,1")]), entry("a", b'0', "", b"1")], "--sparse-version=1.0"),
        (vec![pieces, entry("s", b'0', "", &[b"1048577\n".as_slice(), &[0; 504]].concat())], "1048576"),
        (vec![entry("a", b'M', "", b"1")], "--multi-volume"),
        (vec![pax(&[("GNU.volume.offset", "7")]), entry("a", b'0', "", b"1")], "--multi-volume"),
        (vec![global(&[("GNU.volume.filename", "a")]), entry("a", b'0', "", b"1")], "--multi-volume"),
        (vec![global(&[("GNU.volume.label", "a Volume 2")]), entry("a", b'0', "", b"1")], "--multi-volume"),
        (vec![entry("a Volume 12", b'V', "", b""), entry("a", b'0', "", b"1")], "--multi-volume"),
        (vec![global(&[("SCHILY.xattr.user.k", &"v".repeat(65_536))]), entry("a", b'0', "", b"1")], "65536 bytes"),
    ];
    for (entries, way) in cases {
        write(&file, &entries);
        assert!(not_taken(&file).contains(way), "{way}");
    }
}

/// Records for all that follows.
fn global(records: &[(&str, &str)]) -> Vec<u8> {
    let mut block = pax(records);
    block[156] = b'g';
    sealed(block)
}

#[test]
fn global_headers_are_defaults() {
    let scratch = Scratch::new();
    small_tree(&scratch);
    shell(&scratch, "tar --format=posix --pax-option=uid=5 -C from -cf owner.tar .");
    let to = scratch.path("owner");
    taken(&scratch.path("owner.tar"), &to);
    for path in ["", "etc/hosts", "etc/link", "etc/sub/noise"] {
        assert_eq!(to.join(path).symlink_metadata().unwrap().uid(), 5, "{path}");
    }
    let (file, to) = (scratch.path("a.tar.zst"), scratch.path("a"));
    let own = [("uid", "8"), ("mtime", ""), ("SCHILY.xattr.user.k", "own")];
    let entries = [
        entry("before", b'0', "", b"1"),
        global(&[("uid", "5"), ("gid", "6"), ("mtime", "7.5"), ("SCHILY.xattr.user.k", "all"), ("comment", "is passed over")]),
        entry("default", b'0', "", b"1"),
        [pax(&own), entry("own", b'0', "", b"1")].concat(),
        [pax(&[("uid", "9")]), global(&[("gid", "10")]), entry("between", b'0', "", b"1")].concat(),
        global(&[("uid", ""), ("path", "moved")]),
        entry("last", b'0', "", b"1"),
    ];
    write(&file, &entries);
    taken(&file, &to);
    let header_time = 0o14_000_000_000;
    let cases = [
        ("before", (0, 0, header_time, 0), ""),
        ("default", (5, 6, 7, 500_000_000), "all"),
        ("own", (8, 6, header_time, 0), "own"),
        ("between", (9, 10, 7, 500_000_000), "all"),
        ("moved", (0, 10, 7, 500_000_000), "all"),
    ];
    for (name, owner_and_time, attribute) in cases {
        let meta = to.join(name).metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec()), owner_and_time, "{name}");
        let mut value = [0; 8];
        let len = rustix::fs::getxattr(to.join(name), "user.k", &mut value).unwrap_or(0);
        assert_eq!(&value[..len], attribute.as_bytes(), "{name}");
    }
    // What is wrong in one is wrong.
    write(&file, &[global(&[("uid", "nobody")]), entry("a", b'0', "", b"1")]);
    assert_eq!(exit_code(&Archive::open(&file).unwrap_err()), 65);
}

#[test]
fn a_volume_is_no_archive() {
    let scratch = Scratch::new();
    small_tree(&scratch);
    let label = ["--label=weekly", ""];
    for (format, label) in ["posix", "gnu"].into_iter().flat_map(|format| label.map(|label| (format, label))) {
        shell(
            &scratch,
            &format!(
                "rm -f *.tar; tar --format={format} {label} -M -L 100 -C from -c -f 1.tar -f 2.tar -f 3.tar -f 4.tar -f 5.tar . < /dev/null"
            ),
        );
        for volume in ["2.tar", "3.tar"] {
            assert!(not_taken(&scratch.path(volume)).contains("--multi-volume"), "{format} {label} {volume}");
        }
        if label.is_empty() {
            // Nothing tells it from an archive that was cut off.
            assert_eq!(exit_code(&Archive::open(&scratch.path("1.tar")).unwrap_err()), 65, "{format}");
        } else {
            assert!(not_taken(&scratch.path("1.tar")).contains("--multi-volume"), "{format}");
        }
        shell(&scratch, &format!("tar --format={format} {label} -M -L 1000 -C from -cf whole.tar ."));
        taken(&scratch.path("whole.tar"), &scratch.path("to"));
        shell(&scratch, &format!("tar --format={format} {label} -C from -cf whole.tar ."));
        taken(&scratch.path("whole.tar"), &scratch.path("to"));
    }
}

#[test]
fn what_begins_with_zeros_is_not_an_empty_archive_for_that() {
    let scratch = Scratch::new();
    let file = scratch.path("a.tar");
    let zeros = vec![0; 100_000];
    fs::write(&file, &zeros).unwrap();
    assert_eq!(Archive::open(&file).unwrap().paths().count(), 0);
    let volume = |mut bytes: Vec<u8>| {
        bytes[32_768..32_776].copy_from_slice(b"\x01CD001\x01\0");
        bytes
    };
    // The second as they are made to be written to a USB stick.
    for bytes in [volume(zeros.clone()), volume(noise(1, 100_000))] {
        fs::write(&file, bytes).unwrap();
        let said = not_taken(&file);
        assert!(said.contains("ISO 9660") && said.contains("bsdtar -cf"), "{said}");
    }
    let member = [entry("etc/hosts", b'0', "", b"1"), vec![0; 1024]].concat();
    for before in [1024, 10_240, 300_032] {
        let bytes = [&vec![0; before], &member[..]].concat();
        fs::write(&file, &bytes).unwrap();
        assert!(not_taken(&file).contains("--ignore-zeros"));
        fs::write(&file, zstd::encode_all(&bytes[..], 1).unwrap()).unwrap();
        assert!(not_taken(&file).contains("--ignore-zeros"));
    }
    for rest in [&b"x"[..], &noise(2, 4096)] {
        fs::write(&file, [&zeros, rest].concat()).unwrap();
        assert_eq!(exit_code(&Archive::open(&file).unwrap_err()), 65);
    }
    // What is only behind the end mark would be deleted from the tree: two archives one after the other, or one with zeros in its middle.
    for rest in [&member[..], &noise(3, 5000)] {
        fs::write(&file, [&member, rest].concat()).unwrap();
        let said = not_taken(&file);
        assert!(said.contains("goes on after its end mark"), "{said}");
    }
    // The end marks of some programs are short; what fills up the last record may be more zeros.
    for end in [512, 1024, 10_240] {
        fs::write(&file, [&member[..1024], &vec![0; end]].concat()).unwrap();
        taken(&file, &scratch.path(&format!("to-{end}")));
    }
    fs::write(&file, &member[..1024]).unwrap();
    assert_eq!(exit_code(&Archive::open(&file).unwrap_err()), 65, "without any, it may be cut off");
}

#[test]
fn what_can_be_read_but_once_is_not_waited_for() {
    let scratch = Scratch::new();
    let pipe = scratch.path("pipe");
    run("mkfifo", &[text(&pipe)]);
    assert!(not_taken(&pipe).contains("regular file"));
    assert!(not_taken(&scratch.path("")).contains("regular file"));
}

#[test]
fn a_sparse_file_in_more_pieces_than_are_packed_is_taken() {
    let scratch = Scratch::new();
    let from = scratch.path("from");
    fs::create_dir(&from).unwrap();
    let mut bytes = vec![0; 70_000 * 1024 + (1 << 20)];
    (0..70_000).for_each(|n| bytes[n * 1024] = b'x');
    fs::write(from.join("sparse"), bytes).unwrap();
    shell(&scratch, "tar --format=posix -S --hole-detection=raw -C from -cf a.tar .");
    let (changes, _) = compare(&scratch.path("a.tar"), &from);
    assert!(changes.is_empty(), "{changes:?}");
}

#[test]
fn an_archive_of_ours_that_was_compressed_anew_is_one_without_an_index() {
    let scratch = Scratch::new();
    let from = small_tree(&scratch);
    pack(&from, &scratch.path("own.tar.zst"));
    shell(
        &scratch,
        "zstd -q -d own.tar.zst -o own.tar; zstd -q -19 own.tar -o new.tar.zst; gzip -k own.tar; pzstd -q own.tar -o parallel.tar.zst",
    );
    for name in ["own.tar", "new.tar.zst", "own.tar.gz", "parallel.tar.zst"] {
        let to = scratch.path(&format!("{name}.to"));
        taken(&scratch.path(name), &to);
        let (changes, _) = compare(&scratch.path("own.tar.zst"), &to);
        assert!(changes.is_empty(), "{name}: {changes:?}");
    }
    // Cut off, it is what it was: damaged.
    let whole = fs::read(scratch.path("new.tar.zst")).unwrap();
    fs::write(scratch.path("cut"), &whole[..whole.len() - 1]).unwrap();
    assert_eq!(exit_code(&Archive::open(&scratch.path("cut")).unwrap_err()), 65);
}
