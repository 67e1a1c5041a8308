//! What the benchmarks share: options, a directory of their own, medians.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `--dir DIR` and `--seconds N`.
pub struct Options {
    /// Where files are made.
    pub dir: PathBuf,
    /// How long all measurements take together, without what is made and removed around them.
    pub time: Duration,
}

impl Options {
    /// Reads the command line; says how it should look when it is wrong.
    pub fn read() -> Self {
        let mut options = Self { dir: env!("CARGO_TARGET_TMPDIR").into(), time: Duration::from_secs(60) };
        if let Err(error) = options.parse() {
            eprintln!("{error}\nusage: cargo bench --bench NAME -- [--dir DIR] [--seconds N]");
            std::process::exit(2);
        }
        options
    }

    fn parse(&mut self) -> Result<(), lexopt::Error> {
        use lexopt::prelude::*;
        let mut arguments = lexopt::Parser::from_env();
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("dir") => self.dir = arguments.value()?.into(),
                Long("seconds") => self.time = Duration::from_secs(arguments.value()?.parse::<u32>()?.max(1).into()),
                // Cargo adds this one.
                Long("bench") => {}
                other => return Err(other.unexpected()),
            }
        }
        Ok(())
    }
}

/// A directory that is removed at the end, with all that was made in it.
pub struct Workplace {
    path: PathBuf,
    /// The file system that it is on.
    pub mount: String,
}

impl Workplace {
    /// Makes a fresh directory in `parent`, and says what file system it is on.
    pub fn new(parent: &Path) -> Self {
        let path = parent.join(format!("mailchute-bench-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let path = path.canonicalize().unwrap();
        let workplace = Self { mount: mount(&path), path };
        println!("directory {}, on {}", workplace.path.display(), workplace.mount);
        workplace
    }

    /// A Maildir that is not there yet, for one measurement.
    pub fn maildir(&self) -> PathBuf {
        self.path.join("Maildir")
    }

    /// Removes that Maildir, and waits until the disk is done with it, lest the next measurement pay for it.
    pub fn clear(&self) {
        let _ = fs::remove_dir_all(self.maildir());
        let directory = fs::File::open(&self.path).unwrap();
        rustix::fs::syncfs(directory.as_fd()).unwrap();
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Type, device and options of the file system that holds `path`.
fn mount(path: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let found = mounts.lines().filter_map(|line| {
        // id, parent, device, root, mount point, options, optional fields; after a lone "-" type, source, options.
        let (left, right) = line.split_once(" - ")?;
        let (point, options) = (left.split(' ').nth(4)?, left.split(' ').nth(5)?);
        path.starts_with(point).then_some((point, options, right))
    });
    // Of two at one place, the later hides the other.
    found.max_by_key(|(point, ..)| point.len()).map_or_else(
        || "an unknown file system".to_owned(),
        |(_, options, right)| {
            let mut right = right.split(' ');
            let (kind, source) = (right.next().unwrap_or_default(), right.next().unwrap_or_default());
            format!("{kind} ({source}, {options}{})", journal(kind, source))
        },
    )
}

/// Whether an ext4 has a journal, which decides what a flush costs.
fn journal(kind: &str, source: &str) -> &'static str {
    let device = fs::canonicalize(source).unwrap_or_default();
    let Some(name) = device.file_name().map(|name| name.to_string_lossy().into_owned()) else { return "" };
    let Ok(journals) = fs::read_dir("/proc/fs/jbd2") else { return "" };
    if kind != "ext4" {
        return "";
    }
    let mut names = journals.flatten().map(|journal| journal.file_name().to_string_lossy().into_owned());
    if names.any(|journal| journal.split('-').next() == Some(name.as_str())) { ", journal" } else { ", no journal" }
}

/// The middle one; of an even number the lower of both.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

/// The smallest and the largest.
pub fn range(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, 0.0), |(least, most), &value| (value.min(least), value.max(most)))
}
