//! The program as people run it: the real binary, real sockets, real signals, and a real client library.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{
    Client, Ended, PATIENCE, Place, Server, mailchute, mailchute_as_somebody, mailchute_by_shell, run, skip, text,
    until,
};
use lettre::message::{Attachment, Body, SinglePart, header};
use lettre::{Message, SmtpTransport, Transport};
use mailchute::{Config, EventLoop};
use rustix::net::SendFlags;
use rustix::process::{Resource, Rlimit, Signal};

// ---- a client library ----------------------------------------------------------------------------------------------

fn lettre_to(server: &Server) -> SmtpTransport {
    SmtpTransport::builder_dangerous("127.0.0.1").port(server.address().port()).timeout(Some(PATIENCE)).build()
}

#[test]
fn lettre_delivers_to_several_recipients() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let message = Message::builder()
        .from("Ann <ann@a.example>".parse().unwrap())
        .to("bob@b.example".parse().unwrap())
        .cc("carol@c.example".parse().unwrap())
        .bcc("dave@d.example".parse().unwrap())
        .subject("Three of you")
        .body("Hello.\r\n.\r\n..and good bye.".to_owned())
        .unwrap();
    let response = lettre_to(&server).send(&message).unwrap();
    assert!(response.is_positive());
    let stored = place.message();
    let id = response.message().next().unwrap().split(' ').nth(1).unwrap();
    assert!(stored.starts_with("Return-Path: <ann@a.example>\n"), "{stored}");
    for recipient in ["bob@b.example", "carol@c.example", "dave@d.example"] {
        assert_eq!(stored.matches(&format!("Delivered-To: {recipient}\n")).count(), 1, "{stored}");
    }
    assert!(stored.contains("Subject: Three of you\n"), "{stored}");
    assert!(stored.ends_with("\n\nHello.\n.\n..and good bye.\n"), "{stored}");
    assert!(stored.contains(&format!(" id {id}")), "{id}: {stored}");
    assert!(place.files("new")[0].to_str().unwrap().contains(id), "{id}");
    server.stop();
}

#[test]
fn lettre_delivers_8_bit_text_and_attachments() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let transport = lettre_to(&server);
    let words = "Grüße aus Ærøskøbing — 42 €".to_owned();
    let body = Body::new_with_encoding(words.clone(), header::ContentTransferEncoding::EightBit).unwrap();
    let message = || Message::builder().from("a@a.example".parse().unwrap()).to("b@b.example".parse().unwrap());
    transport.send(&message().singlepart(SinglePart::plain(body)).unwrap()).unwrap();
    let stored = place.message();
    assert!(stored.contains("Content-Transfer-Encoding: 8bit\n"), "{stored}");
    assert!(stored.trim_end().ends_with(&format!("\n\n{words}")), "{stored}");
    let octets: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let attachment = Attachment::new("all.bin".to_owned()).body(octets, "application/octet-stream".parse().unwrap());
    let message = message().singlepart(attachment).unwrap();
    let sent = String::from_utf8(message.formatted()).unwrap();
    transport.send(&message).unwrap();
    let stored = place.messages().into_iter().max_by_key(Vec::len).unwrap();
    assert!(String::from_utf8(stored).unwrap().trim_end().ends_with(common::stored(&sent).trim_end()));
    server.stop();
}

// ---- octets as they may come ---------------------------------------------------------------------------------------

const DIALOGUE: &str = "EHLO client.example\r\n\
    MAIL FROM:<a@b.example>\r\n\
    RCPT TO:<c@d.example>\r\n\
    DATA\r\n\
    Subject: in parts\r\n\r\n..one dot\r\n. \r\nlast\r\n.\r\n\
    NOOP\r\n\
    QUIT\r\n";
const DIALOGUE_STORED: &str = "\nSubject: in parts\n\n.one dot\n \nlast\n";

/// Sends `parts`, each in a packet of its own, and gives the replies without what differs each time.
fn play<'a>(server: &Server, parts: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let mut client = server.connect();
    for (index, part) in parts.enumerate() {
        if index > 0 {
            // Time to read what came, so that the next part comes alone.
            std::thread::sleep(Duration::from_millis(1));
        }
        client.send(part);
    }
    let mut replies = client.rest();
    for reply in &mut replies {
        if let Some((_, rest)) = reply.strip_prefix("250 2.0.0 ").and_then(|text| text.split_once(" Message accepted"))
        {
            *reply = format!("250 2.0.0 ID Message accepted{rest}");
        }
    }
    replies
}

#[test]
fn octets_mean_the_same_however_they_come() {
    let place = Place::new();
    let server = Server::start(&place, &["--sync", "never"]);
    let whole = DIALOGUE.as_bytes();
    let replies = play(&server, [whole].into_iter());
    let codes: Vec<_> = replies.iter().map(|reply| &reply[..3]).collect();
    assert_eq!(codes, ["250", "250", "250", "354", "250", "250", "221"], "{replies:?}");
    assert_eq!(play(&server, whole.chunks(1)), replies, "one octet at a time");
    for at in 1..whole.len() {
        let (left, right) = whole.split_at(at);
        assert_eq!(play(&server, [left, right].into_iter()), replies, "in two parts at {at}");
    }
    let messages = place.messages();
    assert_eq!(messages.len(), whole.len() + 1);
    for message in messages {
        let message = String::from_utf8(message).unwrap();
        assert!(message.starts_with("Return-Path: <a@b.example>\n"), "{message}");
        assert!(message.ends_with(DIALOGUE_STORED), "{message}");
    }
    assert_eq!(place.files("tmp"), <[&Path; 0]>::default());
    server.stop();
}

#[test]
fn the_message_and_quit_come_in_one_packet() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let mut client = server.connect();
    client.say("EHLO client.example", "250-");
    client.begin();
    client.send("Subject: short\r\n\r\nHello\r\n.\r\nQUIT\r\n");
    client.expect("250 2.0.0 ");
    client.expect("221 2.0.0 ");
    client.ended();
    assert!(place.message().ends_with("\nSubject: short\n\nHello\n"));
    server.stop();
}

#[test]
fn the_end_of_the_stream_comes_in_one_packet_with_the_message() {
    for farewell in ["", "QUIT\r\n"] {
        let place = Place::new();
        let server = Server::start(&place, &[]);
        let mut client = server.connect();
        client.say("HELO client.example", "250 ");
        client.begin();
        // MSG_MORE keeps the octets back until the end follows them.
        let octets = format!("Subject: the last\r\n\r\nHello\r\n.\r\n{farewell}");
        let count = rustix::net::send(client.stream(), octets.as_bytes(), SendFlags::MORE).unwrap();
        assert_eq!(count, octets.len());
        client.stream().shutdown(Shutdown::Write).unwrap();
        client.expect("250 2.0.0 ");
        if !farewell.is_empty() {
            client.expect("221 2.0.0 ");
        }
        client.ended();
        assert!(place.message().ends_with("\nSubject: the last\n\nHello\n"));
        server.stop();
    }
}

#[test]
fn commands_ahead_of_replies() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let mut client = server.connect();
    let transaction = "MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nRCPT TO:<e@f.example>\r\nDATA\r\n";
    client.send(format!("EHLO c\r\n{transaction}"));
    for start in ["250-", "250 2.1.0 ", "250 2.1.5 ", "250 2.1.5 ", "354 "] {
        client.expect(start);
    }
    // The end of one message, all of the next, and a refused command, at once.
    client.send(format!("Subject: 1\r\n\r\n.\r\n{transaction}Subject: 2\r\n\r\n.\r\nDATA\r\n"));
    for start in ["250 2.0.0 ", "250 2.1.0 ", "250 2.1.5 ", "250 2.1.5 ", "354 ", "250 2.0.0 ", "503 5.5.1 "] {
        client.expect(start);
    }
    assert_eq!(place.files("new").len(), 2);
    server.stop();
}

#[test]
fn a_thousand_commands_before_the_first_reply_is_read() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let mut client = server.connect_silently();
    let four = "MAIL FROM:<someone@a.example>\r\nRCPT TO:<someone@b.example>\r\nRSET\r\nNOOP\r\n";
    client.send(format!("HELO c\r\n{}QUIT\r\n", four.repeat(250)));
    client.expect("220 ");
    client.expect("250 ");
    for _ in 0..250 {
        for start in ["250 2.1.0 ", "250 2.1.5 ", "250 2.0.0 ", "250 2.0.0 "] {
            client.expect(start);
        }
    }
    client.expect("221 ");
    client.ended();
    server.stop();
}

#[test]
fn peers_that_never_read_cost_little_and_delay_nobody() {
    const PEERS: usize = 16;
    let place = Place::new();
    let server = Server::start(&place, &[]);
    server.connect().deliver("Subject: before\r\n\r\n");
    let before = server.memory("VmRSS");
    let flood = "NOOP\r\n".repeat(1000);
    let mut peers: Vec<TcpStream> = (0..PEERS).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
    for peer in &mut peers {
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&*peer, 4096);
        peer.set_nonblocking(true).unwrap();
    }
    // Each sends until nothing has gone out for a while: the server has stopped to read from all of them.
    let start = Instant::now();
    let mut last_progress = Instant::now();
    let mut at = [0; PEERS];
    while last_progress.elapsed() < Duration::from_millis(300) {
        assert!(start.elapsed() < PATIENCE, "the server reads on though its replies are not read");
        for (peer, at) in peers.iter_mut().zip(&mut at) {
            match peer.write(&flood.as_bytes()[*at % flood.len()..]) {
                Ok(count) => {
                    *at += count;
                    last_progress = Instant::now();
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let sent: usize = at.iter().sum();
    // A block with what was read and a small buffer with replies for each.
    let growth = server.memory("VmRSS").saturating_sub(before);
    assert!(growth < 80 * PEERS as u64 + 256, "{growth} KiB more after {sent} octets of commands");
    let ticks = server.ticks();
    let asked = Instant::now();
    server.connect().deliver("Subject: meanwhile\r\n\r\n");
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    std::thread::sleep(Duration::from_millis(500));
    assert!(server.ticks() - ticks < 25, "it does not rest: {} ticks", server.ticks() - ticks);
    drop(peers);
    server.connect().deliver("Subject: after\r\n\r\n");
    assert_eq!(place.files("new").len(), 3);
    server.stop();
}

// ---- messages that do not come to their end ------------------------------------------------------------------------

#[test]
fn a_connection_lost_within_a_message_leaves_nothing() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    for reset in [false, true] {
        for octets in [10, 500_000] {
            let mut client = server.connect();
            client.begin();
            client.send(text(1, octets));
            if octets > 100_000 {
                until("the file in tmp/", || !place.files("tmp").is_empty());
            }
            if reset {
                let at_once = Some(Duration::ZERO);
                rustix::net::sockopt::set_socket_linger(client.stream(), at_once).unwrap();
            }
            drop(client);
            until("tmp/ is empty", || place.files("tmp").is_empty());
        }
    }
    // Nor does what comes after the loss was noticed.
    server.connect().say("NOOP", "250 ");
    place.assert_empty();
    server.stop();
}

#[test]
fn a_message_over_the_limit_leaves_nothing() {
    let place = Place::new();
    let server = Server::start(&place, &["--max-size", "100K"]);
    let mut client = server.connect();
    assert!(client.say("EHLO c", "250-").contains("SIZE 102400"));
    client.say("MAIL FROM:<a@b.example> SIZE=102401", "552 5.3.4 ");
    client.say("MAIL FROM:<a@b.example> SIZE=102400", "250 ");
    client.say("RSET", "250 ");
    client.begin();
    client.send(text(1, 1 << 20));
    client.say(".", "552 5.3.4 ");
    place.assert_empty();
    client.deliver(&text(2, 90_000));
    assert!(place.message().ends_with(&common::stored(&text(2, 90_000))));
    server.stop();
}

#[test]
fn a_large_message_costs_no_memory() {
    const OCTETS: usize = 64 << 20;
    let place = Place::new();
    let server = Server::start(&place, &["--max-size", "1G"]);
    let mut client = server.connect();
    client.say("EHLO c", "250-");
    let before = server.memory("VmRSS");
    client.begin();
    let part = format!("{}\r\n", ".".repeat(998)).repeat(256);
    let parts = OCTETS / part.len();
    for _ in 0..parts {
        client.send(&part);
    }
    client.say(".", "250 ");
    // The most that it ever had, not what it has now.
    let growth = server.memory("VmHWM").saturating_sub(before);
    println!("{} MiB: {growth} KiB more than the {before} KiB before", (parts * part.len()) >> 20);
    assert!(growth < 1024, "{growth} KiB more than the {before} KiB before");
    let size = std::fs::metadata(&place.files("new")[0]).unwrap().len() as usize;
    // A dot and a CR less in each line, and the trace lines.
    let lines = parts * 256;
    let trace = size - lines * 998;
    assert!((100..1000).contains(&trace), "{trace}");
    server.stop();
}

#[test]
fn chunks_that_are_taken_back_leave_nothing_to_the_next_message() {
    let place = Place::new();
    let server = Server::start(&place, &["--max-size", "100K"]);
    let mut client = server.connect();
    client.say("EHLO c", "250-");
    let chunk = |client: &mut Client, text: &str, last: &str| {
        client.send(format!("BDAT {}{last}\r\n{text}", text.len()));
    };
    let envelope = |client: &mut Client| {
        client.say("MAIL FROM:<from@a.example>", "250 2.1.0 ");
        client.say("RCPT TO:<to@b.example>", "250 2.1.5 ");
    };
    // More than is kept in memory; each alone is below the limit.
    for command in ["RSET", "EHLO c"] {
        envelope(&mut client);
        chunk(&mut client, &text(1, 90_000), "");
        client.expect("250 2.0.0 ");
        assert_eq!(place.files("tmp").len(), 1);
        client.say(command, "250");
        until("tmp/ is empty", || place.files("tmp").is_empty());
    }
    let id = client.deliver(&text(2, 90_000));
    envelope(&mut client);
    chunk(&mut client, &text(3, 90_000), "");
    client.expect("250 2.0.0 ");
    chunk(&mut client, &text(4, 20_000), " LAST");
    client.expect("552 5.3.4 ");
    let message = place.message();
    let (trace, rest) = message.split_once("Subject:").unwrap();
    assert_eq!(format!("Subject:{rest}"), common::stored(&text(2, 90_000)));
    assert_eq!(trace.matches("Return-Path:").count(), 1, "{trace}");
    assert!(trace.contains(&format!(" id {id}\n")), "{id}: {trace}");
    assert!(place.files("new")[0].to_str().unwrap().contains(&id), "{id}");
    assert_eq!(place.files("tmp"), <[&Path; 0]>::default());
    server.stop();
}

#[test]
fn who_sends_no_more_still_hears_all_replies() {
    let place = Place::new();
    let server = Server::start(&place, &["--max-size", "100K"]);
    let message = |recipient: &str, octets: usize| {
        format!("MAIL FROM:<a@b.example>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n{}.\r\n", text(1, octets))
    };
    let large = 1 << 20;
    for (sent, codes) in [
        ("NOOP\r\n".to_owned(), &["250"][..]),
        ("NOOP\r\nNONSENSE\r\nQUIT\r\n".to_owned(), &["250", "500", "221"]),
        (message("c@d.example", 100), &["250", "250", "354", "250"]),
        (message("no recipient@d.example", 100), &["250", "501", "354", "554"]),
        (message("no recipient@d.example", large), &["250", "501", "354", "554"]),
        (message("c@d.example", large), &["250", "250", "354", "552"]),
        (message("c@d.example", large) + "NOOP\r\n", &["250", "250", "354", "552", "250"]),
        ("DATA\r\n".to_owned(), &["503"]),
        ("EHLO c\r\n".to_owned() + &"NOOP\r\n".repeat(3) + "EXPN all\r\n", &["250", "250", "250", "250", "502"]),
    ] {
        for at_once in [false, true] {
            let mut client = server.connect();
            // MSG_MORE keeps back what is no whole packet until the end follows it.
            let flags = if at_once { SendFlags::MORE } else { SendFlags::empty() };
            let mut octets = sent.as_bytes();
            while !octets.is_empty() {
                octets = &octets[rustix::net::send(client.stream(), octets, flags).unwrap()..];
            }
            client.stream().shutdown(Shutdown::Write).unwrap();
            let replies = client.rest();
            let heard: Vec<_> = replies.iter().map(|reply| &reply[..3]).collect();
            assert_eq!(heard, codes, "at once: {at_once}, {} octets: {replies:?}", sent.len());
        }
    }
    assert_eq!((place.files("new").len(), place.files("tmp").len()), (2, 0));
    server.stop();
}

// ---- signals -------------------------------------------------------------------------------------------------------

#[test]
fn sigterm_lets_a_message_come_to_its_end() {
    let place = Place::new();
    let mut server = Server::start(&place, &[]);
    let mut sender = server.connect();
    let mut idle = server.connect();
    let mut between = server.connect();
    between.say("MAIL FROM:<a@b.example>", "250 ");
    sender.begin();
    sender.send("Subject: half\r\n\r\none half\r\n");
    server.signal(Signal::TERM);
    idle.expect("421 4.3.2 ");
    idle.ended();
    between.expect("421 4.3.2 ");
    between.ended();
    assert!(TcpStream::connect(server.address()).is_err(), "still accepting");
    sender.send("the other half\r\n.\r\n");
    sender.expect("250 2.0.0 ");
    sender.expect("421 4.3.2 ");
    sender.ended();
    assert_eq!(server.end().code(), Some(0));
    assert!(place.message().ends_with("\none half\nthe other half\n"));
    assert_eq!(place.files("tmp"), <[&Path; 0]>::default());
}

#[test]
fn sigterm_and_sigint_end_an_idle_server_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let place = Place::new();
        let mut server = Server::start(&place, &[]);
        let mut idle = server.connect();
        let start = Instant::now();
        server.signal(signal);
        idle.expect("421 4.3.2 ");
        idle.ended();
        assert_eq!(server.end().code(), Some(0));
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
}

#[test]
fn sigterm_does_not_wait_for_a_peer_that_reads_no_replies() {
    let place = Place::new();
    let mut server = Server::start(&place, &[]);
    let mut peer = server.connect();
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(peer.stream(), 4096);
    peer.stream().set_nonblocking(true).unwrap();
    // It has sent more than it is answered once the server takes no more of it.
    let flood = "HELP\r\n".repeat(10_000);
    let mut sent = 0;
    let mut last_progress = Instant::now();
    until("the server stops to read", || {
        if let Ok(count) = peer.stream().write(&flood.as_bytes()[sent % flood.len()..]) {
            (sent, last_progress) = (sent + count, Instant::now());
        }
        last_progress.elapsed() > Duration::from_millis(300)
    });
    let start = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(server.end().code(), Some(0));
    assert!(start.elapsed() < Config::default().grace / 2, "{:?}", start.elapsed());
    place.assert_empty();
}

#[test]
fn sigterm_counts_from_the_moment_that_the_server_says_it_is_there() {
    // As process 1 of a container it would be lost before somebody watches for it; else it is an end by signal.
    for _ in 0..30 {
        let place = Place::new();
        let mut command = mailchute();
        command.args(["--listen", "127.0.0.1:0", "--maildir"]).arg(place.maildir());
        let mut server = Server::spawn(command);
        server.wait_for_line("listening on ");
        server.signal(Signal::TERM);
        let status = server.end();
        assert_eq!(status.code(), Some(0), "{status}:\n{}", server.log());
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    let place = Place::new();
    let mut server = Server::start(&place, &[]);
    let mut sender = server.connect();
    sender.begin();
    sender.send(text(1, 200_000));
    until("the file in tmp/", || !place.files("tmp").is_empty());
    server.signal(Signal::TERM);
    server.wait_for_line("stopping");
    let start = Instant::now();
    server.signal(Signal::TERM);
    let status = server.end();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(status.code().is_some(), "{status}");
    place.assert_empty();
}

#[test]
fn the_grace_ends() {
    let place = Place::new();
    // The program's own is less than the time that container engines wait before they kill.
    assert!(Config::default().grace < Duration::from_secs(10));
    let event_loop = EventLoop::start(Config {
        listen: Some(vec![mailchute::config::Place::Tcp(([127, 0, 0, 1], 0).into())]),
        maildir: place.maildir(),
        grace: Duration::from_millis(300),
        ..Config::default()
    })
    .unwrap();
    let (address, stop) = (event_loop.places()[0].clone(), event_loop.stopper());
    let server = std::thread::spawn(|| event_loop.run());
    let mut sender = Client::new(TcpStream::connect(address).unwrap());
    sender.expect("220 ");
    sender.begin();
    sender.send(text(1, 200_000));
    until("the file in tmp/", || !place.files("tmp").is_empty());
    let start = Instant::now();
    stop().unwrap();
    until("the end", || server.is_finished());
    server.join().unwrap().unwrap();
    let elapsed = start.elapsed();
    assert!((Duration::from_millis(300)..Duration::from_secs(2)).contains(&elapsed), "{elapsed:?}");
    place.assert_empty();
}

// ---- the log -------------------------------------------------------------------------------------------------------

#[test]
fn the_log_says_in_a_word_why_a_session_went_wrong() {
    const TO_DATA: &str = "HELO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n";
    let place = Place::new();
    let server = Server::start(&place, &["--timeout", "1s"]);
    for (number, (sent, last, line)) in [
        (format!("{TO_DATA}text\n.\n"), "421 4.4.2 ", "reason=timeout stored=0 hint=lf-dot"),
        ("\x16\x03\x01\x02\0\x01".to_owned(), "554 5.5.0 ", "reason=end stored=0 hint=tls-on-plain"),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "554 5.5.0 ", "reason=end stored=0 hint=http"),
        (
            "AUTH LOGIN\r\nQUIT\r\n".to_owned(),
            "221 2.0.0 ",
            "reason=end stored=0 hint=auth-required-by-client peer=[127.0.0.1]",
        ),
        ("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n".to_owned(), "554 5.5.0 ", "reason=end stored=0 hint=proxy-header"),
        (format!("{TO_DATA}text\n.\r\nQUIT\r\n"), "421 4.4.2 ", "reason=timeout stored=0 hint=lf-dot"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = server.connect();
        client.send(sent);
        let replies = client.rest();
        assert!(replies.last().unwrap().starts_with(last), "{replies:?}");
        server.wait_for_line(&format!("INFO  session={} closed {line}", number + 1));
    }
    place.assert_empty();
    server.stop();
}

#[test]
fn a_log_that_nobody_reads_holds_up_nobody() {
    const MESSAGES: usize = 2000;
    let place = Place::new();
    let short = Place::short();
    let path = short.path().join("in.sock");
    let mut command = mailchute();
    command.args(["--sync", "never", "--listen", &format!("unix:{}", path.display()), "--maildir"]);
    command.arg(place.maildir());
    let mut server = Server::spawn_unread(command);
    until("it listens", || UnixStream::connect(&path).is_ok());
    let stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut client = Client::over(stream);
    client.expect("220 ");
    // Each has a line in the log, and all together more than a pipe holds.
    for _ in 0..MESSAGES {
        client.deliver("Subject: one of many\r\n\r\n");
    }
    assert_eq!(place.files("new").len(), MESSAGES);
    server.signal(Signal::TERM);
    assert_eq!(server.end().code(), Some(0));
}

#[test]
fn a_password_never_reaches_the_log() {
    // "user" and "opensesame", as they are and in base64: alone, behind two NULs, and behind the name.
    const SECRETS: [&str; 4] = ["opensesame", "b3BlbnNlc2FtZQ==", "AABvcGVuc2VzYW1l", "AHVzZXIAb3BlbnNlc2FtZQ=="];
    let [plain_text, password, nameless, both] = SECRETS;
    let login = |responses: &[&str]| responses.iter().map(|line| format!("{line}\r\n")).collect::<String>();
    let place = Place::new();
    for options in [&["--log", "trace", "--auth", "accept-any"][..], &["--log", "trace"]] {
        let mut server = Server::start(&place, options);
        let offered = options.len() > 2;
        assert_eq!(server.log().contains("every login is taken, which proves nothing"), offered, "{}", server.log());
        for (commands, last) in [
            (login(&[&format!("AUTH PLAIN {both}")]), "235 "),
            (login(&[&format!("AUTH PLAIN {nameless}")]), "235 "),
            (login(&["AUTH PLAIN", both]), "235 "),
            (login(&["AUTH LOGIN", "dXNlcg==", password]), "235 "),
            (login(&["AUTH LOGIN dXNlcg==", password]), "235 "),
            // Wrong, but said all the same.
            (login(&["AUTH LOGIN dXNlcg==", plain_text]), "501 5.5.2 "),
            (login(&["AUTH LOGIN", plain_text]), "501 5.5.2 "),
            (login(&[&format!("AUTH PLAIN user {plain_text}")]), "501 5.5.4 "),
            (login(&[&format!("AUTH CRAM-MD5 {both}")]), "504 5.5.4 "),
            (login(&[&format!("AUTH PLAIN {}", both.repeat(200))]), "500 5.5.2 "),
        ] {
            let mut client = server.connect();
            client.send(format!("EHLO c\r\n{commands}"));
            client.stream().shutdown(Shutdown::Write).unwrap();
            let replies = client.rest();
            assert!(!offered || replies.last().unwrap().starts_with(last), "{commands}: {replies:?}");
        }
        server.signal(Signal::TERM);
        server.end();
        let log = server.log();
        assert_eq!(log.matches(" closed ").count(), 10, "{log}");
        for secret in SECRETS {
            assert!(!log.contains(secret), "{secret} in\n{log}");
        }
    }
}

// ---- options -------------------------------------------------------------------------------------------------------

/// Fails unless there is one line on stderr, which has all of `words`, and the status is `code`.
#[track_caller]
fn assert_complaint(ended: &Ended, code: i32, words: &[&str]) {
    let Ended { status, stdout, stderr } = ended;
    assert_eq!(status.code(), Some(code), "{status}: {stderr}");
    assert_eq!(stdout, "");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "no {word} in: {stderr}");
    }
}

#[test]
fn a_wrong_option_is_status_64_and_one_line() {
    let wrong = [
        ("listen", "nonsense"),
        ("listen", "127.0.0.1"),
        ("listen", "127.0.0.1:99999"),
        ("listen", "unix:"),
        ("lmtp", "127.0.0.1"),
        ("hostname", "two words"),
        ("max-size", "huge"),
        ("max-size", "0"),
        ("max-size", "99999999999999999999"),
        ("sync", "sometimes"),
        ("min-free", "101%"),
        ("min-free", "much"),
        ("bare-newline", "maybe"),
        ("crlf", "no"),
        ("auth", "everybody"),
        ("timeout", "soon"),
        ("timeout", "0"),
        ("max-connections", "0"),
        ("max-connections", "-1"),
        ("domain", "two words"),
        ("domain", "*"),
        ("domain", "*example.org"),
        ("domain", "[192.0.2.256]"),
        ("domain", "a@example.org"),
        ("allow-from", "10.0.0.0/33"),
        ("allow-from", "anybody"),
        ("allow-from", "::ffff:10.0.0.0/95"),
        ("keep", "0"),
        ("keep", "0d"),
        ("keep", "-1"),
        ("keep", "30 moons"),
        ("keep", "100M"),
        ("log", "loud"),
    ];
    for (name, value) in wrong {
        let mut command = mailchute();
        command.args([format!("--{name}"), value.to_owned()]);
        assert_complaint(&run(command), 64, &[&format!("--{name}"), value, "--help"]);
        let mut command = mailchute();
        command.arg(format!("--{name}={value}"));
        assert_complaint(&run(command), 64, &[&format!("--{name}"), value]);
        let variable = format!("MAILCHUTE_{}", name.to_uppercase().replace('-', "_"));
        let mut command = mailchute();
        command.env(&variable, value);
        assert_complaint(&run(command), 64, &[&variable, value]);
    }
    let mut command = mailchute();
    command.env("MAILCHUTE_STRICT", "perhaps");
    assert_complaint(&run(command), 64, &["MAILCHUTE_STRICT", "perhaps"]);
    for (arguments, word) in [
        (&["--sesame"][..], "--sesame"),
        (&["-x"], "-x"),
        (&["stray"], "stray"),
        (&["--maildir"], "--maildir"),
        (&["--strict=perhaps"], "--strict"),
        (&["--keep", "1000,30d"], "--keep"),
        (&["--keep-age", "30d"], "--keep-age"),
        (&["--log", "info", "--max-size"], "--max-size"),
    ] {
        let mut command = mailchute();
        command.args(arguments);
        assert_complaint(&run(command), 64, &[word]);
    }
}

#[test]
fn help_and_version_are_no_errors() {
    let ask = |option: &str| {
        let mut command = mailchute();
        command.args(["--max-size", "1M", option]);
        run(command)
    };
    let help = ask("--help");
    assert_eq!((help.status.code(), help.stderr.as_str()), (Some(0), ""));
    for option in ["--listen", "--maildir", "--hostname", "--max-size", "--log", "--sync", "--version"] {
        assert!(help.stdout.contains(option), "{option}");
    }
    // Each line of it is an option, or ends the program.
    let names = help.stdout.lines().filter_map(|line| line.trim_start().strip_prefix("--")?.split(' ').next());
    assert!(names.clone().count() > 20, "{}", help.stdout);
    for name in names {
        let mut command = mailchute();
        command.args([&format!("--{name}"), "@@", "--log", "@@"]);
        let ended = run(command);
        assert_complaint(&ended, 64, &["@@"]);
        assert!(!ended.stderr.contains("invalid option"), "{}", ended.stderr);
    }
    let version = ask("--version");
    assert_eq!(version.stdout, format!("mailchute {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!((version.status.code(), version.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_flag_wins_over_its_variable() {
    let place = Place::new();
    let mut command = mailchute();
    command.env("MAILCHUTE_LISTEN", "nonsense").env("MAILCHUTE_LOG", "off").env("RUST_LOG", "off");
    command.env("MAILCHUTE_MAX_SIZE", "1000").env("MAILCHUTE_MAILDIR", "/nowhere/at/all");
    command.args(["--listen", "127.0.0.1:0", "--log", "info", "--max-size", "2000", "--maildir"]).arg(place.maildir());
    let server = Server::ready(command);
    assert!(server.connect().say("EHLO c", "250-").contains("SIZE 2000"));
    server.stop();
}

#[test]
fn variables_do_what_flags_do() {
    let place = Place::new();
    let mut command = mailchute();
    command.env("MAILCHUTE_LISTEN", "127.0.0.1:0,127.0.0.2:0").env("MAILCHUTE_MAX_SIZE", "3000");
    command.env("MAILCHUTE_MAILDIR", place.maildir()).env("MAILCHUTE_HOSTNAME", "mx.test").env("MAILCHUTE_TIMEOUT", "");
    command.env("MAILCHUTE_DOMAIN", "*.Example.ORG, [192.0.2.1],b.example.");
    // It counts only where neither --log nor MAILCHUTE_LOG is given.
    command.env("RUST_LOG", "debug");
    let server = Server::ready(command);
    assert_eq!(server.places.len(), 2);
    for place in &server.places {
        let mut client = Client::new(TcpStream::connect(place).unwrap());
        client.expect("220 mx.test ");
        assert!(client.say("EHLO c", "250-").contains("SIZE 3000"));
        client.say("MAIL FROM:<>", "250 ");
        for served in ["a@b.Example", "a@[192.0.2.1]", "a@c.example.org", "postmaster"] {
            client.say(&format!("RCPT TO:<{served}>"), "250 ");
        }
        for foreign in ["a@example.org", "a@[192.0.2.2]", "a%c.example@b.example", "a@c.b.example"] {
            client.say(&format!("RCPT TO:<{foreign}>"), "550 5.7.1");
        }
    }
    server.wait_for_line("DEBUG");
    server.stop();
}

// ---- sockets -------------------------------------------------------------------------------------------------------

#[test]
fn it_listens_on_many_sockets_at_once() {
    let place = Place::new();
    let short = Place::short();
    let path = short.path().join("in.sock");
    let unix = format!("unix:{}", path.display());
    let mut command = mailchute();
    command.args(["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--listen", &unix]);
    let ipv6 = TcpListener::bind("[::1]:0").is_ok();
    if ipv6 {
        command.args(["--listen", "[::1]:0"]);
    } else {
        skip("no IPv6 here");
    }
    command.arg("--maildir").arg(place.maildir());
    let server = Server::ready(command);
    let mut tcp = 0;
    for place in server.places.iter().filter(|place| !place.starts_with("unix:")) {
        assert!(!place.ends_with(":0"), "{place}");
        let mut client = Client::new(TcpStream::connect(place).unwrap());
        client.expect("220 ");
        client.deliver("Subject: tcp\r\n\r\n");
        tcp += 1;
    }
    assert_eq!(tcp, if ipv6 { 3 } else { 2 });
    assert!(server.places.contains(&unix), "{:?}", server.places);
    let stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut client = Client::over(stream);
    client.expect("220 ");
    client.deliver("Subject: unix\r\n\r\n");
    assert_eq!(place.files("new").len(), tcp + 1);
    server.stop();
    assert!(!path.exists(), "the socket stays after an orderly end");
}

#[test]
fn an_address_in_use_is_status_1_and_named() {
    let place = Place::new();
    let start = |listen: &str| {
        let mut command = mailchute();
        command.args(["--listen", listen, "--maildir"]).arg(place.maildir());
        run(command)
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert_complaint(&start(&address), 1, &[&address, "in use", "--listen"]);
    // One that no machine has (RFC 5737).
    assert_complaint(&start("192.0.2.1:2525"), 1, &["192.0.2.1:2525"]);
    assert!(!place.maildir().exists(), "it binds before it touches the disk");
}

#[test]
fn a_unix_socket_is_taken_over_from_the_dead_only() {
    let place = Place::new();
    let short = Place::short();
    let path = short.path().join("in.sock");
    let unix = format!("unix:{}", path.display());
    let command = || {
        let mut command = mailchute();
        command.args(["--listen", &unix, "--maildir"]).arg(place.maildir());
        command
    };
    let first = Server::ready(command());
    assert_complaint(&run(command()), 1, &[&unix, "in use"]);
    assert!(UnixStream::connect(&path).is_ok(), "the second took the first one's socket away");
    first.kill();
    assert!(std::fs::metadata(&path).unwrap().file_type().is_socket());
    let third = Server::ready(command());
    Client::over(UnixStream::connect(&path).unwrap()).expect("220 ");
    third.stop();
    std::fs::write(&path, "a file, not a socket").unwrap();
    assert_complaint(&run(command()), 1, &[&unix]);
    assert_eq!(std::fs::read(&path).unwrap(), b"a file, not a socket");
    std::fs::remove_file(&path).unwrap();
    // Somebody listens here, though not for streams.
    let datagrams = UnixDatagram::bind(&path).unwrap();
    datagrams.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_complaint(&run(command()), 1, &[&unix, "in use"]);
    UnixDatagram::unbound().unwrap().send_to(b"hello", &path).unwrap();
    assert_eq!(datagrams.recv(&mut [0; 8]).unwrap(), 5);
}

// ---- the Maildir ---------------------------------------------------------------------------------------------------

/// Runs the command that the complaint names, as the person who reads it would.
#[track_caller]
fn follow_the_advice(complaint: &str) {
    let (_, advice) = complaint.trim_end().rsplit_once("run: ").unwrap_or_else(|| panic!("no command: {complaint}"));
    let status = Command::new("sh").args(["-c", advice]).status().unwrap();
    assert!(status.success(), "{advice}: {status}");
}

fn owner_and_mode(path: &Path) -> (u32, u32, u32) {
    let metadata = std::fs::metadata(path).unwrap();
    (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
}

#[test]
fn a_maildir_that_is_not_ours_is_status_1_and_the_advice_mends_it() {
    let place = Place::short();
    // The name needs quotes in a shell.
    let maildir = place.path().join("our mail");
    std::fs::create_dir(&maildir).unwrap();
    // As root it is another's; else our own, but locked.
    std::fs::set_permissions(&maildir, std::fs::Permissions::from_mode(0o500)).unwrap();
    let (owner, owner_group, _) = owner_and_mode(&maildir);
    let start = || {
        let (mut command, user, group) = mailchute_as_somebody(&place);
        command.args(["--listen", "127.0.0.1:0", "--maildir"]).arg(&maildir);
        (command, user, group)
    };
    let (command, user, group) = start();
    let ended = run(command);
    let path = maildir.display().to_string();
    let (owned, we) = (format!("{owner}:{owner_group}"), format!("{user}:{group}"));
    assert_complaint(&ended, 1, &[&path, "denied", &owned, "0500", &we, "chown", "chmod"]);
    follow_the_advice(&ended.stderr);
    let server = Server::ready(start().0);
    server.connect().deliver("Subject: mended\r\n\r\n");
    server.stop();
    assert_eq!(owner_and_mode(&maildir), (user, group, 0o700));
}

#[test]
fn a_maildir_that_root_made_is_mended_by_one_command() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can make a Maildir as root");
    }
    let place = Place::short();
    Server::start(&place, &[]).connect().deliver("Subject: as root\r\n\r\n");
    std::fs::set_permissions(place.maildir(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let start = || {
        let (mut command, ..) = mailchute_as_somebody(&place);
        command.args(["--listen", "127.0.0.1:0", "--maildir"]).arg(place.maildir());
        command
    };
    let ended = run(start());
    assert_complaint(&ended, 1, &[place.maildir().to_str().unwrap(), "denied", "0:0", "65534:65534", "chown"]);
    follow_the_advice(&ended.stderr);
    let server = Server::ready(start());
    server.connect().deliver("Subject: as somebody\r\n\r\n");
    server.stop();
}

#[test]
fn a_maildir_that_cannot_be_made_is_status_1_and_the_advice_spares_its_parent() {
    let place = Place::short();
    let parent = place.path().join("parent");
    std::fs::create_dir(&parent).unwrap();
    std::fs::set_permissions(&parent, std::fs::Permissions::from_mode(0o555)).unwrap();
    let before = owner_and_mode(&parent);
    let maildir = parent.join("Maildir");
    let start = || {
        let (mut command, user, group) = mailchute_as_somebody(&place);
        command.args(["--listen", "127.0.0.1:0", "--maildir"]).arg(&maildir);
        (command, user, group)
    };
    let (command, user, group) = start();
    let ended = run(command);
    assert_complaint(&ended, 1, &[maildir.to_str().unwrap(), "denied", "0555", &format!("{user}:{group}")]);
    if rustix::process::geteuid().is_root() {
        // Whoever follows the advice for /Maildir or /var/mail/x must not give / or /var/mail away.
        follow_the_advice(&ended.stderr);
        assert_eq!(owner_and_mode(&parent), before, "{}", ended.stderr);
        let server = Server::ready(start().0);
        server.connect().deliver("Subject: mended\r\n\r\n");
        server.stop();
    }
    std::fs::set_permissions(&parent, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_maildir_that_is_a_file_is_status_1() {
    let place = Place::new();
    std::fs::write(place.maildir(), "no directory").unwrap();
    let mut command = mailchute();
    command.args(["--listen", "127.0.0.1:0", "--maildir"]).arg(place.maildir());
    assert_complaint(&run(command), 1, &[place.maildir().to_str().unwrap(), "--maildir"]);
}

#[test]
fn a_group_may_read_where_that_is_said() {
    let place = Place::new();
    let mut command = mailchute_by_shell("umask 077; exec \"$@\"");
    command.args(["--listen", "127.0.0.1:0", "--group-readable", "--maildir"]).arg(place.maildir());
    let server = Server::ready(command);
    server.connect().deliver(&text(1, 100));
    let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
    assert_eq!(mode(&place.files("new")[0]), 0o640);
    for directory in ["", "tmp", "new", "cur"] {
        assert_eq!(mode(&place.maildir().join(directory)), 0o2750, "{directory}");
    }
    server.stop();
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    for umask in ["000", "077"] {
        let place = Place::new();
        let mut command = mailchute_by_shell(&format!("umask {umask}; exec \"$@\""));
        command.args(["--listen", "127.0.0.1:0", "--maildir"]).arg(place.maildir());
        let server = Server::ready(command);
        let mode = |path: &Path| owner_and_mode(path).2;
        let mut client = server.connect();
        client.begin();
        client.send(text(1, 200_000));
        until("the file in tmp/", || !place.files("tmp").is_empty());
        assert_eq!(mode(&place.files("tmp")[0]), 0o600, "umask {umask}");
        client.say(".", "250 ");
        client.deliver(&text(2, 100));
        for file in place.files("new") {
            assert_eq!(mode(&file), 0o600, "umask {umask}");
        }
        for directory in ["", "tmp", "new", "cur"] {
            assert_eq!(mode(&place.maildir().join(directory)), 0o700, "umask {umask}: {directory}");
        }
        server.stop();
    }
}

#[test]
fn two_servers_share_a_maildir() {
    let place = Place::new();
    let servers = [Server::start(&place, &[]), Server::start(&place, &[])];
    std::thread::scope(|scope| {
        for (index, server) in servers.iter().cycle().take(4).enumerate() {
            scope.spawn(move || {
                let mut client = server.connect();
                for number in 0..50 {
                    client.deliver(&text(100 * index as u64 + number, 1000));
                }
            });
        }
    });
    // What is in a journal comes a moment after its answer.
    until("all is in new/", || place.files("tmp").is_empty());
    let messages: Vec<_> = place.messages().into_iter().map(|message| String::from_utf8(message).unwrap()).collect();
    assert_eq!(messages.len(), 200);
    for number in (0..4).flat_map(|index| (0..50).map(move |number| 100 * index + number)) {
        let stored = common::stored(&text(number, 1000));
        assert_eq!(messages.iter().filter(|message| message.ends_with(&stored)).count(), 1, "{number}");
    }
    assert_eq!(place.files("tmp"), <[&Path; 0]>::default());
    servers.into_iter().for_each(Server::stop);
}

// ---- shortage ------------------------------------------------------------------------------------------------------

#[test]
fn without_descriptors_it_waits_and_recovers() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let mut early = server.connect();
    early.deliver(&text(1, 100));
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid().as_raw_nonzero())).unwrap().count() as u64;
    let old = rustix::process::getrlimit(Resource::Nofile);
    let limit = Rlimit { current: Some(open + 4), maximum: old.maximum };
    rustix::process::prlimit(Some(server.pid()), Resource::Nofile, limit).unwrap();
    let crowd: Vec<Client> = (0..20).map(|_| server.connect_silently()).collect();
    server.wait_for_line("no room for a newcomer");
    // Those who are here are served: a message is refused for now, and the session goes on.
    let reply = early.attempt(&text(2, 100));
    assert!(reply.starts_with("451 4.3.") || reply.starts_with("452 4.3.1 "), "{reply}");
    early.say("NOOP", "250 ");
    let ticks = server.ticks();
    std::thread::sleep(Duration::from_secs(1));
    assert!(server.ticks() - ticks < 30, "it does not rest: {} ticks in a second", server.ticks() - ticks);
    drop(crowd);
    let mut late = server.connect();
    // A disk that failed may need a moment to be trusted again.
    until("mail is taken again", || late.attempt(&text(3, 100)).starts_with("250 "));
    assert!(early.attempt(&text(4, 100)).starts_with("250 "));
    until("all is in new/", || place.files("tmp").is_empty());
    assert_eq!(place.files("new").len(), 3);
    server.stop();
}
