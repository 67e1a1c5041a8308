//! The test's hand on a model disk: what it may set, cause and see.

use super::{Ends, Fault, Kind, MAILDIR, Machine, ModelDisk, Names};
use mailchute::fs::Space;
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What the clock of every model shows first.
pub fn first_wall() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Numbers that depend on a seed alone (xorshift).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % limit as u64) as usize
    }

    pub fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Below one of several limits, so that both small and large numbers are likely.
    pub fn below_one_of(&mut self, limits: &[usize]) -> usize {
        let limit = self.choose(limits);
        self.below(limit)
    }
}

/// A message of about so many octets, unlike all with other numbers.
pub fn message(number: usize, octets: usize) -> String {
    let mut text = format!("Return-Path: <{number}>\nSubject: message {number}\n\n");
    while text.len() < octets {
        let rest = (octets - text.len()).min(900);
        text.push_str(&format!("{number}: {} {:x>rest$}\n", text.len(), ""));
    }
    text
}

/// A file in `new/` or `cur/`.
#[derive(Clone, Debug)]
pub struct Found {
    pub name: String,
    /// Which file it is; one may have two names.
    pub inode: usize,
    pub octets: Rc<Vec<u8>>,
}

impl ModelDisk {
    pub fn new(ends: Ends) -> Self {
        let mut machine = Machine {
            inodes: Vec::new(),
            descriptors: BTreeMap::new(),
            locked: BTreeMap::new(),
            suits_journal: false,
            opened: 0,
            changes: 0,
            log: Vec::new(),
            faults: Vec::new(),
            faults_of: Vec::new(),
            crash_after: usize::MAX,
            dead: false,
            ends,
            queued: Vec::new(),
            under_way: Vec::new(),
            ended: VecDeque::new(),
            atomic_moves: true,
            no_links: None,
            broken: None,
            maildirs: vec![MAILDIR.to_owned()],
            reader: None,
            clock: first_wall(),
            space: Space { free: 1 << 40, total: 1 << 41, free_files: u64::MAX },
            violations: Vec::new(),
        };
        let (root, mail) = (machine.make(Some(Names::default())), machine.make(Some(Names::default())));
        machine.names(root).seen.insert("mail".to_owned(), mail);
        Self(Rc::new(RefCell::new(machine)))
    }

    /// A journal that keeps both halves of a move together, or none.
    pub fn atomic_moves(self, atomic_moves: bool) -> Self {
        self.0.borrow_mut().atomic_moves = atomic_moves;
        self
    }

    /// No link can be made.
    pub fn without_links(self, errno: Errno) -> Self {
        self.0.borrow_mut().no_links = Some(errno);
        self
    }

    /// Other Maildirs beside the main one, which are there from the beginning where `there` says so.
    pub fn maildirs(self, paths: &[&str], there: bool) -> Self {
        for path in paths {
            for name in ["", "/tmp", "/new", "/cur"].into_iter().filter(|_| there) {
                self.make_directory(&format!("{path}{name}"));
            }
            self.0.borrow_mut().maildirs.push((*path).to_owned());
        }
        self.make_durable();
        self
    }

    /// All that is seen survives a power cut.
    pub(super) fn make_durable(&self) {
        for inode in &mut self.0.borrow_mut().inodes {
            inode.durable = inode.octets.len();
            inode.overwritten.clear();
            inode.names.iter_mut().for_each(|names| names.durable = names.seen.clone());
        }
    }

    /// It suits a journal.
    pub fn journaled(self) -> Self {
        self.0.borrow_mut().suits_journal = true;
        self
    }

    /// From now on flushes end so; how they ended before.
    pub fn set_ends(&self, ends: Ends) -> Ends {
        std::mem::replace(&mut self.0.borrow_mut().ends, ends)
    }

    /// What a process that is killed leaves, on a machine that goes on: all that is seen, nothing of it more durable than before.
    pub fn killed(&self) -> Self {
        let machine = self.0.borrow();
        let disk = Self::new(Ends::AtOnce);
        {
            let mut left = disk.0.borrow_mut();
            left.inodes = machine.inodes.clone();
            (left.changes, left.clock, left.space) = (machine.changes, machine.clock, machine.space);
            (left.atomic_moves, left.no_links) = (machine.atomic_moves, machine.no_links);
            (left.maildirs, left.reader) = (machine.maildirs.clone(), machine.reader.clone());
            left.suits_journal = machine.suits_journal;
        }
        disk
    }

    /// A file in `new/` whose octets a power cut could take away.
    pub fn seen_too_early(&self) -> Option<String> {
        let machine = self.0.borrow();
        machine.maildirs.iter().find_map(|maildir| {
            let new = machine.find(&Path::new(maildir).join("new"))?;
            let names = machine.inodes[new].names.as_ref()?;
            let early = |(_, inode): &(&String, &usize)| {
                let inode = &machine.inodes[**inode];
                inode.durable < inode.octets.len()
            };
            names.seen.iter().find(early).map(|(name, _)| format!("{name} is in new/ before its octets are durable"))
        })
    }

    /// A reader moves a message from `new/` to `cur/`.
    pub fn read(&self, maildir: &str, name: &str) {
        let mut machine = self.0.borrow_mut();
        let [new, cur] = ["new", "cur"].map(|it| machine.find(&Path::new(maildir).join(it)).expect("a directory"));
        let (inode, number) = (machine.names(new).seen[name], machine.next_change());
        machine.change(new, number, name, None);
        machine.change(cur, number, &format!("{name}:2,S"), Some(inode));
    }

    /// Somebody removes a message for good.
    pub fn delete(&self, maildir: &str, directory: &str, name: &str) {
        let mut machine = self.0.borrow_mut();
        let directory = machine.find(&Path::new(maildir).join(directory)).expect("a directory");
        let number = machine.next_change();
        machine.change(directory, number, name, None);
        machine.names(directory).durable.remove(name);
    }

    /// Changes octets of a file behind the server's back, for good.
    pub fn alter(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut machine = self.0.borrow_mut();
        let inode = machine.find(Path::new(path)).expect("a file");
        let inode = &mut machine.inodes[inode];
        change(Rc::make_mut(&mut inode.octets));
        inode.durable = inode.octets.len();
        inode.overwritten.clear();
    }

    /// The octets of a file as they are seen.
    pub fn octets(&self, path: &str) -> Option<Rc<Vec<u8>>> {
        let machine = self.0.borrow();
        machine.find(Path::new(path)).map(|inode| Rc::clone(&machine.inodes[inode].octets))
    }

    /// Whose mail is in each of the Maildirs: the main one's is that of the postmaster, as everywhere.
    pub fn users(&self) -> Vec<String> {
        let machine = self.0.borrow();
        let others = machine.maildirs[1..].iter().filter_map(|path| Path::new(path).file_name()?.to_str());
        ["postmaster"].into_iter().chain(others).map(str::to_owned).collect()
    }

    /// Somebody who moves messages from `new/` to `cur/` at moments that depend on the seed.
    pub fn reader(self, seed: u64) -> Self {
        self.0.borrow_mut().reader = Some(Random::new(seed));
        self
    }

    /// Stops the machine after so many operations.
    pub fn crash_after(self, operations: usize) -> Self {
        self.0.borrow_mut().crash_after = operations;
        self
    }

    /// Has `count` operations fail, from the one with the number `from` on; the first has number 1.
    pub fn fail(&self, from: usize, count: usize, errno: Errno) {
        self.0.borrow_mut().faults.push(Fault { from, until: from.saturating_add(count), errno });
    }

    /// Has the next `count` operations of a kind fail.
    pub fn fail_next(&self, kind: Kind, count: usize, errno: Errno) {
        self.0.borrow_mut().faults_of.push((kind, count, errno));
    }

    /// The causes of all failures are gone.
    pub fn heal(&self) {
        let mut machine = self.0.borrow_mut();
        machine.faults.clear();
        machine.faults_of.clear();
    }

    /// The number of the newest change of a name, which tells whether there was one since.
    pub fn changes(&self) -> u64 {
        self.0.borrow().changes
    }

    /// From now on no name can be made in this directory, or in any again.
    pub fn break_directory(&self, broken: Option<(String, Errno)>) {
        self.0.borrow_mut().broken = broken;
    }

    pub fn is_dead(&self) -> bool {
        self.0.borrow().dead
    }

    /// The kinds of all operations so far.
    pub fn operations(&self) -> Vec<Kind> {
        self.0.borrow().log.iter().map(|&(kind, _)| kind).collect()
    }

    /// All operations so far, and on what.
    pub fn log(&self) -> Vec<(Kind, String)> {
        self.0.borrow().log.clone()
    }

    /// Groups of records that were written, by where in the journal.
    pub fn groups(&self) -> Vec<usize> {
        let machine = self.0.borrow();
        let groups = machine.log.iter().filter(|(kind, on)| *kind == Kind::WriteAt && !on.starts_with("48 "));
        groups.filter_map(|(_, on)| on.rsplit_once(' ')?.1.parse().ok()).collect()
    }

    pub fn count(&self, kind: Kind) -> usize {
        self.operations().into_iter().filter(|&other| other == kind).count()
    }

    /// The last operations, for a message.
    pub fn history(&self) -> String {
        let machine = self.0.borrow();
        let first = machine.log.len().saturating_sub(40);
        let line = |(index, (kind, on)): (usize, &(Kind, String))| format!("\n  {} {kind:?} {on}", index + 1);
        machine.log.iter().enumerate().skip(first).map(line).collect()
    }

    /// What was done that must never be.
    pub fn violations(&self) -> Vec<String> {
        self.0.borrow().violations.clone()
    }

    /// Descriptors that are open beside that of the directory for journals, which always is.
    pub fn open_descriptors(&self) -> usize {
        self.0.borrow().descriptors.len().saturating_sub(1)
    }

    pub fn flushes_under_way(&self) -> usize {
        self.0.borrow().under_way.len()
    }

    /// Ends up to `count` flushes, in an order that `random` chooses.
    pub fn end_flushes(&self, count: usize, random: &mut Random) {
        let mut machine = self.0.borrow_mut();
        for _ in 0..count.min(machine.under_way.len()) {
            let index = random.below(machine.under_way.len());
            let flush = machine.under_way.remove(index);
            machine.end(flush);
        }
    }

    /// Ends one flush, counted from the oldest.
    pub fn end_flush(&self, index: usize) {
        let mut machine = self.0.borrow_mut();
        let flush = machine.under_way.remove(index);
        machine.end(flush);
    }

    /// Ends the flush of a journal alone, if there is one.
    pub fn end_journal_flush(&self) {
        let mut machine = self.0.borrow_mut();
        if let Some(index) = machine.under_way.iter().position(|flush| machine.inodes[flush.inode].is_journal) {
            let flush = machine.under_way.remove(index);
            machine.end(flush);
        }
    }

    pub fn set_clock(&self, clock: SystemTime) {
        self.0.borrow_mut().clock = clock;
    }

    pub fn set_space(&self, space: Space) {
        self.0.borrow_mut().space = space;
    }

    /// A file that somebody else made in one of the Maildir's directories, last written to at `modified`.
    pub fn put(&self, directory: &str, name: &str, modified: SystemTime) {
        let mut machine = self.0.borrow_mut();
        let directory = machine.find(&Path::new(MAILDIR).join(directory)).expect("a directory");
        let (inode, number) = (machine.make(None), machine.next_change());
        machine.inodes[inode].modified = modified;
        machine.change(directory, number, name, Some(inode));
    }

    /// Removes a directory and all in it, behind the server's back.
    pub fn remove_directory(&self, path: &str) {
        let mut removed: Vec<usize> = self.move_away(path).into_iter().collect();
        let mut machine = self.0.borrow_mut();
        while let Some(inode) = removed.pop() {
            if let Some(names) = &mut machine.inodes[inode].names {
                names.gone = true;
                removed.extend(names.seen.values());
            }
        }
    }

    /// Puts a directory back that was moved away, for good.
    pub fn move_back(&self, path: &str, directory: usize) {
        self.name(path, |_| directory);
        let (mut machine, path) = (self.0.borrow_mut(), Path::new(path));
        let parent = path.parent().and_then(|parent| machine.find(parent)).expect("a parent");
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        machine.names(parent).durable.insert(name.to_owned(), directory);
    }

    /// Moves a directory to a place of no interest.
    pub fn move_away(&self, path: &str) -> Option<usize> {
        let (mut machine, path) = (self.0.borrow_mut(), Path::new(path));
        let parent = path.parent().and_then(|parent| machine.find(parent)).expect("a parent");
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        machine.names(parent).durable.remove(name);
        machine.names(parent).seen.remove(name)
    }

    /// A directory that somebody else makes.
    pub fn make_directory(&self, path: &str) {
        self.name(path, |machine| machine.make(Some(Names::default())));
    }

    /// Has a path name a file or directory.
    pub(super) fn name(&self, path: &str, inode: impl FnOnce(&mut Machine) -> usize) -> usize {
        let (mut machine, path) = (self.0.borrow_mut(), Path::new(path));
        let parent = path.parent().and_then(|parent| machine.find(parent)).expect("a parent");
        let inode = inode(&mut machine);
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        machine.names(parent).seen.insert(name.to_owned(), inode);
        inode
    }

    pub fn exists(&self, path: &str) -> bool {
        self.0.borrow().find(Path::new(path)).is_some()
    }

    /// What is seen in one of the main Maildir's directories.
    pub fn files(&self, directory: &str) -> Vec<Found> {
        self.files_in(MAILDIR, directory)
    }

    /// What is seen in one of a Maildir's directories.
    pub fn files_in(&self, maildir: &str, directory: &str) -> Vec<Found> {
        let machine = self.0.borrow();
        let directory = machine.find(&Path::new(maildir).join(directory));
        let seen = directory.and_then(|directory| machine.inodes[directory].names.as_ref()).map(|names| &names.seen);
        let found = |(name, &inode): (&String, &usize)| Found {
            name: name.clone(),
            inode,
            octets: Rc::clone(&machine.inodes[inode].octets),
        };
        seen.into_iter().flatten().map(found).collect()
    }
}
