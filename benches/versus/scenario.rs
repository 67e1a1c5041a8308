//! What is measured, and how.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::Workplace;
use crate::load::{self, Plan, Until, script};
use crate::process::{self, free_address, resident_kib};
use crate::servers::Server;

/// Where messages are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// Nothing is flushed.
    Tmpfs,
    /// Where the target directory lies; flushed before 250.
    Target,
    /// A loop device in the target directory; flushed before 250.
    Journal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Load {
        connections: usize,
        size: usize,
        per_connection: u64,
        pipelining: bool,
    },
    /// So many connections that only said EHLO.
    Idle(usize),
    /// From the start to the first greeting.
    Start,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    pub disk: Disk,
    pub kind: Kind,
}

pub const KIB: usize = 1024;
pub const MIB: usize = 1024 * 1024;

pub const fn kept(connections: usize) -> Kind {
    Kind::Load { connections, size: KIB, per_connection: 0, pipelining: false }
}

pub const fn pipelined(connections: usize) -> Kind {
    Kind::Load { connections, size: KIB, per_connection: 0, pipelining: true }
}

pub const fn large(connections: usize, size: usize) -> Kind {
    Kind::Load { connections, size, per_connection: 0, pipelining: false }
}

pub const NEW_CONNECTIONS: Kind = Kind::Load { connections: 10, size: KIB, per_connection: 1, pipelining: false };

const fn on(disk: Disk, kind: Kind) -> Scenario {
    Scenario { disk, kind }
}

pub const ALL: [Scenario; 20] = [
    on(Disk::Tmpfs, kept(1)),
    on(Disk::Tmpfs, kept(10)),
    on(Disk::Tmpfs, kept(100)),
    on(Disk::Tmpfs, pipelined(1)),
    on(Disk::Tmpfs, pipelined(10)),
    on(Disk::Tmpfs, pipelined(100)),
    on(Disk::Tmpfs, NEW_CONNECTIONS),
    on(Disk::Tmpfs, large(10, 100 * KIB)),
    on(Disk::Tmpfs, large(2, 10 * MIB)),
    on(Disk::Tmpfs, kept(1000)),
    on(Disk::Tmpfs, kept(10_000)),
    on(Disk::Target, kept(1)),
    on(Disk::Target, kept(10)),
    on(Disk::Target, kept(100)),
    on(Disk::Journal, kept(1)),
    on(Disk::Journal, kept(10)),
    on(Disk::Journal, kept(100)),
    on(Disk::Tmpfs, Kind::Idle(1000)),
    on(Disk::Tmpfs, Kind::Idle(10_000)),
    on(Disk::Tmpfs, Kind::Start),
];

/// Enough for a first look.
pub const QUICK: [Scenario; 6] = [
    on(Disk::Tmpfs, kept(1)),
    on(Disk::Tmpfs, kept(10)),
    on(Disk::Tmpfs, pipelined(10)),
    on(Disk::Target, kept(10)),
    on(Disk::Tmpfs, Kind::Idle(1000)),
    on(Disk::Tmpfs, Kind::Start),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    More,
    Less,
    Neither,
}

pub struct Column {
    pub name: &'static str,
    pub better: Better,
    pub decimals: usize,
}

const fn column(name: &'static str, better: Better, decimals: usize) -> Column {
    Column { name, better, decimals }
}

/// Columns of a load, by their place.
pub const RATE: usize = 0;
pub const MEGABYTES: usize = 1;
pub const MICROS: usize = 2;
pub const P50: usize = 3;
pub const P99: usize = 4;

impl Scenario {
    pub fn title(self) -> String {
        let disk = match self.disk {
            Disk::Tmpfs => "tmpfs, no flush",
            Disk::Target => "disk of the target directory, durable",
            Disk::Journal => "ext4 with a journal, durable",
        };
        let kind = match self.kind {
            Kind::Load { connections, size, per_connection, pipelining } => {
                let size = if size < MIB { format!("{} KiB", size / KIB) } else { format!("{} MiB", size / MIB) };
                let plural = if connections == 1 { "" } else { "s" };
                let kept = if per_connection == 0 { "" } else { ", a new one for each message" };
                let pipelining = if pipelining { ", pipelining" } else { "" };
                format!("{size}, {connections} connection{plural}{kept}{pipelining}")
            }
            Kind::Idle(count) => format!("{count} idle connections"),
            Kind::Start => "start to first greeting".to_owned(),
        };
        format!("{disk}: {kind}")
    }

    pub fn columns(self) -> Vec<Column> {
        match self.kind {
            Kind::Load { .. } => vec![
                column("messages/s", Better::More, 0),
                column("MB/s", Better::More, 1),
                column("server CPU us/message", Better::Less, 1),
                column("p50 ms", Better::Less, 3),
                column("p99 ms", Better::Less, 3),
                column("resident MiB", Better::Less, 1),
                column("load generator CPU %", Better::Neither, 0),
            ],
            Kind::Idle(_) => {
                vec![column("resident KiB each", Better::Less, 2), column("resident MiB in all", Better::Less, 1)]
            }
            Kind::Start => vec![column("ms", Better::Less, 2)],
        }
    }

    /// Whether this server is measured in it.
    pub fn takes(self, server: Server) -> bool {
        match self.kind {
            _ if server == Server::MailchuteAlways => self.disk != Disk::Tmpfs,
            _ if server == Server::MailchuteNever => self.disk == Disk::Journal,
            // How cost grows is a question to mailchute; the others are there to compare the kernel's share.
            Kind::Load { connections: 1000.., .. } => {
                matches!(server, Server::Mailchute | Server::Floor | Server::TokioThread)
            }
            Kind::Load { .. } => self.disk == Disk::Tmpfs || server.stores(),
            Kind::Idle(_) | Kind::Start => server != Server::MailchuteLogging,
        }
    }

    /// One measurement, of `time`: a figure for each column.
    ///
    /// # Errors
    /// A server that does not start, or does not do what it should.
    pub fn measure(self, server: Server, workplace: &Workplace, time: Duration) -> Result<Vec<f64>, String> {
        let (address, maildir) = (free_address(), workplace.maildir());
        let size = if let Kind::Load { size, .. } = self.kind { size } else { KIB };
        let mut command = server.command(address, &maildir, self.disk != Disk::Tmpfs, size);
        let process = process::Server::start(&mut command, address)?;
        let resident = || resident_kib(process.id()).map_or(f64::NAN, |kib| kib as f64);
        match self.kind {
            Kind::Start => Ok(vec![process.start.as_secs_f64() * 1e3]),
            Kind::Idle(count) => {
                let before = resident();
                let _connections = load::idle(address, count)?;
                let after = resident();
                Ok(vec![(after - before) / count as f64, after / 1024.0])
            }
            Kind::Load { connections, per_connection, pipelining, .. } => {
                let plan = Plan {
                    connections,
                    warm_up: time / 5,
                    size,
                    per_connection,
                    pipelining,
                    server: Some(process.id()),
                    ..Plan::new(address, Until::Time(time))
                };
                let sample = load::run(&plan)?;
                if let Some(error) = sample.first_error {
                    return Err(format!("{} errors, the first: {error}", sample.errors));
                }
                if sample.messages == 0 {
                    return Err("took no message in time".to_owned());
                }
                if server.stores() {
                    check(&maildir, size, sample.messages)?;
                }
                let (p50, p99) = (sample.latency(50.0), sample.latency(99.0));
                let (micros, own) = (sample.server_micros(), sample.own_share() * 100.0);
                Ok(vec![sample.rate(), sample.megabytes(), micros, p50, p99, resident() / 1024.0, own])
            }
        }
    }
}

/// Whether there is a file for each message, and one of them has its text.
fn check(maildir: &Path, size: usize, messages: u64) -> Result<(), String> {
    let files = || fs::read_dir(maildir.join("new")).map_err(|error| error.to_string());
    // What was answered may be on its way there from a journal.
    let (begin, mut count) = (Instant::now(), 0);
    while count < messages && begin.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(20));
        count = files()?.count() as u64;
    }
    if count < messages {
        return Err(format!("stored {count} of {messages} messages"));
    }
    let first = files()?.flatten().next().map(|entry| entry.path()).unwrap_or_default();
    let content = String::from_utf8(fs::read(first).unwrap_or_default()).unwrap_or_default().replace("\r\n", "\n");
    let text = script(size, 1).pop().unwrap_or_default();
    let text = String::from_utf8_lossy(&text[..text.len() - 3]).replace("\r\n", "\n");
    // Some drop the last line end.
    let is_whole = content.trim_end().ends_with(text.trim_end());
    if is_whole { Ok(()) } else { Err("did not store the text that it was sent".to_owned()) }
}
