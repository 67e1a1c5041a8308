//! The loop, which alone knows `mio`: sockets, signals and ended flushes become marks on the [`Server`] for its turn.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf, absolute};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, info, warn};
use mio::{Events, Interest, Poll, Token};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::fs::{Access, FileType, Mode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{Config, Place, TURN_ACCEPTS_MAX, TURN_REFUSALS_MAX};
use crate::delivery::{FILES_MAX, MAILDIR_DESCRIPTORS, Now, Store};
use crate::fs::{Disk, SyncMode};
use crate::maildir::PathError;
use crate::metrics::{SCRAPES_MAX, Scrape};
use crate::privileges::{Sandbox, become_user, restrict};
use crate::recipients::Recipients;
use crate::server::{Readiness, Server};
use crate::smtp::reply::Reply;
use crate::smtp::session::Dialect;
use crate::smtp::trace::{MessageIds, Peer};
use crate::sys::{handed_over, trim_heap};

/// A connection's token is its key; those of listeners begin here, where no key comes to.
const LISTENERS: usize = usize::MAX / 2;
/// Signals, and what other threads ask for.
const ORDERS: Token = Token(usize::MAX);
const FLUSHES: Token = Token(usize::MAX - 1);
/// All who ask for metrics.
const SCRAPES: Token = Token(usize::MAX - 2);
/// Connections that the kernel completes before we take them; it cuts this to its own limit.
const BACKLOG: i32 = 1024;
/// What the kernel holds of replies for a peer that does not read them; newcomers have it from their listener.
const SEND_BUFFER_OCTETS: usize = 16 << 10;
/// Descriptors for all but connections and files of messages.
const DESCRIPTORS_RESERVED: usize = 32;
/// How long a listener rests when no descriptor is left for a newcomer.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What a Maildir keeps, and the option that names it.
const MAIL: [&str; 2] = ["mail", "--maildir"];
const NO_SANDBOX: &str = "no sandbox: this kernel has no Landlock, or that of before Linux 5.19";
const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

struct Listener {
    socket: OwnedFd,
    /// Where it really listens: never at port 0, nor with a path that is not ours to remove.
    place: Place,
    /// `None` for metrics.
    dialect: Option<Dialect>,
    /// Connections may wait to be taken; an event that was seen and not followed up never comes again.
    ready: bool,
}

impl Listener {
    fn bind(place: &Place, dialect: Option<Dialect>) -> Result<Self, Errno> {
        let address = place.address()?;
        let socket = rustix::net::socket_with(address.address_family(), SocketType::STREAM, FLAGS, None)?;
        if let Place::Unix(path) = place {
            let found = rustix::fs::lstat(path).map_or(FileType::Unknown, |it| FileType::from_raw_mode(it.st_mode));
            if found.is_socket() && rustix::net::connect(&socket, &address) == Err(Errno::CONNREFUSED) {
                // A server that was killed left it behind.
                let _ = std::fs::remove_file(path);
            }
        }
        // A server that comes back finds its address free though old connections linger.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        // [::] is IPv6 alone, so that 0.0.0.0 can stand beside it on every system. Others have no such option.
        let _ = sockopt::set_ipv6_v6only(&socket, true);
        rustix::net::bind(&socket, &address)?;
        if let Place::Unix(path) = place {
            // As on loopback, every user of this machine may send mail.
            rustix::fs::chmod(path, Mode::from_raw_mode(0o666))?;
        }
        rustix::net::listen(&socket, BACKLOG)?;
        Self::take_over(socket, place.clone(), dialect)
    }

    /// Takes over what listens already, as a service manager's socket does; a Unix socket is at `place`.
    fn take_over(socket: OwnedFd, place: Place, dialect: Option<Dialect>) -> Result<Self, Errno> {
        let listens = sockopt::socket_acceptconn(&socket)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER_OCTETS)?;
        let place = SocketAddr::try_from(rustix::net::getsockname(&socket)?).map_or(place, Place::Tcp);
        if listens { Ok(Self { socket, place, dialect, ready: false }) } else { Err(Errno::INVAL) }
    }

    /// Takes a newcomer, whose events bear `token`. A `TcpStream` reads and writes Unix sockets, too.
    fn accept(&self, poll: &Poll, token: Token) -> Result<(TcpStream, Peer), Errno> {
        let (socket, address) = rustix::net::acceptfrom_with(&self.socket, FLAGS)?;
        let watched = watch(poll, &socket, token, Interest::READABLE | Interest::WRITABLE);
        watched.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        // Replies are written whole, so waiting for more would only delay them. Unix sockets never wait.
        let _ = sockopt::set_tcp_nodelay(&socket, true);
        let address = address.and_then(|address| SocketAddr::try_from(address).ok());
        let peer = address.map_or(Peer::Local, |address| Peer::Address(address.ip().to_canonical()));
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

/// A whole server: its sockets, its Maildir and the loop that serves them on the caller's thread.
pub struct EventLoop {
    poll: Poll,
    listeners: Vec<Listener>,
    /// Those who ask for metrics, the newest first.
    scrapes: Vec<Scrape>,
    /// When newcomers are taken again, since no descriptor was left for one.
    accept_from: Option<Instant>,
    /// A descriptor that is closed for a moment when none is left, so that a newcomer can be told so.
    spare: Option<OwnedFd>,
    server: Server<TcpStream, Disk>,
    /// Takes an octet for each time that the end is asked for, which `stops` gives.
    stopper: Arc<OwnedFd>,
    stops: OwnedFd,
    signals: SignalFd,
    /// Below which directories files may be made.
    roots: Vec<PathBuf>,
    manager: Option<OwnedFd>,
    /// When the end that was asked for comes even if messages are still coming in.
    end: Option<Instant>,
}

impl EventLoop {
    /// Binds the sockets, opens and proves the Maildir, and is then ready to accept. An error says what to do about it.
    pub fn start(mut config: Config) -> io::Result<Self> {
        let (handed, manager) = if config.signals { (handed_over().collect(), manager()) } else { Default::default() };
        let (stops, stopper) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
        // Process 1 of a container would else ignore them. A file size limit is an error of a write, not the end of the process.
        let wanted = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGXFSZ];
        let wanted: SigSet = wanted.into_iter().filter(|_| config.signals).collect();
        wanted.thread_block()?;
        let signals = SignalFd::with_flags(&wanted, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let files_max = share_descriptors(&mut config);
        config.protocol.destinations_max = (files_max / MAILDIR_DESCRIPTORS).clamp(1, config.protocol.destinations_max);
        let recipients = Recipients::load(&config).map_err(io::Error::other)?;
        let listeners = listen(&config, handed)?;
        config.user.as_deref().map_or(Ok(()), become_user).map_err(io::Error::other)?;
        // 64 bits that no other run has: the time, keyed with what std has from the system for its hash tables.
        let random = RandomState::new().hash_one(Now::read().wall);
        let mut disk = Disk::new(config.sync);
        disk.group_readable = config.group_readable;
        let mut store = Store::open(disk, &config, random).map_err(|error| unusable(MAIL, &config.maildir, error))?;
        if config.transcript.is_none() && !config.transcript_from.is_empty() {
            warn!("--transcript-from does nothing without --transcript DIR");
        }
        if let Some(directory) = &config.transcript {
            // It may be there.
            let _ = rustix::fs::mkdir(directory, Mode::RWXU);
            let usable = rustix::fs::access(directory.join("."), Access::WRITE_OK | Access::EXEC_OK);
            let kept = ["transcripts", "--transcript"];
            usable.map_err(|error| unusable(kept, directory, (directory.clone(), error.into())))?;
        }
        let roots = enter_sandbox(&config, &recipients)?;
        store.recover(Now::read()).map_err(|(path, error)| io::Error::other(format!("{}: {error}", path.display())))?;
        store.prove().map_err(|error| unusable(MAIL, &config.maildir, error))?;
        store.files_max = files_max;
        let poll = Poll::new()?;
        watch(&poll, &stops, ORDERS, Interest::READABLE)?;
        watch(&poll, &signals, ORDERS, Interest::READABLE)?;
        if let Some(event) = store.file_system().flush_event() {
            watch(&poll, &event, FLUSHES, Interest::READABLE)?;
        }
        for (token, listener) in (LISTENERS..).zip(&listeners) {
            watch(&poll, &listener.socket, Token(token), Interest::READABLE)?;
        }
        let server = Server::new(config, recipients, store, MessageIds::new(random, std::process::id()));
        let stopper = Arc::new(stopper);
        let spare = rustix::io::dup(&stops).ok();
        let (accept_from, end, scrapes) = (None, None, Vec::new());
        Ok(Self { poll, listeners, scrapes, accept_from, spare, server, stopper, stops, signals, roots, manager, end })
    }

    /// Where it listens: addresses with their real ports, and `unix:` paths.
    pub fn places(&self) -> Vec<String> {
        self.listeners.iter().map(|listener| listener.place.to_string()).collect()
    }

    /// What ends the loop from another thread, as SIGTERM does, and called again at once; `BrokenPipe` when it has ended.
    pub fn stopper(&self) -> impl Fn() -> io::Result<()> + Clone + Send + Sync + use<> {
        let stopper = Arc::clone(&self.stopper);
        move || rustix::net::send(&*stopper, &[0], SendFlags::NOSIGNAL).map(drop).map_err(io::Error::from)
    }

    /// Serves until it is told to stop. An error is that of the poll, which leaves nothing to wait for.
    pub fn run(mut self) -> io::Result<()> {
        // What the start needed.
        trim_heap();
        let config = &self.server.config;
        if config.protocol.accept_any_login {
            warn!("--auth accept-any: every login is taken, which proves nothing about who sends");
        }
        if config.sync == SyncMode::Never {
            warn!("--sync never: a 250 does not wait for the disk; a power cut may lose what was accepted");
        }
        for listener in &self.listeners {
            let protocol = ["", " (LMTP)", " (metrics)"][listener.dialect.map_or(2, |it| it as usize)];
            info!("listening on {}{protocol}", listener.place);
        }
        let (memory, connections) = (config.memory_max().div_ceil(1 << 20), config.connections_max);
        info!("memory: at most {memory} MiB with {connections} connections");
        info!("storing mail in {}", absolute(&config.maildir).as_deref().unwrap_or(&config.maildir).display());
        let _ = self.manager.as_ref().map(|it| rustix::net::send(it, b"READY=1", SendFlags::NOSIGNAL));
        let mut events = Events::with_capacity(1024);
        let (mut now, mut most) = (Now::read(), 0);
        loop {
            match self.poll.poll(&mut events, Some(self.patience(now.instant))) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                polled => polled?,
            }
            now = Now::read();
            for event in &events {
                match event.token() {
                    ORDERS => self.take_orders(now),
                    FLUSHES => self.server.flushes_ended = true,
                    SCRAPES => self.scrapes.retain_mut(|it| it.goes_on(&mut || self.server.figures(now))),
                    Token(token) => match self.listeners.get_mut(token.wrapping_sub(LISTENERS)) {
                        Some(listener) => listener.ready = true,
                        None => {
                            let (readable, writable) = (event.is_readable(), event.is_writable());
                            let ending = event.is_read_closed() || event.is_write_closed() || event.is_error();
                            self.server.mark(token, Readiness { readable, writable, ending });
                        }
                    },
                }
            }
            self.accept(now);
            self.server.turn(now);
            // A crowd has gone: what it took goes back to the system. That takes a moment, so not while messages come.
            most = most.max(self.server.connections());
            let is_quiet = self.server.connections() <= most / 8 && !self.server.is_busy(now);
            if most >= 16 && is_quiet {
                self.server.store.trim();
                trim_heap();
                most = 0;
            }
            if self.end.is_some_and(|end| now.instant >= end || self.server.is_empty()) {
                if !self.server.is_empty() {
                    warn!("stopping with {} connections in a message", self.server.connections());
                }
                self.server.abort();
                self.server.store.close();
                return Ok(());
            }
        }
    }

    /// Begins the end, or where it has begun, has it be now.
    fn stop(&mut self, now: Now) {
        let grace = if self.end.is_none() { self.server.config.grace } else { Duration::ZERO };
        let _ = self.manager.as_ref().map(|it| rustix::net::send(it, b"STOPPING=1", SendFlags::NOSIGNAL));
        info!("stopping; messages that are coming in may take {} s more", grace.as_secs());
        (self.listeners, self.scrapes) = Default::default();
        self.server.drain();
        self.end = Some(now.instant + grace);
    }

    fn take_orders(&mut self, now: Now) {
        while rustix::io::read(&self.stops, &mut [0]) == Ok(1) {
            self.stop(now);
        }
        while let Ok(Some(signal)) = self.signals.read_signal() {
            match (signal.ssi_signo as i32).try_into() {
                Ok(Signal::SIGTERM | Signal::SIGINT) => self.stop(now),
                Ok(Signal::SIGHUP) => match self.reload() {
                    Ok(()) => info!("the table of recipients is read again"),
                    Err(problem) => error!("{problem}; the recipients stay as they were"),
                },
                _ => {}
            }
        }
    }

    fn reload(&mut self) -> Result<(), String> {
        let recipients = Recipients::load(&self.server.config)?;
        let inside = |path: PathBuf| self.roots.iter().any(|directory| path.starts_with(directory));
        if let Some(path) = recipients.maildirs().find(|path| !absolute(path).is_ok_and(inside)) {
            return Err(format!("{path} is outside of the sandbox: restart needed"));
        }
        self.server.recipients = recipients;
        Ok(())
    }

    /// How long the poll may sleep.
    fn patience(&self, now: Instant) -> Duration {
        let newcomers = self.listeners.iter().any(|listener| listener.ready).then_some(self.accept_from.unwrap_or(now));
        let moments = self.server.is_runnable().then_some(now).into_iter().chain(newcomers).chain(self.end);
        let sleeps = moments.map(|moment| moment.saturating_duration_since(now));
        sleeps.fold(self.server.next_deadline(now), Duration::min)
    }

    fn accept(&mut self, now: Now) {
        let rested = self.accept_from.is_none_or(|from| now.instant >= from);
        for listener in self.listeners.iter_mut().filter(|listener| rested && listener.ready) {
            for _ in 0..TURN_ACCEPTS_MAX {
                let token = listener.dialect.map_or(SCRAPES, |_| Token(self.server.vacant_key()));
                match (listener.accept(&self.poll, token), listener.dialect) {
                    (Ok((stream, peer)), Some(dialect)) => drop(self.server.accept(stream, peer, dialect, now)),
                    (Ok((stream, _)), None) => {
                        self.scrapes.truncate(SCRAPES_MAX - 1);
                        self.scrapes.insert(0, Scrape { stream, request: Some(Vec::new()) });
                    }
                    (Err(Errno::AGAIN), _) => {
                        listener.ready = false;
                        break;
                    }
                    // Waiting helps, trying at once does not.
                    (Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::NOSPC)), _) => {
                        // Once, however long it lasts.
                        if self.accept_from.is_none_or(|from| now.instant > from + Duration::from_secs(1)) {
                            warn!("no room for a newcomer: {error}; those who are here go on");
                        }
                        self.accept_from = Some(now.instant + ACCEPT_PAUSE);
                        self.spare = None;
                        let reply = [Reply::TOO_MANY_CONNECTIONS.0, "\r\n"].concat();
                        for _ in 0..TURN_REFUSALS_MAX {
                            let Ok(socket) = rustix::net::accept_with(&listener.socket, FLAGS) else { break };
                            let _ = rustix::net::send(&socket, reply.as_bytes(), SendFlags::NOSIGNAL);
                        }
                        self.spare = rustix::io::dup(&self.stops).ok();
                        return;
                    }
                    // That one newcomer went away again.
                    (Err(_), _) => {}
                }
            }
        }
    }
}

/// Where a service manager hears of the start and the end (`sd_notify(3)`); the sandbox lets nobody connect any more.
fn manager() -> Option<OwnedFd> {
    let name = std::env::var_os("NOTIFY_SOCKET")?;
    let unnamed = name.as_bytes().strip_prefix(b"@").map(SocketAddrUnix::new_abstract_name);
    let address = unnamed.unwrap_or_else(|| SocketAddrUnix::new(&*name)).ok()?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, FLAGS, None).ok()?;
    rustix::net::connect(&socket, &address).ok().map(|()| socket)
}

fn watch(poll: &Poll, socket: &impl AsRawFd, token: Token, interest: Interest) -> io::Result<()> {
    poll.registry().register(&mut mio::unix::SourceFd(&socket.as_raw_fd()), token, interest)
}

/// Raises the limit of descriptors as far as connections and files need it, and lowers the number of connections where
/// that does not suffice. Returns how many files may be open at once: more where a message may go to many mailboxes.
fn share_descriptors(config: &mut Config) -> usize {
    let connections_max = &mut config.connections_max;
    let wanted = connections_max.saturating_add(FILES_MAX + DESCRIPTORS_RESERVED) as u64;
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX).max(wanted.min(limit.maximum.unwrap_or(wanted)));
    // Not asked for in vain: the filter of a service manager may refuse it.
    let raised = Rlimit { current: Some(current), ..limit };
    let _ = limit.current.filter(|it| *it < current).map(|_| setrlimit(Resource::Nofile, raised));
    let room = (current as usize).saturating_sub(DESCRIPTORS_RESERVED).max(4);
    let least = room / if config.mailboxes.is_some() || config.recipients.is_some() { 2 } else { 4 };
    let files_max = room.saturating_sub(*connections_max).clamp(least.min(FILES_MAX), FILES_MAX);
    if *connections_max > room - files_max {
        *connections_max = room - files_max;
        error!("room for {connections_max} connections only: {current} descriptors may be open, {wanted} are wanted");
    }
    files_max
}

/// Enters the sandbox, if that is asked for and can be done. Below which directories files may be made then: Maildirs
/// and the root of mailboxes, or where one is not there yet the directory that it would be in.
fn enter_sandbox(config: &Config, recipients: &Recipients) -> io::Result<Vec<PathBuf>> {
    let parent = |path: &Path| absolute(path).ok().and_then(|path| Some(path.parent()?.to_owned()));
    let named = [Some(&config.maildir), config.mailboxes.as_ref(), config.transcript.as_ref()];
    let named = named.into_iter().flatten().map(PathBuf::as_path);
    let whole = |path: &Path| if path.exists() { absolute(path).ok() } else { parent(path) };
    let written: Vec<_> = named.chain(recipients.maildirs().map(Path::new)).filter_map(whole).collect();
    let read = config.recipients.as_deref().and_then(parent);
    let places = config.listen.iter().flatten().chain(&config.lmtp).chain(&config.metrics);
    let sockets = places.filter_map(|place| if let Place::Unix(path) = place { parent(path) } else { None });
    let emptied: Vec<_> = sockets.collect();
    let is_inside = config.sandbox != Sandbox::Off && restrict(&written, read.as_slice(), &emptied).is_ok();
    match config.sandbox {
        _ if is_inside => info!("sandbox: Landlock; nothing is written but in {} directories", written.len()),
        Sandbox::Require => return Err(io::Error::other(NO_SANDBOX)),
        Sandbox::Auto => info!("{NO_SANDBOX}"),
        Sandbox::Off => {}
    }
    Ok(if is_inside { written } else { vec!["/".into()] })
}

/// Listens where the settings say, or for SMTP in their place where a service manager does already.
fn listen(config: &Config, handed: Vec<Result<OwnedFd, Errno>>) -> io::Result<Vec<Listener>> {
    let usual = [Place::Tcp((Ipv4Addr::LOCALHOST, 2525).into()), Place::Tcp((Ipv6Addr::LOCALHOST, 2525).into())];
    let smtp = config.listen.as_deref().unwrap_or(&usual).iter().map(|place| (place, Some(Dialect::Smtp)));
    let lmtp = config.lmtp.iter().map(|place| (place, Some(Dialect::Lmtp)));
    let metrics = config.metrics.iter().map(|place| (place, None));
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let (mut names, mut listeners) = (names.split(':'), Vec::new());
    for socket in handed {
        let dialect = if names.next() == Some("lmtp") { Dialect::Lmtp } else { Dialect::Smtp };
        let taken = socket.and_then(|socket| Listener::take_over(socket, Place::Unix(PathBuf::new()), Some(dialect)));
        listeners.push(taken.map_err(|error| io::Error::other(format!("LISTEN_FDS: no listener: {error}")))?);
    }
    for (place, dialect) in smtp.take(if listeners.is_empty() { usize::MAX } else { 0 }).chain(lmtp).chain(metrics) {
        let is_usual = config.listen.is_none() && dialect == Some(Dialect::Smtp);
        match Listener::bind(place, dialect) {
            Ok(listener) => listeners.push(listener),
            Err(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT) if is_usual => {
                warn!("not listening on {place}: this system has no such address");
            }
            Err(error) => {
                let option = ["--listen", "--lmtp", "--metrics"][dialect.map_or(2, |it| it as usize)];
                let advice = format!("choose another with {option} ADDR; ports below 1024 need CAP_NET_BIND_SERVICE");
                return Err(io::Error::other(format!("can't listen on {place}: {error}; {advice}")));
            }
        }
    }
    let problem = "no address to listen on; name one with --listen ADDR";
    if listeners.iter().all(|it| it.dialect.is_none()) { Err(io::Error::other(problem)) } else { Ok(listeners) }
}

/// Why a directory can't be used, whose it is, who we are, and what mends it.
fn unusable([kept, option]: [&str; 2], directory: &Path, (path, error): PathError) -> io::Error {
    let we = format!("{}:{}", rustix::process::geteuid(), rustix::process::getegid());
    let directory = if path.starts_with(directory) { directory } else { &path };
    let quoted = format!("'{}'", directory.display().to_string().replace('\'', "'\\''"));
    let advice = match error.kind() {
        // The directory above may be anybody's and stays so.
        ErrorKind::PermissionDenied | ErrorKind::NotFound => {
            format!("run: mkdir -p {quoted} && chown -R {we} {quoted} && chmod 0700 {quoted}")
        }
        _ => format!("mend that, or choose another with {option} DIR"),
    };
    let path = absolute(&path).unwrap_or_else(|_| path.clone());
    let mut problem = format!("can't keep {kept} in {}: {error}; ", path.display());
    if let Some((there, found)) = path.ancestors().find_map(|path| Some((path, rustix::fs::stat(path).ok()?))) {
        let (there, mode) = (there.display(), found.st_mode & 0o7777);
        problem += &format!("{there} is {}:{}'s with mode {mode:04o}, we are {we}; ", found.st_uid, found.st_gid);
    }
    io::Error::other(problem + &advice)
}
