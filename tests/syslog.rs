//! `--syslog`: what comes to `/dev/log`, which only the program sees in a mount namespace of its own, and what does not.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use common::{Client, Ended, PATIENCE, Place, Server, bare_command, run, skip, tell};

/// `sh -c IN_NAMESPACE sh DEV PROGRAM ARGUMENT…`
const IN_NAMESPACE: &str = r#"set -eu; mount --bind "$1" /dev; shift; exec "$@""#;

/// A directory that takes the place of `/dev`, and one for mail.
struct Machine {
    dev: Place,
    mail: Place,
}

impl Machine {
    /// `None`, after a word about it, where this machine has no namespaces for us.
    fn new() -> Option<Self> {
        let machine = Self { dev: Place::short(), mail: Place::new() };
        fs::set_permissions(machine.dev.path(), Permissions::from_mode(0o755)).unwrap();
        let Ended { status, stderr, .. } = run(machine.command("true"));
        if !status.success() {
            skip(&format!("no /dev of our own here: {}", stderr.trim()));
            return None;
        }
        Some(machine)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = bare_command("unshare");
        let outer = if is_root() { "" } else { "--user --map-root-user" };
        command.args(outer.split_ascii_whitespace()).args(["--mount", "sh", "-c", IN_NAMESPACE, "sh"]);
        command.arg(self.dev.path()).arg(program);
        command
    }

    fn mailchute(&self, options: &[&str]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_mailchute"));
        command.args(["--listen", "127.0.0.1:0", "--maildir"]).arg(self.mail.maildir()).args(options);
        command
    }

    /// Begins to listen at `/dev/log`.
    fn daemon(&self) -> Daemon {
        let path = self.dev.path().join("log");
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Daemon(socket)
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

struct Daemon(UnixDatagram);

impl Daemon {
    /// The next datagram.
    #[track_caller]
    fn receive(&self) -> String {
        let mut octets = [0; 4096];
        let count = self.0.recv(&mut octets).unwrap();
        String::from_utf8(octets[..count].to_vec()).unwrap()
    }

    /// The text of the first datagram that has these words, of which one is that of a server with this process.
    #[track_caller]
    fn find(&self, server: &Server, words: &str) -> String {
        loop {
            let line = self.receive();
            let text = text(&line, server);
            if text.contains(words) {
                return line;
            }
        }
    }

    /// Where a server listens that has just started.
    #[track_caller]
    fn connect(&self, server: &Server) -> Client {
        let line = self.find(server, "listening on ");
        self.find(server, "storing mail in ");
        let mut client = Client::new(std::net::TcpStream::connect(line.rsplit_once(' ').unwrap().1).unwrap());
        client.expect("220 ");
        client
    }
}

/// What stands behind the date and the tag, which are as they have to be.
#[track_caller]
fn text<'a>(line: &'a str, server: &Server) -> &'a str {
    let (priority, rest) = line.strip_prefix('<').and_then(|line| line.split_once('>')).unwrap();
    assert!(["19", "20", "22", "23"].contains(&priority), "{line}");
    let (date, rest) = rest.split_at(16);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let near = (now.saturating_sub(60)..=now).rev().map(date_of);
    assert!(near.into_iter().any(|moment| moment == date), "{line}: not now, {}", date_of(now));
    let tag = format!("mailchute[{}]: ", server.pid().as_raw_nonzero());
    rest.strip_prefix(&tag).unwrap_or_else(|| panic!("{line}: not with {tag}"))
}

/// `Nov  7 13:05:09 `, counted by days and months.
fn date_of(seconds: u64) -> String {
    let (mut year, mut days) = (1970, seconds / 86_400);
    let leap = |year: u64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    let name = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"][month];
    format!("{name} {:2} {:02}:{:02}:{:02} ", days + 1, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

#[test]
fn lines_come_in_the_form_of_the_rfc() {
    let Some(machine) = Machine::new() else { return };
    let daemon = machine.daemon();
    let mut command = machine.mailchute(&["--syslog", "--domain", "b.example"]);
    // Not the settings, which are more than a queue holds.
    command.env("RUST_LOG", "info,mailchute::server=debug");
    let mut server = Server::spawn(command);
    let mut client = daemon.connect(&server);
    // What a peer says breaks no line.
    client.say("HELO x\u{1}\r\n<11>Jan  1 00:00:00 root: y", "501 ");
    client.expect("500 ");
    client.say("HELO <11>Jan", "250 ");
    let id = client.deliver("Subject: x\r\n\r\n");
    let stored = daemon.find(&server, "stored");
    assert!(stored.starts_with("<22>"), "{stored}");
    assert_eq!(
        text(&stored, &server),
        format!("session=1 stored id={id} from=\"from@a.example\" to=\"to@b.example\" recipients=1 size=14")
    );
    client.say("MAIL FROM:<\"<11>\\\"x\"@a.example>", "250 ");
    client.say("RCPT TO:<x@elsewhere.example>", "550 ");
    client.say("RSET", "250 ");
    let refused = daemon.find(&server, "refused");
    assert!(refused.starts_with("<22>"), "{refused}");
    assert_eq!(
        text(&refused, &server),
        r#"session=1 refused from="\"<11>\\\"x\"@a.example" to="x@elsewhere.example" recipients=0 reply="550 5.7.1 Relaying denied""#
    );
    client.say("QUIT", "221 ");
    let closed = daemon.find(&server, "closed");
    assert!(closed.starts_with("<23>"), "{closed}");
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.end().code(), Some(0));
    daemon.find(&server, "stopping; ");
    assert_eq!(server.log(), "", "nothing is on stderr, too");
}

#[test]
fn warnings_and_what_ends_the_program_have_their_priority() {
    let Some(machine) = Machine::new() else { return };
    let daemon = machine.daemon();
    let mut command = machine.mailchute(&["--sync", "never"]);
    command.env("MAILCHUTE_SYSLOG", "yes");
    let mut server = Server::spawn(command);
    let warning = daemon.find(&server, "--sync never: ");
    assert!(warning.starts_with("<20>"), "{warning}");
    let client = daemon.connect(&server);
    drop(client);
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.end().code(), Some(0));
    // Both have it, whatever the level.
    let mut server = Server::spawn(machine.mailchute(&["--syslog", "--log", "off", "--listen", "192.0.2.1:25"]));
    assert_eq!(server.end().code(), Some(1));
    while daemon.0.set_read_timeout(Some(PATIENCE)).is_ok() {
        let line = daemon.receive();
        if let Some(problem) = line.strip_prefix("<19>") {
            let problem = problem.split_once("]: ").unwrap().1;
            assert!(problem.starts_with("can't listen on 192.0.2.1:25: "), "{problem}");
            assert_eq!(text(&line, &server), problem);
            assert_eq!(server.log(), format!("mailchute: {problem}"));
            break;
        }
    }
}

#[test]
fn a_daemon_that_comes_late_or_again_is_found_and_none_is_missed() {
    let Some(machine) = Machine::new() else { return };
    let server = Server::ready(machine.mailchute(&["--syslog"]));
    let mut client = server.connect();
    let id = client.deliver("Subject: nobody\r\n\r\n");
    server.wait_for_line(&format!("INFO  session=1 stored id={id} "));
    for round in 0..2 {
        // The first finds none there, the second a socket that nobody listens on.
        let daemon = machine.daemon();
        let id = client.deliver(&format!("Subject: {round}\r\n\r\n"));
        let line = daemon.receive();
        assert!(text(&line, &server).starts_with(&format!("session=1 stored id={id} ")), "{line}");
        drop(daemon);
        let id = client.deliver("Subject: between\r\n\r\n");
        server.wait_for_line(&format!("INFO  session=1 stored id={id} "));
    }
    let log = server.log();
    assert_eq!(log.matches(" stored id=").count(), 3, "{log}");
    server.stop();
}

#[test]
fn a_daemon_that_reads_nothing_is_not_waited_for() {
    let Some(machine) = Machine::new() else { return };
    let daemon = machine.daemon();
    let server = Server::spawn(machine.mailchute(&["--syslog"]));
    let mut client = daemon.connect(&server);
    // More than the queue of any system holds in such lines.
    let mut sent = Vec::new();
    while sent.len() < 2000 && server.log().is_empty() {
        sent.push(client.deliver("Subject: x\r\n\r\n"));
    }
    assert!(sent.len() < 2000, "its queue is never full");
    let last = sent.last().unwrap();
    server.wait_for_line(&format!("INFO  session=1 stored id={last} "));
    let log = server.log();
    let taken = sent.iter().position(|id| log.contains(&format!("INFO  session=1 stored id={id} "))).unwrap();
    tell(&format!("the queue holds {taken} lines"));
    assert!(sent[taken..].iter().all(|id| log.contains(id)), "{log}");
    // What was taken is there, and who reads again has what comes then.
    for id in &sent[..taken] {
        let line = daemon.receive();
        assert!(text(&line, &server).starts_with(&format!("session=1 stored id={id} ")), "{line}");
    }
    let id = client.deliver("Subject: x\r\n\r\n");
    assert!(daemon.receive().contains(&id));
    server.stop();
}

#[test]
fn it_is_there_for_who_gave_up_root() {
    let Some(machine) = Machine::new() else { return };
    if !is_root() {
        return skip("giving up root takes root");
    }
    let daemon = machine.daemon();
    let (place, maildir) = (Place::short(), "Maildir");
    chown(place.path(), Some(65532), Some(65532)).unwrap();
    let mut command = machine.command(env!("CARGO_BIN_EXE_mailchute"));
    command.args(["--listen", "127.0.0.1:0", "--user", "65532", "--syslog", "--maildir"]);
    command.arg(place.path().join(maildir));
    let server = Server::spawn(command);
    let mut client = daemon.connect(&server);
    let id = client.deliver("Subject: x\r\n\r\n");
    assert!(daemon.receive().contains(&id));
    let daemon = machine.daemon();
    let id = client.deliver("Subject: x\r\n\r\n");
    assert!(daemon.receive().contains(&id));
    server.stop();
}
