//! Every operation of a run of deliveries fails, one at a time, with each error that it can give; and what the server
//! does while the disk is full, slow, gone or littered. No clock but the model's, which moves only when told.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod model;

use mailchute::delivery::{FLUSHES_MAX, MinFree};
use mailchute::fs::Space;
use mailchute::smtp::session::Dialect;
use model::hand::{first_wall, message};
use model::peer::{Mail, Manner, Step, World, with_mailboxes};
use model::power_cut::{Choices, Promise, judge, judge_each};
use model::{Ends, Kind, MAILDIR, ModelDisk};
use rustix::io::Errno;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const SPACE: [Errno; 3] = [Errno::NOSPC, Errno::DQUOT, Errno::FBIG];

fn errors(kind: Kind) -> &'static [Errno] {
    use Errno as E;
    match kind {
        Kind::OpenDirectory => {
            &[E::NOENT, E::ACCESS, E::MFILE, E::NFILE, E::NOSPC, E::DQUOT, E::ROFS, E::NOTDIR, E::LOOP, E::NOMEM, E::IO]
        }
        Kind::Create => {
            &[E::EXIST, E::NOSPC, E::DQUOT, E::MFILE, E::NFILE, E::ROFS, E::ACCESS, E::NOENT, E::NOMEM, E::IO]
        }
        Kind::Write => &[E::NOSPC, E::DQUOT, E::FBIG, E::ROFS, E::IO],
        Kind::Rename | Kind::Link => {
            &[E::EXIST, E::NOSPC, E::DQUOT, E::ROFS, E::ACCESS, E::PERM, E::NOENT, E::MLINK, E::XDEV, E::NOMEM, E::IO]
        }
        Kind::Remove => &[E::ROFS, E::ACCESS, E::NOENT, E::IO],
        Kind::BeginFlush => &[],
        Kind::EndFileFlush | Kind::EndJournalFlush | Kind::EndDirectoryFlush => {
            &[E::NOSPC, E::DQUOT, E::ROFS, E::INTR, E::IO]
        }
        Kind::Space => &[E::NOSYS, E::INTR, E::IO],
        Kind::IsSame => &[E::ACCESS, E::LOOP, E::NOMEM, E::IO],
        Kind::List => &[E::MFILE, E::NFILE, E::NOMEM, E::ACCESS, E::IO],
        Kind::NextName => &[E::NOENT, E::IO],
        Kind::Modified => &[E::NOENT, E::ACCESS, E::IO],
        Kind::OpenJournal => &[E::NOSPC, E::MFILE, E::NFILE, E::ACCESS, E::NOLCK, E::IO],
        Kind::ReadAt => &[E::IO],
        Kind::WriteAt => &[E::NOSPC, E::IO],
    }
}

fn mail(text: &str) -> Mail {
    mail_by(Manner::Data, text)
}

fn mail_by(manner: Manner, text: &str) -> Mail {
    Mail { text: text.to_owned(), manner }
}

/// Messages of a run: number 3 streams to its file, 4 is too large, 5 breaks off, 2 and 6 come in chunks.
fn messages() -> Vec<String> {
    (0..8).map(|number| message(number, [200, 200, 200, 70_000, 90_000, 150_000, 200, 200][number])).collect()
}

fn connect_all(world: &mut World, messages: &[String], large: bool) {
    world.connect(vec![mail(&messages[0]), mail(&messages[1])]);
    world.connect(vec![mail_by(Manner::Chunks, &messages[2])]);
    if large {
        world.connect(vec![mail(&messages[3])]);
        world.connect(vec![mail(&messages[4])]);
        world.connect(vec![mail_by(Manner::BreaksOff, &messages[5])]);
    }
    // Those that are taken back are in their file by then, or still in memory.
    world.connect(vec![mail_by(Manner::ChunksAfterOthers(if large { 78_000 } else { 100 }), &messages[6])]);
}

/// What must be true after every run, whatever failed. `tidy` when nothing kept the server from removing files; what it
/// could not remove then it removes when the disk is well again.
fn check(world: &mut World, messages: &[String], tidy: bool) -> Result<(), String> {
    let promised = world.promised();
    let (new, tmp) = (world.disk.files("new"), world.disk.files("tmp"));
    judge(&new, &promised, messages)?;
    if tidy && (new.len() != promised.len() || !tmp.is_empty()) {
        return Err(format!("{} promised, {} in new/, {} in tmp/", promised.len(), new.len(), tmp.len()));
    }
    for seed in 0..8 {
        let mut choices = if seed == 0 { Choices::default() } else { Choices::drawn(seed) };
        judge(&world.disk.crash(&mut choices)[0], &promised, messages)
            .map_err(|error| format!("after a power cut: {error}"))?;
    }
    // The cause is gone: mail is taken again.
    world.disk.heal();
    world.pass(SECOND);
    let client = world.connect(vec![mail(&messages[7])]);
    world.run();
    if !world.clients[client].verdicts.iter().any(|(_, reply)| reply.starts_with("250")) {
        return Err(format!("refuses mail for ever: {:?}", world.clients[client].verdicts));
    }
    let (promised, new, tmp) = (world.promised(), world.disk.files("new"), world.disk.files("tmp"));
    judge(&new, &promised, messages)?;
    if new.len() != promised.len() || !tmp.is_empty() {
        return Err(format!("in the end {} promised, {} in new/, {} in tmp/", promised.len(), new.len(), tmp.len()));
    }
    if let Some(violation) = world.disk.violations().first() {
        return Err(violation.clone());
    }
    match world.disk.open_descriptors() {
        3 => Ok(()),
        count => Err(format!("{count} descriptors are open, not 3")),
    }
}

/// The replies to messages that were sent whole, but for the one that is too large.
fn refused(world: &World, messages: &[String]) -> Vec<String> {
    let refused = world.verdicts().filter(|(text, reply)| *text != messages[4] && !reply.starts_with("250"));
    refused.map(|(_, reply)| reply.clone()).collect()
}

fn reply_to(error: Errno) -> &'static str {
    if SPACE.contains(&error) { "452 4.3.1" } else { "451 4.3.0" }
}

#[test]
fn each_operation_fails_once_with_each_error() {
    let messages = messages();
    let (mut points, mut runs) = (0, 0);
    for (seed, ends) in [(0, Ends::AtOnce), (1, Ends::Told), (2, Ends::Told)] {
        let plain = ModelDisk::new(ends);
        let mut world = World::new(&plain, MinFree::Usual, seed).expect("a Maildir");
        connect_all(&mut world, &messages, true);
        world.run();
        let kinds = plain.operations();
        points += kinds.len();
        for (index, &kind) in kinds.iter().enumerate() {
            for &error in errors(kind) {
                runs += 1;
                let disk = ModelDisk::new(ends);
                disk.fail(index + 1, 1, error);
                let mut world = match World::new(&disk, MinFree::Usual, seed) {
                    Ok(world) => world,
                    Err(told) => {
                        assert_eq!(told.raw_os_error(), Some(error.raw_os_error()));
                        continue;
                    }
                };
                connect_all(&mut world, &messages, true);
                world.run();
                let refused = refused(&world, &messages);
                let early: Vec<_> = world.clients.iter().flat_map(|client| client.refusals.clone()).collect();
                let told = format!(
                    "seed {seed}, {ends:?}: {error:?} from operation {} ({kind:?}): refused {refused:?}, MAIL {early:?}",
                    index + 1
                );
                assert!(refused.iter().all(|reply| reply.starts_with(reply_to(error))), "{told}");
                assert!(early.iter().all(|reply| reply.starts_with("451 4.3.0")), "{told}");
                let harmless = error == Errno::EXIST
                    || matches!(kind, Kind::Remove | Kind::Space | Kind::IsSame | Kind::List | Kind::NextName);
                let most = match kind {
                    Kind::EndDirectoryFlush => 5,
                    Kind::Create | Kind::Write | Kind::Rename | Kind::EndFileFlush if !harmless => 1,
                    _ => 0,
                };
                assert!(refused.len() <= most, "{told}");
                let distrusted = [Errno::NOENT, Errno::IO, Errno::ROFS].contains(&error)
                    || matches!(kind, Kind::EndFileFlush | Kind::EndDirectoryFlush);
                assert!(early.is_empty() || distrusted && !harmless, "{told}");
                if let Err(problem) = check(&mut world, &messages, kind != Kind::Remove) {
                    panic!("{told}: {problem}:{}", disk.history());
                }
            }
        }
    }
    println!("{points} operations, {runs} faults");
}

#[test]
fn a_second_operation_fails_while_the_first_failure_is_dealt_with() {
    let messages = messages();
    let mut runs = 0;
    let run = |seed, faults: &[(usize, usize, Errno)]| {
        let disk = ModelDisk::new(Ends::Told);
        faults.iter().for_each(|&(from, count, error)| disk.fail(from, count, error));
        let mut world = World::new(&disk, MinFree::Usual, seed).ok()?;
        connect_all(&mut world, &messages, false);
        world.run();
        Some(world)
    };
    for seed in 0..3 {
        let kinds = run(seed, &[]).expect("a Maildir").disk.operations();
        for (index, &kind) in kinds.iter().enumerate() {
            // The last also fails all that is done for a while.
            let (length, firsts): (usize, &[Errno]) = match kind {
                Kind::EndFileFlush | Kind::EndDirectoryFlush => (1, &[Errno::IO]),
                Kind::Create | Kind::Rename => (1, &[Errno::NOENT, Errno::EXIST]),
                Kind::BeginFlush => (12, &[Errno::ROFS]),
                _ => continue,
            };
            for first in firsts.iter().map(|&error| (index + 1, length, error)) {
                let count = run(seed, &[first]).map_or(0, |world| world.disk.operations().len());
                for second in index + 1..count {
                    for error in [Errno::IO, Errno::NOENT, Errno::NOSPC] {
                        runs += 1;
                        let Some(mut world) = run(seed, &[first, (second + 1, 1, error)]) else { continue };
                        let failed = [first.0..first.0 + first.1, second + 1..second + 2];
                        let kinds = world.disk.operations();
                        let untidy = |number| matches!(kinds[number - 1], Kind::Remove | Kind::OpenDirectory);
                        let tidy = !failed.into_iter().flatten().any(|number| number <= kinds.len() && untidy(number));
                        let refused = refused(&world, &messages);
                        let result = check(&mut world, &messages, tidy);
                        let history = world.disk.history();
                        let told = format!("seed {seed}, {first:?}, then {error:?} from operation {}", second + 1);
                        assert!(refused.iter().all(|reply| reply.starts_with("45")), "{told}: {refused:?}");
                        result.unwrap_or_else(|problem| panic!("{told}: {problem}:{history}"));
                    }
                }
            }
        }
    }
    println!("{runs} pairs of faults");
}

/// Users whose mailboxes are beside the main one: Maildirs 1, 2 and 3.
const USERS: [&str; 3] = ["a", "b", "c"];
const MAILBOXES: [&str; 3] = ["/mail/a", "/mail/b", "/mail/c"];

/// The replies to RCPT for each of the users, as soon as MAIL is taken.
fn ask_for_users(world: &mut World) -> Vec<String> {
    let client = world.connect(Vec::new());
    world.clients[client].step = Step::Gone;
    world.say(client, "");
    for _ in 0..5 {
        if mail_is_taken(world, client) {
            break;
        }
        world.end_flushes(usize::MAX);
        world.pass(SECOND);
    }
    let asked = USERS.map(|user| world.say(client, &format!("RCPT TO:<{user}@example>\r\n")));
    world.say(client, "QUIT\r\n");
    asked.into()
}

/// The users whose mailboxes take nothing for now.
fn left_out(world: &mut World) -> Vec<&'static str> {
    let asked = ask_for_users(world);
    let refused = USERS.into_iter().zip(asked).filter(|(_, reply)| !reply.starts_with("250 2.1.5"));
    refused
        .map(|(user, reply)| {
            assert!(reply.starts_with("452 4.2.0"), "{user}: {reply}");
            user
        })
        .collect()
}

/// Fails unless each mailbox has what it was promised, once, and where nothing kept the server from removing files nothing
/// else; also after a power cut.
fn check_mailboxes(world: &World, all: &[Promise], tidy: bool) -> Result<(), String> {
    let (disk, promised) = (&world.disk, world.promised_to_each());
    let [new, tmp] = ["new", "tmp"].map(|name| MAILBOXES.map(|path| disk.files_in(path, name)));
    let found = [vec![disk.files("new")], new.to_vec()].concat();
    judge_each(&found, &promised, all)?;
    if tidy && (found.iter().flatten().count() != promised.len() || tmp.iter().any(|files| !files.is_empty())) {
        let counts = (new.map(|files| files.len()), tmp.map(|files| files.len()));
        return Err(format!("{} promised, in new/ and tmp/ {counts:?}", promised.len()));
    }
    for seed in 0..4 {
        let mut choices = if seed == 0 { Choices::default() } else { Choices::drawn(seed) };
        judge_each(&disk.crash(&mut choices), &promised, all).map_err(|error| format!("after a power cut: {error}"))?;
    }
    if let Some(violation) = disk.violations().first() {
        return Err(violation.clone());
    }
    Ok(())
}

/// Under SMTP a message for several mailboxes is in all of them or refused and in none; the mailbox that failed then takes
/// nothing for a minute, in which the others get the next try. Under LMTP only who is hit goes without.
#[test]
fn each_operation_fails_once_while_mail_goes_to_several_mailboxes() {
    let (first, large, alone, again) = (message(0, 200), message(1, 70_000), message(2, 200), message(3, 200));
    let several = [(1, &first), (2, &first), (3, &first), (2, &large), (3, &large), (1, &alone), (1, &again)];
    let all: Vec<Promise> =
        several.into_iter().chain([(2, &again), (3, &again)]).map(|(mailbox, text)| (mailbox, text.clone())).collect();
    let connect = |world: &mut World, dialect| {
        world.connect_to(&USERS, dialect, vec![mail(&first)]);
        world.connect_to(&["c", "b"], dialect, vec![mail(&large)]);
        world.connect_to(&["a"], dialect, vec![mail_by(Manner::Chunks, &alone)]);
        world.run();
    };
    let mut runs = 0;
    for (dialect, ends, links) in [
        (Dialect::Smtp, Ends::AtOnce, true),
        (Dialect::Smtp, Ends::Told, true),
        (Dialect::Smtp, Ends::Told, false),
        (Dialect::Lmtp, Ends::Told, true),
        (Dialect::Lmtp, Ends::Told, false),
    ] {
        let new_disk = || {
            let disk = ModelDisk::new(ends).maildirs(&MAILBOXES, true);
            if links { disk } else { disk.without_links(Errno::MLINK) }
        };
        let plain = new_disk();
        let mut world = World::with(with_mailboxes(), &plain, MinFree::Usual, 0).expect("a Maildir");
        connect(&mut world, dialect);
        assert_eq!(world.told().filter(|(_, _, reply)| reply.starts_with("250")).count(), 6);
        // Where links can be made, a message for several mailboxes is flushed once.
        let kinds = plain.operations();
        let count = |kind| kinds.iter().filter(|&&other| other == kind).count();
        assert_eq!((count(Kind::EndFileFlush), count(Kind::Create)), if links { (3, 3) } else { (6, 6) });
        for (index, &kind) in kinds.iter().enumerate() {
            for &error in errors(kind) {
                let disk = new_disk();
                disk.fail(index + 1, 1, error);
                let Ok(mut world) = World::with(with_mailboxes(), &disk, MinFree::Usual, 0) else { continue };
                let begin = world.now.instant;
                connect(&mut world, dialect);
                let end = world.now.instant;
                runs += 1;
                let refused: Vec<_> = world.told().filter(|(_, _, reply)| !reply.starts_with("250")).cloned().collect();
                let told = format!(
                    "{dialect:?}, {ends:?}, links={links}: {error:?} from operation {} ({kind:?}), refused {:?}",
                    index + 1,
                    refused.iter().map(|(user, _, reply)| (user, reply)).collect::<Vec<_>>()
                );
                let tidy = kind != Kind::Remove || error == Errno::NOENT;
                let result = check_mailboxes(&world, &all, tidy);
                result.unwrap_or_else(|problem| panic!("{told}: {problem}:{}", disk.history()));
                // What comes behind a flush that failed is not stored there either, whatever that error was.
                let start = if kind == Kind::EndDirectoryFlush { "45" } else { reply_to(error) };
                assert!(refused.iter().all(|(_, _, reply)| reply.starts_with(start)), "{told}");
                // A link that can't be made is no failure, as the message is written again.
                assert!(refused.is_empty() || kind != Kind::Link, "{told}");
                let mut hit: Vec<_> = refused.iter().map(|(_, text, _)| text).collect();
                hit.dedup();
                let shared = links && matches!(kind, Kind::Write | Kind::EndFileFlush);
                // A flush of a directory may be that of several messages.
                assert!(hit.len() <= 1 || kind == Kind::EndDirectoryFlush, "{told}");
                let mut missing = Vec::new();
                if dialect == Dialect::Lmtp {
                    assert!(refused.len() <= hit.len() || shared, "the others go without: {told}");
                } else if refused.len() > 1 {
                    // Where a directory's flush fails, all storage is tried again before it takes mail.
                    missing = left_out(&mut world);
                    // And where this process is out of something, that is no mailbox's fault.
                    let ours = matches!(error, Errno::MFILE | Errno::NFILE | Errno::NOMEM);
                    let least = usize::from(kind != Kind::EndDirectoryFlush && !ours);
                    assert!(!ours || missing.is_empty(), "{told}: {missing:?} are left out");
                    assert!((least..=1).contains(&missing.len()), "{told}: {missing:?} are left out");
                    let hit = |user: &&str| refused.iter().any(|(other, ..)| other.starts_with(user));
                    assert!(missing.iter().all(hit), "{told}: {missing:?}");
                }
                // The next try reaches all that are not left out.
                let others: Vec<_> = USERS.into_iter().filter(|user| !missing.contains(user)).collect();
                let client = world.connect_to(&USERS, dialect, vec![mail(&again)]);
                world.run();
                let reached: Vec<_> = world.clients[client].told.iter().map(|(user, _, _)| &user[..1]).collect();
                assert_eq!(reached, others, "{told}");
                assert!(world.clients[client].told.iter().all(|(_, _, reply)| reply.starts_with("250")), "{told}");
                let result = check_mailboxes(&world, &all, tidy);
                result.unwrap_or_else(|problem| panic!("{told}, then again: {problem}:{}", disk.history()));
                // For a minute since it failed, which was between `begin` and `end`.
                let left = (begin + 60 * SECOND).saturating_duration_since(world.now.instant);
                world.pass(left.saturating_sub(SECOND / 10));
                if !missing.is_empty() && !left.is_zero() {
                    assert_eq!(left_out(&mut world), missing, "{told}");
                }
                world.pass((end + 60 * SECOND).saturating_duration_since(world.now.instant));
                assert_eq!(left_out(&mut world), <[&str; 0]>::default(), "{told}: for longer than a minute");
                world.pass(SECOND);
                // Where the main Maildir was opened again, its next message closes what is to be flushed with it.
                world.connect_to(&["postmaster"], Dialect::Smtp, vec![mail(&again)]);
                world.run();
                assert_eq!(disk.open_descriptors(), 3, "{told}");
            }
        }
    }
    println!("{runs} faults");
}

#[test]
fn a_mailbox_that_stays_broken_does_not_keep_mail_from_the_others() {
    for (index, user) in USERS.into_iter().enumerate() {
        for (directory, errno) in [("tmp", Errno::ACCESS), ("tmp", Errno::NOSPC), ("new", Errno::ROFS)] {
            let told = format!("{user}, {directory}/");
            let disk = ModelDisk::new(Ends::AtOnce).maildirs(&MAILBOXES, true);
            let mut world = World::with(with_mailboxes(), &disk, MinFree::Usual, 0).expect("a Maildir");
            let send = |world: &mut World, dialect, number| {
                let client = world.connect_to(&USERS, dialect, vec![mail(&message(number, 200))]);
                world.run();
                world.clients[client]
                    .told
                    .iter()
                    .map(|(to, _, reply)| (to[..1].to_owned(), reply[..9].to_owned()))
                    .collect::<Vec<_>>()
            };
            let there = |number: usize| {
                let is = |file: &model::hand::Found| file.octets.ends_with(message(number, 200).as_bytes());
                let count = |path| disk.files_in(path, "new").iter().filter(|file| is(file)).count();
                MAILBOXES.map(count)
            };
            let others: [usize; 3] = std::array::from_fn(|other| usize::from(other != index));
            disk.break_directory(Some((format!("/mail/{user}/{directory}"), errno)));
            let expected = |broken: &str| -> Vec<_> {
                let reply = |other: &str| if other == user { broken.to_owned() } else { "250 2.0.0".to_owned() };
                USERS.iter().map(|other| ((*other).to_owned(), reply(other))).collect()
            };
            assert_eq!(send(&mut world, Dialect::Lmtp, 0), expected(reply_to(errno)), "{told}");
            assert_eq!(there(0), others, "{told}");
            assert_eq!(left_out(&mut world), <[&str; 0]>::default(), "{told}: LMTP tells of each by itself");
            for round in 0..2 {
                let replies = send(&mut world, Dialect::Smtp, 1 + 2 * round);
                assert!(replies.len() == 3 && replies.iter().all(|(_, reply)| reply == reply_to(errno)), "{replies:?}");
                assert_eq!(there(1 + 2 * round), [0; 3], "{told}");
                assert_eq!(left_out(&mut world), [user], "{told}");
                let replies = send(&mut world, Dialect::Smtp, 2 + 2 * round);
                let taken = expected("").into_iter().filter(|(other, _)| other != user);
                assert_eq!(replies, taken.collect::<Vec<_>>(), "{told}");
                assert_eq!(there(2 + 2 * round), others, "{told}");
                world.pass(SECOND * 60);
            }
            disk.break_directory(None);
            assert_eq!(send(&mut world, Dialect::Smtp, 5), expected("250 2.0.0"), "{told}");
            assert_eq!(there(5), [1; 3], "{told}");
            assert!(MAILBOXES.iter().all(|path| disk.files_in(path, "tmp").is_empty()), "{told}");
            assert_eq!((disk.violations(), disk.open_descriptors()), (vec![], 3), "{told}");
        }
    }
}

#[test]
fn where_links_can_not_be_made_each_mailbox_has_a_file_of_its_own() {
    for errno in [Errno::XDEV, Errno::PERM, Errno::MLINK, Errno::NOTSUP] {
        let disk = ModelDisk::new(Ends::Told).maildirs(&MAILBOXES, true).without_links(errno);
        let mut world = World::with(with_mailboxes(), &disk, MinFree::Usual, 0).expect("a Maildir");
        world.connect_to(&USERS, Dialect::Smtp, vec![mail(&message(0, 70_000))]);
        world.run();
        let found: Vec<_> = MAILBOXES.iter().flat_map(|path| disk.files_in(path, "new")).collect();
        assert_eq!(found.len(), 3);
        assert!(found.iter().all(|file| file.octets == found[0].octets), "{errno:?}");
        assert!(found.iter().all(|file| found.iter().filter(|other| other.inode == file.inode).count() == 1));
        assert!(MAILBOXES.iter().all(|path| disk.files_in(path, "tmp").is_empty()));
        assert_eq!((disk.violations(), disk.open_descriptors()), (vec![], 3));
    }
}

/// A client at the point where its MAIL was answered; and whether it was taken.
fn mail_is_taken(world: &mut World, client: usize) -> bool {
    let replies = world.say(client, "RSET\r\nMAIL FROM:<a@example>\r\n");
    let reply = replies.lines().last().unwrap_or_default();
    assert!(["250 2.1.0", "451 4.3.0", "452 4.3.1"].iter().any(|start| reply.starts_with(start)), "{reply}");
    reply.starts_with("250")
}

/// A world in which so many messages wait for the ends of their flushes, and a client that has no message.
fn world_with_flushes(count: usize) -> (World, usize) {
    let mut world = World::new(&ModelDisk::new(Ends::Told), MinFree::Usual, 0).expect("a Maildir");
    let idle = world.connect(Vec::new());
    world.server.turn(world.now);
    world.clients[idle].replies();
    world.clients[idle].step = Step::Gone;
    for number in 0..count {
        world.connect(vec![mail(&message(number, 200))]);
    }
    world.settle();
    assert_eq!(world.disk.flushes_under_way(), count);
    (world, idle)
}

fn fail_next(disk: &ModelDisk, count: usize, error: Errno) {
    disk.fail(disk.operations().len() + 1, count, error);
}

#[test]
fn after_a_failed_flush_mail_is_refused_until_a_probe_succeeds() {
    let (mut world, idle) = world_with_flushes(1);
    let disk = world.disk.clone();
    fail_next(&disk, 1, Errno::IO);
    world.end_flushes(1);
    world.settle();
    assert!(world.clients[1].verdicts[0].1.starts_with("451 4.3.0"));
    // Nobody asks, so nothing is tried.
    let quiet = disk.operations().len();
    (0..10).for_each(|_| world.pass(SECOND));
    assert_eq!(disk.operations().len(), quiet, "{}", disk.history());
    // Each probe fails: at most one a second.
    let made = disk.count(Kind::Create);
    for tenth in 0..30 {
        assert!(!mail_is_taken(&mut world, idle));
        assert!(disk.count(Kind::Create) <= made + 1 + tenth / 10, "{}", disk.history());
        if disk.flushes_under_way() > 0 {
            fail_next(&disk, 1, Errno::IO);
            world.end_flushes(1);
        }
        world.pass(SECOND / 10);
    }
    assert_eq!(disk.count(Kind::Create), made + 3, "one a second, as somebody asks");
    // A probe that takes long is not begun a second time.
    for _ in 0..50 {
        world.pass(SECOND / 10);
        assert!(!mail_is_taken(&mut world, idle));
    }
    assert_eq!(disk.count(Kind::Create), made + 4);
    world.end_flushes(1);
    world.server.turn(world.now);
    assert!(mail_is_taken(&mut world, idle));
    assert!(disk.files("tmp").is_empty() && disk.files("new").is_empty());
    assert_eq!(disk.violations(), Vec::<String>::new());
}

#[test]
fn a_flush_that_fails_during_a_probe_begins_no_second_one() {
    let (mut world, idle) = world_with_flushes(2);
    let disk = world.disk.clone();
    fail_next(&disk, 1, Errno::IO);
    world.end_flushes(1);
    world.settle();
    assert!(!mail_is_taken(&mut world, idle), "a flush failed");
    assert_eq!(disk.flushes_under_way(), 2, "the other message's and the probe's");
    // The other message's flush fails, too; then everybody waits, and asks again.
    fail_next(&disk, 1, Errno::IO);
    disk.end_flush(0);
    world.server.flushes_ended = true;
    world.settle();
    world.pass(SECOND * 2);
    assert!(!mail_is_taken(&mut world, idle));
    world.end_flushes(usize::MAX);
    world.server.turn(world.now);
    assert_eq!(disk.violations(), Vec::<String>::new(), "{}", disk.history());
    let (tmp, history) = (disk.files("tmp"), disk.history());
    assert!(tmp.is_empty(), "a probe is left in tmp/: {tmp:?}{history}");
    // The disk failed after that probe began, so its success does not count; another's does.
    world.pass(SECOND * 2);
    assert!(!mail_is_taken(&mut world, idle));
    world.end_flushes(usize::MAX);
    world.server.turn(world.now);
    assert!(mail_is_taken(&mut world, idle));
    assert!(disk.files("tmp").is_empty());
}

/// As a card does that is worn out: what can only be read is not asked again and again by whole messages.
#[test]
fn a_disk_that_can_only_be_read_is_not_healthy_until_it_is_well_again() {
    for (kind, errno) in [(Kind::Create, Errno::ROFS), (Kind::Create, Errno::IO), (Kind::Write, Errno::IO)] {
        let disk = ModelDisk::new(Ends::AtOnce);
        let mut world = World::new(&disk, MinFree::Usual, 0).expect("a Maildir");
        disk.fail_next(kind, usize::MAX, errno);
        let client = world.connect(vec![mail(&message(0, 200)), mail(&message(1, 200))]);
        world.settle();
        let client = &world.clients[client];
        assert!(client.verdicts[0].1.starts_with("451 4.3.0"), "{kind:?}, {errno:?}: {:?}", client.verdicts);
        assert!(client.refusals[0].starts_with("451 4.3.0"), "{kind:?}, {errno:?}: {:?}", client.refusals);
        disk.heal();
        world.pass(SECOND * 2);
        let client = world.connect(vec![mail(&message(2, 200))]);
        world.run();
        assert!(world.clients[client].verdicts[0].1.starts_with("250"), "{kind:?}, {errno:?}");
        assert!(disk.files("tmp").is_empty(), "{kind:?}, {errno:?}");
    }
}

#[test]
fn below_the_floor_of_free_space_mail_is_refused_early() {
    let space = |free| Space { free, total: 1 << 40, free_files: 1000 };
    for (min_free, floor) in [
        (MinFree::Octets(1 << 20), 1 << 20),
        (MinFree::Usual, 16 << 20),
        (MinFree::Octets(0), 0),
        (MinFree::Percent(0), 0),
    ] {
        let disk = ModelDisk::new(Ends::AtOnce);
        disk.set_space(space(floor + 1000));
        let mut world = World::new(&disk, min_free, 0).expect("a Maildir");
        let client = world.connect(Vec::new());
        world.server.turn(world.now);
        let ask = |world: &mut World, size: u64| {
            world.clients[client].replies();
            world.clients[client].send(&format!("RSET\r\nMAIL FROM:<a@example> SIZE={size}\r\n"));
            world.mark(client);
            world.server.turn(world.now);
            let replies = world.clients[client].replies();
            replies.lines().last().unwrap_or_default().get(..9).unwrap_or_default().to_owned()
        };
        let full = if floor == 0 { "250 2.1.0" } else { "452 4.3.1" };
        assert_eq!(ask(&mut world, 1000), "250 2.1.0");
        assert_eq!(ask(&mut world, 1001), full, "the declared size counts");
        disk.set_space(space(floor));
        world.pass(SECOND);
        assert_eq!(ask(&mut world, 0), full);
        disk.set_space(space(floor + 1000));
        let asked = disk.count(Kind::Space);
        for _ in 0..9 {
            assert_eq!(ask(&mut world, 0), full, "asked of the file system once a second");
            world.pass(SECOND / 10);
        }
        assert_eq!(disk.count(Kind::Space), asked);
        world.pass(SECOND / 10);
        assert_eq!(ask(&mut world, 1000), "250 2.1.0");
        assert_eq!(disk.count(Kind::Space), asked + 1);
        disk.set_space(Space { free_files: 0, ..space(1 << 30) });
        world.pass(SECOND);
        assert_eq!(ask(&mut world, 0), "452 4.3.1", "no file can be made");
    }
}

#[test]
fn leftovers_are_removed_in_small_steps() {
    const OLD: Duration = Duration::from_secs(36 * 3600);
    let disk = ModelDisk::new(Ends::Told);
    let mut world = World::new(&disk, MinFree::Usual, 0).expect("a Maildir");
    let wall = first_wall();
    let litter = |now| {
        (0..300).for_each(|number| disk.put("tmp", &format!("{number}.x.host"), now - OLD));
        disk.put("tmp", "young", now - OLD + SECOND);
    };
    litter(wall);
    // What a start leaves that is killed while it proves that mail can be kept; the one is old, the other may go on.
    disk.put("new", ".proof-1", wall - OLD);
    disk.put("new", ".proof-2", wall - OLD + SECOND);
    // So much mail that its dates are still read when the next message's file is made.
    (0..640).for_each(|number| disk.put("new", &format!("{number}.x.host"), wall));
    // A message whose file looks old: the clock stepped while it comes in.
    let client = world.connect(vec![mail(&message(0, 78_000))]);
    disk.set_clock(wall - OLD * 3);
    for _ in 0..100 {
        world.clients[client].react();
        world.mark(client);
        let before = disk.operations().len();
        world.server.turn(world.now);
        assert!(disk.operations().len() - before < 3 * 64 + 20, "too much in one turn:{}", disk.history());
    }
    let names = |directory| disk.files(directory).into_iter().map(|file| file.name).collect::<Vec<_>>();
    assert_eq!(names("tmp").len(), 2, "the young one, and the one on its way: {:?}", names("tmp"));
    assert!(!names("new").contains(&".proof-1".to_owned()) && names("new").contains(&".proof-2".to_owned()));
    world.run();
    assert_eq!((names("new").len(), names("tmp").len()), (642, 1));
    // Once a day.
    world.pass(OLD / 2);
    litter(world.now.wall);
    let listed = disk.count(Kind::List);
    (0..100).for_each(|_| world.pass(SECOND));
    assert_eq!(disk.count(Kind::List), listed);
    world.pass(OLD / 3);
    (0..20).for_each(|_| world.server.turn(world.now));
    assert!(names("tmp").is_empty(), "{:?}", names("tmp"));
    // Not while the clock is earlier than the newest mail.
    let later = world.now.wall + OLD * 2;
    let seconds = later.duration_since(std::time::UNIX_EPOCH).expect("a date").as_secs();
    disk.put("new", &format!("{seconds}.other.host"), later);
    litter(world.now.wall);
    world.pass(OLD);
    (0..20).for_each(|_| world.server.turn(world.now));
    assert_eq!(names("tmp").len(), 301);
    world.pass(OLD * 2);
    (0..20).for_each(|_| world.server.turn(world.now));
    assert!(names("tmp").is_empty(), "{:?}", names("tmp"));
}

#[test]
fn a_maildir_that_is_removed_is_found_again() {
    for (seed, path) in ["", "/new", "/tmp", "/cur"].into_iter().enumerate() {
        for when in [0, 1] {
            let disk = ModelDisk::new(Ends::Told);
            let mut world = World::new(&disk, MinFree::Usual, seed as u64).expect("a Maildir");
            if when == 1 {
                world.connect(vec![mail(&message(0, 200))]);
                world.settle();
            }
            disk.remove_directory(&format!("{MAILDIR}{path}"));
            world.settle();
            let client = world.connect(vec![mail(&message(1, 200))]);
            world.settle();
            for _ in 0..5 {
                world.pass(SECOND);
                world.retry();
                world.settle();
                world.end_flushes(usize::MAX);
                world.settle();
            }
            if path.is_empty() {
                // It may be a card that was pulled: nothing is put in its place.
                assert!(world.clients[client].verdicts.iter().all(|(_, reply)| reply.starts_with("451 4.3.0")));
                assert!(!disk.exists(MAILDIR));
                disk.make_directory(MAILDIR);
            }
            let last = world.connect(vec![mail(&message(2, 200))]);
            world.run();
            let verdicts: Vec<_> = world.verdicts().map(|(_, reply)| reply.clone()).collect();
            let told = format!("{path:?}, {when}: {verdicts:?}:{}", disk.history());
            assert!(
                verdicts.iter().all(|reply| reply.starts_with("250 2.0.0") || reply.starts_with("451 4.3.0")),
                "{told}"
            );
            assert!(world.clients[last].verdicts[0].1.starts_with("250"), "{told}");
            assert!(disk.files("new").iter().any(|file| file.octets.ends_with(message(2, 200).as_bytes())), "{told}");
            assert_eq!(disk.violations(), Vec::<String>::new(), "{told}");
        }
    }
}

#[test]
fn while_a_flush_takes_long_others_are_served_in_the_same_turn() {
    let (mut world, _) = world_with_flushes(3);
    let others: Vec<_> = (0..100).map(|_| world.connect(Vec::new())).collect();
    world.server.turn(world.now);
    // Half a second of the model's clock, in which no flush ends: the same turn answers each command.
    for _ in 0..10 {
        for line in ["NOOP\r\n", "MAIL FROM:<a@example>\r\n", "RCPT TO:<b@example>\r\n", "RSET\r\n"] {
            for &other in &others {
                world.clients[other].replies();
                world.clients[other].send(line);
                world.mark(other);
            }
            world.server.turn(world.now);
            assert!(others.iter().all(|&other| world.clients[other].replies().starts_with("250")), "{line}");
        }
        world.pass(SECOND / 20);
    }
    assert!(world.clients.iter().all(|client| client.verdicts.is_empty()), "no promise before its flush ended");
    // A message that comes now waits for nobody's flush but its own.
    let last = world.connect(vec![mail(&message(9, 200))]);
    world.settle();
    assert_eq!(world.disk.flushes_under_way(), 4);
    // Its file's, then those of the directories.
    for newest in [3, 3, 3] {
        world.disk.end_flush(newest);
        world.server.flushes_ended = true;
        world.settle();
    }
    assert_eq!(world.promised(), [message(9, 200)]);
    assert!(world.clients[last].is_done());
    others.iter().for_each(|&other| world.clients[other].step = Step::Gone);
    world.run();
    assert_eq!(world.promised().len(), 4);
}

#[test]
fn flushes_under_way_are_bounded() {
    let (mut world, _) = world_with_flushes(0);
    for number in 0..FLUSHES_MAX + 50 {
        world.connect(vec![mail(&message(number, 200))]);
    }
    for _ in 0..10 {
        world.settle();
        // And the two of the directories.
        assert!((FLUSHES_MAX..=FLUSHES_MAX + 2).contains(&world.disk.flushes_under_way()));
        world.end_flushes(5);
    }
    world.run();
    assert_eq!(world.promised().len(), FLUSHES_MAX + 50);
}

#[test]
fn sessions_wait_while_as_many_files_are_open_as_may_be() {
    const FILES: usize = 2;
    let (mut world, _) = world_with_flushes(0);
    world.server.store.files_max = FILES;
    // The others are those of the Maildir.
    let others = world.disk.open_descriptors();
    let text = |number: usize| message(number, if number % 3 == 0 { 70_000 } else { 200 });
    for number in 0..10 {
        world.connect(vec![mail(&text(number)), mail_by(Manner::Chunks, &text(number + 10))]);
    }
    let mut most = 0;
    while !world.clients.iter().all(|client| client.is_done()) {
        world.settle();
        most = most.max(world.disk.open_descriptors() - others);
        assert!(world.disk.flushes_under_way() > 0, "all wait, and for nothing");
        world.end_flushes(1);
        world.settle();
    }
    assert_eq!(most, FILES);
    assert_eq!(world.promised().len(), 20);
    assert!(world.clients.iter().all(|client| client.refusals.is_empty()), "waiting is no refusal");
}

#[test]
fn an_end_at_once_leaves_nothing_of_messages_on_their_way() {
    let (mut world, idle) = world_with_flushes(3);
    world.connect(vec![mail_by(Manner::BreaksOff, &message(9, 150_000))]);
    begin_large(&mut world, idle);
    assert_eq!(world.disk.files("tmp").len(), 4);
    world.server.abort();
    assert_eq!(world.server.connections(), 0);
    assert!(world.disk.files("tmp").is_empty() && world.disk.files("new").is_empty());
}

/// Has a client send so much of a message that it has its file.
fn begin_large(world: &mut World, client: usize) {
    let text = message(8, 78_000).replace('\n', "\r\n");
    world.say(client, "MAIL FROM:<a@example>\r\nRCPT TO:<b@example>\r\nDATA\r\n");
    world.say(client, &text);
}

#[test]
fn a_maildir_that_is_moved_away_and_back_keeps_nothing_of_a_message_that_was_refused_meanwhile() {
    for back_before_the_end in [false, true] {
        let (mut world, sender) = world_with_flushes(0);
        let disk = world.disk.clone();
        let other = world.connect(Vec::new());
        begin_large(&mut world, sender);
        assert_eq!(disk.files("tmp").len(), 1);
        let maildir = disk.move_away(MAILDIR).expect("a Maildir");
        world.pass(SECOND);
        assert!(!mail_is_taken(&mut world, other), "nobody noticed");
        if back_before_the_end {
            disk.move_back(MAILDIR, maildir);
        }
        let mut reply = world.say(sender, ".\r\n");
        while disk.flushes_under_way() > 0 {
            world.end_flushes(usize::MAX);
            reply += &world.say(sender, "");
        }
        assert!(reply.starts_with("451 4.3.0 "), "{reply}");
        if !back_before_the_end {
            disk.move_back(MAILDIR, maildir);
        }
        let left = |directory| disk.files(directory).len();
        assert_eq!((left("tmp"), left("new")), (0, 0), "{back_before_the_end}: {}", disk.history());
        world.pass(SECOND);
        world.clients[other].step = Step::Gone;
        world.connect(vec![mail(&message(1, 200))]);
        world.run();
        assert_eq!((world.promised().len(), left("tmp"), left("new")), (1, 0, 1));
    }
}

#[test]
fn a_maildir_that_is_replaced_is_noticed() {
    let disk = ModelDisk::new(Ends::AtOnce);
    let mut world = World::new(&disk, MinFree::Usual, 0).expect("a Maildir");
    world.connect(vec![mail(&message(0, 200))]);
    world.run();
    // The old one still is where it was moved to, and would take mail that nobody looks for there.
    disk.move_away(MAILDIR);
    disk.make_directory(MAILDIR);
    world.pass(SECOND);
    world.connect(vec![mail(&message(1, 200))]);
    world.run();
    judge(&disk.files("new"), &[message(1, 200)], &[message(1, 200)]).expect("the message in the new one");
}
