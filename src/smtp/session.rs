//! One connection's protocol state: commands in order, a mail transaction, its message (RFC 5321 3 and 4).

use std::io::Write as _;
use std::time::SystemTime;

use memchr::memchr;

use super::address::Path;
use super::command::{Command, Foreign, Hello, MailParameters, Syntax, foreign, login};
use super::data::{BareNewline, DataDecoder, Framing, LineEnd};
use super::header::HeaderScanner;
use super::reply::Reply;
use super::trace::{MessageId, MessageIds, Peer, Received, write_date};

/// Longest command line that is read, its line end included. RFC 5321 4.5.3.1.4 asks for 512; extensions for more.
pub const COMMAND_LINE_OCTETS_MAX: usize = 2048;

/// Room for replies. Commands are not parsed while less than [`REPLY_OCTETS_MAX`] of it is left.
pub const REPLIES_OCTETS_MAX: usize = 4096;

/// More than the longest reply to one command: a path of 1,024 octets and some words, or the answer to EHLO.
pub const REPLY_OCTETS_MAX: usize = 1536;

/// Which protocol a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// RFC 5321.
    Smtp,
    /// RFC 2033: LHLO, and one reply for each recipient at the end of data.
    Lmtp,
}

/// What all sessions of a server have in common.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Our own name, in the greeting and in trace lines.
    pub hostname: String,
    /// Octets of the largest message, as RFC 1870 counts them.
    pub message_octets_max: u64,
    /// Recipients of one transaction; RFC 5321 4.5.3.1.8 asks for at least 100.
    pub recipients_max: usize,
    /// Octets that the paths of one transaction may take.
    pub envelope_octets_max: usize,
    /// Transactions of one connection; `None` for any number (RFC 9422 MAILMAX).
    pub transactions_max: Option<u32>,
    /// Whether the RFC is kept to the letter.
    pub strict: bool,
    /// What is done with a lone CR or LF inside a message.
    pub bare_newline: BareNewline,
    /// How line ends are stored.
    pub line_end: LineEnd,
    /// Whether AUTH is offered, and any name and password taken.
    pub accept_any_login: bool,
}

/// What the disk says of new mail, asked before each transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// It takes a message of up to so many octets.
    Ready {
        /// Octets above the floor of free space.
        room: u64,
    },
    /// It failed, and has not been seen working since.
    Failed,
}

/// What a session borrows from its server while it works.
pub struct Turn<'a> {
    /// Common to all sessions.
    pub settings: &'a Settings,
    /// The wall clock, read once a turn.
    pub now: SystemTime,
    /// Gives each message its id.
    pub ids: &'a mut MessageIds,
    /// Memory of ended sessions and transactions, to be used again.
    pub spare: &'a mut Spare,
    /// What the disk says.
    pub storage: Storage,
    /// Whether the peer has sent more than it was read: what stands behind the input is not known.
    pub more: bool,
    /// Written to the peer; never more than [`REPLIES_OCTETS_MAX`].
    pub replies: &'a mut Vec<u8>,
    /// Written to the message's file: at most as many octets as came (twice as many where lone line feeds become
    /// CRLF), and the trace header.
    pub content: &'a mut Vec<u8>,
}

/// Memory that sessions and transactions left behind, so that none is allocated once the server is warm.
#[derive(Debug, Default)]
pub struct Spare {
    /// Boxed, as sessions have them: most sessions have none.
    #[allow(clippy::vec_box)]
    transactions: Vec<Box<Transaction>>,
    names: Vec<String>,
}

impl Spare {
    /// How much of each kind is kept.
    const KEPT_MAX: usize = 128;

    /// Octets of paths that a transaction may keep room for; those of a long list of recipients go back.
    const KEPT_PATHS_OCTETS_MAX: usize = 4096;

    fn keep(&mut self, mut transaction: Box<Transaction>) {
        let small = transaction.paths.capacity() <= Self::KEPT_PATHS_OCTETS_MAX;
        if small && self.transactions.len() < Self::KEPT_MAX {
            transaction.clear();
            self.transactions.push(transaction);
        }
    }

    fn keep_name(&mut self, mut name: String) {
        if name.capacity() > 0 && self.names.len() < Self::KEPT_MAX {
            name.clear();
            self.names.push(name);
        }
    }
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
}

/// A mail transaction, from MAIL to its end (RFC 5321 3.3).
#[derive(Debug, Default)]
pub struct Transaction {
    /// All paths one behind the other, the reverse-path first.
    paths: String,
    /// Where each path ends.
    ends: Vec<u32>,
    /// RCPT commands that were refused.
    refused: u32,
    /// Whether addresses may be UTF-8 (RFC 6531).
    smtp_utf8: bool,
    /// The message's id, blank before its data begin.
    id: MessageId,
    /// Why the message will be refused at its end.
    failure: Option<Reply>,
    /// Octets of the message so far, as they came, and as RFC 1870 counts them.
    came: u64,
    octets: u64,
    header: HeaderScanner,
}

impl Transaction {
    /// The reverse-path, empty for the null one.
    pub fn reverse_path(&self) -> &str {
        self.path(0)
    }

    /// The forward-paths that were accepted, in order.
    pub fn forward_paths(&self) -> impl Iterator<Item = &str> {
        (1..self.ends.len()).map(|index| self.path(index))
    }

    /// How many recipients were accepted.
    pub fn recipients(&self) -> usize {
        self.ends.len().saturating_sub(1)
    }

    /// Octets of the message so far, as RFC 1870 counts them.
    pub const fn octets(&self) -> u64 {
        self.octets
    }

    /// The message's id, blank before its data begin.
    pub const fn id(&self) -> &MessageId {
        &self.id
    }

    /// Whether nothing can come of it but RSET.
    const fn is_failed(&self) -> bool {
        self.failure.is_some()
    }

    fn path(&self, index: usize) -> &str {
        let end_of = |index: usize| self.ends.get(index).map_or(0, |&end| end as usize);
        let start = if index == 0 { 0 } else { end_of(index - 1) };
        self.paths.get(start..end_of(index)).unwrap_or_default()
    }

    fn push_path(&mut self, path: &str) {
        self.paths.push_str(path);
        self.ends.push(u32::try_from(self.paths.len()).unwrap_or(u32::MAX));
    }

    fn clear(&mut self) {
        let Self { paths, ends, refused, smtp_utf8, id, failure, came, octets, header } = self;
        paths.clear();
        ends.clear();
        (*refused, *smtp_utf8, *failure, *came, *octets) = (0, false, None, 0, 0);
        *id = MessageId::default();
        *header = HeaderScanner::default();
    }
}

/// What the next octets are.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// A command.
    Command,
    /// The rest of a command line that was too long.
    LongLine,
    /// The text of a message, up to its end.
    Data(DataDecoder),
    /// Octets of a BDAT chunk (RFC 3030).
    Chunk { left: u64, last: bool, announced: u64 },
    /// A user name, a password, or both, in base64 (RFC 4954).
    Login(Login),
    /// Nothing: the message is on its way to the store.
    Delivering,
    /// Nothing before so many replies to LMTP recipients have found room.
    Answering { left: usize, outcome: Outcome },
    /// Nothing any more.
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Login {
    Plain,
    UserName,
    Password,
}

/// The state of one connection. Idle it owns nothing on the heap but the name that the peer gave.
#[derive(Debug)]
pub struct Session {
    id: u64,
    dialect: Dialect,
    peer: Peer,
    phase: Phase,
    hello: Option<Hello>,
    hello_name: String,
    transaction: Option<Box<Transaction>>,
    /// A message in chunks, once the first BDAT came; the decoder goes on from chunk to chunk.
    chunks: Option<DataDecoder>,
    transactions: u32,
    logged_in: bool,
    /// No CR came from this peer yet: a person or a script that ends lines with LF.
    lf_session: bool,
    hint: Option<&'static str>,
    /// A message was refused before its text came: if what follows is no command, it is that text.
    text_may_follow: bool,
}

impl Session {
    /// A session with `peer`, `id` of this server, whose greeting is written by [`greet`](Self::greet).
    pub const fn new(id: u64, dialect: Dialect, peer: Peer, settings: &Settings) -> Self {
        Self {
            id,
            dialect,
            peer,
            phase: Phase::Command,
            hello: None,
            hello_name: String::new(),
            transaction: None,
            chunks: None,
            transactions: 0,
            logged_in: false,
            lf_session: !settings.strict,
            hint: None,
            text_may_follow: false,
        }
    }

    /// Writes the greeting (RFC 5321 4.3.1).
    pub fn greet(&self, settings: &Settings, now: SystemTime, replies: &mut Vec<u8>) {
        let protocol = match self.dialect {
            Dialect::Smtp => "ESMTP",
            Dialect::Lmtp => "LMTP",
        };
        let _ = write!(replies, "220 {} {protocol} mailchute ready; ", settings.hostname);
        write_date(now, replies);
        replies.extend_from_slice(b"\r\n");
    }

    /// Ends the session with a reply of our own accord, such as 421, or 554 to a peer that spoke before the greeting.
    pub fn close(&mut self, reply: Reply, replies: &mut Vec<u8>) {
        reply.write(replies);
        self.hint = self.hint();
        self.phase = Phase::Closed;
    }

    /// The number of this session, as the log names it.
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// The transaction under way.
    pub fn transaction(&self) -> Option<&Transaction> {
        self.transaction.as_deref()
    }

    /// Whether a message is coming in or on its way to the store.
    pub const fn in_message(&self) -> bool {
        match self.phase {
            Phase::Data(_) | Phase::Chunk { .. } | Phase::Delivering | Phase::Answering { .. } => true,
            Phase::Command | Phase::LongLine | Phase::Login(_) | Phase::Closed => self.chunks.is_some(),
        }
    }

    /// One word that tells an administrator why a session went wrong: `lf-dot` for a message whose last line is a dot
    /// with wrong line ends, `tls-on-plain`, `http`, `auth-required-by-client`.
    pub fn hint(&self) -> Option<&'static str> {
        match self.phase {
            Phase::Data(decoder) if decoder.lf_dot_seen() => Some("lf-dot"),
            _ => self.hint,
        }
    }

    /// Takes octets from the peer: returns how many it used and what is to be done.
    ///
    /// Called again with the rest until it returns [`Action::Read`] or [`Action::Close`]; after
    /// [`Action::Deliver`] not before [`delivered`](Self::delivered) was called.
    pub fn receive(&mut self, input: &[u8], turn: &mut Turn<'_>) -> (usize, Action) {
        let mut used = 0;
        loop {
            let rest = input.get(used..).unwrap_or_default();
            if turn.replies.len() + REPLY_OCTETS_MAX > REPLIES_OCTETS_MAX {
                return (used, Action::Flush);
            }
            let (count, action) = match self.phase {
                Phase::Closed => return (input.len(), Action::Close),
                Phase::Delivering => return (used, Action::Deliver),
                Phase::Answering { left, outcome } => (0, self.answer(left, outcome, turn.spare, turn.replies)),
                Phase::Chunk { left, last, announced } => self.chunk(rest, left, last, announced, turn),
                Phase::Data(decoder) if !rest.is_empty() => self.data(rest, decoder, turn),
                _ if rest.is_empty() => return (used, Action::Read),
                _ => self.line(rest, turn),
            };
            used += count;
            if let Some(action) = action {
                return (used, action);
            }
        }
    }

    /// Hears what became of the message that was given away with [`Action::Deliver`].
    pub fn delivered(&mut self, outcome: Outcome, spare: &mut Spare, replies: &mut Vec<u8>) {
        let left = match (self.dialect, &self.transaction) {
            (Dialect::Lmtp, Some(transaction)) => transaction.recipients(),
            _ => 1,
        };
        self.phase = Phase::Answering { left, outcome };
        self.answer(left, outcome, spare, replies);
    }

    /// Forgets the session's own memory, for another session to use again.
    pub fn end(&mut self, spare: &mut Spare) {
        self.end_transaction(spare);
        spare.keep_name(std::mem::take(&mut self.hello_name));
    }

    /// Writes as many of the final replies as there is room for.
    fn answer(
        &mut self,
        mut left: usize,
        outcome: Outcome,
        spare: &mut Spare,
        replies: &mut Vec<u8>,
    ) -> Option<Action> {
        let id = self.transaction.as_ref().map(|transaction| transaction.id).unwrap_or_default();
        while left > 0 && replies.len() + REPLY_OCTETS_MAX <= REPLIES_OCTETS_MAX {
            left -= 1;
            match outcome {
                Outcome::Stored => {
                    let _ = write!(replies, "250 2.0.0 {id} Message accepted for delivery\r\n");
                }
                Outcome::Refused(reply) => reply.write(replies),
            }
        }
        if left == 0 {
            self.end_transaction(spare);
            self.phase = Phase::Command;
            return None;
        }
        self.phase = Phase::Answering { left, outcome };
        Some(Action::Flush)
    }

    /// One line from the peer: a command, part of a login, or the rest of a line that was too long.
    fn line(&mut self, input: &[u8], turn: &mut Turn<'_>) -> (usize, Option<Action>) {
        let Some(line_feed) = memchr(b'\n', input) else {
            if matches!(self.phase, Phase::Command) && foreign(input) == Some(Foreign::Tls) {
                return (input.len(), self.turn_foreign_away(Foreign::Tls, turn.replies));
            }
            let long = matches!(self.phase, Phase::LongLine);
            if !long && input.len() <= COMMAND_LINE_OCTETS_MAX {
                return (0, Some(Action::Read));
            }
            self.note_line_end(input);
            if long {
                return (input.len(), None);
            }
            self.phase = Phase::LongLine;
            return (input.len(), self.refuse_line(Reply::LINE_TOO_LONG, input, &[], turn));
        };
        let count = line_feed + 1;
        let (line, rest) = input.split_at(count);
        self.note_line_end(line);
        if matches!(self.phase, Phase::LongLine) {
            self.phase = Phase::Command;
            return (count, None);
        }
        if count > COMMAND_LINE_OCTETS_MAX {
            self.phase = Phase::Command;
            return (count, self.refuse_line(Reply::LINE_TOO_LONG, line, rest, turn));
        }
        if turn.settings.strict && !line.ends_with(b"\r\n") {
            return (count, self.refuse_line(Reply::BARE_LINE_FEED, line, rest, turn));
        }
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let action = match self.phase {
            Phase::Login(login) => self.login(login, line, turn.replies),
            _ => self.command(line, rest, turn),
        };
        (count, action)
    }

    /// The line-end lock: a peer that sent a CR once is no LF session any more.
    fn note_line_end(&mut self, line: &[u8]) {
        if self.lf_session && memchr(b'\r', line).is_some() {
            self.lf_session = false;
        }
    }

    fn turn_away(&mut self, reply: Reply, replies: &mut Vec<u8>) -> Option<Action> {
        self.close(reply, replies);
        Some(Action::Close)
    }

    fn turn_foreign_away(&mut self, foreign: Foreign, replies: &mut Vec<u8>) -> Option<Action> {
        let (reply, hint) = match foreign {
            Foreign::Http => (Reply::NOT_HTTP, "http"),
            Foreign::Tls => (Reply::NOT_TLS, "tls-on-plain"),
            Foreign::ProxyHeader => (Reply::NO_PROXY_HEADER, "proxy-header"),
        };
        self.hint = Some(hint);
        self.turn_away(reply, replies)
    }

    /// Applies one command. `behind` is what came with it in the same octets.
    fn command(&mut self, line: &[u8], behind: &[u8], turn: &mut Turn<'_>) -> Option<Action> {
        let settings = turn.settings;
        let syntax = Syntax { strict: settings.strict };
        let command = match Command::parse(line, syntax) {
            Ok(command) => command,
            Err(reply) => return self.refuse_line(reply, line, behind, turn),
        };
        if matches!(command, Command::Hello { .. } | Command::Mail { .. } | Command::Rset | Command::Quit) {
            self.text_may_follow = false;
        }
        if settings.strict && !behind.is_empty() && !self.may_be_followed(&command) {
            return self.turn_away(Reply::EARLY_TALK, turn.replies);
        }
        match command {
            Command::Hello { hello, name } => return self.hello(hello, name, turn),
            Command::Mail { reverse_path, parameters } => self.mail(&reverse_path, parameters, turn),
            Command::Rcpt { forward_path } => self.rcpt(&forward_path, settings, turn.replies),
            Command::Data => return self.begin_data(behind, turn),
            Command::Bdat { octets, last } => self.phase = Phase::Chunk { left: octets, last, announced: octets },
            Command::Rset => {
                Reply::OK.write(turn.replies);
                return self.abort_transaction(turn.spare);
            }
            Command::Noop => Reply::OK.write(turn.replies),
            Command::Quit => {
                let _ = write!(turn.replies, "221 2.0.0 {} closing connection\r\n", settings.hostname);
                self.phase = Phase::Closed;
                return Some(Action::Close);
            }
            Command::Vrfy => Reply::CANNOT_VERIFY.write(turn.replies),
            Command::Expn => Reply::NOT_IMPLEMENTED.write(turn.replies),
            Command::Help => Reply::HELP.iter().for_each(|line| turn.replies.extend_from_slice(line.as_bytes())),
            Command::Auth { argument } if settings.accept_any_login => match login(argument, syntax) {
                Ok((mechanism, initial_response)) => return self.auth(mechanism, initial_response, turn.replies),
                Err(reply) => reply.write(turn.replies),
            },
            Command::Auth { .. } => {
                self.hint = Some("auth-required-by-client");
                Reply::NOT_IMPLEMENTED.write(turn.replies);
            }
            Command::StartTls => Reply::NOT_IMPLEMENTED.write(turn.replies),
        }
        None
    }

    /// Refuses a line that is no command. What a message follows must not be taken for commands: after DATA that is
    /// what stands behind; how much follows a BDAT is not known, so nothing can be heard after it.
    fn refuse_line(&mut self, reply: Reply, line: &[u8], behind: &[u8], turn: &mut Turn<'_>) -> Option<Action> {
        if let Some(foreign) = foreign(line) {
            return self.turn_foreign_away(foreign, turn.replies);
        }
        if self.text_may_follow {
            return self.turn_away(Reply::TEXT_NOT_COMMANDS, turn.replies);
        }
        let verb = line.first_chunk().map_or([0; 4], |verb: &[u8; 4]| verb.map(|octet| octet.to_ascii_uppercase()));
        match (&verb, self.transaction.as_deref_mut()) {
            (b"BDAT", _) if behind.is_empty() => return self.turn_away(reply, turn.replies),
            (b"DATA" | b"BDAT", _) => return self.refuse_text(reply, behind, turn),
            (b"RCPT", Some(transaction)) => transaction.refused = transaction.refused.saturating_add(1),
            _ => {}
        }
        reply.write(turn.replies);
        None
    }

    /// Whether other commands may stand behind this one in a group (RFC 2920 3.1; the group must have been offered).
    fn may_be_followed(&self, command: &Command<'_>) -> bool {
        let offered = matches!(self.hello, Some(Hello::Ehlo | Hello::Lhlo));
        let last_in_group = matches!(
            command,
            Command::Hello { .. }
                | Command::Data
                | Command::Vrfy
                | Command::Expn
                | Command::Noop
                | Command::Quit
                | Command::Auth { .. }
        );
        matches!(command, Command::Bdat { .. }) || offered && !last_in_group
    }

    fn hello(&mut self, hello: Hello, name: &str, turn: &mut Turn<'_>) -> Option<Action> {
        let Turn { settings, replies, .. } = turn;
        let lmtp = self.dialect == Dialect::Lmtp;
        if lmtp != (hello == Hello::Lhlo) {
            // RFC 2033 4.1: HELO and EHLO do not exist in LMTP, nor LHLO in SMTP.
            Reply::UNRECOGNIZED.write(replies);
            return None;
        }
        let aborted = self.abort_transaction(turn.spare);
        self.hello = Some(hello);
        if self.hello_name.capacity() == 0 {
            self.hello_name = turn.spare.names.pop().unwrap_or_default();
        }
        self.hello_name.clear();
        // In a header the name is data of a stranger: what has a meaning there is replaced.
        let harmless = |character: char| match character {
            'a'..='z' | 'A'..='Z' | '0'..='9' => character,
            '.' | '-' | '_' | ':' | '[' | ']' | '~' | '^' | '+' | '=' | '*' | '/' | '!' | '#' | '$' | '%' | '&' => {
                character
            }
            _ => '?',
        };
        self.hello_name.extend(name.chars().map(harmless));
        let more = if hello == Hello::Helo { ' ' } else { '-' };
        let _ = write!(replies, "250{more}{} Hello ", settings.hostname);
        if !self.hello_name.is_empty() {
            let _ = write!(replies, "{} ", self.hello_name);
        }
        let _ = write!(replies, "({}), pleased to meet you\r\n", self.peer);
        if hello == Hello::Helo {
            return aborted;
        }
        let _ = write!(
            replies,
            "250-PIPELINING\r\n250-SIZE {}\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n250-LIMITS RCPTMAX={}",
            settings.message_octets_max, settings.recipients_max
        );
        if let Some(transactions_max) = settings.transactions_max {
            let _ = write!(replies, " MAILMAX={transactions_max}");
        }
        replies.extend_from_slice(b"\r\n");
        if settings.accept_any_login {
            replies.extend_from_slice(b"250-AUTH PLAIN LOGIN\r\n250-AUTH=PLAIN LOGIN\r\n");
        }
        replies.extend_from_slice(b"250-HELP\r\n250 ENHANCEDSTATUSCODES\r\n");
        aborted
    }

    fn mail(&mut self, reverse_path: &Path<'_>, parameters: MailParameters, turn: &mut Turn<'_>) {
        if let Err(reply) = self.check_mail(reverse_path, parameters, turn) {
            return reply.write(turn.replies);
        }
        let mut transaction = turn.spare.transactions.pop().unwrap_or_default();
        transaction.smtp_utf8 = parameters.smtp_utf8;
        transaction.push_path(reverse_path.as_str());
        self.transaction = Some(transaction);
        self.transactions = self.transactions.saturating_add(1);
        // Whoever goes on without a login did not insist on one.
        self.hint = None;
        let _ = write!(turn.replies, "250 2.1.0 <{}>... Sender ok\r\n", reverse_path.as_str());
    }

    fn check_mail(&self, reverse_path: &Path<'_>, parameters: MailParameters, turn: &Turn<'_>) -> Result<(), Reply> {
        let settings = turn.settings;
        if self.transaction.is_some() || (settings.strict || self.dialect == Dialect::Lmtp) && self.hello.is_none() {
            return Err(Reply::BAD_SEQUENCE);
        }
        if settings.transactions_max.is_some_and(|most| self.transactions >= most) {
            return Err(Reply::TOO_MANY_TRANSACTIONS);
        }
        if !parameters.smtp_utf8 && !reverse_path.as_str().is_ascii() {
            return Err(Reply::UTF8_NOT_ANNOUNCED);
        }
        let size = parameters.size.unwrap_or(0);
        if size > settings.message_octets_max {
            return Err(Reply::MESSAGE_TOO_LARGE);
        }
        match turn.storage {
            Storage::Failed => Err(Reply::STORAGE_FAILED),
            Storage::Ready { room } if room == 0 || size > room => Err(Reply::STORAGE_FULL),
            Storage::Ready { .. } => Ok(()),
        }
    }

    fn rcpt(&mut self, forward_path: &Path<'_>, settings: &Settings, replies: &mut Vec<u8>) {
        let Some(transaction) = self.transaction.as_deref_mut().filter(|it| self.chunks.is_none() && !it.is_failed())
        else {
            return Reply::BAD_SEQUENCE.write(replies);
        };
        let path = forward_path.as_str();
        let octets = transaction.paths.len() + path.len();
        let refusal = if transaction.recipients() >= settings.recipients_max || octets > settings.envelope_octets_max {
            Some(Reply::TOO_MANY_RECIPIENTS)
        } else if !transaction.smtp_utf8 && !path.is_ascii() {
            Some(Reply::UTF8_NOT_ANNOUNCED)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            transaction.refused = transaction.refused.saturating_add(1);
            return refusal.write(replies);
        }
        transaction.push_path(path);
        let _ = write!(replies, "250 2.1.5 <{path}>... Recipient ok\r\n");
    }

    /// DATA: takes the text where somebody is to have it, and also where all recipients were refused, because a
    /// client that does not read replies sends it all the same, and text must never run as commands.
    fn begin_data(&mut self, behind: &[u8], turn: &mut Turn<'_>) -> Option<Action> {
        let Some(transaction) = self.transaction.as_deref_mut().filter(|it| self.chunks.is_none() && !it.is_failed())
        else {
            return self.refuse_text(Reply::BAD_SEQUENCE, behind, turn);
        };
        if transaction.recipients() == 0 {
            if transaction.refused == 0 || self.dialect == Dialect::Lmtp {
                return self.refuse_text(Reply::NO_RECIPIENTS, behind, turn);
            }
            transaction.failure = Some(Reply::NO_VALID_RECIPIENTS);
        }
        self.begin_message(turn);
        self.phase = Phase::Data(DataDecoder::new(Framing::Dot, turn.settings.line_end, self.lf_session));
        Reply::START_MAIL_INPUT.write(turn.replies);
        None
    }

    /// Refuses a message whose text may be on its way already: if octets wait behind the command, they are that text.
    fn refuse_text(&mut self, reply: Reply, behind: &[u8], turn: &mut Turn<'_>) -> Option<Action> {
        if turn.more || !behind.is_empty() {
            return self.turn_away(Reply::TEXT_NOT_COMMANDS, turn.replies);
        }
        reply.write(turn.replies);
        self.text_may_follow = true;
        None
    }

    /// Gives the message its id and writes what stands on top of it.
    fn begin_message(&mut self, turn: &mut Turn<'_>) {
        let Some(transaction) = self.transaction.as_deref_mut() else { return };
        let id = turn.ids.next(turn.now);
        transaction.id = id;
        self.text_may_follow = false;
        if transaction.failure.is_some() {
            return;
        }
        let line_end = turn.settings.line_end.as_str();
        let header = &mut *turn.content;
        let _ = write!(header, "Return-Path: <{}>{line_end}", transaction.reverse_path());
        for forward_path in transaction.forward_paths() {
            let _ = write!(header, "Delivered-To: {forward_path}{line_end}");
        }
        let only = if transaction.recipients() == 1 { transaction.forward_paths().next() } else { None };
        let protocol = match (self.dialect, transaction.smtp_utf8, self.hello, self.logged_in) {
            (Dialect::Lmtp, true, _, true) => "UTF8LMTPA",
            (Dialect::Lmtp, true, _, false) => "UTF8LMTP",
            (Dialect::Lmtp, false, _, true) => "LMTPA",
            (Dialect::Lmtp, false, _, false) => "LMTP",
            (Dialect::Smtp, true, _, true) => "UTF8SMTPA",
            (Dialect::Smtp, true, _, false) => "UTF8SMTP",
            (Dialect::Smtp, false, _, true) => "ESMTPA",
            (Dialect::Smtp, false, Some(Hello::Ehlo), false) => "ESMTP",
            (Dialect::Smtp, false, _, false) => "SMTP",
        };
        let received = Received {
            hello: &self.hello_name,
            peer: self.peer,
            host: &turn.settings.hostname,
            protocol,
            id: &id,
            recipient: only,
            now: turn.now,
        };
        received.write(line_end, header);
    }

    /// Text of a message, up to its end.
    fn data(&mut self, input: &[u8], mut decoder: DataDecoder, turn: &mut Turn<'_>) -> (usize, Option<Action>) {
        let (count, ended) = self.decode(&mut decoder, input, turn.content);
        self.phase = Phase::Data(decoder);
        let refused = self.check_message(&decoder, turn.settings);
        let end = if ended { self.end_message(decoder, turn) } else { None };
        (count, refused.or(end))
    }

    /// Runs the decoder; what it gives counts, and is kept unless the message will be refused.
    fn decode(&mut self, decoder: &mut DataDecoder, input: &[u8], content: &mut Vec<u8>) -> (usize, bool) {
        let Some(transaction) = self.transaction.as_deref_mut() else {
            return decoder.decode(input, &mut |_| {});
        };
        let Transaction { header, failure, .. } = transaction;
        let keep = failure.is_none();
        let (count, ended) = decoder.decode(input, &mut |run| {
            header.scan(run);
            if keep {
                content.extend_from_slice(run);
            }
        });
        transaction.came += count as u64;
        transaction.octets = transaction.came.saturating_sub(decoder.overhead());
        self.lf_session = self.lf_session && decoder.lf_session();
        (count, ended)
    }

    /// Decides as early as possible that a message will be refused; what there is of it can be dropped then.
    fn check_message(&mut self, decoder: &DataDecoder, settings: &Settings) -> Option<Action> {
        let transaction = self.transaction.as_deref_mut()?;
        if transaction.failure.is_some() {
            return None;
        }
        transaction.failure = if transaction.octets > settings.message_octets_max {
            Some(Reply::MESSAGE_TOO_LARGE)
        } else if transaction.header.is_mail_loop() {
            Some(Reply::MAIL_LOOP)
        } else if settings.bare_newline == BareNewline::Reject && decoder.bare_newline_seen() {
            Some(Reply::BARE_NEWLINE)
        } else {
            None
        };
        transaction.failure.map(|_| Action::Discard)
    }

    /// The end of a message: refuses it, or gives it away.
    fn end_message(&mut self, mut decoder: DataDecoder, turn: &mut Turn<'_>) -> Option<Action> {
        self.chunks = None;
        if let Some(failure) = self.transaction.as_ref().and_then(|transaction| transaction.failure) {
            self.delivered(Outcome::Refused(failure), turn.spare, turn.replies);
            return None;
        }
        decoder.finish(&mut |run| turn.content.extend_from_slice(run));
        if turn.settings.bare_newline == BareNewline::Reject && decoder.bare_newline_seen() {
            // The last octet of the last chunk was a CR.
            self.delivered(Outcome::Refused(Reply::BARE_NEWLINE), turn.spare, turn.replies);
            return Some(Action::Discard);
        }
        self.phase = Phase::Delivering;
        Some(Action::Deliver)
    }

    /// Octets of a BDAT chunk. Those of a chunk that can't be taken are dropped, and only then answered.
    fn chunk(
        &mut self,
        input: &[u8],
        left: u64,
        last: bool,
        announced: u64,
        turn: &mut Turn<'_>,
    ) -> (usize, Option<Action>) {
        let open = self.transaction.as_ref().is_some_and(|it| it.recipients() > 0 && !it.is_failed());
        if open && self.chunks.is_none() {
            self.begin_message(turn);
            self.chunks = Some(DataDecoder::new(Framing::Chunk, turn.settings.line_end, self.lf_session));
        }
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        let octets = input.get(..count).unwrap_or_default();
        let left = left - count as u64;
        self.phase = Phase::Chunk { left, last, announced };
        let Some(mut decoder) = self.chunks else {
            // The line-end lock sees these octets, too.
            self.note_line_end(octets);
            if left > 0 {
                return (count, Some(Action::Read));
            }
            self.phase = Phase::Command;
            let Some(transaction) = self.transaction.as_deref_mut() else {
                Reply::BAD_SEQUENCE.write(turn.replies);
                return (count, None);
            };
            // Part of the message is lost, so no other part may be taken for the whole (RFC 3030 2).
            transaction.failure.get_or_insert(Reply::NO_RECIPIENTS).write(turn.replies);
            return (count, None);
        };
        if !self.lf_session {
            decoder.end_lf_session();
        }
        self.decode(&mut decoder, octets, turn.content);
        self.chunks = Some(decoder);
        if let Some(action) = self.check_message(&decoder, turn.settings) {
            return (count, Some(action));
        }
        if left > 0 {
            return (count, Some(Action::Read));
        }
        if last {
            return (count, self.end_message(decoder, turn));
        }
        self.phase = Phase::Command;
        match self.transaction.as_ref().and_then(|transaction| transaction.failure) {
            Some(failure) => failure.write(turn.replies),
            None => {
                let _ = write!(turn.replies, "250 2.0.0 {announced} octets received\r\n");
            }
        }
        (count, None)
    }

    /// AUTH where any name and password will do (RFC 4954; the challenges of LOGIN are what devices compare with).
    fn auth(&mut self, mechanism: &str, initial_response: Option<&str>, replies: &mut Vec<u8>) -> Option<Action> {
        if self.logged_in || self.transaction.is_some() {
            Reply::BAD_SEQUENCE.write(replies);
            return None;
        }
        let login = if mechanism.eq_ignore_ascii_case("PLAIN") {
            Login::Plain
        } else if mechanism.eq_ignore_ascii_case("LOGIN") {
            Login::UserName
        } else {
            Reply::MECHANISM_UNKNOWN.write(replies);
            return None;
        };
        match initial_response {
            Some(response) => self.login(login, response.as_bytes(), replies),
            None => {
                self.challenge(login, replies);
                None
            }
        }
    }

    fn challenge(&mut self, login: Login, replies: &mut Vec<u8>) {
        self.phase = Phase::Login(login);
        let challenge = match login {
            Login::Plain => Reply::CHALLENGE_EMPTY,
            Login::UserName => Reply::CHALLENGE_USER_NAME,
            Login::Password => Reply::CHALLENGE_PASSWORD,
        };
        challenge.write(replies);
    }

    fn login(&mut self, login: Login, response: &[u8], replies: &mut Vec<u8>) -> Option<Action> {
        self.phase = Phase::Command;
        if response == b"*" {
            Reply::LOGIN_CANCELLED.write(replies);
        } else if !is_base64(response) {
            Reply::LOGIN_MALFORMED.write(replies);
        } else if login == Login::UserName {
            self.challenge(Login::Password, replies);
        } else {
            self.logged_in = true;
            Reply::LOGIN_ACCEPTED.write(replies);
        }
        None
    }

    /// Ends a transaction before its time; the chunks that came of its message are to be dropped.
    fn abort_transaction(&mut self, spare: &mut Spare) -> Option<Action> {
        let begun = self.chunks.is_some();
        self.end_transaction(spare);
        begun.then_some(Action::Discard)
    }

    fn end_transaction(&mut self, spare: &mut Spare) {
        self.chunks = None;
        if let Some(transaction) = self.transaction.take() {
            spare.keep(transaction);
        }
    }
}

/// Whether `text` is base64 (RFC 4648 4); `=` alone is the empty response of RFC 4954.
fn is_base64(text: &[u8]) -> bool {
    if text == b"=" {
        return true;
    }
    let digits = text.iter().rev().skip_while(|&&octet| octet == b'=').count();
    let digit = |octet: &u8| octet.is_ascii_alphanumeric() || matches!(octet, b'+' | b'/');
    text.len() % 4 == 0 && text.len() - digits <= 2 && text.iter().take(digits).all(digit)
}
