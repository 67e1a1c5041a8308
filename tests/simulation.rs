//! The whole server, simulated: the code that runs in production with many clients, a clock, sockets and a disk that a seed
//! rules. After each step it is checked that no mail is lost or altered, and that everybody is answered.
//!
//! `MAILCHUTE_SIMULATION_SEEDS=1000..2000` runs other seeds than usual, `MAILCHUTE_SIMULATION_SEEDS=1234` one, with all that
//! happens in it.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "simulation/book.rs"]
mod book;
#[path = "simulation/client.rs"]
mod client;
#[path = "simulation/memory.rs"]
mod memory;
mod model;
#[path = "simulation/socket.rs"]
mod socket;
#[path = "simulation/text.rs"]
mod text;
#[path = "simulation/world.rs"]
mod world;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use world::Report;

/// What runs without being told otherwise.
const SEEDS: Range<u64> = 0..400;
/// Steps that are shown of a seed that failed.
const SHOWN: usize = 60;

fn tables() -> [PathBuf; 2] {
    [0, 1].map(|table| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("simulation-table-{table}"));
        let new = path.with_extension(std::process::id().to_string());
        std::fs::write(&new, book::TABLES[table]).expect("a table");
        std::fs::rename(&new, &path).expect("a table");
        path
    })
}

/// Runs one seed; a panic is a failure like any other.
fn run(seed: u64, alone: Option<usize>, tables: &[PathBuf; 2], tracing: bool) -> Report {
    let run = catch_unwind(AssertUnwindSafe(|| world::run(seed, alone, tables, tracing)));
    run.unwrap_or_else(|_| Report { failures: vec!["it panicked, as is said above".to_owned()], ..Report::default() })
}

/// A seed with all its clients, and where nothing is wrong with disk or room each good one alone, who must hear the same.
fn check(seed: u64, tables: &[PathBuf; 2], tracing: bool) -> Report {
    let mut report = run(seed, None, tables, tracing);
    if world::is_calm(seed) && report.failures.is_empty() {
        for (number, heard) in report.transcripts.iter().filter(|(number, _)| *number < world::LATER).take(3) {
            let alone = run(seed, Some(*number), tables, tracing);
            let (_, same) = alone.transcripts.first().expect("the one client");
            if same != heard {
                let first = same.iter().zip(heard).position(|(same, heard)| same != heard);
                let first = first.unwrap_or(same.len().min(heard.len()));
                let (heard, same) = (&heard[first..], &same[first..]);
                report.failures.push(format!("client {number}, reply {first}: hears {heard:?}, and alone {same:?}"));
                break;
            }
            report
                .failures
                .extend(alone.failures.into_iter().map(|failure| format!("client {number} alone: {failure}")));
        }
    }
    report
}

#[test]
fn no_mail_is_lost_and_everybody_is_answered() {
    let given = std::env::var("MAILCHUTE_SIMULATION_SEEDS").ok();
    let number = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("{text} is no seed"));
    let seeds = match given.as_deref().map(|given| given.split_once("..").ok_or(given)) {
        None => SEEDS,
        Some(Ok((first, end))) => number(first)..number(end),
        Some(Err(seed)) => number(seed)..number(seed) + 1,
    };
    let tables = tables();
    if seeds.end - seeds.start == 1 {
        let report = check(seeds.start, &tables, true);
        println!("{}", report.trace.join("\n"));
        assert!(report.failures.is_empty(), "seed {}: {}", seeds.start, report.failures.join("\n"));
        return;
    }
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    let sum = Mutex::new((0, 0, 0, 0, 0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while failed.lock().expect("no panic").is_empty() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let report = check(seed, &tables, false);
                    let mut sum = sum.lock().expect("no panic");
                    let Report { steps, clients, messages, promises, groups, .. } = report;
                    *sum = (sum.0 + steps, sum.1 + clients, sum.2 + messages, sum.3 + promises, sum.4 + groups);
                    if !report.failures.is_empty() {
                        failed.lock().expect("no panic").push(seed);
                    }
                }
            });
        }
    });
    let (steps, clients, messages, promises, groups) = *sum.lock().expect("no panic");
    println!(
        "{} seeds: {steps} steps, {clients} clients, {messages} messages, {promises} of them promised; {groups} groups in journals",
        seeds.end - seeds.start
    );
    if let Some(seed) = failed.into_inner().expect("no panic").into_iter().min() {
        let report = check(seed, &tables, true);
        let last = &report.trace[report.trace.len().saturating_sub(SHOWN)..];
        panic!(
            "seed {seed}:\n{}\n\nthe last steps of {}; all of them: MAILCHUTE_SIMULATION_SEEDS={seed} cargo test --test simulation\n{}",
            report.failures.join("\n"),
            report.trace.len(),
            last.join("\n")
        );
    }
}
