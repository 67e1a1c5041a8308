//! BDAT: what is stored is what the chunks bring, whatever they are cut into and in whatever parts they come; each is
//! answered once; nothing of a message that was taken back is in the next one; and no octet of a chunk is a command.
//!
//! Options: `l` command lines end in LF, `k` CRLF is kept, `r` lone CR and LF are refused, `z` messages have 100 octets at
//! most, `m` LMTP, `s` strict, `a` a chunk of another message comes first and is taken back. Each octet is moreover the
//! size of a chunk, by its lowest six bits; what is left of the text is the last one.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mailchute::smtp::data::{Framing, LineEnd};
use mailchute_fuzz::harness::Driver;
use mailchute_fuzz::reference::Reference;
use mailchute_fuzz::trace::behind_trace;
use mailchute_fuzz::{Input, ways};

const SIZE_MAX: usize = 100;

fuzz_target!(|input: &[u8]| {
    let input = Input::new(input);
    let [strict, lmtp, small] = [b's', b'm', b'z'].map(|letter| input.has(letter));
    // Which of several failings counts would depend on the parts.
    let reject = input.has(b'r') && !small;
    let line_end = if input.has(b'k') { LineEnd::Crlf } else { LineEnd::Lf };
    let end = if input.has(b'l') && !strict { "\n" } else { "\r\n" };
    let mut settings = String::new();
    for (given, setting) in [
        (strict, "strict "),
        (lmtp, "lmtp "),
        (small, "max-size=100 "),
        (reject, "reject "),
        (input.has(b'k'), "keep-crlf "),
    ] {
        settings += if given { setting } else { "" };
    }
    let is_received = |octets: &[u8]| octets.eq_ignore_ascii_case(b"received:");
    if input.octets.windows(9).filter(|octets| is_received(octets)).count() > 100 {
        return;
    }

    let mut lf_session = !strict && end == "\n";
    let mut wire = Vec::new();
    let mut codes = vec!["220", "250"];
    let mut stored = Vec::new();
    let say = |wire: &mut Vec<u8>, line: &str| wire.extend([line, end].concat().bytes());
    say(&mut wire, if lmtp { "LHLO x" } else { "EHLO x" });
    let hello_octets = wire.len();
    // Twice the same, so that the second shows what the first left behind.
    for turn in 0..2 {
        let abandoned = turn == 0 && input.has(b'a');
        say(&mut wire, "MAIL FROM:<a@b.example>");
        say(&mut wire, "RCPT TO:<c@d.example>");
        codes.extend(["250", "250"]);
        let mut reference = Reference::new(Framing::Chunk, line_end, lf_session);
        let mut failure = None;
        let mut rest = input.octets;
        for size in input.options.iter().map(|octet| usize::from(octet & 63)).chain([usize::MAX]) {
            let (chunk, after) = rest.split_at(size.min(rest.len()));
            rest = after;
            let last = size == usize::MAX;
            say(&mut wire, &format!("BDAT {}{}", chunk.len(), if last && !abandoned { " LAST" } else { "" }));
            wire.extend_from_slice(chunk);
            reference.decode(chunk);
            if last && !abandoned {
                reference.finish();
            }
            let large = (small && reference.consumed > SIZE_MAX).then_some("552");
            failure = failure.or(large).or((reject && reference.bare_newline).then_some("550"));
            codes.push(failure.unwrap_or("250"));
        }
        if abandoned {
            say(&mut wire, "RSET");
            codes.push("250");
        } else if failure.is_none() {
            stored.push(reference.stored);
        }
        lf_session = reference.lf_session;
    }
    say(&mut wire, "QUIT");
    codes.push("221");

    let (hello, rest) = wire.split_at(hello_octets);
    for (way, parts) in ways(rest, &mut input.random()) {
        let mut driver = Driver::new(&settings);
        driver.receive(hello);
        parts.iter().for_each(|part| driver.receive(part));
        let replies = driver.replies();
        let given: Vec<_> = replies.lines().filter(|line| line.as_bytes()[3] == b' ').map(|line| &line[..3]).collect();
        assert_eq!(given, codes, "{way}: {replies}");
        assert!(driver.closed);
        assert_eq!(driver.stored.len(), stored.len(), "messages stored {way}");
        for (is, text) in driver.stored.iter().zip(&stored) {
            let trace = is.strip_suffix(&text[..]).and_then(behind_trace);
            assert_eq!(trace, Some(&b""[..]), "{way}: {} is stored for {}", is.escape_ascii(), text.escape_ascii());
        }
    }
});
