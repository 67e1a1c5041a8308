//! The command line and the environment: one table, from which help, parsing and variables' names come.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use ipnet::IpNet;
use lexopt::Arg;
use mailchute::Config;
use mailchute::config::{Place, is_hostname, number};
use mailchute::delivery::MinFree;
use mailchute::fs::SyncMode::{Always, Journal, Never};
use mailchute::journal::OCTETS_MAX;
use mailchute::privileges::Sandbox::{Auto, Off, Require};
use mailchute::smtp::address::Path;
use mailchute::smtp::data::LineEnd;

/// What `--help` says, and the one table of options: each line has a name (`MAILCHUTE_NAME` in the environment), what
/// stands for its value, and behind two blanks what a wrong value is answered with, too. They count in this order.
const HELP: &str = include_str!("options.txt");
const VERSION: &str = concat!("mailchute ", env!("CARGO_PKG_VERSION"), "\n");

/// The name of each option, what stands for its value, and its help.
fn options() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    HELP.lines().filter_map(|line| {
        let (option, help) = line.strip_prefix("  --")?.split_once("  ")?;
        let (name, placeholder) = option.split_once(' ').unwrap_or((option, ""));
        Some((name, placeholder, help.trim_start()))
    })
}

/// Reads the command line, and from the environment what it does not say: settings, filters for the log and whether syslog is
/// to have it, and lines that say what is in force. Prints what is asked for, and ends. An error is one line: what is wrong,
/// and what would be right.
pub fn parse() -> Result<(Config, (String, bool), String), lexopt::Error> {
    let mut flags = Vec::new();
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        let option = match argument {
            Arg::Long("help") | Arg::Short('h') => print(&[VERSION, HELP].concat()),
            Arg::Long("version") | Arg::Short('V') => print(VERSION),
            Arg::Long("check") | Arg::Short('c') => Some(("check", "", "")),
            Arg::Long(name) => options().find(|(known, ..)| *known == name),
            _ => None,
        };
        let Some((name, placeholder, _)) = option else { return Err(argument.unexpected()) };
        flags.push((name, if placeholder.is_empty() { "yes".into() } else { parser.value()? }));
    }
    let mut config = Config { signals: true, sandbox: Auto, ..Config::default() };
    let mut logging = (std::env::var("RUST_LOG").unwrap_or_default(), false);
    let mut in_force = String::new();
    for (name, placeholder, help) in options() {
        let mut source = format!("--{name}");
        if !flags.iter().any(|(flag, _)| *flag == name) {
            source = format!("MAILCHUTE_{}", name.to_ascii_uppercase().replace('-', "_"));
            let value = std::env::var_os(&source).unwrap_or_default();
            let parts = value.as_bytes().split(|&octet| octet == b',' && placeholder.ends_with('…'));
            flags.extend(parts.filter(|part| !part.is_empty()).map(|part| (name, OsStr::from_bytes(part).to_owned())));
        }
        let mut values = flags.iter().filter(|(flag, _)| *flag == name).map(|(_, value)| value).peekable();
        let without = help.split_once(" [").map_or("none", |(_, it)| it.trim_end_matches(']'));
        in_force.extend(values.peek().is_none().then(|| format!("--{name} {without}  # by default\n")));
        for value in values {
            let text = value.to_string_lossy();
            apply(name, value, text.trim(), &mut config, &mut logging)
                .ok_or_else(|| format!("{source} does not take {text:?}: {help}"))?;
            in_force += &format!("--{name} {text:?}  # from {source}\n");
        }
    }
    if flags.iter().any(|(name, _)| *name == "check") { print(&in_force) } else { Ok((config, logging, in_force)) }
}

/// Sets what `name` stands for, from text or where it is a path from any octets; `None` where the value is wrong.
fn apply(name: &str, value: &OsStr, text: &str, config: &mut Config, logging: &mut (String, bool)) -> Option<()> {
    let protocol = &mut config.protocol;
    match name {
        "listen" => config.listen.get_or_insert_default().push(place(text)?),
        "lmtp" => config.lmtp.push(place(text)?),
        // The usual Maildir is then for who has no mailbox of his own, as the postmaster may.
        "mailboxes" if !text.is_empty() => config.maildir = config.mailboxes.insert(value.into()).join("postmaster"),
        "maildir" if !text.is_empty() => config.maildir = value.into(),
        "allow-from" if text == "any" => config.allow_from.extend([network("0.0.0.0/0")?, network("::/0")?]),
        "allow-from" => config.allow_from.push(network(text)?),
        "domain" => config.domains.push(domain(text)?.to_owned()),
        "create-mailboxes" => config.create_mailboxes = choice(text, &YES_OR_NO)?,
        "recipients" if !text.is_empty() => config.recipients = Some(value.into()),
        "hostname" if is_hostname(text) => protocol.hostname = text.to_owned(),
        "max-size" => protocol.message_octets_max = octets(text).filter(|&octets| octets > 0)?,
        "sync" => config.sync = choice(text, &[("journal", Journal), ("always", Always), ("never", Never)])?,
        "journal-size" => config.journal_octets = octets(text).filter(|it| (1 << 20..=OCTETS_MAX).contains(it))?,
        // In capitals it is no unit of time: who writes 100M thinks of octets, and would lose what is older than 100 minutes.
        "keep" if text.ends_with(['s', 'm', 'h', 'd']) => config.keep.age = Some(time(text)?),
        "keep" => config.keep.messages = Some(number(text).filter(|&count| count > 0)?),
        "min-free" => config.min_free = min_free(text)?,
        "bare-newline" => protocol.reject_bare_newline = choice(text, &[("normalize", false), ("reject", true)])?,
        "crlf" => protocol.line_end = choice(text, &[("convert", LineEnd::Lf), ("keep", LineEnd::Crlf)])?,
        "auth" => protocol.accept_any_login = choice(text, &[("accept-any", true), ("off", false)])?,
        "strict" => protocol.strict = choice(text, &YES_OR_NO)?,
        "timeout" => config.timeout = time(text)?,
        "max-connections" => config.connections_max = number(text).filter(|&count| count > 0)?,
        "max-connections-per-ip" => config.per_address_max = number(text).filter(|&count| count > 0)?,
        "transcript" if !text.is_empty() => config.transcript = Some(value.into()),
        "transcript-from" => config.transcript_from.push(network(text)?),
        "user" if !text.is_empty() => config.user = Some(text.to_owned()),
        "sandbox" => config.sandbox = choice(text, &[("off", Off), ("auto", Auto), ("require", Require)])?,
        "group-readable" => config.group_readable = choice(text, &YES_OR_NO)?,
        "metrics" => config.metrics = Some(place(text)?),
        "log" => logging.0 = text.parse::<log::LevelFilter>().ok()?.to_string(),
        "syslog" => logging.1 = choice(text, &YES_OR_NO)?,
        _ => return None,
    }
    Some(())
}

/// What a switch may be set to in the environment.
const YES_OR_NO: [(&str, bool); 6] =
    [("yes", true), ("true", true), ("1", true), ("no", false), ("false", false), ("0", false)];

fn choice<T: Copy>(value: &str, choices: &[(&str, T)]) -> Option<T> {
    let value = value.to_ascii_lowercase();
    choices.iter().find(|(name, _)| value == *name).map(|&(_, choice)| choice)
}

pub fn place(value: &str) -> Option<Place> {
    let unix = value.strip_prefix("unix:").filter(|path| !path.is_empty()).map(|path| Place::Unix(path.into()));
    unix.or_else(|| value.parse().ok().map(Place::Tcp))
}

/// A network, or one address.
fn network(value: &str) -> Option<IpNet> {
    let network = value.parse().ok().or_else(|| value.parse::<IpAddr>().ok().map(IpNet::from))?;
    match (network.addr(), network.addr().to_canonical()) {
        // Peers have no such addresses: they are IPv4's.
        (IpAddr::V6(_), address @ IpAddr::V4(_)) => IpNet::new(address, network.prefix_len().checked_sub(96)?).ok(),
        _ => Some(network),
    }
}

/// A domain, an address literal, or `*.` and a domain.
fn domain(value: &str) -> Option<&str> {
    let any = format!("any@{}", value.strip_prefix("*.").unwrap_or(value));
    Path::mailbox(&any, mailchute::smtp::command::LENIENT).map(|_| value)
}

/// A number and its unit, as a number of what `units` count in.
fn quantity(value: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (digits, unit) = value.split_at(value.bytes().take_while(u8::is_ascii_digit).count());
    number::<u64>(digits)?.checked_mul(choice(unit.trim(), units)?)
}

/// A number of octets with `K`, `M`, `G` or `T` (powers of 1,024), as people write it: `10M`, `10MB`, `10MiB`.
fn octets(value: &str) -> Option<u64> {
    let units = [("", 1), ("k", 1 << 10), ("m", 1 << 20), ("g", 1 << 30), ("t", 1 << 40)];
    quantity(value.trim_end_matches(['i', 'I', 'b', 'B']), &units)
}

fn min_free(value: &str) -> Option<MinFree> {
    let percent = value.strip_suffix('%').and_then(|it| number(it.trim())).filter(|&it| it <= 100);
    percent.map(MinFree::Percent).or_else(|| octets(value).map(MinFree::Octets))
}

/// A time, which is not 0, with `ms`, `s`, `m`, `h` or `d`; a number alone is seconds.
fn time(value: &str) -> Option<Duration> {
    let units = [("", 1000), ("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    quantity(value, &units).filter(|&time| time > 0).map(Duration::from_millis)
}

/// Prints and ends.
pub fn print(text: &str) -> ! {
    // A reader that went away, as `head` does, is no error of ours.
    let _ = io::stdout().write_all(text.as_bytes());
    std::process::exit(0)
}
