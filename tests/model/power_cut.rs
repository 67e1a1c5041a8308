//! What a power cut may leave of a model disk, and whether that keeps the promises.

use super::hand::{Found, Random, message};
use super::peer::{Mail, Manner, World};
use super::trace::behind_trace;
use super::{Ends, Inode, MAILDIR, Machine, ModelDisk, Names, apply};
use mailchute::delivery::MinFree;
use std::collections::BTreeMap;
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
pub fn judge(files: &[Found], promised: &[String], all: &[String]) -> Result<(), String> {
    let is = |file: &Found, text: &String| behind_trace(&file.octets).unwrap_or(&file.octets) == text.as_bytes();
    let mut inodes = vec![None; all.len()];
    for file in files {
        let name = file.name.strip_suffix(":2,S").unwrap_or(&file.name);
        let sized = name.ends_with(&format!(",S={}", file.octets.len()));
        let whole = sized && file.octets.starts_with(b"Return-Path:");
        let text = all.iter().position(|text| whole && is(file, text));
        let text = text.ok_or_else(|| format!("{} is not whole: {} octets", file.name, file.octets.len()))?;
        if *inodes[text].get_or_insert(file.inode) != file.inode {
            return Err(format!("there twice: {:?}", all[text].lines().nth(1)));
        }
    }
    let missing = promised.iter().find(|text| !files.iter().any(|file| is(file, text)));
    missing.map_or(Ok(()), |text| Err(format!("lost though it was promised: {:?}", text.lines().nth(1))))
}

/// Combinations that are all tried; where there are more, [`DRAWN`] others are drawn.
const COMBINATIONS_MAX: usize = 1024;
const DRAWN: u64 = 256;

/// Runs a fixed run anew for each of its operations, has the machine stop after it, and judges what it may find after the
/// power cut. `run` returns what it was promised. The sum is that of moments and of states.
pub fn crash_everywhere(
    disk: impl Fn() -> ModelDisk,
    all: &[String],
    run: impl Fn(&ModelDisk) -> Vec<String>,
) -> Result<(usize, usize), String> {
    let mut states = 0;
    for moment in 0.. {
        let disk = disk().crash_after(moment);
        let promised = run(&disk);
        let check = |choices: &mut Choices, what: &dyn std::fmt::Display| {
            judge(&disk.crash(choices), &promised, all)
                .map_err(|error| format!("{error}; after operation {moment}, {what}:{}", disk.history()))
        };
        let mut choices = Choices::default();
        for combination in 0.. {
            check(&mut choices, &format_args!("combination {combination}"))?;
            states += 1;
            if !choices.advance() {
                break;
            }
            if combination == COMBINATIONS_MAX {
                for seed in 0..DRAWN {
                    check(&mut Choices::drawn(seed), &format_args!("draw {seed}"))?;
                    states += 1;
                }
                break;
            }
        }
        // One of them for another start: the least that may be left, or any.
        let mut left = if moment % 2 == 0 { Choices::default() } else { Choices::drawn(moment as u64) };
        restart(&disk, &mut left, &promised, all)
            .map_err(|error| format!("{error}; first, after operation {moment}:{}", disk.history()))?;
        if !disk.is_dead() {
            return disk.violations().first().map_or(Ok((moment, states)), |violation| Err(violation.clone()));
        }
    }
    unreachable!()
}

/// Starts a server on what a power cut leaves, which takes one message more and loses none, nor does it in a second
/// power cut.
fn restart(disk: &ModelDisk, choices: &mut Choices, promised: &[String], all: &[String]) -> Result<(), String> {
    let another = message(99, 200);
    let with_another = |texts: &[String]| [texts, std::slice::from_ref(&another)].concat();
    let (promised, all) = (with_another(promised), with_another(all));
    let disk = disk.restarted(choices);
    let mut world = World::new(&disk, MinFree::Usual, 0).map_err(|error| format!("no start after it: {error}"))?;
    world.connect(vec![Mail { text: another.clone(), manner: Manner::Data }]);
    world.run();
    judge(&disk.crash(&mut Choices::default()), &promised, &all).map_err(|error| {
        let verdicts: Vec<_> = world.verdicts().map(|(_, reply)| reply).collect();
        format!("{error}; after another start, which said {verdicts:?}:{}", disk.history())
    })
}

impl ModelDisk {
    /// What a power cut leaves in `new/` and `cur/`, as `choices` will have it. All that `tmp/` holds is a leftover.
    pub fn crash(&self, choices: &mut Choices) -> Vec<Found> {
        self.crash_apart(choices).into_iter().flatten().flat_map(|(_, files)| files).collect()
    }

    /// The machine that starts on what is left. Of `tmp/` that is all that was ever there, half of it written: leftovers
    /// of the same names that the next messages take.
    fn restarted(&self, choices: &mut Choices) -> Self {
        let disk = Self::new(Ends::AtOnce);
        let Some(mut left) = self.crash_apart(choices) else { return disk };
        let machine = self.0.borrow();
        let tmp = machine.find(&Path::new(MAILDIR).join("tmp")).and_then(|tmp| machine.inodes[tmp].names.as_ref());
        if let Some(tmp) = tmp {
            let found = |(name, &inode): (&String, &usize)| {
                let octets = &machine.inodes[inode].octets;
                Found { name: name.clone(), inode, octets: Rc::new(octets[..octets.len() / 2].to_vec()) }
            };
            left.push(("tmp", tmp.seen.iter().chain(&tmp.durable).map(found).collect()));
        }
        let mut inodes = BTreeMap::new();
        let directory = |machine: &mut Machine| machine.make(Some(Names::default()));
        disk.name(MAILDIR, directory);
        for (name, files) in left {
            let path = format!("{MAILDIR}/{name}");
            disk.name(&path, directory);
            for file in files {
                let known = inodes.get(&file.inode).copied();
                let inode =
                    disk.name(&format!("{path}/{}", file.name), |machine| known.unwrap_or_else(|| machine.make(None)));
                inodes.insert(file.inode, inode);
                disk.0.borrow_mut().inodes[inode].octets = file.octets;
            }
        }
        for inode in &mut disk.0.borrow_mut().inodes {
            inode.durable = inode.octets.len();
            inode.names.iter_mut().for_each(|names| names.durable = names.seen.clone());
        }
        disk
    }

    /// What a power cut leaves in each of `new/` and `cur/` that it leaves; `None` where it leaves no Maildir.
    fn crash_apart(&self, choices: &mut Choices) -> Option<Vec<(&'static str, Vec<Found>)>> {
        let machine = self.0.borrow();
        let place = |name: &str| machine.find(&Path::new(MAILDIR).join(name));
        // Directories on the way to the mail that the power cut takes away: their names were never flushed.
        let mut is_left = |parent: Option<usize>, name: &str| {
            let names = parent.and_then(|parent| machine.inodes[parent].names.as_ref());
            let durable = names.is_some_and(|names| names.durable.contains_key(name));
            durable || names.is_some_and(|names| names.seen.contains_key(name)) && choices.choose(2) == 1
        };
        if !is_left(machine.find(Path::new("/mail")), "Maildir") {
            return None;
        }
        let left = ["new", "cur"].into_iter().filter(|name| is_left(place(""), name));
        let directories: Vec<(&str, &Names)> =
            left.filter_map(|name| Some((name, machine.inodes[place(name)?].names.as_ref()?))).collect();
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
        let mut content = |(name, inode): (String, usize)| {
            let Inode { octets, durable, lost, .. } = &machine.inodes[inode];
            let lengths = [*durable, durable.midpoint(octets.len()), octets.len()];
            let options = if *durable == octets.len() {
                1
            } else if *lost {
                2
            } else {
                3
            };
            let length = lengths[choices.choose(options)];
            let octets = if length == octets.len() { Rc::clone(octets) } else { Rc::new(octets[..length].to_vec()) };
            Found { name, inode, octets }
        };
        let files = directories.iter().zip(left);
        Some(files.map(|((name, _), left)| (*name, left.into_iter().map(&mut content).collect())).collect())
    }
}
