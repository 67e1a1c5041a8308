//! `mailchute healthcheck`: true, silent, and done within a second whatever the server does.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use common::{Ended, Place, Server, mailchute, run, skip, until};
use rustix::process::Signal;

const IN_TIME: Duration = Duration::from_secs(1);

/// Runs a health check with these arguments and, unless it is empty, this variable.
#[track_caller]
fn check(arguments: &[&str], listen: &str) -> Ended {
    let mut command = mailchute();
    command.arg("healthcheck").args(arguments).env("MAILCHUTE_LISTEN", listen);
    let start = Instant::now();
    let ended = run(command);
    assert!(start.elapsed() < IN_TIME, "{:?}: {}", start.elapsed(), ended.stderr);
    ended
}

#[track_caller]
fn assert_healthy(arguments: &[&str], listen: &str) {
    let Ended { status, stdout, stderr } = check(arguments, listen);
    assert_eq!((status.code(), stdout.as_str(), stderr.as_str()), (Some(0), "", ""));
}

/// Fails unless it ends with `code` and one line that has `words`.
#[track_caller]
fn assert_not_healthy(arguments: &[&str], listen: &str, code: i32, words: &str) {
    let Ended { status, stdout, stderr } = check(arguments, listen);
    assert_eq!((status.code(), stdout.as_str()), (Some(code), ""), "{stderr}");
    assert!(stderr.lines().count() == 1 && stderr.contains(words), "no {words} in: {stderr}");
}

#[test]
fn a_healthy_server_is_healthy_wherever_it_listens_and_says_nothing_of_it() {
    let (place, short) = (Place::new(), Place::short());
    let unix = ["smtp", "lmtp"].map(|name| format!("unix:{}", short.path().join(name).display()));
    let options = ["--listen", &unix[0], "--lmtp", &unix[1], "--lmtp", "127.0.0.1:0", "--listen", "0.0.0.0:0"];
    let server = Server::start(&place, &[&options[..], &["--listen", "[::]:0", "--log", "debug", "--strict"]].concat());
    let addresses: Vec<_> = server.places.iter().map(|place| place.trim_end_matches(" (LMTP)")).collect();
    assert_eq!(addresses.len(), 6, "{addresses:?}");
    for address in &addresses {
        assert_healthy(&[address], "127.0.0.1:1");
        assert_healthy(&[], address);
        assert_healthy(&[], &format!(",{address},127.0.0.1:1"));
    }
    let sessions = 3 * addresses.len();
    until("all are closed", || server.log().matches(" closed reason=end stored=0").count() == sessions);
    for line in server.log().lines().filter(|line| line.contains("session=")) {
        assert!(line.starts_with("DEBUG "), "{line}");
    }
    place.assert_empty();
    server.stop();
}

#[test]
fn without_an_address_it_is_the_usual_one() {
    if TcpListener::bind("127.0.0.1:2525").is_err() {
        return skip("somebody else listens on port 2525");
    }
    let place = Place::new();
    assert_not_healthy(&[], "", 1, "refused");
    let mut command = mailchute();
    command.arg("--maildir").arg(place.maildir());
    let server = Server::ready(command);
    assert_healthy(&[], "");
    server.stop();
}

#[test]
fn a_server_that_refuses_mail_is_not_healthy() {
    let place = Place::new();
    for (option, value, words) in [
        ("--min-free", "100%", r#""452 4.3.1 Insufficient system storage" to "MAIL FROM:<>""#),
        ("--allow-from", "10.0.0.0/8", r#""554 5.7.1 Your address is not served here" to """#),
    ] {
        let server = Server::start(&place, &[option, value]);
        let address = server.address().to_string();
        assert_not_healthy(&[&address], "", 1, words);
        assert_eq!(server.log().matches("session=").count(), 0, "{}", server.log());
        server.stop();
    }
    let server = Server::start(&place, &["--max-connections", "1"]);
    let address = server.address().to_string();
    let one = server.connect();
    assert_not_healthy(&[], &address, 1, "421 4.3.2 ");
    drop(one);
    until("there is room again", || check(&[], &address).status.success());
    server.stop();
}

#[test]
fn a_server_that_does_not_answer_is_not_healthy() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let address = server.address().to_string();
    server.signal(Signal::STOP);
    assert_not_healthy(&[&address], "", 1, "in time");
    server.signal(Signal::CONT);
    assert_healthy(&[&address], "");
    server.kill();
    assert_not_healthy(&[&address], "", 1, "refused");
    assert_not_healthy(&[], &format!("unix:{}", place.path().join("none").display()), 1, "No such file");
    // Nobody takes the connection, and then there is no more room for those that wait.
    let short = Place::short();
    let path = short.path().join("in.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let full = std::thread::spawn({
        let path = path.clone();
        move || (0..10_000).map_while(|_| connect_unless_full(&path)).collect::<Vec<_>>()
    });
    let waiting = full.join().unwrap();
    assert!(!waiting.is_empty());
    assert_not_healthy(&[&format!("unix:{}", path.display())], "", 1, "in time");
}

/// A connection, unless that would have to wait for room.
fn connect_unless_full(path: &std::path::Path) -> Option<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).ok().map(|()| socket.into())
}

/// Serves one connection by `speak`, on a port of its own.
fn impostor(speak: impl FnOnce(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || speak(listener.accept().unwrap().0));
    address
}

/// Answers one line with each of `replies`, the first one unasked.
fn script(replies: &'static [&'static str]) -> String {
    impostor(move |mut stream| {
        for reply in replies {
            stream.write_all(reply.as_bytes()).unwrap();
            let _ = stream.read(&mut [0; 100]);
        }
    })
}

#[test]
fn what_is_no_mail_server_is_not_healthy() {
    // One octet at a time, and without end.
    let slowly = impostor(|mut stream| {
        while stream.write_all(b"2").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert_not_healthy(&[&slowly], "", 1, "in time");
    let endless = impostor(|mut stream| while stream.write_all(&b"220-x\r\n".repeat(1000)).is_ok() {});
    assert_not_healthy(&[&endless], "", 1, "in time");
    assert_not_healthy(&[&impostor(drop)], "", 1, "not healthy: ");
    assert_not_healthy(
        &[&impostor(|mut stream| stream.write_all(b"220 half of a li").unwrap())],
        "",
        1,
        "ended before",
    );
    assert_not_healthy(&[&script(&["HTTP/1.1 400 Bad Request\r\n\r\n"])], "", 1, "HTTP/1.1 400");
    assert_not_healthy(
        &[&script(&["220 a\r\n", "250-b\r\n250 c\r\n", "450-later\r\n450 \x1b[0m\r\n"])],
        "",
        1,
        "450-later",
    );
    assert_not_healthy(&[&script(&["220 a\r\n", "250 b\r\n", "250 c\r\n", "250 d\r\n", "500 e\r\n"])], "", 1, "500 e");
    assert_healthy(&[&script(&["220 a\r\n", "250-b\r\n250 c\r\n", "250 d\r\n", "250 e\r\n", "221 f\r\n"])], "");
}

#[test]
fn wrong_usage_is_status_2() {
    for arguments in
        [&["nonsense"][..], &["127.0.0.1"], &["unix:"], &[""], &["--help"], &["127.0.0.1:1", "127.0.0.1:1"]]
    {
        assert_not_healthy(arguments, "", 2, "IP:PORT or unix:PATH");
    }
    assert_not_healthy(&[], "localhost:25", 2, "IP:PORT or unix:PATH");
}
