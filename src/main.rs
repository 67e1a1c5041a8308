//! The program: options, a logger, and the loop.

mod options;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Mutex;

use log::{Log, Metadata, Record};
use mailchute::EventLoop;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

fn main() -> ExitCode {
    let (problem, status) = match options::parse() {
        // As `sysexits.h` has it.
        Err(problem) => (format!("{problem}; see mailchute --help"), 64),
        Ok((config, level)) => {
            log::set_max_level(level);
            let _ = log::set_logger(&LINES);
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
struct Lines(Mutex<Vec<u8>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let Ok(mut line) = self.0.lock() else { return };
        line.clear();
        let _ = writeln!(line, "{:<5} {}", record.level(), record.args());
        if poll(&mut [PollFd::new(&io::stderr(), PollFlags::OUT)], Some(&Timespec::default())) != Ok(0) {
            let _ = io::stderr().write_all(&line);
        }
    }

    fn flush(&self) {}
}
