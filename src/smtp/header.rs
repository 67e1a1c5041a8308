//! The header section of a message as it passes by: how many servers it came through.

use memchr::memchr;

/// So many `Received:` lines are a long way; more are a mail loop (RFC 5321 6.3, which wants at least 100).
pub const RECEIVED_MAX: u32 = 100;

/// The start of such a line, in lower case.
const RECEIVED: &[u8] = b"received:";

/// What of the line was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// So many octets of `Received:`, and nothing else.
    Matched(u8),
    /// Anything else, up to its LF.
    Other,
    /// A CR and nothing else, where messages are stored with CRLF.
    Cr,
    /// The empty line that ends the header section.
    Body,
}

/// Counts `Received:` lines in the runs of a [`DataDecoder`](super::data::DataDecoder), cut anyhow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderScanner {
    line: Line,
    received: u32,
}

/// Before the first octet of a message.
impl Default for HeaderScanner {
    fn default() -> Self {
        Self { line: Line::Matched(0), received: 0 }
    }
}

impl HeaderScanner {
    /// Reads the run that follows; nothing is done once the header section has ended.
    #[inline]
    pub fn scan(&mut self, run: &[u8]) {
        if !self.ended() {
            self.scan_header(run);
        }
    }

    /// Apart, so that a run of the body costs next to nothing.
    #[inline(never)]
    fn scan_header(&mut self, mut run: &[u8]) {
        while !self.ended() {
            let Some((&octet, rest)) = run.split_first() else { return };
            run = rest;
            self.line = match (self.line, octet) {
                (Line::Matched(0) | Line::Cr, b'\n') => Line::Body,
                (_, b'\n') => Line::Matched(0),
                (Line::Matched(0), b'\r') => Line::Cr,
                (Line::Matched(n), _) if RECEIVED.get(usize::from(n)) == Some(&octet.to_ascii_lowercase()) => {
                    let whole = usize::from(n) + 1 == RECEIVED.len();
                    self.received = self.received.saturating_add(whole.into());
                    Line::Matched(n + 1)
                }
                _ => {
                    run = memchr(b'\n', run).map_or(&[], |end| &run[end..]);
                    Line::Other
                }
            };
        }
    }

    /// Whether the empty line behind the header section was read.
    pub const fn ended(&self) -> bool {
        matches!(self.line, Line::Body)
    }

    /// Whether the message came through so many servers that it must be going in circles.
    pub const fn is_mail_loop(&self) -> bool {
        self.received > RECEIVED_MAX
    }
}
