//! Tries a program's effect on a tree without touching the tree: `cargo run --example try_overlay`.

use plywood_fuse::overlay::{Overlay, Settings};
use plywood_fuse::types::Identity;
use plywood_fuse::view::{Open, View};
use std::error::Error;
use std::fs;
use std::io::Write;
use std::sync::Arc;

fn main() -> Result<(), Box<dyn Error>> {
    let base = std::env::temp_dir().join(format!("try-overlay-{}", std::process::id()));
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| base.join(name));
    for dir in [&lower, &upper, &work] {
        fs::create_dir_all(dir)?;
    }
    fs::write(lower.join("config"), "colour = red\n")?;
    fs::write(lower.join("old"), "no longer needed\n")?;

    // The tree as root sees it; nobody has to be root for that.
    let overlay = Arc::new(Overlay::open(&[base.join("lower")], Some((&upper, &work)), Settings::default())?);
    let root = View::new(Arc::clone(&overlay), Identity::root());
    root.open("config", Open::append())?.write_all(b"size = 3\n")?;
    root.remove_file("old")?;
    root.create_dir("home")?;
    root.chown("home", Some(1000), Some(1000))?;

    // And as a user sees it.
    let user = root.as_user(Identity::user(1000, 1000));
    user.write("home/notes", "mine\n")?;
    let refused = user.write("config", "all gone");
    println!("a user writes config: {}", refused.expect_err("it belongs to root"));

    for change in root.changes()? {
        println!("{:?} {}", change.kind, String::from_utf8_lossy(&change.path));
    }
    println!("the layer below still has {} names", fs::read_dir(&lower)?.count());
    drop((user, root, overlay));
    fs::remove_dir_all(&base)?;
    Ok(())
}
