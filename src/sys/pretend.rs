//! Where a user namespace has only one id: how package managers can work nevertheless.
//!
//! The kernel refuses chown(2) to an id that the namespace does not have before any file system is asked, so that no
//! file system can help. A filter for system calls makes such calls succeed without effect: files stay with the one
//! user there is, who is shown as root. That is enough for programs that unpack archives as root.
//!
//! # Source
//! seccomp(2), `SECCOMP_RET_ERRNO` with errno 0; the order of arguments is that of each call's manual page.

use std::io;

/// Calls with arguments that are ids. A call is answered with success, and not made, if one of them is an id that does
/// not exist.
const CALLS: &[(libc::c_long, &[u32])] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chown, &[1, 2]),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_lchown, &[1, 2]),
    (libc::SYS_fchown, &[1, 2]),
    (libc::SYS_fchownat, &[2, 3]),
    (libc::SYS_setuid, &[0]),
    (libc::SYS_setgid, &[0]),
    (libc::SYS_setreuid, &[0, 1]),
    (libc::SYS_setregid, &[0, 1]),
    (libc::SYS_setresuid, &[0, 1, 2]),
    (libc::SYS_setresgid, &[0, 1, 2]),
    (libc::SYS_setfsuid, &[0]),
    (libc::SYS_setfsgid, &[0]),
];

/// `AUDIT_ARCH_*` of this processor; `None` where nobody has tried.
const ARCHITECTURE: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(0xc000_003e)
} else if cfg!(target_arch = "aarch64") {
    Some(0xc000_00b7)
} else {
    None
};

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// The low half of an argument; both processors are little endian.
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

fn load(offset: u32) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

/// Skips `then` instructions if the loaded word is `value`, else `otherwise`.
fn skip_if(value: u32, then: u8, otherwise: u8) -> libc::sock_filter {
    let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    libc::sock_filter { code, jt: then, jf: otherwise, k: value }
}

fn answer(action: u32) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: action }
}

fn program(architecture: u32) -> Vec<libc::sock_filter> {
    const SUCCESS: u32 = libc::SECCOMP_RET_ERRNO;
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    let mut all = vec![load(ARCH), skip_if(architecture, 1, 0), answer(ALLOW), load(NUMBER)];
    for (number, ids) in CALLS {
        let length = 4 * ids.len() as u8 + 1;
        all.push(skip_if(*number as u32, 0, length));
        for index in *ids {
            // 0 is the one id, and -1 leaves it as it is.
            let known = [load(argument(*index)), skip_if(0, 2, 0), skip_if(u32::MAX, 1, 0), answer(SUCCESS)];
            all.extend(known);
        }
        all.push(answer(ALLOW));
    }
    all.extend([skip_if(libc::SYS_setgroups as u32, 0, 1), answer(SUCCESS), answer(ALLOW)]);
    all
}

/// Makes calls that change to another user, or give a file to one, succeed without effect: in this thread, in all that
/// it starts, and for ever.
///
/// # Errors
/// EINVAL where the kernel has no such filters, EACCES without CAP_SYS_ADMIN in this user namespace; ENOSYS on a
/// processor whose calls are not known here.
pub fn pretend_other_users() -> io::Result<()> {
    let architecture = ARCHITECTURE.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSYS))?;
    let mut filter = program(architecture);
    let filter = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: prctl(2) reads one `struct sock_fprog` and the instructions that it points to, as many as it says; they
    // live until after the call, and the kernel checks them.
    let result = unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER as libc::c_ulong, &raw const filter)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program for a call, as the kernel would.
    fn run(program: &[libc::sock_filter], arch: u32, number: libc::c_long, args: [u32; 4]) -> u32 {
        let word = |offset: u32| match offset {
            NUMBER => number as u32,
            ARCH => arch,
            other => args[(other as usize - 16) / 8],
        };
        let (mut at, mut loaded) = (0, 0);
        loop {
            let step = program[at];
            at += 1;
            match u32::from(step.code) & 7 {
                libc::BPF_LD => loaded = word(step.k),
                libc::BPF_JMP => at += usize::from(if loaded == step.k { step.jt } else { step.jf }),
                _ => return step.k,
            }
        }
    }

    #[test]
    fn only_calls_with_an_id_that_does_not_exist_are_pretended() {
        let arch = 0xc000_003e;
        let program = program(arch);
        let (pretend, make) = (libc::SECCOMP_RET_ERRNO, libc::SECCOMP_RET_ALLOW);
        let none = u32::MAX;
        let cases = [
            (libc::SYS_fchownat, [3, 0, 0, 0], make),
            (libc::SYS_fchownat, [3, 0, 33, 0], pretend),
            (libc::SYS_fchownat, [3, 0, 0, 33], pretend),
            (libc::SYS_fchownat, [3, 0, none, none], make),
            (libc::SYS_fchown, [3, none, 5, 0], pretend),
            (libc::SYS_fchown, [33, 0, 0, 33], make),
            (libc::SYS_setresuid, [0, 0, 1, 0], pretend),
            (libc::SYS_setresgid, [none, none, none, 7], make),
            (libc::SYS_setuid, [100, 0, 0, 0], pretend),
            (libc::SYS_setgroups, [1, 0, 0, 0], pretend),
            (libc::SYS_getuid, [1, 2, 3, 4], make),
        ];
        for (number, args, expected) in cases {
            assert_eq!(run(&program, arch, number, args), expected, "call {number} with {args:?}");
            assert_eq!(run(&program, arch + 1, number, args), make, "call {number} of another processor");
        }
    }
}
