//! The server without a socket: what lies between the sessions and the transport, on a model disk.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod model;

use mailchute::Config;
use mailchute::config::{BLOCK_OCTETS, BLOCKS_MAX};
use mailchute::delivery::MinFree;
use mailchute::fs::Space;
use mailchute::smtp::data::BareNewline;
use mailchute::smtp::session::Dialect;
use mailchute::smtp::trace::Peer;
use model::hand::message;
use model::peer::{Client, MESSAGE_OCTETS_MAX, World};
use model::power_cut::judge;
use model::{Ends, Kind, MAILDIR, ModelDisk};
use std::time::Duration;

const TO_DATA: &str = "HELO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n";

fn world(config: Config) -> World {
    World::with(config, &ModelDisk::new(Ends::AtOnce), MinFree::Usual, 0).expect("a Maildir")
}

fn codes(replies: &str) -> Vec<&str> {
    replies.lines().map(|line| &line[..3]).collect()
}

/// RFC 5321 4.3.1: a client waits for the greeting. Only the letter of it is enforced.
#[test]
fn who_talks_before_the_greeting_is_turned_away_by_the_strict() {
    for (strict, early, greeting, after) in [
        (true, "EHLO early.example\r\n", "554 5.5.0 ", ""),
        (true, "E", "554 5.5.0 ", ""),
        (true, "", "220 ", "250 "),
        (false, "EHLO early.example\r\n", "220 ", "250 "),
    ] {
        let mut config = Config::default();
        config.protocol.strict = strict;
        let mut world = world(config);
        let (mut client, transport) = Client::new(Vec::new());
        client.send(early);
        client.key = world.server.accept(transport, Peer::Local, Dialect::Smtp, world.now);
        world.clients.push(client);
        let greeted = world.say(0, "");
        assert!(greeted.starts_with(greeting), "strict={strict}, {early:?}: {greeted}");
        let replies = world.say(0, "NOOP\r\n");
        assert!(replies.starts_with(after), "strict={strict}, {early:?}: {replies}");
        assert_eq!(world.server.connections(), usize::from(!after.is_empty()), "strict={strict}, {early:?}");
    }
}

/// What a read brings may end with the DATA that is refused, while the message's text waits in the socket.
#[test]
fn text_behind_a_refused_data_is_no_command_though_another_read_brings_it() {
    let commands = |octets: usize| {
        let short = "NOOP\r\n".repeat(octets / 6 - 3);
        let fill = "x".repeat(octets - short.len() - "NOOP \r\nDATA\r\n".len());
        format!("{short}NOOP {fill}\r\nDATA\r\n")
    };
    let text = "MAIL FROM:<x@b.example>\r\nRCPT TO:<x@d.example>\r\nDATA\r\nsmuggled\r\n.\r\n";
    let mut world = world(Config::default());
    let client = world.connect(Vec::new());
    let replies = world.say(client, &(commands(BLOCK_OCTETS) + text));
    assert!(replies.ends_with("421 4.5.0 Message text is no command: closing connection\r\n"), "{replies}");
    let noops = codes(&replies).into_iter().filter(|&code| code == "250").count();
    assert_eq!(codes(&replies).len(), 1 + noops + 1, "the greeting, the replies to NOOP, and the last");
    assert_eq!(world.server.connections(), 0);
    assert!(world.disk.files("new").is_empty() && world.disk.files("tmp").is_empty());
    // Where a read brings less than it could, nothing waits behind the command, and it alone is refused.
    let client = world.connect(Vec::new());
    let replies = world.say(client, &commands(BLOCK_OCTETS - 1));
    assert!(replies.ends_with("503 5.5.1 Bad sequence of commands\r\n"), "{replies}");
    assert_eq!(world.server.connections(), 1);
}

/// Whoever goes away while its message is being stored keeps its place until that has ended. A newcomer in its place would
/// hear what became of a message that is not its own.
#[test]
fn an_outcome_never_reaches_a_newcomer() {
    let texts = [message(1, 200)];
    let octets = texts[0].replace('\n', "\r\n");
    for way in ["hangs up", "reads no more", "is silent"] {
        let disk = ModelDisk::new(Ends::Told);
        let mut world = World::with(Config::default(), &disk, MinFree::Usual, 0).expect("a Maildir");
        let leaver = world.connect(Vec::new());
        world.say(leaver, "HELO c\r\n");
        if way == "reads no more" {
            world.clients[leaver].break_pipe();
        }
        // The first replies are sent only when the message is on its way.
        let envelope = "MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n";
        world.say(leaver, &format!("{envelope}BDAT {} LAST\r\n{octets}", octets.len()));
        match way {
            "hangs up" => {
                world.clients[leaver].hang_up();
                world.say(leaver, "");
            }
            "is silent" => (0..20).for_each(|_| world.pass(Duration::from_secs(60))),
            _ => {}
        }
        assert_eq!(disk.flushes_under_way(), 1, "{way}: no message is on its way");
        let newcomer = world.connect(Vec::new());
        assert_eq!(codes(&world.say(newcomer, "NOOP\r\n")), ["220", "250"]);
        while disk.flushes_under_way() > 0 {
            world.end_flushes(usize::MAX);
            assert_eq!(world.say(newcomer, ""), "", "{way}: the newcomer hears of it");
        }
        judge(&disk.files("new"), &texts, &texts).unwrap_or_else(|error| panic!("{way}: {error}"));
        assert_eq!(world.server.connections(), if way == "is silent" { 2 } else { 1 }, "{way}");
        let heard = world.clients[leaver].replies();
        assert_eq!(heard.starts_with("250 2.0.0 "), way != "reads no more", "{way}: {heard}");
        assert_eq!(codes(&world.say(newcomer, "NOOP\r\n")), ["250"]);
    }
}

/// What the disk says of the next message is asked when that is offered, not when the one before it began.
#[test]
fn mail_behind_a_refused_message_hears_how_the_disk_is_now() {
    let large = message(1, MESSAGE_OCTETS_MAX as usize + 1000).replace('\n', "\r\n");
    let is_gone = |disk: &ModelDisk| disk.remove_directory(MAILDIR);
    let is_full = |disk: &ModelDisk| disk.set_space(Space { free: 0, total: 1 << 40, free_files: 1000 });
    for (text, refusal) in [("a bare\nnewline\r\n", "550 "), (large.as_str(), "552 5.3.4 ")] {
        for (happens, answer) in [(&is_gone as &dyn Fn(&ModelDisk), "451 4.3.0 "), (&is_full, "452 4.3.1 ")] {
            let mut config = Config::default();
            config.protocol.bare_newline = BareNewline::Reject;
            let mut world = world(config);
            let client = world.connect(Vec::new());
            world.say(client, TO_DATA);
            let (first, rest) = text.split_at(text.len() / 2);
            assert_eq!(world.say(client, first), "");
            happens(&world.disk);
            world.pass(Duration::from_secs(1));
            let replies = world.say(client, &format!("{rest}.\r\nMAIL FROM:<a@b.example>\r\n"));
            let (end, mail) = replies.split_once("\r\n").unwrap_or_default();
            assert!(end.starts_with(refusal) && mail.starts_with(answer), "{replies}");
        }
    }
}

/// Blocks are lent while a message waits in memory. Those of refused messages are back, so that the next one does.
#[test]
fn a_refused_message_leaves_its_connection_no_block() {
    let mut world = world(Config::default());
    let large = message(1, MESSAGE_OCTETS_MAX as usize + 1000).replace('\n', "\r\n");
    for _ in 0..BLOCKS_MAX + 6 {
        let client = world.connect(Vec::new());
        world.say(client, TO_DATA);
        // The first part waits for the rest in a block.
        let (first, rest) = large.split_at(1000);
        assert_eq!(world.say(client, first), "");
        assert_eq!(world.say(client, rest), "");
        let replies = world.say(client, ".\r\n");
        assert!(replies.starts_with("552 5.3.4 "), "{replies}");
    }
    assert_eq!(world.server.connections(), BLOCKS_MAX + 6);
    let written = world.disk.count(Kind::Write);
    let client = world.connect(Vec::new());
    world.say(client, TO_DATA);
    let text = message(2, 5000).replace('\n', "\r\n");
    for part in text.as_bytes().chunks(1010) {
        assert_eq!(world.say(client, std::str::from_utf8(part).expect("text")), "");
        assert_eq!(world.disk.count(Kind::Write), written, "it did not wait in memory");
    }
    let replies = world.say(client, ".\r\n");
    assert!(replies.starts_with("250 2.0.0 "), "{replies}");
    assert_eq!(world.disk.count(Kind::Write), written + 1);
}
