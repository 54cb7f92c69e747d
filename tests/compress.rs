//! Compression of layers: what others make is read, what is made others read, and the bytes are always the same.

use plywood::compress::{Compression, Decoder, Encoder, Hasher, HashingReader, decoder};
use plywood::error::{Error, ErrorKind};
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

/// Bytes that compress a little: words in an order that a small generator makes.
fn sample(size: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = Vec::with_capacity(size + 64);
    while bytes.len() < size {
        match random.below(4) {
            0 => bytes.extend((0..random.below(40)).map(|_| random.next() as u8)),
            1 => bytes.extend(std::iter::repeat_n(0, random.below(300))),
            _ => bytes.extend(format!("usr/share/doc/package-{}/copyright\n", random.below(500)).bytes()),
        }
    }
    bytes.truncate(size);
    bytes
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }
}

fn encode(
    bytes: &[u8],
    compression: Compression,
    level: Option<i32>,
    threads: usize,
    piece: usize,
) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), compression, level, threads).expect("an encoder");
    for piece in bytes.chunks(piece.max(1)) {
        encoder.write_all(piece).expect("write");
    }
    assert_eq!(encoder.input_bytes(), bytes.len() as u64);
    encoder.finish().expect("finish")
}

fn decode(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut decoded = Vec::new();
    Decoder::new(bytes).map_err(io::Error::from)?.read_to_end(&mut decoded)?;
    Ok(decoded)
}

fn kind(failed: io::Error) -> ErrorKind {
    Error::io("test", "stream", failed).kind()
}

/// What a command makes of its input.
fn filter(command: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(command)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("the test needs {command}: {e}"));
    let mut stdin = child.stdin.take().expect("stdin");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).expect("write to command"));
        child.wait_with_output().expect("output")
    });
    assert!(output.status.success(), "{command} {args:?}");
    output.stdout
}

/// Sizes around the borders of blocks, dictionaries and jobs.
const SIZES: [usize; 12] =
    [0, 1, 100, 32 * 1024, 131_071, 131_072, 131_073, 163_840, 262_144, 1_000_000, 2_097_152, 2_500_001];

#[test]
fn what_is_encoded_is_decoded_by_us_and_by_the_commands() {
    for size in SIZES {
        let bytes = sample(size, 1);
        for compression in Compression::ALL {
            let encoded = encode(&bytes, compression, None, 2, 100_000);
            assert!(decode(&encoded).expect("decodes") == bytes, "{compression} {size}");
            match compression {
                Compression::None => assert!(encoded == bytes),
                Compression::Gzip => {
                    assert!(filter("gzip", &["-dc"], &encoded) == bytes, "gzip {size}");
                    let mut one = Vec::new();
                    flate2::read::GzDecoder::new(&encoded[..]).read_to_end(&mut one).expect("one member");
                    assert!(one == bytes, "it is one member");
                }
                Compression::Zstd => assert!(filter("zstd", &["-dcq"], &encoded) == bytes, "zstd {size}"),
            }
        }
    }
}

#[test]
fn what_the_commands_encode_is_decoded() {
    for size in SIZES {
        let bytes = sample(size, 2);
        for level in ["-1", "-9"] {
            assert!(decode(&filter("gzip", &["-c", level], &bytes)).expect("decodes") == bytes, "{size}");
        }
        for args in [&["-cq"][..], &["-cq", "--no-check", "-19"], &["-cq", "--long=27", "-1"]] {
            assert!(decode(&filter("zstd", args, &bytes)).expect("decodes") == bytes, "{args:?} {size}");
        }
    }
}

#[test]
fn the_bytes_are_the_same_for_every_number_of_threads_and_every_way_of_writing() {
    for size in [0, 1, 131_072, 131_073, 1_700_000, 5_000_001] {
        let bytes = sample(size, 3);
        for (compression, level) in [
            (Compression::Gzip, None),
            (Compression::Gzip, Some(0)),
            (Compression::Gzip, Some(1)),
            (Compression::Gzip, Some(9)),
            (Compression::Zstd, None),
            (Compression::Zstd, Some(1)),
            (Compression::Zstd, Some(9)),
        ] {
            if size > 2_000_000 && compression == Compression::Gzip {
                continue;
            }
            let first = encode(&bytes, compression, level, 1, usize::MAX);
            for (threads, piece) in [(0, 64 * 1024), (1, 777), (2, 1_000_003), (5, 131_073)] {
                let other = encode(&bytes, compression, level, threads, piece);
                assert!(
                    first == other,
                    "{compression} {level:?}: {size} bytes, {threads} threads, pieces of {piece}"
                );
            }
        }
    }
}

#[test]
fn flushing_and_writing_nothing_changes_no_byte() {
    let bytes = sample(700_000, 4);
    for compression in Compression::ALL {
        let mut encoder = Encoder::new(Vec::new(), compression, None, 2).expect("an encoder");
        for piece in bytes.chunks(9999) {
            encoder.flush().expect("flush");
            encoder.write_all(&[]).expect("nothing");
            encoder.write_all(piece).expect("write");
        }
        assert!(encoder.finish().expect("finish") == encode(&bytes, compression, None, 3, usize::MAX));
    }
}

#[test]
fn the_header_of_gzip_has_neither_name_nor_time() {
    for (level, extra) in [(None, 0), (Some(1), 4), (Some(9), 2)] {
        let encoded = encode(b"x", Compression::Gzip, level, 1, 1);
        assert_eq!(encoded[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, extra, 255]);
    }
}

#[test]
fn levels_that_there_are_not_are_refused() {
    for (compression, level) in [
        (Compression::None, 1),
        (Compression::Gzip, -1),
        (Compression::Gzip, 10),
        (Compression::Zstd, 0),
        (Compression::Zstd, 20),
    ] {
        let refused = Encoder::new(Vec::new(), compression, Some(level), 1).err().expect("refused");
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    }
}

#[test]
fn members_and_frames_are_one_stream() {
    let (a, b) = (sample(200_000, 5), sample(3, 6));
    for compression in [Compression::Gzip, Compression::Zstd] {
        let encoded = |bytes: &[u8]| encode(bytes, compression, None, 1, usize::MAX);
        let all = [encoded(&a), encoded(&[]), encoded(&b), encoded(&[]), encoded(&a)].concat();
        assert!(decode(&all).expect("decodes") == [&a[..], &b[..], &a[..]].concat(), "{compression}");
        // None of them is a call upon the one before.
        let many = encoded(&[]).repeat(100_000);
        assert!(decode(&many).expect("decodes").is_empty(), "{compression}");
    }
}

#[test]
fn frames_that_are_skipped_may_stand_anywhere() {
    let bytes = sample(1000, 7);
    let frame = encode(&bytes, Compression::Zstd, None, 1, usize::MAX);
    for number in 0x50..=0x5f {
        let skipped = [&[number, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let all = [&skipped[..], &frame, &skipped, &skipped, &frame, &skipped].concat();
        assert!(decode(&all).expect("decodes") == bytes.repeat(2));
        assert!(decode(&skipped).expect("decodes").is_empty());
    }
}

#[test]
fn nothing_is_an_empty_stream() {
    assert!(decode(&[]).expect("decodes").is_empty());
    let mut ahead = decoder(io::empty()).expect("a decoder");
    assert_eq!(ahead.read(&mut [0; 9]).expect("the end"), 0);
}

#[test]
fn a_stream_that_is_cut_off_anywhere_is_corrupt_and_never_short() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        for size in [0, 1, 1000] {
            let bytes = sample(size, 8);
            let one = encode(&bytes, compression, None, 1, usize::MAX);
            let two = [&one[..], &one[..]].concat();
            for end in 1..two.len() {
                if end == one.len() {
                    continue;
                }
                let failed = decode(&two[..end]).expect_err("it is cut off");
                let text = failed.to_string();
                assert_eq!(kind(failed), ErrorKind::Corrupt, "{compression}, cut at {end}: {text}");
                assert!(text.contains("cut off"), "{compression}, cut at {end}: {text}");
            }
        }
    }
}

#[test]
fn what_follows_the_last_member_or_frame_is_corrupt_be_it_zeros() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        let encoded = encode(b"hello", compression, None, 1, usize::MAX);
        for tail in [&[0][..], &[0; 512], b"garbage and more of it", &[0x1f], &[0x22, 0xb5, 0x2f, 0xfd, 0]] {
            let failed = decode(&[&encoded[..], tail].concat()).expect_err("something follows");
            assert_eq!(kind(failed), ErrorKind::Corrupt, "{compression} {tail:x?}");
        }
    }
}

#[test]
fn after_a_failure_there_is_no_more() {
    let mut encoded = encode(&sample(1000, 9), Compression::Gzip, None, 1, usize::MAX);
    let at = encoded.len() - 6;
    encoded[at] ^= 1;
    encoded.extend(encode(b"behind", Compression::Gzip, None, 1, usize::MAX));
    let mut decoder = Decoder::new(&encoded[..]).expect("a decoder");
    let mut bytes = Vec::new();
    assert!(decoder.read_to_end(&mut bytes).is_err(), "its checksum is wrong");
    assert_eq!(bytes.len(), 1000);
    for _ in 0..3 {
        assert_eq!(kind(decoder.read(&mut [0; 10]).expect_err("it failed")), ErrorKind::Corrupt);
    }
}

#[test]
fn a_frame_that_wants_a_larger_window_than_128_mib_is_refused() {
    let bytes = sample(1_000_000, 10);
    let encoded = filter("zstd", &["-cq", "-1", "--long=28", "--no-check"], &bytes);
    let failed = decode(&encoded).expect_err("its window is too large");
    assert_eq!(kind(failed), ErrorKind::Corrupt);
}

#[test]
fn compressions_of_others_are_named() {
    let cases: [(&[u8], &str); 3] =
        [(b"\xfd7zXZ\0\0\x04", "xz"), (b"BZh91AY&SY12345", "bzip2"), (&[4, 0x22, 0x4d, 0x18, 0x64], "lz4")];
    for (bytes, name) in cases {
        let failed = Decoder::new(bytes).err().expect("not supported");
        assert_eq!(failed.kind(), ErrorKind::Unsupported);
        assert!(failed.to_string().contains(name), "{failed}");
    }
    assert_eq!(decode(b"BZh9 is a fine name of a file").expect("a plain stream").len(), 29);
}

#[test]
fn a_bomb_is_decoded_as_far_as_it_is_read() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        let mut encoder = Encoder::new(Vec::new(), compression, None, 2).expect("an encoder");
        let zeros = vec![0; 1 << 20];
        for _ in 0..200 {
            encoder.write_all(&zeros).expect("write");
        }
        let bomb = encoder.finish().expect("finish");
        assert!(bomb.len() < 500_000, "{}", bomb.len());
        let mut ahead = decoder(io::Cursor::new(bomb)).expect("a decoder");
        let limit = 10_000_000;
        assert_eq!(io::copy(&mut (&mut ahead).take(limit), &mut io::sink()).expect("copy"), limit);
        let below = ahead.into_inner().expect("the thread ended");
        assert!(below.taken_bytes() < 200_000, "{}", below.taken_bytes());
    }
}

#[test]
fn failures_of_the_reader_below_are_passed_on_as_they_are() {
    struct Failing<'a>(&'a [u8], io::ErrorKind);
    impl Read for Failing<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() { Err(self.1.into()) } else { self.0.read(out) }
        }
    }
    let bytes = sample(100_000, 11);
    for compression in Compression::ALL {
        let encoded = encode(&bytes, compression, None, 1, usize::MAX);
        for below in [io::ErrorKind::UnexpectedEof, io::ErrorKind::InvalidInput, io::ErrorKind::TimedOut] {
            let mut decoder = Decoder::new(Failing(&encoded[..encoded.len() - 9], below)).expect("a decoder");
            let failed = decoder.read_to_end(&mut Vec::new()).expect_err("it fails");
            assert_eq!(failed.kind(), below, "{compression}");
            assert!(failed.get_ref().is_none(), "{compression}: {failed}");
        }
    }
}

#[test]
fn failures_of_the_writer_below_end_the_stream() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            let n = bytes.len().min(self.0);
            self.0 -= n;
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let bytes = sample(4_000_000, 12);
    for compression in Compression::ALL {
        let mut encoder = Encoder::new(Full(10_000), compression, None, 3).expect("an encoder");
        let written = encoder.write_all(&bytes).map_err(|e| Error::io("write", "", e));
        let failed = match written {
            Err(failed) => {
                assert!(encoder.write_all(b"more").is_err());
                assert!(encoder.finish().is_err(), "{compression}: nobody takes it for whole");
                failed
            }
            Ok(()) => encoder.finish().err().expect("it is full"),
        };
        assert_eq!(failed.kind(), ErrorKind::NoSpace, "{compression}: {failed}");
    }
}

#[test]
fn an_encoder_that_is_dropped_leaves_no_thread_and_no_whole_stream() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        for size in [0, 10, 3_000_000] {
            let mut out = Vec::new();
            let mut encoder = Encoder::new(&mut out, compression, None, 4).expect("an encoder");
            encoder.write_all(&sample(size, 13)).expect("write");
            drop(encoder);
            assert!(out.is_empty() || decode(&out).is_err());
        }
    }
}

#[test]
fn digests_of_both_sides_are_known_at_the_end() {
    let bytes = sample(3_000_000, 14);
    let encoded = encode(&bytes, Compression::Gzip, None, 2, usize::MAX);
    let compressed = HashingReader::new(io::Cursor::new(encoded.clone()), Hasher::new());
    let ahead = decoder(compressed).expect("a decoder");
    let mut plain = HashingReader::new(ahead, Hasher::in_thread());
    io::copy(&mut plain, &mut io::sink()).expect("decodes");
    let (ahead, diff_id, size) = plain.finish().expect("digest");
    let (_, digest, compressed_size) =
        ahead.into_inner().expect("decoder").into_inner().finish().expect("digest");
    let of = |bytes: &[u8]| {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        hasher.finish().expect("digest")
    };
    assert_eq!((diff_id, size), of(&bytes));
    assert_eq!((digest, compressed_size), of(&encoded));
}

/// Changed anywhere, a stream decodes to what it was or fails; it never panics and never makes more than it could.
#[test]
fn changed_streams_fail_or_decode_and_never_panic() {
    let rounds = std::env::var("PLYWOOD_FUZZ_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let mut random = Random(15);
    let bytes = sample(5000, 16);
    let seeds: Vec<Vec<u8>> = [Compression::Gzip, Compression::Zstd]
        .into_iter()
        .flat_map(|c| {
            let one = encode(&bytes, c, Some(1), 1, usize::MAX);
            [one.clone(), [&one[..], &encode(&[], c, None, 1, 1), &one].concat()]
        })
        .collect();
    for round in 0..rounds {
        let mut stream = seeds[random.below(seeds.len())].clone();
        for _ in 0..=random.below(4) {
            let at = random.below(stream.len());
            match random.below(4) {
                0 => stream[at] ^= 1 << random.below(8),
                1 => stream[at] = random.next() as u8,
                2 => stream.truncate(at + 1),
                _ => {
                    let piece = stream[at..(at + random.below(20)).min(stream.len())].to_vec();
                    stream.splice(at..at, piece);
                }
            }
        }
        let Ok(decoder) = Decoder::new(&stream[..]) else { continue };
        let limit = 1 << 22;
        match io::copy(&mut decoder.take(limit), &mut io::sink()) {
            Ok(n) => assert!(n <= limit),
            Err(failed) => assert_eq!(kind(failed), ErrorKind::Corrupt, "round {round}"),
        }
    }
}
