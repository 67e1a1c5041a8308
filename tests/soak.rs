//! A soak: hundreds of clients of all kinds, good and bad, over real sockets, while the table of recipients is read again
//! and the disk fills up in between. Whatever was acknowledged is there once and whole, and at rest the server holds at the
//! end what it held after a minute: memory within 5 %, descriptors exactly.
//!
//! `MAILCHUTE_SOAK_MINUTES=10 cargo test --release --test soak -- --ignored --nocapture` takes a minute more than it says,
//! which is the warm-up. Fractions of a minute are for whoever works on the test.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::random::Random;
use common::{Client, Place, Server, mailchute, skip, stored, tell, text, until};
use rustix::net::sockopt;
use rustix::process::{Resource, Rlimit, Signal};

/// Between two measurements at rest.
const ROUND: Duration = Duration::from_secs(60);
/// Clients of each kind at a time.
const CLIENTS: usize = 25;
/// Those that come all at once, with half a message each, so that every buffer is lent in each round.
const CREST: usize = 300;
const LISTS: usize = 190;
const CREST_INTERVAL: Duration = Duration::from_secs(20);
const CONNECTIONS_MAX: &str = "500";
const TIMEOUT: &str = "10s";
/// By when a silent peer must have been told to go.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// Rules in a table besides those that the clients need. More would leave holes in memory when they go, as large as what a leak
/// is told by.
const TABLES: [usize; 3] = [0, 100, 1_000];
const FULL_INTERVAL: Duration = Duration::from_secs(10);
const FULL_TIME: Duration = Duration::from_secs(2);
/// How far memory at the end may be from that after the warm-up, in hundredths.
const TOLERANCE: u64 = 5;
/// Longest pause between two messages of a client, in milliseconds.
const PAUSE: usize = 300;

/// The mailboxes, by number: the main Maildir and two that the table names.
const MAILBOXES: [&str; 3] = ["Maildir", "alice", "bob"];
/// Whom a message is for, by its number, and in which mailboxes it ends up.
const RECIPIENTS: [(&str, &[u8]); 4] = [
    ("postmaster@soak.example", &[0]),
    ("alice@soak.example", &[1]),
    ("bob+tag@soak.example", &[2]),
    ("all@soak.example", &[1, 2]),
];

// ---- what is known of the messages ---------------------------------------------------------------------------------

/// How far a message got, as its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Its end was not sent, so it must not be there.
    Unfinished,
    /// Its end was sent, and no reply came.
    Unknown,
    Acknowledged,
    Refused,
}

/// All messages since the last rest, each in each mailbox that it is for, and whether the reader has found it.
#[derive(Default)]
struct Ledger(Mutex<HashMap<(u64, u8), (Fate, bool)>>);

impl Ledger {
    fn set(&self, number: u64, mailboxes: &[u8], fate: Fate) {
        let mut entries = self.0.lock().unwrap();
        for &mailbox in mailboxes {
            let seen = entries.get(&(number, mailbox)).is_some_and(|entry| entry.1);
            if fate == Fate::Acknowledged && seen {
                // Another copy would be one that nobody sent.
                entries.remove(&(number, mailbox));
            } else {
                entries.insert((number, mailbox), (fate, seen));
            }
        }
    }

    fn found(&self, number: u64, mailbox: u8) {
        let mut entries = self.0.lock().unwrap();
        match entries.get(&(number, mailbox)).copied() {
            Some((Fate::Acknowledged, false)) => drop(entries.remove(&(number, mailbox))),
            Some((Fate::Unknown, false)) => drop(entries.insert((number, mailbox), (Fate::Unknown, true))),
            other => panic!("message {number} in {} though it is {other:?}", MAILBOXES[usize::from(mailbox)]),
        }
    }

    /// At rest, with all mailboxes read: nothing that was acknowledged is missing, nothing refused is there.
    fn settle(&self) {
        for (message, (fate, seen)) in self.0.lock().unwrap().drain() {
            let good = match fate {
                Fate::Unknown => true,
                Fate::Acknowledged => seen,
                Fate::Unfinished | Fate::Refused => !seen,
            };
            assert!(good, "message {message:?} is {fate:?}, and seen: {seen}");
        }
    }
}

/// Counts since the start.
#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    acknowledged: AtomicU64,
    octets: AtomicU64,
    /// Replies that begin with 4 and 5; among those the ones for a full disk, and for too many recipients, and 421.
    later: AtomicU64,
    never: AtomicU64,
    full: AtomicU64,
    recipients: AtomicU64,
    sent_away: AtomicU64,
    /// Connections that broke, or that the server closed.
    lost: AtomicU64,
    read: AtomicU64,
}

/// What all clients know.
struct Soak {
    smtp: SocketAddr,
    lmtp: SocketAddr,
    /// A Unix socket, for SMTP as well.
    socket: PathBuf,
    root: PathBuf,
    next: AtomicU64,
    /// The round is at its end.
    resting: AtomicBool,
    over: AtomicBool,
    ledger: Ledger,
    counts: Counts,
}

/// Has all others end, too, when its thread panics.
struct Alarm<'a>(&'a Soak);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.resting.store(true, Relaxed);
            self.0.over.store(true, Relaxed);
        }
    }
}

impl Soak {
    fn number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    fn is_resting(&self) -> bool {
        self.resting.load(Relaxed)
    }

    fn connect(&self) -> io::Result<TcpStream> {
        self.counts.connections.fetch_add(1, Relaxed);
        TcpStream::connect(self.smtp)
    }

    fn greeted(&self, address: SocketAddr) -> io::Result<Client> {
        self.counts.connections.fetch_add(1, Relaxed);
        let mut client = Client::new(TcpStream::connect(address)?);
        self.reply(&mut client)?;
        self.say(&mut client, if address == self.lmtp { "LHLO soak.example" } else { "EHLO soak.example" })?;
        Ok(client)
    }

    /// The next reply, which must come, unless the connection ends: a silence is the one thing that no client may meet.
    fn reply(&self, client: &mut Client) -> io::Result<String> {
        let reply = client.try_reply().inspect_err(|error| {
            assert!(!matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "the server does not answer");
        })?;
        let count = |counter: &AtomicU64, counts: bool| counter.fetch_add(u64::from(counts), Relaxed);
        count(&self.counts.later, reply.starts_with('4'));
        count(&self.counts.never, reply.starts_with('5'));
        count(&self.counts.full, reply.starts_with("452 4.3.1 "));
        count(&self.counts.recipients, reply.starts_with("452 4.5.3 "));
        count(&self.counts.sent_away, reply.starts_with("421 "));
        Ok(reply)
    }

    fn say(&self, client: &mut Client, line: &str) -> io::Result<String> {
        client.try_send(format!("{line}\r\n"))?;
        self.reply(client)
    }

    fn pause(&self, random: &mut Random) {
        let end = Instant::now() + Duration::from_millis(random.below(PAUSE) as u64);
        while !self.is_resting() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20).min(end - Instant::now()));
        }
    }

    /// What came of a message, by the reply to its end.
    fn told(&self, number: u64, mailboxes: &[u8], reply: &str) {
        let taken = reply.starts_with("250 ");
        self.counts.acknowledged.fetch_add(u64::from(taken), Relaxed);
        self.counts.octets.fetch_add(if taken { octets(number) as u64 } else { 0 }, Relaxed);
        self.ledger.set(number, mailboxes, if taken { Fate::Acknowledged } else { Fate::Refused });
    }
}

/// Mostly a few thousand octets, now and then more than a block.
fn octets(number: u64) -> usize {
    let mut random = Random::new(number);
    if random.below(20) == 0 { random.below(300_000) } else { random.below(5_000) }
}

fn message(number: u64) -> String {
    text(number, octets(number))
}

fn recipient(number: u64) -> (&'static str, &'static [u8]) {
    RECIPIENTS[number as usize % RECIPIENTS.len()]
}

// ---- clients -------------------------------------------------------------------------------------------------------

/// What a client does once, until its connection is at its end. An error is that the connection broke.
type Kind = fn(&Soak, &mut Random) -> io::Result<()>;

const KINDS: [(&str, Kind); 13] = [
    ("kept", kept),
    ("one message", one_message),
    ("pipelining", pipelining),
    ("slow", slow),
    ("silent", silent),
    ("never reading", never_reading),
    ("resetting", resetting),
    ("garbage", garbage),
    ("half a message", half_a_message),
    ("huge envelope", huge_envelope),
    ("bdat", bdat),
    ("lmtp", lmtp),
    ("probe", probe),
];

/// Says MAIL, RCPT and DATA, one by one or together. False when the message was refused before its text.
fn envelope(soak: &Soak, client: &mut Client, number: u64, together: bool) -> io::Result<bool> {
    let (to, _) = recipient(number);
    let lines = ["MAIL FROM:<from@a.example>".to_owned(), format!("RCPT TO:<{to}>"), "DATA".to_owned()];
    let mut replies = Vec::new();
    if together {
        client.try_send(format!("{}\r\n", lines.join("\r\n")))?;
        for _ in &lines {
            replies.push(soak.reply(client)?);
        }
    } else {
        for line in &lines {
            let reply = soak.say(client, line)?;
            let good = reply.starts_with('2') || reply.starts_with('3');
            replies.push(reply);
            if !good {
                break;
            }
        }
    }
    if replies.iter().zip("223".chars()).filter(|(reply, code)| reply.starts_with(*code)).count() == 3 {
        return Ok(true);
    }
    if replies.last().is_some_and(|reply| reply.starts_with('3')) {
        // All recipients were refused: the text is none.
        soak.say(client, ".")?;
    }
    soak.say(client, "RSET")?;
    Ok(false)
}

fn deliver(soak: &Soak, client: &mut Client, together: bool) -> io::Result<()> {
    let number = soak.number();
    let (_, mailboxes) = recipient(number);
    if envelope(soak, client, number, together)? {
        soak.ledger.set(number, mailboxes, Fate::Unknown);
        client.try_send(format!("{}.\r\n", message(number)))?;
        let reply = soak.reply(client)?;
        soak.told(number, mailboxes, &reply);
    }
    Ok(())
}

fn kept(soak: &Soak, random: &mut Random) -> io::Result<()> {
    let mut client = soak.greeted(soak.smtp)?;
    for _ in 0..random.below(50) {
        deliver(soak, &mut client, false)?;
        if random.below(5) == 0 {
            soak.say(&mut client, random.choose(&["NOOP", "RSET", "VRFY alice", "HELP", "EHLO again.example"]))?;
        }
        soak.pause(random);
        if soak.is_resting() {
            break;
        }
    }
    soak.say(&mut client, "QUIT").map(drop)
}

fn one_message(soak: &Soak, random: &mut Random) -> io::Result<()> {
    let mut client = soak.greeted(soak.smtp)?;
    deliver(soak, &mut client, false)?;
    soak.say(&mut client, "QUIT")?;
    soak.pause(random);
    Ok(())
}

fn pipelining(soak: &Soak, random: &mut Random) -> io::Result<()> {
    let mut client = soak.greeted(soak.smtp)?;
    for _ in 0..random.below(20) {
        deliver(soak, &mut client, true)?;
        soak.pause(random);
        if soak.is_resting() {
            break;
        }
    }
    // Gone without QUIT.
    Ok(())
}

/// A message in little pieces, each of them a packet.
fn slow(soak: &Soak, random: &mut Random) -> io::Result<()> {
    let mut client = soak.greeted(soak.smtp)?;
    let number = soak.number();
    let (_, mailboxes) = recipient(number);
    if envelope(soak, &mut client, number, false)? {
        let text = format!("{}.\r\n", message(number));
        let (mut rest, mut pieces) = (text.as_bytes(), 0);
        soak.ledger.set(number, mailboxes, Fate::Unknown);
        while !rest.is_empty() {
            pieces += 1;
            // A long one is not to take for ever.
            let most = if pieces < 200 { 40 } else { 20_000 };
            let (piece, behind) = rest.split_at((1 + random.below(most)).min(rest.len()));
            client.try_send(piece)?;
            rest = behind;
            std::thread::sleep(Duration::from_millis(random.below(8) as u64));
        }
        let reply = soak.reply(&mut client)?;
        soak.told(number, mailboxes, &reply);
    }
    soak.say(&mut client, "QUIT").map(drop)
}

/// Waits until the server closes the connection, or there is no time left.
fn await_end(soak: &Soak, stream: &mut TcpStream) -> io::Result<()> {
    let begun = Instant::now();
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    while !soak.is_resting() {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        assert!(begun.elapsed() < SILENCE_MAX, "a silent peer is not told to go");
    }
    Ok(())
}

/// Says nothing, or nothing more after a while.
fn silent(soak: &Soak, random: &mut Random) -> io::Result<()> {
    let mut stream = soak.connect()?;
    let said = ["", "EHLO c\r\n", "EHLO c\r\nMAIL FR", "HELO c\r\nMAIL FROM:<a@b.example>\r\n"];
    stream.write_all(random.choose(&said).as_bytes())?;
    await_end(soak, &mut stream)
}

/// What is asked by those who read no reply: what has long ones, which soon fill the kernel's buffers.
const QUESTIONS: [&str; 2] = ["HELP\r\n", "EHLO never.reading.example\r\n"];

/// Asks and asks, and reads no reply.
fn never_reading(soak: &Soak, random: &mut Random) -> io::Result<()> {
    let lines = random.choose(&QUESTIONS).repeat(1000);
    if random.below(2) == 0 {
        let mut stream = soak.connect()?;
        sockopt::set_socket_recv_buffer_size(&stream, 4096)?;
        stream.set_write_timeout(Some(Duration::from_millis(100)))?;
        // Megabytes of replies fit into the kernel's buffers: when they are full depends on what else this machine does.
        return ask(soak, &mut stream, &lines, None);
    }
    soak.counts.connections.fetch_add(1, Relaxed);
    let mut stream = UnixStream::connect(&soak.socket)?;
    stream.set_write_timeout(Some(Duration::from_millis(100)))?;
    ask(soak, &mut stream, &lines, Some(SILENCE_MAX))
}

/// Writes as much as the other side takes, until it closes, which has to be so long after it took nothing more.
fn ask(soak: &Soak, stream: &mut impl Write, lines: &str, patience: Option<Duration>) -> io::Result<()> {
    let mut stuck = None;
    while !soak.is_resting() {
        match stream.write(lines.as_bytes()) {
            Ok(count) => stuck = stuck.filter(|_| count == 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => drop(stuck.get_or_insert_with(Instant::now)),
            Err(error) => return Err(error),
        }
        let patient = stuck.zip(patience).is_none_or(|(since, patience)| since.elapsed() < patience);
        assert!(patient, "a peer that does not read is not told to go");
    }
    Ok(())
}

/// Closes with a reset, whatever the state.
fn reset(stream: &TcpStream) -> io::Result<()> {
    Ok(sockopt::set_socket_linger(stream, Some(Duration::ZERO))?)
}

fn resetting(soak: &Soak, random: &mut Random) -> io::Result<()> {
    soak.pause(random);
    let mut client = soak.greeted(soak.smtp)?;
    let number = soak.number();
    let (_, mailboxes) = recipient(number);
    if random.below(4) > 0 && envelope(soak, &mut client, number, false)? {
        let text = format!("{}.\r\n", message(number));
        let sent = if random.below(4) == 0 { text.len() } else { random.below(text.len()) };
        soak.ledger.set(number, mailboxes, if sent == text.len() { Fate::Unknown } else { Fate::Unfinished });
        client.try_send(&text[..sent])?;
    }
    reset(client.stream())
}

fn half_a_message(soak: &Soak, random: &mut Random) -> io::Result<()> {
    soak.pause(random);
    let mut client = soak.greeted(soak.smtp)?;
    let number = soak.number();
    let (_, mailboxes) = recipient(number);
    if envelope(soak, &mut client, number, random.below(2) == 0)? {
        let text = message(number);
        soak.ledger.set(number, mailboxes, Fate::Unfinished);
        client.try_send(&text[..random.below(text.len())])?;
        soak.pause(random);
    }
    Ok(())
}

fn garbage(soak: &Soak, random: &mut Random) -> io::Result<()> {
    soak.pause(random);
    let mut stream = soak.connect()?;
    let octets: Vec<u8> = match random.below(6) {
        0 => b"GET / HTTP/1.1\r\nHost: soak\r\n\r\n".to_vec(),
        1 => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        2 => b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n".to_vec(),
        3 => vec![b'x'; random.below(100_000)],
        4 => b"WHAT\r\n".repeat(random.below(100)),
        _ => (0..random.below(20_000)).map(|_| random.below(256) as u8).collect(),
    };
    stream.write_all(&octets)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    await_end(soak, &mut stream)
}

/// More recipients, with longer paths, than any transaction takes. Not so often that the others have no time.
fn huge_envelope(soak: &Soak, random: &mut Random) -> io::Result<()> {
    for _ in 0..20 {
        soak.pause(random);
    }
    let mut client = soak.greeted(soak.smtp)?;
    let number = soak.number();
    // Who is not in the table by name is alice in this domain.
    let name = "x".repeat(random.below(200));
    if !soak.say(&mut client, "MAIL FROM:<from@a.example>")?.starts_with("250 ") {
        return Ok(());
    }
    let mut accepted = 0;
    for group in 0..11 {
        let lines = (0..100).map(|index| format!("RCPT TO:<{name}{group}.{index}@catchall.example>\r\n"));
        client.try_send(lines.collect::<String>())?;
        for _ in 0..100 {
            accepted += usize::from(soak.reply(&mut client)?.starts_with("250 "));
        }
    }
    if accepted > 0 && random.below(2) == 0 && soak.say(&mut client, "DATA")?.starts_with("354 ") {
        soak.ledger.set(number, &[1], Fate::Unknown);
        client.try_send(format!("{}.\r\n", message(number)))?;
        let reply = soak.reply(&mut client)?;
        soak.told(number, &[1], &reply);
    }
    soak.say(&mut client, "QUIT").map(drop)
}

fn bdat(soak: &Soak, random: &mut Random) -> io::Result<()> {
    let mut client = soak.greeted(soak.smtp)?;
    for _ in 0..random.below(10) {
        let number = soak.number();
        let (to, mailboxes) = recipient(number);
        soak.say(&mut client, "MAIL FROM:<from@a.example>")?;
        if !soak.say(&mut client, &format!("RCPT TO:<{to}>"))?.starts_with("250 ") {
            soak.say(&mut client, "RSET")?;
            continue;
        }
        // Dots are not doubled here.
        let text = message(number).replace("\r\n..", "\r\n.");
        let (mut rest, mut last) = (text.as_bytes(), String::new());
        let whole = random.below(5) > 0;
        soak.ledger.set(number, mailboxes, if whole { Fate::Unknown } else { Fate::Unfinished });
        while !rest.is_empty() && (whole || rest.len() > text.len() / 2) {
            let (chunk, behind) = rest.split_at((1 + random.below(40_000)).min(rest.len()));
            rest = behind;
            let end = if rest.is_empty() && whole { " LAST" } else { "" };
            client.try_send(format!("BDAT {}{end}\r\n", chunk.len()))?;
            client.try_send(chunk)?;
            last = soak.reply(&mut client)?;
            if !last.starts_with("250 ") {
                break;
            }
        }
        if whole {
            soak.told(number, mailboxes, &last);
        }
        if !(whole && last.starts_with("250 ")) {
            soak.say(&mut client, "RSET")?;
        }
        soak.pause(random);
        if soak.is_resting() {
            break;
        }
    }
    Ok(())
}

/// A message for each of the mailboxes, all of which have a reply of their own.
fn lmtp(soak: &Soak, random: &mut Random) -> io::Result<()> {
    let mut client = soak.greeted(soak.lmtp)?;
    for _ in 0..random.below(20) {
        let number = soak.number();
        soak.say(&mut client, "MAIL FROM:<from@a.example>")?;
        let mut accepted = Vec::new();
        for (to, mailboxes) in &RECIPIENTS[..3] {
            if soak.say(&mut client, &format!("RCPT TO:<{to}>"))?.starts_with("250 ") {
                accepted.push(mailboxes[0]);
            }
        }
        if soak.say(&mut client, "DATA")?.starts_with("354 ") {
            soak.ledger.set(number, &accepted, Fate::Unknown);
            client.try_send(format!("{}.\r\n", message(number)))?;
            for mailbox in accepted {
                let reply = soak.reply(&mut client)?;
                soak.told(number, &[mailbox], &reply);
            }
        } else {
            soak.say(&mut client, "RSET")?;
        }
        soak.pause(random);
        if soak.is_resting() {
            break;
        }
    }
    soak.say(&mut client, "QUIT").map(drop)
}

/// As balancers look whether the server lives.
fn probe(soak: &Soak, random: &mut Random) -> io::Result<()> {
    let mut stream = soak.connect()?;
    match random.below(3) {
        0 => {}
        1 => {
            stream.write_all(b"EHLO probe.example\r\n")?;
            reset(&stream)?;
        }
        _ => stream.write_all(b"QUIT\r\n")?,
    }
    soak.pause(random);
    Ok(())
}

// ---- around them ---------------------------------------------------------------------------------------------------

/// Moves on and removes what is new, as a mail reader does, and judges it.
fn read_mail(soak: &Soak) {
    let _alarm = Alarm(soak);
    while !soak.over.load(Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
        for (mailbox, name) in (0..).zip(MAILBOXES) {
            let maildir = soak.root.join(name);
            for path in files(&maildir.join("new")) {
                let file = path.file_name().unwrap().to_str().unwrap();
                if file.starts_with('.') {
                    continue;
                }
                let moved = maildir.join("cur").join(format!("{file}:2,S"));
                fs::rename(&path, &moved).unwrap();
                let content = String::from_utf8(fs::read(&moved).unwrap()).unwrap();
                let number = content.split_once("\nSubject: ").and_then(|(_, rest)| rest.lines().next());
                let number = number.and_then(|number| number.parse().ok()).unwrap_or(0);
                let whole = content.starts_with("Return-Path: ")
                    && content.ends_with(&format!("\n{}", stored(&message(number))))
                    && file.ends_with(&format!(",S={}", content.len()));
                let start: String = content.chars().take(1000).collect();
                assert!(whole, "{}: not the message {number}: {start}", moved.display());
                fs::remove_file(&moved).unwrap();
                soak.ledger.found(number, mailbox);
                soak.counts.read.fetch_add(1, Relaxed);
            }
        }
    }
}

/// The paths in a directory; none where it is not there yet.
fn files(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

/// Where mail is kept, and how the room there comes to its end.
enum Disk {
    /// A small file system in memory, which another file fills.
    Tmpfs(Place),
    /// Without the right to mount one: no file may be larger than a few octets.
    Limited(Place),
}

impl Disk {
    fn new() -> Self {
        let place = Place::new();
        let tmpfs = ["-t", "tmpfs", "-o", "size=64m", "mailchute-soak"];
        let mounted = Command::new("mount").args(tmpfs).arg(place.path()).status();
        if mounted.is_ok_and(|status| status.success()) {
            tell("the way: a tmpfs of 64 MiB, filled by another file");
            return Self::Tmpfs(place);
        }
        skip("full disks, as a tmpfs can't be mounted here; in their place stands RLIMIT_FSIZE");
        Self::Limited(place)
    }

    fn place(&self) -> &Place {
        let (Self::Tmpfs(place) | Self::Limited(place)) = self;
        place
    }

    /// Leaves room for `octets` only, or again for all.
    fn fill(&self, server: &Server, octets: Option<u64>) {
        let ballast = self.place().path().join("ballast");
        match (self, octets) {
            (Self::Tmpfs(_), None) => fs::remove_file(ballast).unwrap(),
            (Self::Tmpfs(_), Some(octets)) => {
                let mut file = fs::File::create(ballast).unwrap();
                let full = loop {
                    if let Err(error) = file.write_all(&[1; 65_536]) {
                        break error;
                    }
                };
                assert_eq!(full.kind(), ErrorKind::StorageFull);
                file.set_len(file.metadata().unwrap().len().saturating_sub(octets)).unwrap();
            }
            (Self::Limited(_), current) => {
                let maximum = rustix::process::getrlimit(Resource::Fsize).maximum;
                let limit = Rlimit { current: current.or(maximum), maximum };
                rustix::process::prlimit(Some(server.pid()), Resource::Fsize, limit).unwrap();
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Self::Tmpfs(place) = self {
            let _ = Command::new("umount").arg("--lazy").arg(place.path()).status();
        }
    }
}

/// The table of recipients: what the clients need, a name that tells it from all others, and so many more rules.
fn write_table(soak: &Soak, file: &Path, generation: u64, more: usize) {
    let root = soak.root.display();
    let mut table = format!(
        "alice@soak.example {root}/alice/\nbob@soak.example {root}/bob/\n\
         all@soak.example alice@soak.example, bob@soak.example\n@catchall.example {root}/alice/\n\
         generation{generation}@soak.example discard\n"
    );
    for index in 0..more {
        let _ = writeln!(table, "user{index}.{generation}@soak.example alice@soak.example # one of many");
    }
    let new = file.with_extension("new");
    fs::write(&new, table).unwrap();
    fs::rename(new, file).unwrap();
}

/// Has the table read again, and waits until it counts.
fn reload(soak: &Soak, server: &Server, file: &Path, generation: u64, more: usize) {
    write_table(soak, file, generation, more);
    server.signal(Signal::HUP);
    until("the new table counts", || {
        soak.over.load(Relaxed) || {
            let asked = soak.greeted(soak.smtp).and_then(|mut client| {
                soak.say(&mut client, "MAIL FROM:<from@a.example>")?;
                soak.say(&mut client, &format!("RCPT TO:<generation{generation}@soak.example>"))
            });
            asked.is_ok_and(|reply| reply.starts_with("250 "))
        }
    });
}

/// Very many at once, each with half a message that fills a block, who are then gone at once, too.
fn crest(soak: &Soak) {
    let open = || -> io::Result<TcpStream> {
        let mut stream = soak.connect()?;
        stream.set_write_timeout(Some(Duration::from_millis(200)))?;
        stream.write_all(b"HELO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<alice@soak.example>\r\nDATA\r\n")?;
        stream.write_all(&b"a line of half a message\r\n".repeat(2_400))?;
        Ok(stream)
    };
    // And others with more recipients than all envelopes together may have.
    let list = |_| -> io::Result<TcpStream> {
        let mut stream = soak.connect()?;
        stream.set_write_timeout(Some(Duration::from_millis(200)))?;
        stream.write_all(b"HELO c\r\nMAIL FROM:<a@b.example>\r\n")?;
        for number in 0..100 {
            stream.write_all(format!("RCPT TO:<alice+{number:0>200}@soak.example>\r\n").as_bytes())?;
        }
        Ok(stream)
    };
    let lists: Vec<_> = (0..LISTS).filter_map(|number| list(number).ok()).collect();
    let streams: Vec<_> = (0..CREST).filter_map(|_| open().ok()).collect();
    std::thread::sleep(Duration::from_millis(500));
    drop(lists);
    for stream in streams.iter().step_by(2) {
        let _ = reset(stream);
    }
}

/// How many descriptors the server has open.
fn descriptors(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.pid().as_raw_nonzero())).unwrap().count()
}

/// The number of descriptors when it has not changed for a second.
fn descriptors_at_rest(server: &Server) -> usize {
    let (mut since, mut count) = (Instant::now(), 0);
    until("descriptors stay as they are", || {
        let now = descriptors(server);
        if now != count {
            (since, count) = (Instant::now(), now);
        }
        since.elapsed() > Duration::from_secs(1)
    });
    count
}

/// What there was besides clients.
#[derive(Default)]
struct Events {
    reloads: u64,
    full: u64,
    crests: u64,
}

/// All clients for the time of a round, with what comes in between.
fn round(soak: &Soak, server: &Server, disk: &Disk, table: &Path, time: Duration, random: &mut Random) -> Events {
    let mut events = Events::default();
    soak.resting.store(soak.over.load(Relaxed), Relaxed);
    std::thread::scope(|scope| {
        // Also when this thread panics, lest the others go on for ever.
        let _alarm = Alarm(soak);
        for (index, (name, kind)) in KINDS.iter().cycle().take(KINDS.len() * CLIENTS).enumerate() {
            let mut random = Random::new(soak.number() + index as u64);
            let client = move || {
                let _alarm = Alarm(soak);
                while !soak.is_resting() {
                    if kind(soak, &mut random).is_err() {
                        soak.counts.lost.fetch_add(1, Relaxed);
                        soak.pause(&mut random);
                    }
                }
            };
            let thread = std::thread::Builder::new().name((*name).to_owned()).stack_size(256 << 10);
            thread.spawn_scoped(scope, client).unwrap();
        }
        let begun = Instant::now();
        let mut last = [begun; 3];
        let mut filled = false;
        while begun.elapsed() < time && !soak.is_resting() {
            std::thread::sleep(Duration::from_millis(50));
            let mut due = |index: usize, interval| {
                let due = last[index].elapsed() >= interval;
                if due {
                    last[index] = Instant::now();
                }
                due
            };
            if due(0, RELOAD_INTERVAL) {
                events.reloads += 1;
                if random.below(4) == 0 {
                    fs::write(table, "alice@soak.example nowhere and back\n").unwrap();
                    server.signal(Signal::HUP);
                } else {
                    reload(soak, server, table, soak.number(), random.choose(&TABLES));
                }
            }
            if due(1, if filled { FULL_TIME } else { FULL_INTERVAL.min(time / 3) }) {
                filled = !filled;
                events.full += u64::from(filled);
                disk.fill(server, filled.then(|| random.below(200_000) as u64));
            }
            if due(2, CREST_INTERVAL.min(time / 3)) {
                events.crests += 1;
                crest(soak);
            }
        }
        if filled {
            disk.fill(server, None);
        }
        soak.resting.store(true, Relaxed);
    });
    events
}

#[test]
#[ignore = "takes minutes: MAILCHUTE_SOAK_MINUTES=10 cargo test --release --test soak -- --ignored --nocapture"]
fn memory_and_descriptors_stay_what_they_were() {
    let minutes = std::env::var("MAILCHUTE_SOAK_MINUTES").map_or(10.0, |minutes| minutes.parse::<f64>().unwrap());
    let time = Duration::from_secs_f64(minutes * 60.0);
    let length = ROUND.min(time);
    let rounds = (time.as_secs_f64() / length.as_secs_f64()).ceil() as u32;
    let mut random = Random::new(common::seed());
    let (disk, elsewhere) = (Disk::new(), Place::short());
    let table = elsewhere.path().join("recipients");
    let mut soak = Soak {
        smtp: ([0; 4], 0).into(),
        lmtp: ([0; 4], 0).into(),
        socket: elsewhere.path().join("socket"),
        root: disk.place().path().to_owned(),
        next: AtomicU64::new(1),
        resting: AtomicBool::new(false),
        over: AtomicBool::new(false),
        ledger: Ledger::default(),
        counts: Counts::default(),
    };
    for mailbox in &MAILBOXES[1..] {
        fs::create_dir(soak.root.join(mailbox)).unwrap();
    }
    write_table(&soak, &table, 0, 0);
    let mut command = mailchute();
    command.args(["--listen", "127.0.0.1:0", "--lmtp", "127.0.0.1:0", "--maildir"]).arg(disk.place().maildir());
    command.args(["--listen", &format!("unix:{}", soak.socket.display())]);
    command.args(["--max-connections", CONNECTIONS_MAX, "--timeout", TIMEOUT, "--min-free", "0", "--recipients"]);
    // Not a line for each message, which would fill our own memory.
    command.arg(&table).env("RUST_LOG", "warn,mailchute::event_loop=info");
    // What is freed goes back to the system, so that what is resident is what is held: holes that the GNU C library keeps in
    // its heap between pieces in use come and go by a tenth.
    command.env("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=2048:glibc.malloc.mmap_max=65000");
    let server = Server::ready(command);
    let lmtp = server.places[2].trim_end_matches(" (LMTP)");
    (soak.smtp, soak.lmtp) = (server.address(), lmtp.parse().unwrap());
    let soak = &soak;
    let (mut all, mut measured, mut before) = (Events::default(), Vec::new(), (0, 0));
    std::thread::scope(|scope| {
        scope.spawn(|| read_mail(soak));
        let _alarm = Alarm(soak);
        // While nobody else is there, so that all blocks are lent once before anything is measured.
        crest(soak);
        for number in 0..=rounds {
            let events = round(soak, &server, &disk, &table, length, &mut random);
            assert!(!soak.over.load(Relaxed), "see above");
            // The same state each time: no client, a short table, all mail read, and a message gets through.
            reload(soak, &server, &table, u64::from(number), 0);
            let mut client = server.connect();
            until("mail is taken", || {
                let taken = soak.counts.acknowledged.load(Relaxed);
                deliver(soak, &mut client, false).unwrap();
                soak.counts.acknowledged.load(Relaxed) > taken
            });
            drop(client);
            let descriptors = descriptors_at_rest(&server);
            let mailboxes = || MAILBOXES.iter().map(|mailbox| soak.root.join(mailbox));
            until("all mail is read", || mailboxes().all(|maildir| files(&maildir.join("new")).is_empty()));
            until("nothing is left in tmp/", || mailboxes().all(|maildir| files(&maildir.join("tmp")).is_empty()));
            // The last one is judged once it is removed.
            std::thread::sleep(Duration::from_millis(200));
            soak.ledger.settle();
            let (memory, most) = (server.memory("VmRSS"), server.memory("VmHWM"));
            let what = if number == 0 { "warm-up ".to_owned() } else { format!("round {number:2}") };
            let counts = &soak.counts;
            let (messages, connections) = (counts.acknowledged.load(Relaxed), counts.connections.load(Relaxed));
            tell(&format!(
                "{what}: {} messages acknowledged, {} connections, {} tables, {} full disks, {} crests; \
                 resident {memory} KiB, at most {most}; {descriptors} descriptors",
                messages - before.0,
                connections - before.1,
                events.reloads,
                events.full,
                events.crests,
            ));
            before = (messages, connections);
            measured.push((memory, descriptors));
            all.reloads += events.reloads;
            all.full += events.full;
            all.crests += events.crests;
        }
        soak.over.store(true, Relaxed);
    });
    let get = |counter: &AtomicU64| counter.load(Relaxed);
    let counts = &soak.counts;
    tell(&format!(
        "in all: {} messages acknowledged ({} MB), {} files read; refused: {} with 4xx ({} of a full disk, {} of too many recipients, \
         {} with 421), \
         {} with 5xx; {} connections, {} of which were lost; {} tables, {} full disks, {} crests; {} ticks of processor",
        get(&counts.acknowledged),
        get(&counts.octets) / 1_000_000,
        get(&counts.read),
        get(&counts.later),
        get(&counts.full),
        get(&counts.recipients),
        get(&counts.sent_away),
        get(&counts.never),
        get(&counts.connections),
        get(&counts.lost),
        all.reloads,
        all.full,
        all.crests,
        server.ticks(),
    ));
    let ((first, descriptors), last) = (measured[0], *measured.last().unwrap());
    tell(&format!(
        "resident after the warm-up {first} KiB, at the end {} KiB; most {}",
        last.0,
        server.memory("VmHWM")
    ));
    assert!(get(&counts.full) > 0 && get(&counts.acknowledged) > 1_000, "that was no soak");
    assert!(last.0.abs_diff(first) * 100 <= first * TOLERANCE, "memory: {measured:?}");
    assert_eq!(last.1, descriptors, "descriptors: {measured:?}");
    server.stop();
}
