//! Edits of a bbolt file. No existing page is changed: new pages are appended, and a new meta page puts them into use.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

use super::bolt::{BRANCH, BUCKET, BUCKET_HEADER, Bolt, Bucket, ELEMENT, Item, LEAF, META_PAGE, Meta, PAGE_HEADER, Page};

/// The keys of the root bucket, and of the small buckets that are rewritten, are held in memory. etcd has a dozen of each, never so many
/// bytes.
const SMALL: usize = 4 << 20;
/// Nor so many keys. A page cannot count beyond 65,535 either.
const MOST: usize = 10_000;

/// The keys of a small bucket, with their flags.
pub(super) type Items = BTreeMap<Vec<u8>, (u32, Vec<u8>)>;

/// Pages being appended to a file.
pub(super) struct Edit<'a> {
    bolt: &'a Bolt<'a>,
    pages: Vec<u8>,
}

impl<'a> Edit<'a> {
    pub(super) fn new(bolt: &'a Bolt<'a>) -> Self {
        Self { bolt, pages: Vec::new() }
    }

    /// The keys of the root bucket: names and headers of the others.
    pub(super) fn root(&self) -> Result<Items> {
        self.items(&self.bolt.root())
    }

    /// The keys of the bucket `name`, which is a key of `root`; empty if there is no such bucket.
    pub(super) fn bucket(&self, root: &Items, name: &[u8]) -> Result<Items> {
        match root.get(name) {
            Some((flags, header)) if flags & BUCKET != 0 => self.items(&self.bolt.bucket(header)?),
            Some(_) => Err(self.bolt.bad(format!("{} is not a bucket", String::from_utf8_lossy(name)))),
            None => Ok(Items::new()),
        }
    }

    fn items(&self, bucket: &Bucket) -> Result<Items> {
        let (mut items, mut size) = (Items::new(), 0);
        self.bolt.walk().each(bucket, &mut |item| {
            size += ELEMENT + item.key.len() + item.value.len();
            if size > SMALL || items.len() == MOST {
                return Err(self
                    .bolt
                    .bad(format!("a bucket that holds a dozen keys in etcd has more than {MOST}, or more than {SMALL} bytes")));
            }
            items.insert(item.key.to_vec(), (item.flags, item.value.to_vec()));
            Ok(())
        })?;
        Ok(items)
    }

    /// Adds `key`, which is greater than all others, to a bucket of any size; returns the bucket's new header. The key gets a leaf of its
    /// own, because the last leaf can be large and would have to be copied.
    pub(super) fn append(&mut self, bucket: &Bucket, key: &[u8], value: &[u8]) -> Result<Vec<u8>> {
        let new = Item { flags: 0, key, value };
        let mut path = self.bolt.rightmost(bucket)?;
        let leaves = || self.bolt.bad("an element goes beyond the end of its page");
        let last = path.pop().ok_or_else(leaves)?;
        // An inline bucket's page is numbered 0 and cannot be referred to, so it is copied out. It is at most a quarter of a page.
        let mut root = if last.id == 0 || last.count == 0 {
            let old: Option<Vec<Item<'_>>> = (0..last.count).map(|i| last.item(i)).collect();
            let items: Vec<Item<'_>> = old.ok_or_else(leaves)?.into_iter().chain([new]).collect();
            self.leaf(&items)
        } else {
            let leaf = self.leaf(&[new]);
            if path.is_empty() {
                let first = last.item(0).ok_or_else(leaves)?.key.to_vec();
                self.branch(&[(first, last.id), (key.to_vec(), leaf)])
            } else {
                leaf
            }
        };
        // The lowest branch gets one more child; each branch above gets a new page number for its last child.
        let mut added = Some(key.to_vec());
        while let Some(branch) = path.pop() {
            let mut children = children(&branch).ok_or_else(leaves)?;
            match added.take() {
                Some(key) if children.len() < usize::from(u16::MAX) => children.push((key, root)),
                Some(_) => return Err(self.bolt.bad("a branch page has no room for another child")),
                None => children.last_mut().ok_or_else(leaves)?.1 = root,
            }
            root = self.branch(&children);
        }
        let mut header = root.to_le_bytes().to_vec();
        header.extend(bucket.sequence.to_le_bytes());
        Ok(header)
    }

    /// Writes the new pages, with `root` as the root bucket's keys, and then the meta page that puts them into use in `file`.
    pub(super) fn commit(mut self, root: &Items, file: &File) -> Result<()> {
        let items: Vec<Item<'_>> = root.iter().map(|(key, (flags, value))| Item { flags: *flags, key, value }).collect();
        let old = self.bolt.meta;
        let root = self.leaf(&items);
        let meta = Meta { root: (root, old.root.1), high_water: self.next(), transaction: old.transaction + 1, ..old };
        let (size, slot) = (u64::from(old.page_size), meta.transaction % 2);
        let mut page = header(slot, META_PAGE, 0, 0).to_vec();
        page.extend(meta.bytes());
        file.write_all_at(&self.pages, old.high_water * size)
            .and_then(|()| file.write_all_at(&page, slot * size))
            .context("writing the database's new pages")
    }

    /// The number of the page that is appended next.
    fn next(&self) -> u64 {
        self.bolt.meta.high_water + self.pages.len() as u64 / u64::from(self.bolt.meta.page_size)
    }

    fn leaf(&mut self, items: &[Item<'_>]) -> u64 {
        let id = self.next();
        self.add(leaf_page(id, items))
    }

    fn branch(&mut self, children: &[(Vec<u8>, u64)]) -> u64 {
        let elements = PAGE_HEADER + children.len() * ELEMENT;
        let mut page = header(self.next(), BRANCH, children.len(), 0).to_vec();
        let mut keys = Vec::new();
        for (i, (key, child)) in children.iter().enumerate() {
            page.extend(small(elements + keys.len() - PAGE_HEADER - i * ELEMENT));
            page.extend(small(key.len()));
            page.extend(child.to_le_bytes());
            keys.extend_from_slice(key);
        }
        page.extend(keys);
        self.add(page)
    }

    /// Appends a page with as much overflow as it needs.
    fn add(&mut self, mut page: Vec<u8>) -> u64 {
        let (id, size) = (self.next(), self.bolt.meta.page_size as usize);
        let span = page.len().div_ceil(size);
        page.resize(span * size, 0);
        page[12..PAGE_HEADER].copy_from_slice(&small(span - 1));
        self.pages.extend(page);
        id
    }
}

/// A bucket inside its parent's value.
pub(super) fn inline(items: &Items) -> (u32, Vec<u8>) {
    let items: Vec<Item<'_>> = items.iter().map(|(key, (flags, value))| Item { flags: *flags, key, value }).collect();
    let mut value = vec![0; BUCKET_HEADER];
    value.extend(leaf_page(0, &items));
    (BUCKET, value)
}

fn children(branch: &Page) -> Option<Vec<(Vec<u8>, u64)>> {
    (0..branch.count).map(|i| branch.child(i).map(|(key, page)| (key.to_vec(), page))).collect()
}

fn leaf_page(id: u64, items: &[Item<'_>]) -> Vec<u8> {
    let elements = PAGE_HEADER + items.len() * ELEMENT;
    let mut page = header(id, LEAF, items.len(), 0).to_vec();
    let mut data = Vec::new();
    for (i, item) in items.iter().enumerate() {
        page.extend(item.flags.to_le_bytes());
        page.extend(small(elements + data.len() - PAGE_HEADER - i * ELEMENT));
        page.extend(small(item.key.len()));
        page.extend(small(item.value.len()));
        data.extend_from_slice(item.key);
        data.extend_from_slice(item.value);
    }
    page.extend(data);
    page
}

fn header(id: u64, flags: u16, count: usize, overflow: usize) -> [u8; PAGE_HEADER] {
    let mut header = [0; PAGE_HEADER];
    header[..8].copy_from_slice(&id.to_le_bytes());
    header[8..10].copy_from_slice(&flags.to_le_bytes());
    header[10..12].copy_from_slice(&small(count)[..2]);
    header[12..].copy_from_slice(&small(overflow));
    header
}

/// A number in a page that is built here: [`SMALL`] and `bolt::LARGEST` keep it far below 4 GiB.
#[allow(clippy::cast_possible_truncation)]
fn small(number: usize) -> [u8; 4] {
    (number as u32).to_le_bytes()
}
