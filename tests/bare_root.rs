//! The program and nothing else, as in the smallest container: an empty read-only root with one directory for the mail, no
//! `/proc`, `/dev`, `/etc` or `/tmp`, a user without a name and without rights, process 1 of its own PID namespace.
//!
//! `MAILCHUTE_STATIC` names a static binary that is taken in place of the one that cargo built, which needs the C library's
//! files beside it.

#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::io::ErrorKind;
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Ended, Place, Server, bare_command, run, skip, stored, tell, text};
use rustix::process::{Pid, Signal};

/// Who the program is there. No table of users knows the number, nor is there one.
const SOMEBODY: u32 = 65532;

/// Makes the root and gives way to the program in it: `sh -c IN_EMPTY_ROOT sh ROOT MAIL BINARY LIBRARIES WAY ARGUMENT…`.
const IN_EMPTY_ROOT: &str = r#"set -eu
root=$1 mail=$2 binary=$3 libraries=$4 way=$5
shift 5
mount -t tmpfs -o mode=755 none "$root"
cp "$binary" "$root/mailchute"
for library in $libraries; do cp --parents --dereference "$library" "$root"; done
mkdir "$root/mail"
mount --bind "$mail" "$root/mail"
mount -o remount,bind,ro "$root"
exec setpriv --no-new-privs unshare $way --root="$root" --wd=/ /mailchute "$@"
"#;

/// What of that is up to the machine alone.
const IN_NAMESPACES: &str = r#"set -eu
mount -t tmpfs none "$1"
exec setpriv --no-new-privs unshare $5 --root=/ true
"#;

/// Where the test makes its roots, each of which only its own program sees, and the one directory that all of them share.
struct Bare {
    root: Place,
    mail: Place,
    /// What `ldd` lists.
    libraries: String,
}

impl Bare {
    /// `None`, after a word about it, where this machine has no namespaces for us.
    fn new() -> Option<Self> {
        let ldd = Command::new("ldd").arg(binary()).env("LC_ALL", "C").output().unwrap();
        let listed = String::from_utf8_lossy(&ldd.stdout).into_owned();
        let libraries: Vec<&str> = listed.split_ascii_whitespace().filter(|word| word.starts_with('/')).collect();
        if std::env::var_os("MAILCHUTE_STATIC").is_some() {
            assert_eq!(libraries, <[&str; 0]>::default(), "it is not static");
            tell("the root holds a static program alone");
        } else {
            tell(&format!("the root holds the program and {}", libraries.join(" ")));
        }
        let bare = Self { root: Place::short(), mail: Place::short(), libraries: libraries.join(" ") };
        if is_root() {
            chown(bare.mail.path(), Some(SOMEBODY), Some(SOMEBODY)).unwrap();
        }
        let Ended { status, stderr, .. } = run(bare.script(IN_NAMESPACES, SOMEBODY, &[]));
        if !status.success() {
            skip(&format!("no empty root here: {}", stderr.trim()));
            assert!(std::env::var_os("MAILCHUTE_STATIC").is_none(), "but that is what was asked for");
            return None;
        }
        Some(bare)
    }

    /// The program in a new root, as `user`, which is 0 or [`SOMEBODY`].
    fn command(&self, user: u32, arguments: &[&str]) -> Command {
        self.script(IN_EMPTY_ROOT, user, arguments)
    }

    fn script(&self, script: &str, user: u32, arguments: &[&str]) -> Command {
        let mut command = bare_command("unshare");
        let (outer, way) = match (is_root(), user) {
            (true, _) => ("", format!("--setgid={user} --setuid={user}")),
            // A user namespace lets us mount; another one in it makes us somebody, without the rights in the first.
            (false, _) => ("--user --map-root-user", format!("--user --map-user={user} --map-group={user}")),
        };
        command.args(outer.split_ascii_whitespace()).args(["--mount", "--pid", "--fork", "sh", "-c", script]);
        command.arg("sh").args([self.root.path(), self.mail.path(), Path::new(&binary())]);
        command.arg(&self.libraries).arg(way).args(arguments);
        command
    }

    fn start(&self, user: u32, arguments: &[&str], variables: &[(&str, &str)]) -> Init {
        let mut command = self.command(user, arguments);
        command.envs(variables.iter().copied());
        let server = Server::ready(command);
        let children = format!("/proc/{0}/task/{0}/children", server.pid().as_raw_nonzero());
        let child = fs::read_to_string(children).unwrap().trim().parse().ok().and_then(Pid::from_raw);
        Init { server, process: child.expect("unshare has one child, the program") }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn binary() -> String {
    std::env::var("MAILCHUTE_STATIC").unwrap_or_else(|_| env!("CARGO_BIN_EXE_mailchute").to_owned())
}

/// A server that is process 1 of its namespace; the process that [`Server`] knows only waits for it.
struct Init {
    server: Server,
    /// As it is called out here.
    process: Pid,
}

impl Init {
    fn status(&self, name: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.as_raw_nonzero())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// A path in its root, seen from out here.
    fn path(&self, path: &str) -> std::path::PathBuf {
        format!("/proc/{}/root{path}", self.process.as_raw_nonzero()).into()
    }

    /// Ends by `signal`, with 0 and soon.
    #[track_caller]
    fn end_by(mut self, signal: Signal) {
        let start = Instant::now();
        rustix::process::kill_process(self.process, signal).unwrap();
        let status = self.server.end();
        let took = start.elapsed();
        assert_eq!(status.code(), Some(0), "{status}:\n{}", self.log());
        assert!(took < Duration::from_secs(1), "{took:?}");
        tell(&format!("process 1 ends by signal {} in {} ms", signal.as_raw(), took.as_millis()));
    }
}

impl Deref for Init {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        // While its parent is there its number can't be another's.
        if matches!(rustix::process::test_kill_process(self.server.pid()), Ok(()))
            && fs::exists(self.path("/")).unwrap_or(false)
        {
            let _ = rustix::process::kill_process(self.process, Signal::KILL);
        }
    }
}

#[test]
fn the_program_alone_takes_mail() {
    let Some(bare) = Bare::new() else { return };
    // A time zone that nothing can be read about.
    let server =
        bare.start(SOMEBODY, &["--listen", "127.0.0.1:0", "--maildir", "/mail/Maildir"], &[("TZ", "Asia/Tokyo")]);
    // It is where and who it is meant to be.
    assert!(server.status("NSpid:").ends_with(" 1"), "{}", server.status("NSpid:"));
    assert_eq!(server.status("CapEff:").trim_matches('0'), "");
    assert_eq!(server.status("NoNewPrivs:"), "1");
    if is_root() {
        assert_eq!(server.status("Uid:"), [SOMEBODY.to_string().as_str(); 4].join(" "));
        assert_eq!(server.status("Groups:"), "");
    }
    let mut there: Vec<_> = fs::read_dir(server.path("/")).unwrap().map(|it| it.unwrap().file_name()).collect();
    there.retain(|name| {
        !["lib", "lib64", "lib32", "usr"].iter().any(|library| !bare.libraries.is_empty() && name == *library)
    });
    there.sort();
    assert_eq!(there, ["mail", "mailchute"]);
    assert_eq!(fs::write(server.path("/x"), "x").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);

    let mut clients: Vec<_> = (0..10).map(|_| server.connect()).collect();
    for round in 0..5 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.deliver(&text(round * 10 + number as u64, 20_000));
        }
    }
    let large = text(99, 3_000_000);
    clients[0].deliver(&large);
    let messages: Vec<_> = bare.mail.messages().into_iter().map(|it| String::from_utf8(it).unwrap()).collect();
    assert_eq!(messages.len(), 51);
    for text in (0..50).map(|number| text(number, 20_000)).chain([large]) {
        assert_eq!(messages.iter().filter(|message| message.ends_with(&stored(&text))).count(), 1);
    }
    // The mail is the same user's, and its dates are those of the one time zone that needs no table.
    let file = bare.mail.files("new")[0].metadata().unwrap();
    assert_eq!(file.mode() & 0o7777, 0o600);
    assert!(!is_root() || (file.uid(), file.gid()) == (SOMEBODY, SOMEBODY));
    assert!(messages.iter().all(|message| message.contains(" +0000")));

    // One line a message, whether there is a sandbox, and no complaint about anything that is missing.
    let log = server.log();
    assert_eq!(log.lines().filter(|line| line.contains(" stored id=")).count(), 51, "{log}");
    assert_eq!(log.lines().filter(|line| line.contains("session=")).count(), 51, "{log}");
    assert!(!log.contains("ERROR") && log.lines().filter(|line| line.contains("sandbox")).count() == 1, "{log}");
    assert!(log.contains("memory: at most "), "{log}");
    tell(&format!("resident after 51 messages: {}", server.status("VmRSS:")));
    server.end_by(Signal::TERM);
    let server = bare.start(SOMEBODY, &["--listen", "127.0.0.1:0", "--maildir", "/mail/Maildir"], &[]);
    server.end_by(Signal::INT);
}

/// Its own health check, from an empty root, too.
#[test]
fn the_health_check_needs_nothing_either() {
    let Some(bare) = Bare::new() else { return };
    let server = bare.start(SOMEBODY, &["--listen", "127.0.0.1:0", "--maildir", "/mail/Maildir"], &[]);
    let check = |listen: &str| {
        let mut command = bare.command(SOMEBODY, &["healthcheck"]);
        command.env("MAILCHUTE_LISTEN", listen);
        run(command)
    };
    let port = server.address().port();
    for listen in [format!("127.0.0.1:{port}"), format!("0.0.0.0:{port}")] {
        let Ended { status, stdout, stderr } = check(&listen);
        assert_eq!((status.code(), stdout.as_str(), stderr.as_str()), (Some(0), "", ""), "{listen}");
    }
    assert!(!server.log().contains("session="), "{}", server.log());
    server.end_by(Signal::TERM);
    let Ended { status, stderr, .. } = check(&format!("127.0.0.1:{port}"));
    assert_eq!((status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
}

/// Started as root, it becomes a user whose number is all that there is of him.
#[test]
fn root_is_given_up_without_a_table_of_users() {
    if !is_root() {
        return skip("giving up root takes root");
    }
    let Some(bare) = Bare::new() else { return };
    let user = SOMEBODY.to_string();
    let listen = ["--listen", "127.0.0.1:0", "--maildir", "/mail/Maildir"];
    let server = bare.start(0, &[&listen[..], &["--user", &user]].concat(), &[]);
    assert_eq!(server.status("Uid:"), [user.as_str(); 4].join(" "));
    assert_eq!(server.status("CapEff:").trim_matches('0'), "");
    server.connect().deliver(&text(1, 1000));
    assert_eq!(bare.mail.files("new")[0].metadata().unwrap().uid(), SOMEBODY);
    server.end_by(Signal::TERM);
    let Ended { status, stderr, .. } = run(bare.command(0, &[&listen[..], &["--user", "nobody"]].concat()));
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("no such user or group: nobody"), "{stderr}");
}

/// A directory that is root's: one line says so, and what to do.
#[test]
fn mail_of_another_user_is_told_at_the_start() {
    if !is_root() {
        return skip("giving a directory to another user takes root");
    }
    let Some(bare) = Bare::new() else { return };
    chown(bare.mail.path(), Some(0), Some(0)).unwrap();
    let Ended { status, stderr, .. } =
        run(bare.command(SOMEBODY, &["--listen", "127.0.0.1:0", "--maildir", "/mail/Maildir"]));
    assert_eq!((status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(
        stderr.contains("mkdir -p '/mail/Maildir' && chown -R 65532:65532 '/mail/Maildir' && chmod 0700 "),
        "{stderr}"
    );
}
