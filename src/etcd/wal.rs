//! The write-ahead log of a new member: one segment with the five records that a first start needs.
//!
//! The format is etcd's (`server/storage/wal`, `wal/walpb`, raft's `raftpb`): protobuf records in frames that are 8-byte aligned, each with
//! the CRC-32C of all data so far. These records are the same as etcd's own when it has bootstrapped a cluster of one and stopped after its
//! first entry, so every version starts from them. There is no `.snap` file, which etcdutl adds: etcd makes one at the first raft snapshot.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::FallocateFlags;

use super::Member;

/// Size of a segment; etcd reserves it whole.
const SEGMENT: u64 = 64 * 1000 * 1000;
/// The first segment.
pub(super) const NAME: &str = "0000000000000000-0000000000000000.wal";
/// Index and term of the only entry: the database's consistent index and term are set to the same.
pub(super) const INDEX: u64 = 1;
pub(super) const TERM: u64 = 1;

const METADATA: u64 = 1;
const ENTRY: u64 = 2;
const STATE: u64 = 3;
const CRC: u64 = 4;
const SNAPSHOT: u64 = 5;
const CONF_CHANGE_ENTRY: u64 = 1;
const ADD_NODE: u64 = 0;

/// Makes the segment in `dir`, durably.
pub(super) fn create(dir: &Path, member: &Member, cluster: u64) -> Result<()> {
    let path = dir.join(NAME);
    let write = || -> Result<()> {
        let mut file = super::new_file(&path)?;
        reserve(&file)?;
        file.write_all(&records(member, cluster)?)?;
        Ok(file.sync_all()?)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// The records: what a restore writes into the segment.
fn records(member: &Member, cluster: u64) -> Result<Vec<u8>> {
    let add_node = [number(1, 0), number(2, ADD_NODE), number(3, member.id), bytes(4, &member.json()?)].concat();
    let entry = [number(1, CONF_CHANGE_ENTRY), number(2, TERM), number(3, INDEX), bytes(4, &add_node)].concat();
    let mut log = Log::default();
    log.record(CRC, None);
    log.record(METADATA, Some(&[number(1, member.id), number(2, cluster)].concat()));
    log.record(SNAPSHOT, Some(&[number(1, 0), number(2, 0)].concat()));
    log.record(ENTRY, Some(&entry));
    log.record(STATE, Some(&[number(1, TERM), number(2, member.id), number(3, INDEX)].concat()));
    Ok(log.bytes)
}

/// Reserves the space of a segment, as zeros; only sets the length where the file system cannot reserve.
fn reserve(file: &File) -> Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, SEGMENT) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(file.set_len(SEGMENT)?),
        Err(error) => Err(error.into()),
    }
}

#[derive(Default)]
struct Log {
    bytes: Vec<u8>,
    sum: u32,
}

impl Log {
    fn record(&mut self, kind: u64, data: Option<&[u8]>) {
        self.sum = crc32c::crc32c_append(self.sum, data.unwrap_or_default());
        let mut record = [number(1, kind), number(2, self.sum.into())].concat();
        if let Some(data) = data {
            record.extend(bytes(3, data));
        }
        let padding = record.len().next_multiple_of(8) - record.len();
        // The lower 56 bits are the length; the top byte, if not 0, says how much padding follows the record.
        let mut length = record.len() as u64;
        if padding > 0 {
            length |= (0x80 | padding as u64) << 56;
        }
        self.bytes.extend(length.to_le_bytes());
        self.bytes.extend(record);
        self.bytes.resize(self.bytes.len() + padding, 0);
    }
}

/// A protobuf field with a number.
fn number(field: u64, value: u64) -> Vec<u8> {
    let mut out = varint(field << 3);
    out.extend(varint(value));
    out
}

/// A protobuf field with bytes.
fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    let mut out = varint(field << 3 | 2);
    out.extend(varint(value.len() as u64));
    out.extend_from_slice(value);
    out
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            out.push(low & 0x7F);
            return out;
        }
        out.push(low | 0x80);
    }
}
