//! What the tests with the real binary share: a place for mail, a server on a free port, and a client that talks lines.
//! Each thing cleans up after itself when it is dropped, and nothing waits longer than [`PATIENCE`].

#![allow(dead_code)] // no test program needs all of it

pub mod random;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use random::Random;
use rustix::process::{Pid, Signal};

/// How long anything may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A directory of a test's own, on the disk that the project is built on, so that flushes are real.
pub struct Place(PathBuf);

impl Place {
    pub fn new() -> Self {
        Self::below(Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    /// In the system's own directory for such things: its path is short, and other users may pass through it.
    pub fn short() -> Self {
        Self::below(&std::env::temp_dir())
    }

    fn below(parent: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = parent.join(format!("chute-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn maildir(&self) -> PathBuf {
        self.0.join("Maildir")
    }

    /// The paths in a directory of the Maildir, in the order of their names.
    pub fn files(&self, directory: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.maildir().join(directory)).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }

    /// What lies in `new/`.
    pub fn messages(&self) -> Vec<Vec<u8>> {
        self.files("new").iter().map(|path| std::fs::read(path).unwrap()).collect()
    }

    /// The only message in `new/`, as text.
    #[track_caller]
    pub fn message(&self) -> String {
        let [message] = <[_; 1]>::try_from(self.messages()).unwrap_or_else(|all| panic!("{} messages", all.len()));
        String::from_utf8_lossy(&message).into_owned()
    }

    /// Fails unless neither `tmp/` nor `new/` holds anything.
    #[track_caller]
    pub fn assert_empty(&self) {
        assert_eq!((self.files("tmp"), self.files("new")), (vec![], vec![]));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The binary, without options that the caller's environment may have for it.
pub fn mailchute() -> Command {
    bare_command(env!("CARGO_BIN_EXE_mailchute"))
}

/// The binary as the end of a shell's command line: `ulimit -n 20; exec "$@"`.
pub fn mailchute_by_shell(script: &str) -> Command {
    let mut command = bare_command("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_mailchute")]);
    command
}

/// A copy of the binary in `place`, where every user may run it, as one who is not root; and this one's numbers.
pub fn mailchute_as_somebody(place: &Place) -> (Command, u32, u32) {
    let everybody = || std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(place.path(), everybody()).unwrap();
    let copy = place.path().join("mailchute");
    if !copy.exists() {
        std::fs::copy(env!("CARGO_BIN_EXE_mailchute"), &copy).unwrap();
        std::fs::set_permissions(&copy, everybody()).unwrap();
    }
    let mut command = bare_command(copy.to_str().unwrap());
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if user != 0 {
        return (command, user, group);
    }
    command.uid(65534).gid(65534);
    (command, 65534, 65534)
}

/// A command that inherits no variable but the path of programs.
pub fn bare_command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

/// What a program said that ended by itself.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program that is to end by itself; what does not is killed, and the test fails.
#[track_caller]
pub fn run(mut command: Command) -> Ended {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdout = child.stdout.take().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let read = |stream: &mut dyn Read| {
        let mut octets = Vec::new();
        stream.read_to_end(&mut octets).unwrap();
        String::from_utf8_lossy(&octets).into_owned()
    };
    let status = wait(&mut child);
    if status.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let (stdout, stderr) = (read(&mut stdout), read(&mut stderr));
    let Some(status) = status else { panic!("{command:?} did not end: {stdout}{stderr}") };
    assert!(!stderr.contains("panicked"), "{stderr}");
    Ended { status, stdout, stderr }
}

/// Waits until a child ends; not for ever.
fn wait(child: &mut Child) -> Option<ExitStatus> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}

/// Waits until something is so.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The lines on a server's stderr so far, and whether there will be no more.
type Log = Arc<(Mutex<(Vec<String>, bool)>, Condvar)>;

/// A running server. Dropped, it is killed; a panic on its stderr fails the test.
pub struct Server {
    child: Child,
    log: Log,
    /// Where it says that it listens.
    pub places: Vec<String>,
}

impl Server {
    /// Starts a server on a free port of 127.0.0.1 and waits until it is ready.
    #[track_caller]
    pub fn start(place: &Place, options: &[&str]) -> Self {
        let mut command = mailchute();
        command.args(["--listen", "127.0.0.1:0", "--maildir"]).arg(place.maildir()).args(options);
        Self::ready(command)
    }

    /// Starts a command that becomes a server, and waits until it is ready.
    #[track_caller]
    pub fn ready(command: Command) -> Self {
        let mut server = Self::spawn(command);
        server.wait_for_line("storing mail in ");
        let lines = server.log();
        let places =
            lines.lines().filter_map(|line| line.split_once("listening on ")).map(|(_, place)| place.to_owned());
        server.places = places.collect();
        server
    }

    /// Starts a command that becomes a server, perhaps.
    #[track_caller]
    pub fn spawn(command: Command) -> Self {
        let mut server = Self::spawn_unread(command);
        let mut stderr = BufReader::new(server.child.stderr.take().unwrap());
        let written = Arc::clone(&server.log);
        std::thread::spawn(move || {
            loop {
                let mut line = Vec::new();
                let count = stderr.read_until(b'\n', &mut line).unwrap_or(0);
                let (lines, changed) = &*written;
                let mut lines = lines.lock().unwrap();
                if count == 0 {
                    lines.1 = true;
                } else {
                    lines.0.push(String::from_utf8_lossy(&line).trim_end().to_owned());
                }
                changed.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        server
    }

    /// Starts a command that becomes a server, and leaves what it says unread.
    #[track_caller]
    pub fn spawn_unread(mut command: Command) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log: Log::default(), places: Vec::new() }
    }

    /// All that it wrote to stderr so far.
    pub fn log(&self) -> String {
        self.log.0.lock().unwrap().0.join("\n")
    }

    /// Waits until a line on stderr contains `text`.
    #[track_caller]
    pub fn wait_for_line(&self, text: &str) -> String {
        let start = Instant::now();
        let (lines, changed) = &*self.log;
        let mut lines = lines.lock().unwrap();
        loop {
            if let Some(line) = lines.0.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let left = PATIENCE.saturating_sub(start.elapsed());
            assert!(!left.is_zero() && !lines.1, "no line with \"{text}\" among\n{}", lines.0.join("\n"));
            lines = changed.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Its first TCP address.
    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        self.places.iter().find_map(|place| place.parse().ok()).unwrap()
    }

    /// A client that has been greeted.
    #[track_caller]
    pub fn connect(&self) -> Client {
        let mut client = self.connect_silently();
        client.expect("220 ");
        client
    }

    /// A client that has not yet read its greeting.
    #[track_caller]
    pub fn connect_silently(&self) -> Client {
        Client::new(TcpStream::connect(self.address()).unwrap())
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// SIGKILL, and not a moment later.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it ended by itself, and all that it wrote was read.
    #[track_caller]
    pub fn end(&mut self) -> ExitStatus {
        let status = wait(&mut self.child).unwrap_or_else(|| panic!("did not end:\n{}", self.log()));
        until("end of stderr", || self.child.stderr.is_some() || self.log.0.lock().unwrap().1);
        status
    }

    /// Has it end by SIGTERM, which has to be status 0.
    #[track_caller]
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.end();
        assert_eq!(status.code(), Some(0), "{status}:\n{}", self.log());
    }

    /// A figure of `/proc/PID/status`, such as `VmRSS`, in KiB.
    #[track_caller]
    pub fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Processor time that it used so far, in clock ticks: 100 are a second.
    pub fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log.0.lock().map(|lines| lines.0.join("\n")).unwrap_or_default();
        if std::thread::panicking() {
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the server said last:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        } else {
            assert!(!log.contains("panicked"), "{log}");
        }
    }
}

/// A client that says a line and knows what it wants to hear.
pub struct Client<S: Read + Write = TcpStream>(BufReader<S>);

impl Client<TcpStream> {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }
}

impl<S: Read + Write> Client<S> {
    pub fn over(stream: S) -> Self {
        Self(BufReader::new(stream))
    }

    pub fn stream(&mut self) -> &mut S {
        self.0.get_mut()
    }

    pub fn try_send(&mut self, octets: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream().write_all(octets.as_ref())
    }

    #[track_caller]
    pub fn send(&mut self, octets: impl AsRef<[u8]>) {
        self.try_send(octets).unwrap();
    }

    /// A whole reply, its lines parted by `\n`. The end of the stream is an error.
    pub fn try_reply(&mut self) -> io::Result<String> {
        let mut reply = String::new();
        loop {
            let start = reply.len();
            if self.0.read_line(&mut reply)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let line = reply.get(start..).unwrap_or_default();
            assert!(line.ends_with("\r\n") || !line.ends_with('\n'), "a reply without CR: {reply:?}");
            if !line.ends_with("\r\n") {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let last = line.as_bytes().get(3) != Some(&b'-');
            reply.truncate(reply.len() - 2);
            if last {
                return Ok(reply);
            }
            reply.push('\n');
        }
    }

    /// The next reply, which begins with `start`.
    #[track_caller]
    pub fn expect(&mut self, start: &str) -> String {
        let reply = self.try_reply().unwrap_or_else(|error| panic!("in place of {start}: {error}"));
        assert!(reply.starts_with(start), "{reply} in place of {start}");
        reply
    }

    /// Sends a line, and reads a reply that begins with `start`.
    #[track_caller]
    pub fn say(&mut self, line: &str, start: &str) -> String {
        self.send(format!("{line}\r\n"));
        self.expect(start)
    }

    /// All replies up to the end of the stream.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<String> {
        let mut replies = Vec::new();
        loop {
            match self.try_reply() {
                Ok(reply) => replies.push(reply),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return replies,
                Err(error) => panic!("{error} after {replies:?}"),
            }
        }
    }

    /// Reads the end of the stream.
    #[track_caller]
    pub fn ended(&mut self) {
        assert_eq!(self.rest(), <[&str; 0]>::default());
    }

    /// Begins a message, up to the reply to DATA.
    #[track_caller]
    pub fn begin(&mut self) {
        self.say("MAIL FROM:<from@a.example>", "250 2.1.0 ");
        self.say("RCPT TO:<to@b.example>", "250 2.1.5 ");
        self.say("DATA", "354 ");
    }

    /// Delivers a message with this text, whose lines end in CRLF; gives its id.
    #[track_caller]
    pub fn deliver(&mut self, text: &str) -> String {
        self.begin();
        self.send(text);
        let reply = self.say(".", "250 2.0.0 ");
        reply.split(' ').nth(2).unwrap().to_owned()
    }

    /// Tries to deliver a message with this text; the first reply that says no, or the last.
    #[track_caller]
    pub fn attempt(&mut self, text: &str) -> String {
        for line in ["MAIL FROM:<from@a.example>", "RCPT TO:<to@b.example>"] {
            let reply = self.say(line, "");
            if !reply.starts_with('2') {
                self.say("RSET", "250 ");
                return reply;
            }
        }
        self.say("DATA", "354 ");
        self.send(text);
        self.say(".", "")
    }
}

/// The seed in `MAILCHUTE_TEST_SEED`, or the time; printed, so that a failure can be had again.
pub fn seed() -> u64 {
    let given = std::env::var("MAILCHUTE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seed = given.unwrap_or(time.as_nanos() as u64);
    tell(&format!("MAILCHUTE_TEST_SEED={seed}"));
    seed
}

/// Text lines of at least `octets` octets with CRLF, each told by `number`, so that no part can stand for another.
pub fn text(number: u64, octets: usize) -> String {
    let mut random = Random::new(number);
    let mut text = format!("Subject: {number}\r\n\r\n");
    while text.len() < octets {
        // Some lines begin with a dot, which has to be doubled on the way.
        text.push_str(random.choose(&["", "", "", ".."]));
        for _ in 0..6 {
            text.push_str(&format!("{:08x}", random.below(1 << 31)));
        }
        text.push_str("\r\n");
    }
    text.push_str(&format!("end of {number}\r\n"));
    text
}

/// A text as it is to lie in a file: lines end in LF, and dots are single again.
pub fn stored(text: &str) -> String {
    text.replace("\r\n..", "\r\n.").replace("\r\n", "\n")
}

/// Prints a line also where the test passes, whose `println!` cargo keeps to itself.
pub fn tell(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Says why something is not tested here, so that nobody takes it for tested.
pub fn skip(why: &str) {
    tell(&format!("SKIPPED: {why}"));
}
