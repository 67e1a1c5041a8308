//! One connection: a transport, its session, and what waits between the two.

use std::io::{self, Read, Write};
use std::time::Instant;

use crate::config::SMALL_OCTETS;
use crate::delivery::{Now, Store};
use crate::fs::FileSystem;
use crate::pool::BufferPool;
use crate::smtp::reply::Reply;
use crate::smtp::session::{Session, Transaction};

/// A stream of octets to a peer that never blocks.
pub trait Transport: Read + Write {}

impl<T: Read + Write> Transport for T {}

/// Why a connection takes nothing from its peer now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// It does.
    No,
    /// Its message is on its way to the store.
    ForDelivery,
    /// There is no room for the file of its message yet.
    ForRoom,
    /// It ends as soon as its replies are sent.
    ToClose,
    /// It ended; its place is free at the end of the turn.
    Closed,
}

/// What is kept for each peer. Idle it is this and nothing on the heap.
#[derive(Debug)]
pub struct Connection<T> {
    pub(crate) transport: T,
    pub(crate) session: Session,
    /// Replies that the socket has not taken yet.
    pub(crate) replies: Vec<u8>,
    /// Octets that came and are not used yet.
    pub(crate) unread: Vec<u8>,
    /// Octets of a message that are not in its file yet.
    pub(crate) content: Vec<u8>,
    /// The message's key in the store, once it has one.
    pub(crate) delivery: Option<usize>,
    /// When the peer has been silent for too long.
    pub(crate) deadline: Instant,
    pub(crate) waiting: Waiting,
    /// The socket may have octets for us.
    pub(crate) readable: bool,
    /// The socket may take octets.
    pub(crate) writable: bool,
    /// The peer closed its side, or the connection broke, so the end has to be read.
    pub(crate) ending: bool,
    /// The session can't go on with `unread` alone.
    pub(crate) hungry: bool,
    /// It is on the list of those that have work in the next turn.
    pub(crate) runnable: bool,
    /// Messages of this connection that were stored.
    pub(crate) stored: u64,
}

impl<T: Transport> Connection<T> {
    /// Reads once into `place`: how many octets came, 0 for none now, or `None` when the peer is gone.
    pub(crate) fn fill(&mut self, place: &mut [u8]) -> Option<usize> {
        loop {
            return match self.transport.read(place) {
                Ok(0) => None,
                Ok(count) => {
                    // A short read emptied the socket, unless the end is behind it, for which no event comes again.
                    self.readable = count == place.len() || self.ending;
                    Some(count)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    Some(0)
                }
                Err(_) => None,
            };
        }
    }

    /// Keeps octets that came and are not used yet. There is a block whenever there are many: that was asked for before
    /// they were read.
    pub(crate) fn keep_unread(&mut self, octets: &[u8], small: &mut BufferPool, blocks: &mut BufferPool) {
        if !octets.is_empty() {
            let pool = if octets.len() <= SMALL_OCTETS { small } else { blocks };
            pool.lend_to(&mut self.unread);
            self.unread.extend_from_slice(octets);
        }
    }

    /// The message's key in the store, which it gets when it first needs one.
    pub(crate) fn delivery<F: FileSystem>(&mut self, store: &mut Store<F>, key: usize, now: Now) -> usize {
        *self.delivery.get_or_insert_with(|| {
            let transaction = self.session.transaction();
            let id = transaction.map(|transaction| transaction.id).unwrap_or_default();
            let destinations = transaction.into_iter().flat_map(Transaction::destinations);
            store.begin(id, key, destinations, self.session.is_lmtp(), now)
        })
    }

    /// Says `reply`, to end when it is sent.
    pub(crate) fn dismiss(&mut self, reply: Reply, pool: &mut BufferPool) {
        pool.lend_to(&mut self.replies);
        self.session.close(reply, &mut self.replies);
        self.waiting = Waiting::ToClose;
    }

    /// Sends what the socket takes. An error is that of a peer which is gone.
    pub(crate) fn flush(&mut self, pool: &mut BufferPool) -> io::Result<()> {
        let mut sent = 0;
        while self.writable {
            let Some(rest) = self.replies.get(sent..).filter(|rest| !rest.is_empty()) else { break };
            match self.transport.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) => return Err(error),
            }
        }
        if sent == self.replies.len() {
            pool.take_back(std::mem::take(&mut self.replies));
        } else {
            self.replies.drain(..sent);
        }
        Ok(())
    }
}
