//! Whole archives out of bytes and into bytes.

use plywood::archive::{Entry, Limits, Reader, Segment, Writer};
use plywood::error::Result;

/// A member with its content, holes as zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub entry: Entry,
    pub content: Vec<u8>,
    pub segments: Vec<Segment>,
}

/// Of a file that says to be larger only so much is kept.
pub const MOST: usize = 1 << 20;

/// All members, and the error that ended them.
pub fn read_some(archive: &[u8]) -> (Vec<Member>, Result<()>) {
    let mut members = Vec::new();
    let mut reader = Reader::new(archive, Limits::default());
    let mut all = || -> Result<()> {
        while let Some(entry) = reader.next()? {
            let mut content = vec![0; (entry.size_bytes as usize).min(MOST)];
            let mut segments = Vec::new();
            let at = members.len();
            members.push(Member { entry, content: Vec::new(), segments: Vec::new() });
            let mut rest = [0; 1000];
            while let Some(segment) = reader.next_segment()? {
                segments.push(segment);
                let mut offset = segment.offset_bytes as usize;
                loop {
                    let read = reader.read(&mut rest)?;
                    if read == 0 {
                        break;
                    }
                    let end = (offset + read).min(content.len());
                    if offset < end {
                        content[offset..end].copy_from_slice(&rest[..end - offset]);
                    }
                    offset += read;
                }
                assert_eq!(offset as u64, segment.offset_bytes + segment.length_bytes);
            }
            (members[at].content, members[at].segments) = (content, segments);
        }
        Ok(())
    };
    let ended = all();
    (members, ended)
}

/// All members of an archive that is right.
pub fn read(archive: &[u8]) -> Vec<Member> {
    let (members, ended) = read_some(archive);
    ended.unwrap_or_else(|e| panic!("{e}, after {members:#?}"));
    members
}

/// The archive of some entries.
pub fn write(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, content) in entries {
        writer.entry(entry).expect("an entry that can be written");
        writer.content(content).expect("its content");
    }
    writer.finish().expect("an end")
}
