//! A load generator for any SMTP server: `cargo bench --bench load -- --address 127.0.0.1:2525 [OPTION]…`

#![allow(clippy::unwrap_used, missing_docs)]

#[allow(dead_code, reason = "others ask more of it")]
#[path = "../common/load.rs"]
mod load;
#[allow(dead_code, reason = "others ask more of it")]
#[path = "../common/process.rs"]
mod process;

use std::net::ToSocketAddrs;
use std::time::Duration;

use load::{Plan, Sample, Until};

const USAGE: &str = "\
usage: cargo bench --bench load -- --address HOST:PORT [OPTION]…

  --connections N     that are open at a time [1]
  --messages N        to be sent, and then QUIT [10000]
  --seconds S         send for so long instead
  --size OCTETS       of a message [1024]
  --per-connection N  messages before a connection is closed and another opened; 0: any number [0]
  --recipients N      of each message [1]
  --pipelining        send commands in groups
  --rate N            messages a second [as fast as possible]
  --warm-up S         seconds before anything is counted [0]
  --server PID        the server's process, on this machine: tells what it costs";

fn main() {
    let plan = parse().unwrap_or_else(|error| {
        eprintln!("{error}\n\n{USAGE}");
        std::process::exit(2);
    });
    process::raise_descriptors();
    match load::run(&plan) {
        Ok(sample) => print(&sample),
        Err(error) => {
            eprintln!("gave up: {error}");
            std::process::exit(1);
        }
    }
}

fn parse() -> Result<Plan, lexopt::Error> {
    use lexopt::prelude::*;
    let mut plan = Plan::new(([127, 0, 0, 1], 2525).into(), Until::Messages(10_000));
    plan.progress = true;
    let (mut arguments, mut address) = (lexopt::Parser::from_env(), None);
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("address") => {
                let text = arguments.value()?.string()?;
                address = text.to_socket_addrs().map_err(|error| format!("{text}: {error}"))?.next();
            }
            Long("connections") => plan.connections = arguments.value()?.parse::<usize>()?.max(1),
            Long("messages") => plan.until = Until::Messages(arguments.value()?.parse()?),
            Long("seconds") => plan.until = Until::Time(seconds(&mut arguments)?),
            Long("size") => plan.size = arguments.value()?.parse::<usize>()?.max(128),
            Long("per-connection") => plan.per_connection = arguments.value()?.parse()?,
            Long("recipients") => plan.recipients = arguments.value()?.parse::<usize>()?.max(1),
            Long("pipelining") => plan.pipelining = true,
            Long("rate") => plan.rate = Some(arguments.value()?.parse::<f64>()?.max(0.01)),
            Long("warm-up") => plan.warm_up = seconds(&mut arguments)?,
            Long("server") => plan.server = Some(arguments.value()?.parse()?),
            // Cargo adds this one.
            Long("bench") => {}
            other => return Err(other.unexpected()),
        }
    }
    plan.address = address.ok_or("--address is missing")?;
    Ok(plan)
}

fn seconds(arguments: &mut lexopt::Parser) -> Result<Duration, lexopt::Error> {
    use lexopt::ValueExt;
    let seconds = arguments.value()?.parse()?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string().into())
}

fn print(sample: &Sample) {
    let seconds = sample.time.as_secs_f64();
    println!("{} messages in {seconds:.3} s, {} errors", sample.messages, sample.errors);
    if let Some(error) = &sample.first_error {
        println!("first error: {error}");
    }
    println!("{:.0} messages/s, {:.2} MB/s", sample.rate(), sample.megabytes());
    let [p50, p90, p99, p999, max] = [50.0, 90.0, 99.0, 99.9, 100.0].map(|percentile| sample.latency(percentile));
    println!("latency ms: p50 {p50:.3}, p90 {p90:.3}, p99 {p99:.3}, p99.9 {p999:.3}, max {max:.3}");
    let own = sample.own_share() * 100.0;
    match sample.server_share() {
        Some(server) => {
            let (micros, share) = (sample.server_micros(), server * 100.0);
            println!("processor: load generator {own:.0} %, server {share:.0} %, {micros:.1} us a message");
        }
        None => println!("processor: load generator {own:.0} %; --server PID tells the server's"),
    }
    if sample.was_bottleneck() {
        println!("THE LOAD GENERATOR WAS THE BOTTLENECK: the server may be faster than this");
    }
}
