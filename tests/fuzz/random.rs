//! Numbers that look random and are the same for the same seed.

/// A generator (splitmix64): quick, and good enough to choose with.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below a number that is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (((self.number() >> 32) * end as u64) >> 32) as usize
    }

    /// True once in so many times.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of several.
    pub fn one_of<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// So many bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.number() as u8).collect()
    }

    /// Fewer bytes than that.
    pub fn few_bytes(&mut self, end: usize) -> Vec<u8> {
        let length = self.below(end);
        self.bytes(length)
    }

    /// A number of which small ones, powers of two and their neighbours are likely.
    pub fn edge(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(10) as u64,
            1 => (1u64 << self.below(64)).wrapping_add(self.below(3) as u64).wrapping_sub(1),
            2 => self.number() >> self.below(64),
            _ => *self.one_of(&[0o777, 0o7777, 511, 512, 513, 4096, 65_534, u64::MAX, i64::MAX as u64]),
        }
    }
}
