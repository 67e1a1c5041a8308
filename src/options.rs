//! The command line and the environment: one table, from which help, parsing and variables' names come.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use lexopt::Arg;
use mailchute::Config;
use mailchute::config::{Listen, Place, is_hostname};
use mailchute::delivery::MinFree;
use mailchute::fs::SyncMode;
use mailchute::smtp::data::{BareNewline, LineEnd};
use mailchute::smtp::session::Dialect;

/// Each option's name (`MAILCHUTE_NAME` in the environment), what stands for its value in the help, and its help.
const OPTIONS: [(&str, &str, &str); 16] = [
    ("listen", "ADDR", "take SMTP here: IP:PORT or unix:PATH [127.0.0.1:2525 and [::1]:2525]"),
    ("lmtp", "ADDR", "take LMTP here: IP:PORT or unix:PATH"),
    ("maildir", "DIR", "keep the mail here; made if missing [./Maildir]"),
    ("hostname", "NAME", "our name in greeting and headers [the system's]"),
    ("max-size", "BYTES", "largest message; 10M, 1G … work [25M]"),
    ("sync", "WHEN", "always: say 250 when the disk has it; never: do not wait [always]"),
    ("min-free", "BYTES|N%", "refuse mail with less space free [16M or 2%, the smaller]"),
    ("bare-newline", "WHAT", "lone CR or LF in a message: normalize or reject [normalize]"),
    ("crlf", "WHAT", "line ends in files: convert (LF) or keep (CRLF) [convert]"),
    ("auth", "WHAT", "accept-any: take every login; it proves nothing [off]"),
    ("strict", "", "keep to the RFCs to the letter, for testers"),
    ("timeout", "TIME", "close after so long a silence: 300s, 5m … [5m]"),
    ("max-messages", "N", "messages of one connection, announced as MAILMAX [any number]"),
    ("max-connections", "N", "more are told 421 [1000]"),
    ("grace", "TIME", "what messages under way get when told to stop [8s]"),
    ("log", "LEVEL", "off, error, warn, info, debug or trace [info, or RUST_LOG]"),
];

/// Options that may be given several times, or with several values separated by commas in the environment.
const REPEATABLE: [&str; 2] = ["listen", "lmtp"];

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
        let name = match argument {
            Arg::Long("help") | Arg::Short('h') => return Ok(Request::Print(help())),
            Arg::Long("version") | Arg::Short('V') => return Ok(Request::Print(VERSION.to_owned())),
            Arg::Long(name) => name,
            _ => return Err(argument.unexpected().to_string()),
        };
        let Some(index) = OPTIONS.iter().position(|(known, ..)| *known == name) else {
            return Err(argument.unexpected().to_string());
        };
        let value = match OPTIONS[index] {
            (_, "", _) => OsString::from("yes"),
            _ => parser.value().map_err(|error| error.to_string())?,
        };
        if !REPEATABLE.contains(&OPTIONS[index].0) {
            given[index].clear();
        }
        given[index].push(value);
    }
    let mut config = Config::default();
    let mut level = None;
    for ((name, ..), mut values) in OPTIONS.into_iter().zip(given) {
        let mut source = format!("--{name}");
        if values.is_empty() {
            source = format!("MAILCHUTE_{}", name.to_ascii_uppercase().replace('-', "_"));
            values = environment(&source).map(|value| split(name, value)).unwrap_or_default();
        }
        if name == "listen" && !values.is_empty() {
            config.listen.retain(|listen| !listen.optional);
        }
        for value in values {
            // A path may be any octets; all else is text.
            let text = value.to_string_lossy().into_owned();
            if name == "maildir" {
                config.maildir = PathBuf::from(value);
                continue;
            }
            apply(name, text.trim(), &mut config, &mut level)
                .map_err(|problem| format!("{source}: \"{text}\" {problem}"))?;
        }
    }
    Ok(Request::Serve(Box::new(config), level))
}

/// The values in a variable, none if it is empty.
fn split(name: &str, value: OsString) -> Vec<OsString> {
    let values = match value.to_str().filter(|_| REPEATABLE.contains(&name)) {
        Some(text) => text.split(',').filter(|part| !part.trim().is_empty()).map(OsString::from).collect(),
        None => vec![value],
    };
    values.into_iter().filter(|value| !value.is_empty()).collect()
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

/// A number and its unit, as the number of octets or milliseconds that `unit` says.
fn quantity(value: &str, unit: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    let (number, name) = value.split_at(digits);
    number.parse::<u64>().ok()?.checked_mul(unit(name.trim())?)
}

/// A number of octets with `K`, `M`, `G` or `T` (powers of 1,024), as people write it: `10M`, `10MB`, `10MiB`.
fn octets(value: &str) -> Option<u64> {
    quantity(value, |unit| match unit.to_ascii_uppercase().as_str() {
        "" | "B" => Some(1),
        "K" | "KB" | "KIB" => Some(1 << 10),
        "M" | "MB" | "MIB" => Some(1 << 20),
        "G" | "GB" | "GIB" => Some(1 << 30),
        "T" | "TB" | "TIB" => Some(1 << 40),
        _ => None,
    })
}

fn min_free(value: &str) -> Option<MinFree> {
    match value.strip_suffix('%') {
        Some(percent) => percent.trim().parse().ok().filter(|&it| it <= 100).map(MinFree::Percent),
        None => octets(value).map(MinFree::Octets),
    }
}

/// A time with `ms`, `s`, `m`, `h` or `d`; a number alone is seconds.
fn duration(value: &str) -> Option<Duration> {
    let milliseconds = quantity(value, |unit| match unit {
        "ms" => Some(1),
        "" | "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    });
    // A year is more than any timeout, and small enough to be added to a clock.
    milliseconds.filter(|&it| it <= 366 * 86_400_000).map(Duration::from_millis)
}

const VERSION: &str = concat!("mailchute ", env!("CARGO_PKG_VERSION"), "\n");

fn help() -> String {
    let mut text = String::from(VERSION);
    text.push_str("Takes mail by SMTP and has it safely in a Maildir before it says 250.\n\n");
    text.push_str("Usage: mailchute [OPTION]…\n\n");
    for (name, value, help) in OPTIONS {
        let option = format!("--{name} {value}");
        let more = if REPEATABLE.contains(&name) { " (repeatable)" } else { "" };
        let _ = writeln!(text, "  {option:<24} {help}{more}");
    }
    let _ = writeln!(text, "  {:<24} print this and end\n  {:<24} print the version and end", "--help", "--version");
    text.push_str("\nEach option can also be given as an environment variable: ");
    text.push_str("MAILCHUTE_LISTEN, MAILCHUTE_MAX_SIZE …\n");
    text.push_str("A flag wins over its variable. Several values in a variable are separated by commas.\n");
    text
}
