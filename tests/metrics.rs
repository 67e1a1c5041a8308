//! `--metrics`: what it tells is what was done, whoever asks is answered, and mail does not mind them.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{Client, PATIENCE, Place, Server, mailchute, run, tell, text, until};
use rustix::process::Signal;

const REQUEST: &str = "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n";

fn start(place: &Place, options: &[&str]) -> Server {
    Server::start(place, &[&["--metrics", "127.0.0.1:0"], options].concat())
}

#[track_caller]
fn address(server: &Server) -> SocketAddr {
    server.places.iter().find_map(|place| place.strip_suffix(" (metrics)")).unwrap().parse().unwrap()
}

#[track_caller]
fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(address(server)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// All that comes up to a clean end: head and body, whose length is as announced unless it is the answer to HEAD.
#[track_caller]
fn answer(stream: &mut impl Read) -> (String, String) {
    let mut octets = Vec::new();
    stream.read_to_end(&mut octets).unwrap();
    let answer = String::from_utf8(octets).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    (head.to_owned(), body.to_owned())
}

/// How many descriptors it has, once it has looked through its Maildir after the start.
fn files(server: &Server) -> usize {
    let count = || std::fs::read_dir(format!("/proc/{}/fd", server.pid().as_raw_nonzero())).unwrap().count();
    (0..30).map(|_| (std::thread::sleep(Duration::from_millis(10)), count()).1).min().unwrap()
}

fn length(head: &str) -> usize {
    head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap().parse().unwrap()
}

#[track_caller]
fn ask(server: &Server) -> String {
    let mut stream = connect(server);
    stream.write_all(REQUEST.as_bytes()).unwrap();
    let (head, body) = answer(&mut stream);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && length(&head) == body.len(), "{head}");
    body
}

/// The figures by their names with labels.
fn figures(body: &str) -> BTreeMap<String, u64> {
    let lines = body.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').map(|(name, it)| (name.to_owned(), it.parse().unwrap())).unwrap()).collect()
}

/// What is not as at the start.
#[track_caller]
fn changes(server: &Server) -> BTreeMap<String, u64> {
    let mut all = figures(&ask(server));
    assert_eq!(all.len(), 13);
    all.retain(|name, figure| *figure != u64::from(name == "mailchute_healthy"));
    all
}

#[track_caller]
fn assert_changes(server: &Server, expected: &[(&str, u64)]) {
    let expected: BTreeMap<_, _> = expected.iter().map(|(name, it)| (format!("mailchute_{name}"), *it)).collect();
    let start = Instant::now();
    // What a connection did last is counted a moment after its end.
    while changes(server) != expected && start.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(changes(server), expected);
}

// ---- what is told ----------------------------------------------------------------------------------------------------

#[test]
fn the_text_is_what_prometheus_reads() {
    let place = Place::new();
    let server = start(&place, &[]);
    let mut stream = connect(&server);
    stream.write_all(REQUEST.as_bytes()).unwrap();
    let (head, body) = answer(&mut stream);
    // What comes behind is taken, and not answered.
    for _ in 0..5 {
        stream.write_all(REQUEST.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    for line in ["HTTP/1.1 200 OK", "Content-Type: text/plain; version=0.0.4", "Connection: close"] {
        assert!(head.lines().any(|it| it == line), "no {line} in {head}");
    }
    assert_eq!(length(&head), body.len());
    assert!(body.ends_with('\n'), "{body}");
    let (mut family, mut lines, mut known) = (String::new(), body.lines(), BTreeSet::new());
    let readme = std::fs::read_to_string("README.md").unwrap();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            help.split_once(' ').unwrap().0.clone_into(&mut family);
            let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {family} ")).unwrap();
            assert_eq!(kind, if family.ends_with("_total") { "counter" } else { "gauge" });
            assert!(known.insert(family.clone()), "{family} twice");
            assert!(readme.contains(&format!("| `{family}")), "README.md lacks {family}");
        } else {
            let (name, figure) = line.rsplit_once(' ').unwrap();
            let name = name.split_once('{').map_or(name, |(name, labels)| {
                assert!(labels.ends_with("\"}") && labels.matches("=\"").count() == 1, "{line}");
                let value = labels.split('"').nth(1).unwrap();
                assert!(readme.contains(&format!("`{value}`")), "README.md lacks {value}");
                name
            });
            assert_eq!(name, family, "{line}");
            figure.parse::<u64>().unwrap();
        }
    }
    assert_eq!(known.len(), 9, "{body}");
    server.stop();
}

#[test]
fn messages_and_recipients_are_counted() {
    let place = Place::new();
    let options = ["--domain", "b.example", "--max-size", "2000", "--lmtp", "127.0.0.1:0", "--sync", "always"];
    let server = start(&place, &options);
    assert_changes(&server, &[]);
    let mut client = server.connect();
    assert_changes(&server, &[("connections_total", 1), ("connections", 1)]);
    client.deliver("Subject: 1\r\n\r\n");
    client.deliver("Subject: 2\r\n\r\n");
    client.say("MAIL FROM:<from@a.example>", "250 ");
    client.say("RCPT TO:<to@elsewhere.example>", "550 ");
    client.say("RCPT TO:<to%c@b.example>", "550 ");
    // Neither is anybody's, nor did a message come.
    client.say("RSET", "250 ");
    client.say("RCPT TO:<to@b.example>", "503 ");
    client.say("DATA", "503 ");
    let stored = ("messages_total{result=\"stored\"}", 2);
    let bytes = ("stored_bytes_total", 28);
    let here = [("connections_total", 1), ("connections", 1), ("recipients_refused_total", 2), bytes, stored];
    assert_changes(&server, &here);
    // Refused at its end, in its last chunk, for all its recipients, and at MAIL.
    assert!(client.attempt(&text(1, 3000)).starts_with("552 "));
    client.say("MAIL FROM:<from@a.example>", "250 ");
    client.say("RCPT TO:<to@b.example>", "250 ");
    client.say(&format!("BDAT 3000 LAST\r\n{}", "x".repeat(2998)), "552 ");
    client.say("MAIL FROM:<from@a.example>", "250 ");
    client.say("RCPT TO:<to@elsewhere.example>", "550 ");
    client.say("DATA", "354 ");
    client.say("x\r\n.", "554 ");
    client.say("MAIL FROM:<from@a.example> SIZE=2001", "552 ");
    let refused = ("messages_total{result=\"refused\"}", 4);
    let here = [("connections_total", 1), ("connections", 1), ("recipients_refused_total", 3), bytes, stored, refused];
    assert_changes(&server, &here);
    // In LMTP each recipient counts, the octets once.
    let lmtp = server.places.iter().find_map(|place| place.strip_suffix(" (LMTP)")).unwrap();
    let mut lmtp = Client::new(TcpStream::connect(lmtp).unwrap());
    lmtp.expect("220 ");
    lmtp.say("LHLO x", "250");
    lmtp.say("MAIL FROM:<from@a.example>", "250 ");
    lmtp.say("RCPT TO:<one@b.example>", "250 ");
    lmtp.say("RCPT TO:<two@b.example>", "250 ");
    lmtp.say("DATA", "354 ");
    lmtp.say("12345678\r\n.", "250 ");
    lmtp.expect("250 ");
    for client in [client, lmtp] {
        let mut client = client;
        client.say("QUIT", "221 ");
        client.ended();
    }
    let (stored, bytes) = (("messages_total{result=\"stored\"}", 4), ("stored_bytes_total", 38));
    assert_changes(&server, &[("connections_total", 2), ("recipients_refused_total", 3), bytes, stored, refused]);
    server.stop();
}

#[test]
fn a_disk_that_takes_nothing_shows() {
    let place = Place::new();
    let server = start(&place, &["--min-free", "100%"]);
    until("it is full", || figures(&ask(&server))["mailchute_healthy"] == 0);
    let mut client = server.connect();
    client.say("MAIL FROM:<from@a.example>", "452 ");
    let figures = figures(&ask(&server));
    assert_eq!(figures["mailchute_messages_total{result=\"failed\"}"], 1);
    assert_eq!(figures["mailchute_healthy"], 0);
    server.stop();
    // One that is gone, and asking is enough to find that it is back.
    let server = start(&place, &["--sandbox", "off"]);
    let (there, away) = (place.maildir(), place.path().join("away"));
    std::fs::rename(&there, &away).unwrap();
    until("it is gone", || self::figures(&ask(&server))["mailchute_healthy"] == 0);
    std::fs::rename(&away, &there).unwrap();
    until("it is back", || self::figures(&ask(&server))["mailchute_healthy"] == 1);
    server.connect().deliver("Subject: x\r\n\r\n");
    server.stop();
}

#[test]
fn messages_that_wait_in_the_journal_show() {
    let place = Place::new();
    let server = start(&place, &["--journal-size", "1M"]);
    let mut clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
    let mut most = 0;
    let start = Instant::now();
    let mut sent = 0;
    while most == 0 && start.elapsed() < PATIENCE {
        // All at once, so that a scrape finds some that are answered and not yet published.
        clients.iter_mut().for_each(Client::begin);
        clients.iter_mut().for_each(|client| client.send("Subject: x\r\n\r\n.\r\n"));
        most = figures(&ask(&server))["mailchute_journal_waiting"];
        clients.iter_mut().for_each(|client| drop(client.expect("250 ")));
        sent += clients.len();
        most = most.max(figures(&ask(&server))["mailchute_journal_waiting"]);
    }
    assert!(most > 0, "none after {sent} messages");
    assert!(most <= sent as u64, "{most} of {sent}");
    until("all are published", || figures(&ask(&server))["mailchute_journal_waiting"] == 0);
    assert_eq!(place.files("new").len(), sent);
    server.stop();
}

#[test]
fn connections_that_are_refused_or_too_slow_are_counted() {
    let place = Place::new();
    let server = start(&place, &["--max-connections", "20", "--timeout", "300ms"]);
    let refused = "mailchute_connections_refused_total";
    let kept: Vec<_> = (0..20).map(|_| server.connect_silently()).collect();
    let mut one_more = server.connect_silently();
    one_more.expect("421 4.3.2 ");
    until("all are too slow", || figures(&ask(&server))["mailchute_connections"] == 0);
    let figures = figures(&ask(&server));
    assert_eq!(figures[&format!("{refused}{{reason=\"full\"}}")], 1);
    assert_eq!(figures[&format!("{refused}{{reason=\"per_address\"}}")], 0);
    assert_eq!(figures["mailchute_connections_total"], 21);
    assert_eq!(figures["mailchute_timeouts_total"], 20);
    drop(kept);
    server.stop();

    let server = start(&place, &["--allow-from", "192.0.2.0/24"]);
    server.connect_silently().expect("554 5.7.1 ");
    let figures = self::figures(&ask(&server));
    assert_eq!(figures[&format!("{refused}{{reason=\"network\"}}")], 1);
    server.stop();
}

/// Loopback has no limit, so this takes another address of this machine.
#[test]
fn connections_beyond_those_of_one_address_are_counted() {
    let place = Place::new();
    let Some(other) = other_address() else {
        return common::skip("this machine has no address but loopback");
    };
    let mut command = mailchute();
    command.args(["--listen", &format!("{other}:0"), "--metrics", "127.0.0.1:0", "--max-connections-per-ip", "2"]);
    command.args(["--allow-from", "any", "--maildir"]).arg(place.maildir());
    let server = Server::ready(command);
    let _kept: Vec<_> = (0..2).map(|_| server.connect()).collect();
    server.connect_silently().expect("421 4.3.2 ");
    let figures = figures(&ask(&server));
    assert_eq!(figures["mailchute_connections_refused_total{reason=\"per_address\"}"], 1);
    assert_eq!(figures["mailchute_connections_refused_total{reason=\"full\"}"], 0);
    server.stop();
}

/// That from which it would send to others; nothing is sent.
fn other_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}

// ---- how it is asked -------------------------------------------------------------------------------------------------

#[test]
fn other_methods_and_paths_are_told_so() {
    let place = Place::new();
    let server = start(&place, &[]);
    for (request, status, has_body) in [
        ("GET /metrics HTTP/1.0\r\n\r\n", "200 OK", true),
        ("GET /metrics HTTP/1.1\n\n", "200 OK", true),
        ("GET /metrics\r\n\r\n", "200 OK", true),
        ("GET /metrics?name=x HTTP/1.1\r\n\r\n", "200 OK", true),
        ("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "200 OK", false),
        ("GET / HTTP/1.1\r\n\r\n", "404 Not Found", false),
        ("GET /metrics/ HTTP/1.1\r\n\r\n", "404 Not Found", false),
        ("HEAD /x HTTP/1.1\r\n\r\n", "404 Not Found", false),
        ("GET\r\n\r\n", "404 Not Found", false),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405 Method Not Allowed", false),
        ("get /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed", false),
        ("\r\n\r\n", "405 Method Not Allowed", false),
        ("\u{16}\u{3}\u{1}\n\n", "405 Method Not Allowed", false),
    ] {
        let mut stream = connect(&server);
        stream.write_all(request.as_bytes()).unwrap();
        let (head, body) = answer(&mut stream);
        assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head} to {request:?}");
        assert_eq!(!body.is_empty(), has_body, "{body} to {request:?}");
        assert_eq!(length(&head) > 1000, status == "200 OK", "{head}");
        assert!(body.is_empty() || body.len() == length(&head), "{head}");
        assert_eq!(head.contains("Allow: GET, HEAD"), status.starts_with("405"), "{head}");
    }
    assert!(!server.log().contains("session="), "{}", server.log());
    server.stop();
}

#[test]
fn two_hundred_requests_in_a_row() {
    let place = Place::new();
    let server = start(&place, &["--log", "trace"]);
    let files = || files(&server);
    let before = (files(), server.log().lines().count());
    (0..200).for_each(|_| drop(ask(&server)));
    // Some at once.
    let mut streams = [(); 4].map(|()| connect(&server));
    streams.iter_mut().for_each(|stream| stream.write_all(REQUEST.as_bytes()).unwrap());
    streams.iter_mut().for_each(|stream| assert!(answer(stream).0.starts_with("HTTP/1.1 200 ")));
    drop(streams);
    until("no connection is left", || files() == before.0);
    assert_eq!(server.log().lines().count(), before.1, "{}", server.log());
    assert_eq!(changes(&server), BTreeMap::new());
    server.stop();
}

#[test]
fn a_request_may_come_by_octets_and_be_too_long() {
    let place = Place::new();
    let server = start(&place, &[]);
    let mut stream = connect(&server);
    for octet in REQUEST.bytes() {
        stream.write_all(&[octet]).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(answer(&mut stream).0.starts_with("HTTP/1.1 200 "));
    // A megabyte without an empty line, with one, and of other requests behind the first, all of it sent before reading.
    let line = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(1_000_000));
    let chatty = format!("{REQUEST}{}", "GARBAGE \u{0}\r\n\r\n".repeat(70_000));
    for request in [line.clone(), format!("{line}\r\n\r\n"), REQUEST.repeat(20_000), chatty, "x".repeat(1_000_000)] {
        let memory = server.memory("VmRSS");
        let mut stream = connect(&server);
        stream.write_all(request.as_bytes()).unwrap();
        let (head, _) = answer(&mut stream);
        let status = if request.starts_with('x') { "405" } else { "200" };
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert_eq!(head.matches("HTTP/1.1").count(), 1, "one answer");
        assert!(server.memory("VmRSS") < memory + 500, "{} KiB after {memory}", server.memory("VmRSS"));
    }
    server.stop();
}

#[test]
fn who_asks_and_goes_away_is_forgotten() {
    let place = Place::new();
    let server = start(&place, &[]);
    let files = || files(&server);
    let before = files();
    for request in ["", "GET", "GET /metrics HTTP/1.1\r\n", REQUEST] {
        let mut stream = connect(&server);
        stream.write_all(request.as_bytes()).unwrap();
        drop(stream);
        let mut stream = connect(&server);
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut octets = Vec::new();
        stream.read_to_end(&mut octets).unwrap();
        assert_eq!(octets.is_empty(), request != REQUEST);
    }
    until("all are gone", || files() == before);
    server.stop();
}

#[test]
fn who_hangs_makes_room_and_mail_goes_on() {
    let place = Place::new();
    let server = start(&place, &["--max-connections", "4"]);
    let mut idle: Vec<_> = (0..20).map(|_| connect(&server)).collect();
    ask(&server);
    idle.iter_mut().for_each(|stream| stream.set_nonblocking(true).unwrap());
    let mut is_open = |index: usize| {
        idle[index].read(&mut [0]).is_err_and(|error: std::io::Error| error.kind() == ErrorKind::WouldBlock)
    };
    until("the oldest are gone", || (0..17).all(|index| !is_open(index)));
    assert!((17..20).all(&mut is_open), "those beside the one that was served");
    // Half of a request, an answer that nobody reads, and a flood that never ends.
    idle.push(connect(&server));
    idle.last_mut().unwrap().write_all(&REQUEST.as_bytes()[..30]).unwrap();
    idle.push(connect(&server));
    idle.last_mut().unwrap().write_all(REQUEST.as_bytes()).unwrap();
    ask(&server);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flood = || {
            let mut sent = 0_u64;
            let block = [b'x'; 60_000];
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let mut stream = connect(&server);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) && stream.write_all(&block).is_ok() {
                    sent += block.len() as u64;
                }
            }
            sent
        };
        let flood = scope.spawn(flood);
        let mut client = server.connect();
        let mut longest = Duration::ZERO;
        for number in 0..50 {
            let start = Instant::now();
            client.deliver(&text(number, 1000));
            longest = longest.max(start.elapsed());
        }
        ask(&server);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let sent = flood.join().unwrap();
        tell(&format!("a message took {longest:?} at most, while {} MB came to metrics", sent / 1_000_000));
        assert!(longest < Duration::from_secs(10), "{longest:?}");
    });
    until("all is published", || place.files("new").len() == 50);
    // None of them has a place of those for mail.
    let _all: Vec<_> = (0..4).map(|_| server.connect()).collect();
    server.stop();
}

// ---- where it listens ------------------------------------------------------------------------------------------------

#[test]
fn it_listens_on_a_unix_socket_until_the_end_is_near() {
    let (place, short) = (Place::new(), Place::short());
    let path = short.path().join("metrics");
    let mut server = Server::start(&place, &["--metrics", &format!("unix:{}", path.display())]);
    server.wait_for_line(&format!("listening on unix:{} (metrics)", path.display()));
    let ask = || {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(REQUEST.as_bytes()).unwrap();
        answer(&mut stream)
    };
    assert!(ask().1.contains("\nmailchute_healthy 1\n"));
    let mut idle = UnixStream::connect(&path).unwrap();
    assert!(ask().1.contains("\nmailchute_connections 0\n"));
    let mut client = server.connect();
    client.begin();
    server.signal(Signal::TERM);
    until("it is removed", || !path.exists());
    idle.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(idle.read(&mut [0]).unwrap(), 0, "closed");
    client.send("Subject: last\r\n\r\n");
    client.say(".", "250 ");
    assert_eq!(server.end().code(), Some(0));
}

#[test]
fn where_it_can_not_listen_the_server_does_not_start() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _kept = std::net::TcpListener::bind(taken).unwrap();
    for (address, status) in [(taken.to_string(), 1), ("nonsense".to_owned(), 64)] {
        let mut command = mailchute();
        command.args(["--listen", "127.0.0.1:0", "--metrics", &address, "--maildir"]).arg(place.maildir());
        let ended = run(command);
        assert_eq!((ended.status.code(), ended.stderr.lines().count()), (Some(status), 1), "{}", ended.stderr);
        assert!(ended.stderr.contains("--metrics"), "{}", ended.stderr);
    }
    assert!(!place.maildir().exists());
}
