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
    /// As the server does it: flushes begun, their ends events.
    Delivery,
    /// The same code, flushes left out.
    Never,
    /// The same code where flushes can't be begun: each turn waits for its own.
    Blocking,
    /// What a simple server does: for each message flush the file, move it, flush the directory.
    OneByOne,
}

const WAYS: [(Way, &str); 4] = [
    (Way::OneByOne, "(b) one by one"),
    (Way::Delivery, "delivery"),
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
}

/// Messages on their way, each since when, and how long those took that ended.
struct Load {
    begun: Vec<Instant>,
    latencies: Vec<f64>,
    start: Instant,
    end: Instant,
}

impl Load {
    fn new(in_flight: usize, time: Duration) -> Self {
        let start = Instant::now();
        Self { begun: vec![start; in_flight], latencies: Vec::new(), start, end: start + time }
    }

    fn ended(&mut self, owner: usize, now: Instant) {
        self.latencies.push((now - self.begun[owner]).as_secs_f64() * 1e3);
    }

    fn sample(mut self) -> Sample {
        let rate = self.latencies.len() as f64 / self.start.elapsed().as_secs_f64();
        self.latencies.sort_by(f64::total_cmp);
        let at = |share: f64| self.latencies.get((self.latencies.len() as f64 * share) as usize).copied();
        Sample { rate, p50: at(0.5).unwrap_or(f64::NAN), p99: at(0.99).unwrap_or(f64::NAN) }
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
        "\n{:>9}  {:<22}{:>11}{:>9}{:>9}   to (b), least and most",
        "in flight", "", "messages/s", "p50 ms", "p99 ms"
    );
    for (row, in_flight) in samples.iter().zip(IN_FLIGHT) {
        for (cell, (_, name)) in row.iter().zip(WAYS) {
            let of = |what: fn(&Sample) -> f64| median(cell.iter().map(what).collect());
            let ratios: Vec<f64> = cell.iter().zip(&row[0]).map(|(it, base)| it.rate / base.rate).collect();
            let (least, most) = range(&ratios);
            println!(
                "{in_flight:>9}  {name:<22}{:>11.0}{:>9.2}{:>9.2}   {:.2} ({least:.2} to {most:.2})",
                of(|it| it.rate),
                of(|it| it.p50),
                of(|it| it.p99),
                median(ratios),
            );
        }
    }
}

fn measure(way: Way, workplace: &Workplace, in_flight: usize, time: Duration) -> Sample {
    let path = workplace.maildir();
    let sample = match way {
        Way::OneByOne => one_by_one(&path, in_flight, time),
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

/// The library's delivery, driven as the server's loop drives it: events mark, a turn takes what came in, advances all,
/// and tells what ended.
fn deliver(path: &Path, sync: SyncMode, prove: bool, in_flight: usize, time: Duration) -> Sample {
    let random = u64::from(std::process::id());
    let config = Config { maildir: path.to_owned(), min_free: MinFree::Octets(0), ..Config::default() };
    let mut store = Store::open(Disk::new(sync), &config, random).unwrap();
    if prove {
        store.prove().unwrap();
    }
    let mut ids = MessageIds::new(random, std::process::id());
    let mut poll = Poll::new().unwrap();
    let mut events = Events::with_capacity(16);
    let event = store.file_system().flush_event().map(|event| event.as_raw_fd());
    assert_eq!(event.is_some(), prove, "asynchronous flushes don't work here");
    if let Some(event) = event {
        poll.registry().register(&mut SourceFd(&event), Token(0), Interest::READABLE).unwrap();
    }
    let content = message();
    let mut load = Load::new(in_flight, time);
    let mut ready: Vec<usize> = (0..in_flight).collect();
    loop {
        // A server asks its poll each turn, also when it has something to do.
        let patience = if ready.is_empty() { None } else { Some(Duration::ZERO) };
        poll.poll(&mut events, patience).unwrap();
        let now = Now::read();
        if now.instant >= load.end {
            let sample = load.sample();
            finish(&mut store, &mut poll, &mut events);
            return sample;
        }
        for owner in ready.drain(..) {
            load.begun[owner] = now.instant;
            let key = store.begin(ids.next(now.wall), owner, [MAIN], false, now);
            store.finish(key, &content, now);
        }
        store.advance(!events.is_empty(), now);
        let ended = Instant::now();
        while let Some((owner, outcome)) = store.outcome() {
            assert_eq!(outcome, Outcome::Stored);
            load.ended(owner, ended);
            ready.push(owner);
        }
    }
}

/// Waits for the messages that are still on their way.
fn finish(store: &mut Store<Disk>, poll: &mut Poll, events: &mut Events) {
    while !store.is_idle() {
        store.advance(true, Now::read());
        while store.outcome().is_some() {}
        poll.poll(events, Some(Duration::from_millis(10))).unwrap();
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
