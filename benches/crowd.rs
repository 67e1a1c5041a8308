//! What a crowd costs whoever comes: a newcomer's message beside 10,000 idle connections and 200 slow ones, and the same
//! on a server that is empty.
//!
//! `cargo bench --bench crowd -- [--dir DIR] [--seconds N]`
//!
//! Two servers run at a time, one empty and one with the crowd, and get their messages in turns, so that whatever else the
//! machine does slows both. Each message comes over a connection of its own. Files are made in memory unless `--dir` says
//! where, and nothing is flushed: what is measured is the loop.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[allow(dead_code, reason = "others ask more of it")]
mod common;
#[allow(dead_code, reason = "others ask more of it")]
#[path = "common/load.rs"]
mod load;
#[allow(dead_code, reason = "others ask more of it")]
#[path = "common/process.rs"]
mod process;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Options, Workplace, median};
use load::{HELLO, read_reply};
use process::{Server, free_address, processor_time, resident_kib};

const IDLE: usize = 10_000;
const SLOW: usize = 200;
/// Each slow client sends an octet of a command so often.
const SLOW_INTERVAL: Duration = Duration::from_secs(3);
const SLOW_COMMAND: &[u8] = b"NOOP\r\n";
const MESSAGE_OCTETS: usize = 1024;
/// Messages for each server; memory holds them all.
const MESSAGES_MAX: usize = 20_000;
/// How much longer than on an empty server a message may take.
const RATIO_WANTED: f64 = 3.0;
/// Where files are made in memory, on most systems.
const MEMORY: &str = "/dev/shm";

fn main() {
    let mut options = Options::read();
    if options.dir == Path::new(env!("CARGO_TARGET_TMPDIR")) && Path::new(MEMORY).is_dir() {
        options.dir = MEMORY.into();
    }
    process::raise_descriptors();
    if let Err(error) = run(&options) {
        eprintln!("gave up: {error}");
        std::process::exit(1);
    }
}

fn run(options: &Options) -> Result<(), String> {
    let workplace = Workplace::new(&options.dir);
    let start = |name: &str| {
        let address = free_address();
        let mut command = Command::new(env!("CARGO_BIN_EXE_mailchute"));
        command.args(["--listen", &address.to_string(), "--sync", "never", "--log", "warn"]);
        command.args(["--max-connections", "20000", "--timeout", "10m", "--maildir"]);
        command.arg(workplace.maildir().join(name));
        Server::start(&mut command, address).map(|server| (server, address))
    };
    std::fs::create_dir(workplace.maildir()).map_err(|error| error.to_string())?;
    let ((empty, empty_address), (crowded, crowded_address)) = (start("empty")?, start("crowded")?);
    let script = load::script(MESSAGE_OCTETS, 1);
    // Both are warm before the crowd comes, so that what it takes is its own.
    for address in [empty_address, crowded_address].repeat(200) {
        deliver(address, &script).map_err(|error| error.to_string())?;
    }
    let before = resident_kib(crowded.id()).ok_or("no /proc here")?;
    let idle = load::idle(crowded_address, IDLE)?;
    let mut slow = load::idle(crowded_address, SLOW)?;
    let after = resident_kib(crowded.id()).ok_or("no /proc here")?;
    let kib = after.saturating_sub(before) as f64 / (IDLE + SLOW) as f64;
    println!("{IDLE} idle connections and {SLOW} that send an octet every {} s", SLOW_INTERVAL.as_secs());
    println!("memory: {before} KiB resident before, {after} with them: {kib:.2} KiB a connection");

    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let (times, shares) = std::thread::scope(|scope| {
        let crawl = scope.spawn(|| crawl(&mut slow, &stop, &sent));
        let measured = measure(options.time, [empty_address, crowded_address], [empty.id(), crowded.id()], &script);
        stop.store(true, Ordering::Relaxed);
        crawl.join().unwrap().map_err(|error| format!("a slow client: {error}"))?;
        measured
    })?;
    println!(
        "processor, while only the crowd is there: {:.2} % of one; the empty server: {:.2} %",
        shares[1], shares[0]
    );
    println!("the slow clients sent {} octets", sent.load(Ordering::Relaxed));
    // Else the crowd was none.
    let gone = idle.iter().chain(&slow).filter(|stream| is_gone(stream)).count();
    if gone > 0 {
        return Err(format!("{gone} of the crowd are gone"));
    }
    let count = times[0].len();
    for (name, times) in ["empty", "crowded"].into_iter().zip(&times) {
        let mut sorted = times.clone();
        sorted.sort_by(f64::total_cmp);
        let (p99, most) = (sorted[count * 99 / 100], sorted[count - 1]);
        println!("{name:8} median {:.1} us, p99 {p99:.1} us, longest {most:.1} us, of {count}", median(sorted));
    }
    let [empty_time, crowded_time] = times.map(median);
    let ratio = crowded_time / empty_time;
    let verdict = if ratio <= RATIO_WANTED { "" } else { ", WHICH IS MORE THAN WANTED" };
    println!("ratio {ratio:.2}; at most {RATIO_WANTED:.0} is wanted{verdict}");
    drop((idle, slow));
    empty.stop();
    crowded.stop();
    Ok(())
}

/// Microseconds of each message, first of the one server and then of the other; and before these, hundredths of a processor
/// that each needs while nobody comes.
fn measure(
    time: Duration, addresses: [SocketAddr; 2], processes: [u32; 2], script: &[Vec<u8>],
) -> Result<([Vec<f64>; 2], [f64; 2]), String> {
    let used = || processes.map(|process| processor_time(process).unwrap_or_default());
    let (quiet, before) = (time / 3, used());
    std::thread::sleep(quiet);
    let after = used();
    let share = |index: usize| (after[index] - before[index]).as_secs_f64() / quiet.as_secs_f64() * 100.0;
    let begun = Instant::now();
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..MESSAGES_MAX {
        if begun.elapsed() + quiet >= time {
            break;
        }
        // Neither is always the first.
        for index in [round % 2, 1 - round % 2] {
            let took = deliver(addresses[index], script).map_err(|error| error.to_string())?;
            times[index].push(took.as_secs_f64() * 1e6);
        }
    }
    Ok((times, [share(0), share(1)]))
}

/// How long a message takes on a fresh connection, up to its 250.
fn deliver(address: SocketAddr, script: &[Vec<u8>]) -> std::io::Result<Duration> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    read_reply(&mut stream)?;
    for part in [HELLO].into_iter().chain(script.iter().map(Vec::as_slice)) {
        stream.write_all(part)?;
        read_reply(&mut stream)?;
    }
    let took = begun.elapsed();
    stream.write_all(load::QUIT)?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest)?;
    Ok(took)
}

/// Has each client send its next octet when that is due, one after the other, until it is told to stop.
fn crawl(slow: &mut [TcpStream], stop: &AtomicBool, sent: &AtomicU64) -> std::io::Result<()> {
    let pause = SLOW_INTERVAL / SLOW as u32;
    for octet in SLOW_COMMAND.iter().cycle() {
        for stream in &mut *slow {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            stream.write_all(&[*octet])?;
            sent.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(pause);
        }
    }
    Ok(())
}

/// Whether the server closed a connection. What it said there before is of no interest.
fn is_gone(mut stream: &TcpStream) -> bool {
    let _ = stream.set_nonblocking(true);
    loop {
        match stream.read(&mut [0; 1024]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}
