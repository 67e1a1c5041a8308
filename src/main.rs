//! The program: options, a logger, and the loop.

mod health;
mod options;
mod syslog;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;

use log::Level;
use mailchute::EventLoop;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use syslog::Syslog;

/// Where the syslog daemon of this machine listens.
const SYSLOG: &str = "/dev/log";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let ended = match arguments.next() {
        Some(first) if first == "healthcheck" => health::check(arguments),
        Some(first) if first == "journal" => list_journal(arguments),
        _ => serve(),
    };
    let Err((problem, status)) = ended else { return ExitCode::SUCCESS };
    // Nobody may be left to read it.
    let _ = writeln!(io::stderr(), "mailchute: {problem}");
    ExitCode::from(status)
}

/// `mailchute journal FILE`: what is in a journal, also in one of a server that runs.
fn list_journal(mut arguments: impl Iterator<Item = OsString>) -> Result<(), (String, u8)> {
    let (Some(file), None) = (arguments.next(), arguments.next()) else {
        return Err(("journal takes one file, a .mailchute-journal.N".to_owned(), 64));
    };
    let lines = mailchute::journal::list(file.as_ref());
    let problem = |error| (format!("{}: {error}", Path::new(&file).display()), 1);
    options::print(&lines.map_err(problem)?)
}

fn serve() -> Result<(), (String, u8)> {
    // 64 as `sysexits.h` has it.
    let parsed = options::parse().map_err(|problem| (format!("{problem}; see mailchute --help"), 64));
    // What is made has its mode from us, whoever started us.
    rustix::process::umask(rustix::fs::Mode::empty());
    let (config, (filters, to_syslog), in_force) = parsed?;
    let filter = env_logger::Builder::new().parse_filters(if filters.is_empty() { "info" } else { &filters }).build();
    log::set_max_level(filter.filter());
    let syslog = to_syslog.then(|| Syslog::new(SYSLOG).ok()).flatten();
    let lines: &Lines = Box::leak(Box::new(Lines(filter, Mutex::default(), syslog)));
    let _ = log::set_logger(lines);
    in_force.lines().for_each(|line| log::debug!("{line}"));
    EventLoop::start(config).and_then(EventLoop::run).map_err(|problem| {
        // Whatever the filter says. On stderr it is always.
        let _ = lines.2.as_ref().map(|syslog| syslog.send(Level::Error, format_args!("{problem}")));
        (problem.to_string(), 1)
    })
}

/// Lines for syslog where that is asked for; those that it does not take, or all, on stderr without times, as journals add their
/// own, in one buffer. One is lost rather than waited for when its reader is slow.
struct Lines(env_logger::Logger, Mutex<Vec<u8>>, Option<Syslog>);

impl log::Log for Lines {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        log::Log::enabled(&self.0, metadata)
    }

    fn log(&self, record: &log::Record<'_>) {
        let sent = || self.2.as_ref().is_some_and(|syslog| syslog.send(record.level(), *record.args()));
        let ready = || poll(&mut [PollFd::new(&io::stderr(), PollFlags::OUT)], Some(&Timespec::default()));
        // Nobody panics who has it.
        let Ok(mut line) = self.1.lock() else { return };
        if self.0.matches(record) && !sent() && ready() != Ok(0) {
            line.clear();
            let _ = writeln!(line, "{:<5} {}", record.level(), record.args());
            let _ = io::stderr().write_all(&line);
        }
    }

    fn flush(&self) {}
}
