//! Named points at which a test can make things fail; nothing but a test build (feature `failpoints`) has them.
//!
//! `PLYWOOD_FAIL=NAME=ACTION[@N][,..]` arms points of a process: `exit` ends it at once, as kill -9 does; `error:28`
//! makes the step fail with that errno; `panic`; `pause:200` waits milliseconds. `@N` waits for the N-th time.

use crate::error::Result;

/// Passes the point `name`, unless a test wants something else.
///
/// # Errors
/// What the test asked for.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn point(name: &'static str) -> Result<()> {
    let _ = name;
    Ok(())
}

/// Passes the point `name`, unless a test wants something else.
///
/// # Errors
/// What the test asked for.
#[cfg(feature = "failpoints")]
pub fn point(name: &'static str) -> Result<()> {
    armed::point(name)
}

/// Arms points for the calling thread alone, as `PLYWOOD_FAIL` does for the process; an empty string disarms them.
///
/// # Panics
/// If the text cannot be understood: a test that arms nothing proves nothing.
#[cfg(feature = "failpoints")]
pub fn arm(text: &str) {
    armed::arm(text);
}

#[cfg(feature = "failpoints")]
mod armed {
    use crate::error::{Error, Result};
    use parking_lot::Mutex;
    use std::cell::RefCell;
    use std::sync::LazyLock;

    struct Armed {
        name: String,
        action: Action,
        /// Times until it acts.
        left: u32,
    }

    #[derive(Clone, Copy)]
    enum Action {
        Exit,
        Panic,
        Error(i32),
        Pause(u64),
    }

    thread_local! {
        static HERE: RefCell<Vec<Armed>> = const { RefCell::new(Vec::new()) };
    }

    static POINTS: LazyLock<Mutex<Vec<Armed>>> =
        LazyLock::new(|| Mutex::new(parse(&std::env::var("PLYWOOD_FAIL").unwrap_or_default())));

    fn parse(text: &str) -> Vec<Armed> {
        let words = text.split(',').filter(|w| !w.is_empty());
        words.map(|w| one(w).unwrap_or_else(|| panic!("PLYWOOD_FAIL: {w:?} is no NAME=ACTION[@N]"))).collect()
    }

    fn one(word: &str) -> Option<Armed> {
        let (name, action) = word.split_once('=')?;
        let (action, left) = match action.split_once('@') {
            Some((action, times)) => (action, times.parse().ok()?),
            None => (action, 1),
        };
        let action = match action.split_once(':') {
            Some(("error", errno)) => Action::Error(errno.parse().ok()?),
            Some(("pause", millis)) => Action::Pause(millis.parse().ok()?),
            None if action == "exit" => Action::Exit,
            None if action == "panic" => Action::Panic,
            _ => return None,
        };
        Some(Armed { name: name.to_owned(), action, left })
    }

    pub fn arm(text: &str) {
        let points = parse(text);
        HERE.with_borrow_mut(|here| *here = points);
    }

    fn due(points: &mut Vec<Armed>, name: &str) -> Option<Action> {
        let at = points.iter().position(|p| p.name == name)?;
        points[at].left = points[at].left.saturating_sub(1);
        (points[at].left == 0).then(|| points.remove(at).action)
    }

    pub fn point(name: &'static str) -> Result<()> {
        let here = HERE.with_borrow_mut(|here| due(here, name));
        let Some(action) = here.or_else(|| due(&mut POINTS.lock(), name)) else { return Ok(()) };
        match action {
            Action::Exit => plywood_fuse::sys::process::exit_now(137),
            Action::Panic => panic!("fail point {name}"),
            Action::Error(errno) => {
                Err(Error::io("fail point", name, std::io::Error::from_raw_os_error(errno)))
            }
            Action::Pause(millis) => {
                std::thread::sleep(std::time::Duration::from_millis(millis));
                Ok(())
            }
        }
    }
}
