//! Commands run in snapshots, as whoever runs them: see `privileges`.

mod privileges;

use privileges::{Who, again_with};

/// As many tests as there are in `anyone`.
const TESTS: usize = 20;

/// Programs with one thread, so that signals for them reach the code that waits for them.
const EXAMPLES: &[&str] = &["exec", "as_root"];

#[test]
fn root_runs_commands() {
    again_with(Who::Root, TESTS, EXAMPLES);
}

#[test]
fn root_of_a_user_namespace_runs_commands() {
    again_with(Who::NamespaceRoot, TESTS, EXAMPLES);
}

#[test]
fn a_plain_user_runs_commands() {
    again_with(Who::PlainUser, TESTS, EXAMPLES);
}

#[test]
fn a_plain_user_with_subordinate_ids_runs_commands() {
    again_with(Who::UserWithIds, TESTS, EXAMPLES);
}

mod anyone {
    use super::privileges::*;
    use plywood::error::ErrorKind;
    use plywood::exec::{ExecRequest, Outcome, run};
    use plywood::types::Mount;
    use std::fs;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    const SOON: Duration = Duration::from_secs(60);

    /// A busybox in a layer, an empty layer above it, and nothing else: no /proc, no /etc.
    struct Snapshot {
        stage: Stage,
        kind: &'static str,
        options: String,
    }

    impl Snapshot {
        fn new() -> Option<Self> {
            inside()?;
            let stage = Stage::new();
            if !install_busybox(&stage.dir("snapshots/1/fs")) {
                return None;
            }
            stage.dir("snapshots/2/fs");
            stage.dir("snapshots/2/work");
            stage.dir("mnt");
            let options = format!(
                "workdir={},upperdir={},lowerdir={}",
                stage.text("snapshots/2/work"),
                stage.text("snapshots/2/fs"),
                stage.text("snapshots/1/fs")
            );
            Some(Self { stage, kind: "fuse3.plywood-fuse", options })
        }

        fn mount(&self) -> Mount {
            mount(self.kind, "overlay", &self.options)
        }

        fn upper(&self) -> PathBuf {
            self.stage.path("snapshots/2/fs")
        }

        fn request(&self, words_of_command: &[&str]) -> ExecRequest {
            ExecRequest::new(vec![self.mount()], words(words_of_command))
        }

        #[track_caller]
        fn run(&self, request: &ExecRequest) -> Outcome {
            let outcome = run(request, &self.stage.settings()).unwrap_or_else(|e| panic!("exec: {e}"));
            self.check_nothing_is_left();
            outcome
        }

        #[track_caller]
        fn sh(&self, script: &str) -> Outcome {
            self.run(&self.request(&["sh", "-c", script]))
        }

        /// What a script writes to /out.
        #[track_caller]
        fn output(&self, script: &str) -> String {
            let outcome = self.sh(&format!("{{ {script}\n}} >/out 2>&1"));
            let out = fs::read_to_string(self.upper().join("out")).expect("output");
            assert_eq!(outcome, Outcome::Exit(0), "{script}\n{out}");
            fs::remove_file(self.upper().join("out")).expect("remove the output");
            out
        }

        #[track_caller]
        fn check_nothing_is_left(&self) {
            assert!(!is_mounted(&self.stage.path("")), "something is still mounted");
            let scratch = names(&self.stage.path("mnt"));
            assert!(scratch.iter().all(|name| !name.starts_with("exec-")), "left behind: {scratch:?}");
            let served = format!("lowerdir={}", self.stage.text("snapshots"));
            assert_eq!(processes_with(&served), Vec::<u32>::new(), "a server still runs");
        }

        /// The same in a process of its own.
        fn program(&self, script: &str) -> Command {
            let mut command = Command::new(example("exec"));
            command.env("PLYWOOD_FUSE_PROGRAM", server_program());
            command.arg(self.stage.path("mnt")).args([self.kind, "overlay", &self.options]);
            command.args(["sh", "-c", script]);
            command
        }

        /// Starts it and waits until it says "ready".
        #[track_caller]
        fn start(&self, script: &str) -> Running {
            let mut command = self.program(script);
            let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("start");
            let mut running = Running(child);
            let out = running.stdout.take().expect("a pipe");
            let mut lines = BufReader::new(out).lines().map_while(Result::ok);
            assert!(lines.any(|line| line.contains("ready")), "it never was ready");
            running
        }
    }

    /// A program that does not outlive its test, even if that fails.
    struct Running(Child);

    impl std::ops::Deref for Running {
        type Target = Child;

        fn deref(&self) -> &Child {
            &self.0
        }
    }

    impl std::ops::DerefMut for Running {
        fn deref_mut(&mut self) -> &mut Child {
            &mut self.0
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            // Both do nothing once it was waited for.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn signal(pid: u32, name: &str) {
        assert!(Command::new("kill").args(["-s", name, &pid.to_string()]).status().expect("kill").success());
    }

    fn has_one_id() -> bool {
        matches!(inside(), Some(Who::NamespaceRoot | Who::PlainUser))
    }

    #[test]
    fn exit_codes_are_passed_on() {
        let Some(snapshot) = Snapshot::new() else { return };
        assert_eq!(snapshot.sh("exit 7"), Outcome::Exit(7));
        assert_eq!(snapshot.run(&snapshot.request(&["true"])), Outcome::Exit(0));
        assert_eq!(snapshot.sh("kill -KILL $$"), Outcome::Signal(9));
        assert_eq!(snapshot.sh("kill -SEGV $$").code(), 139);
    }

    #[test]
    fn a_command_that_cannot_be_started_is_told_from_one_that_fails() {
        let Some(snapshot) = Snapshot::new() else { return };
        let missing = snapshot.run(&snapshot.request(&["no-such-command"]));
        assert!(matches!(&missing, Outcome::NotFound(why) if why.contains("no-such-command")), "{missing:?}");
        assert_eq!(snapshot.run(&snapshot.request(&["/bin/missing"])).code(), 127);
        let bin = snapshot.stage.path("snapshots/1/fs/bin");
        fs::write(bin.join("text"), "text").unwrap();
        let denied = snapshot.run(&snapshot.request(&["text"]));
        assert!(matches!(&denied, Outcome::NotExecutable(why) if why.contains("/bin/text")), "{denied:?}");
        assert_eq!(snapshot.run(&snapshot.request(&["/bin"])).code(), 126);
        let program = |name: &str, content: &str| {
            fs::write(bin.join(name), content).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        };
        program("lost", "#!/no/such/interpreter\n");
        let lost = snapshot.run(&snapshot.request(&["lost"]));
        assert!(matches!(&lost, Outcome::NotExecutable(why) if why.contains("interpreter")), "{lost:?}");
        // A script that names no interpreter runs in a shell, with its arguments.
        program("script", "exit $(($1 + 1))\n");
        assert_eq!(snapshot.run(&snapshot.request(&["script", "4"])), Outcome::Exit(5));
    }

    #[test]
    fn a_failure_of_ours_is_an_error_that_says_what_to_do() {
        let Some(snapshot) = Snapshot::new() else { return };
        let mut request = snapshot.request(&["true"]);
        request.workdir = "/no/such/directory".into();
        let error = run(&request, &snapshot.stage.settings()).unwrap_err();
        assert!(error.to_string().contains("/no/such/directory"), "{error}");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        snapshot.check_nothing_is_left();
        let mut settings = snapshot.stage.settings();
        settings.fuse_program = Some("no-such-server".into());
        let error = run(&snapshot.request(&["true"]), &settings).unwrap_err();
        assert!(error.to_string().contains("cargo build"), "{error}");
        let mut request = snapshot.request(&["true"]);
        request.mounts[0].options[2] = format!("lowerdir={}", snapshot.stage.text("snapshots/no-layer"));
        let error = run(&request, &snapshot.stage.settings()).unwrap_err();
        assert!(error.to_string().contains("no-layer"), "{error}");
        snapshot.check_nothing_is_left();
    }

    #[test]
    fn changes_are_in_the_upper_layer_and_nothing_else_is() {
        let Some(snapshot) = Snapshot::new() else { return };
        assert_eq!(snapshot.sh("true"), Outcome::Exit(0));
        assert_eq!(tree(&snapshot.upper()), Vec::<String>::new());
        assert_eq!(snapshot.sh("mkdir -p /opt/app; echo x >/opt/app/file; rm /bin/tail"), Outcome::Exit(0));
        let changed = tree(&snapshot.upper());
        let paths: Vec<&str> = changed.iter().filter_map(|line| line.split(' ').next()).collect();
        let whiteout = if paths.contains(&"bin/.wh.tail") { "bin/.wh.tail" } else { "bin/tail" };
        assert_eq!(paths, ["bin", whiteout, "opt", "opt/app", "opt/app/file"]);
        assert_eq!(names(&snapshot.stage.path("snapshots/1/fs")), ["bin"]);
        // New files have the modes that a build expects.
        assert!(changed.contains(&"opt/app/file 100644".to_owned()), "{changed:?}");
        assert!(changed.contains(&"opt 40755".to_owned()), "{changed:?}");
    }

    #[test]
    fn proc_dev_and_sys_are_there() {
        let Some(snapshot) = Snapshot::new() else { return };
        let script = "set -e
            test \"$(cat /proc/1/status | grep -c ^Pid)\" = 1
            echo \"processes $(ls /proc | grep -c '^[0-9]')\"
            echo discarded >/dev/null; head -c 4 /dev/urandom | wc -c; head -c 3 /dev/zero | wc -c
            test -L /dev/fd; test -e /dev/stdin; test -c /dev/ptmx; test -c /dev/tty; test -d /dev/pts
            echo x >/dev/shm/file; cat /dev/shm/file; rm /dev/shm/file
            test -d /sys/kernel
            grep -q ' /sys sysfs ro' /proc/mounts
            if : >/dev/full; then :; fi
            cat /proc/self/mounts | grep -c . >/dev/null";
        let out = snapshot.output(script);
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines[1..], ["4", "3", "x"], "{out}");
        // The init, the shell, and what it starts: not those of the machine.
        let count: usize =
            lines[0].strip_prefix("processes ").and_then(|n| n.parse().ok()).expect("a number");
        assert!(count < 10, "{out}");
        assert_eq!(tree(&snapshot.upper()), Vec::<String>::new());
    }

    #[test]
    fn the_names_of_the_network_are_those_of_the_machine_and_cannot_be_changed() {
        let Some(snapshot) = Snapshot::new() else { return };
        for file in ["/etc/resolv.conf", "/etc/hosts"] {
            let expected = fs::read_to_string(file).unwrap_or_default();
            // Missing in the snapshot: nothing is left there.
            assert_eq!(snapshot.output(&format!("cat {file}")), expected);
            assert_eq!(snapshot.sh(&format!("echo changed >{file}")), Outcome::Exit(0));
            assert_eq!(fs::read_to_string(file).unwrap_or_default(), expected, "of the machine");
        }
        assert_eq!(tree(&snapshot.upper()), Vec::<String>::new());
        // There: covered, and the same afterwards.
        snapshot.stage.file("snapshots/1/fs/etc/resolv.conf", "of the snapshot");
        let expected = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        assert_eq!(snapshot.output("cat /etc/resolv.conf"), expected);
        assert_eq!(tree(&snapshot.upper()), Vec::<String>::new());
    }

    #[test]
    fn the_environment_the_directory_and_the_name_are_as_asked() {
        let Some(snapshot) = Snapshot::new() else { return };
        snapshot.stage.dir("snapshots/1/fs/srv/app");
        let mut request =
            snapshot.request(&["sh", "-c", "env | sort >/out; pwd >>/out; hostname >>/out; id -u >>/out"]);
        request.env = vec![("GREETING".into(), "hello world".into()), ("HOME".into(), "/home".into())];
        request.workdir = "/srv/app".into();
        request.hostname = Some("a-name".into());
        assert_eq!(snapshot.run(&request), Outcome::Exit(0));
        let out = fs::read_to_string(snapshot.upper().join("out")).unwrap();
        let lines: Vec<&str> = out.lines().collect();
        assert!(lines.contains(&"GREETING=hello world") && lines.contains(&"HOME=/home"), "{out}");
        assert!(lines.iter().any(|l| l.starts_with("PATH=/usr/local/sbin:")), "{out}");
        assert!(!lines.iter().any(|l| l.starts_with("PLYWOOD") || l.starts_with("TMPDIR")), "{out}");
        assert_eq!(lines[lines.len() - 3..], ["/srv/app", "a-name", "0"], "{out}");
    }

    #[test]
    fn a_read_only_snapshot_cannot_be_changed_and_has_its_proc() {
        let Some(snapshot) = Snapshot::new() else { return };
        let mut request = snapshot.request(&["sh", "-c", "test -e /proc/self && ! touch /file 2>/dev/null"]);
        request.read_only = true;
        assert_eq!(snapshot.run(&request), Outcome::Exit(0));
        // A view of one layer is a bind mount.
        let source = snapshot.stage.path("snapshots/1/fs");
        request.mounts = vec![mount("bind", &source, "ro,rbind")];
        request.read_only = false;
        assert_eq!(snapshot.run(&request), Outcome::Exit(0));
        assert_eq!(names(&source), ["bin"]);
    }

    #[test]
    fn a_plain_directory_is_changed_by_the_command_alone() {
        let Some(snapshot) = Snapshot::new() else { return };
        let root = snapshot.stage.dir("snapshots/3/fs");
        assert!(install_busybox(&root));
        let before = fs::metadata(&root).unwrap();
        let mounts = vec![mount("bind", &root, "rbind,rw")];
        let command = ["sh", "-c", "test -e /proc/self && test -c /dev/null && test -d /sys/kernel"];
        let request = ExecRequest { mounts: mounts.clone(), ..snapshot.request(&command) };
        assert_eq!(snapshot.run(&request), Outcome::Exit(0));
        assert_eq!(names(&root), ["bin"]);
        let after = fs::metadata(&root).unwrap();
        assert_eq!((before.mtime(), before.mtime_nsec()), (after.mtime(), after.mtime_nsec()));
        let request = ExecRequest { mounts, ..snapshot.request(&["sh", "-c", "echo x >/file; mkdir /dir"]) };
        assert_eq!(snapshot.run(&request), Outcome::Exit(0));
        assert_eq!(names(&root), ["bin", "dir", "file"]);
    }

    #[test]
    fn a_stack_of_the_kernel_works_where_it_may_be_mounted() {
        let Some(mut snapshot) = Snapshot::new() else { return };
        snapshot.kind = "overlay";
        if inside() != Some(Who::Root) {
            snapshot.options.push_str(",userxattr");
        }
        assert_eq!(snapshot.sh("test -e /proc/self && echo x >/file"), Outcome::Exit(0));
        assert_eq!(names(&snapshot.upper()), ["file"]);
    }

    #[test]
    fn nothing_that_the_command_started_lives_on() {
        let Some(snapshot) = Snapshot::new() else { return };
        let begin = Instant::now();
        let number = format!("31{}{}", std::process::id(), begin.elapsed().as_nanos());
        let script = format!("sleep {number} & (sleep {number} &) ; exit 3");
        assert_eq!(snapshot.sh(&script), Outcome::Exit(3));
        assert!(begin.elapsed() < SOON);
        assert_eq!(processes_with(&number), Vec::<u32>::new());
    }

    #[test]
    fn signals_reach_the_command_and_its_exit_code_comes_back() {
        let Some(snapshot) = Snapshot::new() else { return };
        for name in ["TERM", "HUP", "USR1", "INT"] {
            let script = format!(
                "trap 'echo got >/got-{name}; exit 9' {name}; echo ready; while :; do sleep 0.05; done"
            );
            let mut child = snapshot.start(&script);
            signal(child.id(), name);
            assert_eq!(child.wait().unwrap().code(), Some(9), "{name}");
            assert!(snapshot.upper().join(format!("got-{name}")).exists());
            snapshot.check_nothing_is_left();
        }
        // Without a handler it ends the command, as anywhere.
        let mut child = snapshot.start("echo ready; exec sleep 1000");
        signal(child.id(), "TERM");
        assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
        snapshot.check_nothing_is_left();
    }

    #[test]
    fn when_the_caller_is_killed_everything_ends() {
        let Some(snapshot) = Snapshot::new() else { return };
        let number = format!("32{}", std::process::id());
        let mut child = snapshot.start(&format!("echo x >/file; echo ready; exec sleep {number}"));
        assert!(
            wait_until(SOON, || !processes_with(&format!("sleep\0{number}")).is_empty()),
            "the command runs"
        );
        signal(child.id(), "KILL");
        child.wait().unwrap();
        assert!(wait_until(SOON, || processes_with(&number).is_empty()), "the command lives on");
        let served = format!("lowerdir={}", snapshot.stage.text("snapshots"));
        assert!(wait_until(SOON, || processes_with(&served).is_empty()), "the server lives on");
        assert!(!is_mounted(&snapshot.stage.path("")));
        assert_eq!(names(&snapshot.upper()), ["file"]);
        // What it leaves is a mount point, empty, and the snapshot can be used again.
        for left in names(&snapshot.stage.path("mnt")) {
            fs::remove_dir(snapshot.stage.path("mnt").join(left)).unwrap();
        }
        assert_eq!(snapshot.sh("test -e /file"), Outcome::Exit(0));
    }

    /// A line for a shell at a new terminal.
    fn at_a_terminal(line: &str) -> Option<Running> {
        if !has_program("script") {
            cannot_run("script is missing: install package bsdutils");
            return None;
        }
        let mut script = Command::new("script");
        script.args(["-q", "-e", "-c", line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        // The same shell whatever the user's is.
        script.env("SHELL", "/bin/sh").env("PLYWOOD_FUSE_PROGRAM", server_program());
        Some(Running(script.spawn().expect("start script")))
    }

    /// The words of a command for a shell.
    fn quoted(command: &Command) -> String {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<String> =
            words.map(|word| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''"))).collect();
        words.join(" ")
    }

    #[test]
    fn the_keys_of_a_terminal_reach_the_command() {
        let Some(snapshot) = Snapshot::new() else { return };
        let program = snapshot.program(
            "trap 'echo got >/got; exit 9' INT; tty; test -t 0 && echo ready; while :; do sleep 0.05; done",
        );
        // Not below a shell, which the keys would reach as well.
        let Some(mut child) = at_a_terminal(&format!("exec {}", quoted(&program))) else { return };
        let mut said = Vec::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let ready = lines.any(|line| {
            said.push(line.clone());
            line.contains("ready")
        });
        assert!(ready, "{said:?}");
        let shown = said.iter().any(|line| line.trim() == "/dev/console");
        assert!(shown, "the terminal has a name inside: {said:?}");
        child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
        let rest: Vec<String> = lines.collect();
        assert_eq!(child.wait().unwrap().code(), Some(9), "{rest:?}");
        assert!(snapshot.upper().join("got").exists());
        snapshot.check_nothing_is_left();
    }

    #[test]
    fn a_shell_at_a_terminal_has_job_control_and_gives_the_terminal_back() {
        let Some(snapshot) = Snapshot::new() else { return };
        let program = snapshot.program("exec sh -i");
        // Whoever reads from the terminal in the background is stopped: the rest hangs if it is not given back.
        let line = format!("{} ; code=$?; head -n 1 >/dev/null; echo back $code", quoted(&program));
        let Some(mut child) = at_a_terminal(&line) else { return };
        let mut input = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        input.write_all(b"sleep 100 &\nkill -KILL %1; wait; echo in''side $?\n").unwrap();
        let mut said = Vec::new();
        let mut until = |what: &str| {
            let found = lines.any(|line| {
                said.push(line.clone());
                line.contains(what)
            });
            assert!(found, "no {what:?}: {said:?}");
            said.join("\n")
        };
        until("inside ");
        input.write_all(b"exit 4\n").unwrap();
        std::thread::sleep(Duration::from_millis(500));
        input.write_all(b"a line\n").unwrap();
        let said = until("back 4");
        assert!(!said.contains("can't access tty") && !said.contains("job control"), "{said}");
        assert!(!said.contains("can't set tty"), "{said}");
        drop(input);
        child.wait().unwrap();
        snapshot.check_nothing_is_left();
    }

    #[test]
    fn files_can_be_given_to_other_users() {
        let Some(snapshot) = Snapshot::new() else { return };
        let out = snapshot.output(
            "set -e; touch /file; chown 33:33 /file; chown -h 5 /bin/tail; mkdir /dir; chown 0:7 /dir; stat -c %u:%g /file",
        );
        // With one id they stay root's, and nobody complains.
        assert_eq!(out.trim(), if has_one_id() { "0:0" } else { "33:33" });
        // And a second time: what was written is read back.
        let out = snapshot.output("stat -c %u:%g /file");
        assert_eq!(out.trim(), if has_one_id() { "0:0" } else { "33:33" });
    }

    #[test]
    fn apt_is_told_to_stay_root_where_there_is_nobody_else() {
        let Some(snapshot) = Snapshot::new() else { return };
        let out = snapshot.output("if test \"$APT_CONFIG\"; then cat $APT_CONFIG; fi");
        assert_eq!(out.contains("Sandbox::User \"root\""), has_one_id(), "{out}");
    }

    #[test]
    fn several_commands_run_at_the_same_time() {
        let Some(snapshot) = Snapshot::new() else { return };
        let snapshot = &snapshot;
        std::thread::scope(|scope| {
            for n in 0..4 {
                scope.spawn(move || {
                    let root = snapshot.stage.path("snapshots/1/fs");
                    let options = format!(
                        "lowerdir={},upperdir={},workdir={}",
                        root.display(),
                        snapshot.stage.dir(format!("many/{n}/fs")).display(),
                        snapshot.stage.dir(format!("many/{n}/work")).display()
                    );
                    let mounts = vec![mount("fuse3.plywood-fuse", "overlay", &options)];
                    let script = format!("echo {n} >/file; exit {n}");
                    let request = ExecRequest::new(mounts, words(&["sh", "-c", &script]));
                    let outcome = run(&request, &snapshot.stage.settings()).expect("exec");
                    assert_eq!(outcome, Outcome::Exit(n));
                    let file = snapshot.stage.path(format!("many/{n}/fs/file"));
                    assert_eq!(fs::read_to_string(file).expect("the file").trim(), n.to_string());
                });
            }
        });
        snapshot.check_nothing_is_left();
    }

    #[test]
    fn links_of_a_snapshot_do_not_lead_mounts_out_of_it() {
        let Some(snapshot) = Snapshot::new() else { return };
        let outside = snapshot.stage.dir("outside");
        let root = snapshot.stage.path("snapshots/1/fs");
        std::os::unix::fs::symlink(&outside, root.join("dev")).unwrap();
        std::os::unix::fs::symlink("../../../../../../../../etc", root.join("etc")).unwrap();
        // Both lead nowhere, and are left out.
        let out = snapshot.output("test -e /dev/null || echo no devices; test -e /etc/. || echo no etc; test -e /proc/self && echo proc");
        assert_eq!(out, "no devices\nno etc\nproc\n");
        assert_eq!(names(&outside), Vec::<String>::new());
    }

    #[test]
    fn a_program_goes_on_as_root_of_a_user_namespace() {
        if inside().is_none() {
            return;
        }
        let stage = Stage::new();
        let program = |script: &str| {
            let mut command = Command::new(example("as_root"));
            command.args(["sh", "-c", script]).stdin(Stdio::null());
            command
        };
        let run = |script: &str| program(script).output().expect("start");
        let file = stage.path("file");
        let output = run(&format!("id -u; touch {0}; exit 42", file.display()));
        let out = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(42), "{output:?}");
        assert!(out.lines().any(|line| line == "0"), "{out}");
        assert_eq!(fs::metadata(&file).unwrap().uid(), plywood_fuse::sys::process::effective_uid());
        assert_eq!(run("kill -KILL $$").status.code().or(Some(137)), Some(137));
        let output =
            run(&format!("touch {0} && chown 33 {0}; cat /proc/self/uid_map | wc -l", file.display()));
        let out = String::from_utf8_lossy(&output.stdout);
        if inside() == Some(Who::UserWithIds) {
            assert!(out.lines().any(|line| line.trim() == "2"), "{output:?}");
            assert_ne!(fs::metadata(&file).unwrap().uid(), plywood_fuse::sys::process::effective_uid());
        }
        // Signals are passed on, and the other one does not outlive us.
        let number = format!("33{}", std::process::id());
        let mut command = program(&format!("exec sleep {number}"));
        command.stdout(Stdio::null());
        let sleeps = || !processes_with(&format!("sleep\0{number}")).is_empty();
        let mut child = Running(command.spawn().unwrap());
        assert!(wait_until(SOON, sleeps));
        signal(child.id(), "TERM");
        let status = child.wait().unwrap();
        assert!(status.code() == Some(128 + 15) || status.code().is_none(), "{status}");
        assert!(wait_until(SOON, || !sleeps()));
        let mut child = Running(command.spawn().unwrap());
        assert!(wait_until(SOON, sleeps));
        signal(child.id(), "KILL");
        child.wait().unwrap();
        assert!(wait_until(SOON, || !sleeps()), "the other process lives on");
    }
}
