//! What the fuzz targets have in common: the references and the harness of the tests, and inputs that bring options along.

#[path = "../../tests/dialogue/harness.rs"]
pub mod harness;
#[path = "../../tests/common/random.rs"]
pub mod random;
#[path = "../../tests/data/reference.rs"]
pub mod reference;
#[path = "../../tests/common/trace.rs"]
pub mod trace;

use random::Random;

/// An input: its first line is options, and what is behind it the octets that they are for. So a person can write one,
/// and the fuzzer changes either without moving the other.
pub struct Input<'a> {
    pub options: &'a [u8],
    pub octets: &'a [u8],
}

impl<'a> Input<'a> {
    pub fn new(input: &'a [u8]) -> Self {
        let end = input.iter().position(|&octet| octet == b'\n').unwrap_or(input.len());
        Self { options: &input[..end], octets: input.get(end + 1..).unwrap_or_default() }
    }

    /// Whether an option is given: a letter.
    pub fn has(&self, letter: u8) -> bool {
        self.options.contains(&letter)
    }

    /// Numbers that depend on all of the options and on nothing else.
    pub fn random(&self) -> Random {
        let seed = self.options.iter().fold(0, |seed: u64, &octet| seed.wrapping_mul(257) + u64::from(octet) + 1);
        Random::new(seed)
    }
}

/// The ways in which `octets` may come: at once, one by one, and twice in parts that `random` chooses.
pub fn ways<'a>(octets: &'a [u8], random: &mut Random) -> [(&'static str, Vec<&'a [u8]>); 4] {
    [
        ("at once", vec![octets]),
        ("one octet at a time", octets.chunks(1).collect()),
        ("in parts", parts(octets, random)),
        ("in other parts", parts(octets, random)),
    ]
}

/// Cuts `octets` anyhow.
pub fn parts<'a>(mut octets: &'a [u8], random: &mut Random) -> Vec<&'a [u8]> {
    let most = random.choose(&[2, 5, 30, 300, 3000]);
    let mut parts = Vec::new();
    while !octets.is_empty() {
        let (part, rest) = octets.split_at(octets.len().min(1 + random.below(most)));
        parts.push(part);
        octets = rest;
    }
    parts
}
