//! Messages as they are sent, and as they are to be stored: two texts made side by side, so that neither is computed from
//! the other.

use super::model::hand::Random;

pub struct Text {
    /// What goes over the line: dots stuffed where the message goes by DATA, without its end.
    pub wire: Vec<u8>,
    /// What is to be in the file, behind the trace lines.
    pub stored: Vec<u8>,
    /// Its octets as RFC 1870 counts them: without stuffed dots.
    pub size: usize,
    /// It has a lone CR or LF.
    pub dirty: bool,
}

/// How a message goes over the line.
#[derive(Clone, Copy)]
pub struct Manner {
    /// By DATA, so that dots are stuffed.
    pub stuffed: bool,
    /// In a session without a CR.
    pub line_feeds: bool,
    /// With lone CRs and LFs here and there.
    pub dirty: bool,
}

impl Text {
    /// A message of about so many octets.
    pub fn draw(random: &mut Random, octets: usize, manner: Manner) -> Self {
        let Manner { stuffed, line_feeds, dirty } = manner;
        let mut it = Self { wire: Vec::new(), stored: Vec::new(), size: 0, dirty: false };
        let mut stuffed_dots = 0;
        // Whether what stands before is a line end, behind which a dot has a meaning.
        let mut at_line = true;
        while it.stored.len() < octets {
            let line = line(random, octets - it.stored.len());
            if stuffed && at_line && line.starts_with(b".") {
                it.wire.push(b'.');
                stuffed_dots += 1;
            }
            it.wire.extend(&line);
            it.stored.extend(&line);
            if dirty && !line_feeds && random.below(12) == 0 {
                it.wire.extend(b"\rbehind a lone CR");
                it.stored.extend(b" behind a lone CR");
                it.dirty = true;
            }
            let lone = dirty && !line_feeds && random.below(6) == 0 && it.stored.len() < octets;
            let end: &[u8] = match (line_feeds, lone, random.below(40)) {
                (true, ..) | (_, true, _) => b"\n",
                (_, _, 0) if dirty => {
                    it.stored.push(b' ');
                    it.dirty = true;
                    b"\r\r\n"
                }
                _ => b"\r\n",
            };
            it.dirty |= lone;
            it.wire.extend(end);
            it.stored.push(b'\n');
            at_line = !lone;
        }
        if stuffed && !at_line {
            // What ends it stands on a line of its own.
            it.wire.extend(b"\r\n");
            it.stored.push(b'\n');
        }
        if !stuffed && octets > 0 && random.below(4) == 0 {
            // A last line without an end gets one.
            it.wire.extend(b"the end");
            it.stored.extend(b"the end\n");
        }
        it.size = it.wire.len() - stuffed_dots;
        it
    }
}

/// A line without its end: short or long, often with dots at its start, and told from others.
fn line(random: &mut Random, most: usize) -> Vec<u8> {
    let mut line = match random.below(12) {
        0 => b".".to_vec(),
        1 => b"..".to_vec(),
        2 => b".x".to_vec(),
        3 => Vec::new(),
        4 => vec![b'.'; random.below(5)],
        _ => format!("{:08x}", random.below(1 << 31)).into_bytes(),
    };
    if random.below(5) > 0 {
        let octets = match random.below(10) {
            0 => random.below(8000),
            _ => random.below(76),
        };
        let fill = random.choose(&["0123456789abcdef", "quoted=3Dprintable ", "\u{e4}\u{f6}\u{fc} 8 bits ", ". . . "]);
        line.extend(fill.bytes().cycle().take(octets.min(most)));
    }
    line
}
