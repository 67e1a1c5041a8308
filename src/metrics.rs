//! What is counted, and told to Prometheus in its text form (version 0.0.4) over HTTP.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use itoa::Buffer;

/// Connections at a time: a newcomer takes the place of the oldest, so that none needs a timeout.
pub(crate) const SCRAPES_MAX: usize = 4;
/// Octets of a request that are read before it is answered, whole or not.
const REQUEST_OCTETS_MAX: usize = 4096;
/// What is told, with `@` in place of the figures.
const TEXT: &str = include_str!("metrics.txt");
/// Reads and writes for one connection in one turn: who sends more than a megabyte at once is no client.
const STEPS_MAX: usize = 256;

/// The figures in the order of that text. What is counted where it happens:
pub type Figures = [u64; 13];
/// newcomers that are refused as none more fits, none more of their address, or their network is not served,
pub(crate) const NEWCOMERS: usize = 2;
pub(crate) const TIMEOUTS: usize = 5;
/// final replies to messages, by the first digit modulo 4: 4yz, 5yz, 250,
pub(crate) const MESSAGES: usize = 6;
/// octets of the messages that were stored, as RFC 1870 counts them,
pub(crate) const OCTETS: usize = 9;
/// and recipients that are refused.
pub(crate) const RECIPIENTS: usize = 10;

/// Somebody who asks.
pub(crate) struct Scrape {
    pub(crate) stream: TcpStream,
    /// What came of the request, without CR; then what is left of the answer.
    pub(crate) octets: Vec<u8>,
    pub(crate) is_answered: bool,
}

impl Scrape {
    /// Reads and writes what can be now; whether it goes on with the next event.
    pub(crate) fn goes_on(&mut self, figures: &Figures) -> bool {
        let stopped = (0..STEPS_MAX).find_map(|_| self.step(figures).err());
        stopped.is_some_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// The end of what the peer sends is awaited: to close before could take the answer from it.
    fn step(&mut self, figures: &Figures) -> io::Result<()> {
        if self.is_answered && !self.octets.is_empty() {
            let sent = self.stream.write(&self.octets)?;
            self.octets.drain(..sent);
            return if self.octets.is_empty() { self.stream.shutdown(Shutdown::Write) } else { Ok(()) };
        }
        let mut block = [0; REQUEST_OCTETS_MAX];
        let count = Some(self.stream.read(&mut block)?).filter(|&count| count > 0).ok_or(ErrorKind::UnexpectedEof)?;
        self.octets
            .extend(block.iter().take(if self.is_answered { 0 } else { count }).filter(|octet| **octet != b'\r'));
        if self.octets.len() >= REQUEST_OCTETS_MAX || self.octets.windows(2).any(|it| it == b"\n\n") {
            (self.octets, self.is_answered) = (answer(&self.octets, figures), true);
        }
        Ok(())
    }
}

fn answer(request: &[u8], figures: &Figures) -> Vec<u8> {
    let mut words = request.split(u8::is_ascii_whitespace);
    let [method, path] = [(); 2].map(|()| words.next().unwrap_or_default());
    let (head, text) = match (method, path) {
        (b"GET" | b"HEAD", b"/metrics") => ("200 OK\r\nContent-Type: text/plain; version=0.0.4", TEXT),
        (b"GET" | b"HEAD", _) => ("404 Not Found", ""),
        _ => ("405 Method Not Allowed\r\nAllow: GET, HEAD", ""),
    };
    let replace = |text: String, figure: &u64| text.replacen('@', Buffer::new().format(*figure), 1);
    let body = figures.iter().fold(text.to_owned(), replace);
    let head = format!("HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_str(), if method == b"HEAD" { "" } else { &body }].concat().into()
}
