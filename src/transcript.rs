//! What chosen peers say and hear, in files that `tests/dialogue/harness.rs` plays: logins are masked, texts cut.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use log::{info, warn};
use memchr::memchr;
use rustix::fs::{Mode, OFlags};

use crate::config::Config;
use crate::delivery::Now;
use crate::smtp::command::{Command, LENIENT, foreign, without_end};
use crate::smtp::reply::Reply;
use crate::smtp::session::{COMMAND_LINE_OCTETS_MAX, Dialect, Settings};
use crate::smtp::trace::Peer;

/// Sessions that are kept for each start of the server.
pub const SESSIONS_MAX: usize = 100;
/// Octets that are kept of a text, and of what follows the end.
pub const TEXT_OCTETS_MAX: usize = 1024;
/// A file that has so many ends: no peer fills the disk.
const FILE_OCTETS_MAX: usize = 256 << 10;
/// What may be shown of a login.
const MECHANISMS: [&str; 5] = ["PLAIN", "LOGIN", "CRAM-MD5", "NTLM", "XOAUTH2"];

/// The transcript of one session.
#[derive(Debug, Default)]
pub struct Transcript {
    session: u64,
    path: PathBuf,
    /// What is to be written, and how much was.
    pub text: String,
    octets: usize,
    /// Octets of a text or a line that were shown, and that were not as they were too many.
    shown: usize,
    left_out: usize,
    /// A login was tried: what is no command may belong to it.
    login: bool,
    ended: bool,
}

impl Transcript {
    /// Notes a line, or part of one. What belongs to a login, or may, is masked.
    pub fn line(&mut self, line: &[u8], is_login: bool) {
        let text = without_end(line);
        let (upper, end) = (text.to_ascii_uppercase(), &line[text.len()..]);
        let has = |word: &&str| upper.windows(word.len()).any(|octets| octets == word.as_bytes());
        let may_be_login = self.login || ["AUTH", "PASS", "LOGIN"].iter().any(has);
        let open = match upper.strip_prefix(b"AUTH") {
            _ if is_login => 0,
            Some(argument) => {
                let argument = argument.trim_ascii_start();
                let known = MECHANISMS.iter().find(|mechanism| argument.starts_with(mechanism.as_bytes()));
                known.map_or(4, |mechanism| text.len() - argument.len() + mechanism.len())
            }
            // Of HTTP nothing but the method; TLS has no words.
            None if foreign(text).is_some() => memchr(b' ', text).filter(|_| text[0] > 0x16).unwrap_or(text.len()),
            None if may_be_login && Command::parse(text, LENIENT) == Err(Reply::UNRECOGNIZED) => 0,
            None => text.len(),
        };
        self.login |= open < text.len() || upper.starts_with(b"AUTH");
        let mut masked = line.to_vec();
        // What masks a response is as good or bad as that, so replies stay the same; `*` alone cancels.
        for octet in masked[open..text.len()].iter_mut().filter(|_| text != b"*") {
            *octet = match octet {
                b' ' | b'\t' | b'\r' | b'=' | b'-' => *octet,
                b'+' | b'/'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => b'x',
                b'!'..=b'~' => b'!',
                _ => 0x7F,
            }
        }
        self.keep(&masked, COMMAND_LINE_OCTETS_MAX, Some(end).filter(|end| !end.is_empty()));
        // Of a long line, which is answered before its end.
        self.tell_left_out();
    }

    /// Notes octets of a text or a line, of which so many are shown at most; with the last of them how it ends, which always is.
    pub fn keep(&mut self, octets: &[u8], most: usize, end: Option<&[u8]>) {
        let shown = octets.len().min(most.saturating_sub(self.shown));
        (self.shown, self.left_out) = (self.shown + shown, self.left_out + octets.len() - shown);
        self.show("C: ", &octets[..shown]);
        if let Some(end) = end {
            let behind = self.left_out.min(end.len());
            (self.shown, self.left_out) = (0, self.left_out - behind);
            self.tell_left_out();
            self.show("C: ", &end[end.len() - behind..]);
        }
    }

    fn tell_left_out(&mut self) {
        if self.left_out > 0 {
            let _ = writeln!(self.text, "# … {} octets left out", std::mem::take(&mut self.left_out));
        }
    }

    /// Shows lines of one side; one that does not end in CRLF has a backslash there.
    pub fn show(&mut self, side: &str, octets: &[u8]) {
        for line in octets.split_inclusive(|&octet| octet == b'\n') {
            let (line, end) = line.strip_suffix(b"\r\n").map_or((line, "\\\n"), |line| (line, "\n"));
            let _ = write!(self.text, "{side}{}{end}", line.escape_ascii());
        }
    }

    /// Notes the end, and whether it was the server who closed.
    pub fn end(&mut self, is_ours: bool) {
        self.tell_left_out();
        self.text += if is_ours { "Closed.\n" } else { "" };
        self.ended = true;
    }

    /// Writes what is to be written; whether it goes on.
    fn save(&mut self) -> bool {
        self.octets += self.text.len();
        let is_full = self.octets > FILE_OCTETS_MAX;
        self.text += if is_full { "# … the rest is left out\n" } else { "" };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&self.path, flags, Mode::RUSR | Mode::WUSR);
        let saved = file.map_err(io::Error::from).and_then(|it| File::from(it).write_all(self.text.as_bytes()));
        self.text.clear();
        let failed = saved.map_err(|error| warn!("{}: {error}; the transcript ends", self.path.display())).is_err();
        !(is_full || failed || self.ended)
    }
}

/// All that are being kept, and how many were begun.
#[derive(Debug, Default)]
pub struct Transcripts {
    open: Vec<Transcript>,
    begun: usize,
}

impl Transcripts {
    /// Begins that of a session, if there is to be one.
    pub(crate) fn begin(&mut self, session: u64, peer: Peer, dialect: Dialect, config: &Config, now: Now) {
        let is_in = config.transcript_from.iter().any(|it| matches!(peer, Peer::Address(peer) if it.contains(&peer)));
        let is_wanted = (is_in || config.transcript_from.is_empty()) && self.begun < SESSIONS_MAX;
        let (Config { transcript: Some(directory), protocol, .. }, true) = (config, is_wanted) else { return };
        self.begun += 1;
        if self.begun == SESSIONS_MAX {
            info!("the last of {SESSIONS_MAX} transcripts begins; no more are kept until the next start");
        }
        let since = now.wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("{}.{:03}-{peer}-{session}.smtp", since.as_secs(), since.subsec_millis());
        // Not all file systems have colons.
        let name = name.replace("IPv6:", "").replace(['[', ']'], "").replace(':', "_");
        let Settings { hostname, strict, accept_any_login, message_octets_max, reject_bare_newline, .. } = protocol;
        let lmtp = dialect == Dialect::Lmtp;
        let text = format!(
            "Settings: peer={peer} hostname={hostname} lmtp={lmtp} strict={strict} auth={accept_any_login} \
             max-size={message_octets_max} reject={reject_bare_newline}\nFeed: socket\n"
        );
        self.open.push(Transcript { session, path: directory.join(name), text, ..Transcript::default() });
    }

    /// That of a session, if there is one.
    pub(crate) fn of(&mut self, session: u64) -> Option<&mut Transcript> {
        self.open.iter_mut().find(|transcript| transcript.session == session)
    }

    /// Writes what came since the last turn.
    pub(crate) fn save(&mut self) {
        self.open.retain_mut(|it| if it.text.is_empty() { !it.ended } else { it.save() });
    }
}
