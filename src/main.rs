//! The program: options, a logger, and the loop.

mod health;
mod options;

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;

use log::Level;
use mailchute::{EventLoop, delivery::Now, smtp::trace::MessageIds};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

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
    options::print(&lines.map_err(|error| (format!("{}: {error}", Path::new(&file).display()), 1))?)
}

fn serve() -> Result<(), (String, u8)> {
    // 64 as `sysexits.h` has it.
    let parsed = options::parse().map_err(|problem| (format!("{problem}; see mailchute --help"), 64));
    // What is made has its mode from us, whoever started us.
    rustix::process::umask(rustix::fs::Mode::empty());
    let (config, (filters, to_syslog), in_force) = parsed?;
    let filter = env_logger::Builder::new().parse_filters(if filters.is_empty() { "info" } else { &filters }).build();
    log::set_max_level(filter.filter());
    // Without a peer, so that a daemon is found which comes later, or again; the sandbox leaves that to it.
    let socket = UnixDatagram::unbound().ok().filter(|it| to_syslog && it.set_nonblocking(true).is_ok());
    let lines: &Lines = Box::leak(Box::new(Lines(filter, Mutex::new((Vec::new(), MessageIds::new(0, 0))), socket)));
    let _ = log::set_logger(lines);
    in_force.lines().for_each(|line| log::debug!("{line}"));
    EventLoop::start(config).and_then(EventLoop::run).map_err(|problem| {
        // Whatever the filter says. On stderr it is always.
        lines.to_syslog(Level::Error, format_args!("{problem}"));
        (problem.to_string(), 1)
    })
}

/// Lines for syslog where that is asked for; those that it does not take, or all, on stderr without times, as journals add their
/// own, in one buffer, beside what knows the date. One is lost rather than waited for when its reader is slow.
struct Lines(env_logger::Logger, Mutex<(Vec<u8>, MessageIds)>, Option<UnixDatagram>);

impl Lines {
    /// Whether syslog has taken this text: a datagram in the form of RFC 3164, of facility `mail`.
    fn to_syslog(&self, level: Level, text: std::fmt::Arguments<'_>) -> bool {
        let (Some(socket), Ok(mut line)) = (&self.2, self.1.lock()) else { return false };
        let (line, dates) = &mut *line;
        let (priority, process) = ([19, 20, 22, 23, 23][level as usize - 1], std::process::id());
        // Of `Sat, 07 Nov 2026 13:05:09 +0000`; a day of one digit has a blank before it.
        let date = dates.date(Now::read().wall);
        let (day, month, time) = (date[5..7].trim_start_matches('0'), &date[8..11], &date[17..25]);
        line.clear();
        let _ = write!(line, "<{priority}>{month} {day:>2} {time} mailchute[{process}]: {text}");
        socket.send_to(line, SYSLOG).is_ok()
    }
}

impl log::Log for Lines {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        log::Log::enabled(&self.0, metadata)
    }

    fn log(&self, record: &log::Record<'_>) {
        let ready = || poll(&mut [PollFd::new(&io::stderr(), PollFlags::OUT)], Some(&Timespec::default()));
        let wanted = self.0.matches(record) && !self.to_syslog(record.level(), *record.args()) && ready() != Ok(0);
        // Nobody panics who has it.
        if let (true, Ok(mut line)) = (wanted, self.1.lock()) {
            line.0.clear();
            let _ = writeln!(line.0, "{:<5} {}", record.level(), record.args());
            let _ = io::stderr().write_all(&line.0);
        }
    }

    fn flush(&self) {}
}
