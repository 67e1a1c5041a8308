//! What the server writes on top of a message: its id, where it came from and when (RFC 5321 4.4).

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrayvec::ArrayString;
use itoa::Buffer;

/// Gives every message an id that no other process, on any host, gives: the middle part of a Maildir unique name, `M`
/// microseconds, `R` 64 random bits, `P` process id, `Q` sequence. Without the random bits ids would repeat, as process
/// ids do in containers and clocks on boards without a battery. It also keeps the date.
#[derive(Debug)]
pub struct MessageIds {
    /// What all ids of the process have between their numbers.
    process: String,
    sequence: u64,
    /// The last date, and its seconds since 1970: many are the same.
    date: String,
    date_seconds: u64,
}

impl MessageIds {
    /// Ids of a process, told apart by `random`.
    pub fn new(random: u64, process: u32) -> Self {
        Self { process: format!("R{random:016x}P{process}Q"), sequence: 0, date: String::new(), date_seconds: u64::MAX }
    }

    /// The id of a message that begins now.
    pub fn next(&mut self, now: SystemTime) -> MessageId {
        self.sequence += 1;
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let [mut seconds, mut microseconds, mut sequence] = [Buffer::new(); 3];
        let seconds = seconds.format(since.as_secs());
        let microseconds = microseconds.format(since.subsec_micros());
        let mut id = MessageId { seconds: since.as_secs(), before: seconds.len() + 1, ..MessageId::default() };
        for text in [seconds, ".M", microseconds, &self.process, sequence.format(self.sequence)] {
            // It never fails: there is room for the longest.
            let _ = id.unique_name.try_push_str(text);
        }
        id
    }

    /// The date as RFC 5322 3.3 has it, in UTC.
    pub fn date(&mut self, now: SystemTime) -> &str {
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if std::mem::replace(&mut self.date_seconds, seconds) != seconds {
            // After the year 9999 there is no such date.
            let now = UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799));
            self.date.clear();
            let _ = write!(self.date, "{}", httpdate::HttpDate::from(now));
            // HTTP writes the zone as a name, mail as a number.
            self.date.truncate(self.date.len() - "GMT".len());
            self.date.push_str("+0000");
        }
        &self.date
    }
}

/// The id of one message: in its `Received` line, in the reply, in the log and in its file's name.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessageId {
    /// When the message began, in seconds since 1970.
    pub seconds: u64,
    /// The id with the seconds and a dot in front: a Maildir unique name up to the host's name. Room for the longest numbers.
    pub unique_name: ArrayString<80>,
    /// Octets of it before the id.
    before: usize,
}

impl MessageId {
    /// The id that a unique name has, as far as the host's name.
    pub(crate) fn from_unique_name(name: &str) -> Option<Self> {
        let (seconds, _) = name.split_once('.')?;
        let unique_name = ArrayString::from(name).ok()?;
        Some(Self { seconds: crate::config::number(seconds)?, before: seconds.len() + 1, unique_name })
    }

    /// The id alone, an atom of RFC 5322.
    pub fn as_str(&self) -> &str {
        self.unique_name.get(self.before..).unwrap_or_default()
    }
}

/// Who is at the other end of a connection: a host on the network, or by a Unix socket a process on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Address(IpAddr),
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
