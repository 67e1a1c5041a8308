//! The whole server over sockets beside one written with tokio, both flushing file and directory before they say 250.
//!
//! `cargo bench --bench sockets -- [--dir DIR] [--seconds N]`
//!
//! Messages of 1 KiB over connections that are kept, without pipelining. Both servers and the clients share this
//! process and its processors, in turn.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../common/mod.rs"]
mod common;
mod load;
mod peer;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use common::{Options, Workplace, median, range};
use load::{MESSAGE_OCTETS, Sample};
use mailchute::config::Place;
use mailchute::delivery::MinFree;
use mailchute::{Config, EventLoop};

const ROUNDS: u32 = 5;
const CONNECTIONS: [usize; 3] = [1, 10, 100];

#[derive(Clone, Copy)]
enum Server {
    Mailchute,
    /// With as many threads for sockets as there are processors, or with one; with as many for the disk as it likes.
    Tokio {
        many_threads: bool,
    },
}

const SERVERS: [(Server, &str); 3] = [
    (Server::Tokio { many_threads: true }, "tokio, many threads"),
    (Server::Tokio { many_threads: false }, "tokio, one thread"),
    (Server::Mailchute, "mailchute"),
];

fn main() {
    let options = Options::read();
    let workplace = Workplace::new(&options.dir);
    let time = options.time / (ROUNDS * (CONNECTIONS.len() * SERVERS.len()) as u32);
    println!("{MESSAGE_OCTETS} octets a message, {ROUNDS} rounds, {} ms for each figure of a round", time.as_millis());
    let mut samples = vec![[const { Vec::new() }; SERVERS.len()]; CONNECTIONS.len()];
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        for (row, &connections) in samples.iter_mut().zip(&CONNECTIONS) {
            for (cell, (server, _)) in row.iter_mut().zip(SERVERS) {
                cell.push(measure(server, &workplace, connections, time));
            }
        }
    }
    println!(
        "\n{:>11}  {:<22}{:>11}{:>9}{:>9}   to the first, least and most",
        "connections", "", "messages/s", "p50 ms", "p99 ms"
    );
    for (row, connections) in samples.iter().zip(CONNECTIONS) {
        for (cell, (_, name)) in row.iter().zip(SERVERS) {
            let of = |what: fn(&Sample) -> f64| median(cell.iter().map(what).collect());
            let ratios: Vec<f64> = cell.iter().zip(&row[0]).map(|(it, base)| it.rate / base.rate).collect();
            let (least, most) = range(&ratios);
            println!(
                "{connections:>11}  {name:<22}{:>11.0}{:>9.2}{:>9.2}   {:.2} ({least:.2} to {most:.2})",
                of(|it| it.rate),
                of(|it| it.p50),
                of(|it| it.p99),
                median(ratios),
            );
        }
    }
}

fn measure(server: Server, workplace: &Workplace, connections: usize, time: Duration) -> Sample {
    // The tenth of warming up comes out of it.
    let time = time * 10 / 11;
    let path = workplace.maildir();
    let sample = match server {
        Server::Tokio { many_threads } => {
            let (address, runtime) = peer::start(&path, many_threads);
            let sample = load::run(address, connections, time);
            drop(runtime);
            sample
        }
        Server::Mailchute => {
            let place = Place::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
            let listen = Some(vec![place]);
            let config = Config { listen, maildir: path, min_free: MinFree::Octets(0), ..Config::default() };
            let event_loop = EventLoop::start(config).unwrap();
            let address = event_loop.places()[0].parse().unwrap();
            let stop = event_loop.stopper();
            let thread = std::thread::spawn(move || event_loop.run());
            let sample = load::run(address, connections, time);
            stop().unwrap();
            thread.join().unwrap().unwrap();
            sample
        }
    };
    workplace.clear();
    sample
}
