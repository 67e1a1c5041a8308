//! The few things that a delivery asks of a file system, as a trait, and the real disk behind it.

use crate::sys::{FlushKind, Flusher};
use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::path::Arg;
use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Names a flush that was begun, so that its end can be told from others. Chosen by the caller.
pub type Ticket = u64;

/// What a flush makes durable.
pub enum Flush<'a, F: FileSystem + ?Sized> {
    /// The octets of a file and what is needed to read them back (`fdatasync`).
    File(&'a F::File),
    /// The names in a directory (`fsync` of the directory).
    Directory(&'a F::Directory),
}

/// Room on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Octets that we may still write.
    pub free: u64,
    /// Octets in all.
    pub total: u64,
    /// Files that may still be made; `u64::MAX` where the file system does not count them.
    pub free_files: u64,
}

/// The disk as a delivery sees it. Nothing here sleeps but what the disk itself makes slow; a flush is begun,
/// and its end is asked for. The tests put a file system that forgets and fails behind the same trait.
///
/// # Errors
/// What the system says, with its number (`io::Error::raw_os_error`). A flush that failed must not be tried again: the
/// system may have dropped what it could not write, and the next flush would report success.
pub trait FileSystem {
    /// A file open for appending.
    type File;
    /// A directory held open, so that names are looked up in it and nowhere else.
    type Directory;
    /// How far a reading of a directory has come.
    type Listing;

    /// Opens the directory `path`, through symbolic links; an administrator may have put one there. With `create` it is
    /// made (mode 0700) when it is missing; its name is durable when the directory above it is flushed. Parents are not
    /// made.
    fn open_directory(&mut self, path: &Path, create: bool) -> io::Result<Self::Directory>;

    /// Opens the directory `name` in `parent`, or with `..` the one above it; a symbolic link is an error
    /// (`NotADirectory`). `create` as above.
    fn open_directory_in(&mut self, parent: &Self::Directory, name: &CStr, create: bool)
    -> io::Result<Self::Directory>;

    /// Makes the file `name` (mode 0600), which must not exist, not even as a symbolic link.
    fn create(&mut self, directory: &Self::Directory, name: &CStr) -> io::Result<Self::File>;

    /// Appends all of `octets`, or fails; then some of them may have been written.
    fn write(&mut self, file: &mut Self::File, octets: &[u8]) -> io::Result<()>;

    /// Moves `name` from one directory to another, never over an existing name (`AlreadyExists`). After a crash, or
    /// where the system can only link, the old name may be there as well.
    fn rename(&mut self, from: &Self::Directory, name: &CStr, to: &Self::Directory, new_name: &CStr) -> io::Result<()>;

    /// Gives the file `name` a second name in another directory, never over an existing one (`AlreadyExists`). Any other
    /// error may mean that the two directories, or this file system, can't have links.
    fn link(&mut self, from: &Self::Directory, name: &CStr, to: &Self::Directory, new_name: &CStr) -> io::Result<()>;

    /// Removes `name`; a name that is not there is `NotFound`.
    fn remove(&mut self, directory: &Self::Directory, name: &CStr) -> io::Result<()>;

    /// Begins a flush, or queues it until [`submit`](Self::submit). It stays open until the end is reported.
    fn begin_flush(&mut self, what: Flush<'_, Self>, ticket: Ticket);

    /// Flushes the names in a directory and waits for it: for the start, when nobody else waits.
    fn flush_directory(&mut self, directory: &Self::Directory) -> io::Result<()>;

    /// Hands all queued flushes to the kernel. Returns whether some have ended already: then
    /// [`ended_flush`](Self::ended_flush) is to be asked before an event is waited for.
    fn submit(&mut self) -> bool;

    /// The next flush that ended, with its result; `None` when no more have ended by now. Asked until it says so, after
    /// an event and after [`submit`](Self::submit).
    fn ended_flush(&mut self) -> Option<(Ticket, io::Result<()>)>;

    /// Room on the file system that holds `directory`.
    fn space(&mut self, directory: &Self::Directory) -> io::Result<Space>;

    /// A number for the file system that `directory` is on.
    fn device(&mut self, directory: &Self::Directory) -> io::Result<u64>;

    /// Whether `path` still names `directory` itself, not a newcomer in its place, nor nothing.
    fn is_same(&mut self, path: &Path, directory: &Self::Directory) -> io::Result<bool>;

    /// Begins to list the names in `directory`, which may change meanwhile.
    fn list(&mut self, directory: &Self::Directory) -> io::Result<Self::Listing>;

    /// The next name, in no order; `None` at the end. `.` and `..` are left out.
    fn next_name(&mut self, listing: &mut Self::Listing) -> io::Result<Option<CString>>;

    /// When the file `name` was last written to; a name of something else is `InvalidInput`.
    fn modified(&mut self, directory: &Self::Directory, name: &CStr) -> io::Result<SystemTime>;
}

/// Whether flushes reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// Every flush is done, and its end reported when the disk has the octets.
    Always,
    /// Flushes end at once and do nothing: what was written lately is lost when the machine stops.
    Never,
}

/// Flushes given to the kernel at a time. It takes a worker for each, and 32 octets of its memory twice.
const IN_FLIGHT_MAX: usize = 256;
/// How long a disk may take for the flushes that prove that they work asynchronously.
const PROOF_TIME: Duration = Duration::from_secs(5);
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// The real disk.
pub struct Disk {
    sync: SyncMode,
    /// Present once it was proved to work. Without it `begin_flush` waits for the disk.
    flusher: Option<Flusher>,
    /// It was proved not to work.
    blocks: bool,
    ended: VecDeque<(Ticket, io::Result<()>)>,
    /// Whether the umask takes away what files are to have; unknown before the first file.
    umask_bites: Option<bool>,
    /// Whether a rename that never replaces was found to be missing.
    link_to_rename: bool,
}

impl Disk {
    /// A disk whose flushes block until [`prove_flushes`](Self::prove_flushes) found that they need not.
    pub fn new(sync: SyncMode) -> Self {
        Self { sync, flusher: None, blocks: false, ended: VecDeque::new(), umask_bites: None, link_to_rename: false }
    }

    /// Flushes `file` and `directory`, and has later flushes done without blocking if these could be. Both are to be on
    /// the file system of the mail, as it is that which may be unable. Does nothing with [`SyncMode::Never`].
    ///
    /// # Errors
    /// Those of the flushes, and what AIO can't do here: then [`falls_back`](Self::falls_back) says so.
    pub fn prove_flushes(&mut self, file: &OwnedFd, directory: &OwnedFd) -> io::Result<()> {
        if self.sync == SyncMode::Never || self.flusher.is_some() {
            return Ok(());
        }
        if self.blocks {
            return flush(file, FlushKind::Data).and_then(|()| flush(directory, FlushKind::All));
        }
        self.flush_asynchronously(file, directory).inspect_err(|reason| {
            warn!("the disk can't be flushed in the background ({reason}): each flush holds up all sessions");
            self.blocks = true;
        })
    }

    /// Whether flushes block from now on, though it was proved only that they can't be done otherwise: another proof, of
    /// another file, is to follow.
    pub fn falls_back(&self) -> bool {
        self.blocks
    }

    /// Flushes both asynchronously, waits for them, and keeps what did it; or tells why it can't be done so.
    fn flush_asynchronously(&mut self, file: &OwnedFd, directory: &OwnedFd) -> io::Result<()> {
        let mut flusher = Flusher::new(IN_FLIGHT_MAX)?;
        flusher.queue(file.as_fd(), FlushKind::Data, 0);
        flusher.queue(directory.as_fd(), FlushKind::All, 1);
        flusher.submit();
        let deadline = Instant::now() + PROOF_TIME;
        let mut missing = 2;
        let mut failed = None;
        while missing > 0 {
            while let Some((_, result)) = flusher.ended() {
                missing -= 1;
                failed = failed.or(result.err());
            }
            if missing > 0 && !readable(flusher.event(), deadline)? {
                // Dropping it would wait for what does not end.
                let _ = std::mem::ManuallyDrop::new(flusher);
                return Err(Errno::TIMEDOUT.into());
            }
            // Here its level is asked, not its edges.
            let _ = rustix::io::read(flusher.event(), &mut [0; 8]);
        }
        if let Some(error) = failed {
            return Err(error);
        }
        self.flusher = Some(flusher);
        Ok(())
    }

    /// What becomes readable, to be polled edge-triggered, when [`ended_flush`](FileSystem::ended_flush) has something
    /// to tell. `None` while flushes block.
    pub fn flush_event(&self) -> Option<BorrowedFd<'_>> {
        self.flusher.as_ref().map(Flusher::event)
    }
}

/// Opens `path` below `at`, and makes it before if that is asked for.
fn open(at: BorrowedFd<'_>, path: impl Arg + Copy, flags: OFlags, create: bool) -> io::Result<OwnedFd> {
    match rustix::fs::openat(at, path, flags, Mode::empty()) {
        Err(Errno::NOENT) if create => {}
        opened => return Ok(opened?),
    }
    let made = rustix::fs::mkdirat(at, path, Mode::RWXU);
    // Another process may be quicker than we are; what it made is opened, but is not ours to change.
    if made != Err(Errno::EXIST) {
        made?;
    }
    let directory = rustix::fs::openat(at, path, flags, Mode::empty())?;
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&directory)?.st_mode);
    if made.is_ok() && !mode.contains(Mode::RWXU) {
        rustix::fs::fchmod(&directory, Mode::RWXU)?;
    }
    Ok(directory)
}

/// Waits for `event` to be readable; false when it was not by `deadline`.
fn readable(event: BorrowedFd<'_>, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match poll(&mut [PollFd::from_borrowed_fd(event, PollFlags::IN)], Some(&timeout)) {
            Err(Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// Flushes and waits. A failure is final, even `EINTR`: who knows what was dropped.
fn flush(file: impl AsFd, kind: FlushKind) -> io::Result<()> {
    let flushed = match kind {
        FlushKind::Data => rustix::fs::fdatasync(file),
        FlushKind::All => rustix::fs::fsync(file),
    };
    Ok(flushed?)
}

/// Whether both are the same file or directory.
fn same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

impl FileSystem for Disk {
    type File = OwnedFd;
    type Directory = OwnedFd;
    type Listing = Dir;

    fn open_directory(&mut self, path: &Path, create: bool) -> io::Result<OwnedFd> {
        open(CWD, path, DIRECTORY, create)
    }

    fn open_directory_in(&mut self, parent: &OwnedFd, name: &CStr, create: bool) -> io::Result<OwnedFd> {
        open(parent.as_fd(), name, DIRECTORY | OFlags::NOFOLLOW, create)
    }

    fn create(&mut self, directory: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, name, flags, FILE_MODE)?;
        // A umask can only take away, and only an odd one takes from 0600. The first file shows whether it does, so
        // that the others do not cost a system call more.
        let mut finish = || {
            if self.umask_bites.is_none() {
                let mode = Mode::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
                self.umask_bites = Some(!mode.contains(FILE_MODE));
            }
            if self.umask_bites == Some(true) { rustix::fs::fchmod(&file, FILE_MODE) } else { Ok(()) }
        };
        if let Err(errno) = finish() {
            let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty());
            return Err(errno.into());
        }
        Ok(file)
    }

    fn write(&mut self, file: &mut OwnedFd, mut octets: &[u8]) -> io::Result<()> {
        while !octets.is_empty() {
            match rustix::io::write(&*file, octets) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => octets = octets.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn rename(&mut self, from: &OwnedFd, name: &CStr, to: &OwnedFd, new_name: &CStr) -> io::Result<()> {
        if !self.link_to_rename {
            #[cfg(target_os = "linux")]
            let renamed = rustix::fs::renameat_with(from, name, to, new_name, rustix::fs::RenameFlags::NOREPLACE);
            #[cfg(not(target_os = "linux"))]
            let renamed: Result<(), _> = Err(Errno::NOSYS);
            match renamed {
                // The kernel does not know the call, or the file system (NFS, some FUSE) not the flag.
                Err(Errno::NOSYS | Errno::INVAL | Errno::NOTSUP) => self.link_to_rename = true,
                renamed => return Ok(renamed?),
            }
        }
        if let Err(errno) = rustix::fs::linkat(from, name, to, new_name, AtFlags::empty()) {
            // NFS may ask twice when the first reply was lost, and be told that the name exists: that it made itself.
            let stat = |directory, name| rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
            if errno != Errno::EXIST || !same(&stat(from, name)?, &stat(to, new_name)?) {
                return Err(errno.into());
            }
        }
        // The file is where it belongs. A second name that stays is for the sweep, and no reason to take it back.
        let _ = rustix::fs::unlinkat(from, name, AtFlags::empty());
        Ok(())
    }

    fn link(&mut self, from: &OwnedFd, name: &CStr, to: &OwnedFd, new_name: &CStr) -> io::Result<()> {
        Ok(rustix::fs::linkat(from, name, to, new_name, AtFlags::empty())?)
    }

    fn remove(&mut self, directory: &OwnedFd, name: &CStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(directory, name, AtFlags::empty())?)
    }

    fn begin_flush(&mut self, what: Flush<'_, Self>, ticket: Ticket) {
        let (file, kind) = match what {
            Flush::File(file) => (file, FlushKind::Data),
            Flush::Directory(directory) => (directory, FlushKind::All),
        };
        match (self.sync, &mut self.flusher) {
            (SyncMode::Never, _) => self.ended.push_back((ticket, Ok(()))),
            (SyncMode::Always, Some(flusher)) => flusher.queue(file.as_fd(), kind, ticket),
            (SyncMode::Always, None) => self.ended.push_back((ticket, flush(file, kind))),
        }
    }

    fn flush_directory(&mut self, directory: &OwnedFd) -> io::Result<()> {
        if self.sync == SyncMode::Never { Ok(()) } else { flush(directory, FlushKind::All) }
    }

    fn submit(&mut self) -> bool {
        self.flusher.as_mut().is_some_and(Flusher::submit) || !self.ended.is_empty()
    }

    fn ended_flush(&mut self) -> Option<(Ticket, io::Result<()>)> {
        self.ended.pop_front().or_else(|| self.flusher.as_mut().and_then(Flusher::ended))
    }

    fn space(&mut self, directory: &OwnedFd) -> io::Result<Space> {
        let stat = rustix::fs::fstatvfs(directory)?;
        // Some file systems leave the one size or the other empty.
        let block = if stat.f_frsize == 0 { stat.f_bsize } else { stat.f_frsize };
        let octets = |blocks: u64| blocks.saturating_mul(block);
        Ok(Space {
            // A memory file system, for one, may not know how large it is.
            free: if stat.f_blocks == 0 { u64::MAX } else { octets(stat.f_bavail) },
            total: octets(stat.f_blocks),
            // Btrfs, for one, has no table of files that could be full, and says 0 of 0.
            free_files: if stat.f_files == 0 { u64::MAX } else { stat.f_favail },
        })
    }

    fn device(&mut self, directory: &OwnedFd) -> io::Result<u64> {
        #[allow(clippy::unnecessary_cast)] // not everywhere
        Ok(rustix::fs::fstat(directory)?.st_dev as u64)
    }

    fn is_same(&mut self, path: &Path, directory: &OwnedFd) -> io::Result<bool> {
        let held = rustix::fs::fstat(directory)?;
        match rustix::fs::stat(path) {
            Ok(named) => Ok(same(&named, &held)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn list(&mut self, directory: &OwnedFd) -> io::Result<Dir> {
        Ok(Dir::read_from(directory)?)
    }

    fn next_name(&mut self, listing: &mut Dir) -> io::Result<Option<CString>> {
        while let Some(found) = listing.read().transpose()? {
            let name = found.file_name();
            if name != c"." && name != c".." {
                return Ok(Some(name.to_owned()));
            }
        }
        Ok(None)
    }

    fn modified(&mut self, directory: &OwnedFd, name: &CStr) -> io::Result<SystemTime> {
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        #[allow(clippy::unnecessary_cast)] // not everywhere
        let since = Duration::from_secs(u64::try_from(stat.st_mtime as i64).unwrap_or(0));
        Ok(UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH))
    }
}

#[cfg(test)]
#[path = "../tests/unit/fs.rs"]
pub(crate) mod tests;
