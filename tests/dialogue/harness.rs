//! Plays dialogues over a [`Session`] as the server would, without a socket. A script is one as people write it down:
//!
//! ```text
//! # A comment.
//! Settings: strict max-size=1000     what `Driver::new` knows
//! Feed: lockstep                     what stands behind a reply comes after it, or
//! Feed: packets                      moreover what stands between two replies comes all at once
//! Feed: socket                       as `--transcript` wrote it: played once, see `replay`
//! S: 220 mail.example …              a line of the server; `…` is anything
//! S: 250-…                           one or more lines of a long reply
//! C: NOOP\t                          a line of the client; CRLF follows. \r \n \t \0 \\ \' \" \xFF are octets
//! C: NOOP\n\                         a lone backslash at the end: no CRLF follows
//! Closed.                            the server has closed the connection
//! M: …                               a stored message: here its trace lines, whatever they are,
//! M: text                            and its text; another message stands apart
//! D: a b                             the mailboxes that it goes to, where they have names
//! # … 100 octets left out            in a transcript: so many of the client, whatever they were
//! ```
//!
//! A script that shows no message says that none was stored, and one without `Closed.` that the connection is open.

use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mailchute::smtp::address::Path;
use mailchute::smtp::data::LineEnd;
use mailchute::smtp::reply::Reply;
use mailchute::smtp::session::*;
use mailchute::smtp::trace::{MessageIds, Peer};
use mailchute::transcript::Transcript;

use crate::trace::behind_trace;

/// Takes all recipients: `a` and `b` at `mailbox.example` have mailboxes of their own, others share one. Some are refused
/// by a table. In a transcript it is the other way round: `replies` are what recipients were answered, one after the other.
#[derive(Default)]
struct Everybody {
    replies: Option<VecDeque<String>>,
    refusal: String,
}

impl Directory for Everybody {
    fn resolve(&mut self, recipient: &Path<'_>, take: &mut dyn FnMut(&str)) -> Result<(), &str> {
        if let Some(replies) = &mut self.replies {
            self.refusal = replies.pop_front().unwrap_or_default();
            take("");
            return if self.refusal.starts_with(['4', '5']) { Err(&self.refusal) } else { Ok(()) };
        }
        match recipient.as_str() {
            "nobody@mailbox.example" => return Err(Reply::NO_SUCH_MAILBOX.0),
            "full@mailbox.example" => return Err("452 4.2.2 Mailbox full"),
            "later@mailbox.example" => return Err("421 4.7.0 Come back later"),
            // An alias of which one mailbox can't be had.
            "half@mailbox.example" => {
                take("c");
                return Err(Reply::MAILBOX_FAILED.0);
            }
            "dropped@mailbox.example" => {}
            "all@mailbox.example" => ["a", "b"].into_iter().for_each(take),
            address => take(address.strip_suffix("@mailbox.example").unwrap_or_default()),
        }
        Ok(())
    }
}

/// What the server is around a session: it keeps what was not used, sends, and stores.
pub struct Driver {
    pub session: Session,
    settings: Settings,
    now: SystemTime,
    storage: Result<u64, Reply>,
    errors_max: u32,
    outcome: Outcome,
    /// The destination that has it not, of those that have.
    missing: Option<usize>,
    ids: MessageIds,
    spare: Spare,
    directory: Everybody,
    unread: Vec<u8>,
    sent: Vec<u8>,
    waiting: Vec<u8>,
    pub content: Vec<u8>,
    pub stored: Vec<Vec<u8>>,
    /// Where each of them went.
    pub destinations: Vec<String>,
    pub closed: bool,
    /// Where what is said is to be kept.
    pub transcript: Option<Transcript>,
}

impl Driver {
    pub fn new(options: &str) -> Self {
        let mut settings = mailchute::Config::default().protocol;
        settings.hostname = "mail.example".to_owned();
        let (mut dialect, mut storage, mut outcome, mut missing) = (Dialect::Smtp, Ok(u64::MAX), Outcome::Stored, None);
        let mut errors_max = u32::MAX;
        let mut peer = Peer::Address([192, 0, 2, 1].into());
        for option in options.split_whitespace() {
            let (name, value) = option.split_once('=').unwrap_or((option, "1"));
            if name == "hostname" {
                value.clone_into(&mut settings.hostname);
                continue;
            } else if name == "peer" {
                let address = value.trim_matches(['[', ']']).trim_start_matches("IPv6:");
                peer = address.parse().map_or(Peer::Local, Peer::Address);
                continue;
            }
            let number: u32 = value.parse().unwrap_or_else(|_| value.parse::<bool>().unwrap().into());
            match name {
                "lmtp" => dialect = if number > 0 { Dialect::Lmtp } else { Dialect::Smtp },
                "strict" => settings.strict = number > 0,
                "auth" => settings.accept_any_login = number > 0,
                "max-size" => settings.message_octets_max = number.into(),
                "recipients" => settings.recipients_max = number as usize,
                "transactions" => settings.transactions_max = Some(number).filter(|&most| most > 0),
                "reject" => settings.reject_bare_newline = number > 0,
                "keep-crlf" => settings.line_end = if number > 0 { LineEnd::Crlf } else { LineEnd::Lf },
                "room" => storage = Ok(number.into()),
                "disk-failed" => storage = Err(Reply::STORAGE_FAILED),
                "errors" => errors_max = number,
                "missing" => missing = Some(number as usize),
                "disk-full" => outcome = Outcome::Refused(Reply::STORAGE_FULL),
                _ => panic!("no such setting: {option}"),
            }
        }
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let session = Session::new(1, dialect, peer, &settings);
        let mut waiting = Vec::new();
        let (mut ids, spare, directory) = (MessageIds::new(2, 3), Spare::default(), Everybody::default());
        session.greet(&settings, ids.date(now), &mut waiting);
        let (unread, sent, content, stored, destinations, closed) = Default::default();
        Self {
            session,
            settings,
            now,
            storage,
            errors_max,
            outcome,
            missing,
            ids,
            spare,
            directory,
            unread,
            sent,
            waiting,
            content,
            stored,
            destinations,
            closed,
            transcript: None,
        }
    }

    /// What one read brings, through the session until it wants the next. Replies are sent only when they must be.
    pub fn receive(&mut self, octets: &[u8]) {
        if self.closed {
            return;
        }
        let mut input = mem::take(&mut self.unread);
        input.extend_from_slice(octets);
        let storage = if self.session.in_message() { Ok(u64::MAX) } else { self.storage };
        let mut turn = Turn {
            errors_max: self.errors_max,
            settings: &self.settings,
            now: self.now,
            ids: &mut self.ids,
            spare: &mut self.spare,
            directory: &mut self.directory,
            storage,
            more: false,
            replies: &mut self.waiting,
            content: &mut self.content,
            transcript: self.transcript.as_mut(),
        };
        let mut used = 0;
        loop {
            let (count, action) = self.session.receive(&input[used..], &mut turn);
            used += count;
            assert!(turn.replies.len() <= REPLIES_OCTETS_MAX, "{} octets of replies wait", turn.replies.len());
            match action {
                Action::Read => break,
                Action::Discard => turn.content.clear(),
                Action::Flush => {
                    assert!(!turn.replies.is_empty(), "nothing to send, but no room");
                    self.sent.append(turn.replies);
                }
                Action::Deliver => {
                    let message = mem::take(turn.content);
                    let transaction = self.session.transaction().unwrap();
                    let destinations: Vec<&str> = transaction.destinations().collect();
                    // One without a destination is dropped.
                    if self.outcome == Outcome::Stored && !destinations.is_empty() {
                        self.stored.push(message);
                        self.destinations.push(destinations.join(" "));
                    }
                    if let Some(missing) = self.missing {
                        let outcome = Outcome::Missing(missing, Reply::STORAGE_FAILED);
                        self.session.delivered(outcome, turn.spare, turn.replies);
                    }
                    self.session.delivered(self.outcome, turn.spare, turn.replies);
                }
                Action::Close => {
                    self.closed = true;
                    return;
                }
            }
        }
        let left = !self.session.in_message() && !self.content.is_empty();
        assert!(!left, "no message any more, but {} is kept", self.content.escape_ascii());
        self.unread = input.split_off(used);
        assert!(self.unread.len() <= COMMAND_LINE_OCTETS_MAX, "{} octets are kept", self.unread.len());
    }

    /// Ends the session, in which the client sent these octets; what was kept of them. All are there, but for what is
    /// masked or left out, and what comes behind the end.
    #[allow(dead_code)] // where nothing is kept
    pub fn end(&mut self, octets: &[u8]) -> Vec<u8> {
        let transcript = self.transcript.as_mut().unwrap();
        self.session.note_rest(&self.unread, transcript);
        transcript.end(self.closed);
        let said = said_by_client(&transcript.text);
        let whole = said.len() == octets.len() || self.closed && said.len() < octets.len();
        let alike = said.iter().zip(octets).all(|(shown, octet)| shown == octet || b"x!\x7F".contains(shown));
        assert!(whole && alike, "of {} was kept\n{}", octets.escape_ascii(), transcript.text);
        said
    }

    /// All replies so far.
    pub fn replies(&self) -> String {
        String::from_utf8([&self.sent[..], &self.waiting[..]].concat()).unwrap()
    }
}

/// What the client says between two replies, and all that the server says to it.
#[derive(Default)]
struct Exchange<'a> {
    packet: Vec<u8>,
    /// Each line with its number in the script.
    replies: Vec<(usize, &'a str)>,
    closed: bool,
}

/// Plays a transcript of a real server. What differs there is made alike: dates and ids; who was refused is taken from the
/// replies. Replies may stand later than what they answer, as a socket has them, and the last may be missing where the client
/// had gone. What was left out is filled up. What came from the server, not the protocol, such as a timeout, is said for it.
fn replay(name: &str, script: &str) {
    let settings = script.lines().find_map(|line| line.strip_prefix("Settings: ")).unwrap();
    let mut driver = Driver::new(settings);
    driver.errors_max = driver.errors_max.min(20);
    // What only the session itself says; in one file, so that no reply is forgotten here.
    let vocabulary = include_str!("../../src/smtp/reply.rs");
    let of_directory =
        [Reply::NO_SUCH_MAILBOX, Reply::RELAYING_DENIED, Reply::ALIAS_LOOP, Reply::MAILBOX_FAILED].map(|reply| reply.0);
    let is_of_directory = |line: &&str| {
        line.starts_with("250 2.1.5 <")
            || of_directory.contains(line)
            || line.starts_with(['4', '5']) && !vocabulary.contains(&format!("\"{line}\""))
    };
    let said = script.lines().filter_map(|line| line.strip_prefix("S: "));
    driver.directory.replies = Some(said.filter(is_of_directory).map(str::to_owned).collect());
    let by_server =
        [Reply::TIMED_OUT, Reply::SHUTTING_DOWN, Reply::NOT_SERVED, Reply::TOO_MANY_CONNECTIONS, Reply::EARLY_TALK];
    let (mut seen, mut waiting, mut said) = (0, Vec::new(), Vec::new());
    for (line, number) in script.lines().zip(1..) {
        let (kind, rest) = line.split_once(": ").unwrap_or((line, ""));
        if let Some(count) = left_out(line) {
            waiting.resize(waiting.len() + count, b'x');
            continue;
        }
        match kind {
            "C" => {
                waiting.extend(unescape(rest, b"\r\n"));
                continue;
            }
            "Settings" | "Feed" => continue,
            "S" => said.extend(unescape(rest, b"\r\n")),
            "Closed." | "# … the rest is left out" => {}
            _ => {
                assert!(line.starts_with('#'), "{name}:{number}: what is this? {line}");
                continue;
            }
        }
        driver.receive(&mem::take(&mut waiting));
        let replies = driver.replies();
        if kind != "S" {
            let end = (&replies[seen..], driver.closed);
            assert!(kind != "Closed." || end == ("", true), "{name}:{number}: more is said, or it is open: {end:?}");
            // Nothing follows that.
            return assert_eq!(script.lines().count(), number, "{name}: lines");
        }
        // Sent in part, where the client did not read.
        let Some(expected) = said.strip_suffix(b"\r\n") else { continue };
        let expected = String::from_utf8(expected.to_vec()).unwrap();
        if let Some(reply) = by_server.into_iter().find(|reply| !driver.closed && reply.0 == expected) {
            assert!(seen == 0 || seen == replies.len(), "{name}:{number}: not said: {}", &replies[seen..]);
            driver.session.close(reply);
            (driver.closed, seen) = (true, replies.len());
        } else {
            let next = replies[seen..].split("\r\n").next().unwrap();
            let same = alike(next) == alike(&expected);
            assert!(same, "{name}:{number}: expected\n{expected}\nbut the server says\n{}", &replies[seen..]);
            seen += next.len() + 2;
        }
        said.clear();
    }
    driver.receive(&waiting);
}

/// What a client says in a transcript.
#[allow(dead_code)] // where none are made
pub fn said_by_client(script: &str) -> Vec<u8> {
    let octets = script.lines().map(|line| match line.split_once(": ") {
        Some(("C", rest)) => unescape(rest, b"\r\n"),
        _ => left_out(line).map_or(Vec::new(), |count| vec![b'x'; count]),
    });
    octets.collect::<Vec<_>>().concat()
}

/// How many octets are not in a transcript, if its line says that.
fn left_out(line: &str) -> Option<usize> {
    line.strip_prefix("# … ")?.strip_suffix(" octets left out")?.parse().ok()
}

/// A line without what no two servers have in common.
fn alike(line: &str) -> &str {
    match line.split_once(" mailchute ready; ") {
        Some((greeting, _)) => greeting,
        None if line.starts_with("250 2.0.0 M") => &line[line.rfind(" Message").unwrap_or(0)..],
        None => line,
    }
}

/// Plays a script as it is written and checks it line by line, then in all other ways that must do the same.
pub fn play(name: &str, script: &str) {
    if script.lines().any(|line| line == "Feed: socket") {
        return replay(name, script);
    }
    let (mut settings, mut feed) = ("", "");
    let mut exchanges = vec![Exchange::default()];
    let mut messages: Vec<(usize, Vec<Vec<u8>>)> = Vec::new();
    let mut destinations: Vec<(usize, usize, &str)> = Vec::new();
    let mut in_message = false;
    for (line, number) in script.lines().zip(1..) {
        let (kind, rest) = line.split_once(": ").unwrap_or((line.trim_end_matches(':'), ""));
        let exchange = exchanges.last_mut().unwrap();
        match kind {
            "Settings" => settings = rest,
            "Feed" => feed = rest,
            "C" if exchange.replies.is_empty() => exchange.packet.extend(unescape(rest, b"\r\n")),
            "C" => exchanges.push(Exchange { packet: unescape(rest, b"\r\n"), ..Exchange::default() }),
            "S" => exchange.replies.push((number, rest)),
            "Closed." => exchange.closed = true,
            "D" => destinations.push((number, messages.len() - 1, rest)),
            "M" if in_message => messages.last_mut().unwrap().1.push(unescape(rest, b"\n")),
            "M" => messages.push((number, vec![unescape(rest, b"\n")])),
            _ => assert!(line.is_empty() || line.starts_with('#'), "{name}:{number}: what is this? {line}"),
        }
        in_message = kind == "M";
    }
    let mut driver = Driver::new(settings);
    let mut seen = 0;
    for exchange in &exchanges {
        driver.receive(&exchange.packet);
        let replies = driver.replies();
        let mut lines = replies[seen..].split_terminator("\r\n").peekable();
        for (number, pattern) in &exchange.replies {
            let expected = unescape(pattern, b"");
            let alike = lines.next().is_some_and(|line| matches(&expected, line.as_bytes()));
            assert!(alike, "{name}:{number}: expected\n{pattern}\nbut the server says\n{}", &replies[seen..]);
            while pattern.ends_with("-…") && lines.next_if(|line| line[3..].starts_with('-')).is_some() {}
        }
        let end = (lines.next(), driver.closed);
        let number = exchange.replies.last().map_or(0, |(number, _)| *number);
        assert_eq!(end, (None, exchange.closed), "{name}:{number}: what more the server says, and whether it closed");
        seen = replies.len();
    }
    for ((number, lines), stored) in messages.iter().zip(&driver.stored) {
        let traced = lines[0] == "…\n".as_bytes();
        let (lines, stored) = if traced { (&lines[1..], text_of(stored)) } else { (&lines[..], &stored[..]) };
        let shown = stored.escape_ascii().to_string().replace("\\n", "\n");
        assert!(matches(&lines.concat(), stored), "{name}:{number}: what was stored is\n{shown}");
    }
    assert_eq!(driver.stored.len(), messages.len(), "{name}: messages stored (left) and expected (right)");

    for (number, index, expected) in destinations {
        assert_eq!(driver.destinations[index], expected, "{name}:{number}: where it went");
    }

    let expected = (driver.replies(), driver.stored, driver.closed);
    let again = |what: &str, parts: &mut dyn Iterator<Item = &[u8]>| {
        let mut driver = Driver::new(settings);
        parts.for_each(|part| driver.receive(part));
        let got = (driver.replies(), driver.stored, driver.closed);
        assert!(got == expected, "{name}: it ends otherwise {what}: closed={}, and replies\n{}", got.2, got.0);
    };
    let mut packets: Vec<Vec<u8>> = exchanges.into_iter().map(|exchange| exchange.packet).collect();
    match feed {
        "" => packets = vec![packets.concat()],
        "lockstep" => {}
        "packets" => return,
        _ => panic!("{name}: no such way to feed: {feed}"),
    }
    again("all at once", &mut packets.iter().map(Vec::as_slice));
    again("one octet at a time", &mut packets.iter().flat_map(|packet| packet.chunks(1)));
    // At every offset, but for the largest scripts.
    let stride = 1 + packets.iter().map(Vec::len).sum::<usize>() / 5000 * 97;
    for (index, packet) in packets.iter().enumerate() {
        for at in (1..packet.len()).step_by(stride) {
            let (before, behind) = (packets[..index].iter(), packets[index + 1..].iter());
            let parts = [&packet[..at], &packet[at..]];
            let what = format!("in two parts, the first up to {}", packet[at.saturating_sub(20)..at].escape_ascii());
            again(&what, &mut before.map(Vec::as_slice).chain(parts).chain(behind.map(Vec::as_slice)));
        }
    }
}

/// What stands behind the trace lines, which have to be there.
pub fn text_of(message: &[u8]) -> &[u8] {
    behind_trace(message).unwrap_or_else(|| panic!("trace lines are missing in {}", message.escape_ascii()))
}

/// The octets that `line` stands for, and `end` unless a lone backslash takes its place.
fn unescape(line: &str, end: &[u8]) -> Vec<u8> {
    let mut octets = Vec::new();
    let mut rest = line;
    while let Some((text, escaped)) = rest.split_once('\\') {
        octets.extend_from_slice(text.as_bytes());
        let Some(letter) = escaped.chars().next() else { return octets };
        let length = if letter == 'x' { 3 } else { 1 };
        octets.push(match letter {
            'r' => b'\r',
            'n' => b'\n',
            't' => b'\t',
            '0' => 0,
            '\\' | '\'' | '"' => letter as u8,
            'x' => u8::from_str_radix(&escaped[1..3], 16).unwrap(),
            _ => panic!("no such escape: \\{escaped}"),
        });
        rest = &escaped[length..];
    }
    [octets, rest.as_bytes().to_vec(), end.to_vec()].concat()
}

/// Whether `text` is `pattern`, in which `…` stands for anything.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let any = "…".as_bytes();
    let Some(at) = pattern.windows(any.len()).position(|window| window == any) else { return pattern == text };
    let (start, rest) = (&pattern[..at], &pattern[at + any.len()..]);
    text.starts_with(start) && (start.len()..=text.len()).any(|at| matches(rest, &text[at..]))
}
