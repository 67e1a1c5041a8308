//! `--transcript`: what chosen peers say and hear, as files that are played like the dialogues.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;
#[allow(dead_code)]
#[path = "dialogue/harness.rs"]
mod harness;
#[path = "common/trace.rs"]
mod trace;

use std::fs;
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use common::random::Random;
use common::{Client, Place, Server, mailchute, run, seed};
use mailchute::transcript::{SESSIONS_MAX, Transcript};
use rustix::process::Signal;

fn directory(place: &Place) -> PathBuf {
    place.path().join("transcripts")
}

/// The transcripts so far, oldest first, with their names.
fn transcripts(place: &Place) -> Vec<(String, String)> {
    let entries = fs::read_dir(directory(place)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    paths.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

#[track_caller]
fn start(place: &Place, options: &[&str]) -> Server {
    let path = directory(place).to_str().unwrap().to_owned();
    Server::start(place, &[&["--transcript", &path, "--sync", "never"], options].concat())
}

/// Ends the server and plays all that it kept; the transcripts.
#[track_caller]
fn played(place: &Place, server: Server) -> Vec<String> {
    server.stop();
    let transcripts = transcripts(place);
    for (name, script) in &transcripts {
        if std::env::var_os("MAILCHUTE_SHOW").is_some() {
            eprintln!("{name}\n{script}");
        }
        harness::play(name, script);
    }
    transcripts.into_iter().map(|(_, script)| script).collect()
}

/// What one client sends at once, and the transcript of that, which was played; `eof` where the client hangs up.
#[track_caller]
fn transcript_of(options: &[&str], packets: &[&[u8]], hang_up: bool) -> String {
    let place = Place::new();
    let server = start(&place, options);
    let mut client = server.connect();
    for (index, packet) in packets.iter().enumerate() {
        if index > 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        // It may have been closed.
        let _ = client.try_send(packet);
    }
    if hang_up {
        let _ = client.stream().shutdown(Shutdown::Write);
    }
    while client.try_reply().is_ok() {}
    drop(client);
    let mut scripts = played(&place, server);
    assert_eq!(scripts.len(), 1);
    scripts.remove(0)
}

/// `dXNlci1uYW1l` and so on; long enough that none is there by chance.
const SECRETS: [&str; 6] = [
    "user-name",
    "dXNlci1uYW1l",
    "pass-word",
    "cGFzcy13b3Jk",
    "AHVzZXItbmFtZQBwYXNzLXdvcmQ=",
    "dXNlci1uYW1lAHBhc3Mtd29yZA",
];
const LOGIN: [&str; 2] = ["dXNlci1uYW1l", "cGFzcy13b3Jk"];
const PLAIN: &str = "AHVzZXItbmFtZQBwYXNzLXdvcmQ=";

#[track_caller]
fn assert_no_secret(script: &str) {
    for secret in SECRETS {
        assert!(!script.contains(secret), "{secret} is in\n{script}");
    }
}

// ---- a whole session -----------------------------------------------------------------------------------------------

#[test]
fn a_session_is_kept_and_played() {
    let place = Place::new();
    let server = start(&place, &["--auth", "accept-any", "--domain", "b.example"]);
    let mut client = server.connect();
    client.say("EHLO printer.example", "250");
    client.say("AUTH LOGIN", "334 ");
    client.say(LOGIN[0], "334 ");
    client.say(LOGIN[1], "235 ");
    client.say(&format!("AUTH PLAIN {PLAIN}"), "503 ");
    client.say("MAIL FROM:<from@a.example>", "250 ");
    client.say("RCPT TO:<to@elsewhere.example>", "550 5.7.1 ");
    client.say("RCPT TO:<to@b.example>", "250 ");
    client.say("RCPT TO:<other@elsewhere.example>", "550 5.7.1 ");
    client.say("DATA", "354 ");
    client.send(common::text(1, 100 << 10));
    client.say(".", "250 ");
    client.say("MAIL FROM:<\"a b\"@a.example>", "250 ");
    client.say("RCPT TO:<to@b.example>", "250 ");
    let chunk = "y".repeat(5000);
    client.send(format!("BDAT 5000\r\n{chunk}"));
    client.expect("250 ");
    client.say("BDAT 5 LAST\r\nend", "250 ");
    client.say("QUIT", "221 ");
    client.ended();
    let scripts = played(&place, server);
    let [script] = &scripts[..] else { panic!("{} transcripts", scripts.len()) };
    assert_no_secret(script);
    for line in
        ["C: RCPT TO:<to@elsewhere.example>", "S: 550 5.7.1 Relaying denied", "C: AUTH LOGIN", "C: .", "Closed."]
    {
        assert!(script.lines().any(|it| it == line), "no {line} in\n{script}");
    }
    assert!(script.contains("C: BDAT 5000\nC: "), "{script}");
    assert!(script.contains(" octets left out\nC: \nC: .\nS: 250 2.0.0 M"), "{script}");
    assert!(script.len() < 6 << 10, "{} octets", script.len());
}

#[test]
fn files_are_for_their_owner_alone_and_sort_by_time() {
    let place = Place::new();
    let server = start(&place, &[]);
    assert_eq!(directory(&place).metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    for _ in 0..3 {
        server.connect().say("QUIT", "221 ");
        std::thread::sleep(Duration::from_millis(5));
    }
    let scripts = played(&place, server);
    for ((name, script), number) in transcripts(&place).iter().zip(1..) {
        let mode = directory(&place).join(name).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        // 1795871095.123-127.0.0.1-1.smtp
        let (time, rest) = name.split_once('-').unwrap();
        assert_eq!(rest, format!("127.0.0.1-{number}.smtp"));
        let (seconds, thousandths) = time.split_once('.').unwrap();
        assert!(seconds.parse::<u64>().unwrap() > 1_700_000_000 && thousandths.len() == 3, "{name}");
        assert!(script.starts_with("Settings: peer=[127.0.0.1] "), "{script}");
    }
    assert_eq!(scripts.len(), 3);
}

#[test]
fn peers_that_were_not_chosen_are_not_kept() {
    let place = Place::short();
    let socket = place.path().join("socket");
    let unix = format!("unix:{}", socket.display());
    let options =
        ["--listen", "[::1]:0", "--lmtp", &unix, "--transcript-from", "::1", "--transcript-from", "192.0.2.0/24"];
    let server = start(&place, &options);
    server.connect().say("QUIT", "221 ");
    Client::over(UnixStream::connect(&socket).unwrap()).expect("220 ");
    let sixth: std::net::SocketAddr = server.places.iter().find(|it| it.starts_with("[::1]")).unwrap().parse().unwrap();
    let mut client = Client::new(TcpStream::connect(sixth).unwrap());
    client.expect("220 ");
    client.say("QUIT", "221 ");
    assert_eq!(played(&place, server).len(), 1);
    assert!(transcripts(&place)[0].0.contains("-__1-3.smtp"), "{}", transcripts(&place)[0].0);
    // Without that, those of sockets are kept, too.
    let place = Place::short();
    let unix = format!("unix:{}", place.path().join("socket").display());
    let server = start(&place, &["--lmtp", &unix]);
    let mut client = Client::over(UnixStream::connect(place.path().join("socket")).unwrap());
    client.expect("220 ");
    client.say("LHLO x", "250");
    client.say("MAIL FROM:<a@b.example>", "250 ");
    client.say("RCPT TO:<c@d.example>", "250 ");
    client.say("RCPT TO:<e@d.example>", "250 ");
    client.say("DATA", "354 ");
    client.send("text\r\n.\r\n");
    client.expect("250 ");
    client.expect("250 ");
    client.say("QUIT", "221 ");
    let scripts = played(&place, server);
    assert!(scripts[0].contains("peer=local ") && scripts[0].contains(" lmtp=true"), "{}", scripts[0]);
}

#[test]
fn a_hundred_sessions_and_no_more() {
    let place = Place::new();
    let server = start(&place, &["--max-connections", "200", "--timeout", "1m"]);
    let mut clients: Vec<_> = (0..SESSIONS_MAX).map(|_| server.connect()).collect();
    clients.extend((0..20).map(|_| server.connect()));
    server.wait_for_line("the last of 100 transcripts begins; no more are kept");
    for client in &mut clients {
        client.deliver("text\r\n");
        client.say("QUIT", "221 ");
    }
    assert_eq!(server.log().matches("no more are").count(), 1);
    assert_eq!(played(&place, server).len(), SESSIONS_MAX);
}

#[test]
fn a_directory_that_cannot_be_written_ends_the_start() {
    let place = Place::short();
    fs::create_dir(directory(&place)).unwrap();
    fs::set_permissions(directory(&place), fs::Permissions::from_mode(0o500)).unwrap();
    let maildir = place.path().join("theirs");
    fs::create_dir(&maildir).unwrap();
    let mut command = mailchute();
    command.args(["--listen", "127.0.0.1:0", "--transcript"]).arg(directory(&place));
    command.arg("--maildir").arg(maildir.join("Maildir"));
    if rustix::process::geteuid().is_root() {
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(&maildir, Some(65534), None).unwrap();
        command.args(["--user", "65534"]);
    }
    let ended = run(command);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    let line = ended.stderr.lines().last().unwrap();
    assert!(line.contains(" can't keep transcripts in ") && line.contains("ermission denied"), "{line}");
    // Nor is there any below a file.
    let mut command = mailchute();
    command.args(["--listen", "127.0.0.1:0", "--maildir"]).arg(place.maildir());
    command.arg("--transcript").arg(PathBuf::from("/proc/version"));
    let ended = run(command);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("/proc/version: Not a directory"), "{}", ended.stderr);
}

#[test]
fn networks_without_a_directory_are_warned_of() {
    let place = Place::new();
    let server = Server::start(&place, &["--transcript-from", "192.0.2.7"]);
    server.wait_for_line("WARN  --transcript-from does nothing without --transcript DIR");
    server.stop();
}

/// The limit of a file's size is an error of its write, as a full disk is; messages go on where they are smaller.
#[test]
fn an_error_ends_the_transcript_and_nothing_else() {
    let place = Place::new();
    let mut command = common::mailchute_by_shell("ulimit -f 8; exec \"$@\"");
    command.args(["--listen", "127.0.0.1:0", "--sync", "never", "--maildir"]).arg(place.maildir());
    command.arg("--transcript").arg(directory(&place));
    let server = Server::ready(command);
    let mut client = server.connect();
    for _ in 0..1000 {
        client.say("NOOP", "250 ");
    }
    server.wait_for_line("; the transcript ends");
    client.deliver("text\r\n");
    client.say("QUIT", "221 ");
    assert_eq!(server.log().matches("; the transcript ends").count(), 1);
    server.stop();
    let (_, script) = transcripts(&place).remove(0);
    assert!(script.len() <= 8 << 10 && !script.contains("Closed."), "{} octets", script.len());
}

// ---- logins --------------------------------------------------------------------------------------------------------

#[test]
fn secrets_are_masked_however_they_come() {
    let [user, password] = LOGIN;
    let plain_text = "user-name pass-word";
    let login = format!("AUTH LOGIN\r\n{user}\r\n{password}\r\n");
    let at = login.len() - 20;
    for options in [&["--auth", "accept-any"][..], &["--auth", "accept-any", "--strict"], &[]] {
        for packets in [
            // In lockstep, all at once, in two segments, each octet alone.
            vec!["EHLO x\r\n", "AUTH LOGIN\r\n", &format!("{user}\r\n"), &format!("{password}\r\n"), "QUIT\r\n"],
            vec!["EHLO x\r\n", &login, "QUIT\r\n"],
            vec!["EHLO x\r\n", &login[..at], &login[at..], "QUIT\r\n"],
            vec!["EHLO x\r\n", &format!("AUTH PLAIN {PLAIN}\r\n"), "QUIT\r\n"],
            vec!["EHLO x\r\n", &format!("AUTH PLAIN {}", &PLAIN[..9]), &format!("{}\r\n", &PLAIN[9..]), "QUIT\r\n"],
            vec!["EHLO x\r\n", "AU", &format!("TH PLAIN {PLAIN}\r\n"), "QUIT\r\n"],
            vec!["EHLO x\r\n", &format!("AUTH PLAIN\r\n{PLAIN}\r\n"), "QUIT\r\n"],
            vec!["EHLO x\r\n", &format!("auth   login \t {user}  \t\r\n"), &format!("{password}\r\n"), "QUIT\r\n"],
            vec!["EHLO x\r\n", &format!(" AUTH PLAIN {PLAIN}\r\n"), "QUIT\r\n"],
            vec!["EHLO x\r\n", &format!("AUTH=PLAIN {PLAIN}\r\n"), "QUIT\r\n"],
            vec!["EHLO x\r\n", &format!("AUTH {user}\r\n"), &format!("{password}\r\n"), "QUIT\r\n"],
            // No base64 at all.
            vec!["EHLO x\r\n", "AUTH LOGIN\r\n", "user-name\r\n", "pass-word\r\n", "QUIT\r\n"],
            vec!["EHLO x\r\n", &format!("AUTH LOGIN {plain_text}\r\n"), "QUIT\r\n"],
            vec!["EHLO x\r\n", "AUTH PLAIN \0user-name\0pass-word\r\n", "QUIT\r\n"],
            vec!["EHLO x\r\n", "AUTH PLAIN\r\n", "\0user-name\0pass-word\r\n", "QUIT\r\n"],
            vec!["EHLO x\r\n", "AUTH LOGIN\r\n", "*\r\n", "user-name\r\n", "QUIT\r\n"],
            vec!["EHLO x\r\n", "AUTH LOGIN\r\n", "user-name\n", "pass-word\n", "QUIT\r\n"],
            // After a refusal: of the mechanism, of a second login, within a transaction.
            vec!["EHLO x\r\n", "AUTH CRAM-MD5\r\n", "user-name pass-word\r\n", user, "\r\n", "QUIT\r\n"],
            vec!["EHLO x\r\n", &format!("AUTH PLAIN {PLAIN}\r\n"), "AUTH LOGIN\r\n", user, "\r\nQUIT\r\n"],
            vec!["EHLO x\r\n", "MAIL FROM:<a@b.example>\r\n", &login, "RSET\r\n", "QUIT\r\n"],
            vec!["EHLO x\r\n", "MAIL FROM:<a@b.example>\r\n", "AUTH LOGIN\r\n", user, "\r\n", password, "\r\nQUIT\r\n"],
            // Of other protocols.
            vec![
                "EHLO x\r\n",
                "USER somebody\r\n",
                "PASS pass-word\r\n",
                "a1 LOGIN user-name pass-word\r\n",
                "QUIT\r\n",
            ],
            vec!["EHLO x\r\n", "GET http://user-name:pass-word@d.example/ HTTP/1.1\r\nCookie: pass-word\r\n\r\n"],
            vec!["EHLO x\r\n", "POST /?pass-word HTTP/1.1\r\n\r\nuser-name=pass-word"],
            // Too long.
            vec!["EHLO x\r\n", &format!("AUTH PLAIN {}\r\n", PLAIN.repeat(100)), "QUIT\r\n"],
            vec!["EHLO x\r\n", "AUTH LOGIN\r\n", &PLAIN.repeat(100), "\r\n", "QUIT\r\n"],
            // The client hangs up amid.
            vec!["EHLO x\r\n", &format!("AUTH PLAIN {PLAIN}")],
            vec!["EHLO x\r\n", "AUTH LOGIN\r\n", user],
            vec!["EHLO x\r\n", &login[..at]],
        ] {
            let octets: Vec<_> = packets.iter().map(|packet| packet.as_bytes()).collect();
            // What waits for its end is not seen to be early.
            if options.contains(&"--strict") && packets.contains(&&login[..at]) {
                continue;
            }
            let script = transcript_of(options, &octets, true);
            assert_no_secret(&script);
            assert!(script.contains("C: EHLO x\n"), "{script}");
        }
    }
    // One that looks like a command.
    let script =
        transcript_of(&["--auth", "accept-any"], &[b"AUTH LOGIN\r\n", b"vrfy user-name\r\n", b"QUIT\r\n"], true);
    assert_no_secret(&script);
    // What was refused is still seen.
    let script = transcript_of(&[], &[b"EHLO x\r\n", b"AUTH CRAM-MD5\r\n", b"MAIL FROM <a@b>\r\n", b"QUIT\r\n"], true);
    for line in ["C: AUTH CRAM-MD5", "S: 502 5.5.1 Command not implemented", "C: MAIL FROM <a@b>", "C: QUIT", "Closed."]
    {
        assert!(script.lines().any(|it| it == line), "no {line} in\n{script}");
    }
}

#[test]
fn texts_are_shown_even_where_they_look_like_logins() {
    let text = "AUTH LOGIN\r\nC: NOOP\r\nS: 250 OK\r\nClosed.\r\n# … 5 octets left out\r\nQUIT\r\n";
    let begin = "MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n";
    let login = format!("AUTH PLAIN {PLAIN}\r\n");
    for packets in [
        vec!["EHLO x\r\n", &login, begin, "DATA\r\n", text, ".\r\n", "QUIT\r\n"],
        vec!["EHLO x\r\n", &login, &format!("{begin}DATA\r\n{text}.\r\nQUIT\r\n")],
        vec!["EHLO x\r\n", &format!("{begin}BDAT {}\r\n{text}BDAT 0 LAST\r\nQUIT\r\n", text.len())],
    ] {
        let octets: Vec<_> = packets.iter().map(|packet| packet.as_bytes()).collect();
        let script = transcript_of(&["--auth", "accept-any"], &octets, false);
        for line in text.lines() {
            let line = format!("C: {line}").replace('…', "\\xe2\\x80\\xa6");
            assert!(script.lines().any(|it| it == line), "no {line} in\n{script}");
        }
        assert_no_secret(&script);
    }
}

// ---- texts, and what is no text ------------------------------------------------------------------------------------

#[test]
fn long_texts_are_cut_and_end_as_they_did() {
    let begin = "MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n";
    // The end may lie in what is kept, in what is not, and on either side.
    for length in (1010..1040).chain([5000, 100 << 10]) {
        let line = "z".repeat(length);
        for end in ["\r\n", "\n"] {
            let packet = format!("HELO x\r\n{begin}DATA\r\n{line}\r\n.\r\nNOOP\r\nQUIT\r\n").replace("\r\n", end);
            let script = transcript_of(&[], &[packet.as_bytes()], false);
            assert!(script.len() < 3000, "{} octets for {length}", script.len());
            assert_eq!(script.contains(" left out"), length > 1024, "{length}: {script}");
        }
        let (first, second) = format!("DATA\r\n{line}\r\n.\r\n").split_at(length + 7).to_owned_pair();
        let packets = ["HELO x\r\n".as_bytes(), begin.as_bytes(), first.as_bytes(), second.as_bytes(), b"QUIT\r\n"];
        transcript_of(&[], &packets, false);
        let packet = format!("EHLO x\r\n{begin}BDAT {length}\r\n{line}BDAT {length} LAST\r\n{line}NOOP\r\nQUIT\r\n");
        transcript_of(&[], &[packet.as_bytes()], false);
    }
    // One that is refused for its size, one without an end, and one that was refused at once.
    let long = "z".repeat(20 << 10) + "\r\n";
    let too_large = ["--max-size", "10K"];
    let script =
        transcript_of(&too_large, &[format!("HELO x\r\n{begin}DATA\r\n{long}.\r\nQUIT\r\n").as_bytes()], false);
    assert!(script.contains("S: 552 5.3.4 "), "{script}");
    transcript_of(&[], &[format!("HELO x\r\n{begin}DATA\r\n{long}").as_bytes()], true);
    transcript_of(&[], &[b"HELO x\r\n", b"DATA\r\n", b"NOOP\r\n", long.as_bytes(), b"QUIT\r\n"], false);
    transcript_of(&[], &[b"HELO x\r\n", b"DATA\r\n", long.as_bytes(), b".\r\nQUIT\r\n"], false);
    transcript_of(&[], &[format!("HELO x\r\nDATA\r\n{long}.\r\nQUIT\r\n").as_bytes()], false);
}

trait OwnedPair {
    fn to_owned_pair(self) -> (String, String);
}

impl OwnedPair for (&str, &str) {
    fn to_owned_pair(self) -> (String, String) {
        (self.0.to_owned(), self.1.to_owned())
    }
}

#[test]
fn octets_that_are_no_smtp_are_shown() {
    let all: Vec<u8> = (0..=255).collect();
    transcript_of(&[], &[b"NOOP ", &all, b"\r\nQUIT\r\n"], false);
    transcript_of(&["--auth", "accept-any"], &[b"EHLO x\r\nAUTH PLAIN ", &all, b"\r\nQUIT\r\n"], false);
    // Each of them alone, in lockstep.
    let place = Place::new();
    let server = start(&place, &["--auth", "accept-any"]);
    for octets in all.chunks(3) {
        let mut client = server.connect();
        for &octet in octets.iter().filter(|octet| **octet != b'\n') {
            for before in ["NOOP ", "", "AUTH PLAIN a", "AUTH LOGIN\r\n", "EHLO "] {
                if before.starts_with("AUTH PLAIN") && octet >= 0x80 {
                    // Whether what was hidden is UTF-8 is not told.
                    continue;
                }
                let sent = client.try_send([before.as_bytes(), &[octet], b"\r\n"].concat());
                let challenged = before.starts_with("AUTH LOGIN");
                let _ = sent
                    .and_then(|()| client.try_reply())
                    .and_then(|_| if challenged { client.try_reply() } else { Ok(String::new()) });
            }
        }
    }
    assert_eq!(played(&place, server).len(), 86);
    let endless = "e".repeat(300_000);
    let script = transcript_of(&[], &[endless.as_bytes(), endless.as_bytes(), b"\r\nNOOP\r\nQUIT\r\n"], false);
    assert!(script.contains("S: 500 5.5.2 Line too long\n") && script.len() < 3000, "{script}");
    let script = transcript_of(&[], &[b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", &all], false);
    assert!(script.contains("C: \\x16\\x03\\x01") && script.contains("S: 554 5.5.0 No TLS here\nClosed."), "{script}");
    for request in ["GET /auth HTTP/1.1\r\n\r\n", "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"] {
        transcript_of(&[], &[request.as_bytes()], false);
    }
    transcript_of(&["--strict"], &[b"EHLO x\n", b"NOOP\r\nNOOP\r\n"], false);
}

#[test]
fn a_file_has_an_end() {
    let noops = "NOOP\r\n".repeat(10_000);
    let script = transcript_of(&[], &[noops.as_bytes(), b"QUIT\r\n"], false);
    assert!(script.ends_with("C: QUIT\nS: 221 ") || script.contains("Closed."), "{} octets", script.len());
    let script = transcript_of(&[], &[noops.as_bytes(), noops.as_bytes(), b"QUIT\r\n"], false);
    assert!(script.ends_with("# … the rest is left out\n"));
    assert!((256 << 10..600 << 10).contains(&script.len()), "{} octets", script.len());
}

#[test]
fn a_server_that_ends_a_session_by_itself_is_played() {
    let place = Place::new();
    let server = start(&place, &["--timeout", "1s"]);
    let mut client = server.connect();
    client.say("HELO x", "250 ");
    client.expect("421 4.4.2 ");
    client.ended();
    // What there is of a line came before that.
    let mut client = server.connect();
    client.say("EHLO x", "250");
    client.say("AUTH LOGIN", "502 ");
    client.send("MAIL FROM:<a@b");
    client.expect("421 4.4.2 ");
    client.ended();
    let mut client = server.connect();
    client.say("HELO x", "250 ");
    client.send("NOO");
    std::thread::sleep(Duration::from_millis(100));
    let scripts = played(&place, server);
    let timeout = "S: 421 4.4.2 Timeout: closing connection\nClosed.\n";
    assert!(scripts[0].ends_with(&format!("([127.0.0.1]), pleased to meet you\n{timeout}")), "{}", scripts[0]);
    assert!(scripts[1].ends_with(&format!("\nC: MAIL FROM:<a@b\\\n{timeout}")), "{}", scripts[1]);
    let shutdown = "\nC: NOO\\\nS: 421 4.3.2 Server is shutting down\nClosed.\n";
    assert!(scripts[2].ends_with(shutdown), "{}", scripts[2]);
    let place = Place::new();
    let server = start(&place, &["--allow-from", "192.0.2.0/24"]);
    let mut client = server.connect_silently();
    client.expect("554 5.7.1 ");
    client.ended();
    assert!(played(&place, server)[0].contains("\nS: 554 5.7.1 Your address is not served here\nClosed.\n"));
}

/// What there is to tell when the server ends amid a message is told.
#[test]
fn the_end_at_a_second_signal_is_kept() {
    let place = Place::new();
    let mut server = start(&place, &[]);
    let mut client = server.connect();
    client.begin();
    client.send("z".repeat(5000));
    server.signal(Signal::TERM);
    server.wait_for_line("stopping; messages that are coming in");
    server.signal(Signal::TERM);
    assert_eq!(server.end().code(), Some(0));
    let (name, script) = transcripts(&place).remove(0);
    harness::play(&name, &script);
    assert!(script.ends_with("\n# … 3976 octets left out\n"), "{script}");
}

// ---- without a socket ----------------------------------------------------------------------------------------------

/// However octets are cut into reads, a transcript has all of them, but for what is masked.
#[test]
fn segments_do_not_matter() {
    let mut random = Random::new(seed());
    let pieces = [
        "NOOP\r\n",
        "AUTH PLAIN ",
        PLAIN,
        "\r\n",
        "auth login\r\n",
        LOGIN[0],
        "MAIL FROM:<a@b>\r\n",
        "RCPT TO:<c@d>\r\n",
        "DATA\r\n",
        "text\n.\n",
        "\r\n.\r\n",
        "BDAT 9\r\n",
        "\n",
        "\r",
        " ",
        "pass-word",
        "*",
        "QUIT\r\n",
    ];
    let (mut masked, mut whole) = (0, 0);
    for _ in 0..4000 {
        let octets: String = (0..random.below(30)).map(|_| random.choose(&pieces)).collect();
        let octets = octets.as_bytes();
        let mut driver = harness::Driver::new("auth");
        driver.transcript = Some(Transcript::default());
        let mut rest = octets;
        while !rest.is_empty() {
            let (part, behind) = rest.split_at((1 + random.below(9)).min(rest.len()));
            driver.receive(part);
            rest = behind;
        }
        let said = driver.end(octets);
        whole += usize::from(said.len() == octets.len());
        masked += said.iter().zip(octets).filter(|(shown, octet)| shown != octet).count();
    }
    assert!(masked > 1000 && whole > 1000, "{masked} {whole}");
}
