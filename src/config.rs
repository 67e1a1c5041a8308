//! Every setting and every limit, with its unit and where its figure comes from.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::delivery::MinFree;
use crate::fs::SyncMode;
use crate::smtp::data::{BareNewline, LineEnd};
use crate::smtp::session::{Dialect, Settings};

/// Octets of a block: one read, and a message that waits for the rest of it in memory. A message that is shorter, with
/// its trace lines, reaches its file in one write.
pub const BLOCK_OCTETS: usize = 64 * 1024;
/// Blocks that all connections share; when all are lent, messages wait in their files.
pub const BLOCKS_MAX: usize = 64;
/// Octets that are read from a peer at a time while no block is free.
pub const SMALL_OCTETS: usize = 4096;
/// Reads from one connection in one turn of the loop; one busy peer can't starve the rest.
pub const TURN_READS_MAX: usize = 4;
/// Connections taken from one listener in one turn.
pub const TURN_ACCEPTS_MAX: usize = 64;

/// Where a listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A TCP address; port 0 takes any free one.
    Tcp(SocketAddr),
    /// A Unix socket; one that nobody listens on any more is replaced.
    Unix(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(formatter),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

/// One socket to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where.
    pub place: Place,
    /// What is spoken there.
    pub dialect: Dialect,
    /// Whether a system that lacks this kind of address is only worth a warning, as with the default pair.
    pub optional: bool,
}

/// All settings of a server. [`Config::default`] is what `mailchute` does without options.
#[derive(Clone, Debug)]
pub struct Config {
    /// The sockets to listen on.
    pub listen: Vec<Listen>,
    /// The Maildir that takes all mail; made where it is missing.
    pub maildir: PathBuf,
    /// Whether a final reply waits for the disk.
    pub sync: SyncMode,
    /// Space that is left free.
    pub min_free: MinFree,
    /// How long messages that are coming in may go on after the first signal. Container engines wait 10 s.
    pub grace: Duration,
    /// How long a peer may be silent; RFC 5321 4.5.3.2.7 asks for at least 5 minutes.
    pub timeout: Duration,
    /// Connections at a time; those beyond are told 421.
    pub connections_max: usize,
    /// Whether SIGTERM and SIGINT end the loop. A program wants that, in which nobody else has them.
    pub signals: bool,
    /// What the protocol needs to know.
    pub protocol: Settings,
}

impl Default for Config {
    fn default() -> Self {
        let usual = |address| Listen { place: Place::Tcp(address), dialect: Dialect::Smtp, optional: true };
        Self {
            listen: [(Ipv4Addr::LOCALHOST, 2525).into(), (Ipv6Addr::LOCALHOST, 2525).into()].map(usual).into(),
            maildir: PathBuf::from("Maildir"),
            sync: SyncMode::Always,
            min_free: MinFree::Usual,
            grace: Duration::from_secs(8),
            timeout: Duration::from_secs(300),
            connections_max: 1000,
            signals: false,
            protocol: Settings {
                hostname: system_hostname(),
                message_octets_max: 25 << 20,
                recipients_max: 1000,
                envelope_octets_max: 64 << 10,
                transactions_max: None,
                strict: false,
                bare_newline: BareNewline::Normalize,
                line_end: LineEnd::Lf,
                accept_any_login: false,
            },
        }
    }
}

/// The system's own name; `localhost` where it has none that could stand in a greeting.
fn system_hostname() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if is_hostname(&name) { name } else { "localhost".to_owned() }
}

/// Whether `name` can stand in a greeting and in trace lines: 1 to 255 visible ASCII characters.
pub fn is_hostname(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && name.bytes().all(|octet| octet.is_ascii_alphanumeric() || b".-_[]:".contains(&octet))
}
