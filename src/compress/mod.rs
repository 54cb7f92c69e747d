//! How layers are compressed: what the words and the first bytes say, out of it ([`Decoder`]) and into it
//! ([`Encoder`]), and what passed by on the way ([`Hasher`]).
//!
//! Invariants:
//!
//! * What is decoded is whatever the first bytes say, not what a media type claims, as containerd does it. All members
//!   of a gzip stream and all frames of a zstd stream are one stream; nothing is an empty stream.
//! * What is encoded depends on the input, the compression and the level alone: not on the number of threads, on
//!   timing, on how the input was cut into writes, or on the processor.
//! * Memory is bounded by constants here, however long a stream is and however small it was before. The length of
//!   what comes out is for the caller to limit: it is a stream, and reading can stop at any byte.
//!
//! Absent on purpose: seeking, other compressions, dictionaries.

mod decode;
mod encode;
mod gzip;
mod hash;
mod read_ahead;
mod source;
mod zstd_frames;

pub use decode::{Decoder, decoder};
pub use encode::{Encoder, MAX_THREADS};
pub use hash::{Hasher, HashingReader, HashingWriter};
pub use read_ahead::ReadAhead;

use crate::error::{Error, ErrorKind, Result};
use crate::types::quoted;
use std::fmt;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, RFC 1952.
    Gzip,
    /// Zstandard, RFC 8878.
    Zstd,
}

/// What media types of layers begin with, and how each writes its compression: none, gzip, zstd.
///
/// # Source
/// OCI image specification, layer.md, and Docker's image manifest version 2, schema 2.
const MEDIA_TYPES: [(&str, [&str; 3]); 4] = [
    ("application/vnd.oci.image.layer.v1.tar", ["", "+gzip", "+zstd"]),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar", ["", "+gzip", "+zstd"]),
    ("application/vnd.docker.image.rootfs.diff.tar", ["", ".gzip", ".zstd"]),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar", ["", ".gzip", ".zstd"]),
];

impl Compression {
    /// All of them, in the order of their suffixes in the table of media types.
    pub const ALL: [Self; 3] = [Self::None, Self::Gzip, Self::Zstd];

    /// Bytes that [`Compression::sniff`] looks at.
    pub const SNIFFED_BYTES: usize = 4;

    /// Its word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// The compression of a word.
    ///
    /// # Errors
    /// `InvalidArgument` for any other.
    pub fn named(word: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|c| c.as_str() == word).ok_or_else(|| {
            let cause = "compressions are none, gzip and zstd";
            Error::new(ErrorKind::InvalidArgument, "compression", quoted(word), cause)
        })
    }

    /// What a media type of a layer claims; none if it is not the media type of a layer, or its layer is encrypted or
    /// compressed in another way. Parameters (behind a semicolon) do not count.
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        let plain = media_type.split(';').next().unwrap_or_default().trim_end();
        MEDIA_TYPES.iter().find_map(|(base, suffixes)| {
            let suffix = plain.strip_prefix(base)?;
            suffixes
                .iter()
                .zip(Self::ALL)
                .find_map(|(known, compression)| (*known == suffix).then_some(compression))
        })
    }

    /// The media type of a layer in an OCI image.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    /// What the first bytes of a stream say; anything unknown is not compressed.
    pub fn sniff(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compression_is_known_by_its_word() {
        for compression in Compression::ALL {
            assert_eq!(Compression::named(compression.as_str()).ok(), Some(compression));
        }
        for bad in ["", "GZIP", "gz", "xz", "none "] {
            assert_eq!(
                Compression::named(bad).map_err(|e| e.kind()),
                Err(ErrorKind::InvalidArgument),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_media_type_says_its_compression_or_is_none_of_a_layer() {
        let cases = [
            ("application/vnd.oci.image.layer.v1.tar", Some(Compression::None)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Compression::Zstd)),
            ("application/vnd.oci.image.layer.v1.tar+gzip; x=y", Some(Compression::Gzip)),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar", Some(Compression::None)),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Some(Compression::Gzip)),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", Some(Compression::Zstd)),
            ("application/vnd.docker.image.rootfs.diff.tar", Some(Compression::None)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Compression::Gzip)),
            ("application/vnd.docker.image.rootfs.diff.tar.zstd", Some(Compression::Zstd)),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar", Some(Compression::None)),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Some(Compression::Gzip)),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.zstd", Some(Compression::Zstd)),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None),
            ("application/vnd.oci.image.layer.v1.tar+encrypted", None),
            ("application/vnd.oci.image.layer.v1.tar.gzip", None),
            ("application/vnd.docker.image.rootfs.diff.tar+gzip", None),
            ("application/vnd.oci.image.config.v1+json", None),
            ("Application/vnd.oci.image.layer.v1.tar", None),
            ("", None),
        ];
        for (media_type, expected) in cases {
            assert_eq!(Compression::of_media_type(media_type), expected, "{media_type}");
        }
        for compression in Compression::ALL {
            assert_eq!(Compression::of_media_type(compression.media_type()), Some(compression));
        }
    }

    #[test]
    fn the_first_bytes_tell_the_compression() {
        let cases: [(&[u8], Compression); 10] = [
            (b"", Compression::None),
            (&[0x1f, 0x8b], Compression::None),
            (&[0x1f, 0x8b, 0x08], Compression::Gzip),
            (&[0x1f, 0x8b, 0x07, 0], Compression::None),
            (&[0x28, 0xb5, 0x2f], Compression::None),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
            (&[0x50, 0x2a, 0x4d, 0x18], Compression::Zstd),
            (&[0x5f, 0x2a, 0x4d, 0x18, 9], Compression::Zstd),
            (&[0x60, 0x2a, 0x4d, 0x18], Compression::None),
            (b"etc/\0\0\0", Compression::None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Compression::sniff(bytes), expected, "{bytes:x?}");
        }
    }
}
