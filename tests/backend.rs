//! The backends that live in plain directories, and what they do to trees that somebody else filled.
//!
//! As whoever runs the tests, and once more as "nobody" if that is root. Below `TMPDIR`: on another file system the
//! same tests show what that one does (`TMPDIR=/mnt/xfs`). What needs root fails without it, unless
//! `PLYWOOD_SKIP_MOUNTED=1` leaves it out, aloud.

#[path = "backend/copying.rs"]
mod copying;
#[path = "backend/deleting.rs"]
mod deleting;
#[path = "backend/killed.rs"]
mod killed;
#[path = "backend/life.rs"]
mod life;
#[path = "backend/marks.rs"]
mod marks;
#[path = "backend/support.rs"]
mod support;
#[path = "backend/trials.rs"]
mod trials;
