//! What was applied, and what was not.

use super::name::shown;

/// How many warnings are kept in words; all are counted.
const MAX_WARNINGS: usize = 20;

/// What was applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Members, whiteouts among them.
    pub entries: u64,
    /// Bytes of content that the archive holds; holes are not among them.
    pub bytes: u64,
    /// Devices that were left out.
    pub devices_left_out: u64,
    /// Extended attributes that were left out.
    pub xattrs_left_out: u64,
    /// Files that belong to somebody else than the archive says.
    pub owners_left_out: u64,
    /// The first of what was left out, in words.
    pub warnings: Vec<String>,
}

impl Applied {
    /// A device is left out.
    pub fn device_left_out(&mut self, path: &[u8], why: &str) {
        self.devices_left_out += 1;
        self.warn(path, || format!("the device is left out: {why}"));
    }

    /// An attribute is left out.
    pub fn xattr_left_out(&mut self, path: &[u8], name: &[u8], why: &str) {
        self.xattrs_left_out += 1;
        self.warn(path, || format!("attribute {} is left out: {why}", name.escape_ascii()));
    }

    /// A file does not get its owner.
    pub fn owner_left_out(&mut self, path: &[u8], uid: u32, gid: u32) {
        self.owners_left_out += 1;
        self.warn(path, || format!("owner {uid}:{gid} is left out: this user may not give files away"));
    }

    /// How many warnings there were in all.
    pub fn left_out(&self) -> u64 {
        self.devices_left_out + self.xattrs_left_out + self.owners_left_out
    }

    fn warn(&mut self, path: &[u8], words: impl FnOnce() -> String) {
        if self.warnings.len() < MAX_WARNINGS {
            let text = format!("{}: {}", shown(path), words());
            tracing::debug!(warning = %text, "apply");
            self.warnings.push(text);
        }
    }
}
