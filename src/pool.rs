//! Buffers that are lent while octets are pending, so that an idle connection owns none.

use crate::config::{BLOCK_OCTETS, SMALL_OCTETS};

/// Small buffers that are kept for the next peer that needs one.
const SMALL_KEPT_MAX: usize = 128;

/// Lends buffers of two sizes, blocks and small ones, and keeps those that came back.
#[derive(Debug, Default)]
pub struct Buffers {
    blocks: Vec<Vec<u8>>,
    small: Vec<Vec<u8>>,
    /// Blocks that are lent; how many may be is for the borrower to ask first.
    pub blocks_lent: usize,
}

impl Buffers {
    /// Gives `buffer` room for so many octets, if it has none.
    pub fn lend(&mut self, buffer: &mut Vec<u8>, octets: usize) {
        if buffer.capacity() == 0 && octets <= SMALL_OCTETS {
            *buffer = self.small.pop().unwrap_or_else(|| Vec::with_capacity(SMALL_OCTETS));
        } else if buffer.capacity() == 0 {
            self.blocks_lent += 1;
            *buffer = self.blocks.pop().unwrap_or_else(|| Vec::with_capacity(BLOCK_OCTETS));
        }
    }

    /// Takes the memory of `buffer` back, if it has some; what grew is not kept.
    pub fn take_back(&mut self, buffer: &mut Vec<u8>) {
        let mut buffer = std::mem::take(buffer);
        buffer.clear();
        if buffer.capacity() > SMALL_OCTETS {
            self.blocks_lent = self.blocks_lent.saturating_sub(1);
        }
        match buffer.capacity() {
            SMALL_OCTETS if self.small.len() < SMALL_KEPT_MAX => self.small.push(buffer),
            BLOCK_OCTETS => self.blocks.push(buffer),
            _ => {}
        }
    }
}
