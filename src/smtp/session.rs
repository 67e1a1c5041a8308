//! One connection's protocol state: commands in order, a mail transaction, its message (RFC 5321 3 and 4).

use std::fmt::Write as _;
use std::time::SystemTime;

use itoa::Buffer;
use memchr::memchr;

use super::address::Path;
use super::command::{Command, Hello, LENIENT, MailParameters, foreign, login, without_end};
use super::data::{DataDecoder, Framing, LineEnd};
use super::header::HeaderScanner;
use super::reply::{Reply, append, refuse_if};
use super::trace::{MessageId, MessageIds, Peer};
use crate::metrics::Counters;
use crate::transcript::{TEXT_OCTETS_MAX, Transcript};

/// Longest command line that is read, its line end included. RFC 5321 4.5.3.1.4 asks for 512; extensions for more.
pub const COMMAND_LINE_OCTETS_MAX: usize = 2048;
pub const REPLIES_OCTETS_MAX: usize = 4096;
/// More than the longest reply to one command: a path of 1,024 octets and some words, or the answer to EHLO.
pub const REPLY_OCTETS_MAX: usize = 1536;
/// With more than that no other reply may fit, so no command is parsed.
const REPLIES_FULL: usize = REPLIES_OCTETS_MAX - REPLY_OCTETS_MAX;
/// Spare pieces of memory of each kind that are kept.
const KEPT_MAX: usize = 128;
/// Octets that a spare transaction may have room for, and any transaction when all envelopes together have no more.
const KEPT_OCTETS_MAX: usize = 2048;
/// Octets by which lists of paths grow.
const PATHS_GROWTH: usize = 512;
/// What each copy of a message takes in the store, about.
const COPY_OCTETS: usize = 128;
/// Octets of memory that all transactions may hold.
pub const ENVELOPES_OCTETS_MAX: usize = 4 << 20;
/// The hint where only `--strict` refused what the peer said.
pub const TOO_STRICT: &&str = &"too-strict";
/// Recipients that fit however long they are, while there is memory (RFC 5321 4.5.3.1.8).
const RECIPIENTS_LEAST: usize = 100;

/// Which protocol a listener speaks. In LMTP (RFC 2033) each recipient has a reply of its own at the end of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    Smtp,
    Lmtp,
}

/// What all sessions of a server have in common.
#[derive(Clone, Debug)]
pub struct Settings {
    pub hostname: String,
    /// Octets of the largest message, as RFC 1870 counts them.
    pub message_octets_max: u64,
    /// Recipients of one transaction; RFC 5321 4.5.3.1.8 asks for at least 100.
    pub recipients_max: usize,
    /// Mailboxes that one message goes to; the rest of the recipients get it in another transaction.
    pub destinations_max: usize,
    /// Octets that the paths of one transaction may take, if they are of more than 100 recipients.
    pub envelope_octets_max: usize,
    /// Transactions of one connection; `None` for any number (RFC 9422 MAILMAX).
    pub transactions_max: Option<u32>,
    pub strict: bool,
    /// Whether a message with a lone CR or LF is refused at its true end. Else they become a space or a line end.
    pub reject_bare_newline: bool,
    pub line_end: LineEnd,
    /// Whether AUTH is offered, and any name and password taken.
    pub accept_any_login: bool,
}

/// Who knows for whom mail is, and where it goes.
pub trait Directory {
    /// Gives the destinations of a recipient to `take`, none to drop mail. Its error is a reply: one line, no CRLF.
    fn resolve(&mut self, recipient: &Path<'_>, take: &mut dyn FnMut(&str)) -> Result<(), &str>;
}

/// What a session borrows from its server while it works.
pub struct Turn<'a> {
    pub settings: &'a Settings,
    /// How many commands of a session may be refused between two messages; the next one ends it.
    pub errors_max: u32,
    /// The wall clock, read once a turn.
    pub now: SystemTime,
    pub ids: &'a mut MessageIds,
    pub spare: &'a mut Spare,
    pub directory: &'a mut dyn Directory,
    /// Octets of the largest message that the disk has room for, or why it takes none.
    pub storage: Result<u64, Reply>,
    /// Whether the peer has sent more than it was read: what stands behind the input is not known.
    pub more: bool,
    /// Written to the peer; never more than [`REPLIES_OCTETS_MAX`].
    pub replies: &'a mut Vec<u8>,
    /// Written to the message's file: trace lines, and at most as many octets as came, or twice, as LF becomes CRLF.
    pub content: &'a mut Vec<u8>,
    /// Hears what the peer said, where that is to be kept.
    pub transcript: Option<&'a mut Transcript>,
}

/// Memory that sessions and transactions left behind, so that none is allocated once the server is warm.
#[derive(Debug, Default)]
pub struct Spare {
    #[allow(clippy::vec_box)] // as sessions have them, most of which have none
    transactions: Vec<Box<Transaction>>,
    origins: Vec<String>,
    /// What all transactions hold at the moment.
    envelope_octets: usize,
    /// For the log, with LF behind each line: messages that came to nothing before the store heard of them.
    pub log: String,
    /// What all sessions count for metrics.
    pub counters: Counters,
}

/// What the caller does after a call of [`Session::receive`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read more: at most part of a command line is left.
    Read,
    /// Send the replies first: there is no room for the next one.
    Flush,
    /// The message is whole: store it and call [`Session::delivered`].
    Deliver,
    /// The message will be refused: drop what there is of it, and go on.
    Discard,
    /// Send the replies and close.
    Close,
}

/// The end of a message that was given to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is safe.
    Stored,
    /// It is not, and nothing is left of it.
    Refused(Reply),
    /// One of its destinations, counted from 0, has it not; the others are told of next (LMTP).
    Missing(usize, Reply),
}

/// A mail transaction, from MAIL to its end (RFC 5321 3.3).
#[derive(Debug, Default)]
pub struct Transaction {
    /// The reverse-path and all forward-paths, each with LF behind it, which no path has.
    paths: String,
    reverse_path_octets: usize,
    /// Where the message goes, each with LF behind it.
    destinations: String,
    /// A recipient and one of its destinations, both counted from 0; and which destination failed, and why.
    shares: Vec<(u32, u32)>,
    missing: Vec<(u32, Reply)>,
    /// What was refused last, and so why it may come to nothing: a recipient, or nothing, then LF and the reply.
    refusal: String,
    /// What the lists above take of the memory that all transactions share.
    held: usize,
    /// RCPT commands that were accepted.
    pub recipients: usize,
    /// Whether a RCPT came, accepted or not.
    addressed: bool,
    smtp_utf8: bool,
    /// The message's id, blank before its data begin.
    pub id: MessageId,
    /// Octets of the message so far, as RFC 1870 counts them.
    pub octets: u64,
    /// Whether the message has begun; its first chunk may have been empty.
    begun: bool,
    /// Why the message will be refused at its end; nothing can come of the transaction any more.
    failure: Option<Reply>,
    header: HeaderScanner,
}

impl Transaction {
    /// The reverse-path, empty for the null one.
    pub fn reverse_path(&self) -> &str {
        self.paths.get(..self.reverse_path_octets).unwrap_or_default()
    }

    /// The forward-paths that were accepted, in order.
    pub fn forward_paths(&self) -> impl Iterator<Item = &str> {
        lines(self.paths.get(self.reverse_path_octets + 1..).unwrap_or_default())
    }

    /// Where the message goes: each destination once, in order.
    pub fn destinations(&self) -> impl Iterator<Item = &str> + Clone {
        lines(&self.destinations)
    }

    /// Adds a destination of the next recipient.
    fn add(&mut self, destination: &str) {
        let known = self.destinations().position(|known| known == destination);
        let number = known.unwrap_or_else(|| self.destinations().count());
        if known.is_none() {
            add_line(&mut self.destinations, destination);
        }
        self.shares.push((self.recipients as u32, number as u32));
    }

    /// Notes what the lists take, in the sum of all transactions, too.
    fn settle(&mut self, all: &mut usize) {
        let shares = self.shares.capacity() * size_of::<(u32, u32)>();
        let copies = self.destinations().count() * COPY_OCTETS;
        let held = self.paths.capacity() + self.destinations.capacity() + self.refusal.capacity() + shares + copies;
        *all = (*all + held).saturating_sub(std::mem::replace(&mut self.held, held));
    }

    fn note_refusal(&mut self, recipient: &str, reply: &str) {
        self.refusal = [recipient, "\n", reply].concat();
    }

    /// Appends a line for the log: what became of the message, with its first recipient and how many there are.
    pub fn describe(&self, session: u64, outcome: Outcome, line: &mut String) {
        let (what, reply) = match outcome {
            Outcome::Stored => (" stored", ""),
            Outcome::Refused(reply) => (" refused", reply.0),
            Outcome::Missing(_, reply) => (" missing", reply.0),
        };
        let id = self.id.as_str();
        let (recipient, reply) = self.refusal.split_once('\n').unwrap_or(("", reply));
        line.extend(["session=", Buffer::new().format(session), what, if id.is_empty() { "" } else { " id=" }, id]);
        if let Outcome::Missing(destination, _) = outcome {
            append_quoted(line, " mailbox=", self.destinations().nth(destination).unwrap_or_default());
        } else {
            append_quoted(line, " from=", self.reverse_path());
            let to = if recipient.is_empty() { self.forward_paths().next().unwrap_or_default() } else { recipient };
            append_quoted(line, " to=", to);
            line.extend([" recipients=", Buffer::new().format(self.recipients)]);
        }
        match reply {
            "" => line.extend([" size=", Buffer::new().format(self.octets)]),
            _ => append_quoted(line, " reply=", reply),
        }
        line.push('\n');
    }
}

/// What the next octets are: a command, the rest of one that was too long, text of a message, octets of a BDAT chunk
/// (RFC 3030), or in base64 (RFC 4954) a user name or what ends a login. None are read while the message is on its way to
/// the store, nor before so many recipients are answered: that it failed for all, or what their shares say.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Command,
    LongLine,
    Data,
    Chunk { left: u64, last: bool, announced: u64 },
    Login { user_name: bool },
    Delivering,
    Answering { left: u32, failure: Option<Reply> },
    Closed,
}

/// The state of one connection. Idle it owns nothing on the heap but the name that the peer gave.
#[derive(Debug)]
pub struct Session {
    /// Its number, as the log names it.
    pub id: u64,
    pub lmtp: bool,
    pub peer: Peer,
    /// Lines that are no text, texts and chunks that came to their end, modulo 2^32.
    pub ended: u32,
    phase: Phase,
    hello: Option<Hello>,
    /// As trace lines have it: the name that the peer gave, of up to 255 octets, and its address; empty before both.
    pub origin: String,
    transaction: Option<Box<Transaction>>,
    /// How many were begun.
    pub transactions: u32,
    /// Commands that were refused since a message was stored.
    errors: u32,
    logged_in: bool,
    /// Reads the text of messages, and looks at commands, too: a peer that never sent a CR may end lines with LF.
    decoder: DataDecoder,
    /// Says why the session goes wrong, unless the end of its text does. One pointer, as each idle connection has it.
    pub hint: Option<&'static &'static str>,
    /// A message was refused before its text came: if what follows is no command, it is that text.
    text_may_follow: bool,
    /// The next action is [`Action::Discard`].
    discard: bool,
}

impl Session {
    /// A session with `peer`, `id` of this server, whose greeting is written by [`greet`](Self::greet).
    pub const fn new(id: u64, dialect: Dialect, peer: Peer, settings: &Settings) -> Self {
        Self {
            id,
            lmtp: matches!(dialect, Dialect::Lmtp),
            peer,
            ended: 0,
            phase: Phase::Command,
            hello: None,
            origin: String::new(),
            transaction: None,
            transactions: 0,
            errors: 0,
            logged_in: false,
            decoder: DataDecoder::new(Framing::Dot, settings.line_end, !settings.strict),
            hint: None,
            text_may_follow: false,
            discard: false,
        }
    }

    /// Writes the greeting (RFC 5321 4.3.1).
    pub fn greet(&self, settings: &Settings, date: &str, replies: &mut Vec<u8>) {
        let protocol = if self.lmtp { " LMTP" } else { " ESMTP" };
        append(replies, &["220 ", &settings.hostname, protocol, " mailchute ready; ", date, "\r\n"]);
    }

    /// Has the session end with `reply`, which is to be written.
    pub const fn close(&mut self, reply: Reply) -> Reply {
        self.phase = Phase::Closed;
        reply
    }

    pub fn transaction(&self) -> Option<&Transaction> {
        self.transaction.as_deref()
    }

    /// Whether a message is coming in or on its way to the store.
    pub fn in_message(&self) -> bool {
        matches!(self.phase, Phase::Chunk { .. }) || self.transaction().is_some_and(|it| it.begun)
    }

    /// One word that tells an administrator why the session went wrong; the README says what to do about each.
    pub fn hint(&self) -> Option<&'static str> {
        if self.decoder.lf_dot { Some("lf-dot") } else { self.hint.copied() }
    }

    /// Takes octets from the peer: returns how many it used and what is to be done. Called again with the rest until that
    /// is to read or to close; after [`Action::Deliver`] not before [`delivered`](Self::delivered) was called.
    pub fn receive(&mut self, input: &[u8], turn: &mut Turn<'_>) -> (usize, Action) {
        let mut used = 0;
        loop {
            if std::mem::take(&mut self.discard) {
                return (used, Action::Discard);
            }
            let rest = input.get(used..).unwrap_or_default();
            let (phase, before) = (self.phase, used);
            match phase {
                Phase::Closed if rest.is_empty() => return (used, Action::Close),
                Phase::Closed => used = input.len(),
                _ if turn.replies.len() > REPLIES_FULL => return (used, Action::Flush),
                Phase::Delivering => return (used, Action::Deliver),
                Phase::Answering { .. } => self.answer(turn.spare, turn.replies),
                Phase::Chunk { left: 0, last, announced } => self.end_chunk(last, announced, turn),
                _ if rest.is_empty() => return (used, Action::Read),
                Phase::Data => used += self.text(rest, turn),
                Phase::Chunk { left, last, announced } => {
                    let most = usize::try_from(left).unwrap_or(usize::MAX);
                    let count = self.text(rest.get(..most).unwrap_or(rest), turn);
                    self.phase = Phase::Chunk { left: left - count as u64, last, announced };
                    used += count;
                }
                Phase::Command | Phase::LongLine | Phase::Login { .. } => match self.line(rest, turn) {
                    0 => return (used, Action::Read),
                    count => used += count,
                },
            }
            if let Some(transcript) = turn.transcript.as_deref_mut() {
                self.note(phase, &input[before..used], transcript);
            }
        }
    }

    /// Notes what the peer said in `phase`, which may have ended with it.
    fn note(&self, phase: Phase, octets: &[u8], transcript: &mut Transcript) {
        let end: Option<&[u8]> = match (phase, self.phase) {
            (Phase::Data, Phase::Data) | (Phase::Chunk { .. }, Phase::Chunk { left: 1.., .. }) => None,
            (Phase::Data, _) if self.decoder.lf_session => Some(b"\n.\n"),
            (Phase::Data, _) => Some(b"\r\n.\r\n"),
            (Phase::Chunk { .. }, _) => Some(b""),
            _ => {
                // Behind the end there may be a whole text.
                let most = if matches!(phase, Phase::Closed) { TEXT_OCTETS_MAX } else { usize::MAX };
                let lines = octets[..octets.len().min(most)].split_inclusive(|&octet| octet == b'\n');
                return lines.for_each(|line| transcript.line(line, matches!(phase, Phase::Login { .. })));
            }
        };
        transcript.keep(octets, TEXT_OCTETS_MAX, end);
    }

    /// Notes what came of a command whose end is not waited for.
    pub fn note_rest(&self, unread: &[u8], transcript: &mut Transcript) {
        self.note(self.phase, unread, transcript);
    }

    /// Whether it was the server who ended it.
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// Hears what became of the message that was given away with [`Action::Deliver`].
    pub fn delivered(&mut self, outcome: Outcome, spare: &mut Spare, replies: &mut Vec<u8>) {
        let Some(transaction) = self.transaction.as_deref_mut() else { return };
        let failure = match outcome {
            Outcome::Stored => None,
            Outcome::Refused(reply) => Some(reply),
            Outcome::Missing(missing, reply) => return transaction.missing.push((missing as u32, reply)),
        };
        spare.counters.octets += if failure.is_none() { transaction.octets } else { 0 };
        (self.errors, self.hint) = if failure.is_none() { (0, None) } else { (self.errors, self.hint) };
        self.phase = Phase::Answering { left: if self.lmtp { transaction.recipients as u32 } else { 1 }, failure };
        self.answer(spare, replies);
    }

    /// Writes as many of the final replies as there is room for.
    fn answer(&mut self, spare: &mut Spare, replies: &mut Vec<u8>) {
        while let (Phase::Answering { left, failure }, true) = (self.phase, replies.len() <= REPLIES_FULL) {
            let Some(Transaction { id, recipients, shares, missing, .. }) = self.transaction() else { return };
            let is_mine = |destination| shares.contains(&(*recipients as u32 - left, destination));
            let reply = failure.or(missing.iter().find(|(destination, _)| is_mine(*destination)).map(|(_, it)| *it));
            spare.counters.count(reply);
            match reply {
                Some(reply) => reply.write(replies),
                None => append(replies, &["250 2.0.0 ", id.as_str(), " Message accepted for delivery\r\n"]),
            }
            self.phase = Phase::Answering { left: left - 1, failure };
            if left == 1 {
                self.phase = Phase::Command;
                self.end_transaction(spare);
            }
        }
    }

    /// One line from the peer: a command, part of a login, the rest of a long one. Its octets; 0 if not all came.
    #[inline(never)] // the smaller code
    fn line(&mut self, input: &[u8], turn: &mut Turn<'_>) -> usize {
        let line_feed = memchr(b'\n', input);
        let (line, behind) = input.split_at(line_feed.map_or(input.len(), |at| at + 1));
        let text = without_end(line);
        self.decoder.note_line_end(line);
        self.ended = self.ended.wrapping_add(line_feed.is_some().into());
        let after_long = matches!(self.phase, Phase::LongLine);
        let long = line.len() > COMMAND_LINE_OCTETS_MAX;
        if after_long || long {
            self.phase = if line_feed.is_some() { Phase::Command } else { Phase::LongLine };
        }
        let command = match self.phase {
            _ if after_long => return line.len(),
            _ if long => Err(Reply::LINE_TOO_LONG),
            // TLS has no lines.
            Phase::Command if line.starts_with(b"\x16") => Err(Reply::UNRECOGNIZED),
            _ if line_feed.is_none() => return 0,
            _ if turn.settings.strict && !line.ends_with(b"\r\n") => Err(Reply::BARE_LINE_FEED),
            Phase::Login { user_name } => {
                self.login(user_name, text).write(turn.replies);
                return line.len();
            }
            _ => Command::parse(text, turn.settings.strict),
        };
        let command = command.map_err(|reply| self.refuse_line(reply, text, behind, turn));
        if let Err(mut reply) = command.and_then(|command| self.command(command, behind, turn)) {
            let counts = reply != Reply::NO_RECIPIENTS;
            if let Some(transaction) = self.transaction.as_deref_mut().filter(|it| counts && !it.begun) {
                transaction.note_refusal("", reply.0);
            }
            if [Reply::MESSAGE_TOO_LARGE, Reply::STORAGE_FULL, Reply::STORAGE_FAILED].contains(&reply) {
                // At MAIL that is the end of a whole message, whose sender the log names.
                turn.spare.counters.count(Some(reply));
                self.end_transaction(turn.spare);
            }
            self.errors += u32::from(counts && reply.0.starts_with('5'));
            if self.errors > turn.errors_max && !matches!(self.phase, Phase::Closed) {
                reply = self.close(Reply::TOO_MANY_ERRORS);
            }
            reply.write(turn.replies);
        }
        line.len()
    }

    /// Applies one command: writes its reply, or returns that which refuses it. `behind` came in the same octets.
    fn command(&mut self, command: Command<'_>, behind: &[u8], turn: &mut Turn<'_>) -> Result<(), Reply> {
        self.text_may_follow &= !matches!(command, Command::Hello(..) | Command::Mail(..) | Command::Rset);
        // What may have others behind it in a group (RFC 2920 3.1); that must have been offered.
        let offered = matches!(self.hello, Some(Hello::Ehlo | Hello::Lhlo));
        let may_be_followed = match command {
            Command::Bdat { .. } => true,
            Command::Mail(..) | Command::Rcpt(_) | Command::Rset | Command::Help | Command::StartTls => offered,
            _ => false,
        };
        if turn.settings.strict && !behind.is_empty() && !may_be_followed {
            self.hint = Some(TOO_STRICT);
            return Err(self.close(Reply::EARLY_TALK));
        }
        let reply = match command {
            Command::Hello(hello, name) => return self.hello(hello, name, turn),
            Command::Mail(reverse_path, parameters) => return self.mail(reverse_path.as_str(), parameters, turn),
            Command::Rcpt(forward_path) => return self.rcpt(&forward_path, turn),
            Command::Data => self.begin_data(turn).map_err(|reply| self.refuse_text(reply, behind, turn))?,
            Command::Bdat { octets, last } => {
                self.phase = Phase::Chunk { left: octets, last, announced: octets };
                if self.open_transaction().is_ok_and(|transaction| transaction.recipients > 0) {
                    self.begin_message(Framing::Chunk, turn);
                }
                return Ok(());
            }
            Command::Rset => {
                self.abort_transaction(turn.spare);
                Reply::OK
            }
            Command::Noop => Reply::OK,
            Command::Quit => {
                append(turn.replies, &["221 2.0.0 ", &turn.settings.hostname, " closing connection\r\n"]);
                self.phase = Phase::Closed;
                return Ok(());
            }
            Command::Vrfy => Reply::CANNOT_VERIFY,
            Command::Help => Reply::HELP,
            Command::Auth(argument) => self.auth(argument, turn.settings)?,
            Command::Expn | Command::StartTls => return Err(Reply::NOT_IMPLEMENTED),
        };
        reply.write(turn.replies);
        Ok(())
    }

    /// Refuses a line that is no command. What a message follows must not be taken for commands: after DATA that is
    /// what stands behind; how much follows a BDAT is not known, so nothing can be heard after it.
    fn refuse_line(&mut self, reply: Reply, line: &[u8], behind: &[u8], turn: &Turn<'_>) -> Reply {
        if let Some((reply, hint)) = foreign(line) {
            self.hint = Some(hint);
            return self.close(reply);
        }
        let forgiven = turn.settings.strict && reply != Reply::LINE_TOO_LONG && Command::parse(line, LENIENT).is_ok();
        self.hint = forgiven.then_some(TOO_STRICT).or(self.hint);
        let verb = line.first_chunk().map_or([0; 4], |verb: &[u8; 4]| verb.map(|octet| octet.to_ascii_uppercase()));
        match (&verb, self.transaction.as_deref_mut()) {
            _ if self.text_may_follow => return self.close(Reply::TEXT_NOT_COMMANDS),
            (b"BDAT", _) if behind.is_empty() => return self.close(reply),
            (b"DATA" | b"BDAT", _) => return self.refuse_text(reply, behind, turn),
            (b"RCPT", Some(transaction)) => transaction.addressed = true,
            _ => {}
        }
        reply
    }

    /// Refuses a message whose text may be on its way already: if octets wait behind the command, they are that text.
    fn refuse_text(&mut self, reply: Reply, behind: &[u8], turn: &Turn<'_>) -> Reply {
        if turn.more || !behind.is_empty() {
            return self.close(Reply::TEXT_NOT_COMMANDS);
        }
        self.text_may_follow = true;
        reply
    }

    fn hello(&mut self, hello: Hello, name: &str, turn: &mut Turn<'_>) -> Result<(), Reply> {
        let Turn { settings, replies, .. } = turn;
        // RFC 2033 4.1: HELO and EHLO do not exist in LMTP, nor LHLO in SMTP.
        refuse_if(self.lmtp != (hello == Hello::Lhlo), Reply::UNRECOGNIZED)?;
        self.hello = Some(hello);
        self.abort_transaction(turn.spare);
        self.introduce(name, turn.spare);
        let code = if hello == Hello::Helo { "250 " } else { "250-" };
        let (before, behind) = if name.is_empty() { (" Hello (", ")") } else { (" Hello ", "") };
        append(replies, &[code, &settings.hostname, before, &self.origin, behind, ", pleased to meet you\r\n"]);
        if hello == Hello::Helo {
            return Ok(());
        }
        append(replies, &["250-PIPELINING\r\n250-SIZE ", Buffer::new().format(settings.message_octets_max)]);
        append(replies, &["\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n250-LIMITS RCPTMAX="]);
        append(replies, &[Buffer::new().format(settings.recipients_max)]);
        if let Some(transactions_max) = settings.transactions_max {
            append(replies, &[" MAILMAX=", Buffer::new().format(transactions_max)]);
        }
        let auth = if settings.accept_any_login { "250-AUTH PLAIN LOGIN\r\n250-AUTH=PLAIN LOGIN\r\n" } else { "" };
        append(replies, &["\r\n", auth, "250-HELP\r\n250 ENHANCEDSTATUSCODES\r\n"]);
        Ok(())
    }

    /// Notes who the peer is, under a name that it gave.
    fn introduce(&mut self, name: &str, spare: &mut Spare) {
        if self.origin.capacity() == 0 {
            self.origin = spare.origins.pop().unwrap_or_default();
        }
        self.origin.clear();
        // Room for an IPv4 address, as most have.
        self.origin.reserve_exact(name.len() + " ([255.255.255.255])".len());
        // In a header the name is data of a stranger: what has a meaning there is replaced.
        let harmless = |octet: char| octet.is_ascii_alphanumeric() || ".-_:[]~^+=*/!#$%&".contains(octet);
        self.origin.extend(name.chars().map(|octet| if harmless(octet) { octet } else { '?' }));
        let (before, behind) = if name.is_empty() { ("", "") } else { (" (", ")") };
        let _ = write!(self.origin, "{before}{}{behind}", self.peer);
    }

    fn mail(&mut self, path: &str, parameters: MailParameters, turn: &mut Turn<'_>) -> Result<(), Reply> {
        let settings = turn.settings;
        let hello_missing = (settings.strict || self.lmtp) && self.hello.is_none();
        self.hint = (hello_missing && !self.lmtp).then_some(TOO_STRICT).or(self.hint);
        refuse_if(self.transaction.is_some() || hello_missing, Reply::BAD_SEQUENCE)?;
        refuse_if(settings.transactions_max.is_some_and(|max| self.transactions >= max), Reply::TOO_MANY_TRANSACTIONS)?;
        let too_large = parameters.size > settings.message_octets_max;
        refuse_if(!parameters.smtp_utf8 && !path.is_ascii(), Reply::UTF8_NOT_ANNOUNCED)?;
        refuse_if(!too_large && turn.storage? < parameters.size.max(1), Reply::STORAGE_FULL)?;
        let transaction = self.transaction.insert(turn.spare.transactions.pop().unwrap_or_default());
        transaction.smtp_utf8 = parameters.smtp_utf8;
        add_line(&mut transaction.paths, path);
        transaction.reverse_path_octets = path.len();
        refuse_if(too_large, Reply::MESSAGE_TOO_LARGE)?;
        transaction.settle(&mut turn.spare.envelope_octets);
        if self.origin.is_empty() {
            self.introduce("", turn.spare);
        }
        self.transactions = self.transactions.saturating_add(1);
        // Whoever goes on without a login did not insist on one.
        self.hint = None;
        append(turn.replies, &["250 2.1.0 <", path, ">... Sender ok\r\n"]);
        Ok(())
    }

    fn rcpt(&mut self, forward_path: &Path<'_>, turn: &mut Turn<'_>) -> Result<(), Reply> {
        let Turn { settings, directory, replies, spare, .. } = turn;
        let transaction = self.open_transaction()?;
        transaction.addressed = true;
        let path = forward_path.as_str();
        // Without the line feeds behind the paths.
        let octets = transaction.paths.len() - 1 - transaction.recipients + transaction.destinations.len() + path.len();
        let long = octets > settings.envelope_octets_max && transaction.recipients >= RECIPIENTS_LEAST;
        refuse_if(long || transaction.recipients >= settings.recipients_max, Reply::TOO_MANY_RECIPIENTS)?;
        refuse_if(!transaction.smtp_utf8 && !path.is_ascii(), Reply::UTF8_NOT_ANNOUNCED)?;
        let [paths, destinations] = [&transaction.paths, &transaction.destinations].map(String::len);
        let shares = transaction.shares.len();
        let found = directory.resolve(forward_path, &mut |destination| transaction.add(destination));
        add_line(&mut transaction.paths, path);
        transaction.settle(&mut spare.envelope_octets);
        let full = transaction.destinations().nth(settings.destinations_max).is_some()
            || spare.envelope_octets > ENVELOPES_OCTETS_MAX && transaction.held > KEPT_OCTETS_MAX;
        if let Err(line) = refuse_if(full, Reply::TOO_MANY_RECIPIENTS).map_err(|reply| reply.0).and(found) {
            transaction.paths.truncate(paths);
            transaction.destinations.truncate(destinations);
            transaction.shares.truncate(shares);
            transaction.note_refusal(path, line);
            transaction.settle(&mut spare.envelope_octets);
            spare.counters.recipients_refused += 1;
            append(replies, &[line, "\r\n"]);
            // Whoever writes this code means what it says (RFC 5321 4.2.3).
            if line.starts_with("421") {
                self.phase = Phase::Closed;
            }
            return Ok(());
        }
        transaction.recipients += 1;
        append(replies, &["250 2.1.5 <", path, ">... Recipient ok\r\n"]);
        Ok(())
    }

    /// The transaction, as long as it takes recipients and the start of a message.
    fn open_transaction(&mut self) -> Result<&mut Transaction, Reply> {
        let open = |it: &&mut Transaction| !it.begun && it.failure.is_none();
        self.transaction.as_deref_mut().filter(open).ok_or(Reply::BAD_SEQUENCE)
    }

    /// DATA: takes the text where somebody is to have it, and also where all recipients were refused, because a
    /// client that does not read replies sends it all the same, and text must never run as commands.
    fn begin_data(&mut self, turn: &mut Turn<'_>) -> Result<Reply, Reply> {
        let lmtp = self.lmtp;
        let transaction = self.open_transaction()?;
        let nobody = transaction.recipients == 0;
        refuse_if(nobody && (lmtp || !transaction.addressed), Reply::NO_RECIPIENTS)?;
        transaction.failure = nobody.then_some(Reply::NO_VALID_RECIPIENTS);
        self.begin_message(Framing::Dot, turn);
        self.phase = Phase::Data;
        Ok(Reply::START_MAIL_INPUT)
    }

    /// Gives the message its id and writes what stands on top of it.
    fn begin_message(&mut self, framing: Framing, turn: &mut Turn<'_>) {
        let Turn { settings, content, .. } = turn;
        let line_end = settings.line_end.as_str();
        let Some(transaction) = self.transaction.as_deref_mut() else { return };
        transaction.id = turn.ids.next(turn.now);
        transaction.begun = true;
        self.decoder = DataDecoder::new(framing, settings.line_end, self.decoder.lf_session);
        self.text_may_follow = false;
        if transaction.failure.is_some() {
            return;
        }
        transaction.refusal.clear();
        append(content, &["Return-Path: <", transaction.reverse_path(), ">", line_end]);
        // In several mailboxes it would tell each of the others.
        let alone = transaction.destinations().nth(1).is_none();
        for (recipient, forward_path) in transaction.forward_paths().enumerate().filter(|_| alone) {
            // Nor is one listed whose mail is dropped.
            if transaction.shares.binary_search_by_key(&(recipient as u32), |share| share.0).is_ok() {
                append(content, &["Delivered-To: ", forward_path, line_end]);
            }
        }
        let utf8 = if transaction.smtp_utf8 { "UTF8" } else { "" };
        let extended = !self.lmtp && utf8.is_empty() && (self.logged_in || self.hello == Some(Hello::Ehlo));
        let extended = if extended { "E" } else { "" };
        let protocol = if self.lmtp { "LMTP" } else { "SMTP" };
        let login = if self.logged_in { "A" } else { "" };
        append(content, &["Received: from ", &self.origin, line_end, "\tby ", &settings.hostname]);
        append(content, &[" with ", utf8, extended, protocol, login, " id ", transaction.id.as_str()]);
        // Of several, it would tell each of the others.
        for forward_path in transaction.forward_paths().filter(|_| transaction.recipients == 1) {
            append(content, &[line_end, "\tfor <", forward_path, ">"]);
        }
        append(content, &[";", line_end, "\t", turn.ids.date(turn.now), line_end]);
    }

    /// Text of a message, as far as it goes, or of a chunk that can't be taken, which is dropped: returns how many
    /// octets that was. What the decoder gives counts, and is kept unless the message will be refused.
    fn text(&mut self, input: &[u8], turn: &mut Turn<'_>) -> usize {
        let Some(transaction) = self.transaction.as_deref_mut().filter(|it| it.begun) else {
            // The line-end lock sees these octets, too.
            self.decoder.note_line_end(input);
            return input.len();
        };
        let keep = transaction.failure.is_none();
        let lf_dot = self.decoder.lf_dot;
        let (count, octets, ended) = self.decoder.decode(input, &mut |run| {
            if keep {
                transaction.header.scan(run);
                turn.content.extend_from_slice(run);
            }
        });
        transaction.octets += octets;
        // Who waits in vain for an answer to its dot line may say so.
        let in_vain = |text: &[u8]| text.ends_with(b"\n.\n") || text.ends_with(b"\n.\r\n") || text.is_empty() && lf_dot;
        let quits = !ended && matches!(self.phase, Phase::Data) && input.strip_suffix(b"QUIT\r\n").is_some_and(in_vain);
        self.decoder.lf_dot |= quits;
        self.check_message(turn.settings);
        if ended {
            self.end_message(turn);
        }
        count
    }

    /// Decides as early as possible that a message will be refused; what there is of it can be dropped then.
    fn check_message(&mut self, settings: &Settings) -> Option<Reply> {
        let transaction = self.transaction.as_deref_mut()?;
        let checked = refuse_if(transaction.octets > settings.message_octets_max, Reply::MESSAGE_TOO_LARGE)
            .and(refuse_if(transaction.header.is_mail_loop(), Reply::MAIL_LOOP))
            .and(refuse_if(settings.reject_bare_newline && self.decoder.bare_newline, Reply::BARE_NEWLINE));
        if let (None, Err(reply)) = (transaction.failure, checked) {
            self.discard = true;
            transaction.failure = Some(reply);
            transaction.note_refusal("", reply.0);
        }
        transaction.failure
    }

    /// The end of a message: refuses it, or gives it away.
    fn end_message(&mut self, turn: &mut Turn<'_>) {
        self.ended = self.ended.wrapping_add(1);
        if self.check_message(turn.settings).is_none() {
            // The last octet of the last chunk may have been a CR.
            self.decoder.finish(&mut |run| turn.content.extend_from_slice(run));
        }
        match self.check_message(turn.settings) {
            Some(failure) => self.delivered(Outcome::Refused(failure), turn.spare, turn.replies),
            None => self.phase = Phase::Delivering,
        }
    }

    /// Answers a BDAT whose octets have come, also where they were dropped.
    fn end_chunk(&mut self, last: bool, announced: u64, turn: &mut Turn<'_>) {
        self.phase = Phase::Command;
        self.ended = self.ended.wrapping_add(1);
        match self.transaction.as_deref_mut() {
            None => Reply::BAD_SEQUENCE.write(turn.replies),
            // Part of the message is lost, so no other part may be taken for the whole (RFC 3030 2).
            Some(it) if !it.begun => it.failure.get_or_insert(Reply::NO_RECIPIENTS).write(turn.replies),
            Some(_) if last => self.end_message(turn),
            Some(Transaction { failure: Some(failure), .. }) => failure.write(turn.replies),
            Some(_) => append(turn.replies, &["250 2.0.0 ", Buffer::new().format(announced), " octets received\r\n"]),
        }
    }

    /// AUTH, and if it is offered any name and password will do (RFC 4954; the challenges of LOGIN are what devices compare with).
    fn auth(&mut self, argument: &str, settings: &Settings) -> Result<Reply, Reply> {
        self.hint = (!settings.accept_any_login).then_some(&"auth-required-by-client").or(self.hint);
        refuse_if(!settings.accept_any_login, Reply::NOT_IMPLEMENTED)?;
        let (mechanism, initial_response) = login(argument, settings.strict)?;
        refuse_if(self.logged_in || self.transaction.is_some(), Reply::BAD_SEQUENCE)?;
        let user_name = mechanism.eq_ignore_ascii_case("LOGIN");
        refuse_if(!user_name && !mechanism.eq_ignore_ascii_case("PLAIN"), Reply::MECHANISM_UNKNOWN)?;
        self.phase = Phase::Login { user_name };
        Ok(match initial_response {
            Some(response) => self.login(user_name, response.as_bytes()),
            None if user_name => Reply::CHALLENGE_USER_NAME,
            None => Reply::CHALLENGE_EMPTY,
        })
    }

    fn login(&mut self, user_name: bool, response: &[u8]) -> Reply {
        let good = is_base64(response);
        self.logged_in = good && !user_name;
        self.phase = if good && user_name { Phase::Login { user_name: false } } else { Phase::Command };
        match response {
            b"*" => Reply::LOGIN_CANCELLED,
            _ if !good => Reply::LOGIN_MALFORMED,
            _ if user_name => Reply::CHALLENGE_PASSWORD,
            _ => Reply::LOGIN_ACCEPTED,
        }
    }

    /// Ends a transaction before its time; the chunks that came of its message are to be dropped.
    fn abort_transaction(&mut self, spare: &mut Spare) {
        self.discard = self.in_message();
        self.end_transaction(spare);
    }

    /// Ends the session; its memory is for others to use again.
    pub fn end(&mut self, spare: &mut Spare) {
        self.end_transaction(spare);
        if spare.origins.len() < KEPT_MAX && self.origin.capacity() > 0 {
            spare.origins.push(std::mem::take(&mut self.origin));
        }
    }

    /// Ends the transaction; its memory is for others to use again.
    fn end_transaction(&mut self, spare: &mut Spare) {
        let Some(mut transaction) = self.transaction.take() else { return };
        if !transaction.refusal.is_empty() {
            transaction.describe(self.id, Outcome::Refused(Reply::NO_VALID_RECIPIENTS), &mut spare.log);
        }
        spare.envelope_octets -= transaction.held;
        if transaction.held <= KEPT_OCTETS_MAX && spare.transactions.len() < KEPT_MAX {
            let Transaction { mut paths, mut destinations, mut shares, .. } = std::mem::take(&mut *transaction);
            paths.clear();
            destinations.clear();
            shares.clear();
            *transaction = Transaction { paths, destinations, shares, ..Transaction::default() };
            spare.transactions.push(transaction);
        }
    }
}

/// Adds a text and LF behind it. There is never room for much more, as all transactions share the memory.
fn add_line(texts: &mut String, text: &str) {
    if texts.capacity() - texts.len() <= text.len() {
        texts.reserve_exact(PATHS_GROWTH.max(text.len() + 1));
    }
    texts.extend([text, "\n"]);
}

/// Texts with LF behind each.
fn lines(mut texts: &str) -> impl Iterator<Item = &str> + Clone {
    std::iter::from_fn(move || {
        let (text, rest) = texts.split_at_checked(memchr(b'\n', texts.as_bytes())?)?;
        texts = rest.get(1..)?;
        Some(text)
    })
}

/// Appends text of a stranger, in quotes and with escapes; few have any to be escaped.
fn append_quoted(line: &mut String, key: &str, text: &str) {
    let is_plain = |octet| matches!(octet, b' '..=b'~') & (octet != b'"') & (octet != b'\\');
    if text.bytes().all(is_plain) {
        line.extend([key, "\"", text, "\""]);
    } else {
        let _ = write!(line, "{key}{text:?}");
    }
}

/// Whether `text` is base64 (RFC 4648 4); `=` alone is the empty response of RFC 4954.
fn is_base64(text: &[u8]) -> bool {
    let digits = text.strip_suffix(b"==").or(text.strip_suffix(b"=")).unwrap_or(text);
    let is_digit = |octet: &u8| octet.is_ascii_alphanumeric() || matches!(octet, b'+' | b'/');
    text == b"=" || text.len() % 4 == 0 && digits.iter().all(is_digit)
}
