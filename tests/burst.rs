//! After a crowd has gone, the memory that it took goes back to the system.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::time::Duration;

use common::{Client, Place, Server, skip, tell, text, until};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const CONNECTIONS: usize = 2000;
/// What may stay of the envelopes, in KiB: the table of connections (1.1 MiB), and what is kept for the next.
const KEPT_MAX: u64 = 3 << 10;

/// Has a crowd come, each with a long envelope, and with some of a message if there is some; and go at once. The server's memory
/// before and at most, in KiB; afterwards it is nearly what it was.
fn burst(message: &str) -> [u64; 2] {
    let place = Place::new();
    let server = Server::start(&place, &["--max-connections", "2200", "--sync", "never"]);
    server.connect().deliver(&text(1, 1000));
    let before = server.memory("RssAnon");
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.say(&format!("EHLO {}", "client.".repeat(30)), "250-");
        client.say(&format!("MAIL FROM:<{}@a.example>", "a".repeat(250)), "250 ");
        for _ in 0..5 {
            // Until all envelopes together are full.
            client.say(&format!("RCPT TO:<{}@b.example>", "b".repeat(250)), "");
        }
        if !message.is_empty() {
            client.say("DATA", "354 ");
            client.send(message);
        }
    }
    let peak = server.memory("RssAnon");
    drop(clients);
    until("all are gone", || place.files("tmp").is_empty());
    let mut after = peak;
    until("the memory goes back", || {
        std::thread::sleep(Duration::from_millis(100));
        after = server.memory("RssAnon");
        after < before + KEPT_MAX
    });
    server.connect().deliver(&text(1, 1000));
    assert_eq!(place.files("new").len(), 2);
    server.stop();
    tell(&format!("{CONNECTIONS} connections: {before} KiB before, {peak} KiB at most, {after} KiB after"));
    [before, peak]
}

#[test]
fn memory_goes_back_to_the_system_after_a_burst() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = CONNECTIONS as u64 + 200;
    if limit.maximum.is_some_and(|maximum| maximum < wanted) {
        return skip(&format!("{wanted} descriptors take a higher limit than {limit:?}"));
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit.current.unwrap_or(wanted).max(wanted)), ..limit })
        .unwrap();
    let [before, peak] = burst("");
    assert!(peak > before + KEPT_MAX + 1024, "no burst");
    // With texts there are blocks, too.
    burst(&text(2, 60_000));
}
