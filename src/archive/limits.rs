//! How much an archive may ask of whoever reads it.

/// The bounds of a [`Reader`](super::Reader). What goes beyond one is an error that names it.
///
/// None of them follows from the format: a stream of a few kilobytes can say that it holds more than any disk does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Members.
    pub entries: u64,
    /// Bytes of a name, and of what a link says: as many as Linux takes in one path.
    pub path_bytes: usize,
    /// Bytes of one extended header, as in Go and in libarchive; also of a GNU long name before it is cut.
    pub pax_bytes: usize,
    /// Bytes of the value of one extended attribute: as many as Linux takes.
    pub xattr_value_bytes: usize,
    /// Bytes of the names of all extended attributes of a member, each with a NUL: as many as Linux lists.
    pub xattr_names_bytes: usize,
    /// Pieces of one sparse file. They are kept in memory, 16 bytes each.
    pub sparse_pieces: usize,
    /// Bytes of the stream, with all that stands behind its end.
    pub total_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 10_000_000,
            path_bytes: 4096,
            pax_bytes: 1 << 20,
            xattr_value_bytes: 64 << 10,
            xattr_names_bytes: 64 << 10,
            sparse_pieces: 1 << 20,
            total_bytes: u64::MAX,
        }
    }
}
