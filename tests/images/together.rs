//! Several who import at once.

use super::support::{Tar, assert_same};
use super::world::*;
use plywood::compress::Compression;
use plywood::error::ErrorKind;
use plywood::image::import::{ImportOptions, Input, import};
use plywood::image::unpack::Blobs;
use plywood::image::watch::{Task, Watcher};
use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

fn image() -> Image {
    let mut tars = three_layers();
    tars.extend((0..4).map(|n| Tar::new().file(format!("more{n}"), vec![n; 30_000])));
    tars.push(Tar::new().link("usr/bin/true", "linked"));
    Image::packed_as(&tars, &[Compression::Gzip, Compression::Zstd])
}

#[test]
fn four_import_the_same_image() {
    let image = image();
    for backend in BACKENDS {
        for members in [image.oci(), image.docker()] {
            let world = World::new(backend);
            let bytes = archive(&members);
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| world.take(bytes.clone()))).collect();
                for thread in threads {
                    let imported =
                        thread.join().expect("no panic").unwrap_or_else(|e| panic!("{backend}: {e}"));
                    assert_eq!(imported.name, image.top());
                }
            });
            assert_same(&world.tree(&image.top()), &image.tree(), "four at once");
            world.check("four at once");
            assert_eq!(world.unused_blobs(), []);
            for name in image.chain() {
                assert!(
                    world.snapshotter.get_blob(&name).expect("it is there").is_some(),
                    "{name} has its blob"
                );
            }
        }
    }
}

#[test]
fn four_import_the_same_root_file_system() {
    let image = Image::new(&[Tar::new().file("f", vec![1; 100_000])]);
    for backend in BACKENDS {
        let world = World::new(backend);
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| world.take(image.layers[0].blob.clone()))).collect();
            for thread in threads {
                let imported = thread.join().expect("no panic").unwrap_or_else(|e| panic!("{backend}: {e}"));
                assert_eq!(imported.name, image.top());
            }
        });
        world.check("four at once");
        assert_eq!(world.unused_blobs(), []);
        assert!(world.snapshotter.get_blob(&image.top()).expect("it is there").is_some());
    }
}

/// Gives up when it has been asked so often.
struct Fickle(AtomicU64);

impl Watcher for Fickle {
    fn begin(&self, what: &str, total_bytes: Option<u64>) -> Arc<dyn Task> {
        ().begin(what, total_bytes)
    }

    fn is_cancelled(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) > 40
    }
}

/// One gives up, one wants no blobs: neither takes away what another is about to use.
#[test]
fn one_who_gives_up_takes_nothing_from_another() {
    let image = image();
    let bytes = archive(&image.oci());
    for backend in BACKENDS {
        for _ in 0..5 {
            let world = World::new(backend);
            let take = |options: ImportOptions, watcher: &dyn Watcher| {
                let input = Input::Stream(Box::new(Cursor::new(bytes.clone())), "a stream".to_owned());
                import(&world.snapshotter, input, &options, watcher).map(|imported| imported.name)
            };
            let dropped = ImportOptions { blobs: Blobs::Dropped, ..ImportOptions::default() };
            std::thread::scope(|scope| {
                let fickle = scope.spawn(|| take(ImportOptions::default(), &Fickle(AtomicU64::new(0))));
                let sparing = scope.spawn(|| take(dropped, &()));
                let steady = scope.spawn(|| {
                    // After the others have begun.
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    take(ImportOptions::default(), &())
                });
                match fickle.join().expect("no panic") {
                    Ok(name) => assert_eq!(name, image.top()),
                    Err(e) => assert_eq!(e.kind(), ErrorKind::Cancelled, "{backend}: {e}"),
                }
                for thread in [sparing, steady] {
                    let name = thread.join().expect("no panic").unwrap_or_else(|e| panic!("{backend}: {e}"));
                    assert_eq!(name, image.top());
                }
            });
            assert_same(&world.tree(&image.top()), &image.tree(), "together");
            world.check("together");
        }
    }
}
