//! Which process: told apart from a later one with the same number.
//!
//! A number alone says nothing after the process has ended. With the moment of its start, the boot of the
//! machine and the namespace that numbers processes it names one process for ever.

use super::codec::{Bytes, Input, Reason};
use crate::error::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// One process, for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessMark {
    /// Its number, in its namespace.
    pub pid: u32,
    /// When it started, in clock ticks since the boot.
    pub start_time: u64,
    /// The boot of the machine.
    pub boot_id: [u8; 16],
    /// The inode of the namespace that numbers it.
    pub pid_namespace: u64,
}

/// What can be said of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It runs.
    Alive,
    /// It has ended.
    Dead,
    /// It is numbered in a namespace that cannot be seen from here.
    CannotTell,
}

impl ProcessMark {
    /// This process.
    ///
    /// # Errors
    /// `Io` without `/proc`.
    pub fn current() -> Result<Self> {
        // Asked once: it stays the same until a fork gives this memory to another process.
        static OWN: Mutex<Option<ProcessMark>> = Mutex::new(None);
        let mut own = OWN.lock();
        if let Some(mark) = own.filter(|mark| mark.pid == std::process::id()) {
            return Ok(mark);
        }
        let mark = Self::of_pid(std::process::id())?.ok_or_else(|| {
            Error::new(ErrorKind::Io, "read", "/proc/self/stat", "this process is not listed")
        })?;
        *own = Some(mark);
        Ok(mark)
    }

    /// The process that has this number here and now; `None` if there is none.
    ///
    /// # Errors
    /// `Io` without `/proc`.
    pub fn of_pid(pid: u32) -> Result<Option<Self>> {
        let Some(start_time) = start_time(pid)? else { return Ok(None) };
        Ok(Some(Self { pid, start_time, boot_id: boot_id()?, pid_namespace: pid_namespace()? }))
    }

    /// Whether it runs. What cannot be read counts as not to be told.
    pub fn liveness(&self) -> Liveness {
        let (Ok(boot), Ok(namespace)) = (boot_id(), pid_namespace()) else { return Liveness::CannotTell };
        if boot != self.boot_id {
            return Liveness::Dead;
        }
        if namespace != self.pid_namespace {
            return Liveness::CannotTell;
        }
        match start_time(self.pid) {
            Ok(Some(start)) if start == self.start_time => Liveness::Alive,
            Ok(_) => Liveness::Dead,
            Err(_) => Liveness::CannotTell,
        }
    }

    /// True if it has certainly ended.
    pub fn is_dead(&self) -> bool {
        self.liveness() == Liveness::Dead
    }

    pub(super) fn encode(&self, row: &mut Bytes) {
        row.u32(self.pid).u64(self.start_time).raw(&self.boot_id).u64(self.pid_namespace);
    }

    pub(super) fn decode(row: &mut Input<'_>) -> std::result::Result<Self, Reason> {
        Ok(Self { pid: row.u32()?, start_time: row.u64()?, boot_id: row.array()?, pid_namespace: row.u64()? })
    }
}

fn start_time(pid: u32) -> Result<Option<u64>> {
    let path = format!("/proc/{pid}/stat");
    match fs::read(&path) {
        Ok(stat) => parse_stat(&stat).map_err(|cause| Error::new(ErrorKind::Io, "read", path, cause)),
        // ESRCH: it ended between open and read.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => {
            // Without /proc everybody would look dead.
            if Path::new("/proc/self/stat").exists() {
                return Ok(None);
            }
            Err(Error::new(ErrorKind::Io, "read", path, "/proc is not mounted"))
        }
        Err(e) => Err(Error::io("read", path, e)),
    }
}

/// The start time in a line of `/proc/PID/stat`; `None` for one that has ended and is not waited for.
///
/// # Source
/// proc_pid_stat(5): fields 3 and 22. Field 2 is the program's name in parentheses and may hold anything.
fn parse_stat(stat: &[u8]) -> std::result::Result<Option<u64>, &'static str> {
    const UNREADABLE: &str = "the line cannot be understood";
    let end = stat.iter().rposition(|&b| b == b')').ok_or(UNREADABLE)?;
    let rest = std::str::from_utf8(&stat[end + 1..]).map_err(|_| UNREADABLE)?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next().ok_or(UNREADABLE)?;
    let start = fields.nth(18).and_then(|f| f.parse().ok()).ok_or(UNREADABLE)?;
    Ok((!matches!(state, "Z" | "X")).then_some(start))
}

fn boot_id() -> Result<[u8; 16]> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(PATH).map_err(|e| Error::io("read", PATH, e))?;
    parse_uuid(text.trim()).ok_or_else(|| Error::new(ErrorKind::Io, "read", PATH, "it holds no UUID"))
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
    let mut id = [0; 16];
    if digits.len() != 32 {
        return None;
    }
    for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(id)
}

fn pid_namespace() -> Result<u64> {
    const PATH: &str = "/proc/self/ns/pid";
    Ok(fs::metadata(PATH).map_err(|e| Error::io("stat", PATH, e))?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_alive_until_it_has_ended() {
        let own = ProcessMark::current().expect("/proc is there");
        assert_eq!(own.liveness(), Liveness::Alive);
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let mark = ProcessMark::of_pid(child.id()).expect("/proc is there").expect("it runs");
        assert_eq!(mark.liveness(), Liveness::Alive);
        child.kill().expect("it is ours");
        // Killed but not waited for it still has its number, and runs nothing.
        while mark.liveness() == Liveness::Alive {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(mark.liveness(), Liveness::Dead);
        child.wait().expect("it is ours");
        assert!(mark.is_dead());
    }

    #[test]
    fn the_same_number_is_another_process_after_a_restart_or_a_boot() {
        let own = ProcessMark::current().expect("/proc is there");
        let later = ProcessMark { start_time: own.start_time + 1, ..own };
        assert_eq!(later.liveness(), Liveness::Dead);
        let booted = ProcessMark { boot_id: [7; 16], ..own };
        assert_eq!(booted.liveness(), Liveness::Dead);
        let elsewhere = ProcessMark { pid_namespace: own.pid_namespace + 1, ..own };
        assert_eq!(elsewhere.liveness(), Liveness::CannotTell);
        assert!(!elsewhere.is_dead());
    }

    #[test]
    fn the_name_of_a_program_does_not_disturb_the_line() {
        let line = |name: &str, state: &str| {
            format!("7 ({name}) {state} 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2 3")
        };
        assert_eq!(parse_stat(line("sh", "S").as_bytes()), Ok(Some(98_765)));
        assert_eq!(parse_stat(line("a) Z (b", "R").as_bytes()), Ok(Some(98_765)));
        assert_eq!(parse_stat(line("sh", "Z").as_bytes()), Ok(None));
        assert!(parse_stat(b"7 (sh S 1").is_err());
        assert!(parse_stat(b"7 (sh) S 1 2").is_err());
        assert!(parse_stat(b"").is_err());
    }

    #[test]
    fn a_boot_id_has_32_digits() {
        let id = parse_uuid("00112233-4455-6677-8899-aabbccddeeff").expect("a UUID");
        assert_eq!((id[0], id[1], id[15]), (0, 0x11, 0xff));
        assert_eq!(parse_uuid("0011"), None);
        assert_eq!(parse_uuid("zz112233-4455-6677-8899-aabbccddeeff"), None);
    }
}
