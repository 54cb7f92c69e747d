//! Sequences that went wrong once, shortened.

use super::{for_me, inside};
use plywood_fuse::overlay::{Metacopy, Renames};
use plywood_fuse::testing::model::Variant;
use plywood_fuse::testing::suite;

fn usual(layers: &[&str], operations: &str) {
    suite::replay(&for_me(Variant::usual()), layers, operations, &inside);
}

#[test]
fn a_new_file_with_the_name_of_a_whiteout_has_its_times_from_the_start() {
    usual(&["kernel; dir a"], "create a/.wh.b 755");
}

#[test]
fn a_directory_made_over_a_whiteout_has_its_times_from_the_start() {
    usual(&["kernel; file a size=3"], "unlink a; mkdir a 755");
}

#[test]
fn a_directory_that_moved_into_a_new_one_still_shows_the_layers_below() {
    usual(
        &["file; opaque c/e/a; file c/e/a/x size=2", "file; sparse c/e/b size=204800"],
        "write c/e/b 1908 1420 548; mkdir d 777; rename c d/c; remount",
    );
}

#[test]
fn changes_are_told_below_directories_that_changed_places() {
    usual(
        &["kernel; file a/f size=5; file a/g size=5; file b/f size=7; dir b/d; file b/d/x size=1"],
        "exchange a b; changes",
    );
    usual(&["kernel; dir a/d; file a/d/x size=1; file b/d/y size=1"], "rename a c; rename b a; changes");
}

#[test]
fn a_directory_goes_below_itself_no_more_if_a_file_is_there() {
    usual(&["kernel; dir b/d/a mtime=1000000011"], "create b/d/a/b 755; rename b c; rename c/d/a c/d/a/b");
}

#[test]
fn a_lower_file_with_the_name_of_a_whiteout_can_be_cut_to_nothing() {
    usual(&["kernel; file c/.wh.b size=361; file c/b size=3"], "truncate c/.wh.b 0; remount");
    usual(&["kernel; file c/.wh.b size=361; link d c/.wh.b; file c/b size=3"], "truncate d 0; remount");
    usual(&["kernel; file c/.wh.b size=361"], "chmod c/.wh.b 600; truncate c/.wh.b 0; rotate");
}

#[test]
fn a_directory_cannot_be_linked_and_a_name_in_use_comes_first() {
    usual(&["kernel; dir a; file d size=5"], "mkdir a/a 755; link a/a d; link a/a e; rename a b; link b/a d");
    usual(&["kernel; dir a/b; symlink d/c d"], "link d a/b/c");
}

#[test]
fn a_redirect_counts_more_than_those_of_the_directories_above() {
    usual(
        &["kernel; dir b/c/b; dir d/c/a", "file; symlink b/d/b b"],
        "exchange c b; rename b c; mkdir a 755; rename d a/d; rename c/c a/d/c/c; rotate; \
         rename a e; exchange d e/d/c/c; remount",
    );
    usual(
        &["kernel; dir a perm=700; dir b/c/b; dir d/c/a perm=700", "kernel; dir b/d; dir c/e"],
        "exchange c b; rmdir c/d; symlink c/d d; exchange c/d d; rename c/c d/x; rotate; \
         exchange c a; rename a b/n; remount; list b; rotate",
    );
}

#[test]
fn a_redirect_is_a_path_of_the_lower_layers_together_not_of_one() {
    usual(
        &["kernel; dir a perm=700; dir d/c/a perm=700", "kernel; file b/d/e size=1; dir c; dir d/d/d"],
        "symlink d/c/a/x b; exchange c b; rename d/c/a/x c/d/a; exchange c/d/a d; mkdir c/d/b 700; rotate; \
         exchange c a; rename a b/n; exchange b/n/d d; exchange d/a/d d/b; remount",
    );
}

#[test]
fn a_redirect_leads_on_from_below_an_opaque_directory() {
    usual(
        &["kernel; dir d/c/a perm=700", "xattr; dir d/d/d perm=1777"],
        "symlink d/c/a/x b; rotate; mkdir d/d/b 1777; exchange d/c d/d/b; rename d/d d/c/e; rotate; \
         rename d/c/e/b/a d/a; remount",
    );
}

#[test]
fn what_stands_for_a_device_does_not_become_a_whiteout_by_its_name() {
    if !for_me(Variant::usual()).privileged {
        plywood_fuse::testing::say_skipped("only root makes devices");
        return;
    }
    usual(
        &["fuse-overlayfs; file d/e/c size=279; file d/b size=1"],
        "rename d/e/c d/.wh.b; mknod a 0 0; exchange d/.wh.b a; remount",
    );
}

#[test]
fn names_of_one_file_stay_one_file_where_a_directory_moved() {
    let layers = &["kernel; file d/a size=10; link e/b d/a"];
    usual(layers, "rename d c; chmod e/b 600");
    usual(layers, "rename d c; remount; chmod e/b 600");
    usual(layers, "rename d c; rotate; chmod e/b 600");
    usual(layers, "mkdir x 755; rename d x/d; rotate; rename x y; remount; append e/b 5 1");
}

#[test]
fn a_removed_name_does_not_come_back_with_a_write_by_another() {
    let layers = &["kernel; file a size=10; link b a; link c/d a"];
    usual(layers, "open a 1; unlink a; write-open 1 0 5 9; remount");
    usual(layers, "unlink a; remount; open b 1; unlink b; unlink c/d; write-open 1 0 5 9; remount");
}

#[test]
fn whiteout_files_hide_names_that_look_like_whiteouts() {
    let variant = Variant { whiteout_files: true, ..Variant::usual() };
    let layers = &["kernel; file a/.wh.e size=5; dir .wh.f; file b size=1"];
    for operations in [
        "rename .wh.f a/d; remount",
        "unlink a/.wh.e; remount; create a/.wh.e 644; remount",
        "rmdir .wh.f; rotate; mkdir .wh.f 755",
    ] {
        suite::replay(&for_me(variant.clone()), layers, operations, &inside);
    }
}

#[test]
fn a_directory_that_is_copied_whole_keeps_its_times() {
    let variant = Variant { renames: Renames::Copy, metacopy: Metacopy::Off, ..Variant::usual() };
    let layers = &["kernel; file d/a size=5; file d/b size=5"];
    suite::replay(&for_me(variant), layers, "unlink d/a; times d 1100000000; rename d e", &inside);
}

#[test]
fn where_nothing_is_copied_the_mode_stays() {
    usual(&[], "truncate b 0; create a 2755; copy-range b a 1152 1420 1132; write a 0 0 1");
}
