//! The server without a socket: what lies between the sessions and the transport, on a model disk.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod model;

use mailchute::Config;
use mailchute::config::{BLOCK_OCTETS, BLOCKS_MAX};
use mailchute::delivery::MinFree;
use mailchute::smtp::session::Dialect;
use mailchute::smtp::trace::Peer;
use model::hand::message;
use model::peer::{Client, MESSAGE_OCTETS_MAX, World};
use model::{Ends, Kind, ModelDisk};

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

/// While no file may be opened, who has begun a message waits, although there is something to read: once, for an event.
#[test]
fn who_waits_for_a_file_keeps_nobody_busy() {
    let disk = ModelDisk::new(Ends::Told);
    let mut world = World::with(Config::default(), &disk, MinFree::Usual, 0).expect("a Maildir");
    world.server.store().limit_files(1);
    let (first, second) = (world.connect(Vec::new()), world.connect(Vec::new()));
    world.say(second, "HELO c\r\nMAIL FROM:<a@b.example>\r\n");
    world.say(first, &format!("{TO_DATA}text\r\n.\r\n"));
    for line in ["RCPT TO:<c@d.example>\r\n", "NOOP\r\n"] {
        world.clients[second].send(line);
        world.mark(second);
        world.server.turn(world.now);
        assert!(!world.server.is_runnable(), "it does not rest");
        assert_eq!(world.clients[second].replies(), "");
    }
    while disk.flushes_under_way() > 0 {
        world.end_flushes(disk.flushes_under_way());
        world.server.turn(world.now);
    }
    assert_eq!(codes(&world.say(first, "")), ["250"]);
    assert_eq!(codes(&world.clients[second].replies()), ["250", "250"]);
}
