//! The protocol by dialogues, without a socket: those in `dialogue/*.smtp`, and those that a program writes better.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "dialogue/harness.rs"]
mod harness;
#[path = "common/random.rs"]
mod random;
#[path = "common/trace.rs"]
mod trace;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::iter::repeat_with;

use harness::{Driver, play, text_of};
use mailchute::smtp::reply::Reply;
use mailchute::smtp::session::COMMAND_LINE_OCTETS_MAX;
use random::Random;

macro_rules! dialogues {
    ($($name:ident)*) => {
        const DIALOGUES: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                let name = concat!("tests/dialogue/", stringify!($name), ".smtp");
                play(name, include_str!(concat!("dialogue/", stringify!($name), ".smtp")));
            }
        )*
    };
}

dialogues! {
    addresses
    aliases_overlap
    all_recipients_malformed
    all_recipients_refused
    auth
    auth_malformed_not_offered
    auth_not_offered
    auth_plain
    auth_plain_initial_response
    bare_newline_normalize
    bare_newline_reject
    bdat
    bdat_abandoned
    bdat_2_to_the_64
    bdat_control
    bdat_data_behind
    bdat_forty_digits
    bdat_huge
    bdat_huge_dropped
    bdat_malformed_behind
    bdat_malformed_strict
    bdat_negative
    bdat_no_number
    bdat_order
    bdat_pipelined
    bdat_refused_recipients
    bdat_reject_last_cr
    bdat_too_large
    bdat_zeros_in_front
    by_hand
    by_hand_two_messages
    data_malformed
    data_malformed_strict
    data_refused
    data_refused_help_then_text
    data_refused_then_commands
    data_refused_then_text
    data_refused_without_recipients
    delivered_to
    device_auth_parameter
    device_cups_line_feeds
    device_danfoss
    device_esp8266_login
    device_hello_names
    device_hp_tls_hello
    device_hpe_ilo
    device_lsi_megaraid
    device_nymea_pipelining
    device_ossec_line_feeds
    device_xerox_login
    disk_full
    dropped
    errors
    http_connect
    http_get
    http_post
    injection
    keep_crlf
    lf_session
    lf_session_strict
    limits
    lmtp
    lmtp_auth
    lmtp_disk_full
    lmtp_missing
    lmtp_refused
    lock_cleared_at_the_dot
    lock_cleared_between_chunks
    lock_cleared_by_a_chunk
    lock_cleared_by_a_command
    lock_cleared_by_a_lone_cr
    lock_cleared_in_a_message
    order
    parameters
    quit_with_the_text
    rfc2920_pipelining
    rfc2920_refused
    rfc2920_strict
    rfc5321_d1_typical
    rfc5321_d2_aborted
    rfc5321_d3_relayed
    rfc5321_d4_verifying
    size
    size_while_streaming
    smtputf8
    storage_failed
    storage_full
    strict_chunks
    strict_early_data
    strict_early_ehlo
    strict_early_helo
    strict_early_noop
    strict_early_quit
    strict_early_vrfy
    strict_syntax
    syntax
    table_replies
    tls_hello_later
    tls_hello_strict
    transcript_of_a_scanner
}

#[test]
fn every_dialogue_is_played() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dialogue");
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let is_dialogue = path.extension().is_some_and(|extension| extension == "smtp");
        assert!(!is_dialogue || DIALOGUES.contains(&name), "{name} is missing in dialogues!");
    }
}

/// From the greeting to DATA, with one recipient.
const TO_DATA: &str = "S: 220 …\nC: HELO client.example\nS: 250 …\nC: MAIL FROM:<a@b.example>\nS: 250 …\n\
                       C: RCPT TO:<c@d.example>\nS: 250 …\nC: DATA\nS: 354 …\n";

/// The same for one that is refused.
const TO_DATA_REFUSED: &str = "S: 220 …\nC: HELO client.example\nS: 250 …\nC: MAIL FROM:<a@b.example>\nS: 250 …\n\
                               C: RCPT TO:<ø@d.example>\nS: 553 …\nC: DATA\nS: 354 …\n";

/// All reply codes of a session, a reply of several lines counted once.
fn codes(driver: &Driver) -> Vec<u16> {
    let replies = driver.replies();
    let last_lines = replies.lines().filter(|line| line.as_bytes()[3] == b' ');
    last_lines.map(|line| line[..3].parse().unwrap()).collect()
}

// ------------------------------------------------------------------------------------------------------- limits

/// A thousand recipients are taken; the next RCPT alone is refused.
#[test]
fn a_thousand_recipients() {
    let mut script = "S: 220 …\nC: MAIL FROM:<a@b.example>\nS: 250 …\n".to_owned();
    let mut message = "M: Return-Path: <a@b.example>\n".to_owned();
    for number in 0..1000 {
        let _ = write!(script, "C: RCPT TO:<{number}@d.example>\nS: 250 2.1.5 <{number}@d.example>... Recipient ok\n");
        let _ = writeln!(message, "M: Delivered-To: {number}@d.example");
    }
    script += "C: RCPT TO:<one-more@d.example>\nS: 452 4.5.3 Too many recipients\nC: DATA\nS: 354 …\nC: text\nC: .\n";
    script += "S: 250 2.0.0 …\nC: MAIL FROM:<a@b.example>\nS: 250 …\nC: RCPT TO:<c@d.example>\nS: 250 …\n\n";
    play("a thousand recipients", &(script + &message + "M: Received: …\nM: text\n"));
}

/// Long ones fit, too; where the room for an envelope ends, each RCPT gets its own 452, and the others are served.
#[test]
fn the_room_for_recipients() {
    let mut driver = Driver::new("");
    driver.receive(b"MAIL FROM:<a@b.example>\r\n");
    (0..1000).for_each(|number| driver.receive(format!("RCPT TO:<{number:054}@d.example>\r\n").as_bytes()));
    driver.receive(b"DATA\r\n.\r\nMAIL FROM:<a@b.example>\r\n");
    let mut expected = [vec![220], vec![250; 1001], vec![354, 250, 250]].concat();
    assert_eq!(codes(&driver), expected);
    let path = format!("{}@d.example", "c".repeat(246));
    (0..300).for_each(|_| driver.receive(format!("RCPT TO:<{path}>\r\n").as_bytes()));
    driver.receive(b"DATA\r\n.\r\n");
    let room = 65536 / path.len();
    expected.extend([vec![250; room - 1], vec![452; 301 - room], vec![354, 250]].concat());
    assert_eq!(codes(&driver)[1005..], expected[1005..]);
}

/// LMTP answers for each of a thousand recipients, and never holds more replies than there is room for.
#[test]
fn a_thousand_lmtp_recipients() {
    let mut script = "Settings: lmtp\nS: 220 …\nC: LHLO b.example\nS: 250-…\nS: 250 ENHANCEDSTATUSCODES\n".to_owned();
    for outcome in ["C: text\nC: .\n", "C: text\nC: .\n"] {
        script += "C: MAIL FROM:<>\n";
        (0..1000).for_each(|number| writeln!(script, "C: RCPT TO:<{number}>").unwrap());
        script += "C: DATA\nS: 250 …\n";
        (0..1000).for_each(|number| writeln!(script, "S: 250 2.1.5 <{number}>... Recipient ok").unwrap());
        script += "S: 354 …\n";
        script += outcome;
        script += &"S: 250 2.0.0 … Message accepted for delivery\n".repeat(1000);
    }
    play("a thousand LMTP recipients", &(script + "M: …\nM: text\n\nM: …\nM: text\n"));
}

/// Lines of up to 2,048 octets are commands; of longer ones nothing is, and the session goes on.
#[test]
fn long_command_lines() {
    let fits = "x".repeat(2048 - "NOOP \r\n".len());
    let mut script = format!("S: 220 …\nC: NOOP {fits}\nS: 250 …\nC: NOOP {fits}x\nS: 500 5.5.2 Line too long\n");
    for octets in [2050, 2500, 4095, 4100, 70_000] {
        let long = "QUIT ".repeat(octets / 5);
        let _ = write!(script, "C: {long}\nS: 500 5.5.2 Line too long\nC: NOOP\nS: 250 2.0.0 OK\n");
    }
    play("long command lines", &script);
    play(
        "long command lines that end in LF",
        &script.replace("QUIT \n", "QUIT \\n\\\n").replace("NOOP\n", "NOOP\\n\\\n"),
    );
}

/// A CR in a line that was too long clears the line-end lock, too.
#[test]
fn line_end_lock_and_long_lines() {
    let long = "x".repeat(3000);
    for octets in [format!("{long}\\r{long}\\n\\"), format!("{long}\\n\\\nS: 500 …\nC: \\r\\n\\")] {
        let error = if octets.contains("S:") { "S: 500 5.5.1 …" } else { "S: 500 5.5.2 …" };
        let to_data = TO_DATA.replace("S: 220 …\n", "").replace("\nS", "\\n\\\nS");
        let script = format!("S: 220 …\nC: {octets}\n{error}\n{to_data}C: one\\n.\\n\\\nC: two\nC: .\nS: 250 …\n");
        play("the lock and long lines", &(script + "M: …\nM: one\nM: .\nM: two\n"));
    }
}

/// A request of HTTP is one however long its first line is.
#[test]
fn long_http_request() {
    let long = "x".repeat(3000);
    let body = "C: Host: mail.example\nC: \nC: MAIL FROM:<a@b.example>\n";
    play("a long HTTP request", &format!("S: 220 …\nC: POST /{long} HTTP/1.1\n{body}S: 554 5.5.0 …\nClosed.\n"));
}

/// A response that is too long ends the login, however it comes.
#[test]
fn long_login() {
    let long = "A".repeat(3000);
    let login = format!("C: AUTH PLAIN\nS: 334 \nC: {long}\nS: 500 5.5.2 …\nC: NOOP\nS: 250 2.0.0 OK\n");
    play("a long login", &format!("Settings: auth\nS: 220 …\n{login}"));
}

/// However much comes in one packet, replies wait in bounds, which the driver asserts.
#[test]
fn floods_of_commands() {
    let long = "n".repeat(250);
    let path = format!("<{}@d.example>", "p".repeat(255));
    let route = format!("@{}:", vec!["d".repeat(200); 3].join(",@"));
    for (command, code, times) in [
        ("NOOP\r\n".to_owned(), 250, 5000),
        ("NOOP\n".to_owned(), 250, 5000),
        ("\n".to_owned(), 500, 20_000),
        ("RSET\r\n".to_owned(), 250, 5000),
        ("HELP\r\n".to_owned(), 214, 5000),
        ("VRFY x\r\n".to_owned(), 252, 5000),
        (format!("EHLO {long}\r\n"), 250, 500),
        (format!("MAIL FROM:{path}\r\nRSET\r\n"), 250, 500),
        (format!("MAIL FROM:<{route}{}\r\nRSET\r\n", &path[1..]), 250, 100),
        ("BDAT 0 LAST\r\n".to_owned(), 503, 5000),
    ] {
        let mut driver = Driver::new("auth");
        driver.receive(command.repeat(times).as_bytes());
        let replies = times * if command.contains("RSET\r\n") && command.len() > 6 { 2 } else { 1 };
        assert_eq!(codes(&driver), [vec![220], vec![code; replies]].concat(), "{command}");
    }
}

/// A size that is declared is only a number.
#[test]
fn huge_chunk_takes_no_memory() {
    let mut driver = Driver::new("");
    driver.receive(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nBDAT 18446744073709551615 LAST\r\nx");
    assert!(driver.content.capacity() < 4096);
}

// ------------------------------------------------------------------------------------------------ end of the data

/// What some server somewhere took for the end of a message, and what comes near to it.
const NO_TERMINATORS: &[&str] = &[
    r"\n.\n",
    r"\n.\r\n",
    r"\r\n.\n",
    r"\n.\r",
    r"\r.\n",
    r"\r.\r",
    r"\r.\r\n",
    r"\r\n.\r",
    r"\n\n.\n\n",
    r"\n\n.\r\n",
    r"\r\n.\r\r\n",
    r"\r\r\n.\r\r\n",
    r"\r\r.\r\r",
    r"\r\n.\n\r",
    r"\n\r.\n\r",
    r"\n\r.\r\n",
    r"\r\n\r.\r\n",
    r"\r\n\n.\r\n",
    r"\r\n\0.\r\n",
    r"\r\n.\0\r\n",
    r"\r\n.\r\0\n",
    r"\r\0\n.\r\n",
    r"\0\r\n.\0\r\n",
    r"\n\0.\r\n",
    r"\r\n\0.\n",
    r"\r\n..\r\n",
    r"\r\n. \r\n",
    r"\r\n .\r\n",
    r"\r\n.\t\r\n",
    r"\r\n\t.\r\n",
    r"\n. \n",
    r"\r\n.\r \n",
    r"\r\n.\x0B\r\n",
    r"\x0B.\x0B",
    r"\x0C.\x0C",
    r"\r\n\x8D.\r\n",
    r"\r\n\xAE\r\n",
    r"\x8D\x8A.\x8D\x8A",
    r"\x8D\x8A\xAE\x8D\x8A",
    r"\r\x8A.\r\n",
    r"\xC2\x85.\xC2\x85",
    r"\xE2\x80\xA8.\xE2\x80\xA8",
    r"\r\n.=0D=0A",
    r"\x1A",
    r"\r\n\x04\r\n",
    r"\r\n\xEF\xBB\xBF.\r\n",
];

/// Each of them gives one message, or one refusal, whatever else is wrong with it.
#[test]
fn only_the_true_end_ends_a_message() {
    let text = |terminator: &str| {
        let smuggled = "MAIL FROM:<x@b.example>\nC: RCPT TO:<x@d.example>\nC: DATA\nC: smuggled\nC: ..\n";
        let chunk = "C: MAIL FROM:<x@b.example>\nC: RCPT TO:<x@d.example>\nC: BDAT 8 LAST\nC: smuggled\n";
        format!("C: text{terminator}{smuggled}{chunk}C: .\n")
    };
    let after = "C: NOOP\nS: 250 2.0.0 OK\n";
    let message = "\nM: …\nM: text…smuggled\nM: .\nM: …\nM: smuggled\n";
    for terminator in NO_TERMINATORS {
        let text = text(terminator);
        let bare = terminator.replace(r"\r\n", "");
        let bare = bare.contains(r"\r") || bare.contains(r"\n");
        let stored = format!("S: 250 2.0.0 …\n{after}{message}");
        let rejected = if bare { format!("S: 550 5.6.11 …\n{after}") } else { stored.clone() };
        play(terminator, &format!("{TO_DATA}{text}{stored}"));
        play(terminator, &format!("Settings: reject\n{TO_DATA}{text}{rejected}"));
        play(terminator, &format!("Settings: max-size=10\n{TO_DATA}{text}S: 552 5.3.4 …\n{after}"));
        play(terminator, &format!("{TO_DATA_REFUSED}{text}S: 554 5.5.1 …\n{after}"));
        play(terminator, &format!("Settings: disk-full\n{TO_DATA}{text}S: 452 4.3.1 …\n{after}"));
    }
}

/// Some of `words`, one behind the other.
fn some_of(words: &[&str], most: usize, random: &mut Random) -> Vec<u8> {
    let count = random.below(most + 1);
    repeat_with(|| random.choose(words)).take(count).collect::<String>().into_bytes()
}

/// Gives `octets` to a session in parts of any size.
fn feed(driver: &mut Driver, mut octets: &[u8], random: &mut Random) {
    let most = random.choose(&[1, 3, 30, usize::MAX]).min(octets.len() + 1);
    while !octets.is_empty() {
        let (part, rest) = octets.split_at(octets.len().min(1 + random.below(most)));
        driver.receive(part);
        octets = rest;
    }
}

/// A front that speaks CRLF: all that it sends, and what it expects to come of it. It reads naively: a line end is CRLF
/// and the end of a message `CRLF.CRLF`, and it knows how large and how clean the messages are that it passes on.
struct Front {
    settings: &'static str,
    wire: String,
    codes: Vec<u16>,
    /// The sender of each message that is to be stored, and its text.
    stored: Vec<(String, String)>,
    sender: String,
}

impl Front {
    fn new(settings: &'static str) -> Self {
        let (codes, stored) = (vec![220], Vec::new());
        let mut front = Self { settings, wire: String::new(), codes, stored, sender: String::new() };
        front.say("HELO front.example\r\n", 250);
        front
    }

    fn say(&mut self, octets: &str, code: u16) {
        self.wire.push_str(octets);
        self.codes.push(code);
    }

    /// MAIL and RCPT of its next message.
    fn envelope(&mut self, refused: bool) {
        self.sender = format!("Return-Path: <{}@a.example>", self.codes.len());
        self.say(&format!("MAIL FROM:<{}@a.example>\r\n", self.codes.len()), 250);
        let (recipient, code) = if refused { ("\u{f8}", 553) } else { ("c", 250) };
        self.say(&format!("RCPT TO:<{recipient}@d.example>\r\n"), code);
    }

    /// Passes on what its own client sent behind DATA, up to what it takes for the end.
    fn data(&mut self, sent: &str, refused: bool) {
        self.say("DATA\r\n", 354);
        let sent = format!("\r\n{sent}\r\n.\r\n");
        let (text, _) = sent.split_once("\r\n.\r\n").unwrap();
        let text = text.get(2..).map_or(String::new(), |text| format!("{text}\r\n"));
        let lines: Vec<&str> = text.split("\r\n").map(|line| line.strip_prefix('.').unwrap_or(line)).collect();
        let code = if refused { 554 } else { self.code(&lines.join("\r\n"), true) };
        self.say(&format!("{text}.\r\n"), code);
        self.store(&lines.join("\r\n"), code);
    }

    /// Passes on a text in chunks; without the last it is no message yet.
    fn chunks(&mut self, text: &str, refused: bool, whole: bool, random: &mut Random) {
        let mut sent = 0;
        let count = 1 + random.below(3);
        for number in 1..=count {
            let last = whole && number == count;
            let start = sent;
            sent = if last { text.len() } else { start + random.below(text.len() - start + 1) };
            let code = if refused { 503 } else { self.code(&text[..sent], last) };
            let word = if last { " LAST" } else { "" };
            self.say(&format!("BDAT {}{word}\r\n{}", sent - start, &text[start..sent]), code);
            if last {
                self.store(text, code);
            }
        }
    }

    /// The reply to so much of a text, whose last CR may still be one of a CRLF.
    fn code(&self, text: &str, whole: bool) -> u16 {
        let known = if whole { text } else { text.strip_suffix('\r').unwrap_or(text) };
        match self.settings {
            "max-size=9" if text.len() > 9 => 552,
            "reject" if known.replace("\r\n", "").contains(['\r', '\n']) => 550,
            "disk-full" if whole => 452,
            _ => 250,
        }
    }

    fn store(&mut self, text: &str, code: u16) {
        let newline = if self.settings == "keep-crlf" { "\r\n" } else { "\n" };
        let lines: Vec<_> = text.split("\r\n").map(|line| line.replace('\r', " ").replace('\n', newline)).collect();
        let mut stored = lines.join(newline);
        if !stored.is_empty() && !stored.ends_with(newline) {
            stored.push_str(newline);
        }
        self.stored.extend((code == 250).then(|| (self.sender.clone(), stored)));
    }
}

/// Behind a front that speaks CRLF and knows only `CRLF.CRLF`, a session sees the messages that the front does, word by
/// word, whatever is in them, and nothing of those that the front took back.
#[test]
fn nothing_is_smuggled_through_a_front() {
    let nasty = [
        "\r",
        "\n",
        ".",
        "\r\n",
        "\r\n",
        "\r\n.",
        "\n.",
        ".\n",
        ".\r",
        ".\r\n",
        "\n.\n",
        "a",
        "\0",
        " ",
        "\r\n..",
        "QUIT\n",
        "MAIL FROM:<x@b.example>\r\n",
        "RCPT TO:<x@d.example>\r\n",
        "DATA\r\n",
        "BDAT 9 LAST\r\n",
        "RSET\n",
        "RSET\r\n",
        "HELO x\n",
    ];
    let mut random = Random::new(20_260_101);
    for _ in 0..6000 {
        let mut front = Front::new(random.choose(&["", "reject", "max-size=9", "keep-crlf", "disk-full"]));
        for _ in 0..1 + random.below(4) {
            let refused = random.below(4) == 0;
            let text = String::from_utf8(some_of(&nasty, 12, &mut random)).unwrap();
            front.envelope(refused);
            let way = random.below(6);
            match way {
                0..3 => front.data(&text, refused),
                3..5 => front.chunks(&text, refused, way == 3, &mut random),
                _ => {}
            }
            // What is no message yet is taken back, and so is what had no recipient.
            if way > 3 || way == 3 && refused {
                front.say(random.choose(&["RSET\r\n", "HELO again.example\r\n"]), 250);
            }
        }
        front.say("QUIT\r\n", 221);
        let mut driver = Driver::new(front.settings);
        feed(&mut driver, front.wire.as_bytes(), &mut random);
        let what = || format!("{}: {}", front.settings, front.wire.escape_debug());
        assert_eq!(codes(&driver), front.codes, "{}", what());
        assert_eq!(driver.stored.len(), front.stored.len(), "{}", what());
        for (message, (sender, text)) in driver.stored.iter().zip(&front.stored) {
            assert!(message.starts_with(sender.as_bytes()), "{sender} in {}", what());
            let (is, expected) =
                (text_of(message).escape_ascii().to_string(), text.as_bytes().escape_ascii().to_string());
            assert_eq!(is, expected, "{}", what());
        }
    }
}

/// No octets whatever make a session panic, hold more than it may, or stop without a reason.
#[test]
fn any_octets_at_any_splits() {
    let words = [
        "HELO x\r\n",
        "EHLO x\r\n",
        "LHLO x\n",
        "MAIL FROM:<a@b>\r\n",
        "MAIL FROM:",
        "<a@b> SIZE=",
        "RCPT TO:<c@d>\r\n",
        "RCPT TO:",
        "<c@d>",
        "<\"q\\\"\"@d>",
        "<@r,@s:c@d>",
        "c@[IPv6:::1]",
        "DATA\r\n",
        "DATA\n",
        ".\r\n",
        "\r\n.\r\n",
        "\n.\n",
        "\r",
        "\n",
        "\0",
        "BDAT 3\r\n",
        "BDAT 0 LAST\r\n",
        "BDAT 18446744073709551615 LAST\r\n",
        "BDAT 9",
        "AUTH LOGIN\r\n",
        "AUTH PLAIN",
        " AHU=\r\n",
        "dXNlcg==\r\n",
        "*\r\n",
        "RSET\r\n",
        "NOOP\r\n",
        "VRFY \u{e9} SMTPUTF8\r\n",
        "HELP\r\n",
        "QUIT",
        "Received: x\r\n",
        "\u{e9}\u{85}",
        " SMTPUTF8",
        "=",
        ":",
        "GET ",
        "PROXY ",
        "\u{16}",
        "STARTTLS\r\n",
        "xxxxxxxxxxxxxxxx",
    ];
    let mut random = Random::new(20_260_102);
    for _ in 0..6000 {
        let settings = random.choose(&[
            "",
            "strict",
            "lmtp",
            "auth",
            "reject",
            "max-size=9 auth",
            "keep-crlf",
            "disk-full lmtp",
            "strict lmtp",
        ]);
        let mut octets = some_of(&words, 60, &mut random);
        for _ in 0..random.below(4) {
            let at = random.below(octets.len() + 1);
            octets.insert(at, u8::try_from(random.below(256)).unwrap());
        }
        let mut driver = Driver::new(settings);
        feed(&mut driver, &octets, &mut random);
        for message in &driver.stored {
            text_of(message);
        }
    }
    for _ in 0..2000 {
        let count = random.below(300);
        let octets: Vec<u8> = repeat_with(|| random.choose(b"\r\n. :<>@\"\\[]=\0\x16\x80\xFFaAeElLoOmMiIfFrRdDtTbB09"))
            .take(count)
            .collect();
        feed(&mut Driver::new("auth"), &octets, &mut random);
    }
}

// --------------------------------------------------------------------------------------------------- the message

/// A message in chunks of any size is the message as DATA would have brought it.
#[test]
fn chunks_of_any_size() {
    let text = b"Subject: chunks\r\n\r\n.dot\r\n.\r\nlone\nLF, lone\rCR\r\n\0\x80\r\n\r\r\nno line end";
    let expected = b"Subject: chunks\n\n.dot\n.\nlone\nLF, lone CR\n\0\x80\n \nno line end\n";
    let mut random = Random::new(20_260_103);
    for size in 0..=text.len() {
        for last_empty in [false, true] {
            let mut wire = b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n".to_vec();
            let mut rest = &text[..];
            while !rest.is_empty() {
                let most = if size == 0 { 1 + random.below(9) } else { size };
                let (chunk, behind) = rest.split_at(most.min(rest.len()));
                let last = if behind.is_empty() && !last_empty { " LAST" } else { "" };
                wire.extend_from_slice(format!("BDAT {}{last}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                rest = behind;
            }
            wire.extend_from_slice(if last_empty { b"BDAT 0 LAST\r\nQUIT\r\n" } else { b"QUIT\r\n" });
            let mut driver = Driver::new("");
            feed(&mut driver, &wire, &mut random);
            assert_eq!(driver.stored.len(), 1);
            assert_eq!(text_of(&driver.stored[0]).escape_ascii().to_string(), expected.escape_ascii().to_string());
            assert!(driver.closed);
        }
    }
}

/// The larger dialogue of RFC 3030: a chunk of 100,000 octets, one of 324, and the end of them.
#[test]
fn large_chunks() {
    let (first, second) = ("x".repeat(99_998), "y".repeat(322));
    let script = format!(
        "S: 220 …\nC: EHLO cnri.reston.va.us\nS: 250-…\nS: 250 ENHANCEDSTATUSCODES\nC: MAIL FROM:<ned@ymir.claremont.edu>\n\
         S: 250 …\nC: RCPT TO:<gvaudre@cnri.reston.va.us>\nS: 250 …\nC: BDAT 100000\nC: {first}\n\
         S: 250 2.0.0 100000 octets received\nC: BDAT 324\nC: {second}\nS: 250 2.0.0 324 octets received\nC: BDAT 0 LAST\n\
         S: 250 2.0.0 …\nC: QUIT\nS: 221 …\nClosed.\nM: …\nM: {first}\nM: {second}\n"
    );
    play("large chunks", &script);
}

/// A hundred servers may have had a message before; one more, and it goes in circles.
#[test]
fn mail_loops() {
    let received = "C: rEcEiVeD: from x.example by y.example\nC: \\tfor <c@d.example>; yesterday\n";
    let script = |count: usize, behind: &str| format!("{TO_DATA}{}{behind}C: .\n", received.repeat(count));
    let stored = |script: String| {
        let text = script.split_once("354 …\n").unwrap().1.replace("C: .\n", "").replace("C:", "M:");
        format!("{script}S: 250 2.0.0 …\n\nM: …\n{text}")
    };
    play("a long way", &stored(script(100, "C: Subject: x\n")));
    play("a long way with another in the text", &stored(script(100, "C: \nC: Received: quoted\n")));
    play("a mail loop", &format!("{}S: 554 5.4.6 …\nC: NOOP\nS: 250 …\n", script(101, "C: Subject: x\n")));
    play("a mail loop to its very end", &format!("{}S: 554 5.4.6 …\nC: NOOP\nS: 250 …\n", script(101, "")));
}

/// The id in the reply is the one in the trace line, and every message has its own.
#[test]
fn ids() {
    let message = "MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n.\r\n";
    let mut driver = Driver::new("");
    driver.receive(message.repeat(3).as_bytes());
    let replies = driver.replies();
    let accepted = |line| str::strip_prefix(line, "250 2.0.0 ")?.strip_suffix(" Message accepted for delivery");
    let ids: Vec<&str> = replies.lines().filter_map(accepted).collect();
    assert_eq!(ids.len(), 3);
    for (id, message) in ids.iter().zip(&driver.stored) {
        assert!(String::from_utf8_lossy(message).contains(&format!(" with SMTP id {id}\n")));
        assert_eq!(ids.iter().filter(|other| *other == id).count(), 1);
    }
}

// -------------------------------------------------------------------------------------------------------- the end

/// One word for the administrator, of those that the README explains.
#[test]
fn hints() {
    let to_rcpt = "HELO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n";
    let to_data = format!("{to_rcpt}DATA\r\n");
    let mut words = BTreeSet::new();
    for (settings, octets, hint) in [
        ("", format!("{to_data}text\n.\n"), Some("lf-dot")),
        ("", format!("{to_data}text\r\n.\n"), Some("lf-dot")),
        ("", format!("{to_data}text\n.\r\n"), Some("lf-dot")),
        ("", format!("{to_data}text\n.\ntext"), None),
        ("", format!("{to_data}text\n.\n\r\n.\r\n"), None),
        ("", to_data.replace('\r', "") + "text\n.\r\n", Some("lf-dot")),
        ("", to_data.replace('\r', "") + "text\n.\n", None),
        // Who waits in vain may say so, which is text.
        ("", format!("{to_data}text\n.\nQUIT\r\n"), Some("lf-dot")),
        ("", format!("{to_data}text\n.\r\nQUIT\r\n"), Some("lf-dot")),
        ("", format!("{to_data}text\n.\n\0QUIT\r\n"), Some("lf-dot")),
        ("", format!("{to_data}text\n.\n\0QUIT\r\n\0text\r\n"), None),
        ("", format!("{to_data}text\n.\nQUIT\r\n.\r\n"), None),
        ("", format!("{to_data}text.\nQUIT\r\n"), None),
        ("", format!("{to_data}text\r\n.\r\nQUIT\r\n"), None),
        ("", format!("{to_data}text\r\n\0QUIT\r\n"), None),
        ("", format!("{to_rcpt}BDAT 14\r\ntext\n.\nQUIT\r\n"), None),
        ("", "GET / HTTP/1.1\r\n".to_owned(), Some("http")),
        ("", "\u{16}\u{3}\u{1}".to_owned(), Some("tls-on-plain")),
        ("", "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nEHLO x\r\n".to_owned(), Some("proxy-header")),
        ("", "EHLO x\r\nAUTH LOGIN\r\n".to_owned(), Some("auth-required-by-client")),
        ("", "EHLO x\r\nAUTH LOGIN\r\nMAIL FROM:<>\r\n".to_owned(), None),
        ("", format!("{to_rcpt}AUTH LOGIN\r\nDATA\r\n.\r\n"), None),
        ("auth", "EHLO x\r\nAUTH LOGIN\r\n".to_owned(), None),
        ("strict", "HELO\r\n".to_owned(), Some("too-strict")),
        ("strict", "HELO x\n".to_owned(), Some("too-strict")),
        ("strict", "MAIL FROM:<>\r\n".to_owned(), Some("too-strict")),
        ("strict", "HELO x\r\n\0MAIL FROM: a@b.example\r\n".to_owned(), Some("too-strict")),
        ("strict", "HELO x\r\nMAIL FROM:<>\r\n".to_owned(), Some("too-strict")),
        ("strict", "HELO\r\n\0HELO x\r\n\0MAIL FROM:<>\r\n".to_owned(), None),
        ("strict auth", "EHLO\r\n\0EHLO x\r\n\0AUTH PLAIN =\r\n".to_owned(), Some("too-strict")),
        ("strict", "HELO x\r\n\0NONSENSE\r\n\0MAIL FROM\r\n".to_owned(), None),
        ("strict", format!("NOOP {}\r\n", "x".repeat(COMMAND_LINE_OCTETS_MAX)), None),
        ("", "MAIL FROM:<>\r\nRCPT\r\n".to_owned(), None),
        ("lmtp", "MAIL FROM:<>\r\n".to_owned(), None),
    ] {
        let mut driver = Driver::new(settings);
        // NUL stands between what comes in packets of their own.
        octets.split('\0').for_each(|packet| driver.receive(packet.as_bytes()));
        assert_eq!(driver.session.hint(), hint, "{octets}");
        words.extend(hint);
    }
    let section = include_str!("../README.md").split_once("| hint |").unwrap().1.split_once("\n\n").unwrap().0;
    let explained = section.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0));
    assert_eq!(explained.collect::<BTreeSet<_>>(), words, "explained in the README (left) and tested (right)");
}

/// Where the server itself ends a session, nothing that comes later is heard.
#[test]
fn ended_by_the_server() {
    for (early, reply) in [(true, Reply::EARLY_TALK), (false, Reply::SHUTTING_DOWN)] {
        let mut driver = Driver::new("strict");
        let mut replies = Vec::new();
        if early {
            driver.session.close(Reply::EARLY_TALK).write(&mut replies);
        } else {
            driver.session.close(reply).write(&mut replies);
        }
        assert_eq!(replies, format!("{}\r\n", reply.0).into_bytes());
        driver.receive(b"EHLO x\r\n");
        assert!(driver.closed);
        assert_eq!(codes(&driver), [220]);
    }
}
