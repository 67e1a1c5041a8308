//! The machine stops after every single operation of a run of deliveries, and what a power cut may leave then is
//! compared with what was promised: nothing promised is missing, and nothing in `new/` is partial.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod model;

use mailchute::Config;
use mailchute::delivery::{MAIN, MinFree, Now, Store};
use mailchute::fs::{FileSystem, Flush};
use mailchute::smtp::session::{Dialect, Outcome};
use mailchute::smtp::trace::MessageIds;
use model::hand::{Random, first_wall, message};
use model::peer::{Mail, Manner, World, with_mailboxes};
use model::power_cut::{Choices, Promise, crash_each_everywhere, crash_everywhere, judge};
use model::{Ends, Kind, MAILDIR, ModelDisk};
use rustix::io::Errno;
use std::ffi::CString;
use std::path::Path;
use std::time::Instant;

/// One run: its seed, how flushes end, whether moves are atomic, whether somebody reads the mailbox meanwhile.
#[derive(Clone, Copy, Debug)]
struct Case {
    seed: u64,
    ends: Ends,
    atomic_moves: bool,
    reader: bool,
}

impl Case {
    fn each(seeds: u64) -> impl Iterator<Item = Self> {
        (0..seeds).flat_map(|seed| {
            (0..8).filter(move |bits| seed == 0 || bits & 1 == 0).map(move |bits| Self {
                seed,
                ends: if bits & 1 == 0 { Ends::Told } else { Ends::AtOnce },
                atomic_moves: bits & 2 == 0,
                reader: bits & 4 != 0,
            })
        })
    }

    fn disk(self) -> ModelDisk {
        let disk = ModelDisk::new(self.ends).atomic_moves(self.atomic_moves);
        if self.reader { disk.reader(self.seed) } else { disk }
    }
}

fn sweep(name: &str, seeds: u64, all: &[String], run: impl Fn(&ModelDisk, u64) -> Vec<String>) {
    let (mut moments, mut states) = (0, 0);
    for case in Case::each(seeds) {
        match crash_everywhere(|| case.disk(), all, |disk| run(disk, case.seed)) {
            Ok(tried) => (moments, states) = (moments + tried.0, states + tried.1),
            Err(error) => panic!("{case:?}: {error}"),
        }
    }
    println!("{name}: {moments} moments of a power cut, {states} states after it");
    assert!(states > moments && moments > 1000, "the run is too short to show anything");
}

/// The messages of the runs: number 3 is a large one.
fn messages() -> Vec<String> {
    (0..9).map(|number| message(number, if number == 3 { 70_000 } else { 200 })).collect()
}

/// Deliveries by hand: small messages in groups, a large one in pieces, and two that are dropped.
fn deliver(disk: &ModelDisk, seed: u64) -> Vec<String> {
    let (messages, mut promised, mut random) = (messages(), Vec::new(), Random::new(seed));
    let now = Now { instant: Instant::now(), wall: first_wall() };
    let mut ids = MessageIds::new(1, 1);
    let config = Config { maildir: MAILDIR.into(), ..Config::default() };
    let opened = Store::open(disk.clone(), &config, 1);
    let Ok(mut store) = opened else { return promised };
    let mut advance = |store: &mut Store<ModelDisk>, end: bool| {
        if end && disk.flushes_under_way() > 0 {
            let count = 1 + random.below(disk.flushes_under_way());
            disk.end_flushes(count, &mut random);
        }
        store.advance(end, now);
        while let Some((owner, outcome)) = store.outcome() {
            assert!(outcome == Outcome::Stored || disk.is_dead(), "{owner}: {outcome:?}");
            if outcome == Outcome::Stored {
                promised.push(messages[owner].clone());
            }
        }
    };
    let mut begin = |store: &mut Store<ModelDisk>, owner| store.begin(ids.next(now.wall), owner, [MAIN], false, now);
    let large = begin(&mut store, 3);
    let pieces = messages[3].as_bytes().chunks(20_000);
    for (turn, piece) in pieces.enumerate() {
        store.append(large, piece, now);
        let dropped = begin(&mut store, 8);
        store.append(dropped, &messages[8].as_bytes()[..100], now);
        for owner in [[0, 1], [2, 4], [5, 6], [7, 7]][turn].into_iter().take(if turn == 3 { 1 } else { 2 }) {
            let key = begin(&mut store, owner);
            store.finish(key, messages[owner].as_bytes(), now);
        }
        advance(&mut store, false);
        store.discard(dropped);
        advance(&mut store, true);
        store.sweep(now);
    }
    store.finish(large, &[], now);
    advance(&mut store, true);
    while !store.is_idle() && !disk.is_dead() {
        advance(&mut store, true);
    }
    assert!(disk.is_dead() || promised.len() == 8, "{} of 8 stored", promised.len());
    promised
}

#[test]
fn a_power_cut_loses_no_message_that_was_stored() {
    sweep("by hand", 8, &messages(), deliver);
}

/// Clients of a whole server: small messages, some of them in chunks; with `large` one that streams, behind another that was
/// taken back, one too large, and one that breaks off.
fn converse(disk: &ModelDisk, seed: u64, large: bool) -> Vec<String> {
    let Ok(mut world) = World::new(disk, MinFree::Usual, seed) else { return Vec::new() };
    let messages = messages();
    let mail = |number: usize, manner| Mail { text: messages[number].clone(), manner };
    world.connect(vec![mail(0, Manner::Data), mail(1, Manner::Chunks)]);
    world.connect(vec![mail(2, Manner::Data), mail(4, Manner::ChunksAfterOthers(100))]);
    if large {
        world.connect(vec![mail(3, Manner::ChunksAfterOthers(78_000))]);
        world.connect(vec![Mail { text: message(9, 90_000), manner: Manner::Data }]);
        world.connect(vec![Mail { text: message(10, 150_000), manner: Manner::BreaksOff }]);
    }
    world.connect(vec![mail(5, Manner::Data), mail(6, Manner::Data)]);
    world.run();
    world.promised()
}

#[test]
fn a_power_cut_loses_no_message_that_was_answered_250() {
    sweep("over SMTP", 4, &messages(), |disk, seed| {
        let promised = converse(disk, seed, true);
        assert!(disk.is_dead() || promised.len() == 7, "{} of 7 promised", promised.len());
        promised
    });
}

#[test]
fn a_power_cut_after_a_failed_flush_loses_none_either() {
    let (mut moments, mut states) = (0, 0);
    for case in Case::each(2).filter(|case| case.reader) {
        let plain = case.disk();
        converse(&plain, case.seed, false);
        for (index, kind) in plain.operations().into_iter().enumerate() {
            if !matches!(kind, Kind::EndFileFlush | Kind::EndDirectoryFlush) {
                continue;
            }
            let disk = || {
                let disk = case.disk();
                disk.fail(index + 1, 1, Errno::IO);
                disk
            };
            match crash_everywhere(disk, &messages(), |disk| converse(disk, case.seed, false)) {
                Ok(tried) => (moments, states) = (moments + tried.0, states + tried.1),
                Err(error) => panic!("{case:?}, flush {} failed: {error}", index + 1),
            }
        }
    }
    println!("after a failed flush: {moments} moments of a power cut, {states} states after it");
}

/// Clients of a server whose `new/` is removed, and made again: before the first of them talks, or while it does.
fn converse_without_new(disk: &ModelDisk, seed: u64, before: bool) -> Vec<String> {
    let Ok(mut world) = World::new(disk, MinFree::Usual, seed) else { return Vec::new() };
    let messages = messages();
    let mail = |number: usize| Mail { text: messages[number].clone(), manner: Manner::Data };
    if !before {
        world.connect(Vec::new());
        world.run();
    }
    disk.remove_directory(&format!("{MAILDIR}/new"));
    world.connect(vec![mail(0), mail(1)]);
    world.connect(vec![mail(2), mail(4)]);
    world.run();
    world.promised()
}

#[test]
fn a_directory_that_is_made_again_has_its_name_on_the_disk_before_the_next_250() {
    for before in [true, false] {
        sweep("new/ is made again", 4, &messages(), |disk, seed| {
            let promised = converse_without_new(disk, seed, before);
            assert!(disk.is_dead() || promised.len() >= if before { 4 } else { 2 }, "{} promised", promised.len());
            promised
        });
    }
}

/// What goes wrong between the making of a directory and the next message must not have its name forgotten. Only a failed
/// flush of that very name can't be made good.
#[test]
fn a_directory_that_is_made_again_has_its_name_on_the_disk_though_something_fails_meanwhile() {
    for (before, seed) in [(true, 0), (true, 1), (false, 0), (false, 1)] {
        let plain = ModelDisk::new(Ends::Told);
        converse_without_new(&plain, seed, before);
        let started = plain.operations().iter().position(|&kind| kind == Kind::IsSame).expect("a check");
        for (index, kind) in plain.operations().into_iter().enumerate().skip(started) {
            if kind == Kind::EndDirectoryFlush {
                continue;
            }
            let disk = ModelDisk::new(Ends::Told);
            disk.fail(index + 1, 1, Errno::IO);
            let promised = converse_without_new(&disk, seed, before);
            judge(&disk.crash(&mut Choices::default())[0], &promised, &messages()).unwrap_or_else(|error| {
                panic!(
                    "before: {before}, seed {seed}, operation {} ({kind:?}) fails: {error}:{}",
                    index + 1,
                    disk.history()
                )
            });
        }
    }
}

/// Users whose mailboxes are beside the main one: Maildirs 1, 2 and 3.
const USERS: [&str; 3] = ["a", "b", "c"];
const MAILBOXES: [&str; 3] = ["/mail/a", "/mail/b", "/mail/c"];

/// What there may be in each mailbox, and is in the end, once: messages 0 and 1 in all, 2 in one, 3 in two.
fn in_mailboxes() -> Vec<Promise> {
    let texts = messages();
    let messages = [(0, &[1, 2, 3][..]), (1, &[1, 2, 3]), (2, &[2]), (3, &[3, 1])];
    messages.iter().flat_map(|(text, mailboxes)| mailboxes.iter().map(|&it| (it, texts[*text].clone()))).collect()
}

/// Clients of a server with several mailboxes, and what each of them was promised. At its end each message must be in each
/// of its mailboxes once, as one file where `linked`.
fn converse_with_mailboxes(world: &mut World, dialect: Dialect, linked: bool) -> Vec<Promise> {
    let texts = messages();
    let mail = |number: usize, manner| Mail { text: texts[number].clone(), manner };
    world.connect_to(&["c", "a"], dialect, vec![mail(3, Manner::ChunksAfterOthers(78_000))]);
    world.connect_to(&USERS, dialect, vec![mail(0, Manner::Data), mail(1, Manner::Chunks)]);
    world.connect_to(&["b"], dialect, vec![mail(2, Manner::Data)]);
    world.run();
    let (disk, promised) = (&world.disk, world.promised_to_each());
    if disk.is_dead() {
        return promised;
    }
    assert_eq!(promised.len(), in_mailboxes().len(), "{promised:?}");
    let found = MAILBOXES.map(|path| [disk.files_in(path, "new"), disk.files_in(path, "cur")].concat());
    for text in &texts[..4] {
        let is = |file: &&model::hand::Found| file.octets.ends_with(text.as_bytes());
        let inodes: Vec<_> = found.iter().flatten().filter(is).map(|file| file.inode).collect();
        assert!(found.iter().all(|files| files.iter().filter(is).count() <= 1), "one mailbox has it twice");
        assert_eq!(inodes.len(), in_mailboxes().iter().filter(|(_, other)| other == text).count());
        assert!(!linked || inodes.iter().all(|inode| *inode == inodes[0]), "it is not one file: {inodes:?}");
    }
    assert!(MAILBOXES.iter().all(|path| disk.files_in(path, "tmp").is_empty()));
    promised
}

fn sweep_mailboxes(
    name: &str, config: &Config, disk: impl Fn(Case) -> ModelDisk, run: impl Fn(&mut World) -> Vec<Promise>,
    cases: impl Iterator<Item = Case>,
) {
    let (mut moments, mut states) = (0, 0);
    for case in cases {
        let run = |disk: &ModelDisk| {
            let world = World::with(config.clone(), disk, MinFree::Usual, case.seed);
            world.map_or(Vec::new(), |mut world| run(&mut world))
        };
        match crash_each_everywhere(config, || disk(case), &in_mailboxes(), 64, run) {
            Ok(tried) => (moments, states) = (moments + tried.0, states + tried.1),
            Err(error) => panic!("{case:?}: {error}"),
        }
    }
    println!("{name}: {moments} moments of a power cut, {states} states after it");
    assert!(states > moments && moments > 400, "the run is too short to show anything");
}

#[test]
fn a_power_cut_leaves_what_was_promised_in_each_mailbox() {
    let disk = |case: Case| case.disk().maildirs(&MAILBOXES, true);
    let run = |world: &mut World| converse_with_mailboxes(world, Dialect::Smtp, true);
    sweep_mailboxes("several mailboxes", &with_mailboxes(), disk, run, Case::each(1));
}

#[test]
fn a_power_cut_leaves_what_lmtp_promised_to_each() {
    let disk = |case: Case| case.disk().maildirs(&MAILBOXES, true);
    let run = |world: &mut World| converse_with_mailboxes(world, Dialect::Lmtp, true);
    sweep_mailboxes("LMTP", &with_mailboxes(), disk, run, Case::each(1).filter(|case| case.reader));
}

#[test]
fn a_power_cut_leaves_copies_where_links_can_not_be_made() {
    let disk = |case: Case| case.disk().maildirs(&MAILBOXES, true).without_links(Errno::XDEV);
    let run = |world: &mut World| converse_with_mailboxes(world, Dialect::Smtp, false);
    sweep_mailboxes("copies", &with_mailboxes(), disk, run, Case::each(1).filter(|case| !case.reader));
}

/// Their names, too, are durable before mail in them is promised, also where another message had them made and was dropped.
#[test]
fn a_power_cut_leaves_mailboxes_that_were_made() {
    let disk = |case: Case| case.disk().maildirs(&["/mail/boxes/a", "/mail/boxes/b", "/mail/boxes/c"], false);
    let config = Config { mailboxes: Some("/mail/boxes".into()), create_mailboxes: true, ..with_mailboxes() };
    let run = |world: &mut World| {
        let texts = messages();
        let mail = |number: usize, manner| Mail { text: texts[number].clone(), manner };
        world.connect_to(&["c", "a"], Dialect::Smtp, vec![mail(3, Manner::ChunksAfterOthers(78_000))]);
        world.connect_to(&USERS, Dialect::Smtp, vec![mail(0, Manner::Data)]);
        world.run();
        world.promised_to_each()
    };
    sweep_mailboxes("made", &config, disk, run, Case::each(1).filter(|case| !case.reader));
}

#[test]
fn a_directory_of_a_mailbox_that_is_made_again_has_its_name_on_the_disk_before_the_next_250() {
    let disk = |case: Case| case.disk().maildirs(&MAILBOXES, true);
    let run = |world: &mut World| {
        world.disk.remove_directory("/mail/a/new");
        converse_with_mailboxes(world, Dialect::Smtp, true)
    };
    let cases = Case::each(1).filter(|case| !case.reader);
    sweep_mailboxes("new/ of a mailbox is made again", &with_mailboxes(), disk, run, cases);
}

/// How to store a message, right and wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Right,
    MovesBeforeItFlushes,
    FlushesNoDirectory,
    PromisesBeforeTheFlushEnds,
    PromisesBeforeTheDirectory,
    LeavesOutCur,
    LeavesOutWhatItMade,
    FlushesFileAgainAfterFailure,
    FlushesDirectoryAgainAfterFailure,
    FlushesFileTwiceAtOnce,
    StoresTwice,
}

/// A delivery of a few messages, one after the other, which knows nothing of groups.
fn naive(disk: &ModelDisk, way: Way) -> Vec<String> {
    let mut promised = Vec::new();
    let _ = store_naively(disk, way, &mut promised);
    promised
}

fn store_naively(disk: &ModelDisk, way: Way, promised: &mut Vec<String>) -> std::io::Result<()> {
    let mut fs = disk.clone();
    let root = fs.open_directory(Path::new(MAILDIR), true)?;
    let [tmp, new, cur] = [c"tmp", c"new", c"cur"].map(|name| fs.open_directory_in(&root, name, true));
    let (tmp, new, cur) = (tmp?, new?, cur?);
    let above = fs.open_directory_in(&root, c"..", false)?;
    let end_all = || disk.end_flushes(usize::MAX, &mut Random::new(0));
    let flush = |what: Flush<'_, ModelDisk>, wait: bool| {
        let mut fs = disk.clone();
        fs.begin_flush(what, 0);
        fs.submit();
        if wait {
            end_all();
        }
        std::iter::from_fn(|| fs.ended_flush()).try_for_each(|(_, result)| result)
    };
    if way != Way::LeavesOutWhatItMade {
        flush(Flush::Directory(&above), true)?;
        flush(Flush::Directory(&root), true)?;
    }
    for text in messages().into_iter().take(3) {
        let name = CString::new(format!("{},S={}", promised.len(), text.len())).expect("a name");
        let mut file = fs.create(&tmp, &name)?;
        fs.write(&mut file, text.as_bytes())?;
        if way == Way::MovesBeforeItFlushes {
            fs.rename(&tmp, &name, &new, &name)?;
        }
        if way == Way::FlushesFileTwiceAtOnce {
            flush(Flush::File(&file), false)?;
        }
        if way == Way::StoresTwice {
            let again = CString::new(format!("again,S={}", text.len())).expect("a name");
            let mut file = fs.create(&tmp, &again)?;
            fs.write(&mut file, text.as_bytes())?;
            flush(Flush::File(&file), true)?;
            fs.rename(&tmp, &again, &new, &again)?;
        }
        let flushed = flush(Flush::File(&file), way != Way::PromisesBeforeTheFlushEnds);
        match flushed {
            Err(_) if way == Way::FlushesFileAgainAfterFailure => flush(Flush::File(&file), true)?,
            flushed => flushed?,
        }
        if way != Way::MovesBeforeItFlushes {
            fs.rename(&tmp, &name, &new, &name)?;
        }
        if way == Way::PromisesBeforeTheDirectory {
            promised.push(text.clone());
        }
        if way != Way::FlushesNoDirectory {
            match flush(Flush::Directory(&new), true) {
                Err(_) if way == Way::FlushesDirectoryAgainAfterFailure => flush(Flush::Directory(&new), true)?,
                flushed => flushed?,
            }
            if way != Way::LeavesOutCur {
                flush(Flush::Directory(&cur), true)?;
            }
        }
        promised.push(text);
        end_all();
    }
    Ok(())
}

#[test]
fn planted_mistakes_are_found() {
    let plain = ModelDisk::new(Ends::Told);
    naive(&plain, Way::Right);
    let kinds = plain.operations();
    let first = |kind: Kind| {
        let mut all = kinds.iter().zip(1..).filter(|&(&other, _)| other == kind);
        // The first two of directories are those above, at the start.
        all.nth(if kind == Kind::EndDirectoryFlush { 2 } else { 0 }).map(|(_, number)| number)
    };
    let find = |way: Way, failing: Option<Kind>| {
        let fault = failing.and_then(first);
        (0..20).find_map(|seed| {
            let disk = || {
                let disk = ModelDisk::new(Ends::Told).atomic_moves(false).reader(seed);
                fault.into_iter().for_each(|number| disk.fail(number, 1, Errno::IO));
                disk
            };
            crash_everywhere(disk, &messages(), |disk| naive(disk, way)).err()
        })
    };
    for (way, failing, complaint) in [
        (Way::MovesBeforeItFlushes, None, "is not whole"),
        (Way::FlushesNoDirectory, None, "lost"),
        (Way::PromisesBeforeTheFlushEnds, None, "is not whole"),
        (Way::PromisesBeforeTheDirectory, None, "lost"),
        (Way::LeavesOutCur, None, "lost"),
        (Way::LeavesOutWhatItMade, None, "lost"),
        (Way::FlushesFileAgainAfterFailure, Some(Kind::EndFileFlush), "is not whole"),
        (Way::FlushesDirectoryAgainAfterFailure, Some(Kind::EndDirectoryFlush), "lost"),
        (Way::FlushesFileTwiceAtOnce, None, "two flushes on one descriptor"),
        (Way::StoresTwice, None, "there twice"),
    ] {
        assert_eq!(find(Way::Right, failing), None, "what is right was found wrong");
        let found = find(way, failing).unwrap_or_default();
        assert!(found.contains(complaint), "{way:?} was not found, but {found:?}");
        if let Some(number) = failing.and_then(first) {
            let disk = ModelDisk::new(Ends::Told);
            disk.fail(number, 1, Errno::IO);
            naive(&disk, way);
            assert!(disk.violations().iter().any(|what| what.contains("after one that failed")), "{way:?}");
        }
    }
}
