//! mailchute beside other servers, all as processes of their own, in turn, under the same load.
//!
//! `cargo bench --bench versus [-- --quick] [--seconds N] [--tmpfs DIR] [--dir DIR]`
//!
//! Prints what it found as Markdown, and writes it to `benches/REPORT.md` with the chart `benches/report.svg`; a quick
//! run writes both to the target directory. As root it also measures on an ext4 with a journal, on a loop device.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod asynchronous;
mod chart;
#[allow(dead_code, reason = "others ask more of it")]
#[path = "../common/mod.rs"]
mod common;
mod floor;
#[allow(dead_code, reason = "others ask more of it")]
#[path = "../common/load.rs"]
mod load;
mod loop_disk;
mod plausible;
#[allow(dead_code, reason = "others ask more of it")]
#[path = "../common/process.rs"]
mod process;
mod report;
mod scenario;
mod servers;
mod store;
mod threads;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::Workplace;
use loop_disk::LoopDisk;
use report::{Cell, Results};
use scenario::{Disk, Kind, Scenario};
use servers::Server;

/// Rounds of a full and of a quick run, and of the scenarios with idle connections.
const ROUNDS: usize = 5;
const ROUNDS_QUICK: usize = 3;
const ROUNDS_IDLE: usize = 2;
/// What a measurement takes beside its own time: starting and stopping a server, removing what it stored.
const OVERHEAD: Duration = Duration::from_millis(420);

struct Options {
    quick: bool,
    /// All measurements together.
    time: Duration,
    tmpfs: PathBuf,
    dir: PathBuf,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == servers::SERVE) {
        servers::serve(&arguments).unwrap();
        return;
    }
    let options = parse().unwrap_or_else(|error| {
        eprintln!("{error}\nusage: cargo bench --bench versus -- [--quick] [--seconds N] [--tmpfs DIR] [--dir DIR]");
        std::process::exit(2);
    });
    process::raise_descriptors();
    let results = measure(&options);
    let directory = if options.quick { options.dir.clone() } else { env!("CARGO_MANIFEST_DIR").into() };
    let directory = if options.quick { directory } else { directory.join("benches") };
    let report = results.markdown();
    println!("{report}");
    std::fs::write(directory.join("REPORT.md"), &report).unwrap();
    chart::draw(&results, &directory.join("report.svg")).unwrap();
    eprintln!("written to {}", directory.display());
}

fn parse() -> Result<Options, lexopt::Error> {
    use lexopt::prelude::*;
    let (mut quick, mut time) = (false, None);
    let (mut tmpfs, mut dir) = (PathBuf::from("/dev/shm"), PathBuf::from(env!("CARGO_TARGET_TMPDIR")));
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("quick") => quick = true,
            Long("seconds") => time = Some(Duration::from_secs(arguments.value()?.parse::<u32>()?.into())),
            Long("tmpfs") => tmpfs = arguments.value()?.into(),
            Long("dir") => dir = arguments.value()?.into(),
            // Cargo adds this one.
            Long("bench") => {}
            other => return Err(other.unexpected()),
        }
    }
    let time = time.unwrap_or(Duration::from_secs(if quick { 50 } else { 570 }));
    Ok(Options { quick, time, tmpfs, dir })
}

fn measure(options: &Options) -> Results {
    let begun = Instant::now();
    let tmpfs = Workplace::new(&options.tmpfs);
    let target = Workplace::new(&options.dir);
    let mut notes = servers::skipped();
    if !tmpfs.mount.starts_with("tmpfs") {
        notes.push(format!("NOT ON TMPFS: what is called tmpfs here is {}", tmpfs.mount));
    }
    // Declared in this order, as the last one is dropped first.
    let (mut disk, mut journal) = (None, None);
    if !options.quick {
        match LoopDisk::new(&options.dir) {
            Ok(mounted) => {
                journal = Some(Workplace::new(&mounted.path));
                disk = Some(mounted);
            }
            Err(error) => notes.push(format!("NOTHING MEASURED ON AN EXT4 WITH A JOURNAL: {error}")),
        }
    }
    let journal_measured = journal.is_some();
    let scenarios: &[Scenario] = if options.quick { &scenario::QUICK } else { &scenario::ALL };
    let scenarios: Vec<Scenario> =
        scenarios.iter().copied().filter(|it| it.disk != Disk::Journal || journal_measured).collect();
    let present: Vec<Server> = servers::ALL.into_iter().filter(|server| server.is_present()).collect();
    let rounds = if options.quick { ROUNDS_QUICK } else { ROUNDS };
    let time = time_of_one(&scenarios, &present, options.time, rounds);
    let mut cells: Vec<Vec<Cell>> = Vec::new();
    cells.resize_with(scenarios.len(), || present.iter().map(|_| Cell::default()).collect());
    let mut done = 0;
    for round in 1..=rounds {
        let round_begun = Instant::now();
        for (scenario, cells) in scenarios.iter().zip(&mut cells) {
            if matches!(scenario.kind, Kind::Idle(_)) && round > ROUNDS_IDLE {
                continue;
            }
            eprintln!("{:>3} s, round {round} of {rounds}, {}", begun.elapsed().as_secs(), scenario.title());
            let workplace = match scenario.disk {
                Disk::Tmpfs => &tmpfs,
                Disk::Target => &target,
                Disk::Journal => journal.as_ref().unwrap_or(&target),
            };
            // Another one begins in each round.
            for index in (0..present.len()).map(|index| (index + round) % present.len()) {
                if scenario.takes(present[index]) {
                    cells[index].add(scenario.measure(present[index], workplace, time));
                    workplace.clear();
                }
            }
        }
        done = round;
        if round < rounds && begun.elapsed() + round_begun.elapsed() > options.time + Duration::from_secs(10) {
            notes.push(format!("{done} of {rounds} rounds, as the time was up"));
            break;
        }
    }
    notes.push(plausible::compare(&tmpfs).unwrap_or_else(|error| format!("NO COMPARISON WITH smtp-source: {error}")));
    let mounts = [Some(&tmpfs), Some(&target), journal.as_ref()];
    let mounts = mounts.into_iter().flatten().map(|workplace| workplace.mount.clone()).collect();
    drop(journal);
    drop(disk);
    Results { scenarios, servers: present, cells, notes, mounts, rounds: done, time, quick: options.quick }
}

/// How long one measurement may take so that all of them end in time.
fn time_of_one(scenarios: &[Scenario], servers: &[Server], time: Duration, rounds: usize) -> Duration {
    let loads = scenarios.iter().filter(|scenario| matches!(scenario.kind, Kind::Load { .. }));
    let cells = loads.flat_map(|it| servers.iter().filter(|server| it.takes(**server))).count() * rounds;
    let one = (time / (cells as u32).max(1)).saturating_sub(OVERHEAD);
    // The warm-up comes out of it.
    one.max(Duration::from_millis(150)) * 5 / 6
}
