//! How long and how much a server puts up with, by a clock that moves when it is told to.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod model;

use mailchute::Config;
use mailchute::delivery::MinFree;
use model::peer::World;
use model::{Ends, ModelDisk};
use std::time::Duration;

/// How exact deadlines are.
const GRAIN: Duration = Duration::from_millis(250);

fn world(config: Config) -> World {
    World::with(config, &ModelDisk::new(Ends::AtOnce), MinFree::Usual, 1).unwrap()
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// A client that said EHLO.
fn guest(world: &mut World) -> usize {
    let (client, greeting) = world.visit("10.0.0.1");
    assert!(greeting.starts_with("220 "), "{greeting}");
    assert!(world.say(client, "EHLO c.example\r\n").starts_with("250-"));
    client
}

/// A client whose message has begun.
fn sender(world: &mut World) -> usize {
    let client = guest(world);
    let replies = world.say(client, "MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n");
    assert!(replies.contains("\r\n354 "), "{replies}");
    client
}

/// Nothing is heard for so long and a bit less; then the connection ends with 421.
#[track_caller]
fn ends_after(world: &mut World, client: usize, time: Duration) {
    world.wait(time - GRAIN);
    assert_eq!(world.clients[client].replies(), "");
    world.wait(2 * GRAIN);
    assert_eq!(world.clients[client].replies(), "421 4.4.2 Timeout: closing connection\r\n");
    assert!(world.clients[client].is_let_go());
}

/// Has a client send these octets one by one, at such a distance, until it is told to go; how long that took.
fn trickle(world: &mut World, client: usize, octets: &str, apart: Duration) -> Duration {
    let start = world.now.instant;
    for octet in octets.chars() {
        let replies = world.say(client, &octet.to_string());
        if replies.starts_with("421 ") {
            break;
        }
        assert_eq!(replies, "");
        world.wait(apart);
    }
    world.now.instant - start
}

#[test]
fn who_never_says_hello_has_a_minute_and_all_others_five() {
    let mut world = world(Config::default());
    let (stranger, _) = world.visit("10.0.0.1");
    ends_after(&mut world, stranger, seconds(60));
    let (mute, _) = world.visit("10.0.0.1");
    world.say(mute, "NOOP\r\n");
    ends_after(&mut world, mute, seconds(60));
    let guest = guest(&mut world);
    ends_after(&mut world, guest, seconds(300));
    let (hasty, _) = world.visit("10.0.0.1");
    assert!(world.say(hasty, "MAIL FROM:<a@b.example>\r\n").starts_with("250 "));
    ends_after(&mut world, hasty, seconds(300));
}

#[test]
fn a_shorter_timeout_counts_before_the_hello_too() {
    let mut world = world(Config { timeout: seconds(20), ..Config::default() });
    let (stranger, _) = world.visit("10.0.0.1");
    ends_after(&mut world, stranger, seconds(20));
}

/// Each whole command begins the time anew.
#[test]
fn who_talks_now_and_then_stays() {
    let mut world = world(Config::default());
    let client = guest(&mut world);
    for _ in 0..20 {
        world.wait(seconds(299));
        assert_eq!(world.say(client, "NOOP\r\n"), "250 2.0.0 OK\r\n");
    }
    ends_after(&mut world, client, seconds(300));
}

#[test]
fn a_command_octet_by_octet_holds_no_place_for_ever() {
    let mut world = world(Config::default());
    let client = guest(&mut world);
    let time = trickle(&mut world, client, &"x".repeat(1000), seconds(1));
    assert!((seconds(300)..seconds(303)).contains(&time), "{time:?}");
}

/// Nor does a line that is too long, whose octets are dropped.
#[test]
fn the_rest_of_a_long_line_holds_no_place_for_ever() {
    let mut world = world(Config::default());
    let client = guest(&mut world);
    assert!(world.say(client, &"x".repeat(3000)).starts_with("500 "));
    let time = trickle(&mut world, client, &"x".repeat(100), seconds(20));
    assert!((seconds(300)..seconds(330)).contains(&time), "{time:?}");
}

#[test]
fn a_text_octet_by_octet_holds_no_place_for_ever() {
    let mut world = world(Config::default());
    let client = sender(&mut world);
    let time = trickle(&mut world, client, &"x".repeat(100), seconds(20));
    assert!((seconds(300)..seconds(322)).contains(&time), "{time:?}");
    assert_eq!(world.disk.files("tmp").len(), 0, "what there was of it is gone");
}

/// 100 octets a second are too few for a long text, and enough for a short one; 500 are enough for any.
#[test]
fn a_slow_line_is_enough_for_alerts_and_a_poor_one_for_all() {
    let line = |octets: usize| format!("{}\r\n", "x".repeat(octets - 2));
    let mut world = world(Config::default());
    let slow = sender(&mut world);
    for _ in 0..200 {
        assert_eq!(world.say(slow, &line(100)), "");
        world.wait(seconds(1));
    }
    world.say(slow, ".\r\n");
    world.wait(GRAIN);
    assert_eq!(world.disk.files("new").len(), 1);
    let poor = sender(&mut world);
    for _ in 0..130 {
        assert_eq!(world.say(poor, &line(500)), "");
        world.wait(seconds(1));
    }
    ends_after(&mut world, poor, seconds(299));
    let slow = sender(&mut world);
    let lasted = (0..3000).take_while(|_| {
        let replies = world.say(slow, &line(100));
        world.wait(seconds(1));
        replies.is_empty() && world.clients[slow].replies().is_empty()
    });
    let lasted = lasted.count();
    assert!((370..380).contains(&lasted), "300 s and 0.2 s for each second's octets: {lasted}");
}

#[test]
fn above_nine_tenths_the_longest_idle_go_as_many_as_have_to() {
    let mut world = world(Config { connections_max: 20, ..Config::default() });
    let mut guests = Vec::new();
    for _ in 0..18 {
        guests.push(guest(&mut world));
        world.wait(seconds(1));
    }
    world.wait(seconds(20));
    assert_eq!(world.server.connections(), 18, "nine tenths are no crowd");
    world.say(guests[0], "NOOP\r\n");
    guests.push(guest(&mut world));
    guests.push(guest(&mut world));
    let (_, reply) = world.visit("10.0.0.2");
    assert_eq!(reply, "421 4.3.2 Too many connections; try again later\r\n");
    world.wait(2 * GRAIN);
    let gone: Vec<usize> = guests.iter().copied().filter(|&guest| world.clients[guest].is_let_go()).collect();
    assert_eq!(gone, guests[1..3], "those who were silent longest");
    assert_eq!(world.clients[gone[0]].replies(), "421 4.4.2 Timeout: closing connection\r\n");
}

/// Nobody gives way who was silent for less than ten seconds.
#[test]
fn a_crowd_of_busy_clients_stays() {
    let mut world = world(Config { connections_max: 10, ..Config::default() });
    let guests: Vec<usize> = (0..10).map(|_| guest(&mut world)).collect();
    for _ in 0..10 {
        world.wait(seconds(9));
        guests.iter().for_each(|&guest| assert_eq!(world.say(guest, "NOOP\r\n"), "250 2.0.0 OK\r\n"));
    }
    world.wait(seconds(10) - GRAIN);
    assert_eq!(world.server.connections(), 10);
    world.wait(2 * GRAIN);
    assert_eq!(world.server.connections(), 9);
}

#[test]
fn a_crowded_server_forgives_three_bad_commands() {
    let mut world = world(Config { connections_max: 10, ..Config::default() });
    let guests: Vec<usize> = (0..10).map(|_| guest(&mut world)).collect();
    let replies = world.say(guests[0], &"BAD\r\n".repeat(5));
    assert_eq!(replies.lines().map(|line| &line[..3]).collect::<Vec<_>>(), ["500", "500", "500", "421"]);
    world.wait(GRAIN);
    let replies = world.say(guests[1], &"BAD\r\n".repeat(25));
    assert_eq!(replies.lines().filter(|line| line.starts_with("500 ")).count(), 20, "nine are no crowd");
    assert!(replies.ends_with("421 4.7.0 Too many errors: closing connection\r\n"), "{replies}");
}

#[test]
fn one_address_has_no_more_than_its_part_of_the_connections() {
    let allow = ["0.0.0.0/0", "::/0"].map(|network| network.parse().unwrap()).to_vec();
    let mut world = world(Config { allow_from: allow, ..Config::default() });
    for (one, same, other) in
        [("203.0.113.1", "203.0.113.1", "203.0.113.2"), ("2001:db8:1:2::3", "2001:db8:1:2:ffff::", "2001:db8:1:3::3")]
    {
        let first: Vec<usize> = (0..50).map(|_| world.visit(one)).map(|(client, _)| client).collect();
        assert_eq!(world.visit(same).1, "421 4.3.2 Too many connections; try again later\r\n");
        assert!(world.visit(other).1.starts_with("220 "));
        world.say(first[7], "QUIT\r\n");
        assert!(world.visit(same).1.starts_with("220 "));
        assert!(world.visit(one).1.starts_with("421 "), "who was turned away counts no longer");
    }
    for this_machine in ["127.0.0.1", "127.9.9.9", "::1"] {
        (0..60).for_each(|_| assert!(world.visit(this_machine).1.starts_with("220 "), "{this_machine}"));
    }
}

/// What all envelopes take together has a bound; when one ends another has room.
#[test]
fn all_recipients_share_their_memory() {
    let mut world = world(Config { per_address_max: 200, ..Config::default() });
    let mut taken = Vec::new();
    let mut hear = |world: &mut World| {
        let client = guest(world);
        world.say(client, "MAIL FROM:<a@b.example>\r\n");
        let path = format!("RCPT TO:<{}@{}e>\r\n", "c".repeat(240), "d.".repeat(125));
        let replies: Vec<String> = (0..100).map(|_| world.say(client, &path)).collect();
        let count = replies.iter().take_while(|reply| reply.starts_with("250 ")).count();
        assert!(replies[count..].iter().all(|reply| reply.starts_with("452 4.5.3 ")), "{replies:?}");
        taken.push((client, count));
        count
    };
    let before = (0..100).take_while(|_| hear(&mut world) == 100).count();
    assert!((78..=84).contains(&before), "4 MiB hold about 82 times 51 kB: {before}");
    assert!((1..8).contains(&hear(&mut world)), "a few always have room");
    let (first, _) = taken[0];
    assert_eq!(world.say(first, "RSET\r\n"), "250 2.0.0 OK\r\n");
    let last = guest(&mut world);
    world.say(last, "MAIL FROM:<a@b.example>\r\n");
    assert!(world.say(last, "RCPT TO:<c@d.example>\r\n").starts_with("250 "));
}
