//! The delivery: from a message's octets to a file in `new/` that survives a power cut.
//!
//! # Why this order
//!
//! 1. Create under `tmp/`, write, flush the file. 2. Only then move it to `new/`. 3. Flush the directories, once for
//!    all that were moved. 4. Only then say so.
//!
//! A reader of `new/` sees a name only after its octets are on stable storage, so whatever a crash leaves there is whole.
//! Moving first would be wrong: file systems that allocate late (ext4, XFS, btrfs, f2fs) may write the name before the
//! octets, and a crash then leaves an empty file. The move itself is durable only after the directory's flush:
//!
//! * *ext4*: the flush of the file commits the name in `tmp/`, not the later move; the flush of `new/` commits the
//!   transaction that holds the move. Its repair on replacing a file by renaming does not apply, as names are new.
//! * *f2fs*: by default a file's flush lets directory entries lag; the directory's flush forces a checkpoint.
//! * *UBIFS*: both flushes empty the write buffer; room may turn out to be missing at the write, at the flush or at
//!   the move, and each is checked.
//! * *overlayfs*: both flushes go to the upper layer, which holds all three directories, so moves stay inside it.
//! * *btrfs*: the flush of a file logs it under its first name; the directory's flush logs the move.
//! * *NFS*: the flush commits to the server; the move is a synchronous call there, and the directory's flush costs
//!   nothing. A lost reply to a link is recognised by the file itself.
//!
//! `cur/` is flushed with `new/`: where metadata are not written in order, a reader that moves a message on before our
//! flush could else leave neither name on the disk.
//!
//! # Errors of a flush
//!
//! The kernel reports an error of write-back once for each open description, and marks the pages clean. So at most one
//! flush is under way on a descriptor; when it fails, what was written or moved through that descriptor is refused and
//! unlinked, the descriptor is closed, and nothing is ever flushed twice as if that could help.

use std::ffi::{CStr, CString};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{debug, error, info, warn};
use slab::Slab;

use crate::fs::{Disk, FileSystem, Flush, Ticket};
use crate::smtp::reply::Reply;
use crate::smtp::session::{Outcome, Storage};
use crate::smtp::trace::MessageId;

/// Flushes of files that are under way at once; messages beyond wait for their turn.
pub const FLUSHES_MAX: usize = 128;

/// Age at which a file in `tmp/` is a leftover, after the Maildir specification.
const LEFTOVER_AGE: Duration = Duration::from_secs(36 * 3600);

/// How often leftovers are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// Names that a sweep looks at in one turn.
const SWEEP_NAMES_MAX: usize = 64;

/// Seconds since 1970 that every clock can show; a name may say anything.
const CLOCK_MAX: u64 = u32::MAX as u64;

/// How often the file system is asked for its room, and a failed one is tried again.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Octets of the longest file name, with the octet that ends it.
const NAME_OCTETS_MAX: usize = 256;

/// Octets of our host's name in a file name, `/` and `:` encoded.
const NAME_HOST_OCTETS_MAX: usize = 100;

/// How the file begins that proves at the start that mail can be kept. Readers of a Maildir pass over such names.
const PROOF: &str = ".proof-";

/// Tickets above all keys of deliveries.
const NEW_TICKET: Ticket = u64::MAX;
const CUR_TICKET: Ticket = u64::MAX - 1;
const PROBE_TICKET: Ticket = u64::MAX - 2;

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
    const fn octets(self, total: u64) -> u64 {
        match self {
            Self::Octets(octets) => octets,
            Self::Percent(percent) => total / 100 * percent as u64,
            Self::Usual => {
                let share = total / 100 * 2;
                if share < 16 << 20 { share } else { 16 << 20 }
            }
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

/// A name in `tmp/` or `new/`: `seconds.id.host`, in `new/` with `,S=` and the size.
struct UniqueName {
    octets: [u8; NAME_OCTETS_MAX],
    length: usize,
}

impl UniqueName {
    fn new(id: &MessageId, attempt: u32, host: &str, size: Option<u64>) -> Self {
        let mut octets = [0; NAME_OCTETS_MAX];
        // The last octet stays, to end the name.
        let mut place = &mut octets[..NAME_OCTETS_MAX - 1];
        let _ = write!(place, "{}.{id}", id.seconds());
        if attempt > 0 {
            let _ = write!(place, "A{attempt}");
        }
        let _ = write!(place, ".{host}");
        if let Some(size) = size {
            let _ = write!(place, ",S={size}");
        }
        let length = NAME_OCTETS_MAX - 1 - place.len();
        Self { octets, length }
    }

    fn as_c_str(&self) -> &CStr {
        self.octets.get(..=self.length).and_then(|octets| CStr::from_bytes_with_nul(octets).ok()).unwrap_or_default()
    }
}

/// Our host's name as it may stand in a file name.
fn name_host(hostname: &str) -> String {
    let mut host = String::new();
    for character in hostname.chars() {
        let room = host.len() + 4 <= NAME_HOST_OCTETS_MAX;
        match character {
            _ if !room => break,
            '/' => host.push_str("\\057"),
            ':' => host.push_str("\\072"),
            _ if character.is_ascii_graphic() => host.push(character),
            _ => host.push('_'),
        }
    }
    host
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Octets are still coming.
    Open,
    /// All are written; its flush has not begun.
    Written,
    /// Its flush is under way.
    Flushing,
    /// Its octets are durable, its name in `new/` is not there yet.
    Flushed,
    /// It is in `new/`, whose flush is under way.
    Published,
}

/// One message on its way.
struct Delivery<F: FileSystem> {
    id: MessageId,
    /// How many names were taken before this one was free.
    attempt: u32,
    file: Option<F::File>,
    size: u64,
    stage: Stage,
    failure: Option<Reply>,
    /// Who is told of the end, by the server's own key.
    owner: usize,
}

struct Directories<F: FileSystem> {
    tmp: F::Directory,
    new: F::Directory,
    cur: F::Directory,
}

/// What the disk is known to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Ready,
    /// A flush failed, or the directories are gone: no new mail before a probe succeeds.
    Failed,
    /// A probe's flush is under way.
    Probing,
}

/// A sweep for leftovers under way: first through `new/`, to learn whether the clock can be trusted, then through `tmp/`.
struct Sweep<F: FileSystem> {
    names: F::Listing,
    /// Seconds of the newest name in `new/`.
    newest: u64,
    in_tmp: bool,
    removed: usize,
}

/// A Maildir and the messages on their way into it.
pub struct Maildir<F: FileSystem> {
    fs: F,
    path: PathBuf,
    /// The directories' own paths, made once.
    paths: [PathBuf; 3],
    host: String,
    /// The part of each name that tells our own files.
    own: String,
    directories: Option<Directories<F>>,
    /// The file system that held the Maildir at the start.
    device: Option<u64>,
    min_free: MinFree,
    deliveries: Slab<Delivery<F>>,
    /// Written, in order, waiting for a place among the flushes.
    written: Vec<usize>,
    /// Flushed, waiting for the directory.
    flushed: Vec<usize>,
    /// In `new/`, waiting for the end of its flush.
    published: Vec<usize>,
    /// Emptied groups, kept for their memory.
    spare: Vec<usize>,
    outcomes: Vec<(usize, Outcome)>,
    flushes: usize,
    directory_flushes: usize,
    directory_failure: Option<Reply>,
    health: Health,
    probe: Option<(F::File, MessageId)>,
    room: u64,
    full: bool,
    checked: Option<Instant>,
    probed: Option<Instant>,
    complained: Option<Instant>,
    sweep: Option<Sweep<F>>,
    next_sweep: Option<Instant>,
}

impl<F: FileSystem> Maildir<F> {
    /// Opens the Maildir at `path`, making it and its directories (mode 0700) where they are missing.
    ///
    /// `random` is the part of this run's ids that tells its own files from those of others.
    ///
    /// # Errors
    /// Any error of opening or making a directory, with the path that it speaks of.
    pub fn open(
        fs: F,
        path: &Path,
        hostname: &str,
        random: u64,
        min_free: MinFree,
    ) -> Result<Self, (PathBuf, io::Error)> {
        let mut maildir = Self {
            fs,
            path: path.to_owned(),
            paths: ["tmp", "new", "cur"].map(|name| path.join(name)),
            host: name_host(hostname),
            own: format!("R{random:016x}"),
            directories: None,
            device: None,
            min_free,
            deliveries: Slab::new(),
            written: Vec::new(),
            flushed: Vec::new(),
            published: Vec::new(),
            spare: Vec::new(),
            outcomes: Vec::new(),
            flushes: 0,
            directory_flushes: 0,
            directory_failure: None,
            health: Health::Ready,
            probe: None,
            room: u64::MAX,
            full: false,
            checked: None,
            probed: None,
            complained: None,
            sweep: None,
            next_sweep: None,
        };
        maildir.open_directories(true)?;
        Ok(maildir)
    }

    /// The file system behind it.
    pub fn file_system(&mut self) -> &mut F {
        &mut self.fs
    }

    /// Begins a message; `owner` is told of its end. Nothing is made on the disk before there is something to write.
    pub fn begin(&mut self, id: MessageId, owner: usize) -> usize {
        self.deliveries.insert(Delivery {
            id,
            attempt: 0,
            file: None,
            size: 0,
            stage: Stage::Open,
            failure: None,
            owner,
        })
    }

    /// Writes octets of a message that is still coming. An error is kept for [`finish`](Self::finish).
    pub fn append(&mut self, key: usize, content: &[u8], now: Now) {
        let Some(delivery) = self.deliveries.get_mut(key) else { return };
        if delivery.failure.is_some() || content.is_empty() {
            return;
        }
        if let Err(error) = write(&mut self.fs, self.directories.as_ref(), delivery, &self.host, content) {
            self.fail(key, "write", &error, now);
        }
    }

    /// Takes the rest of a message, which is whole now. What became of it is among the outcomes of a later
    /// [`advance`](Self::advance).
    pub fn finish(&mut self, key: usize, content: &[u8], now: Now) {
        let Some(delivery) = self.deliveries.get_mut(key) else { return };
        let missing = delivery.file.is_none() && content.is_empty();
        if missing && delivery.failure.is_none() {
            // An empty message still is a file; its trace lines make this unreachable in practice.
            delivery.failure = Some(Reply::STORAGE_FAILED);
        }
        self.append(key, content, now);
        let Some(delivery) = self.deliveries.get_mut(key) else { return };
        match delivery.failure {
            Some(reply) => self.refuse(key, reply),
            None => {
                delivery.stage = Stage::Written;
                self.written.push(key);
            }
        }
    }

    /// Drops a message that is still coming.
    pub fn discard(&mut self, key: usize) {
        if let Some(mut delivery) = self.deliveries.try_remove(key) {
            remove_from_tmp(&mut self.fs, self.directories.as_ref(), &mut delivery, &self.host);
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
            let begun = self.publish(now) | self.begin_flushes();
            if !begun {
                return;
            }
            flushes_ended = self.fs.submit();
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
        self.probe(now);
        if is_due(&mut self.checked, CHECK_INTERVAL, now) && self.health == Health::Ready {
            self.check(now);
        }
        match self.health {
            Health::Ready => Storage::Ready { room: self.room },
            Health::Failed | Health::Probing => Storage::Failed,
        }
    }

    /// Tries a failed disk again, at most once a second: creates, writes and flushes a file, and removes it.
    fn probe(&mut self, now: Now) {
        // The one before may still be under way, if another flush failed meanwhile.
        if self.health != Health::Failed || self.probe.is_some() || self.directory_flushes > 0 {
            return;
        }
        if !is_due(&mut self.probed, CHECK_INTERVAL, now) {
            return;
        }
        self.directories = None;
        if let Err((path, error)) = self.open_directories(false) {
            error!("{}: {error}; still refusing mail", path.display());
            return;
        }
        let id = crate::smtp::trace::MessageIds::new(0, std::process::id()).next(now.wall);
        let name = UniqueName::new(&id, 0, &self.host, None);
        let Some(directories) = &self.directories else { return };
        let begun = self.fs.create(&directories.tmp, name.as_c_str()).and_then(|mut file| {
            let written = self.fs.write(&mut file, b"probe\n");
            written.map(|()| file).inspect_err(|_| drop(self.fs.remove(&directories.tmp, name.as_c_str())))
        });
        match begun {
            Ok(file) => {
                self.fs.begin_flush(Flush::File(&file), PROBE_TICKET);
                self.probe = Some((file, id));
                self.health = Health::Probing;
                let ended = self.fs.submit();
                self.advance(ended, now);
            }
            Err(error) => error!("{}: {error}; still refusing mail", self.path.display()),
        }
    }

    /// How long until leftovers are to be looked for; none while there is something to do at once.
    pub fn next_sweep(&self, now: Instant) -> Duration {
        self.next_sweep
            .filter(|_| self.sweep.is_none())
            .map_or(Duration::ZERO, |next| next.saturating_duration_since(now))
    }

    /// Removes files in `tmp/` that nobody has written to for 36 hours: at start and once a day, a bounded number of
    /// names at a time. While the clock is earlier than the newest name in `new/` nothing is removed: a board without
    /// a battery for its clock starts in the past, and can't tell what is old.
    pub fn sweep(&mut self, now: Now) {
        if self.next_sweep(now.instant).is_zero() {
            self.next_sweep = Some(now.instant + SWEEP_INTERVAL);
            match self.sweep_on(now) {
                Ok(sweep) => self.sweep = sweep,
                Err(error) => self.complain("looking for leftovers", &error, now),
            }
        }
    }

    fn sweep_on(&mut self, now: Now) -> io::Result<Option<Sweep<F>>> {
        let sweep = self.sweep.take();
        let Directories { tmp, new, .. } = self.directories.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let Some(mut sweep) = sweep else {
            return Ok(Some(Sweep { names: self.fs.list(new)?, newest: 0, in_tmp: false, removed: 0 }));
        };
        for _ in 0..SWEEP_NAMES_MAX {
            match (self.fs.next_name(&mut sweep.names)?, sweep.in_tmp) {
                (Some(name), true) => {
                    sweep.removed += usize::from(remove_if_old(&mut self.fs, tmp, &name, &self.own, now));
                }
                (Some(name), false) if name.to_bytes().starts_with(PROOF.as_bytes()) => {
                    // Of a start that was killed between two steps of its proof.
                    remove_if_old(&mut self.fs, new, &name, &self.own, now);
                }
                (Some(name), false) => {
                    let seconds = name.to_str().ok().and_then(|name| name.split('.').next()?.parse().ok());
                    sweep.newest = sweep.newest.max(seconds.unwrap_or(0));
                }
                (None, true) => {
                    if sweep.removed > 0 {
                        info!("{}: removed {} leftovers from tmp/", self.path.display(), sweep.removed);
                    }
                    return Ok(None);
                }
                (None, false) if now.wall < UNIX_EPOCH + Duration::from_secs(sweep.newest.min(CLOCK_MAX)) => {
                    warn!("{}: the clock is earlier than the newest mail; leftovers stay", self.path.display());
                    return Ok(None);
                }
                (None, false) => (sweep.names, sweep.in_tmp) = (self.fs.list(tmp)?, true),
            }
        }
        Ok(Some(sweep))
    }

    /// Opens the directories. The Maildir itself is made only at the start, and what it lacks only where it was then: if
    /// it vanishes later it may be on a card that was pulled, and mail must not go to what lies below the mount point.
    fn open_directories(&mut self, start: bool) -> Result<(), (PathBuf, io::Error)> {
        let at_root = |error| (self.path.clone(), error);
        let root = self.fs.open_directory(&self.path, start).map_err(at_root)?;
        let device = self.fs.device(&root).map_err(at_root)?;
        let create = *self.device.get_or_insert(device) == device;
        let mut open = |index: usize, name: &CStr| {
            self.fs.open_directory_in(&root, name, create).map_err(|error| (self.paths[index].clone(), error))
        };
        self.directories = Some(Directories { tmp: open(0, c"tmp")?, new: open(1, c"new")?, cur: open(2, c"cur")? });
        Ok(())
    }

    /// Asks for room, and whether the directories are still where they were.
    fn check(&mut self, now: Now) {
        let Some(directories) = &self.directories else { return };
        let moved = !matches!(self.fs.is_same(&self.paths[1], &directories.new), Ok(true));
        if moved && self.directory_flushes == 0 {
            warn!("{}: removed or replaced while running; opening it again", self.path.display());
            self.directories = None;
            if let Err((path, error)) = self.open_directories(false) {
                error!("{}: {error}; refusing mail until it is back", path.display());
                self.health = Health::Failed;
                self.probed = Some(now.instant);
            }
        }
        let Some(directories) = &self.directories else { return };
        let Ok(space) = self.fs.space(&directories.new) else { return };
        self.room = match space.free_files {
            0 => 0,
            _ => space.free.saturating_sub(self.min_free.octets(space.total)),
        };
        if self.min_free == MinFree::Octets(0) && space.free_files > 0 {
            self.room = u64::MAX;
        }
        let full = self.room == 0;
        if full && !self.full {
            warn!("{}: {} octets free, below the floor; refusing mail", self.path.display(), space.free);
        } else if self.full && !full {
            warn!("{}: {} octets free; taking mail again", self.path.display(), space.free);
        }
        self.full = full;
    }

    /// Moves all that is flushed to `new/` and begins the flush of the directories, unless one is under way.
    fn publish(&mut self, now: Now) -> bool {
        if self.flushed.is_empty() || self.directory_flushes > 0 {
            return false;
        }
        let mut group = std::mem::replace(&mut self.flushed, std::mem::take(&mut self.spare));
        for key in group.drain(..) {
            match self.publish_one(key) {
                Ok(()) => self.published.push(key),
                Err(error) => {
                    self.fail(key, "move to new/", &error, now);
                    self.refuse(key, reply_to(&error));
                }
            }
        }
        self.spare = group;
        let Some(directories) = self.directories.as_ref().filter(|_| !self.published.is_empty()) else {
            return false;
        };
        self.fs.begin_flush(Flush::Directory(&directories.new), NEW_TICKET);
        self.fs.begin_flush(Flush::Directory(&directories.cur), CUR_TICKET);
        self.directory_flushes = 2;
        true
    }

    /// Moves one file to `new/`, under a fresh name where the first is taken.
    fn publish_one(&mut self, key: usize) -> io::Result<()> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let delivery = self.deliveries.get_mut(key).ok_or_else(gone)?;
        let Directories { tmp, new, .. } = self.directories.as_ref().ok_or_else(gone)?;
        let from = UniqueName::new(&delivery.id, delivery.attempt, &self.host, None);
        let created = delivery.attempt;
        loop {
            let to = UniqueName::new(&delivery.id, delivery.attempt, &self.host, Some(delivery.size));
            match self.fs.rename(tmp, from.as_c_str(), new, to.as_c_str()) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && delivery.attempt < ATTEMPTS_MAX => {
                    delivery.attempt += 1;
                }
                Err(error) => {
                    // The name that `fail` removes is the one in tmp/.
                    delivery.attempt = created;
                    return Err(error);
                }
                Ok(()) => {
                    delivery.stage = Stage::Published;
                    return Ok(());
                }
            }
        }
    }

    /// Begins as many flushes of files as there is room for, oldest first.
    fn begin_flushes(&mut self) -> bool {
        let count = (FLUSHES_MAX - self.flushes).min(self.written.len());
        for key in self.written.drain(..count) {
            let Some(delivery) = self.deliveries.get_mut(key) else { continue };
            let Some(file) = &delivery.file else { continue };
            self.fs.begin_flush(Flush::File(file), key as Ticket);
            delivery.stage = Stage::Flushing;
            self.flushes += 1;
        }
        count > 0
    }

    fn flush_ended(&mut self, ticket: Ticket, result: io::Result<()>, now: Now) {
        match ticket {
            NEW_TICKET | CUR_TICKET => {
                self.directory_flushes -= 1;
                if let Err(error) = result {
                    self.complain("flush of new/ or cur/", &error, now);
                    self.directory_failure.get_or_insert(reply_to(&error));
                }
                if self.directory_flushes == 0 {
                    self.directories_flushed();
                }
            }
            PROBE_TICKET => self.probed(result),
            _ => {
                self.flushes -= 1;
                let key = usize::try_from(ticket).unwrap_or(usize::MAX);
                match result {
                    Ok(()) => {
                        if let Some(delivery) = self.deliveries.get_mut(key) {
                            delivery.stage = Stage::Flushed;
                            self.flushed.push(key);
                        }
                    }
                    Err(error) => {
                        self.health = Health::Failed;
                        self.fail(key, "flush", &error, now);
                        self.refuse(key, reply_to(&error));
                    }
                }
            }
        }
    }

    /// Tells the owners of a group that it is safe, or that it is not.
    fn directories_flushed(&mut self) {
        let failure = self.directory_failure.take();
        while let Some(key) = self.published.pop() {
            if let Some(reply) = failure {
                self.refuse(key, reply);
            } else if let Some(delivery) = self.deliveries.try_remove(key) {
                self.outcomes.push((delivery.owner, Outcome::Stored));
            }
        }
        if failure.is_some() {
            self.health = Health::Failed;
            // What a descriptor reported once it does not report again: these are not used any more.
            self.directories = None;
            if let Err((path, error)) = self.open_directories(false) {
                error!("{}: {error}", path.display());
            }
        }
    }

    fn probed(&mut self, result: io::Result<()>) {
        let Some((_, id)) = self.probe.take() else { return };
        if let Some(directories) = &self.directories {
            let name = UniqueName::new(&id, 0, &self.host, None);
            let _ = self.fs.remove(&directories.tmp, name.as_c_str());
        }
        match result {
            // A flush failed after this one began: another is to show that the disk works.
            Ok(()) if self.health == Health::Failed => {}
            Ok(()) => {
                info!("{}: works again; taking mail", self.path.display());
                self.health = Health::Ready;
                self.checked = None;
            }
            Err(error) => {
                error!("{}: {error}; still refusing mail", self.path.display());
                self.health = Health::Failed;
            }
        }
    }

    /// Remembers why a message can't be stored, and removes what there is of it.
    fn fail(&mut self, key: usize, doing: &str, error: &io::Error, now: Now) {
        self.complain(doing, error, now);
        if error.kind() == io::ErrorKind::NotFound {
            // The directories themselves are gone.
            self.checked = None;
            self.health = Health::Failed;
        }
        if let Some(delivery) = self.deliveries.get_mut(key) {
            delivery.failure = Some(reply_to(error));
            remove_from_tmp(&mut self.fs, self.directories.as_ref(), delivery, &self.host);
        }
    }

    /// One line for an error of the disk; at most one a second, so that a full disk does not fill the log, too.
    fn complain(&mut self, doing: &str, error: &io::Error, now: Now) {
        if is_due(&mut self.complained, CHECK_INTERVAL, now) {
            error!("{}: {doing}: {error}", self.path.display());
        } else {
            debug!("{}: {doing}: {error}", self.path.display());
        }
    }

    /// Ends a message badly: its name is removed where it is.
    fn refuse(&mut self, key: usize, reply: Reply) {
        let Some(delivery) = self.deliveries.try_remove(key) else { return };
        if let Some(Directories { new, .. }) = self.directories.as_ref().filter(|_| delivery.stage == Stage::Published)
        {
            let name = UniqueName::new(&delivery.id, delivery.attempt, &self.host, Some(delivery.size));
            let _ = self.fs.remove(new, name.as_c_str());
        }
        self.outcomes.push((delivery.owner, Outcome::Refused(reply)));
    }
}

impl Maildir<Disk> {
    /// Shows that mail can be kept here: makes a file, writes, flushes, moves and removes it.
    ///
    /// # Errors
    /// The first step that failed, with the path that it failed on.
    pub fn prove(&mut self) -> Result<(), (PathBuf, io::Error)> {
        let name = CString::new(format!("{PROOF}{}", self.own)).unwrap_or_default();
        let Some(Directories { tmp, new, .. }) = &self.directories else { return Ok(()) };
        let [tmp_path, new_path, _] = &self.paths;
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| (path, error)
        };
        let mut file = self.fs.create(tmp, &name).map_err(at(tmp_path))?;
        let proven = self
            .fs
            .write(&mut file, b"proof\n")
            .and_then(|()| prove_flushes(&mut self.fs, &file, new))
            .map_err(at(tmp_path))
            .and_then(|()| self.fs.rename(tmp, &name, new, &name).map_err(at(new_path)));
        match proven {
            Ok(()) => self.fs.remove(new, &name).map_err(at(new_path)),
            Err(problem) => {
                let _ = self.fs.remove(tmp, &name);
                Err(problem)
            }
        }
    }
}

/// Has flushes done without blocking where that works, and flushes once in the way that is left where it does not.
fn prove_flushes(disk: &mut Disk, file: &OwnedFd, directory: &OwnedFd) -> io::Result<()> {
    let Err(reason) = disk.prove_flushes(file, directory) else { return Ok(()) };
    warn!("the disk can't be flushed in the background ({reason}): each flush holds up all sessions");
    disk.begin_flush(Flush::File(file), 0);
    disk.begin_flush(Flush::Directory(directory), 1);
    disk.submit();
    let mut flushed = Ok(());
    while let Some((_, result)) = disk.ended_flush() {
        flushed = flushed.and(result);
    }
    flushed
}

/// Names that are tried for one message.
const ATTEMPTS_MAX: u32 = 16;

/// Writes to a message's file, making it first where there is none.
fn write<F: FileSystem>(
    fs: &mut F,
    directories: Option<&Directories<F>>,
    delivery: &mut Delivery<F>,
    host: &str,
    content: &[u8],
) -> io::Result<()> {
    if delivery.file.is_none() {
        let directories = directories.ok_or(io::ErrorKind::NotFound)?;
        delivery.file = Some(loop {
            let name = UniqueName::new(&delivery.id, delivery.attempt, host, None);
            match fs.create(&directories.tmp, name.as_c_str()) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && delivery.attempt < ATTEMPTS_MAX => {
                    delivery.attempt += 1;
                }
                created => break created?,
            }
        });
    }
    if let Some(file) = &mut delivery.file {
        fs.write(file, content)?;
    }
    delivery.size += content.len() as u64;
    Ok(())
}

/// Removes a leftover that is old enough; one of `own` may only look old, when the clock was set while it was written.
fn remove_if_old<F: FileSystem>(fs: &mut F, directory: &F::Directory, name: &CStr, own: &str, now: Now) -> bool {
    if memchr::memmem::find(name.to_bytes(), own.as_bytes()).is_some() {
        return false;
    }
    let modified = fs.modified(directory, name);
    let age = modified.ok().and_then(|modified| now.wall.duration_since(modified).ok());
    age.is_some_and(|age| age >= LEFTOVER_AGE) && fs.remove(directory, name).is_ok()
}

/// Removes what there is of a message in `tmp/`.
fn remove_from_tmp<F: FileSystem>(
    fs: &mut F,
    directories: Option<&Directories<F>>,
    delivery: &mut Delivery<F>,
    host: &str,
) {
    if let (Some(directories), Some(_)) = (directories, delivery.file.take()) {
        let name = UniqueName::new(&delivery.id, delivery.attempt, host, None);
        let _ = fs.remove(&directories.tmp, name.as_c_str());
    }
}

/// What a client is told of an error: 452 where room is missing, 451 for all else (RFC 5321 4.2.3).
fn reply_to(error: &io::Error) -> Reply {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Reply::STORAGE_FULL,
        _ => Reply::STORAGE_FAILED,
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
