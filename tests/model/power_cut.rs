//! What a power cut may leave of a model disk, and whether that keeps the promises.

use super::hand::{Found, Random};
use super::trace::behind_trace;
use super::{Inode, Machine, ModelDisk, Names, apply};
use std::collections::HashMap;
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
/// in its name; and each of `promised` is there.
pub fn judge(files: &[Found], promised: &[String], all: &[String]) -> Result<(), String> {
    let is = |file: &Found, text: &String| behind_trace(&file.octets).unwrap_or(&file.octets) == text.as_bytes();
    for file in files {
        let name = file.name.strip_suffix(":2,S").unwrap_or(&file.name);
        let sized = name.ends_with(&format!(",S={}", file.octets.len()));
        if !sized || !file.octets.starts_with(b"Return-Path:") || !all.iter().any(|text| is(file, text)) {
            return Err(format!("{} is not whole: {} octets", file.name, file.octets.len()));
        }
    }
    let missing = promised.iter().find(|text| !files.iter().any(|file| is(file, text)));
    missing.map_or(Ok(()), |text| Err(format!("lost though it was promised: {:?}", text.lines().nth(1))))
}

/// The same for several Maildirs: what is promised, and all that there may be, with the number of its Maildir.
pub fn judge_each(files: &[Vec<Found>], promised: &[Promise], all: &[Promise]) -> Result<(), String> {
    let of = |promises: &[Promise], number| {
        let mine = promises.iter().filter(|(maildir, _)| *maildir == number);
        mine.map(|(_, text)| text.clone()).collect::<Vec<_>>()
    };
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
    disk: impl Fn() -> ModelDisk,
    all: &[String],
    run: impl Fn(&ModelDisk) -> Vec<String>,
) -> Result<(usize, usize), String> {
    let in_main = |texts: Vec<String>| texts.into_iter().map(|text| (0, text)).collect::<Vec<_>>();
    crash_each_everywhere(disk, &in_main(all.to_vec()), COMBINATIONS_MAX, |disk| in_main(run(disk)))
}

/// The same for several Maildirs, with so many combinations before others are drawn.
pub fn crash_each_everywhere(
    disk: impl Fn() -> ModelDisk,
    all: &[Promise],
    combinations_max: usize,
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
        if !disk.is_dead() {
            return disk.violations().first().map_or(Ok((moment, states)), |violation| Err(violation.clone()));
        }
    }
    unreachable!()
}

impl ModelDisk {
    /// What a power cut leaves in `new/` and `cur/` of each Maildir, as `choices` will have it. All that `tmp/` holds is a
    /// leftover.
    pub fn crash(&self, choices: &mut Choices) -> Vec<Vec<Found>> {
        let machine = self.0.borrow();
        // Which of their directories the power cut leaves: names that were never flushed may be gone.
        let mut known = HashMap::new();
        let mut directories: Vec<(usize, &Names)> = Vec::new();
        for (number, maildir) in machine.maildirs.iter().enumerate() {
            for name in ["new", "cur"] {
                let left = find_left(&machine, &Path::new(maildir).join(name), &mut known, choices);
                directories.extend(left.map(|names| (number, names)));
            }
        }
        let mut dropped = Vec::new();
        let mut left: Vec<_> = directories.iter().map(|(_, names)| names.durable.clone()).collect();
        // Additions before removals, as a move's removal needs its addition.
        for removals in [false, true] {
            for ((_, names), left) in directories.iter().zip(&mut left) {
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
            let Inode { octets, durable, lost, .. } = &machine.inodes[inode];
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
                if length == octets.len() { Rc::clone(octets) } else { Rc::new(octets[..length].to_vec()) }
            });
            Found { name, inode, octets: Rc::clone(octets) }
        };
        let mut found = vec![Vec::new(); machine.maildirs.len()];
        for ((number, _), names) in directories.iter().zip(left) {
            found[*number].extend(names.into_iter().map(&mut content));
        }
        found
    }
}

/// The directory at `path`, unless the power cut takes away a name on the way to it.
fn find_left<'a>(
    machine: &'a Machine,
    path: &Path,
    known: &mut HashMap<(usize, String), bool>,
    choices: &mut Choices,
) -> Option<&'a Names> {
    let mut directory = machine.find(Path::new("/mail"))?;
    for name in path.iter().skip(2) {
        let (names, name) = (machine.inodes[directory].names.as_ref()?, name.to_str()?);
        let found = *names.seen.get(name)?;
        let durable = names.durable.contains_key(name);
        let key = (directory, name.to_owned());
        if !*known.entry(key).or_insert_with(|| durable || choices.choose(2) == 1) {
            return None;
        }
        directory = found;
    }
    machine.inodes[directory].names.as_ref()
}
