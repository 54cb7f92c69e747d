//! Documents of images: whatever is read is an error that says so or makes sense; what is written is read back.

use super::harness::fuzz;
use super::random::Random;
use plywood::error::ErrorKind;
use plywood::image::document::*;
use plywood::store::Digest;

fn digest(random: &mut Random) -> Digest {
    let mut hash = [0; 32];
    hash.copy_from_slice(&random.bytes(32));
    Digest::of_sha256(hash)
}

fn described(random: &mut Random, media_type: &str) -> Described {
    let size_bytes = random.edge() >> 1;
    Described { digest: digest(random), size_bytes, media_type: media_type.to_owned() }
}

fn layers(random: &mut Random) -> Vec<PackedLayer> {
    let kinds = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
    ];
    (0..random.below(4))
        .map(|_| {
            let media_type = *random.one_of(&kinds);
            PackedLayer {
                diff_id: digest(random),
                blob: described(random, media_type),
                created: text(random),
                created_by: text(random),
            }
        })
        .collect()
}

/// Words that JSON has to escape, among others.
fn text(random: &mut Random) -> String {
    const PARTS: [&str; 12] =
        ["a", "localhost/", ":1", "\"", "\\", "\u{0}", "\n", "ä", "{", "]", "latest", "2020-01-01T00:00:00Z"];
    (0..random.below(5)).map(|_| *random.one_of(&PARTS)).collect()
}

/// Documents that are right, and pieces of JSON to put into them.
fn sound(random: &mut Random) -> Vec<Vec<u8>> {
    let (layers, machine) = (layers(random), Platform::here());
    let config = make_config(None, &layers, &machine).expect("a configuration");
    let name = text(random);
    let described = described(random, media::CONFIG);
    let manifest = Described { media_type: media::MANIFEST.to_owned(), ..described.clone() };
    vec![
        make_index(&manifest, Some(&name)).expect("an index"),
        make_manifest(&described, &layers).expect("a manifest"),
        make_docker_manifest(&described.digest, &layers, Some(&name)).expect("a manifest of Docker"),
        config,
        br#"{"schemaVersion":2,"manifests":[{"mediaType":"m","digest":"sha256:00","size":-1,"platform":{"os":"linux","architecture":"amd64"},"urls":["x"],"annotations":{"a":"b"}}]}"#.to_vec(),
    ]
}

/// One thing happens to a document.
fn change(bytes: &mut Vec<u8>, random: &mut Random) {
    const PIECES: [&[u8]; 17] = [
        b"null",
        b"{}",
        b"[]",
        b"\"\"",
        b"0",
        b"-1",
        b"1e999",
        b"18446744073709551616",
        b",",
        b":",
        b"[[[[[[[[",
        b"{\"a\":",
        b"\\ud800",
        b"\xff",
        b"true",
        b"sha256:",
        b"\"digest\":\"sha512:00\"",
    ];
    if bytes.is_empty() {
        return;
    }
    let at = random.below(bytes.len());
    let end = (at + random.below(12)).min(bytes.len());
    match random.below(6) {
        0 => bytes[at] = random.number() as u8,
        1 => bytes.truncate(at),
        2 => drop(bytes.drain(at..end)),
        3 => {
            let piece = bytes[at..end].to_vec();
            let to = random.below(bytes.len());
            bytes.splice(to..to, piece);
        }
        _ => {
            let piece = *random.one_of(&PIECES);
            let over = if random.once_in(2) { end } else { at };
            bytes.splice(at..over, piece.iter().copied());
        }
    }
}

/// A parser says `InvalidArgument` in few words, or gives something.
fn parsed<T>(result: plywood::error::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::InvalidArgument, "{e}");
            None
        }
    }
}

fn read(bytes: &[u8], random: &mut Random) {
    let what = "a document";
    if let Some(listed) = parsed(index(what, bytes)) {
        let wanted = text(random);
        let wanted = (!random.once_in(2)).then_some(&wanted[..]);
        match choose(what, &listed, wanted, &Platform::here()) {
            Ok(one) => assert!(listed.contains(one)),
            Err(e) => assert!(matches!(e.kind(), ErrorKind::InvalidArgument | ErrorKind::NotFound), "{e}"),
        }
    }
    if let Some(manifest) = parsed(manifest(what, bytes)) {
        assert!(manifest.layers.len() <= MAX_LAYERS);
        for described in manifest.layers.iter().chain([&manifest.config]) {
            let path = blob_path(&described.digest);
            assert_eq!(blob_of_path(&path).as_ref(), Some(&described.digest));
            assert!(!path.contains("..") && !path.starts_with('/'), "{path}");
        }
    }
    parsed(docker_manifest(what, bytes));
    if let Some(config) = parsed(config(what, bytes)) {
        // It is built upon, with as many layers as it has and one more.
        let mut all = layers(random);
        all.truncate(1);
        let below = config.diff_ids.iter().map(|diff_id| PackedLayer {
            diff_id: diff_id.clone(),
            blob: described(random, "m"),
            created: String::new(),
            created_by: String::new(),
        });
        let all: Vec<PackedLayer> = below.collect::<Vec<_>>().into_iter().chain(all).collect();
        if let Some(grown) = parsed(make_config(Some(bytes), &all, &Platform::here())) {
            let ids: Vec<_> = all.iter().map(|layer| layer.diff_id.clone()).collect();
            let read = config_of(&grown);
            assert_eq!((read.diff_ids, read.platform), (ids, config.platform));
        }
    }
}

fn config_of(bytes: &[u8]) -> Config {
    config("what was written", bytes).expect("what was written is read")
}

fn written_is_read(random: &mut Random) {
    let (all, name, described) = (layers(random), text(random), described(random, media::CONFIG));
    let told = Some(&name[..]);
    let read = manifest("x", &make_manifest(&described, &all).expect("sound")).expect("sound");
    assert_eq!(read.config, described);
    assert!(read.layers.iter().eq(all.iter().map(|layer| &layer.blob)));
    let of = Described { media_type: media::MANIFEST.to_owned(), ..described.clone() };
    let read = index("x", &make_index(&of, told).expect("sound")).expect("sound");
    assert_eq!((&read[0].described, read[0].name.as_deref()), (&of, told.filter(|name| !name.is_empty())));
    let read = docker_manifest("x", &make_docker_manifest(&described.digest, &all, told).expect("sound"));
    let read = read.expect("sound");
    assert_eq!(read[0].names, [name]);
    assert_eq!(blob_of_path(&read[0].config).as_ref(), Some(&described.digest));
    let paths = read[0].layers.iter().map(|path| blob_of_path(path));
    assert!(paths.eq(all.iter().map(|layer| Some(layer.blob.digest.clone()))));
    let new = config_of(&make_config(None, &all, &Platform::here()).expect("sound"));
    assert!(new.diff_ids.iter().eq(all.iter().map(|layer| &layer.diff_id)));
}

#[test]
fn documents_make_sense_or_are_refused() {
    let pool = || {
        let mut random = Random::new(2);
        let pool: Vec<Vec<u8>> = (0..200).flat_map(|_| sound(&mut random)).collect();
        (pool, Vec::new())
    };
    fuzz("documents", 1_500_000, pool, |(pool, changed), random| match random.below(32) {
        0 => written_is_read(random),
        1 => read(&random.few_bytes(64), random),
        _ => {
            changed.clone_from(random.one_of(pool));
            for _ in 0..random.below(4) {
                change(changed, random);
            }
            read(changed, random);
        }
    });
}

/// As much as a document of the largest size can ask for.
#[test]
fn the_largest_documents_take_bounded_memory() {
    let fill = |begin: &str, piece: &str, end: &str| {
        let times = (MAX_BYTES as usize - begin.len() - end.len()) / piece.len();
        [begin.as_bytes(), &piece.as_bytes().repeat(times)[..], end.as_bytes()].concat()
    };
    let digest = format!("sha256:{}", "0".repeat(64));
    let one = format!(r#"{{"mediaType":"","digest":"{digest}","size":1}}"#);
    let cases = [
        fill(r#"{"schemaVersion":2,"manifests":["#, &format!("{one},"), &format!("{one}]}}")),
        fill(
            &format!(r#"{{"schemaVersion":2,"config":{one},"layers":["#),
            &format!("{one},"),
            &format!("{one}]}}"),
        ),
        fill(r#"{"rootfs":{"diff_ids":["#, r#""","#, r#"""]}}"#),
        fill(r#"{"rootfs":{"diff_ids":[]},"x":["#, "[],", "[]]}"),
        fill("[", r#"{"Config":""},"#, r#"{"Config":""}]"#),
        fill(r#"[{"Config":"","Layers":["#, r#""","#, r#"""]}]"#),
        fill("", "[", ""),
        fill("", r#"{"a":"#, ""),
    ];
    for bytes in &cases {
        let peak = super::allocation::peak_of(|| {
            drop(parsed(index("x", bytes)));
            drop(parsed(manifest("x", bytes)));
            drop(parsed(docker_manifest("x", bytes)));
            drop(parsed(config("x", bytes)));
        });
        let begin = String::from_utf8_lossy(&bytes[..30]).into_owned();
        println!("{begin}: {} KiB", peak >> 10);
        assert!(peak < 128 << 20, "{begin}: {peak} bytes");
    }
}
