//! The program `plywood`, from outside: what is typed, what comes back, and how it ends.
//!
//! Everything that needs no mount runs with the backends `native` and `fuse`; what mounts runs as users of different
//! rights, see `privileges`.

#[path = "cli/blobs.rs"]
mod blobs;
#[path = "cli/concurrent.rs"]
mod concurrent;
#[path = "cli/files.rs"]
mod files;
#[path = "cli/help.rs"]
mod help;
#[path = "cli/input.rs"]
mod input;
#[path = "cli/life.rs"]
mod life;
#[path = "cli/mounted.rs"]
mod mounted;
mod privileges;
#[path = "cli/support.rs"]
mod support;

use privileges::{Who, again};

/// As many tests as there are in `anyone`.
const TESTS: usize = 10;

#[test]
fn root_mounts_and_runs() {
    again(Who::Root, TESTS);
}

#[test]
fn root_of_a_user_namespace_mounts_and_runs() {
    again(Who::NamespaceRoot, TESTS);
}

#[test]
fn a_plain_user_mounts_and_runs() {
    again(Who::PlainUser, TESTS);
}

#[test]
fn a_plain_user_with_subordinate_ids_mounts_and_runs() {
    again(Who::UserWithIds, TESTS);
}

/// The tests that [`again`] calls.
mod anyone {
    use crate::mounted;

    #[test]
    fn a_snapshot_is_mounted_and_unmounted_by_its_key_and_by_its_target() {
        mounted::a_snapshot_is_mounted_and_unmounted_by_its_key_and_by_its_target();
    }

    #[test]
    fn a_mounted_snapshot_is_not_removed_and_not_changed_beside_the_mount() {
        mounted::a_mounted_snapshot_is_not_removed_and_not_changed_beside_the_mount();
    }

    #[test]
    fn exec_passes_on_output_and_code_of_the_command() {
        mounted::exec_passes_on_output_and_code_of_the_command();
    }

    #[test]
    fn what_exec_changes_is_committed_and_seen_by_the_next() {
        mounted::what_exec_changes_is_committed_and_seen_by_the_next();
    }

    #[test]
    fn content_of_other_owners_is_measured_shown_copied_and_removed() {
        mounted::content_of_other_owners_is_measured_shown_copied_and_removed();
    }

    #[test]
    fn the_owner_of_the_root_directory_is_that_of_the_parent() {
        mounted::the_owner_of_the_root_directory_is_that_of_the_parent();
    }

    #[test]
    fn the_backend_overlay_reads_layers_with_content_of_other_owners() {
        mounted::the_backend_overlay_reads_layers_with_content_of_other_owners();
    }

    #[test]
    fn a_cleanup_ends_the_mount_of_a_trial_whose_maker_is_dead() {
        mounted::a_cleanup_ends_the_mount_of_a_trial_whose_maker_is_dead();
    }

    #[test]
    fn nothing_stays_among_the_mount_points_after_rm_and_cleanup() {
        mounted::nothing_stays_among_the_mount_points_after_rm_and_cleanup();
    }

    #[test]
    fn a_view_is_read_only_for_exec() {
        mounted::a_view_is_read_only_for_exec();
    }
}
