//! How something is mounted so that nobody else sees it, and nothing of it stays.

use plywood_fuse::error::{Error, Result};
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;
use std::ffi::CString;
use std::path::Path;

/// Mounts the kernel's overlayfs with these options, separated by commas.
///
/// # Errors
/// As mount(2); the kernel log says more.
pub fn overlay(target: &Path, options: &str) -> std::io::Result<()> {
    let options = CString::new(options)?;
    let flags = rustix::mount::MountFlags::empty();
    Ok(rustix::mount::mount("overlay", target, "overlay", flags, options.as_c_str())?)
}

/// Does something in a mount namespace of its own, which goes with its last user: a thread of this process, and
/// programs that it starts. Mounts that others end meanwhile end there, too.
///
/// Works in a process with several threads, and takes nothing from them.
///
/// # Errors
/// EPERM for who may not mount; EAGAIN without a thread. `work` is not called then.
///
/// # Source
/// unshare(2): CLONE_NEWNS and CLONE_FS concern the calling thread alone. mount_namespaces(7): `MS_SLAVE`.
pub fn in_private_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    let body = || {
        // SAFETY: these flags change which mounts, current directory and umask this thread has, which ends with this
        // function; descriptors stay shared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }
            .map_err(std::io::Error::from)?;
        let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", slave).map_err(std::io::Error::from)?;
        Ok(work())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("mounts".to_owned()).spawn_scoped(scope, body)?;
        match thread.join() {
            Ok(done) => done.map_err(|e: std::io::Error| e.into()),
            Err(_) => Err(Error::new(libc::EIO, "mount", "private namespace", "the thread panicked")),
        }
    })
}
