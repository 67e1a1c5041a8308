//! The header section of a message as it passes by: how many servers it came through.

use memchr::memchr;

/// So many `Received:` lines are a long way; more are a mail loop (RFC 5321 6.3, which wants at least 100).
pub const RECEIVED_MAX: u32 = 100;
/// The start of such a line, in lower case.
const RECEIVED: &[u8] = b"received:";

/// Counts `Received:` lines in the runs of a [`DataDecoder`](super::data::DataDecoder), cut anyhow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeaderScanner {
    /// So many octets of `Received:` are the line so far; `u8::MAX` if it is another one.
    matched: u8,
    received: u32,
    /// The empty line behind the header section was read.
    pub ended: bool,
}

impl HeaderScanner {
    /// Reads the run that follows; nothing is done once the header section has ended.
    #[inline]
    pub fn scan(&mut self, run: &[u8]) {
        if !self.ended {
            self.scan_header(run);
        }
    }

    /// Apart, so that a run of the body costs next to nothing.
    #[inline(never)]
    fn scan_header(&mut self, mut run: &[u8]) {
        while let Some((&octet, rest)) = run.split_first().filter(|_| !self.ended) {
            run = rest;
            match octet {
                b'\n' => self.ended = std::mem::take(&mut self.matched) == 0,
                // Runs have it before LF only.
                b'\r' if self.matched == 0 => {}
                _ if RECEIVED.get(usize::from(self.matched)) == Some(&octet.to_ascii_lowercase()) => {
                    self.matched += 1;
                    self.received += u32::from(usize::from(self.matched) == RECEIVED.len());
                }
                _ => {
                    run = memchr(b'\n', run).map_or(&[], |end| &run[end..]);
                    self.matched = u8::MAX;
                }
            }
        }
    }

    /// Whether the message came through so many servers that it must be going in circles.
    pub const fn is_mail_loop(&self) -> bool {
        self.received > RECEIVED_MAX
    }
}
