//! What is counted, and told to Prometheus in its text form (version 0.0.4) over HTTP.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use crate::smtp::reply::Reply;

/// Connections at a time: a newcomer takes the place of the oldest, so that none needs a timeout.
pub(crate) const SCRAPES_MAX: usize = 4;
/// Octets of a request that are read before it is answered, whole or not.
const REQUEST_OCTETS_MAX: usize = 4096;
/// What is told, with `@` in place of the figures.
const TEXT: &str = include_str!("metrics.txt");
/// Reads and writes for one connection in one turn: who sends more than a megabyte at once is no client.
const STEPS_MAX: usize = 256;

/// The figures in the order of that text.
pub type Figures = [u64; 13];

/// What is counted where it happens, since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Newcomers that were refused as no more connections may be open,
    pub full: u64,
    /// as none more of their address may,
    pub per_address: u64,
    /// or as their network is not served.
    pub network: u64,
    /// Connections whose peers kept us waiting for too long.
    pub timeouts: u64,
    /// Messages by their final reply, in LMTP one for each recipient: 4yz,
    pub failed: u64,
    /// 5yz,
    pub refused: u64,
    /// 250.
    pub stored: u64,
    /// Size of the stored messages, as RFC 1870 counts it.
    pub octets: u64,
    /// Recipients that were refused as what they are, or as their mailbox can't be had.
    pub recipients_refused: u64,
}

impl Counters {
    /// Counts a message by its final reply, which is 250 if it is not given.
    pub(crate) fn count(&mut self, reply: Option<Reply>) {
        *match reply {
            None => &mut self.stored,
            Some(reply) if reply.0.starts_with('4') => &mut self.failed,
            Some(_) => &mut self.refused,
        } += 1;
    }
}

/// Somebody who asks.
pub(crate) struct Scrape {
    pub(crate) stream: TcpStream,
    /// What came of the request, without CR; none once it is answered.
    pub(crate) request: Option<Vec<u8>>,
}

impl Scrape {
    /// Reads and writes what can be now; whether it goes on with the next event. An answer asks for the figures.
    pub(crate) fn goes_on(&mut self, figures: &mut dyn FnMut() -> Figures) -> bool {
        let stopped = (0..STEPS_MAX).find_map(|_| self.step(figures).err());
        stopped.is_some_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// The end of what the peer sends is awaited: to close before could take the answer from it.
    fn step(&mut self, figures: &mut dyn FnMut() -> Figures) -> io::Result<()> {
        let mut block = [0; REQUEST_OCTETS_MAX];
        let count = Some(self.stream.read(&mut block)?).filter(|&count| count > 0).ok_or(ErrorKind::UnexpectedEof)?;
        let Some(request) = &mut self.request else { return Ok(()) };
        request.extend(block[..count].iter().filter(|octet| **octet != b'\r'));
        if request.len() >= REQUEST_OCTETS_MAX || request.windows(2).any(|it| it == b"\n\n") {
            // One write: it is the first, and shorter than what the system takes without waiting.
            self.stream.write_all(&answer(request, &figures())).map_err(|_| ErrorKind::BrokenPipe)?;
            self.stream.shutdown(Shutdown::Write)?;
            self.request = None;
        }
        Ok(())
    }
}

fn answer(request: &[u8], figures: &Figures) -> Vec<u8> {
    // A query asks for nothing else.
    let mut words = request.split(|octet| octet.is_ascii_whitespace() || *octet == b'?');
    let [method, path] = [(); 2].map(|()| words.next().unwrap_or_default());
    let (head, text) = match (method, path) {
        (b"GET" | b"HEAD", b"/metrics") => ("200 OK\r\nContent-Type: text/plain; version=0.0.4", TEXT),
        (b"GET" | b"HEAD", _) => ("404 Not Found", ""),
        _ => ("405 Method Not Allowed\r\nAllow: GET, HEAD", ""),
    };
    let replace = |text: String, figure: &u64| text.replacen('@', &figure.to_string(), 1);
    let body = figures.iter().fold(text.to_owned(), replace);
    let head = format!("HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_str(), if method == b"HEAD" { "" } else { &body }].concat().into()
}
