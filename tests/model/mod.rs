//! A file system in memory that forgets what was not flushed, and fails when it is told to.
//!
//! Everything is there twice: *seen*, which is what system calls show, and *durable*, which is what a power cut leaves.
//!
//! * Octets go to *seen*. A file's flush makes those durable that were there when it began; of all others a power cut
//!   leaves any prefix.
//! * Names go to *seen*, too, each addition and each removal a change of one directory. A directory's flush makes the
//!   changes durable that were there when it began; a power cut leaves any choice of the others. Of a move it leaves
//!   nothing, both names, or only the new one. Where moves are not atomic (no journal), a flush of the old directory
//!   alone writes the removal without the addition.
//! * A file that is overwritten is durable in sectors: what was written to each since its last flush a power cut leaves or
//!   not, whatever it leaves of the others.
//! * A flush that fails leaves its octets and changes marked as clean: later flushes succeed and do not write them.
//!
//! Every call is an operation with a number, and so is the end of a flush. The machine can be stopped after any of them
//! ([`ModelDisk::crash_after`]), and any can be made to fail ([`ModelDisk::fail`]).

#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod hand;
pub mod peer;
pub mod power_cut;
#[path = "../common/trace.rs"]
pub mod trace;

use hand::Random;
use mailchute::fs::{FileSystem, Flush, Space, Ticket};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, CString};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::SystemTime;

/// Where the mail is, the main Maildir at least. `/mail` is there from the beginning.
pub const MAILDIR: &str = "/mail/Maildir";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    OpenDirectory,
    Create,
    Write,
    Rename,
    Link,
    Remove,
    BeginFlush,
    EndFileFlush,
    /// That of a file that was opened as a journal.
    EndJournalFlush,
    EndDirectoryFlush,
    Space,
    IsSame,
    List,
    NextName,
    Modified,
    OpenJournal,
    ReadAt,
    WriteAt,
}

/// What the disk writes whole or not at all.
pub const SECTOR: usize = 512;

/// When flushes end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// In `submit`, as with the blocking fallback.
    AtOnce,
    /// When the test says so ([`ModelDisk::end_flushes`]).
    Told,
}

/// One name added to a directory (`inode`) or removed from it. Both halves of a move have the same number.
#[derive(Clone, Debug)]
struct Change {
    number: u64,
    name: String,
    inode: Option<usize>,
    /// A flush that failed marked it as clean.
    lost: bool,
}

#[derive(Clone, Default)]
struct Names {
    seen: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    pending: Vec<Change>,
    /// The newest change that was there when the last flush began.
    covered: u64,
    /// The directory itself was removed.
    gone: bool,
}

/// A sector that was overwritten.
#[derive(Clone)]
struct Sector {
    durable: Vec<u8>,
    /// What was written since: the number of each change, what the sector was then, and whether a failed flush lost it.
    pending: Vec<(u64, Vec<u8>, bool)>,
}

#[derive(Clone)]
struct Inode {
    octets: Rc<Vec<u8>>,
    overwritten: BTreeMap<usize, Sector>,
    is_journal: bool,
    /// So many of the octets are durable.
    durable: usize,
    /// A flush that failed marked the others as clean.
    lost: bool,
    modified: SystemTime,
    names: Option<Names>,
}

struct UnderWay {
    descriptor: usize,
    inode: usize,
    ticket: Ticket,
    /// Octets of a file, or the number of a directory's newest change, at the begin.
    covered: u64,
    /// The number of the newest change of all.
    newest: u64,
}

#[derive(Default)]
struct Descriptor {
    flushing: bool,
    failed: bool,
}

#[derive(Clone, Copy)]
struct Fault {
    from: usize,
    until: usize,
    errno: Errno,
}

struct Machine {
    inodes: Vec<Inode>,
    descriptors: BTreeMap<usize, Descriptor>,
    /// Files that are locked, and by which descriptor.
    locked: BTreeMap<usize, usize>,
    suits_journal: bool,
    opened: usize,
    changes: u64,
    log: Vec<(Kind, String)>,
    faults: Vec<Fault>,
    /// So many operations of a kind that fail next, whatever is done between.
    faults_of: Vec<(Kind, usize, Errno)>,
    crash_after: usize,
    dead: bool,
    ends: Ends,
    queued: Vec<UnderWay>,
    under_way: Vec<UnderWay>,
    ended: VecDeque<(Ticket, io::Result<()>)>,
    atomic_moves: bool,
    /// Why no link can be made, as on a file system without them.
    no_links: Option<Errno>,
    /// A directory in which no name can be made.
    broken: Option<(String, Errno)>,
    /// The Maildirs that a power cut is judged by, the main one first.
    maildirs: Vec<String>,
    reader: Option<Random>,
    clock: SystemTime,
    space: Space,
    violations: Vec<String>,
}

/// An open file or directory.
pub struct Handle {
    machine: Rc<RefCell<Machine>>,
    descriptor: usize,
    inode: usize,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let Ok(mut machine) = self.machine.try_borrow_mut() else { return };
        let closed = machine.descriptors.remove(&self.descriptor);
        machine.locked.retain(|_, locked_by| *locked_by != self.descriptor);
        if closed.is_some_and(|descriptor| descriptor.flushing) {
            machine.violate("closed while its flush is under way");
        }
    }
}

/// The disk, and the test's hand on it: a clone is the same disk.
#[derive(Clone)]
pub struct ModelDisk(Rc<RefCell<Machine>>);

impl Machine {
    /// Counts an operation and fails it if it is to. The machine stops before the one after `crash_after`.
    fn operation(&mut self, kind: Kind, on: &str) -> io::Result<()> {
        self.read_mail();
        self.dead |= self.log.len() >= self.crash_after;
        if self.dead {
            return Err(Errno::IO.into());
        }
        self.log.push((kind, on.to_owned()));
        let number = self.log.len();
        // The begin of a flush returns nothing; its end does.
        let fault = self.faults.iter().find(|fault| (fault.from..fault.until).contains(&number));
        if let Some(fault) = fault.filter(|_| kind != Kind::BeginFlush) {
            return Err(fault.errno.into());
        }
        match self.faults_of.iter_mut().find(|(of, left, _)| *of == kind && *left > 0) {
            Some((_, left, errno)) => {
                *left -= 1;
                Err((*errno).into())
            }
            None => Ok(()),
        }
    }

    fn violate(&mut self, what: &str) {
        if self.log.len() >= self.crash_after {
            return;
        }
        let last = self.log.last().map(|(kind, on)| format!("{kind:?} {on}")).unwrap_or_default();
        self.violations.push(format!("{what}, after operation {} ({last})", self.log.len()));
    }

    fn names(&mut self, directory: usize) -> &mut Names {
        self.inodes[directory].names.as_mut().expect("a directory")
    }

    fn make(&mut self, names: Option<Names>) -> usize {
        let modified = self.clock;
        let (octets, overwritten, is_journal) = Default::default();
        self.inodes.push(Inode { octets, overwritten, is_journal, durable: 0, lost: false, modified, names });
        self.inodes.len() - 1
    }

    fn find(&self, path: &Path) -> Option<usize> {
        path.iter()
            .skip(1)
            .try_fold(0, |directory, name| self.inodes[directory].names.as_ref()?.seen.get(name.to_str()?).copied())
    }

    fn change(&mut self, directory: usize, number: u64, name: &str, inode: Option<usize>) {
        let names = self.names(directory);
        match inode {
            Some(inode) => names.seen.insert(name.to_owned(), inode),
            None => names.seen.remove(name),
        };
        names.pending.push(Change { number, name: name.to_owned(), inode, lost: false });
    }

    /// Fails what makes a name in a directory that is broken.
    fn check_broken(&self, directory: usize) -> io::Result<()> {
        let broken = self.broken.as_ref().filter(|(path, _)| self.find(Path::new(path)) == Some(directory));
        broken.map_or(Ok(()), |(_, errno)| Err(io::Error::from(*errno)))
    }

    fn overwrite(&mut self, inode: usize, written: &[u8], offset: usize) {
        let (number, clock) = (self.next_change(), self.clock);
        let Inode { octets, overwritten, modified, .. } = &mut self.inodes[inode];
        let (octets, end) = (Rc::make_mut(octets), offset + written.len());
        assert!(end <= octets.len(), "a journal that grows");
        let range = |sector: usize| sector * SECTOR..octets.len().min((sector + 1) * SECTOR);
        let sectors = offset / SECTOR..end.div_ceil(SECTOR);
        for sector in sectors.clone() {
            let durable = || Sector { durable: octets[range(sector)].to_vec(), pending: Vec::new() };
            overwritten.entry(sector).or_insert_with(durable);
        }
        octets[offset..end].copy_from_slice(written);
        for sector in sectors {
            let now = octets[sector * SECTOR..octets.len().min((sector + 1) * SECTOR)].to_vec();
            overwritten.get_mut(&sector).expect("a sector").pending.push((number, now, false));
        }
        *modified = clock;
    }

    fn next_change(&mut self) -> u64 {
        self.changes += 1;
        self.changes
    }

    fn open_name(&mut self, parent: Option<usize>, name: &str, create: bool) -> io::Result<usize> {
        self.operation(Kind::OpenDirectory, name)?;
        let parent = parent.filter(|&parent| !self.names(parent).gone).ok_or(Errno::NOENT)?;
        match self.names(parent).seen.get(name).copied() {
            Some(found) if self.inodes[found].names.is_some() => Ok(found),
            Some(_) => Err(Errno::NOTDIR.into()),
            None if !create => Err(Errno::NOENT.into()),
            None => {
                self.check_broken(parent)?;
                let (made, number) = (self.make(Some(Names::default())), self.next_change());
                self.change(parent, number, name, Some(made));
                Ok(made)
            }
        }
    }

    fn end(&mut self, flush: UnderWay) {
        let UnderWay { descriptor, inode, ticket, covered, newest } = flush;
        let kind = match &self.inodes[inode] {
            Inode { names: Some(_), .. } => Kind::EndDirectoryFlush,
            Inode { is_journal: true, .. } => Kind::EndJournalFlush,
            _ => Kind::EndFileFlush,
        };
        let result = self.operation(kind, &format!("ticket {ticket}"));
        if let Some(descriptor) = self.descriptors.get_mut(&descriptor) {
            descriptor.flushing = false;
            descriptor.failed |= result.is_err();
        }
        let atomic_moves = self.atomic_moves;
        if !self.dead {
            self.inodes[inode].overwritten.retain(|_, sector| sector.end_flush(newest, result.is_ok()));
        }
        let Inode { octets, durable, lost, names, .. } = &mut self.inodes[inode];
        match (names, &result) {
            _ if self.dead => {}
            (None, Ok(())) if !*lost => *durable = (*durable).max(covered as usize),
            (None, Ok(())) => {}
            (None, Err(_)) => *lost = *durable < octets.len(),
            (Some(names), result) => {
                // A journal takes both halves of a move along, wherever the other one is.
                let touched: Vec<u64> = match result {
                    Ok(()) => names.write(|change| change.number <= covered),
                    Err(_) => names.pending.iter().map(|change| change.number).collect(),
                };
                for other in self.inodes.iter_mut().filter_map(|inode| inode.names.as_mut()).filter(|_| atomic_moves) {
                    match result {
                        Ok(()) => drop(other.write(|change| touched.contains(&change.number))),
                        Err(_) => other.lose(|change| touched.contains(&change.number)),
                    }
                }
                if result.is_err() {
                    self.names(inode).lose(|_| true);
                }
            }
        }
        self.ended.push_back((ticket, result));
    }

    /// The reader of a mailbox moves a message from `new/` to `cur/`, now and then.
    fn read_mail(&mut self) {
        let Some(mut random) = self.reader.take() else { return };
        let maildir = match self.maildirs.len() {
            1 => self.maildirs[0].clone(),
            count => self.maildirs[random.below(count)].clone(),
        };
        let place = |machine: &Self, name| machine.find(&Path::new(&maildir).join(name));
        if let (Some(new), Some(cur), 0, false) = (place(self, "new"), place(self, "cur"), random.below(3), self.dead) {
            let atomic_moves = self.atomic_moves;
            let names = self.names(new);
            // Where moves are not atomic, one after the begin of the message's own flush is the reader's risk.
            let open = |name: &&String| {
                atomic_moves || names.pending.iter().any(|made| made.name == **name && made.number > names.covered)
            };
            let movable: Vec<String> = names.seen.keys().filter(open).cloned().collect();
            if !movable.is_empty() {
                let name = &movable[random.below(movable.len())];
                let (inode, number) = (self.names(new).seen[name], self.next_change());
                self.change(new, number, name, None);
                self.change(cur, number, &format!("{name}:2,S"), Some(inode));
            }
        }
        self.reader = Some(random);
    }
}

impl Sector {
    /// A flush of what was written up to the change `newest` ended; whether something is still not durable.
    fn end_flush(&mut self, newest: u64, succeeded: bool) -> bool {
        if !succeeded {
            self.pending.iter_mut().for_each(|(.., lost)| *lost = true);
        } else if let Some(last) = self.pending.iter().rposition(|(number, _, lost)| *number <= newest && !lost) {
            self.durable = self.pending.drain(..=last).next_back().map(|(_, octets, _)| octets).unwrap_or_default();
        }
        !self.pending.is_empty()
    }
}

impl Names {
    /// Marks changes as clean that never reached the disk.
    fn lose(&mut self, which: impl Fn(&Change) -> bool) {
        self.pending.iter_mut().filter(|change| which(change)).for_each(|change| change.lost = true);
    }

    /// Makes changes durable; returns their numbers.
    fn write(&mut self, which: impl Fn(&Change) -> bool) -> Vec<u64> {
        let (mut written, mut newest) = (Vec::new(), BTreeMap::new());
        let durable = &mut self.durable;
        self.pending.retain(|change| {
            let write = which(change) && !change.lost;
            if write {
                apply(durable, change);
                written.push(change.number);
                newest.insert(change.name.clone(), change.number);
            }
            !write
        });
        // What was lost before does not come back over what was made of the same name since.
        self.pending.retain(|change| newest.get(&change.name).is_none_or(|newest| change.number > *newest));
        written
    }
}

fn apply(names: &mut BTreeMap<String, usize>, change: &Change) {
    match change.inode {
        Some(inode) => names.insert(change.name.clone(), inode),
        None => names.remove(&change.name),
    };
}

fn text(name: &CStr) -> &str {
    name.to_str().expect("names are text")
}

impl ModelDisk {
    fn handle(&self, inode: usize) -> Handle {
        let mut machine = self.0.borrow_mut();
        machine.opened += 1;
        let descriptor = machine.opened;
        machine.descriptors.insert(descriptor, Descriptor::default());
        Handle { machine: Rc::clone(&self.0), descriptor, inode }
    }

    /// Gives a file another name; the number of that change.
    fn add_name(&self, kind: Kind, from: &Handle, name: &CStr, to: &Handle, new_name: &CStr) -> io::Result<u64> {
        let mut machine = self.0.borrow_mut();
        machine.operation(kind, text(new_name))?;
        machine.check_broken(to.inode)?;
        machine.no_links.filter(|_| kind == Kind::Link).map_or(Ok(()), |errno| Err(io::Error::from(errno)))?;
        let inode = machine.names(from.inode).seen.get(text(name)).copied().ok_or(Errno::NOENT)?;
        if machine.names(to.inode).gone {
            return Err(Errno::NOENT.into());
        }
        if machine.names(to.inode).seen.contains_key(text(new_name)) {
            return Err(Errno::EXIST.into());
        }
        let number = machine.next_change();
        machine.change(to.inode, number, text(new_name), Some(inode));
        Ok(number)
    }
}

impl FileSystem for ModelDisk {
    type File = Handle;
    type Directory = Handle;
    type Listing = std::vec::IntoIter<CString>;

    fn open_directory(&mut self, path: &Path, create: bool) -> io::Result<Handle> {
        let parent = path.parent().and_then(|parent| self.0.borrow().find(parent));
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let inode = self.0.borrow_mut().open_name(parent, name, create)?;
        Ok(self.handle(inode))
    }

    fn open_directory_in(&mut self, parent: &Handle, name: &CStr, create: bool) -> io::Result<Handle> {
        if name == c".." {
            self.0.borrow_mut().operation(Kind::OpenDirectory, "..")?;
            let machine = self.0.borrow();
            let holds =
                |inode: &Inode| inode.names.iter().any(|names| names.seen.values().any(|&it| it == parent.inode));
            let above = machine.inodes.iter().position(holds).ok_or(Errno::NOENT)?;
            drop(machine);
            return Ok(self.handle(above));
        }
        let inode = self.0.borrow_mut().open_name(Some(parent.inode), text(name), create)?;
        Ok(self.handle(inode))
    }

    fn create(&mut self, directory: &Handle, name: &CStr) -> io::Result<Handle> {
        let mut machine = self.0.borrow_mut();
        machine.operation(Kind::Create, text(name))?;
        machine.check_broken(directory.inode)?;
        let names = machine.names(directory.inode);
        if names.gone {
            return Err(Errno::NOENT.into());
        }
        if names.seen.contains_key(text(name)) {
            return Err(Errno::EXIST.into());
        }
        let (inode, number) = (machine.make(None), machine.next_change());
        machine.change(directory.inode, number, text(name), Some(inode));
        drop(machine);
        Ok(self.handle(inode))
    }

    fn write(&mut self, file: &mut Handle, octets: &[u8]) -> io::Result<()> {
        let mut machine = self.0.borrow_mut();
        let result = machine.operation(Kind::Write, &format!("{} octets", octets.len()));
        // One that fails may have written some.
        let written = if result.is_ok() { octets.len() } else { octets.len() / 2 };
        if !machine.dead {
            let clock = machine.clock;
            let inode = &mut machine.inodes[file.inode];
            Rc::make_mut(&mut inode.octets).extend_from_slice(&octets[..written]);
            inode.modified = clock;
        }
        result
    }

    fn rename(&mut self, from: &Handle, name: &CStr, to: &Handle, new_name: &CStr) -> io::Result<()> {
        let number = self.add_name(Kind::Rename, from, name, to, new_name)?;
        self.0.borrow_mut().change(from.inode, number, text(name), None);
        Ok(())
    }

    fn link(&mut self, from: &Handle, name: &CStr, to: &Handle, new_name: &CStr) -> io::Result<()> {
        self.add_name(Kind::Link, from, name, to, new_name).map(drop)
    }

    fn remove(&mut self, directory: &Handle, name: &CStr) -> io::Result<()> {
        let mut machine = self.0.borrow_mut();
        let result = machine.operation(Kind::Remove, text(name));
        // A name that is said not to be there is gone: somebody else was quicker.
        if result.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
            return result;
        }
        if machine.names(directory.inode).seen.contains_key(text(name)) {
            let number = machine.next_change();
            machine.change(directory.inode, number, text(name), None);
        }
        Ok(())
    }

    fn begin_flush(&mut self, what: Flush<'_, Self>, ticket: Ticket) {
        let (Flush::File(Handle { descriptor, inode, .. }) | Flush::Directory(Handle { descriptor, inode, .. })) = what;
        let (descriptor, inode) = (*descriptor, *inode);
        let mut machine = self.0.borrow_mut();
        if machine.operation(Kind::BeginFlush, &format!("ticket {ticket}")).is_err() {
            return machine.ended.push_back((ticket, Err(Errno::IO.into())));
        }
        let state = machine.descriptors.entry(descriptor).or_default();
        let (twice, again) = (std::mem::replace(&mut state.flushing, true), state.failed);
        if twice {
            machine.violate("two flushes on one descriptor");
        }
        if again {
            machine.violate("a flush after one that failed");
        }
        let (octets, changes) = (machine.inodes[inode].octets.len() as u64, machine.changes);
        let covered = match &mut machine.inodes[inode].names {
            None => octets,
            Some(names) => {
                names.covered = changes;
                changes
            }
        };
        machine.queued.push(UnderWay { descriptor, inode, ticket, covered, newest: changes });
    }

    fn flush(&mut self, what: Flush<'_, Self>) -> io::Result<()> {
        let mut machine = self.0.borrow_mut();
        let newest = machine.changes;
        let (Handle { descriptor, inode, .. }, covered) = match what {
            Flush::File(file) => (file, machine.inodes[file.inode].octets.len() as u64),
            Flush::Directory(directory) => (directory, newest),
        };
        machine.end(UnderWay { descriptor: *descriptor, inode: *inode, ticket: 0, covered, newest });
        machine.ended.pop_back().map_or(Ok(()), |(_, result)| result)
    }

    fn submit(&mut self) -> bool {
        let mut machine = self.0.borrow_mut();
        let queued = std::mem::take(&mut machine.queued);
        match machine.ends {
            Ends::Told => machine.under_way.extend(queued),
            Ends::AtOnce => queued.into_iter().for_each(|flush| machine.end(flush)),
        }
        !machine.ended.is_empty()
    }

    fn ended_flush(&mut self) -> Option<(Ticket, io::Result<()>)> {
        self.0.borrow_mut().ended.pop_front()
    }

    fn space(&mut self, _: &Handle) -> io::Result<Space> {
        let mut machine = self.0.borrow_mut();
        machine.operation(Kind::Space, "")?;
        Ok(machine.space)
    }

    fn identity(&mut self, directory: &Handle) -> io::Result<(u64, u64)> {
        Ok((1, directory.inode as u64))
    }

    fn is_same(&mut self, path: &Path, directory: &Handle) -> io::Result<bool> {
        let mut machine = self.0.borrow_mut();
        machine.operation(Kind::IsSame, "")?;
        Ok(machine.find(path) == Some(directory.inode))
    }

    fn list(&mut self, directory: &Handle) -> io::Result<Self::Listing> {
        let mut machine = self.0.borrow_mut();
        machine.operation(Kind::List, "")?;
        let names: Vec<_> = machine.names(directory.inode).seen.keys().cloned().collect();
        Ok(names.into_iter().map(|name| CString::new(name).expect("a name")).collect::<Vec<_>>().into_iter())
    }

    fn next_name(&mut self, listing: &mut Self::Listing) -> io::Result<Option<CString>> {
        self.0.borrow_mut().operation(Kind::NextName, "")?;
        Ok(listing.next())
    }

    fn modified(&mut self, directory: &Handle, name: &CStr) -> io::Result<SystemTime> {
        let mut machine = self.0.borrow_mut();
        machine.operation(Kind::Modified, text(name))?;
        let inode = machine.names(directory.inode).seen.get(text(name)).copied().ok_or(Errno::NOENT)?;
        match machine.inodes[inode].names {
            Some(_) => Err(io::ErrorKind::InvalidInput.into()),
            None => Ok(machine.inodes[inode].modified),
        }
    }

    fn suits_journal(&mut self, _: &Handle) -> bool {
        self.0.borrow().suits_journal
    }

    fn open_journal(&mut self, at: &Handle, name: &CStr, make: bool) -> io::Result<Option<(Handle, u64)>> {
        let mut machine = self.0.borrow_mut();
        machine.operation(Kind::OpenJournal, text(name))?;
        let found = machine.names(at.inode).seen.get(text(name)).copied();
        let inode = match found {
            Some(_) if make => return Err(Errno::EXIST.into()),
            Some(inode) if machine.inodes[inode].names.is_some() => return Err(Errno::ISDIR.into()),
            Some(inode) => inode,
            None if !make || machine.names(at.inode).gone => return Err(Errno::NOENT.into()),
            None => {
                machine.check_broken(at.inode)?;
                let (inode, number) = (machine.make(None), machine.next_change());
                machine.change(at.inode, number, text(name), Some(inode));
                inode
            }
        };
        if machine.locked.contains_key(&inode) {
            return Ok(None);
        }
        machine.inodes[inode].is_journal = true;
        let octets = machine.inodes[inode].octets.len() as u64;
        drop(machine);
        let handle = self.handle(inode);
        self.0.borrow_mut().locked.insert(inode, handle.descriptor);
        Ok(Some((handle, octets)))
    }

    fn read_at(&mut self, file: &Handle, octets: &mut [u8], offset: u64) -> io::Result<()> {
        let mut machine = self.0.borrow_mut();
        machine.operation(Kind::ReadAt, &format!("{} octets at {offset}", octets.len()))?;
        let from = machine.inodes[file.inode].octets.get(offset as usize..).unwrap_or_default();
        let count = from.len().min(octets.len());
        octets[..count].copy_from_slice(&from[..count]);
        if count < octets.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn write_at(&mut self, file: &Handle, octets: &[u8], offset: u64) -> io::Result<()> {
        let mut machine = self.0.borrow_mut();
        let result = machine.operation(Kind::WriteAt, &format!("{} octets at {offset}", octets.len()));
        // One that fails may have written some, but never a part of a sector.
        let octets = if result.is_ok() { octets } else { &octets[..octets.len() / 2 / SECTOR * SECTOR] };
        if !machine.dead && !octets.is_empty() {
            machine.overwrite(file.inode, octets, offset as usize);
        }
        result
    }
}
