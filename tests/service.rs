//! A service manager: sockets that it opened (`LISTEN_FDS`), and what it is told (`NOTIFY_SOCKET`).

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::process::Command;

use common::{Client, PATIENCE, Place, Server, mailchute_by_shell, run};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Signal;

/// The program as a service manager starts it: with these descriptors from 3 on, and their names.
fn activated(place: &Place, files: &[&dyn AsFd], names: &str) -> Command {
    let mut redirections = String::new();
    for (index, file) in files.iter().enumerate() {
        fcntl_setfd(file, FdFlags::empty()).unwrap();
        // Those that are given first may have numbers that others are to get.
        redirections += &format!("{}<&{} ", index + 3, file.as_fd().as_raw_fd());
    }
    let script =
        format!("export LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES={names}; exec \"$@\" {redirections}", files.len());
    let mut command = mailchute_by_shell(&format!("exec bash -c '{script}' bash \"$@\""));
    command.arg("--maildir").arg(place.maildir());
    command
}

fn unix_client(path: &std::path::Path) -> Client<UnixStream> {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Client::over(stream)
}

/// Sockets whose numbers are above those that they get.
fn above<T>(mut make: impl FnMut() -> T, number: impl Fn(&T) -> i32) -> T {
    let mut low = Vec::new();
    loop {
        let made = make();
        if number(&made) > 20 {
            return made;
        }
        low.push(made);
    }
}

fn tcp_listener() -> TcpListener {
    above(|| TcpListener::bind("127.0.0.1:0").unwrap(), AsRawFd::as_raw_fd)
}

#[test]
fn sockets_of_a_service_manager_are_used_in_place_of_our_own() {
    let (place, short) = (Place::new(), Place::short());
    let path = short.path().join("lmtp.sock");
    let tcp = tcp_listener();
    let unix = above(
        || {
            let _ = fs::remove_file(&path);
            UnixListener::bind(&path).unwrap()
        },
        AsRawFd::as_raw_fd,
    );
    // One that came before the server did waits for it.
    let early = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
    let mut command = activated(&place, &[&tcp, &unix], "smtp:lmtp");
    // That could not be bound.
    command.args(["--listen", "192.0.2.1:25"]);
    let mut server = Server::ready(command);
    assert_eq!(server.places, [tcp.local_addr().unwrap().to_string(), "unix: (LMTP)".to_owned()]);
    let mut early = Client::new(early);
    early.expect("220 ");
    early.deliver("Subject: early\r\n\r\n");
    server.connect().deliver("Subject: smtp\r\n\r\n");
    let mut client = unix_client(&path);
    assert!(client.expect("220 ").contains(" LMTP "));
    client.say("LHLO c", "250-");
    client.deliver("Subject: lmtp\r\n\r\n");
    assert_eq!(place.files("new").len(), 3);
    // Neither is inherited by anybody, nor blocks.
    let flags = |file| fs::read_to_string(format!("/proc/{}/fdinfo/{file}", server.pid().as_raw_nonzero())).unwrap();
    for file in [3, 4] {
        let info = flags(file);
        let octal = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        let flags = u32::from_str_radix(octal, 8).unwrap();
        assert_eq!((flags & 0o2_000_000, flags & 0o4000), (0o2_000_000, 0o4000), "{info}");
    }
    server.signal(Signal::TERM);
    early.expect("421 4.3.2 ");
    assert_eq!(server.end().code(), Some(0));
    // The manager's sockets stay, and who comes now waits for the next server.
    assert!(path.exists());
    let waiting = UnixStream::connect(&path).unwrap();
    let server = Server::ready(activated(&place, &[&tcp, &unix], "smtp:lmtp"));
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    Client::over(waiting).expect("220 ");
    server.stop();
}

#[test]
fn sockets_for_another_process_are_left_alone() {
    let place = Place::new();
    for variables in
        ["LISTEN_PID=1 LISTEN_FDS=1", "LISTEN_FDS=1", "LISTEN_PID=$$ LISTEN_FDS=0", "LISTEN_PID=$$ LISTEN_FDS=x"]
    {
        let mut command = mailchute_by_shell(&format!("export {variables}; exec \"$@\""));
        command.args(["--listen", "127.0.0.1:0", "--maildir"]).arg(place.maildir());
        let server = Server::ready(command);
        server.connect().say("NOOP", "250 ");
        server.stop();
    }
}

#[test]
fn what_is_no_listener_is_told_in_one_line() {
    let place = Place::new();
    let datagrams = above(|| UdpSocket::bind("127.0.0.1:0").unwrap(), AsRawFd::as_raw_fd);
    let listener = tcp_listener();
    let connected = above(|| TcpStream::connect(listener.local_addr().unwrap()).unwrap(), AsRawFd::as_raw_fd);
    let file = above(|| fs::File::open("/").unwrap(), AsRawFd::as_raw_fd);
    let nothing = "export LISTEN_PID=$$ LISTEN_FDS=2; exec \"$@\" 3<&- 4<&-";
    let mut commands: Vec<_> =
        [&datagrams as &dyn AsFd, &connected, &file].map(|it| activated(&place, &[it], "")).into();
    commands.push(mailchute_by_shell(nothing));
    for command in commands {
        let ended = run(command);
        assert_eq!((ended.status.code(), ended.stderr.lines().count()), (Some(1), 1), "{}", ended.stderr);
        assert!(ended.stderr.contains("LISTEN_FDS: no listener"), "{}", ended.stderr);
    }
    assert!(!place.maildir().exists());
}

// ---- NOTIFY_SOCKET ---------------------------------------------------------------------------------------------------

#[test]
fn a_service_manager_is_told_of_the_start_and_the_end() {
    let (place, short) = (Place::new(), Place::short());
    let path = short.path().join("notify");
    let name = format!("mailchute-test-{}", std::process::id());
    let at = SocketAddr::from_abstract_name(&name).unwrap();
    let sockets = [
        (UnixDatagram::bind(&path).unwrap(), path.display().to_string()),
        (UnixDatagram::bind_addr(&at).unwrap(), format!("@{name}")),
    ];
    for (socket, name) in sockets {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = common::mailchute();
        command.args(["--listen", "127.0.0.1:0", "--maildir"]).arg(place.maildir()).env("NOTIFY_SOCKET", &name);
        let mut server = Server::spawn(command);
        let receive = || {
            let mut octets = [0; 100];
            let count = socket.recv(&mut octets).unwrap_or_else(|error| panic!("{name}: {error}"));
            String::from_utf8_lossy(&octets[..count]).into_owned()
        };
        assert_eq!(receive(), "READY=1");
        // It is what it says.
        let address = server.wait_for_line("listening on ").rsplit_once(' ').unwrap().1.to_owned();
        let mut client = Client::new(TcpStream::connect(address).unwrap());
        client.expect("220 ");
        client.begin();
        server.signal(Signal::TERM);
        assert_eq!(receive(), "STOPPING=1");
        client.send("Subject: the last\r\n\r\n");
        client.say(".", "250 ");
        assert_eq!(server.end().code(), Some(0));
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut [0; 100]).is_err(), "told more");
    }
}

#[test]
fn a_service_manager_that_does_not_listen_harms_nobody() {
    let (place, short) = (Place::new(), Place::short());
    // One that reads nothing has a queue that is full.
    let deaf = short.path().join("deaf");
    let _deaf = UnixDatagram::bind(&deaf).unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    sender.set_nonblocking(true).unwrap();
    while sender.send_to(b"x", &deaf).is_ok() {}
    for name in ["", "@", "/nowhere/at/all", "nonsense", &"long".repeat(50), deaf.to_str().unwrap()] {
        let mut command = common::mailchute();
        command.args(["--listen", "127.0.0.1:0", "--maildir"]).arg(place.maildir()).env("NOTIFY_SOCKET", name);
        let server = Server::ready(command);
        server.connect().deliver("Subject: x\r\n\r\n");
        server.stop();
    }
}

// ---- systemd ---------------------------------------------------------------------------------------------------------

/// Whether this machine has the program; where everything is to be tested it must have it.
fn there_is(program: &str, option: &str) -> bool {
    let there = Command::new(program).arg(option).output().is_ok_and(|output| output.status.success());
    assert!(there || std::env::var("CI").as_deref() != Ok("true"), "{program} is required in CI");
    if !there {
        common::skip(&format!("{program} is missing"));
    }
    there
}

#[test]
fn systemd_hands_its_sockets_over() {
    if !there_is("systemd-socket-activate", "--version") {
        return;
    }
    let (place, short) = (Place::new(), Place::short());
    let path = short.path().join("lmtp.sock");
    let address = tcp_listener().local_addr().unwrap().to_string();
    let mut command = common::bare_command("systemd-socket-activate");
    command.arg(format!("--listen={address}")).arg(format!("--listen={}", path.display())).arg("--fdname=smtp:lmtp");
    command.arg(env!("CARGO_BIN_EXE_mailchute")).arg("--maildir").arg(place.maildir());
    let mut server = Server::spawn(command);
    server.wait_for_line("Listening on ");
    common::until("it listens", || path.exists());
    assert!(!place.maildir().exists(), "started before anybody came");
    let mut client = Client::new(TcpStream::connect(&address).unwrap());
    client.expect("220 ");
    client.deliver("Subject: smtp\r\n\r\n");
    let mut client = unix_client(&path);
    assert!(client.expect("220 ").contains(" LMTP "));
    client.say("LHLO c", "250-");
    client.deliver("Subject: lmtp\r\n\r\n");
    assert_eq!(place.files("new").len(), 2);
    let mut command = common::mailchute();
    command.args(["healthcheck", &address]);
    assert_eq!(run(command).status.code(), Some(0));
    server.signal(Signal::TERM);
    assert_eq!(server.end().code(), Some(0));
    assert!(path.exists(), "what systemd made was removed");
}

/// The system calls of each set that systemd knows, by its name; a set may name others.
fn call_sets() -> HashMap<String, Vec<String>> {
    let mut command = common::bare_command("systemd-analyze");
    command.arg("syscall-filter");
    let mut sets: HashMap<String, Vec<String>> = HashMap::new();
    let mut name = String::new();
    for line in run(command).stdout.lines() {
        // Names of sets stand at the start of the line, their members behind blanks.
        if line.starts_with('@') {
            line.clone_into(&mut name);
        } else if line.trim().starts_with('#') {
            // What it is about.
        } else if line.starts_with(' ') {
            sets.entry(name.clone()).or_default().push(line.trim().to_owned());
        } else if !line.is_empty() {
            // What is in no set.
            name.clear();
        }
    }
    sets
}

fn expand(name: &str, sets: &HashMap<String, Vec<String>>) -> Vec<String> {
    if !name.starts_with('@') {
        return vec![name.to_owned()];
    }
    sets.get(name)
        .unwrap_or_else(|| panic!("no set {name} in {:?}", sets.keys()))
        .iter()
        .flat_map(|member| expand(member, sets))
        .collect()
}

#[test]
fn the_units_filter_lets_the_server_do_what_it_does() {
    if !there_is("systemd-analyze", "--version") || !there_is("strace", "--version") {
        return;
    }
    let unit = fs::read_to_string("dist/mailchute.service").unwrap();
    let sets = call_sets();
    let mut allowed: HashSet<String> = expand("@default", &sets).into_iter().collect();
    for filter in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        for name in filter.trim_start_matches('~').split(' ') {
            for call in expand(name, &sets) {
                if filter.starts_with('~') {
                    allowed.remove(&call)
                } else {
                    allowed.insert(call)
                };
            }
        }
    }
    let limit: u64 = unit.lines().find_map(|line| line.strip_prefix("LimitNOFILE=")).unwrap().parse().unwrap();
    let place = Place::new();
    let trace = place.path().join("trace");
    let mut command =
        mailchute_by_shell(&format!("ulimit -n {limit}; exec strace -D -f -o {} \"$@\"", trace.display()));
    command.args(["--listen", "127.0.0.1:0", "--maildir"]).arg(place.maildir());
    let mut server = Server::ready(command);
    server.connect().deliver(&common::text(1, 300_000));
    server.connect().say("QUIT", "221 ");
    server.signal(Signal::TERM);
    assert_eq!(server.end().code(), Some(0));
    assert!(!server.log().contains("room for"), "{}", server.log());
    let read = || fs::read_to_string(&trace).unwrap();
    common::until("strace is done", || read().contains("+++ exited with 0"));
    let trace = read();
    let (_, trace) = trace.split_once("/mailchute\"").unwrap();
    let calls: HashSet<_> = trace.lines().filter_map(|line| line.split_once('(')?.0.rsplit(' ').next()).collect();
    assert!(calls.contains("renameat2") && calls.contains("io_submit"), "{calls:?}");
    let denied: Vec<_> =
        calls.iter().filter(|call| call.starts_with(char::is_lowercase) && !allowed.contains(**call)).collect();
    assert!(denied.is_empty(), "not allowed: {denied:?}");
    // The limit is enough, so that it is not set.
    let set = trace.lines().filter(|line| line.contains("RLIMIT_NOFILE, {") || line.contains("setrlimit("));
    assert_eq!(set.count(), 0, "{trace}");
}
