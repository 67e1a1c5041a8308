//! Messages a second and reply latency of the delivery, beside the same without flushes, with one flush after another,
//! and with flushes that block.
//!
//! `cargo bench --bench delivery -- [--dir DIR] [--seconds N]`
//!
//! A closed loop: as soon as a message's end is told, its owner begins the next. For an ext4 with a journal, where the
//! root has none:
//! `truncate -s 1G disk; mkfs.ext4 -q disk; mount -o loop disk /mnt; cargo bench --bench delivery -- --dir /mnt`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Options, Workplace, median, range};
use mailchute::Config;
use mailchute::delivery::{MAIN, MinFree, Now, Store};
use mailchute::fs::{Disk, SyncMode};
use mailchute::smtp::session::Outcome;
use mailchute::smtp::trace::MessageIds;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

const ROUNDS: u32 = 5;
const MESSAGE_OCTETS: usize = 1024;
const IN_FLIGHT: [usize; 4] = [1, 8, 32, 128];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As the server does it: flushes begun, their ends events; with the journal, or without.
    Journal,
    Delivery,
    /// The same code, flushes left out.
    Never,
    /// The same code where flushes can't be begun: each turn waits for its own.
    Blocking,
    /// What a simple server does: for each message flush the file, move it, flush the directory.
    OneByOne,
}

const WAYS: [(Way, &str); 5] = [
    (Way::OneByOne, "(b) one by one"),
    (Way::Journal, "delivery, --sync journal"),
    (Way::Delivery, "delivery, --sync always"),
    (Way::Blocking, "(c) blocking fallback"),
    (Way::Never, "(a) no flush"),
];

/// What one measurement found.
#[derive(Clone, Copy)]
struct Sample {
    rate: f64,
    /// Milliseconds from a message's last octet to its outcome.
    p50: f64,
    p99: f64,
    p999: f64,
    /// Milliseconds that the loop is held by a turn: 99.9 % of them less, and the longest.
    turn: f64,
    longest: f64,
}

/// Messages on their way, each since when, and how long those took that ended.
struct Load {
    begun: Vec<Instant>,
    latencies: Vec<f64>,
    turns: Vec<f64>,
    start: Instant,
    end: Instant,
}

impl Load {
    fn new(in_flight: usize, time: Duration) -> Self {
        let start = Instant::now();
        let begun = vec![start; in_flight];
        Self { begun, latencies: Vec::new(), turns: Vec::new(), start, end: start + time }
    }

    fn ended(&mut self, owner: usize, now: Instant) {
        self.latencies.push((now - self.begun[owner]).as_secs_f64() * 1e3);
    }

    fn sample(mut self) -> Sample {
        let rate = self.latencies.len() as f64 / self.start.elapsed().as_secs_f64();
        self.latencies.sort_by(f64::total_cmp);
        self.turns.sort_by(f64::total_cmp);
        let at =
            |sorted: &[f64], share| sorted.get((sorted.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN);
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| at(&self.latencies, share));
        let (turn, longest) = (at(&self.turns, 0.999), self.turns.last().copied().unwrap_or(f64::NAN));
        Sample { rate, p50, p99, p999, turn, longest }
    }
}

fn main() {
    let options = Options::read();
    let workplace = Workplace::new(&options.dir);
    let cells = ROUNDS * (IN_FLIGHT.len() * WAYS.len()) as u32;
    let time = options.time / cells;
    println!("{MESSAGE_OCTETS} octets a message, {ROUNDS} rounds, {} ms for each figure of a round", time.as_millis());
    let mut samples = vec![[const { Vec::new() }; WAYS.len()]; IN_FLIGHT.len()];
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        for (row, &in_flight) in samples.iter_mut().zip(&IN_FLIGHT) {
            for (cell, (way, _)) in row.iter_mut().zip(WAYS) {
                cell.push(measure(way, &workplace, in_flight, time));
            }
        }
    }
    println!(
        "\n{:>9}  {:<26}{:>11}{:>9}{:>9}{:>10}{:>15}{:>9}   to (b), least and most",
        "in flight", "", "messages/s", "p50 ms", "p99 ms", "p99.9 ms", "turn p99.9 ms", "longest"
    );
    for (row, in_flight) in samples.iter().zip(IN_FLIGHT) {
        for (cell, (_, name)) in row.iter().zip(WAYS) {
            let of = |what: fn(&Sample) -> f64| median(cell.iter().map(what).collect());
            let ratios: Vec<f64> = cell.iter().zip(&row[0]).map(|(it, base)| it.rate / base.rate).collect();
            let (least, most) = range(&ratios);
            println!(
                "{in_flight:>9}  {name:<26}{:>11.0}{:>9.2}{:>9.2}{:>10.2}{:>15.2}{:>9.2}   {:.2} ({least:.2} to {most:.2})",
                of(|it| it.rate),
                of(|it| it.p50),
                of(|it| it.p99),
                of(|it| it.p999),
                of(|it| it.turn),
                range(&cell.iter().map(|it| it.longest).collect::<Vec<_>>()).1,
                median(ratios),
            );
        }
    }
    print_written(&workplace);
}

fn measure(way: Way, workplace: &Workplace, in_flight: usize, time: Duration) -> Sample {
    let path = workplace.maildir();
    let sample = match way {
        Way::OneByOne => one_by_one(&path, in_flight, time),
        Way::Journal => deliver(&path, SyncMode::Journal, true, in_flight, time),
        Way::Delivery => deliver(&path, SyncMode::Always, true, in_flight, time),
        Way::Blocking => deliver(&path, SyncMode::Always, false, in_flight, time),
        Way::Never => deliver(&path, SyncMode::Never, false, in_flight, time),
    };
    workplace.clear();
    sample
}

fn message() -> Vec<u8> {
    b"all work and no play makes a line of sixty-three octets of text\n".repeat(MESSAGE_OCTETS / 64)
}

fn deliver(path: &Path, sync: SyncMode, prove: bool, in_flight: usize, time: Duration) -> Sample {
    Machine::new(path, sync, prove).run(in_flight, usize::MAX, time)
}

/// The library's delivery, driven as the server's loop drives it: events mark, a turn takes what came in, advances all,
/// and tells what ended.
struct Machine {
    store: Store<Disk>,
    ids: MessageIds,
    poll: Poll,
    events: Events,
}

impl Machine {
    fn new(path: &Path, sync: SyncMode, prove: bool) -> Self {
        let random = u64::from(std::process::id());
        let config = Config { maildir: path.to_owned(), sync, min_free: MinFree::Octets(0), ..Config::default() };
        let mut store = Store::open(Disk::new(sync), &config, random).unwrap();
        store.recover(Now::read()).unwrap();
        if prove {
            store.prove().unwrap();
        }
        let poll = Poll::new().unwrap();
        let event = store.file_system().flush_event().map(|event| event.as_raw_fd());
        assert_eq!(event.is_some(), prove, "asynchronous flushes don't work here");
        if let Some(event) = event {
            poll.registry().register(&mut SourceFd(&event), Token(0), Interest::READABLE).unwrap();
        }
        Self { store, ids: MessageIds::new(random, std::process::id()), poll, events: Events::with_capacity(16) }
    }

    /// So many messages, or as many as can be in that time, and waits for those that are still on their way.
    fn run(&mut self, in_flight: usize, messages: usize, time: Duration) -> Sample {
        let content = message();
        let mut load = Load::new(in_flight, time);
        let (mut ready, mut begun): (Vec<usize>, usize) = ((0..in_flight).collect(), 0);
        loop {
            // A server asks its poll each turn, also when it has something to do.
            let is_over = begun == messages || Instant::now() >= load.end;
            let patience = Duration::from_millis(if ready.is_empty() || is_over { 1 } else { 0 });
            self.poll.poll(&mut self.events, Some(patience)).unwrap();
            let now = Now::read();
            if is_over && load.latencies.len() == begun {
                break;
            }
            for owner in ready.drain(..).take(if is_over { 0 } else { messages - begun }) {
                load.begun[owner] = now.instant;
                let key = self.store.begin(self.ids.next(now.wall), owner, [MAIN], false, now);
                self.store.finish(key, &content, now);
                begun += 1;
            }
            self.store.advance(!self.events.is_empty(), now);
            let ended = Instant::now();
            load.turns.push((ended - now.instant).as_secs_f64() * 1e3);
            while let Some((owner, outcome)) = self.store.outcome() {
                assert_eq!(outcome, Outcome::Stored);
                load.ended(owner, ended);
                ready.push(owner);
            }
        }
        let sample = load.sample();
        while !self.store.is_idle() {
            self.store.advance(true, Now::read());
            self.poll.poll(&mut self.events, Some(Duration::from_millis(1))).unwrap();
        }
        sample
    }
}

/// KiB that the device wrote for each of so many messages, so many of them at a time; `None` where it does not tell.
fn written(path: &Path, sync: SyncMode, messages: usize, in_flight: usize) -> Option<f64> {
    let mut machine = Machine::new(path, sync, true);
    // The journal is there from the first burst on; what comes after a second of quiet is the first of another.
    machine.run(8, 400, Duration::from_secs(30));
    std::thread::sleep(Duration::from_millis(1100));
    let sectors = || {
        rustix::fs::syncfs(File::open(path).unwrap()).unwrap();
        let device = path.metadata().unwrap().dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
        stat.split_whitespace().nth(6)?.parse::<u64>().ok()
    };
    let before = sectors()?;
    machine.run(in_flight, messages, Duration::from_secs(60));
    Some((sectors()? - before) as f64 / 2.0 / messages as f64)
}

fn print_written(workplace: &Workplace) {
    println!("\nKiB written to the device for a message of {MESSAGE_OCTETS} octets, medians of {ROUNDS}");
    println!("{:>9}{:>11}{:>16}{:>16}", "messages", "in flight", "--sync always", "--sync journal");
    for (messages, in_flight) in [(1, 1), (32, 32), (1000, 1), (1000, 100)] {
        let one = |sync| {
            let rounds = (0..ROUNDS).filter_map(|_| {
                let written = written(&workplace.maildir(), sync, messages, in_flight);
                workplace.clear();
                written
            });
            let rounds: Vec<f64> = rounds.collect();
            if rounds.is_empty() { "not told".to_owned() } else { format!("{:.1}", median(rounds)) }
        };
        println!("{messages:>9}{in_flight:>11}{:>16}{:>16}", one(SyncMode::Always), one(SyncMode::Journal));
    }
}

/// One message after another; those that wait for their turn stand in a queue.
fn one_by_one(path: &Path, in_flight: usize, time: Duration) -> Sample {
    let (tmp, new) = (path.join("tmp"), path.join("new"));
    fs::create_dir_all(&tmp).unwrap();
    fs::create_dir_all(&new).unwrap();
    let directory = File::open(&new).unwrap();
    let content = message();
    let mut load = Load::new(in_flight, time);
    let mut queue: VecDeque<usize> = (0..in_flight).collect();
    for number in 0_u64.. {
        if Instant::now() >= load.end {
            break;
        }
        let owner = queue.pop_front().unwrap();
        let name = format!("{number}.P{}.bench", std::process::id());
        let mut file = File::create_new(tmp.join(&name)).unwrap();
        file.write_all(&content).unwrap();
        file.sync_data().unwrap();
        fs::rename(tmp.join(&name), new.join(&name)).unwrap();
        directory.sync_all().unwrap();
        let now = Instant::now();
        load.ended(owner, now);
        load.begun[owner] = now;
        queue.push_back(owner);
    }
    load.sample()
}
