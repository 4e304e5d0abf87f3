//! Checking a whole archive against its index, and reading single files from it.

use std::io::BufRead;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::member::Member;
use super::reader::{OnPiece, TarReader};
use super::stream::{Stream, sum};
use super::table::{Id, Table};
use crate::archive::content::Content;
use crate::archive::entry::Kind;
use crate::archive::frames::{FrameReader, Frames};
use crate::archive::path::shown;
use crate::archive::work::{self, Tick};
use crate::error::damaged;

/// Decompresses everything and checks that it is exactly what the index says.
pub(in crate::archive) fn indexed(frames: &Arc<Frames>, table: &Table, tick: Tick<'_>) -> Result<()> {
    let mut groups: Vec<(Id, Id)> = Vec::new();
    for id in table.ids() {
        match groups.last_mut() {
            Some((first, end)) if table.row(*first).frame == table.row(id).frame => *end = id + 1,
            _ => groups.push((id, id + 1)),
        }
    }
    let end_of = |end: Id| if end == table.ids().end { frames.table().len() } else { table.row(end).frame as usize };
    if groups.first().is_none_or(|(first, _)| table.row(*first).frame != 0) {
        return Err(damaged("the archive is damaged: it does not begin with an entry"));
    }
    let state = || FrameReader::new(frames.clone());
    work::run(groups, state, |reader, (first, end), _| {
        reader.seek(table.row(first).frame, 0)?;
        let mut tar = TarReader::new(&mut *reader);
        for id in first..end {
            let row = table.row(id);
            if tar.next_position() != u64::from(row.offset) {
                return Err(damaged(format!("the archive is damaged: {} is not where the index says", shown(table.path(id)))));
            }
            check_entry(table, id, tar.next()?.as_ref(), &mut tar)?;
            tick(row.sum.data);
        }
        tar.pass_over()?;
        if reader.place() == (u32::try_from(end_of(end))?, 0) {
            Ok(())
        } else {
            Err(damaged("the archive is damaged: it holds more than its index says"))
        }
    })
    .map(drop)
}

/// Reads a stream again and checks that it is the same as when it was opened.
pub(in crate::archive) fn stream(stream: &Stream, table: &Table, tick: Tick<'_>) -> Result<()> {
    stream.each(|id, member, reader| {
        let row = table.row(id);
        tick(row.sum.data);
        if member.entry.kind == row.kind && member.entry.size == row.size && sum(member, reader)? == row.sum {
            return Ok(());
        }
        Err(damaged("the archive has changed since it was opened"))
    })
}

/// Checks header and content of an entry against the table.
fn check_entry<R: BufRead>(table: &Table, id: Id, member: Option<&Member>, reader: &mut TarReader<R>) -> Result<()> {
    let member = check_header(table, id, member)?;
    if member.entry.kind == Kind::File && sum(member, reader)? != table.row(id).sum {
        return Err(not_what_was_packed(table, id));
    }
    Ok(())
}

fn check_header<'a>(table: &Table, id: Id, member: Option<&'a Member>) -> Result<&'a Member> {
    member
        .filter(|member| member.entry == table.entry(id))
        .ok_or_else(|| damaged(format!("the archive is damaged: {} is not what the index says", shown(table.path(id)))))
}

/// Reads the content of a file and checks it against its hash.
pub(in crate::archive) fn check_content(reader: &mut FrameReader, table: &Table, id: Id) -> Result<()> {
    let mut sum = Content::default();
    content(reader, table, id, &mut |offset, bytes| {
        sum.add(offset, bytes);
        Ok(())
    })?;
    if sum.finish(table.row(id).size) == table.row(id).sum { Ok(()) } else { Err(not_what_was_packed(table, id)) }
}

fn not_what_was_packed(table: &Table, id: Id) -> anyhow::Error {
    damaged(format!("the archive is damaged: the content of {} is not what was packed", shown(table.path(id))))
}

/// Reads the content of a file; its header must say what the index says.
pub(in crate::archive) fn content(reader: &mut FrameReader, table: &Table, id: Id, sink: OnPiece<'_>) -> Result<()> {
    let row = table.row(id);
    reader.seek(row.frame, row.offset)?;
    let mut tar = TarReader::new(reader);
    let member = tar.next()?;
    let member = check_header(table, id, member.as_ref())?;
    tar.content(member, sink).with_context(|| format!("reading {}", shown(table.path(id))))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::archive::entry::{Attributes, Entry, Time};
    use crate::archive::index::{Frame, Record, Writer, compressor};
    use crate::archive::pack::header;
    use crate::archive::tar::{INDEXED, padding};
    use crate::archive::{Archive, Extra, Selection};
    use crate::error::exit_code;
    use crate::formats::index::Trailer;

    fn entry(path: &str, kind: Kind, size: u64, target: &str) -> Entry {
        // The owner of the test's process: only root can restore other owners.
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let attributes = Attributes { mode: 0o755, uid, gid, ..Attributes::default() };
        Entry { path: path.into(), kind, attributes, mtime: Time::default(), size, target: target.into(), device: (0, 0) }
    }

    /// An archive whose tar stream holds `entries`, and whose index is the true one, changed by `lie`.
    fn archive(entries: &[(Entry, &[u8])], lie: impl FnOnce(&mut Vec<Record>, &mut Frame)) -> Vec<u8> {
        let (mut stream, mut records) = (Vec::new(), Vec::new());
        for (n, (entry, content)) in entries.iter().enumerate() {
            let offset = u32::try_from(stream.len()).unwrap();
            header::encode(entry, None, if n == 0 { &[INDEXED] } else { &[] }, &mut stream).unwrap();
            stream.extend_from_slice(content);
            stream.extend_from_slice(padding(content.len() as u64));
            let hash = *blake3::hash(content).as_bytes();
            let ctime = Time::default();
            let data = content.len() as u64;
            records.push(Record { entry: entry.clone(), existence: false, hash, data, frame: 0, offset, inode: 0, ctime });
        }
        let mut archive = compressor().unwrap().compress(&stream).unwrap();
        let hash = *blake3::hash(&archive).as_bytes();
        let mut frame =
            Frame { offset: 0, len: u32::try_from(archive.len()).unwrap(), plain_len: u32::try_from(stream.len()).unwrap(), hash };
        lie(&mut records, &mut frame);
        let mut index = Writer::new().unwrap();
        records.into_iter().for_each(|record| index.add(record).unwrap());
        let tail = index.finish(Time::default(), vec![frame], archive.len() as u64).unwrap();
        archive.extend_from_slice(&tail);
        archive
    }

    #[test]
    fn an_index_that_lies_is_refused_before_anything_is_changed() {
        type Lie = fn(&mut Vec<Record>, &mut Frame);
        let scratch = tempfile::tempdir().unwrap();
        let (tree, file) = (scratch.path().join("tree"), scratch.path().join("a.tar.zst"));
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("old"), "still here").unwrap();
        let entries = [
            (entry("", Kind::Directory, 0, ""), &b""[..]),
            (entry("a", Kind::File, 4, ""), b"text"),
            (entry("d", Kind::Directory, 0, ""), b""),
            (entry("d/b", Kind::File, 4, ""), b"more"),
        ];
        let lies: [(&str, Lie); 15] = [
            ("a name that leads out", |records, _| records[1].entry.path = b"../evil".to_vec()),
            ("an absolute name", |records, _| records[1].entry.path = b"/evil".to_vec()),
            ("another name", |records, _| records[1].entry.path = b"c".to_vec()),
            ("another mode", |records, _| records[1].entry.attributes.mode = 0o4755),
            ("another size", |records, _| records[1].entry.size = 3),
            ("another hash", |records, _| records[1].hash[0] ^= 1),
            ("another place", |records, _| records[3].offset += 512),
            ("a frame that is not there", |records, _| records[3].frame = 7),
            ("no parent", |records, _| drop(records.remove(2))),
            ("an order of its own", |records, _| records.swap(1, 3)),
            ("a file as a directory", |records, _| records[2].entry = entry("d", Kind::Symlink, 0, "/etc")),
            ("a hard link to nothing", |records, _| records[3].entry = entry("d/b", Kind::HardLink, 0, "x")),
            ("a hard link to what comes later", |records, _| records[1].entry = entry("a", Kind::HardLink, 0, "d/b")),
            ("an attribute of the kernel's own", |records, _| records[1].entry.attributes.xattrs = vec![(b"system.x".to_vec(), vec![])]),
            ("a length of its own", |_, frame| frame.plain_len += 1),
        ];
        for (what, lie) in lies {
            fs::write(&file, archive(&entries, lie)).unwrap();
            let restore = || Archive::open(&file)?.restore(&tree, &Selection::all(), Extra::Delete, &|_| ());
            let error = restore().expect_err(what);
            assert_eq!(exit_code(&error), 65, "{what}: {error:#}");
            assert!(fs::read_dir(&tree).unwrap().map(|entry| entry.unwrap().file_name()).eq(["old"]), "{what}: something was changed");
            let verified = Archive::open(&file).and_then(|archive| archive.verify(&|_| ()));
            assert_eq!(verified.map_err(|error| exit_code(&error)), Err(65), "{what}");
        }
        fs::write(&file, archive(&entries, |_, _| ())).unwrap();
        let archive = Archive::open(&file).unwrap();
        archive.verify(&|_| ()).unwrap();
        archive.restore(&tree, &Selection::all(), Extra::Delete, &|_| ()).unwrap();
        assert_eq!(fs::read(tree.join("d/b")).unwrap(), b"more");
    }

    #[test]
    fn an_archive_whose_index_is_of_another_version_is_read_without_it() {
        let scratch = tempfile::tempdir().unwrap();
        let (tree, file) = (scratch.path().join("tree"), scratch.path().join("a.tar.zst"));
        let entries = [(entry("", Kind::Directory, 0, ""), &b""[..]), (entry("a", Kind::File, 4, ""), b"text")];
        let mut bytes = archive(&entries, |_, _| ());
        let trailer = bytes.len() - Trailer::LEN;
        bytes[trailer + 16] += 1;
        fs::write(&file, &bytes).unwrap();
        // A version number that was damaged does not count as another version.
        assert_eq!(exit_code(&Archive::open(&file).unwrap_err()), 65);
        let sum = blake3::hash(&bytes[trailer..trailer + Trailer::LEN - 16]);
        bytes[trailer + Trailer::LEN - 16..].copy_from_slice(&sum.as_bytes()[..16]);
        fs::write(&file, &bytes).unwrap();
        let archive = Archive::open(&file).unwrap();
        archive.verify(&|_| ()).unwrap();
        archive.restore(&tree, &Selection::all(), Extra::Delete, &|_| ()).unwrap();
        assert_eq!(fs::read(tree.join("a")).unwrap(), b"text");
    }
}
