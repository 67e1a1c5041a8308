//! Maildirs: the names of their files, their directories held open, and what is known of the disk below them.

use std::ffi::CStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use arrayvec::ArrayString;
use log::{Level, error, log, warn};
use slab::Slab;

use crate::config::Config;
use crate::delivery::{MAIN, MinFree, Now};
use crate::fs::{FileSystem, Flush};
use crate::smtp::reply::Reply;

/// Octets of our host's name in a file name, `/` and `:` encoded.
const HOST_OCTETS_MAX: usize = 100;
/// Names that are kept to be removed later.
const LITTER_MAX: usize = 256;
/// How often the file system is asked for its room, and a failed one is tried again.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Mailboxes that take no new mail as they failed while others of the same message did not, and how long they do not.
const FAILED_MAX: usize = 256;
const FAILED_TIME: Duration = Duration::from_secs(60);
/// How an error tells that there is no such directory.
const NOT_THERE: [io::ErrorKind; 2] = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
/// How a file begins that only proves that mail can be kept. Readers of a Maildir pass over such names.
pub(crate) const PROOF: &str = ".proof-";
/// The key of the main Maildir.
pub(crate) const MAIN_KEY: usize = 0;

/// An error with the path that it speaks of.
pub type PathError = (PathBuf, io::Error);

/// A file name with the zero behind it that the system wants, on the stack. One that finds no room names nothing.
#[derive(Clone, Default)]
pub(crate) struct Name(ArrayString<256>);

impl Name {
    pub(crate) fn new(parts: &[&str]) -> Self {
        let mut name = Self::default();
        let fits = parts.iter().all(|part| name.0.try_push_str(part).is_ok()) && name.0.try_push('\0').is_ok();
        if fits { name } else { Self::default() }
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(self.0.as_bytes()).unwrap_or_default()
    }
}

/// Our host's name as it may stand in a file name.
fn name_host(hostname: &str) -> String {
    let host = hostname.replace(|character: char| !character.is_ascii_graphic(), "_");
    let host = host.replace('/', "\\057").replace(':', "\\072");
    host.chars().take(HOST_OCTETS_MAX).collect()
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
    /// What tells it, by whatever name: its file system and its number there.
    identity: (u64, u64),
    pub(crate) path: PathBuf,
    /// That of `new/`, which is asked for each second.
    new_path: PathBuf,
    pub(crate) directories: Directories<F>,
    /// Those opened on the way, to be flushed with the next group: names in them are to be durable, whoever made them.
    pub(crate) above: Vec<F::Directory>,
    /// A flush of them failed, or they are not where they were: names are removed there, and nothing else is done.
    pub(crate) failed: bool,
    /// Copies that are on their way into it.
    users: usize,
    /// Messages in `new/` that wait for the next flush of the directories, and those of the one under way.
    pub(crate) moved: Vec<usize>,
    pub(crate) flushing: Vec<usize>,
    pub(crate) flushes: usize,
    pub(crate) flush_failure: Option<io::Error>,
}

impl<F: FileSystem> Maildir<F> {
    /// The directories, to store in.
    pub(crate) fn usable(&self) -> io::Result<&Directories<F>> {
        if self.failed { Err(io::ErrorKind::NotFound.into()) } else { Ok(&self.directories) }
    }
}

/// What the disk is known to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Ready,
    /// A flush failed, or the directories are gone: no new mail before a probe succeeds.
    Failed,
    /// That, and nothing failed since the probe under way began.
    Probing,
}

/// All Maildirs that are open.
pub(crate) struct Maildirs<F: FileSystem> {
    pub(crate) fs: F,
    /// Our host, as names of files have it.
    pub(crate) host: String,
    /// The part of each name that tells our own files.
    pub(crate) own: String,
    /// The main one always is among them.
    pub(crate) open: Slab<Maildir<F>>,
    /// Where the main one is.
    main: PathBuf,
    /// Where mailboxes are, on which file system, and whether they are made.
    mailboxes: Option<(PathBuf, u64)>,
    pub(crate) create: bool,
    /// There is no other Maildir than the main one, without which no mail is taken then.
    pub(crate) alone: bool,
    /// Destinations that failed while others of the same message did not, and until when they take nothing.
    failed: Vec<(String, Instant)>,
    /// Names in the main Maildir that could not be removed, to be tried again: in `tmp/`, or else in `new/`.
    litter: Vec<(bool, Name)>,
    pub(crate) health: Health,
    min_free: MinFree,
    pub(crate) room: u64,
    /// When it is asked for room again, tried again if it failed, and when an error is one for the log again.
    pub(crate) checked: Option<Instant>,
    pub(crate) probed: Option<Instant>,
    complained: Option<Instant>,
}

impl<F: FileSystem> Maildirs<F> {
    /// Opens the main Maildir, and the directory of mailboxes, in which it may be.
    pub(crate) fn open(fs: F, config: &Config, random: u64) -> Result<Self, PathError> {
        let mut maildirs = Self {
            fs,
            host: name_host(&config.protocol.hostname),
            own: format!("R{random:016x}"),
            open: Slab::new(),
            main: config.maildir.clone(),
            mailboxes: None,
            create: config.create_mailboxes,
            alone: config.mailboxes.is_none() && config.recipients.is_none(),
            failed: Vec::new(),
            litter: Vec::new(),
            health: Health::Ready,
            min_free: config.min_free,
            room: u64::MAX,
            checked: None,
            probed: None,
            complained: None,
        };
        if let Some(path) = &config.mailboxes {
            let at_path = |error| (path.clone(), error);
            let directory = maildirs.fs.open_directory(path, true).map_err(at_path)?;
            let (device, _) = maildirs.fs.identity(&directory).map_err(at_path)?;
            maildirs.flush_name(&directory);
            maildirs.mailboxes = Some((path.clone(), device));
        }
        let main = maildirs.open_maildir(MAIN, true)?;
        if let [root] = &main.above[..] {
            maildirs.flush_name(root);
        }
        for directory in &main.above {
            maildirs.fs.flush(Flush::Directory(directory)).map_err(|error| (main.path.clone(), error))?;
        }
        maildirs.open.insert(Maildir { above: Vec::new(), ..main });
        Ok(maildirs)
    }

    /// Flushes the name of a directory that may have been made a moment ago. We may not even read what is above it.
    fn flush_name(&mut self, directory: &F::Directory) {
        let above = self.fs.open_directory_in(directory, c"..", false);
        let _ = above.and_then(|above| self.fs.flush(Flush::Directory(&above)));
    }

    /// Opens the main Maildir again.
    pub(crate) fn open_main(&mut self) -> Result<(), PathError> {
        let Maildir { identity, directories, above, failed, .. } = self.open_maildir(MAIN, false)?;
        let main = &mut self.open[MAIN_KEY];
        (main.identity, main.directories, main.above, main.failed) = (identity, directories, above, failed);
        Ok(())
    }

    /// The Maildir that a destination names, opened where it is not; for one copy more.
    pub(crate) fn open_destination(&mut self, destination: &str) -> Result<usize, PathError> {
        if let Some((key, maildir)) = self.open.iter_mut().find(|(_, it)| it.destination == destination) {
            maildir.usable().map_err(|error| (maildir.path.clone(), error))?;
            maildir.users += 1;
            return Ok(key);
        }
        let maildir = self.open_maildir(destination, self.create)?;
        // It may be open by another name.
        if let Some((key, known)) = self.open.iter_mut().find(|(_, it)| it.identity == maildir.identity) {
            known.users += 1;
            return Ok(key);
        }
        Ok(self.open.insert(maildir))
    }

    /// Opens a Maildir, and makes what it lacks; with `create` it is made itself. The main one is made only at the
    /// start, and what it lacks only on the file system where it was: if it vanishes later it may be on a card that was pulled, and
    /// mail must not go to what lies below the mount point.
    fn open_maildir(&mut self, destination: &str, create: bool) -> Result<Maildir<F>, PathError> {
        let mut above = Vec::new();
        let (path, root) = self.open_root(destination, create, &mut above)?;
        let identity = self.fs.identity(&root).map_err(|error| (path.clone(), error))?;
        let create = destination != MAIN || self.open.get(MAIN_KEY).is_none_or(|it| it.identity.0 == identity.0);
        let mut open = |name: &str| {
            let opened = self.fs.open_directory_in(&root, Name::new(&[name]).as_c_str(), create);
            opened.map_err(|error| (path.join(name), error))
        };
        let directories = Directories { tmp: open("tmp")?, new: open("new")?, cur: open("cur")? };
        above.push(root);
        Ok(Maildir {
            destination: destination.to_owned(),
            identity,
            new_path: path.join("new"),
            path,
            directories,
            above,
            failed: false,
            users: 1,
            moved: Vec::new(),
            flushing: Vec::new(),
            flushes: 0,
            flush_failure: None,
        })
    }

    /// Opens the directory that a destination names. With `create` what is missing is made; `above` gets what has it.
    fn open_root(
        &mut self, destination: &str, create: bool, above: &mut Vec<F::Directory>,
    ) -> Result<(PathBuf, F::Directory), PathError> {
        let (base, below) = destination.split_once("//").unwrap_or((destination, ""));
        let (base, device) = match &self.mailboxes {
            _ if destination == MAIN => (self.main.clone(), None),
            Some((path, device)) if base.is_empty() => (path.clone(), Some(*device)),
            _ => (PathBuf::from(base), None),
        };
        let path = base.join(below);
        let base_may_come = below.is_empty() && (create || self.create && destination != MAIN);
        let mut open = || {
            let mut directory = match self.fs.open_directory(&base, false) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && create && below.is_empty() => {
                    let made = self.fs.open_directory(&base, true)?;
                    above.push(self.fs.open_directory_in(&made, c"..", false)?);
                    made
                }
                // It is not a mailbox that is missing: what an administrator named was there, and may be on a card that was pulled.
                Err(error) if NOT_THERE.contains(&error.kind()) && !base_may_come => {
                    return Err(io::Error::other(error));
                }
                opened => opened?,
            };
            if device.is_some() && device != self.fs.identity(&directory).ok().map(|(device, _)| device) {
                return Err(io::Error::other("another file system is in its place"));
            }
            for text in below.split('/').filter(|name| !name.is_empty()) {
                let inner = self.fs.open_directory_in(&directory, Name::new(&[text]).as_c_str(), create)?;
                let outer = std::mem::replace(&mut directory, inner);
                above.extend(create.then_some(outer));
            }
            Ok(directory)
        };
        open().map(|root| (path.clone(), root)).map_err(|error| (path, error))
    }

    /// Closes a Maildir that nothing is on its way into any more.
    pub(crate) fn release(&mut self, key: usize) {
        let Some(maildir) = self.open.get_mut(key) else { return };
        maildir.users -= 1;
        if maildir.users == 0 {
            self.open.remove(key);
        }
    }

    /// Whether mail for a destination is taken; else 550 if it is not there, 452 as it failed, 451 if that is unknown.
    pub(crate) fn accepts(&mut self, destination: &str, create: bool, now: Now) -> Result<(), Reply> {
        self.failed.retain(|(_, until)| *until > now.instant);
        if self.failed.iter().any(|(failed, _)| failed == destination) {
            return Err(Reply::MAILBOX_FAILED);
        }
        if self.open.iter().any(|(_, maildir)| maildir.destination == destination) {
            return Ok(());
        }
        let Err((path, error)) = self.open_root(destination, false, &mut Vec::new()) else { return Ok(()) };
        match error.kind() {
            io::ErrorKind::NotFound if create => Ok(()),
            kind if NOT_THERE.contains(&kind) => Err(Reply::NO_SUCH_MAILBOX),
            _ => {
                self.complain(&path, "open", &error, now);
                Err(Reply::STORAGE_FAILED)
            }
        }
    }

    /// Has one that failed take nothing for a while, so that a next try reaches the others; not if we lack descriptors.
    pub(crate) fn leave_out(&mut self, destination: String, error: &io::Error, now: Now) {
        if destination != MAIN && !matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) {
            self.failed.truncate(FAILED_MAX);
            self.failed.push((destination, now.instant + FAILED_TIME));
        }
    }

    /// Asks for room, and whether the directories are still where they were.
    pub(crate) fn check(&mut self, now: Now) {
        let main = &self.open[MAIN_KEY];
        let there = main.usable().and_then(|it| self.fs.is_same(&main.new_path, &it.new));
        if !matches!(there, Ok(true)) && main.flushes == 0 {
            let (first, then) = if main.failed { (Level::Debug, Level::Debug) } else { (Level::Warn, Level::Error) };
            log!(first, "{}: removed or replaced while running; opening it again", main.path.display());
            if let Err((path, error)) = self.open_main() {
                log!(then, "{}: {error}; refusing its mail until it is back", path.display());
                self.open[MAIN_KEY].failed = true;
                if self.alone {
                    (self.health, self.probed) = (Health::Failed, Some(now.instant + CHECK_INTERVAL));
                }
            }
        }
        let Maildir { path, directories: Directories { tmp, new, .. }, .. } = &self.open[MAIN_KEY];
        self.litter.retain(|(in_tmp, name)| self.fs.remove(if *in_tmp { tmp } else { new }, name.as_c_str()).is_err());
        let mailboxes = self.mailboxes.as_ref().and_then(|(path, _)| self.fs.open_directory(path, false).ok());
        let spaces = [Some(new), mailboxes.as_ref()].into_iter().flatten().filter_map(|it| self.fs.space(it).ok());
        let Some(space) = spaces.min_by_key(|space| space.free) else { return };
        let before = self.room;
        let floor = match self.min_free {
            MinFree::Octets(octets) => octets,
            MinFree::Percent(percent) => space.total / 100 * u64::from(percent),
            MinFree::Usual => (space.total / 100 * 2).min(16 << 20),
        };
        self.room = match (space.free_files, floor) {
            (0, _) => 0,
            (_, 0) => u64::MAX,
            _ => space.free.saturating_sub(floor),
        };
        if (self.room == 0) != (before == 0) {
            let change = if self.room == 0 { ", below the floor; refusing mail" } else { "; taking mail again" };
            warn!("{}: {} octets free{change}", path.display(), space.free);
        }
    }

    /// Removes a name in `tmp/` or else in `new/`.
    pub(crate) fn unlink(&mut self, key: usize, in_tmp: bool, name: Name) {
        let Some(Maildir { path, directories: Directories { tmp, new, .. }, .. }) = self.open.get(key) else { return };
        if let Err(error) = self.fs.remove(if in_tmp { tmp } else { new }, name.as_c_str()) {
            // One line for all that follow.
            if self.litter.is_empty() {
                error!("{}: a file of a refused message can't be removed: {error}", path.display());
            }
            if key == MAIN_KEY && self.litter.len() < LITTER_MAX {
                self.litter.push((in_tmp, name));
            }
        }
    }

    /// One line for an error of the disk; at most one a second, so that a full disk does not fill the log, too.
    pub(crate) fn complain(&mut self, path: &Path, doing: &str, error: &io::Error, now: Now) {
        let level = if is_due(&mut self.complained, now) { Level::Error } else { Level::Debug };
        log!(level, "{}: {doing}: {error}", path.display());
    }

    /// The same of a Maildir.
    pub(crate) fn complain_of(&mut self, key: usize, doing: &str, error: &io::Error, now: Now) {
        let path = self.open.get(key).map(|maildir| maildir.path.clone()).unwrap_or_default();
        self.complain(&path, doing, error, now);
    }
}

/// Whether it is time for what is done once in a while; then `next` is when it is the next time.
pub(crate) fn is_due(next: &mut Option<Instant>, now: Now) -> bool {
    let due = next.is_none_or(|next| now.instant >= next);
    if due {
        *next = Some(now.instant + CHECK_INTERVAL);
    }
    due
}
