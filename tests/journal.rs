//! Deliveries by way of the journal: the machine stops or the process is killed after every single operation, also of the
//! recovery; every operation fails; and each bit of the journal is turned over. What was promised is there exactly once.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod model;

use mailchute::Config;
use mailchute::delivery::MinFree;
use mailchute::smtp::session::Dialect;
use model::hand::{Found, Random, message};
use model::peer::{Mail, Manner, World, with_mailboxes};
use model::power_cut::{Choices, Promise, judge_each};
use model::{Ends, Kind, MAILDIR, ModelDisk};
use rustix::io::Errno;
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
        if moment % 8 == 0 {
            // The journal of the killed process goes on with another.
            let next = disk.killed();
            next.set_ends(Ends::Told);
            let promised = [promised.clone(), case.run(&next, 8, 4..6).map_err(told)?].concat();
            let left = next.restarted(&mut Choices::default(), Ends::AtOnce);
            World::start(case.config(), &left, MinFree::Usual, 0, 9).map_err(|error| told(error.to_string()))?;
            judge_each(&seen(&left, case.mailboxes), &promised, &case.all(0..6))
                .map_err(|error| told(format!("{error}, after another run")))?;
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
    sweep_all("several mailboxes", cases(true, Dialect::Smtp).skip(1).step_by(2), 3);
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
