//! The command line and the environment: one table, from which help, parsing and variables' names come.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use ipnet::IpNet;
use lexopt::Arg;
use log::LevelFilter;
use mailchute::Config;
use mailchute::config::{Listen, Place, is_hostname};
use mailchute::delivery::MinFree;
use mailchute::fs::SyncMode;
use mailchute::smtp::address::Path;
use mailchute::smtp::command::Syntax;
use mailchute::smtp::data::LineEnd;
use mailchute::smtp::session::Dialect;

/// Each option's name (`MAILCHUTE_NAME` in the environment), what stands for its value in the help, and its help, which
/// a wrong value is answered with, too.
const OPTIONS: &[(&str, &str, &str)] = &[
    ("listen", "ADDR", "take SMTP here: IP:PORT or unix:PATH [127.0.0.1:2525 and [::1]:2525]"),
    ("lmtp", "ADDR", "take LMTP here: IP:PORT or unix:PATH"),
    ("maildir", "DIR", "keep the mail here; made if missing [./Maildir]"),
    (
        "allow-from",
        "CIDR|any",
        "serve clients of this network [any; without domains or a table all that is not public]",
    ),
    ("domain", "NAME", "accept mail for this domain only, or *.NAME for all below it [any]"),
    ("mailboxes", "DIR", "keep mail in DIR/DOMAIN/USER, or DIR/USER with one domain [in one Maildir]"),
    ("create-mailboxes", "", "make the Maildirs of recipients that have none [no]"),
    ("recipients", "FILE", "read a table of recipients, again on SIGHUP"),
    ("subaddress-delimiter", "C", "one character: what follows it in a local part is a tag [+]"),
    ("hostname", "NAME", "our host name in greeting and headers [the system's]"),
    ("max-size", "BYTES", "largest message; 10M, 1G … work [25M]"),
    ("sync", "WHEN", "always: say 250 when the disk has it; never: do not wait [always]"),
    ("keep-messages", "N", "number of messages that stay in a Maildir; the oldest new ones go [all]"),
    ("keep-age", "TIME", "time that messages stay new in a Maildir before they go: 12h, 30d … [for ever]"),
    ("min-free", "BYTES|N%", "refuse mail with less space free [16M or 2%, the smaller]"),
    ("bare-newline", "WHAT", "lone CR or LF in a message: normalize or reject [normalize]"),
    ("crlf", "WHAT", "line ends in files: convert (LF) or keep (CRLF) [convert]"),
    ("auth", "WHAT", "accept-any: take every login; it proves nothing [off]"),
    ("strict", "", "keep to the RFCs to the letter, for testers [no]"),
    ("timeout", "TIME", "close after so long a silence: 300s, 5m … [5m]"),
    ("max-messages", "N", "number of messages in one connection, announced as MAILMAX [any]"),
    ("max-connections", "N", "number of connections; those beyond are told 421 [1000]"),
    ("grace", "TIME", "time for messages under way when told to stop [8s]"),
    ("log", "LEVEL", "off, error, warn, info, debug or trace [info, or RUST_LOG]"),
];

/// Options that may be given several times, or with several values separated by commas in the environment.
const REPEATABLE: &[&str] = &["listen", "lmtp", "allow-from", "domain"];

/// Reads the command line, and from the environment what it does not say: the settings, and the level to log at where
/// one was given. Prints help or the version where that is asked for, and ends.
///
/// # Errors
/// One line that names what is wrong and what would be right.
pub fn parse() -> Result<(Config, Option<LevelFilter>), lexopt::Error> {
    let mut given = vec![Vec::new(); OPTIONS.len()];
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        let index = match argument {
            Arg::Long("help") | Arg::Short('h') => print(&help()),
            Arg::Long("version") | Arg::Short('V') => print(VERSION),
            Arg::Long(name) => OPTIONS.iter().position(|(known, ..)| *known == name),
            _ => None,
        };
        let Some(index) = index else { return Err(argument.unexpected()) };
        given[index].push(match OPTIONS[index] {
            (_, "", _) => OsString::from("yes"),
            _ => parser.value()?,
        });
    }
    let mut config = Config { signals: true, ..Config::default() };
    let mut level = None;
    for (&(name, _, help), mut values) in OPTIONS.iter().zip(given) {
        let mut source = format!("--{name}");
        if values.is_empty() {
            source = format!("MAILCHUTE_{}", name.to_ascii_uppercase().replace('-', "_"));
            let value = std::env::var_os(&source).unwrap_or_default();
            values = match value.to_str() {
                Some(text) if REPEATABLE.contains(&name) => text.split(',').map(OsString::from).collect(),
                _ => vec![value],
            };
            values.retain(|value| !value.is_empty());
        }
        for value in values {
            apply(name, &value, &mut config, &mut level)
                .ok_or_else(|| format!("{source} does not take \"{}\": {help}", value.to_string_lossy()))?;
        }
    }
    // Mail for the postmaster, for one, may have no mailbox of its own.
    if let Some(mailboxes) = config.mailboxes.as_ref().filter(|_| config.maildir == Config::default().maildir) {
        config.maildir = mailboxes.join("postmaster");
    }
    Ok((config, level))
}

/// Sets what `name` stands for; `None` where the value is wrong.
fn apply(name: &str, value: &OsStr, config: &mut Config, level: &mut Option<LevelFilter>) -> Option<()> {
    // A path may be any octets; all else is text.
    let text = value.to_string_lossy();
    let text = text.trim();
    let protocol = &mut config.protocol;
    match name {
        "listen" => {
            // What is asked for takes the place of the usual pair.
            config.listen.retain(|listen| !listen.optional);
            config.listen.push(listen(text, Dialect::Smtp)?);
        }
        "lmtp" => config.listen.push(listen(text, Dialect::Lmtp)?),
        "maildir" => config.maildir = value.into(),
        "allow-from" if text == "any" => config.allow_from.extend([network("0.0.0.0/0")?, network("::/0")?]),
        "allow-from" => config.allow_from.push(network(text)?),
        "domain" => config.domains.push(domain(text)?.to_owned()),
        "mailboxes" => config.mailboxes = Some(value.into()),
        "create-mailboxes" => config.create_mailboxes = choice(text, &YES_OR_NO)?,
        "recipients" => config.recipients = Some(value.into()),
        "subaddress-delimiter" => config.subaddress_delimiter = Some(text.parse().ok()?),
        "hostname" if is_hostname(text) => protocol.hostname = text.to_owned(),
        "max-size" => protocol.message_octets_max = octets(text).filter(|&octets| octets > 0)?,
        "sync" => config.sync = choice(text, &[("always", SyncMode::Always), ("never", SyncMode::Never)])?,
        "keep-messages" => config.keep.messages = Some(text.parse::<NonZeroUsize>().ok()?.get()),
        "keep-age" => config.keep.age = Some(time(text).filter(|age| !age.is_zero())?),
        "min-free" => config.min_free = min_free(text)?,
        "bare-newline" => protocol.reject_bare_newline = choice(text, &[("normalize", false), ("reject", true)])?,
        "crlf" => protocol.line_end = choice(text, &[("convert", LineEnd::Lf), ("keep", LineEnd::Crlf)])?,
        "auth" => protocol.accept_any_login = choice(text, &[("accept-any", true), ("off", false)])?,
        "strict" => protocol.strict = choice(text, &YES_OR_NO)?,
        "timeout" => config.timeout = duration(text).filter(|timeout| !timeout.is_zero())?,
        "max-messages" => protocol.transactions_max = Some(text.parse::<NonZeroU32>().ok()?.get()),
        "max-connections" => config.connections_max = text.parse::<NonZeroUsize>().ok()?.get(),
        "grace" => config.grace = duration(text)?,
        "log" => *level = Some(text.parse().ok()?),
        _ => return None,
    }
    Some(())
}

/// What a switch may be set to in the environment.
const YES_OR_NO: [(&str, bool); 6] =
    [("yes", true), ("true", true), ("1", true), ("no", false), ("false", false), ("0", false)];

fn choice<T: Copy>(value: &str, choices: &[(&str, T)]) -> Option<T> {
    choices.iter().find(|(name, _)| value.eq_ignore_ascii_case(name)).map(|&(_, choice)| choice)
}

fn listen(value: &str, dialect: Dialect) -> Option<Listen> {
    let place = match value.strip_prefix("unix:") {
        Some("") => return None,
        Some(path) => Place::Unix(path.into()),
        None => Place::Tcp(value.parse().ok()?),
    };
    Some(Listen { place, dialect, optional: false })
}

/// A network, or one address.
fn network(value: &str) -> Option<IpNet> {
    value.parse().ok().or_else(|| value.parse::<IpAddr>().ok().map(IpNet::from))
}

/// A domain, an address literal, or `*.` and a domain.
fn domain(value: &str) -> Option<&str> {
    let any = format!("any@{}", value.strip_prefix("*.").unwrap_or(value));
    Path::mailbox(&any, Syntax { strict: false }).map(|_| value)
}

/// A number and its unit, as a number of what `units` count in.
fn quantity(value: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, unit) = value.split_at(value.bytes().take_while(u8::is_ascii_digit).count());
    number.parse::<u64>().ok()?.checked_mul(choice(unit.trim(), units)?)
}

/// A number of octets with `K`, `M`, `G` or `T` (powers of 1,024), as people write it: `10M`, `10MB`, `10MiB`.
fn octets(value: &str) -> Option<u64> {
    let units = [("", 1), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40)];
    quantity(value.trim_end_matches(['i', 'I', 'b', 'B']), &units)
}

fn min_free(value: &str) -> Option<MinFree> {
    match value.strip_suffix('%') {
        Some(percent) => percent.trim().parse().ok().filter(|&it| it <= 100).map(MinFree::Percent),
        None => octets(value).map(MinFree::Octets),
    }
}

/// A time with `ms`, `s`, `m`, `h` or `d`; a number alone is seconds.
fn duration(value: &str) -> Option<Duration> {
    // A year is more than any timeout, and small enough to be added to a clock.
    time(value).filter(|time| *time <= Duration::from_secs(366 * 86_400))
}

/// The same, however long.
fn time(value: &str) -> Option<Duration> {
    let units = [("", 1000), ("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    quantity(value, &units).map(Duration::from_millis)
}

fn print(text: &str) -> ! {
    // A reader that went away, as `head` does, is no error of ours.
    let _ = io::stdout().write_all(text.as_bytes());
    std::process::exit(0)
}

const VERSION: &str = concat!("mailchute ", env!("CARGO_PKG_VERSION"), "\n");

fn help() -> String {
    let line = |&(name, value, help): &(&str, &str, &str)| {
        let option = format!("--{name} {value}");
        let more = if REPEATABLE.contains(&name) { " (repeatable)" } else { "" };
        format!("  {option:<24} {help}{more}\n")
    };
    let own = [("help", "", "print this and end"), ("version", "", "print the version and end")];
    let options: String = OPTIONS.iter().chain(&own).map(line).collect();
    format!(
        "{VERSION}Takes mail by SMTP and has it safely in a Maildir before it says 250.

Usage: mailchute [OPTION]…

{options}
Each option can also be given as an environment variable: MAILCHUTE_LISTEN, MAILCHUTE_MAX_SIZE …
A flag wins over its variable. Several values in a variable are separated by commas.
"
    )
}
