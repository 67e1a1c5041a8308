//! The real disk: what it makes, what it refuses, and how its flushes end.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use std::fs::{read, symlink_metadata, write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory of its own below TMPDIR, removed in the end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("mailchute-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn mode(path: &Path) -> u32 {
    symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

fn raw<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn directories() {
    let scratch = Scratch::new();
    let mut disk = Disk::new(SyncMode::Always);
    let path = scratch.0.join("mail");
    assert_eq!(disk.open_directory(&path, false).unwrap_err().kind(), io::ErrorKind::NotFound);
    let root = disk.open_directory(&path, true).unwrap();
    assert_eq!(mode(&path), 0o700);
    disk.open_directory_in(&root, c"new", true).unwrap();
    disk.open_directory_in(&root, c"new", true).unwrap();
    symlink("new", path.join("cur")).unwrap();
    assert_eq!(raw(disk.open_directory_in(&root, c"cur", true)), Some(Errno::NOTDIR.raw_os_error()));
    symlink("mail", scratch.0.join("link")).unwrap();
    let linked = disk.open_directory(&scratch.0.join("link"), true).unwrap();
    assert!(disk.is_same(&path, &linked).unwrap());

    std::fs::rename(&path, scratch.0.join("old")).unwrap();
    assert!(disk.is_same(&path, &root).is_err());
    std::fs::create_dir(&path).unwrap();
    assert!(!disk.is_same(&path, &root).unwrap());
    let space = disk.space(&root).unwrap();
    assert!(space.free > 0 && space.free <= space.total && space.free_files > 0);
}

#[test]
fn files() {
    let scratch = Scratch::new();
    let mut disk = Disk::new(SyncMode::Always);
    let directory = disk.open_directory(&scratch.0, false).unwrap();
    let mut file = disk.create(&directory, c"a").unwrap();
    let octets = vec![7; 3_000_000];
    disk.write(&mut file, &octets).unwrap();
    disk.write(&mut file, b"end").unwrap();
    assert_eq!(read(scratch.0.join("a")).unwrap(), [octets, b"end".into()].concat());
    assert_eq!(mode(&scratch.0.join("a")), 0o600);

    let exists = Some(Errno::EXIST.raw_os_error());
    assert_eq!(raw(disk.create(&directory, c"a")), exists);
    symlink("nowhere", scratch.0.join("link")).unwrap();
    assert_eq!(raw(disk.create(&directory, c"link")), exists);
    assert!(!scratch.0.join("nowhere").exists());

    disk.remove(&directory, c"a").unwrap();
    // It is removed already.
    disk.remove(&directory, c"a").unwrap();
    std::fs::create_dir(scratch.0.join("inner")).unwrap();
    assert_eq!(raw(disk.remove(&directory, c"inner")), Some(Errno::ISDIR.raw_os_error()));
    let mut full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert_eq!(raw(disk.write(&mut full, b"x")), Some(Errno::NOSPC.raw_os_error()));
}

#[test]
fn rename_never_overwrites() {
    for link_to_rename in [false, true] {
        let scratch = Scratch::new();
        let mut disk = Disk { link_to_rename, ..Disk::new(SyncMode::Always) };
        let root = disk.open_directory(&scratch.0, false).unwrap();
        let new = disk.open_directory_in(&root, c"new", true).unwrap();
        write(scratch.0.join("a"), "a").unwrap();
        write(scratch.0.join("b"), "b").unwrap();
        disk.rename(&root, c"a", &new, c"x").unwrap();
        assert!(!scratch.0.join("a").exists());
        let error = disk.rename(&root, c"b", &new, c"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(scratch.0.join("new/x")).unwrap(), b"a");
        assert_eq!(read(scratch.0.join("b")).unwrap(), b"b");
        assert_eq!(disk.rename(&root, c"none", &new, c"y").unwrap_err().kind(), io::ErrorKind::NotFound);
        symlink("nowhere", scratch.0.join("new/z")).unwrap();
        assert_eq!(disk.rename(&root, c"b", &new, c"z").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}

#[test]
fn link_that_was_made_by_a_lost_call() {
    let scratch = Scratch::new();
    let mut disk = Disk { link_to_rename: true, ..Disk::new(SyncMode::Always) };
    let root = disk.open_directory(&scratch.0, false).unwrap();
    write(scratch.0.join("a"), "a").unwrap();
    std::fs::hard_link(scratch.0.join("a"), scratch.0.join("b")).unwrap();
    disk.rename(&root, c"a", &root, c"b").unwrap();
    assert!(!scratch.0.join("a").exists() && scratch.0.join("b").exists());
}

#[test]
fn flushes_end_alike() {
    let scratch = Scratch::new();
    for (sync, prove) in [(SyncMode::Always, true), (SyncMode::Always, false), (SyncMode::Never, true)] {
        let mut disk = Disk::new(sync);
        let directory = disk.open_directory(&scratch.0, false).unwrap();
        let mut file = disk.create(&directory, c"a").unwrap();
        disk.write(&mut file, b"text").unwrap();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let socket = File::from(OwnedFd::from(socket));
        if prove {
            if sync == SyncMode::Always {
                assert_eq!(raw(disk.prove_flushes(&socket, &directory)), Some(Errno::INVAL.raw_os_error()));
                assert!(disk.flush_event().is_none() && disk.falls_back);
                disk = Disk::new(sync);
            }
            disk.prove_flushes(&file, &directory).unwrap();
        }
        assert_eq!(disk.flush_event().is_some(), prove && sync == SyncMode::Always);
        for ticket in 0..300 {
            match ticket % 3 {
                0 => disk.begin_flush(Flush::File(&file), ticket),
                1 => disk.begin_flush(Flush::Directory(&directory), ticket),
                _ => disk.begin_flush(Flush::File(&socket), ticket),
            }
        }
        disk.submit();
        let mut ended = Vec::new();
        while ended.len() < 300 {
            while let Some((ticket, result)) = disk.ended_flush() {
                ended.push((ticket, raw(result)));
            }
            if let Some(event) = disk.flush_event().filter(|_| ended.len() < 300) {
                let mut polled = [PollFd::from_borrowed_fd(event, PollFlags::IN)];
                assert_eq!(poll(&mut polled, Some(&PROOF_TIME)).unwrap(), 1);
            }
        }
        ended.sort_unstable();
        let bad = (sync == SyncMode::Always).then_some(Errno::INVAL.raw_os_error());
        assert!(ended.into_iter().eq((0..300).map(|ticket| (ticket, bad.filter(|_| ticket % 3 == 2)))));
        disk.remove(&directory, c"a").unwrap();
    }
}

#[test]
fn lists_every_name_once() {
    let scratch = Scratch::new();
    let mut disk = Disk::new(SyncMode::Never);
    let directory = disk.open_directory(&scratch.0, false).unwrap();
    for number in 0..100 {
        write(scratch.0.join(number.to_string()), "").unwrap();
    }
    symlink("0", scratch.0.join("link")).unwrap();
    let mut listing = disk.list(&directory).unwrap();
    let mut names: Vec<_> = std::iter::from_fn(|| disk.next_name(&mut listing).unwrap()).collect();
    assert_eq!(names.len(), 101);
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 101);
    let age = disk.modified(&directory, c"0").unwrap().elapsed().unwrap_or_default();
    assert!(age < Duration::from_secs(60));
    assert_eq!(disk.modified(&directory, c"link").unwrap_err().kind(), io::ErrorKind::InvalidInput);
}
