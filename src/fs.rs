//! The few things that a delivery asks of a file system, as a trait, and the real disk behind it.

use crate::sys::Aio;
use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::path::Arg;
use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Tells the end of a flush from others; the caller chooses it.
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

/// The disk as a delivery sees it; the tests have one that forgets and fails. A flush that failed must not be tried
/// again: what could not be written may have been dropped, and the next one would report success.
pub trait FileSystem {
    /// A file open for appending.
    type File;
    /// A directory held open, so that names are looked up in it and nowhere else.
    type Directory;
    /// How far a reading of a directory has come.
    type Listing;
    /// Opens a directory, through symbolic links, as an administrator may have put one there. With `create` it is made (mode
    /// 0700) when it is missing, but not its parents; its name is durable when the directory above is flushed.
    fn open_directory(&mut self, path: &Path, create: bool) -> io::Result<Self::Directory>;
    /// The same for `name` in `at`, or with `..` the one above it; a symbolic link is an error (`NotADirectory`).
    fn open_directory_in(&mut self, at: &Self::Directory, name: &CStr, create: bool) -> io::Result<Self::Directory>;
    /// Makes the file `name` (mode 0600), which must not exist, not even as a symbolic link.
    fn create(&mut self, directory: &Self::Directory, name: &CStr) -> io::Result<Self::File>;
    /// Appends all of `octets`, or fails; then some of them may have been written.
    fn write(&mut self, file: &mut Self::File, octets: &[u8]) -> io::Result<()>;
    /// Moves a name, never over another (`AlreadyExists`). After a crash, or on NFS, the old may be there, too.
    fn rename(&mut self, from: &Self::Directory, name: &CStr, to: &Self::Directory, new_name: &CStr) -> io::Result<()>;
    /// Gives the file a second name in the same way.
    fn link(&mut self, from: &Self::Directory, name: &CStr, to: &Self::Directory, new_name: &CStr) -> io::Result<()>;
    /// Removes `name`; one that is not there is removed already.
    fn remove(&mut self, directory: &Self::Directory, name: &CStr) -> io::Result<()>;
    /// Begins a flush, or queues it until [`submit`](Self::submit). It stays open until the end is reported.
    fn begin_flush(&mut self, what: Flush<'_, Self>, ticket: Ticket);
    /// Flushes and waits for it: for the start, when nobody else waits.
    fn flush(&mut self, what: Flush<'_, Self>) -> io::Result<()>;
    /// Hands queued flushes to the kernel. Whether some have ended already: nothing else will tell of those.
    fn submit(&mut self) -> bool;
    /// The next flush that ended; asked until there is none, after an event and after [`submit`](Self::submit).
    fn ended_flush(&mut self) -> Option<(Ticket, io::Result<()>)>;
    /// Room on the file system that holds `directory`.
    fn space(&mut self, directory: &Self::Directory) -> io::Result<Space>;
    /// A number for the file system that `directory` is on, and one for the directory there.
    fn identity(&mut self, directory: &Self::Directory) -> io::Result<(u64, u64)>;
    /// Whether `path` still names `directory` itself, not a newcomer in its place; nothing there is an error.
    fn is_same(&mut self, path: &Path, directory: &Self::Directory) -> io::Result<bool>;
    /// Begins to list the names in `directory`, which may change meanwhile.
    fn list(&mut self, directory: &Self::Directory) -> io::Result<Self::Listing>;
    /// The next name, in no order; `None` at the end. `.` and `..` are left out.
    fn next_name(&mut self, listing: &mut Self::Listing) -> io::Result<Option<CString>>;
    /// When the file `name` was last written to; a name of something else is `InvalidInput`.
    fn modified(&mut self, directory: &Self::Directory, name: &CStr) -> io::Result<SystemTime>;
    /// Whether a file in `directory` that is overwritten and flushed is safe, and so cheaper than files that are made.
    fn suits_journal(&mut self, directory: &Self::Directory) -> bool;
    /// Opens the file `name`, for reading, too, and locks it, which another process may have done: `None`. With `make` it
    /// is made as by [`create`](Self::create). How many octets it has.
    fn open_journal(&mut self, at: &Self::Directory, name: &CStr, make: bool) -> io::Result<Option<(Self::File, u64)>>;
    /// Reads octets from `offset` on, until `octets` is full; where the file ends before that is `UnexpectedEof`.
    fn read_at(&mut self, file: &Self::File, octets: &mut [u8], offset: u64) -> io::Result<()>;
    /// Overwrites octets from `offset` on; of what fails some may be written.
    fn write_at(&mut self, file: &Self::File, octets: &[u8], offset: u64) -> io::Result<()>;
}

/// Whether flushes reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// As `Always`, with a journal for messages that come in bursts, where the file system suits it.
    Journal,
    /// Every flush is done, and its end reported when the disk has the octets.
    Always,
    /// Flushes end at once and do nothing: what was written lately is lost when the machine stops.
    Never,
}

/// Flushes given to the kernel at a time, about. It takes a worker for each, and 32 octets of its memory twice.
const IN_FLIGHT_MAX: usize = 256;
/// How long the disk may take to tell of an end while flushes prove that they work asynchronously.
const PROOF_TIME: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const JOURNAL: OFlags = OFlags::RDWR.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// ext4, XFS, Btrfs and F2FS. UBIFS writes whatever is overwritten a second time, NFS locks at its server's pleasure, and
/// what is kept in memory needs none.
const JOURNALED: [u32; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];

/// The real disk.
pub struct Disk {
    sync: SyncMode,
    /// Present once it is proved to work, and while that is tried. Without it `begin_flush` waits for the disk.
    aio: Option<Aio>,
    /// It was proved not to work: flushes block from now on.
    pub(crate) falls_back: bool,
    /// Ends of flushes that were not asynchronous.
    ended: VecDeque<(Ticket, io::Result<()>)>,
    /// Whether the group may read what is made: files then have mode 0640 and directories 2750, else 0600 and 0700.
    pub group_readable: bool,
    /// Whether a rename that never replaces was found to be missing.
    link_to_rename: bool,
}

impl Disk {
    /// A disk whose flushes block until it was proved that they need not.
    pub fn new(sync: SyncMode) -> Self {
        let ended = VecDeque::new();
        Self { sync, aio: None, falls_back: false, ended, group_readable: false, link_to_rename: false }
    }

    /// Flushes `file` and `directory` and waits for them, before any other flush; asynchronously if that can be done, and
    /// then all later ones are. Both are to be on the file system of the mail, as it is that which may be unable. After
    /// an error with which it `falls_back` another proof, of another file, is to follow.
    pub(crate) fn prove_flushes(&mut self, file: &File, directory: &OwnedFd) -> io::Result<()> {
        if self.sync == SyncMode::Never || self.falls_back {
            return self.flush_both(file, directory);
        }
        let proven = Aio::new(IN_FLIGHT_MAX).and_then(|aio| {
            self.aio = Some(aio);
            self.flush_both(file, directory)
        });
        proven.inspect_err(|reason| {
            warn!("the disk can't be flushed in the background ({reason}): each flush holds up all sessions");
            self.falls_back = true;
            // Dropping it would wait for what may never end.
            std::mem::forget(self.aio.take());
        })
    }

    fn flush_both(&mut self, file: &File, directory: &OwnedFd) -> io::Result<()> {
        self.begin_flush(Flush::File(file), 0);
        self.begin_flush(Flush::Directory(directory), 1);
        self.submit();
        let (mut missing, mut flushed) = (2, Ok(()));
        loop {
            while let Some((_, result)) = self.ended_flush() {
                missing -= 1;
                flushed = flushed.and(result);
            }
            let Some(event) = self.flush_event().filter(|_| missing > 0) else { return flushed };
            let mut polled = [PollFd::from_borrowed_fd(event, PollFlags::IN)];
            if rustix::io::retry_on_intr(|| poll(&mut polled, Some(&PROOF_TIME)))? == 0 {
                return Err(Errno::TIMEDOUT.into());
            }
            // Here its level is asked, not its edges.
            rustix::io::read(event, &mut [0; 8])?;
        }
    }

    /// What becomes readable, to be polled edge-triggered, when flushes end; `None` while they block.
    pub fn flush_event(&self) -> Option<BorrowedFd<'_>> {
        self.aio.as_ref().map(|aio| aio.event.as_fd())
    }

    /// Opens `path` below `at`; with `create` it is made before where it is missing.
    fn open(&self, at: BorrowedFd<'_>, path: impl Arg + Copy, flags: OFlags, create: bool) -> io::Result<OwnedFd> {
        let opened = rustix::fs::openat(at, path, flags, Mode::empty());
        let (Err(Errno::NOENT), true) = (&opened, create) else { return Ok(opened?) };
        let mode = Mode::from_raw_mode(if self.group_readable { 0o2750 } else { 0o700 });
        let made = rustix::fs::mkdirat(at, path, mode);
        // Another process may have been quicker than we are.
        made.or_else(|errno| if errno == Errno::EXIST { Ok(()) } else { Err(errno) })?;
        let directory = rustix::fs::openat(at, path, flags, Mode::empty())?;
        if made.is_ok() {
            // The bit that has what is made there be the group's can be set in no other way.
            rustix::fs::fchmod(&directory, mode)?;
        }
        Ok(directory)
    }
}

/// What tells a file or directory from all others.
fn identity(stat: Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

impl FileSystem for Disk {
    type File = File;
    type Directory = OwnedFd;
    type Listing = Dir;

    fn open_directory(&mut self, path: &Path, create: bool) -> io::Result<OwnedFd> {
        self.open(CWD, path, DIRECTORY, create)
    }

    fn open_directory_in(&mut self, at: &OwnedFd, name: &CStr, create: bool) -> io::Result<OwnedFd> {
        self.open(at.as_fd(), name, DIRECTORY | OFlags::NOFOLLOW, create)
    }

    fn create(&mut self, directory: &OwnedFd, name: &CStr) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(if self.group_readable { 0o640 } else { 0o600 });
        Ok(rustix::fs::openat(directory, name, flags, mode)?.into())
    }

    fn write(&mut self, file: &mut File, octets: &[u8]) -> io::Result<()> {
        file.write_all(octets)
    }

    fn rename(&mut self, from: &OwnedFd, name: &CStr, to: &OwnedFd, new_name: &CStr) -> io::Result<()> {
        if !self.link_to_rename {
            match rustix::fs::renameat_with(from, name, to, new_name, rustix::fs::RenameFlags::NOREPLACE) {
                // The kernel does not know the call, or the file system (NFS, some FUSE) not the flag.
                Err(Errno::NOSYS | Errno::INVAL | Errno::NOTSUP) => self.link_to_rename = true,
                renamed => return Ok(renamed?),
            }
        }
        if let Err(error) = self.link(from, name, to, new_name) {
            // NFS may ask twice when the first reply was lost, and be told that the name exists: that it made itself.
            let file = |at, name| rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW).map(identity);
            if error.kind() != io::ErrorKind::AlreadyExists || file(from, name)? != file(to, new_name)? {
                return Err(error);
            }
        }
        // The file is where it belongs. A second name that stays is for the sweep, and no reason to take it back.
        let _ = self.remove(from, name);
        Ok(())
    }

    fn link(&mut self, from: &OwnedFd, name: &CStr, to: &OwnedFd, new_name: &CStr) -> io::Result<()> {
        Ok(rustix::fs::linkat(from, name, to, new_name, AtFlags::empty())?)
    }

    fn remove(&mut self, directory: &OwnedFd, name: &CStr) -> io::Result<()> {
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            removed => Ok(removed?),
        }
    }

    fn begin_flush(&mut self, what: Flush<'_, Self>, ticket: Ticket) {
        match &mut self.aio {
            Some(aio) => aio.queue(what, ticket),
            None => {
                let flushed = self.flush(what);
                self.ended.push_back((ticket, flushed));
            }
        }
    }

    /// A failure is final, even `EINTR`: who knows what was dropped.
    fn flush(&mut self, what: Flush<'_, Self>) -> io::Result<()> {
        match what {
            _ if self.sync == SyncMode::Never => Ok(()),
            Flush::File(file) => Ok(rustix::fs::fdatasync(file)?),
            Flush::Directory(directory) => Ok(rustix::fs::fsync(directory)?),
        }
    }

    fn submit(&mut self) -> bool {
        self.aio.as_mut().is_some_and(Aio::submit) || !self.ended.is_empty()
    }

    fn ended_flush(&mut self) -> Option<(Ticket, io::Result<()>)> {
        self.ended.pop_front().or_else(|| self.aio.as_mut()?.ended())
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

    fn identity(&mut self, directory: &OwnedFd) -> io::Result<(u64, u64)> {
        Ok(identity(rustix::fs::fstat(directory)?))
    }

    fn is_same(&mut self, path: &Path, directory: &OwnedFd) -> io::Result<bool> {
        Ok(identity(rustix::fs::stat(path)?) == self.identity(directory)?)
    }

    fn list(&mut self, directory: &OwnedFd) -> io::Result<Dir> {
        Ok(Dir::read_from(directory)?)
    }

    fn next_name(&mut self, listing: &mut Dir) -> io::Result<Option<CString>> {
        let mut names = listing.map(|found| Ok(found?.file_name().to_owned()));
        names.find(|name| !matches!(name, Ok(name) if [c".", c".."].contains(&name.as_c_str()))).transpose()
    }

    fn modified(&mut self, directory: &OwnedFd, name: &CStr) -> io::Result<SystemTime> {
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let since = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
        Ok(UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH))
    }

    fn suits_journal(&mut self, directory: &OwnedFd) -> bool {
        rustix::fs::fstatfs(directory).is_ok_and(|found| JOURNALED.contains(&(found.f_type as u32)))
    }

    fn open_journal(&mut self, at: &OwnedFd, name: &CStr, make: bool) -> io::Result<Option<(File, u64)>> {
        let made = if make { OFlags::CREATE.union(OFlags::EXCL) } else { OFlags::empty() };
        let file: File = rustix::fs::openat(at, name, JOURNAL | made, Mode::from_raw_mode(0o600))?.into();
        let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
        if locked == Err(Errno::WOULDBLOCK) {
            return Ok(None);
        }
        let (stat, ()) = (rustix::fs::fstat(&file)?, locked?);
        // Another process may have removed it before it let go of it.
        Ok((stat.st_nlink > 0).then_some((file, stat.st_size as u64)))
    }

    fn read_at(&mut self, file: &File, octets: &mut [u8], offset: u64) -> io::Result<()> {
        file.read_exact_at(octets, offset)
    }

    fn write_at(&mut self, file: &File, octets: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(octets, offset)
    }
}

#[cfg(test)]
#[path = "../tests/unit/fs.rs"]
pub(crate) mod tests;
