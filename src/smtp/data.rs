//! Mail data as it is sent, turned into the message as it is stored: its end, its dots, its line ends.
//!
//! A lone CR or LF neither ends the data nor makes the dot behind it a terminator or a stuffed one (RFC 5321 4.1.1.4), so
//! that nothing can be smuggled in. A peer that never sent a CR has an *LF session*, in which a lone LF is the line end
//! of the protocol; the first CR ends it for ever. Who refuses a message decodes it too, and ignores the runs.

use memchr::{memchr, memchr2};

use State::{Cr, Dot, DotCr, End, LineStart, Text};

const CR: u8 = b'\r';
const LF: u8 = b'\n';

/// The line end of the message as stored: LF, as the readers of a Maildir expect, or CRLF, as sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineEnd {
    Lf,
    Crlf,
}

impl LineEnd {
    pub const fn as_str(self) -> &'static str {
        if matches!(self, Self::Lf) { "\n" } else { "\r\n" }
    }
}

/// How the end of the message is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By a line with one dot (DATA); other lines that begin with a dot have one more than was meant.
    Dot,
    /// By counting (BDAT, RFC 3030), which the caller does; a dot is a dot.
    Chunk,
}

/// What the octets before the next one were, as far as its meaning depends on them. `true` stands for a lone LF as the
/// line end, behind which dots are text: it differs from `Text` and `Cr` for the sake of the hint only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A line end, or nothing yet.
    LineStart(bool),
    /// That and a dot. Behind a lone LF it is stored; else it will be only in a case that ends an LF session.
    Dot(bool),
    DotCr(bool),
    /// Anything else.
    Text,
    /// Anything else and a CR, which is not stored before the next octet tells what it is.
    Cr,
    End,
}

/// The state of one message between two reads. Equal to another that will decode the same in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataDecoder {
    state: State,
    framing: Framing,
    line_end: LineEnd,
    /// The session is an LF session still: no CR was read.
    pub lf_session: bool,
    /// A lone CR or LF was in the message; in an LF session an LF is not one.
    pub bare_newline: bool,
    /// The last line is one dot, but with an LF where CRLF had to be: if nothing follows, the peer waits in vain.
    pub lf_dot: bool,
    /// Octets that this call of `decode` read and that are no part of the message, less those that it found to be one.
    overhead: i64,
}

impl DataDecoder {
    /// A decoder for one message. `lf_session` says that no CR was read from the peer yet.
    pub const fn new(framing: Framing, line_end: LineEnd, lf_session: bool) -> Self {
        Self { state: LineStart(false), framing, line_end, lf_session, bare_newline: false, lf_dot: false, overhead: 0 }
    }

    /// Decodes `input` and gives the message to `sink`, in runs that are slices of `input` wherever it stands there
    /// unchanged. Returns how many octets it read, all of them unless the message ended; how many more the message has
    /// as RFC 1870 counts it, without stuffed dots and terminator; and whether it ended. What a call stores is at most one
    /// octet longer than `input`, but for lone LFs that become CRLF.
    #[inline]
    pub fn decode(&mut self, input: &[u8], sink: &mut impl FnMut(&[u8])) -> (usize, u64, bool) {
        let mut at = 0;
        while at < input.len() && self.state != End {
            self.lf_dot = false;
            if self.state == Text || (matches!(self.state, LineStart(_)) && input[at] != b'.') {
                at += self.lines(&input[at..], sink);
            }
            if let Some(&octet) = input.get(at) {
                self.step(octet, sink);
                at += 1;
            }
        }
        (at, (at as i64 - std::mem::take(&mut self.overhead)) as u64, self.state == End)
    }

    /// Decodes text that begins with no dot, as far as it is ordinary: lines that end in CRLF, and stuffed dots that text
    /// follows. Returns how many octets that was; what follows them needs [`Self::step`].
    #[inline]
    fn lines(&mut self, input: &[u8], sink: &mut impl FnMut(&[u8])) -> usize {
        self.state = Text;
        // A run goes on over line ends that stay what they are. Where CRLF becomes LF, the LF begins the next run.
        let mut run = 0;
        let mut line = 0;
        while let Some(length) = memchr2(CR, LF, &input[line..]) {
            let end = line + length;
            if self.lf_session || !input[end..].starts_with(b"\r\n") {
                sink(&input[run..end]);
                return end;
            }
            if self.line_end == LineEnd::Lf {
                sink(&input[run..end]);
                run = end + 1;
            }
            line = end + 2;
            match (&input[line..], self.framing) {
                ([b'.', next, ..], Framing::Dot) if *next != CR && *next != LF => {
                    sink(&input[run..line]);
                    line += 1;
                    run = line;
                    self.overhead += 1;
                }
                ([], _) | ([b'.', ..], Framing::Dot) => {
                    sink(&input[run..line]);
                    self.state = LineStart(false);
                    return line;
                }
                _ => {}
            }
        }
        sink(&input[run..]);
        input.len()
    }

    /// Decodes one octet: the whole automaton.
    fn step(&mut self, octet: u8, sink: &mut impl FnMut(&[u8])) {
        let after_cr = matches!(self.state, Cr | DotCr(_));
        if after_cr && octet != LF {
            self.overhead -= i64::from(self.state == DotCr(false));
            self.lone_cr(sink);
        }
        if octet == CR && std::mem::take(&mut self.lf_session) && self.state == Dot(false) {
            // Only an LF stood before this dot, and from now on that is no line end.
            self.overhead -= 1;
            sink(b".");
            self.state = Dot(true);
        }
        self.state = match (self.state, octet) {
            (Dot(bare), CR) => DotCr(bare),
            (_, CR) => Cr,
            (Dot(false) | DotCr(false), LF) if after_cr || self.lf_session => End,
            (before, LF) => {
                sink(self.line_end.as_str().as_bytes());
                self.lf_dot = matches!(before, Dot(_) | DotCr(_));
                let bare = !after_cr && !self.lf_session;
                self.bare_newline |= bare;
                LineStart(bare)
            }
            (LineStart(bare), b'.') if self.framing == Framing::Dot => {
                if bare {
                    sink(b".");
                }
                Dot(bare)
            }
            _ => {
                sink(&[octet]);
                Text
            }
        };
        self.overhead += i64::from(matches!(self.state, Dot(false) | DotCr(false) | End));
    }

    fn lone_cr(&mut self, sink: &mut impl FnMut(&[u8])) {
        sink(b" ");
        self.bare_newline = true;
    }

    /// Ends a message that ends by counting: a last line without a line end gets one, an empty message none.
    pub fn finish(&mut self, sink: &mut impl FnMut(&[u8])) {
        if self.state == Cr {
            self.lone_cr(sink);
        }
        if matches!(self.state, Cr | Text) {
            sink(self.line_end.as_str().as_bytes());
        }
        self.state = End;
    }

    /// Sees octets that are no text of a message, such as a command: a CR in them ends the LF session, too.
    pub fn note_line_end(&mut self, octets: &[u8]) {
        self.lf_session = self.lf_session && memchr(CR, octets).is_none();
    }
}
