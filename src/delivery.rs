//! The delivery: from a message's octets to a file in `new/` of each of its mailboxes that survives a power cut.
//!
//! # Why this order
//!
//! 1. Create under `tmp/` of all mailboxes, write, flush the file. 2. Only then move it to `new/`. 3. Flush the
//!    directories, once for all that were moved. 4. Only then say so.
//!
//! A reader of `new/` sees a name only after its octets are on stable storage. Moving first would be wrong: file systems
//! that allocate late (ext4, XFS, btrfs, f2fs) may write the name before the octets, and a crash then leaves an empty
//! file. The move itself is durable only after the directory's flush:
//!
//! * *ext4*: the file's flush commits the name in `tmp/`, not the later move; that of `new/` the transaction with the
//!   move. Its repair on replacing a file by renaming does not apply, as names are new.
//! * *f2fs*: by default a file's flush lets directory entries lag; the directory's flush forces a checkpoint.
//! * *UBIFS*: both flushes empty the write buffer; room may turn out to be missing at any step, and each is checked.
//! * *overlayfs*: both flushes go to the upper layer, which holds all three directories, so moves stay inside it.
//! * *btrfs*: the flush of a file logs it under its first name; the directory's flush logs the move.
//! * *NFS*: the flush commits to the server, the move is a synchronous call. A lost reply to a link is recognised by the
//!   file itself.
//!
//! `cur/` is flushed with `new/`: where metadata are not written in order, a reader that moves a message on before our
//! flush could else leave neither name on the disk.
//!
//! # Several mailboxes
//!
//! A message is written once and linked into the other mailboxes, or written again where a link can't be made, as on
//! another file system. It has a name in `tmp/` of each before its first octet is written, so that what is missing shows
//! before anything is published. A Maildir is open while a message is on its way into it, the main one always.
//!
//! # Errors of a flush
//!
//! The kernel reports an error of write-back once for each open description, and marks the pages clean. So at most one
//! flush is under way on a descriptor; when it fails, what was written or moved through that descriptor is refused and
//! unlinked, the descriptor is closed, and nothing is ever flushed twice as if that could help.

use std::ffi::CString;
use std::fmt::Write as _;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use log::{Level, error, info, log, warn};
use slab::Slab;

use crate::fs::{Disk, FileSystem, Flush, Ticket};
use crate::maildir::{Directories, Keep, Maildir, Name, PROOF, PathError, Sweep, Swept, name_host};
use crate::smtp::reply::Reply;
use crate::smtp::session::{Outcome, Storage};
use crate::smtp::trace::{MessageId, MessageIds};

/// Flushes of files that are under way at once; messages beyond wait for their turn.
pub const FLUSHES_MAX: usize = 128;

/// Files that are open at once, unless descriptors are fewer; then sessions wait.
pub const FILES_MAX: usize = 512;

/// Names that are kept to be removed later.
const LITTER_MAX: usize = 256;

/// How often the file system is asked for its room, and a failed one is tried again.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How often leftovers are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// How long sweeps are apart at least, and how much longer for each message that the last one found.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);
const SWEEP_PAUSE_OF_ONE: Duration = Duration::from_micros(100);

/// Maildirs that wait to be looked through; more wait for their next message.
const UNSWEPT_MAX: usize = 1024;

/// How long a mailbox that failed while others of the same message did not takes no new mail.
const FAILED_TIME: Duration = Duration::from_secs(60);

/// Names that are tried for one message.
const ATTEMPTS_MAX: u32 = 16;

/// The destination that is the main Maildir, and its key.
pub const MAIN: &str = "";
const MAIN_KEY: usize = 0;

/// The owner of a file that only shows that the disk works.
const PROBE: usize = usize::MAX;

/// Tickets of directories have the first bit, and the directory's number above the Maildir's key; those of files have the
/// copy's number above the message's key.
const DIRECTORY_TICKET: Ticket = 1 << 63;
const NUMBER_SHIFT: u32 = 32;

/// The space that is left free for others: below it, no new mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinFree {
    /// 16 MiB or 2 %, the smaller.
    Usual,
    /// So many octets; 0 is off.
    Octets(u64),
    /// So many hundredths of the file system.
    Percent(u8),
}

impl MinFree {
    fn octets(self, total: u64) -> u64 {
        match self {
            Self::Octets(octets) => octets,
            Self::Percent(percent) => total / 100 * u64::from(percent),
            Self::Usual => (total / 100 * 2).min(16 << 20),
        }
    }
}

/// The time of a turn, read once.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For timeouts: never steps.
    pub instant: Instant,
    /// For names and dates: may step.
    pub wall: SystemTime,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Self {
        Self { instant: Instant::now(), wall: SystemTime::now() }
    }
}

/// Where a copy has its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    Tmp,
    New,
}

/// A message in one of its mailboxes.
struct Copy<F: FileSystem> {
    maildir: usize,
    place: Place,
    /// How many names were taken before this one was free.
    attempt: u32,
    /// What octets are written to; a copy without is a link to the file of another.
    file: Option<F::File>,
    /// Which copy has the file.
    body: usize,
    failure: Option<Reply>,
}

/// One message on its way.
struct Delivery<F: FileSystem> {
    id: MessageId,
    /// Who is told of the end, by the server's own key.
    owner: usize,
    /// Whether each copy succeeds or fails by itself, as in LMTP; else all do or none.
    apart: bool,
    size: u64,
    copies: Vec<Copy<F>>,
    /// Ends that it waits for: flushes of its files, then those of its Maildirs.
    waiting: usize,
}

impl<F: FileSystem> Delivery<F> {
    /// Why nothing of it can be stored any more.
    fn failure(&self) -> Option<Reply> {
        let all = self.copies.iter().all(|copy| copy.failure.is_some());
        self.copies.iter().find_map(|copy| copy.failure).filter(|_| all)
    }

    /// A name in `tmp/`, and with the size added in `new/`: `seconds.id.host,S=size`.
    fn name(&self, attempt: u32, place: Place, host: &str) -> Name {
        let mut name = Name::new();
        // It never fails: what finds no room is left out, and there is room.
        let _ = write!(name, "{}.{}", self.id.seconds(), self.id);
        let _ = if attempt > 0 { write!(name, "A{attempt}.{host}") } else { write!(name, ".{host}") };
        let _ = if place == Place::New { write!(name, ",S={}", self.size) } else { Ok(()) };
        name
    }
}

/// What the disk is known to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Ready,
    /// A flush failed, or the directories are gone: no new mail before a probe succeeds.
    Failed,
    /// That, and nothing failed since the probe under way began.
    Probing,
}

/// All Maildirs, and the messages on their way into them.
pub struct Store<F: FileSystem> {
    fs: F,
    host: String,
    /// The part of each name that tells our own files.
    own: String,
    /// The file system that held the main Maildir at the start.
    device: Option<u64>,
    /// Where mailboxes are, on which file system, and whether they are made.
    mailboxes: Option<(PathBuf, u64)>,
    create: bool,
    min_free: MinFree,
    /// Those that are open; the main one always is among them.
    maildirs: Slab<Maildir<F>>,
    deliveries: Slab<Delivery<F>>,
    /// Written, in order, waiting for a place among the flushes.
    written: Vec<usize>,
    /// Maildirs to which messages were moved and whose flush has not begun.
    touched: Vec<usize>,
    outcomes: Vec<(usize, Outcome)>,
    /// Destinations that failed while others of the same message did not, and until when they take nothing.
    failed: Vec<(String, Instant)>,
    /// Emptied lists, kept for their memory.
    spare: Vec<Vec<Copy<F>>>,
    flushes: usize,
    /// Open files of messages, and how many there may be before sessions wait.
    files: usize,
    files_max: usize,
    /// Names in the main Maildir that could not be removed, to be tried again.
    litter: Vec<(Place, Name)>,
    health: Health,
    /// A probe is under way.
    probing: bool,
    room: u64,
    full: bool,
    checked: Option<Instant>,
    probed: Option<Instant>,
    complained: Option<Instant>,
    keep: Keep,
    sweep: Option<Sweep<F>>,
    /// When the next sweep is due, and before when there is none.
    next_sweep: Instant,
    sweep_from: Instant,
    /// Destinations that mail came to since they were looked through.
    unswept: Vec<String>,
}

impl<F: FileSystem> Store<F> {
    /// Opens the main Maildir at `path`, making it and its directories (mode 0700) where they are missing.
    ///
    /// `random` is the part of this run's ids that tells its own files from those of others.
    ///
    /// # Errors
    /// Any error of opening or making a directory, with the path that it speaks of.
    pub fn open(fs: F, path: &Path, hostname: &str, random: u64, min_free: MinFree) -> Result<Self, PathError> {
        let now = Instant::now();
        let mut maildirs = Slab::new();
        maildirs.insert(Maildir { users: 1, ..Maildir::new(MAIN, path.to_owned()) });
        let mut store = Self {
            fs,
            host: name_host(hostname),
            own: format!("R{random:016x}"),
            device: None,
            mailboxes: None,
            create: false,
            min_free,
            maildirs,
            deliveries: Slab::new(),
            written: Vec::new(),
            touched: Vec::new(),
            outcomes: Vec::new(),
            failed: Vec::new(),
            spare: Vec::new(),
            flushes: 0,
            files: 0,
            files_max: FILES_MAX,
            litter: Vec::new(),
            health: Health::Ready,
            probing: false,
            room: u64::MAX,
            full: false,
            checked: None,
            probed: None,
            complained: None,
            keep: Keep::default(),
            sweep: None,
            next_sweep: now,
            sweep_from: now,
            unswept: Vec::new(),
        };
        store.open_main(true)?;
        Ok(store)
    }

    /// Has sessions wait when so many descriptors are used.
    pub const fn limit_files(&mut self, files_max: usize) {
        self.files_max = files_max;
    }

    /// Whether new messages are to wait until others are stored.
    pub fn is_full(&self) -> bool {
        self.files + 3 * (self.maildirs.len() - 1) >= self.files_max
    }

    /// The file system behind it.
    pub fn file_system(&mut self) -> &mut F {
        &mut self.fs
    }

    /// Begins a message; `owner` is told of its end. Nothing is made on the disk before there is something to write.
    pub fn begin<'a>(
        &mut self,
        id: MessageId,
        owner: usize,
        destinations: impl IntoIterator<Item = &'a str>,
        apart: bool,
        now: Now,
    ) -> usize {
        let mut copies = self.spare.pop().unwrap_or_default();
        let failed_before = self.failed.len();
        for (body, destination) in destinations.into_iter().enumerate() {
            let opened = self.open_destination(destination);
            let failure = opened.as_ref().err().map(|(_, error)| reply_to(error));
            let maildir = opened.unwrap_or_else(|(path, error)| {
                complain(&mut self.complained, &path, "open", &error, now);
                if !apart && destination != MAIN {
                    self.failed.push((destination.to_owned(), now.instant + FAILED_TIME));
                }
                usize::MAX
            });
            copies.push(Copy { maildir, place: Place::Nowhere, attempt: 0, file: None, body, failure });
        }
        if copies.len() == 1 {
            // It keeps mail from no other.
            self.failed.truncate(failed_before);
        }
        if let Some(failure) = copies.iter().find_map(|copy| copy.failure).filter(|_| !apart) {
            copies.iter_mut().for_each(|copy| copy.failure = Some(failure));
        }
        self.deliveries.insert(Delivery { id, owner, apart, size: 0, copies, waiting: 0 })
    }

    /// Writes octets of a message that is still coming. An error is kept for [`finish`](Self::finish).
    pub fn append(&mut self, key: usize, content: &[u8], now: Now) {
        let Some(delivery) = self.deliveries.get_mut(key).filter(|_| !content.is_empty()) else { return };
        if delivery.size == 0 {
            self.copies(key).for_each(|index| self.create(key, index, now));
        }
        for index in self.copies(key) {
            let Some(delivery) = self.deliveries.get_mut(key) else { return };
            let Some(copy) = delivery.copies.get_mut(index).filter(|copy| copy.failure.is_none()) else { continue };
            if let Some(Err(error)) = copy.file.as_mut().map(|file| self.fs.write(file, content)) {
                self.fail(key, "write", &error, now, |_, copy| copy.body == index);
            }
        }
        if let Some(delivery) = self.deliveries.get_mut(key) {
            delivery.size += content.len() as u64;
        }
    }

    /// Takes the rest of a message, which is whole now. What became of it is among the outcomes of a later
    /// [`advance`](Self::advance).
    pub fn finish(&mut self, key: usize, content: &[u8], now: Now) {
        self.append(key, content, now);
        let Some(delivery) = self.deliveries.get_mut(key) else { return };
        if delivery.failure().is_some() || delivery.copies.is_empty() {
            self.end(key);
        } else {
            self.written.push(key);
        }
    }

    /// Drops a message that is still coming.
    pub fn discard(&mut self, key: usize) {
        self.remove(key);
    }

    /// Removes what is not published yet, as the process is about to end.
    pub fn abort(&mut self) {
        for key in 0..self.deliveries.capacity() {
            for index in self.copies(key) {
                self.unlink(key, index, Place::Tmp);
            }
        }
    }

    /// Whether messages are between their first octet and their outcome.
    pub fn is_idle(&self) -> bool {
        self.deliveries.is_empty()
    }

    /// Moves every message as far as it can go now. With `flushes_ended` the file system is asked which flushes ended.
    pub fn advance(&mut self, mut flushes_ended: bool, now: Now) {
        loop {
            if flushes_ended {
                while let Some((ticket, result)) = self.fs.ended_flush() {
                    self.flush_ended(ticket, result, now);
                }
            }
            let begun = self.begin_directory_flushes() | self.begin_file_flushes();
            flushes_ended = begun && self.fs.submit();
            if !flushes_ended {
                return;
            }
        }
    }

    /// The next message whose end is known, by its owner.
    pub fn outcome(&mut self) -> Option<(usize, Outcome)> {
        self.outcomes.pop()
    }

    /// What the disk says of new mail, to a peer that is talking. Asks it at most once a second, and tries a failed one
    /// again.
    pub fn storage(&mut self, now: Now) -> Storage {
        self.begin_probe(now);
        if is_due(&mut self.checked, CHECK_INTERVAL, now) && self.health == Health::Ready {
            self.check(now);
        }
        match self.health {
            Health::Ready => Storage::Ready { room: self.room },
            Health::Failed | Health::Probing => Storage::Failed,
        }
    }

    /// Has mail removed from the Maildirs that is more than `keep` says.
    pub const fn keep(&mut self, keep: Keep) {
        self.keep = keep;
    }

    /// How long until Maildirs are to be looked through; none while there is something to do at once.
    pub fn next_sweep(&self, now: Instant) -> Duration {
        if self.sweep.is_some() { Duration::ZERO } else { self.next_sweep.saturating_duration_since(now) }
    }

    /// Removes files in `tmp/` that nobody has written to for 36 hours, and mail that is more than is to be kept: a
    /// bounded number of names at a time. The main Maildir is looked through at the start and once a day, and where mail
    /// is not kept for ever each one soon after mail came.
    pub fn sweep(&mut self, now: Now) {
        if !self.next_sweep(now.instant).is_zero() {
            return;
        }
        let Some(mut sweep) = self.sweep.take() else {
            let destination = self.unswept.pop().unwrap_or_default();
            self.next_sweep = now.instant + SWEEP_INTERVAL;
            let begun = self.open_destination(&destination).and_then(|key| {
                Sweep::begin(&mut self.fs, key, &self.maildirs[key]).map_err(|error| {
                    self.release(key);
                    (PathBuf::from(&destination), error)
                })
            });
            match begun {
                Ok(sweep) => self.sweep = Some(sweep),
                Err((path, error)) => complain(&mut self.complained, &path, "looking for leftovers", &error, now),
            }
            return;
        };
        let key = sweep.maildir;
        let unsafe_from =
            self.deliveries.iter().map(|(_, delivery)| delivery.id.seconds()).min().unwrap_or(u64::MAX >> 1);
        let swept = Swept { own: &self.own, keep: self.keep, now: now.wall, unsafe_from };
        match sweep.step(&mut self.fs, &self.maildirs[key], &swept) {
            Ok(true) => self.sweep = Some(sweep),
            ended => {
                if let Err(error) = ended {
                    complain(&mut self.complained, &self.maildirs[key].path, "looking for leftovers", &error, now);
                }
                // A large Maildir is not looked through all the time.
                self.sweep_from = now.instant + SWEEP_PAUSE + SWEEP_PAUSE_OF_ONE * sweep.messages() as u32;
                if !self.unswept.is_empty() {
                    self.next_sweep = self.sweep_from;
                }
                self.release(key);
            }
        }
    }

    /// Opens the main Maildir. It is made only at the start, and what it lacks only where it was then: if it vanishes
    /// later it may be on a card that was pulled, and mail must not go to what lies below the mount point.
    fn open_main(&mut self, start: bool) -> Result<(), PathError> {
        let mut above = Vec::new();
        let (path, root) = self.open_root(MAIN, start, &mut above)?;
        let at_root = |error| (path.clone(), error);
        let device = self.fs.device(&root).map_err(at_root)?;
        let create = *self.device.get_or_insert(device) == device;
        let main = &mut self.maildirs[MAIN_KEY];
        let opened = main.open(&mut self.fs, &root, create);
        if start {
            opened?;
            // Whoever made these directories, and be it a moment ago: from now on their names are durable. We may not even
            // read what is above one that we found.
            let found =
                self.fs.open_directory_in(&root, c"..", false).and_then(|above| self.fs.flush_directory(&above));
            let flushed = self.fs.flush_directory(&root).and(if above.is_empty() { Ok(()) } else { found });
            return flushed.map_err(at_root);
        }
        // To be flushed with the next group: something may have been made in it, now or the time before.
        main.above = vec![root];
        opened.map(drop)
    }

    /// Has destinations that begin with `//` be below `path`, which is made where it is missing, and with `create` all of
    /// them be made where they are. Another file system in its place later is none: a card may have been pulled.
    ///
    /// # Errors
    /// Those of opening or making it.
    pub fn serve_mailboxes(&mut self, path: Option<&Path>, create: bool) -> Result<(), PathError> {
        self.create = create;
        let Some(path) = path else { return Ok(()) };
        let at_path = |error| (path.to_owned(), error);
        let directory = self.fs.open_directory(path, true).map_err(at_path)?;
        // We may not even read what is above a directory that we found.
        let above = self.fs.open_directory_in(&directory, c"..", false);
        let _ = above.and_then(|above| self.fs.flush_directory(&above));
        self.mailboxes = Some((path.to_owned(), self.fs.device(&directory).map_err(at_path)?));
        Ok(())
    }

    /// Whether mail for a destination is taken: its Maildir is there, or may be made.
    ///
    /// # Errors
    /// 550 where it is not there, 452 for a while after it failed, 451 where that can't be found out.
    pub fn accepts(&mut self, destination: &str, create: bool, now: Now) -> Result<(), Reply> {
        self.failed.retain(|(_, until)| *until > now.instant);
        if self.failed.iter().any(|(failed, _)| failed == destination) {
            return Err(Reply::MAILBOX_FAILED);
        }
        if self.maildirs.iter().any(|(_, maildir)| maildir.destination == destination) {
            return Ok(());
        }
        match self.open_root(destination, false, &mut Vec::new()) {
            Ok(_) => Ok(()),
            Err((_, error)) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                if create {
                    Ok(())
                } else {
                    Err(Reply::NO_SUCH_MAILBOX)
                }
            }
            Err((path, error)) => {
                complain(&mut self.complained, &path, "open", &error, now);
                Err(Reply::STORAGE_FAILED)
            }
        }
    }

    /// The Maildir that a destination names, opened where it is not; for one copy more.
    fn open_destination(&mut self, destination: &str) -> Result<usize, PathError> {
        if let Some((key, maildir)) = self.maildirs.iter_mut().find(|(_, it)| it.destination == destination) {
            maildir.usable().map_err(|error| (maildir.path.clone(), error))?;
            maildir.users += 1;
            return Ok(key);
        }
        let mut above = Vec::new();
        let (path, root) = self.open_root(destination, self.create, &mut above)?;
        let mut maildir = Maildir { users: 1, ..Maildir::new(destination, path) };
        maildir.open(&mut self.fs, &root, true)?;
        // Whoever made these directories, perhaps for a message that was dropped: their names are to be durable.
        above.push(root);
        maildir.above = above;
        Ok(self.maildirs.insert(maildir))
    }

    /// Opens the directory that a destination names, and with `create` makes what of it is missing; then `above` holds
    /// what it was made in.
    fn open_root(
        &mut self,
        destination: &str,
        create: bool,
        above: &mut Vec<F::Directory>,
    ) -> Result<(PathBuf, F::Directory), PathError> {
        let (base, below) = destination.split_once("//").unwrap_or((destination, ""));
        let (base, device) = match &self.mailboxes {
            _ if destination == MAIN => (self.maildirs[MAIN_KEY].path.clone(), None),
            Some((path, device)) if base.is_empty() => (path.clone(), Some(*device)),
            _ => (PathBuf::from(base), None),
        };
        let path = base.join(below);
        let at_path = |error| (path.clone(), error);
        let is_missing = |found: &io::Result<F::Directory>| {
            create && found.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        let mut found = self.fs.open_directory(&base, false);
        if below.is_empty() && is_missing(&found) {
            found = self.fs.open_directory(&base, true);
            let made_in = found.as_ref().ok().map(|made| self.fs.open_directory_in(made, c"..", false));
            above.extend(made_in.transpose().map_err(at_path)?);
        }
        let mut directory = found.map_err(at_path)?;
        if device.is_some() && self.fs.device(&directory).ok() != device {
            return Err(at_path(io::Error::other("another file system is in its place")));
        }
        for text in below.split('/').filter(|name| !name.is_empty()) {
            let mut name = Name::new();
            let _ = name.write_str(text);
            let found = match self.fs.open_directory_in(&directory, name.as_c_str(), false) {
                Err(error) if create && error.kind() == io::ErrorKind::NotFound => {
                    self.fs.open_directory_in(&directory, name.as_c_str(), true)
                }
                found => found,
            };
            let parent = std::mem::replace(&mut directory, found.map_err(at_path)?);
            above.extend(create.then_some(parent));
        }
        Ok((path, directory))
    }

    /// Asks for room, and whether the directories are still where they were.
    fn check(&mut self, now: Now) {
        let main = &mut self.maildirs[MAIN_KEY];
        let there = main.usable().and_then(|it| self.fs.is_same(&main.paths[1], &it.new));
        if !matches!(there, Ok(true)) && main.flushes == 0 {
            warn!("{}: removed or replaced while running; opening it again", main.path.display());
            if let Err((path, error)) = self.open_main(false) {
                error!("{}: {error}; refusing mail until it is back", path.display());
                (self.health, self.probed) = (Health::Failed, Some(now.instant));
                self.maildirs[MAIN_KEY].failed = true;
            }
        }
        let Maildir { path, directories, .. } = &self.maildirs[MAIN_KEY];
        let Some(directories) = directories else { return };
        self.litter.retain(|(place, name)| {
            let directory = if *place == Place::Tmp { &directories.tmp } else { &directories.new };
            remove(&mut self.fs, directory, name).is_err()
        });
        let Ok(space) = self.fs.space(&directories.new) else { return };
        self.room = match (space.free_files, self.min_free) {
            (0, _) => 0,
            (_, MinFree::Octets(0) | MinFree::Percent(0)) => u64::MAX,
            (_, floor) => space.free.saturating_sub(floor.octets(space.total)),
        };
        let full = self.room == 0;
        if full && !self.full {
            warn!("{}: {} octets free, below the floor; refusing mail", path.display(), space.free);
        } else if self.full && !full {
            warn!("{}: {} octets free; taking mail again", path.display(), space.free);
        }
        self.full = full;
    }

    /// Tries a failed disk again, at most once a second: creates, writes and flushes a file, and removes it.
    fn begin_probe(&mut self, now: Now) {
        // The one before may still be under way, if another flush failed meanwhile.
        let idle = !self.probing && self.maildirs[MAIN_KEY].flushes == 0;
        if self.health != Health::Failed || !idle || !is_due(&mut self.probed, CHECK_INTERVAL, now) {
            return;
        }
        if let Err((path, error)) = self.open_main(false) {
            return error!("{}: {error}; still refusing mail", path.display());
        }
        self.health = Health::Probing;
        let key = self.begin(MessageIds::new(0, std::process::id()).next(now.wall), PROBE, [MAIN], false, now);
        self.probing = true;
        self.finish(key, b"probe\n", now);
        self.advance(false, now);
    }

    /// Makes the name of a copy in `tmp/`: a link to the file of one before it, or a file of its own.
    fn create(&mut self, key: usize, index: usize, now: Now) {
        let Some(delivery) = self.deliveries.get_mut(key) else { return };
        let directories = |copy: &Copy<F>| self.maildirs.get(copy.maildir)?.usable().ok();
        let made = loop {
            let (before, rest) = delivery.copies.split_at(index);
            let Some(copy) = rest.first().filter(|copy| copy.failure.is_none()) else { return };
            let Some(Directories { tmp, .. }) = directories(copy) else { break Err(io::ErrorKind::NotFound.into()) };
            let name = delivery.name(copy.attempt, Place::Tmp, &self.host);
            let linked = before.iter().position(|body| {
                let from = directories(body).filter(|_| body.file.is_some() && body.failure.is_none());
                let old = delivery.name(body.attempt, Place::Tmp, &self.host);
                from.is_some_and(|from| self.fs.link(&from.tmp, old.as_c_str(), tmp, name.as_c_str()).is_ok())
            });
            if let Some(body) = linked {
                break Ok((body, None));
            }
            match self.fs.create(tmp, name.as_c_str()) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && copy.attempt < ATTEMPTS_MAX => {
                    delivery.copies[index].attempt += 1;
                }
                created => break created.map(|file| (index, Some(file))),
            }
        };
        match made {
            Ok((body, file)) => {
                let copy = &mut delivery.copies[index];
                self.files += usize::from(file.is_some());
                (copy.place, copy.body, copy.file) = (Place::Tmp, body, file);
            }
            Err(error) => self.fail(key, "create", &error, now, |at, _| at == index),
        }
    }

    /// Begins the flushes of as many messages as there is room for, oldest first.
    fn begin_file_flushes(&mut self) -> bool {
        let mut begun = 0;
        for &key in &self.written {
            let Some(delivery) = self.deliveries.get_mut(key) else { continue };
            let files =
                delivery.copies.iter().enumerate().filter_map(|(index, copy)| Some((index, copy.file.as_ref()?)));
            delivery.waiting = files.clone().count();
            if self.flushes > 0 && self.flushes + delivery.waiting > FLUSHES_MAX {
                break;
            }
            for (index, file) in files {
                self.fs.begin_flush(Flush::File(file), (index as Ticket) << NUMBER_SHIFT | key as Ticket);
            }
            self.flushes += delivery.waiting;
            begun += 1;
        }
        self.written.drain(..begun);
        begun > 0
    }

    /// Begins the flush of each Maildir that messages were moved to, unless one is under way there.
    fn begin_directory_flushes(&mut self) -> bool {
        let mut begun = false;
        for key in self.touched.drain(..) {
            let Some(maildir) = self.maildirs.get_mut(key).filter(|it| it.flushes == 0) else { continue };
            let Some(directories) = maildir.directories.as_ref().filter(|_| !maildir.moved.is_empty()) else {
                continue;
            };
            std::mem::swap(&mut maildir.moved, &mut maildir.flushing);
            for (directory, number) in [&directories.new, &directories.cur].into_iter().chain(&maildir.above).zip(0..) {
                let ticket = DIRECTORY_TICKET | number << NUMBER_SHIFT | key as Ticket;
                self.fs.begin_flush(Flush::Directory(directory), ticket);
                maildir.flushes += 1;
            }
            begun = true;
        }
        begun
    }

    fn flush_ended(&mut self, ticket: Ticket, result: io::Result<()>, now: Now) {
        let key = ticket as u32 as usize;
        if ticket & DIRECTORY_TICKET != 0 {
            let Some(maildir) = self.maildirs.get_mut(key) else { return };
            if let Err(error) = result {
                complain(&mut self.complained, &maildir.path, "flush of new/ or cur/", &error, now);
                maildir.flush_failure.get_or_insert(reply_to(&error));
            }
            maildir.flushes -= 1;
            if maildir.flushes == 0 {
                self.directories_flushed(key);
            }
            return;
        }
        self.flushes -= 1;
        let body = (ticket >> NUMBER_SHIFT) as usize;
        if let Err(error) = result {
            self.health = Health::Failed;
            self.fail(key, "flush", &error, now, |_, copy| copy.body == body);
        }
        let Some(delivery) = self.deliveries.get_mut(key) else { return };
        self.files -= usize::from(delivery.copies.get_mut(body).and_then(|copy| copy.file.take()).is_some());
        delivery.waiting -= 1;
        match (delivery.waiting, delivery.owner) {
            // Nobody is to see it.
            (0, PROBE) => self.end(key),
            (0, _) => self.publish(key, now),
            _ => {}
        }
    }

    /// Moves a message to `new/` of all its mailboxes, where it waits for the flush of their directories.
    fn publish(&mut self, key: usize, now: Now) {
        for index in self.copies(key) {
            if let Err(error) = self.publish_copy(key, index) {
                self.fail(key, "move to new/", &error, now, |at, _| at == index);
            }
        }
        let Some(delivery) = self.deliveries.get_mut(key) else { return };
        for copy in delivery.copies.iter().filter(|copy| copy.place == Place::New) {
            if let Some(maildir) = self.maildirs.get_mut(copy.maildir) {
                maildir.moved.push(key);
                self.touched.push(copy.maildir);
                delivery.waiting += 1;
            }
        }
        if delivery.waiting == 0 {
            self.end(key);
        }
    }

    /// Moves a copy to `new/`, under a fresh name where the first is taken.
    fn publish_copy(&mut self, key: usize, index: usize) -> io::Result<()> {
        let Some(delivery) = self.deliveries.get_mut(key) else { return Ok(()) };
        let copy = &delivery.copies[index];
        let (created, mut attempt) = (copy.attempt, copy.attempt);
        if copy.failure.is_some() {
            return Ok(());
        }
        let Directories { tmp, new, .. } = self.maildirs.get(copy.maildir).ok_or(io::ErrorKind::NotFound)?.usable()?;
        let from = delivery.name(created, Place::Tmp, &self.host);
        loop {
            let to = delivery.name(attempt, Place::New, &self.host);
            match self.fs.rename(tmp, from.as_c_str(), new, to.as_c_str()) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < ATTEMPTS_MAX => attempt += 1,
                Err(error) => return Err(error),
                Ok(()) => {
                    let copy = &mut delivery.copies[index];
                    (copy.attempt, copy.place) = (attempt, Place::New);
                    return Ok(());
                }
            }
        }
    }

    /// A group of messages is safe in a Maildir, or it is not; then neither are those that were moved there meanwhile.
    fn directories_flushed(&mut self, key: usize) {
        let Some(maildir) = self.maildirs.get_mut(key) else { return };
        let failure = maildir.flush_failure.take();
        let mut group = std::mem::take(&mut maildir.flushing);
        if failure.is_some() {
            group.append(&mut maildir.moved);
            self.health = Health::Failed;
        }
        for message in group.drain(..) {
            if let Some(reply) = failure {
                self.refuse(message, reply, |_, copy| copy.maildir == key);
            }
            let Some(delivery) = self.deliveries.get_mut(message) else { continue };
            delivery.waiting -= 1;
            if delivery.waiting == 0 {
                self.end(message);
            }
        }
        let Some(maildir) = self.maildirs.get_mut(key) else { return };
        maildir.flushing = group;
        maildir.above.clear();
        self.touched.push(key);
        if failure.is_some() {
            // What a descriptor reported once it does not report again.
            maildir.failed = true;
            if let Some((path, error)) = (key == MAIN_KEY).then(|| self.open_main(false).err()).flatten() {
                error!("{}: {error}", path.display());
            }
        }
    }

    /// Tells the owner of a message what became of it.
    fn end(&mut self, key: usize) {
        let Some(delivery) = self.deliveries.get_mut(key) else { return };
        let (owner, failure) = (delivery.owner, delivery.failure());
        if owner != PROBE {
            for copy in &mut delivery.copies {
                copy.place = Place::Nowhere;
                let Some(maildir) = self.maildirs.get(copy.maildir).filter(|_| self.keep != Keep::default()) else {
                    continue;
                };
                if !self.unswept.contains(&maildir.destination) && self.unswept.len() < UNSWEPT_MAX {
                    self.unswept.push(maildir.destination.clone());
                }
                self.next_sweep = self.next_sweep.min(self.sweep_from);
            }
            self.outcomes.push((owner, failure.map_or(Outcome::Stored, Outcome::Refused)));
            // Told before, as the last is taken first.
            let missing = delivery.copies.iter().enumerate().filter_map(|(index, copy)| Some((index, copy.failure?)));
            let missing = missing.filter(|_| failure.is_none());
            self.outcomes.extend(missing.map(|(index, reply)| (owner, Outcome::Missing(index, reply))));
        }
        self.remove(key);
        if owner == PROBE {
            self.probing = false;
            let path = self.maildirs[MAIN_KEY].path.display();
            match (failure, self.health) {
                (None, Health::Probing) => {
                    info!("{path}: works again; taking mail");
                    (self.health, self.checked) = (Health::Ready, None);
                }
                // A flush failed after this one began: another is to show that the disk works.
                (None, _) => {}
                (Some(_), _) => {
                    error!("{path}: still refusing mail");
                    self.health = Health::Failed;
                }
            }
        }
    }

    /// Forgets a message, with the names that it has.
    fn remove(&mut self, key: usize) {
        for index in self.copies(key) {
            self.unlink(key, index, Place::New);
        }
        let Some(mut delivery) = self.deliveries.try_remove(key) else { return };
        for copy in delivery.copies.drain(..) {
            self.files -= usize::from(copy.file.is_some());
            self.release(copy.maildir);
        }
        self.spare.push(delivery.copies);
    }

    /// The places of a message's copies.
    fn copies(&self, key: usize) -> Range<usize> {
        0..self.deliveries.get(key).map_or(0, |delivery| delivery.copies.len())
    }

    /// Closes a Maildir that nothing is on its way into any more.
    fn release(&mut self, key: usize) {
        let Some(maildir) = self.maildirs.get_mut(key) else { return };
        maildir.users -= 1;
        if maildir.users == 0 {
            self.maildirs.remove(key);
        }
    }

    /// Removes the name of a copy, where it has come as far as `until` at most.
    fn unlink(&mut self, key: usize, index: usize, until: Place) {
        let Some(delivery) = self.deliveries.get_mut(key) else { return };
        let Copy { maildir, place, attempt, .. } = delivery.copies[index];
        let Some(Maildir { path, directories: Some(Directories { tmp, new, .. }), .. }) = self.maildirs.get(maildir)
        else {
            return;
        };
        let directory = match place {
            Place::Tmp => tmp,
            Place::New if until == Place::New => new,
            _ => return,
        };
        let name = delivery.name(attempt, place, &self.host);
        delivery.copies[index].place = Place::Nowhere;
        if let Err(error) = remove(&mut self.fs, directory, &name) {
            // One line for all that follow.
            if self.litter.is_empty() {
                error!("{}: a file of a refused message can't be removed: {error}", path.display());
            }
            if maildir == MAIN_KEY && self.litter.len() < LITTER_MAX {
                self.litter.push((place, name));
            }
        }
    }

    /// Notes an error that hit some copies of a message, and says so in the log.
    fn fail(&mut self, key: usize, doing: &str, error: &io::Error, now: Now, hit: impl Fn(usize, &Copy<F>) -> bool) {
        let Some(delivery) = self.deliveries.get(key) else { return };
        let mut copies = delivery.copies.iter().enumerate();
        let Some((_, first)) = copies.find(|(index, copy)| hit(*index, copy)) else { return };
        if let Some(maildir) = self.maildirs.get(first.maildir) {
            complain(&mut self.complained, &maildir.path, doing, error, now);
            if delivery.copies.len() > 1 && !delivery.apart && first.maildir != MAIN_KEY {
                self.failed.push((maildir.destination.clone(), now.instant + FAILED_TIME));
            }
        }
        if first.maildir == MAIN_KEY && error.kind() == io::ErrorKind::NotFound {
            // The directories themselves are gone.
            (self.checked, self.health) = (None, Health::Failed);
        }
        self.refuse(key, reply_to(error), hit);
    }

    /// Refuses the copies that were hit, or all where they belong together; their names are removed.
    fn refuse(&mut self, key: usize, reply: Reply, hit: impl Fn(usize, &Copy<F>) -> bool) {
        for index in self.copies(key) {
            let Some(delivery) = self.deliveries.get_mut(key) else { return };
            if !delivery.apart || hit(index, &delivery.copies[index]) {
                delivery.copies[index].failure.get_or_insert(reply);
                self.unlink(key, index, Place::New);
            }
        }
    }
}

impl Store<Disk> {
    /// Shows that mail can be kept here: makes a file, writes, flushes, moves and removes it.
    ///
    /// # Errors
    /// The first step that failed, with the path that it failed on.
    pub fn prove(&mut self) -> Result<(), PathError> {
        match self.prove_once() {
            // What was flushed in vain is not flushed again, nor by what was opened before: the proof begins anew.
            Err(_) if self.fs.falls_back() => self.open_main(false).and_then(|()| self.prove_once()),
            proven => proven,
        }
    }

    fn prove_once(&mut self) -> Result<(), PathError> {
        let name = CString::new(format!("{PROOF}{}", self.own)).unwrap_or_default();
        let Maildir { paths: [tmp_path, new_path, _], directories, .. } = &self.maildirs[MAIN_KEY];
        let Some(Directories { tmp, new, .. }) = directories else { return Ok(()) };
        let mut file = self.fs.create(tmp, &name).map_err(|error| (tmp_path.clone(), error))?;
        let flushed = self.fs.write(&mut file, b"proof\n").and_then(|()| self.fs.prove_flushes(&file, new));
        let proven = flushed.map_err(|error| (tmp_path.clone(), error)).and_then(|()| {
            self.fs.rename(tmp, &name, new, &name).map_err(|error| (new_path.clone(), error))?;
            self.fs.remove(new, &name).map_err(|error| (new_path.clone(), error))
        });
        proven.inspect_err(|_| drop(self.fs.remove(tmp, &name)))
    }
}

/// One line for an error of the disk; at most one a second, so that a full disk does not fill the log, too.
fn complain(complained: &mut Option<Instant>, path: &Path, doing: &str, error: &io::Error, now: Now) {
    let level = if is_due(complained, CHECK_INTERVAL, now) { Level::Error } else { Level::Debug };
    log!(level, "{}: {doing}: {error}", path.display());
}

/// What a client is told of an error: 452 where room is missing, 451 for all else (RFC 5321 4.2.3).
fn reply_to(error: &io::Error) -> Reply {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Reply::STORAGE_FULL,
        _ => Reply::STORAGE_FAILED,
    }
}

/// Removes a name; one that is not there is removed already.
fn remove<F: FileSystem>(fs: &mut F, directory: &F::Directory, name: &Name) -> io::Result<()> {
    match fs.remove(directory, name.as_c_str()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Whether `interval` has passed since `last`; then `last` is now.
fn is_due(last: &mut Option<Instant>, interval: Duration, now: Now) -> bool {
    let due = last.is_none_or(|last| now.instant.saturating_duration_since(last) >= interval);
    if due {
        *last = Some(now.instant);
    }
    due
}
