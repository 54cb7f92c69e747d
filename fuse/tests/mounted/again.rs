//! The tests that any user can run, once more as other users.
//!
//! This test program starts itself: first as root of a user namespace that has one id, then as a plain user whose
//! mounts are made by fusermount3. If we are root, that user is "nobody", with a FUSE device in a mount namespace of
//! its own that is open to all.

use super::support::*;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Who the tests run as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    NamespaceRoot,
    PlainUser,
}

/// The user that root becomes: "nobody", who owns nothing on any system.
const NOBODY: u32 = 65_534;

fn again(who: Who) {
    if std::env::var_os("PLYWOOD_TEST_AGAIN").is_some() {
        return;
    }
    if who == Who::PlainUser && !is_root() {
        // Then all tests run like this.
        return;
    }
    needs!(!is_root() || is_real_root(), "root of a user namespace cannot become another user");
    let stage = Stage::uncounted();
    let bin = stage.dir("bin");
    let place = |from: &Path, name: &str| {
        let to = bin.join(name);
        if fs::hard_link(from, &to).is_err() {
            plywood_fuse::testing::copy_program(from, &to);
        }
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&to, open).expect("chmod of a program");
        to
    };
    let tests = place(&std::env::current_exe().expect("our own path"), "tests");
    let served = place(&program(), "plywood-fuse");
    let home = stage.dir("home");
    fs::set_permissions(&home, fs::Permissions::from_mode(0o777)).expect("chmod of the home");
    let mut script = String::new();
    let mut unshare = Command::new("sh");
    if is_root() {
        unshare = Command::new("unshare");
        unshare.args(["-m", "sh"]);
        if fs::metadata("/dev/fuse").is_ok_and(|m| m.permissions().mode() & 0o006 != 0o006) {
            let dev = stage.dir("dev").display().to_string();
            script.push_str(&format!(
                "mount -t tmpfs -o mode=755 tmpfs {dev}; mknod {dev}/fuse c 10 229; chmod 666 {dev}/fuse; \
                 mount --bind {dev}/fuse /dev/fuse\n"
            ));
        }
    }
    script.push_str("exec ");
    if is_root() {
        script
            .push_str(&format!("setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --inh-caps=-all "));
    }
    if who == Who::NamespaceRoot {
        script.push_str("unshare -Urm ");
    }
    let inside = home.join("inside");
    script.push_str(&format!(
        "sh -ec ': > {}; exec {} anyone:: --test-threads=3'",
        inside.display(),
        tests.display()
    ));
    unshare
        .args(["-ec", &script])
        .env("PLYWOOD_TEST_AGAIN", "1")
        .env("PLYWOOD_TEST_PROGRAM", &served)
        .env("PLYWOOD_TEST_DIR", &home)
        .env("HOME", &home)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = while_nothing_is_mounted(|| {
        let mut child = unshare.spawn().expect("start the tests again");
        let ended = |child: &mut Child| child.try_wait().is_ok_and(|status| status.is_some());
        wait_until(Duration::from_secs(60), || inside.exists() || ended(&mut child));
        child
    });
    let output = child.wait_with_output().expect("wait for the tests");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "as {who:?}, {}:\n{script}\n{out}\n{err}", output.status);
    for line in err.lines().filter(|line| line.starts_with("SKIPPED")) {
        writeln!(std::io::stderr(), "{line}").expect("standard error");
    }
    let ran = out.lines().filter(|line| line.starts_with("test ") && line.ends_with("ok")).count();
    assert!(ran > 10, "only {ran} tests ran:\n{out}");
}

#[test]
fn all_that_anyone_can_do_works_for_root_of_a_user_namespace() {
    again(Who::NamespaceRoot);
}

#[test]
fn all_that_anyone_can_do_works_for_a_plain_user_through_fusermount() {
    again(Who::PlainUser);
}
