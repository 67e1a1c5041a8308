//! A 250 is a promise: the server is killed under load, again and again, and everything that it acknowledged is there.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::collections::HashSet;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::random::Random;
use common::{Client, Place, Server, mailchute, stored, tell, text};

/// Kills of a server under load, and of one that starts, which may be in its recovery; with a journal and without.
const WAYS: [(&str, u64, u64); 2] = [("journal", 200, 100), ("always", 40, 10)];
const CLIENTS: u64 = 8;

/// The numbers of the messages in `new/` and `cur/`, with their files, all of which must be whole.
fn look(place: &Place) -> Vec<(u64, PathBuf)> {
    let mut paths = [place.files("new"), place.files("cur")].concat();
    // Readers pass over such names. The file with which a start proves the Maildir has one.
    paths.retain(|path| !path.file_name().unwrap().as_encoded_bytes().starts_with(b"."));
    let number = |path: PathBuf| match number_of_whole(&path) {
        Ok(number) => (number, path),
        Err(problem) => panic!("{}: {problem}", path.display()),
    };
    paths.into_iter().map(number).collect()
}

/// The number of the message in a file, if each octet of it is there.
fn number_of_whole(path: &Path) -> Result<u64, String> {
    let content = String::from_utf8(std::fs::read(path).unwrap()).map_err(|error| error.to_string())?;
    let name = path.to_str().unwrap().trim_end_matches(":2,S");
    let size = name.rsplit_once(",S=").map(|(_, size)| size.parse());
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

/// Moves some messages to `cur/`, as their reader does.
fn read_some(place: &Place, random: &mut Random) {
    for path in place.files("new").into_iter().filter(|_| random.below(3) == 0) {
        let name = format!("{}:2,S", path.file_name().unwrap().to_str().unwrap());
        // The server removes what it proves the Maildir with.
        let _ = std::fs::rename(&path, place.maildir().join("cur").join(name));
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
fn what_is_acknowledged_is_there_once_however_often_the_server_is_killed() {
    let mut random = Random::new(common::seed());
    for (sync, kills, kills_at_start) in WAYS {
        kill_again_and_again(sync, kills, kills_at_start, &mut random);
    }
}

fn kill_again_and_again(sync: &str, kills: u64, kills_at_start: u64, random: &mut Random) {
    let started = Instant::now();
    let place = Place::new();
    let (mut acknowledged, mut delivered, mut recovered) = (HashSet::new(), HashSet::new(), 0);
    for round in 0..=kills {
        if round % (kills / kills_at_start) == 0 {
            let mut command = mailchute();
            command.args(["--listen", "127.0.0.1:0", "--sync", sync, "--maildir"]).arg(place.maildir());
            let server = Server::spawn(command);
            std::thread::sleep(Duration::from_micros(random.below(15_000) as u64));
            server.kill();
        }
        let before = if round == 0 { 0 } else { look(&place).len() };
        // A small journal, so that its halves change often. It is recovered before the first connection.
        let server = Server::start(&place, &["--sync", sync, "--journal-size", "1M", "--log", "info"]);
        let found = look(&place);
        recovered += found.len() - before;
        for (number, path) in found {
            assert!(delivered.insert(number), "kill {round}: message {number} was delivered twice");
            // Its reader deletes it: from here on it may not come back.
            std::fs::remove_file(path).unwrap();
        }
        let lost: Vec<_> = acknowledged.difference(&delivered).collect();
        assert!(lost.is_empty(), "kill {round}: lost {lost:?}");
        if round == kills {
            server.stop();
            break;
        }
        let address = server.address();
        let moment = Duration::from_micros(random.below(120_000) as u64);
        std::thread::scope(|scope| {
            // Numbers tell round, client and message, and are not used again.
            let first = |client| (round * CLIENTS + client) * 1_000_000 + client;
            let clients: Vec<_> =
                (0..CLIENTS).map(first).map(|first| scope.spawn(move || send_until_lost(address, first))).collect();
            std::thread::sleep(moment / 2);
            read_some(&place, random);
            std::thread::sleep(moment / 2);
            server.kill();
            for client in clients {
                let (numbers, error) = client.join().unwrap();
                assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "the server did not answer");
                acknowledged.extend(numbers);
            }
        });
    }
    assert!(look(&place).is_empty(), "there is mail that nobody sent since");
    let (count, kills) = (acknowledged.len(), kills + kills_at_start);
    tell(&format!(
        "--sync {sync}: messages acknowledged {count}, kills {kills}, recovered {recovered}, none lost or delivered twice"
    ));
    println!("delivered but not acknowledged {}, {:?} in all", delivered.len() - count, started.elapsed());
    // Else there was no load, and nothing is shown.
    assert!(count as u64 > kills * 2, "only {count} messages");
    assert_eq!(recovered > 0, sync == "journal", "{recovered} messages came from a journal");
}
