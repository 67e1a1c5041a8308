//! `mailchute healthcheck`: asks a server as a peer does whether it takes mail, and has less than a second for all of it.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::{fd::OwnedFd, unix::net::UnixStream};
use std::time::Duration;

use mailchute::config::{LISTEN_USUAL, Place};

const TIME: Duration = Duration::from_millis(900);
const REPLIES_OCTETS_MAX: u64 = 64 << 10;
const USAGE: &str = "healthcheck takes one address, IP:PORT or unix:PATH";

/// Asks the server at the address in `arguments`, or at the first one that the environment has it listen on, or at the usual
/// ones. The error is a line that says what is wrong, and the status: 1 is unhealthy, 2 is wrong usage.
pub fn check(mut arguments: impl Iterator<Item = OsString>) -> Result<(), (String, u8)> {
    let listen = std::env::var("MAILCHUTE_LISTEN").unwrap_or_default();
    let first = listen.split(',').find(|part| !part.is_empty()).map(OsString::from);
    let place = arguments.next().or(first).map(|named| crate::options::place(named.to_string_lossy().trim()));
    if place == Some(None) || arguments.next().is_some() {
        return Err((USAGE.to_owned(), 2));
    }
    let (tell, answer) = std::sync::mpsc::channel();
    // Whatever it waits for, it is not waited for.
    let asking = std::thread::Builder::new().spawn(move || tell.send(ask(place.flatten())));
    let late = || io::Error::other("no answer in time");
    let answer = asking.and_then(|_| answer.recv_timeout(TIME).unwrap_or_else(|_| Err(late())));
    answer.map_err(|problem| (format!("not healthy: {problem}"), 1))
}

/// A whole session, which stores nothing: MAIL is refused when mail would be, and a null sender needs no mailbox.
fn ask(place: Option<Place>) -> io::Result<()> {
    let stream = match place {
        None => TcpStream::connect(&LISTEN_USUAL[..]),
        // Linux takes 0.0.0.0 and [::] for loopback here.
        Some(Place::Tcp(address)) => TcpStream::connect(address),
        Some(Place::Unix(path)) => UnixStream::connect(path).map(|stream| OwnedFd::from(stream).into()),
    }?;
    let mut replies = BufReader::new(stream.try_clone()?.take(REPLIES_OCTETS_MAX));
    let mut lmtp = false;
    for command in ["", "EHLO [127.0.0.1]\r\n", "MAIL FROM:<>\r\n", "RSET\r\n", "QUIT\r\n"] {
        let command = if lmtp { command.replace("EHLO", "LHLO") } else { command.to_owned() };
        (&stream).write_all(command.as_bytes())?;
        let mut reply = String::new();
        while replies.read_line(&mut reply)? > 0 && reply.lines().last().and_then(|line| line.get(3..4)) == Some("-") {}
        if !reply.starts_with('2') || !reply.ends_with('\n') {
            let start: String = reply.trim_end().chars().take(100).collect();
            return Err(io::Error::other(format!("{start:?} to {:?}", command.trim_end())));
        }
        lmtp |= command.is_empty() && reply.split(' ').nth(2) == Some("LMTP");
    }
    Ok(())
}
