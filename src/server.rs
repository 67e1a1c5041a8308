//! All connections and the one Maildir, without a socket or a poll: events only mark, a turn does the work.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use log::{Level, debug, info, log, log_enabled};
use slab::Slab;

use crate::config::{BLOCK_OCTETS, BLOCKS_MAX, Config, SMALL_OCTETS, is_private};
use crate::config::{TURN_MESSAGES_MAX, TURN_READS_MAX, TURN_REFUSALS_MAX};
use crate::connection::{Buffers, Connection};
use crate::delivery::{Now, Store};
use crate::fs::FileSystem;
use crate::metrics::{Counters, Figures};
use crate::recipients::Recipients;
use crate::smtp::address::Path;
use crate::smtp::reply::Reply;
use crate::smtp::session::{Action, Dialect, Directory, Outcome, Session, Spare, TOO_STRICT, Turn};
use crate::smtp::trace::{MessageIds, Peer};
use crate::transcript::Transcripts;

/// How long looks at all deadlines are apart at least, so how exact these are.
const LOOKS_APART: Duration = Duration::from_millis(250);
/// How long blocks must have been kept in vain before they are given up.
const TRIMS_APART: Duration = Duration::from_secs(1);
/// How long a peer may be silent that never said anything.
const HELLO_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one may be at least before it gives way to others on a crowded server.
const CROWDED_TIMEOUT: Duration = Duration::from_secs(10);
/// Commands of a session that may be refused between two messages, and on a crowded server.
const ERRORS_MAX: u32 = 20;
const ERRORS_CROWDED_MAX: u32 = 3;
/// What each octet of a line or a text adds to the time that the whole may take: the sender of 500 a second is in no hurry.
const OCTET_TIME: Duration = Duration::from_millis(2);

/// What a socket is ready for, as an event said: `ending` when the peer closed its side, or the connection broke.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Readiness {
    pub readable: bool,
    pub writable: bool,
    pub ending: bool,
}

/// What a session asks of recipients: the table and the Maildirs that there are.
impl<F: FileSystem> Directory for (&mut Recipients, &mut Store<F>, Now) {
    fn resolve(&mut self, recipient: &Path<'_>, take: &mut dyn FnMut(&str)) -> Result<(), &str> {
        let (recipients, store, now) = self;
        let maildirs = &mut store.maildirs;
        recipients.resolve(recipient, &mut |destination, create| maildirs.accepts(destination, create, *now), take)
    }
}

/// The machine: generic over the transport and the disk, so that a simulation runs the same code as a socket.
pub struct Server<T, F: FileSystem> {
    connections: Slab<Connection<T>>,
    /// For whom mail is accepted; others may take their place.
    pub recipients: Recipients,
    pub(crate) config: Config,
    /// How many connections each client has, but those of this machine.
    clients: HashMap<IpAddr, usize>,
    /// Where messages go.
    pub store: Store<F>,
    ids: MessageIds,
    spare: Spare,
    /// For what one read brings, behind what was left of the one before.
    input: Box<[u8]>,
    buffers: Buffers,
    /// When deadlines are looked at: no connection has one before.
    look: Instant,
    /// Connections that have work in the next turn.
    runnable: Vec<usize>,
    /// Connections of this turn, whose replies are sent at its end.
    touched: Vec<usize>,
    /// Connections whose messages wait until there is room for another file.
    stalled: Vec<usize>,
    /// Set by an event: flushes of Maildirs ended.
    pub flushes_ended: bool,
    draining: bool,
    sessions: u64,
    /// Sessions without a transaction, as health checks have them.
    probes: u64,
    transcripts: Transcripts,
}

impl<T: Read + Write, F: FileSystem> Server<T, F> {
    /// A server without connections that stores in `store`.
    pub fn new(config: Config, recipients: Recipients, store: Store<F>, ids: MessageIds) -> Self {
        Self {
            connections: Slab::with_capacity(config.connections_max.min(1 << 14)),
            recipients,
            clients: HashMap::with_capacity(config.connections_max.min(1 << 14)),
            config,
            store,
            ids,
            spare: Spare::default(),
            input: vec![0; BLOCK_OCTETS].into_boxed_slice(),
            buffers: Buffers::default(),
            look: Instant::now(),
            runnable: Vec::new(),
            touched: Vec::new(),
            stalled: Vec::new(),
            flushes_ended: false,
            draining: false,
            sessions: 0,
            probes: 0,
            transcripts: Transcripts::default(),
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

    /// What metrics tell. As at MAIL, a disk that failed is tried again.
    pub(crate) fn figures(&mut self, now: Now) -> Figures {
        let (all, open, waiting) = (self.sessions, self.connections.len() as u64, self.store.journal.waiting() as u64);
        let healthy = matches!(self.store.storage(now), Ok(1..)).into();
        let Counters { full, per_address, network, timeouts, failed, refused, stored, octets, .. } =
            self.spare.counters;
        let unknown = self.spare.counters.recipients_refused;
        [all, open, full, per_address, network, timeouts, failed, refused, stored, octets, unknown, waiting, healthy]
    }

    /// Takes a new connection; its greeting leaves in the next turn.
    pub fn accept(&mut self, transport: T, peer: Peer, dialect: Dialect, now: Now) -> usize {
        self.sessions += 1;
        debug!("session={} connect peer={peer}", self.sessions);
        self.transcripts.begin(self.sessions, peer, dialect, &self.config, now);
        let mut connection = Connection {
            transport,
            session: Session::new(self.sessions, dialect, peer, &self.config.protocol),
            action: Action::Read,
            ready: Readiness { writable: true, ..Readiness::default() },
            replies: Vec::new(),
            unread: Vec::new(),
            used: 0,
            content: Vec::new(),
            delivery: None,
            since: now.instant,
            scheduled: false,
            stored: 0,
        };
        let of_client = client(peer).map_or(0, |it| *self.clients.entry(it).and_modify(|it| *it += 1).or_insert(1));
        // Where no networks are named, private ones, and all if only some domains are served.
        let served = |address: &IpAddr| match &self.config.allow_from[..] {
            [] => !self.recipients.serve_any_domain() || is_private(*address),
            networks => networks.iter().any(|network| network.contains(address)),
        };
        let is_full = self.connections.len() >= self.config.connections_max;
        if matches!(&peer, Peer::Address(address) if !served(address)) {
            self.spare.counters.network += 1;
            connection.dismiss(Reply::NOT_SERVED, &mut self.buffers);
        } else if is_full || of_client > self.config.per_address_max {
            self.spare.counters.full += u64::from(is_full);
            self.spare.counters.per_address += u64::from(!is_full);
            connection.dismiss(Reply::TOO_MANY_CONNECTIONS, &mut self.buffers);
        } else if self.config.protocol.strict && connection.fill(&mut self.input).is_some_and(|count| count > 0) {
            connection.session.hint = Some(TOO_STRICT);
            connection.dismiss(Reply::EARLY_TALK, &mut self.buffers);
        } else {
            self.buffers.lend(&mut connection.replies, SMALL_OCTETS);
            connection.session.greet(&self.config.protocol, self.ids.date(now.wall), &mut connection.replies);
        }
        let key = self.connections.insert(connection);
        self.look = self.look.min(now.instant + if self.is_crowded() { LOOKS_APART } else { HELLO_TIMEOUT });
        self.schedule(key);
        key
    }

    /// Whether nearly all connections are taken that there may be: then there is less patience with who is idle or in error.
    fn is_crowded(&self) -> bool {
        self.connections.len() * 10 > self.config.connections_max.saturating_mul(9)
    }

    /// Notes what an event said of a connection; of one that ended it is ignored.
    pub fn mark(&mut self, key: usize, readiness: Readiness) {
        let Some(Connection { ready, .. }) = self.connections.get_mut(key) else { return };
        ready.readable |= readiness.readable || readiness.ending;
        ready.writable |= readiness.writable;
        ready.ending |= readiness.ending;
        self.schedule(key);
    }

    /// Whether there is work that waits for no event.
    pub fn is_runnable(&self) -> bool {
        !self.runnable.is_empty() || self.flushes_ended
    }

    /// Whether messages came just now, or it keeps more buffers than a quiet server needs, which go within seconds.
    pub(crate) fn is_busy(&self, now: Now) -> bool {
        self.buffers.is_large() || !self.store.journal.is_quiet(now)
    }

    /// Whether nothing is left: no connection, and no message on its way.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty() && self.store.is_idle()
    }

    /// How long until there is something to do without an event: deadlines to be looked at, or Maildirs.
    pub fn next_deadline(&self, now: Instant) -> Duration {
        self.look.min(self.store.next()).saturating_duration_since(now)
    }

    /// Begins the end: sessions without a message are told 421, the others when theirs is done.
    pub fn drain(&mut self) {
        self.draining = true;
        self.runnable.append(&mut self.stalled);
        for key in 0..self.connections.capacity() {
            self.schedule(key);
        }
    }

    /// Ends everything now; messages that are coming in are dropped.
    pub fn abort(&mut self) {
        for key in 0..self.connections.capacity() {
            self.close(key, "shutdown");
        }
        self.transcripts.save();
        self.store.abort();
    }

    /// Does all the work that the events since the last turn brought, and sends the replies.
    pub fn turn(&mut self, now: Now) {
        std::mem::swap(&mut self.runnable, &mut self.touched);
        let mut begun = 0;
        // Who sent several messages at once goes on with the next, and has all replies in one write.
        for _ in 0..TURN_MESSAGES_MAX {
            for index in std::mem::replace(&mut begun, self.touched.len())..self.touched.len() {
                self.receive(self.touched[index], now);
            }
            self.store.advance(std::mem::take(&mut self.flushes_ended), now);
            while let Some((key, outcome)) = self.store.outcome() {
                self.delivered(key, outcome, now);
            }
            if begun == self.touched.len() {
                break;
            }
        }
        // Who came first hears first, so that nobody waits for two rounds of the others.
        (0..self.touched.len()).for_each(|index| self.reply(self.touched[index]));
        self.touched.clear();
        self.store.sweep(now);
        if self.buffers.is_large() {
            self.look = self.look.min(now.instant + TRIMS_APART);
        }
        if self.look <= now.instant {
            self.expire(now);
        }
        self.transcripts.save();
        // Whatever closed a file.
        if !self.store.is_full() {
            self.runnable.append(&mut self.stalled);
        }
    }

    fn schedule(&mut self, key: usize) {
        if let Some(connection) = self.connections.get_mut(key).filter(|connection| !connection.scheduled) {
            connection.scheduled = true;
            self.runnable.push(key);
        }
    }

    /// Takes what a peer sent, as much as its turn allows, through its session.
    fn receive(&mut self, key: usize, now: Now) {
        for _ in 0..TURN_READS_MAX {
            let Some(connection) = self.connections.get_mut(key) else { return };
            connection.scheduled = false;
            if matches!(connection.action, Action::Deliver | Action::Close) {
                return;
            }
            let replies_wait = !connection.replies.is_empty() && !connection.ready.writable;
            if self.draining && !connection.session.in_message() {
                // Whoever does not read will not read that either.
                return match replies_wait {
                    true => self.close(key, "lost"),
                    false => connection.dismiss(Reply::SHUTTING_DOWN, &mut self.buffers),
                };
            }
            let hungry = connection.action == Action::Read;
            if replies_wait || hungry && !connection.ready.readable {
                return;
            }
            if self.store.is_full() && connection.delivery.is_none() && connection.session.transaction().is_some() {
                connection.scheduled = true;
                return self.stalled.push(key);
            }
            let mut filled = 0;
            if hungry {
                let kept = connection.unread.len() - connection.used as usize;
                let limit = if self.buffers.blocks_lent < BLOCKS_MAX { BLOCK_OCTETS } else { SMALL_OCTETS };
                match connection.fill(self.input.get_mut(kept..limit).unwrap_or_default()) {
                    None if connection.replies.is_empty() => return self.close(key, "lost"),
                    // What was said before is answered all the same.
                    None => return connection.action = Action::Close,
                    Some(0) => return,
                    Some(count) => filled = kept + count,
                }
                // A line or a text that goes on has the time that it had, and some more.
                connection.since = (connection.since + OCTET_TIME * (filled - kept) as u32).min(now.instant);
                self.input[..kept].copy_from_slice(&connection.unread[connection.used as usize..]);
                self.buffers.take_back(&mut connection.unread);
                connection.used = 0;
            }
            if self.feed(key, filled, now) == Action::Flush {
                return;
            }
        }
    }

    /// Gives a session the first `filled` octets of the input, or with 0 what it left unread, and does what it says.
    fn feed(&mut self, key: usize, filled: usize, now: Now) -> Action {
        let errors_max = if self.is_crowded() { ERRORS_CROWDED_MAX } else { ERRORS_MAX };
        let Some(connection) = self.connections.get_mut(key) else { return Action::Close };
        self.buffers.lend(&mut connection.replies, SMALL_OCTETS);
        self.buffers.lend(&mut connection.content, BLOCK_OCTETS);
        if connection.content.len() + filled.max(connection.unread.len()) > BLOCK_OCTETS {
            connection.write(&mut self.store, key, now);
        }
        let input = if filled > 0 { &self.input[..filled] } else { &connection.unread[connection.used as usize..] };
        let mut turn = Turn {
            settings: &self.config.protocol,
            errors_max,
            now: now.wall,
            ids: &mut self.ids,
            spare: &mut self.spare,
            storage: self.store.storage(now),
            directory: &mut (&mut self.recipients, &mut self.store, now),
            more: connection.ready.readable && !connection.ready.ending,
            replies: &mut connection.replies,
            content: &mut connection.content,
            transcript: self.transcripts.of(connection.session.id),
        };
        let ended = connection.session.ended;
        let (used, action) = connection.session.receive(input, &mut turn);
        let left = input.len() - used;
        if !self.spare.log.is_empty() {
            log_messages(&mut self.spare);
        }
        connection.action = action;
        if connection.session.ended != ended {
            connection.since = now.instant;
        }
        match action {
            Action::Deliver => {
                let delivery = connection.begin(&mut self.store, key, now);
                connection.delivery = None;
                self.store.finish(delivery, &connection.content, now);
                connection.content.clear();
            }
            Action::Discard | Action::Close => connection.discard(&mut self.store),
            Action::Read | Action::Flush => {}
        }
        if left == 0 {
            self.buffers.take_back(&mut connection.unread);
            connection.used = 0;
        } else if filled == 0 {
            connection.used += used as u32;
        } else {
            // There is a block where much is unread: that was asked for before it was read.
            self.buffers.lend(&mut connection.unread, left);
            connection.unread.extend_from_slice(&self.input[used..filled]);
        }
        // What there is of a message waits for the rest in its block, or where none is left in its file.
        let held = self.buffers.blocks_lent <= BLOCKS_MAX && connection.content.capacity() == BLOCK_OCTETS;
        if !held && !connection.content.is_empty() {
            connection.write(&mut self.store, key, now);
        }
        if connection.content.is_empty() {
            self.buffers.take_back(&mut connection.content);
        }
        action
    }

    /// Tells a session what became of its message.
    fn delivered(&mut self, key: usize, outcome: Outcome, now: Now) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if let Some(transaction) = connection.session.transaction().filter(|_| log_enabled!(Level::Info)) {
            transaction.describe(connection.session.id, outcome, &mut self.spare.log);
            log_messages(&mut self.spare);
        }
        self.buffers.lend(&mut connection.replies, SMALL_OCTETS);
        connection.session.delivered(outcome, &mut self.spare, &mut connection.replies);
        if !matches!(outcome, Outcome::Missing(..)) {
            connection.stored += u32::from(outcome == Outcome::Stored);
            connection.since = now.instant;
            // There is no need for another turn where the peer has said nothing more.
            let done = connection.unread.is_empty() && !connection.session.in_message() && !self.draining;
            connection.action = if done { Action::Read } else { Action::Flush };
            self.touched.push(key);
        }
    }

    /// Sends a connection's replies, and has it go on or end.
    fn reply(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let flushed = connection.flush(&mut self.buffers, self.transcripts.of(connection.session.id));
        match (connection.action, flushed) {
            (Action::Deliver, _) | (_, Ok(false)) => {}
            (_, Err(_)) => self.close(key, "lost"),
            (Action::Close, Ok(true)) => self.close(key, "end"),
            (Action::Read, Ok(true)) if !connection.ready.readable => {}
            (_, Ok(true)) => self.schedule(key),
        }
    }

    /// Ends the connections whose peers have kept us waiting for too long. All are looked at when the soonest may have, a few
    /// times a second at most; on a crowded server those go that did so longest, as many as have to.
    fn expire(&mut self, now: Now) {
        let timeout = self.config.timeout;
        self.look = now.instant + if self.buffers.trim() { TRIMS_APART.min(timeout) } else { timeout };
        for key in 0..self.connections.capacity() {
            let Some(connection) = self.connections.get_mut(key) else { continue };
            if connection.action == Action::Deliver || connection.scheduled {
                // It is not the peer who keeps us waiting.
                connection.since = now.instant;
            }
            let is_stranger = connection.session.origin.is_empty();
            let until = connection.since + if is_stranger { timeout.min(HELLO_TIMEOUT) } else { timeout };
            if until > now.instant {
                self.look = self.look.min(until);
            } else {
                self.time_out(key);
            }
        }
        for _ in 0..TURN_REFUSALS_MAX {
            let longest = self.connections.iter().min_by_key(|(_, connection)| connection.since);
            let idle = longest.filter(|(_, it)| self.is_crowded() && it.since + CROWDED_TIMEOUT <= now.instant);
            let Some((key, _)) = idle else { break };
            self.time_out(key);
        }
        self.look = if self.is_crowded() { now.instant } else { self.look }.max(now.instant + LOOKS_APART);
    }

    /// Ends a connection whose peer kept us waiting, and tells it so unless it does not read.
    fn time_out(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.action != Action::Close && connection.replies.is_empty() {
            connection.dismiss(Reply::TIMED_OUT, &mut self.buffers);
            let _ = connection.flush(&mut self.buffers, self.transcripts.of(connection.session.id));
        }
        self.spare.counters.timeouts += 1;
        self.close(key, "timeout");
    }

    /// Ends a connection; what there is of its message is dropped. Its key is free at once: newcomers come between turns
    /// only, and none ends in a turn while its message is on its way to the store.
    fn close(&mut self, key: usize, reason: &str) {
        let Some(mut connection) = self.connections.try_remove(key) else { return };
        connection.discard(&mut self.store);
        if let Some(transcript) = self.transcripts.of(connection.session.id) {
            connection.session.note_rest(&connection.unread[connection.used as usize..], transcript);
            transcript.end(connection.session.is_closed());
        }
        if let Some(client) = client(connection.session.peer) {
            let left = self.clients.remove(&client).map_or(0, |count| count - 1);
            self.clients.extend((left > 0).then_some((client, left)));
        }
        let hint = connection.session.hint();
        let (level, key, hint) = hint.map_or((Level::Debug, "", ""), |hint| (Level::Info, " hint=", hint));
        let (name, stored, peer) = (connection.session.id, connection.stored, connection.session.peer);
        self.probes += u64::from(connection.session.transactions == 0);
        let probes = self.probes;
        connection.session.end(&mut self.spare);
        log_messages(&mut self.spare);
        log!(level, "session={name} closed reason={reason} stored={stored}{key}{hint} peer={peer} probes={probes}");
        for buffer in [&mut connection.replies, &mut connection.unread, &mut connection.content] {
            self.buffers.take_back(buffer);
        }
    }
}

/// Whose connections are counted together: an IPv4 address, or 64 bits of one of IPv6; this machine's are not.
fn client(peer: Peer) -> Option<IpAddr> {
    match peer {
        Peer::Local => None,
        Peer::Address(address) if address.is_loopback() => None,
        Peer::Address(IpAddr::V6(address)) => Some(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into()),
        Peer::Address(address) => Some(address),
    }
}

/// Logs what became of messages.
#[inline(never)]
fn log_messages(spare: &mut Spare) {
    spare.log.lines().for_each(|line| info!("{line}"));
    spare.log.clear();
}
