//! How a chain of layers is called. Pure.

use crate::store::Digest;
use sha2::{Digest as _, Sha256};

/// The chain ID of a layer on top of the chain `below`.
///
/// # Source
/// OCI image specification, "Layer ChainID".
pub fn chain_id(below: Option<&Digest>, diff_id: &Digest) -> Digest {
    match below {
        None => diff_id.clone(),
        Some(below) => sha256(format!("{below} {diff_id}").as_bytes()),
    }
}

/// The chain IDs of layers, the lowest first.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    diff_ids.iter().fold(Vec::with_capacity(diff_ids.len()), |mut chain: Vec<Digest>, diff_id| {
        chain.push(chain_id(chain.last(), diff_id));
        chain
    })
}

/// The digest of bytes in memory.
pub fn sha256(bytes: &[u8]) -> Digest {
    Digest::of_sha256(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        let of = |text: &str| Digest::parse(&format!("sha256:{}", text.repeat(64))).expect("a digest");
        let chain = chain_ids(&[of("a"), of("b"), of("c")]);
        assert_eq!(chain[0], of("a"));
        assert_eq!(chain[1], sha256(format!("{} {}", of("a"), of("b")).as_bytes()));
        assert_eq!(chain[2], sha256(format!("{} {}", chain[1], of("c")).as_bytes()));
        assert_eq!(
            sha256(b"").as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
