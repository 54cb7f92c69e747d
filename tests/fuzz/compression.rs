//! gzip and zstd: whatever is read, no panic, and no more memory than a window; what was compressed comes back.
//!
//! Output without end is for who reads: [`LIMIT`] here.

use super::harness::fuzz;
use super::random::Random;
use plywood::compress::{Compression, Decoder, Encoder};
use std::io::{Read, Write};

/// Bytes of output that are read of a case.
const LIMIT: u64 = 64 << 10;

fn compressed(bytes: &[u8], how: Compression) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), how, None, 1).expect("an encoder");
    encoder.write_all(bytes).expect("compress");
    encoder.finish().expect("compress")
}

/// Bytes that compress more or less well.
fn plain(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..random.below(6) {
        match random.below(3) {
            0 => bytes.extend(vec![random.number() as u8; random.below(3000)]),
            1 => bytes.extend(random.few_bytes(200)),
            _ => bytes.extend_from_slice(&b"some words again ".repeat(random.below(20))),
        }
    }
    bytes
}

struct State {
    pool: Vec<(Vec<u8>, Vec<u8>)>,
    changed: Vec<u8>,
    out: Vec<u8>,
}

impl State {
    fn new() -> Self {
        let mut random = Random::new(3);
        let mut pool = Vec::new();
        for number in 0..300 {
            let how = [Compression::Gzip, Compression::Zstd, Compression::None][number % 3];
            let plain = plain(&mut random);
            pool.push((compressed(&plain, how), plain));
        }
        // Several members, several frames, and frames that are skipped.
        for _ in 0..100 {
            let how = *random.one_of(&[Compression::Gzip, Compression::Zstd]);
            let (mut all, mut content) = (Vec::new(), Vec::new());
            for _ in 0..1 + random.below(3) {
                let piece = plain(&mut random);
                all.extend(compressed(&piece, how));
                content.extend(piece);
                if how == Compression::Zstd && random.once_in(2) {
                    all.extend([0x50 + random.below(16) as u8, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
                }
            }
            pool.push((all, content));
        }
        // As small as they come, and much in them.
        for how in [Compression::Gzip, Compression::Zstd] {
            let large = vec![0; 1 << 20];
            pool.push((compressed(&large, how), large));
        }
        Self { pool, changed: Vec::new(), out: Vec::new() }
    }
}

fn change(bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.is_empty() {
        return;
    }
    // Headers are where it hurts.
    let end = if random.once_in(2) { bytes.len().min(24) } else { bytes.len() };
    let at = random.below(end);
    match random.below(6) {
        0 | 1 => bytes[at] = random.number() as u8,
        2 => bytes[at] ^= 1 << random.below(8),
        3 => bytes.truncate(at),
        4 => {
            let piece = random.few_bytes(8);
            bytes.splice(at..at, piece);
        }
        _ => drop(bytes.drain(at..(at + 1 + random.below(8)).min(bytes.len()))),
    }
}

fn decoded(bytes: &[u8], out: &mut Vec<u8>) -> std::io::Result<()> {
    out.clear();
    Decoder::new(bytes)?.take(LIMIT).read_to_end(out).map(drop)
}

#[test]
fn compressed_streams_come_back_or_are_refused() {
    fuzz("compression", 600_000, State::new, |state, random| {
        let State { pool, changed, out } = state;
        let (bytes, plain) = random.one_of(pool);
        if random.once_in(16) {
            decoded(bytes, out).expect("what was compressed");
            assert_eq!(out[..], plain[..plain.len().min(LIMIT as usize)]);
            return;
        }
        changed.clone_from(bytes);
        for _ in 0..1 + random.below(3) {
            change(changed, random);
        }
        match decoded(changed, out) {
            Ok(()) => assert!(out.len() as u64 <= LIMIT),
            Err(e) => assert!(e.to_string().len() < 500, "{e}"),
        }
    });
}
