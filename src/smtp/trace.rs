//! What the server writes on top of a message: its id, where it came from and when (RFC 5321 4.4).

use std::fmt;
use std::io::Write as _;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Gives every message of this process an id that no other process, on any host, gives.
///
/// The middle part of a Maildir unique name: `M` microseconds, `R` 64 random bits drawn at start, `P` process id,
/// `Q` sequence. The random bits are there because process ids repeat in containers and clocks on boards without a
/// battery, so that time and process id alone repeat, too.
#[derive(Debug)]
pub struct MessageIds {
    last: MessageId,
}

impl MessageIds {
    /// Ids of a process, told apart by `random`.
    pub const fn new(random: u64, process: u32) -> Self {
        Self { last: MessageId { since: Duration::ZERO, random, process, sequence: 0 } }
    }

    /// The next id.
    pub fn next(&mut self, now: SystemTime) -> MessageId {
        self.last.sequence += 1;
        self.last.since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last
    }
}

/// The id of one message: in its `Received` line, in the reply, in the log and in its file's name.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessageId {
    since: Duration,
    random: u64,
    process: u32,
    sequence: u64,
}

impl MessageId {
    /// When the message began, in seconds since 1970: the first part of the unique name.
    pub const fn seconds(&self) -> u64 {
        self.since.as_secs()
    }
}

/// As an atom of RFC 5322.
impl fmt::Display for MessageId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { since, random, process, sequence } = self;
        write!(formatter, "M{}R{random:016x}P{process}Q{sequence}", since.subsec_micros())
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A peer on the network.
    Address(IpAddr),
    /// A process on this machine, by a Unix socket.
    Local,
}

/// As an address literal of RFC 5321 4.1.3, or `local` for a Unix socket.
impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(IpAddr::V4(address)) => write!(formatter, "[{address}]"),
            Self::Address(IpAddr::V6(address)) => write!(formatter, "[IPv6:{address}]"),
            Self::Local => formatter.write_str("local"),
        }
    }
}

/// Appends a date of RFC 5322 3.3 in UTC.
pub fn write_date(now: SystemTime, text: &mut Vec<u8>) {
    // A clock before 1970 or beyond the year 9999 has no such date.
    let limit = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    let now = now.clamp(UNIX_EPOCH, limit);
    let _ = write!(text, "{}", httpdate::HttpDate::from(now));
    // HTTP writes the zone as a name, mail as a number.
    text.truncate(text.len() - "GMT".len());
    text.extend_from_slice(b"+0000");
}
