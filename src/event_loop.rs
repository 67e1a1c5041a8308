//! The loop: the only file that knows `mio`. Sockets, signals and ended flushes become marks on the [`Server`], which
//! then takes its turn.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, warn};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook_mio::v1_0::Signals;

use crate::config::{Config, Listen, Place, TURN_ACCEPTS_MAX};
use crate::delivery::{Now, Store};
use crate::fs::{Disk, SyncMode};
use crate::server::{Readiness, Server};
use crate::smtp::session::Dialect;
use crate::smtp::trace::{MessageIds, Peer};

const WAKER: Token = Token(0);
const SIGNALS: Token = Token(1);
const FLUSHES: Token = Token(2);
const LISTENERS: usize = 3;
/// Tokens of connections begin here; below are at most so many listeners.
const CONNECTIONS: usize = 1024;

/// Events of one poll.
const EVENTS_MAX: usize = 1024;
/// Connections that the kernel completes before we take them; it cuts this to its own limit.
const BACKLOG: i32 = 1024;
/// How long a listener rests when no descriptor is left for a newcomer.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a server did not start: one line that names the thing and what to do.
#[derive(Debug)]
pub struct StartError(String);

impl fmt::Display for StartError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

/// What every socket of ours is made with.
const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

struct Listener {
    socket: OwnedFd,
    /// Where it really listens: never at port 0.
    place: Place,
    dialect: Dialect,
    /// Connections may wait to be taken; an event that was seen and not followed up never comes again.
    ready: bool,
}

impl Listener {
    /// Takes a newcomer. A `TcpStream` reads and writes Unix sockets, too.
    fn accept(&self) -> Result<(TcpStream, Peer), Errno> {
        let (socket, address) = rustix::net::acceptfrom_with(&self.socket, FLAGS)?;
        let peer = match address.map(SocketAddr::try_from) {
            Some(Ok(address)) => {
                // Replies are written whole, so waiting for more would only delay them.
                let _ = sockopt::set_tcp_nodelay(&socket, true);
                Peer::Address(address.ip().to_canonical())
            }
            _ => Peer::Local,
        };
        Ok((socket.into(), peer))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Place::Unix(path) = &self.place {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Ends a running [`EventLoop`] from another thread, as SIGTERM does.
#[derive(Clone, Debug)]
pub struct Stopper(Arc<Waker>);

impl Stopper {
    /// Asks for the end; a second call ends at once.
    ///
    /// # Errors
    /// That of the write which wakes the loop.
    pub fn stop(&self) -> io::Result<()> {
        self.0.wake()
    }
}

/// A whole server: its sockets, its Maildir and the loop that serves them on the caller's thread.
///
/// ```no_run
/// let config = mailchute::Config { maildir: "/var/mail/in".into(), ..Default::default() };
/// let event_loop = mailchute::EventLoop::start(config)?;
/// let stopper = event_loop.stopper();
/// let server = std::thread::spawn(move || event_loop.run());
/// // … and when it is time:
/// stopper.stop()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct EventLoop {
    poll: Poll,
    listeners: Vec<Listener>,
    /// When listeners that found no descriptor left are tried again.
    accept_again: Option<Instant>,
    server: Server<TcpStream, Disk>,
    waker: Arc<Waker>,
    signals: Option<Signals>,
    config: Config,
    /// When the end that was asked for comes even if messages are still coming in.
    end: Option<Instant>,
}

impl EventLoop {
    /// Starts a server, in this order: binds its sockets, opens and proves the Maildir, and is then ready to accept.
    ///
    /// # Errors
    /// A socket that can't be had, or a Maildir that can't be written, each with what to do about it.
    pub fn start(config: Config) -> Result<Self, StartError> {
        let listeners = bind_all(&config.listen)?;
        let random = random_number();
        let disk = Disk::new(config.sync);
        let name = &config.protocol.hostname;
        let mut store = Store::open(disk, &config.maildir, name, random, config.min_free)
            .and_then(|mut store| store.prove().map(|()| store))
            .map_err(|(path, error)| StartError(unusable(&config.maildir, &path, &error)))?;
        let poll_failed = |error: io::Error| StartError(format!("the system gives no event queue: {error}"));
        let poll = Poll::new().map_err(poll_failed)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER).map_err(poll_failed)?);
        if let Some(event) = store.file_system().flush_event() {
            watch(&poll, &event, FLUSHES, Interest::READABLE).map_err(poll_failed)?;
        }
        for (token, listener) in (LISTENERS..).zip(&listeners) {
            watch(&poll, &listener.socket, Token(token), Interest::READABLE).map_err(poll_failed)?;
        }
        let ids = MessageIds::new(random, std::process::id());
        let server = Server::new(&config, store, ids, Instant::now());
        Ok(Self { poll, listeners, accept_again: None, server, waker, signals: None, config, end: None })
    }

    /// Where it listens: addresses with their real ports, and `unix:` paths.
    pub fn places(&self) -> Vec<String> {
        self.listeners.iter().map(|listener| listener.place.to_string()).collect()
    }

    /// What ends the loop from another thread.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.waker))
    }

    /// Has SIGTERM and SIGINT end the loop, which process 1 of a container would else ignore; and has a file size
    /// limit be an error of a write, not the end of the process.
    ///
    /// # Errors
    /// Those of installing the handlers.
    pub fn watch_signals(&mut self) -> io::Result<()> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGXFSZ])?;
        self.poll.registry().register(&mut signals, SIGNALS, Interest::READABLE)?;
        self.signals = Some(signals);
        Ok(())
    }

    /// Serves until it is told to stop.
    ///
    /// # Errors
    /// That of the poll, which leaves nothing to wait for.
    pub fn run(mut self) -> io::Result<()> {
        // Said no sooner, as a signal from now on is heard.
        for listener in &self.listeners {
            let protocol = if listener.dialect == Dialect::Lmtp { " (LMTP)" } else { "" };
            info!("listening on {}{protocol}", listener.place);
        }
        let path = std::path::absolute(&self.config.maildir).unwrap_or_else(|_| self.config.maildir.clone());
        info!("storing mail in {}", path.display());
        if self.config.sync == SyncMode::Never {
            warn!("--sync never: a 250 does not wait for the disk; a power cut may lose what was accepted");
        }
        let mut events = Events::with_capacity(EVENTS_MAX);
        loop {
            match self.poll.poll(&mut events, self.patience()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                polled => polled?,
            }
            let now = Now::read();
            let mut stops = 0;
            for event in &events {
                match event.token() {
                    WAKER => stops += 1,
                    SIGNALS => {
                        let signals = self.signals.iter_mut().flat_map(Signals::pending);
                        stops += signals.filter(|&signal| signal != SIGXFSZ).count();
                    }
                    FLUSHES => self.server.mark_flushes(),
                    Token(token) if token < CONNECTIONS => {
                        if let Some(listener) = self.listeners.get_mut(token - LISTENERS) {
                            listener.ready = true;
                        }
                    }
                    Token(token) => self.server.mark(
                        token - CONNECTIONS,
                        Readiness {
                            readable: event.is_readable(),
                            writable: event.is_writable(),
                            ending: event.is_read_closed() || event.is_write_closed() || event.is_error(),
                        },
                    ),
                }
            }
            for _ in 0..stops {
                if self.end.is_some() {
                    self.server.abort();
                    return Ok(());
                }
                info!("stopping; messages that are coming in may take {} s more", self.config.grace.as_secs());
                self.listeners.clear();
                self.server.drain();
                self.end = Some(now.instant + self.config.grace);
            }
            self.accept(now);
            self.server.turn(now);
            if let Some(end) = self.end {
                if self.server.is_empty() {
                    return Ok(());
                }
                if now.instant >= end {
                    warn!("stopping with {} connections in a message", self.server.connections());
                    self.server.abort();
                    return Ok(());
                }
            }
        }
    }

    /// How long the poll may sleep.
    fn patience(&self) -> Option<Duration> {
        let waiting = self.accept_again.is_none() && self.listeners.iter().any(|listener| listener.ready);
        if waiting || self.server.is_runnable() {
            return Some(Duration::ZERO);
        }
        let now = Instant::now();
        let until = |instant: Instant| instant.saturating_duration_since(now);
        let deadline = Some(self.server.next_deadline(now));
        [deadline, self.accept_again.map(until), self.end.map(until)].into_iter().flatten().min()
    }

    /// Takes newcomers, a bounded number from each listener.
    fn accept(&mut self, now: Now) {
        if self.accept_again.is_some_and(|again| again > now.instant) {
            return;
        }
        self.accept_again = None;
        for listener in self.listeners.iter_mut().filter(|listener| listener.ready) {
            for _ in 0..TURN_ACCEPTS_MAX {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        let token = Token(CONNECTIONS + self.server.vacant_key());
                        if let Err(error) = watch(&self.poll, &stream, token, Interest::READABLE | Interest::WRITABLE) {
                            warn!("a connection from {peer} can't be watched: {error}");
                            continue;
                        }
                        self.server.accept(stream, peer, listener.dialect, now);
                    }
                    Err(Errno::AGAIN) => {
                        listener.ready = false;
                        break;
                    }
                    // Waiting helps, trying at once does not.
                    Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                        let error = io::Error::from(error);
                        warn!("no room for a newcomer: {error}; those who are here go on");
                        self.accept_again = Some(now.instant + ACCEPT_PAUSE);
                        return;
                    }
                    // That one newcomer went away again.
                    Err(_) => {}
                }
            }
        }
    }
}

fn watch(poll: &Poll, socket: &impl AsRawFd, token: Token, interest: Interest) -> io::Result<()> {
    poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), token, interest)
}

/// 64 bits that no other run has.
fn random_number() -> u64 {
    let mut octets = [0; 8];
    // Without random numbers from the system, time and process id still tell runs apart on one host.
    if rustix::rand::getrandom(&mut octets, rustix::rand::GetRandomFlags::empty()) != Ok(octets.len()) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        return (now.as_nanos() as u64).rotate_left(20) ^ u64::from(std::process::id());
    }
    u64::from_ne_bytes(octets)
}

fn bind_all(places: &[Listen]) -> Result<Vec<Listener>, StartError> {
    let mut listeners = Vec::with_capacity(places.len());
    for listen in places.iter().take(CONNECTIONS - LISTENERS) {
        let place = &listen.place;
        match bind(place) {
            Ok((socket, place)) => listeners.push(Listener { socket, place, dialect: listen.dialect, ready: false }),
            Err(error) if listen.optional && is_missing_address(&error) => {
                warn!("not listening on {place}: this system has no such address ({error})");
            }
            Err(error) => return Err(StartError(format!("can't listen on {place}: {error}; {}", bind_advice(&error)))),
        }
    }
    if listeners.is_empty() {
        return Err(StartError("no address to listen on; name one with --listen ADDR".to_owned()));
    }
    Ok(listeners)
}

fn is_missing_address(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT))
}

fn bind_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop the program that has it, or choose another with --listen ADDR",
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE and socket paths a writable directory; choose another with --listen ADDR"
        }
        io::ErrorKind::AddrNotAvailable => "this machine has no such address; choose another with --listen ADDR",
        _ => "choose another with --listen ADDR",
    }
}

/// Binds a socket; the place that is returned has the port that a port 0 became.
fn bind(place: &Place) -> io::Result<(OwnedFd, Place)> {
    let family = match place {
        Place::Tcp(SocketAddr::V4(_)) => AddressFamily::INET,
        Place::Tcp(SocketAddr::V6(_)) => AddressFamily::INET6,
        Place::Unix(_) => AddressFamily::UNIX,
    };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, FLAGS, None)?;
    let mut place = place.clone();
    match &mut place {
        Place::Tcp(address) => {
            // A server that comes back finds its address free though old connections linger.
            sockopt::set_socket_reuseaddr(&socket, true)?;
            if address.is_ipv6() {
                // [::] is IPv6 alone, so that 0.0.0.0 can stand beside it on every system.
                sockopt::set_ipv6_v6only(&socket, true)?;
            }
            rustix::net::bind(&socket, &*address)?;
            *address = rustix::net::getsockname(&socket)?.try_into()?;
        }
        Place::Unix(path) => {
            remove_stale_socket(path);
            rustix::net::bind(&socket, &SocketAddrUnix::new(&*path)?)?;
            // As on loopback, every user of this machine may send mail.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        }
    }
    rustix::net::listen(&socket, BACKLOG)?;
    Ok((socket, place))
}

/// Removes a socket that a server which was killed left behind.
fn remove_stale_socket(path: &Path) {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err() {
        let _ = std::fs::remove_file(path);
    }
}

/// Why a directory can't be used, who we are, whose it is, and what mends it.
fn unusable(maildir: &Path, path: &Path, error: &io::Error) -> String {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut message = format!("can't keep mail in {}: {error}", path.display());
    let there = path.ancestors().find_map(|path| {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        std::fs::metadata(path).ok().map(|metadata| (path, metadata))
    });
    if let Some((nearest, metadata)) = there {
        message.push_str(&format!(
            "; {} belongs to {}:{} with mode {:04o}, we are {user}:{group}",
            nearest.display(),
            metadata.uid(),
            metadata.gid(),
            metadata.mode() & 0o7777
        ));
        if !metadata.is_dir() {
            message.push_str("; it is no directory: choose another with --maildir DIR");
        } else if error.kind() == io::ErrorKind::PermissionDenied {
            let quoted = format!("'{}'", maildir.display().to_string().replace('\'', "'\\''"));
            message.push_str(&match nearest.starts_with(maildir) {
                true => format!("; run: chown -R {user}:{group} {quoted} && chmod 0700 {quoted}"),
                // The directory above may be anybody's and stays so.
                false => format!("; run: install -d -o {user} -g {group} -m 0700 {quoted}"),
            });
        } else {
            message.push_str("; free or mount what it needs, or choose another with --maildir DIR");
        }
    }
    message
}
