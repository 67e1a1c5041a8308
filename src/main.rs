//! The program: options, a logger, and the loop.

mod options;

use std::io::{self, Write};
use std::process::ExitCode;

use log::{LevelFilter, warn};
use mailchute::EventLoop;
use options::Request;

/// Wrong usage, as `sysexits.h` has it.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    match options::parse(std::env::args_os().skip(1), |name| std::env::var_os(name)) {
        Ok(Request::Print(text)) => {
            // A reader that went away, as `head` does, is no error of ours.
            let _ = io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Request::Serve(config, level)) => {
            start_logging(level);
            let served = serve(*config);
            served.map_or_else(|problem| complain(&problem, 1), |()| ExitCode::SUCCESS)
        }
        Err(problem) => complain(&format!("{problem}; see mailchute --help"), USAGE),
    }
}

fn serve(config: mailchute::Config) -> Result<(), String> {
    if config.protocol.accept_any_login {
        warn!("--auth accept-any: every login is taken, which proves nothing about who sends");
    }
    let mut event_loop = EventLoop::start(config).map_err(|error| error.to_string())?;
    event_loop.watch_signals().map_err(|error| format!("can't watch signals: {error}"))?;
    event_loop.run().map_err(|error| format!("the system's event queue failed: {error}"))
}

/// Lines on stderr, without times: journals and container engines add their own.
fn start_logging(level: Option<LevelFilter>) {
    let mut builder = env_logger::Builder::new();
    match (level, std::env::var("RUST_LOG")) {
        (Some(level), _) => builder.filter_level(level),
        (None, Ok(filters)) if !filters.is_empty() => builder.parse_filters(&filters),
        (None, _) => builder.filter_level(LevelFilter::Info),
    };
    builder.format(|line, record| writeln!(line, "{:<5} {}", record.level(), record.args()));
    builder.init();
}

fn complain(problem: &str, status: u8) -> ExitCode {
    // Nobody may be left to read it.
    let _ = writeln!(io::stderr(), "mailchute: {problem}");
    ExitCode::from(status)
}
