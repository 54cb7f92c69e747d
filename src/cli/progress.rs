//! How is long work shown? As bars with bytes and rates on a terminal, as a line for each piece of work elsewhere, and
//! not at all for programs. Ctrl-C is heard here, too: the work then ends by itself, and clears up.

use super::output::{bytes, printable};
use crate::error::{Error, ErrorKind, Result};
use crate::image::watch::{Task, Watcher};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// Shows work on standard error.
pub struct Shown {
    how: How,
    cancelled: Arc<AtomicBool>,
}

enum How {
    Bars(MultiProgress),
    Lines,
    Silent,
}

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    /// What the place can show.
    Usual,
    /// Nothing.
    Silent,
}

/// A reader of what may have nothing to say for long, such as a pipe or a terminal: ends when the caller gives up.
pub struct Patient {
    file: File,
    cancelled: Arc<AtomicBool>,
}

/// How often it is looked whether the caller has given up.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(Error::new(ErrorKind::Cancelled, "read", "", "the caller gave up").into());
            }
            let mut waited = [PollFd::new(&self.file, PollFlags::IN)];
            match poll(&mut waited, Some(&PATIENCE)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(e) => return Err(e.into()),
            }
            match self.file.read(buffer) {
                // Somebody else was quicker.
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                other => return other,
            }
        }
    }
}

/// What is read from: a file of this size, or something else that says when there is something.
pub enum Source {
    /// A file, and its size in bytes.
    File(File, u64),
    /// Anything else.
    Stream(Patient),
}

impl Shown {
    /// Opens what was named on the command line; `-` is standard input.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn open(&self, path: &Path) -> Result<Source> {
        let failed = |e| Error::io("open", path.display().to_string(), e);
        let file = if path.as_os_str() == "-" {
            File::from(io::stdin().as_fd().try_clone_to_owned().map_err(failed)?)
        } else {
            // Not to wait for whoever writes to a fifo.
            let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
            File::options().read(true).custom_flags(nonblocking).open(path).map_err(failed)?
        };
        let meta = file.metadata().map_err(failed)?;
        Ok(match meta.is_file() {
            true => Source::File(file, meta.len()),
            false => Source::Stream(Patient { file, cancelled: Arc::clone(&self.cancelled) }),
        })
    }

    /// Shows work from now on, and takes Ctrl-C, SIGTERM and SIGHUP as the wish to end it. A second one ends the process
    /// at once.
    ///
    /// # Errors
    /// Those of signal handling.
    pub fn start(verbosity: Verbosity) -> Result<Shown> {
        let cancelled = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // In this order: the first signal finds the flag unset, and the second one set.
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&cancelled))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&cancelled)))
                .map_err(|e| Error::io("watch signal", signal.to_string(), e))?;
        }
        let how = match verbosity {
            Verbosity::Silent => How::Silent,
            Verbosity::Usual if std::io::stderr().is_terminal() => {
                How::Bars(MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)))
            }
            Verbosity::Usual => How::Lines,
        };
        Ok(Shown { how, cancelled })
    }
}

/// The bar of a piece of work whose size is known.
const KNOWN: &str = "{msg:32!} {bar:24} {bytes:>11} of {total_bytes:<11} {bytes_per_sec:>13} {eta:>4}";
/// The bar of any other.
const UNKNOWN: &str = "{msg:32!} {spinner} {bytes:>11} {bytes_per_sec:>13}";

impl Watcher for Shown {
    fn begin(&self, what: &str, total_bytes: Option<u64>) -> Arc<dyn Task> {
        let what = printable(what);
        match &self.how {
            How::Silent => Arc::new(()),
            How::Lines => Arc::new(Line { what, begun: Instant::now(), done: AtomicU64::new(0) }),
            How::Bars(bars) => {
                let (bar, template) = match total_bytes {
                    Some(total) => (ProgressBar::new(total), KNOWN),
                    None => (ProgressBar::new_spinner(), UNKNOWN),
                };
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style.progress_chars("=> "));
                }
                bar.set_message(what.clone());
                Arc::new(Bar { what, bar: bars.add(bar), bars: bars.clone() })
            }
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

struct Line {
    what: String,
    begun: Instant,
    done: AtomicU64,
}

impl Task for Line {
    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn finish(&self, words: &str) {
        let done = self.done.load(Ordering::Relaxed);
        let line = finished(&self.what, words, done, self.begun.elapsed().as_secs_f64());
        // Not eprintln, which panics if nobody reads.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

struct Bar {
    what: String,
    bar: ProgressBar,
    bars: MultiProgress,
}

impl Task for Bar {
    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn finish(&self, words: &str) {
        let line = finished(&self.what, words, self.bar.position(), self.bar.elapsed().as_secs_f64());
        self.bar.finish_and_clear();
        let _ = self.bars.println(line);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // Of work that failed nothing stays on the screen.
        if !self.bar.is_finished() {
            self.bar.finish_and_clear();
        }
    }
}

/// What is said of a piece of work that is over.
fn finished(what: &str, words: &str, done_bytes: u64, seconds: f64) -> String {
    let words = if words.is_empty() { String::new() } else { format!(": {}", printable(words)) };
    if done_bytes == 0 {
        return format!("{what}{words}");
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let rate = (done_bytes as f64 / seconds.max(0.001)) as u64;
    format!("{what}{words} ({}, {}/s)", bytes(done_bytes), bytes(rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finished_piece_of_work_is_a_line() {
        assert_eq!(finished("layer 1", "there already", 0, 0.0), "layer 1: there already");
        assert_eq!(finished("layer 1", "", 2048, 2.0), "layer 1 (2.0 KiB, 1.0 KiB/s)");
    }

    #[test]
    fn templates_of_bars_can_be_read() {
        assert!(ProgressStyle::with_template(KNOWN).is_ok() && ProgressStyle::with_template(UNKNOWN).is_ok());
    }
}
