//! Given up anywhere in the middle.

use super::support::Tar;
use super::world::*;
use plywood::compress::Compression;
use plywood::error::ErrorKind;
use plywood::image::import::{ImportOptions, Input, import};
use plywood::image::watch::{Task, Watcher};
use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Gives up when it has been asked so often.
struct After {
    questions: u64,
    asked: AtomicU64,
}

impl Watcher for After {
    fn begin(&self, what: &str, total_bytes: Option<u64>) -> Arc<dyn Task> {
        ().begin(what, total_bytes)
    }

    fn is_cancelled(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed) >= self.questions
    }
}

fn after(questions: u64) -> After {
    After { questions, asked: AtomicU64::new(0) }
}

/// Gives an import up at each question, later at some of them, until one is not reached.
fn at_every_question(image: &Image, name: &str, bytes: &[u8], options: &ImportOptions) {
    for backend in BACKENDS {
        let world = World::new(backend);
        let (mut questions, mut given_up) = (0, 0);
        loop {
            let watcher = after(questions);
            let input = Input::Stream(Box::new(Cursor::new(bytes.to_vec())), "a stream".to_owned());
            let what = format!("given up after {questions} questions");
            match import(&world.snapshotter, input, options, &watcher) {
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Cancelled, "{backend}: {what}: {e}");
                    world.check_failed(&what, image);
                    given_up += 1;
                }
                Ok(imported) => {
                    assert_eq!(imported.name, name);
                    // Somebody who gives up when all is done is not heard.
                    world.check(&what);
                    break;
                }
            }
            world.empty();
            world.check(&what);
            questions += 1 + questions / 20;
        }
        assert!(given_up > 5, "{backend}: {given_up}");
    }
}

#[test]
fn an_image_that_is_given_up() {
    let mut tars = three_layers();
    tars.push(Tar::new().link("usr/bin/true", "needs-lower").file("large", vec![3; 400_000]));
    let image = Image::packed_as(&tars, &[Compression::Gzip, Compression::None]);
    let options = ImportOptions::default();
    at_every_question(&image, &image.top(), &archive(&image.oci()), &options);
    at_every_question(&image, &image.top(), &archive(&image.docker()), &options);
}

#[test]
fn a_root_file_system_that_is_given_up() {
    let mut tar = Tar::new();
    for n in 0..30 {
        tar = tar.file(format!("f{n}"), vec![n; 30_000]);
    }
    let image = Image::new(&[tar]);
    at_every_question(&image, &image.top(), &image.layers[0].blob, &ImportOptions::default());
}

#[test]
fn an_export_that_is_given_up() {
    let image = Image::new(&three_layers());
    for backend in BACKENDS {
        let world = World::new(backend);
        let options =
            ImportOptions { blobs: plywood::image::unpack::Blobs::Dropped, ..ImportOptions::default() };
        world.stream(archive(&image.docker()), &options).unwrap_or_else(|e| panic!("{e}"));
        let mut given_up = 0;
        for questions in 0.. {
            let (mut out, export) = (Vec::new(), plywood::image::export::export);
            match export(&world.snapshotter, &image.top(), &mut out, &Default::default(), &after(questions)) {
                Ok(_) => break,
                Err(e) => assert_eq!(e.kind(), ErrorKind::Cancelled, "{e}"),
            }
            world.check("given up");
            assert_eq!(world.unused_blobs(), []);
            given_up += 1;
        }
        assert!(given_up > 5, "{backend}: {given_up}");
        super::support::assert_same(&world.tree(&image.top()), &image.tree(), "afterwards");
    }
}
