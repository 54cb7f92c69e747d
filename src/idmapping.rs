//! Which id on the host is which id in a container?
//!
//! The labels `containerd.io/snapshot/uidmapping` and `.../gidmapping` say it as `container:host:size[,..]`. Whoever
//! makes a snapshot with them wants its root directory to belong to the container's root; mounts carry the ranges.
//!
//! Pure. A [`Mapping`] that exists is sound: ranges are not empty, end before 2^32 - 1, overlap on neither side, and
//! one of them holds container id 0.

use crate::error::{Error, ErrorKind, Result};
use crate::types::{Labels, quoted};

/// The label that holds the mapping of user ids.
pub const UID_LABEL: &str = "containerd.io/snapshot/uidmapping";

/// The label that holds the mapping of group ids.
pub const GID_LABEL: &str = "containerd.io/snapshot/gidmapping";

/// The end of the ids: 2^32 - 1 means "no id" in chown(2).
const ID_END: u32 = u32::MAX;

/// How many ranges the kernel takes for one user namespace.
const MAX_RANGES: usize = 340;

/// A run of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first id in the container.
    pub container: u32,
    /// The first id on the host.
    pub host: u32,
    /// How many; never 0.
    pub size: u32,
}

/// One of the two mappings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    ranges: Vec<Range>,
    root: u32,
}

impl Mapping {
    /// Reads `container:host:size[,..]`, decimal.
    ///
    /// # Errors
    /// `InvalidArgument` with the text and what is wrong with it.
    pub fn parse(text: &str) -> Result<Mapping> {
        let invalid =
            |cause: String| Error::new(ErrorKind::InvalidArgument, "id mapping", quoted(text), cause);
        let mut ranges: Vec<Range> = Vec::new();
        for word in text.split(',') {
            let range = one(word).ok_or_else(|| {
                invalid(format!(
                    "{} is not CONTAINER:HOST:SIZE, three decimal numbers like 0:100000:65536",
                    quoted(word)
                ))
            })?;
            if range.size == 0 {
                return Err(invalid(format!("{} maps no id: the size must be at least 1", quoted(word))));
            }
            // The room between the first id and the end cannot underflow.
            if range.size > ID_END - range.container || range.size > ID_END - range.host {
                return Err(invalid(format!("{} ends after id {}, the last one", quoted(word), ID_END - 1)));
            }
            if ranges.iter().any(|other| range.overlaps(other)) {
                return Err(invalid(format!("{} overlaps a range before it", quoted(word))));
            }
            if ranges.len() == MAX_RANGES {
                return Err(invalid(format!(
                    "more than {MAX_RANGES} ranges, which is all that the kernel takes"
                )));
            }
            ranges.push(range);
        }
        let root = host_of(&ranges, 0).ok_or_else(|| {
            invalid("no range holds id 0 of the container, so nobody could own the root directory".to_owned())
        })?;
        Ok(Mapping { ranges, root })
    }

    /// The id on the host of an id in the container; `None` if no range holds it.
    pub fn host_of(&self, container: u32) -> Option<u32> {
        host_of(&self.ranges, container)
    }

    /// The id in the container of an id on the host; `None` if no range holds it.
    pub fn container_of(&self, host: u32) -> Option<u32> {
        self.ranges.iter().find_map(|r| translate(host, r.host, r.container, r.size))
    }

    /// The id on the host of the container's root.
    pub fn root(&self) -> u32 {
        self.root
    }

    /// The ranges, in the order in which they were given; at least one.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// The ranges as a mount option of kinds that part them by `:` too, since `,` parts options.
    pub fn joined_by_colons(&self) -> String {
        let ranges = self.ranges.iter().map(|r| format!("{}:{}:{}", r.container, r.host, r.size));
        ranges.collect::<Vec<_>>().join(":")
    }
}

/// The mappings that labels ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mappings {
    /// Of user ids.
    pub uids: Option<Mapping>,
    /// Of group ids.
    pub gids: Option<Mapping>,
}

impl Mappings {
    /// Reads the two labels; without them there is no mapping.
    ///
    /// # Errors
    /// `InvalidArgument` naming the label, if one cannot be read.
    pub fn of_labels(labels: &Labels) -> Result<Mappings> {
        let read = |label: &'static str| {
            let value = labels.get(label).filter(|value| !value.is_empty());
            value.map(|value| Mapping::parse(value).map_err(|e| e.during("label", label))).transpose()
        };
        Ok(Mappings { uids: read(UID_LABEL)?, gids: read(GID_LABEL)? })
    }

    /// User and group on the host of the container's root, if both are mapped: as for containerd, one mapping alone
    /// moves nobody.
    pub fn root(&self) -> Option<(u32, u32)> {
        Some((self.uids.as_ref()?.root(), self.gids.as_ref()?.root()))
    }
}

impl Range {
    fn overlaps(&self, other: &Range) -> bool {
        // No sum passes the end: it was checked for both.
        let meet = |a: u32, a_size: u32, b: u32, b_size: u32| a < b + b_size && b < a + a_size;
        meet(self.container, self.size, other.container, other.size)
            || meet(self.host, self.size, other.host, other.size)
    }
}

fn one(word: &str) -> Option<Range> {
    let mut numbers = word.split(':').map(decimal);
    let range = Range { container: numbers.next()??, host: numbers.next()??, size: numbers.next()?? };
    numbers.next().is_none().then_some(range)
}

/// A number below 2^32 - 1, of digits alone: `parse` would take a sign.
fn decimal(word: &str) -> Option<u32> {
    let digits = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| word.parse().ok()).flatten().filter(|&number: &u32| number != ID_END)
}

fn host_of(ranges: &[Range], container: u32) -> Option<u32> {
    ranges.iter().find_map(|r| translate(container, r.container, r.host, r.size))
}

fn translate(id: u32, from: u32, to: u32, size: u32) -> Option<u32> {
    let offset = id.checked_sub(from)?;
    (offset < size).then(|| to + offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(text: &str) -> ErrorKind {
        match Mapping::parse(text) {
            Ok(mapping) => panic!("{text:?} was read as {mapping:?}"),
            Err(error) => error.kind(),
        }
    }

    #[test]
    fn a_mapping_translates_both_ways() {
        // text, container id, host id
        let cases = [
            ("0:0:1", 0, Some(0)),
            ("0:0:1", 1, None),
            ("0:1000:1,1:100000:65536", 0, Some(1000)),
            ("0:1000:1,1:100000:65536", 1, Some(100_000)),
            ("0:1000:1,1:100000:65536", 65_536, Some(165_535)),
            ("0:1000:1,1:100000:65536", 65_537, None),
            ("5:50:5,0:100:5", 0, Some(100)),
            ("5:50:5,0:100:5", 9, Some(54)),
            ("0:0:4294967294", 4_294_967_293, Some(4_294_967_293)),
            ("0:0:4294967294", u32::MAX, None),
            ("0:1:4294967294", 4_294_967_293, Some(4_294_967_294)),
            ("0:4294967294:1", 0, Some(4_294_967_294)),
            ("00:007:01", 0, Some(7)),
        ];
        for (text, container, host) in cases {
            let mapping = Mapping::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(mapping.host_of(container), host, "{text} {container}");
            if let Some(host) = host {
                assert_eq!(mapping.container_of(host), Some(container), "{text} {host}");
            }
        }
    }

    #[test]
    fn what_is_no_mapping_is_refused() {
        let cases = [
            "",
            ",",
            "0:0:1,",
            ",0:0:1",
            "0",
            "0:0",
            "0:0:",
            "0:0:1:1",
            ":0:1",
            "a:0:1",
            "0:0:0",
            "-0:0:1",
            "+0:0:1",
            " 0:0:1",
            "0: 0:1",
            "0x0:0:1",
            "0:0:1;1:1:1",
            "4294967295:0:1",
            "0:4294967295:1",
            "0:4294967296:1",
            "0:18446744073709551616:1",
            "0:0:4294967295",
            "0:0:4294967296",
            // Ends that pass the last id, also where the sum would wrap around.
            "2:0:4294967294,0:4294967294:1",
            "0:2:4294967294",
            "0:4294967294:2",
            // Nobody for id 0.
            "1:1000:10",
            // Overlaps on either side.
            "0:0:10,9:100:1",
            "0:0:10,100:9:1",
            "0:0:1,0:0:1",
            "9:100:1,0:0:10",
        ];
        for text in cases {
            assert_eq!(kind_of(text), ErrorKind::InvalidArgument, "{text:?}");
        }
        let many = |n: usize| (0..n).map(|i| format!("{i}:{i}:1")).collect::<Vec<_>>().join(",");
        assert!(Mapping::parse(&many(MAX_RANGES)).is_ok());
        assert_eq!(kind_of(&many(MAX_RANGES + 1)), ErrorKind::InvalidArgument);
    }

    #[test]
    fn labels_move_the_root_directory_only_together() {
        let of = |labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            Mappings::of_labels(&labels)
        };
        type Case<'a> = (&'a [(&'a str, &'a str)], Option<(u32, u32)>);
        let cases: &[Case<'_>] = &[
            (&[], None),
            (&[("other", "0:0:1")], None),
            (&[(UID_LABEL, "0:7:1")], None),
            (&[(UID_LABEL, "0:7:1"), (GID_LABEL, "")], None),
            (&[(UID_LABEL, "0:7:1"), (GID_LABEL, "1:1:1,0:8:1")], Some((7, 8))),
        ];
        for (labels, root) in cases {
            assert_eq!(of(labels).map(|m| m.root()).ok(), Some(*root), "{labels:?}");
        }
        let error = of(&[(GID_LABEL, "1:1:1")]).expect_err("nobody for id 0");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().starts_with(&format!("label: {GID_LABEL}: ")), "{error}");
    }

    #[test]
    fn mount_options_get_a_mapping_without_commas() {
        let mapping = Mapping::parse("0:1000:1,1:100000:65536").expect("sound");
        assert_eq!(mapping.joined_by_colons(), "0:1000:1:1:100000:65536");
    }
}
