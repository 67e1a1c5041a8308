//! Deliveries by way of the journal: the machine stops or the process is killed after every single operation, also of the
//! recovery; every operation fails; and each bit of the journal is turned over. What was promised is there exactly once.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod model;

use mailchute::Config;
use mailchute::delivery::MinFree;
use mailchute::fs::SyncMode;
use mailchute::smtp::session::Dialect;
use model::hand::{Found, Random, message};
use model::peer::{Mail, Manner, World, with_mailboxes};
use model::power_cut::{Choices, Promise, judge_each};
use model::{Ends, Kind, MAILDIR, ModelDisk};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::HashSet;
use std::time::Duration;

const BLOCK: u64 = 4096;
/// The journal of these runs: each half has two blocks of states and two of records.
const OCTETS: u64 = 8 * BLOCK;
const USERS: [&str; 3] = ["a", "b", "c"];
const MAILBOXES: [&str; 3] = ["/mail/a", "/mail/b", "/mail/c"];

fn mail(text: &str) -> Mail {
    Mail { text: text.to_owned(), manner: Manner::Data }
}

/// How a run goes.
#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    atomic_moves: bool,
    reader: bool,
    mailboxes: bool,
    dialect: Dialect,
}

impl Case {
    fn config(&self) -> Config {
        let config = if self.mailboxes { with_mailboxes() } else { Config::default() };
        Config { journal_octets: OCTETS, ..config }
    }

    fn disk(&self) -> ModelDisk {
        let disk = ModelDisk::new(Ends::Told).journaled().atomic_moves(self.atomic_moves);
        let disk = if self.mailboxes { disk.maildirs(&MAILBOXES, true) } else { disk };
        if self.reader { disk.reader(self.seed) } else { disk }
    }

    /// Whom the client with this number writes to.
    fn users(&self, client: usize) -> &'static [&'static str] {
        match client % 3 {
            _ if !self.mailboxes => &["postmaster"],
            0 => &["a"],
            1 => &USERS,
            _ => &["c", "b"],
        }
    }

    /// All messages of a run, with their Maildirs, of clients numbered from `first` on.
    fn all(&self, clients: std::ops::Range<usize>) -> Vec<Promise> {
        let of = |client: usize| {
            let places = self.users(client).iter().map(|user| place_of(user));
            places.flat_map(move |place| texts(client).into_iter().map(move |text| (place, text)))
        };
        clients.flat_map(of).collect()
    }

    fn world(&self, disk: &ModelDisk, number: u64) -> std::io::Result<World> {
        let mut world = World::start(self.config(), disk, MinFree::Usual, self.seed, number)?;
        world.steps = [1, 5, 20, 200].map(Duration::from_millis).to_vec();
        Ok(world)
    }

    fn connect(&self, world: &mut World, clients: std::ops::Range<usize>) {
        for client in clients {
            let texts = texts(client);
            world.connect_to(self.users(client), self.dialect, texts.iter().map(|text| mail(text)).collect());
        }
    }

    /// Clients send their messages at once, until all are answered; then those in the journal are published. What was
    /// promised, whenever the machine stopped.
    fn run(&self, disk: &ModelDisk, number: u64, clients: std::ops::Range<usize>) -> Result<Vec<Promise>, String> {
        let mut world = match self.world(disk, number) {
            Ok(world) => world,
            Err(_) if disk.is_dead() => return Ok(Vec::new()),
            Err(error) => return Err(format!("no start: {error}")),
        };
        self.connect(&mut world, clients);
        world.run();
        world.publish();
        Ok(world.promised_to_each())
    }
}

/// The number of a user's Maildir.
fn place_of(user: &str) -> usize {
    USERS.iter().position(|it| *it == user).map_or(0, |index| index + 1)
}

/// What the client with this number sends. One of them needs several blocks, and another goes the plain way.
fn texts(client: usize) -> Vec<String> {
    let octets = |index: usize| match (client, index) {
        (1, 2) => 6000,
        (2, 1) => 70_000,
        _ => 300 * (index % 3),
    };
    (0..8).map(|index| message(client * 10 + index, octets(index))).collect()
}

/// What is seen in all Maildirs.
fn seen(disk: &ModelDisk, mailboxes: bool) -> Vec<Vec<Found>> {
    let paths = [MAILDIR].into_iter().chain(MAILBOXES.into_iter().filter(|_| mailboxes));
    paths.map(|path| [disk.files_in(path, "new"), disk.files_in(path, "cur")].concat()).collect()
}

/// What a sweep tried.
#[derive(Default)]
struct Tried {
    moments: usize,
    states: usize,
}

/// After each start on what was left: all that was promised is there, once; also after a power cut right then, and one in
/// the middle of the recovery.
fn check_start(
    case: &Case, left: impl Fn() -> ModelDisk, promised: &[Promise], tried: &mut Tried, seed: u64,
) -> Result<(), String> {
    let all = case.all(0..4);
    let start = |disk: &ModelDisk, what: &str| {
        let started = World::start(case.config(), disk, MinFree::Usual, 0, 8);
        let world = started.map_err(|error| format!("no start {what}: {error}:{}", disk.history()))?;
        judge_each(&seen(disk, case.mailboxes), promised, &all)
            .map_err(|error| format!("{error}, {what}:{}", disk.history()))?;
        let least = disk.crash(&mut Choices::default());
        judge_each(&least, promised, &all)
            .map_err(|error| format!("{error}, after a power cut {what}:{}", disk.history()))?;
        if let Some(violation) = disk.violations().first() {
            return Err(format!("{violation}, {what}:{}", disk.history()));
        }
        Ok::<_, String>(world)
    };
    let disk = left();
    drop(start(&disk, "at the next start")?);
    tried.states += 1;
    let (operations, mut random) = (disk.operations().len(), Random::new(seed));
    for draw in 0..2 {
        let moment = random.below(operations);
        let stopped = left().crash_after(moment);
        let _ = World::start(case.config(), &stopped, MinFree::Usual, 0, 8);
        let choices = || if draw == 0 { Choices::default() } else { Choices::drawn(seed) };
        let what = format!("after a power cut behind operation {moment} of the recovery");
        let again = stopped.restarted(&mut choices(), Ends::AtOnce);
        start(&again, &what).map_err(|error| format!("{error}\nwhich was{}", stopped.history()))?;
        start(&stopped.killed(), &what.replace("power cut", "kill"))?;
        tried.states += 2;
    }
    Ok(())
}

/// The machine stops, or the process is killed, after each operation of a run.
fn sweep(case: &Case, draws: u64) -> Result<Tried, String> {
    let (mut tried, all) = (Tried::default(), case.all(0..4));
    for moment in 0.. {
        let disk = case.disk().crash_after(moment);
        let promised = case.run(&disk, 7, 0..4)?;
        tried.moments += 1;
        let told = |error: String| format!("{error}\nfirst, after operation {moment}:{}", disk.history());
        if let Some(early) = disk.seen_too_early() {
            return Err(told(early));
        }
        judge_each(&seen(&disk, case.mailboxes), &[], &all).map_err(told)?;
        for draw in 0..draws {
            let choices = || match draw {
                0 => Choices::default(),
                _ => Choices::drawn(moment as u64 * 1000 + draw),
            };
            judge_each(&disk.crash(&mut choices()), &[], &all).map_err(told)?;
            let left = || disk.restarted(&mut choices(), Ends::AtOnce);
            check_start(case, left, &promised, &mut tried, draw)
                .map_err(|error| told(format!("{error}\nthe power was cut, draw {draw}")))?;
        }
        check_start(case, || disk.killed(), &promised, &mut tried, moment as u64)
            .map_err(|error| told(format!("{error}\nthe process was killed")))?;
        // The journal of the killed process goes on with another, until the power is cut.
        for draw in 0..2 {
            let next = disk.killed().crash_after(Random::new(moment as u64 * 2 + draw).below(240));
            next.set_ends(Ends::Told);
            let promised = [promised.clone(), case.run(&next, 8, 4..6).map_err(told)?].concat();
            let mut choices = if draw == 0 { Choices::default() } else { Choices::drawn(moment as u64) };
            let left = next.restarted(&mut choices, Ends::AtOnce);
            World::start(case.config(), &left, MinFree::Usual, 0, 9).map_err(|error| told(error.to_string()))?;
            judge_each(&seen(&left, case.mailboxes), &promised, &case.all(0..6))
                .map_err(|error| told(format!("{error}, after a kill and a power cut:{}", next.history())))?;
            tried.states += 1;
        }
        if !disk.is_dead() {
            let halves: Vec<bool> = disk.groups().iter().map(|&at| at as u64 >= OCTETS / 2).collect();
            let switches = halves.windows(2).filter(|pair| pair[0] != pair[1]).count();
            if switches < 2 {
                return Err(format!("the halves of the journal are not used: {:?}", disk.groups()));
            }
            if promised.len() != all.len() {
                return Err(format!("{} of {} promised", promised.len(), all.len()));
            }
            return disk.violations().first().map_or(Ok(tried), |violation| Err(violation.clone()));
        }
    }
    unreachable!()
}

fn sweep_all(name: &str, cases: impl Iterator<Item = Case>, draws: u64) {
    let (mut moments, mut states) = (0, 0);
    for case in cases {
        match sweep(&case, draws) {
            Ok(tried) => (moments, states) = (moments + tried.moments, states + tried.states),
            Err(error) => panic!("{case:?}: {error}"),
        }
    }
    println!("{name}: {moments} moments of a power cut or kill, {states} starts after it");
}

fn cases(mailboxes: bool, dialect: Dialect) -> impl Iterator<Item = Case> {
    let case =
        move |bits: u64| Case { seed: bits, atomic_moves: bits & 1 == 0, reader: bits & 2 != 0, mailboxes, dialect };
    (0..4).map(case)
}

#[test]
fn neither_power_cuts_nor_kills_lose_or_double_what_was_answered() {
    sweep_all("one Maildir", cases(false, Dialect::Smtp), 3);
}

#[test]
fn nor_where_messages_go_to_several_mailboxes() {
    sweep_all("several mailboxes", cases(true, Dialect::Smtp).skip(3), 3);
}

#[test]
fn nor_what_lmtp_promised_to_each() {
    sweep_all("LMTP", cases(true, Dialect::Lmtp).skip(2).take(1), 3);
}

/// The names of all files in the Maildirs, without what a reader added.
fn names(disk: &ModelDisk, mailboxes: bool) -> HashSet<String> {
    let found = seen(disk, mailboxes).into_iter().flatten();
    found.map(|file| file.name.strip_suffix(":2,S").unwrap_or(&file.name).to_owned()).collect()
}

/// A reader deletes all there is.
fn delete_all(disk: &ModelDisk) {
    for directory in ["new", "cur"] {
        for file in disk.files(directory) {
            disk.delete(MAILDIR, directory, &file.name);
        }
    }
}

/// Of what a reader deleted a kill brings back at most the messages that were published since the last mark, and a power
/// cut those since the last one that was flushed.
#[test]
fn what_a_reader_deleted_comes_back_only_without_a_mark() {
    for case in cases(false, Dialect::Smtp).filter(|case| !case.reader) {
        let mut seen_at: Vec<HashSet<String>> = Vec::new();
        let (mut killed_back, mut cut_back) = (0, 0);
        for moment in 0.. {
            let disk = case.disk().crash_after(moment);
            case.run(&disk, 7, 0..4).unwrap();
            seen_at.push(names(&disk, false));
            let log = disk.log();
            let is_mark = |at: &usize| log[*at].0 == Kind::WriteAt && log[*at].1.starts_with("48 ");
            // Marks of both halves are written one behind the other; the last of them may not be there yet.
            let end = |of: usize| (0..of).rev().skip_while(is_mark).find(is_mark).map_or(0, |at| at + 1);
            let marked = if log.last().is_some_and(|(kind, _)| *kind == Kind::WriteAt) {
                end(log.len())
            } else {
                (0..log.len()).rev().find(is_mark).map_or(0, |at| at + 1)
            };
            let ended = (0..log.len()).rev().find(|&at| log[at].0 == Kind::EndJournalFlush);
            let is_begin = |at: &usize| log[*at].0 == Kind::BeginFlush && log[*at].1.ends_with(&u64::MAX.to_string());
            let begun = ended.and_then(|ended| (0..ended).rev().find(is_begin)).unwrap_or(0);
            let flushed = end(begun);
            for draw in 0..4 {
                let (left, since) = match draw {
                    0 => (disk.killed(), marked),
                    1 => (disk.restarted(&mut Choices::default(), Ends::AtOnce), flushed),
                    _ => (disk.restarted(&mut Choices::drawn((moment * 10 + draw) as u64), Ends::AtOnce), flushed),
                };
                let there = names(&left, false);
                delete_all(&left);
                World::start(case.config(), &left, MinFree::Usual, 0, 8).unwrap();
                let back: Vec<_> = names(&left, false).intersection(&there).cloned().collect();
                *(if draw == 0 { &mut killed_back } else { &mut cut_back }) += back.len();
                let marked = back.iter().find(|name| seen_at[since].contains(*name));
                assert_eq!(marked, None, "draw {draw}, marked after operation {since} of {moment}:{}", disk.history());
            }
            if !disk.is_dead() {
                break;
            }
        }
        assert!(killed_back > 0 && cut_back > 0, "none came back, so that this shows nothing");
    }
}

#[test]
fn a_clean_end_leaves_nothing_to_come_back() {
    for case in cases(false, Dialect::Smtp) {
        let disk = case.disk();
        let mut world = case.world(&disk, 7).unwrap();
        case.connect(&mut world, 0..4);
        world.run();
        world.publish();
        world.server.abort();
        world.server.store.close();
        drop(world);
        assert!(disk.groups().len() > 3);
        for seed in 0..20 {
            let left = disk.restarted(&mut Choices::drawn(seed), Ends::AtOnce);
            delete_all(&left);
            World::start(case.config(), &left, MinFree::Usual, 0, 8).unwrap();
            assert_eq!(names(&left, false), HashSet::new());
        }
    }
}

/// When there is no time to publish what was answered the journal keeps it.
#[test]
fn an_end_in_a_hurry_loses_nothing() {
    for case in cases(false, Dialect::Smtp) {
        let (mut left_behind, mut random) = (0, Random::new(case.seed));
        for turns in 0..60 {
            let disk = case.disk();
            let mut world = case.world(&disk, 7).unwrap();
            case.connect(&mut world, 0..4);
            for _ in 0..turns {
                world.settle();
                world.end_flushes(1 + random.below(3));
                world.pass(Duration::from_millis(1));
            }
            let promised = world.promised_to_each();
            world.server.drain();
            world.server.abort();
            world.server.store.close();
            drop(world);
            let there = seen(&disk, false);
            left_behind += promised.len().saturating_sub(there[0].len());
            for draw in 0..4 {
                let left =
                    if draw == 0 { disk.killed() } else { disk.restarted(&mut Choices::drawn(draw), Ends::AtOnce) };
                World::start(case.config(), &left, MinFree::Usual, 0, 8).unwrap();
                judge_each(&seen(&left, false), &promised, &case.all(0..4))
                    .unwrap_or_else(|error| panic!("{turns} turns: {error}:{}", disk.history()));
            }
        }
        assert!(left_behind > 0, "nothing was left to be published");
    }
}

/// What must be true after a run in which something failed, and once all is well again.
fn check_faulty(case: &Case, world: &mut World, tidy: bool) -> Result<(), String> {
    let (all, disk) = (case.all(0..5), world.disk.clone());
    let judge = |files: &[Vec<Found>], promised: &[Promise]| match judge_each(files, promised, &all) {
        // What could not be removed from new/ after a failed flush may be there for a while beside what took its place.
        Err(error) if !tidy && error.contains("there twice") => Ok(()),
        judged => judged,
    };
    let check = |world: &World, when: &str| {
        let promised = world.promised_to_each();
        let told = |error: String| format!("{error}, {when}");
        let there = seen(&disk, case.mailboxes);
        judge(&there, &[]).map_err(told)?;
        let refused = world.told().find(|(recipient, text, reply)| {
            let place = place_of(recipient.trim_end_matches("@example"));
            let is_there = || there[place].iter().any(|file| file.octets.ends_with(text.as_bytes()));
            tidy && !reply.starts_with("250") && is_there()
        });
        if let Some((_, text, reply)) = refused {
            return Err(format!("refused by {reply:?} and there, {when}: {:?}", text.lines().nth(1)));
        }
        for draw in 0..3 {
            let left = match draw {
                0 => disk.killed(),
                _ => disk.restarted(&mut Choices::drawn(draw), Ends::AtOnce),
            };
            left.heal();
            World::start(case.config(), &left, MinFree::Usual, 0, 8)
                .map_err(|error| format!("no start {when}, draw {draw}: {error}"))?;
            judge(&seen(&left, case.mailboxes), &promised)
                .map_err(|error| format!("{error}, {when} and a new start, draw {draw}"))?;
        }
        Ok::<_, String>(promised)
    };
    check(world, "after the fault")?;
    disk.heal();
    world.pass(Duration::from_secs(62));
    world.publish();
    // Another journal is made after a rest.
    world.pass(Duration::from_secs(11));
    let promised = check(world, "when the disk was well again")?;
    judge(&seen(&disk, case.mailboxes), &promised)?;
    // Mail is taken, and by way of a journal.
    let groups = disk.groups().len();
    case.connect(world, 4..5);
    world.run();
    world.publish();
    let promised = check(world, "at the end")?;
    judge(&seen(&disk, case.mailboxes), &promised)?;
    let last = case.all(4..5);
    if let Some((_, text)) = last.iter().find(|&promise| !promised.contains(promise)) {
        return Err(format!("refused for ever: {:?}", text.lines().nth(1)));
    }
    if disk.groups().len() == groups {
        return Err("there is no journal any more".to_owned());
    }
    let maildirs = [MAILDIR].into_iter().chain(MAILBOXES.into_iter().filter(|_| case.mailboxes));
    let tmp: usize = maildirs.map(|path| disk.files_in(path, "tmp").len()).sum();
    if tidy && tmp > 0 {
        return Err(format!("{tmp} files are left in tmp/"));
    }
    // The three of the main Maildir, and the journal; one more where that was opened again.
    if !(4..=5).contains(&disk.open_descriptors()) {
        return Err(format!("{} descriptors are open", disk.open_descriptors()));
    }
    disk.violations().first().map_or(Ok(()), |violation| Err(violation.clone()))
}

/// Every operation fails, once or for a while.
#[test]
fn no_error_loses_what_was_answered_nor_delivers_what_was_refused() {
    let (mut runs, mut refusals) = (0, 0);
    let lmtp = Case { reader: false, ..cases(true, Dialect::Lmtp).nth(1).unwrap() };
    for case in cases(false, Dialect::Smtp).filter(|case| !case.reader).chain([lmtp]) {
        let plain = case.disk();
        case.run(&plain, 7, 0..4).unwrap();
        for (index, kind) in plain.operations().into_iter().enumerate() {
            for (errno, count) in [(Errno::IO, 1), (Errno::NOSPC, 1), (Errno::IO, 30), (Errno::NOSPC, 30)] {
                // The begin of a flush does not fail. Long failures differ little from those that begin close to them.
                if kind == Kind::BeginFlush && count == 1 || count > 1 && index % 5 > 0 {
                    continue;
                }
                let disk = case.disk();
                disk.fail(index + 1, count, errno);
                let Ok(mut world) = case.world(&disk, 7) else { continue };
                case.connect(&mut world, 0..4);
                world.run();
                runs += 1;
                refusals += world.told().filter(|(_, _, reply)| !reply.starts_with("250")).count();
                let tidy = count == 1 && kind != Kind::Remove;
                check_faulty(&case, &mut world, tidy).unwrap_or_else(|error| {
                    panic!(
                        "{case:?}, operation {} ({kind:?}) fails {count} times, {errno:?}: {error}:{}",
                        index + 1,
                        disk.history()
                    )
                });
            }
        }
    }
    println!("{runs} runs with a fault, {refusals} messages refused");
    assert!(refusals > 100, "nothing was refused");
}

thread_local! {
    static WARNINGS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Keeps what is logged as a warning or worse, for each thread.
struct Warnings;

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            WARNINGS.with_borrow_mut(|warnings| warnings.push(record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

/// What was logged since the last call; from the first on it is kept.
fn warnings() -> Vec<String> {
    if log::set_logger(&Warnings).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
    WARNINGS.take()
}

/// A record of a journal, as its documentation has it.
#[derive(Clone, Debug)]
struct Record {
    at: usize,
    octets: usize,
    published: bool,
    /// The unique name.
    name: String,
}

/// Reads a journal in which nothing is damaged, by its documentation.
fn records(journal: &[u8]) -> Vec<Record> {
    let number = |at: usize| u64::from_le_bytes(journal[at..at + 8].try_into().unwrap());
    let mut records = Vec::new();
    let half = journal.len() / 2;
    for base in [0, half] {
        let states = [base, base + BLOCK as usize].map(|at| (number(at + 16), number(at + 24)));
        let (generation, published) = states.into_iter().max().unwrap();
        let mut at = base + 2 * BLOCK as usize;
        while generation > 0 && at < base + half {
            if number(at + 8) != generation {
                at = (at / BLOCK as usize + 1) * BLOCK as usize;
                continue;
            }
            let octets = (number(at + 24) & 0xffff_ffff) as usize;
            let names = &journal[at + 32..];
            let name = names.split(|octet| *octet == 0).next().unwrap();
            records.push(Record {
                at,
                octets,
                published: number(at + 16) < published,
                name: String::from_utf8(name.to_vec()).unwrap(),
            });
            at += octets.next_multiple_of(32);
        }
    }
    records
}

fn journal_path(case: &Case) -> String {
    format!("{}/.mailchute-journal.0", if case.mailboxes { "/mail" } else { MAILDIR })
}

/// A process killed when many messages were answered and not published, and what was promised.
fn killed_full(case: &Case) -> (ModelDisk, Vec<Promise>) {
    let mut fullest = (0, None);
    for moment in (0..).step_by(3) {
        let disk = case.disk().crash_after(moment);
        let promised = case.run(&disk, 7, 0..4).unwrap();
        if !disk.is_dead() {
            break;
        }
        let waiting = disk.octets(&journal_path(case)).map_or(0, |journal| {
            let there = names(&disk, case.mailboxes);
            let is_there = |record: &&Record| !there.iter().any(|name| name.starts_with(&record.name));
            records_if_ready(&journal).iter().filter(|record| !record.published).filter(is_there).count()
        });
        if waiting > fullest.0 {
            fullest = (waiting, Some((disk, promised)));
        }
    }
    assert!(fullest.0 >= 4, "only {} are not published", fullest.0);
    fullest.1.unwrap()
}

fn records_if_ready(journal: &[u8]) -> Vec<Record> {
    if journal.len() as u64 == OCTETS { records(journal) } else { Vec::new() }
}

/// One bit of each octet of the journal is turned over: all is delivered but what that octet is a part of, and that is named.
#[test]
fn a_bit_that_is_turned_over_costs_one_message_at_most_and_is_named() {
    let case = cases(false, Dialect::Smtp).next().unwrap();
    let (disk, _) = killed_full(&case);
    let path = journal_path(&case);
    let journal = disk.octets(&path).unwrap();
    let (records, there) = (records(&journal), names(&disk, false));
    let is_there = |names: &HashSet<String>, record: &Record| names.iter().any(|name| name.starts_with(&record.name));
    let waiting: Vec<_> = records.iter().filter(|record| !record.published && !is_there(&there, record)).collect();
    let (mut damaged, mut lost, mut random) = (0, 0, Random::new(1));
    warnings();
    for at in 0..journal.len() {
        let hit = records.iter().find(|record| (record.at..record.at + record.octets).contains(&at));
        // What is empty is alike everywhere.
        if hit.is_none() && journal[at] == 0 && at % 7 != 0 {
            continue;
        }
        let left = disk.killed();
        left.alter(&path, |octets| octets[at] ^= 1 << random.below(8));
        World::start(case.config(), &left, MinFree::Usual, 0, 8).unwrap_or_else(|error| panic!("octet {at}: {error}"));
        let (named, there) = (warnings(), names(&left, false));
        let missing: Vec<_> = waiting.iter().filter(|record| !is_there(&there, record)).collect();
        let expected = waiting.iter().filter(|record| hit.is_some_and(|hit| hit.at == record.at)).count();
        assert_eq!(missing.len(), expected, "octet {at}, in {hit:?}: {missing:?}, {named:?}");
        for record in &missing {
            assert_eq!(hit.map(|hit| hit.at), Some(record.at), "octet {at} costs another");
        }
        lost += missing.len();
        if hit.is_some_and(|hit| waiting.iter().any(|record| record.at == hit.at)) {
            assert!(named.iter().any(|line| line.contains("damaged")), "octet {at} of {hit:?}: {named:?}");
            damaged += 1;
        }
        judge_each(&seen(&left, false), &[], &case.all(0..4)).unwrap_or_else(|error| panic!("octet {at}: {error}"));
    }
    println!("{} records wait, {damaged} octets of them damaged, each costs its message ({lost})", waiting.len());
    assert!(damaged > 1000);
}

/// What is left of an older lap is not taken for damage, whatever its octets look like: a line end and the zeros behind a
/// record are a small number, as those of generations would be if they began with 1.
#[test]
fn the_end_of_an_old_record_is_no_damage() {
    for rounds in 1..8 {
        let mut disk = one_maildir().disk();
        let mut world = ready(&one_maildir(), &disk);
        for round in 0..rounds {
            for client in 0..12 {
                let text = "x".repeat(12 * round + client);
                world.connect(vec![mail(&format!("Return-Path: <{text}>\nSubject: one\n\n"))]);
            }
            world.run();
        }
        world.publish();
        warnings();
        for number in 8..16 {
            disk = disk.killed();
            drop(case_world(&disk, number));
            assert_eq!(warnings(), [] as [String; 0], "after {rounds} rounds, at start {number}");
        }
    }
}

/// One that is not understood is left as it is, and so is all else.
#[test]
fn a_journal_of_another_version_ends_the_start() {
    for case in [cases(false, Dialect::Smtp).next().unwrap(), cases(true, Dialect::Lmtp).next().unwrap()] {
        let (disk, promised) = killed_full(&case);
        let path = journal_path(&case);
        let version = |disk: &ModelDisk, digit: u8| {
            disk.alter(&path, |octets| {
                for at in [0, 1, 4, 5].map(|block| block * BLOCK as usize + 14) {
                    octets[at] = digit;
                }
            });
        };
        let left = disk.killed();
        version(&left, b'2');
        let (before, there) = (left.octets(&path).unwrap(), names(&left, case.mailboxes));
        let error = World::start(case.config(), &left, MinFree::Usual, 0, 8).err().expect("no start");
        assert!(error.to_string().contains("version"), "{error}");
        assert_eq!((left.octets(&path).unwrap(), names(&left, case.mailboxes)), (before, there));
        // Its own program understands it.
        version(&left, b'1');
        World::start(case.config(), &left.killed(), MinFree::Usual, 0, 8).unwrap();
        let left = left.killed();
        World::start(case.config(), &left, MinFree::Usual, 0, 8).unwrap();
        judge_each(&seen(&left, case.mailboxes), &promised, &case.all(0..4)).unwrap();
    }
}

/// Every operation of a recovery fails, once or from then on; then it is tried again.
#[test]
fn no_error_in_a_recovery_loses_or_doubles_anything() {
    let mut runs = 0;
    let one = cases(false, Dialect::Smtp).next().unwrap();
    let others = [cases(true, Dialect::Smtp).next().unwrap(), cases(true, Dialect::Lmtp).next().unwrap()];
    for case in [one].into_iter().chain(others) {
        let (disk, promised) = killed_full(&case);
        // A reader has moved some of what the killed process had published.
        let full = || {
            let left = disk.killed();
            for (number, path) in
                [MAILDIR].into_iter().chain(MAILBOXES.into_iter().filter(|_| case.mailboxes)).enumerate()
            {
                left.files_in(path, "new")
                    .iter()
                    .skip(number % 2)
                    .step_by(2)
                    .for_each(|file| left.read(path, &file.name));
            }
            left
        };
        let plain = full();
        World::start(case.config(), &plain, MinFree::Usual, 0, 8).unwrap();
        for (index, kind) in plain.operations().into_iter().enumerate() {
            // Two in a row may be both states of a half.
            for (errno, count) in
                [(Errno::IO, 1), (Errno::NOSPC, 1), (Errno::MFILE, 1), (Errno::IO, 2), (Errno::NOSPC, 1000)]
            {
                if count == 2 && kind != Kind::ReadAt {
                    continue;
                }
                runs += 1;
                let told = |error: String| {
                    format!(
                        "{case:?}: operation {} ({kind:?}) of the recovery fails {count} times, {errno:?}: {error}",
                        index + 1
                    )
                };
                let left = full();
                left.fail(index + 1, count, errno);
                warnings();
                let started = World::start(case.config(), &left, MinFree::Usual, 0, 8);
                left.heal();
                let what = started.as_ref().err().map_or("a start".to_owned(), |error| format!("no start: {error}"));
                let there = seen(&left, case.mailboxes);
                judge_each(&there, &[], &case.all(0..4))
                    .unwrap_or_else(|error| panic!("{}, {what}:{}", told(error), left.history()));
                // It may go on, or end as well, or the power is cut.
                if let Ok(mut world) = started {
                    world.steps = vec![Duration::from_millis(5)];
                    left.set_ends(Ends::Told);
                    case.connect(&mut world, 4..5);
                    world.run();
                    world.publish();
                    let mut promised = [&promised[..], &world.promised_to_each()].concat();
                    if kind == Kind::ReadAt && warnings().iter().any(|line| line.contains("is damaged")) {
                        // A block that can't be read is named and passed over.
                        let found = seen(&left, case.mailboxes);
                        let is_there = |(place, text): &Promise| {
                            found[*place].iter().any(|file| file.octets.ends_with(text.as_bytes()))
                        };
                        promised.retain(is_there);
                    }
                    let again = left.killed();
                    World::start(case.config(), &again, MinFree::Usual, 0, 9)
                        .unwrap_or_else(|error| panic!("{}", told(error.to_string())));
                    judge_each(&seen(&again, case.mailboxes), &promised, &case.all(0..5))
                        .unwrap_or_else(|error| panic!("{}, and went on:{}", told(error), left.history()));
                } else {
                    for draw in 0..3 {
                        let again = if draw == 0 {
                            left.killed()
                        } else {
                            left.restarted(&mut Choices::drawn(draw), Ends::AtOnce)
                        };
                        World::start(case.config(), &again, MinFree::Usual, 0, 9)
                            .unwrap_or_else(|error| panic!("{}", told(error.to_string())));
                        judge_each(&seen(&again, case.mailboxes), &promised, &case.all(0..4))
                            .unwrap_or_else(|error| panic!("{}, draw {draw}:{}", told(error), left.history()));
                    }
                }
            }
        }
    }
    println!("{runs} recoveries with a fault");
}

/// A server that has a journal and waits for mail.
fn ready(case: &Case, disk: &ModelDisk) -> World {
    let mut world = case.world(disk, 7).unwrap();
    world.steps = vec![Duration::from_millis(5)];
    world.connect(["first", "second"].map(mail_of).to_vec());
    world.run();
    world.publish();
    assert_eq!(disk.groups(), [] as [usize; 0]);
    world
}

fn mail_of(name: &str) -> Mail {
    mail(&format!("Return-Path: <{name}>\nSubject: {name}\n\n"))
}

/// Sends one message; the reply to it, or to MAIL.
fn send(world: &mut World, name: &str) -> String {
    let client = world.connect(vec![mail_of(name)]);
    for _ in 0..5 {
        world.settle();
        world.end_flushes(usize::MAX);
    }
    let client = &world.clients[client];
    let told = client.verdicts.first().map(|(_, reply)| reply).or(client.refusals.first());
    told.unwrap_or_else(|| panic!("no reply to {name}:{}", world.disk.history())).clone()
}

fn subjects(disk: &ModelDisk) -> Vec<String> {
    let files = [disk.files("new"), disk.files("cur")].concat();
    let subject = |file: &Found| {
        let text = String::from_utf8(file.octets.to_vec()).unwrap();
        text.split_once("\nSubject: ").unwrap().1.lines().next().unwrap().to_owned()
    };
    let mut subjects: Vec<_> = files.iter().map(subject).collect();
    subjects.sort();
    subjects
}

fn one_maildir() -> Case {
    cases(false, Dialect::Smtp).next().unwrap()
}

#[test]
fn a_lone_message_is_written_once() {
    let disk = one_maildir().disk();
    let mut world = one_maildir().world(&disk, 7).unwrap();
    world.steps = vec![Duration::from_millis(5)];
    for number in 0..5 {
        assert!(send(&mut world, &number.to_string()).starts_with("250"));
        world.wait(Duration::from_millis(1001));
    }
    assert_eq!((disk.count(Kind::OpenJournal), disk.count(Kind::WriteAt)), (0, 0));
    assert_eq!(subjects(&disk), ["0", "1", "2", "3", "4"]);
}

/// Nothing is written twice, and soon after the last message all is in its Maildir, without anybody's doing.
#[test]
fn what_was_answered_is_published_in_time() {
    let disk = one_maildir().disk();
    let mut world = ready(&one_maildir(), &disk);
    assert!(send(&mut world, "alone").starts_with("250"));
    let groups = disk.groups().len();
    assert_eq!((groups, subjects(&disk).len()), (1, 2));
    // Polls for as long as the server says.
    let end = world.now.instant + Duration::from_millis(5);
    while world.now.instant < end {
        let patience = world.server.next_deadline(world.now.instant);
        assert!(world.now.instant + patience <= end, "{patience:?}");
        world.pass(patience);
    }
    (0..4).for_each(|_| {
        world.end_flushes(usize::MAX);
        world.settle();
    });
    assert_eq!(subjects(&disk), ["alone", "first", "second"]);
    // Under load, too, with no pause, and while there is room for more.
    let (case, disk) = (one_maildir(), one_maildir().disk());
    let config = Config { journal_octets: 300 * BLOCK, ..case.config() };
    let mut world = World::start(config, &disk, MinFree::Usual, 0, 7).unwrap();
    for number in 0..100 {
        assert!(send(&mut world, &format!("{number:02}")).starts_with("250"));
        world.pass(Duration::from_millis(4));
        if number == 60 {
            assert!(disk.groups().len() > 40 && subjects(&disk).len() > 10, "nothing for 240 ms");
        }
    }
    world.publish();
    assert_eq!(subjects(&disk).len(), 100);
}

#[test]
fn what_can_not_be_published_waits_in_the_journal_and_nobody_else_is_taken() {
    let failures = [
        (Kind::EndFileFlush, Errno::NOSPC),
        (Kind::EndDirectoryFlush, Errno::NOSPC),
        (Kind::Rename, Errno::NOSPC),
        (Kind::Rename, Errno::DQUOT),
        (Kind::EndFileFlush, Errno::IO),
        (Kind::Rename, Errno::IO),
    ];
    for (kind, errno) in failures {
        let disk = one_maildir().disk();
        let mut world = ready(&one_maildir(), &disk);
        assert!(send(&mut world, "answered").starts_with("250"));
        disk.fail_next(kind, usize::MAX, errno);
        for turn in 0..30 {
            world.pass(Duration::from_millis(350));
            (0..4).for_each(|_| {
                world.end_flushes(usize::MAX);
                world.settle();
            });
            assert_eq!(subjects(&disk), ["first", "second"], "{kind:?}");
            if turn > 2 && errno != Errno::IO {
                // An answer about room where room is what lacks, unless even the flushes of a probe fail.
                let reply = send(&mut world, &format!("refused {turn}"));
                let expected = if kind == Kind::Rename { "452 4.3.1" } else { "45" };
                assert!(reply.starts_with(expected), "{kind:?}, {errno:?}: {reply}");
            }
        }
        for draw in 0..4 {
            let left = if draw == 0 { disk.killed() } else { disk.restarted(&mut Choices::drawn(draw), Ends::AtOnce) };
            World::start(one_maildir().config(), &left, MinFree::Usual, 0, 8).unwrap();
            assert_eq!(subjects(&left), ["answered", "first", "second"], "{kind:?}");
        }
        disk.heal();
        // Nobody need come for that.
        world.wait(Duration::from_secs(2));
        world.publish();
        assert_eq!(subjects(&disk), ["answered", "first", "second"], "{kind:?}");
        // Where a flush failed the first who asks has the disk tried again.
        let later = (0..3).any(|_| {
            world.pass(Duration::from_secs(1));
            send(&mut world, "later").starts_with("250")
        });
        assert!(later, "{kind:?}, {errno:?}: refused for ever");
    }
}

#[test]
fn a_journal_that_fails_refuses_its_group_and_gives_way_to_another() {
    for (kind, errno, reply) in [
        (Kind::EndJournalFlush, Errno::IO, "451 4.3.0"),
        (Kind::WriteAt, Errno::IO, "451 4.3.0"),
        (Kind::EndJournalFlush, Errno::NOSPC, "45"),
    ] {
        let disk = one_maildir().disk();
        let mut world = ready(&one_maildir(), &disk);
        assert!(send(&mut world, "answered").starts_with("250"));
        disk.fail_next(kind, 1, errno);
        let refused = send(&mut world, "refused");
        assert!(refused.starts_with(reply), "{kind:?}: {refused}");
        // What comes now is as safe as without one.
        assert!(send(&mut world, "plain").starts_with("250"), "{kind:?}");
        assert!(subjects(&disk).contains(&"plain".to_owned()), "{kind:?}");
        world.publish();
        assert_eq!(subjects(&disk), ["answered", "first", "plain", "second"], "{kind:?}");
        assert!(!disk.exists(&journal_path(&one_maildir())), "{kind:?}: it is still there");
        let groups = disk.groups().len();
        world.wait(Duration::from_secs(11));
        for number in 0..4 {
            assert!(send(&mut world, &format!("z{number}")).starts_with("250"));
        }
        world.publish();
        assert!(disk.groups().len() > groups && disk.exists(&journal_path(&one_maildir())), "{kind:?}: no other one");
        assert_eq!(subjects(&disk).len(), 8);
        assert_eq!(disk.violations(), [] as [String; 0]);
    }
}

/// No mailbox is at fault when the journal fails.
#[test]
fn a_journal_that_fails_keeps_nobody_from_a_mailbox() {
    let case = cases(true, Dialect::Smtp).next().unwrap();
    let disk = case.disk();
    let mut world = case.world(&disk, 7).unwrap();
    let mut deliver = |users: &[&str], name: &str| {
        let client = world.connect_to(users, Dialect::Smtp, vec![mail_of(name)]);
        for _ in 0..6 {
            world.settle();
            world.end_flushes(usize::MAX);
        }
        let client = &world.clients[client];
        client.verdicts.first().map(|(_, reply)| reply).or(client.refusals.first()).cloned().unwrap_or_default()
    };
    for name in ["1", "2", "3"] {
        assert!(deliver(&["a", "b"], name).starts_with("250"));
    }
    disk.fail_next(Kind::EndJournalFlush, 1, Errno::IO);
    assert!(deliver(&["a", "b"], "refused").starts_with("451 4.3.0"));
    for user in ["a", "b"] {
        let reply = deliver(&[user], user);
        assert!(reply.starts_with("250"), "{user}: {reply}");
    }
}

/// A directory flush that fails while the journal is made may lose its name, and no later flush tells.
#[test]
fn a_journal_whose_name_may_be_lost_takes_nothing() {
    let mut journaled = 0;
    for count in 1..=9 {
        let (case, disk) = (one_maildir(), one_maildir().disk());
        let config = Config { journal_octets: 50 * BLOCK, ..case.config() };
        let mut world = World::start(config.clone(), &disk, MinFree::Usual, 0, 7).unwrap();
        disk.fail_next(Kind::EndDirectoryFlush, count, Errno::IO);
        let mut answered = Vec::new();
        for number in 0..60 {
            let name = format!("{number:02}");
            answered.extend(send(&mut world, &name).starts_with("250").then_some(name));
            world.pass(Duration::from_millis(300));
            let left = disk.restarted(&mut Choices::default(), Ends::AtOnce);
            World::start(config.clone(), &left, MinFree::Usual, 0, 8).unwrap();
            let there = subjects(&left);
            assert!(answered.iter().all(|it| there.contains(it)), "{count}: {answered:?} of which are {there:?}");
        }
        assert!(answered.len() > 40, "{count}: {answered:?}");
        journaled += disk.groups().len();
    }
    assert!(journaled > 100, "{journaled}");
}

/// Who is answered may send the next message at once, so the journal takes none while too many files are open.
#[test]
fn the_journal_keeps_no_more_files_open_than_there_may_be() {
    let (case, disk) = (one_maildir(), one_maildir().disk());
    let config = Config { journal_octets: 300 * BLOCK, ..case.config() };
    let mut world = World::start(config, &disk, MinFree::Usual, 0, 7).unwrap();
    world.server.store.files_max = 4;
    while disk.groups().is_empty() {
        assert!(send(&mut world, "before").starts_with("250"));
    }
    world.publish();
    let (before, groups) = (disk.open_descriptors(), disk.groups().len());
    let (client, _) = world.visit("127.0.0.1");
    for _ in 0..30 {
        // All at once, as PIPELINING allows without the text, and many send with it.
        world.say(client, "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nSubject: x\r\n\r\n.\r\n");
        assert!(disk.open_descriptors() <= before + 5, "{} and {before} descriptors", disk.open_descriptors());
        // What is published has to wait.
        disk.end_journal_flush();
        world.server.flushes_ended = true;
        world.say(client, "");
    }
    assert!(disk.groups().len() > groups + 2, "{:?}", disk.groups());
}

/// A journal that another process has is left alone; of those whose processes are gone one start takes all.
#[test]
fn each_process_has_a_journal_of_its_own() {
    let disk = one_maildir().disk();
    let mut first = ready(&one_maildir(), &disk);
    assert!(send(&mut first, "of the first").starts_with("250"));
    let octets = disk.octets(&format!("{MAILDIR}/.mailchute-journal.0"));
    let mut second = case_world(&disk, 8);
    assert_eq!(disk.octets(&format!("{MAILDIR}/.mailchute-journal.0")), octets);
    for name in ["a", "b", "c", "d"] {
        assert!(send(&mut second, name).starts_with("250"));
    }
    assert!(disk.exists(&format!("{MAILDIR}/.mailchute-journal.1")));
    assert!(!subjects(&disk).contains(&"d".to_owned()) && !subjects(&disk).contains(&"of the first".to_owned()));
    for draw in 0..20 {
        let left = if draw == 0 { disk.killed() } else { disk.restarted(&mut Choices::drawn(draw), Ends::AtOnce) };
        let third = case_world(&left, 9);
        assert_eq!(subjects(&left), ["a", "b", "c", "d", "first", "of the first", "second"]);
        // One of them is its own now, and the other gone.
        let there = [0, 1].map(|number| left.exists(&format!("{MAILDIR}/.mailchute-journal.{number}")));
        assert_eq!(there.iter().filter(|there| **there).count(), 1, "{there:?}");
        drop(third);
    }
}

fn case_world(disk: &ModelDisk, number: u64) -> World {
    let ends = disk.set_ends(Ends::Told);
    let world = one_maildir().world(disk, number).unwrap();
    disk.set_ends(ends);
    world
}

/// Whatever --sync is now, what a journal holds is delivered, and it goes.
#[test]
fn a_journal_is_recovered_also_where_none_is_wanted() {
    let case = one_maildir();
    let (disk, promised) = killed_full(&case);
    for sync in [SyncMode::Always, SyncMode::Never, SyncMode::Journal] {
        let left = disk.killed();
        // One of another size is not taken over, either.
        let config = Config { sync, journal_octets: OCTETS * 2, ..case.config() };
        World::start(config, &left, MinFree::Usual, 0, 8).unwrap();
        judge_each(&left.crash(&mut Choices::default()), &promised, &case.all(0..4)).unwrap();
        assert!(!left.exists(&journal_path(&case)));
    }
}

/// A mailbox that is gone is made again. If that fails what is for it stays in the journal, and is named.
#[test]
fn a_mailbox_that_is_gone_is_made_again() {
    let case = cases(true, Dialect::Smtp).nth(1).unwrap();
    let (disk, _) = killed_full(&case);
    let gone = || {
        let left = disk.killed();
        left.remove_directory("/mail/c");
        left
    };
    let plain = gone();
    World::start(case.config(), &plain, MinFree::Usual, 0, 8).unwrap();
    let delivered = plain.files_in("/mail/c", "new").len();
    assert!(delivered > 0);
    let least = plain.crash(&mut Choices::default());
    assert_eq!(least[3].len(), delivered, "its name is not durable");
    let left = gone();
    left.break_directory(Some(("/mail".to_owned(), Errno::NOSPC)));
    warnings();
    World::start(case.config(), &left, MinFree::Usual, 0, 8).unwrap();
    let named = warnings();
    assert!(named.iter().any(|line| line.contains("stays in there") && line.contains("//c")), "{named:?}");
    assert!(!left.exists("/mail/c"));
    let others = [1, 2].map(|place| seen(&plain, true)[place].len());
    assert_eq!([1, 2].map(|place| seen(&left, true)[place].len()), others);
    left.break_directory(None);
    let again = left.killed();
    World::start(case.config(), &again, MinFree::Usual, 0, 9).unwrap();
    assert_eq!(again.files_in("/mail/c", "new").len(), delivered);
    assert_eq!([1, 2].map(|place| seen(&again, true)[place].len()), others);
}
