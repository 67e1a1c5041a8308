//! The order of system calls, as `strace` sees it: a final 250 leaves only after the kernel said that the message's
//! octets, and then its name in `new/`, are on stable storage. And what becomes of a message when one of them fails.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Ended, Place, Server, bare_command, run, skip, stored, tell, text, until};
use rustix::process::Signal;

/// All calls that make, write, flush or name a file, or write to a socket; `send` only as on a 32-bit x86.
const CALLS: &str = "mkdir,mkdirat,write,writev,pwrite64,sendto,sendmsg,rename,renameat,renameat2,link,linkat,\
    fsync,fdatasync,io_submit,io_getevents,?send";

/// One step of the program that matters here.
#[derive(Clone, Debug)]
enum Event {
    Made {
        directory: String,
    },
    Wrote {
        file: String,
    },
    FlushBegun {
        ticket: String,
        path: String,
    },
    FlushEnded {
        ticket: String,
        well: bool,
    },
    Moved {
        from: String,
        to: String,
    },
    /// A write to a socket with final replies, which name these messages.
    Acknowledged {
        ids: Vec<String>,
    },
}

// ---- reading what strace wrote -------------------------------------------------------------------------------------

/// The path in `7</path/of/it>`.
fn path_of(descriptor: &str) -> Option<&str> {
    let (number, path) = descriptor.trim().split_once('<')?;
    (number.parse::<u32>().is_ok() || number == "AT_FDCWD").then(|| path.trim_end_matches('>'))
}

/// A quoted name, below an open directory unless it is absolute.
fn path_in(directory: &str, name: &str) -> Option<String> {
    let name = name.trim().trim_matches('"');
    if name.starts_with('/') { Some(name.to_owned()) } else { Some(format!("{}/{name}", path_of(directory)?)) }
}

/// The values behind `name=` in `{…, name=value, …}, {…}`.
fn values<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(['{', ',', '}']).filter_map(move |field| field.trim().strip_prefix(name)?.strip_prefix('='))
}

/// The number, which strace writes as `0` or `0x1f`, in one form.
fn ticket(value: &str) -> String {
    value.trim_start_matches("0x").to_owned()
}

fn events_of(line: &str, number: usize) -> Option<Vec<Event>> {
    let (_, call) = line.split_once(' ')?;
    let (call, result) = call.trim().rsplit_once(" = ")?;
    let (name, arguments) = call.trim_end().split_once('(')?;
    let result: i64 = result.split([' ', '<']).next()?.parse().ok()?;
    if result < 0 {
        return None;
    }
    let arguments = arguments.trim_end().strip_suffix(')')?;
    let parts: Vec<&str> = arguments.split(", ").collect();
    Some(match name {
        "mkdir" => vec![Event::Made { directory: parts[0].trim_matches('"').to_owned() }],
        "mkdirat" => vec![Event::Made { directory: path_in(parts[0], parts[1])? }],
        "write" | "writev" | "pwrite64" | "send" | "sendto" | "sendmsg" => {
            let path = path_of(parts[0])?;
            if !path.starts_with("socket:") {
                return Some(vec![Event::Wrote { file: path.to_owned() }]);
            }
            let replies = arguments.split("250 2.0.0 ").skip(1);
            let ids = replies.filter_map(|reply| Some(reply.split_once(" Message accepted")?.0.to_owned())).collect();
            vec![Event::Acknowledged { ids }]
        }
        "rename" | "link" => {
            let path = |part: &str| part.trim_matches('"').to_owned();
            vec![Event::Moved { from: path(parts[0]), to: path(parts[1]) }]
        }
        "renameat" | "renameat2" | "linkat" => {
            vec![Event::Moved { from: path_in(parts[0], parts[1])?, to: path_in(parts[2], parts[3])? }]
        }
        "fsync" | "fdatasync" => {
            let (ticket, path) = (format!("line {number}"), path_of(parts[0])?.to_owned());
            vec![Event::FlushBegun { ticket: ticket.clone(), path }, Event::FlushEnded { ticket, well: true }]
        }
        "io_submit" => {
            let (tickets, files) = (values(arguments, "aio_data"), values(arguments, "aio_fildes"));
            let opcodes = values(arguments, "aio_lio_opcode");
            let taken = tickets.zip(files).zip(opcodes).take(result as usize);
            taken
                .map(|((data, file), opcode)| {
                    assert!(opcode == "IOCB_CMD_FSYNC" || opcode == "IOCB_CMD_FDSYNC", "{line}");
                    Event::FlushBegun { ticket: ticket(data), path: path_of(file).unwrap().to_owned() }
                })
                .collect()
        }
        "io_getevents" => {
            let ends = values(arguments, "data").zip(values(arguments, "res"));
            ends.map(|(data, result)| Event::FlushEnded { ticket: ticket(data), well: result == "0" }).collect()
        }
        _ => return None,
    })
}

// ---- the rule ------------------------------------------------------------------------------------------------------

/// Follows the events; the number of messages that were acknowledged in order, or what was out of order.
fn check(events: &[Event], maildir: &Path) -> Result<usize, String> {
    let directory = |name: &str| maildir.join(name).to_str().unwrap().to_owned();
    let (new, cur) = (directory("new"), directory("cur"));
    // Flushes under way, with the path and what they make durable: a file, or the names moved before it began.
    let mut under_way: HashMap<&str, (&str, HashSet<&str>)> = HashMap::new();
    let mut flushed_files: HashSet<&str> = HashSet::new();
    let mut moved: HashSet<&str> = HashSet::new();
    let mut durable: HashMap<&str, HashSet<&str>> = HashMap::new();
    // Directories that were made and whose own names are not durable yet.
    let mut unnamed: HashSet<&str> = HashSet::new();
    let mut acknowledged = 0;
    for event in events {
        match event {
            Event::Made { directory } => {
                unnamed.insert(directory);
            }
            Event::Wrote { file } => {
                flushed_files.remove(file.as_str());
                // A flush that began before does not cover this.
                for (_, covered) in under_way.values_mut() {
                    covered.remove(file.as_str());
                }
            }
            Event::FlushBegun { ticket, path } => {
                let mut covered: HashSet<&str> = moved.clone();
                covered.insert(path);
                covered.extend(&unnamed);
                if under_way.insert(ticket, (path, covered)).is_some() {
                    return Err(format!("two flushes at once are called {ticket}"));
                }
            }
            Event::FlushEnded { ticket, well } => {
                let (path, covered) = under_way.remove(ticket.as_str()).ok_or("the end of a flush that never began")?;
                if !well {
                    continue;
                }
                if covered.contains(path) {
                    flushed_files.insert(path);
                }
                unnamed.retain(|made| !covered.contains(made) || Path::new(made).parent() != Some(Path::new(path)));
                if path == new || path == cur {
                    for name in moved.iter().filter(|name| covered.contains(*name)) {
                        durable.entry(name).or_default().insert(path);
                    }
                }
            }
            Event::Moved { from, to } => {
                if !flushed_files.contains(from.as_str()) && !from.contains("/.proof") {
                    return Err(format!("{from} is moved before its octets are flushed"));
                }
                moved.insert(to);
            }
            Event::Acknowledged { ids } => {
                for id in ids {
                    let mine = |name: &&&str| name.starts_with(&new) && name.contains(&format!(".{id}."));
                    let name = moved.iter().find(mine).ok_or(format!("{id} is acknowledged before it is moved"))?;
                    let ended = durable.get(name);
                    for directory in [&new, &cur] {
                        if !ended.is_some_and(|ended| ended.contains(directory.as_str())) {
                            return Err(format!("{id} is acknowledged before {directory} is flushed"));
                        }
                    }
                    if let Some(made) = unnamed.iter().next() {
                        return Err(format!("{id} is acknowledged before the name of {made} is flushed"));
                    }
                    acknowledged += 1;
                }
            }
        }
    }
    Ok(acknowledged)
}

// ---- the program under strace --------------------------------------------------------------------------------------

/// Whether strace is here and may trace. In CI it has to.
fn strace_works() -> bool {
    let mut command = bare_command("sh");
    command.args(["-c", "exec strace -D -o /dev/null true"]);
    let Ended { status, stderr, .. } = run(command);
    if !status.success() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "strace is required in CI: {stderr}");
        skip(&format!("strace does not work here: {}", stderr.trim()));
    }
    status.success()
}

/// A server with its trace written to a file; `tampering` is for strace's own `-e inject=`.
fn traced(place: &Place, options: &[&str], tampering: Option<&str>) -> Server {
    let mut command = bare_command("strace");
    // With -D the server is our own child, and strace watches from behind.
    command.args(["-D", "-f", "-y", "-s", "65536", "-o"]).arg(place.path().join("trace"));
    command.args(["-e", &format!("trace={CALLS},io_setup"), "-e", "signal=none"]);
    if let Some(tampering) = tampering {
        command.args(["-e", &format!("inject={tampering}")]);
    }
    command.arg(env!("CARGO_BIN_EXE_mailchute")).args(["--listen", "127.0.0.1:0", "--maildir"]).arg(place.maildir());
    command.args(options);
    Server::ready(command)
}

/// A server whose calls strace tampers with, each once at most, started by the shell with `start` before it; its trace is
/// written to a file.
fn tampered(place: &Place, start: &str, tampering: &[&str]) -> Command {
    let injects: String = tampering.iter().map(|how| format!(" -e inject={how}")).collect();
    let script = format!("{start} strace -D -o trace -e signal=none -e trace={CALLS},io_setup{injects} \"$@\"");
    let mut command = bare_command("sh");
    command.current_dir(place.path()).args(["-c", &script, "sh", env!("CARGO_BIN_EXE_mailchute")]);
    command.args(["--listen", "127.0.0.1:0", "--maildir"]).arg(place.maildir());
    command
}

/// How often strace tampered with a call so far.
fn tamperings(place: &Place, call: &str) -> usize {
    let trace = fs::read_to_string(place.path().join("trace")).unwrap();
    trace.lines().filter(|line| line.contains(&format!("{call}(")) && line.contains("(INJECTED)")).count()
}

/// Makes a Maildir before a server does.
fn make_maildir(place: &Place) -> Vec<String> {
    let paths = ["", "tmp", "new", "cur"].map(|directory| place.maildir().join(directory));
    paths.iter().for_each(|path| fs::create_dir(path).unwrap());
    paths.iter().map(|path| path.to_str().unwrap().trim_end_matches('/').to_owned()).collect()
}

/// What a server that has ended did.
fn events(place: &Place) -> Vec<Event> {
    let trace = fs::read(place.path().join("trace")).unwrap();
    let trace = String::from_utf8_lossy(&trace);
    assert!(trace.contains("+++ exited with 0 +++"), "the trace has no end");
    assert!(!trace.contains("<unfinished ...>"), "more than one thread");
    trace.lines().enumerate().filter_map(|(number, line)| events_of(line, number)).flatten().collect()
}

const CLIENTS: u64 = 6;
const MESSAGES: u64 = 8;

/// Several clients at once, small messages and some that take many writes, with and without pipelining.
fn load(server: &Server) {
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                let mut session = server.connect();
                let octets = if client == 0 { 200_000 } else { 500 };
                for number in 0..MESSAGES / 2 {
                    session.deliver(&text(number, octets));
                }
                // Several transactions in one go: the end of one message and the next behind it.
                let envelope = "MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n";
                let transaction = format!("{envelope}{}.\r\n", text(9, octets));
                session.send(transaction.repeat(MESSAGES as usize / 2));
                for _ in 0..MESSAGES / 2 {
                    for start in ["250 2.1.0 ", "250 2.1.5 ", "354 ", "250 2.0.0 "] {
                        session.expect(start);
                    }
                }
            });
        }
    });
}

fn traced_load(options: &[&str], tampering: Option<&str>) -> (Place, Vec<Event>, String) {
    let place = Place::new();
    let mut server = traced(&place, options, tampering);
    load(&server);
    server.signal(Signal::TERM);
    assert_eq!(server.end().code(), Some(0));
    let (events, log) = (events(&place), server.log());
    (place, events, log)
}

const ALL: usize = (CLIENTS * MESSAGES) as usize;

#[test]
fn no_250_leaves_before_the_flushes_ended() {
    if !strace_works() {
        return;
    }
    let (place, events, _) = traced_load(&["--sync", "always"], None);
    let maildir = place.maildir();
    assert_eq!(check(&events, &maildir), Ok(ALL));
    assert_eq!(place.files("new").len(), ALL);
    let asynchronous =
        |event: &&Event| matches!(event, Event::FlushEnded { ticket, .. } if !ticket.starts_with("line"));
    let ends = events.iter().filter(asynchronous).count();
    tell(&format!("{ALL} messages acknowledged in order; io_getevents told of {ends} flushes"));
    if ends == 0 {
        skip("this system has no asynchronous flushes; their order was that of blocking ones");
    }

    // The check would see it if it were otherwise: without the end of any one flush …
    let first = events.iter().position(|event| matches!(event, Event::Wrote { file } if file.contains(".M"))).unwrap();
    for at in (first..events.len()).filter(|&at| matches!(events[at], Event::FlushEnded { .. })) {
        let mut fewer = events.clone();
        let missing = fewer.remove(at);
        assert!(check(&fewer, &maildir).is_err(), "{missing:?} is not missed");
    }
    // … or with a reply that leaves as soon as its file is in new/ …
    for (at, event) in events.iter().enumerate() {
        let Event::Acknowledged { ids } = event else { continue };
        for id in ids {
            let is_move = |event: &Event| matches!(event, Event::Moved { to, .. } if to.contains(&format!(".{id}.")));
            let moved = events.iter().position(is_move).unwrap();
            let mut early = events.clone();
            let reply = early.remove(at);
            early.insert(moved + 1, reply);
            assert!(check(&early, &maildir).unwrap_err().contains("is flushed"));
        }
    }
    // … or with a file that is moved, or written to, before or after its time.
    for (at, event) in events.iter().enumerate().skip(first) {
        let Event::Moved { from, .. } = event else { continue };
        let is_begin = |event: &Event| matches!(event, Event::FlushBegun { path, .. } if path == from);
        let begun = events.iter().position(is_begin).unwrap();
        let mut early = events.clone();
        let moved = early.remove(at);
        early.insert(begun + 1, moved);
        assert!(check(&early, &maildir).unwrap_err().contains("before its octets are flushed"));
        let mut late = events.clone();
        late.insert(begun + 1, Event::Wrote { file: from.clone() });
        assert!(check(&late, &maildir).unwrap_err().contains("before its octets are flushed"));
    }
}

#[test]
fn without_flushes_the_check_fails() {
    if !strace_works() {
        return;
    }
    let (place, events, log) = traced_load(&["--sync", "never"], None);
    let problem = check(&events, &place.maildir()).unwrap_err();
    assert!(problem.contains("before its octets are flushed"), "{problem}");
    assert!(!events.iter().any(|event| matches!(event, Event::FlushBegun { .. })));
    // Who chose it is told what it means.
    assert!(log.contains("--sync never"), "it does not say so at the start: {log}");
}

#[test]
fn the_order_is_kept_with_blocking_flushes() {
    if !strace_works() {
        return;
    }
    let (place, events, log) = traced_load(&["--sync", "always"], Some("io_setup:error=ENOSYS"));
    assert_eq!(check(&events, &place.maildir()), Ok(ALL));
    assert_eq!(log.lines().filter(|line| line.starts_with("WARN")).count(), 1, "it says so once: {log}");
}

#[test]
fn the_order_is_kept_with_links_in_place_of_renames() {
    if !strace_works() {
        return;
    }
    let (place, events, _) = traced_load(&["--sync", "always"], Some("renameat2:error=ENOSYS"));
    assert_eq!(check(&events, &place.maildir()), Ok(ALL));
    assert_eq!((place.files("new").len(), place.files("tmp").len()), (ALL, 0));
}

#[test]
fn what_a_start_leaves_that_is_killed_within_its_proof_is_removed_in_time() {
    if !strace_works() {
        return;
    }
    for call in ["renameat2", "unlinkat"] {
        let place = Place::new();
        let script = format!("exec strace -D -o trace -e trace={call} -e inject={call}:signal=KILL:when=1 \"$@\"");
        let mut command = bare_command("sh");
        command.current_dir(place.path()).args(["-c", &script, "sh", env!("CARGO_BIN_EXE_mailchute")]);
        command.args(["--listen", "127.0.0.1:0", "--maildir"]).arg(place.maildir());
        let mut server = Server::spawn(command);
        assert_eq!(server.end().code(), None, "{call} is not called at the start");
        let left = || [place.files("tmp"), place.files("new")].concat();
        for path in left() {
            // Nobody takes it for mail …
            assert!(path.file_name().unwrap().as_encoded_bytes().starts_with(b"."), "{}", path.display());
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(std::time::SystemTime::now() - Duration::from_secs(37 * 3600)).unwrap();
        }
        // … and it does not stay for ever.
        let server = Server::start(&place, &[]);
        let start = Instant::now();
        while !left().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(2), "killed at {call}: {:?} stays", left());
            std::thread::sleep(Duration::from_millis(10));
        }
        server.stop();
    }
}

/// Sends messages while one call of the server fails: all that was told 250 is there, nothing else is, and in the end
/// mail is taken again.
fn deliver_with_failure(failure: &str, blocking: bool) {
    let place = Place::new();
    make_maildir(&place);
    // The first turns asynchronous flushes off.
    let tampering: &[&str] = if blocking { &["io_setup:error=ENOSYS", failure] } else { &[failure] };
    let command = tampered(&place, "exec", tampering);
    let server = Server::ready(command);
    let mut client = server.connect();
    let (mut taken, mut refused) = (Vec::new(), 0);
    let start = Instant::now();
    // Until well behind the failure, and until the disk is trusted again.
    while taken.len() < 6 {
        assert!(start.elapsed() < Duration::from_secs(5), "{failure}: it does not recover\n{}", server.log());
        let number = start.elapsed().as_nanos() as u64;
        let reply = client.attempt(&text(number, 1000));
        if reply.starts_with("250 ") {
            taken.push(stored(&text(number, 1000)));
        } else {
            assert!(reply.starts_with("451 4.3.0 ") || reply.starts_with("452 4.3.1 "), "{failure}: {reply}");
            refused += 1;
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let messages: Vec<_> = place.messages().into_iter().map(|message| String::from_utf8(message).unwrap()).collect();
    for text in &taken {
        assert_eq!(messages.iter().filter(|message| message.ends_with(text)).count(), 1, "{failure}: {text}");
    }
    assert_eq!(messages.len(), taken.len(), "{failure}: a refused message is there");
    assert_eq!(place.files("tmp"), <[&Path; 0]>::default(), "{failure}");
    if refused > 0 {
        let line = server.wait_for_line("ERROR");
        assert!(line.contains(place.maildir().to_str().unwrap()), "{line}");
    }
    println!("{failure}: {refused} refused for now, {} taken", taken.len());
    server.stop();
    // Else nothing failed, and nothing is shown.
    let (call, _) = failure.split_once(':').unwrap();
    assert_eq!(tamperings(&place, call), 1, "{failure}");
}

#[test]
fn a_call_that_fails_refuses_one_message_and_loses_none() {
    if !strace_works() {
        return;
    }
    // The first calls are those of the proof at start, which may well refuse to start; that is tested elsewhere.
    std::thread::scope(|scope| {
        for half in 0..2 {
            scope.spawn(move || {
                for nth in (2..=6).filter(|nth| nth % 2 == half) {
                    deliver_with_failure(&format!("io_submit:error=EAGAIN:when={nth}"), false);
                    deliver_with_failure(&format!("renameat2:error=EIO:when={nth}"), false);
                    deliver_with_failure(&format!("renameat2:error=ENOSPC:when={nth}"), false);
                    deliver_with_failure(&format!("fdatasync:error=EIO:when={nth}"), true);
                    deliver_with_failure(&format!("fdatasync:error=EDQUOT:when={nth}"), true);
                    deliver_with_failure(&format!("fsync:error=EIO:when={}", nth + 2), true);
                }
            });
        }
    });
}

#[test]
fn a_maildir_that_somebody_made_a_moment_ago_has_its_name_on_the_disk_before_the_first_250() {
    if !strace_works() {
        return;
    }
    let place = Place::new();
    // For the check it does not matter who made them.
    let made = make_maildir(&place).into_iter().map(|directory| Event::Made { directory });
    let mut server = traced(&place, &[], None);
    server.connect().deliver(&text(1, 500));
    server.signal(Signal::TERM);
    assert_eq!(server.end().code(), Some(0));
    let events: Vec<_> = made.chain(events(&place)).collect();
    assert_eq!(check(&events, &place.maildir()), Ok(1));
}

/// With 100 descriptors there are 32 for all else, 17 for files of messages, and 51 for connections.
#[test]
fn as_many_peers_as_there_may_be_end_their_messages_at_once_and_none_is_refused() {
    if !strace_works() {
        return;
    }
    let place = Place::new();
    // The first flush of a message takes so long that the ends of all others are there after it.
    let tampering = ["io_setup:error=ENOSYS", "fdatasync:delay_enter=500000:when=2"];
    let server = Server::ready(tampered(&place, "ulimit -n 100; exec", &tampering));
    let mut clients: Vec<_> = (0..50).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| client.begin());
    for (number, client) in (0..).zip(&mut clients) {
        client.send(text(number, 500) + ".\r\n");
    }
    for client in &mut clients {
        client.expect("250 2.0.0 ");
    }
    assert_eq!((place.files("new").len(), place.files("tmp").len()), (50, 0));
    server.stop();
}

#[test]
fn the_end_that_comes_at_once_removes_what_waits_for_its_flush() {
    if !strace_works() {
        return;
    }
    let place = Place::new();
    // From some call on the ends of flushes are never told.
    let mut server = Server::ready(tampered(&place, "exec", &["io_getevents:retval=0:when=12+"]));
    let envelope = "MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n";
    let mut waiting: Vec<_> = (0..2).map(|_| server.connect()).collect();
    waiting[0].send(format!("{envelope}{}.\r\n", text(1, 500)).repeat(20));
    until("an end that is not told", || tamperings(&place, "io_getevents") > 0);
    waiting[1].send(format!("{envelope}{}.\r\n", text(2, 500)));
    until("the file in tmp/", || !place.files("tmp").is_empty());
    server.signal(Signal::TERM);
    server.wait_for_line("stopping");
    server.signal(Signal::TERM);
    assert_eq!(server.end().code(), Some(0));
    assert_eq!(place.files("tmp"), <[&Path; 0]>::default());
}

#[test]
fn sigterm_during_the_start_ends_the_program_right_after_it() {
    if !strace_works() {
        return;
    }
    let own_namespace = "exec unshare -pf --kill-child";
    let mut command = bare_command("sh");
    command.args(["-c", &format!("{own_namespace} true")]);
    let Ended { status, stderr, .. } = run(command);
    if !status.success() {
        skip(&format!("no process here may be number 1: {}", stderr.trim()));
    }
    let ways: &[&str] = if status.success() { &["exec", own_namespace] } else { &["exec"] };
    // Its first flush is that of the Maildir, before anything of it is proved.
    for (way, call) in ways.iter().flat_map(|way| ["fsync", "io_getevents"].map(|call| (way, call))) {
        let place = Place::new();
        let mut server = Server::spawn(tampered(&place, way, &[&format!("{call}:signal=TERM:when=1")]));
        let status = server.end();
        let log = server.log();
        assert_eq!(status.code(), Some(0), "{way}, at {call}: {status}\n{log}");
        assert!(log.contains("storing mail in ") && log.contains("stopping"), "{way}, at {call}: {log}");
        place.assert_empty();
    }
}

#[test]
fn where_the_end_of_a_flush_is_never_told_it_starts_with_flushes_that_block() {
    if !strace_works() {
        return;
    }
    let place = Place::new();
    let server = Server::ready(tampered(&place, "exec", &["io_getevents:retval=0"]));
    server.connect().deliver(&text(1, 500));
    let log = server.log();
    assert_eq!(log.lines().filter(|line| line.starts_with("WARN")).count(), 1, "{log}");
    assert!(log.contains("can't be flushed in the background"), "{log}");
    assert_eq!((place.files("new").len(), place.files("tmp").len()), (1, 0));
    server.stop();
}
