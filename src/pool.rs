//! Buffers of one size that are lent while octets are pending, so that an idle connection owns none.

/// Lends buffers and keeps those that came back.
#[derive(Debug)]
pub struct BufferPool {
    free: Vec<Vec<u8>>,
    octets: usize,
    lent: usize,
    lent_max: usize,
    kept_max: usize,
}

impl BufferPool {
    /// Buffers of `octets` each: at most `lent_max` of them at a time, of which `kept_max` stay when all came back.
    pub fn new(octets: usize, lent_max: usize, kept_max: usize) -> Self {
        Self { free: Vec::with_capacity(kept_max), octets, lent: 0, lent_max, kept_max }
    }

    /// Whether [`lend`](Self::lend) would find a buffer.
    pub const fn is_available(&self) -> bool {
        self.lent < self.lent_max
    }

    /// An empty buffer, or `None` when all are lent.
    pub fn lend(&mut self) -> Option<Vec<u8>> {
        if !self.is_available() {
            return None;
        }
        self.lent += 1;
        Some(self.free.pop().unwrap_or_else(|| Vec::with_capacity(self.octets)))
    }

    /// Gives `buffer` memory, if it has none.
    pub fn lend_to(&mut self, buffer: &mut Vec<u8>) {
        if buffer.capacity() == 0 {
            *buffer = self.lend().unwrap_or_default();
        }
    }

    /// Takes a buffer back. One without memory was never lent and is ignored; one that grew is not kept.
    pub fn take_back(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() == 0 {
            return;
        }
        self.lent = self.lent.saturating_sub(1);
        if self.free.len() < self.kept_max && buffer.capacity() == self.octets {
            buffer.clear();
            self.free.push(buffer);
        }
    }
}
