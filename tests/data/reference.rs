//! The DATA decoder octet by octet, written to be read: one row for each thing that can happen.

use mailchute::smtp::data::{Framing, LineEnd};

/// What was read, back to the last thing that matters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    /// A line end that counts, or the start.
    LineEnd,
    LineEndDot,
    LineEndDotCr,
    /// A lone LF, where it doesn't count.
    Lf,
    LfDot,
    LfDotCr,
    Other,
    OtherCr,
}

/// The decoder and all that it gave.
pub struct Reference {
    read: Read,
    framing: Framing,
    line_end: LineEnd,
    pub lf_session: bool,
    pub bare_newline: bool,
    pub lf_dot: bool,
    pub stored: Vec<u8>,
    pub consumed: usize,
    pub ended: bool,
    /// Stuffed dots, and the terminator once it is whole; of one that is not, its dot alone.
    no_text: u64,
}

impl Reference {
    pub fn new(framing: Framing, line_end: LineEnd, lf_session: bool) -> Self {
        Self {
            read: Read::LineEnd,
            framing,
            line_end,
            lf_session,
            bare_newline: false,
            lf_dot: false,
            stored: Vec::new(),
            consumed: 0,
            ended: false,
            no_text: 0,
        }
    }

    pub fn decode(&mut self, input: &[u8]) {
        for &octet in input {
            if self.ended {
                return;
            }
            self.consumed += 1;
            self.octet(octet);
        }
    }

    fn octet(&mut self, octet: u8) {
        use Read::*;
        let dots = self.framing == Framing::Dot;
        self.lf_dot = false;
        self.read = match (self.read, octet, self.lf_session) {
            // An LF session: line ends are LF. Its first CR ends it, and a dot behind an LF was text all along.
            (LineEndDot, b'\n', true) => self.end(1),
            (_, b'\n', true) => self.line_end(),
            (LineEndDot, b'\r', true) => {
                self.lf_session = false;
                self.no_text -= 1;
                self.stored.push(b'.');
                LfDotCr
            }
            (_, b'\r', true) => {
                self.lf_session = false;
                OtherCr
            }

            // CRLF.
            (LineEndDotCr, b'\n', false) => self.end(2),
            (LfDotCr, b'\n', false) => {
                self.lf_dot = true;
                self.line_end()
            }
            (OtherCr, b'\n', false) => self.line_end(),

            // A CR that no LF follows.
            (LineEndDotCr | LfDotCr | OtherCr, b'\r', _) => {
                self.lone_cr();
                OtherCr
            }
            (LineEndDotCr | LfDotCr | OtherCr, _, _) => {
                self.lone_cr();
                self.text(octet)
            }

            // A CR of which nothing is known yet.
            (LineEndDot, b'\r', false) => LineEndDotCr,
            (LfDot, b'\r', false) => LfDotCr,
            (_, b'\r', false) => OtherCr,

            // An LF that no CR came before.
            (LineEndDot | LfDot, b'\n', false) => {
                self.lf_dot = true;
                self.lone_lf()
            }
            (_, b'\n', false) => self.lone_lf(),

            // Dots: the first of a line is not stored. Behind a lone LF it is.
            (LineEnd, b'.', _) if dots => {
                self.no_text += 1;
                LineEndDot
            }
            (Lf, b'.', _) if dots => {
                self.stored.push(b'.');
                LfDot
            }

            (_, _, _) => self.text(octet),
        };
    }

    /// The end, whose line end has so many octets. Its dot was counted when it came.
    fn end(&mut self, line_end: u64) -> Read {
        self.no_text += line_end;
        self.ended = true;
        Read::LineEnd
    }

    fn text(&mut self, octet: u8) -> Read {
        self.stored.push(octet);
        Read::Other
    }

    fn line_end(&mut self) -> Read {
        self.stored.extend_from_slice(if self.line_end == LineEnd::Lf { b"\n" } else { b"\r\n" });
        Read::LineEnd
    }

    fn lone_lf(&mut self) -> Read {
        self.bare_newline = true;
        self.line_end();
        Read::Lf
    }

    fn lone_cr(&mut self) {
        self.bare_newline = true;
        self.stored.push(b' ');
    }

    /// Octets that RFC 1870 does not count: stuffed dots and the terminator, or as much of it as may have come.
    pub fn overhead(&self) -> u64 {
        self.no_text + u64::from(self.read == Read::LineEndDotCr)
    }

    #[allow(dead_code, reason = "the benchmark has no use for it")]
    pub fn finish(&mut self) {
        if matches!(self.read, Read::LineEndDotCr | Read::LfDotCr | Read::OtherCr) {
            self.lone_cr();
        }
        if !self.stored.is_empty() && self.stored.last() != Some(&b'\n') {
            self.line_end();
        }
    }
}
