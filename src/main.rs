//! The program: options, a logger, and the loop.

mod options;

use std::io::{self, Write};
use std::process::ExitCode;

use log::LevelFilter;
use mailchute::EventLoop;

/// Wrong usage, as `sysexits.h` has it.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    match options::parse() {
        Ok((config, level)) => {
            start_logging(level);
            serve(config).map_or_else(|problem| complain(problem, 1), |()| ExitCode::SUCCESS)
        }
        Err(problem) => complain(format!("{problem}; see mailchute --help"), USAGE),
    }
}

fn serve(config: mailchute::Config) -> io::Result<()> {
    let event_loop = EventLoop::start(config)?;
    event_loop.watch_signals()?;
    event_loop.run()
}

/// Lines on stderr, without times: journals and container engines add their own.
fn start_logging(level: Option<LevelFilter>) {
    let variable = std::env::var("RUST_LOG").ok().filter(|filters| !filters.is_empty());
    let filters = level.map(|level| level.to_string()).or(variable);
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(filters.as_deref().unwrap_or("info"));
    builder.format(|line, record| writeln!(line, "{:<5} {}", record.level(), record.args()));
    builder.init();
}

fn complain(problem: impl std::fmt::Display, status: u8) -> ExitCode {
    // Nobody may be left to read it.
    let _ = writeln!(io::stderr(), "mailchute: {problem}");
    ExitCode::from(status)
}
