//! What was found, as Markdown: tables, where mailchute loses, and the targets.

use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};

use mailchute::smtp::data::{DataDecoder, Framing, LineEnd};

use crate::common::{median, range};
use crate::scenario::{
    Better, Column, Disk, KIB, Kind, MEGABYTES, MIB, MICROS, NEW_CONNECTIONS, P50, P99, RATE, Scenario, kept, large,
    pipelined,
};
use crate::servers::{Server, output};

/// What one server did in one scenario: a figure for each column, in each round.
#[derive(Default)]
pub struct Cell {
    rounds: Vec<Vec<f64>>,
    problem: Option<String>,
}

impl Cell {
    pub fn add(&mut self, measured: Result<Vec<f64>, String>) {
        match measured {
            Ok(figures) => self.rounds.push(figures),
            Err(problem) => self.problem = Some(problem),
        }
    }

    fn figures(&self, column: usize) -> Vec<f64> {
        self.rounds.iter().map(|figures| figures[column]).collect()
    }
}

pub struct Results {
    pub scenarios: Vec<Scenario>,
    pub servers: Vec<Server>,
    /// For each scenario and each server.
    pub cells: Vec<Vec<Cell>>,
    pub notes: Vec<String>,
    pub mounts: Vec<String>,
    pub rounds: usize,
    pub time: Duration,
    pub quick: bool,
}

impl Results {
    /// The middle of the rounds; not a number where nothing was measured.
    pub fn median(&self, disk: Disk, kind: Kind, server: Server, column: usize) -> f64 {
        let scenario = self.scenarios.iter().position(|it| *it == Scenario { disk, kind });
        let server = self.servers.iter().position(|it| *it == server);
        let cell = scenario.zip(server).map(|(scenario, server)| &self.cells[scenario][server]);
        cell.map_or(f64::NAN, |cell| median(cell.figures(column)))
    }

    pub fn range(&self, scenario: usize, server: usize, column: usize) -> (f64, f64) {
        range(&self.cells[scenario][server].figures(column))
    }

    pub fn markdown(&self) -> String {
        let mut text = String::from("# mailchute beside other servers\n\n");
        self.introduce(&mut text);
        text.push_str("\n## Targets\n\n");
        self.targets(&mut text);
        text.push_str("\n## Where mailchute loses\n\nMedians that another server has better, however little.\n\n");
        self.losses(&mut text);
        text.push_str("\n## All figures\n\nMedians, and in brackets the least and the most.\n");
        for index in 0..self.scenarios.len() {
            self.table(index, &mut text);
        }
        text
    }

    fn introduce(&self, text: &mut String) {
        let quick = if self.quick { " -- --quick" } else { "" };
        let kernel = output("uname", &["-srm"]);
        let rust = output("rustc", &["--version"]);
        let revision = output("git", &["describe", "--always", "--dirty"]);
        let version = env!("CARGO_PKG_VERSION");
        let milliseconds = self.time.as_millis();
        let mut lines = vec![
            format!("`cargo bench --bench versus{quick}`, mailchute {version} ({revision}), {rust}"),
            format!("{}, {kernel}", processors()),
            format!("file systems: {}", self.mounts.join("; ")),
            format!(
                "{} rounds, {milliseconds} ms each after a fifth of that to warm up; in each round all servers in turn, \
                 each a process of its own; the load generator is one thread on the same machine",
                self.rounds
            ),
            "durable: file and directory are flushed before 250, by all that store".to_owned(),
            "latency: from a message's first command (or its connection, where that is its own) to the reply to its end"
                .to_owned(),
            "with few connections a figure depends on whether the scheduler has server and load generator on one processor \
             or wakes two of them in turn, hence the wide ranges"
                .to_owned(),
            "LOAD: the load generator used more than 90 % of a processor, so that the server may be faster".to_owned(),
        ];
        lines.extend(self.notes.iter().cloned());
        for line in lines {
            let _ = writeln!(text, "* {line}");
        }
        text.push_str("\n![The main figures as bars](report.svg)\n\n| server | what it is |\n| --- | --- |\n");
        for server in &self.servers {
            let _ = writeln!(text, "| {} | {} |", server.name(), server.description());
        }
    }

    fn table(&self, index: usize, text: &mut String) {
        let scenario = self.scenarios[index];
        let columns = scenario.columns();
        let _ = write!(text, "\n### {}\n\n| |", scenario.title());
        for column in &columns {
            let _ = write!(text, " {} |", column.name);
        }
        let _ = write!(text, "\n| --- |{}\n", " ---: |".repeat(columns.len()));
        for (server, cell) in self.servers.iter().zip(&self.cells[index]) {
            if !scenario.takes(*server) {
                continue;
            }
            let _ = write!(text, "| {} |", server.name());
            for (number, column) in columns.iter().enumerate() {
                let figures = cell.figures(number);
                let _ = write!(text, " {} |", figure(&figures, column));
            }
            if let Some(problem) = &cell.problem {
                let _ = write!(text, " {problem}");
            }
            text.push('\n');
        }
    }

    fn losses(&self, text: &mut String) {
        for (index, scenario) in self.scenarios.iter().enumerate() {
            for (number, column) in scenario.columns().iter().enumerate() {
                if column.name == "MB/s" {
                    // It says the same as messages/s.
                    continue;
                }
                let median = |server: usize| median(self.cells[index][server].figures(number));
                let position = self.servers.iter().position(|server| *server == Server::Mailchute);
                let ours = position.map_or(f64::NAN, median);
                let peers = (0..self.servers.len()).filter(|server| self.servers[*server].is_peer());
                let better = peers.filter(|&server| match column.better {
                    Better::More => median(server) > ours,
                    Better::Less => median(server) < ours,
                    Better::Neither => false,
                });
                let better: Vec<String> = better
                    .map(|server| format!("{} {:.*}", self.servers[server].name(), column.decimals, median(server)))
                    .collect();
                if !better.is_empty() {
                    let (title, name, better) = (scenario.title(), column.name, better.join("; "));
                    let _ = writeln!(text, "* {title}: {name} {ours:.*}; {better}", column.decimals);
                }
            }
        }
    }

    /// The best that those servers have which are asked for; not a number where none was measured.
    fn best(&self, disk: Disk, kind: Kind, column: usize, better: Better, which: impl Fn(Server) -> bool) -> f64 {
        let figures =
            self.servers.iter().filter(|server| which(**server)).map(|&it| self.median(disk, kind, it, column));
        figures.fold(f64::NAN, if better == Better::More { f64::max } else { f64::min })
    }

    fn targets(&self, text: &mut String) {
        let tmpfs = |kind, server, column| self.median(Disk::Tmpfs, kind, server, column);
        let ours = |kind, column| tmpfs(kind, Server::Mailchute, column);
        let mut targets: Vec<(String, f64, Better, f64)> = Vec::new();
        let mut add = |what: &str, kind: Kind, measured: f64, better: Better, limit: f64| {
            let title = Scenario { disk: Disk::Tmpfs, kind }.title();
            targets.push((format!("{title}: {what}"), measured, better, limit));
        };
        for kind in [kept(10), kept(100)] {
            let peer = self.best(Disk::Tmpfs, kind, RATE, Better::More, Server::is_peer);
            add("messages/s to the best peer's", kind, ours(kind, RATE) / peer, Better::More, 1.0);
            let micros = ours(kind, MICROS);
            add("CPU to the floor's", kind, micros / tmpfs(kind, Server::Floor, MICROS), Better::Less, 1.05);
            let peer = self.best(Disk::Tmpfs, kind, MICROS, Better::Less, Server::is_asynchronous);
            add("CPU to the best async peer's", kind, micros / peer, Better::Less, 1.0);
            add("CPU to smtp-sink's", kind, micros / tmpfs(kind, Server::SmtpSink, MICROS), Better::Less, 1.0);
        }
        for kind in [pipelined(1), pipelined(10), pipelined(100)] {
            let micros = ours(kind, MICROS);
            add("CPU to the floor's", kind, micros / tmpfs(kind, Server::Floor, MICROS), Better::Less, 1.1);
            let peer = self.best(Disk::Tmpfs, kind, MICROS, Better::Less, |it| it.is_peer() && it.stores());
            add("CPU to the best peer's that stores", kind, micros / peer, Better::Less, 0.5);
        }
        let peer = self.best(Disk::Tmpfs, NEW_CONNECTIONS, RATE, Better::More, Server::is_peer);
        add("messages/s to the best peer's", NEW_CONNECTIONS, ours(NEW_CONNECTIONS, RATE) / peer, Better::More, 1.0);
        for (name, column) in [("p50", P50), ("p99", P99)] {
            let peer = self.best(Disk::Tmpfs, kept(1), column, Better::Less, Server::is_peer);
            add(&format!("{name} to the best peer's"), kept(1), ours(kept(1), column) / peer, Better::Less, 1.0);
        }
        for kind in [large(10, 100 * KIB), large(2, 10 * MIB)] {
            let floor = tmpfs(kind, Server::Floor, MEGABYTES);
            add("MB/s to the bare loop's", kind, ours(kind, MEGABYTES) / floor, Better::More, 0.8);
            let peer = self.best(Disk::Tmpfs, kind, MEGABYTES, Better::More, Server::is_single_threaded);
            add("MB/s to the best single-threaded", kind, ours(kind, MEGABYTES) / peer, Better::More, 1.0);
        }
        let idle = |count| Kind::Idle(count);
        add("KiB each", idle(10_000), ours(idle(10_000), 0), Better::Less, 0.3);
        add("MiB in all", idle(10_000), ours(idle(10_000), 1), Better::Less, 6.0);
        add("MiB in all", idle(1000), ours(idle(1000), 1), Better::Less, 2.5);
        add("ms", Kind::Start, ours(Kind::Start, 0), Better::Less, 5.0);
        let grown = [10, 100, 1000, 10_000].map(|connections| ours(kept(connections), RATE));
        let (least, most) = range(&grown);
        add("worst of 10 to 10,000 connections to the best", kept(10), least / most, Better::More, 0.8);
        let grown = [10, 100, 1000, 10_000].map(|connections| tmpfs(kept(connections), Server::Floor, RATE));
        let (least, most) = range(&grown);
        add("the same of the floor, for comparison", kept(10), least / most, Better::More, 0.8);
        for connections in [1, 10, 100] {
            let kind = kept(connections);
            let peer = self.best(Disk::Journal, kind, RATE, Better::More, Server::is_peer);
            let measured = self.median(Disk::Journal, kind, Server::Mailchute, RATE) / peer;
            let title = Scenario { disk: Disk::Journal, kind }.title();
            targets.push((format!("{title}: messages/s to the best peer's (an aim)"), measured, Better::More, 2.2));
            targets.push((format!("{title}: the same (never below)"), measured, Better::More, 1.0));
            let never = self.median(Disk::Journal, kind, Server::MailchuteNever, RATE);
            let measured = measured * peer / never;
            targets.push((format!("{title}: messages/s to --sync never's"), measured, Better::More, 0.75));
            let peer = self.best(Disk::Journal, kind, P99, Better::Less, Server::is_peer);
            let measured = self.median(Disk::Journal, kind, Server::Mailchute, P99) / peer;
            targets.push((format!("{title}: p99 to the best peer's"), measured, Better::Less, 1.0));
        }
        let title = "the DATA decoder, lines of 76 octets, stored with LF: GB/s";
        targets.push((title.to_owned(), decoded_a_second() / 1e9, Better::More, 10.0));
        let kept = include_str!("../instructions.txt").lines().find_map(|line| line.strip_prefix("message "));
        let title = "instructions of the server for a message, as `cargo bench --bench instructions` kept them";
        targets.push((title.to_owned(), kept.and_then(|it| it.parse().ok()).unwrap_or(f64::NAN), Better::Less, 8000.0));
        let octets = std::fs::metadata(env!("CARGO_BIN_EXE_mailchute")).map_or(f64::NAN, |it| it.len() as f64);
        targets.push(("the release program: KiB".to_owned(), octets / 1024.0, Better::Less, 600.0));
        text.push_str("| | measured | wanted | |\n| --- | ---: | ---: | --- |\n");
        for (what, measured, better, limit) in targets {
            if measured.is_finite() {
                let reached = if better == Better::More { measured >= limit } else { measured <= limit };
                let (sign, verdict) = (if better == Better::More { "≥" } else { "≤" }, ["**missed**", "reached"]);
                let verdict = verdict[usize::from(reached)];
                let decimals = if measured < 100.0 { 2 } else { 0 };
                let _ = writeln!(text, "| {what} | {measured:.decimals$} | {sign} {limit} | {verdict} |");
            }
        }
    }
}

/// Octets a second of the decoder, the best of some tries; `cargo bench --bench data` has it in more ways.
fn decoded_a_second() -> f64 {
    let line = [&[b'a'; 76][..], b"\r\n"].concat();
    let text = [line.repeat(64 * 1024 / line.len()), b".\r\n".to_vec()].concat();
    let mut content = Vec::with_capacity(text.len());
    let mut seconds = || {
        let (start, times) = (Instant::now(), 1000);
        for _ in 0..times {
            content.clear();
            let mut decoder = DataDecoder::new(Framing::Dot, LineEnd::Lf, false);
            let (.., ended) = decoder.decode(black_box(&text), &mut |run: &[u8]| content.extend_from_slice(run));
            assert!(ended && content.len() > text.len() / 78 * 76);
        }
        start.elapsed().as_secs_f64() / f64::from(times)
    };
    text.len() as f64 / (0..20).map(|_| seconds()).fold(f64::INFINITY, f64::min)
}

fn figure(figures: &[f64], column: &Column) -> String {
    let (least, most) = range(figures);
    let places = column.decimals;
    let middle = median(figures.to_vec());
    let busy = if column.better == Better::Neither && middle > 90.0 { " LOAD" } else { "" };
    match figures.len() {
        0 => "–".to_owned(),
        1 => format!("{middle:.places$}{busy}"),
        _ => format!("{middle:.places$} ({least:.places$}–{most:.places$}){busy}"),
    }
}

fn processors() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{count} processors ({})", model.unwrap_or("of unknown make"))
}
