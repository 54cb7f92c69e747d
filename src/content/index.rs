//! The list of manifests of a layout: `index.json`, changed as a whole.

use super::oci::OciLayout;
use super::place::INDEX;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Digest;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The annotation that names a manifest.
///
/// # Source
/// OCI image specification, annotations.md.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A list of nothing.
pub(super) const EMPTY: &str =
    "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"manifests\":[]}";

/// A manifest as the list names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Its media type.
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    #[serde(rename = "size")]
    pub size_bytes: u64,
    /// What is noted of it, such as its name: see [`REF_NAME`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Everything else, such as its platform.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Descriptor {
    /// A manifest of which no more is known.
    pub fn new(media_type: impl Into<String>, digest: Digest, size_bytes: u64) -> Self {
        let (annotations, rest) = (BTreeMap::new(), Map::new());
        Self { media_type: media_type.into(), digest, size_bytes, annotations, rest }
    }

    /// Its name.
    pub fn name(&self) -> Option<&str> {
        self.annotations.get(REF_NAME).map(String::as_str)
    }
}

#[derive(Serialize, Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl OciLayout {
    /// The manifests of `index.json`.
    ///
    /// # Errors
    /// `Corrupt` if it cannot be understood.
    pub fn manifests(&self) -> Result<Vec<Descriptor>> {
        const OPERATION: &str = "read index";
        let Some(root) = self.place.root(OPERATION)? else { return Ok(Vec::new()) };
        let text = root.text(OPERATION, INDEX)?;
        text.map_or(Ok(Vec::new()), |text| Ok(self.parse(OPERATION, &text)?.manifests))
    }

    /// What `index.json` says, byte for byte.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Corrupt` if it is no file, or too large.
    pub fn index(&self) -> Result<Vec<u8>> {
        const OPERATION: &str = "read index";
        let text = self.place.root(OPERATION)?.map_or(Ok(None), |root| root.text(OPERATION, INDEX))?;
        let subject = || self.path().join(INDEX).display().to_string();
        text.ok_or_else(|| Error::new(ErrorKind::NotFound, OPERATION, subject(), "there is no such file"))
    }

    /// Adds a manifest: in place of the one of the same name, or, without a name, of the same digest.
    ///
    /// # Errors
    /// `Corrupt` if `index.json` cannot be understood; those of the disk, and then it is as before.
    pub fn put_manifest(&self, manifest: Descriptor) -> Result<()> {
        self.change("add to index", |manifests| {
            manifests.retain(|present| match (present.name(), manifest.name()) {
                (None, None) => present.digest != manifest.digest,
                (present, new) => present != new,
            });
            manifests.push(manifest);
            true
        })
    }

    /// Removes every manifest that `unwanted` says, and returns how many.
    ///
    /// # Errors
    /// As of [`OciLayout::put_manifest`].
    pub fn remove_manifests(&self, mut unwanted: impl FnMut(&Descriptor) -> bool) -> Result<usize> {
        let mut removed = 0;
        self.change("remove from index", |manifests| {
            let before = manifests.len();
            manifests.retain(|present| !unwanted(present));
            removed = before - manifests.len();
            removed > 0
        })?;
        Ok(removed)
    }

    fn change(
        &self,
        operation: &'static str,
        change: impl FnOnce(&mut Vec<Descriptor>) -> bool,
    ) -> Result<()> {
        let root = self.place.create(operation)?;
        let _lock = root.lock(operation, FlockOperation::LockExclusive)?;
        let text = root.text(operation, INDEX)?.unwrap_or_else(|| EMPTY.into());
        let mut index = self.parse(operation, &text)?;
        if !change(&mut index.manifests) {
            return Ok(());
        }
        index.rest.entry("schemaVersion").or_insert_with(|| 2.into());
        let text = serde_json::to_vec(&index).map_err(|e| self.corrupt(operation, &e))?;
        root.replace(operation, INDEX, &text)
    }

    fn parse(&self, operation: &'static str, text: &[u8]) -> Result<Index> {
        serde_json::from_slice(text).map_err(|e| self.corrupt(operation, &e))
    }

    fn corrupt(&self, operation: &'static str, cause: &serde_json::Error) -> Error {
        let subject = self.path().join(INDEX).display().to_string();
        Error::new(ErrorKind::Corrupt, operation, subject, format!("it is no image index: {cause}"))
    }
}
