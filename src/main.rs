//! The program: options, a logger, and the loop.

mod health;
mod options;

use std::io::{self, Write};
use std::process::ExitCode;

use mailchute::EventLoop;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let check = arguments.next().is_some_and(|first| first == "healthcheck");
    let ended = if check { health::check(arguments) } else { serve() };
    let Err((problem, status)) = ended else { return ExitCode::SUCCESS };
    // Nobody may be left to read it.
    let _ = writeln!(io::stderr(), "mailchute: {problem}");
    ExitCode::from(status)
}

fn serve() -> Result<(), (String, u8)> {
    // 64 as `sysexits.h` has it.
    let parsed = options::parse().map_err(|problem| (format!("{problem}; see mailchute --help"), 64));
    // What is made has its mode from us, whoever started us.
    rustix::process::umask(rustix::fs::Mode::empty());
    let (config, filters, in_force) = parsed?;
    start_logging(&filters);
    in_force.lines().for_each(|line| log::debug!("{line}"));
    EventLoop::start(config).and_then(EventLoop::run).map_err(|problem| (problem.to_string(), 1))
}

/// Lines on stderr without times, as journals add their own. One is lost rather than waited for when its reader is slow.
fn start_logging(filters: &str) {
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(if filters.is_empty() { "info" } else { filters });
    builder.format(|line, record| {
        let ready = poll(&mut [PollFd::new(&io::stderr(), PollFlags::OUT)], Some(&Timespec::default()));
        if ready == Ok(0) { Ok(()) } else { writeln!(line, "{:<5} {}", record.level(), record.args()) }
    });
    builder.init();
}
