//! One connection: a transport, its session, and what waits between the two, in buffers that are lent.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Instant;

use crate::config::{BLOCK_OCTETS, SMALL_OCTETS};
use crate::delivery::{Now, Store};
use crate::fs::FileSystem;
use crate::server::Readiness;
use crate::smtp::reply::Reply;
use crate::smtp::session::{Action, Session, Transaction};
use crate::transcript::Transcript;

/// Small buffers that are kept for the next peer that needs one.
const SMALL_KEPT_MAX: usize = 32;

/// What is kept for each peer, with a transport that never blocks. Idle it is this and the peer's name.
#[derive(Debug)]
pub struct Connection<T> {
    pub(crate) transport: T,
    pub(crate) session: Session,
    /// What the session wants next: only with `Read` is `unread` not enough to go on, with `Deliver` its message is on
    /// its way to the store, and with `Close` it ends as soon as its replies are sent.
    pub(crate) action: Action,
    pub(crate) ready: Readiness,
    /// What waits: replies for the socket, octets that came for the session, and a message's for its file.
    pub(crate) replies: Vec<u8>,
    pub(crate) unread: Vec<u8>,
    /// How many of the unread octets were used since.
    pub(crate) used: u32,
    pub(crate) content: Vec<u8>,
    /// The key in the store of the message that is coming in, once it has one.
    pub(crate) delivery: Option<u32>,
    /// Since when the peer keeps us waiting: its last command, and later for each octet of what it has begun since.
    pub(crate) since: Instant,
    /// It is on a list of those that have work in a next turn.
    pub(crate) scheduled: bool,
    pub(crate) stored: u32,
}

impl<T: Read + Write> Connection<T> {
    /// Reads once into `place`: how many octets came, 0 for none now, or `None` when the peer is gone.
    pub(crate) fn fill(&mut self, place: &mut [u8]) -> Option<usize> {
        match self.transport.read(place) {
            Ok(0) => None,
            Ok(count) => {
                // A short read emptied the socket, unless the end is behind it, for which no event comes again.
                self.ready.readable = count == place.len() || self.ready.ending;
                Some(count)
            }
            Err(error) => {
                // Interrupted it stays readable, and is read in the next turn.
                self.ready.readable = error.kind() == ErrorKind::Interrupted;
                (self.ready.readable || error.kind() == ErrorKind::WouldBlock).then_some(0)
            }
        }
    }

    /// The key in the store of the message that is coming in, which it gets now if it has none.
    pub(crate) fn begin<F: FileSystem>(&mut self, store: &mut Store<F>, key: usize, now: Now) -> usize {
        let begun = self.delivery.get_or_insert_with(|| {
            let transaction = self.session.transaction();
            let id = transaction.map(|transaction| transaction.id).unwrap_or_default();
            let destinations = transaction.into_iter().flat_map(Transaction::destinations);
            store.begin(id, key, destinations, self.session.lmtp, now) as u32
        });
        *begun as usize
    }

    /// Has what waits of the message written to its file.
    pub(crate) fn write<F: FileSystem>(&mut self, store: &mut Store<F>, key: usize, now: Now) {
        let delivery = self.begin(store, key, now);
        store.append(delivery, &self.content, now);
        self.content.clear();
    }

    /// Drops what there is of a message that is coming in.
    pub(crate) fn discard<F: FileSystem>(&mut self, store: &mut Store<F>) {
        self.content.clear();
        if let Some(delivery) = self.delivery.take() {
            store.discard(delivery as usize);
        }
    }

    /// Says `reply`, to end when it is sent.
    pub(crate) fn dismiss(&mut self, reply: Reply, buffers: &mut Buffers) {
        buffers.lend(&mut self.replies, SMALL_OCTETS);
        self.session.close(reply).write(&mut self.replies);
        self.action = Action::Close;
    }

    /// Sends what the socket takes; whether that is all. An error is that of a peer which is gone.
    pub(crate) fn flush(&mut self, buffers: &mut Buffers, transcript: Option<&mut Transcript>) -> io::Result<bool> {
        let mut sent = 0;
        while self.ready.writable && sent < self.replies.len() {
            match self.transport.write(&self.replies[sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.ready.writable = false,
                Err(error) => return Err(error),
            }
        }
        if let Some(transcript) = transcript {
            if self.session.is_closed() {
                self.session.note_rest(&self.unread[self.used as usize..], transcript);
                self.used = self.unread.len() as u32;
            }
            transcript.show("S: ", &self.replies[..sent]);
        }
        self.replies.drain(..sent);
        if self.replies.is_empty() {
            buffers.take_back(&mut self.replies);
        }
        Ok(self.replies.is_empty())
    }
}

/// Lends buffers of two sizes, blocks and small ones, and keeps those that came back.
#[derive(Debug, Default)]
pub struct Buffers {
    blocks: Vec<Vec<u8>>,
    small: Vec<Vec<u8>>,
    /// Blocks that are lent; how many may be is for the borrower to ask first.
    pub blocks_lent: usize,
    /// How many of the kept blocks nobody has needed since the last `trim`.
    blocks_unused: usize,
}

impl Buffers {
    /// Gives `buffer` room for so many octets, if it has none.
    pub fn lend(&mut self, buffer: &mut Vec<u8>, octets: usize) {
        if buffer.capacity() == 0 && octets <= SMALL_OCTETS {
            *buffer = self.small.pop().unwrap_or_else(|| Vec::with_capacity(SMALL_OCTETS));
        } else if buffer.capacity() == 0 {
            self.blocks_lent += 1;
            *buffer = self.blocks.pop().unwrap_or_else(|| Vec::with_capacity(BLOCK_OCTETS));
            self.blocks_unused = self.blocks_unused.min(self.blocks.len());
        }
    }

    /// Gives up blocks that nobody has needed since the last time, and small buffers, but one of each; whether there may be
    /// more to give up.
    pub fn trim(&mut self) -> bool {
        self.blocks.truncate((self.blocks.len() - self.blocks_unused).max(1));
        self.blocks_unused = self.blocks.len();
        self.small.truncate(1);
        self.is_large()
    }

    /// Whether more is kept than a quiet server needs.
    pub fn is_large(&self) -> bool {
        self.blocks.len() > 1
    }

    /// Takes the memory of `buffer` back, if it has some; what grew is not kept.
    pub fn take_back(&mut self, buffer: &mut Vec<u8>) {
        if buffer.capacity() == 0 {
            return;
        }
        let mut buffer = std::mem::take(buffer);
        buffer.clear();
        if buffer.capacity() > SMALL_OCTETS {
            self.blocks_lent = self.blocks_lent.saturating_sub(1);
        }
        match buffer.capacity() {
            SMALL_OCTETS if self.small.len() < SMALL_KEPT_MAX => self.small.push(buffer),
            BLOCK_OCTETS => self.blocks.push(buffer),
            _ => {}
        }
    }
}
