//! `mailchute healthcheck`: asks a server as a peer does whether it takes mail, and has less than a second for all of it.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use mailchute::config::Place;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Asks the server at the address in `arguments`, or at the first one that the environment has it listen on, or at the usual
/// one. The error is a line that says what is wrong, and the status: 1 is unhealthy, 2 is wrong usage.
pub fn check(mut arguments: impl Iterator<Item = OsString>) -> Result<(), (String, u8)> {
    let deadline = Instant::now() + Duration::from_millis(900);
    let listen = std::env::var("MAILCHUTE_LISTEN").unwrap_or_default();
    let first = listen.split(',').find(|part| !part.is_empty()).unwrap_or("127.0.0.1:2525");
    let named = arguments.next().unwrap_or_else(|| first.into());
    let (Some(place), None) = (crate::options::place(named.to_string_lossy().trim()), arguments.next()) else {
        return Err(("healthcheck takes one address, IP:PORT or unix:PATH".to_owned(), 2));
    };
    let late = io::Error::other("no answer in time");
    let told = |error| format!("not healthy: {}", if Instant::now() < deadline { error } else { late });
    ask(&place, deadline).map_err(|error| (told(error), 1))
}

/// A whole session, which stores nothing: MAIL is refused when mail would be, and a null sender needs no mailbox.
fn ask(place: &Place, deadline: Instant) -> io::Result<()> {
    let address = match place {
        // Linux takes 0.0.0.0 and [::] for loopback here.
        Place::Tcp(address) => SocketAddrAny::from(*address),
        Place::Unix(path) => SocketAddrUnix::new(path)?.into(),
    };
    // When no time is left, that is an error of what is begun then.
    let left = || Some(deadline.saturating_duration_since(Instant::now()));
    let socket = socket_with(address.address_family(), SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, left())?;
    connect(&socket, &address)?;
    let mut stream = TcpStream::from(socket);
    let (mut reply, mut octet) = (String::new(), [0]);
    for command in ["", "EHLO [127.0.0.1]\r\n", "MAIL FROM:<>\r\n", "RSET\r\n", "QUIT\r\n"] {
        let lmtp = command.starts_with("EHLO") && reply.split(' ').nth(2) == Some("LMTP");
        stream.write_all(if lmtp { b"LHLO [127.0.0.1]\r\n" } else { command.as_bytes() })?;
        reply.clear();
        while !reply.ends_with('\n') || reply.lines().last().and_then(|line| line.get(3..4)) == Some("-") {
            stream.set_read_timeout(left())?;
            stream.read_exact(&mut octet).map_err(|_| io::Error::other("the connection ended before a reply did"))?;
            reply.push(char::from(octet[0]));
        }
        if !reply.starts_with('2') {
            return Err(io::Error::other(format!("{:?} to {:?}", reply.trim_end(), command.trim_end())));
        }
    }
    Ok(())
}
