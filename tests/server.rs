//! The server without a socket: what lies between the sessions and the transport, on a model disk.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod model;

use mailchute::Config;
use mailchute::config::{BLOCK_OCTETS, BLOCKS_MAX};
use mailchute::delivery::MinFree;
use mailchute::fs::Space;
use mailchute::recipients::Recipients;
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
            config.protocol.reject_bare_newline = true;
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

/// The reply to who comes from this address, and how many connections there are then.
fn greeting(config: &Config, address: &str) -> (String, usize) {
    let mut world = world(config.clone());
    let (mut client, transport) = Client::new(Vec::new());
    let peer = Peer::Address(address.parse().expect("an address"));
    client.key = world.server.accept(transport, peer, Dialect::Smtp, world.now);
    world.clients.push(client);
    let greeting = world.say(0, "");
    (greeting, world.server.connections())
}

/// A table that is read again may name no domain any more: then it takes mail for any, and not from everybody.
#[test]
fn a_table_without_domains_does_not_open_the_server() {
    let mut world = world(Config { domains: vec!["example.org".to_owned()], ..Config::default() });
    let is_served = |world: &mut World| {
        let (mut client, transport) = Client::new(Vec::new());
        let peer = Peer::Address("192.0.2.1".parse().expect("an address"));
        client.key = world.server.accept(transport, peer, Dialect::Smtp, world.now);
        world.clients.push(client);
        world.say(world.clients.len() - 1, "").starts_with("220 ")
    };
    assert!(is_served(&mut world));
    world.server.recipients = Recipients::load(&Config::default()).expect("no table");
    assert!(!is_served(&mut world));
}

/// A server that takes all mail would else be flooded from the Internet.
#[test]
fn without_domains_only_those_who_are_not_public_are_served() {
    let private = [
        "127.0.0.1",
        "127.255.255.255",
        "10.0.0.0",
        "10.255.255.255",
        "172.16.0.0",
        "172.31.255.255",
        "192.168.0.0",
        "192.168.255.255",
        "169.254.0.1",
        "169.254.255.255",
        "100.64.0.0",
        "100.127.255.255",
        "::1",
        "fe80::1",
        "febf:ffff::1",
        "fc00::",
        "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ];
    let public = [
        "0.0.0.0",
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.2.1",
        "192.167.255.255",
        "192.169.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::2",
        "2001:db8::1",
        "2600::",
        "fbff::1",
        "fe00::1",
        "fec0::1",
        "ff02::1",
        // An IPv4 address in the form that a socket for both kinds would give it.
        "::ffff:1.1.1.1",
        "::ffff:192.0.2.1",
    ];
    let domains = |domain: &str| Config { domains: vec![domain.to_owned()], ..Config::default() };
    let networks = |networks: &[&str]| Config {
        allow_from: networks.iter().map(|network| network.parse().expect("a network")).collect(),
        ..Config::default()
    };
    let is_served = |config: &Config, address| {
        let (greeting, connections) = greeting(config, address);
        let served = greeting.starts_with("220 ") && connections == 1;
        let turned_away = greeting == "554 5.7.1 Your address is not served here\r\n" && connections == 0;
        assert!(served || turned_away, "{address}: {greeting}");
        served
    };
    for (addresses, served) in [(&private[..], true), (&public, false)] {
        for address in addresses {
            assert_eq!(is_served(&Config::default(), address), served, "{address}");
            // Where it is said for whom mail is, or who may send, that alone counts.
            assert!(is_served(&domains("example.org"), address), "{address}");
            let any = networks(&["0.0.0.0/0", "::/0"]);
            assert!(is_served(&any, address), "{address}");
            let with_mailboxes = Config { mailboxes: Some("/mail".into()), ..Config::default() };
            assert_eq!(is_served(&with_mailboxes, address), served, "{address}");
        }
    }
    let some = networks(&["192.0.2.0/25", "2001:db8::/32"]);
    for (address, served) in [
        ("192.0.2.0", true),
        ("192.0.2.127", true),
        ("192.0.2.128", false),
        ("127.0.0.1", false),
        ("2001:db8:ffff::1", true),
        ("2001:db9::1", false),
        ("::1", false),
    ] {
        assert_eq!(is_served(&some, address), served, "{address}");
        let both = Config { domains: vec!["example.org".to_owned()], ..some.clone() };
        assert_eq!(is_served(&both, address), served, "{address}");
    }
}

/// While no file may be opened, who has begun a message waits, although there is something to read: once, for an event.
#[test]
fn who_waits_for_a_file_keeps_nobody_busy() {
    let disk = ModelDisk::new(Ends::Told);
    let mut world = World::with(Config::default(), &disk, MinFree::Usual, 0).expect("a Maildir");
    world.server.store.files_max = 1;
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
