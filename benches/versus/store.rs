//! What each peer does with a message: a file in `tmp/`, moved to `new/`, both flushed where that is asked for.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

pub struct Store {
    path: PathBuf,
    /// Held open, which is more than most servers do.
    pub new: File,
    pub durable: bool,
    sequence: AtomicU64,
}

impl Store {
    pub fn open(path: &Path, durable: bool) -> Self {
        for name in ["tmp", "new", "cur"] {
            fs::create_dir_all(path.join(name)).unwrap();
        }
        let new = File::open(path.join("new")).unwrap();
        Self { path: path.to_owned(), new, durable, sequence: AtomicU64::new(0) }
    }

    /// The next message's file in `tmp/`, and in `new/`.
    pub fn names(&self) -> (PathBuf, PathBuf) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let number = self.sequence.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}.M{}P{}Q{number}.bench", now.as_secs(), now.subsec_micros(), std::process::id());
        (self.path.join("tmp").join(&name), self.path.join("new").join(&name))
    }

    /// Stores one message with calls that block.
    pub fn save(&self, content: &[u8]) -> io::Result<()> {
        let (tmp, new) = self.names();
        let mut file = File::create_new(&tmp)?;
        file.write_all(content)?;
        if self.durable {
            file.sync_data()?;
        }
        fs::rename(tmp, new)?;
        if self.durable { self.new.sync_all() } else { Ok(()) }
    }
}

/// What stands on top of a message.
pub fn header(from: &str, peer: std::net::IpAddr) -> String {
    format!("Return-Path: {from}\nReceived: from bench ([{peer}])\n\tby bench with ESMTP\n\tfor <user0@example.com>\n")
}
