//! Several mailboxes as people have them: the real binary, real directories, links and signals.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{Client, Place, Server, bare_command, mailchute, mailchute_by_shell, run, stored, text, until};
use rustix::process::Signal;

/// Tries to send a text to these recipients: the replies to RCPT, and the last one where somebody was taken.
#[track_caller]
fn send(client: &mut Client, recipients: &[&str], text: &str) -> (Vec<String>, Option<String>) {
    client.say("MAIL FROM:<from@a.example>", "250 ");
    let replies: Vec<_> = recipients.iter().map(|it| client.say(&format!("RCPT TO:<{it}>"), "")).collect();
    if !replies.iter().any(|reply| reply.starts_with("250 ")) {
        client.say("RSET", "250 ");
        return (replies, None);
    }
    client.say("DATA", "354 ");
    client.send(text);
    (replies, Some(client.say(".", "")))
}

/// Sends a text that is to reach them all.
#[track_caller]
fn deliver(client: &mut Client, recipients: &[&str], text: &str) {
    let (replies, last) = send(client, recipients, text);
    assert!(replies.iter().all(|reply| reply.starts_with("250 2.1.5")), "{replies:?}");
    assert!(last.as_ref().is_some_and(|reply| reply.starts_with("250 2.0.0")), "{last:?}");
}

/// Fails unless a recipient is refused so.
#[track_caller]
fn refuse(client: &mut Client, recipient: &str, start: &str) {
    let (replies, last) = send(client, &[recipient], "Subject: refused\r\n\r\n");
    assert!(replies[0].starts_with(start) && last.is_none(), "{recipient}: {replies:?} {last:?}");
}

/// The messages in a Maildir, without their trace lines; none where there is no Maildir.
fn texts(maildir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(maildir.join("new")) else { return Vec::new() };
    // One may be removed before it is read.
    let messages = entries.filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok());
    let mut texts: Vec<_> = messages.map(|it| it[it.find("Subject:").unwrap()..].to_owned()).collect();
    texts.sort();
    texts
}

/// All that is below a directory.
fn tree(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            found.extend(tree(&path));
        }
        found.push(path);
    }
    found
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn start_with_mailboxes(place: &Place, options: &[&str]) -> (Server, PathBuf) {
    let mailboxes = place.path().join("boxes");
    let server = Server::start(place, &[&["--mailboxes", mailboxes.to_str().unwrap()], options].concat());
    (server, mailboxes)
}

/// With a table that names a Maildir for one recipient.
fn start_with_alice(place: &Place) -> (Server, PathBuf) {
    let (alice, table) = (place.path().join("alice"), place.path().join("table"));
    fs::create_dir(&alice).unwrap();
    fs::write(&table, format!("alice@example.org {}\n", alice.display())).unwrap();
    (Server::start(place, &["--recipients", table.to_str().unwrap()]), alice)
}

#[test]
fn only_mailboxes_that_are_there_are_accepted() {
    let place = Place::new();
    let (server, mailboxes) = start_with_mailboxes(&place, &[]);
    assert_eq!(mode(&mailboxes), 0o700);
    let mut client = server.connect();
    refuse(&mut client, "alice@example.org", "550 5.1.1");
    assert_eq!(tree(&mailboxes), <[&Path; 0]>::default(), "something was made");
    // What an administrator makes counts from now on: a directory; its Maildir's own are made in it.
    let alice = mailboxes.join("example.org/alice");
    fs::create_dir_all(&alice).unwrap();
    fs::set_permissions(&alice, Permissions::from_mode(0o750)).unwrap();
    fs::write(mailboxes.join("example.org/file"), "no directory").unwrap();
    deliver(&mut client, &["Alice@Example.ORG"], "Subject: 1\r\n\r\n");
    assert_eq!(texts(&alice), ["Subject: 1\n\n"]);
    assert_eq!(mode(&alice), 0o750, "it is not ours to change");
    assert!(["tmp", "new", "cur"].iter().all(|name| mode(&alice.join(name)) == 0o700));
    refuse(&mut client, "file@example.org", "550 5.1.1");
    refuse(&mut client, "bob@example.org", "550 5.1.1");
    refuse(&mut client, "alice@b.example", "550 5.1.1");
    refuse(&mut client, "\"../example.org/alice\"@b.example", "550 5.1.1");
    refuse(&mut client, "\"alice/new\"@example.org", "550 5.1.1");
    // Some are there, others not: those that are get it. Somebody answers for the server.
    let (replies, last) = send(&mut client, &["bob@example.org", "alice@example.org"], "Subject: 2\r\n\r\n");
    assert!(replies[0].starts_with("550") && replies[1].starts_with("250") && last.unwrap().starts_with("250"));
    deliver(&mut client, &["postmaster", "postmaster@example.org"], "Subject: 3\r\n\r\n");
    assert_eq!((texts(&alice).len(), texts(&place.maildir())), (2, vec!["Subject: 3\n\n".to_owned()]));
    // One that is gone is refused again.
    fs::remove_dir_all(&alice).unwrap();
    refuse(&mut client, "alice@example.org", "550 5.1.1");
    server.stop();
}

#[test]
fn mailboxes_are_made_where_that_is_asked_for() {
    for umask in ["077", "022", "777"] {
        let place = Place::new();
        let mailboxes = place.path().join("boxes");
        let mut command = mailchute_by_shell(&format!("umask {umask}; exec \"$@\""));
        command.args(["--listen", "127.0.0.1:0", "--create-mailboxes", "--domain", "*.org", "--domain", "b.example"]);
        command.arg("--mailboxes").arg(&mailboxes);
        let server = Server::ready(command);
        let mut client = server.connect();
        let special = ["\"../../x\"", "\"a/b\"", "\".hidden\"", "\"a b\"", "UPPER", "a.b", "user+tag"];
        let names = ["%2E.%2F..%2Fx", "a%2Fb", "%2Ehidden", "a%20b", "upper", "a.b", "user"];
        let recipients = special.map(|local_part| format!("{local_part}@example.org"));
        for recipient in &recipients {
            deliver(&mut client, &[recipient], "Subject: 1\r\n\r\n");
        }
        refuse(&mut client, "a@c.example", "550 5.7.1");
        for name in names {
            assert_eq!(texts(&mailboxes.join("example.org").join(name)), ["Subject: 1\n\n"], "{name}");
        }
        // Without --maildir the main one is below, too.
        let mut there: HashSet<_> = fs::read_dir(&mailboxes).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        there.remove(OsStr::new(".mailchute-journal.0"));
        assert_eq!(there, HashSet::from(["example.org".into(), "postmaster".into()]));
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
        for path in tree(&mailboxes) {
            assert_eq!(mode(&path), if path.is_dir() { 0o700 } else { 0o600 }, "umask {umask}, {}", path.display());
        }
        server.stop();
    }
}

#[test]
fn no_symbolic_link_leads_out_of_the_mailboxes() {
    for options in [&[][..], &["--create-mailboxes"]] {
        let place = Place::new();
        let outside = place.path().join("outside");
        for name in ["tmp", "new", "cur", "user/tmp", "user/new", "user/cur"] {
            fs::create_dir_all(outside.join(name)).unwrap();
        }
        let before = tree(&outside).len();
        // The directory itself may be a link: the administrator named it.
        let real = place.path().join("real");
        fs::create_dir_all(real.join("example.org")).unwrap();
        symlink(&real, place.path().join("boxes")).unwrap();
        symlink(&outside, real.join("linked.example")).unwrap();
        symlink("../../outside", real.join("example.org/relative")).unwrap();
        symlink(&outside, real.join("example.org/absolute")).unwrap();
        symlink("nowhere", real.join("example.org/dangling")).unwrap();
        for (user, directory) in [("t", "tmp"), ("n", "new"), ("c", "cur")] {
            fs::create_dir(real.join("example.org").join(user)).unwrap();
            symlink(outside.join(directory), real.join("example.org").join(user).join(directory)).unwrap();
        }
        fs::create_dir_all(real.join("example.org/good")).unwrap();
        symlink(&outside, real.join("example.org/good/.folder")).unwrap();
        let (server, _) = start_with_mailboxes(&place, options);
        for recipient in [
            "user@linked.example",
            "relative@example.org",
            "absolute@example.org",
            "dangling@example.org",
            "t@example.org",
            "n@example.org",
            "c@example.org",
        ] {
            let (replies, last) = send(&mut server.connect(), &[recipient], &text(1, 100_000));
            let reply = last.as_ref().unwrap_or(&replies[0]);
            assert!(reply.starts_with("550 5.1.1 ") || reply.starts_with("451 4.3.0 "), "{recipient}: {reply}");
        }
        assert_eq!(tree(&outside).len(), before, "{options:?}: {:?}", tree(&outside));
        assert!(!real.join("nowhere").exists() && !real.join("example.org/nowhere").exists());
        deliver(&mut server.connect(), &["good@example.org", "good+folder@example.org"], "Subject: good\r\n\r\n");
        assert_eq!(texts(&real.join("example.org/good")), ["Subject: good\n\n"], "once, and not in the folder");
        assert_eq!(tree(&outside).len(), before);
        server.stop();
    }
}

/// In a table, though, the administrator named it.
#[test]
fn a_symbolic_link_that_a_table_names_is_followed() {
    let place = Place::new();
    let (real, link, table) = (place.path().join("real"), place.path().join("link"), place.path().join("table"));
    fs::create_dir(&real).unwrap();
    symlink(&real, &link).unwrap();
    fs::write(&table, format!("alice@example.org {}/\n", link.display())).unwrap();
    let server = Server::start(&place, &["--recipients", table.to_str().unwrap()]);
    deliver(&mut server.connect(), &["alice@example.org"], "Subject: 1\r\n\r\n");
    assert_eq!(texts(&real), ["Subject: 1\n\n"]);
    server.stop();
}

#[test]
fn a_maildir_that_is_named_twice_has_a_message_once() {
    let place = Place::new();
    let (alice, link, table) =
        (place.path().join("boxes/alice"), place.path().join("link"), place.path().join("table"));
    fs::create_dir_all(&alice).unwrap();
    symlink(&alice, &link).unwrap();
    fs::write(&table, format!("sales {}//\nteam {}\n", alice.display(), link.display())).unwrap();
    let options = ["--domain", "example.org", "--recipients", table.to_str().unwrap()];
    let (server, _) = start_with_mailboxes(&place, &options);
    let all = ["alice@example.org", "sales@example.org", "team@example.org"];
    deliver(&mut server.connect(), &all, "Subject: 1\r\n\r\n");
    assert_eq!(texts(&alice), ["Subject: 1\n\n"]);
    // Also a long one, which is not in memory.
    let long = format!("Subject: 2\r\n\r\n{}", "0123456789\r\n".repeat(20_000));
    deliver(&mut server.connect(), &all, &long);
    assert_eq!(texts(&alice).len(), 2);
    assert_eq!(fs::read_dir(alice.join("tmp")).unwrap().count(), 0);
    server.stop();
}

/// Nor does a main Maildir that is gone keep mail from the others.
#[test]
fn while_the_main_maildir_is_gone_others_take_mail() {
    let place = Place::new();
    let (server, _) = start_with_alice(&place);
    let mut client = server.connect();
    deliver(&mut client, &["alice@example.org"], "Subject: 1\r\n\r\n");
    let aside = place.path().join("aside");
    fs::rename(place.maildir(), &aside).unwrap();
    until("it is missed", || {
        deliver(&mut client, &["alice@example.org"], "Subject: 2\r\n\r\n");
        server.log().contains("refusing its mail")
    });
    deliver(&mut client, &["alice@example.org"], "Subject: 3\r\n\r\n");
    let (_, last) = send(&mut client, &["postmaster"], "Subject: 4\r\n\r\n");
    assert!(last.is_some_and(|reply| reply.starts_with("451 4.3.0")));
    fs::rename(&aside, place.maildir()).unwrap();
    until("the main Maildir is back", || {
        send(&mut client, &["postmaster"], "Subject: 5\r\n\r\n").1.is_some_and(|reply| reply.starts_with("250"))
    });
    server.stop();
}

/// So is a Maildir that a table names.
#[test]
fn while_a_maildir_of_the_table_is_gone_its_mail_is_to_come_later() {
    let place = Place::new();
    let (server, alice) = start_with_alice(&place);
    let mut client = server.connect();
    deliver(&mut client, &["alice+tag@example.org"], "Subject: 1\r\n\r\n");
    fs::rename(&alice, place.path().join("aside")).unwrap();
    refuse(&mut client, "alice@example.org", "451 4.3.0");
    refuse(&mut client, "alice+tag@example.org", "451 4.3.0");
    server.stop();
}

/// A card may have been pulled: nobody's mail is to be refused for ever.
#[test]
fn while_the_directory_of_mailboxes_is_gone_all_mail_is_to_come_later() {
    let place = Place::new();
    let main = place.path().join("main");
    let options = ["--domain", "example.org", "--maildir", main.to_str().unwrap()];
    let (server, mailboxes) = start_with_mailboxes(&place, &options);
    fs::create_dir(mailboxes.join("alice")).unwrap();
    let mut client = server.connect();
    deliver(&mut client, &["alice@example.org"], "Subject: 1\r\n\r\n");
    let aside = place.path().join("aside");
    fs::rename(&mailboxes, &aside).unwrap();
    refuse(&mut client, "alice@example.org", "451 4.3.0");
    fs::rename(&aside, &mailboxes).unwrap();
    deliver(&mut client, &["alice@example.org"], "Subject: 2\r\n\r\n");
    refuse(&mut client, "bob@example.org", "550 5.1.1");
    server.stop();
}

#[test]
fn a_table_is_read_again_on_sighup() {
    let place = Place::new();
    let (alice, bob, table) = (place.path().join("alice"), place.path().join("bob"), place.path().join("table"));
    fs::create_dir(&alice).unwrap();
    fs::create_dir(&bob).unwrap();
    let both = format!("alice@example.org {0}/\nbob@example.org {1}\n", alice.display(), bob.display());
    let write = |text: &str| fs::write(&table, text).unwrap();
    write(&both[..both.find("bob").unwrap()]);
    let server = Server::start(&place, &["--sandbox", "off", "--recipients", table.to_str().unwrap()]);
    let mut client = server.connect();
    deliver(&mut client, &["alice@example.org"], "Subject: 1\r\n\r\n");
    refuse(&mut client, "bob@example.org", "550 5.1.1");
    refuse(&mut client, "bob@other.example", "550 5.7.1");
    // A new table does not count before the signal, and then in sessions that were there before; what they have begun
    // goes where it was to go.
    let mut within = server.connect();
    within.say("MAIL FROM:<from@a.example>", "250 ");
    within.say("RCPT TO:<alice@example.org>", "250 ");
    write(
        &(both.clone()
            + "all@example.org alice@example.org, bob@example.org, alice@example.org\nno@example.org discard\n"),
    );
    refuse(&mut client, "bob@example.org", "550 5.1.1");
    server.signal(Signal::HUP);
    server.wait_for_line("the table of recipients is read again");
    deliver(&mut client, &["bob@example.org"], "Subject: 2\r\n\r\n");
    deliver(&mut client, &["all@example.org", "bob@example.org"], "Subject: 3\r\n\r\n");
    deliver(&mut client, &["no@example.org"], "Subject: dropped\r\n\r\n");
    // A faulty one leaves the old in force; so does one that is gone.
    write(&format!("{both}sales@example.org carol@example.org\n"));
    server.signal(Signal::HUP);
    let line = server.wait_for_line("ERROR");
    let place_of_it = format!("{}:3:19: \"carol@example.org\" has no mailbox here", table.display());
    assert!(line.contains(&place_of_it) && line.ends_with("the recipients stay as they were"), "{line}");
    deliver(&mut client, &["all@example.org"], "Subject: 4\r\n\r\n");
    fs::remove_file(&table).unwrap();
    server.signal(Signal::HUP);
    server.wait_for_line("No such file");
    deliver(&mut client, &["all@example.org"], "Subject: 5\r\n\r\n");
    within.say("DATA", "354 ");
    within.send("Subject: 6\r\n\r\n");
    within.say(".", "250 ");
    // The mended one counts again.
    write(&both);
    server.signal(Signal::HUP);
    until("it is read", || server.log().matches("is read again").count() == 2);
    refuse(&mut client, "all@example.org", "550 5.1.1");
    let subjects = |numbers: &[u8]| numbers.iter().map(|it| format!("Subject: {it}\n\n")).collect::<Vec<_>>();
    assert_eq!((texts(&alice), texts(&bob)), (subjects(&[1, 3, 4, 5, 6]), subjects(&[2, 3, 4, 5])));
    place.assert_empty();
    server.stop();
}

#[test]
fn a_faulty_table_is_no_start() {
    let place = Place::new();
    let table = place.path().join("table");
    fs::write(&table, "# fine\nalice@example.org  /srv/alice, bob\n").unwrap();
    let mut command = mailchute();
    command.args(["--listen", "127.0.0.1:0", "--maildir"]).arg(place.maildir()).arg("--recipients").arg(&table);
    let ended = run(command);
    assert_eq!(ended.status.code(), Some(1));
    let expected = format!("mailchute: {}:2:32: \"bob\" has no mailbox here", table.display());
    assert!(ended.stderr.starts_with(&expected) && ended.stderr.lines().count() == 1, "{}", ended.stderr);
    assert!(!place.maildir().exists(), "a Maildir was made all the same");
}

#[test]
fn a_hundred_mailboxes_share_one_file() {
    const OCTETS: usize = 1 << 20;
    let place = Place::new();
    let (server, mailboxes) = start_with_mailboxes(&place, &["--create-mailboxes", "--domain", "example.org"]);
    let recipients: Vec<_> = (0..100).map(|number| format!("user{number}@example.org")).collect();
    let recipients: Vec<_> = recipients.iter().map(String::as_str).collect();
    let text = text(1, OCTETS);
    deliver(&mut server.connect(), &recipients, &text);
    let files: Vec<_> = tree(&mailboxes).into_iter().filter(|path| path.is_file()).collect();
    assert_eq!(files.len(), 100);
    let owners: HashSet<_> = files.iter().map(|path| path.parent().unwrap().parent().unwrap()).collect();
    assert_eq!(owners.len(), 100, "each has one");
    let stats: Vec<_> = files.iter().map(|path| fs::metadata(path).unwrap()).collect();
    assert!(stats.iter().all(|stat| (stat.ino(), stat.nlink()) == (stats[0].ino(), 100)), "no hundred links");
    assert!(files.iter().all(|path| path.parent().unwrap().ends_with("new")));
    // As `du` counts: each file once, in blocks of 512 octets.
    let mut seen = HashSet::new();
    let blocks: u64 = stats.iter().filter(|stat| seen.insert(stat.ino())).map(MetadataExt::blocks).sum();
    let (octets, length) = (blocks * 512, stats[0].len());
    let mut du = bare_command("du");
    du.args(["-s", "-B1"]).arg(&mailboxes);
    let all: u64 = run(du).stdout.split_whitespace().next().unwrap().parse().unwrap();
    println!("{length} octets for 100 mailboxes take {octets}; with all directories {all}");
    assert!((length..length + 65_536).contains(&octets), "{octets} octets on the disk for {length}");
    // Three directories and one for each, one above, and those of the postmaster.
    assert!(all < octets + 500 * 4096, "{all} octets in all");
    let message = fs::read_to_string(&files[0]).unwrap();
    assert!(message.ends_with(&stored(&text)) && !message.contains("Delivered-To"), "{}", &message[..300]);
    // One more than a hundred and twenty-eight are for another transaction.
    let mut client = server.connect();
    let more: Vec<_> = (0..130).map(|number| format!("user{number}@example.org")).collect();
    let (replies, last) = send(&mut client, &more.iter().map(String::as_str).collect::<Vec<_>>(), "Subject: 2\r\n\r\n");
    assert!(replies[..128].iter().all(|reply| reply.starts_with("250 ")), "{replies:?}");
    assert!(replies[128..].iter().all(|reply| reply.starts_with("452 4.5.3 ")), "{replies:?}");
    assert!(last.unwrap().starts_with("250 "));
    assert_eq!(texts(&mailboxes.join("user127")).len(), 1);
    assert!(!mailboxes.join("user128").exists());
    server.stop();
}

#[test]
fn who_may_send_is_asked_before_the_greeting() {
    let place = Place::new();
    for (options, served) in [
        (&[][..], true),
        (&["--allow-from", "10.0.0.0/8"], false),
        (&["--allow-from", "10.0.0.0/8", "--allow-from", "127.0.0.0/8"], true),
        (&["--allow-from", "127.0.0.1"], true),
        (&["--allow-from", "::ffff:127.0.0.1"], true),
        (&["--allow-from", "::ffff:127.0.0.0/104"], true),
        (&["--allow-from", "::ffff:10.0.0.0/104"], false),
        (&["--allow-from", "::1", "--domain", "example.org"], false),
        (&["--allow-from", "any"], true),
        (&["--domain", "example.org"], true),
    ] {
        let server = Server::start(&place, options);
        let mut client = Client::new(TcpStream::connect(server.address()).unwrap());
        if served {
            client.expect("220 ");
            client.say("NOOP", "250 ");
        } else {
            let reply = client.expect("554 5.7.1 ");
            assert_eq!(reply.lines().count(), 1, "{options:?}: {reply}");
            client.ended();
        }
        server.stop();
    }
}

fn seconds_ago(seconds: u64) -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() - seconds
}

/// Puts messages of an earlier run in `new/`, that came so many seconds ago.
fn put_old(maildir: &Path, ages: &[u64]) {
    for directory in ["tmp", "new", "cur"] {
        fs::create_dir_all(maildir.join(directory)).unwrap();
    }
    for age in ages {
        let name = format!("{}.M1R0000000000000001P1Q{age}.host,S=11", seconds_ago(*age));
        fs::write(maildir.join("new").join(name), format!("Subject: old {age:09}\n\n")).unwrap();
    }
}

#[test]
fn the_oldest_messages_go_where_that_is_asked_for() {
    let place = Place::new();
    put_old(&place.maildir(), &[500, 900, 100, 300, 700]);
    let subjects = |ages: &[&str]| ages.iter().map(|age| format!("Subject: {age}\n\n")).collect::<Vec<_>>();
    let server = Server::start(&place, &["--keep", "30d", "--keep", "1", "--keep", "3", "--sync", "never"]);
    until("two go", || texts(&place.maildir()).len() == 3);
    assert_eq!(texts(&place.maildir()), subjects(&["old 000000100", "old 000000300", "old 000000500"]));
    let line = server.wait_for_line("removed");
    assert!(line.ends_with("removed 2 messages of 5") && line.contains(place.maildir().to_str().unwrap()), "{line}");
    let mut client = server.connect();
    deliver(&mut client, &["a@example.org"], "Subject: new 1\r\n\r\n");
    deliver(&mut client, &["a@example.org"], "Subject: new 2\r\n\r\n");
    until("two more go", || texts(&place.maildir()).len() == 3);
    assert_eq!(texts(&place.maildir()), subjects(&["new 1", "new 2", "old 000000100"]));
    std::thread::sleep(Duration::from_millis(1100));
    deliver(&mut client, &["a@example.org"], "Subject: new 3\r\n\r\n");
    deliver(&mut client, &["a@example.org"], "Subject: new 4\r\n\r\n");
    until("its own go, too", || texts(&place.maildir()).len() == 3);
    let left = texts(&place.maildir());
    assert!(left[1..] == subjects(&["new 3", "new 4"]) && left[0].starts_with("Subject: new "), "{left:?}");
    server.stop();
}

#[test]
fn messages_go_by_their_age_where_that_is_asked_for() {
    const DAY: u64 = 86_400;
    let place = Place::new();
    let ages = [31 * DAY, 29 * DAY, 400 * DAY, 60];
    put_old(&place.maildir(), &ages);
    let server = Server::start(&place, &[]);
    let mut client = server.connect();
    client.deliver("Subject: default\r\n\r\n");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(place.files("new").len(), 5, "something was removed without being asked for");
    server.stop();
    // A name of tomorrow tells that the clock is wrong.
    let tomorrow = place.maildir().join("new").join(format!("{}.M1R2P1Q1.host", seconds_ago(0) + DAY));
    fs::write(&tomorrow, "Subject: tomorrow\n\n").unwrap();
    let server = Server::start(&place, &["--keep", "1", "--keep", "30d"]);
    server.wait_for_line("the clock is earlier than the newest mail; nothing is removed");
    assert_eq!(place.files("new").len(), 6);
    server.stop();
    fs::remove_file(&tomorrow).unwrap();
    let server = Server::start(&place, &["--keep", "1d", "--keep", "1000", "--keep", "30d"]);
    until("two go", || place.files("new").len() == 3);
    assert!(
        texts(&place.maildir())
            .iter()
            .all(|text| text.contains("default") || text.contains("00060") || text.contains(&(29 * DAY).to_string()))
    );
    server.stop();
    for (keep, left) in [("30d,2", 2), ("1000,2d,1000,40d,1", 1)] {
        let mut command = mailchute();
        command.args(["--listen", "127.0.0.1:0", "--maildir"]).arg(place.maildir()).env("MAILCHUTE_KEEP", keep);
        let server = Server::ready(command);
        until(keep, || place.files("new").len() == left);
        server.stop();
    }
}

#[test]
fn each_mailbox_keeps_its_own_number() {
    let place = Place::new();
    let (server, mailboxes) = start_with_mailboxes(&place, &["--keep", "2", "--sync", "never"]);
    let users = ["a", "b", "c"].map(|user| mailboxes.join("example.org").join(user));
    users.iter().for_each(|user| put_old(user, &[100, 200, 300]));
    let mut client = server.connect();
    deliver(&mut client, &["a@example.org", "b@example.org"], "Subject: new\r\n\r\n");
    until("two go in each", || users[..2].iter().all(|user| texts(user).len() == 2));
    assert!(users[..2].iter().all(|user| texts(user) == ["Subject: new\n\n", "Subject: old 000000100\n\n"]));
    assert_eq!(texts(&users[2]).len(), 3, "nothing came there");
    server.stop();
}
