//! Which number an inode shows.
//!
//! A number is a function of the real inode, so it is the same at every mount: 8 bits say which device, 56
//! bits are the real number. On one device it *is* the real number. Real numbers that do not fit go to a
//! range of their own, by hash. A copied-up file keeps the number of what it was copied from, which its
//! origin mark tells.

use crate::layer::marks::Origin;
use crate::types::Ino;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;

const DEVICE_BITS: u32 = 8;
const INODE_BITS: u32 = 64 - DEVICE_BITS;
const INODE_MASK: u64 = (1 << INODE_BITS) - 1;
/// The device number under which hashed numbers stand.
const HASHED: u64 = (1 << DEVICE_BITS) - 1;
/// No device has this number: the kernel's have 12 bits for the major and 20 for the minor part.
const NO_DEVICE: u64 = u64::MAX;

/// Gives numbers to real inodes.
pub struct Numbers {
    /// The device whose numbers are shown as they are.
    main: u64,
    /// All devices in the order in which they were seen; the main one first.
    devices: RwLock<Vec<Disk>>,
    /// Which real inode has which hashed number.
    hashed: Mutex<HashMap<u64, (u64, u64)>>,
}

#[derive(Clone, Copy)]
struct Disk {
    dev: u64,
    uuid: Option<[u8; 16]>,
}

impl Numbers {
    /// Numbers for layers on these devices, the upper's (or the top one's) first.
    pub fn new(devices: impl IntoIterator<Item = (u64, Option<[u8; 16]>)>) -> Self {
        let mut known: Vec<Disk> = Vec::new();
        for (dev, uuid) in devices {
            if !known.iter().any(|d| d.dev == dev) {
                known.push(Disk { dev, uuid });
            }
        }
        let main = known.first().map_or(0, |d| d.dev);
        Numbers { main, devices: RwLock::new(known), hashed: Mutex::new(HashMap::new()) }
    }

    /// The number of the real inode `ino` on device `dev`.
    pub fn number(&self, dev: u64, ino: u64) -> Ino {
        // 0 means "nothing" and 1 is the root in the FUSE protocol.
        if dev == self.main && ino > 1 && ino <= INODE_MASK {
            return Ino(ino);
        }
        match self.device(dev) {
            Some(device) if ino <= INODE_MASK && (device > 0 || ino > 1) => Ino((device << INODE_BITS) | ino),
            _ => self.alternative(dev, ino),
        }
    }

    fn device(&self, dev: u64) -> Option<u64> {
        let find = |devices: &[Disk]| devices.iter().position(|d| d.dev == dev);
        if let Some(at) = find(&self.devices.read()) {
            return Some(at as u64);
        }
        let mut devices = self.devices.write();
        let at = find(&devices).unwrap_or_else(|| {
            devices.push(Disk { dev, uuid: None });
            devices.len() - 1
        });
        // A list that only grows: what was handed out stays. Beyond its end numbers are hashed.
        if at as u64 >= HASHED {
            devices.truncate(HASHED as usize);
            return None;
        }
        Some(at as u64)
    }

    /// The number of the inode that `origin` names; `None` if it is on none of our devices, on several, or
    /// if the handle is of a kind that is not known.
    pub fn of_origin(&self, origin: &Origin) -> Option<Ino> {
        let ino = origin.inode()?;
        let devices = self.devices.read();
        let mut fitting = devices.iter().filter(|d| d.uuid == Some(origin.uuid));
        let device = match (fitting.next(), fitting.next()) {
            (Some(one), None) => *one,
            (None, _) if devices.len() == 1 && devices[0].uuid.is_none() => devices[0],
            _ => return None,
        };
        drop(devices);
        Some(self.number(device.dev, ino))
    }

    /// A number that no inode has, for a name that leads to none: the one with this hash in this directory.
    pub fn of_nothing(&self, dir: Ino, name_hash: u64) -> Ino {
        self.alternative(NO_DEVICE, mix(dir.0) ^ name_hash)
    }

    /// A number for a real inode whose own number is taken or does not fit.
    pub fn alternative(&self, dev: u64, ino: u64) -> Ino {
        let mut hashed = self.hashed.lock();
        let mut hash = mix(ino ^ mix(dev));
        loop {
            let number = (HASHED << INODE_BITS) | (hash & INODE_MASK);
            match hashed.entry(number).or_insert((dev, ino)) {
                owner if *owner == (dev, ino) => return Ino(number),
                _ => hash = mix(hash.wrapping_add(1)),
            }
        }
    }
}

/// Spreads the bits of a number (the finalizer of splitmix64).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_device_shows_its_own_numbers_except_the_reserved_ones() {
        let numbers = Numbers::new([(7, None)]);
        assert_eq!(numbers.number(7, 2), Ino(2));
        assert_eq!(numbers.number(7, INODE_MASK), Ino(INODE_MASK));
        let odd: Vec<Ino> = [0, 1, INODE_MASK + 1, u64::MAX].map(|i| numbers.number(7, i)).to_vec();
        for (at, ino) in odd.iter().enumerate() {
            assert!(ino.0 > 1);
            assert!(!odd[..at].contains(ino), "numbers must be unique");
            assert_eq!(*ino, numbers.number(7, [0, 1, INODE_MASK + 1, u64::MAX][at]));
        }
    }

    #[test]
    fn devices_do_not_share_numbers_and_too_many_of_them_are_hashed() {
        let numbers = Numbers::new([(7, None), (8, None)]);
        let mut seen = std::collections::HashSet::new();
        for dev in 0..600 {
            for ino in [1, 2, 99] {
                assert!(seen.insert(numbers.number(dev, ino)), "{dev} {ino}");
            }
        }
        assert_eq!(numbers.number(8, 5), Ino((1 << INODE_BITS) | 5));
    }

    #[test]
    fn an_origin_counts_only_on_a_known_disk() {
        let numbers = Numbers::new([(7, Some([1; 16])), (8, Some([2; 16]))]);
        let origin = |uuid| Origin { uuid, kind: 1, handle: vec![9, 0, 0, 0, 0, 0, 0, 0] };
        assert_eq!(numbers.of_origin(&origin([1; 16])), Some(Ino(9)));
        assert_eq!(numbers.of_origin(&origin([2; 16])), Some(numbers.number(8, 9)));
        assert_eq!(numbers.of_origin(&origin([3; 16])), None);
    }
}
