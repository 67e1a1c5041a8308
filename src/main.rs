//! The program: options, a logger, and the loop.

mod options;

use std::io::{self, Write};
use std::process::ExitCode;

use mailchute::EventLoop;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

fn main() -> ExitCode {
    let (problem, status) = match options::parse() {
        // As `sysexits.h` has it.
        Err(problem) => (format!("{problem}; see mailchute --help"), 64),
        Ok((config, filters)) => {
            start_logging(&filters);
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

/// Lines on stderr, without times: journals and container engines add their own. One is lost when its reader is too slow,
/// lest the server wait for it.
fn start_logging(filters: &str) {
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(if filters.is_empty() { "info" } else { filters });
    builder.format(|line, record| {
        let ready = poll(&mut [PollFd::new(&io::stderr(), PollFlags::OUT)], Some(&Timespec::default()));
        if ready == Ok(0) { Ok(()) } else { writeln!(line, "{:<5} {}", record.level(), record.args()) }
    });
    builder.init();
}
