//! All connections and the one Maildir, without a socket or a poll: events only mark, a turn does the work.

use std::time::{Duration, Instant};

use ipnet::IpNet;
use log::{debug, info};
use slab::Slab;

use crate::config::{BLOCK_OCTETS, BLOCKS_MAX, Config, SMALL_OCTETS, TURN_READS_MAX};
use crate::connection::{Connection, Transport, Waiting};
use crate::delivery::{Now, Store};
use crate::fs::FileSystem;
use crate::pool::BufferPool;
use crate::recipients::Recipients;
use crate::smtp::address::Path;
use crate::smtp::reply::Reply;
use crate::smtp::session::{Action, Dialect, Directory, Outcome, Session, Settings, Spare, Turn};
use crate::smtp::trace::{MessageIds, Peer};

/// How long looks at all deadlines are apart at least, so how exact these are.
const LOOKS_APART: Duration = Duration::from_millis(250);

/// Small buffers that are kept for the next peer that needs one.
const SMALL_KEPT_MAX: usize = 128;

/// What a socket is ready for, as an event said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readiness {
    /// Octets may be there, or the end of them.
    pub readable: bool,
    /// Octets may be sent.
    pub writable: bool,
    /// The peer closed its side, or the connection broke.
    pub ending: bool,
}

/// What a session asks of recipients: the table and the Maildirs that there are.
struct Lookup<'a, F: FileSystem> {
    recipients: &'a mut Recipients,
    store: &'a mut Store<F>,
    now: Now,
}

impl<F: FileSystem> Directory for Lookup<'_, F> {
    fn resolve(&mut self, recipient: &Path<'_>, take: &mut dyn FnMut(&str)) -> Result<(), &str> {
        let mut exists = |destination: &str, create| self.store.accepts(destination, create, self.now);
        self.recipients.resolve(recipient, &mut exists, take)
    }
}

/// The machine: generic over the transport and the disk, so that a simulation runs the same code as a socket.
pub struct Server<T, F: FileSystem> {
    connections: Slab<Connection<T>>,
    recipients: Recipients,
    /// Those served; none for all.
    networks: Vec<IpNet>,
    store: Store<F>,
    settings: Settings,
    connections_max: usize,
    timeout: Duration,
    ids: MessageIds,
    spare: Spare,
    /// For what one read brings, behind what was left of the one before.
    input: Box<[u8]>,
    /// For the message of one read, where its connection has no block.
    scratch: Vec<u8>,
    blocks: BufferPool,
    small: BufferPool,
    /// When deadlines are looked at: no connection has one before.
    look: Option<Instant>,
    /// Connections that have work in the next turn.
    runnable: Vec<usize>,
    /// Connections of this turn, whose replies are sent at its end.
    touched: Vec<usize>,
    closed: Vec<usize>,
    /// Connections whose messages wait until there is room for another file.
    stalled: Vec<usize>,
    flushes_ended: bool,
    draining: bool,
    sessions: u64,
}

impl<T: Transport, F: FileSystem> Server<T, F> {
    /// A server without connections that stores in `store`.
    pub fn new(config: &Config, recipients: Recipients, store: Store<F>, ids: MessageIds) -> Self {
        Self {
            connections: Slab::new(),
            recipients,
            networks: config.networks(),
            store,
            settings: config.protocol.clone(),
            connections_max: config.connections_max,
            timeout: config.timeout,
            ids,
            spare: Spare::default(),
            input: vec![0; BLOCK_OCTETS].into_boxed_slice(),
            scratch: Vec::with_capacity(BLOCK_OCTETS),
            blocks: BufferPool::new(BLOCK_OCTETS, BLOCKS_MAX, BLOCKS_MAX),
            small: BufferPool::new(SMALL_OCTETS, usize::MAX, SMALL_KEPT_MAX),
            look: None,
            runnable: Vec::new(),
            touched: Vec::new(),
            closed: Vec::new(),
            stalled: Vec::new(),
            flushes_ended: false,
            draining: false,
            sessions: 0,
        }
    }

    /// The key that the next connection will have.
    pub fn vacant_key(&self) -> usize {
        self.connections.vacant_key()
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Where messages go.
    pub fn store(&mut self) -> &mut Store<F> {
        &mut self.store
    }

    /// Has mail accepted for other recipients from now on.
    pub fn set_recipients(&mut self, recipients: Recipients) {
        self.recipients = recipients;
    }

    /// Takes a new connection; its greeting leaves in the next turn.
    pub fn accept(&mut self, transport: T, peer: Peer, dialect: Dialect, now: Now) -> usize {
        self.sessions += 1;
        let session = Session::new(self.sessions, dialect, peer, &self.settings);
        let full = self.connections.len() >= self.connections_max;
        let key = self.connections.insert(Connection {
            transport,
            session,
            replies: self.small.lend().unwrap_or_default(),
            unread: Vec::new(),
            content: Vec::new(),
            delivery: None,
            deadline: now.instant + self.timeout,
            waiting: Waiting::No,
            readable: false,
            writable: true,
            ending: false,
            hungry: true,
            runnable: false,
            stored: 0,
        });
        self.look.get_or_insert(now.instant + self.timeout);
        let Some(connection) = self.connections.get_mut(key) else { return key };
        debug!("session={} connect peer={peer}", self.sessions);
        let served = match peer {
            Peer::Address(address) => self.networks.iter().any(|network| network.contains(&address)),
            Peer::Local => true,
        };
        if !served && !self.networks.is_empty() {
            connection.dismiss(Reply::NOT_SERVED, &mut self.small);
        } else if full || self.draining {
            let reply = if full { Reply::TOO_MANY_CONNECTIONS } else { Reply::SHUTTING_DOWN };
            connection.dismiss(reply, &mut self.small);
        } else if self.settings.strict && connection.fill(&mut self.input).is_some_and(|count| count > 0) {
            connection.dismiss(Reply::EARLY_TALK, &mut self.small);
        } else {
            connection.session.greet(&self.settings, now.wall, &mut connection.replies);
        }
        self.schedule(key);
        key
    }

    /// Notes what an event said of a connection. Keys of connections that ended are ignored, as are events that say
    /// nothing new.
    pub fn mark(&mut self, key: usize, readiness: Readiness) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.readable |= readiness.readable || readiness.ending;
        connection.writable |= readiness.writable;
        connection.ending |= readiness.ending;
        self.schedule(key);
    }

    /// Notes that flushes of the Maildir ended.
    pub const fn mark_flushes(&mut self) {
        self.flushes_ended = true;
    }

    /// Whether there is work that waits for no event.
    pub fn is_runnable(&self) -> bool {
        !self.runnable.is_empty() || self.flushes_ended
    }

    /// Whether nothing is left: no connection, and no message on its way.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty() && self.store.is_idle()
    }

    /// How long until there is something to do without an event: a peer has been silent for too long, or leftovers
    /// are to be looked for.
    pub fn next_deadline(&self, now: Instant) -> Duration {
        let sweep = self.store.next_sweep(now);
        self.look.map_or(sweep, |look| look.saturating_duration_since(now).min(sweep))
    }

    /// Begins the end: sessions without a message are told 421, the others when theirs is done.
    pub fn drain(&mut self) {
        self.draining = true;
        for index in 0..self.connections.capacity() {
            self.schedule(index);
        }
    }

    /// Ends everything now; messages that are coming in are dropped.
    pub fn abort(&mut self) {
        for index in 0..self.connections.capacity() {
            self.close(index, "shutdown");
        }
        self.store.abort();
        self.reap();
    }

    /// Does all the work that the events since the last turn brought, and sends the replies.
    pub fn turn(&mut self, now: Now) {
        let mut keys = std::mem::replace(&mut self.runnable, std::mem::take(&mut self.touched));
        for &key in &keys {
            if let Some(connection) = self.connections.get_mut(key) {
                connection.runnable = false;
            }
            self.receive(key, now);
        }
        self.store.advance(std::mem::take(&mut self.flushes_ended), now);
        while let Some((key, outcome)) = self.store.outcome() {
            self.delivered(key, outcome, now);
            keys.push(key);
        }
        while let Some(key) = if self.store.is_full() { None } else { self.stalled.pop() } {
            self.schedule(key);
        }
        for &key in &keys {
            self.reply(key);
        }
        keys.clear();
        self.touched = keys;
        self.store.sweep(now);
        self.expire(now);
        self.reap();
    }

    fn schedule(&mut self, key: usize) {
        if let Some(connection) = self.connections.get_mut(key).filter(|connection| !connection.runnable) {
            connection.runnable = true;
            self.runnable.push(key);
        }
    }

    /// Takes what a peer sent, as much as its turn allows, through its session.
    fn receive(&mut self, key: usize, now: Now) {
        for _ in 0..TURN_READS_MAX {
            let Some(connection) = self.connections.get_mut(key) else { return };
            let replies_wait = !connection.replies.is_empty() && !connection.writable;
            if connection.waiting != Waiting::No {
                return;
            }
            if self.draining && !connection.session.in_message() {
                // Whoever does not read will not read that either.
                return match replies_wait {
                    true => self.lose(key),
                    false => connection.dismiss(Reply::SHUTTING_DOWN, &mut self.small),
                };
            }
            if replies_wait {
                return;
            }
            if self.store.is_full() && connection.delivery.is_none() && connection.session.transaction().is_some() {
                return self.stalled.push(key);
            }
            if connection.hungry && !connection.readable {
                return;
            }
            let unread = std::mem::take(&mut connection.unread);
            let mut filled = unread.len();
            if let Some(place) = self.input.get_mut(..filled) {
                place.copy_from_slice(&unread);
            }
            take_back(unread, &mut self.small, &mut self.blocks);
            if connection.hungry {
                let limit = if self.blocks.is_available() { BLOCK_OCTETS } else { SMALL_OCTETS };
                match connection.fill(self.input.get_mut(filled..limit).unwrap_or_default()) {
                    // What was said before is answered all the same.
                    None if !connection.replies.is_empty() => {
                        connection.waiting = Waiting::ToClose;
                        return;
                    }
                    None => return self.lose(key),
                    Some(0) => {
                        return connection.keep_unread(
                            self.input.get(..filled).unwrap_or_default(),
                            &mut self.small,
                            &mut self.blocks,
                        );
                    }
                    Some(count) => filled += count,
                }
                connection.deadline = now.instant + self.timeout;
            }
            let action = self.feed(key, filled, now);
            if action != Action::Read {
                return;
            }
        }
        if self.connections.get(key).is_some_and(|connection| connection.readable) {
            self.schedule(key);
        }
    }

    /// Gives the first `filled` octets of the input to a session, and does what it says.
    fn feed(&mut self, key: usize, filled: usize, now: Now) -> Action {
        let Some(connection) = self.connections.get_mut(key) else { return Action::Close };
        let storage = self.store.storage(now);
        let held = connection.content.capacity() > 0;
        let mut content = std::mem::take(if held { &mut connection.content } else { &mut self.scratch });
        if content.len() + filled > BLOCK_OCTETS {
            let delivery = connection.delivery(&mut self.store, key, now);
            self.store.append(delivery, &content, now);
            content.clear();
        }
        self.small.lend_to(&mut connection.replies);
        let mut used = 0;
        let action = loop {
            let input = self.input.get(used..filled).unwrap_or_default();
            let mut turn = Turn {
                settings: &self.settings,
                now: now.wall,
                ids: &mut self.ids,
                spare: &mut self.spare,
                directory: &mut Lookup { recipients: &mut self.recipients, store: &mut self.store, now },
                storage,
                more: connection.readable && !connection.ending,
                replies: &mut connection.replies,
                content: &mut content,
            };
            let (count, action) = connection.session.receive(input, &mut turn);
            used += count;
            if action != Action::Discard {
                break action;
            }
            content.clear();
            if let Some(delivery) = connection.delivery.take() {
                self.store.discard(delivery);
            }
        };
        connection.hungry = action == Action::Read;
        match action {
            Action::Deliver => {
                let delivery = connection.delivery(&mut self.store, key, now);
                self.store.finish(delivery, &content, now);
                content.clear();
                connection.waiting = Waiting::ForDelivery;
            }
            Action::Close => {
                content.clear();
                connection.waiting = Waiting::ToClose;
            }
            Action::Read | Action::Flush | Action::Discard => {}
        }
        if action != Action::Close {
            connection.keep_unread(self.input.get(used..filled).unwrap_or_default(), &mut self.small, &mut self.blocks);
        }
        // What there is of a message waits for the rest in a block, or where none is free in its file.
        match (held, content.is_empty()) {
            (true, true) => self.blocks.take_back(content),
            (true, false) => connection.content = content,
            (false, true) => self.scratch = content,
            (false, false) => {
                let block = if content.capacity() == BLOCK_OCTETS { self.blocks.lend() } else { None };
                if let Some(block) = block {
                    (connection.content, self.scratch) = (content, block);
                } else {
                    let delivery = connection.delivery(&mut self.store, key, now);
                    self.store.append(delivery, &content, now);
                    content.clear();
                    content.shrink_to(BLOCK_OCTETS);
                    self.scratch = content;
                }
            }
        }
        action
    }

    /// Tells a session what became of its message.
    fn delivered(&mut self, key: usize, outcome: Outcome, now: Now) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let session = &connection.session;
        if let Some(transaction) = session.transaction() {
            let (name, id, from, size) = (session.id, transaction.id, transaction.reverse_path(), transaction.octets);
            let (to, more) = (transaction.forward_paths().next().unwrap_or_default(), transaction.recipients);
            match outcome {
                Outcome::Missing(destination, reply) => {
                    let to = transaction.destinations().nth(destination).unwrap_or_default();
                    info!("session={name} missing id={id} mailbox={to:?} reply=\"{reply}\"");
                    return connection.session.delivered(outcome, &mut self.spare, &mut connection.replies);
                }
                Outcome::Stored => {
                    info!("session={name} stored id={id} from={from:?} to={to:?} recipients={more} size={size}");
                    connection.stored += 1;
                }
                Outcome::Refused(reply) => {
                    info!("session={name} refused id={id} from={from:?} to={to:?} recipients={more} reply=\"{reply}\"");
                }
            }
        }
        connection.delivery = None;
        connection.deadline = now.instant + self.timeout;
        if connection.waiting == Waiting::ForDelivery {
            connection.waiting = Waiting::No;
        }
        self.small.lend_to(&mut connection.replies);
        connection.session.delivered(outcome, &mut self.spare, &mut connection.replies);
        if self.draining {
            self.schedule(key);
        }
    }

    /// Sends a connection's replies, and has it go on or end.
    fn reply(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.flush(&mut self.small).is_err() {
            if connection.waiting != Waiting::ForDelivery {
                self.lose(key);
            }
            return;
        }
        if !connection.replies.is_empty() {
            return;
        }
        match connection.waiting {
            Waiting::ToClose => self.close(key, "end"),
            Waiting::No if !connection.hungry || connection.readable => self.schedule(key),
            _ => {}
        }
    }

    /// Ends the connections whose peers have been silent for too long. Activity only moves a deadline; all are looked at
    /// when the soonest may have passed, a few times a second at most.
    fn expire(&mut self, now: Now) {
        if self.look.is_none_or(|look| look > now.instant) {
            return;
        }
        let mut soonest: Option<Instant> = None;
        for key in 0..self.connections.capacity() {
            let Some(connection) = self.connections.get_mut(key) else { continue };
            if connection.waiting == Waiting::ForDelivery {
                connection.deadline = now.instant + self.timeout;
            }
            if connection.deadline > now.instant {
                soonest = Some(soonest.map_or(connection.deadline, |soonest| soonest.min(connection.deadline)));
                continue;
            }
            if connection.waiting == Waiting::No && connection.replies.is_empty() {
                connection.dismiss(Reply::TIMED_OUT, &mut self.small);
                let _ = connection.flush(&mut self.small);
            }
            self.close(key, "timeout");
        }
        self.look = soonest.map(|soonest| soonest.max(now.instant + LOOKS_APART));
    }

    /// Ends a connection whose peer is gone.
    fn lose(&mut self, key: usize) {
        self.close(key, "lost");
    }

    /// Ends a connection; what there is of its message is dropped. Its key is free after this turn.
    fn close(&mut self, key: usize, reason: &str) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.waiting == Waiting::Closed {
            return;
        }
        if let Some(delivery) = connection.delivery.take().filter(|_| connection.waiting != Waiting::ForDelivery) {
            self.store.discard(delivery);
        }
        connection.waiting = Waiting::Closed;
        let (name, stored) = (connection.session.id, connection.stored);
        match connection.session.hint() {
            Some(hint) => info!("session={name} closed reason={reason} stored={stored} hint={hint}"),
            None => debug!("session={name} closed reason={reason} stored={stored}"),
        }
        connection.session.end(&mut self.spare);
        for buffer in [&mut connection.replies, &mut connection.unread, &mut connection.content] {
            take_back(std::mem::take(buffer), &mut self.small, &mut self.blocks);
        }
        self.closed.push(key);
    }

    /// Frees the places of connections that ended. Only now may their keys name others.
    fn reap(&mut self) {
        for key in self.closed.drain(..) {
            self.connections.try_remove(key);
        }
    }
}

fn take_back(buffer: Vec<u8>, small: &mut BufferPool, blocks: &mut BufferPool) {
    if buffer.capacity() > SMALL_OCTETS { blocks.take_back(buffer) } else { small.take_back(buffer) }
}
