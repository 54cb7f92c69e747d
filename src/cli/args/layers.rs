//! What was typed of the commands that move layers and images in and out.

use clap::{Args as Group, ValueEnum};
use oci_spec::distribution::Reference;
use std::ffi::OsString;
use std::path::PathBuf;

/// Arguments of `import`.
#[derive(Debug, Group)]
pub struct Import {
    /// An OCI or Docker archive, an OCI layout directory, or the archive of a root file system; - is standard input
    #[arg(value_name = "IMAGE", value_hint = clap::ValueHint::AnyPath)]
    pub image: PathBuf,
    /// The image to take, if there are several
    #[arg(short, long, value_name = "NAME")]
    pub name: Option<String>,
    /// The machine that it is for, if there are several; default: this one
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<String>,
    /// Take the archive as a root file system, whatever it looks like
    #[arg(long)]
    pub rootfs: bool,
    /// Keep no copies of the layers; export then packs them anew
    #[arg(long)]
    pub no_blobs: bool,
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Packing {
    /// Not at all
    None,
    /// gzip
    Gzip,
    /// zstd
    Zstd,
}

/// Which extended attributes a layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Attributes {
    /// File capabilities only, as containerd does
    Caps,
    /// Those of users, too
    User,
}

/// Arguments of `export`.
#[derive(Debug, Group)]
pub struct Export {
    /// The committed snapshot, the top of the image
    pub name: String,
    /// The archive to write; - is standard output
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub output: PathBuf,
    /// What the image is called in the archive, like localhost/hello:1; default: as it was when it was imported
    #[arg(short, long, value_name = "NAME", value_parser = image_name)]
    pub tag: Option<String>,
    /// How layers are compressed that were not imported
    #[arg(long, value_name = "HOW", default_value = "gzip")]
    pub compress: Packing,
    /// Which extended attributes those layers have
    #[arg(long, value_name = "WHICH", default_value = "caps")]
    pub xattrs: Attributes,
}

/// Arguments of `diff`.
#[derive(Debug, Group)]
pub struct Diff {
    /// The snapshot
    pub key: String,
    /// What it is compared with; without it, its parent
    pub base: Option<String>,
    /// The layer to write; - is standard output
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub output: PathBuf,
    /// How it is compressed; default: as the name of the file says
    #[arg(long, value_name = "HOW")]
    pub compress: Option<Packing>,
    /// Which extended attributes it has
    #[arg(long, value_name = "WHICH", default_value = "caps")]
    pub xattrs: Attributes,
}

/// Arguments of `changes`.
#[derive(Debug, Group)]
pub struct Changes {
    /// The snapshot
    pub key: String,
    /// What it is compared with; without it, its parent
    pub base: Option<String>,
}

/// Arguments of `apply`.
#[derive(Debug, Group)]
pub struct Apply {
    /// The writable snapshot
    pub key: String,
    /// The layer, compressed or not; - is standard input
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub file: OsString,
}

/// What an image is called, with a tag: those who load archives refuse names without, and names that are none.
fn image_name(text: &str) -> Result<String, String> {
    let parsed: Reference =
        text.parse().map_err(|error| format!("{error}: an image is called like localhost/hello:1"))?;
    if parsed.digest().is_some() {
        return Err("a digest is no name of what is only about to be written".to_owned());
    }
    let has_tag = text.rsplit('/').next().is_some_and(|last| last.contains(':'));
    Ok(if has_tag { text.to_owned() } else { format!("{text}:latest") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_called_as_registries_allow_with_a_tag() {
        let digest = format!("a@sha256:{}", "0".repeat(64));
        let cases = [
            ("hello", Some("hello:latest")),
            ("hello:1", Some("hello:1")),
            ("localhost:5000/a/b", Some("localhost:5000/a/b:latest")),
            ("localhost:5000/a/b:v1.2_x-y", Some("localhost:5000/a/b:v1.2_x-y")),
            ("", None),
            ("Hello", None),
            ("a b", None),
            ("a:", None),
            ("a//b", None),
            ("../a", None),
            (digest.as_str(), None),
        ];
        for (text, expected) in cases {
            assert_eq!(image_name(text).ok().as_deref(), expected, "{text:?}");
        }
    }
}
