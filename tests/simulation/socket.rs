//! A connection in memory that behaves as a socket with edge-triggered events: an event comes only when something changes,
//! buffers are finite, reads and writes are interrupted or take a part, and either side may close or reset.

use super::model::hand::Random;
use mailchute::server::Readiness;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;
use std::time::Duration;

/// The time since the server's start, which only the world moves.
pub type Clock = Rc<Cell<Duration>>;

/// How a client ends its side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It sends no more and still reads.
    Halves,
    /// It closes: what the server sends then is answered with a reset.
    Closes,
    Resets,
}

/// What a world's sockets are like.
#[derive(Clone, Copy, Debug)]
pub struct Nature {
    /// Octets that wait in the server's socket at most, and on their way to the client.
    pub received_max: usize,
    pub sent_max: usize,
    /// One of so many calls is interrupted, and one of so many writes takes a part only; 0 for none.
    pub interrupted: usize,
    pub partial: usize,
    /// Events tell all that a socket is ready for, as Linux does; else only what changed.
    pub whole_events: bool,
    /// A reset drops what came before it and was not read yet.
    pub reset_drops: bool,
}

/// Both directions of a connection, and what either side did to it.
pub struct Pipe {
    nature: Nature,
    random: Random,
    clock: Clock,
    /// On its way to the server, and in its socket. `burst` when more may come at any moment, even in a turn.
    flying: VecDeque<u8>,
    received: VecDeque<u8>,
    pub burst: bool,
    replies: VecDeque<u8>,
    /// The client's side: what it did, and what the server has seen of that.
    ended: bool,
    closed: bool,
    reset: bool,
    end_seen: bool,
    /// The server found no room for its replies and waits for an event.
    blocked: bool,
    /// The server's side is closed.
    pub dropped: bool,
    edge: Option<Readiness>,
    /// Something came for the client.
    pub news: bool,
    /// Octets that the server has read, and when it read the last ones.
    pub read: u64,
    pub read_at: Duration,
    /// When it last wrote some.
    pub written_at: Duration,
    written: u64,
}

/// The server's end.
pub struct Transport(pub Rc<RefCell<Pipe>>);

impl Pipe {
    pub fn new(nature: Nature, random: Random, clock: Clock) -> Self {
        Self {
            nature,
            random,
            clock,
            flying: VecDeque::new(),
            received: VecDeque::new(),
            burst: false,
            replies: VecDeque::new(),
            ended: false,
            closed: false,
            reset: false,
            end_seen: false,
            blocked: false,
            dropped: false,
            edge: None,
            news: false,
            read: 0,
            read_at: Duration::ZERO,
            written_at: Duration::ZERO,
            written: 0,
        }
    }

    fn is_one_of(&mut self, count: usize) -> bool {
        count > 0 && self.random.below(count) == 0
    }

    fn wake(&mut self, change: Readiness) {
        let edge = self.edge.get_or_insert_default();
        edge.readable |= change.readable;
        edge.writable |= change.writable;
        edge.ending |= change.ending;
    }

    /// The server's system looks at the socket for the first time.
    pub fn register(&mut self) {
        self.read_at = self.clock.get();
        self.wake(self.readiness());
    }

    /// All that the socket is ready for.
    fn readiness(&self) -> Readiness {
        let ending = self.ended || self.reset;
        let writable = self.reset || self.replies.len() < self.nature.sent_max;
        Readiness { readable: !self.received.is_empty() || ending, writable, ending }
    }

    pub fn has_event(&self) -> bool {
        self.edge.is_some() && !self.dropped
    }

    pub fn event(&mut self) -> Option<Readiness> {
        let edge = self.edge.take().filter(|_| !self.dropped)?;
        Some(if self.nature.whole_events { self.readiness() } else { edge })
    }

    /// What the server left lying: it is not told of that again.
    pub fn is_left(&self) -> bool {
        let unseen_end = (self.ended || self.reset) && !self.end_seen;
        !self.dropped && !self.blocked && (!self.received.is_empty() || unseen_end)
    }

    /// Whether the server waits until its replies are read.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// The client sends; it may take a while until the octets arrive.
    pub fn send(&mut self, octets: &[u8]) {
        self.flying.extend(octets);
    }

    pub fn in_flight(&self) -> usize {
        self.flying.len()
    }

    /// Whether the server's socket takes no more.
    pub fn is_choked(&self) -> bool {
        self.received.len() >= self.nature.received_max
    }

    /// Up to `most` octets arrive.
    pub fn arrive(&mut self, most: usize) -> usize {
        let room = self.nature.received_max.saturating_sub(self.received.len());
        let count = most.min(self.flying.len()).min(room);
        if count > 0 && !self.reset {
            self.received.extend(self.flying.drain(..count));
            self.wake(Readiness { readable: true, ..Readiness::default() });
        }
        count
    }

    /// The client goes, after all that has arrived.
    pub fn leave(&mut self, leaving: Leaving) {
        self.flying.clear();
        self.closed |= leaving != Leaving::Halves;
        // Who closes without having read all has the system send a reset.
        if leaving == Leaving::Resets || leaving == Leaving::Closes && !self.replies.is_empty() {
            self.break_off();
        } else if !self.ended {
            self.ended = true;
            self.wake(Readiness { readable: true, writable: false, ending: true });
        }
    }

    fn break_off(&mut self) {
        if !self.reset {
            (self.reset, self.blocked) = (true, false);
            self.replies.clear();
            if self.nature.reset_drops {
                self.received.clear();
            }
            self.wake(Readiness { readable: true, writable: true, ending: true });
        }
    }

    /// The client reads up to `most` octets; `None` when there will be no more.
    pub fn receive(&mut self, most: usize) -> Option<Vec<u8>> {
        if self.replies.is_empty() {
            return (!self.dropped && !self.reset).then(Vec::new);
        }
        let count = most.min(self.replies.len());
        let octets = self.replies.drain(..count).collect();
        if self.blocked && self.replies.len() * 3 <= self.nature.sent_max * 2 {
            self.blocked = false;
            self.wake(Readiness { writable: true, ..Readiness::default() });
        }
        Some(octets)
    }

    /// All octets that the server read and wrote.
    pub fn traffic(&self) -> u64 {
        self.read + self.written
    }

    pub fn has_replies(&self) -> bool {
        !self.replies.is_empty()
    }
}

impl Read for Transport {
    fn read(&mut self, place: &mut [u8]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        let interrupted = pipe.nature.interrupted;
        if pipe.is_one_of(interrupted) {
            return Err(ErrorKind::Interrupted.into());
        }
        let count = place.len().min(pipe.received.len());
        if count == 0 {
            return match (pipe.reset, pipe.ended) {
                (false, false) => Err(ErrorKind::WouldBlock.into()),
                (reset, _) => {
                    pipe.end_seen = true;
                    if reset { Err(ErrorKind::ConnectionReset.into()) } else { Ok(0) }
                }
            };
        }
        // Whoever waits to send more is told that there is room.
        pipe.news |= !pipe.flying.is_empty() && pipe.is_choked();
        for (place, octet) in place.iter_mut().zip(pipe.received.drain(..count)) {
            *place = octet;
        }
        pipe.read += count as u64;
        pipe.read_at = pipe.clock.get();
        // More may come while the server looks at that.
        if pipe.burst && pipe.is_one_of(4) {
            let most = 1 + pipe.random.below(70_000);
            pipe.arrive(most);
        }
        Ok(count)
    }
}

impl Write for Transport {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        let Nature { interrupted, partial, sent_max, .. } = pipe.nature;
        if pipe.is_one_of(interrupted) {
            return Err(ErrorKind::Interrupted.into());
        }
        if pipe.reset {
            pipe.end_seen = true;
            return Err(ErrorKind::BrokenPipe.into());
        }
        if pipe.closed {
            pipe.break_off();
            return Ok(octets.len());
        }
        let room = sent_max.saturating_sub(pipe.replies.len());
        if room == 0 {
            pipe.blocked = true;
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut count = room.min(octets.len());
        if pipe.is_one_of(partial) {
            count = 1 + pipe.random.below(count);
        }
        pipe.replies.extend(&octets[..count]);
        pipe.written_at = pipe.clock.get();
        pipe.written += count as u64;
        pipe.news = true;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        let mut pipe = self.0.borrow_mut();
        pipe.dropped = true;
        pipe.news = true;
    }
}
