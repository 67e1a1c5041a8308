//! What the server gives up: root, and files that are not the mail's.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Ended, Place, Server, mailchute, mailchute_as_somebody, run, skip, text};
use mailchute::privileges::Sandbox;
use mailchute::{Config, EventLoop};
use rustix::process::Signal;
use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip("giving up root takes root");
    }
    root
}

/// A place that somebody else may write to.
fn open_place() -> Place {
    let place = Place::short();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
    place
}

/// The four numbers of a line of `/proc/PID/status`: real, effective, saved, and that of the file system.
fn numbers(server: &Server, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid().as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn root_is_given_up_once_the_sockets_are_bound() {
    if !is_root() {
        return;
    }
    for (user, group) in [("65534", 65534), ("65534:12345", 12345), ("nobody", 65534), ("nobody:0", 0)] {
        let place = open_place();
        let server = Server::start(&place, &["--user", user]);
        assert_eq!(numbers(&server, "Uid:"), "65534 65534 65534 65534");
        assert_eq!(numbers(&server, "Gid:"), [group.to_string().as_str(); 4].join(" "));
        assert_eq!(numbers(&server, "Groups:"), group.to_string());
        assert_eq!(numbers(&server, "CapEff:").trim_matches('0'), "");
        server.connect().deliver(&text(1, 1000));
        let [file] = <[_; 1]>::try_from(place.files("new")).unwrap();
        let found = file.metadata().unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (65534, group, 0o600));
        assert_eq!(place.maildir().metadata().unwrap().mode() & 0o7777, 0o700);
        server.stop();
    }
}

/// A port below 1024 is bound before.
#[test]
fn a_user_without_root_has_the_port_of_root() {
    if !is_root() {
        return;
    }
    let place = open_place();
    let mut command = mailchute();
    command.args(["--listen", "127.0.0.1:597", "--user", "65534", "--maildir"]).arg(place.maildir());
    let server = Server::ready(command);
    server.connect().deliver("Subject: x\r\n\r\n");
    server.stop();
}

#[test]
fn who_is_no_other_user_is_told_so() {
    let place = open_place();
    let start = |user: &str| {
        let mut command = mailchute();
        command.args(["--listen", "127.0.0.1:0", "--user", user, "--maildir"]).arg(place.maildir());
        command
    };
    let open = place.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    for user in ["no-such-user", "65534:no-such-group", ":", "65534:"] {
        let Ended { status, stderr, .. } = run(start(user));
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(&format!("no such user or group: {user}")), "{stderr}");
    }
    if is_root() {
        for root in ["root", "0", "0:65534"] {
            let Ended { status, stderr, .. } = run(start(root));
            assert!(status.code() == Some(1) && stderr.contains("would be root"), "{stderr}");
        }
    }
    let (mut command, ..) = mailchute_as_somebody(&place);
    command.args(["--listen", "127.0.0.1:0", "--user", "12345", "--maildir"]).arg(place.maildir());
    let Ended { status, stderr, .. } = run(command);
    assert!(status.code() == Some(1) && stderr.contains("only root can"), "{stderr}");
    // Whoever is that user already has nothing to give up.
    let (mut command, user, _) = mailchute_as_somebody(&place);
    command.args(["--listen", "127.0.0.1:0", "--user", &user.to_string(), "--maildir"]).arg(open.join("Maildir"));
    if user != 0 {
        Server::ready(command).stop();
    }
}

/// The sandbox holds for the thread that starts the server, which tries what is forbidden, and what is not.
#[test]
fn the_sandbox_leaves_the_mail_and_nothing_else() {
    let place = Place::new();
    let path = place.path().to_owned();
    let tried = std::thread::spawn(move || {
        fs::write(path.join("secret"), "x").unwrap();
        fs::write(path.join("table"), "@b.example there/Maildir/\n".replace("there", path.to_str().unwrap())).unwrap();
        let config = Config {
            listen: Some(vec![mailchute::config::Place::Tcp(([127, 0, 0, 1], 0).into())]),
            maildir: path.join("Maildir"),
            recipients: Some(path.join("table")),
            sandbox: Sandbox::Require,
            ..Config::default()
        };
        let event_loop = EventLoop::start(config).map_err(|error| error.to_string())?;
        let denied = |what: &str, result: std::io::Result<()>| {
            // The kernel says the latter of a way from one directory to another.
            let kinds = [ErrorKind::PermissionDenied, ErrorKind::CrossesDevices];
            assert!(result.as_ref().is_err_and(|error| kinds.contains(&error.kind())), "{what}: {result:?}");
        };
        denied("write", fs::write(path.join("other"), "x"));
        denied("overwrite", fs::write(path.join("secret"), "y"));
        denied("remove", fs::remove_file(path.join("secret")));
        denied("rename", fs::rename(path.join("secret"), path.join("Maildir/new/secret")));
        denied("link", fs::hard_link(path.join("secret"), path.join("Maildir/new/secret")));
        denied("read", fs::read("/etc/hostname").map(drop));
        denied("list", fs::read_dir("/etc").map(drop));
        denied("run", Command::new("/bin/true").status().map(drop));
        let port = event_loop.places()[0].rsplit(':').next().unwrap().parse().unwrap();
        denied("connect", TcpStream::connect(("127.0.0.1", port)).map(drop));
        assert_eq!(fs::read(path.join("table")).unwrap().last(), Some(&b'\n'));
        fs::write(path.join("Maildir/tmp/x"), "x").unwrap();
        fs::rename(path.join("Maildir/tmp/x"), path.join("Maildir/new/x")).unwrap();
        fs::remove_file(path.join("Maildir/new/x")).unwrap();
        Ok::<(), String>(())
    });
    match tried.join().unwrap() {
        Err(problem) if problem.starts_with("no sandbox") => skip(&problem),
        tried => tried.unwrap(),
    }
}

/// It says at the start how it is, and can be told to do without.
#[test]
fn the_sandbox_is_reported() {
    let place = Place::new();
    let server = Server::start(&place, &[]);
    server.wait_for_line("sandbox");
    server.stop();
    let server = Server::start(&place, &["--sandbox", "off"]);
    assert!(!server.log().contains("sandbox"), "{}", server.log());
    server.stop();
}

/// A table that names a Maildir elsewhere needs a restart; one that names another of the same place does not.
#[test]
fn a_reload_does_not_leave_the_sandbox() {
    let place = Place::new();
    let (table, here) = (place.path().join("table"), place.path().join("mail"));
    let elsewhere = Place::new();
    let write = |text: String| fs::write(&table, text).unwrap();
    let rule = |user: &str, path: &std::path::Path| format!("{user}@b.example {}/\n", path.display());
    fs::create_dir(&here).unwrap();
    write(rule("a", &here.join("a")));
    let server = Server::start(&place, &["--recipients", table.to_str().unwrap(), "--create-mailboxes"]);
    if !server.log().contains("sandbox: Landlock") {
        skip("this kernel has no sandbox");
        return server.stop();
    }
    let take = |user: &str, code: &str| {
        let mut client = server.connect();
        client.say("MAIL FROM:<>", "250 ");
        client.say(&format!("RCPT TO:<{user}@b.example>"), code);
    };
    take("a", "250 ");
    write(rule("a", &here.join("a")) + &rule("b", &elsewhere.path().join("b")));
    server.signal(Signal::HUP);
    server.wait_for_line("is outside of the sandbox: restart needed");
    take("b", "550 ");
    write(rule("a", &here.join("a")) + &rule("c", &here.join("c")));
    server.signal(Signal::HUP);
    server.wait_for_line("the table of recipients is read again");
    take("c", "250 ");
    let mut client = server.connect();
    client.say("MAIL FROM:<>", "250 ");
    client.say("RCPT TO:<c@b.example>", "250 ");
    client.say("DATA", "354 ");
    client.say("x\r\n.", "250 ");
    assert_eq!(fs::read_dir(here.join("c/new")).unwrap().count(), 1);
    server.stop();
}
