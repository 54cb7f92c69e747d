//! What was typed: the words of the command line as types.
//!
//! Words and order are those of `ctr snapshots`. Every command says in its help which JSON it prints; nothing here
//! decides anything.

pub mod layers;

use crate::config::KEYS;
use crate::grpc::service::HandOut;
use clap::{Args as Group, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// The end of the help text.
const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  any other failure
  2  the command line, the configuration, or an argument makes no sense
  3  there is no such snapshot, parent or file
  4  the key or name is in use
  5  the state does not allow it: it has children, it is mounted, it is not active
  6  permission denied
  7  no space left
  8  not supported here
  9  the store contradicts itself
exec ends with the code of its command: 126 and 127 if it cannot be run, 128+N after signal N, \
125 if plywood failed.

With --json a command prints the one JSON value that its help shows. Errors go to standard error, \
as text.";

/// The end of the long help text: the settings, from their table.
fn settings_help() -> String {
    let mut text = format!(
        "{AFTER_HELP}\n\nSettings, each from --set SETTING=VALUE (or its own flag), else from PLYWOOD_<SETTING>, \
         else from the configuration file: $PLYWOOD_CONFIG, /etc/plywood/config.toml for root, \
         ~/.config/plywood/config.toml for everybody else.\n"
    );
    for key in KEYS {
        text.push_str(&format!("  {}={}\n      {}\n", key.name, key.values, key.help));
    }
    text
}

/// Prepare, commit, view and mount directory trees, layer upon layer.
#[derive(Debug, Parser)]
#[command(
    name = "plywood",
    version,
    about,
    after_help = AFTER_HELP,
    after_long_help = settings_help(),
    // An alias of the shell may set what is then typed otherwise.
    args_override_self = true,
    arg_required_else_help = true,
    subcommand_required = true,
    max_term_width = 110
)]
pub struct Args {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for every command.
#[derive(Debug, Group)]
pub struct Global {
    /// Directory of the store
    #[arg(long, global = true, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub root: Option<PathBuf>,
    /// How snapshots are kept and mounted: auto, fuse, btrfs, overlay or native
    #[arg(long, global = true, value_name = "NAME")]
    pub backend: Option<OsString>,
    /// Print JSON for programs instead of text for people
    #[arg(long, global = true)]
    pub json: bool,
    /// What is logged to standard error: off, error, warn, info, debug, trace
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log: Option<OsString>,
    /// Free what is removed before the command ends
    #[arg(long, global = true)]
    pub sync_remove: bool,
    /// Any setting of the configuration file
    #[arg(long = "set", global = true, value_name = "SETTING=VALUE", value_parser = pair)]
    pub settings: Vec<(String, String)>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a writable snapshot, empty or on top of a committed one
    #[command(after_help = "JSON: {\"key\", \"mounts\": [{\"type\", \"source\", \"options\": []}]}")]
    Prepare(Create),
    /// Make a read-only snapshot that shows a committed one
    #[command(after_help = "JSON: {\"key\", \"mounts\": [{\"type\", \"source\", \"options\": []}]}")]
    View(Create),
    /// Turn a writable snapshot into an immutable one, to build upon
    #[command(after_help = "JSON: {\"name\", \"key\"}")]
    Commit(Commit),
    /// Print the commands that mount a snapshot
    #[command(after_help = "JSON: {\"key\", \"mounts\": [{\"type\", \"source\", \"options\": []}]}")]
    Mounts(Mounts),
    /// Mount a snapshot
    #[command(after_help = "JSON: {\"key\", \"target\"}")]
    Mount(Mount),
    /// Unmount a snapshot that `plywood mount` mounted
    #[command(visible_alias = "unmount", after_help = "JSON: {\"unmounted\": []}, the directories")]
    Umount(Umount),
    /// Remove snapshots
    #[command(
        visible_alias = "remove",
        after_help = "Goes on after a failure, and ends with the code of the first.\nJSON: {\"removed\": []}, the keys"
    )]
    Rm(Keys),
    /// Show what is known of a snapshot
    #[command(
        visible_alias = "info",
        after_help = "JSON: {\"name\", \"parent\", \"kind\", \"created\", \"updated\", \"labels\": {}}; times in RFC 3339"
    )]
    Stat(Key),
    /// List snapshots
    #[command(
        visible_alias = "list",
        after_help = "Filters: kind==active, name~=^build-, parent==\"a b\", labels.\"x.y/z\"==1, labels.x, parent!=\"\";\n\
                      a comma means and, several filters mean or.\nJSON: [..] of what `stat` prints"
    )]
    Ls(Ls),
    /// Show snapshots as the trees that they are
    #[command(
        after_help = "JSON: [{\"name\", \"parent\", \"kind\", \"depth\"}], in the order of the drawing"
    )]
    Tree,
    /// Show what snapshots occupy by themselves, without their parents
    #[command(after_help = "JSON: [{\"key\", \"size_bytes\", \"inodes\"}]")]
    Usage(Usage),
    /// Set labels of a snapshot; an empty value removes one
    #[command(after_help = "JSON: what `stat` prints")]
    Label(Label),
    /// Delete what removed and interrupted snapshots left on the disk
    #[command(after_help = "Blobs that no snapshot refers to go after a day.\n\
                      JSON: {\"deleted\", \"dropped_rows\", \"deleted_blobs\", \"deleted_ingests\", \
                      \"freed_content_bytes\", \"failed\": [{\"path\", \"reason\"}]}")]
    Cleanup,
    /// Verify the store
    #[command(after_help = "Ends with code 9 if something is wrong that was not repaired.\n\
                      JSON: {\"findings\": [], \"repaired\"}")]
    Check(Check),
    /// Show which backends work here, and why the others do not
    #[command(
        after_help = "JSON: [{\"backend\", \"works\", \"why\", \"used\"}]; \"why\" is empty if it works"
    )]
    Backends,
    /// Run a command in a snapshot, mounted for just that long
    #[command(after_help = "JSON: nothing, the output is that of the command")]
    Exec(Exec),
    /// Take in an image, or a root file system, as a chain of committed snapshots
    #[command(
        after_help = "IMAGE is an OCI archive or layout, what `docker save` and `podman save` write, or a tar archive of a\n\
                      root file system; gzip and zstd are understood. Each layer becomes a snapshot called by its chain ID;\n\
                      those that are there are not made again. The last line of the output is the name of the top one.\n\
                      JSON: {\"name\", \"image\", \"layers\": [{\"name\", \"diff_id\", \"new\"}]}"
    )]
    Import(layers::Import),
    /// Write a chain of committed snapshots as an image
    #[command(
        after_help = "The archive is an OCI image that podman, skopeo, containerd and docker take in. Layers that were imported\n\
                      are written as they came. SOURCE_DATE_EPOCH bounds the times in it.\n\
                      JSON: {\"manifest\", \"config\", \"tag\", \"layers\": [{\"name\", \"diff_id\", \"digest\", \"size_bytes\"}]};\n\
                      on standard error if the archive goes to standard output"
    )]
    Export(layers::Export),
    /// Write what a snapshot changes as a layer
    #[command(after_help = "SOURCE_DATE_EPOCH bounds the times in it.\n\
                      JSON: {\"digest\", \"diff_id\", \"size_bytes\", \"entries\"}; on standard error if the layer goes to\n\
                      standard output")]
    Diff(layers::Diff),
    /// Show what a snapshot changes: A added, M modified, D deleted
    #[command(after_help = "JSON: [{\"path\", \"kind\"}]; \"kind\" is added, modified or deleted")]
    Changes(layers::Changes),
    /// Change a snapshot as a layer says
    #[command(
        after_help = "If it fails, the snapshot can only be removed. Prints the digest of the layer without compression.\n\
                      JSON: {\"key\", \"diff_id\", \"size_bytes\", \"entries\"}"
    )]
    Apply(layers::Apply),
    /// Look at and change files of a snapshot without mounting it
    #[command(subcommand, after_help = "See the commands for the JSON that they print.")]
    Fs(Fs),
    /// Keep blobs, such as layers, and say which snapshot is made of which
    #[command(subcommand, after_help = "See the commands for the JSON that they print.")]
    Blob(Blob),
    /// Serve the store to containerd or BuildKit, until SIGTERM
    #[command(after_help = "\
One daemon serves one store to one containerd: containerd removes every snapshot that it does not know. Snapshots that
other commands make are another realm, which neither sees.
A user without root serves inside of a user namespace with all of the user's ids, unless started in one already.
JSON: nothing, the daemon prints nothing; it logs to standard error")]
    Serve(Serve),
    /// Print the completions for a shell
    #[command(after_help = "JSON: nothing, the output is a script")]
    Completions(Completions),
}

/// Arguments of `prepare` and `view`.
#[derive(Debug, Group)]
pub struct Create {
    /// What it is called from now on
    pub key: String,
    /// The committed snapshot that it shows; without one it is empty
    #[arg(default_value = "", hide_default_value = true)]
    pub parent: String,
    /// Label of the snapshot; can be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub labels: Vec<(String, String)>,
    /// Print the commands that mount it there
    #[arg(short, long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub target: Option<PathBuf>,
}

/// Arguments of `commit`.
#[derive(Debug, Group)]
pub struct Commit {
    /// What it is called from now on
    pub name: String,
    /// The writable snapshot, whose key is free afterwards
    pub key: String,
    /// Label of the committed snapshot, which keeps none of those it had; can be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub labels: Vec<(String, String)>,
    /// The parent to give a snapshot that has none
    #[arg(long, value_name = "NAME")]
    pub parent: Option<String>,
}

/// Arguments of `mounts`.
#[derive(Debug, Group)]
pub struct Mounts {
    /// The snapshot
    pub key: String,
    /// Where it is to be mounted
    #[arg(default_value = "TARGET", hide_default_value = true, value_hint = clap::ValueHint::DirPath)]
    pub target: PathBuf,
}

/// Arguments of `mount`.
#[derive(Debug, Group)]
pub struct Mount {
    /// The snapshot
    pub key: String,
    /// The directory to mount it on
    #[arg(value_hint = clap::ValueHint::DirPath)]
    pub target: PathBuf,
}

/// Arguments of `umount`.
#[derive(Debug, Group)]
pub struct Umount {
    /// The directory that it is mounted on, or the snapshot
    #[arg(value_name = "TARGET|KEY")]
    pub target: OsString,
}

/// A snapshot.
#[derive(Debug, Group)]
pub struct Key {
    /// The snapshot
    pub key: String,
}

/// Some snapshots.
#[derive(Debug, Group)]
pub struct Keys {
    /// The snapshots
    #[arg(required = true, value_name = "KEY")]
    pub keys: Vec<String>,
}

/// Arguments of `ls`.
#[derive(Debug, Group)]
pub struct Ls {
    /// Which ones; without a filter all
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
    /// Print only the names
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `usage`.
#[derive(Debug, Group)]
pub struct Usage {
    /// The snapshots; without one all
    #[arg(value_name = "KEY")]
    pub keys: Vec<String>,
    /// Print bytes as they are
    #[arg(short, long)]
    pub bytes: bool,
}

/// Arguments of `label`.
#[derive(Debug, Group)]
pub struct Label {
    /// The snapshot
    pub key: String,
    /// The labels; all others stay as they are
    #[arg(required = true, value_name = "KEY=VALUE", value_parser = pair)]
    pub labels: Vec<(String, String)>,
}

/// Arguments of `check`.
#[derive(Debug, Group)]
pub struct Check {
    /// Mend what can be mended
    #[arg(long)]
    pub repair: bool,
}

/// Arguments of `exec`.
#[derive(Debug, Group)]
pub struct Exec {
    /// The snapshot; a view is read-only
    pub key: String,
    /// The command and its arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
    /// Variable of the command; can be repeated
    #[arg(short = 'e', long = "env", value_name = "NAME=VALUE", value_parser = pair)]
    pub variables: Vec<(String, String)>,
    /// Directory in the snapshot to run it in
    #[arg(short, long, value_name = "DIR", default_value = "/")]
    pub workdir: PathBuf,
    /// Refuse changes
    #[arg(long)]
    pub read_only: bool,
    /// Name of the machine that the command sees
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
}

/// Arguments of `serve`.
#[derive(Debug, Group)]
pub struct Serve {
    /// Path of the socket, mode 0600 in a directory made 0700 if missing; default: that of the service manager
    /// (LISTEN_FDS), else $XDG_RUNTIME_DIR/plywood/plywood.sock, for root /run/plywood/plywood.sock
    #[arg(long, value_name = "SOCKET", value_hint = clap::ValueHint::FilePath)]
    pub address: Option<String>,
    /// Socket of the containerd that is served, for layers in and out
    #[arg(long, value_name = "SOCKET", value_hint = clap::ValueHint::FilePath)]
    pub containerd_address: Option<String>,
    /// Path of another socket, for metrics: GET /metrics answers with OpenMetrics text
    #[arg(long, value_name = "SOCKET", value_hint = clap::ValueHint::FilePath)]
    pub metrics_address: Option<String>,
    /// Who mounts snapshots of the backend fuse: plywood (bind), its client (fuse3), or whoever can (auto)
    #[arg(long, value_name = "auto|bind|fuse3", value_parser = hand_out, default_value = "auto", hide_default_value = true)]
    pub mounts: HandOut,
}

/// Arguments of `completions`.
#[derive(Debug, Group)]
pub struct Completions {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// The commands on files.
#[derive(Debug, Subcommand)]
pub enum Fs {
    /// List a directory
    #[command(
        after_help = "JSON: [{\"name\", \"kind\", \"mode\", \"uid\", \"gid\", \"size_bytes\", \"links\", \"modified\", \
                      \"target\"}]; \"mode\" in octal digits, \"target\" of symlinks only"
    )]
    Ls(FsLs),
    /// Print the content of files
    #[command(after_help = "JSON: nothing, the output is the content")]
    Cat(FsPaths),
    /// Copy files into a snapshot, out of it, or from one to another
    #[command(after_help = "\
A file of a snapshot is written KEY:PATH. If KEY or PATH holds a colon, begin PATH with a slash: what stands before
the first \":/\" is the key. What begins with \"/\" or \".\", or holds no colon, is a file of this machine.
A directory is copied into a directory that is there, or as one that is not; \"SRC/.\" is what SRC holds. Symlinks
are copied as such. New files belong to root in the snapshot, and to you outside of it; see --archive.
JSON: {\"files\", \"directories\", \"bytes\"}, how many were copied")]
    Cp(FsCp),
    /// Remove files
    #[command(after_help = "JSON: {\"removed\": []}, the paths")]
    Rm(FsRm),
    /// Show what is known of a file
    #[command(after_help = "JSON: [..] as `fs ls` prints it, with the path as \"name\"")]
    Stat(FsPaths),
}

/// The commands on blobs.
#[derive(Debug, Subcommand)]
pub enum Blob {
    /// List blobs
    #[command(after_help = "JSON: [{\"digest\", \"size_bytes\", \"snapshots\": []}]")]
    Ls(BlobLs),
    /// Show the blob of a snapshot
    #[command(after_help = "Ends with code 3 if it has none.\n\
                      JSON: {\"key\", \"digest\", \"media_type\", \"size_bytes\"}")]
    Show(Key),
    /// Say which blob a snapshot is made of; it is deleted with the last snapshot of it
    #[command(after_help = "JSON: {\"key\", \"digest\"}")]
    Set(BlobSet),
    /// List the snapshots that are made of a blob
    #[command(after_help = "JSON: {\"digest\", \"snapshots\": []}")]
    Of(BlobDigest),
    /// Add a blob, and print its digest
    #[command(
        after_help = "A cleanup deletes it after a day, unless it is the blob of a snapshot by then.\n\
                      JSON: {\"digest\", \"size_bytes\"}"
    )]
    Add(BlobAdd),
    /// Print a blob
    #[command(after_help = "Ends with code 9 if it turns out to be damaged.\n\
                      JSON: nothing, the output is the content")]
    Cat(BlobDigest),
}

/// Arguments of `blob ls`.
#[derive(Debug, Group)]
pub struct BlobLs {
    /// Print only the digests
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `blob set`.
#[derive(Debug, Group)]
pub struct BlobSet {
    /// The snapshot
    pub key: String,
    /// The blob
    pub digest: String,
    /// What it is, such as application/vnd.oci.image.layer.v1.tar+gzip
    #[arg(long, value_name = "TYPE")]
    pub media_type: Option<String>,
}

/// A blob.
#[derive(Debug, Group)]
pub struct BlobDigest {
    /// The blob
    pub digest: String,
}

/// Arguments of `blob add`.
#[derive(Debug, Group)]
pub struct BlobAdd {
    /// The file with its content, or - for standard input
    #[arg(value_name = "FILE|-", value_hint = clap::ValueHint::FilePath)]
    pub file: PathBuf,
}

/// Arguments of `fs ls`.
#[derive(Debug, Group)]
pub struct FsLs {
    /// The snapshot
    pub key: String,
    /// The directory in it
    #[arg(default_value = "/", hide_default_value = true)]
    pub path: PathBuf,
    /// Print only the names
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `fs cat` and `fs stat`.
#[derive(Debug, Group)]
pub struct FsPaths {
    /// The snapshot
    pub key: String,
    /// The files in it
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
}

/// Arguments of `fs cp`.
#[derive(Debug, Group)]
pub struct FsCp {
    /// What to copy
    #[arg(required = true, value_name = "SRC")]
    pub sources: Vec<OsString>,
    /// Where to; a directory if there are several sources
    #[arg(value_name = "DST")]
    pub destination: OsString,
    /// Keep owners, setuid and all attributes, and copy devices
    #[arg(short, long)]
    pub archive: bool,
    /// Copy what a source leads to if it is a symlink
    #[arg(short = 'L', long)]
    pub follow_link: bool,
}

/// Arguments of `fs rm`.
#[derive(Debug, Group)]
pub struct FsRm {
    /// The snapshot
    pub key: String,
    /// The files in it
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Remove directories with all they hold
    #[arg(short, long)]
    pub recursive: bool,
    /// What is not there is no failure
    #[arg(short, long)]
    pub force: bool,
}

/// Reads who mounts.
fn hand_out(text: &str) -> Result<HandOut, String> {
    match text {
        "auto" => Ok(HandOut::Auto),
        "bind" => Ok(HandOut::Bind),
        "fuse3" => Ok(HandOut::Fuse3),
        _ => Err("must be auto, bind or fuse3".to_owned()),
    }
}

/// Reads `NAME=VALUE`; the value may be empty and may hold more of `=`.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(("", _)) => Err("nothing stands before the '='".to_owned()),
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err("must be NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_is_and_which_json_it_prints() {
        fn each(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
                let path = format!("{path} {}", sub.get_name());
                assert!(sub.get_about().is_some(), "{path}");
                for argument in
                    sub.get_arguments().filter(|a| !matches!(a.get_id().as_str(), "help" | "version"))
                {
                    assert!(argument.get_help().is_some(), "{path}: {}", argument.get_id());
                }
                let after = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(after.contains("JSON"), "{path}: {after}");
                each(sub, &path);
            }
        }
        each(&Args::command(), "plywood");
    }

    #[test]
    fn pairs_part_at_the_first_equals_sign() {
        let cases = [
            ("a=b", Some(("a", "b"))),
            ("a=", Some(("a", ""))),
            ("a=b=c", Some(("a", "b=c"))),
            ("=b", None),
            ("a", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_eq!(pair(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_command_after_two_dashes_keeps_its_own_flags() {
        let args =
            Args::try_parse_from(["plywood", "exec", "k", "--", "ls", "--json", "--", "-l"]).expect("sound");
        let Command::Exec(exec) = args.command else { panic!("not exec: {:?}", args.command) };
        assert_eq!(exec.command, ["ls", "--json", "--", "-l"]);
        assert!(!args.global.json);
    }
}
