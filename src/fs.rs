//! The few things that a delivery asks of a file system, as a trait, and the real disk behind it.

use std::ffi::CStr;
use std::io;
use std::path::Path;

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

/// One name in a directory, as a sweep for leftovers sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name, without a path.
    pub name: std::ffi::CString,
    /// When its content last changed, in seconds since 1970.
    pub modified: i64,
}

/// The disk as a delivery sees it. Nothing here sleeps but what the disk itself makes slow; a flush is begun,
/// and its end is asked for. The tests put a file system that forgets and fails behind the same trait.
pub trait FileSystem {
    /// A file open for appending.
    type File;
    /// A directory held open, so that names are looked up in it and nowhere else.
    type Directory;

    /// Opens the directory `path`; with `create` it is made (mode 0700) when it is missing.
    /// Parents are not made.
    fn open_directory(&mut self, path: &Path, create: bool) -> io::Result<Self::Directory>;

    /// x
    fn open_directory_in(&mut self, parent: &Self::Directory, name: &CStr, create: bool)
    -> io::Result<Self::Directory>;

    /// Makes the file `name` (mode 0600), which must not exist, not even as a symbolic link.
    fn create(&mut self, directory: &Self::Directory, name: &CStr) -> io::Result<Self::File>;

    /// Appends all of `octets`, or fails.
    fn write(&mut self, file: &mut Self::File, octets: &[u8]) -> io::Result<()>;

    /// Moves `name` from one directory to another, never over an existing name (`AlreadyExists`).
    fn rename(&mut self, from: &Self::Directory, name: &CStr, to: &Self::Directory, new_name: &CStr) -> io::Result<()>;

    /// Removes `name`; a name that is not there is `NotFound`.
    fn remove(&mut self, directory: &Self::Directory, name: &CStr) -> io::Result<()>;

    /// Begins a flush, or queues it until [`submit`](Self::submit). What is flushed stays open until the end is reported.
    fn begin_flush(&mut self, what: Flush<'_, Self>, ticket: Ticket);

    /// Hands all queued flushes to the kernel.
    fn submit(&mut self) -> bool;

    /// The next flush that ended, with its result; `None` when no more have ended by now.
    fn ended_flush(&mut self) -> Option<(Ticket, io::Result<()>)>;

    /// Room on the file system that holds `directory`.
    fn space(&mut self, directory: &Self::Directory) -> io::Result<Space>;

    /// Whether `path` still names `directory` itself, not a newcomer in its place.
    fn is_same(&mut self, path: &Path, directory: &Self::Directory) -> io::Result<bool>;

    /// Appends up to `most` entries of `directory`, regular files only.
    fn list(&mut self, directory: &Self::Directory, most: usize, entries: &mut Vec<Entry>) -> io::Result<()>;
}

/// Whether a reply waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// a
    Always,
    /// b
    Never,
}
/// stub
pub struct Disk {
    ended: Vec<(Ticket, io::Result<()>)>,
}
impl Disk {
    /// x
    pub fn new(_: Sync) -> Self {
        Self { ended: Vec::new() }
    }
    /// x
    pub fn flush_event(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}
impl FileSystem for Disk {
    type File = std::fs::File;
    type Directory = std::os::fd::OwnedFd;
    fn open_directory(&mut self, path: &Path, create: bool) -> io::Result<Self::Directory> {
        if create {
            let _ = std::fs::create_dir(path);
        }
        Ok(std::fs::File::open(path)?.into())
    }
    fn open_directory_in(
        &mut self,
        parent: &Self::Directory,
        name: &CStr,
        create: bool,
    ) -> io::Result<Self::Directory> {
        if create {
            let _ = rustix::fs::mkdirat(parent, name, rustix::fs::Mode::RWXU);
        }
        Ok(rustix::fs::openat(parent, name, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty())?)
    }
    fn create(&mut self, directory: &Self::Directory, name: &CStr) -> io::Result<Self::File> {
        use rustix::fs::{Mode, OFlags};
        Ok(rustix::fs::openat(
            directory,
            name,
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        )?
        .into())
    }
    fn write(&mut self, file: &mut Self::File, octets: &[u8]) -> io::Result<()> {
        use std::io::Write;
        file.write_all(octets)
    }
    fn rename(&mut self, from: &Self::Directory, name: &CStr, to: &Self::Directory, new_name: &CStr) -> io::Result<()> {
        Ok(rustix::fs::renameat_with(from, name, to, new_name, rustix::fs::RenameFlags::NOREPLACE)?)
    }
    fn remove(&mut self, directory: &Self::Directory, name: &CStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(directory, name, rustix::fs::AtFlags::empty())?)
    }
    fn begin_flush(&mut self, _what: Flush<'_, Self>, ticket: Ticket) {
        self.ended.push((ticket, Ok(())))
    }
    fn submit(&mut self) -> bool {
        true
    }
    fn ended_flush(&mut self) -> Option<(Ticket, io::Result<()>)> {
        self.ended.pop()
    }
    fn space(&mut self, _d: &Self::Directory) -> io::Result<Space> {
        Ok(Space { free: u64::MAX, total: u64::MAX, free_files: u64::MAX })
    }
    fn is_same(&mut self, _p: &Path, _d: &Self::Directory) -> io::Result<bool> {
        Ok(true)
    }
    fn list(&mut self, _d: &Self::Directory, _m: usize, _e: &mut Vec<Entry>) -> io::Result<()> {
        Ok(())
    }
}
