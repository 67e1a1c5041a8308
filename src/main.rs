//! The program: options, a logger, and the loop.

mod options;

use std::io::{self, Write};
use std::process::ExitCode;

use log::LevelFilter;
use mailchute::EventLoop;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Wrong usage, as `sysexits.h` has it.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let (problem, status) = match options::parse() {
        Err(problem) => (format!("{problem}; see mailchute --help"), USAGE),
        Ok((config, level)) => {
            start_logging(level);
            match EventLoop::start(config).and_then(EventLoop::run) {
                Err(problem) => (problem.to_string(), 1),
                Ok(()) => return ExitCode::SUCCESS,
            }
        }
    };
    // Nobody may be left to read it.
    let _ = writeln!(io::stderr(), "mailchute: {problem}");
    ExitCode::from(status)
}

/// Standard error, for the log: a line is lost when its reader is too slow, lest the server wait for it.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr();
        let ready = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&Timespec::default()));
        if ready == Ok(0) { Ok(octets.len()) } else { stderr.lock().write(octets) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lines on stderr, without times: journals and container engines add their own.
fn start_logging(level: Option<LevelFilter>) {
    let variable = std::env::var("RUST_LOG").ok().filter(|filters| !filters.is_empty());
    let filters = level.map(|level| level.to_string()).or(variable);
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(filters.as_deref().unwrap_or("info"));
    builder.format(|line, record| writeln!(line, "{:<5} {}", record.level(), record.args()));
    builder.target(env_logger::Target::Pipe(Box::new(Stderr))).init();
}
