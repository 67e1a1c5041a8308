//! A 250 is a promise: the server is killed under load, again and again, and everything that it acknowledged is there.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use common::random::Random;
use common::{Client, Place, Server, mailchute, stored, tell, text};

/// Kills of a server under load; as many again while it starts would teach little, so there are fewer of those.
const KILLS: u64 = 50;
const KILLS_AT_START: u64 = 10;
const CLIENTS: u64 = 8;

/// What is known of the files in `new/`.
#[derive(Default)]
struct Found {
    /// The number of the message in each file that was read and is whole.
    whole: HashMap<OsString, u64>,
    partial: u64,
}

impl Found {
    /// Reads the files that are new since the last time.
    fn look(&mut self, place: &Place) {
        let mut paths = place.files("new");
        // Readers pass over such names. The file with which a start proves the Maildir has one.
        paths.retain(|path| !path.file_name().unwrap().as_encoded_bytes().starts_with(b"."));
        let names: HashSet<_> = paths.iter().map(|path| path.file_name().unwrap()).collect();
        self.whole.retain(|name, _| names.contains(name.as_os_str()));
        for path in &paths {
            let name = path.file_name().unwrap();
            if self.whole.contains_key(name) {
                continue;
            }
            match number_of_whole(path) {
                Ok(number) => {
                    self.whole.insert(name.to_owned(), number);
                }
                Err(problem) => {
                    println!("{}: {problem}", path.display());
                    self.partial += 1;
                }
            }
        }
    }

    fn numbers(&self) -> HashSet<u64> {
        self.whole.values().copied().collect()
    }
}

/// The number of the message in a file, if each octet of it is there.
fn number_of_whole(path: &Path) -> Result<u64, String> {
    let content = String::from_utf8(std::fs::read(path).unwrap()).map_err(|error| error.to_string())?;
    let size = path.to_str().unwrap().rsplit_once(",S=").map(|(_, size)| size.parse());
    if size != Some(Ok(content.len())) {
        return Err(format!("{} octets", content.len()));
    }
    let number = content.split_once("\nSubject: ").and_then(|(_, rest)| rest.lines().next()?.parse().ok());
    let number = number.ok_or("no number")?;
    // All of the text follows from its number.
    if content.starts_with("Return-Path: ") && content.ends_with(&format!("\n{}", stored(&message(number)))) {
        Ok(number)
    } else {
        Err(format!("not the message {number}"))
    }
}

/// Mostly a few hundred octets, now and then more than a buffer holds.
fn message(number: u64) -> String {
    let mut random = Random::new(number);
    let octets = if random.below(20) == 0 { random.below(300_000) } else { random.below(5_000) };
    text(number, octets)
}

/// Sends messages until the connection is lost; the numbers of those that were acknowledged.
fn send_until_lost(address: SocketAddr, first: u64) -> (Vec<u64>, io::Error) {
    let mut acknowledged = Vec::new();
    let Err(error) = send(address, first, &mut acknowledged);
    (acknowledged, error)
}

fn send(address: SocketAddr, mut number: u64, acknowledged: &mut Vec<u64>) -> io::Result<Infallible> {
    let mut client = Client::new(TcpStream::connect(address)?);
    let pipelining = number % 2 == 0;
    let expect = |client: &mut Client, start: &str| {
        let reply = client.try_reply()?;
        assert!(reply.starts_with(start), "{reply} in place of {start}");
        Ok::<_, io::Error>(())
    };
    expect(&mut client, "220 ")?;
    client.try_send("EHLO c\r\n")?;
    expect(&mut client, "250-")?;
    let envelope = ["MAIL FROM:<a@b.example>\r\n", "RCPT TO:<c@d.example>\r\n", "DATA\r\n"];
    let answers = ["250 2.1.0 ", "250 2.1.5 ", "354 "];
    loop {
        if pipelining {
            client.try_send(envelope.concat())?;
        }
        for (line, answer) in envelope.iter().zip(answers) {
            if !pipelining {
                client.try_send(line)?;
            }
            expect(&mut client, answer)?;
        }
        client.try_send(format!("{}.\r\n", message(number)))?;
        expect(&mut client, "250 2.0.0 ")?;
        acknowledged.push(number);
        number += 1;
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    let started = Instant::now();
    let mut random = Random::new(common::seed());
    let place = Place::new();
    let (mut found, mut acknowledged, mut leftovers) = (Found::default(), Vec::new(), 0);
    for round in 0..KILLS {
        if round % (KILLS / KILLS_AT_START) == 0 {
            let mut command = mailchute();
            command.args(["--listen", "127.0.0.1:0", "--maildir"]).arg(place.maildir());
            let server = Server::spawn(command);
            std::thread::sleep(Duration::from_micros(random.below(15_000) as u64));
            server.kill();
        }
        let server = Server::start(&place, &["--log", "info"]);
        // What was there before it started must be there after it has.
        found.look(&place);
        let address = server.address();
        let moment = Duration::from_micros(random.below(200_000) as u64);
        std::thread::scope(|scope| {
            // Numbers tell round, client and message, and are not used again.
            let first = |client| (round * CLIENTS + client) * 1_000_000 + client;
            let clients: Vec<_> =
                (0..CLIENTS).map(first).map(|first| scope.spawn(move || send_until_lost(address, first))).collect();
            std::thread::sleep(moment);
            server.kill();
            for client in clients {
                let (numbers, error) = client.join().unwrap();
                assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "the server did not answer");
                acknowledged.extend(numbers);
            }
        });
        leftovers = place.files("tmp").len();
        found.look(&place);
        let there = found.numbers();
        let lost: Vec<_> = acknowledged.iter().filter(|number| !there.contains(number)).collect();
        assert!(lost.is_empty() && found.partial == 0, "kill {round}: lost {lost:?}, partial {}", found.partial);
    }
    // And what a server finds that starts once more.
    let server = Server::start(&place, &[]);
    server.connect().say("QUIT", "221 ");
    server.stop();
    found.look(&place);
    let there = found.numbers();
    let lost = acknowledged.iter().filter(|number| !there.contains(number)).count();
    let (count, partial) = (acknowledged.len(), found.partial);
    let kills = KILLS + KILLS_AT_START;
    tell(&format!("messages acknowledged {count}, kills {kills}, lost {lost}, partial {partial}"));
    println!("stored but not acknowledged {}, leftovers in tmp/ {leftovers}", found.whole.len() - count);
    println!("{:?} in all", started.elapsed());
    assert!(lost == 0 && partial == 0);
    assert_eq!(found.whole.len(), there.len(), "a message was stored twice");
    // Else there was no load, and nothing is shown.
    assert!(count as u64 > KILLS * 2, "only {count} messages");
}
