//! What clients sent and were told, and whether what lies in the Maildirs agrees with that. Knows nothing of the server but
//! its promises.

use super::model::hand::Found;
use super::model::trace::behind_trace;
use super::socket::Pipe;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// Where mail goes in a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// All into the one Maildir, number 0.
    One,
    /// `a`, `b` and `c` have the Maildirs 1, 2 and 3.
    Mailboxes,
    /// That, and a table of recipients, of which there are two versions.
    Table,
}

/// The two versions of the table, the second of which is read when the server is told to.
pub const TABLES: [&str; 2] = [
    "both@example a@example, b@example\nall@example a@example, b@example, c@example\n\
     path@example /mail/c\nsink@example discard\nno@example reject\n",
    "both@example b@example, c@example\nall@example a@example, b@example, c@example\n\
     path@example /mail/a\nsink@example discard\nno@example reject\n",
];

/// Users that a client may write to; the last few only some layouts know.
pub const USERS: [&str; 10] = ["a", "b", "c", "a+tag", "nobody", "both", "all", "path", "sink", "no"];

impl Layout {
    /// The Maildirs of a user; `None` where there is no such user.
    pub fn places(self, table: usize, user: &str) -> Option<&'static [usize]> {
        Some(match (self, user, table) {
            (Self::One, ..) => &[0],
            (_, "a" | "a+tag", _) => &[1],
            (_, "b", _) => &[2],
            (_, "c", _) => &[3],
            (Self::Table, "both", 0) => &[1, 2],
            (Self::Table, "both", _) => &[2, 3],
            (Self::Table, "all", _) => &[1, 2, 3],
            (Self::Table, "path", 0) => &[3],
            (Self::Table, "path", _) => &[1],
            (Self::Table, "sink", _) => &[],
            _ => return None,
        })
    }
}

/// What a recipient was told at the end of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Stored under this id.
    Stored(String),
    /// The disk would not have it.
    Failed,
    /// It was refused for what it is.
    Refused,
}

pub struct Recipient {
    pub user: &'static str,
    /// Whether the server took it, once that is known.
    pub taken: Option<bool>,
    /// The versions of the table that were in force between the command and its answer.
    pub tables: [bool; 2],
    pub verdict: Option<Verdict>,
}

/// One message as a client sent it, or tried to.
pub struct Attempt {
    pub lmtp: bool,
    /// As it is to be stored, behind the trace lines.
    pub text: Rc<Vec<u8>>,
    pub recipients: Vec<Recipient>,
    /// The reply to it, where nothing goes wrong.
    pub expected: &'static str,
    /// The connection, and how many of its octets the server must have read to have all of the message.
    pub end: Option<(Rc<RefCell<Pipe>>, u64)>,
}

/// Whether a message is in a Maildir.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Presence {
    Never,
    May,
    Must,
}

pub struct Book {
    pub layout: Layout,
    pub attempts: Vec<Attempt>,
    pub table: usize,
    /// Final replies that said 250.
    pub promises: usize,
    /// The disk was not always well, so mail may be refused.
    pub faulty: bool,
    /// Something kept the server from removing files of refused messages.
    pub untidy: bool,
    /// Somebody reads the mail, and may move a message before its flush fails.
    pub reader: bool,
    /// Messages may be in a journal before they are in their Maildirs; whether some are.
    pub journaled: bool,
    pub unpublished: bool,
    /// One may be there twice: a reader moved it before its flush failed, or it could not be removed then.
    doubles: bool,
    /// Messages in the Maildirs of this disk that were read: by file and length, as octets are only added.
    known: HashMap<(usize, usize), usize>,
}

impl Book {
    pub fn new(layout: Layout) -> Self {
        let (attempts, known) = (Vec::new(), HashMap::new());
        let (faulty, untidy, reader, journaled, unpublished, doubles) = Default::default();
        let (table, promises) = (0, 0);
        Self { layout, attempts, table, promises, faulty, untidy, reader, journaled, unpublished, doubles, known }
    }

    /// The sender of a message, by which its file is recognized.
    pub fn sender(attempt: usize) -> String {
        format!("m{attempt}@sender.example")
    }

    /// Another disk has other files.
    pub fn forget_files(&mut self) {
        self.known.clear();
    }

    /// A message that is begun; its number.
    pub fn begin(&mut self, lmtp: bool, text: Vec<u8>, expected: &'static str, users: &[&'static str]) -> usize {
        let recipient = |&user| Recipient { user, taken: None, tables: [false; 2], verdict: None };
        let recipients = users.iter().map(recipient).collect();
        self.attempts.push(Attempt { lmtp, text: Rc::new(text), recipients, expected, end: None });
        self.attempts.len() - 1
    }

    /// How many recipients of a message the server is known to have taken.
    pub fn taken(&self, attempt: usize) -> usize {
        self.attempts[attempt].recipients.iter().filter(|it| it.taken == Some(true)).count()
    }

    /// Notes the answer to RCPT; whether it is one that may be given.
    pub fn note_recipient(&mut self, attempt: usize, index: usize, code: &str) -> bool {
        let recipient = &mut self.attempts[attempt].recipients[index];
        recipient.taken = Some(code == "250");
        let known = (0..2).any(|it| recipient.tables[it] && self.layout.places(it, recipient.user).is_some());
        match code {
            "250" => known,
            "550" => !known || self.faulty,
            "451" | "452" | "503" => self.faulty,
            _ => false,
        }
    }

    /// Notes what a message came to, for all its recipients, or under LMTP for one; whether it is what may be.
    pub fn note_end(&mut self, attempt: usize, index: usize, line: &str) -> bool {
        let (code, rest) = line.split_at(3);
        let id = rest.split(' ').nth(2).unwrap_or_default();
        let verdict = match code {
            "250" => Verdict::Stored(id.to_owned()),
            "451" | "452" => Verdict::Failed,
            _ => Verdict::Refused,
        };
        self.promises += usize::from(code == "250");
        let it = &mut self.attempts[attempt];
        let taken = it.recipients.iter_mut().filter(|recipient| recipient.taken == Some(true));
        let which = if it.lmtp { index..index + 1 } else { 0..usize::MAX };
        taken.enumerate().filter(|(at, _)| which.contains(at)).for_each(|(_, it)| it.verdict = Some(verdict.clone()));
        code == it.expected || it.expected == "250" && verdict == Verdict::Failed && self.faulty
    }

    /// Another table is in force: who has not been answered yet may be looked up in either.
    pub fn reload(&mut self) {
        self.table = 1 - self.table;
        let recipients = self.attempts.iter_mut().flat_map(|attempt| &mut attempt.recipients);
        for it in recipients.filter(|it| it.taken.is_none() && it.tables != [false; 2]) {
            it.tables[self.table] = true;
        }
    }

    fn is_whole(&self, attempt: usize) -> bool {
        self.attempts[attempt].end.as_ref().is_some_and(|(pipe, octets)| pipe.borrow().read >= *octets)
    }

    /// Whether a message is in a Maildir. One that the disk refused a power cut may leave.
    fn presence(&self, attempt: usize, maildir: usize, after_cut: bool) -> Presence {
        if !self.is_whole(attempt) {
            return Presence::Never;
        }
        let it = &self.attempts[attempt];
        let lenient = after_cut || self.untidy || self.reader;
        let of = |recipient: &Recipient| {
            let tables = (0..2).filter(|&table| recipient.tables[table]);
            let places: Vec<_> =
                tables.map(|table| self.layout.places(table, recipient.user).unwrap_or_default()).collect();
            let inside = |places: &&[usize]| places.contains(&maildir);
            if recipient.taken == Some(false) || !places.iter().any(&inside) {
                return Presence::Never;
            }
            match &recipient.verdict {
                None => Presence::May,
                Some(Verdict::Stored(_)) if places.iter().all(&inside) && !self.unpublished => Presence::Must,
                Some(Verdict::Stored(_)) => Presence::May,
                // In LMTP the other mailboxes of an alias may have it.
                Some(Verdict::Failed) if lenient || it.lmtp && places[0].len() > 1 => Presence::May,
                Some(_) => Presence::Never,
            }
        };
        it.recipients.iter().map(of).max().unwrap_or(Presence::Never)
    }

    /// Whether a message must be in a Maildir.
    pub fn is_promised(&self, maildir: usize, attempt: usize) -> bool {
        self.presence(attempt, maildir, false) == Presence::Must
    }

    /// Which message a file is, if it is whole and as it was sent.
    fn recognize(&mut self, file: &Found) -> Result<usize, String> {
        if let Some(&attempt) = self.known.get(&(file.inode, file.octets.len())) {
            return Ok(attempt);
        }
        let wrong = |what: &str| {
            let start = String::from_utf8_lossy(&file.octets[..file.octets.len().min(120)]).into_owned();
            Err(format!("{}, {} octets, {what}: {start:?}", file.name, file.octets.len()))
        };
        let name = file.name.strip_suffix(":2,S").unwrap_or(&file.name);
        if !name.ends_with(&format!(",S={}", file.octets.len())) {
            return wrong("has not the size in its name");
        }
        let Some(text) = behind_trace(&file.octets) else { return wrong("has no trace lines") };
        let header = String::from_utf8_lossy(&file.octets[..file.octets.len() - text.len()]).into_owned();
        let sender = header.strip_prefix("Return-Path: <m").and_then(|rest| rest.split_once("@sender.example>\n"));
        let attempt = sender.and_then(|(number, _)| number.parse::<usize>().ok());
        let Some(attempt) = attempt.filter(|&number| number < self.attempts.len()) else {
            return wrong("is from nobody");
        };
        let it = &self.attempts[attempt];
        if text != it.text.as_slice() {
            let same = text.iter().zip(it.text.iter()).take_while(|(found, sent)| found == sent).count();
            return wrong(&format!("is not message {attempt} of {} octets from octet {same} on", it.text.len()));
        }
        for line in header.lines().filter_map(|line| line.strip_prefix("Delivered-To: ")) {
            let mut taken = it.recipients.iter().filter(|recipient| recipient.taken != Some(false));
            if !taken.any(|recipient| format!("{}@example", recipient.user) == line) {
                return wrong(&format!("was not for {line}"));
            }
        }
        self.known.insert((file.inode, file.octets.len()), attempt);
        Ok(attempt)
    }

    /// Compares what is in the Maildirs with what was sent and promised; `None` for one that can't be looked into now.
    pub fn judge(&mut self, maildirs: &[Option<Vec<Found>>], after_cut: bool) -> Result<(), String> {
        self.doubles |= self.journaled && self.faulty && (self.reader || self.untidy);
        for (maildir, files) in maildirs.iter().enumerate() {
            let Some(files) = files else { continue };
            let mut found = BTreeMap::new();
            for file in files {
                let attempt = self.recognize(file).map_err(|wrong| format!("Maildir {maildir}: {wrong}"))?;
                let (inode, _) = *found.entry(attempt).or_insert((file.inode, &file.name));
                if inode != file.inode && !self.doubles {
                    return Err(format!("Maildir {maildir} has message {attempt} twice"));
                }
            }
            for attempt in 0..self.attempts.len() {
                let file = found.get(&attempt);
                match (self.presence(attempt, maildir, after_cut), file) {
                    (Presence::Must, None) => {
                        return Err(format!("message {attempt} was promised and is not in Maildir {maildir}"));
                    }
                    (Presence::Never, Some(_)) if !self.is_whole(attempt) => {
                        return Err(format!("message {attempt} was never finished and is in Maildir {maildir}"));
                    }
                    (Presence::Never, Some(_)) => {
                        return Err(format!(
                            "message {attempt} was refused or is not for Maildir {maildir}, and is there"
                        ));
                    }
                    (Presence::Must, Some((_, name))) if !self.doubles => {
                        let mut verdicts =
                            self.attempts[attempt].recipients.iter().filter_map(|it| it.verdict.as_ref());
                        if !verdicts.any(|verdict| matches!(verdict, Verdict::Stored(id) if name.contains(id.as_str())))
                        {
                            return Err(format!("message {attempt} is {name}, which is not what was told"));
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
