//! Asynchronous flushes: many, more than fit, and those that fail.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::fs::tests::Scratch;
use mio::unix::SourceFd;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

/// Files with unflushed content, and the directory that holds them.
fn files(scratch: &Scratch, count: usize) -> (Vec<File>, OwnedFd) {
    let make = |number| {
        let mut file = File::create(scratch.0.join(format!("{number}"))).unwrap();
        file.write_all(&[b'x'; 3000]).unwrap();
        file
    };
    ((0..count).map(make).collect(), File::open(&scratch.0).unwrap().into())
}

/// Waits, by edges alone, for `count` ends; gives ticket and error number of each, ordered.
fn wait(flusher: &mut Aio, count: usize) -> Vec<(u64, Option<i32>)> {
    let mut poll = mio::Poll::new().unwrap();
    let raw = flusher.event.as_raw_fd();
    poll.registry().register(&mut SourceFd(&raw), mio::Token(0), mio::Interest::READABLE).unwrap();
    let mut events = mio::Events::with_capacity(4);
    let mut ends = Vec::new();
    loop {
        while let Some((ticket, result)) = flusher.ended() {
            ends.push((ticket, result.err().map(|error| error.raw_os_error().unwrap())));
        }
        if ends.len() >= count {
            break;
        }
        poll.poll(&mut events, Some(Duration::from_secs(20))).unwrap();
        assert!(!events.is_empty(), "no event; {} of {count} ended", ends.len());
    }
    ends.sort_unstable();
    ends
}

#[test]
fn many_at_once_and_more_than_fit() {
    let scratch = Scratch::new();
    let (files, directory) = files(&scratch, 400);
    for in_flight_max in [0, 1, 7, 64, 1000] {
        let mut flusher = Aio::new(in_flight_max).unwrap();
        for round in 0..3 {
            for (ticket, file) in (0..).zip(&files) {
                flusher.queue(Flush::File(file), ticket << 32 | round);
            }
            flusher.queue(Flush::Directory(&directory), 400 << 32 | round);
            flusher.submit();
            assert!(wait(&mut flusher, 401).into_iter().eq((0..=400).map(|ticket| (ticket << 32 | round, None))));
            assert!(flusher.ended().is_none());
        }
    }
}

#[test]
fn errors_concern_one_ticket() {
    let scratch = Scratch::new();
    let (files, directory) = files(&scratch, 10);
    let files: Vec<OwnedFd> = files.into_iter().map(OwnedFd::from).collect();
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let socket = socket.into();
    let eventfd = eventfd(0, EventfdFlags::CLOEXEC).unwrap().into();
    // A number so high that no other test gets it after it was closed.
    let closed = rustix::io::fcntl_dupfd_cloexec(&directory, 900).unwrap().into();
    let mut flusher = Aio::new(4).unwrap();
    for (ticket, file) in (0..).step_by(10).zip(&files) {
        flusher.queue(Flush::Directory(file), ticket);
        flusher.queue(Flush::Directory(&socket), ticket + 1);
        flusher.queue(Flush::File(&eventfd), ticket + 2);
        flusher.queue(Flush::File(&closed), ticket + 3);
    }
    drop(closed);
    flusher.submit();
    let (einval, ebadf) = (Some(libc::EINVAL), Some(libc::EBADF));
    let expected = (0..100).step_by(10).flat_map(|n| [(n, None), (n + 1, einval), (n + 2, einval), (n + 3, ebadf)]);
    assert!(wait(&mut flusher, 40).into_iter().eq(expected));
}

/// A flush that the disk fails is told by a number below 0 in an event, which no file that works can be made to give.
#[test]
fn events_tell_errors_by_numbers_below_0() {
    for told in [0, 1, 4096] {
        assert!(result_of(told).is_ok(), "{told}");
    }
    for errno in [libc::EIO, libc::ENOSPC, libc::EDQUOT, libc::EROFS, libc::EINTR, libc::EPERM] {
        let error = result_of(-i64::from(errno)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(errno));
    }
    // No error has such a number; it is one all the same.
    for told in [i64::MIN, i64::from(i32::MIN) - 1] {
        assert_eq!(result_of(told).unwrap_err().raw_os_error(), Some(libc::EIO), "{told}");
    }
}

#[test]
fn drop_with_flushes_under_way() {
    let scratch = Scratch::new();
    let (files, _) = files(&scratch, 200);
    let files: Vec<OwnedFd> = files.into_iter().map(OwnedFd::from).collect();
    let mut flusher = Aio::new(100).unwrap();
    for (ticket, file) in (0..).zip(&files) {
        flusher.queue(Flush::Directory(file), ticket);
    }
    flusher.submit();
    drop(files);
    drop(flusher);
}
