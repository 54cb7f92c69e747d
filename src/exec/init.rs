//! The init: the first process of the process namespace, which furnishes the new root, starts the command, collects
//! processes that lost their parent, and ends when the command does. All others end with it.

use super::furnish::{APT_CONFIG_PATH, Base};
use super::report::Message;
use super::{OPERATION, Plan, keeper};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::child::{self, Arrived, Ended, Sender, Signals};
use crate::sys::{attach, pretend};
use plywood_fuse::sys::process::{set_umask, wait_readable};
use rustix::process::{Pid, Signal};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;

/// The mask of new files that builds expect.
const UMASK: u32 = 0o022;

/// The life of the init.
pub fn run(plan: &Plan, base: &Base, report: &mut File, signals: &Signals) -> ! {
    let one_id = keeper::has_one_id();
    let started = set_up(plan, base, one_id).and_then(|()| {
        let forked = child::fork().map_err(|e| Error::io(OPERATION, "start a process", e))?;
        match forked {
            None => command(plan, one_id, report, signals),
            Some(pid) => Ok(pid),
        }
    });
    let message = match started.and_then(|pid| wait_for(pid, signals)) {
        Ok(ended) => Message::Ended(ended),
        Err(error) => Message::of(&error),
    };
    message.send(report);
    child::end(0)
}

fn set_up(plan: &Plan, base: &Base, one_id: bool) -> Result<()> {
    let failed = |what: &'static str| move |e: std::io::Error| Error::io(OPERATION, what, e);
    child::die_with_parent(Signal::KILL).map_err(failed("follow the parent"))?;
    if !plan.has_terminal {
        // A signal for its whole group is meant for what runs inside.
        rustix::process::setpgid(None, None).map_err(|e| failed("leave the process group")(e.into()))?;
    }
    attach::leave_mount_namespace().map_err(failed("leave the mount namespace"))?;
    base.mount_all(one_id, plan.terminal.as_deref())?;
    attach::enter_root(&base.root).map_err(failed("enter the root"))?;
    if let Some(name) = &plan.hostname {
        let set = rustix::system::sethostname(name.as_bytes());
        set.map_err(|e| Error::io(OPERATION, format!("set the host name {name:?}"), e.into()))?;
    }
    rustix::process::chdir(&plan.workdir).map_err(|e| {
        let subject = format!("enter directory {} of the snapshot", plan.workdir.display());
        Error::io(OPERATION, subject, e.into())
    })
}

/// The life of the command until it is another program.
fn command(plan: &Plan, one_id: bool, report: &mut File, signals: &Signals) -> ! {
    let mut env = plan.env_strings();
    if one_id {
        // Without it only some programs fail, and each says so itself.
        let _ = pretend::pretend_other_users();
        if !plan.env.iter().any(|(name, _)| name == "APT_CONFIG") {
            env.extend(child::c_string(OsStr::new(&format!("APT_CONFIG={APT_CONFIG_PATH}"))));
        }
    }
    set_umask(UMASK);
    child::end_by_broken_pipe();
    signals.restore();
    let mut denied = None;
    for program in plan.candidates() {
        let mut error = child::become_program(&program, &plan.args, &env);
        if error.raw_os_error() == Some(libc::ENOEXEC) {
            // A script that does not name its interpreter: as shells do.
            let shell = ["sh".as_ref(), program.as_os_str()].map(child::c_string);
            let mut args: Vec<_> = shell.into_iter().flatten().collect();
            args.extend(plan.args.iter().skip(1).cloned());
            error = child::become_program("/bin/sh".as_ref(), &args, &env);
        }
        let is_absent = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR));
        let exists = std::fs::symlink_metadata(&program).is_ok();
        if !is_absent {
            denied.get_or_insert(format!("{}: {error}", program.to_string_lossy()));
        } else if exists {
            // Linked to a loader that is not in the snapshot, as a rule.
            denied.get_or_insert(format!(
                "{}: the interpreter or loader that it needs is not in the snapshot",
                program.to_string_lossy()
            ));
        }
    }
    let name = plan.command.to_string_lossy();
    let (message, code) = match denied {
        Some(words) => (Message::NotExecutable(words), 126),
        None => (Message::NotFound(format!("{name}: there is no such command in the snapshot")), 127),
    };
    message.send(report);
    child::end(code)
}

/// Collects what ends, and passes signals on, until the command has ended.
fn wait_for(command: Pid, signals: &Signals) -> Result<Ended> {
    loop {
        while let Some((pid, ended)) = child::ended(None) {
            if pid == command {
                return Ok(ended);
            }
        }
        let news = wait_readable([signals.as_fd()], None);
        news.map_err(|e| Error::fuse(OPERATION, "", e).as_kind(ErrorKind::Io))?;
        while let Some(arrived) = signals.arrived() {
            if let Arrived::Signal(number, Sender::Process) = arrived {
                child::send(command, number);
            }
        }
    }
}
