//! Mail that is not kept for ever: which messages go, in which order, and how much work that is in a turn. On a model
//! disk, whose clock moves only when told.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod model;

use std::time::Duration;

use mailchute::Config;
use mailchute::delivery::MinFree;
use mailchute::smtp::session::Dialect;
use mailchute::sweep::Keep;
use model::hand::{Random, first_wall, message};
use model::peer::{Mail, Manner, Step, World, with_mailboxes};
use model::{Ends, MAILDIR, ModelDisk};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// What a turn does at most while it sweeps: two calls for each of 64 names, and some.
const CALLS_MAX: usize = 2 * 64 + 20;

fn keep(messages: Option<usize>, age: Option<Duration>) -> Config {
    Config { keep: Keep { messages, age }, ..Config::default() }
}

/// Seconds since 1970 at the start.
fn start() -> u64 {
    first_wall().duration_since(std::time::UNIX_EPOCH).expect("a date").as_secs()
}

/// The name of a message of an earlier run, that came at this second.
fn old(second: u64, number: usize) -> String {
    format!("{second}.M1R00000000000000ffP1Q{number}.host,S=1")
}

fn put(disk: &ModelDisk, seconds: impl IntoIterator<Item = u64>) {
    for (number, second) in seconds.into_iter().enumerate() {
        disk.put("new", &old(second, number), first_wall());
    }
}

/// A Maildir whose directories are there before a server is.
fn disk(ends: Ends) -> ModelDisk {
    let disk = ModelDisk::new(ends);
    for name in ["", "/tmp", "/new", "/cur"] {
        disk.make_directory(&format!("{MAILDIR}{name}"));
    }
    disk
}

/// Names in `new/` of earlier runs, and of this one.
fn names(disk: &ModelDisk) -> (Vec<String>, Vec<String>) {
    disk.files("new").into_iter().map(|file| file.name).partition(|name| !name.contains("R0000000000000007P"))
}

fn seconds(names: &[String]) -> Vec<u64> {
    let mut seconds: Vec<_> = names.iter().map(|name| name.split('.').next().unwrap().parse().unwrap()).collect();
    seconds.sort_unstable();
    seconds
}

/// Some turns, none of which does too much, and in none of which one of this run's goes while one of another is left.
fn sweep(world: &mut World, own: usize) {
    for _ in 0..200 {
        let before = world.disk.operations().len();
        world.server.turn(world.now);
        let calls = world.disk.operations().len() - before;
        assert!(calls <= CALLS_MAX, "{calls} calls in one turn:{}", world.disk.history());
        let (others, mine) = names(&world.disk);
        assert!(
            mine.len() == own || others.is_empty(),
            "{} of this run, {} of others are left",
            mine.len(),
            others.len()
        );
    }
}

/// Has the server store so many messages.
fn store(world: &mut World, count: usize) {
    for number in 0..count {
        world.connect(vec![Mail { text: message(number, 200), manner: Manner::Data }]);
    }
    world.run();
    assert_eq!(world.promised().len() % count, 0);
}

#[test]
fn nothing_goes_unless_that_is_asked_for() {
    let disk = disk(Ends::AtOnce);
    put(&disk, (0..500).map(|number| number * 1000));
    let mut world = World::new(&disk, MinFree::Usual, 0).expect("a Maildir");
    store(&mut world, 3);
    for _ in 0..3 {
        sweep(&mut world, 3);
        world.pass(400 * DAY);
    }
    assert_eq!((names(&disk).0.len(), names(&disk).1.len()), (500, 3));
    assert_eq!(disk.count(model::Kind::Modified), 0, "not each file is asked for its date");
}

#[test]
fn within_a_second_the_microseconds_tell_which_is_older() {
    let disk = disk(Ends::AtOnce);
    let name = |microseconds: u32| format!("{}.M{microseconds}R00000000000000ffP1Q1.host,S=1", start() - 1);
    for microseconds in [900_000, 68_747, 5, 204_000, 1_000] {
        disk.put("new", &name(microseconds), first_wall());
    }
    let mut world = World::with(keep(Some(2), None), &disk, MinFree::Usual, 0).expect("a Maildir");
    sweep(&mut world, 0);
    let mut left = names(&disk).0;
    left.sort();
    assert_eq!(left, [name(204_000), name(900_000)]);
}

#[test]
fn the_oldest_go_first_by_their_names() {
    let mut random = Random::new(1);
    let mut came: Vec<u64> = (0..700).map(|_| start() - 1 - random.below(1_000_000) as u64).collect();
    let disk = disk(Ends::AtOnce);
    put(&disk, came.iter().copied());
    disk.put("new", "no number.x.host", first_wall());
    disk.put("new", ".hidden", first_wall());
    let mut world = World::with(keep(Some(100), None), &disk, MinFree::Usual, 0).expect("a Maildir");
    sweep(&mut world, 0);
    came.sort_unstable();
    let (left, _) = names(&disk);
    let (messages, strange): (Vec<_>, Vec<_>) = left.into_iter().partition(|name| name.contains("R00000000000000ff"));
    assert_eq!(seconds(&messages), came[600..]);
    assert_eq!(strange, [".hidden", "no number.x.host"], "what is no message is not ours");
    assert_eq!(disk.count(model::Kind::Modified), 0, "not each file is asked for its date");
}

#[test]
fn of_this_run_none_goes_while_one_of_another_is_left() {
    // The others are later by their names, as the clock was set back; then it has passed them.
    for (others, own, keep_messages, keep_age) in [
        (10, 5, Some(8), None),
        (10, 5, Some(4), None),
        (300, 200, Some(250), None),
        (300, 200, Some(150), None),
        (300, 200, None, Some(300 * SECOND)),
        (300, 200, Some(1000), Some(100 * SECOND)),
    ] {
        let disk = disk(Ends::AtOnce);
        let told = format!("{others} others, {own} own, {keep_messages:?} {keep_age:?}");
        let mut world = World::with(keep(keep_messages, keep_age), &disk, MinFree::Usual, 0).expect("a Maildir");
        sweep(&mut world, 0);
        store(&mut world, own);
        put(&disk, (0..others).map(|number| start() + 100 + number as u64));
        // One of those is later than the clock yet: nothing is removed.
        (0..100).for_each(|_| world.pass(SECOND));
        assert_eq!((names(&disk).0.len(), names(&disk).1.len()), (others, own), "{told}");
        world.pass(501 * SECOND - 100 * SECOND);
        // Mail that comes has it looked at again.
        store(&mut world, 1);
        for _ in 0..5 {
            world.pass(SECOND);
            sweep(&mut world, own + 1);
        }
        let (left, mine) = names(&disk);
        let (left, mine) = (left.len(), mine.len());
        let expected = match (keep_messages, keep_age) {
            (Some(most), None) if most > own + 1 => (most - own - 1, own + 1),
            (Some(most), None) => (0, most),
            // All others are older than 100 s; of this run one is younger.
            (_, Some(age)) if age == 100 * SECOND => (0, 1),
            // It is looked at a second later.
            _ => (others - (502 - 300 - 100), own + 1),
        };
        assert_eq!((left, mine), expected, "{told}");
    }
}

#[test]
fn nothing_goes_before_it_is_safe() {
    for seed in 0..20 {
        let disk = disk(Ends::Told);
        let mut world = World::with(keep(Some(2), None), &disk, MinFree::Usual, seed).expect("a Maildir");
        let mut random = Random::new(seed);
        let mut seen: Vec<(String, Vec<u8>)> = Vec::new();
        for number in 0..40 {
            world.connect(vec![Mail { text: message(number, 200), manner: Manner::Data }]);
            for _ in 0..3 {
                world.settle();
                if random.below(3) == 0 {
                    world.end_flushes(1);
                }
                world.pass(SECOND * random.below(3) as u32);
                let there: Vec<_> = disk.files("new").into_iter().map(|it| (it.name, it.octets.to_vec())).collect();
                // What the server said is heard now.
                world.settle();
                let promised = world.promised();
                for (name, octets) in seen.iter().filter(|(name, _)| !there.iter().any(|(other, _)| name == other)) {
                    let safe = promised.iter().any(|text| octets.ends_with(text.as_bytes()));
                    assert!(safe, "seed {seed}: {name} is gone before it was safe");
                }
                seen = there;
            }
        }
        world.run();
        (0..10).for_each(|_| world.pass(SECOND));
        assert_eq!((disk.files("new").len(), world.promised().len()), (2, 40), "seed {seed}");
        assert_eq!(disk.violations(), Vec::<String>::new());
    }
}

#[test]
fn nothing_goes_while_the_clock_is_earlier_than_the_newest_name() {
    for own in [0, 3] {
        let disk = disk(Ends::AtOnce);
        put(&disk, (0..200).map(|number| 1000 + number).chain([start() + 1000]));
        let mut world = World::with(keep(Some(2), Some(DAY)), &disk, MinFree::Usual, 0).expect("a Maildir");
        store(&mut world, own.max(1));
        for _ in 0..20 {
            world.pass(SECOND);
            sweep(&mut world, own.max(1));
        }
        assert_eq!(names(&disk).0.len(), 201);
        world.pass(SECOND * 980);
        store(&mut world, 1);
        for _ in 0..5 {
            world.pass(SECOND);
            sweep(&mut world, own.max(1) + 1);
        }
        assert_eq!(names(&disk).0.len() + names(&disk).1.len(), 2);
    }
}

/// Nor does one that is gone keep the others, nor those that mail comes to meanwhile, from being looked through.
#[test]
fn a_mailbox_that_is_gone_keeps_no_other_from_its_turn() {
    for gone in ["/mail/a", "/mail/b", "/mail/c"] {
        let mailboxes = ["/mail/a", "/mail/b", "/mail/c"];
        let disk = disk(Ends::AtOnce).maildirs(&mailboxes, true);
        let config = Config { keep: Keep { messages: Some(1), age: None }, ..with_mailboxes() };
        let mut world = World::with(config, &disk, MinFree::Usual, 0).expect("a Maildir");
        // The main one has been looked through.
        (0..10).for_each(|_| world.server.turn(world.now));
        let texts: Vec<_> = (0..3).map(|number| message(number, 200)).collect();
        let mails = texts.iter().map(|text| Mail { text: text.clone(), manner: Manner::Data }).collect();
        world.connect_to(&["a", "b", "c"], Dialect::Smtp, mails);
        world.settle();
        disk.remove_directory(gone);
        for _ in 0..5 {
            world.pass(SECOND);
            (0..10).for_each(|_| world.server.turn(world.now));
        }
        for path in mailboxes.iter().filter(|path| **path != gone) {
            assert_eq!(disk.files_in(path, "new").len(), 1, "{gone} is gone, {path}");
        }
    }
}

#[test]
fn each_mailbox_is_looked_through_after_mail_came_there() {
    let mailboxes = ["/mail/a", "/mail/b", "/mail/c"];
    let disk = disk(Ends::AtOnce).maildirs(&mailboxes, true);
    let config = Config { keep: Keep { messages: Some(3), age: None }, ..with_mailboxes() };
    let mut world = World::with(config, &disk, MinFree::Usual, 0).expect("a Maildir");
    let count = || mailboxes.map(|path| disk.files_in(path, "new").len());
    for number in 0..5 {
        world.connect_to(&["a", "b"], Dialect::Smtp, vec![Mail { text: message(number, 200), manner: Manner::Data }]);
        world.run();
        world.pass(SECOND);
    }
    for _ in 0..5 {
        world.pass(SECOND);
        (0..10).for_each(|_| world.server.turn(world.now));
    }
    assert_eq!(count(), [3, 3, 0]);
    // The newest, and of links the others stay.
    for path in &mailboxes[..2] {
        let found = disk.files_in(path, "new");
        let newest = |number| found.iter().any(|it| it.octets.ends_with(message(number, 200).as_bytes()));
        assert!((2..5).all(newest), "{found:?}");
    }
    assert_eq!(disk.open_descriptors(), 3, "a mailbox stays open");
    // It is quiet while no mail comes.
    let quiet = disk.operations().len();
    (0..100).for_each(|_| world.pass(SECOND));
    assert_eq!(disk.operations().len(), quiet, "{}", disk.history());
    world.clients.iter().for_each(|client| assert!(client.step == Step::Gone));
}
