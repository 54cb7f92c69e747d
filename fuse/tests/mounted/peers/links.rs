//! Hard links.

mod anyone {
    use crate::support::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn names_of_one_lower_file_stay_one_file_when_it_changes() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/d/a", "old");
        stage.dir("low/e");
        fs::hard_link(stage.path("low/d/a"), stage.path("low/d/b")).unwrap();
        fs::hard_link(stage.path("low/d/a"), stage.path("low/e/c")).unwrap();
        let plan = stage.plan();
        let mount = plan.mount();
        let all = ["d/a", "d/b", "e/c"];
        let who = |mount: &Mount| -> Vec<(u64, u64, u32)> {
            let one = |name: &&str| {
                let meta = fs::metadata(mount.path(name)).unwrap();
                (meta.ino(), meta.nlink(), meta.mode() & 0o7777)
            };
            all.iter().map(one).collect()
        };
        let before = who(&mount);
        assert!(before.iter().all(|w| *w == before[0] && w.1 == 3), "{before:?}");
        fs::write(mount.path("d/b"), "new").unwrap();
        fs::set_permissions(mount.path("e/c"), fs::Permissions::from_mode(0o640)).unwrap();
        let check = |mount: &Mount, when: &str| {
            for name in all {
                assert_eq!(fs::read_to_string(mount.path(name)).unwrap(), "new", "{name} {when}");
            }
            let now = who(mount);
            assert!(
                now.iter().all(|w| (w.0, w.2) == (before[0].0, 0o640)),
                "{when}: {now:?}, before {before:?}"
            );
        };
        check(&mount, "in the live mount");
        mount.end();
        let mount = plan.mount();
        check(&mount, "after mounting again");
        assert_eq!(fs::read_to_string(stage.path("low/d/a")).unwrap(), "old", "the lower layer");
        mount.end();
        let mount = stage.plan().lowers(["up", "low"]).upper("next").mount();
        check(&mount, "as a lower layer");
    }

    #[test]
    fn a_recursive_chmod_reaches_every_name_of_a_lower_file() {
        needs_mount!();
        let stage = Stage::new();
        for group in 0..20 {
            stage.file(&format!("low/d/{group}"), "x");
            fs::hard_link(stage.path(format!("low/d/{group}")), stage.path(format!("low/d/{group}.link")))
                .unwrap();
        }
        let plan = stage.plan();
        let mount = plan.mount();
        sh(&format!("chmod -R go= {0}; touch -d @5 {0}/*", mount.path("d").display()));
        mount.end();
        let mount = plan.mount();
        let seen = sh(&format!("cd {}; stat -c '%a %Y' * | sort | uniq -c", mount.path("d").display()));
        assert_eq!(seen.trim(), "40 600 5");
    }

    #[test]
    fn new_links_count_and_uncount() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/f", "f");
        let mount = stage.mount();
        let links = |name: &str| fs::metadata(mount.path(name)).unwrap().nlink();
        fs::hard_link(mount.path("f"), mount.path("g")).unwrap();
        fs::create_dir(mount.path("d")).unwrap();
        fs::hard_link(mount.path("g"), mount.path("d/h")).unwrap();
        assert_eq!((links("f"), links("g"), links("d/h")), (3, 3, 3));
        fs::write(mount.path("d/h"), "changed").unwrap();
        fs::remove_file(mount.path("f")).unwrap();
        assert_eq!(fs::read_to_string(mount.path("g")).unwrap(), "changed");
        assert_eq!((links("g"), links("d/h")), (2, 2));
        fs::rename(mount.path("g"), mount.path("f")).unwrap();
        assert_eq!(
            fs::metadata(mount.path("f")).unwrap().ino(),
            fs::metadata(mount.path("d/h")).unwrap().ino()
        );
        mount.end();
        let mount = stage.mount();
        assert_eq!(mount.names(""), ["d", "f"]);
        assert_eq!(fs::metadata(mount.path("f")).unwrap().nlink(), 2);
        assert_eq!(fs::read_to_string(mount.path("f")).unwrap(), "changed");
    }

    #[test]
    fn removing_names_of_a_lower_file_leaves_the_others() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/a", "content");
        fs::hard_link(stage.path("low/a"), stage.path("low/b")).unwrap();
        fs::hard_link(stage.path("low/a"), stage.path("low/c")).unwrap();
        let plan = stage.plan();
        let mount = plan.mount();
        fs::remove_file(mount.path("a")).unwrap();
        sh(&format!("printf + >> {}", mount.path("c").display()));
        assert_eq!(fs::read_to_string(mount.path("b")).unwrap(), "content+");
        fs::rename(mount.path("b"), mount.path("z")).unwrap();
        mount.end();
        let mount = plan.mount();
        assert_eq!(mount.names(""), ["c", "z"]);
        for name in ["c", "z"] {
            assert_eq!(
                fs::read_to_string(mount.path(name)).unwrap(),
                "content+",
                "{name} after mounting again"
            );
        }
    }

    #[test]
    fn a_removed_name_of_a_changed_group_does_not_come_back() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/a", "old");
        stage.dir("low/d");
        fs::hard_link(stage.path("low/a"), stage.path("low/d/b")).unwrap();
        let plan = stage.plan();
        let mount = plan.mount();
        fs::write(mount.path("a"), "new").unwrap();
        fs::remove_file(mount.path("d/b")).unwrap();
        assert_eq!(errno(fs::metadata(mount.path("d/b"))), libc::ENOENT);
        fs::write(mount.path("d/b"), "another").unwrap();
        assert_eq!(fs::read_to_string(mount.path("a")).unwrap(), "new");
        mount.end();
        let mount = plan.mount();
        assert_eq!(fs::read_to_string(mount.path("a")).unwrap(), "new");
        assert_eq!(fs::read_to_string(mount.path("d/b")).unwrap(), "another");
    }
}
