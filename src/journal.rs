//! The journal: a file in front of the Maildirs that is only overwritten, so that one flush makes a group of messages safe.
//!
//! `.mailchute-journal.N` has two halves: one is filled while what the other holds is published. All numbers have 64 bits
//! unless said, the lowest octet first; checksums are XXH64, blocks have 4,096 octets.
//!
//! * A half's first two blocks bear its state, written in turn: 16 octets `mailchute 00001\n` with the version, the
//!   generation, the number below which all records are published (with the highest bit: and none has a higher one), a
//!   random seed, and the checksum (with seed 0) of that. The valid one with the higher generation counts, then the one
//!   with the higher number.
//! * Then groups of records, each group from a new block on, each record at a multiple of 32 octets. A record: the
//!   checksum, with the half's seed, of all behind it; the generation; its number, one more than that of the one before
//!   (both are random at first); its length and that of its names (32 bits each); a unique name as far as the host's, and
//!   the destinations, a zero behind each; the message.
//!
//! A block with an answered record is not written again before all of its half are in their Maildirs, on the disk: then the half
//! has a new generation, whose state is flushed before its first record.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::ffi::CStr;
use std::fmt::Write as _;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::{error, info, warn};
use xxhash_rust::xxh64::xxh64;

use crate::config::{BLOCK_OCTETS, Config};
use crate::delivery::{ANSWERED, FLUSHES_MAX, Now, Store, first_free};
use crate::fs::{Disk, FileSystem, Flush, SyncMode, Ticket};
use crate::maildir::{Directories, MAIN_KEY, Maildir, Maildirs, Name, PathError};
use crate::smtp::reply::Reply;
use crate::smtp::trace::MessageId;

/// The ticket of its flushes, which no message has.
pub(crate) const TICKET: Ticket = Ticket::MAX;
/// What ends each name in a record.
const SEPARATOR: char = '\0';
/// Added to the number of a state when the process ended and no record is left.
const EMPTY: u64 = 1 << 63;
const PREFIX: &str = ".mailchute-journal.";
/// The first octets of a state; what all versions have ends at the blank.
const MAGIC: &[u8; 16] = b"mailchute 00001\n";
const BLOCK: u64 = 4096;
const STATE_OCTETS: usize = 48;
/// The largest journal.
pub const OCTETS_MAX: u64 = 1 << 30;
/// Octets of a record before its names.
const HEAD_OCTETS: usize = 32;
/// The longest record: all destinations that a message may have, and a block.
const RECORD_MAX: usize = 8 * BLOCK_OCTETS;
/// Octets of a group; a message that does not fit goes the plain way.
const GROUP_MAX: usize = RECORD_MAX;
/// A message after so long a silence goes the plain way: an alert that comes alone is written once.
const QUIET: Duration = Duration::from_secs(1);
/// How long no message has finished, or how long one has waited, before what is answered is published.
const PAUSE: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_millis(200);
/// Messages that are published without waiting for that.
const PUBLISHED_AT_ONCE: usize = 64;
/// Messages in it that are not published; more go the plain way.
const LIVE_MAX: usize = 512;
/// Flushes of files under way up to which more of these are begun: others do not wait behind all.
const PUBLISHED_TOGETHER: usize = 96;
/// Octets of zeros that a turn writes into a new one.
const FILLED_AT_ONCE: usize = 64 * 1024;
/// How long after an error what failed is published again, and another journal made.
const RETRY: Duration = Duration::from_secs(1);
const REST: Duration = Duration::from_secs(10);

/// The state of a half.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    generation: u64,
    /// All records with a lower number are published.
    published: u64,
    seed: u64,
}

impl State {
    fn encode(self) -> [u8; STATE_OCTETS] {
        let mut octets = [0; STATE_OCTETS];
        octets[..16].copy_from_slice(MAGIC);
        let numbers = [self.generation, self.published, self.seed];
        octets[16..40].copy_from_slice(numbers.map(u64::to_le_bytes).as_flattened());
        let checksum = xxh64(&octets[..40], 0);
        octets[40..].copy_from_slice(&checksum.to_le_bytes());
        octets
    }

    fn decode(octets: &[u8; STATE_OCTETS]) -> Option<Self> {
        let valid = octets.starts_with(MAGIC) && xxh64(&octets[..40], 0) == number(octets, 40);
        valid.then(|| Self { generation: number(octets, 16), published: number(octets, 24), seed: number(octets, 32) })
    }
}

fn number(octets: &[u8], at: usize) -> u64 {
    octets.get(at..at + 8).and_then(|octets| octets.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Where a record is, and in which half.
#[derive(Clone, Copy)]
pub(crate) struct Record {
    offset: u64,
    octets: usize,
    half: usize,
    number: u64,
}

#[derive(Default)]
struct Half {
    state: State,
    states_written: u64,
    /// The flush that makes its first state durable.
    durable_with: u64,
    /// Where its records begin and end at most, and where the next group goes.
    start: u64,
    end: u64,
    free: u64,
    /// Records that are not published.
    live: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    /// There is none; from then on it may be made.
    Absent(Option<Instant>),
    /// So many octets of it are there, all zeros.
    Filling(u64),
    Ready,
    /// It takes nothing more, and goes when all is published that it has answered.
    Failed,
}

/// A message whose publication failed: from its record it goes to these destinations again.
type Unpublished = (MessageId, Option<Record>, Vec<String>);

/// The journal of this process, and the messages that are in it.
pub(crate) struct Journal<F: FileSystem> {
    /// Where it lies: in the main Maildir, or in the directory of mailboxes.
    root: F::Directory,
    path: PathBuf,
    name: Name,
    file: Option<F::File>,
    /// How long it is to be; 0 for none.
    octets: u64,
    stage: Stage,
    halves: [Half; 2],
    filling: usize,
    /// That of the next record.
    number: u64,
    /// What is written next, the messages in it, and those of the flush under way.
    group: Vec<u8>,
    staged: Vec<usize>,
    flushing: Vec<usize>,
    /// Flushes of the file that were begun, and those under way.
    flushes: u64,
    in_flight: usize,
    failure: Option<io::Error>,
    /// A state was written and not flushed.
    dirty: bool,
    /// Messages that are answered, and since when there are.
    answered: Vec<usize>,
    since: Option<Instant>,
    /// Those that are being published, and how many are not yet.
    publishing: Vec<usize>,
    unpublished: usize,
    /// Those whose publication failed, and when it is tried again.
    failed: Vec<Unpublished>,
    retry: Option<Instant>,
    /// Room was what they lacked.
    pub(crate) lacks_room: bool,
    /// When the last message finished.
    finished: Option<Instant>,
}

impl<F: FileSystem> Journal<F> {
    /// Finds out whether there is to be one. It is made when messages come in a burst for the first time.
    pub(crate) fn open(fs: &mut F, config: &Config) -> Result<Self, PathError> {
        let path = config.mailboxes.as_ref().unwrap_or(&config.maildir).clone();
        let root = fs.open_directory(&path, false).map_err(|error| (path.clone(), error))?;
        let wanted = config.sync == SyncMode::Journal;
        let octets = if wanted && fs.suits_journal(&root) { config.journal_octets / 2 / BLOCK * 2 * BLOCK } else { 0 };
        if wanted && octets == 0 {
            info!("no journal: the file system of {} does not suit one; --sync always", path.display());
        }
        Ok(Self {
            root,
            path,
            name: Name::default(),
            file: None,
            octets,
            stage: Stage::Absent(None),
            halves: Default::default(),
            filling: 0,
            number: 1,
            group: Vec::new(),
            staged: Vec::new(),
            flushing: Vec::new(),
            flushes: 0,
            in_flight: 0,
            failure: None,
            dirty: false,
            answered: Vec::new(),
            since: None,
            publishing: Vec::new(),
            unpublished: 0,
            failed: Vec::new(),
            retry: None,
            lacks_room: false,
            finished: None,
        })
    }

    /// Whether it holds nothing that is to go anywhere, and has said so durably.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight == 0 && !self.dirty && self.failed.is_empty()
    }

    /// Whether there is none, nor anything to be done about that.
    pub(crate) fn is_at_rest(&self) -> bool {
        matches!(self.stage, Stage::Absent(_)) && self.failed.is_empty() && self.failure.is_none()
    }

    /// The flush of some directory failed. What it loses may be the name of a file that is being made; and no later flush tells.
    pub(crate) fn doubt(&mut self) {
        if matches!(self.stage, Stage::Filling(_)) {
            self.failure.get_or_insert_with(|| io::Error::other("its name may be lost"));
        }
    }

    /// Messages that are in it and not published.
    pub(crate) fn waiting(&self) -> usize {
        self.halves.iter().map(|half| half.live).sum()
    }

    /// Whether no message has finished for a moment.
    pub(crate) fn is_quiet(&self, now: Now) -> bool {
        self.finished.is_none_or(|finished| now.instant >= finished + QUIET / 2)
    }

    /// Gives up memory that was kept for a next large group.
    pub(crate) fn trim(&mut self) {
        self.group.shrink_to(BLOCK as usize);
    }

    /// When there is something to do without an event.
    pub(crate) fn next(&self) -> Option<Instant> {
        let due = self.since.map(|since| self.finished.map_or(since, |it| (it + PAUSE).min(since + PATIENCE)));
        due.filter(|_| self.unpublished == 0).into_iter().chain(self.retry).min()
    }

    /// Takes a message into the next group, where there is room.
    fn stage<'a>(
        &mut self, id: &'a MessageId, destinations: impl Iterator<Item = &'a str> + Clone, content: &[u8],
    ) -> Option<Record> {
        let names = || std::iter::once(id.unique_name.as_str()).chain(destinations.clone());
        let names_octets: usize = names().map(|name| name.len() + 1).sum();
        let (before, octets) = (self.group.len(), HEAD_OCTETS + names_octets + content.len());
        let fits = |half: &Half| half.free + (before + octets) as u64 <= half.end && before + octets <= GROUP_MAX;
        let other = &self.halves[1 - self.filling];
        let is_durable = other.durable_with + u64::from(self.in_flight > 0) <= self.flushes;
        if before == 0 && !fits(&self.halves[self.filling]) && other.free == other.start && is_durable {
            self.filling = 1 - self.filling;
        }
        let half = self.halves.get(self.filling).filter(|half| fits(half))?;
        // The checksum comes last.
        let head = [0, half.state.generation, self.number, (names_octets as u64) << 32 | octets as u64];
        self.group.extend_from_slice(head.map(u64::to_le_bytes).as_flattened());
        for name in names() {
            self.group.extend_from_slice(name.as_bytes());
            self.group.push(0);
        }
        self.group.extend_from_slice(content);
        let checksum = xxh64(&self.group[before + 8..], half.state.seed);
        self.group[before..before + 8].copy_from_slice(&checksum.to_le_bytes());
        self.group.resize(self.group.len().next_multiple_of(HEAD_OCTETS), 0);
        self.number += 1;
        let (offset, number) = (half.free + before as u64, self.number - 1);
        Some(Record { offset, octets, half: self.filling, number })
    }

    /// Writes some of a new file's zeros, or the next group, and begins the flush that makes it safe: of the zeros when all
    /// are there, and of a state when idle.
    fn begin_flush(&mut self, fs: &mut F) -> io::Result<()> {
        let (Some(file), 0) = (&mut self.file, self.in_flight) else { return Ok(()) };
        match self.stage {
            Stage::Filling(filled) if filled < self.octets => {
                self.group.resize(FILLED_AT_ONCE.min((self.octets - filled) as usize), 0);
                fs.write(file, &self.group)?;
                self.stage = Stage::Filling(filled + self.group.len() as u64);
                self.group.clear();
                return Ok(());
            }
            Stage::Filling(_) => {
                self.renew(fs, 0)?;
                self.renew(fs, 1)?;
                fs.begin_flush(Flush::Directory(&self.root), TICKET);
                self.in_flight += 1;
            }
            Stage::Ready if !self.staged.is_empty() => {
                std::mem::swap(&mut self.staged, &mut self.flushing);
                let half = &mut self.halves[self.filling];
                half.live += self.flushing.len();
                self.group.resize(self.group.len().next_multiple_of(BLOCK as usize), 0);
                fs.write_at(file, &self.group, half.free)?;
                half.free += self.group.len() as u64;
                self.group.clear();
            }
            Stage::Ready if self.dirty && self.answered.is_empty() && self.unpublished == 0 => {}
            _ => return Ok(()),
        }
        let Some(file) = &self.file else { return Ok(()) };
        fs.begin_flush(Flush::File(file), TICKET);
        (self.flushes, self.in_flight, self.dirty) = (self.flushes + 1, self.in_flight + 1, false);
        Ok(())
    }

    /// Makes the file, under the first number that is free.
    fn make(&mut self, fs: &mut F) -> io::Result<()> {
        // A descriptor tells of an error once; and the directory may be another by now.
        self.root = fs.open_directory(&self.path, false)?;
        let (_, (file, _)) = first_free(0, |number| {
            self.name = Name::new(&[PREFIX, itoa::Buffer::new().format(number)]);
            // One that another process locked before we did is its own.
            Ok(fs.open_journal(&self.root, self.name.as_c_str(), true)?.ok_or(io::ErrorKind::AlreadyExists)?)
        })?;
        // No text, nor its end with zeros behind it, may look like a generation or a number.
        let random = RandomState::new().hash_one(self.flushes) >> 2;
        self.adopt(file, 0, (random, random));
        Ok(())
    }

    /// Goes on with a file of which so many octets are there. Both halves will begin anew, with higher generations and
    /// numbers than what is in it has.
    fn adopt(&mut self, file: F::File, filled: u64, (generation, number): (u64, u64)) {
        (self.file, self.stage, self.filling) = (Some(file), Stage::Filling(filled), 0);
        self.number = self.number.max(number + 1);
        for (half, base) in self.halves.iter_mut().zip([0, self.octets / 2]) {
            *half = Half { start: base + 2 * BLOCK, end: base + self.octets / 2, ..Half::default() };
            half.state.generation = generation;
        }
    }

    /// Has a half begin anew, in which all is published.
    fn renew(&mut self, fs: &mut F, index: usize) -> io::Result<()> {
        let generation = self.halves.iter().map(|half| half.state.generation).max().unwrap_or(0) + 1;
        let half = &mut self.halves[index];
        half.state = State { generation, published: self.number, seed: RandomState::new().hash_one(generation) };
        (half.free, half.durable_with) = (half.start, self.flushes + 1);
        self.write_state(fs, index)?;
        self.write_state(fs, index)
    }

    fn write_state(&mut self, fs: &mut F, index: usize) -> io::Result<()> {
        let half = &mut self.halves[index];
        half.states_written += 1;
        let offset = half.start - BLOCK * (1 + half.states_written % 2);
        self.dirty = true;
        self.file.as_ref().map_or(Ok(()), |file| fs.write_at(file, &half.state.encode(), offset))
    }

    /// Notes in the states below which number all is `published`; free halves begin anew.
    fn settle(&mut self, fs: &mut F, published: u64) -> io::Result<()> {
        for index in 0..self.halves.len() {
            let half = &mut self.halves[index];
            if half.live == 0 && half.free > half.start && index != self.filling {
                self.renew(fs, index)?;
            } else if half.free > half.start {
                half.state.published = published;
                self.write_state(fs, index)?;
            }
        }
        Ok(())
    }
}

impl<F: FileSystem> Store<F> {
    /// Has the journal take a message, all of whose octets are `content`; else it goes the plain way.
    pub(crate) fn journals(&mut self, key: usize, content: &[u8], now: Now) -> bool {
        // Who is answered may go on at once: with the plain way senders wait while too many files are open.
        let is_full = self.is_full();
        let journal = &mut self.journal;
        let Some(delivery) = self.deliveries.get_mut(key).filter(|it| it.owner < ANSWERED) else { return false };
        let last = journal.finished.replace(now.instant);
        if journal.octets == 0 || last.is_none_or(|last| now.instant >= last + QUIET) {
            return false;
        }
        let live = journal.waiting() + journal.staged.len();
        if journal.stage == Stage::Ready && live < LIVE_MAX && !is_full {
            let open = &self.maildirs.open;
            let copies = delivery.copies.iter().filter(|copy| copy.failure.is_none());
            let destinations = copies.filter_map(|copy| Some(open.get(copy.maildir)?.destination.as_str()));
            delivery.record = journal.stage(&delivery.id, destinations, content);
            match delivery.record {
                Some(_) => journal.staged.push(key),
                // It is full: what is published makes room.
                None => journal.since = journal.since.and(now.instant.checked_sub(PATIENCE)),
            }
            return delivery.record.is_some();
        }
        let may_be_made = matches!(journal.stage, Stage::Absent(from) if from.is_none_or(|from| now.instant >= from));
        if may_be_made && self.maildirs.room > journal.octets {
            journal.failure = journal.make(&mut self.maildirs.fs).err();
        }
        false
    }

    /// Goes on with making the journal, with what is to be published, and with the next group.
    pub(crate) fn advance_journal(&mut self, now: Now) {
        if self.journal.is_at_rest() {
            return;
        }
        let is_due = self.journal.next().is_some_and(|due| now.instant >= due);
        if self.journal.retry.take_if(|retry| now.instant >= *retry).is_some() {
            self.journal.lacks_room = false;
            let main = &self.maildirs.open[MAIN_KEY];
            if main.failed && main.flushes == 0 {
                let _ = self.maildirs.open_main();
            }
            for index in 0..self.journal.failed.len() {
                if index == 0 || !self.is_full() {
                    self.publish_again(now);
                }
            }
        }
        if !self.journal.failed.is_empty() {
            self.journal.retry.get_or_insert(now.instant + RETRY);
        }
        let (journal, fs) = (&mut self.journal, &mut self.maildirs.fs);
        let begun = journal.failure.take_if(|_| journal.in_flight == 0).map_or_else(|| journal.begin_flush(fs), Err);
        self.check_journal(begun, now);
        let journal = &mut self.journal;
        let many = journal.answered.len() >= PUBLISHED_AT_ONCE || self.files * 2 > self.files_max;
        if journal.unpublished == 0 && (is_due || many || journal.stage == Stage::Failed) {
            std::mem::swap(&mut journal.answered, &mut journal.publishing);
            (journal.since, journal.unpublished) = (None, journal.publishing.len());
        }
        let room = PUBLISHED_TOGETHER.saturating_sub(self.flushes + self.written.len());
        self.written.extend(journal.publishing.drain(..room.min(journal.publishing.len())));
        if journal.stage == Stage::Failed && journal.waiting() == 0 {
            if journal.file.take().is_some() {
                // What stays behind is recovered at the next start.
                let _ = self.maildirs.fs.remove(&journal.root, journal.name.as_c_str());
            }
            journal.stage = Stage::Absent(Some(now.instant + REST));
        }
    }

    /// A group is safe, or a new journal ready; or neither is.
    pub(crate) fn journal_flushed(&mut self, result: io::Result<()>, now: Now) {
        let journal = &mut self.journal;
        journal.in_flight -= 1;
        journal.failure = journal.failure.take().or(result.err());
        if journal.in_flight > 0 || journal.failure.is_some() {
            return;
        }
        if matches!(journal.stage, Stage::Filling(_)) {
            // It takes messages from now on, and there is memory for as many as it can have.
            journal.stage = Stage::Ready;
            let Journal { staged, flushing, answered, publishing, .. } = journal;
            let Maildir { moved, flushing: moving, .. } = &mut self.maildirs.open[MAIN_KEY];
            for list in [staged, flushing, answered, publishing, &mut self.written, moved, moving] {
                list.reserve(LIVE_MAX);
            }
            self.deliveries.reserve(LIVE_MAX);
            self.spare.resize_with(LIVE_MAX.max(self.spare.len()), || Vec::with_capacity(1));
        }
        // Outcomes are taken from the last on, so that who came first hears first.
        for index in (0..self.journal.flushing.len()).rev() {
            self.tell(self.journal.flushing[index]);
            self.journal.since.get_or_insert(now.instant);
        }
        let Journal { answered, flushing, .. } = &mut self.journal;
        answered.append(flushing);
    }

    /// After an error the journal takes nothing more: what it has not answered is refused, or goes the plain way.
    fn check_journal(&mut self, done: io::Result<()>, now: Now) {
        let Err(error) = done else { return };
        let doing = "the journal; until there is another, each message is flushed by itself";
        self.maildirs.complain(&self.journal.path, doing, &error, now);
        let journal = &mut self.journal;
        (journal.stage, journal.dirty) = (Stage::Failed, false);
        journal.group.clear();
        self.written.append(&mut journal.staged);
        for key in std::mem::take(&mut journal.flushing) {
            let Some(delivery) = self.deliveries.get_mut(key) else { continue };
            self.journal.halves[delivery.record.take().map_or(0, |record| record.half)].live -= 1;
            // No mailbox of it is at fault.
            delivery.apart = true;
            delivery.fail("flush of the journal", &error, &|_| true, &mut self.maildirs, now);
            self.end(key);
        }
    }

    /// Notes that a message is safe in its Maildirs, but for those where it is to go again, with why. It `is_first` when it
    /// is one of those that are published together.
    pub(crate) fn published(
        &mut self, id: MessageId, record: Option<Record>, is_first: bool, again: Option<(Reply, Vec<String>)>,
    ) {
        let journal = &mut self.journal;
        if let Some(Record { half, .. }) = record {
            journal.unpublished -= usize::from(is_first);
            journal.halves[half].live -= usize::from(again.is_none());
        }
        if let Some((reply, destinations)) = again {
            journal.lacks_room |= reply == Reply::STORAGE_FULL;
            journal.failed.push((id, record, destinations));
        } else if journal.unpublished == 0 && journal.stage == Stage::Ready && journal.failure.is_none() {
            let failed = journal.failed.iter().filter_map(|(_, record, _)| *record);
            let records = self.deliveries.iter().filter_map(|(_, delivery)| delivery.record).chain(failed);
            let published = records.map(|record| record.number).fold(journal.number, u64::min);
            journal.failure = journal.settle(&mut self.maildirs.fs, published).err();
        }
    }

    /// Has the first message whose publication failed go to its destinations again, from its record.
    fn publish_again(&mut self, now: Now) {
        let (id, record, destinations) = self.journal.failed.remove(0);
        let mut octets = Vec::new();
        let read = self.journal.file.as_ref().zip(record).map(|(file, record)| {
            octets.resize(record.octets, 0);
            self.maildirs.fs.read_at(file, &mut octets, record.offset)
        });
        match read {
            Some(Ok(())) => self.deliver_again((id, record, destinations), parts(&octets).1, now),
            _ => self.journal.failed.push((id, record, destinations)),
        }
    }

    fn deliver_again(&mut self, (id, record, destinations): Unpublished, content: &[u8], now: Now) {
        let key = self.begin(id, ANSWERED, destinations.iter().map(String::as_str), true, now);
        let delivery = &mut self.deliveries[key];
        (delivery.record, delivery.destinations) = (record, destinations);
        delivery.remove_leftovers(&mut self.maildirs);
        self.finish(key, content, now);
    }

    /// Delivers what journals hold that no process has locked, and takes one of them over or removes it. `now` must be
    /// that of the start, before flushes are asynchronous. An error is that of a journal which is not understood, or that can't be read.
    pub fn recover(&mut self, now: Now) -> Result<(), PathError> {
        let root = self.journal.path.clone();
        let unlisted = |error| (root.clone(), error);
        // A mailbox that is gone is made again.
        let create = std::mem::replace(&mut self.maildirs.create, true);
        let mut listing = self.maildirs.fs.list(&self.journal.root).map_err(unlisted)?;
        while let Some(name) = self.maildirs.fs.next_name(&mut listing).map_err(unlisted)? {
            if name.to_bytes().starts_with(PREFIX.as_bytes()) {
                let path = root.join(name.to_string_lossy().as_ref());
                self.recover_from(&name, &path, now).map_err(|error| (path, error))?;
            }
        }
        self.maildirs.create = create;
        Ok(())
    }

    fn recover_from(&mut self, name: &CStr, path: &Path, now: Now) -> io::Result<()> {
        let opened = self.maildirs.fs.open_journal(&self.journal.root, name, false)?;
        let Some((file, octets)) = opened else { return Ok(()) };
        let (shown, mut found, mut present) = (path.display(), Vec::new(), HashSet::new());
        let last = scan(&mut self.maildirs.fs, &file, octets, &mut |offset, record| match record {
            Some((_, true)) => {}
            Some((record, false)) => found.push((parts(record).0.to_owned(), offset, record.len())),
            None => warn!("{shown}: what is at octet {offset} is damaged, or was never answered"),
        })?;
        // Of all mail that is there only what waits is kept in memory.
        let waits: HashSet<&str> = found.iter().filter_map(|(names, ..)| names.split(SEPARATOR).next()).collect();
        let destinations = found.iter().flat_map(|(names, ..)| names.split(SEPARATOR).skip(1));
        for destination in destinations.map(str::to_owned).collect::<HashSet<String>>() {
            let Ok(key) = self.maildirs.open_destination(&destination) else {
                // Alone it stands for not knowing what is there.
                present.insert(destination);
                continue;
            };
            let Maildirs { fs, open, .. } = &mut self.maildirs;
            let Maildir { directories: Directories { new, cur, .. }, above, .. } = &open[key];
            for directory in [new, cur] {
                let mut listing = fs.list(directory)?;
                while let Some(name) = fs.next_name(&mut listing)? {
                    let waiting = unique(&name).filter(|unique| waits.contains(*unique));
                    present.extend(waiting.map(|unique| format!("{unique}{SEPARATOR}{destination}")));
                }
            }
            // A name that is there may be as young as the crash, and as a move from the one to the other.
            for directory in [cur, new].into_iter().chain(above) {
                fs.flush(Flush::Directory(directory))?;
            }
            self.maildirs.release(key);
        }
        let mut delivered = 0;
        for (names, offset, octets) in &found {
            let (unique, destinations) = names.split_once(SEPARATOR).unwrap_or((names, ""));
            let Some(id) = MessageId::from_unique_name(unique) else { continue };
            let missing = destinations.split(SEPARATOR).map(str::to_owned);
            let missing = missing.filter(|it| !present.contains(&format!("{unique}{SEPARATOR}{it}")));
            let (unknown, missing): (Vec<_>, Vec<_>) = missing.partition(|it| present.contains(it));
            if !unknown.is_empty() {
                self.journal.failed.push((id, None, unknown));
            }
            if !missing.is_empty() {
                let mut record = vec![0; *octets];
                self.maildirs.fs.read_at(&file, &mut record, *offset)?;
                self.deliver_again((id, None, missing), parts(&record).1, now);
                delivered += 1;
                if delivered % FLUSHES_MAX == 0 {
                    self.advance(true, now);
                }
            }
        }
        self.advance(true, now);
        let failed = std::mem::take(&mut self.journal.failed);
        self.journal.lacks_room = false;
        for (id, _, destinations) in &failed {
            error!("{shown}: {} can't be delivered to {destinations:?}; it stays in there", id.as_str());
        }
        if delivered > failed.len() {
            info!("{shown}: {} messages were left from before, delivered now", delivered - failed.len());
        }
        if !failed.is_empty() {
            return Ok(());
        }
        let (journal, fs) = (&mut self.journal, &mut self.maildirs.fs);
        if octets == journal.octets && journal.file.is_none() {
            journal.name = Name::new(&[&name.to_string_lossy()]);
            journal.adopt(file, octets, last);
            self.advance(true, now);
            Ok(())
        } else {
            fs.remove(&journal.root, name)?;
            fs.flush(Flush::Directory(&journal.root))
        }
    }

    /// Marks the journal as empty, as the process is about to end.
    pub fn close(&mut self) {
        let (journal, fs) = (&mut self.journal, &mut self.maildirs.fs);
        if journal.stage != Stage::Ready || !journal.is_idle() || journal.waiting() > 0 {
            return;
        }
        journal.halves.iter_mut().for_each(|half| half.state.published = journal.number | EMPTY);
        let written = journal.write_state(fs, 0).and_then(|()| journal.write_state(fs, 1));
        let closed = written.and_then(|()| journal.file.as_ref().map_or(Ok(()), |file| fs.flush(Flush::File(file))));
        if let Err(error) = closed {
            error!("{}: the journal can't be marked as empty: {error}", journal.path.display());
        }
    }
}

/// A record, and whether it is published; `None` is a damaged one.
type Found<'a> = Option<(&'a [u8], bool)>;

/// Shows all records of a journal, the older half first, with where they are. The highest generation and number; an error is
/// that of another version, or of none at all.
fn scan<F: FileSystem>(
    fs: &mut F, file: &F::File, octets: u64, visit: &mut dyn FnMut(u64, Found<'_>),
) -> io::Result<(u64, u64)> {
    if octets > OCTETS_MAX {
        return Err(io::Error::other("larger than a journal may be; move it away"));
    }
    let mut halves = Vec::new();
    for base in [0, octets / 2] {
        let mut state: Option<State> = None;
        let (mut is_damaged, mut is_strange) = (false, false);
        for offset in [base, base + BLOCK] {
            let mut block = [0; STATE_OCTETS];
            match fs.read_at(file, &mut block, offset) {
                // It was never made whole.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => block.fill(0),
                read => read?,
            }
            let found = State::decode(&block);
            is_damaged |= found.is_none() && block != [0; STATE_OCTETS];
            is_strange |= block.starts_with(&MAGIC[..10]) && !block.starts_with(MAGIC);
            state = state.max(found);
        }
        match state {
            Some(state) => halves.push((state, base)),
            None if is_strange => return Err(io::Error::other("a journal of another version; use that one's program")),
            None => {
                // Without any record it is one that was being made.
                let mut head = [0; HEAD_OCTETS];
                let has_records = fs.read_at(file, &mut head, base + 2 * BLOCK).is_ok() && head != [0; HEAD_OCTETS];
                if is_damaged || has_records {
                    return Err(io::Error::other("its states or its size are damaged; keep it, and move it away"));
                }
            }
        }
    }
    if halves.is_sorted_by_key(|(state, _)| Reverse(*state)) {
        halves.reverse();
    }
    let (mut record, mut block, mut read, mut expected) = (Vec::new(), [0; BLOCK as usize], u64::MAX, 0);
    for (state, base) in &halves {
        expected = expected.max(state.published & !EMPTY);
        let (mut offset, end) = (base + 2 * BLOCK, if state.published < EMPTY { base + octets / 2 } else { 0 });
        while offset < end {
            let (start, place) = (offset / BLOCK * BLOCK, (offset % BLOCK) as usize);
            if start != std::mem::replace(&mut read, start) && fs.read_at(file, &mut block, start).is_err() {
                visit(start, None);
                offset = start + BLOCK;
                continue;
            }
            let head = &block[place..];
            // Either shows that something was there, if not both are right.
            if number(head, 8) != state.generation && number(head, 16) != expected {
                offset += HEAD_OCTETS as u64;
                continue;
            }
            record.resize((number(head, 24) as u32 as usize).clamp(HEAD_OCTETS, RECORD_MAX), 0);
            let whole =
                fs.read_at(file, &mut record, offset).is_ok() && xxh64(&record[8..], state.seed) == number(&record, 0);
            let this = number(&record, 16);
            visit(offset, whole.then_some((&record, this < state.published)));
            expected = if whole { this + 1 } else { expected };
            offset += if whole { record.len().next_multiple_of(HEAD_OCTETS) } else { HEAD_OCTETS } as u64;
        }
    }
    Ok((halves.last().map_or(0, |(state, _)| state.generation), expected))
}

/// The names of a record, the last without its zero, and the message.
fn parts(record: &[u8]) -> (&str, &[u8]) {
    let names = number(record, 24) >> 32;
    let (names, content) =
        record.get(HEAD_OCTETS..).and_then(|it| it.split_at_checked(names as usize)).unwrap_or_default();
    let names = std::str::from_utf8(names).unwrap_or_default();
    (names.strip_suffix(SEPARATOR).unwrap_or(names), content)
}

/// The part of a file's name that tells it from all others: up to the digits behind `Q`.
fn unique(name: &CStr) -> Option<&str> {
    let name = name.to_str().ok()?;
    let (before, behind) = name.split_once('Q')?;
    let digits = behind.bytes().take_while(u8::is_ascii_digit).count();
    name.get(..before.len() + 1 + digits)
}

/// A line for each record of a journal: where it is, its number, whether it is published, its length and names.
pub fn list(path: &Path) -> io::Result<String> {
    let (file, mut lines) = (File::open(path)?, String::new());
    let octets = file.metadata()?.len();
    scan(&mut Disk::new(SyncMode::Never), &file, octets, &mut |offset, record| {
        // Writing to a text does not fail.
        let _ = match record {
            Some((record, is_published)) => {
                let (number, (names, content)) = (number(record, 16), parts(record));
                let (state, size) = (if is_published { "published" } else { "waiting" }, content.len());
                let (id, destinations) = names.split_once(SEPARATOR).unwrap_or((names, ""));
                writeln!(lines, "at={offset} number={number} state={state} size={size} id={id} to={destinations:?}")
            }
            None => writeln!(lines, "at={offset} state=damaged"),
        };
    })?;
    Ok(lines)
}
