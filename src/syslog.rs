//! Lines for the syslog daemon of this machine, in the form of RFC 3164: a datagram for each, which nothing waits for.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::process;
use std::sync::Mutex;

use log::Level;
use mailchute::delivery::Now;
use mailchute::smtp::trace::MessageIds;

/// Of what kind our lines are: mail, above the three bits of how bad one is.
const FACILITY: u8 = 2 << 3;

/// A socket without a peer, so that a daemon is found which comes later, or again. The sandbox leaves that to it.
pub struct Syslog {
    socket: UnixDatagram,
    /// Where the daemon listens.
    path: &'static str,
    /// What a line is put together in, and what knows the date.
    line: Mutex<(Vec<u8>, MessageIds)>,
}

impl Syslog {
    pub fn new(path: &'static str) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path, line: Mutex::new((Vec::new(), MessageIds::new(0, 0))) })
    }

    /// Whether the daemon has taken a line with this text.
    pub fn send(&self, level: Level, text: Arguments<'_>) -> bool {
        let Ok(mut line) = self.line.lock() else { return false };
        let (line, dates) = &mut *line;
        let (severity, process) = ([3, 4, 6, 7, 7][level as usize - 1], process::id());
        // Of `Sat, 07 Nov 2026 13:05:09 +0000`; a day of one digit has a blank before it.
        let date = dates.date(Now::read().wall);
        let (day, month, time) = (date[5..7].trim_start_matches('0'), &date[8..11], &date[17..25]);
        line.clear();
        let _ = write!(line, "<{}>{month} {day:>2} {time} mailchute[{process}]: {text}", FACILITY | severity);
        self.socket.send_to(line, self.path).is_ok()
    }
}
