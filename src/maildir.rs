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
    /// What these are in, to be flushed with the next group, where one of them was made.
    pub(crate) root: Option<F::Directory>,
    /// A flush of them failed, or they are not where they were: names are removed there, and nothing else is done.
    pub(crate) failed: bool,
    /// Copies that are on their way into it.
    pub(crate) users: usize,
    /// Messages in `new/` that wait for the next flush of the directories, and those of the one under way.
    pub(crate) moved: Vec<usize>,
    pub(crate) flushing: Vec<usize>,
    pub(crate) flushes: u8,
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
            root: None,
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

/// A sweep for leftovers under way: first through `new/`, to learn whether the clock can be trusted, then through `tmp/`.
pub(crate) struct Sweep<F: FileSystem> {
    names: F::Listing,
    /// Seconds of the newest name in `new/`.
    newest: u64,
    in_tmp: bool,
    removed: usize,
}

impl<F: FileSystem> Sweep<F> {
    /// The next step of a sweep, or the first: a bounded number of names. `own` is the part of each name that tells this
    /// run's files. None when it has come to its end.
    ///
    /// While the clock is earlier than the newest name nothing is removed: a board without a battery for its clock
    /// starts in the past, and can't tell what is old.
    pub(crate) fn step(
        sweep: Option<Self>,
        fs: &mut F,
        maildir: &Maildir<F>,
        own: &str,
        now: SystemTime,
    ) -> io::Result<Option<Self>> {
        let Directories { tmp, new, .. } = maildir.usable()?;
        let Some(mut sweep) = sweep else {
            return Ok(Some(Self { names: fs.list(new)?, newest: 0, in_tmp: false, removed: 0 }));
        };
        for _ in 0..SWEEP_NAMES_MAX {
            match (fs.next_name(&mut sweep.names)?, sweep.in_tmp) {
                (Some(name), true) => sweep.removed += usize::from(remove_if_old(fs, tmp, &name, own, now)),
                (Some(name), false) if name.to_bytes().starts_with(PROOF.as_bytes()) => {
                    // Of a start that was killed between two steps of its proof.
                    remove_if_old(fs, new, &name, own, now);
                }
                (Some(name), false) => {
                    let seconds = name.to_str().ok().and_then(|name| name.split('.').next()?.parse().ok());
                    sweep.newest = sweep.newest.max(seconds.unwrap_or(0));
                }
                (None, true) => {
                    if sweep.removed > 0 {
                        info!("{}: removed {} leftovers from tmp/", maildir.path.display(), sweep.removed);
                    }
                    return Ok(None);
                }
                (None, false) if now < UNIX_EPOCH + Duration::from_secs(sweep.newest.min(CLOCK_MAX)) => {
                    warn!("{}: the clock is earlier than the newest mail; leftovers stay", maildir.path.display());
                    return Ok(None);
                }
                (None, false) => (sweep.names, sweep.in_tmp) = (fs.list(tmp)?, true),
            }
        }
        Ok(Some(sweep))
    }
}

/// Removes a leftover that is old enough; one of `own` may only look old, when the clock was set while it was written.
fn remove_if_old<F: FileSystem>(fs: &mut F, directory: &F::Directory, name: &CStr, own: &str, now: SystemTime) -> bool {
    if memchr::memmem::find(name.to_bytes(), own.as_bytes()).is_some() {
        return false;
    }
    let age = fs.modified(directory, name).ok().and_then(|modified| now.duration_since(modified).ok());
    age.is_some_and(|age| age >= LEFTOVER_AGE) && fs.remove(directory, name).is_ok()
}
