//! Whole sessions. First a client that waits: it sends a line, or what a message has, and looks at what comes back. Each
//! line is answered once, a message at its end and never before, and what is stored is what a slow reader makes of the
//! octets. Then the same octets in other parts: they end in the same replies, messages and mailboxes; but where the server
//! closes as text may be taken for commands, or a peer did not wait, which depends on what came together. A transcript of that has
//! all octets, but for what is masked or left out.
//!
//! Options: `s` strict, `l` LMTP, `a` logins are taken, `r` lone CR and LF are refused, `k` CRLF is kept, `z` messages have
//! 100 octets at most, `d` the disk is full, `t` two transactions at most, `n` two recipients at most. All of them choose
//! how the octets are cut.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mailchute::smtp::command::Command;
use mailchute::smtp::data::{Framing, LineEnd};
use mailchute::smtp::session::COMMAND_LINE_OCTETS_MAX;
use mailchute::transcript::Transcript;
use mailchute_fuzz::harness::Driver;
use mailchute_fuzz::reference::Reference;
use mailchute_fuzz::trace::behind_trace;
use mailchute_fuzz::{Input, ways};

const SETTINGS: [(u8, &str); 9] = [
    (b's', "strict "),
    (b'l', "lmtp "),
    (b'a', "auth "),
    (b'r', "reject "),
    (b'k', "keep-crlf "),
    (b'z', "max-size=100 "),
    (b'd', "disk-full "),
    (b't', "transactions=2 "),
    (b'n', "recipients=2 "),
];

fuzz_target!(|input: &[u8]| {
    let input = Input::new(input);
    // Which of two failures counts would depend on the parts.
    let given = |letter| input.has(letter) && !(letter == b'z' && input.has(b'r'));
    let settings: String = SETTINGS.iter().filter(|(letter, _)| given(*letter)).map(|(_, setting)| *setting).collect();
    let expected = Client::talk(&settings, &input).driver;
    check_replies(&expected.replies());
    for (way, parts) in ways(input.octets, &mut input.random()) {
        let mut driver = Driver::new(&settings);
        driver.transcript = Some(Transcript::default());
        parts.iter().for_each(|part| driver.receive(part));
        driver.end(input.octets);
        let (is, expected_replies) = (driver.replies(), expected.replies());
        let last = is.split_inclusive("\r\n").last();
        let early = |line: &&str| line.starts_with("421 4.5.0 ") || line.starts_with("554 5.5.0 You talked");
        match last.filter(early) {
            Some(line) if way != "one octet at a time" && driver.closed => {
                let before = &is[..is.len() - line.len()];
                assert!(expected_replies.starts_with(before), "{way}:\n{is}\nand for who waits:\n{expected_replies}");
                assert!(expected.stored.starts_with(&driver.stored), "messages stored {way}");
                assert!(expected.destinations.starts_with(&driver.destinations), "mailboxes {way}");
            }
            _ => {
                assert_eq!(is, expected_replies, "replies {way}");
                assert!(driver.stored == expected.stored, "messages stored {way}");
                assert_eq!(driver.destinations, expected.destinations, "{way}");
                assert_eq!(driver.closed, expected.closed, "closed {way}");
            }
        }
    }
});

/// Replies are lines of printable text, each with its code.
fn check_replies(replies: &str) {
    for line in replies.split_inclusive("\r\n") {
        let text = line.strip_suffix("\r\n").expect("a reply without its end");
        assert!(!text.chars().any(char::is_control), "{text:?}");
        let code = text.split_at_checked(4).is_some_and(|(code, _)| {
            code[..3].bytes().all(|octet| octet.is_ascii_digit()) && matches!(&code[3..], " " | "-")
        });
        assert!(code, "{text:?}");
    }
}

/// A client that waits for each reply, and knows what has to come of it.
struct Client {
    driver: Driver,
    lmtp: bool,
    line_end: LineEnd,
    strict: bool,
    /// No CR was sent so far, where that matters.
    lf_session: bool,
    /// How much of the replies it has read.
    seen: usize,
    /// A challenge was the last reply.
    login: bool,
    /// Recipients that were taken, and whether any has a mailbox.
    recipients: usize,
    kept: bool,
    /// What there is of a message in chunks.
    chunks: Option<Reference>,
}

impl Client {
    fn talk(settings: &str, input: &Input<'_>) -> Self {
        let mut client = Self {
            driver: Driver::new(settings),
            lmtp: settings.contains("lmtp"),
            line_end: if settings.contains("keep-crlf") { LineEnd::Crlf } else { LineEnd::Lf },
            strict: settings.contains("strict"),
            lf_session: !settings.contains("strict"),
            seen: 0,
            login: false,
            recipients: 0,
            kept: false,
            chunks: None,
        };
        assert_eq!(client.say(b"").len(), 1, "a greeting");
        let mut rest = input.octets;
        while !rest.is_empty() && !client.driver.closed {
            let end = rest.iter().position(|&octet| octet == b'\n');
            let (line, behind) = rest.split_at(end.map_or(rest.len(), |at| at + 1));
            rest = client.line(line, behind);
        }
        client
    }

    /// Sends octets and reads the codes of the replies, each with its last line.
    fn say(&mut self, octets: &[u8]) -> Vec<String> {
        self.driver.receive(octets);
        let replies = self.driver.replies();
        let codes = replies[self.seen..].split_terminator("\r\n").filter(|line| line.as_bytes()[3] == b' ');
        let codes = codes.map(|line| line[..3].to_owned()).collect();
        self.seen = replies.len();
        codes
    }

    /// Sends a line, and the message that it may begin; returns what is left of the octets behind it.
    fn line<'a>(&mut self, line: &[u8], behind: &'a [u8]) -> &'a [u8] {
        let long = line.len() > COMMAND_LINE_OCTETS_MAX;
        let stored = self.driver.stored.len();
        let replies = self.say(line);
        self.lf_session &= !line.contains(&b'\r');
        let Some(text) = line.strip_suffix(b"\n") else {
            assert!(replies.len() <= usize::from(long || line.starts_with(b"\x16")), "part of a line is answered");
            return behind;
        };
        let good = !long && !self.login && (!self.strict || line.ends_with(b"\r\n"));
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let command = if good { Command::parse(text, self.strict).ok() } else { None };
        if let Some(Command::Bdat { octets, last }) = command.filter(|_| !self.driver.closed) {
            return self.chunk(octets, last, behind, replies, stored);
        }
        assert_eq!(self.driver.stored.len(), stored, "stored at a command");
        let [reply] = &replies[..] else { panic!("replies to {}: {replies:?}", line.escape_ascii()) };
        self.login = reply == "334";
        match (command, reply.as_str()) {
            (Some(Command::Mail(..) | Command::Hello(..) | Command::Rset), "250") => self.begin(),
            (Some(Command::Rcpt(path)), "250") => {
                self.recipients += 1;
                self.kept |= path.as_str() != "dropped@mailbox.example";
            }
            (_, "354") => return self.data(behind),
            _ => {}
        }
        behind
    }

    /// A transaction begins, or there is none.
    fn begin(&mut self) {
        (self.recipients, self.kept, self.chunks) = (0, false, None);
    }

    fn data<'a>(&mut self, text: &'a [u8]) -> &'a [u8] {
        let mut reference = Reference::new(Framing::Dot, self.line_end, self.lf_session);
        reference.decode(text);
        let (message, rest) = text.split_at(reference.consumed);
        // Until its last octet came there is neither a reply nor a message.
        let before = message.len() - usize::from(reference.ended);
        let stored = self.driver.stored.len();
        assert_eq!(self.say(&message[..before]), [""; 0], "a message is answered before its end");
        assert_eq!(self.driver.stored.len(), stored, "stored before its end");
        let replies = self.say(&message[before..]);
        self.lf_session = reference.lf_session;
        if reference.ended {
            let count = if self.lmtp { self.recipients } else { 1 };
            assert_eq!(replies.len(), count, "replies to a message: {replies:?}");
            self.check_stored(stored, &replies[0], &reference.stored);
        }
        rest
    }

    /// Sends a chunk, whose replies so far are those to a command of no octets; so many messages were stored before.
    fn chunk<'a>(
        &mut self, octets: u64, last: bool, behind: &'a [u8], mut replies: Vec<String>, stored: usize,
    ) -> &'a [u8] {
        let all = usize::try_from(octets).ok().and_then(|octets| behind.split_at_checked(octets));
        let (chunk, rest) = all.unwrap_or((behind, &[]));
        let (line_end, lf_session) = (self.line_end, self.lf_session);
        let mut chunks = self.chunks.take();
        if self.recipients > 0 && chunks.is_none() {
            chunks = Some(Reference::new(Framing::Chunk, line_end, lf_session));
        }
        if let Some(reference) = &mut chunks {
            reference.decode(chunk);
            self.lf_session = reference.lf_session;
        } else {
            self.lf_session &= !chunk.contains(&b'\r');
        }
        if let Some((end, before)) = chunk.split_last() {
            assert_eq!(replies, [""; 0], "a chunk is answered before it came");
            assert_eq!(self.say(before), [""; 0], "a chunk is answered before its end");
            assert_eq!(self.driver.stored.len(), stored, "stored before its end");
            replies = self.say(&[*end]);
        }
        if all.is_none() {
            assert_eq!(replies, [""; 0], "part of a chunk is answered");
            return rest;
        }
        match chunks {
            Some(mut reference) if last => {
                let count = if self.lmtp { self.recipients } else { 1 };
                assert_eq!(replies.len(), count, "replies to a message: {replies:?}");
                reference.finish();
                self.check_stored(stored, &replies[0], &reference.stored);
            }
            chunks => {
                assert_eq!(replies.len(), 1, "replies to a chunk: {replies:?}");
                assert_eq!(self.driver.stored.len(), stored, "stored before the last chunk");
                self.chunks = chunks;
            }
        }
        rest
    }

    /// At the end of a message: it is stored where the reply says so and somebody has it, and nothing else.
    fn check_stored(&mut self, before: usize, reply: &str, text: &[u8]) {
        let stored = &self.driver.stored[before..];
        assert_eq!(stored.len(), usize::from(reply == "250" && self.kept), "messages stored, and the reply is {reply}");
        for message in stored {
            let trace = message.strip_suffix(text).and_then(behind_trace);
            let (is, text) = (message.escape_ascii(), text.escape_ascii());
            assert_eq!(trace, Some(&b""[..]), "{is}\nis stored for\n{text}");
        }
        self.begin();
    }
}
