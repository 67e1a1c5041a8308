//! A disk that is full, read-only or gone, for real: mail is refused for now, nothing half-done stays, and when the cause
//! is gone mail is taken again without anybody's help.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Client, Place, Server, mailchute_as_somebody, skip, stored, tell, text, until};
use rustix::process::{Resource, Rlimit};

/// How soon mail is taken again when the cause is gone: the disk is asked once a second.
const RECOVERY: Duration = Duration::from_secs(3);

const FULL: &str = "452 4.3.1 ";
const FAILED: &str = "451 4.3.0 ";

/// A small file system in memory, unmounted at the end.
struct Tmpfs(Place);

impl Tmpfs {
    /// `None`, after a word about it, where mounting is not allowed.
    fn mount(options: &str) -> Option<Self> {
        let place = Place::new();
        let tmpfs = ["-t", "tmpfs", "-o", options, "mailchute-test"];
        let mounted = Command::new("mount").args(tmpfs).arg(place.path()).output();
        match mounted {
            Ok(output) if output.status.success() => {
                tell(&format!("the way: a tmpfs mounted with {options}"));
                Some(Self(place))
            }
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                skip(&format!("a tmpfs can't be mounted ({why}); what is left is the test with RLIMIT_FSIZE"));
                None
            }
            Err(error) => {
                skip(&format!("no mount program ({error}); what is left is the test with RLIMIT_FSIZE"));
                None
            }
        }
    }

    fn remount(&self, how: &str) {
        let remount = format!("remount,{how}");
        let status = Command::new("mount").args(["-o", &remount]).arg(self.0.path()).status().unwrap();
        assert!(status.success(), "{remount}: {status}");
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

/// Delivers messages until one is refused; gives how many were taken, and the refusal.
fn fill(client: &mut Client, octets: usize) -> (usize, String) {
    for count in 0..10_000 {
        let reply = client.attempt(&text(count, octets));
        if !reply.starts_with("250 ") {
            return (count as usize, reply);
        }
    }
    panic!("it never fills");
}

/// Attempts messages until one is taken, which has to be soon; until then each is refused with a 45x.
#[track_caller]
fn assert_recovers(client: &mut Client, octets: usize) {
    let start = Instant::now();
    loop {
        let reply = client.attempt(&text(1, octets));
        if reply.starts_with("250 ") {
            return;
        }
        assert!(reply.starts_with(FULL) || reply.starts_with(FAILED), "{reply}");
        assert!(start.elapsed() < RECOVERY, "still {reply}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Attempts messages for a while, longer than the disk is left alone; each is refused with `start`.
#[track_caller]
fn assert_refused(client: &mut Client, start: &str) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        let reply = client.attempt(&text(1, 1000));
        assert!(reply.starts_with(start), "{reply} in place of {start}");
        std::thread::sleep(Duration::from_millis(50));
    }
    client.say("NOOP", "250 ");
}

/// Fails unless `new/` holds so many messages, each of them whole, and `tmp/` nothing.
#[track_caller]
fn assert_whole(place: &Place, count: usize, octets: usize) {
    assert_eq!(place.files("tmp"), <[&Path; 0]>::default());
    let messages = place.messages();
    assert_eq!(messages.len(), count);
    for message in messages {
        let message = String::from_utf8(message).unwrap();
        let number = message.trim_end().rsplit_once("end of ").unwrap().1.parse().unwrap();
        let whole = message.starts_with("Return-Path: ") && message.ends_with(&stored(&text(number, octets)));
        assert!(whole, "{number} is not whole: {message}");
    }
}

fn count_lines(server: &Server, text: &str) -> usize {
    server.log().lines().filter(|line| line.contains(text)).count()
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    let Some(tmpfs) = Tmpfs::mount("size=4m") else { return };
    let place = &tmpfs.0;
    let server = Server::start(place, &["--min-free", "0"]);
    let mut client = server.connect();
    let mut there = 0;
    for _ in 0..3 {
        let (count, reply) = fill(&mut client, 100_000);
        there += count;
        assert!(reply.starts_with(FULL), "{reply}");
        assert_whole(place, there, 100_000);
        // The next ones, large and small, don't fare better, and the session goes on.
        assert!(client.attempt(&text(1, 200_000)).starts_with(FULL));
        client.say("NOOP", "250 ");
        assert_whole(place, there, 100_000);
        for path in &place.files("new")[..there / 2] {
            fs::remove_file(path).unwrap();
        }
        there -= there / 2;
        assert_recovers(&mut client, 100_000);
        there += 1;
    }
    let line = server.wait_for_line("No space left on device");
    assert!(line.starts_with("ERROR") && line.contains(place.maildir().to_str().unwrap()), "{line}");
    server.stop();
}

#[test]
fn a_full_disk_does_not_fill_the_log() {
    let Some(tmpfs) = Tmpfs::mount("size=4m") else { return };
    let server = Server::start(&tmpfs.0, &["--min-free", "0"]);
    let mut client = server.connect();
    let start = Instant::now();
    fill(&mut client, 100_000);
    for _ in 0..200 {
        assert!(client.attempt(&text(1, 100_000)).starts_with(FULL));
    }
    let (lines, seconds) = (count_lines(&server, "ERROR"), start.elapsed().as_secs() as usize);
    assert!((1..=seconds + 1).contains(&lines), "{lines} lines in {seconds} s:\n{}", server.log());
    server.stop();
}

#[test]
fn a_file_system_that_does_not_know_its_size_takes_mail() {
    for options in [&[][..], &["--min-free", "0%"], &["--min-free", "50%"]] {
        let place = Place::new();
        let Some(_ramfs) = Mounted::new(&["-t", "ramfs"], Path::new("none"), place.path()) else { return };
        let server = Server::start(&place, options);
        let mut client = server.connect();
        client.say("MAIL FROM:<a@b.example> SIZE=20000000", "250 ");
        client.say("RSET", "250 ");
        client.deliver(&text(1, 1000));
        assert_whole(&place, 1, 1000);
        server.stop();
    }
}

#[test]
fn a_full_disk_while_many_send_at_once() {
    let Some(tmpfs) = Tmpfs::mount("size=8m") else { return };
    let place = &tmpfs.0;
    let server = Server::start(place, &["--min-free", "0"]);
    let taken: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| fill(&mut server.connect(), 60_000))).collect();
        clients
            .into_iter()
            .map(|client| {
                let (count, reply) = client.join().unwrap();
                assert!(reply.starts_with(FULL), "{reply}");
                count
            })
            .sum()
    });
    assert_whole(place, taken, 60_000);
    for path in place.files("new") {
        fs::remove_file(path).unwrap();
    }
    assert_recovers(&mut server.connect(), 60_000);
    server.stop();
}

#[test]
fn without_room_for_another_file_it_refuses_and_recovers() {
    let Some(tmpfs) = Tmpfs::mount("size=4m,nr_inodes=30") else { return };
    let place = &tmpfs.0;
    let server = Server::start(place, &["--min-free", "0"]);
    let mut client = server.connect();
    let (count, reply) = fill(&mut client, 1000);
    assert!((10..30).contains(&count) && reply.starts_with(FULL), "{count}: {reply}");
    assert_whole(place, count, 1000);
    assert_refused(&mut client, FULL);
    for path in place.files("new") {
        fs::remove_file(path).unwrap();
    }
    assert_recovers(&mut client, 1000);
    server.stop();
}

#[test]
fn below_the_floor_of_free_space_mail_is_refused_before_it_is_sent() {
    let Some(tmpfs) = Tmpfs::mount("size=16m") else { return };
    let place = &tmpfs.0;
    let server = Server::start(place, &["--min-free", "50%"]);
    let mut client = server.connect();
    client.say("EHLO c", "250-");
    // The declared size counts: 8 MiB are above the floor.
    client.say("MAIL FROM:<a@b.example> SIZE=9000000", FULL);
    client.say("MAIL FROM:<a@b.example> SIZE=7000000", "250 ");
    client.say("RSET", "250 ");
    fs::write(place.path().join("ballast"), vec![1; 9_000_000]).unwrap();
    until("it is noticed", || client.attempt(&text(1, 1000)).starts_with(FULL));
    let there = place.files("new").len();
    for _ in 0..100 {
        client.say("MAIL FROM:<a@b.example>", FULL);
    }
    assert_refused(&mut client, FULL);
    assert_whole(place, there, 1000);
    fs::remove_file(place.path().join("ballast")).unwrap();
    assert_recovers(&mut client, 1000);
    assert_refused_nothing(&mut client);
    let log = server.log();
    assert_eq!(
        log.lines().filter(|line| line.starts_with("WARN")).count(),
        2,
        "one for the begin, one for the end: {log}"
    );
    assert_eq!((count_lines(&server, "below the floor"), count_lines(&server, "taking mail again")), (1, 1), "{log}");
    assert_eq!(count_lines(&server, "ERROR"), 0, "{log}");
    server.stop();
}

#[track_caller]
fn assert_refused_nothing(client: &mut Client) {
    for number in 0..20 {
        client.deliver(&text(number, 1000));
    }
}

#[test]
fn a_limit_of_file_sizes_refuses_what_is_larger() {
    tell("the way: RLIMIT_FSIZE of 100,000 octets");
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let mut client = server.connect();
    let limit = |current| {
        let maximum = rustix::process::getrlimit(Resource::Fsize).maximum;
        rustix::process::prlimit(Some(server.pid()), Resource::Fsize, Rlimit { current, maximum }).unwrap();
    };
    limit(Some(100_000));
    // What goes beyond the limit is a signal, too, which must not end the server; and several of them neither.
    for _ in 0..3 {
        let reply = client.attempt(&text(1, 300_000));
        assert!(reply.starts_with(FULL), "{reply}");
        place.assert_empty();
    }
    assert_recovers(&mut client, 50_000);
    limit(None);
    assert_recovers(&mut client, 300_000);
    assert_eq!((place.files("new").len(), place.files("tmp").len()), (2, 0));
    let line = server.wait_for_line("File too large");
    assert!(line.starts_with("ERROR") && line.contains(place.maildir().to_str().unwrap()), "{line}");
    server.stop();
}

// ---- a Maildir that changes under the server -----------------------------------------------------------------------

#[test]
fn a_maildir_that_is_gone_with_its_parent_refuses_until_it_is_back() {
    let place = Place::new();
    let (parent, away) = (place.path().join("parent"), place.path().join("away"));
    fs::create_dir(&parent).unwrap();
    let mut command = common::mailchute();
    command.args(["--listen", "127.0.0.1:0", "--sandbox", "off", "--maildir"]).arg(parent.join("Maildir"));
    let server = Server::ready(command);
    let mut client = server.connect();
    let mut within = server.connect();
    client.deliver(&text(1, 1000));
    within.begin();
    within.send(text(2, 200_000));
    let count = |root: &Path, directory: &str| fs::read_dir(root.join("Maildir").join(directory)).unwrap().count();
    until("the file in tmp/", || count(&parent, "tmp") == 1);
    fs::remove_dir_all(&parent).unwrap();
    within.say(".", FAILED);
    assert_refused(&mut client, FAILED);
    within.say("NOOP", "250 ");
    assert!(!parent.exists());
    let line = server.wait_for_line("ERROR");
    assert!(line.contains(parent.join("Maildir").to_str().unwrap()) && line.contains("No such file"), "{line}");
    fs::create_dir(&parent).unwrap();
    put_back(&parent.join("Maildir"));
    assert_recovers(&mut client, 1000);
    assert_eq!((count(&parent, "new"), count(&parent, "tmp")), (1, 0));
    // Renamed in place of removed: what is accepted meanwhile is not lost, but all else is as before.
    fs::rename(&parent, &away).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    assert_refused(&mut client, FAILED);
    fs::rename(&away, &parent).unwrap();
    assert_recovers(&mut client, 1000);
    assert_eq!((count(&parent, "new"), count(&parent, "tmp")), (2, 0));
    // A line a second at most, however many were refused.
    let lines = count_lines(&server, "ERROR") + count_lines(&server, "WARN");
    assert!(lines < 20, "{lines} lines:\n{}", server.log());
    server.stop();
}

/// Makes what is missing of a Maildir.
fn put_back(maildir: &Path) {
    for directory in ["", "tmp", "new", "cur"] {
        let _ = fs::create_dir(maildir.join(directory));
    }
}

#[test]
fn a_maildir_that_is_removed_refuses_until_it_is_back() {
    let place = Place::new();
    let server = Server::start(&place, &["--sandbox", "off"]);
    let mut client = server.connect();
    client.deliver(&text(1, 1000));
    for _ in 0..2 {
        fs::remove_dir_all(place.maildir()).unwrap();
        assert_refused(&mut client, FAILED);
        assert!(!place.maildir().exists(), "it was made anew, but may be a card that was pulled");
        put_back(&place.maildir());
        assert_recovers(&mut client, 1000);
        assert_whole(&place, 1, 1000);
    }
    // Only a part of it: whether that is made anew or awaited, what is told 250 is there.
    for directory in ["new", "tmp", "cur"] {
        let before = if directory == "new" { 0 } else { place.files("new").len() };
        fs::remove_dir_all(place.maildir().join(directory)).unwrap();
        let reply = client.attempt(&text(1, 1000));
        put_back(&place.maildir());
        let taken = usize::from(reply.starts_with("250 "));
        assert!(taken == 1 || reply.starts_with(FAILED), "{reply}");
        assert_recovers(&mut client, 1000);
        assert_whole(&place, before + taken + 1, 1000);
    }
    server.stop();
}

/// Something mounted on another place, unmounted at the end.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(arguments: &[&str], from: &Path, to: &'a Path) -> Option<Self> {
        let status = Command::new("mount").args(arguments).args([from, to]).status();
        if status.is_ok_and(|status| status.success()) {
            return Some(Self(to));
        }
        skip("mounting is not allowed here");
        None
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn a_maildir_that_was_a_mount_refuses_until_it_is_mounted_again() {
    let place = Place::new();
    let (card, maildir) = (place.path().join("card"), place.maildir());
    fs::create_dir(&card).unwrap();
    fs::create_dir(&maildir).unwrap();
    // A file system of its own, as a card has one.
    let Some(_card) = Mounted::new(&["-t", "tmpfs"], Path::new("none"), &card) else { return };
    let Some(mounted) = Mounted::new(&["--bind"], &card, &maildir) else { return };
    let server = Server::start(&place, &[]);
    let mut client = server.connect();
    client.deliver(&text(1, 1000));
    drop(mounted);
    std::thread::sleep(Duration::from_millis(1100));
    assert_refused(&mut client, FAILED);
    assert_eq!(fs::read_dir(&maildir).unwrap().count(), 0, "mail lies below the mount point");
    let _mounted = Mounted::new(&["--bind"], &card, &maildir);
    assert_recovers(&mut client, 1000);
    assert_whole(&place, 2, 1000);
    server.stop();
}

#[test]
fn a_maildir_that_is_replaced_by_a_file_refuses_until_it_is_back() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    let mut client = server.connect();
    client.deliver(&text(1, 1000));
    let away = place.path().join("away");
    fs::rename(place.maildir(), &away).unwrap();
    fs::write(place.maildir(), "in its place").unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    assert_refused(&mut client, FAILED);
    assert_eq!(fs::read(place.maildir()).unwrap(), b"in its place");
    fs::remove_file(place.maildir()).unwrap();
    fs::rename(&away, place.maildir()).unwrap();
    assert_recovers(&mut client, 1000);
    assert_whole(&place, 2, 1000);
    server.stop();
}

#[test]
fn a_maildir_that_is_replaced_by_another_takes_the_mail() {
    let place = Place::new();
    let server = Server::start(&place, &["--sandbox", "off"]);
    let mut client = server.connect();
    client.deliver(&text(1, 1000));
    fs::rename(place.maildir(), place.path().join("away")).unwrap();
    for directory in ["", "tmp", "new", "cur"] {
        fs::create_dir(place.maildir().join(directory)).unwrap();
    }
    std::thread::sleep(Duration::from_millis(1100));
    assert_recovers(&mut client, 1000);
    assert_whole(&place, 1, 1000);
    assert_eq!(fs::read_dir(place.path().join("away/new")).unwrap().count(), 1);
    server.stop();
}

#[test]
fn a_read_only_file_system_refuses_until_it_is_writable() {
    let Some(tmpfs) = Tmpfs::mount("size=4m") else { return };
    let place = &tmpfs.0;
    let server = Server::start(place, &[]);
    let mut client = server.connect();
    client.deliver(&text(1, 1000));
    tmpfs.remount("ro");
    assert_refused(&mut client, FAILED);
    assert_whole(place, 1, 1000);
    let line = server.wait_for_line("Read-only file system");
    assert!(line.starts_with("ERROR") && line.contains(place.maildir().to_str().unwrap()), "{line}");
    tmpfs.remount("rw");
    assert_recovers(&mut client, 1000);
    assert_whole(place, 2, 1000);
    server.stop();
}

#[test]
fn directories_that_may_not_be_written_refuse_until_they_may() {
    let place = Place::short();
    let (mut command, user, group) = mailchute_as_somebody(&place);
    fs::create_dir(place.maildir()).unwrap();
    std::os::unix::fs::chown(place.maildir(), Some(user), Some(group)).unwrap();
    // From the journal a message goes there when it is answered already.
    command.args(["--listen", "127.0.0.1:0", "--sync", "always", "--maildir"]).arg(place.maildir());
    let server = Server::ready(command);
    let mut client = server.connect();
    client.deliver(&text(1, 1000));
    for (count, directory) in ["tmp", "new"].into_iter().enumerate() {
        let chmod = |mode| {
            fs::set_permissions(place.maildir().join(directory), fs::Permissions::from_mode(mode)).unwrap();
        };
        chmod(0o500);
        assert_refused(&mut client, FAILED);
        let line = server.wait_for_line("Permission denied");
        assert!(line.starts_with("ERROR") && line.contains(place.maildir().to_str().unwrap()), "{line}");
        chmod(0o700);
        assert_recovers(&mut client, 1000);
        assert_whole(&place, count + 2, 1000);
    }
    server.stop();
}
