//! What nobody needs any more: old blobs that neither the index nor a manifest in it names, and old ingests.

use super::ingest;
pub(super) use super::ingest::all;
use super::oci::OciLayout;
use super::place::{MAX_JSON_BYTES, Place};
use super::{ContentStore, Swept};
use crate::error::{ErrorKind, Result};
use crate::store::Digest;
use crate::types::Timestamp;
use std::collections::BTreeSet;
use std::io::Read;

/// Manifests that are followed from the index, one naming the next: an index of indexes has two.
const MAX_DEPTH: u32 = 4;

/// Old blobs that the index does not lead to.
pub(super) fn unused_since(layout: &OciLayout, before: Timestamp) -> Result<Vec<Digest>> {
    let mut old = Vec::new();
    layout.list(&mut |info| {
        if info.updated < before {
            old.push(info.digest);
        }
        Ok(())
    })?;
    if old.is_empty() {
        return Ok(old);
    }
    let mut named = BTreeSet::new();
    for manifest in layout.manifests()? {
        follow(layout, manifest.digest, MAX_DEPTH, &mut named)?;
    }
    old.retain(|digest| !named.contains(digest));
    Ok(old)
}

/// Notes a blob and, if it is a manifest, whatever that names.
fn follow(layout: &OciLayout, digest: Digest, depth: u32, named: &mut BTreeSet<Digest>) -> Result<()> {
    if !named.insert(digest.clone()) || depth == 0 {
        return Ok(());
    }
    let content = match layout.open(&digest) {
        Ok(content) if content.size_bytes() <= MAX_JSON_BYTES => content,
        Ok(_) => return Ok(()),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => return Ok(()),
        Err(e) => return Err(e),
    };
    let mut text = Vec::new();
    let read = content.take(MAX_JSON_BYTES).read_to_end(&mut text);
    read.map_err(|e| crate::error::Error::io("read manifest", digest.as_str(), e))?;
    let Ok(manifest) = serde_json::from_slice::<serde_json::Value>(&text) else { return Ok(()) };
    let list = |key: &str| manifest[key].as_array().cloned().unwrap_or_default();
    let digest_of = |value: &serde_json::Value| Digest::parse(value["digest"].as_str()?).ok();
    named.extend(std::iter::once(&manifest["config"]).chain(&list("layers")).filter_map(digest_of));
    for below in list("manifests").iter().filter_map(digest_of) {
        follow(layout, below, depth - 1, named)?;
    }
    Ok(())
}

/// Throws away old ingests that nobody writes.
pub(super) fn sweep_ingests(place: &Place, before: Timestamp) -> Result<Swept> {
    const OPERATION: &str = "sweep ingests";
    let mut swept = Swept::default();
    for dir in ingest::all(place, OPERATION)? {
        if !dir.try_lock(OPERATION)? {
            continue;
        }
        let Some(status) = dir.status(OPERATION, false)? else { continue };
        if status.updated < before {
            dir.remove(OPERATION)?;
            swept.count += 1;
            swept.bytes += status.offset_bytes;
        }
    }
    Ok(swept)
}
