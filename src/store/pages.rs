//! Which pages a data file needs, read without mapping it: for a file that is shorter than LMDB's count of
//! pages says.
//!
//! Such a file need not be damaged. A page that a transaction takes from the end of the file and gives back is
//! never written, so the file may end before it. It is damaged if a page is missing that can be reached from
//! the newest root.
//!
//! # Source
//! `mdb.c` of LMDB 0.9.24: `MDB_page`, `MDB_node`, `MDB_db`, `MDB_meta`, `mdb_page_flush` (loose pages).

use std::cell::Cell;
use std::io;
use std::os::fd::BorrowedFd;

const HEADER: usize = 16;
const MAGIC: u32 = 0xbeef_c0de;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const LEAF_OF_FIXED: u16 = 0x20;
const NODE_HEADER: usize = 8;
const BIG_DATA: u16 = 0x01;
const SUB_DATA: u16 = 0x02;
const NO_PAGE: u64 = u64::MAX;

/// Offsets in a meta page.
const META_TREES: [usize; 2] = [40, 88];
const META_TXN: usize = 144;
/// Offset of the root in the description of a tree.
const TREE_ROOT: usize = 40;
const TREE_BYTES: usize = 48;

/// Deeper than any tree of 2^64 pages.
const MAX_DEPTH: usize = 64;

/// The first page found that is needed and lies behind the end of a file of `length` bytes.
///
/// # Errors
/// If what is there is no database, or cannot be read.
pub(super) fn first_missing(file: BorrowedFd<'_>, length: u64) -> io::Result<Option<u64>> {
    // Sizes in the file are those of the machine that wrote it.
    if cfg!(not(target_pointer_width = "64")) {
        return Err(bad("files of 32-bit machines are not looked into"));
    }
    let mut head = [0; META_TXN + 8];
    read(file, &mut head, 0)?;
    if u32_at(&head, HEADER)? != MAGIC {
        return Err(bad("it has no mark of LMDB"));
    }
    // The page size stands where the description of the free pages has its padding.
    let page_bytes = u32_at(&head, META_TREES[0])? as usize;
    if !page_bytes.is_power_of_two() || !(256..=65_536).contains(&page_bytes) {
        return Err(bad("its page size is none"));
    }
    let mut second = [0; META_TXN + 8];
    read(file, &mut second, page_bytes as u64)?;
    let newest = if u64_at(&head, META_TXN)? < u64_at(&second, META_TXN)? { second } else { head };
    let walk = Walk { file, page_bytes, length, left: Cell::new(length / page_bytes as u64) };
    for tree in META_TREES {
        if let Some(page) = walk.tree(&newest, tree)? {
            return Ok(Some(page));
        }
    }
    Ok(None)
}

struct Walk<'a> {
    file: BorrowedFd<'a>,
    page_bytes: usize,
    length: u64,
    /// Pages that may still be looked at: in a sound file each is reached once.
    left: Cell<u64>,
}

impl Walk<'_> {
    /// The tree that is described at an offset.
    fn tree(&self, bytes: &[u8], at: usize) -> io::Result<Option<u64>> {
        match u64_at(bytes, at + TREE_ROOT)? {
            NO_PAGE => Ok(None),
            root => self.page(root, 0),
        }
    }

    fn is_missing(&self, page: u64, count: u64) -> bool {
        let end = page.checked_add(count).and_then(|end| end.checked_mul(self.page_bytes as u64));
        end.is_none_or(|end| end > self.length)
    }

    fn page(&self, number: u64, depth: usize) -> io::Result<Option<u64>> {
        if self.is_missing(number, 1) {
            return Ok(Some(number));
        }
        match self.left.get().checked_sub(1) {
            Some(left) if depth <= MAX_DEPTH => self.left.set(left),
            _ => return Err(bad("its pages form a loop")),
        }
        let mut page = vec![0; self.page_bytes];
        read(self.file, &mut page, number * self.page_bytes as u64)?;
        let flags = u16_at(&page, 10)?;
        if flags & LEAF_OF_FIXED != 0 {
            return Ok(None);
        }
        let count =
            usize::from(u16_at(&page, 12)?).checked_sub(HEADER).ok_or_else(|| bad("a page has no head"))? / 2;
        for index in 0..count {
            let node = usize::from(u16_at(&page, HEADER + 2 * index)?);
            let missing = match flags & (BRANCH | LEAF) {
                BRANCH => self.page(branch(&page, node)?, depth + 1)?,
                LEAF => self.leaf(&page, node)?,
                _ => return Err(bad("a page is of no kind")),
            };
            if missing.is_some() {
                return Ok(missing);
            }
        }
        Ok(None)
    }

    fn leaf(&self, page: &[u8], node: usize) -> io::Result<Option<u64>> {
        let flags = u16_at(page, node + 4)?;
        let data = node + NODE_HEADER + usize::from(u16_at(page, node + 6)?);
        if flags & BIG_DATA != 0 {
            let size = u64::from(u16_at(page, node)?) | u64::from(u16_at(page, node + 2)?) << 16;
            let pages = (HEADER as u64 - 1 + size) / self.page_bytes as u64 + 1;
            let first = u64_at(page, data)?;
            return Ok(self.is_missing(first, pages).then_some(first));
        }
        if flags & SUB_DATA != 0 {
            if page.len() < data + TREE_BYTES {
                return Err(bad("a tree is cut"));
            }
            return self.tree(page, data);
        }
        Ok(None)
    }
}

/// The page that a node of a branch leads to: 48 bits, in three parts.
fn branch(page: &[u8], node: usize) -> io::Result<u64> {
    let part = |at| u16_at(page, at).map(u64::from);
    Ok(part(node)? | part(node + 2)? << 16 | part(node + 4)? << 32)
}

fn bad(cause: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, cause)
}

fn read(file: BorrowedFd<'_>, buffer: &mut [u8], at: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(file, &mut buffer[done..], at + done as u64) {
            Ok(0) => return Err(bad("it ends too early")),
            Ok(count) => done += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> io::Result<[u8; N]> {
    let field = at.checked_add(N).and_then(|end| bytes.get(at..end)).and_then(|field| field.try_into().ok());
    field.ok_or_else(|| bad("a page points outside of itself"))
}

fn u16_at(bytes: &[u8], at: usize) -> io::Result<u16> {
    array(bytes, at).map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    array(bytes, at).map(u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> io::Result<u64> {
    array(bytes, at).map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store, StoreSettings};
    use plywood_fuse::testing::{TempDir, random::Random};
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    #[test]
    fn a_file_of_any_content_ends_in_an_answer() {
        let dir = TempDir::new();
        let db = dir.path().join("db");
        let store = Store::open(&db, &StoreSettings::default()).expect("it can be made");
        for _ in 0..20 {
            store.write("test", |rows| rows.new_id()).expect("it can be");
        }
        store.close().expect("it closes");
        let good = fs::read(db.join("data.mdb")).expect("it is there");
        let path = dir.path().join("bad");
        let ask = |bytes: &[u8]| {
            fs::write(&path, bytes).expect("it can be written");
            first_missing(File::open(&path).expect("it is there").as_fd(), bytes.len() as u64)
        };
        assert_eq!(ask(&good).expect("it is whole"), None);
        for length in (0..good.len()).step_by(512) {
            let answer = ask(&good[..length]);
            assert!(length >= 8192 || !matches!(answer, Ok(None)), "{length}: {answer:?}");
        }
        let mut random = Random::new(7);
        let mut answers = [0; 3];
        for _ in 0..500 {
            let mut bad = good.clone();
            for _ in 0..8 {
                let at = random.below(bad.len() as u64) as usize;
                bad[at] = random.below(256) as u8;
            }
            match ask(&bad) {
                Ok(None) => answers[0] += 1,
                Ok(Some(_)) => answers[1] += 1,
                Err(_) => answers[2] += 1,
            }
        }
        assert_eq!(answers.iter().sum::<i32>(), 500);
    }
}
