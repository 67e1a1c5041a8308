//! One Maildir: its directories held open, the names of its files, and what is swept out of it.

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::{info, warn};

use crate::fs::FileSystem;
use crate::smtp::reply::Reply;

/// Age at which a file in `tmp/` is a leftover, after the Maildir specification.
const LEFTOVER_AGE: Duration = Duration::from_secs(36 * 3600);

/// Names that a sweep looks at in one turn.
const SWEEP_NAMES_MAX: usize = 64;

/// Seconds since 1970 that every clock can show; a name may say anything.
const CLOCK_MAX: u64 = u32::MAX as u64;

/// Octets of our host's name in a file name, `/` and `:` encoded.
const HOST_OCTETS_MAX: usize = 100;

/// How a file begins that only proves that mail can be kept. Readers of a Maildir pass over such names.
pub(crate) const PROOF: &str = ".proof-";

/// An error with the path that it speaks of.
pub type PathError = (PathBuf, io::Error);

/// A file name as the system takes it, on the stack.
pub(crate) struct Name {
    /// Zero behind the name, and so at least once.
    octets: [u8; 256],
    length: usize,
}

impl Name {
    pub(crate) const fn new() -> Self {
        Self { octets: [0; 256], length: 0 }
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.octets).unwrap_or_default()
    }
}

/// What finds no room is left out.
impl fmt::Write for Name {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.octets.len() - 1 - self.length;
        let text = &text.as_bytes()[..text.len().min(room)];
        self.octets[self.length..][..text.len()].copy_from_slice(text);
        self.length += text.len();
        Ok(())
    }
}

/// Our host's name as it may stand in a file name.
pub(crate) fn name_host(hostname: &str) -> String {
    let mut host = String::new();
    for character in hostname.chars() {
        match character {
            _ if host.len() + 4 > HOST_OCTETS_MAX => break,
            '/' => host.push_str("\\057"),
            ':' => host.push_str("\\072"),
            _ if character.is_ascii_graphic() => host.push(character),
            _ => host.push('_'),
        }
    }
    host
}

/// The directories of a Maildir.
pub(crate) struct Directories<F: FileSystem> {
    pub(crate) tmp: F::Directory,
    pub(crate) new: F::Directory,
    pub(crate) cur: F::Directory,
}

/// A Maildir that messages are on their way into.
pub(crate) struct Maildir<F: FileSystem> {
    /// What destinations call it; empty for the main one.
    pub(crate) destination: String,
    /// Those of `tmp/`, `new/` and `cur/`.
    pub(crate) paths: [PathBuf; 3],
    pub(crate) path: PathBuf,
    pub(crate) directories: Option<Directories<F>>,
    /// Directories in which some were made, to be flushed with the next group.
    pub(crate) above: Vec<F::Directory>,
    /// A flush of them failed, or they are not where they were: names are removed there, and nothing else is done.
    pub(crate) failed: bool,
    /// Copies that are on their way into it.
    pub(crate) users: usize,
    /// Messages in `new/` that wait for the next flush of the directories, and those of the one under way.
    pub(crate) moved: Vec<usize>,
    pub(crate) flushing: Vec<usize>,
    pub(crate) flushes: usize,
    pub(crate) flush_failure: Option<Reply>,
}

impl<F: FileSystem> Maildir<F> {
    /// One whose directories are not open yet.
    pub(crate) fn new(destination: &str, path: PathBuf) -> Self {
        Self {
            destination: destination.to_owned(),
            paths: ["tmp", "new", "cur"].map(|name| path.join(name)),
            path,
            directories: None,
            above: Vec::new(),
            failed: false,
            users: 0,
            moved: Vec::new(),
            flushing: Vec::new(),
            flushes: 0,
            flush_failure: None,
        }
    }

    /// Opens the directories in `root`; with `create` those that are missing are made. Whether one was.
    pub(crate) fn open(&mut self, fs: &mut F, root: &F::Directory, create: bool) -> Result<bool, PathError> {
        let mut made = false;
        let mut open = |index: usize, name: &CStr| {
            let opened = match fs.open_directory_in(root, name, false) {
                Err(error) if create && error.kind() == io::ErrorKind::NotFound => {
                    made = true;
                    fs.open_directory_in(root, name, true)
                }
                opened => opened,
            };
            opened.map_err(|error| (self.paths[index].clone(), error))
        };
        self.directories = Some(Directories { tmp: open(0, c"tmp")?, new: open(1, c"new")?, cur: open(2, c"cur")? });
        self.failed = false;
        Ok(made)
    }

    /// The directories, to store in.
    pub(crate) fn usable(&self) -> io::Result<&Directories<F>> {
        self.directories.as_ref().filter(|_| !self.failed).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// How much mail stays in a Maildir; all of it where nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// So many messages in `new/`; the oldest go first.
    pub messages: Option<usize>,
    /// Messages that came so long ago at most.
    pub age: Option<Duration>,
}

/// What a sweep is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Learns from `new/` what there is, and whether the clock can be trusted.
    New,
    /// Removes from `new/` so many messages whose rank is this one at most; once they are gone, so many of this run.
    Surplus { rank: u64, left: usize, own: usize },
    /// Removes from `tmp/` what nobody has written to for long.
    Tmp,
}

/// A look through a Maildir, for leftovers and for messages that are to go.
pub(crate) struct Sweep<F: FileSystem> {
    /// The Maildir's key.
    pub(crate) maildir: usize,
    names: F::Listing,
    stage: Stage,
    /// Of all messages in `new/`.
    ranks: Vec<u64>,
    removed: usize,
}

/// Ranks of this run's own messages begin here: they go last, as the clock may have been set since.
const OWN_RANK: u64 = 1 << 32;

/// What a sweep is told anew at each step.
pub(crate) struct Swept<'a> {
    /// The part of each name that tells this run's files.
    pub(crate) own: &'a str,
    pub(crate) keep: Keep,
    pub(crate) now: SystemTime,
    /// Seconds since 1970 from which on own messages may not be safe yet.
    pub(crate) unsafe_from: u64,
}

impl<F: FileSystem> Sweep<F> {
    /// Begins with an open Maildir.
    pub(crate) fn begin(fs: &mut F, key: usize, maildir: &Maildir<F>) -> io::Result<Self> {
        let names = fs.list(&maildir.usable()?.new)?;
        Ok(Self { maildir: key, names, stage: Stage::New, ranks: Vec::new(), removed: 0 })
    }

    /// How many messages were in `new/`.
    pub(crate) fn messages(&self) -> usize {
        self.ranks.len()
    }

    /// The next step: a bounded number of names. False when it has come to its end.
    ///
    /// While the clock is earlier than the newest name nothing is removed: a board without a battery for its clock
    /// starts in the past, and can't tell what is old.
    pub(crate) fn step(&mut self, fs: &mut F, maildir: &Maildir<F>, swept: &Swept<'_>) -> io::Result<bool> {
        let (path, own, now) = (maildir.path.display(), swept.own, swept.now);
        let Directories { tmp, new, .. } = maildir.usable()?;
        for _ in 0..SWEEP_NAMES_MAX {
            match (fs.next_name(&mut self.names)?, self.stage) {
                // Of a start that was killed between two steps of its proof.
                (Some(name), Stage::New) if name.to_bytes().starts_with(PROOF.as_bytes()) => {
                    remove_if_old(fs, new, &name, own, now);
                }
                (Some(name), Stage::New) => self.ranks.extend(rank(&name, own)),
                (None, Stage::New) => {
                    let newest = self.ranks.iter().map(|rank| rank % OWN_RANK).max().unwrap_or(0);
                    if now < UNIX_EPOCH + Duration::from_secs(newest) {
                        warn!("{path}: the clock is earlier than the newest mail; nothing is removed");
                        return Ok(false);
                    }
                    let others = self.ranks.iter().filter(|&&rank| rank < OWN_RANK).count();
                    let surplus = surplus(&mut self.ranks, swept);
                    self.stage = surplus.map_or(Stage::Tmp, |(rank, count)| {
                        let left = if others == 0 { count } else { count.min(others) };
                        Stage::Surplus { rank, left, own: count - left }
                    });
                    self.names = fs.list(if surplus.is_some() { new } else { tmp })?;
                }
                (Some(name), Stage::Surplus { rank: last, left, own: later }) => {
                    let until = if later > 0 { OWN_RANK } else { OWN_RANK + swept.unsafe_from };
                    let goes = rank(&name, own).is_some_and(|rank| rank <= last && rank < until) && left > 0;
                    if goes && fs.remove(new, &name).is_ok() {
                        self.stage = Stage::Surplus { rank: last, left: left - 1, own: later };
                        self.removed += 1;
                    }
                }
                (None, Stage::Surplus { rank, left: 0, own }) if own > 0 => {
                    (self.names, self.stage) = (fs.list(new)?, Stage::Surplus { rank, left: own, own: 0 });
                }
                (None, Stage::Surplus { .. }) => {
                    info!("{path}: removed {} messages of {}", std::mem::take(&mut self.removed), self.ranks.len());
                    (self.names, self.stage) = (fs.list(tmp)?, Stage::Tmp);
                }
                (Some(name), Stage::Tmp) => self.removed += usize::from(remove_if_old(fs, tmp, &name, own, now)),
                (None, Stage::Tmp) => {
                    if self.removed > 0 {
                        info!("{path}: removed {} leftovers from tmp/", self.removed);
                    }
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// In which order messages go: the seconds in their names, those of this run behind all others. None for a name of
/// something else.
fn rank(name: &CStr, own: &str) -> Option<u64> {
    let seconds: u64 = name.to_str().ok()?.split('.').next()?.parse().ok()?;
    let is_own = memchr::memmem::find(name.to_bytes(), own.as_bytes()).is_some();
    Some(seconds.min(CLOCK_MAX) + if is_own { OWN_RANK } else { 0 })
}

/// How many messages are to go, and the rank of the last of them. One of this run does not go by its age while others
/// stay.
fn surplus(ranks: &mut [u64], swept: &Swept<'_>) -> Option<(u64, usize)> {
    let until = swept.keep.age.and_then(|age| swept.now.checked_sub(age)?.duration_since(UNIX_EPOCH).ok());
    let until = until.map_or(0, |until| until.as_secs());
    let others = ranks.iter().filter(|&&rank| rank < OWN_RANK).count();
    let old = ranks.iter().filter(|&&rank| rank < until).count();
    let own_old = ranks.iter().filter(|&&rank| rank >= OWN_RANK && rank - OWN_RANK < until).count();
    let aged = old + if old == others { own_old } else { 0 };
    let surplus = ranks.len().saturating_sub(swept.keep.messages.unwrap_or(usize::MAX)).max(aged);
    (surplus > 0).then(|| (*ranks.select_nth_unstable(surplus - 1).1, surplus))
}

/// Removes a leftover that is old enough; one of `own` may only look old, when the clock was set while it was written.
fn remove_if_old<F: FileSystem>(fs: &mut F, directory: &F::Directory, name: &CStr, own: &str, now: SystemTime) -> bool {
    if memchr::memmem::find(name.to_bytes(), own.as_bytes()).is_some() {
        return false;
    }
    let age = fs.modified(directory, name).ok().and_then(|modified| now.duration_since(modified).ok());
    age.is_some_and(|age| age >= LEFTOVER_AGE) && fs.remove(directory, name).is_ok()
}
