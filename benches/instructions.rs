//! Instructions of the release binary, without the kernel's, counted by valgrind: for a message and for a connection.
//!
//! `cargo bench --bench instructions [-- --keep] [--tmpfs DIR]`
//!
//! Each figure is the difference of a run of 300 and one of 100, so that start and end do not count. Compares with
//! `benches/instructions.txt`; `--keep` writes what was counted there. Other compilers and C libraries count otherwise.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[allow(dead_code, reason = "others ask more of it")]
#[path = "common/mod.rs"]
mod common;
#[allow(dead_code, reason = "others ask more of it")]
#[path = "common/load.rs"]
mod load;
#[allow(dead_code, reason = "others ask more of it")]
#[path = "common/process.rs"]
mod process;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Workplace;
use load::{Plan, Until};
use process::{Server, free_address};

const FEW: u64 = 100;
const MANY: u64 = 300;
/// Runs of each, of which the least counts.
const TIMES: usize = 3;

/// Name, level of the log, messages of a connection (0 is any number), whether with PIPELINING.
const FIGURES: [(&str, &str, u64, bool); 4] = [
    ("message", "warn", 0, false),
    ("message-logged", "info", 0, false),
    ("message-pipelined", "warn", 0, true),
    ("connection-and-message", "warn", 1, false),
];

fn main() {
    let (mut keep, mut tmpfs) = (false, PathBuf::from("/dev/shm"));
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--keep" => keep = true,
            "--tmpfs" => tmpfs = arguments.next().unwrap_or_default().into(),
            _ => panic!("usage: cargo bench --bench instructions -- [--keep] [--tmpfs DIR]"),
        }
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("SKIPPED: NOTHING COUNTED: there is no valgrind on this machine");
        return;
    }
    let workplace = Workplace::new(&tmpfs);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.txt");
    let kept = fs::read_to_string(&file).unwrap_or_default();
    let mut text = String::new();
    for (name, level, per_connection, pipelining) in FIGURES {
        // Whether the next message is there when the server looks is a matter of luck, and each look in vain costs.
        let count = |messages| {
            let once = |_| instructions(&workplace, level, messages, per_connection, pipelining);
            (0..TIMES).map(once).min().unwrap_or(0)
        };
        let figure = (count(MANY) - count(FEW)) / (MANY - FEW);
        println!("{name}: {figure} instructions{}", compared(figure, find(&kept, name)));
        let _ = writeln!(text, "{name} {figure}");
    }
    if let (Some(both), Some(message)) = (find(&text, "connection-and-message"), find(&text, "message")) {
        println!("so a connection beside its message: {} instructions", both - message);
    }
    if keep {
        fs::write(&file, text).unwrap();
    }
}

fn find(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// Two counts of the same program differ by less than one hundredth.
fn compared(figure: u64, kept: Option<u64>) -> String {
    let Some(kept) = kept else { return ", none kept yet".to_owned() };
    let percent = (figure as f64 / kept as f64 - 1.0) * 100.0;
    let verdict = if percent > 1.0 {
        "MORE"
    } else if percent < -1.0 {
        "less"
    } else {
        "the same"
    };
    format!(", {kept} kept: {verdict} ({percent:+.1} %)")
}

/// All instructions of a server that takes so many messages, from its start to its end.
fn instructions(workplace: &Workplace, level: &str, messages: u64, per_connection: u64, pipelining: bool) -> u64 {
    let address = free_address();
    let output = workplace.maildir().with_file_name("callgrind.out");
    let mut command = Command::new("valgrind");
    command.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", output.display()));
    command.arg(env!("CARGO_BIN_EXE_mailchute")).args(["--sync", "never", "--log", level, "--hostname", "bench"]);
    command.args(["--listen", &address.to_string(), "--maildir"]).arg(workplace.maildir());
    let server = Server::start(&mut command, address).expect("the server under valgrind");
    let plan = Plan { per_connection, pipelining, ..Plan::new(address, Until::Messages(messages)) };
    let sample = load::run(&plan).expect("the load");
    assert_eq!((sample.messages, sample.errors), (messages, 0), "{:?}", sample.first_error);
    server.stop();
    let profile = fs::read_to_string(&output).expect("what callgrind wrote");
    workplace.clear();
    let totals = profile.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
    totals.expect("a sum").trim().parse().expect("a number")
}
