//! One seed: a server with its disk, many clients, and all that happens to them, step by step.

use super::book::{Book, Layout};
use super::client::{Behaviour, Client, Fate, Groups, Letters, Pace, Reads};
use super::memory::octets_freed;
use super::model::hand::{Found, Random, first_wall};
use super::model::power_cut::Choices;
use super::model::{Ends, Kind, MAILDIR, ModelDisk};
use super::socket::{Clock, Nature, Pipe, Transport};
use mailchute::Config;
use mailchute::config::{BLOCK_OCTETS, BLOCKS_MAX, SMALL_OCTETS, TURN_ACCEPTS_MAX};
use mailchute::delivery::{MinFree, Now, Store};
use mailchute::fs::Space;
use mailchute::recipients::Recipients;
use mailchute::server::Server;
use mailchute::smtp::session::Dialect;
use mailchute::smtp::trace::{MessageIds, Peer};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

/// The other Maildirs, of the users `a`, `b` and `c`.
const MAILBOXES: [&str; 3] = ["/mail/a", "/mail/b", "/mail/c"];
/// Whether the server has limits beyond `Config::timeout` and `Config::connections_max`: those below.
const LIMITS: bool = true;
/// How long a peer may be silent that never said anything, and anybody on a server that is nearly full; and what each octet
/// adds to the time that a line or a text may take.
const HELLO_TIMEOUT: Duration = Duration::from_secs(60);
const CROWDED_TIMEOUT: Duration = Duration::from_secs(10);
const OCTET_TIME: Duration = Duration::from_millis(2);
/// How much later than promised a timeout may come: looks at deadlines are so far apart, and polls sleep whole milliseconds.
const GRANULARITY: Duration = Duration::from_millis(252);
/// Turns without sleep in which nothing is read or written, after which a server does not rest; and steps, after which there is no end.
const RESTLESS_TURNS: usize = 1000;
const STEPS_MAX: usize = 500_000;
const TIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// Numbers of clients that come when those of the beginning are gone.
pub const LATER: usize = 1000;
/// How long after the last flush everything is published.
const PUBLISHED_WITHIN: Duration = Duration::from_millis(210);
const MILLISECOND: Duration = Duration::from_millis(1);

/// What a seed chooses.
#[derive(Clone, Debug)]
struct Setting {
    /// Nothing is wrong with disk or room, so that everybody hears what they would hear alone.
    calm: bool,
    layout: Layout,
    nature: Nature,
    timeout: Duration,
    connections_max: usize,
    /// Connections of one address.
    address_max: usize,
    files_max: Option<usize>,
    /// Milliseconds that a flush takes, at most.
    flush: usize,
    octets_max: usize,
    dirty: bool,
    reject: bool,
    reader: bool,
    atomic_moves: bool,
    links: bool,
    clients: usize,
    /// How many things happen to the disk and the server.
    incidents: usize,
    grace: Duration,
    /// When the power is cut, if it is, and when the server is told to stop.
    cut_at: Option<Duration>,
    stop_at: Option<Duration>,
    /// Octets of the journal, if there is one.
    journal: Option<u64>,
    /// All come at once and have much to say.
    rush: bool,
}

impl Setting {
    fn draw(random: &mut Random, calm: bool) -> Self {
        let one_of = |random: &mut Random, count| random.below(count) == 0;
        let moment = |random: &mut Random, count| {
            let moment = Duration::from_millis(random.below_one_of(&[300, 3000, 30_000]) as u64);
            (random.below(count) == 0 && !calm).then_some(moment)
        };
        Self {
            calm,
            layout: random.choose(&[Layout::One, Layout::Mailboxes, Layout::Table]),
            nature: Nature {
                received_max: random.choose(&[300, 5000, 70_000, 300_000]),
                sent_max: random.choose(&[256, 2000, 65_536]),
                interrupted: random.choose(&[0, 10, 50]),
                partial: random.choose(&[0, 5]),
                whole_events: one_of(random, 2),
                reset_drops: one_of(random, 2),
            },
            timeout: Duration::from_secs(random.choose(if LIMITS { &[5, 20, 60, 200] } else { &[5, 20, 60] })),
            connections_max: if calm { 1000 } else { random.choose(&[2, 5, 12, 1000, 1000]) },
            address_max: if LIMITS && !calm && one_of(random, 3) { 3 } else { usize::MAX },
            files_max: (!calm && one_of(random, 4)).then(|| 1 + random.below(6)),
            flush: random.choose(&[0, 3, 30, 3000]),
            octets_max: random.choose(&[100_000, 1_000_000]),
            dirty: one_of(random, 2),
            reject: one_of(random, 3),
            reader: one_of(random, 3),
            atomic_moves: !one_of(random, 3),
            links: !one_of(random, 4),
            clients: if one_of(random, 24) { 90 } else { random.choose(&[3, 8, 8, 20, 40]) },
            incidents: if calm { 2 } else { random.choose(&[0, 2, 6, 12]) },
            grace: Duration::from_millis(random.below(9000) as u64),
            cut_at: moment(random, 3),
            stop_at: moment(random, 6),
            journal: None,
            rush: false,
        }
    }
}

/// What a run came to.
#[derive(Default)]
pub struct Report {
    pub failures: Vec<String>,
    pub trace: Vec<String>,
    /// What each good client heard, where that must not depend on others.
    pub transcripts: Vec<(usize, Vec<String>)>,
    pub steps: usize,
    pub clients: usize,
    pub messages: usize,
    pub promises: usize,
    /// Groups of messages that were written to a journal.
    pub groups: usize,
    pub time: Duration,
}

struct Connection {
    key: usize,
    client: usize,
    pipe: Rc<RefCell<Pipe>>,
    since: Duration,
}

struct World {
    setting: Setting,
    config: Config,
    tables: [PathBuf; 2],
    random: Random,
    clock: Clock,
    wall: SystemTime,
    disk: ModelDisk,
    book: Book,
    clients: Vec<Client>,
    /// Clients that will come at a time, those that come when another goes, and those that wait to be taken.
    arrivals: Vec<(Duration, usize)>,
    heirs: VecDeque<usize>,
    backlog: VecDeque<usize>,
    connections: Vec<Connection>,
    /// The most at a time.
    peak: usize,
    /// When nearly all places were taken the last time, and since when they are.
    crowded_at: Option<Duration>,
    crowded_since: Option<Duration>,
    /// Clients that found all places taken.
    turned_away: Vec<usize>,
    flush_at: Option<Duration>,
    flush_ended: Duration,
    full_at: Duration,
    slow: bool,
    incident_at: Duration,
    incidents: usize,
    away: Option<(usize, usize)>,
    /// What fails as soon as something was answered that is not published.
    ambush: Option<(Kind, usize, Errno)>,
    drained: bool,
    end: Option<Duration>,
    power_cut: bool,
    after_cut: bool,
    /// What was judged already, and whether there was a journal.
    judged: (u64, usize),
    had_journal: bool,
    report: Report,
    tracing: bool,
}

/// Runs a seed, with all its clients or one alone.
pub fn run(seed: u64, alone: Option<usize>, tables: &[PathBuf; 2], tracing: bool) -> Report {
    let mut random = Random::new(seed);
    let mut setting = Setting::draw(&mut random, seed % 4 == 0);
    // After 300 without, there are 300 with a journal, and so on.
    if seed / 300 % 2 == 1 {
        setting.journal = Some(4096 * Random::new(seed + 1).choose(&[8, 12, 40]));
        setting.rush = seed % 2 == 1;
        setting.flush = if setting.rush { setting.flush.min(30) } else { setting.flush };
    }
    let mut config = Config { maildir: MAILDIR.into(), timeout: setting.timeout, ..Config::default() };
    config.connections_max = setting.connections_max;
    config.per_address_max = setting.address_max;
    config.min_free = MinFree::Octets(1 << 20);
    config.protocol.hostname = "host".to_owned();
    config.protocol.message_octets_max = setting.octets_max as u64;
    config.protocol.reject_bare_newline = setting.reject;
    if setting.layout != Layout::One {
        (config.mailboxes, config.domains) = (Some("/mail".into()), vec!["example".to_owned()]);
    }
    if setting.layout == Layout::Table {
        config.recipients = Some(tables[0].clone());
    }
    let others = if setting.layout == Layout::One { &[][..] } else { &MAILBOXES };
    let disk = ModelDisk::new(Ends::Told).atomic_moves(setting.atomic_moves).maildirs(others, true);
    let disk = if let Some(octets) = setting.journal {
        config.journal_octets = octets;
        disk.journaled()
    } else {
        disk
    };
    let disk = if setting.links { disk } else { disk.without_links(Errno::MLINK) };
    let disk = if setting.reader { disk.reader(seed) } else { disk };
    let mut world = World {
        book: Book::new(setting.layout),
        config,
        tables: tables.clone(),
        clock: Rc::default(),
        wall: first_wall(),
        disk,
        clients: Vec::new(),
        arrivals: Vec::new(),
        heirs: VecDeque::new(),
        backlog: VecDeque::new(),
        connections: Vec::new(),
        peak: 0,
        crowded_at: None,
        crowded_since: None,
        turned_away: Vec::new(),
        flush_at: None,
        flush_ended: Duration::ZERO,
        full_at: Duration::ZERO,
        slow: false,
        incident_at: Duration::from_millis(random.below(if setting.rush { 100 } else { 3000 }) as u64),
        incidents: setting.incidents,
        away: None,
        ambush: None,
        drained: false,
        end: None,
        power_cut: false,
        after_cut: false,
        judged: (u64::MAX, 0),
        had_journal: false,
        report: Report::default(),
        tracing,
        setting,
        random,
    };
    world.trace(|world| format!("{:?}", world.setting));
    world.book.reader = world.setting.reader;
    world.book.journaled = world.setting.journal.is_some();
    world.invite(seed, alone);
    world.live(7);
    if world.report.failures.is_empty() && alone.is_none() {
        world.cut_power(seed);
    }
    let World { mut report, clients, book, clock, .. } = world;
    report.transcripts =
        clients.iter().filter(|it| it.behaviour.is_good()).map(|it| (it.number, it.transcript.clone())).collect();
    report.clients = clients.len();
    report.messages = book.attempts.len();
    report.promises = book.promises;
    report.time += clock.get();
    report
}

/// Whether nothing in this seed keeps a client from hearing what it would hear alone.
pub fn is_calm(seed: u64) -> bool {
    seed % 4 == 0
}

impl World {
    fn trace(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.tracing {
            let line = format!("{:>12.6} {}", self.clock.get().as_secs_f64(), line(self));
            self.report.trace.push(line);
        }
    }

    fn fail(&mut self, what: String) {
        self.trace(|_| format!("FAILED: {what}"));
        self.report.failures.push(what);
    }

    fn letters(&self) -> Letters {
        let Setting { dirty, reject, timeout, octets_max, .. } = self.setting;
        Letters { dirty, reject, timeout, octets_max }
    }

    /// Makes a client, who comes later.
    fn make(&mut self, number: usize, behaviour: Behaviour, mut random: Random) -> usize {
        let pipe = Pipe::new(self.setting.nature, Random::new(random.below(1 << 30) as u64), Rc::clone(&self.clock));
        let client = Client::new(number, behaviour, random, &self.letters(), Rc::new(RefCell::new(pipe)));
        self.trace(|_| format!("client {number} will come: {:?}", client.behaviour));
        self.clients.push(client);
        self.clients.len() - 1
    }

    fn invite(&mut self, seed: u64, alone: Option<usize>) {
        for number in 0..self.setting.clients {
            let mut random = Random::new(seed.wrapping_mul(1000).wrapping_add(number as u64));
            let good = random.below(3) == 0;
            let mut behaviour = Behaviour::draw(&mut random, good, self.setting.timeout);
            let mut at = random.below_one_of(&[1, 1, 200, 20_000]) as u64;
            if self.setting.rush {
                behaviour.messages += random.below(12);
                (behaviour.octets_max, behaviour.thinks) = (behaviour.octets_max.min(5000), behaviour.thinks.min(2));
                at %= 300;
            }
            let is_heir = random.below(4) == 0;
            if alone.is_none_or(|alone| alone == number) {
                let client = self.make(number, behaviour, random);
                if is_heir && alone.is_none() {
                    self.heirs.push_back(client);
                } else {
                    self.arrivals.push((Duration::from_millis(at), client));
                }
            }
        }
    }

    fn now(&self, base: Instant) -> Now {
        Now { instant: base + self.clock.get(), wall: self.wall }
    }

    fn pass(&mut self, time: Duration) {
        self.clock.set(self.clock.get() + time);
        self.wall += time;
        self.disk.set_clock(self.wall);
    }

    /// One start of a server, until all clients are gone and nothing happens any more, or until its end.
    fn live(&mut self, random: u64) {
        let opened = Store::open(self.disk.clone(), &self.config, random);
        let now = self.now(Instant::now() - self.clock.get());
        self.disk.set_ends(Ends::AtOnce);
        let opened = opened.and_then(|mut store| store.recover(now).map(|()| store));
        self.disk.set_ends(Ends::Told);
        let store = match opened {
            Ok(store) => store,
            Err((path, error)) => return self.fail(format!("no start: {}: {error}", path.display())),
        };
        let recipients = match Recipients::load(&self.config) {
            Ok(recipients) => recipients,
            Err(problem) => return self.fail(problem),
        };
        let mut server = Server::new(self.config.clone(), recipients, store, MessageIds::new(random, 7));
        if let Some(files_max) = self.setting.files_max {
            server.store.files_max = files_max;
        }
        let base = Instant::now() - self.clock.get();
        self.peak = 0;
        self.steps(&mut server, base);
        if self.report.failures.is_empty() && !self.power_cut && self.end.is_none() {
            self.last_check(&mut server, base);
        }
        if let Some(violation) = self.disk.violations().first() {
            self.fail(violation.clone());
        }
        if !self.power_cut {
            server.abort();
            server.store.close();
        }
        self.report.groups += self.disk.groups().len();
        self.check_memory(server);
        self.connections.clear();
    }

    /// What the server held: what it has from the beginning, buffers for as many connections as there ever were, and a little
    /// for their transactions.
    fn check_memory(&mut self, server: Server<Transport, ModelDisk>) {
        let held = octets_freed(|| drop(server));
        let new = Store::open(ModelDisk::new(Ends::Told), &self.config.clone(), 0).map(|store| {
            let recipients = Recipients::load(&Config::default()).expect("no table");
            Server::<Transport, _>::new(self.config.clone(), recipients, store, MessageIds::new(0, 0))
        });
        let least = octets_freed(|| drop(new));
        // One with text that is not in its file yet, or with octets that were not looked at, and one while it works.
        let blocks = (self.peak + 1).min(BLOCKS_MAX + 2) * BLOCK_OCTETS;
        let group = self.setting.journal.unwrap_or(0) as usize * 2;
        let most = least + blocks + group + (2 * self.peak + 32) * SMALL_OCTETS + self.peak * 1024 + (64 << 10);
        self.trace(|_| format!("{held} octets of memory, at the start {least}"));
        if held > most {
            self.fail(format!("{held} octets of memory for {} connections, at most {most} are right", self.peak));
        }
    }

    fn steps(&mut self, server: &mut Server<Transport, ModelDisk>, base: Instant) {
        let mut poll_until = self.clock.get();
        let (mut restless, mut moved) = (0, 0);
        while self.report.failures.is_empty() {
            self.report.steps += 1;
            if self.report.steps > STEPS_MAX || self.clock.get() > TIME_MAX {
                let open: Vec<_> = self.connections.iter().map(|it| self.clients[it.client].told()).collect();
                return self.fail(format!("no end; connected are {open:?}"));
            }
            let mut flushes_ended = false;
            let is_awake = server.is_runnable() || self.connections.iter().any(|it| it.pipe.borrow().has_event());
            if is_awake || !self.backlog.is_empty() {
                let turn = Duration::from_micros(1 + self.random.below(200) as u64);
                self.pass(turn);
            } else {
                self.check_rest(server);
                // What was answered waits until it can be published.
                if self.connections.is_empty() && self.incidents == 0 && !server.store.is_idle() {
                    self.put_back();
                }
                match self.next(poll_until) {
                    Some(next) if !self.is_done(server) => self.pass(next.saturating_sub(self.clock.get())),
                    _ => return,
                }
                restless = 0;
            }
            let traffic: u64 = self.connections.iter().map(|it| it.pipe.borrow().traffic()).sum();
            restless = if traffic == moved { restless + 1 } else { 0 };
            moved = traffic;
            if restless > RESTLESS_TURNS {
                return self.fail("the server does not rest".to_owned());
            }
            let now = self.clock.get();
            self.act(now);
            if self.incident_at <= now && self.incidents > 0 {
                self.incident(server);
            }
            if self.setting.cut_at.is_some_and(|at| at <= now) {
                self.trace(|_| "the power is cut".to_owned());
                self.power_cut = true;
                return;
            }
            if self.setting.stop_at.take_if(|at| *at <= now).is_some() {
                self.trace(|_| "the server is told to stop".to_owned());
                self.drained = true;
                server.drain();
                self.end = Some(now + self.setting.grace);
            }
            if self.flush_at.is_some_and(|at| at <= now) {
                self.flush_at = None;
                let count = 1 + self.random.below(self.disk.flushes_under_way().max(1));
                self.trace(|_| format!("{count} flushes end"));
                self.disk.end_flushes(count, &mut self.random);
                self.flush_ended = now;
                flushes_ended = true;
                server.flushes_ended = true;
            }
            let events = self.events(server);
            let ends = self.end.is_some_and(|end| end <= now);
            if !(events || flushes_ended || ends || server.is_runnable() || now >= poll_until)
                && self.backlog.is_empty()
            {
                continue;
            }
            self.accept(server, base);
            server.turn(self.now(base));
            self.look_around(server);
            if self.end.is_some_and(|end| now >= end || server.is_empty()) {
                return;
            }
            let patience = server.next_deadline(base + self.clock.get());
            // A poll sleeps whole milliseconds.
            let patience = Duration::from_millis(patience.as_nanos().div_ceil(1_000_000) as u64);
            poll_until = self.clock.get() + patience;
        }
    }

    /// Whether nobody is left, and nothing is to happen.
    fn is_done(&self, server: &Server<Transport, ModelDisk>) -> bool {
        let nobody = self.connections.is_empty() && self.arrivals.is_empty() && self.heirs.is_empty();
        nobody && self.backlog.is_empty() && server.is_empty() && self.end.is_none()
    }

    /// When the next thing happens.
    fn next(&self, poll_until: Duration) -> Option<Duration> {
        let wakes = self.connections.iter().filter_map(|it| self.clients[it.client].wake);
        let arrivals = self.arrivals.iter().map(|(at, _)| *at);
        let incident = (self.incidents > 0).then_some(self.incident_at);
        let set = [incident, self.flush_at, self.end, self.setting.cut_at, self.setting.stop_at, Some(poll_until)];
        wakes.chain(arrivals).chain(set.into_iter().flatten()).min()
    }

    /// Clients do what is due.
    fn act(&mut self, now: Duration) {
        for index in 0..self.arrivals.len() {
            if self.arrivals[index].0 <= now && self.arrivals[index].0 != Duration::MAX {
                self.backlog.push_back(self.arrivals[index].1);
                self.arrivals[index].0 = Duration::MAX;
            }
        }
        self.arrivals.retain(|(at, _)| *at != Duration::MAX);
        if self.connections.is_empty() && self.arrivals.is_empty() {
            self.backlog.extend(self.heirs.pop_front());
        }
        let due: Vec<usize> = self.connections.iter().map(|it| it.client).collect();
        self.act_of(due, now);
        // Some talk before they are taken.
        let waiting: Vec<usize> = self.backlog.iter().copied().collect();
        self.act_of(waiting, now);
    }

    fn act_of(&mut self, mut clients: Vec<usize>, now: Duration) {
        if !clients.is_empty() {
            let first = self.random.below(clients.len());
            clients.rotate_left(first);
        }
        for client in clients {
            if self.clients[client].wake.is_some_and(|wake| wake <= now) {
                let before = self.clients[client].transcript.len();
                self.clients[client].act(now, &mut self.book);
                self.trace(|world| {
                    let heard = &world.clients[client].transcript[before..];
                    format!("{}, hears {heard:?}", world.clients[client].told())
                });
                if let Some(violation) = self.clients[client].violations.pop() {
                    let told = self.clients[client].told();
                    self.fail(format!("{told}: {violation}"));
                }
            }
        }
    }

    /// Tells the server of what changed.
    fn events(&mut self, server: &mut Server<Transport, ModelDisk>) -> bool {
        let mut told: Vec<_> = (0..self.connections.len()).collect();
        if !told.is_empty() {
            let first = self.random.below(told.len());
            told.rotate_left(first);
        }
        let mut any = false;
        for index in told {
            let Connection { key, client, pipe, .. } = &self.connections[index];
            let Some(event) = pipe.borrow_mut().event() else { continue };
            let (key, client) = (*key, *client);
            self.trace(|_| format!("event for client {client}, key {key}: {event:?}"));
            server.mark(key, event);
            any = true;
        }
        any
    }

    fn accept(&mut self, server: &mut Server<Transport, ModelDisk>, base: Instant) {
        for _ in 0..TURN_ACCEPTS_MAX {
            if self.drained {
                // Nobody listens any more.
                self.backlog.clear();
                self.arrivals.clear();
                self.heirs.clear();
            }
            let Some(client) = self.backlog.pop_front() else { return };
            let address = |client: usize| (self.clients[client].number % 5) as u8;
            let same = self.connections.iter().filter(|it| address(it.client) == address(client)).count();
            if server.connections() >= self.setting.connections_max || same >= self.setting.address_max {
                self.turned_away.push(client);
            }
            let pipe = Rc::clone(&self.clients[client].pipe);
            let dialect = if self.clients[client].behaviour.lmtp { Dialect::Lmtp } else { Dialect::Smtp };
            let peer = Peer::Address([10, 0, 0, address(client)].into());
            pipe.borrow_mut().register();
            let key = server.accept(Transport(Rc::clone(&pipe)), peer, dialect, self.now(base));
            self.trace(|_| format!("client {client} is taken, key {key}"));
            if self.connections.iter().any(|it| it.key == key) {
                self.fail(format!("key {key} is given twice"));
            }
            self.clients[client].wake.get_or_insert(self.clock.get());
            self.connections.push(Connection { key, client, pipe, since: self.clock.get() });
            if self.connections.len() * 10 > self.setting.connections_max * 9 {
                self.crowded_at = Some(self.clock.get());
            }
        }
    }

    /// After a turn: who was closed, who hears something, what is on the disk.
    fn look_around(&mut self, server: &mut Server<Transport, ModelDisk>) {
        let now = self.clock.get();
        for Connection { client, pipe, .. } in &self.connections {
            let news = pipe.borrow().news;
            if news {
                let at = now + Duration::from_micros(1 + self.random.below(2000) as u64);
                let wake = self.clients[*client].wake.get_or_insert(at);
                *wake = at.min(*wake);
            }
        }
        let mut closed = Vec::new();
        self.connections.retain(|it| {
            let dropped = it.pipe.borrow().dropped;
            closed.extend(dropped.then_some((it.client, it.since)));
            !dropped
        });
        for (client, since) in closed {
            self.trace(|_| format!("client {client} is closed"));
            self.part(client, since, now);
            self.backlog.extend(self.heirs.pop_front());
        }
        self.peak = self.peak.max(self.connections.len());
        let crowded = self.connections.len() * 10 > self.setting.connections_max * 9;
        self.crowded_at = if crowded { Some(now) } else { self.crowded_at };
        self.crowded_since = if crowded { self.crowded_since.or(Some(now)) } else { None };
        let (open, known) = (server.connections(), self.connections.len());
        if open != known {
            self.fail(format!("the server counts {open} connections, there are {known}"));
        }
        if open > self.setting.connections_max {
            self.fail(format!("{open} connections"));
        }
        let descriptors = self.disk.open_descriptors();
        let files_max = self.setting.files_max.unwrap_or(4 * (known + 1));
        // The main Maildir, one that is looked through, and those that one message more may open.
        let descriptors_max = files_max.max(1) + 3 + 4 + 15 + usize::from(self.setting.journal.is_some());
        if self.setting.files_max.is_some() && descriptors > descriptors_max {
            self.fail(format!("{descriptors} descriptors are open"));
        }
        if self.flush_at.is_none() && self.disk.flushes_under_way() > 0 {
            let most = if self.slow { 2 * self.setting.timeout.as_millis() as usize } else { self.setting.flush };
            self.flush_at = Some(now + Duration::from_millis(self.random.below(most + 1) as u64) + MILLISECOND / 50);
        }
        self.book.unpublished = self.setting.journal.is_some() && !server.store.is_idle();
        if let Some(fault) = self.ambush.take_if(|_| self.book.unpublished && self.book.promises > self.judged.1) {
            self.fail_next(fault);
        }
        self.check_disk(false);
    }

    /// A connection was closed: its client reads what is left, and must have been answered if it is a good one.
    fn part(&mut self, client: usize, came: Duration, now: Duration) {
        let turned_away = self.turned_away.contains(&client);
        // On a server that is nearly full there is less patience with silence and errors.
        let crowded = LIMITS && self.crowded_at.is_some_and(|at| at >= came);
        // Where a line or a text has its time in all, that began before it was last read from.
        let patience = if LIMITS { Duration::ZERO } else { self.setting.timeout };
        let too_many_errors = LIMITS && (crowded || self.book.faulty);
        let it = &mut self.clients[client];
        let since = it.pipe.borrow().read_at;
        for _ in 0..10_000 {
            if it.is_over {
                break;
            }
            it.act(now, &mut self.book);
        }
        let mut wrong = it.violations.pop();
        if let Some(last) = &it.dismissed {
            if last.contains("4.4.2") && now - since < patience {
                wrong = Some(format!("timed out after {:?}", now - since));
            } else if last.contains("Too many connections") && !turned_away {
                wrong = Some("turned away though there was room".to_owned());
            } else if last.contains("4.3.2") && !turned_away && !self.drained {
                wrong = Some(format!("told {last:?}"));
            }
        }
        let it = &self.clients[client];
        let last = it.dismissed.as_deref().unwrap_or_default();
        let excused = self.drained
            || turned_away
            || crowded && last.contains("4.4.2")
            || too_many_errors && last.contains("Too many errors");
        if it.behaviour.is_good() && !it.quit_answered && !excused && wrong.is_none() {
            wrong = Some(format!("closed without a reason, last heard {:?}", it.transcript.last()));
        }
        if let Some(wrong) = wrong {
            let told = self.clients[client].told();
            self.fail(format!("{told}: {wrong}"));
        }
    }

    /// When there is nothing to do: all is read, all is answered, and nobody stays for too long.
    fn check_rest(&mut self, server: &mut Server<Transport, ModelDisk>) {
        let now = self.clock.get();
        let (waits, full) = (self.disk.flushes_under_way() > 0, server.store.is_full());
        if full {
            self.full_at = now;
        }
        let crowded = self.crowded_since.is_some_and(|since| now > since + GRANULARITY);
        let patience = |read: u64| match self.setting.timeout {
            timeout if LIMITS && crowded => timeout.min(CROWDED_TIMEOUT),
            timeout if LIMITS && read == 0 => timeout.min(HELLO_TIMEOUT),
            timeout => timeout,
        };
        let mut wrong = Vec::new();
        for Connection { client, pipe, since, .. } in &self.connections {
            let (it, pipe) = (&self.clients[*client], pipe.borrow());
            let mut active = pipe.read_at.max(pipe.written_at).max(*since).max(self.full_at);
            if it.awaits_end() {
                active = if waits { now } else { active.max(self.flush_ended) };
            }
            let owes = it.owed_at().is_some_and(|octets| octets <= pipe.read) && !pipe.has_replies() && !pipe.news;
            let free = !waits && !full;
            if pipe.is_left() && free {
                wrong.push(format!("{}: what it sent is left unread", it.told()));
            } else if owes
                && free
                && !it.behaviour.garbage
                && it.dismissed.is_none()
                && !it.has_left
                && !pipe.is_blocked()
            {
                wrong.push(format!("{}: is owed an answer", it.told()));
            } else if now > active + patience(pipe.read) + GRANULARITY {
                wrong.push(format!("{}: nothing happens for {:?}", it.told(), now - active));
            } else if LIMITS && it.is_slow(now, self.full_at, self.setting.timeout + GRANULARITY, OCTET_TIME) && free {
                wrong.push(format!("{}: takes too long", it.told()));
            }
        }
        // Some time after its answer each message is where it belongs.
        if self.book.unpublished && !waits && !self.book.faulty && now > self.flush_ended + PUBLISHED_WITHIN {
            self.book.unpublished = false;
            self.check_disk(true);
        }
        wrong.into_iter().for_each(|wrong| self.fail(wrong));
    }

    /// What a start finds that comes after this, with what it delivers from a journal.
    fn recovered(&mut self, left: &ModelDisk) -> Vec<Option<Vec<Found>>> {
        self.book.unpublished = false;
        if self.setting.journal.is_some() {
            let now = self.now(Instant::now() - self.clock.get());
            let opened = Store::open(left.clone(), &self.config, 9);
            if let Err((path, error)) = opened.and_then(|mut store| store.recover(now)) {
                self.fail(format!("no start: {}: {error}", path.display()));
            }
        }
        let paths = if self.setting.layout == Layout::One { &[][..] } else { &MAILBOXES };
        let all = [MAILDIR].into_iter().chain(paths.iter().copied());
        self.look(all.map(|path| [left.files_in(path, "new"), left.files_in(path, "cur")].concat()).collect())
    }

    /// What is in the Maildirs; none of those that are away.
    fn look(&self, maildirs: Vec<Vec<Found>>) -> Vec<Option<Vec<Found>>> {
        let away = self.away.map(|(maildir, _)| maildir);
        let files = maildirs.into_iter().enumerate();
        files.map(|(maildir, files)| (away != Some(maildir)).then_some(files)).collect()
    }

    /// Compares what is on the disk, and after a promise what a power cut would leave, with what was sent and promised.
    fn check_disk(&mut self, anyhow: bool) {
        let state = (self.disk.changes(), self.book.promises);
        if state != self.judged || anyhow {
            let paths = if self.setting.layout == Layout::One { &[][..] } else { &MAILBOXES };
            let files = [MAILDIR]
                .iter()
                .chain(paths)
                .map(|path| [self.disk.files_in(path, "new"), self.disk.files_in(path, "cur")].concat());
            let files = self.look(files.collect());
            if let Err(wrong) = self.book.judge(&files, self.after_cut) {
                self.fail(wrong);
            }
        }
        // A journal that goes takes along what is nowhere else.
        let root = if self.setting.layout == Layout::One { MAILDIR } else { "/mail" };
        let has_journal = self.disk.exists(&format!("{root}/.mailchute-journal.0"));
        let went = std::mem::replace(&mut self.had_journal, has_journal) && !has_journal;
        if state.1 != self.judged.1 || anyhow || went {
            let unpublished = self.book.unpublished;
            let drawn = Choices::drawn(self.random.below(1 << 30) as u64);
            let cuts = [Choices::default(), drawn].map(|mut choices| self.disk.restarted(&mut choices, Ends::AtOnce));
            for left in cuts.into_iter().chain(went.then(|| self.disk.killed())) {
                // Its files are others.
                self.book.forget_files();
                let files = self.recovered(&left);
                if let Err(wrong) = self.book.judge(&files, true) {
                    self.fail(format!("after a power cut now: {wrong}"));
                }
                self.book.forget_files();
            }
            self.book.unpublished = unpublished;
        }
        self.judged = state;
    }

    /// Something happens to the disk or the server.
    fn incident(&mut self, server: &mut Server<Transport, ModelDisk>) {
        self.incidents -= 1;
        let pause = self.random.below(if self.setting.rush { 300 } else { 4000 });
        self.incident_at = self.clock.get() + Duration::from_millis(pause as u64);
        let which = if self.setting.calm { self.random.below(2) } else { self.random.below(14) };
        let maildirs = if self.setting.layout == Layout::One { 1 } else { 4 };
        let count = 1 + self.random.below(3);
        let errno = self.random.choose(&[Errno::NOSPC, Errno::IO, Errno::MFILE, Errno::DQUOT, Errno::ROFS]);
        match which {
            0 => {
                let hours = self.random.choose(&[1, 24 * 40, 5]) * 3600;
                let jump = Duration::from_secs(hours);
                self.wall = if self.random.below(2) == 0 { self.wall + jump } else { self.wall - jump };
                self.trace(|_| format!("the clock is set by {hours} s"));
            }
            1 => {
                self.slow = !self.slow && !self.setting.calm;
                self.trace(|world| format!("flushes are slow: {}", world.slow));
            }
            2..8 => {
                use Kind::{
                    Create, EndDirectoryFlush, EndFileFlush, IsSame, Link, List, OpenDirectory, Remove, Rename, Write,
                };
                let kinds = [
                    Create,
                    Write,
                    Write,
                    Rename,
                    Rename,
                    EndFileFlush,
                    EndFileFlush,
                    EndDirectoryFlush,
                    EndDirectoryFlush,
                    OpenDirectory,
                    Link,
                    List,
                    IsSame,
                    Remove,
                ];
                let mut kind = kinds[self.random.below(kinds.len())];
                if self.setting.journal.is_some() && self.random.below(3) == 0 {
                    kind = self.random.choose(&[
                        Kind::WriteAt,
                        Kind::WriteAt,
                        Kind::EndJournalFlush,
                        Kind::EndJournalFlush,
                        Kind::OpenJournal,
                        Kind::ReadAt,
                    ]);
                }
                self.book.untidy |= matches!(kind, Remove | OpenDirectory);
                if matches!(kind, Kind::WriteAt | Kind::EndJournalFlush) && self.random.below(4) > 0 {
                    self.ambush = Some((kind, count, errno));
                } else {
                    self.fail_next((kind, count, errno));
                }
            }
            8 => {
                let count = count * 10;
                self.trace(|_| format!("the next {count} operations fail: {errno:?}"));
                self.disk.fail(self.disk.operations().len() + 1, count, errno);
                (self.book.faulty, self.book.untidy) = (true, true);
            }
            9 => {
                self.trace(|_| "the disk is full".to_owned());
                self.disk.set_space(Space { free: self.random.below(2 << 20) as u64, total: 1 << 40, free_files: 100 });
                self.book.faulty = true;
            }
            10 => self.heal(),
            11 if self.away.is_none() => {
                let maildir = self.random.below(maildirs);
                let path = if maildir == 0 { MAILDIR } else { MAILBOXES[maildir - 1] };
                self.trace(|_| format!("{path} is taken away"));
                self.away = self.disk.move_away(path).map(|directory| (maildir, directory));
                (self.book.faulty, self.book.untidy) = (true, true);
            }
            11 | 12 => self.put_back(),
            13 if self.setting.layout == Layout::Table => {
                self.book.reload();
                self.config.recipients = Some(self.tables[self.book.table].clone());
                let table = self.book.table;
                self.trace(|_| format!("table {table} is read"));
                match Recipients::load(&self.config) {
                    Ok(recipients) => server.recipients = recipients,
                    Err(problem) => self.fail(problem),
                }
            }
            _ => {}
        }
    }

    fn fail_next(&mut self, (kind, count, errno): (Kind, usize, Errno)) {
        self.trace(|_| format!("{count} of {kind:?} will fail: {errno:?}"));
        self.disk.fail_next(kind, count, errno);
        self.book.faulty = true;
    }

    fn heal(&mut self) {
        self.ambush = None;
        self.trace(|_| "the disk is well again".to_owned());
        self.disk.heal();
        self.disk.set_space(Space { free: 1 << 40, total: 1 << 41, free_files: u64::MAX });
    }

    fn put_back(&mut self) {
        if let Some((maildir, directory)) = self.away.take() {
            let path = if maildir == 0 { MAILDIR } else { MAILBOXES[maildir - 1] };
            self.trace(|_| format!("{path} is put back"));
            if self.disk.exists(path) {
                return self.fail(format!("{path} was made again"));
            }
            self.disk.move_back(path, directory);
        }
    }

    /// Who comes when all is well is served, and nothing is left behind.
    fn last_check(&mut self, server: &mut Server<Transport, ModelDisk>, base: Instant) {
        self.heal();
        self.put_back();
        (self.incidents, self.slow, self.setting.dirty) = (0, false, false);
        (self.setting.cut_at, self.setting.stop_at) = (None, None);
        // A mailbox that failed takes nothing for a minute.
        self.pass(Duration::from_secs(62));
        let behaviour = Behaviour {
            lmtp: false,
            line_feeds: false,
            groups: Groups::Transaction,
            pace: Pace::Burst,
            reads: Reads::All,
            fate: Fate::Quits,
            garbage: false,
            too_slow: false,
            thinks: 0,
            rests: 0,
            messages: 1,
            octets_max: 1000,
        };
        let client = self.make(LATER + self.clients.len(), behaviour, Random::new(self.report.steps as u64));
        let users = if self.setting.layout == Layout::One { &["nobody"][..] } else { &["a", "b", "c"] };
        self.clients[client].write_to(users);
        self.arrivals.push((self.clock.get(), client));
        self.steps(server, base);
        if !self.report.failures.is_empty() {
            return;
        }
        let maildirs = if self.setting.layout == Layout::One { 0..1 } else { 1..4 };
        if !maildirs.into_iter().all(|maildir| self.book.is_promised(maildir, self.clients[client].last_attempt())) {
            return self.fail(format!("mail is refused for ever: {:?}", self.clients[client].transcript));
        }
        // Leftovers are looked for at the start and daily.
        self.pass(Duration::from_secs(2));
        for _ in 0..100 {
            server.turn(self.now(base));
        }
        let (descriptors, tmp) = (self.disk.open_descriptors(), self.disk.files("tmp").len());
        // A main Maildir that was opened again is held itself until mail comes to it.
        let journal = usize::from(!self.disk.groups().is_empty() || descriptors > 3 && self.setting.journal.is_some());
        if descriptors != 3 + journal && !(self.book.faulty && (3..=5).contains(&descriptors)) {
            self.fail(format!("in the end {descriptors} descriptors are open"));
        }
        if tmp > 0 && !self.book.untidy && !self.after_cut {
            self.fail(format!("in the end {tmp} files are in tmp/"));
        }
        self.check_disk(true);
    }

    /// The power is cut; the server starts anew on what is left, and loses nothing.
    fn cut_power(&mut self, seed: u64) {
        self.put_back();
        for draw in 0..if self.setting.journal.is_some() { 6 } else { 4 } {
            let left = match draw {
                5 => self.disk.killed(),
                _ => self.disk.restarted(&mut Choices::drawn(seed * 10 + draw), Ends::AtOnce),
            };
            left.heal();
            self.book.forget_files();
            let files = self.recovered(&left);
            if let Err(wrong) = self.book.judge(&files, true) {
                return self.fail(format!("after the power cut: {wrong}"));
            }
        }
        // Or only the process ends, and what it did is no more durable than before.
        self.disk = match self.setting.journal {
            // Not where a flush failed: of what it lost nothing is flushed again before the machine stops.
            Some(_) if seed % 2 == 1 && !self.book.faulty => self.disk.killed(),
            _ => self.disk.restarted(&mut Choices::drawn(seed), Ends::Told),
        };
        self.disk.set_ends(Ends::Told);
        self.heal();
        self.book.forget_files();
        self.trace(|_| "a new start".to_owned());
        (self.after_cut, self.power_cut, self.drained, self.end) = (true, false, false, None);
        (self.flush_at, self.incidents, self.book.faulty) = (None, 0, false);
        (self.setting.cut_at, self.setting.stop_at) = (None, None);
        self.connections.clear();
        self.backlog.clear();
        self.arrivals.clear();
        self.heirs.clear();
        self.turned_away.clear();
        for number in 0..2 + self.random.below(3) {
            let mut random = Random::new(seed.wrapping_mul(1000).wrapping_add(900 + number as u64));
            let behaviour = Behaviour::draw(&mut random, true, self.setting.timeout);
            let client = self.make(LATER + self.clients.len(), behaviour, random);
            self.arrivals.push((self.clock.get(), client));
        }
        self.setting.connections_max = self.setting.connections_max.max(20);
        self.config.connections_max = self.setting.connections_max;
        self.live(8);
    }
}
