//! The checked-in Rust of the protocol definitions is what the definitions say, so that no build needs a generator.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Set to write what is generated into the tree instead of comparing it.
const UPDATE: &str = "PLYWOOD_UPDATE_GENERATED";

const SERVICES: [&str; 5] = ["snapshots", "diff", "content", "leases", "health"];

#[test]
fn the_generated_code_is_what_the_definitions_say() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/grpc");
    let (definitions, kept) = (source.join("proto"), source.join("generated"));
    let out = plywood_fuse::testing::TempDir::new();
    let files = SERVICES.map(|name| format!("services/{name}.proto"));
    let mut described = protox::compile(&files, [&definitions]).expect("the definitions are sound");
    // Without their comments: what is indented in them would be taken for tests in Rust.
    described.file.iter_mut().for_each(|file| file.source_code_info = None);
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .build_transport(false)
        .bytes(".containerd.services.content.v1")
        .out_dir(out.path())
        .compile_fds(described)
        .expect("code for the definitions");
    let (made, there) = (read(out.path()), read(&kept));
    if std::env::var_os(UPDATE).is_some() {
        there.keys().for_each(|name| fs::remove_file(kept.join(name)).expect("an old file goes"));
        made.iter().for_each(|(name, text)| fs::write(kept.join(name), text).expect("a new file comes"));
        return;
    }
    let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&made), names(&there), "run this test again with {UPDATE}=1");
    for (name, text) in &made {
        assert!(
            Some(text) == there.get(name),
            "{name} is not up to date: run this test again with {UPDATE}=1"
        );
    }
}

fn read(dir: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    let named = entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path));
    named.map(|(name, path)| (name, fs::read_to_string(path).expect("a text"))).collect()
}
