//! Must a command run in a user namespace? Pure.
//!
//! A plain user with subordinate ids owns content of other ids, and may neither read it all nor delete it, except as
//! root of a user namespace that has these ids. What concerns rows alone needs none, and is quicker without.

use super::args::Command;
use crate::backend::BackendName;

/// What a command touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touches {
    /// Rows, and directories that this user makes.
    Rows,
    /// Rows; and content where the backend copies it.
    RowsOrCopies,
    /// Rows; and content where the backend looks through layers before it mounts them.
    RowsOrLayers,
    /// Content.
    Content,
}

/// Who runs a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A user who is bound by the owners of files, and not in a user namespace of ours.
    Plain,
    /// Root of the machine or of a user namespace, or somebody who was sent into one already.
    Root,
}

impl Standing {
    /// That of an effective user, for whom another user namespace would, or would not, be something new.
    pub fn of(euid: u32, may_enter: bool) -> Standing {
        if euid != 0 && may_enter { Standing::Plain } else { Standing::Root }
    }
}

/// What a command touches.
pub fn touches(command: &Command) -> Touches {
    match command {
        Command::Prepare(_) | Command::View(_) => Touches::RowsOrCopies,
        // What the daemon removes and measures has all ids of its user. (Clients in a user namespace that has them, too,
        // read the layers; in the one of rootlesskit the daemon is root, and stays there.)
        Command::Commit(_)
        | Command::Rm(_)
        | Command::Usage(_)
        | Command::Cleanup
        | Command::Fs(_)
        | Command::Import(_)
        | Command::Export(_)
        | Command::Diff(_)
        | Command::Changes(_)
        | Command::Apply(_)
        | Command::Serve(_) => Touches::Content,
        // Exec makes namespaces of its own, and needs another around it for the mounts only.
        Command::Exec(_) | Command::Mounts(_) => Touches::RowsOrLayers,
        Command::Mount(_)
        | Command::Umount(_)
        | Command::Stat(_)
        | Command::Ls(_)
        | Command::Tree
        | Command::Label(_)
        | Command::Check(_)
        | Command::Backends
        // The content store is this user's own, whoever owns what is in its blobs.
        | Command::Blob(_)
        | Command::Completions(_) => Touches::Rows,
    }
}

/// True if the work is to be done in a user namespace; `backend` is that of the store.
pub fn must_enter(touches: Touches, standing: Standing, backend: Option<BackendName>) -> bool {
    match (standing, touches) {
        (Standing::Root, _) | (_, Touches::Rows) => false,
        (Standing::Plain, Touches::RowsOrCopies) => {
            matches!(backend, Some(BackendName::Native | BackendName::Overlay))
        }
        (Standing::Plain, Touches::RowsOrLayers) => backend == Some(BackendName::Overlay),
        (Standing::Plain, Touches::Content) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Args;
    use clap::{CommandFactory, Parser};
    use std::collections::BTreeSet;

    /// What is typed, and whether a plain user enters a namespace with the backends fuse, native and overlay.
    const CASES: [(&str, bool, bool, bool); 27] = [
        ("prepare a b", false, true, true),
        ("view a b", false, true, true),
        ("commit b a", true, true, true),
        ("mounts a /mnt", false, false, true),
        ("mount a /mnt", false, false, false),
        ("umount a", false, false, false),
        ("rm a", true, true, true),
        ("stat a", false, false, false),
        ("ls", false, false, false),
        ("tree", false, false, false),
        ("usage", true, true, true),
        ("label a b=c", false, false, false),
        ("cleanup", true, true, true),
        ("check", false, false, false),
        ("backends", false, false, false),
        ("exec a -- true", false, false, true),
        ("fs ls a", true, true, true),
        ("fs cp x a:/", true, true, true),
        ("import a.tar", true, true, true),
        ("export a -o a.tar", true, true, true),
        ("diff a -o a.tar", true, true, true),
        ("changes a", true, true, true),
        ("apply a a.tar", true, true, true),
        ("blob ls", false, false, false),
        ("blob add x", false, false, false),
        ("serve", true, true, true),
        ("completions bash", false, false, false),
    ];

    #[test]
    fn a_plain_user_enters_a_namespace_for_content_and_nobody_else_does() {
        for (words, with_fuse, with_native, with_overlay) in CASES {
            let args = Args::try_parse_from(std::iter::once("plywood").chain(words.split(' ')))
                .unwrap_or_else(|e| panic!("{words}: {e}"));
            let touches = touches(&args.command);
            let cases = [
                (BackendName::Fuse, with_fuse),
                (BackendName::Native, with_native),
                (BackendName::Overlay, with_overlay),
            ];
            for (backend, expected) in cases {
                assert_eq!(
                    must_enter(touches, Standing::Plain, Some(backend)),
                    expected,
                    "{words} {backend}"
                );
                assert!(!must_enter(touches, Standing::Root, Some(backend)), "{words} {backend}");
            }
        }
        let tested: BTreeSet<&str> = CASES.iter().filter_map(|(words, ..)| words.split(' ').next()).collect();
        let command = Args::command();
        let all: BTreeSet<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
        assert_eq!(tested, all);
    }

    #[test]
    fn only_a_user_who_is_not_root_and_not_inside_is_plain() {
        assert_eq!(Standing::of(1000, true), Standing::Plain);
        assert_eq!(Standing::of(1000, false), Standing::Root);
        assert_eq!(Standing::of(0, true), Standing::Root);
        assert_eq!(Standing::of(0, false), Standing::Root);
    }
}
