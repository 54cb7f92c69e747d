//! The contract of a snapshotter, as containerd's own suite has it, for every backend.
//!
//! Each behaviour is a function of [`suite`] or [`wishes`] that takes a [`World`]; the macro below makes one test of
//! it for each backend. The tests mount for real, so they need root, and for btrfs a loop device. Without them they
//! fail, unless `PLYWOOD_SKIP_MOUNTED=1` says to leave them out. The last test runs those of all backends but btrfs once
//! more without privilege, as root of a user namespace.

mod layers;
mod lifecycle;
mod suite;
mod tree;
mod wishes;
mod world;

use plywood::backend::BackendName;
use world::World;

fn run(backend: BackendName, behaviour: fn(&World)) {
    if let Some(world) = World::new(backend) {
        behaviour(&world);
        world.finish();
    }
}

macro_rules! for_each_backend {
    ($($group:ident: $($name:ident)*;)*) => {
        for_each_backend!(@one fuse Fuse $($group: $($name)*;)*);
        for_each_backend!(@one overlay Overlay $($group: $($name)*;)*);
        for_each_backend!(@one native Native $($group: $($name)*;)*);
        for_each_backend!(@one btrfs Btrfs $($group: $($name)*;)*);
    };
    (@one $module:ident $backend:ident $($group:ident: $($name:ident)*;)*) => {
        mod $module {
            $($(
                #[test]
                fn $name() {
                    crate::run(plywood::backend::BackendName::$backend, crate::$group::$name);
                }
            )*)*
        }
    };
}

for_each_backend! {
    suite:
        basic stat_of_an_active_snapshot stat_of_a_committed_snapshot parents_are_told_of_each_snapshot
        a_key_in_use_is_refused update_changes_labels_only a_removed_key_can_be_used_again
        walk_shows_what_the_filters_match a_changed_file_is_seen_whatever_its_size_and_time
        a_directory_made_again_hides_what_is_below chown_is_seen_through_views
        owners_of_directories_stay_over_layers a_snapshot_with_children_is_not_removed
        a_deleted_file_stays_deleted_for_grandchildren a_file_of_a_lower_layer_can_move a_view_cannot_be_written
        stat_inside_of_walk closing_twice_is_fine a_new_root_has_mode_755 rename many_layers;
    wishes:
        sockets_and_fifos_survive_layers extended_attributes_survive_layers a_directory_keeps_its_inode
        an_open_file_keeps_its_inode a_working_directory_is_found_again chmod_is_kept remove_inside_of_walk
        remove_after_commit times_and_links_survive_layers a_sparse_file_stays_sparse_or_at_least_equal;
    lifecycle:
        committed_snapshots_have_no_mounts mounts_are_the_same_each_time_and_after_opening_again
        commit_replaces_labels_and_times commit_of_what_cannot_be_committed only_committed_snapshots_are_parents
        odd_keys_never_become_paths usage_counts_own_resources_only a_failed_create_leaves_nothing
        cleanup_deletes_what_no_row_names id_mappings_give_the_root_to_the_mapped_owner a_view_without_parent_is_empty
        rebase_gives_a_parent_where_the_backend_can a_store_of_another_backend_is_refused realms_do_not_see_each_other
        a_mounted_snapshot_is_not_removed a_failing_undo_does_not_hide_the_first_error
        a_removal_that_cannot_delete_succeeds_and_is_logged what_somebody_else_mounted_is_not_unmounted
        a_mount_that_is_covered_or_moved_is_still_one a_store_that_leads_elsewhere_is_not_opened
        layers_travel_from_store_to_store;
    layers:
        a_layer_is_the_same_whatever_backend_packs_and_unpacks_it an_image_goes_to_another_backend_and_back
        a_layer_that_fails_leaves_nothing_that_could_be_committed what_looks_like_a_mark_in_a_layer_is_none;
}

/// Set for this program where it runs in a user namespace.
const AGAIN: &str = "PLYWOOD_CONTRACT_AGAIN";

/// The ids that the user namespace has: none of them is anybody on the machine.
const FIRST_ID: u32 = 1_000_000;

#[test]
fn all_of_it_holds_without_privilege_in_a_user_namespace() {
    if std::env::var_os(AGAIN).is_some() || !plywood_fuse::testing::suite::may_mount() {
        return;
    }
    let temp = plywood_fuse::testing::TempDir::new();
    let program = temp.path().join("contract");
    plywood_fuse::testing::copy_program(
        &std::env::current_exe().expect("a running program has a path"),
        &program,
    );
    let server = temp.path().join("plywood-fuse");
    plywood_fuse::testing::copy_program(world::mount_program(), &server);
    std::os::unix::fs::chown(temp.path(), Some(FIRST_ID), Some(FIRST_ID)).expect("chown");
    // The device is open to all on ordinary systems, and here in a mount namespace of its own.
    let script = "set -e; mknod -m 666 \"$0/fuse\" c 10 229; mount --bind \"$0/fuse\" /dev/fuse; \
        echo \"root:$1:65536\" > \"$0/ids\"; mount --bind \"$0/ids\" /etc/subuid; mount --bind \"$0/ids\" /etc/subgid; \
        exec unshare --user --map-users=\"$1,0,65536\" --map-groups=\"$1,0,65536\" --setuid 0 --setgid 0 --mount \
        \"$0/contract\" fuse:: overlay:: native:: --test-threads=2";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    command.arg(temp.path()).arg(FIRST_ID.to_string()).current_dir(temp.path());
    command.env(AGAIN, "1").env("TMPDIR", temp.path()).env(world::PROGRAM, &server);
    let done = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{told}{}", String::from_utf8_lossy(&done.stderr));
    let passed =
        told.lines().find_map(|line| line.strip_prefix("test result: ok. ")?.split(' ').next()?.parse().ok());
    assert!(passed.is_some_and(|n: u32| n > 120), "{told}");
}
