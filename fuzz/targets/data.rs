//! The DATA decoder equals its reference after every part of any input, in both forms of storage; it ends where a parser
//! that knows nothing but `CRLF . CRLF` does; and `Received` lines are counted as a reader of lines counts them.
//!
//! Options: `c` the text is that of chunks, `l` no CR came before it. All of them choose how the text is cut.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mailchute::smtp::data::{DataDecoder, Framing, LineEnd};
use mailchute::smtp::header::{HeaderScanner, RECEIVED_MAX};
use mailchute_fuzz::reference::Reference;
use mailchute_fuzz::{Input, parts, ways};

fuzz_target!(|input: &[u8]| {
    let input = Input::new(input);
    let framing = if input.has(b'c') { Framing::Chunk } else { Framing::Dot };
    let lf_session = input.has(b'l');
    for line_end in [LineEnd::Lf, LineEnd::Crlf] {
        let mut random = input.random();
        for (way, parts) in ways(input.octets, &mut random) {
            let (mut reference, ended_at) = compare(framing, line_end, lf_session, &parts, way);
            if framing == Framing::Dot && !lf_session {
                assert_eq!(ended_at, strict_end(input.octets), "where it ends {way}");
            }
            if way == "at once" {
                reference.finish();
                scan(&reference.stored, &mut random);
            }
        }
    }
});

/// Compares both after every part, and once they are finished. The reference, and where it found the end.
fn compare(
    framing: Framing, line_end: LineEnd, lf_session: bool, parts: &[&[u8]], way: &str,
) -> (Reference, Option<usize>) {
    let mut reference = Reference::new(framing, line_end, lf_session);
    let mut decoder = DataDecoder::new(framing, line_end, lf_session);
    let (mut stored, mut consumed, mut octets, mut ended, mut same) = (Vec::new(), 0, 0_u64, false, 0);
    for part in parts {
        if !ended {
            let before = stored.len();
            let (count, counted, end) = decoder.decode(part, &mut |run| stored.extend_from_slice(run));
            assert!(end || count == part.len(), "octets are left {way}");
            let room = if line_end == LineEnd::Lf { part.len() + 1 } else { 2 * part.len() + 2 };
            assert!(stored.len() - before <= room, "more is stored than there may be room for {way}");
            (consumed, octets, ended) = (consumed + count, octets.wrapping_add(counted), end);
        }
        reference.decode(part);
        let (new, right) = (&stored[same..], &reference.stored[same..]);
        assert!(new == right, "{} and not {} is stored {way}", new.escape_ascii(), right.escape_ascii());
        same = stored.len();
        assert_eq!((consumed, ended), (reference.consumed, reference.ended), "octets used, and the end {way}");
        assert_eq!((consumed as u64).wrapping_sub(octets), reference.overhead(), "octets that are no text {way}");
        let marks = (decoder.bare_newline, decoder.lf_session, decoder.lf_dot);
        assert_eq!(marks, (reference.bare_newline, reference.lf_session, reference.lf_dot), "marks {way}");
    }
    if framing == Framing::Chunk || ended {
        decoder.finish(&mut |run| stored.extend_from_slice(run));
        let mut finished = Reference::new(framing, line_end, lf_session);
        parts.iter().for_each(|part| finished.decode(part));
        finished.finish();
        assert!(stored == finished.stored, "finished {way}");
        assert_eq!(decoder.bare_newline, finished.bare_newline, "finished {way}");
    }
    let ended_at = reference.ended.then_some(reference.consumed);
    (reference, ended_at)
}

/// Where a parser that knows nothing but `CRLF . CRLF` finds the end behind the command `DATA CRLF`.
fn strict_end(text: &[u8]) -> Option<usize> {
    let text = [b"\r\n", text].concat();
    text.windows(5).position(|octets| octets == b"\r\n.\r\n").map(|at| at + 5 - 2)
}

/// Has the header section read at once, in parts, and by lines.
fn scan(message: &[u8], random: &mut mailchute_fuzz::random::Random) {
    let mut whole = HeaderScanner::default();
    whole.scan(message);
    for (way, parts) in [("one octet at a time", message.chunks(1).collect()), ("in parts", parts(message, random))] {
        let mut scanner = HeaderScanner::default();
        parts.iter().for_each(|part| scanner.scan(part));
        assert_eq!(scanner, whole, "the header {way}");
    }
    let lines = || message.split_inclusive(|&octet| octet == b'\n');
    let ended = |line: &&[u8]| matches!(*line, b"\n" | b"\r\n");
    let received = |line: &&[u8]| line.len() >= 9 && line[..9].eq_ignore_ascii_case(b"received:");
    let count = lines().take_while(|line| !ended(line)).filter(received).count();
    assert_eq!(whole.ended, lines().any(|line| ended(&line)), "the end of the header");
    assert_eq!(whole.is_mail_loop(), count > RECEIVED_MAX as usize, "{count} Received lines");
}
