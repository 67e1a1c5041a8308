//! Every setting and every limit, with its unit and where its figure comes from.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use rustix::net::{SocketAddrAny, SocketAddrUnix};

use crate::delivery::MinFree;
use crate::fs::SyncMode;
use crate::privileges::Sandbox;
use crate::smtp::session::Settings;
use crate::sweep::Keep;

/// Octets of a block: one read, or a message that waits in memory; a shorter one reaches its file in one write.
pub const BLOCK_OCTETS: usize = 64 * 1024;
/// Blocks that all connections share; when all are lent, messages wait in their files.
pub const BLOCKS_MAX: usize = 64;
/// Octets that are read from a peer at a time while no block is free.
pub const SMALL_OCTETS: usize = 4096;
/// Messages that one connection may have stored in one turn, where nothing is waited for.
pub const TURN_MESSAGES_MAX: usize = 16;
/// Reads from one connection in one turn of the loop; one busy peer can't starve the rest.
pub const TURN_READS_MAX: usize = 4;
/// Connections taken from one listener in one turn: beyond the limit each has a descriptor of those in reserve till its end.
pub const TURN_ACCEPTS_MAX: usize = 8;
/// Newcomers without a descriptor that are told so in one turn, and idle connections that give way on a crowded server.
pub const TURN_REFUSALS_MAX: usize = 64;

/// Where a listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A TCP address; port 0 takes any free one.
    Tcp(SocketAddr),
    /// A Unix socket; one that nobody listens on any more is replaced.
    Unix(PathBuf),
}

impl Place {
    /// As the system takes it; an error is that of a path which is too long.
    pub fn address(&self) -> rustix::io::Result<SocketAddrAny> {
        match self {
            Self::Tcp(address) => Ok((*address).into()),
            Self::Unix(path) => SocketAddrUnix::new(path).map(SocketAddrAny::from),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(formatter),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

/// All settings of a server, as [the table of options](crate#options) explains them; the default is without any option.
#[allow(missing_docs)] // Only what the table does not say is said here.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where SMTP is taken; `None` for port 2525 of both loopback addresses, of which the system may lack one.
    pub listen: Option<Vec<Place>>,
    pub lmtp: Vec<Place>,
    pub maildir: PathBuf,
    pub domains: Vec<String>,
    pub mailboxes: Option<PathBuf>,
    pub create_mailboxes: bool,
    pub recipients: Option<PathBuf>,
    /// What follows this character in a local part is a tag, where nobody has that whole name; `None` for no tags. `@`, `%`
    /// and `!` make none, as mail for a local part with one is refused.
    pub subaddress_delimiter: Option<char>,
    pub allow_from: Vec<IpNet>,
    pub sync: SyncMode,
    /// Octets of the journal, if there is one: its file is as large from the beginning.
    pub journal_octets: u64,
    /// Whether files have mode 0640 and directories 2750, else 0600 and 0700. The process's umask takes from that.
    pub group_readable: bool,
    pub keep: Keep,
    pub min_free: MinFree,
    /// How long messages that are coming in may go on after the first signal or stop; a second one ends that at once. Less
    /// than the 10 s that container engines wait before they kill.
    pub grace: Duration,
    /// How long a peer may be silent; RFC 5321 4.5.3.2.7 asks for at least 5 minutes.
    pub timeout: Duration,
    pub connections_max: usize,
    pub per_address_max: usize,
    pub user: Option<String>,
    pub transcript: Option<PathBuf>,
    pub transcript_from: Vec<IpNet>,
    /// Off unless a program asks for it that does nothing else: it holds for the thread that starts the server, too.
    pub sandbox: Sandbox,
    /// Where counters are served, to whoever asks.
    pub metrics: Option<Place>,
    /// Whether SIGTERM and SIGINT end the loop, and a service manager's sockets are used: for programs that do nothing else.
    pub signals: bool,
    /// What sessions keep to. `transactions_max`, for which there is no option, has EHLO announce MAILMAX (RFC 9422) and
    /// refuses what MAIL begins beyond that number in one connection.
    pub protocol: Settings,
}

impl Default for Config {
    fn default() -> Self {
        let system_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self {
            listen: None,
            lmtp: Vec::new(),
            maildir: PathBuf::from("Maildir"),
            domains: Vec::new(),
            mailboxes: None,
            create_mailboxes: false,
            recipients: None,
            subaddress_delimiter: Some('+'),
            allow_from: Vec::new(),
            sync: SyncMode::Journal,
            journal_octets: 16 << 20,
            group_readable: false,
            keep: Keep::default(),
            min_free: MinFree::Usual,
            grace: Duration::from_secs(8),
            timeout: Duration::from_secs(300),
            connections_max: 1000,
            per_address_max: 50,
            user: None,
            transcript: None,
            transcript_from: Vec::new(),
            sandbox: Sandbox::Off,
            metrics: None,
            signals: false,
            protocol: Settings {
                hostname: Some(system_name).filter(|name| is_hostname(name)).unwrap_or_else(|| "localhost".to_owned()),
                message_octets_max: 25 << 20,
                recipients_max: 1000,
                destinations_max: 128,
                envelope_octets_max: 64 << 10,
                transactions_max: None,
                strict: false,
                reject_bare_newline: false,
                line_end: crate::smtp::data::LineEnd::Lf,
                accept_any_login: false,
            },
        }
    }
}

impl Config {
    /// The most octets of memory that a server takes: always, for each connection, and for the table, read again.
    pub fn memory_max(&self) -> u64 {
        let table = self.recipients.as_ref().and_then(|path| Some(path.metadata().ok()?.len())).unwrap_or(0);
        (14 << 20) + self.connections_max as u64 * (10 << 10) + table * 64
    }
}

/// Loopback, private (RFC 1918), link-local, carrier-grade NAT (RFC 6598), and the same of IPv6 (RFC 4193).
pub(crate) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(it) if matches!(it.octets(), [100, 64..=127, ..]) => true,
        IpAddr::V4(it) => it.is_loopback() || it.is_private() || it.is_link_local(),
        IpAddr::V6(it) => it.is_loopback() || it.is_unique_local() || it.is_unicast_link_local(),
    }
}

/// A number, of any type that has room for it.
pub fn number<T: TryFrom<u64>>(text: &str) -> Option<T> {
    text.parse::<u64>().ok()?.try_into().ok()
}

/// Whether `name` can stand in a greeting and in trace lines: 1 to 255 visible ASCII characters.
pub fn is_hostname(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && name.bytes().all(|octet| octet.is_ascii_alphanumeric() || b".-_[]:".contains(&octet))
}
