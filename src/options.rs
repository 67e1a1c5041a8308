//! The command line and the environment: one table, from which help, parsing and variables' names come.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use mailchute::Config;
use mailchute::config::{Listen, Place, is_hostname};
use mailchute::fs::SyncMode;
use mailchute::maildir::MinFree;
use mailchute::smtp::data::{BareNewline, LineEnd};
use mailchute::smtp::session::Dialect;

/// One option: `--name VALUE`, or `MAILCHUTE_NAME` in the environment.
struct Row {
    name: &'static str,
    /// What stands for its value in the help; empty for a switch.
    value: &'static str,
    /// Whether it may be given several times (separated by commas in the environment).
    repeatable: bool,
    help: &'static str,
}

const fn row(name: &'static str, value: &'static str, help: &'static str) -> Row {
    Row { name, value, repeatable: false, help }
}

const fn repeatable(name: &'static str, value: &'static str, help: &'static str) -> Row {
    Row { name, value, repeatable: true, help }
}

const OPTIONS: [Row; 16] = [
    repeatable("listen", "ADDR", "take SMTP here: IP:PORT or unix:PATH [127.0.0.1:2525 and [::1]:2525]"),
    repeatable("lmtp", "ADDR", "take LMTP here: IP:PORT or unix:PATH"),
    row("maildir", "DIR", "keep the mail here; made if missing [./Maildir]"),
    row("hostname", "NAME", "our name in greeting and headers [the system's]"),
    row("max-size", "BYTES", "largest message; 10M, 1G … work [25M]"),
    row("sync", "WHEN", "always: say 250 when the disk has it; never: do not wait [always]"),
    row("min-free", "BYTES|N%", "refuse mail with less space free [16M or 2%, the smaller]"),
    row("bare-newline", "WHAT", "lone CR or LF in a message: normalize or reject [normalize]"),
    row("crlf", "WHAT", "line ends in files: convert (LF) or keep (CRLF) [convert]"),
    row("auth", "WHAT", "accept-any: take every login; it proves nothing [off]"),
    row("strict", "", "keep to the RFCs to the letter, for testers"),
    row("timeout", "TIME", "close after so long a silence: 300s, 5m … [5m]"),
    row("max-messages", "N", "messages of one connection, announced as MAILMAX [any number]"),
    row("max-connections", "N", "more are told 421 [1000]"),
    row("grace", "TIME", "what messages under way get when told to stop [8s]"),
    row("log", "LEVEL", "off, error, warn, info, debug or trace [info, or RUST_LOG]"),
];

/// What the command line asks for.
pub enum Request {
    /// To serve, logging at this level where one was given.
    Serve(Box<Config>, Option<log::LevelFilter>),
    /// To print this and end.
    Print(String),
}

/// Reads the command line; what it does not say is looked up with `environment`.
///
/// # Errors
/// One line that names what is wrong and what would be right.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Request, String> {
    let mut given: [Vec<OsString>; OPTIONS.len()] = Default::default();
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        let lexopt::Arg::Long(name) = argument else {
            match argument {
                lexopt::Arg::Short('h') => return Ok(Request::Print(help())),
                lexopt::Arg::Short('V') => return Ok(Request::Print(version())),
                _ => return Err(argument.unexpected().to_string()),
            }
        };
        match name {
            "help" => return Ok(Request::Print(help())),
            "version" => return Ok(Request::Print(version())),
            _ => {}
        }
        let Some(index) = OPTIONS.iter().position(|row| row.name == name) else {
            return Err(argument.unexpected().to_string());
        };
        let (row, values) = (&OPTIONS[index], &mut given[index]);
        let value = match row.value {
            "" => OsString::from("yes"),
            _ => parser.value().map_err(|error| error.to_string())?,
        };
        if !row.repeatable {
            values.clear();
        }
        values.push(value);
    }
    let mut config = Config::default();
    let mut level = None;
    for (row, values) in OPTIONS.iter().zip(given) {
        let (source, values) = if values.is_empty() {
            let variable = variable(row.name);
            let values = environment(&variable).filter(|value| !value.is_empty());
            (variable, values.map(|value| split(row, value)).unwrap_or_default())
        } else {
            (format!("--{}", row.name), values)
        };
        if row.name == "listen" && !values.is_empty() {
            config.listen.retain(|listen| !listen.optional);
        }
        for value in values {
            // A path may be any octets; all else is text.
            let text = value.to_string_lossy().into_owned();
            if row.name == "maildir" {
                config.maildir = PathBuf::from(value);
                continue;
            }
            apply(row.name, text.trim(), &mut config, &mut level)
                .map_err(|problem| format!("{source}: \"{text}\" {problem}"))?;
        }
    }
    Ok(Request::Serve(Box::new(config), level))
}

/// The values in a variable: several, where the option may be given several times.
fn split(row: &Row, value: OsString) -> Vec<OsString> {
    if !row.repeatable {
        return vec![value];
    }
    let text = value.to_string_lossy();
    text.split(',').filter(|part| !part.trim().is_empty()).map(OsString::from).collect()
}

fn variable(name: &str) -> String {
    format!("MAILCHUTE_{}", name.to_ascii_uppercase().replace('-', "_"))
}

fn apply(name: &str, value: &str, config: &mut Config, level: &mut Option<log::LevelFilter>) -> Result<(), String> {
    let protocol = &mut config.protocol;
    match name {
        "listen" => config.listen.push(listen(value, Dialect::Smtp)?),
        "lmtp" => config.listen.push(listen(value, Dialect::Lmtp)?),
        "hostname" if is_hostname(value) => protocol.hostname = value.to_owned(),
        "hostname" => return Err("is no host name: letters, digits, dots, hyphens".to_owned()),
        "max-size" => {
            protocol.message_octets_max = octets(value).filter(|&it| it > 0).ok_or("is no size such as 10M")?
        }
        "sync" => config.sync = choice(value, [("always", SyncMode::Always), ("never", SyncMode::Never)])?,
        "min-free" => {
            config.min_free = min_free(value).ok_or("is neither a size such as 16M nor a share such as 5%")?
        }
        "bare-newline" => {
            let choices = [("normalize", BareNewline::Normalize), ("reject", BareNewline::Reject)];
            protocol.bare_newline = choice(value, choices)?;
        }
        "crlf" => protocol.line_end = choice(value, [("convert", LineEnd::Lf), ("keep", LineEnd::Crlf)])?,
        "auth" => protocol.accept_any_login = choice(value, [("accept-any", true), ("off", false)])?,
        "strict" => {
            let choices = [("yes", true), ("true", true), ("1", true), ("no", false), ("false", false), ("0", false)];
            protocol.strict = choice(value, choices)?;
        }
        "timeout" => config.timeout = duration(value).filter(|it| !it.is_zero()).ok_or("is no time such as 5m")?,
        "max-messages" => protocol.transactions_max = Some(number(value)?),
        "max-connections" => config.connections_max = number(value)?,
        "grace" => config.grace = duration(value).ok_or("is no time such as 8s")?,
        _ => *level = Some(value.parse().map_err(|_| "is none of off, error, warn, info, debug, trace".to_owned())?),
    }
    Ok(())
}

fn choice<T: Copy, const N: usize>(value: &str, choices: [(&str, T); N]) -> Result<T, String> {
    let found = choices.iter().find(|(name, _)| value.eq_ignore_ascii_case(name));
    found.map(|&(_, choice)| choice).ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|&(name, _)| name).collect();
        format!("is none of {}", names.join(", "))
    })
}

fn number<T: std::str::FromStr + PartialEq + Default>(value: &str) -> Result<T, String> {
    value.parse().ok().filter(|number| *number != T::default()).ok_or_else(|| "is no number above 0".to_owned())
}

fn listen(value: &str, dialect: Dialect) -> Result<Listen, String> {
    let place = match value.strip_prefix("unix:") {
        Some("") => return Err("lacks the path of the socket".to_owned()),
        Some(path) => Place::Unix(PathBuf::from(path)),
        None => Place::Tcp(address(value)?),
    };
    Ok(Listen { place, dialect, optional: false })
}

/// `IP:PORT` or `[IPv6]:PORT`; a name in place of the IP is looked up.
fn address(value: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = value.parse() {
        return Ok(address);
    }
    let problem = || "is no address such as 127.0.0.1:2525, [::1]:2525 or unix:/run/mailchute.sock".to_owned();
    let (host, port) = value.rsplit_once(':').ok_or_else(problem)?;
    if host.is_empty() || host.contains(':') || port.parse::<u16>().is_err() {
        return Err(problem());
    }
    let mut found = value.to_socket_addrs().map_err(|error| format!("can't be looked up: {error}"))?;
    found.next().ok_or_else(|| "has no address".to_owned())
}

/// A number of octets with `K`, `M`, `G` or `T` (powers of 1,024), as people write it: `10M`, `10MB`, `10MiB`.
fn octets(value: &str) -> Option<u64> {
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = value.split_at(digits);
    let shift = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn min_free(value: &str) -> Option<MinFree> {
    match value.strip_suffix('%') {
        Some(percent) => percent.trim().parse().ok().filter(|&it| it <= 100).map(MinFree::Percent),
        None => octets(value).map(MinFree::Octets),
    }
}

/// A time with `ms`, `s`, `m`, `h` or `d`; a number alone is seconds.
fn duration(value: &str) -> Option<Duration> {
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = value.split_at(digits);
    let milliseconds: u64 = match unit.trim() {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    // A year is more than any timeout, and small enough to be added to a clock.
    let most = 366 * 86_400_000;
    number.parse::<u64>().ok()?.checked_mul(milliseconds).filter(|&it| it <= most).map(Duration::from_millis)
}

fn version() -> String {
    format!("mailchute {}\n", env!("CARGO_PKG_VERSION"))
}

fn help() -> String {
    let mut text = version();
    text.push_str(
        "Takes mail by SMTP and has it safely in a Maildir before it says 250.\n\nUsage: mailchute [OPTION]…\n\n",
    );
    for Row { name, value, repeatable, help } in &OPTIONS {
        let option = if value.is_empty() { format!("--{name}") } else { format!("--{name} {value}") };
        let more = if *repeatable { " (repeatable)" } else { "" };
        let _ = writeln!(text, "  {option:<24} {help}{more}");
    }
    let _ = writeln!(text, "  {:<24} print this and end\n  {:<24} print the version and end", "--help", "--version");
    text.push_str(
        "\nEach option can also be given as an environment variable: MAILCHUTE_LISTEN, MAILCHUTE_MAX_SIZE …\n",
    );
    text.push_str("A flag wins over its variable. Several values in a variable are separated by commas.\n");
    text
}
