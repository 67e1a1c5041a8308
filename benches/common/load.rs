//! The load generator: clients that send message after message to any SMTP server, all on the caller's thread.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::process::processor_time;

/// What every connection begins with.
pub const HELLO: &[u8] = b"EHLO bench\r\n";
/// And ends with.
pub const QUIT: &[u8] = b"QUIT\r\n";

/// Connections that wait for their greeting at a time, so that no server's queue of newcomers overflows.
const OPENING_MAX: usize = 64;
/// How long a warm-up goes on for connections that still have no greeting.
const OPENING_TIME: Duration = Duration::from_secs(10);
/// Errors after one another after which the server is given up.
const ERRORS_MAX: u64 = 100;
/// Silence after which the server is given up.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Latencies beyond count as this one.
const LATENCY_MAX: Duration = Duration::from_secs(600);
/// Octets that are read from a connection at a time.
const INPUT_OCTETS: usize = 4096;
/// The share of a processor's time from which on the load generator counts as busy.
const BUSY: f64 = 0.9;

/// When a run ends.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After so many messages; each connection says QUIT.
    Messages(u64),
    /// After this time; connections break off.
    Time(Duration),
}

/// What is to be sent.
#[derive(Clone, Debug)]
pub struct Plan {
    pub address: SocketAddr,
    pub connections: usize,
    /// The end, counted from the end of the warm-up.
    pub until: Until,
    /// How long messages are sent before any are counted.
    pub warm_up: Duration,
    /// Octets of a message.
    pub size: usize,
    pub recipients: usize,
    /// Messages of a connection before another takes its place; 0 is any number.
    pub per_connection: u64,
    /// Whether commands are sent in groups (RFC 2920), each message together with the next one's commands.
    pub pipelining: bool,
    /// Messages a second of all connections together, if not as fast as possible.
    pub rate: Option<f64>,
    /// The server's process, whose time on the processor is told beside our own.
    pub server: Option<u32>,
    /// Whether a line each second says how it goes.
    pub progress: bool,
}

impl Plan {
    /// Messages of 1 KiB over one connection that is kept, as fast as possible.
    pub fn new(address: SocketAddr, until: Until) -> Self {
        Self {
            address,
            connections: 1,
            until,
            warm_up: Duration::ZERO,
            size: 1024,
            recipients: 1,
            per_connection: 0,
            pipelining: false,
            rate: None,
            server: None,
            progress: false,
        }
    }
}

/// What was measured.
pub struct Sample {
    pub messages: u64,
    /// Octets of a message.
    size: usize,
    /// Messages that were not taken, and connections that broke.
    pub errors: u64,
    pub first_error: Option<String>,
    pub time: Duration,
    /// Nanoseconds from a message's beginning to the reply to its end. It begins when its first command is sent; if the
    /// connection is its own, when that is begun; with a rate, when it is due.
    pub latencies: Histogram<u64>,
    /// Our own time on the processor, and the server's.
    pub own: Duration,
    pub server: Option<Duration>,
    rate: Option<f64>,
}

impl Sample {
    pub fn rate(&self) -> f64 {
        self.messages as f64 / self.time.as_secs_f64()
    }

    /// Millions of octets of messages a second.
    pub fn megabytes(&self) -> f64 {
        self.rate() * self.size as f64 / 1e6
    }

    /// Milliseconds that so many hundredths of the messages took at most.
    pub fn latency(&self, percentile: f64) -> f64 {
        if self.latencies.is_empty() { f64::NAN } else { self.latencies.value_at_percentile(percentile) as f64 / 1e6 }
    }

    /// The share of one processor that we used.
    pub fn own_share(&self) -> f64 {
        self.own.as_secs_f64() / self.time.as_secs_f64()
    }

    pub fn server_share(&self) -> Option<f64> {
        self.server.map(|server| server.as_secs_f64() / self.time.as_secs_f64())
    }

    /// Microseconds that the server spent on the processor for each message.
    pub fn server_micros(&self) -> f64 {
        self.server.map_or(f64::NAN, |server| server.as_secs_f64() * 1e6 / self.messages as f64)
    }

    /// Whether a faster load generator might have found a faster server.
    pub fn was_bottleneck(&self) -> bool {
        let missed = self.rate.is_none_or(|rate| self.rate() < rate * 0.98);
        missed && self.own_share() > BUSY && self.server_share().is_none_or(|share| share < BUSY)
    }
}

/// What is said for one message: MAIL, each RCPT, DATA, and the text with its end.
pub fn script(size: usize, recipients: usize) -> Vec<Vec<u8>> {
    let mut script = vec![b"MAIL FROM:<sender@example.com>\r\n".to_vec()];
    script.extend((0..recipients).map(|number| format!("RCPT TO:<user{number}@example.com>\r\n").into_bytes()));
    script.push(b"DATA\r\n".to_vec());
    let mut text = b"From: <sender@example.com>\r\nTo: <user@example.com>\r\nSubject: bench\r\n\r\n".to_vec();
    while text.len() + 66 <= size {
        text.extend_from_slice(b"all work and no play makes a line of sixty-four octets of text\r\n");
    }
    text.resize(size.max(2) - 2, b'x');
    text.extend_from_slice(b"\r\n.\r\n");
    script.push(text);
    script
}

/// What a client waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaits {
    Greeting,
    Hello,
    /// The reply to this part of the script.
    Reply(usize),
    /// That its next message is due.
    Due,
    /// The end, after QUIT.
    End,
}

/// What all clients share.
struct Load<'a> {
    plan: &'a Plan,
    script: &'a [Vec<u8>],
    /// With PIPELINING: all commands, and the text with the next message's commands behind it.
    group: &'a [u8],
    text_and_group: &'a [u8],
    /// Messages that may still be begun.
    left: u64,
    /// Connections that wait for their greeting.
    opening: usize,
    /// Clients that wait until a message is due.
    waiting: VecDeque<usize>,
    sample: Sample,
    errors_in_a_row: u64,
}

struct Client<'a> {
    index: usize,
    stream: TcpStream,
    opened: Instant,
    awaits: Awaits,
    input: Vec<u8>,
    output: &'a [u8],
    /// When the message was begun whose replies come, and the one whose commands were sent behind it.
    begun: Instant,
    ahead: Option<Instant>,
    /// Messages that were begun on this connection.
    messages: u64,
}

impl<'a> Load<'a> {
    /// Counts from now on.
    fn start(&mut self, in_flight: u64) {
        self.left = match self.plan.until {
            Until::Messages(messages) => messages.saturating_sub(in_flight),
            Until::Time(_) => u64::MAX,
        };
        (self.sample.messages, self.sample.errors, self.sample.first_error) = (0, 0, None);
        self.sample.latencies.reset();
        (self.sample.own, self.sample.server) = self.processor_times();
    }

    fn processor_times(&self) -> (Duration, Option<Duration>) {
        let own = processor_time(std::process::id()).unwrap_or_default();
        (own, self.plan.server.and_then(processor_time))
    }

    fn finish(mut self, time: Duration) -> Sample {
        let (own, server) = self.processor_times();
        self.sample.own = own.saturating_sub(self.sample.own);
        self.sample.server = server.zip(self.sample.server).map(|(end, start)| end.saturating_sub(start));
        self.sample.time = time;
        self.sample
    }

    fn stored(&mut self, took: Duration) {
        self.sample.messages += 1;
        self.sample.latencies.saturating_record(took.as_nanos() as u64);
        self.errors_in_a_row = 0;
    }

    fn failed(&mut self, client: &Client<'_>, error: String) {
        let in_flight = client.in_flight();
        self.sample.errors += in_flight.max(1);
        self.errors_in_a_row += 1;
        self.sample.first_error.get_or_insert(error);
        self.opening -= usize::from(client.awaits == Awaits::Greeting);
        self.waiting.retain(|&index| index != client.index);
    }
}

impl<'a> Client<'a> {
    fn open(index: usize, poll: &Poll, load: &mut Load<'a>) -> std::io::Result<Self> {
        let opened = Instant::now();
        let mut stream = TcpStream::connect(load.plan.address)?;
        stream.set_nodelay(true)?;
        poll.registry().register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
        load.opening += 1;
        let (awaits, input, output, ahead) = (Awaits::Greeting, Vec::new(), &[][..], None);
        Ok(Self { index, stream, opened, awaits, input, output, begun: opened, ahead, messages: 0 })
    }

    fn in_flight(&self) -> u64 {
        u64::from(matches!(self.awaits, Awaits::Reply(_))) + u64::from(self.ahead.is_some())
    }

    /// Sends and reads what goes. False when the connection came to its proper end.
    fn go_on(&mut self, load: &mut Load<'a>) -> Result<bool, String> {
        self.send()?;
        loop {
            let mut place = [0; INPUT_OCTETS];
            let count = match self.stream.read(&mut place) {
                Ok(0) if self.awaits == Awaits::End => return Ok(false),
                Ok(0) => return Err("the server closed a connection".to_owned()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error.to_string()),
            };
            self.input.extend_from_slice(&place[..count]);
            let mut taken = 0;
            while let Some(length) = memchr::memchr(b'\n', &self.input[taken..]) {
                let line = taken..taken + length;
                taken += length + 1;
                // All but the last line of a reply have a hyphen behind the number.
                if self.input.get(line.start + 3) != Some(&b'-') {
                    self.replied(line, load)?;
                }
            }
            self.input.drain(..taken);
            self.send()?;
            // What comes next is a new event; only the end may have come together with the last reply.
            if count < place.len() && self.awaits != Awaits::End {
                return Ok(true);
            }
        }
    }

    fn send(&mut self) -> Result<(), String> {
        while !self.output.is_empty() {
            match self.stream.write(self.output) {
                Ok(count) => self.output = &self.output[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    /// Takes a reply, which ends in this line of the input, and chooses what to send next.
    fn replied(&mut self, line: std::ops::Range<usize>, load: &mut Load<'a>) -> Result<(), String> {
        let text = load.script.len() - 1;
        let expected = if self.awaits == Awaits::Reply(text - 1) { b'3' } else { b'2' };
        if self.input.get(line.start) != Some(&expected) {
            return Err(String::from_utf8_lossy(&self.input[line]).trim_end().to_owned());
        }
        match self.awaits {
            Awaits::Greeting => {
                load.opening -= 1;
                (self.awaits, self.output) = (Awaits::Hello, HELLO);
            }
            Awaits::Hello => self.next_message(load),
            Awaits::Reply(part) if part == text => {
                load.stored(self.begun.elapsed());
                match self.ahead.take() {
                    Some(begun) => (self.begun, self.awaits) = (begun, Awaits::Reply(0)),
                    None => self.next_message(load),
                }
            }
            Awaits::Reply(part) => {
                self.awaits = Awaits::Reply(part + 1);
                if !load.plan.pipelining {
                    self.output = &load.script[part + 1];
                } else if part + 1 == text {
                    self.output = &load.script[text];
                    if load.plan.rate.is_none() && self.may_begin(load) {
                        load.left -= 1;
                        self.messages += 1;
                        self.ahead = Some(Instant::now());
                        self.output = load.text_and_group;
                    }
                }
            }
            Awaits::Due | Awaits::End => {}
        }
        Ok(())
    }

    fn may_begin(&self, load: &Load<'a>) -> bool {
        let per_connection = load.plan.per_connection;
        load.left > 0 && (per_connection == 0 || self.messages < per_connection)
    }

    /// Begins the next message, now or when it is due, or ends.
    fn next_message(&mut self, load: &mut Load<'a>) {
        if !self.may_begin(load) {
            (self.awaits, self.output) = (Awaits::End, QUIT);
        } else if load.plan.rate.is_some() {
            self.awaits = Awaits::Due;
            load.waiting.push_back(self.index);
        } else {
            let begun = if load.plan.per_connection == 1 { self.opened } else { Instant::now() };
            self.begin(begun, load);
        }
    }

    fn begin(&mut self, begun: Instant, load: &mut Load<'a>) {
        load.left -= 1;
        self.messages += 1;
        (self.begun, self.awaits) = (begun, Awaits::Reply(0));
        self.output = if load.plan.pipelining { load.group } else { &load.script[0] };
    }
}

/// Sends what the plan says.
///
/// # Errors
/// A server that takes nothing or falls silent, with the first thing that went wrong.
pub fn run(plan: &Plan) -> Result<Sample, String> {
    let script = script(plan.size, plan.recipients);
    let group = script[..script.len() - 1].concat();
    let text_and_group = [&script[script.len() - 1][..], &group].concat();
    let latencies = Histogram::new_with_max(LATENCY_MAX.as_nanos() as u64, 3).map_err(|error| error.to_string())?;
    let zero = Duration::ZERO;
    let mut load = Load {
        plan,
        script: &script,
        group: &group,
        text_and_group: &text_and_group,
        left: u64::MAX,
        opening: 0,
        waiting: VecDeque::new(),
        sample: Sample {
            messages: 0,
            size: plan.size,
            errors: 0,
            first_error: None,
            time: zero,
            latencies,
            own: zero,
            server: None,
            rate: plan.rate,
        },
        errors_in_a_row: 0,
    };
    let mut poll = Poll::new().map_err(|error| error.to_string())?;
    let mut events = Events::with_capacity(plan.connections.clamp(16, 1024));
    let mut clients: Vec<Option<Client<'_>>> = Vec::new();
    clients.resize_with(plan.connections, || None);
    let mut closed: Vec<usize> = (0..plan.connections).rev().collect();
    let begun = Instant::now();
    let mut started = None;
    let interval = plan.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
    let (mut due, mut heard, mut told) = (begun, begun, (begun, 0));
    loop {
        let now = Instant::now();
        // A warm-up lasts until all are there; a server that does not take all of them is not waited for.
        let all_there = plan.warm_up.is_zero() || plan.per_connection != 0 || (closed.is_empty() && load.opening == 0);
        if started.is_none() && now >= begun + plan.warm_up && (all_there || now >= begun + plan.warm_up + OPENING_TIME)
        {
            load.start(clients.iter().flatten().map(Client::in_flight).sum());
            (started, due, told) = (Some(now), now, (now, 0));
        }
        if let (Some(started), Until::Time(time)) = (started, plan.until) {
            if now >= started + time {
                return Ok(load.finish(now - started));
            }
        }
        if plan.progress && started.is_some() && now >= told.0 + Duration::from_secs(1) {
            let rate = (load.sample.messages - told.1) as f64 / (now - told.0).as_secs_f64();
            eprintln!("{} messages, {rate:.0}/s, {} errors", load.sample.messages, load.sample.errors);
            told = (now, load.sample.messages);
        }
        while load.left > 0 && load.opening < OPENING_MAX {
            let Some(index) = closed.pop() else { break };
            clients[index] = Some(Client::open(index, &poll, &mut load).map_err(|error| error.to_string())?);
        }
        // Messages that are due begin; when none are left, the clients that wait for one end.
        while let (Some(&index), Some(interval)) = (load.waiting.front(), interval) {
            if due > now && load.left > 0 {
                break;
            }
            load.waiting.pop_front();
            let Some(client) = &mut clients[index] else { continue };
            if load.left > 0 {
                client.begin(due, &mut load);
                due += interval;
            } else {
                client.next_message(&mut load);
            }
            // An error comes back as an event.
            let _ = client.send();
        }
        if load.left == 0 && closed.len() == plan.connections {
            return Ok(load.finish(now - started.unwrap_or(begun)));
        }
        // The poll counts in milliseconds; what is due sooner is waited for awake.
        let patience =
            if load.waiting.is_empty() { Duration::from_millis(100) } else { due.saturating_duration_since(now) };
        let patience = Duration::from_millis(patience.as_millis().min(100) as u64);
        match poll.poll(&mut events, Some(patience)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.to_string()),
            _ => {}
        }
        let silent = events.is_empty() && load.waiting.is_empty() && heard.elapsed() > SILENCE_MAX;
        if silent || load.errors_in_a_row >= ERRORS_MAX {
            return Err(load.sample.first_error.unwrap_or_else(|| "the server fell silent".to_owned()));
        }
        for event in &events {
            heard = now;
            let index = event.token().0;
            let Some(client) = &mut clients[index] else { continue };
            match client.go_on(&mut load) {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => load.failed(client, error),
            }
            clients[index] = None;
            closed.push(index);
        }
    }
}

/// Opens so many connections, greets the server on each and keeps them.
///
/// # Errors
/// A connection that is not made, greeted and answered within two seconds.
pub fn idle(address: SocketAddr, count: usize) -> Result<Vec<std::net::TcpStream>, String> {
    let mut streams = Vec::with_capacity(count);
    while streams.len() < count {
        // Some at a time, as there are servers that let each wait for its greeting.
        let together = OPENING_MAX.min(count - streams.len());
        open(address, together, &mut streams)
            .map_err(|error| format!("{} connections, then {error}", streams.len()))?;
    }
    Ok(streams)
}

fn open(address: SocketAddr, count: usize, streams: &mut Vec<std::net::TcpStream>) -> std::io::Result<()> {
    let begun: std::io::Result<Vec<_>> = (0..count).map(|_| std::net::TcpStream::connect(address)).collect();
    let mut begun = begun?;
    for stream in &mut begun {
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        read_reply(stream)?;
        stream.write_all(HELLO)?;
        read_reply(stream)?;
    }
    streams.append(&mut begun);
    Ok(())
}

/// Reads one whole reply that nothing follows.
pub fn read_reply(stream: &mut std::net::TcpStream) -> std::io::Result<()> {
    let mut reply = Vec::new();
    loop {
        let mut place = [0; 1024];
        match stream.read(&mut place)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => reply.extend_from_slice(&place[..count]),
        }
        let last = reply.split_inclusive(|&octet| octet == b'\n').next_back().unwrap_or_default();
        if last.ends_with(b"\n") && last.get(3) != Some(&b'-') {
            return Ok(());
        }
    }
}
