//! What a power cut may leave of a model disk, and whether that keeps the promises.

use super::hand::{Found, Random, message};
use super::peer::{Mail, Manner, World};
use super::trace::behind_trace;
use super::{Change, Ends, Inode, Machine, ModelDisk, Names, SECTOR, Sector, apply};
use mailchute::Config;
use mailchute::delivery::MinFree;
use mailchute::smtp::session::Dialect;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::rc::Rc;

/// Decides what a power cut leaves: goes through every combination, one after the other, or draws them.
#[derive(Default)]
pub struct Choices {
    path: Vec<(usize, usize)>,
    at: usize,
    random: Option<Random>,
}

impl Choices {
    pub fn drawn(seed: u64) -> Self {
        Self { random: Some(Random::new(seed)), ..Self::default() }
    }

    fn choose(&mut self, options: usize) -> usize {
        if let Some(random) = &mut self.random {
            return random.below(options);
        }
        if self.at == self.path.len() {
            self.path.push((0, options));
        }
        self.at += 1;
        self.path[self.at - 1].0
    }

    /// Goes on to the next combination; false after the last.
    pub fn advance(&mut self) -> bool {
        self.at = 0;
        while let Some((chosen, options)) = self.path.pop() {
            if chosen + 1 < options {
                self.path.push((chosen + 1, options));
                return true;
            }
        }
        false
    }
}

/// The rule: each file is one of `all`, whole and nothing else, below the trace lines if a server wrote it, with its size
/// in its name, and none is there twice, unless it is one file that a move left with both names; and each of `promised`
/// is there.
pub fn judge(files: &[Found], promised: &[impl AsRef<str>], all: &[impl AsRef<str>]) -> Result<(), String> {
    let found: Vec<_> = files.iter().map(|file| behind_trace(&file.octets).unwrap_or(&file.octets)).collect();
    let mut inodes = vec![None; all.len()];
    for (file, found) in files.iter().zip(&found) {
        let name = file.name.strip_suffix(":2,S").unwrap_or(&file.name);
        let sized = name.ends_with(&format!(",S={}", file.octets.len()));
        let whole = sized && file.octets.starts_with(b"Return-Path:");
        let text = all.iter().position(|text| whole && *found == text.as_ref().as_bytes());
        let text = text.ok_or_else(|| format!("{} is not whole: {} octets", file.name, file.octets.len()))?;
        if *inodes[text].get_or_insert(file.inode) != file.inode {
            return Err(format!("there twice: {:?}", all[text].as_ref().lines().nth(1)));
        }
    }
    let missing = promised.iter().map(AsRef::as_ref).find(|text| !found.contains(&text.as_bytes()));
    missing.map_or(Ok(()), |text| Err(format!("lost though it was promised: {:?}", text.lines().nth(1))))
}

/// The same for several Maildirs: what is promised, and all that there may be, with the number of its Maildir.
pub fn judge_each(files: &[Vec<Found>], promised: &[Promise], all: &[Promise]) -> Result<(), String> {
    fn of(promises: &[Promise], number: usize) -> Vec<&String> {
        promises.iter().filter(|(maildir, _)| *maildir == number).map(|(_, text)| text).collect()
    }
    let judged = files.iter().enumerate().map(|(number, files)| {
        judge(files, &of(promised, number), &of(all, number)).map_err(|error| format!("Maildir {number}: {error}"))
    });
    judged.collect()
}

/// A Maildir, the main one being 0, and the text of a message in it.
pub type Promise = (usize, String);

/// Combinations that are all tried; where there are more, a quarter as many others are drawn.
const COMBINATIONS_MAX: usize = 1024;

/// Runs a fixed run anew for each of its operations, has the machine stop after it, and judges what it may find after the
/// power cut. `run` returns what it was promised. The sum is that of moments and of states.
pub fn crash_everywhere(
    disk: impl Fn() -> ModelDisk, all: &[String], run: impl Fn(&ModelDisk) -> Vec<String>,
) -> Result<(usize, usize), String> {
    let in_main = |texts: Vec<String>| texts.into_iter().map(|text| (0, text)).collect::<Vec<_>>();
    let (all, config) = (in_main(all.to_vec()), Config::default());
    crash_each_everywhere(&config, disk, &all, COMBINATIONS_MAX, |disk| in_main(run(disk)))
}

/// The same for several Maildirs, which a server with this `config` has, with so many combinations before others are drawn.
pub fn crash_each_everywhere(
    config: &Config, disk: impl Fn() -> ModelDisk, all: &[Promise], combinations_max: usize,
    run: impl Fn(&ModelDisk) -> Vec<Promise>,
) -> Result<(usize, usize), String> {
    let mut states = 0;
    for moment in 0.. {
        let disk = disk().crash_after(moment);
        let promised = run(&disk);
        let check = |choices: &mut Choices, what: &dyn std::fmt::Display| {
            judge_each(&disk.crash(choices), &promised, all)
                .map_err(|error| format!("{error}; after operation {moment}, {what}:{}", disk.history()))
        };
        let mut choices = Choices::default();
        for combination in 0.. {
            check(&mut choices, &format_args!("combination {combination}"))?;
            states += 1;
            if !choices.advance() {
                break;
            }
            if combination == combinations_max {
                for seed in 0..combinations_max as u64 / 4 {
                    check(&mut Choices::drawn(seed), &format_args!("draw {seed}"))?;
                    states += 1;
                }
                break;
            }
        }
        // One of them for another start: the least that may be left, or any.
        let mut left = if moment % 2 == 0 { Choices::default() } else { Choices::drawn(moment as u64) };
        restart(config, &disk, &mut left, &promised, all)
            .map_err(|error| format!("{error}; first, after operation {moment}:{}", disk.history()))?;
        if !disk.is_dead() {
            return disk.violations().first().map_or(Ok((moment, states)), |violation| Err(violation.clone()));
        }
    }
    unreachable!()
}

/// Starts a server on what a power cut leaves, which takes one message more for all Maildirs and loses none, nor does it
/// in a second power cut.
fn restart(
    config: &Config, disk: &ModelDisk, choices: &mut Choices, promised: &[Promise], all: &[Promise],
) -> Result<(), String> {
    let (disk, another) = (disk.restarted(choices, Ends::AtOnce), message(99, 200));
    let mut world =
        World::with(config.clone(), &disk, MinFree::Usual, 0).map_err(|error| format!("no start after it: {error}"))?;
    // Where mailboxes are made the postmaster has one, too, and nobody's mail is in the main Maildir.
    let (users, first) = (disk.users(), usize::from(config.create_mailboxes));
    let with_another = |promises: &[Promise]| {
        let others = (first..users.len()).map(|number| (number, another.clone()));
        promises.iter().cloned().chain(others).collect::<Vec<_>>()
    };
    let to: Vec<&str> = users[first..].iter().map(String::as_str).collect();
    world.connect_to(&to, Dialect::Smtp, vec![Mail { text: another.clone(), manner: Manner::Data }]);
    world.run();
    judge_each(&disk.crash(&mut Choices::default()), &with_another(promised), &with_another(all)).map_err(|error| {
        let told: Vec<_> = world.told().map(|(recipient, _, reply)| (recipient, reply)).collect();
        format!("{error}; after another start, which said {told:?}:{}", disk.history())
    })
}

/// What a power cut leaves.
#[derive(Default)]
struct Left {
    /// The paths of directories on the way to the mail; false for one that it takes away, as its name was never flushed.
    directories: BTreeMap<String, bool>,
    /// Of each `new/` and `cur/` the number of its Maildir, its path, and its files.
    files: Vec<(usize, String, Vec<Found>)>,
    /// Of what they lie in its path and its files.
    journals: Vec<(String, Vec<Found>)>,
}

impl Left {
    /// Decides whether the directory at `path` is left, and those that it is in.
    fn find<'a>(&mut self, machine: &'a Machine, path: &str, choices: &mut Choices) -> Option<&'a Names> {
        let mut names = machine.inodes[machine.find(Path::new("/mail"))?].names.as_ref()?;
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]).skip(1);
        for (start, end) in ends.clone().zip(ends.skip(1)) {
            let name = &path[start + 1..end];
            let found = *names.seen.get(name)?;
            let durable = names.durable.contains_key(name);
            let left = self.directories.entry(path[..end].to_owned());
            if !*left.or_insert_with(|| durable || choices.choose(2) == 1) {
                return None;
            }
            names = machine.inodes[found].names.as_ref()?;
        }
        Some(names)
    }
}

/// Of each sector that was overwritten, what is left: of all the old or the new, of all but one or only of one the new, or of
/// each anything that it was since the last flush.
fn left_of_sectors<'a>(overwritten: &'a BTreeMap<usize, Sector>, choices: &mut Choices) -> Vec<(usize, &'a [u8])> {
    if overwritten.is_empty() {
        return Vec::new();
    }
    let mode = choices.choose(5);
    let one = if (2..4).contains(&mode) { choices.choose(overwritten.len()) } else { 0 };
    let sectors = overwritten.iter().enumerate().map(|(index, (&number, sector))| {
        let newest = sector.pending.len();
        let version = match mode {
            0 => 0,
            1 => newest,
            2 => newest * usize::from(index == one),
            3 => newest * usize::from(index != one),
            _ => choices.choose(newest + 1),
        };
        (number, version.checked_sub(1).map_or(&sector.durable[..], |version| &sector.pending[version].1))
    });
    sectors.collect()
}

impl ModelDisk {
    /// What a power cut leaves in `new/` and `cur/` of each Maildir, as `choices` will have it. All that `tmp/` holds is a
    /// leftover.
    pub fn crash(&self, choices: &mut Choices) -> Vec<Vec<Found>> {
        let mut found = vec![Vec::new(); self.0.borrow().maildirs.len()];
        for (number, _, files) in self.crash_apart(choices).files {
            found[number].extend(files);
        }
        found
    }

    /// The machine that starts on what is left. Of each `tmp/` that is all that was ever there, half of it written:
    /// leftovers of the same names that the next messages take.
    pub fn restarted(&self, choices: &mut Choices, ends: Ends) -> Self {
        let Left { directories, files, journals } = self.crash_apart(choices);
        let machine = self.0.borrow();
        let others: Vec<&str> = machine.maildirs[1..].iter().map(String::as_str).collect();
        let disk = Self::new(ends).maildirs(&others, false);
        disk.0.borrow_mut().suits_journal = machine.suits_journal;
        directories.iter().filter(|(_, left)| **left).for_each(|(path, _)| disk.make_directory(path));
        let mut inodes = HashMap::new();
        let mut put = |path: &str, name: &str, inode: usize, octets: &[u8]| {
            disk.name(&format!("{path}/{name}"), |machine| {
                *inodes.entry(inode).or_insert_with(|| {
                    let made = machine.make(None);
                    machine.inodes[made].octets = Rc::new(octets.to_vec());
                    made
                })
            });
        };
        for (path, files) in
            files.iter().map(|(_, path, files)| (path, files)).chain(journals.iter().map(|it| (&it.0, &it.1)))
        {
            files.iter().for_each(|file| put(path, &file.name, file.inode, &file.octets));
        }
        for maildir in machine.maildirs.iter().filter(|path| directories.get(*path) == Some(&true)) {
            let path = format!("{maildir}/tmp");
            let Some(tmp) = machine.find(Path::new(&path)) else { continue };
            disk.make_directory(&path);
            for Change { name, inode, .. } in machine.inodes[tmp].names.iter().flat_map(|names| &names.pending) {
                let Some(inode) = *inode else { continue };
                let octets = &machine.inodes[inode].octets;
                put(&path, name, inode, &octets[..octets.len() / 2]);
            }
        }
        disk.make_durable();
        disk
    }

    /// The same as [`crash`](Self::crash), each directory by itself.
    fn crash_apart(&self, choices: &mut Choices) -> Left {
        let (machine, mut cut) = (self.0.borrow(), Left::default());
        let mut directories = Vec::new();
        for (number, maildir) in machine.maildirs.iter().enumerate() {
            for path in ["new", "cur"].map(|name| format!("{maildir}/{name}")) {
                directories.extend(cut.find(&machine, &path, choices).map(|names| (number, path, names)));
            }
        }
        let mut dropped = Vec::new();
        let roots: Vec<&str> = ["/mail"].into_iter().chain(machine.maildirs.iter().map(String::as_str)).collect();
        let mut journals = Vec::new();
        for path in roots {
            let is_there = path == "/mail" || cut.find(&machine, &format!("{path}/new"), choices).is_some();
            let Some(root) = machine.find(Path::new(path)).filter(|_| is_there) else { continue };
            let Some(names) = &machine.inodes[root].names else { continue };
            let mut left = names.durable.clone();
            let is_file = |change: &&Change| change.name.starts_with('.');
            for change in names.pending.iter().filter(is_file).filter(|_| choices.choose(2) == 1) {
                apply(&mut left, change);
            }
            left.retain(|_, inode| machine.inodes[*inode].names.is_none());
            journals.push((path.to_owned(), left));
        }
        let mut left: Vec<_> = directories.iter().map(|(.., names)| names.durable.clone()).collect();
        // Additions before removals, as a move's removal needs its addition.
        for removals in [false, true] {
            for ((.., names), left) in directories.iter().zip(&mut left) {
                for change in names.pending.iter().filter(|change| change.inode.is_none() == removals) {
                    let alone = !machine.atomic_moves && change.number <= names.covered;
                    let bound = removals && !alone && dropped.contains(&change.number);
                    if !bound && choices.choose(2) == 1 {
                        apply(left, change);
                    } else {
                        dropped.push(change.number);
                    }
                }
            }
        }
        // All names of a file show the same octets.
        let mut contents: HashMap<usize, Rc<Vec<u8>>> = HashMap::new();
        let mut content = |(name, inode): (String, usize)| {
            let Inode { octets, durable, lost, overwritten, .. } = &machine.inodes[inode];
            let octets = contents.entry(inode).or_insert_with(|| {
                let lengths = [*durable, durable.midpoint(octets.len()), octets.len()];
                let options = if *durable == octets.len() {
                    1
                } else if *lost {
                    2
                } else {
                    3
                };
                let length = lengths[choices.choose(options)];
                let mut left =
                    if length == octets.len() { Rc::clone(octets) } else { Rc::new(octets[..length].to_vec()) };
                for (sector, content) in left_of_sectors(overwritten, choices) {
                    if let Some(place) = Rc::make_mut(&mut left).get_mut(sector * SECTOR..) {
                        let count = place.len().min(content.len());
                        place[..count].copy_from_slice(&content[..count]);
                    }
                }
                left
            });
            Found { name, inode, octets: Rc::clone(octets) }
        };
        let files = directories.into_iter().zip(left);
        let files = files.map(|((number, path, _), left)| (number, path, left.into_iter().map(&mut content).collect()));
        cut.files = files.collect();
        let journals = journals.into_iter();
        cut.journals = journals.map(|(path, left)| (path, left.into_iter().map(&mut content).collect())).collect();
        cut
    }
}
