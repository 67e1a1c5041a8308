//! SMTP clients in memory, which send messages one after the other and note what they were told of each, and the world
//! that they and a server live in.

use super::hand::{Random, first_wall};
use super::power_cut::Promise;
use super::{Ends, MAILDIR, ModelDisk};
use mailchute::Config;
use mailchute::delivery::{MinFree, Now, Store};
use mailchute::recipients::Recipients;
use mailchute::server::{Readiness, Server};
use mailchute::smtp::session::Dialect;
use mailchute::smtp::trace::{MessageIds, Peer};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Settings in which `a@example` has the mailbox `/mail/a`, and so on, beside the main one.
pub fn with_mailboxes() -> Config {
    Config { mailboxes: Some("/mail".into()), domains: vec!["example".to_owned()], ..Config::default() }
}

/// The largest message that the world's server takes.
pub const MESSAGE_OCTETS_MAX: u64 = 80_000;

#[derive(Default)]
struct Pipe {
    to_server: VecDeque<u8>,
    to_client: Vec<u8>,
    closed: bool,
    /// The server's writes fail.
    broken: bool,
}

/// The server's end of a connection.
pub struct Transport(Rc<RefCell<Pipe>>);

impl Read for Transport {
    fn read(&mut self, place: &mut [u8]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        match pipe.to_server.read(place)? {
            0 if !pipe.closed => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        if pipe.broken { Err(io::ErrorKind::BrokenPipe.into()) } else { pipe.to_client.write(octets) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How far a client has come with its message: the command whose reply it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Greeting,
    Hello,
    Mail,
    Recipient,
    Data,
    /// The first half of a message in chunks.
    Chunk,
    /// A chunk of a message that will be taken back.
    Abandoned,
    Reset,
    End,
    /// MAIL was refused for now; [`Client::retry`] sends it again.
    Refused,
    Quit,
    Gone,
}

/// What a client sends.
#[derive(Clone)]
pub struct Mail {
    /// With LF line ends, as it will be stored; no line begins with a dot.
    pub text: String,
    pub manner: Manner,
}

/// How a client sends its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Data,
    /// Sends only half of it, and goes.
    BreaksOff,
    /// In two chunks.
    Chunks,
    /// Before them, so many octets of another message in a chunk, which it takes back.
    ChunksAfterOthers(usize),
}

pub struct Client {
    pub key: usize,
    pub step: Step,
    pub mails: Vec<Mail>,
    /// Each message that was sent whole, and the reply to it.
    pub verdicts: Vec<(String, String)>,
    /// Replies to MAIL other than 250.
    pub refusals: Vec<String>,
    /// Whom each of its messages is for.
    pub recipients: Vec<String>,
    /// Those of the message under way that the server has answered, and whether it took them.
    answered: Vec<bool>,
    /// Of each message that was sent whole: a recipient that was taken, its text, and the reply that counts for them.
    pub told: Vec<(String, String, String)>,
    lmtp: bool,
    sent: String,
    pipe: Rc<RefCell<Pipe>>,
}

impl Client {
    pub fn new(mails: Vec<Mail>) -> (Self, Transport) {
        Self::to(&["b"], Dialect::Smtp, mails)
    }

    /// One whose messages are for these users at `example`.
    pub fn to(users: &[&str], dialect: Dialect, mails: Vec<Mail>) -> (Self, Transport) {
        let pipe = Rc::<RefCell<Pipe>>::default();
        let transport = Transport(Rc::clone(&pipe));
        let client = Self {
            key: 0,
            step: Step::Greeting,
            mails,
            verdicts: Vec::new(),
            refusals: Vec::new(),
            recipients: users.iter().map(|user| format!("{user}@example")).collect(),
            answered: Vec::new(),
            told: Vec::new(),
            lmtp: dialect == Dialect::Lmtp,
            sent: String::new(),
            pipe,
        };
        (client, transport)
    }

    /// The recipients of the message under way that were taken.
    fn taken(&self) -> impl Iterator<Item = &String> {
        self.recipients.iter().zip(&self.answered).filter(|(_, taken)| **taken).map(|(recipient, _)| recipient)
    }

    pub fn send(&self, octets: &str) {
        self.pipe.borrow_mut().to_server.extend(octets.as_bytes());
    }

    /// The replies since the last call.
    pub fn replies(&self) -> String {
        String::from_utf8(std::mem::take(&mut self.pipe.borrow_mut().to_client)).expect("text")
    }

    /// Whether the connection was cut.
    pub fn is_cut(&self) -> bool {
        self.pipe.borrow().closed
    }

    /// Whether the server let go of its end.
    pub fn is_let_go(&self) -> bool {
        Rc::strong_count(&self.pipe) == 1
    }

    /// Sends no more, and goes.
    pub fn hang_up(&self) {
        self.pipe.borrow_mut().closed = true;
    }

    /// Has the server find out that nobody reads its replies any more.
    pub fn break_pipe(&self) {
        self.pipe.borrow_mut().broken = true;
    }

    pub fn is_done(&self) -> bool {
        self.step == Step::Gone
    }

    /// Asks again whether a message is taken.
    pub fn retry(&mut self) -> bool {
        let refused = self.step == Step::Refused;
        if refused {
            self.mail();
        }
        refused
    }

    /// Reads the replies and answers them; whether it sent something.
    pub fn react(&mut self) -> bool {
        let replies = self.replies();
        // Lines of one reply but its last have a hyphen behind the code.
        let replies = replies.lines().filter(|line| line.as_bytes().get(3) == Some(&b' '));
        replies.map(|reply| self.answer(reply)).filter(|&sent| sent).count() > 0
    }

    fn answer(&mut self, reply: &str) -> bool {
        match (self.step, reply.get(..3).unwrap_or_default()) {
            (Step::Greeting, "220") if self.lmtp => self.next(Step::Hello, "LHLO client\r\n"),
            (Step::Greeting, "220") => self.next(Step::Hello, "EHLO client\r\n"),
            (Step::Hello, "250") => self.mail(),
            (Step::Mail, "250") => {
                self.answered.clear();
                self.next(Step::Recipient, &format!("RCPT TO:<{}>\r\n", self.recipients[0]));
            }
            (Step::Mail, _) => {
                self.refusals.push(reply.to_owned());
                self.step = Step::Refused;
                return false;
            }
            (Step::Recipient, code) if self.answered.len() + 1 < self.recipients.len() => {
                self.answered.push(code == "250");
                let next = format!("RCPT TO:<{}>\r\n", self.recipients[self.answered.len()]);
                self.next(Step::Recipient, &next);
            }
            (Step::Recipient, code) if code == "250" || self.taken().count() > 0 => {
                self.answered.push(code == "250");
                match self.mails[0].manner {
                    Manner::Data | Manner::BreaksOff => self.next(Step::Data, "DATA\r\n"),
                    Manner::Chunks => self.chunk(Step::Chunk),
                    Manner::ChunksAfterOthers(octets) => {
                        self.mails[0].manner = Manner::Chunks;
                        let others = "taken back\r\n".repeat(octets / 12);
                        self.next(Step::Abandoned, &format!("BDAT {}\r\n{others}", others.len()));
                    }
                }
            }
            // Nobody is left to send it to.
            (Step::Recipient, _) => {
                self.refusals.push(reply.to_owned());
                self.next(Step::Refused, "RSET\r\n");
            }
            (Step::Refused, "250") => return false,
            (Step::Abandoned, "250") => self.next(Step::Reset, "RSET\r\n"),
            (Step::Reset, "250") => self.mail(),
            (Step::Chunk, "250") => self.chunk(Step::End),
            (Step::Data, "354") => {
                let mail = self.mails.remove(0);
                self.sent = mail.text.clone();
                let text = mail.text.replace('\n', "\r\n");
                if mail.manner == Manner::BreaksOff {
                    self.next(Step::Gone, &text[..text.len() / 2]);
                    self.hang_up();
                } else {
                    self.next(Step::End, &text);
                    self.send(".\r\n");
                }
            }
            (Step::End, _) => {
                let taken: Vec<_> = self.taken().cloned().collect();
                let before = self.told.iter().filter(|(_, text, _)| *text == self.sent).count();
                // In LMTP each of them has a reply of its own, in order.
                let mine = if self.lmtp { &taken[before..=before] } else { &taken[..] };
                let told = mine.iter().map(|it| (it.clone(), self.sent.clone(), reply.to_owned()));
                self.told.extend(told);
                if self.lmtp && before + 1 < taken.len() {
                    return false;
                }
                self.verdicts.push((std::mem::take(&mut self.sent), reply.to_owned()));
                self.mail();
            }
            (Step::Quit | Step::Gone, _) => {
                self.step = Step::Gone;
                return false;
            }
            (step, _) => panic!("at {step:?}: {reply}"),
        }
        true
    }

    /// Sends the half of a message whose reply is waited for at `step`.
    fn chunk(&mut self, step: Step) {
        let text = self.mails[0].text.replace('\n', "\r\n");
        let (first, second) = text.split_at(text.len() / 2);
        if step == Step::Chunk {
            return self.next(step, &format!("BDAT {}\r\n{first}", first.len()));
        }
        self.sent = self.mails.remove(0).text;
        self.next(step, &format!("BDAT {} LAST\r\n{second}", second.len()));
    }

    fn mail(&mut self) {
        match self.mails.first() {
            // One that is too large does not say so, to be found out while it comes.
            Some(mail) if mail.text.len() as u64 > MESSAGE_OCTETS_MAX => {
                self.next(Step::Mail, "MAIL FROM:<a@example>\r\n")
            }
            Some(mail) => self.next(Step::Mail, &format!("MAIL FROM:<a@example> SIZE={}\r\n", mail.text.len())),
            None => self.next(Step::Quit, "QUIT\r\n"),
        }
    }

    fn next(&mut self, step: Step, line: &str) {
        self.step = step;
        self.send(line);
    }
}

/// A server on a model disk, its clients, and a clock that moves only when told.
pub struct World {
    pub disk: ModelDisk,
    pub server: Server<Transport, ModelDisk>,
    pub clients: Vec<Client>,
    pub now: Now,
    /// How much time passes while nothing happens: one of these.
    pub steps: Vec<Duration>,
    random: Random,
}

impl World {
    pub fn new(disk: &ModelDisk, min_free: MinFree, seed: u64) -> io::Result<Self> {
        Self::with(Config::default(), disk, min_free, seed)
    }

    pub fn with(config: Config, disk: &ModelDisk, min_free: MinFree, seed: u64) -> io::Result<Self> {
        Self::start(config, disk, min_free, seed, 7)
    }

    /// The process with this number: names of its files have it.
    pub fn start(mut config: Config, disk: &ModelDisk, min_free: MinFree, seed: u64, number: u64) -> io::Result<Self> {
        config.maildir = MAILDIR.into();
        config.protocol.hostname = "host".to_owned();
        config.min_free = min_free;
        let mut store = Store::open(disk.clone(), &config, number).map_err(|(_, error)| error)?;
        config.protocol.message_octets_max = MESSAGE_OCTETS_MAX;
        let now = Now { instant: Instant::now(), wall: first_wall() };
        let ends = disk.set_ends(Ends::AtOnce);
        store.recover(now).map_err(|(_, error)| error)?;
        disk.set_ends(ends);
        let recipients = Recipients::load(&config).map_err(io::Error::other)?;
        let server = Server::new(config, recipients, store, MessageIds::new(number, 7));
        let (clients, steps) = (Vec::new(), vec![Duration::from_secs(1)]);
        Ok(Self { disk: disk.clone(), server, clients, now, steps, random: Random::new(seed) })
    }

    /// A new client; its index.
    pub fn connect(&mut self, mails: Vec<Mail>) -> usize {
        self.connect_to(&["b"], Dialect::Smtp, mails)
    }

    /// A new client with mail for these users.
    pub fn connect_to(&mut self, users: &[&str], dialect: Dialect, mails: Vec<Mail>) -> usize {
        self.arrive(Peer::Local, dialect, Client::to(users, dialect, mails))
    }

    /// A client from this address, which says what it is told to; its index, and what it hears first.
    pub fn visit(&mut self, address: &str) -> (usize, String) {
        let client = self.arrive(Peer::Address(address.parse().unwrap()), Dialect::Smtp, Client::new(Vec::new()));
        let greeting = self.say(client, "");
        (client, greeting)
    }

    fn arrive(&mut self, peer: Peer, dialect: Dialect, (mut client, transport): (Client, Transport)) -> usize {
        client.key = self.server.accept(transport, peer, dialect, self.now);
        self.clients.push(client);
        self.clients.len() - 1
    }

    /// Lets time pass as the loop would: the server has its turn when it asked for it, and at the end.
    pub fn wait(&mut self, time: Duration) {
        let end = self.now.instant + time;
        while self.now.instant < end {
            let until = self.server.next_deadline(self.now.instant).max(Duration::from_millis(1));
            self.pass(until.min(end - self.now.instant));
        }
    }

    /// Has a client say something, and gives the replies, once the server waits for it again.
    pub fn say(&mut self, client: usize, octets: &str) -> String {
        self.clients[client].send(octets);
        self.mark(client);
        while self.server.is_runnable() {
            self.server.turn(self.now);
        }
        self.clients[client].replies()
    }

    /// Tells the server that a client sent something.
    pub fn mark(&mut self, client: usize) {
        let (key, ending) = (self.clients[client].key, self.clients[client].is_cut());
        self.server.mark(key, Readiness { readable: true, writable: true, ending });
    }

    /// Goes on until nobody has anything to do before a flush ends or time passes.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            for client in 0..self.clients.len() {
                if self.clients[client].react() {
                    self.mark(client);
                }
            }
            if !self.server.is_runnable() {
                return;
            }
            self.server.turn(self.now);
        }
        panic!("the server does not rest:{}", self.disk.history());
    }

    /// Lets time pass, and the server do what it does then.
    pub fn pass(&mut self, time: Duration) {
        self.now = Now { instant: self.now.instant + time, wall: self.now.wall + time };
        self.disk.set_clock(self.now.wall);
        self.server.turn(self.now);
    }

    /// Ends some flushes.
    pub fn end_flushes(&mut self, count: usize) {
        self.disk.end_flushes(count, &mut self.random);
        self.server.flushes_ended = true;
    }

    /// Has those whose message was refused for now ask again.
    pub fn retry(&mut self) {
        for client in 0..self.clients.len() {
            if self.clients[client].retry() {
                self.mark(client);
            }
        }
    }

    /// Goes on until all clients are gone, or the machine stopped.
    pub fn run(&mut self) {
        for _ in 0..1000 {
            self.settle();
            let under_way = self.disk.flushes_under_way();
            if self.disk.is_dead() || under_way == 0 && self.clients.iter().all(Client::is_done) {
                return;
            }
            if under_way > 0 && self.random.below(4) > 0 {
                let count = 1 + self.random.below(under_way);
                self.end_flushes(count);
            } else {
                let step = match self.steps[..] {
                    [step] => step,
                    ref steps => self.random.choose(steps),
                };
                self.pass(step);
                self.retry();
            }
        }
        let steps: Vec<_> = self.clients.iter().map(|client| client.step).collect();
        panic!("no end, clients are at {steps:?}:{}", self.disk.history());
    }

    /// Goes on until all that was answered is in its Maildirs, or the machine stopped.
    pub fn publish(&mut self) {
        for _ in 0..1000 {
            if self.disk.is_dead() || self.server.store.is_idle() {
                return;
            }
            self.pass(Duration::from_millis(5));
            self.end_flushes(usize::MAX);
            self.settle();
        }
        panic!("not all is published:{}", self.disk.history());
    }

    /// Every message that was sent whole, and the reply to it.
    pub fn verdicts(&self) -> impl Iterator<Item = &(String, String)> {
        self.clients.iter().flat_map(|client| &client.verdicts)
    }

    /// Every recipient of a message that was sent whole, its text, and the reply that counts for them.
    pub fn told(&self) -> impl Iterator<Item = &(String, String, String)> {
        self.clients.iter().flat_map(|client| &client.told)
    }

    /// The messages that were promised to users with a Maildir, and its number.
    pub fn promised_to_each(&self) -> Vec<Promise> {
        let users: Vec<_> = self.disk.users().iter().map(|user| format!("{user}@example")).collect();
        let promised = self.told().filter(|(_, _, reply)| reply.starts_with("250"));
        let number = |recipient| users.iter().position(|user| user == recipient).expect("one of the users");
        promised.map(|(recipient, text, _)| (number(recipient), text.clone())).collect()
    }

    /// The messages that were promised.
    pub fn promised(&self) -> Vec<String> {
        self.verdicts().filter(|(_, reply)| reply.starts_with("250")).map(|(text, _)| text.clone()).collect()
    }
}
