//! What the documents of an image say: index, manifest, configuration, and Docker's `manifest.json`. Pure: bytes in,
//! values out, and back.
//!
//! Everything comes from outside: a document that is too large, no JSON, or not what it should be is an error that
//! names it. Nothing is believed of a size or digest that was not compared with the content.

use crate::error::{Error, ErrorKind, Result};
use crate::store::Digest;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Bytes that a document may have: as much as registries take.
pub const MAX_BYTES: u64 = 4 << 20;

/// Layers that an image may have: more than any mount can stack.
pub const MAX_LAYERS: usize = 4096;

/// The annotation that names an image in an index, by the OCI specification.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The annotation that names an image in full, by containerd.
pub const IMAGE_NAME: &str = "io.containerd.image.name";

/// Media types of what plywood writes.
pub mod media {
    /// An index.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// A manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// A configuration.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// Docker's list of manifests.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker's manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
}

/// A blob as a document describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its media type.
    pub media_type: String,
}

/// For which machines an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// The system, as Go calls it.
    pub os: String,
    /// The processor, as Go calls it.
    pub architecture: String,
    /// The variant of the processor; empty if it does not matter.
    pub variant: String,
}

impl Platform {
    /// The machine that this runs on.
    pub fn here() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
            "riscv64" => ("riscv64", ""),
            "s390x" => ("s390x", ""),
            other => (other, ""),
        };
        Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    /// True if programs for `self` run on `machine`. A variant that one of them does not tell is any.
    pub fn runs_on(&self, machine: &Platform) -> bool {
        let same_variant =
            self.variant.is_empty() || machine.variant.is_empty() || self.variant == machine.variant;
        self.os == machine.os && self.architecture == machine.architecture && same_variant
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// One entry of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The manifest, or a further index.
    pub described: Described,
    /// How the index calls it; the full name counts more than the short one.
    pub name: Option<String>,
    /// For which machines it is.
    pub platform: Option<Platform>,
}

impl Listed {
    /// True if this is a further index, not a manifest.
    pub fn is_index(&self) -> bool {
        matches!(self.described.media_type.as_str(), media::INDEX | media::DOCKER_INDEX)
    }

    /// True if this describes another image rather than being one: what BuildKit calls an attestation.
    fn is_attestation(&self) -> bool {
        self.platform.as_ref().is_some_and(|p| p.os == "unknown" && p.architecture == "unknown")
    }
}

/// What a manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The configuration.
    pub config: Described,
    /// The layers, the lowest first.
    pub layers: Vec<Described>,
}

/// What a configuration says about layers and machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Digests of the layers without compression, the lowest first.
    pub diff_ids: Vec<Digest>,
    /// For which machines the image is.
    pub platform: Platform,
}

/// One image of Docker's `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerImage {
    /// The member of the archive that is the configuration.
    pub config: String,
    /// How the image is called.
    pub names: Vec<String>,
    /// The members that are the layers, the lowest first.
    pub layers: Vec<String>,
}

fn invalid(what: &str, cause: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidArgument, "read image", what, cause.to_string())
}

/// Checks how large a document is before anybody reads it.
///
/// # Errors
/// `InvalidArgument`.
pub fn check_size(what: &str, size_bytes: u64) -> Result<()> {
    if size_bytes <= MAX_BYTES {
        return Ok(());
    }
    Err(invalid(
        what,
        format!("it has {size_bytes} bytes, and a document of an image has at most {MAX_BYTES}"),
    ))
}

fn described(what: &str, descriptor: &Descriptor) -> Result<Described> {
    let digest = Digest::parse(descriptor.digest().as_ref()).map_err(|e| e.during("read image", what))?;
    let media_type = descriptor.media_type().to_string();
    Ok(Described { digest, size_bytes: descriptor.size(), media_type })
}

/// Reads an index.
///
/// # Errors
/// `InvalidArgument`.
pub fn index(what: &str, bytes: &[u8]) -> Result<Vec<Listed>> {
    check_size(what, bytes.len() as u64)?;
    let index = ImageIndex::from_reader(bytes).map_err(|e| invalid(what, e))?;
    let listed = |descriptor: &Descriptor| {
        let annotations = descriptor.annotations().as_ref();
        let name = |key: &str| annotations.and_then(|a| a.get(key)).filter(|n| !n.is_empty()).cloned();
        Ok(Listed {
            described: described(what, descriptor)?,
            name: name(IMAGE_NAME).or_else(|| name(REF_NAME)),
            platform: descriptor.platform().as_ref().map(|p| Platform {
                os: p.os().to_string(),
                architecture: p.architecture().to_string(),
                variant: p.variant().clone().unwrap_or_default(),
            }),
        })
    };
    index.manifests().iter().map(listed).collect()
}

/// Reads a manifest.
///
/// # Errors
/// `InvalidArgument`.
pub fn manifest(what: &str, bytes: &[u8]) -> Result<Manifest> {
    check_size(what, bytes.len() as u64)?;
    let manifest = ImageManifest::from_reader(bytes).map_err(|e| invalid(what, e))?;
    if manifest.layers().len() > MAX_LAYERS {
        return Err(invalid(what, format!("it has more than {MAX_LAYERS} layers")));
    }
    let layers: Result<Vec<Described>> = manifest.layers().iter().map(|l| described(what, l)).collect();
    Ok(Manifest { config: described(what, manifest.config())?, layers: layers? })
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

/// Reads what a configuration says about layers and machines.
///
/// # Errors
/// `InvalidArgument`.
pub fn config(what: &str, bytes: &[u8]) -> Result<Config> {
    check_size(what, bytes.len() as u64)?;
    let raw: RawConfig = serde_json::from_slice(bytes).map_err(|e| invalid(what, e))?;
    let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
    let diff_ids: Result<Vec<Digest>> =
        diff_ids.iter().map(|d| Digest::parse(d).map_err(|e| e.during("read image", what))).collect();
    let platform =
        Platform { os: raw.os, architecture: raw.architecture, variant: raw.variant.unwrap_or_default() };
    Ok(Config { diff_ids: diff_ids?, platform })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawDockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Reads Docker's `manifest.json`.
///
/// # Errors
/// `InvalidArgument`.
pub fn docker_manifest(what: &str, bytes: &[u8]) -> Result<Vec<DockerImage>> {
    check_size(what, bytes.len() as u64)?;
    let raw: Vec<RawDockerImage> = serde_json::from_slice(bytes).map_err(|e| invalid(what, e))?;
    if raw.iter().any(|i| i.layers.as_ref().is_some_and(|l| l.len() > MAX_LAYERS)) {
        return Err(invalid(what, format!("an image has more than {MAX_LAYERS} layers")));
    }
    let image = |raw: RawDockerImage| DockerImage {
        config: raw.config,
        names: raw.repo_tags.unwrap_or_default(),
        layers: raw.layers.unwrap_or_default(),
    };
    Ok(raw.into_iter().map(image).collect())
}

/// True if somebody who asks for `wanted` means what is called `name`: the whole name, or its last part, with or without
/// the tag `latest`.
pub fn is_named(name: &str, wanted: &str) -> bool {
    let tagged = |n: &str| match n.rsplit_once(':') {
        Some((_, tag)) if !tag.contains('/') => n.to_owned(),
        _ => format!("{n}:latest"),
    };
    let (full, wanted_full) = (tagged(name), tagged(wanted));
    name == wanted
        || full == wanted_full
        || full.ends_with(&format!("/{wanted_full}"))
        || name.ends_with(&format!(":{wanted}"))
}

/// Which entry of an index is meant: by its name if one is wanted, and then by the machine.
///
/// # Errors
/// `NotFound` if there is none; `InvalidArgument` if there are several, with their names.
pub fn choose<'a>(
    what: &str,
    listed: &'a [Listed],
    wanted: Option<&str>,
    machine: &Platform,
) -> Result<&'a Listed> {
    let images = || listed.iter().filter(|l| !l.is_attestation());
    let named: Vec<&Listed> = images()
        .filter(|l| {
            wanted.is_none_or(|w| {
                l.name.as_deref().is_some_and(|n| is_named(n, w)) || l.described.digest.as_str() == w
            })
        })
        .collect();
    let fitting: Vec<&Listed> =
        named.iter().filter(|l| l.platform.as_ref().is_none_or(|p| p.runs_on(machine))).copied().collect();
    // The very machine counts more than any of its kind.
    let exact = fitting.iter().filter(|l| l.platform.as_ref().is_some_and(|p| p == machine));
    let exact: Vec<&Listed> = exact.copied().collect();
    let candidates = if exact.len() == 1 { &exact } else { &fitting };
    let all = || {
        let words: Vec<String> = images()
            .map(|l| {
                let name = l.name.as_deref().unwrap_or(l.described.digest.as_str());
                l.platform.as_ref().map_or_else(|| name.to_owned(), |p| format!("{name} ({p})"))
            })
            .collect();
        if words.is_empty() {
            "it holds no image".to_owned()
        } else {
            format!("it holds {}", words.join(", "))
        }
    };
    match candidates.as_slice() {
        [one] => Ok(one),
        [] => {
            let cause = match (wanted, named.is_empty()) {
                (Some(wanted), true) => format!("there is no image {wanted:?}: {}", all()),
                _ => format!("there is no image for {machine}: {}", all()),
            };
            Err(Error::new(ErrorKind::NotFound, "read image", what, cause))
        }
        _ => Err(invalid(what, format!("there are several images, choose one with --name: {}", all()))),
    }
}

/// One layer of an image that is to be described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedLayer {
    /// Its digest without compression.
    pub diff_id: Digest,
    /// Its blob.
    pub blob: Described,
    /// When it was made, RFC 3339.
    pub created: String,
    /// What made it.
    pub created_by: String,
}

/// A configuration for these layers, the lowest first: that of `base`, an image whose layers are the first ones, perhaps
/// packed anew, with what there is to say of the others added; or a new one.
///
/// # Errors
/// `InvalidArgument` if `base` is no configuration.
pub fn make_config(base: Option<&[u8]>, layers: &[PackedLayer], machine: &Platform) -> Result<Vec<u8>> {
    use serde_json::{Value, json};
    let known = match base {
        Some(bytes) => config("base configuration", bytes)?.diff_ids,
        None => Vec::new(),
    };
    if let (Some(bytes), true) = (base, known.iter().eq(layers.iter().map(|l| &l.diff_id))) {
        return Ok(bytes.to_vec());
    }
    let known = known.len();
    let mut value: Value = match base {
        Some(bytes) => serde_json::from_slice(bytes).map_err(|e| invalid("base configuration", e))?,
        None => json!({
            "architecture": machine.architecture,
            "os": machine.os,
            "config": { "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] },
        }),
    };
    if base.is_none() && !machine.variant.is_empty() {
        value["variant"] = json!(machine.variant);
    }
    let Some(object) = value.as_object_mut() else {
        return Err(invalid("base configuration", "it is no object"));
    };
    if let Some(last) = layers.last() {
        object.insert("created".to_owned(), json!(last.created));
    }
    let diff_ids: Vec<&str> = layers.iter().map(|l| l.diff_id.as_str()).collect();
    object.insert("rootfs".to_owned(), json!({ "type": "layers", "diff_ids": diff_ids }));
    let mut history = match object.remove("history") {
        Some(Value::Array(history)) => history,
        _ => Vec::new(),
    };
    // A history that does not tell of every layer would be taken for one of other layers.
    let told = history.iter().filter(|h| h.get("empty_layer").and_then(Value::as_bool) != Some(true)).count();
    if told != known {
        history.retain(|h| h.get("empty_layer").and_then(Value::as_bool) == Some(true));
        history.extend(
            layers.iter().take(known).map(|l| json!({ "created": l.created, "created_by": l.created_by })),
        );
    }
    let added = layers.iter().skip(known);
    history.extend(added.map(|l| json!({ "created": l.created, "created_by": l.created_by })));
    object.insert("history".to_owned(), Value::Array(history));
    serde_json::to_vec(&value).map_err(|e| invalid("configuration", e))
}

/// A manifest of a configuration and layers, the lowest first.
///
/// # Errors
/// None that is known; those of writing JSON.
pub fn make_manifest(config: &Described, layers: &[PackedLayer]) -> Result<Vec<u8>> {
    let of = |d: &Described| serde_json::json!({ "mediaType": d.media_type, "digest": d.digest.as_str(), "size": d.size_bytes });
    let layers: Vec<_> = layers.iter().map(|l| of(&l.blob)).collect();
    let value = serde_json::json!({
        "schemaVersion": 2, "mediaType": media::MANIFEST, "config": of(config), "layers": layers,
    });
    serde_json::to_vec(&value).map_err(|e| invalid("manifest", e))
}

/// An index with one manifest.
///
/// # Errors
/// None that is known; those of writing JSON.
pub fn make_index(manifest: &Described, name: Option<&str>) -> Result<Vec<u8>> {
    let mut annotations = BTreeMap::new();
    if let Some(name) = name {
        annotations.insert(IMAGE_NAME, name);
        annotations.insert(REF_NAME, name);
    }
    let mut entry = serde_json::json!({
        "mediaType": manifest.media_type, "digest": manifest.digest.as_str(), "size": manifest.size_bytes,
    });
    if !annotations.is_empty() {
        entry["annotations"] = serde_json::json!(annotations);
    }
    let value = serde_json::json!({ "schemaVersion": 2, "mediaType": media::INDEX, "manifests": [entry] });
    serde_json::to_vec(&value).map_err(|e| invalid("index", e))
}

/// Docker's `manifest.json` for an image whose blobs lie where an OCI layout has them.
///
/// # Errors
/// None that is known; those of writing JSON.
pub fn make_docker_manifest(config: &Digest, layers: &[PackedLayer], name: Option<&str>) -> Result<Vec<u8>> {
    let layers: Vec<String> = layers.iter().map(|l| blob_path(&l.blob.digest)).collect();
    let value = serde_json::json!([{ "Config": blob_path(config), "RepoTags": name.into_iter().collect::<Vec<_>>(), "Layers": layers }]);
    serde_json::to_vec(&value).map_err(|e| invalid("manifest.json", e))
}

/// Where an OCI layout has a blob.
pub fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}", digest.as_str().replacen(':', "/", 1))
}

/// The blob that an OCI layout has at this path.
pub fn blob_of_path(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
    Digest::parse(&format!("{algorithm}:{hex}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(letter: &str) -> Digest {
        Digest::parse(&format!("sha256:{}", letter.repeat(64))).expect("a digest")
    }

    fn listed(name: Option<&str>, platform: Option<(&str, &str)>, letter: &str) -> Listed {
        let described =
            Described { digest: digest(letter), size_bytes: 2, media_type: media::MANIFEST.to_owned() };
        let platform = platform.map(|(architecture, variant)| Platform {
            os: if architecture == "unknown" { "unknown" } else { "linux" }.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        });
        Listed { described, name: name.map(str::to_owned), platform }
    }

    fn machine() -> Platform {
        Platform { os: "linux".to_owned(), architecture: "arm".to_owned(), variant: "v7".to_owned() }
    }

    #[test]
    fn an_image_is_chosen_by_its_name_and_by_the_machine() {
        let all = [
            listed(Some("docker.io/library/a:latest"), Some(("arm", "v7")), "1"),
            listed(Some("docker.io/library/a:latest"), Some(("amd64", "")), "2"),
            listed(Some("localhost/b:1"), None, "3"),
            listed(None, Some(("unknown", "unknown")), "4"),
        ];
        let chosen = |wanted, listed: &[Listed]| {
            choose("x", listed, wanted, &machine()).map(|l| l.described.digest.clone()).map_err(|e| e.kind())
        };
        let (first, third, by_digest) = (Ok(digest("1")), Ok(digest("3")), digest("3"));
        assert_eq!(chosen(Some("a"), &all), first);
        assert_eq!(chosen(Some("docker.io/library/a"), &all), first);
        assert_eq!(chosen(Some("localhost/b:1"), &all), third);
        assert_eq!(chosen(Some("1"), &all), third, "a tag alone, as an OCI layout names it");
        assert_eq!(chosen(Some(by_digest.as_str()), &all), third);
        assert_eq!(chosen(None, &all), Ok(digest("1")), "the very machine counts more than none");
        assert_eq!(chosen(Some("c"), &all), Err(ErrorKind::NotFound));
        assert_eq!(chosen(None, &all[1..2]), Err(ErrorKind::NotFound), "another machine");
        assert_eq!(chosen(None, &all[3..]), Err(ErrorKind::NotFound), "an attestation is no image");
        assert_eq!(chosen(None, &[]), Err(ErrorKind::NotFound));
        let several = [all[2].clone(), listed(Some("localhost/c:1"), None, "5")];
        assert_eq!(chosen(None, &several), Err(ErrorKind::InvalidArgument));
        let said = choose("x", &several, None, &machine()).map(drop).expect_err("several").to_string();
        assert!(
            said.contains("--name") && said.contains("localhost/b:1") && said.contains("localhost/c:1"),
            "{said}"
        );
    }

    #[test]
    fn names_are_compared_as_people_write_them() {
        for (name, wanted, expected) in [
            ("docker.io/library/debian:12", "debian:12", true),
            ("docker.io/library/debian:12", "library/debian:12", true),
            ("docker.io/library/debian:12", "debian", false),
            ("docker.io/library/debian:latest", "debian", true),
            ("localhost:5000/a", "localhost:5000/a:latest", true),
            ("latest", "latest", true),
            ("docker.io/library/mydebian:12", "debian:12", false),
        ] {
            assert_eq!(is_named(name, wanted), expected, "{name} {wanted}");
        }
    }

    #[test]
    fn documents_that_are_none_are_errors_that_say_which() {
        let huge = vec![b' '; usize::try_from(MAX_BYTES).expect("small") + 1];
        let bad: [&[u8]; 8] =
            [b"", b"{", b"[]", b"null", b"{}", b"\"x\"", b"{\"schemaVersion\":2,\"manifests\":[{}]}", &huge];
        for bytes in bad {
            assert!(index("an index", bytes).is_err());
            let error = manifest("a manifest", bytes).expect_err("no manifest");
            assert!(error.to_string().contains("a manifest"), "{error}");
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(config("a configuration", bytes).is_err());
        }
        assert!(docker_manifest("x", b"{}").is_err());
        assert_eq!(docker_manifest("x", b"[]").expect("a list"), []);
        let config =
            |diff_id: &str| config("x", format!(r#"{{"rootfs":{{"diff_ids":["{diff_id}"]}}}}"#).as_bytes());
        assert!(config("sha256:../../etc").is_err());
        assert!(config("sha256:00").is_err());
        assert_eq!(config(digest("a").as_str()).expect("sound").diff_ids, [digest("a")]);
    }

    fn layer(letter: &str) -> PackedLayer {
        let blob = Described { digest: digest(letter), size_bytes: 7, media_type: "t".to_owned() };
        PackedLayer {
            diff_id: digest(letter),
            blob,
            created: "2020-01-01T00:00:00Z".to_owned(),
            created_by: "p".to_owned(),
        }
    }

    #[test]
    fn a_configuration_grows_with_the_layers_on_top_of_its_image() {
        let base = format!(
            r#"{{"architecture":"arm64","os":"linux","config":{{"Cmd":["x"]}},"unknown":{{"kept":1}},
                "rootfs":{{"type":"layers","diff_ids":["{}"]}},"history":[{{"created_by":"first"}},{{"empty_layer":true}}]}}"#,
            digest("a")
        );
        let same = make_config(Some(base.as_bytes()), &[layer("a")], &machine()).expect("sound");
        assert_eq!(same, base.as_bytes(), "of an image that did not change, not a byte does");
        let grown = make_config(Some(base.as_bytes()), &[layer("a"), layer("b")], &machine()).expect("sound");
        let value: serde_json::Value = serde_json::from_slice(&grown).expect("JSON");
        assert_eq!(value["config"]["Cmd"][0], "x");
        assert_eq!(value["unknown"]["kept"], 1);
        assert_eq!(value["architecture"], "arm64");
        assert_eq!(value["rootfs"]["diff_ids"][1], digest("b").as_str());
        assert_eq!(value["history"].as_array().expect("a list").len(), 3);
        assert_eq!(value["history"][2]["created_by"], "p");
        assert_eq!(config("x", &grown).expect("sound").diff_ids, [digest("a"), digest("b")]);

        let new = make_config(None, &[layer("a")], &machine()).expect("sound");
        let read = config("x", &new).expect("sound");
        assert_eq!((read.diff_ids, read.platform), (vec![digest("a")], machine()));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let config = Described { digest: digest("c"), size_bytes: 3, media_type: media::CONFIG.to_owned() };
        let layers = [layer("a"), layer("b")];
        let read = manifest("x", &make_manifest(&config, &layers).expect("sound")).expect("sound");
        assert_eq!(read.config, config);
        assert_eq!(read.layers, [layers[0].blob.clone(), layers[1].blob.clone()]);
        let described =
            Described { digest: digest("d"), size_bytes: 9, media_type: media::MANIFEST.to_owned() };
        let read = index("x", &make_index(&described, Some("localhost/a:1")).expect("sound")).expect("sound");
        assert_eq!(read, [Listed { described, name: Some("localhost/a:1".to_owned()), platform: None }]);
        let docker = make_docker_manifest(&digest("c"), &layers, Some("localhost/a:1")).expect("sound");
        let read = docker_manifest("x", &docker).expect("sound");
        assert_eq!(read[0].names, ["localhost/a:1"]);
        assert_eq!(blob_of_path(&read[0].layers[1]), Some(digest("b")));
        assert_eq!(blob_of_path(&read[0].config), Some(digest("c")));
        for bad in ["blobs/sha256/00", "blobs/sha256/../x", "blobs", "x/sha256/00", "blobs/sha256"] {
            assert_eq!(blob_of_path(bad), None);
        }
    }
}
