//! The floor: a bare loop with mailchute's system calls and no protocol. It knows how long each thing is that the load
//! generator says, counts octets, answers, creates, writes and renames. What it costs, a server must cost.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, fdatasync, fsync, openat, renameat_with};
use slab::Slab;

use crate::load::{HELLO, QUIT, script};

const LISTENER: Token = Token(usize::MAX);
const INPUT_OCTETS: usize = 64 * 1024;
/// Octets of a text's end, which is not stored.
const TERMINATOR_OCTETS: usize = 3;

struct Connection {
    stream: TcpStream,
    /// Which thing comes in, and how many octets of it have.
    part: usize,
    octets: usize,
    file: Option<(OwnedFd, String)>,
    replies: Vec<u8>,
}

struct Maildir {
    tmp: OwnedFd,
    new: OwnedFd,
    cur: OwnedFd,
    durable: bool,
    sequence: u64,
    /// Files that are whole, to be moved at the end of the turn.
    written: Vec<(OwnedFd, String)>,
}

/// Serves messages of one size, each for one recipient, until the process is killed.
pub fn serve(address: SocketAddr, path: &Path, durable: bool, size: usize) -> io::Result<()> {
    let open = |name: &str| {
        std::fs::create_dir_all(path.join(name))?;
        Ok::<_, io::Error>(openat(CWD, path.join(name), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    };
    let (tmp, new, cur) = (open("tmp")?, open("new")?, open("cur")?);
    let mut maildir = Maildir { tmp, new, cur, durable, sequence: 0, written: Vec::new() };
    let lengths: Vec<usize> = std::iter::once(HELLO.len()).chain(script(size, 1).iter().map(Vec::len)).collect();
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(address)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut connections: Slab<Connection> = Slab::new();
    let mut input = vec![0; INPUT_OCTETS];
    let mut ready = Vec::new();
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    let entry = connections.vacant_entry();
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    poll.registry().register(&mut stream, Token(entry.key()), interest)?;
                    stream.write_all(b"220 floor\r\n")?;
                    entry.insert(Connection { stream, part: 0, octets: 0, file: None, replies: Vec::new() });
                }
            } else if let Some(connection) = connections.get_mut(event.token().0) {
                if connection.receive(&mut input, &lengths, &mut maildir)? {
                    ready.push(event.token().0);
                } else {
                    connections.remove(event.token().0);
                }
            }
        }
        maildir.publish()?;
        for key in ready.drain(..) {
            let Connection { stream, replies, .. } = &mut connections[key];
            if !replies.is_empty() && stream.write_all(replies).is_err() {
                connections.remove(key);
            } else {
                replies.clear();
            }
        }
    }
}

impl Connection {
    /// Takes what came. False when the connection ended.
    fn receive(&mut self, input: &mut [u8], lengths: &[usize], maildir: &mut Maildir) -> io::Result<bool> {
        let text = lengths.len() - 1;
        loop {
            let count = match self.stream.read(input) {
                Ok(0) => return Ok(false),
                Ok(count) => count,
                Err(error) => return Ok(error.kind() == ErrorKind::WouldBlock),
            };
            let mut rest = &input[..count];
            while !rest.is_empty() {
                if rest == QUIT && self.part == 1 {
                    let _ = self.stream.write_all(b"221 bye\r\n");
                    return Ok(false);
                }
                let length = lengths[self.part];
                let (octets, others) = rest.split_at(rest.len().min(length - self.octets));
                if self.part == text {
                    let content = octets.len().min((length - TERMINATOR_OCTETS).saturating_sub(self.octets));
                    self.write(&octets[..content], maildir)?;
                }
                self.octets += octets.len();
                rest = others;
                if self.octets == length {
                    self.octets = 0;
                    maildir.written.extend(self.file.take());
                    let data = self.part == text - 1;
                    self.replies.extend_from_slice(if data { b"354 go\r\n" } else { b"250 ok\r\n" });
                    self.part = if self.part == text { 1 } else { self.part + 1 };
                }
            }
            if count < input.len() {
                return Ok(true);
            }
        }
    }

    fn write(&mut self, octets: &[u8], maildir: &mut Maildir) -> io::Result<()> {
        let (file, _) = match &mut self.file {
            Some(file) => file,
            none => none.insert(maildir.create()?),
        };
        if octets.is_empty() { Ok(()) } else { Ok(rustix::io::write(file, octets).map(drop)?) }
    }
}

impl Maildir {
    fn create(&mut self) -> io::Result<(OwnedFd, String)> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.sequence += 1;
        let name = format!("{}.M{}Q{}.floor", now.as_secs(), now.subsec_micros(), self.sequence);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok((openat(&self.tmp, name.as_str(), flags, Mode::RUSR | Mode::WUSR)?, name))
    }

    /// Moves all files that are whole; where they have to be durable, flushes them before and the directories behind.
    fn publish(&mut self) -> io::Result<()> {
        if self.written.is_empty() {
            return Ok(());
        }
        for (file, name) in self.written.drain(..) {
            if self.durable {
                fdatasync(&file)?;
            }
            drop(file);
            renameat_with(&self.tmp, name.as_str(), &self.new, name.as_str(), RenameFlags::NOREPLACE)?;
        }
        if self.durable {
            fsync(&self.new)?;
            fsync(&self.cur)?;
        }
        Ok(())
    }
}
