//! The DATA decoder against its reference, against a strict parser, and against every terminator known to smuggle.

#[path = "data/reference.rs"]
mod reference;

use mailchute::smtp::data::{DataDecoder, Framing, LineEnd};
use mailchute::smtp::header::{HeaderScanner, RECEIVED_MAX};
use reference::Reference;

const ALPHABET: &[u8] = b"\r\n.a";

/// Every kind of decoder: framing, line end as stored, LF session or not.
const KINDS: [(Framing, LineEnd, bool); 8] = [
    (Framing::Dot, LineEnd::Lf, false),
    (Framing::Dot, LineEnd::Lf, true),
    (Framing::Dot, LineEnd::Crlf, false),
    (Framing::Dot, LineEnd::Crlf, true),
    (Framing::Chunk, LineEnd::Lf, false),
    (Framing::Chunk, LineEnd::Lf, true),
    (Framing::Chunk, LineEnd::Crlf, false),
    (Framing::Chunk, LineEnd::Crlf, true),
];

/// A decoder and all that it gave.
struct Trial {
    decoder: DataDecoder,
    stored: Vec<u8>,
    consumed: usize,
    octets: u64,
    ended: bool,
}

impl Trial {
    fn new((framing, line_end, lf_session): (Framing, LineEnd, bool)) -> Self {
        let decoder = DataDecoder::new(framing, line_end, lf_session);
        Self { decoder, stored: Vec::new(), consumed: 0, octets: 0, ended: false }
    }

    fn decode(&mut self, input: &[u8]) {
        let (consumed, octets, ended) =
            self.decoder.decode(input, &mut |run: &[u8]| self.stored.extend_from_slice(run));
        assert!(ended || consumed == input.len(), "octets left of {input:?}");
        self.consumed += consumed;
        self.octets += octets;
        self.ended = ended;
    }

    /// Octets that are no part of the message; wraps where some were taken for that before this trial began.
    fn overhead(&self) -> u64 {
        (self.consumed as u64).wrapping_sub(self.octets)
    }

    fn assert_same(&self, reference: &Reference, input: &[u8], parts: &str) {
        let decoder = (self.decoder.bare_newline, self.decoder.lf_session, self.decoder.lf_dot);
        let same = self.stored == reference.stored
            && (self.consumed, self.ended) == (reference.consumed, reference.ended)
            && self.overhead() == reference.overhead()
            && decoder == (reference.bare_newline, reference.lf_session, reference.lf_dot);
        assert!(
            same,
            "{:?} {parts}: {:?} {} {} {:?} {decoder:?}",
            input.escape_ascii().to_string(),
            self.stored.escape_ascii().to_string(),
            self.consumed,
            self.ended,
            self.decoder,
        );
    }

    fn finish(&mut self) {
        self.decoder.finish(&mut |run: &[u8]| self.stored.extend_from_slice(run));
    }
}

/// The stored message of `input` as DATA, if it ends there to the octet.
fn message(input: &[u8], lf_session: bool) -> Option<Vec<u8>> {
    let mut trial = Trial::new((Framing::Dot, LineEnd::Lf, lf_session));
    trial.decode(input);
    (trial.ended && trial.consumed == input.len()).then_some(trial.stored)
}

/// Calls `check` with every word over the alphabet of at most `octets_max` octets.
fn for_all_words(octets_max: usize, check: &mut impl FnMut(&[u8])) {
    fn grow(word: &mut Vec<u8>, octets_max: usize, check: &mut impl FnMut(&[u8])) {
        check(word);
        if word.len() < octets_max {
            for &octet in ALPHABET {
                word.push(octet);
                grow(word, octets_max, check);
                word.pop();
            }
        }
    }
    grow(&mut Vec::new(), octets_max, check);
}

/// Compares the decoder with the reference: `input` whole, split into two parts anyhow, and octet by octet.
fn compare(kind: (Framing, LineEnd, bool), input: &[u8], splits: impl Iterator<Item = usize>) {
    let (framing, line_end, lf_session) = kind;
    let mut reference = Reference::new(framing, line_end, lf_session);
    reference.decode(input);

    let mut octets = Trial::new(kind);
    for &octet in input {
        octets.decode(&[octet]);
    }
    octets.assert_same(&reference, input, "octet by octet");

    for split in splits {
        let (head, tail) = input.split_at(split);
        let mut parts = Trial::new(kind);
        parts.decode(head);
        let stored_octets = parts.stored.len();
        parts.decode(tail);
        if line_end == LineEnd::Lf {
            assert!(parts.stored.len() <= stored_octets + tail.len() + 1, "a buffer of one octet more would overflow");
        }
        parts.assert_same(&reference, input, "in two parts");
        if framing == Framing::Chunk || reference.ended {
            parts.finish();
            let mut finished = Reference::new(framing, line_end, lf_session);
            finished.decode(input);
            finished.finish();
            assert_eq!(parts.stored, finished.stored, "{:?} finished", input.escape_ascii().to_string());
            assert_eq!(parts.decoder.bare_newline, finished.bare_newline);
        }
    }
}

fn compare_all(framing: Framing, lf_session: bool) {
    for kind in KINDS.into_iter().filter(|kind| (kind.0, kind.2) == (framing, lf_session)) {
        for_all_words(8, &mut |word| compare(kind, word, 0..=word.len()));
    }
}

#[test]
fn equals_the_reference_for_all_words_at_every_split_in_data() {
    compare_all(Framing::Dot, false);
}

#[test]
fn equals_the_reference_for_all_words_at_every_split_in_data_of_an_lf_session() {
    compare_all(Framing::Dot, true);
}

#[test]
fn equals_the_reference_for_all_words_at_every_split_in_chunks() {
    compare_all(Framing::Chunk, false);
}

#[test]
fn equals_the_reference_for_all_words_at_every_split_in_chunks_of_an_lf_session() {
    compare_all(Framing::Chunk, true);
}

/// From every state that can be reached, a word at once does what its octets one by one do. So by induction do any
/// inputs that are cut into any number of such words.
#[test]
fn equals_itself_octet_by_octet_from_every_state() {
    let mut reached: Vec<DataDecoder> =
        KINDS.iter().map(|&(framing, line_end, lf_session)| DataDecoder::new(framing, line_end, lf_session)).collect();
    let mut next = 0;
    while let Some(&before) = reached.get(next) {
        next += 1;
        for octet in ALPHABET {
            let mut after = before;
            after.decode(&[*octet], &mut |_: &[u8]| {});
            if !reached.contains(&after) {
                reached.push(after);
            }
        }
    }
    assert!(reached.len() > 50, "{}", reached.len());
    for before in reached {
        for_all_words(6, &mut |word| {
            let mut whole = Trial { decoder: before, stored: Vec::new(), consumed: 0, octets: 0, ended: false };
            let mut octets = Trial { decoder: before, stored: Vec::new(), consumed: 0, octets: 0, ended: false };
            whole.decode(word);
            for octet in word {
                octets.decode(&[*octet]);
            }
            assert_eq!(whole.stored, octets.stored, "{before:?} {:?}", word.escape_ascii().to_string());
            assert_eq!((whole.decoder, whole.consumed), (octets.decoder, octets.consumed));
            assert_eq!(whole.overhead(), octets.overhead());
        });
    }
}

/// Words everywhere in a line as long as the one before, which is what the decoder expects of lines.
#[test]
fn equals_the_reference_inside_long_lines() {
    for kind in KINDS {
        for length in [31, 32, 76] {
            for_all_words(3, &mut |word| {
                for at in 0..=length - word.len() {
                    let mut input = vec![b'a'; length];
                    input.extend_from_slice(if kind.2 { b"\n" } else { b"\r\n" });
                    let line = input.len() + at;
                    input.resize(line, b'b');
                    input.extend_from_slice(word);
                    input.resize(line + length - at, b'c');
                    input.extend_from_slice(b"\r\n..d\r\n.\r\ne");
                    let mut reference = Reference::new(kind.0, kind.1, kind.2);
                    reference.decode(&input);
                    let mut whole = Trial::new(kind);
                    whole.decode(&input);
                    whole.assert_same(&reference, &input, "whole");
                }
            });
        }
    }
}

/// A generator of numbers that are random enough, and the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }

    /// Text, most of whose lines are ordinary.
    fn text(&mut self, octets: usize) -> Vec<u8> {
        const PIECES: [&[u8]; 16] = [
            b"\r\n",
            b"\r\n",
            b"\r\n",
            b"\r\n..",
            b"\r\n.",
            b"\r",
            b"\n",
            b".",
            b"\n.",
            b"\n.\n",
            b"\0",
            b"\xff\xae\x8d",
            b"\n.\r\n",
            b"\r\n.\n",
            b"\r\n.\r\r\n",
            b"a",
        ];
        let ordinary = 1 + self.below(PIECES.len());
        let length = self.below(100);
        let mut text = Vec::new();
        while text.len() < octets {
            let length = if self.below(4) == 0 { self.below(200) } else { length };
            text.resize(text.len() + length, b'a' + self.below(26) as u8);
            text.extend_from_slice(PIECES[self.below(ordinary)]);
        }
        text
    }
}

#[test]
fn equals_the_reference_for_long_inputs_in_any_parts() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..2_000 {
        let kind @ (framing, line_end, lf_session) = KINDS[round % KINDS.len()];
        let octets = random.below(4_000);
        let mut input = random.text(octets);
        if round % 2 == 0 {
            input.extend_from_slice(b"\r\n.\r\nQUIT\r\n");
        }
        let mut reference = Reference::new(framing, line_end, lf_session);
        reference.decode(&input);
        let mut trial = Trial::new(kind);
        let mut rest = &input[..];
        let part_max = 1 + random.below(1_500);
        while !rest.is_empty() {
            let (part, after) = rest.split_at((1 + random.below(part_max)).min(rest.len()));
            if !trial.ended {
                trial.decode(part);
            }
            rest = after;
        }
        trial.assert_same(&reference, &input, "in many parts");
    }
}

/// Where a parser that knows nothing but `CRLF . CRLF` finds the end of the data behind the command `DATA CRLF`.
fn strict_end(input: &[u8]) -> Option<usize> {
    let behind_command = [b"\r\n", input].concat();
    behind_command.windows(5).position(|octets| octets == b"\r\n.\r\n").map(|at| at + 5 - 2)
}

fn assert_strict(input: &[u8], parts: usize) {
    for line_end in [LineEnd::Lf, LineEnd::Crlf] {
        let mut trial = Trial::new((Framing::Dot, line_end, false));
        for part in input.chunks(parts) {
            if !trial.ended {
                trial.decode(part);
            }
        }
        let end = trial.ended.then_some(trial.consumed);
        assert_eq!(end, strict_end(input), "{:?}", input.escape_ascii().to_string());
    }
}

/// What a front that speaks CRLF takes for one message is one message here.
#[test]
fn ends_where_a_strict_front_does() {
    for_all_words(8, &mut |word| {
        assert_strict(word, 8);
        assert_strict(word, 1);
    });
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for _ in 0..2_000 {
        let octets = random.below(2_000);
        let mut input = random.text(octets);
        input.extend_from_slice(b"\r\n.\r\nMAIL FROM:<>\r\n");
        assert_strict(&input, 1 + random.below(300));
    }
}

/// In an LF session whose messages have a CR, only `CRLF . CRLF` ends behind it.
#[test]
fn ends_an_lf_session_at_its_first_cr() {
    for_all_words(8, &mut |word| {
        let mut trial = Trial::new((Framing::Dot, LineEnd::Lf, true));
        trial.decode(word);
        let cr = word.iter().position(|&octet| octet == b'\r').unwrap_or(word.len());
        let behind_command = [b"\n", &word[..cr]].concat();
        let lf_end = behind_command.windows(3).position(|octets| octets == b"\n.\n").map(|at| at + 3 - 1);
        let crlf_end = || word.windows(5).position(|octets| octets == b"\r\n.\r\n").map(|at| at + 5);
        assert_eq!(
            trial.ended.then_some(trial.consumed),
            lf_end.or_else(crlf_end),
            "{:?}",
            word.escape_ascii().to_string()
        );
        assert_eq!(trial.decoder.lf_session, lf_end.is_some() || cr == word.len());
    });
}

/// Every terminator that some server took for one: what stands between two lines, and what is stored for it.
const NO_TERMINATORS: &[(&[u8], &[u8])] = &[
    (b"\n.\n", b"\n.\n"),
    (b"\n.\r\n", b"\n.\n"),
    (b"\r\n.\n", b"\n\n"),
    (b"\n.\r", b"\n. "),
    (b"\r.\n", b" .\n"),
    (b"\r.\r", b" . "),
    (b"\r.\r\n", b" .\n"),
    (b"\r\n.\r", b"\n "),
    (b"\r\n.\r\r\n", b"\n \n"),
    (b"\r\r\n.\r\r\n", b" \n \n"),
    (b"\r\n\r.\r\n", b"\n .\n"),
    (b"\r\n\n.\r\n", b"\n\n.\n"),
    (b"\n\r.\n\r", b"\n .\n "),
    (b"\n\r\n.\n\r\n", b"\n\n\n\n"),
    (b"\r\n.\n\r\n", b"\n\n\n"),
    (b"\r\n\0.\r\n", b"\n\0.\n"),
    (b"\r\n.\0\r\n", b"\n\0\n"),
    (b"\r\0\n.\r\n", b" \0\n.\n"),
    (b"\r\n.\r\0\n", b"\n \0\n"),
    (b"\0\n.\n\0", b"\0\n.\n\0"),
    (b"\r\n. \r\n", b"\n \n"),
    (b"\r\n .\r\n", b"\n .\n"),
    (b"\r\n.\t\r\n", b"\n\t\n"),
    (b"\r\n..\r\n", b"\n.\n"),
    (b"\r\n.. \r\n", b"\n. \n"),
    (b"\x8d\x8a.\x8d\x8a", b"\x8d\x8a.\x8d\x8a"),
    (b"\r\n\xae\r\n", b"\n\xae\n"),
    (b"\r\n.\x8d\n", b"\n\x8d\n"),
    (b"\x0b.\x0b", b"\x0b.\x0b"),
    (b"\x0c.\x0c", b"\x0c.\x0c"),
    (b"\x85.\x85", b"\x85.\x85"),
    (b"\xe2\x80\xa8.\xe2\x80\xa8", b"\xe2\x80\xa8.\xe2\x80\xa8"),
    (b"=0D=0A.=0D=0A", b"=0D=0A.=0D=0A"),
];

#[test]
fn takes_no_other_terminator_for_one() {
    let smuggled = b"MAIL FROM:<a@a>\r\nRCPT TO:<b@b>\r\nDATA\r\nsmuggled\r\n";
    for (variant, stored) in NO_TERMINATORS {
        let sent = [b"first", *variant, smuggled, b".\r\n"].concat();
        let kept = [b"first", *stored, b"MAIL FROM:<a@a>\nRCPT TO:<b@b>\nDATA\nsmuggled\n"].concat();
        let what = sent.escape_ascii().to_string();
        assert_eq!(message(&sent, false).as_deref(), Some(&kept[..]), "{what}");

        // A scanner's template: the same with line ends round it.
        let rounded = [b"first\r\n", *variant, b"\r\n", smuggled, b".\r\n"].concat();
        assert!(message(&rounded, false).is_some_and(|kept| kept.ends_with(b"\nsmuggled\n")), "{what} rounded");
        for input in [sent, rounded] {
            compare((Framing::Dot, LineEnd::Lf, false), &input, 0..=input.len());
            compare((Framing::Dot, LineEnd::Crlf, false), &input, 0..=input.len());
        }
    }
}

#[test]
fn stores_what_was_meant() {
    // What is sent, whether by an LF session, and what is stored.
    let table: &[(&[u8], bool, &[u8])] = &[
        (b".\r\n", false, b""),
        (b"\r\n.\r\n", false, b"\n"),
        (b"a\r\n.\r\n", false, b"a\n"),
        (b"..\r\n.\r\n", false, b".\n"),
        (b"...\r\n.a\r\n.\r\n", false, b"..\na\n"),
        (b"a\nb\rc\r\n.\r\n", false, b"a\nb c\n"),
        (b"a\r\r\n.\r\n", false, b"a \n"),
        (b"a\n..b\r\n.\r\n", false, b"a\n..b\n"),
        (b"\0\x80\xff\r\n.\r\n", false, b"\0\x80\xff\n"),
        (b".\n", true, b""),
        (b"a\n.\n", true, b"a\n"),
        (b"a\n..\n.b\n.\n", true, b"a\n.\nb\n"),
        (b"a\n.\r\n.\r\n", true, b"a\n.\n"),
        (b"a\n..\rb\n.\n\r\n.\r\n", true, b"a\n. b\n.\n\n"),
        (b".\r\n.\r\n", true, b".\n"),
    ];
    for (sent, lf_session, stored) in table {
        let what = sent.escape_ascii().to_string();
        assert_eq!(message(sent, *lf_session).as_deref(), Some(*stored), "{what}");
    }
}

/// What a decoder says of `input`: a lone CR or LF was in it, the session is an LF session, its last line is an LF dot.
fn marks(input: &[u8], lf_session: bool) -> (bool, bool, bool) {
    let mut trial = Trial::new((Framing::Dot, LineEnd::Lf, lf_session));
    trial.decode(input);
    (trial.decoder.bare_newline, trial.decoder.lf_session, trial.decoder.lf_dot)
}

#[test]
fn marks_lone_line_ends_and_lf_dots() {
    assert_eq!(marks(b"a\r\n.\r\n", false), (false, false, false));
    assert_eq!(marks(b"a\r\n.\n", false), (true, false, true));
    assert_eq!(marks(b"a\n.\n", false), (true, false, true));
    assert_eq!(marks(b"a\n.\nb", false), (true, false, false));
    assert_eq!(marks(b"a\rb", false), (true, false, false));
    assert_eq!(marks(b"a\n.\n", true), (false, true, false));
    assert_eq!(marks(b"a\nb\n", true), (false, true, false));
    assert_eq!(marks(b"a\n.\r\n", true), (false, false, true));
    assert_eq!(marks(b"a\r\nb\n.\n", true), (true, false, true));
}

#[test]
fn leaves_what_follows_the_terminator() {
    let mut trial = Trial::new((Framing::Dot, LineEnd::Lf, false));
    trial.decode(b"a\r\n.\r\nQUIT\r\n");
    assert_eq!((trial.consumed, trial.ended), (6, true));
    trial.decode(b"QUIT\r\n");
    assert_eq!((trial.consumed, trial.ended), (6, true));
}

#[test]
fn ends_chunks_with_a_line_end() {
    let table: &[(&[u8], &[u8], &[u8])] = &[
        (b"", b"", b""),
        (b"a", b"a\n", b"a\r\n"),
        (b"a\r\n", b"a\n", b"a\r\n"),
        (b"a\n", b"a\n", b"a\r\n"),
        (b"a\r", b"a \n", b"a \r\n"),
        (b".\r\n.\r\n", b".\n.\n", b".\r\n.\r\n"),
        (b"a\r\n.", b"a\n.\n", b"a\r\n.\r\n"),
    ];
    for (sent, lf, crlf) in table {
        for (line_end, stored) in [(LineEnd::Lf, lf), (LineEnd::Crlf, crlf)] {
            let mut trial = Trial::new((Framing::Chunk, line_end, false));
            trial.decode(sent);
            trial.finish();
            assert_eq!(trial.stored, *stored, "{}", sent.escape_ascii());
        }
    }
}

/// RFC 1870 counts neither the dots that were stuffed nor the terminator.
#[test]
fn knows_what_is_no_part_of_the_message() {
    let table: &[(&[u8], u64)] = &[
        (b".\r\n", 3),
        (b"a\r\n.\r\n", 3),
        (b"..\r\n..a\r\n.b\r\na.b\r\n.\r\n", 6),
        (b".\rx\r\n.\r\n", 4),
        (b"a\n.\r\nb\r\n.\r\n", 3),
    ];
    for (sent, overhead) in table {
        for octets in 1..=sent.len() {
            let mut trial = Trial::new((Framing::Dot, LineEnd::Lf, false));
            sent.chunks(octets).for_each(|part| trial.decode(part));
            assert!(trial.ended);
            assert_eq!(trial.overhead(), *overhead, "{} by {octets}", sent.escape_ascii());
        }
    }
    let mut trial = Trial::new((Framing::Dot, LineEnd::Lf, true));
    trial.decode(b"..a\n.\rb\r\n.\r\n");
    assert_eq!((trial.ended, trial.overhead()), (true, 4));
}

#[test]
fn keeps_its_state_in_a_few_octets() {
    assert!(size_of::<DataDecoder>() <= 16);
    assert!(size_of::<HeaderScanner>() <= 8);
}

/// Whether `message` is a mail loop, and whether its header section ends, read at once and in parts.
fn scan(message: &[u8]) -> (bool, bool) {
    let mut whole = HeaderScanner::default();
    whole.scan(message);
    for octets in 1..=40 {
        let mut parts = HeaderScanner::default();
        message.chunks(octets).for_each(|part| parts.scan(part));
        assert_eq!(parts, whole, "in parts of {octets}");
    }
    (whole.is_mail_loop(), whole.ended)
}

#[test]
fn knows_a_mail_loop() {
    let most = RECEIVED_MAX as usize;
    for newline in ["\n", "\r\n"] {
        let field = format!("rEcEiVeD: from a{newline}\tby b{newline}");
        let other = format!("Received-SPF: pass{newline} Received: no{newline}XReceived: no{newline}rece{newline}");
        let end = format!("{newline}Received: this is text{newline}");
        assert_eq!(scan((field.repeat(most) + &other + &end).as_bytes()), (false, true));
        assert_eq!(scan((field.repeat(most) + &other + &field + &end).as_bytes()), (true, true));
        assert_eq!(scan((field.repeat(most) + &end + &field.repeat(most)).as_bytes()), (false, true));
        assert_eq!(scan((other + &field.repeat(most + 1)).as_bytes()), (true, false));
    }
    assert_eq!(scan(b"\nReceived:"), (false, true));
    assert_eq!(scan(b""), (false, false));
}
