//! What is swept out of Maildirs: leftovers in `tmp/`, and mail beyond what is to be kept.

use std::collections::BinaryHeap;
use std::ffi::{CStr, CString};
use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{info, warn};

use crate::delivery::Now;
use crate::fs::FileSystem;
use crate::maildir::{Directories, Maildirs, PROOF};

/// Age at which a file in `tmp/` is a leftover, after the Maildir specification.
const LEFTOVER_AGE: Duration = Duration::from_secs(36 * 3600);
/// How often Maildirs are looked through.
const INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// How long sweeps are apart at least, and how much longer for each message that the last one found.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_OF_ONE: Duration = Duration::from_micros(100);
/// Names that are looked at, or removed, in one turn.
const NAMES_MAX: usize = 64;
/// Messages that are found to be the oldest at a time.
const OLDEST_MAX: usize = 256;
/// Maildirs that wait to be looked through; more wait for their next message.
const UNSWEPT_MAX: usize = 1024;
/// Seconds since 1970 that every clock can show; a name may say anything.
const CLOCK_MAX: u64 = u32::MAX as u64;

/// How much mail stays in a Maildir; all of it where nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// So many messages in `new/`; the oldest go first.
    pub messages: Option<usize>,
    /// Messages that came so long ago at most.
    pub age: Option<Duration>,
}

/// Looks through the main Maildir at the start, and those that got mail daily, or soon where it is not kept for ever.
pub(crate) struct Sweeper<F: FileSystem> {
    keep: Keep,
    sweep: Option<Sweep<F>>,
    /// When the next sweep is due, and before when there is none.
    next: Instant,
    from: Instant,
    /// Destinations that mail came to since they were looked through, and those that are next.
    unswept: Vec<String>,
    batch: Vec<String>,
    /// Messages in those of the batch that were looked through.
    messages: usize,
}

/// A look through a Maildir: first `new/`, until there is nothing to remove, then `tmp/`.
struct Sweep<F: FileSystem> {
    maildir: usize,
    names: Option<F::Listing>,
    in_tmp: bool,
    /// How many messages `new/` holds, the latest of them in seconds since 1970, and the oldest with their times: those
    /// of this run behind all others, as the clock may have been set since.
    messages: usize,
    newest: u64,
    oldest: BinaryHeap<(bool, u64, u32, CString)>,
    /// Those that are to go, the oldest last.
    going: Vec<CString>,
    removed: usize,
}

impl<F: FileSystem> Sweeper<F> {
    pub(crate) fn new(keep: Keep) -> Self {
        let now = Instant::now();
        Self { keep, sweep: None, next: now, from: now, unswept: Vec::new(), batch: Vec::new(), messages: 0 }
    }

    /// When there is something to do.
    pub(crate) fn next(&self) -> Instant {
        if self.sweep.is_some() { self.from } else { self.next }
    }

    /// Notes that mail came.
    pub(crate) fn note(&mut self, destination: &str) {
        if self.unswept.len() < UNSWEPT_MAX && !self.unswept.iter().any(|known| known == destination) {
            self.unswept.push(destination.to_owned());
        }
        if self.keep != Keep::default() {
            self.next = self.next.min(self.from);
        }
    }

    /// Does some work, if it is due. Messages of this run are safe from before `unsafe_from`, in seconds since 1970.
    pub(crate) fn step(&mut self, maildirs: &mut Maildirs<F>, unsafe_from: u64, now: Now) {
        if self.next() > now.instant {
            return;
        }
        let Some(mut sweep) = self.sweep.take().or_else(|| self.begin(maildirs, now)) else { return self.rest(0, now) };
        match sweep.step(maildirs, self.keep, unsafe_from, now.wall) {
            Ok(true) => return self.sweep = Some(sweep),
            Ok(false) => {}
            Err(error) => maildirs.complain_of(sweep.maildir, "looking for leftovers", &error, now),
        }
        maildirs.release(sweep.maildir);
        self.rest(sweep.messages, now);
    }

    /// Opens the next of the batch, or the main Maildir where nothing waits.
    fn begin(&mut self, maildirs: &mut Maildirs<F>, now: Now) -> Option<Sweep<F>> {
        if self.batch.is_empty() {
            std::mem::swap(&mut self.batch, &mut self.unswept);
            self.messages = 0;
        }
        let opened = maildirs.open_destination(&self.batch.pop().unwrap_or_default());
        let maildir = opened.map_err(|(path, error)| maildirs.complain(&path, "open", &error, now)).ok()?;
        let (names, oldest, going) = (None, BinaryHeap::new(), Vec::new());
        Some(Sweep { maildir, names, in_tmp: false, messages: 0, newest: 0, oldest, going, removed: 0 })
    }

    /// Waits for the next Maildir, none of which is looked through all the time: after the batch, the longer the larger.
    fn rest(&mut self, messages: usize, now: Now) {
        self.messages += messages;
        if !self.batch.is_empty() {
            return self.next = now.instant;
        }
        self.from = now.instant + PAUSE + PAUSE_OF_ONE * self.messages as u32;
        let soon = !self.unswept.is_empty() && self.keep != Keep::default();
        self.next = if soon { self.from } else { now.instant + INTERVAL };
    }
}

impl<F: FileSystem> Sweep<F> {
    /// The next step; false when it has come to its end. While the clock is earlier than the newest name nothing is
    /// removed: a board without a battery for its clock starts in the past, and can't tell what is old.
    fn step(&mut self, maildirs: &mut Maildirs<F>, keep: Keep, unsafe_from: u64, now: SystemTime) -> io::Result<bool> {
        let Maildirs { fs, own, open, .. } = maildirs;
        let Some(maildir) = open.get(self.maildir) else { return Ok(false) };
        let (path, Directories { tmp, new, .. }) = (maildir.path.display(), maildir.usable()?);
        for _ in 0..NAMES_MAX {
            if let Some(name) = self.going.pop() {
                fs.remove(new, &name)?;
                self.removed += 1;
                continue;
            }
            let names = match &mut self.names {
                Some(names) => names,
                None => self.names.insert(fs.list(if self.in_tmp { tmp } else { new })?),
            };
            match fs.next_name(names)? {
                Some(name) if self.in_tmp => self.removed += usize::from(remove_if_old(fs, tmp, &name, own, now)),
                // Of a start that was killed between two steps of its proof.
                Some(name) if name.to_bytes().starts_with(PROOF.as_bytes()) => {
                    remove_if_old(fs, new, &name, own, now);
                }
                Some(name) => self.look_at(name, own, keep),
                None if self.in_tmp => {
                    if self.removed > 0 {
                        info!("{path}: removed {} leftovers from tmp/", self.removed);
                    }
                    return Ok(false);
                }
                None if now < UNIX_EPOCH + Duration::from_secs(self.newest.min(CLOCK_MAX)) => {
                    warn!("{path}: the clock is earlier than the newest mail; nothing is removed");
                    return Ok(false);
                }
                None => {
                    self.choose(keep, unsafe_from, now);
                    self.names = None;
                    self.in_tmp = self.going.is_empty();
                    let removed = if self.in_tmp { std::mem::take(&mut self.removed) } else { 0 };
                    if removed > 0 {
                        info!("{path}: removed {removed} messages of {}", self.messages + removed);
                    }
                    self.messages = if self.in_tmp { self.messages } else { 0 };
                }
            }
        }
        Ok(true)
    }

    /// Counts a message, and notes it if it is among the oldest. Names of anything else mean nothing.
    fn look_at(&mut self, name: CString, own: &str, keep: Keep) {
        let Some((seconds, unique)) = name.to_str().ok().and_then(|name| name.split_once('.')) else { return };
        let Some(seconds) = crate::config::number(seconds) else { return };
        let microseconds =
            unique.strip_prefix('M').and_then(|it| crate::config::number(it.split('R').next()?)).unwrap_or(0);
        self.messages += 1;
        self.newest = self.newest.max(seconds);
        if keep != Keep::default() {
            self.oldest.push((is_of(&name, own), seconds, microseconds, name));
            if self.oldest.len() > OLDEST_MAX {
                self.oldest.pop();
            }
        }
    }

    /// Chooses those of the oldest that are to go: none of this run while one of another stays.
    fn choose(&mut self, keep: Keep, unsafe_from: u64, now: SystemTime) {
        let until = keep.age.and_then(|age| now.checked_sub(age)?.duration_since(UNIX_EPOCH).ok());
        let surplus = self.messages.saturating_sub(keep.messages.unwrap_or(usize::MAX));
        let oldest = std::mem::take(&mut self.oldest).into_sorted_vec().into_iter().enumerate();
        let going = oldest.take_while(|(index, (own, seconds, ..))| {
            let goes = *index < surplus || until.is_some_and(|until| *seconds < until.as_secs());
            goes && (!own || *seconds < unsafe_from)
        });
        self.going.extend(going.map(|(_, (.., name))| name));
        self.going.reverse();
    }
}

/// Whether a name is that of a file of this run.
fn is_of(name: &CStr, own: &str) -> bool {
    name.to_bytes().windows(own.len()).any(|part| part == own.as_bytes())
}

/// Removes a leftover that is old enough; one of `own` may only look old, when the clock was set while it was written.
fn remove_if_old<F: FileSystem>(fs: &mut F, directory: &F::Directory, name: &CStr, own: &str, now: SystemTime) -> bool {
    let mut age = || now.duration_since(fs.modified(directory, name).ok()?).ok();
    !is_of(name, own) && age().is_some_and(|age| age >= LEFTOVER_AGE) && fs.remove(directory, name).is_ok()
}
