//! How many requests of which kind the kernel sent.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! requests {
    ($($variant:ident = $name:literal),+ $(,)?) => {
        /// The kinds of requests.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[allow(missing_docs)]
        pub enum Request {
            $($variant),+
        }

        /// Their names, in the same order.
        const NAMES: &[&str] = &[$($name),+];
    };
}

requests! {
    Lookup = "lookup", Forget = "forget", Getattr = "getattr", Setattr = "setattr", Readlink = "readlink",
    Mknod = "mknod", Mkdir = "mkdir", Unlink = "unlink", Rmdir = "rmdir", Symlink = "symlink",
    Rename = "rename", Link = "link", Open = "open", Read = "read", Write = "write", Flush = "flush",
    Release = "release", Fsync = "fsync", Opendir = "opendir", Readdir = "readdir",
    Readdirplus = "readdirplus", Releasedir = "releasedir", Fsyncdir = "fsyncdir", Statfs = "statfs",
    Setxattr = "setxattr", Getxattr = "getxattr", Listxattr = "listxattr", Removexattr = "removexattr",
    Access = "access", Create = "create", Ioctl = "ioctl", Fallocate = "fallocate", Lseek = "lseek",
    CopyFileRange = "copy_file_range",
}

/// Counts requests.
pub struct Requests {
    counts: Vec<AtomicU64>,
}

impl Default for Requests {
    fn default() -> Self {
        Requests { counts: NAMES.iter().map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Requests {
    /// Counts one.
    pub fn count(&self, request: Request) {
        if let Some(counter) = self.counts.get(request as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many of one kind came.
    pub fn get(&self, request: Request) -> u64 {
        self.counts.get(request as usize).map_or(0, |c| c.load(Ordering::Relaxed))
    }

    /// All that are not zero, on one line. The total leaves out `forget`, which nobody waits for.
    pub fn text(&self) -> String {
        let total: u64 = self.counts.iter().map(|c| c.load(Ordering::Relaxed)).sum();
        let mut text = format!("total={}", total - self.get(Request::Forget));
        for (name, counter) in NAMES.iter().zip(&self.counts) {
            let count = counter.load(Ordering::Relaxed);
            if count > 0 {
                let _ = write!(text, " {name}={count}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_what_came_and_leaves_forgets_out_of_the_total() {
        let requests = Requests::default();
        for request in [Request::Lookup, Request::Lookup, Request::Forget, Request::CopyFileRange] {
            requests.count(request);
        }
        assert_eq!(requests.text(), "total=3 lookup=2 forget=1 copy_file_range=1");
    }
}
