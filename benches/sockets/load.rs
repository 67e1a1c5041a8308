//! Clients that send message after message, each over a connection that it keeps, all on the caller's thread.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

/// Octets of a message's content, as it is sent.
pub const MESSAGE_OCTETS: usize = 1024;

/// What the clients saw.
#[derive(Clone, Copy)]
pub struct Sample {
    /// Messages a second.
    pub rate: f64,
    /// Milliseconds from a message's last octet to its 250.
    pub p50: f64,
    /// As above.
    pub p99: f64,
}

/// What a client waits for the reply to.
#[derive(Clone, Copy)]
enum Step {
    Connect,
    Hello,
    Mail,
    Recipient,
    Data,
    Content,
}

struct Client {
    stream: TcpStream,
    step: Step,
    reply: Vec<u8>,
    sent: Instant,
}

impl Client {
    /// Reads what came. Of a whole reply, says the next thing; returns how long a message took whose 250 this was.
    fn go_on(&mut self, message: &[u8]) -> Option<Duration> {
        let mut place = [0; 1024];
        loop {
            match self.stream.read(&mut place) {
                Ok(0) => panic!("the server ended a connection"),
                Ok(count) => self.reply.extend_from_slice(&place[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) => panic!("{error}"),
            }
            // The last line of a reply has a space behind its number.
            let last = self.reply.split_inclusive(|&octet| octet == b'\n').next_back().unwrap_or_default();
            if last.ends_with(b"\n") && last.get(3) == Some(&b' ') {
                break;
            }
        }
        let (expected, next, words): (u8, Step, &[u8]) = match self.step {
            Step::Connect => (b'2', Step::Hello, b"EHLO bench\r\n"),
            Step::Hello | Step::Content => (b'2', Step::Mail, b"MAIL FROM:<sender@example.com>\r\n"),
            Step::Mail => (b'2', Step::Recipient, b"RCPT TO:<user@example.com>\r\n"),
            Step::Recipient => (b'2', Step::Data, b"DATA\r\n"),
            Step::Data => (b'3', Step::Content, message),
        };
        assert_eq!(self.reply.first(), Some(&expected), "{}", String::from_utf8_lossy(&self.reply));
        self.reply.clear();
        let took = matches!(self.step, Step::Content).then(|| self.sent.elapsed());
        self.step = next;
        self.sent = Instant::now();
        // The socket takes this whole: nothing else is on its way.
        assert_eq!(self.stream.write(words).unwrap(), words.len());
        took
    }
}

fn message() -> Vec<u8> {
    let mut message = b"From: <sender@example.com>\r\nTo: <user@example.com>\r\nSubject: bench\r\n\r\n".to_vec();
    while message.len() + 64 <= MESSAGE_OCTETS {
        message.extend_from_slice(b"all work and no play makes a line of sixty-four octets of tex\r\n");
    }
    message.resize(MESSAGE_OCTETS - 2, b'x');
    message.extend_from_slice(b"\r\n.\r\n");
    message
}

/// Sends for `time`, after a tenth of it to warm up.
pub fn run(address: SocketAddr, connections: usize, time: Duration) -> Sample {
    let mut poll = Poll::new().unwrap();
    let mut events = Events::with_capacity(connections.max(16));
    let message = message();
    let mut clients: Vec<Client> = (0..connections)
        .map(|index| {
            let stream = std::net::TcpStream::connect(address).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_nonblocking(true).unwrap();
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(index), Interest::READABLE).unwrap();
            Client { stream, step: Step::Connect, reply: Vec::new(), sent: Instant::now() }
        })
        .collect();
    let start = Instant::now() + time / 10;
    let mut latencies = Vec::new();
    loop {
        poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
        assert!(!events.is_empty(), "no reply in 10 s");
        let since = start.elapsed();
        if since >= time {
            latencies.sort_by(f64::total_cmp);
            let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied();
            let rate = latencies.len() as f64 / since.as_secs_f64();
            return Sample { rate, p50: at(0.5).unwrap_or(f64::NAN), p99: at(0.99).unwrap_or(f64::NAN) };
        }
        for event in &events {
            let took = clients[event.token().0].go_on(&message);
            if let Some(took) = took.filter(|_| !since.is_zero()) {
                latencies.push(took.as_secs_f64() * 1e3);
            }
        }
    }
}
