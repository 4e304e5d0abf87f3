//! Reading bbolt files: pages, the two meta pages, buckets, keys in order.
//!
//! The format is bbolt's, version 2 (go.etcd.io/bbolt, `internal/common/{page,meta,bucket,inode}.go`), little-endian on every machine that
//! the agent runs on. Nothing in a file is trusted: every number is checked against the file before it is used, no page is visited twice,
//! and anything inconsistent is [`damaged`]. Pages are read one at a time with `pread`: a mapped file would count as the agent's resident
//! memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

use crate::error::{damaged, unsupported};
use crate::node::clock::interrupted;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// Bytes before a page's elements: id, flags, count, overflow.
pub(super) const PAGE_HEADER: usize = 16;
/// Bytes of one element of a branch or leaf page.
pub(super) const ELEMENT: usize = 16;
/// Bytes before an inline bucket's page: root page, sequence.
pub(super) const BUCKET_HEADER: usize = 16;
/// Bytes of a meta page after its header, checksum included.
pub(super) const META: usize = 64;
pub(super) const BRANCH: u16 = 1;
pub(super) const LEAF: u16 = 2;
pub(super) const META_PAGE: u16 = 4;
/// Element flag: the value is a bucket.
pub(super) const BUCKET: u32 = 1;
/// The page number of the free list when the file has none: etcd never stores it, and bbolt finds the free pages when it opens the file.
pub(super) const NO_FREE_LIST: u64 = u64::MAX;
/// The most levels of a tree. etcd's keys are short, so a page refers to dozens of others, and a deeper tree is a cycle.
const DEEPEST: usize = 16;
/// The most bytes of a leaf with its overflow. bbolt does not split a leaf of up to four keys, so a leaf can be as large as four values,
/// and a value as large as a request: 1.5 MiB by default, 10 MiB at most by etcd's advice (`--max-request-bytes`; etcd warns above that).
/// The limit is twelve times four such values; a leaf can take that much of the agent's memory.
const LARGEST: u64 = 512 << 20;
/// The most bytes of a branch with its overflow. A branch has short keys only, and bbolt splits it to one page. All branches from the root
/// down are in memory at once.
const LARGEST_BRANCH: u64 = 1 << 20;

/// A meta page: where the database's pages are, as of one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    /// Bytes of a page: the page size of the machine on which the file was made.
    pub(super) page_size: u32,
    /// The page of the root bucket, and its sequence.
    pub(super) root: (u64, u64),
    /// The first page that was never used.
    pub(super) high_water: u64,
    /// The transaction that wrote it.
    pub(super) transaction: u64,
}

impl Meta {
    /// The meta page's content after its header, if its checksum holds.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..META)?;
        let valid = u32_at(bytes, 0)? == MAGIC && u32_at(bytes, 4)? == VERSION && u64_at(bytes, 56)? == fnv(bytes.get(..56)?);
        let page_size = u32_at(bytes, 8)?;
        let valid = valid && u64_at(bytes, 48)? < u64::MAX;
        if !valid || !page_size.is_power_of_two() || !(512..=1 << 16).contains(&page_size) {
            return None;
        }
        Some(Self {
            page_size,
            root: (u64_at(bytes, 16)?, u64_at(bytes, 24)?),
            high_water: u64_at(bytes, 40)?,
            transaction: u64_at(bytes, 48)?,
        })
    }

    /// The newest valid meta page of the database `name`; `at` says which is at an offset.
    fn newest(name: &str, at: impl Fn(u64) -> Result<Option<Self>>) -> Result<Self> {
        let at = |page: u64| at(page + PAGE_HEADER as u64);
        let mut found = at(0)?;
        // The second meta page follows the first, at the page size. Without the first one the page size is unknown, so every size is tried.
        let sizes = found.map_or_else(|| (9..=16).map(|bits| 1 << bits).collect(), |meta| vec![meta.page_size]);
        for size in sizes {
            let second = at(u64::from(size))?.filter(|meta| meta.page_size == size);
            found = [found, second].into_iter().flatten().max_by_key(|meta| meta.transaction);
            if found.is_some() {
                break;
            }
        }
        found.ok_or_else(|| damaged(format!("{name} is not an etcd database: neither of its two meta pages is valid")))
    }

    /// Checks that a file that begins with `head` is a database; `name` is for messages.
    pub(super) fn check_head(head: &[u8], name: &str) -> Result<()> {
        Self::newest(name, |at| Ok(usize::try_from(at).ok().and_then(|at| Self::parse(head.get(at..)?)))).map(drop)
    }

    /// The meta page as on disk, without a free list.
    pub(super) fn bytes(&self) -> [u8; META] {
        let mut bytes = [0; META];
        for (at, value) in [(0, MAGIC), (4, VERSION), (8, self.page_size), (12, 0)] {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        for (at, value) in [(16, self.root.0), (24, self.root.1), (32, NO_FREE_LIST), (40, self.high_water), (48, self.transaction)] {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let sum = fnv(&bytes[..56]);
        bytes[56..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }
}

/// An open bbolt file.
#[derive(Debug)]
pub(super) struct Bolt<'a> {
    file: &'a File,
    name: String,
    /// The newest valid meta page.
    pub(super) meta: Meta,
}

/// A bucket: a tree of pages, or one page inside the parent's value.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    root: u64,
    /// A counter that bbolt keeps for its user; etcd does not use it.
    pub(super) sequence: u64,
    inline: Option<Page>,
}

/// One key of a bucket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item<'a> {
    /// [`BUCKET`] or 0.
    pub(super) flags: u32,
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
}

/// A branch or leaf page with its overflow.
#[derive(Debug, Clone)]
pub(super) struct Page {
    pub(super) id: u64,
    /// Pages in the file, the first one included.
    span: u64,
    bytes: Vec<u8>,
    leaf: bool,
    pub(super) count: usize,
}

impl Page {
    /// `None` when the header is not a branch's or leaf's, or its elements do not fit.
    fn parse(id: u64, bytes: Vec<u8>) -> Option<Self> {
        let leaf = match u16_at(&bytes, 8)? {
            LEAF => true,
            BRANCH => false,
            _ => return None,
        };
        let count = usize::from(u16_at(&bytes, 10)?);
        let fits = PAGE_HEADER + count * ELEMENT <= bytes.len() && (leaf || count > 0);
        let span = 1 + u64::from(u32_at(&bytes, 12)?);
        (fits && u64_at(&bytes, 0)? == id).then_some(Self { id, span, bytes, leaf, count })
    }

    /// True for a leaf, which holds keys and values; a branch holds keys and pages.
    pub(super) fn is_leaf(&self) -> bool {
        self.leaf
    }

    fn slice(&self, at: usize, len: u32) -> Option<&[u8]> {
        self.bytes.get(at..)?.get(..usize::try_from(len).ok()?)
    }

    /// Element `i` of a leaf.
    pub(super) fn item(&self, i: usize) -> Option<Item<'_>> {
        let at = PAGE_HEADER + i * ELEMENT;
        let key_len = u32_at(&self.bytes, at + 8)?;
        let key_at = at.checked_add(usize::try_from(u32_at(&self.bytes, at + 4)?).ok()?)?;
        let key = self.slice(key_at, key_len)?;
        let value = self.slice(key_at + key.len(), u32_at(&self.bytes, at + 12)?)?;
        Some(Item { flags: u32_at(&self.bytes, at)?, key, value })
    }

    /// Element `i` of a branch: the first key below a page, and that page.
    pub(super) fn child(&self, i: usize) -> Option<(&[u8], u64)> {
        let at = PAGE_HEADER + i * ELEMENT;
        let key_at = at.checked_add(usize::try_from(u32_at(&self.bytes, at)?).ok()?)?;
        Some((self.slice(key_at, u32_at(&self.bytes, at + 4)?)?, u64_at(&self.bytes, at + 8)?))
    }
}

impl<'a> Bolt<'a> {
    /// Finds the newest valid meta page of the database in the first `len` bytes of `file`; `name` is for messages.
    pub(super) fn open(file: &'a File, len: u64, name: &str) -> Result<Self> {
        let meta = Meta::newest(name, |offset| {
            let mut bytes = [0; META];
            if offset + META as u64 > len {
                return Ok(None);
            }
            file.read_exact_at(&mut bytes, offset).with_context(|| format!("reading {name}"))?;
            Ok(Meta::parse(&bytes))
        })?;
        let end = meta.high_water.checked_mul(u64::from(meta.page_size));
        if meta.high_water < 4 || end.is_none_or(|end| end > len) {
            return Err(damaged(format!(
                "{name} is cut short: its database has {} pages of {} bytes, the file {len} bytes",
                meta.high_water, meta.page_size
            )));
        }
        Ok(Self { file, name: name.to_owned(), meta })
    }

    /// The error for something wrong in this file.
    pub(super) fn bad(&self, what: impl std::fmt::Display) -> anyhow::Error {
        damaged(format!("{} is damaged: {what}", self.name))
    }

    /// The bucket that holds all others.
    pub(super) fn root(&self) -> Bucket {
        Bucket { root: self.meta.root.0, sequence: self.meta.root.1, inline: None }
    }

    /// The bucket in a value of the root bucket.
    pub(super) fn bucket(&self, value: &[u8]) -> Result<Bucket> {
        let parse = || {
            let (root, sequence) = (u64_at(value, 0)?, u64_at(value, 8)?);
            let inline = if root == 0 { Some(Page::parse(0, value.get(BUCKET_HEADER..)?.to_vec()).filter(Page::is_leaf)?) } else { None };
            Some(Bucket { root, sequence, inline })
        };
        parse().ok_or_else(|| self.bad("a bucket has an invalid header"))
    }

    /// The bucket `name` of the root bucket.
    pub(super) fn find(&self, name: &[u8]) -> Result<Option<Bucket>> {
        let mut found = None;
        self.walk().each(&self.root(), &mut |item| {
            if item.key == name && item.flags & BUCKET != 0 {
                found = Some(item.value.to_vec());
            }
            Ok(())
        })?;
        found.map(|value| self.bucket(&value)).transpose()
    }

    /// A page with its overflow.
    fn page(&self, id: u64) -> Result<Page> {
        let size = u64::from(self.meta.page_size);
        if id < 2 || id >= self.meta.high_water {
            return Err(self.bad(format!("it refers to page {id}, but has only {} pages", self.meta.high_water)));
        }
        let read = |len: u64| -> Result<Vec<u8>> {
            let mut bytes = vec![0; usize::try_from(len)?];
            self.file.read_exact_at(&mut bytes, id * size).with_context(|| format!("reading page {id} of {}", self.name))?;
            Ok(bytes)
        };
        let mut bytes = read(size)?;
        let span = 1 + u64::from(u32_at(&bytes, 12).unwrap_or(0));
        if span > 1 {
            if id + span > self.meta.high_water {
                return Err(self.bad(format!("page {id} claims to be {span} pages long, in a database of {}", self.meta.high_water)));
            }
            let branch = u16_at(&bytes, 8) == Some(BRANCH);
            if branch && span * size > LARGEST_BRANCH {
                return Err(
                    self.bad(format!("the branch page {id} claims to be {} bytes long: etcd's limit is {LARGEST_BRANCH}", span * size))
                );
            }
            if span * size > LARGEST {
                return Err(unsupported(format!(
                    "{}: page {id} is {} MiB long, and this agent takes at most {} MiB (10 MiB for --max-request-bytes, etcd's advice, makes 40): \
                     restore it with `etcdutl snapshot restore`",
                    self.name,
                    (span * size) >> 20,
                    LARGEST >> 20
                )));
            }
            bytes = read(span * size)?;
        }
        Page::parse(id, bytes).ok_or_else(|| self.bad(format!("page {id} is neither a branch nor a leaf page")))
    }

    fn start(&self, bucket: &Bucket) -> Result<Page> {
        bucket.inline.clone().map_or_else(|| self.page(bucket.root), Ok)
    }

    /// The pages from a bucket's root to its last leaf.
    pub(super) fn rightmost(&self, bucket: &Bucket) -> Result<Vec<Page>> {
        let mut path = vec![self.start(bucket)?];
        while let Some(page) = path.last().filter(|page| !page.is_leaf()) {
            let (_, next) =
                page.child(page.count - 1).ok_or_else(|| self.bad(format!("an element of page {} runs past its end", page.id)))?;
            if path.len() == DEEPEST {
                return Err(self.bad(format!("the tree of page {} is deeper than {DEEPEST} levels: a cycle", bucket.root)));
            }
            path.push(self.page(next)?);
        }
        Ok(path)
    }

    /// The greatest key of a bucket.
    pub(super) fn last_key(&self, bucket: &Bucket) -> Result<Option<Vec<u8>>> {
        let path = self.rightmost(bucket)?;
        match path.last() {
            Some(leaf) if leaf.count > 0 => {
                let item =
                    leaf.item(leaf.count - 1).ok_or_else(|| self.bad(format!("an element of page {} runs past its end", leaf.id)))?;
                Ok(Some(item.key.to_vec()))
            }
            // bbolt leaves no empty leaf below a branch.
            _ if path.len() > 1 => Err(self.bad("a leaf page is empty")),
            _ => Ok(None),
        }
    }

    /// A walk over one bucket or several in which no page may be visited twice.
    pub(super) fn walk(&self) -> Walk<'_> {
        Walk { bolt: self, visited: Vec::new(), pages: 0, backwards: false }
    }
}

/// A walk that visits keys in order: see [`Bolt::walk`].
pub(super) struct Walk<'a> {
    bolt: &'a Bolt<'a>,
    /// A bit for each page.
    visited: Vec<u64>,
    pages: u64,
    backwards: bool,
}

impl Walk<'_> {
    /// The same walk from the last key of a bucket to its first.
    pub(super) fn backwards(self) -> Self {
        Self { backwards: true, ..self }
    }

    /// Calls `each` with every key of `bucket`, in order. Fails when the keys are not in order, or do not fit the branches above them.
    pub(super) fn each(&mut self, bucket: &Bucket, each: &mut dyn FnMut(Item<'_>) -> Result<()>) -> Result<()> {
        let start = match &bucket.inline {
            Some(page) => page.clone(),
            None => self.visit(bucket.root)?,
        };
        self.below(&start, 1, &[], &mut None, each)
    }

    /// Walks `page`. All its keys must be at least `low`, and beyond `last`, the key visited before: greater, and on the way backwards less.
    fn below(
        &mut self,
        page: &Page,
        depth: usize,
        low: &[u8],
        last: &mut Option<Vec<u8>>,
        each: &mut dyn FnMut(Item<'_>) -> Result<()>,
    ) -> Result<()> {
        let leaves = || self.bolt.bad(format!("an element of page {} runs past its end", page.id));
        let unordered = || self.bolt.bad(format!("the keys of page {} are not in order", page.id));
        let backwards = self.backwards;
        let is_beyond =
            |key: &[u8], last: &Option<Vec<u8>>| last.as_deref().is_none_or(|last| if backwards { key < last } else { key > last });
        let order = (0..page.count).map(|i| if backwards { page.count - 1 - i } else { i });
        if !page.is_leaf() {
            if depth == DEEPEST {
                return Err(self.bolt.bad(format!("page {} is deeper in its tree than {DEEPEST} levels", page.id)));
            }
            for i in order {
                let (key, id) = page.child(i).ok_or_else(leaves)?;
                if key < low || !is_beyond(key, last) {
                    return Err(unordered());
                }
                let child = self.visit(id)?;
                self.below(&child, depth + 1, key, last, each)?;
            }
            return Ok(());
        }
        for i in order {
            let item = page.item(i).ok_or_else(leaves)?;
            if item.key < low || !is_beyond(item.key, last) {
                return Err(unordered());
            }
            let last = last.get_or_insert_default();
            last.clear();
            last.extend_from_slice(item.key);
            each(item)?;
        }
        Ok(())
    }

    /// Reads a page; none of its parts may have been visited before.
    fn visit(&mut self, id: u64) -> Result<Page> {
        self.pages += 1;
        if self.pages.is_multiple_of(1024) {
            interrupted()?;
        }
        let page = self.bolt.page(id)?;
        for part in id..id + page.span {
            let (word, bit) = (usize::try_from(part / 64)?, 1 << (part % 64));
            if self.visited.len() <= word {
                self.visited.resize(word + 1, 0);
            }
            if self.visited[word] & bit != 0 {
                return Err(self.bolt.bad(format!("page {part} is used twice")));
            }
            self.visited[word] |= bit;
        }
        Ok(page)
    }
}

/// FNV-1a, 64 bits: the checksum of a meta page.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}
