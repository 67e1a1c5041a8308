//! The delivery: from a message's octets to a file in `new/` of each of its mailboxes that survives a power cut.
//! `ARCHITECTURE.md` says why in this order, and what each file system makes of it.

use std::io;
use std::time::{Instant, SystemTime};

use itoa::Buffer;
use log::{error, info};
use slab::Slab;

use crate::config::Config;
use crate::fs::{Disk, FileSystem, Flush, Ticket};
use crate::journal::{self, Journal, Record};
use crate::maildir::{Directories, Health, MAIN_KEY, Maildirs, Name, PROOF, PathError, is_due};
use crate::smtp::reply::Reply;
use crate::smtp::session::Outcome;
use crate::smtp::trace::{MessageId, MessageIds};
use crate::sweep::Sweeper;

/// Flushes of files that are under way at once; messages beyond wait for their turn.
pub const FLUSHES_MAX: usize = 128;
/// Files that are open at once, unless descriptors are fewer; then sessions wait.
pub const FILES_MAX: usize = 2048;
/// Descriptors of a Maildir that is open: its three directories, and what they lie in.
pub const MAILDIR_DESCRIPTORS: usize = 4;
/// Names that are tried for one message, or journal.
const ATTEMPTS_MAX: u32 = 1000;
/// The destination that is the main Maildir.
pub const MAIN: &str = "";
/// Copies that an emptied list may have room for and still be kept.
const COPIES_KEPT_MAX: usize = 8;
/// The owner of a file that only shows that the disk works, and of messages whose owners know their end.
pub(crate) const PROBE: usize = usize::MAX;
pub(crate) const ANSWERED: usize = usize::MAX - 1;

/// Tickets: the copy's number above the message's key, or with this bit the directory's number above the Maildir's key.
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
        #[cfg(not(all(target_env = "musl", target_pointer_width = "32")))]
        let wall = SystemTime::now();
        // Here that has 32 bits for its seconds, and panics from 2038 on.
        #[cfg(all(target_env = "musl", target_pointer_width = "32"))]
        let wall = {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
            SystemTime::UNIX_EPOCH + std::time::Duration::new(now.tv_sec.max(0) as u64, now.tv_nsec as u32)
        };
        Self { instant: Instant::now(), wall }
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
pub(crate) struct Copy<F: FileSystem> {
    pub(crate) maildir: usize,
    place: Place,
    /// How many names were taken before this one was free.
    attempt: u32,
    /// What octets are written to; a copy without is a link to the file of another.
    file: Option<F::File>,
    /// Which copy has the file.
    body: usize,
    pub(crate) failure: Option<Reply>,
}

/// One message on its way.
pub(crate) struct Delivery<F: FileSystem> {
    pub(crate) id: MessageId,
    /// Who is told of the end, by the server's own key.
    pub(crate) owner: usize,
    /// Whether each copy succeeds or fails by itself, as in LMTP; else all do or none.
    pub(crate) apart: bool,
    size: u64,
    pub(crate) copies: Vec<Copy<F>>,
    /// Where the journal has it, and what its copies' destinations are where it is delivered from there.
    pub(crate) record: Option<Record>,
    pub(crate) destinations: Vec<String>,
    /// Ends that it waits for: flushes of its files, then those of its Maildirs.
    waiting: usize,
}

impl<F: FileSystem> Delivery<F> {
    /// Why nothing of it can be stored any more.
    fn failure(&self) -> Option<Reply> {
        let partly = self.apart && self.copies.iter().any(|copy| copy.failure.is_none());
        self.copies.iter().find_map(|copy| copy.failure).filter(|_| !partly)
    }

    /// A name in `tmp/`, and with the size added in `new/`: `seconds.id.host,S=size`.
    fn name(&self, attempt: u32, place: Place, host: &str) -> Name {
        let (mut again, mut size) = (Buffer::new(), Buffer::new());
        let again = if attempt > 0 { ["A", again.format(attempt)] } else { [""; 2] };
        let size = if place == Place::New { [",S=", size.format(self.size)] } else { [""; 2] };
        Name::new(&[&self.id.unique_name, again[0], again[1], ".", host, size[0], size[1]])
    }

    /// Makes the name of a copy in `tmp/`: a link to the file of one before it, or a file of its own. None is made for
    /// one that failed, nor a second one in the same Maildir, which may have another name, too.
    fn create(&mut self, index: usize, maildirs: &mut Maildirs<F>) -> io::Result<()> {
        let Maildirs { fs, open, host, .. } = maildirs;
        let (before, rest) = self.copies.split_at(index);
        let Some(copy) = rest.first().filter(|copy| copy.failure.is_none()) else { return Ok(()) };
        if let Some(same) = before.iter().find(|other| other.maildir == copy.maildir) {
            self.copies[index].body = same.body;
            return Ok(());
        }
        let directories = |copy: &Copy<F>| open.get(copy.maildir)?.usable().ok();
        let Directories { tmp, .. } = directories(copy).ok_or(io::ErrorKind::NotFound)?;
        let (attempt, (body, file)) = first_free(0, |attempt| {
            let name = self.name(attempt, Place::Tmp, host);
            let linked = before.iter().position(|body| {
                let from = directories(body).filter(|_| body.file.is_some() && body.failure.is_none());
                let old = self.name(body.attempt, Place::Tmp, host);
                from.is_some_and(|from| fs.link(&from.tmp, old.as_c_str(), tmp, name.as_c_str()).is_ok())
            });
            linked.map_or_else(|| Ok((index, Some(fs.create(tmp, name.as_c_str())?))), |body| Ok((body, None)))
        })?;
        self.copies[index] = Copy { place: Place::Tmp, attempt, file, body, ..self.copies[index] };
        Ok(())
    }

    /// Moves a copy to `new/`, under a fresh name where the first is taken, and has it wait for the flush of that. One that
    /// failed has no name to be moved.
    fn publish(&mut self, key: usize, index: usize, maildirs: &mut Maildirs<F>) -> io::Result<()> {
        let Maildirs { fs, open, host, .. } = maildirs;
        let Copy { maildir, attempt: created, place: Place::Tmp, .. } = self.copies[index] else { return Ok(()) };
        let maildir = open.get_mut(maildir).ok_or(io::ErrorKind::NotFound)?;
        let Directories { tmp, new, .. } = maildir.usable()?;
        let from = self.name(created, Place::Tmp, host);
        let (attempt, ()) = first_free(created, |attempt| {
            fs.rename(tmp, from.as_c_str(), new, self.name(attempt, Place::New, host).as_c_str())
        })?;
        (self.copies[index].attempt, self.copies[index].place) = (attempt, Place::New);
        maildir.moved.push(key);
        self.waiting += 1;
        Ok(())
    }

    /// Removes the name of a copy.
    fn unlink(&mut self, index: usize, maildirs: &mut Maildirs<F>) {
        let Copy { maildir, place, attempt, .. } = self.copies[index];
        if place != Place::Nowhere {
            self.copies[index].place = Place::Nowhere;
            maildirs.unlink(maildir, place == Place::Tmp, self.name(attempt, place, &maildirs.host));
        }
    }

    /// Removes what another try left of it in `tmp/`.
    pub(crate) fn remove_leftovers(&self, maildirs: &mut Maildirs<F>) {
        for copy in &self.copies {
            maildirs.unlink(copy.maildir, true, self.name(0, Place::Tmp, &maildirs.host));
        }
    }

    /// Notes an error that hit some copies: refuses them, or all where they belong together, and removes their names.
    pub(crate) fn fail(
        &mut self, doing: &str, error: &io::Error, hit: &dyn Fn(&Copy<F>) -> bool, maildirs: &mut Maildirs<F>, now: Now,
    ) {
        let Some(first) = self.copies.iter().find(|&copy| hit(copy)).map(|copy| copy.maildir) else { return };
        maildirs.complain_of(first, doing, error, now);
        let gone = error.kind() == io::ErrorKind::NotFound && maildirs.alone;
        if first == MAIN_KEY && (gone || matches!(error.raw_os_error(), Some(libc::EIO | libc::EROFS))) {
            // The directories themselves are gone, or the disk is as good as that.
            maildirs.health = Health::Failed;
        }
        if let Some(maildir) = maildirs.open.get(first).filter(|_| self.copies.len() > 1 && !self.apart) {
            maildirs.leave_out(maildir.destination.clone(), error, now);
        }
        for index in 0..self.copies.len() {
            if !self.apart || hit(&self.copies[index]) {
                self.copies[index].failure.get_or_insert(reply_to(error));
                self.unlink(index, maildirs);
            }
        }
    }
}

/// The messages on their way, and the Maildirs that they go to.
pub struct Store<F: FileSystem> {
    pub(crate) maildirs: Maildirs<F>,
    pub(crate) sweeper: Sweeper<F>,
    pub(crate) journal: Journal<F>,
    pub(crate) deliveries: Slab<Delivery<F>>,
    /// Written, in order, waiting for a place among the flushes.
    pub(crate) written: Vec<usize>,
    outcomes: Vec<(usize, Outcome)>,
    /// Emptied lists, kept for their memory.
    pub(crate) spare: Vec<Vec<Copy<F>>>,
    pub(crate) flushes: usize,
    /// Open files of messages.
    pub(crate) files: usize,
    /// How many descriptors may be used before sessions wait.
    pub files_max: usize,
}

impl<F: FileSystem> Store<F> {
    /// Opens the main Maildir and the directory of mailboxes; what is missing is made. `random` tells our files.
    pub fn open(fs: F, config: &Config, random: u64) -> Result<Self, PathError> {
        let (mut maildirs, sweeper) = (Maildirs::open(fs, config, random)?, Sweeper::new(config.keep));
        let journal = Journal::open(&mut maildirs.fs, config)?;
        let (deliveries, written, outcomes, spare) = Default::default();
        let (flushes, files, files_max) = (0, 0, FILES_MAX);
        Ok(Self { maildirs, sweeper, journal, deliveries, written, outcomes, spare, flushes, files, files_max })
    }

    /// Whether new messages are to wait until others are stored.
    pub fn is_full(&self) -> bool {
        self.files + MAILDIR_DESCRIPTORS * (self.maildirs.open.len() - 1) >= self.files_max
    }

    /// The file system behind it.
    pub fn file_system(&mut self) -> &mut F {
        &mut self.maildirs.fs
    }

    /// Begins a message; `owner` is told of its end. Nothing is made on the disk before there is something to write.
    pub fn begin<'a>(
        &mut self, id: MessageId, owner: usize, destinations: impl IntoIterator<Item = &'a str, IntoIter: Clone>,
        apart: bool, now: Now,
    ) -> usize {
        let destinations = destinations.into_iter();
        let together = !apart && destinations.clone().nth(1).is_some();
        let mut copies: Vec<Copy<F>> = self.spare.pop().unwrap_or_default();
        for (index, destination) in destinations.enumerate() {
            let opened = self.maildirs.open_destination(destination);
            if let Err((path, error)) = &opened {
                self.maildirs.complain(path, "open", error, now);
                if together {
                    self.maildirs.leave_out(destination.to_owned(), error, now);
                }
            }
            let failure = opened.as_ref().err().map(|(_, error)| reply_to(error));
            let maildir = opened.unwrap_or(usize::MAX);
            copies.push(Copy { maildir, place: Place::Nowhere, attempt: 0, file: None, body: index, failure });
        }
        let (record, destinations) = (None, Vec::new());
        self.deliveries.insert(Delivery { id, owner, apart, size: 0, copies, record, destinations, waiting: 0 })
    }

    /// Writes octets of a message that is still coming. An error is kept for [`finish`](Self::finish).
    pub fn append(&mut self, key: usize, content: &[u8], now: Now) {
        let wanted = |delivery: &&mut Delivery<F>| !content.is_empty() && delivery.failure().is_none();
        let Some(delivery) = self.deliveries.get_mut(key).filter(wanted) else { return };
        for index in 0..if delivery.size == 0 { delivery.copies.len() } else { 0 } {
            let created = delivery.create(index, &mut self.maildirs);
            let Copy { maildir, ref file, .. } = delivery.copies[index];
            self.files += usize::from(file.is_some());
            if let Err(error) = created {
                delivery.fail("create", &error, &|copy| copy.maildir == maildir, &mut self.maildirs, now);
            }
        }
        for index in 0..delivery.copies.len() {
            let Copy { file: Some(file), failure: None, .. } = &mut delivery.copies[index] else { continue };
            if let Err(error) = self.maildirs.fs.write(file, content) {
                delivery.fail("write", &error, &|copy| copy.body == index, &mut self.maildirs, now);
            }
        }
        delivery.size += content.len() as u64;
    }

    /// Takes the rest of a message. What became of it is among the outcomes of a later [`advance`](Self::advance).
    pub fn finish(&mut self, key: usize, content: &[u8], now: Now) {
        let is_whole = self.deliveries.get(key).is_some_and(|delivery| delivery.size == 0);
        self.append(key, content, now);
        let Some(delivery) = self.deliveries.get_mut(key) else { return };
        if delivery.failure().is_some() || delivery.copies.is_empty() {
            self.end(key);
        } else if !(is_whole && self.journals(key, content, now)) {
            self.written.push(key);
        }
    }

    /// Drops a message that is still coming.
    pub fn discard(&mut self, key: usize) {
        if let Some(delivery) = self.deliveries.try_remove(key) {
            self.forget(delivery);
        }
    }

    /// Gives up memory that was kept for a next crowd of messages.
    pub(crate) fn trim(&mut self) {
        self.spare = Vec::new();
        self.deliveries.shrink_to_fit();
        self.journal.trim();
    }

    /// Removes what nobody was told of, as the process is about to end.
    pub fn abort(&mut self) {
        std::mem::take(&mut self.deliveries).into_iter().for_each(|(_, delivery)| self.forget(delivery));
    }

    /// Whether no message is between its first octet and its place in `new/`.
    pub fn is_idle(&self) -> bool {
        self.deliveries.is_empty() && self.journal.is_idle()
    }

    /// When there is something to do without an event.
    pub(crate) fn next(&self) -> Instant {
        self.journal.next().into_iter().fold(self.sweeper.next(), Instant::min)
    }

    /// Moves every message as far as it can go now. With `flushes_ended` the file system is asked which flushes ended.
    pub fn advance(&mut self, mut flushes_ended: bool, now: Now) {
        if !flushes_ended && self.deliveries.is_empty() && self.journal.is_at_rest() {
            return;
        }
        loop {
            while let Some((ticket, result)) = flushes_ended.then(|| self.maildirs.fs.ended_flush()).flatten() {
                let (key, number) = (ticket as u32 as usize, (ticket >> NUMBER_SHIFT) as usize);
                match ticket & DIRECTORY_TICKET {
                    _ if ticket == journal::TICKET => self.journal_flushed(result, now),
                    0 => self.file_flushed(key, number, result, now),
                    _ => self.directory_flushed(key, result, now),
                }
            }
            self.advance_journal(now);
            self.begin_directory_flushes();
            self.begin_file_flushes();
            flushes_ended = self.maildirs.fs.submit();
            if !flushes_ended {
                return;
            }
        }
    }

    /// The next message whose end is known, by its owner.
    pub fn outcome(&mut self) -> Option<(usize, Outcome)> {
        self.outcomes.pop()
    }

    /// How many octets of new mail the disk has room for, or 451: asked once a second, and a failed one tried again.
    pub fn storage(&mut self, now: Now) -> Result<u64, Reply> {
        let Maildirs { open, health, probed, .. } = &mut self.maildirs;
        let is_tried = || self.deliveries.iter().any(|(_, delivery)| delivery.owner == PROBE);
        if *health == Health::Failed && open[MAIN_KEY].flushes == 0 && !is_tried() && is_due(probed, now) {
            self.begin_probe(now);
        }
        if self.maildirs.health == Health::Ready && is_due(&mut self.maildirs.checked, now) {
            self.maildirs.check(now);
        }
        match self.maildirs.health {
            // Those who know that their mail is safe come first.
            Health::Ready if self.journal.lacks_room => Ok(0),
            Health::Ready => Ok(self.maildirs.room),
            _ => Err(Reply::STORAGE_FAILED),
        }
    }

    /// Removes leftovers, and mail that is more than is to be kept: a bounded number of names at a time.
    pub fn sweep(&mut self, now: Now) {
        let seconds = self.deliveries.iter().map(|(_, delivery)| delivery.id.seconds);
        self.sweeper.step(&mut self.maildirs, seconds.min().unwrap_or(u64::MAX), now);
    }

    /// Tries a failed disk again: creates, writes and flushes a file, and removes it.
    fn begin_probe(&mut self, now: Now) {
        if let Err((path, error)) = self.maildirs.open_main() {
            return error!("{}: {error}; still refusing mail", path.display());
        }
        self.maildirs.health = Health::Probing;
        let key = self.begin(MessageIds::new(0, std::process::id()).next(now.wall), PROBE, [MAIN], false, now);
        self.finish(key, b"probe\n", now);
        self.advance(false, now);
    }

    /// Begins the flushes of as many messages as there is room for, oldest first.
    fn begin_file_flushes(&mut self) {
        let mut begun = 0;
        for &key in &self.written {
            let Some(delivery) = self.deliveries.get_mut(key) else { continue };
            let files = delivery.copies.iter().enumerate().filter_map(|(index, it)| Some((index, it.file.as_ref()?)));
            delivery.waiting = files.clone().count();
            if self.flushes > 0 && self.flushes + delivery.waiting > FLUSHES_MAX {
                break;
            }
            for (index, file) in files {
                self.maildirs.fs.begin_flush(Flush::File(file), (index as Ticket) << NUMBER_SHIFT | key as Ticket);
            }
            self.flushes += delivery.waiting;
            begun += 1;
        }
        self.written.drain(..begun);
    }

    /// Begins the flush of each Maildir that messages were moved to, unless one is under way there.
    fn begin_directory_flushes(&mut self) {
        let Maildirs { fs, open, .. } = &mut self.maildirs;
        for (key, maildir) in open.iter_mut().filter(|(_, it)| it.flushes == 0 && !it.moved.is_empty()) {
            std::mem::swap(&mut maildir.moved, &mut maildir.flushing);
            let all = [&maildir.directories.new, &maildir.directories.cur].into_iter().chain(&maildir.above);
            for (directory, number) in all.zip(0..) {
                fs.begin_flush(Flush::Directory(directory), DIRECTORY_TICKET | number << NUMBER_SHIFT | key as Ticket);
                maildir.flushes += 1;
            }
        }
    }

    /// The octets of a message are safe, as far as one of its files goes, or they are not.
    fn file_flushed(&mut self, key: usize, body: usize, result: io::Result<()>, now: Now) {
        self.flushes -= 1;
        let Some(delivery) = self.deliveries.get_mut(key) else { return };
        if let Err(error) = result {
            self.maildirs.health = Health::Failed;
            delivery.fail("flush", &error, &|copy| copy.body == body, &mut self.maildirs, now);
        }
        self.files -= usize::from(delivery.copies.get_mut(body).and_then(|copy| copy.file.take()).is_some());
        delivery.waiting -= 1;
        if delivery.waiting > 0 {
            return;
        }
        // Nobody is to see a probe.
        for index in 0..if delivery.owner == PROBE { 0 } else { delivery.copies.len() } {
            let Copy { maildir, .. } = delivery.copies[index];
            if let Err(error) = delivery.publish(key, index, &mut self.maildirs) {
                delivery.fail("move to new/", &error, &|copy| copy.maildir == maildir, &mut self.maildirs, now);
            }
        }
        if delivery.waiting == 0 {
            self.end(key);
        }
    }

    /// A group of messages is safe once all directories of a Maildir are flushed; else neither are those moved since.
    fn directory_flushed(&mut self, key: usize, result: io::Result<()>, now: Now) {
        let Some(maildir) = self.maildirs.open.get_mut(key) else { return };
        maildir.flush_failure = maildir.flush_failure.take().or(result.err());
        maildir.flushes -= 1;
        if maildir.flushes > 0 {
            return;
        }
        maildir.above.clear();
        let failure = maildir.flush_failure.take();
        if failure.is_some() {
            maildir.flushing.append(&mut maildir.moved);
            // What a descriptor reported once it does not report again.
            maildir.failed = true;
            self.maildirs.health = Health::Failed;
            self.journal.doubt();
        }
        // It is open until the last of them ends. Outcomes are taken from the last on, too, so who came first hears first.
        while let Some(message) = self.maildirs.open.get_mut(key).and_then(|maildir| maildir.flushing.pop()) {
            let Some(delivery) = self.deliveries.get_mut(message) else { continue };
            if let Some(error) = &failure {
                delivery.fail("flush of new/ or cur/", error, &|copy| copy.maildir == key, &mut self.maildirs, now);
            }
            delivery.waiting -= 1;
            if delivery.waiting == 0 {
                self.end(message);
            }
        }
        if let Some((path, error)) = failure.filter(|_| key == MAIN_KEY).and_then(|_| self.maildirs.open_main().err()) {
            error!("{}: {error}", path.display());
        }
    }

    /// Lets go of a message that is safe or failed, and tells its owner.
    pub(crate) fn end(&mut self, key: usize) {
        let owner = self.deliveries.get(key).map_or(ANSWERED, |delivery| delivery.owner);
        self.tell(key);
        let Some(delivery) = self.deliveries.try_remove(key) else { return };
        if owner == PROBE {
            let path = self.maildirs.open[MAIN_KEY].path.display();
            if delivery.failure().is_none() && self.maildirs.health == Health::Probing {
                info!("{path}: works again; taking mail");
                (self.maildirs.health, self.maildirs.checked) = (Health::Ready, None);
            } else {
                // It may be that a flush failed after this one began: then another is to show that the disk works.
                error!("{path}: still refusing mail");
                self.maildirs.health = Health::Failed;
            }
        }
        let mut again: Option<(Reply, Vec<String>)> = None;
        for (index, copy) in delivery.copies.iter().enumerate() {
            let destination = self.maildirs.open.get(copy.maildir).map(|maildir| &maildir.destination);
            if let Some(reply) = copy.failure.filter(|_| owner == ANSWERED) {
                let (_, destinations) = again.get_or_insert((reply, Vec::new()));
                destinations.extend(delivery.destinations.get(index).or(destination).cloned());
            } else if copy.place == Place::New {
                destination.into_iter().for_each(|destination| self.sweeper.note(destination));
            }
        }
        if owner == ANSWERED {
            self.published(delivery.id, delivery.record, delivery.destinations.is_empty(), again);
        }
        self.forget(delivery);
    }

    /// Tells the owner what became of a message, unless that knows; what it is told is settled.
    pub(crate) fn tell(&mut self, key: usize) {
        let Some(delivery) = self.deliveries.get_mut(key).filter(|it| it.owner < ANSWERED) else { return };
        let failure = delivery.failure();
        self.outcomes.push((delivery.owner, failure.map_or(Outcome::Stored, Outcome::Refused)));
        for (index, copy) in delivery.copies.iter_mut().enumerate().filter(|_| failure.is_none()) {
            // Told before, as the last is taken first.
            self.outcomes.extend(copy.failure.take().map(|reply| (delivery.owner, Outcome::Missing(index, reply))));
        }
        (delivery.owner, delivery.apart) = (ANSWERED, true);
    }

    /// Lets go of a message, with the names that it still has, but for those in `new/` of one that is answered: what the
    /// journal has comes back at the next start, unless it is there.
    fn forget(&mut self, mut delivery: Delivery<F>) {
        for index in 0..delivery.copies.len() {
            if delivery.owner != ANSWERED || delivery.copies[index].place == Place::Tmp {
                delivery.unlink(index, &mut self.maildirs);
            }
            let Copy { maildir, ref file, .. } = delivery.copies[index];
            self.files -= usize::from(file.is_some());
            self.maildirs.release(maildir);
        }
        delivery.copies.clear();
        // A long list goes back, as no envelope counts it any more.
        if delivery.copies.capacity() <= COPIES_KEPT_MAX {
            self.spare.push(delivery.copies);
        }
    }
}

impl Store<Disk> {
    /// Shows that mail can be kept here: makes a file, writes, flushes, moves and removes it.
    pub fn prove(&mut self) -> Result<(), PathError> {
        match self.prove_once() {
            // What was flushed in vain is not flushed again, nor by what was opened before: the proof begins anew.
            Err(_) if self.maildirs.fs.falls_back => self.maildirs.open_main().and_then(|()| self.prove_once()),
            proven => proven,
        }
    }

    fn prove_once(&mut self) -> Result<(), PathError> {
        let Maildirs { fs, open, own, .. } = &mut self.maildirs;
        let name = Name::new(&[PROOF, own]);
        let name = name.as_c_str();
        let Directories { tmp, new, .. } = &open[MAIN_KEY].directories;
        let at = |directory, error| (open[MAIN_KEY].path.join(directory), error);
        let mut file = fs.create(tmp, name).map_err(|error| at("tmp", error))?;
        let flushed = fs.write(&mut file, b"proof\n").and_then(|()| fs.prove_flushes(&file, new));
        let proven = flushed.map_err(|error| at("tmp", error)).and_then(|()| {
            let moved = fs.rename(tmp, name, new, name).and_then(|()| fs.remove(new, name));
            moved.map_err(|error| at("new", error))
        });
        proven.inspect_err(|_| drop(fs.remove(tmp, name)))
    }
}

/// Makes a name, under the first number from `attempt` on that is free.
pub(crate) fn first_free<T>(mut attempt: u32, mut make: impl FnMut(u32) -> io::Result<T>) -> io::Result<(u32, T)> {
    loop {
        match make(attempt) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < ATTEMPTS_MAX => attempt += 1,
            made => return Ok((attempt, made?)),
        }
    }
}

/// What a client is told of an error: 452 where room is missing, 451 for all else (RFC 5321 4.2.3).
fn reply_to(error: &io::Error) -> Reply {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Reply::STORAGE_FULL,
        _ => Reply::STORAGE_FAILED,
    }
}
