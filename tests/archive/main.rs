//! Archives against those who make and read them: Go (as containerd), GNU tar, bsdtar; and archives that are broken.
//!
//! Go, GNU tar and bsdtar have to be there: Debian's packages golang-go, tar and libarchive-tools.

#[path = "../fuzz/archives.rs"]
mod archives;
mod broken;
#[path = "../fuzz/entries.rs"]
mod entries;
mod go;
mod members;
#[path = "../fuzz/random.rs"]
mod random;
mod reading;
mod tools;
mod writing;
