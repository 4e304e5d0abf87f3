//! Archives that are hostile, damaged or cut off: refused before anything is changed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;

use recovery::archive::{Archive, Extra, Selection};
use recovery::error::exit_code;
use recovery::formats::index::Trailer;

use crate::{Mount, pack, restore, run, stamps, text};
use testing::tree::{Scratch, assert_same, noise};

/// One entry of a tar archive made by hand: a ustar header and its content.
pub(crate) fn entry(name: &str, kind: u8, link: &str, content: &[u8]) -> Vec<u8> {
    header(name.as_bytes(), kind, link, &format!("{:011o}", content.len()), content)
}

fn header(name: &[u8], kind: u8, link: &str, size: &str, content: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name);
    put(100, b"0000644\x000000000\x000000000\0");
    put(124, size.as_bytes());
    put(136, b"14000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend_from_slice(content);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

/// A block whose fields were changed, with the checksum that it has now.
pub(crate) fn sealed(mut block: Vec<u8>) -> Vec<u8> {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block[..512].iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

pub(crate) fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let len = (rest + 1..rest + 8).find(|len| len.to_string().len() + rest == *len).unwrap();
        text.push_str(&format!("{len} {key}={value}\n"));
    }
    entry("PaxHeaders/x", b'x', "", text.as_bytes())
}

pub(crate) fn write(file: &Path, entries: &[Vec<u8>]) {
    let mut bytes = entries.concat();
    bytes.extend_from_slice(&[0; 1024]);
    fs::write(file, zstd::encode_all(&bytes[..], 1).unwrap()).unwrap();
}

/// A small tree that every attack would change, and the directory outside it that they are after.
fn victim(scratch: &Scratch) -> std::path::PathBuf {
    let tree = scratch.path("tree");
    fs::create_dir_all(tree.join("dir")).unwrap();
    fs::write(tree.join("file"), "as it was").unwrap();
    fs::write(tree.join("extra"), "would be deleted").unwrap();
    fs::create_dir(scratch.path("outside")).unwrap();
    fs::write(scratch.path("outside/secret"), "secret").unwrap();
    symlink(scratch.path("outside"), tree.join("way-out")).unwrap();
    tree
}

fn refused(file: &Path, tree: &Path, scratch: &Scratch, what: &str) {
    refused_with(65, file, tree, scratch, what);
}

/// Refused with this exit code, and nothing is changed.
fn refused_with(code: u8, file: &Path, tree: &Path, scratch: &Scratch, what: &str) {
    let before = (stamps(tree), stamps(&scratch.path("outside")));
    let error = restore(file, tree).expect_err(what);
    assert_eq!(exit_code(&error), code, "{what}: {error:#}");
    assert_eq!((stamps(tree), stamps(&scratch.path("outside"))), before, "{what}: something was changed");
}

#[test]
fn hostile_archives_are_refused() {
    let scratch = Scratch::new();
    let (tree, file) = (victim(&scratch), scratch.path("a.tar.zst"));
    let dir = || entry("dir/", b'5', "", b"");
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("dots", vec![entry("../outside/secret", b'0', "", b"evil")]),
        ("dots in the middle", vec![entry("dir/../../outside/secret", b'0', "", b"evil")]),
        ("dots at the root", vec![entry("/../outside/secret", b'0', "", b"evil")]),
        ("dots behind an empty component", vec![entry("dir//../../outside/secret", b'0', "", b"evil")]),
        ("dots behind a dot", vec![entry("./.././outside/secret", b'0', "", b"evil")]),
        ("dots in a prefix", vec![prefixed("..", "outside/secret", *b"ustar\x0099")]),
        ("no name", vec![entry("", b'0', "", b"evil")]),
        ("a zero byte in a name", vec![pax(&[("path", "a\0b")]), entry("x", b'0', "", b"evil")]),
        ("a link used as a directory", vec![entry("l", b'2', "../outside", b""), entry("l/secret", b'0', "", b"evil")]),
        ("a file used as a directory", vec![entry("f", b'0', "", b"1"), entry("f/g", b'0', "", b"evil")]),
        ("a hard link to outside", vec![entry("h", b'1', "../outside/secret", b"")]),
        ("a hard link to an absolute path", vec![entry("h", b'1', "/etc/passwd", b"")]),
        ("a hard link to what is not there", vec![entry("h", b'1', "nothing", b"")]),
        ("a hard link to what comes later", vec![entry("h", b'1', "late", b""), entry("late", b'0', "", b"1")]),
        ("a hard link to itself", vec![entry("h", b'1', "h", b"")]),
        ("a hard link to a directory", vec![dir(), entry("h", b'1', "dir", b"")]),
        ("a hard link through a link", vec![entry("l", b'2', "../outside", b""), entry("h", b'1', "l/secret", b"")]),
        ("the root as a file", vec![entry(".", b'0', "", b"")]),
        ("the root as a link", vec![entry(".", b'2', "/etc", b"")]),
        ("a bad size", vec![header(b"a", b'0', "", "9999999999\0", b"1")]),
        ("a negative size", vec![pax(&[("size", "-1")]), entry("a", b'0', "", b"1")]),
        ("a huge size", vec![pax(&[("size", "18446744073709551615")]), entry("a", b'0', "", b"1")]),
        ("a size that is not there", vec![header(b"a", b'0', "", "00077777777\0", b"1")]),
        ("a directory with content that is not there", vec![header(b"dir/", b'5', "", "00000007777\0", b"content")]),
        ("an owner that nobody can be", vec![pax(&[("uid", "4294967295")]), entry("a", b'0', "", b"1")]),
        ("a huge extended header", vec![header(b"x", b'x', "", "77777777777\0", b"")]),
        ("a record that is too long", vec![entry("PaxHeaders/x", b'x', "", b"99 path=x\n"), entry("a", b'0', "", b"1")]),
        ("a record without an end", vec![entry("PaxHeaders/x", b'x', "", b"9 path=xyz"), entry("a", b'0', "", b"1")]),
        ("a sparse map beyond the end", vec![sparse("1\n5\n100\n"), sparse_file("1\n5\n100\n")]),
        ("a sparse map that is no map", vec![sparse("x"), sparse_file("x")]),
        ("an empty link", vec![entry("l", b'2', "", b"")]),
        (
            "an ACL without its mask",
            vec![pax(&[("SCHILY.acl.access", "user::rwx,user:5:rwx,group::r,other::r")]), entry("a", b'0', "", b"1")],
        ),
        ("a default ACL of a file", vec![pax(&[("SCHILY.acl.default", "user::rwx,group::r,other::r")]), entry("a", b'0', "", b"1")]),
        ("half an ACL", vec![pax(&[("SCHILY.acl.default", "user::rwx")]), entry("a/", b'5', "", b"")]),
        ("an owner that is none", vec![pax(&[("uid", "4294967295")]), entry("a", b'0', "", b"1")]),
    ];
    for (what, entries) in cases {
        write(&file, &entries);
        refused(&file, &tree, &scratch, what);
    }
}

#[test]
fn a_directory_that_is_not_empty_is_not_replaced() {
    let scratch = Scratch::new();
    let (tree, file) = (victim(&scratch), scratch.path("a.tar.zst"));
    let dir = || entry("dir/", b'5', "", b"");
    let inside = || entry("dir/x/y", b'0', "", b"evil");
    let cases = [
        ("by a file", vec![dir(), inside(), entry("dir", b'0', "", b"1")]),
        ("by a link", vec![dir(), inside(), entry("dir", b'2', "../outside", b"")]),
        ("by a link, without an entry of its own", vec![inside(), entry("dir", b'2', "../outside", b"")]),
        ("by a file, and again", vec![entry("dir", b'0', "", b"1"), dir(), inside(), entry("dir", b'0', "", b"1")]),
    ];
    for (what, entries) in cases {
        write(&file, &entries);
        refused_with(64, &file, &tree, &scratch, what);
    }
}

#[test]
fn names_that_linux_cannot_have_are_not_taken() {
    let scratch = Scratch::new();
    let (tree, file) = (victim(&scratch), scratch.path("a.tar.zst"));
    for (path, kind) in [("x".repeat(300), b'0'), ("d/".repeat(2100), b'5'), ("d/".repeat(5000), b'5')] {
        write(&file, &[pax(&[("path", &path)]), entry("x", kind, "", b"")]);
        refused_with(64, &file, &tree, &scratch, "a name that is too long");
        let said = format!("{:#}", Archive::open(&file).unwrap_err());
        assert!(said.contains("at most 4095 bytes") && said.len() < 1500, "{said}");
    }
}

/// A file whose header has a prefix to its name, and this magic number and version.
pub(crate) fn prefixed(prefix: &str, name: &str, magic: [u8; 8]) -> Vec<u8> {
    let mut block = entry(name, b'0', "", b"text");
    block[257..265].copy_from_slice(&magic);
    block[345..345 + prefix.len()].copy_from_slice(prefix.as_bytes());
    sealed(block)
}

fn sparse(map: &str) -> Vec<u8> {
    assert!(map.len() < 512);
    pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "s"), ("GNU.sparse.realsize", "50")])
}

fn sparse_file(map: &str) -> Vec<u8> {
    let mut content = map.as_bytes().to_vec();
    content.resize(512, 0);
    entry("GNUSparseFile.0/s", b'0', "", &content)
}

#[test]
fn links_that_lead_out_of_the_tree_are_not_followed() {
    let scratch = Scratch::new();
    let (tree, file) = (victim(&scratch), scratch.path("a.tar.zst"));
    // Here the archive is honest and the tree has the link.
    write(&file, &[entry("way-out/", b'5', "", b""), entry("way-out/secret", b'0', "", b"from the archive")]);
    restore(&file, &tree).unwrap();
    assert_eq!(fs::read(scratch.path("outside/secret")).unwrap(), b"secret");
    assert!(tree.join("way-out").symlink_metadata().unwrap().is_dir());
    assert_eq!(fs::read(tree.join("way-out/secret")).unwrap(), b"from the archive");
}

/// A small tree that is packed, to be damaged byte by byte.
fn small(scratch: &Scratch) -> Vec<u8> {
    let (from, file) = (scratch.path("from"), scratch.path("whole.tar.zst"));
    fs::create_dir_all(from.join("dir")).unwrap();
    fs::write(from.join("file"), noise(1, 300)).unwrap();
    fs::write(from.join("dir/text"), "text ".repeat(50)).unwrap();
    fs::hard_link(from.join("file"), from.join("name")).unwrap();
    symlink("file", from.join("link")).unwrap();
    pack(&from, &file);
    fs::read(file).unwrap()
}

#[test]
fn an_archive_that_is_cut_off_anywhere_is_refused() {
    let scratch = Scratch::new();
    let (tree, file) = (victim(&scratch), scratch.path("a.tar.zst"));
    let whole = small(&scratch);
    for len in 0..whole.len() {
        fs::write(&file, &whole[..len]).unwrap();
        refused(&file, &tree, &scratch, &format!("cut to {len} of {} bytes", whole.len()));
    }
}

#[test]
fn a_byte_that_is_flipped_anywhere_is_refused() {
    let scratch = Scratch::new();
    let (tree, file) = (victim(&scratch), scratch.path("a.tar.zst"));
    let mut bytes = small(&scratch);
    for at in 0..bytes.len() {
        for bit in [0x01, 0x80] {
            bytes[at] ^= bit;
            fs::write(&file, &bytes).unwrap();
            refused(&file, &tree, &scratch, &format!("flipped at {at} of {} bytes", bytes.len()));
            let checked = Archive::open(&file).and_then(|archive| archive.verify(&|_| ()));
            assert_eq!(checked.map_err(|error| exit_code(&error)), Err(65), "flipped at {at}");
            bytes[at] ^= bit;
        }
    }
    fs::write(&file, &bytes).unwrap();
    restore(&file, &tree).unwrap();
}

/// What is wrong with it is told by who made the data's checksums: zstd. An archive that is not what was written is not restored by itself.
#[test]
fn a_damaged_index_is_refused_with_the_way_to_the_data() {
    let scratch = Scratch::new();
    let (tree, file, plain) = (victim(&scratch), scratch.path("a.tar.zst"), scratch.path("plain.tar"));
    let whole = small(&scratch);
    let trailer = Trailer::parse(whole.last_chunk().unwrap()).unwrap();
    let middle = usize::try_from(trailer.start + trailer.len / 2).unwrap();
    for at in [middle, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&file, &bytes).unwrap();
        refused(&file, &tree, &scratch, &format!("flipped at {at}"));
        let said = format!("{:#}", Archive::open(&file).unwrap_err());
        assert!(said.contains("index") && said.contains("`zstd -d --long=31 ARCHIVE -o FILE.tar`"), "{said}");
        run("zstd", &["-q", "-f", "-d", "--long=31", text(&file), "-o", text(&plain)]);
        let to = scratch.path(&format!("to{at}"));
        restore(&plain, &to).unwrap();
        assert_same(&scratch.path("from"), &to);
    }
}

#[test]
fn a_foreign_archive_that_is_cut_off_or_flipped_is_refused() {
    let scratch = Scratch::new();
    let (tree, file) = (victim(&scratch), scratch.path("a.tar.zst"));
    write(&file, &[entry("dir/", b'5', "", b""), entry("dir/a", b'0', "", &noise(1, 100)), entry("b", b'0', "", b"1")]);
    let whole = fs::read(&file).unwrap();
    // The checksum at the end of the frame, which `zstd` itself writes, is the last thing in it; this one has none.
    for len in 0..whole.len() {
        fs::write(&file, &whole[..len]).unwrap();
        refused(&file, &tree, &scratch, &format!("cut to {len}"));
    }
}

#[test]
fn a_comparison_with_a_hostile_archive_is_refused_too() {
    let scratch = Scratch::new();
    let file = scratch.path("a.tar.zst");
    write(&file, &[entry("../x", b'0', "", b"evil")]);
    assert_eq!(exit_code(&Archive::open(&file).unwrap_err()), 65);
    fs::write(&file, "not an archive at all").unwrap();
    assert_eq!(exit_code(&Archive::open(&file).unwrap_err()), 65);
    assert_eq!(exit_code(&Archive::open(&scratch.path("nowhere")).unwrap_err()), 1);
    write(&file, &[entry("a", b'0', "", b"1")]);
    let archive = Archive::open(&file).unwrap();
    fs::write(&file, "something else by now").unwrap();
    assert!(archive.restore(&scratch.path("to"), &Selection::all(), Extra::Delete, &|_| ()).is_err());
}

#[test]
fn a_length_that_nothing_is_behind_takes_no_time() {
    let scratch = Scratch::new();
    let file = scratch.path("a.tar.zst");
    let size = (1_u64 << 62).to_string();
    let records = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "s"), ("GNU.sparse.realsize", &size)];
    write(&file, &[pax(&records), sparse_file(&format!("1\n{size}\n0\n"))]);
    let begun = std::time::Instant::now();
    let archive = Archive::open(&file).unwrap();
    archive.verify(&|_| ()).unwrap();
    assert_eq!(archive.bytes(), 0);
    assert!(begun.elapsed().as_secs() < 60);
}

/// Nests so many directories, each with a file in it, as anyone can who may make one.
fn nest(top: &Path, name: &str, depth: usize) {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let mut here = openat(CWD, top, OFlags::RDONLY, Mode::empty()).unwrap();
    for _ in 0..depth {
        mkdirat(&here, name, Mode::RWXU).unwrap();
        here = openat(&here, name, OFlags::RDONLY, Mode::empty()).unwrap();
        openat(&here, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
    }
}

#[test]
fn directories_that_are_nested_too_deep_are_an_error_and_can_be_left_out_and_deleted() {
    let scratch = Scratch::new();
    let (tree, empty, file) = (scratch.path("tree"), scratch.path("empty.tar.zst"), scratch.path("a.tar.zst"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "content\n").unwrap();
    pack(&tree, &empty);
    for (name, depth) in [("d".repeat(200), 60), ("e".to_owned(), 2100)] {
        nest(&tree, &name, depth);
        // Left out in silence, a restore onto the same tree would delete it.
        let error = recovery::archive::pack(&tree, &file, &Selection::all(), None, &|_| ()).unwrap_err();
        assert_eq!(exit_code(&error), 64, "{error:#}");
        assert!(format!("{error:#}").contains("longer than the 4095 bytes that Linux accepts") && !file.exists(), "{error:#}");
        let selection = Selection::all().except([&name]).unwrap();
        recovery::archive::pack(&tree, &file, &selection, None, &|_| ()).unwrap();
        Archive::open(&file).unwrap().restore(&tree, &selection, Extra::Delete, &|_| ()).unwrap();
        assert!(tree.join(&name).exists());
        fs::remove_file(&file).unwrap();
        // What is not in an archive goes, as deep as it is.
        restore(&empty, &tree).unwrap();
        assert!(fs::read_dir(&tree).unwrap().map(|entry| entry.unwrap().file_name()).eq(["file"]));
    }
}

#[test]
fn what_is_left_out_by_name_or_mounted_stays_however_deep_it_is() {
    let scratch = Scratch::new();
    let (tree, empty) = (scratch.path("tree"), scratch.path("empty.tar.zst"));
    fs::create_dir(&tree).unwrap();
    pack(&tree, &empty);
    nest(&tree, "d", 100);
    let at = |levels: usize| tree.join(["d"].repeat(levels).join("/"));
    let mount = Mount::tmpfs(&at(90), "size=1m");
    let error = restore(&empty, &tree).unwrap_err();
    assert_eq!(exit_code(&error), 78, "{error:#}");
    assert!(at(89).join("file").exists() && at(1).join("file").exists(), "something went before the mount was found");
    drop(mount);
    let left_out = Selection::all().except([["d"].repeat(80).join("/")]).unwrap();
    Archive::open(&empty).unwrap().restore(&tree, &left_out, Extra::Delete, &|_| ()).unwrap();
    assert!(at(100).join("file").exists() && !at(79).join("file").exists());
    restore(&empty, &tree).unwrap();
    assert!(!at(1).exists());
}

#[test]
fn directories_that_are_nested_deep_and_not_in_the_archive_take_no_time() {
    let scratch = Scratch::new();
    let (tree, file) = (victim(&scratch), scratch.path("a.tar.zst"));
    let below = |first: usize, depth: usize| format!("{first}/{}file", "d/".repeat(depth));
    let make = |paths: &[String]| {
        let entries: Vec<_> = paths.iter().flat_map(|path| [pax(&[("path", path)]), entry("x", b'0', "", b"1")]).collect();
        write(&file, &entries);
    };
    let begun = std::time::Instant::now();
    make(&(0..60).map(|first| below(first, 1500)).collect::<Vec<_>>());
    assert_eq!(Archive::open(&file).unwrap().paths().count(), 1 + 60 * (1 + 1500 + 1));
    make(&(0..200).map(|first| below(first, 1500)).collect::<Vec<_>>());
    refused_with(64, &file, &tree, &scratch, "directories that take too much memory in all");
    assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
    make(&[below(0, 500), format!("0/{}second", "d/".repeat(250))]);
    restore(&file, &tree).unwrap();
    assert_eq!(crate::compare(&file, &tree).0, []);
}

#[test]
fn attributes_that_no_disk_could_hold_are_refused() {
    let scratch = Scratch::new();
    let (tree, file) = (victim(&scratch), scratch.path("a.tar.zst"));
    let large = |len: usize| pax(&[("SCHILY.xattr.user.large", &"x".repeat(len))]);
    write(&file, &[large(65_537), entry("a", b'0', "", b"1")]);
    refused(&file, &tree, &scratch, "a value that is too long");
    write(&file, &[pax(&[(&format!("SCHILY.xattr.user.{}", "n".repeat(255)), "1")]), entry("a", b'0', "", b"1")]);
    refused(&file, &tree, &scratch, "a name that is too long");
    // Each by itself is possible: a few kilobytes that would take gigabytes of memory.
    let mut bomb = zstd::Encoder::new(fs::File::create(&file).unwrap(), 1).unwrap();
    for n in 0..4300 {
        let value = format!("{n} {}", "x".repeat(65_000));
        let name = format!("{n}");
        bomb.write_all(&pax(&[("SCHILY.xattr.user.large", &value)])).unwrap();
        bomb.write_all(&entry(&name, b'0', "", b"")).unwrap();
    }
    bomb.write_all(&[0; 1024]).unwrap();
    bomb.finish().unwrap();
    assert!(file.metadata().unwrap().len() < 1 << 20);
    refused_with(64, &file, &tree, &scratch, "attributes that are too large in all");
}

#[test]
fn several_extended_headers_of_one_entry_are_no_larger_than_one() {
    let scratch = Scratch::new();
    let (tree, file) = (victim(&scratch), scratch.path("a.tar.zst"));
    let header = |n: u32| {
        let (names, value): (Vec<_>, _) = ((0..50).map(|m| format!("SCHILY.xattr.user.{n}.{m}")).collect(), "x".repeat(60_000));
        pax(&names.iter().map(|name| (name.as_str(), value.as_str())).collect::<Vec<_>>())
    };
    // Each of them could be; of any number of them nothing else would be the end but that of the memory.
    write(&file, &[header(1), entry("a", b'0', "", b"1")]);
    Archive::open(&file).unwrap();
    write(&file, &[header(1), header(2), entry("a", b'0', "", b"1")]);
    refused(&file, &tree, &scratch, "two of them");
}

#[test]
fn a_foreign_archive_that_takes_much_memory_to_decompress_is_refused() {
    let scratch = Scratch::new();
    let (tree, file) = (victim(&scratch), scratch.path("a.tar.zst"));
    let long = |window| {
        let mut encoder = zstd::Encoder::new(fs::File::create(&file).unwrap(), 1).unwrap();
        encoder.window_log(window).unwrap();
        encoder.write_all(&[entry("a", b'0', "", b"1"), vec![0; 1024]].concat()).unwrap();
        encoder.finish().unwrap();
    };
    // As `zstd --long` and `zstd --ultra -22` make it, and `zstd -d` takes it; and as it does not.
    long(27);
    Archive::open(&file).unwrap();
    long(28);
    refused_with(64, &file, &tree, &scratch, "more memory than `zstd -d` takes");
}

#[test]
fn a_file_with_more_attributes_than_an_archive_can_hold_is_an_error_that_names_it() {
    let scratch = Scratch::new();
    let (disk, file) = (crate::power::Disk::make(&scratch), scratch.path("a.tar.zst"));
    let tree = disk.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("a\u{1b}"), "a").unwrap();
    for n in 0..10 {
        rustix::fs::setxattr(tree.join("a\u{1b}"), format!("user.{n}"), &vec![b'x'; 60_000], rustix::fs::XattrFlags::empty()).unwrap();
    }
    // Left out in silence, a restore onto the same tree would delete it.
    let error = recovery::archive::pack(&tree, &file, &Selection::all(), None, &|_| ()).unwrap_err();
    assert_eq!(exit_code(&error), 64, "{error:#}");
    assert!(format!("{error:#}").contains(r#""a\u{1b}" cannot be packed: its extended attributes take"#), "{error:#}");
    assert!(!file.exists());
}
