//! Everything that the program holds has a bound: floods of connections and a lack of descriptors harm nobody who is there,
//! one address can't take all places, and the memory that is announced at start suffices for the worst.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::collections::VecDeque;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Client, PATIENCE, Place, Server, mailchute, mailchute_by_shell, skip, tell, text, until};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use rustix::process::{Resource, Rlimit};

const TOO_MANY: &str = "421 4.3.2 ";

// ---- floods --------------------------------------------------------------------------------------------------------

const FLOOD_THREADS: usize = 4;
/// Connections that each thread begins at once, and how long it then rests.
const BURST: usize = 50;
const BURST_PAUSE: Duration = Duration::from_millis(200);
/// Connections that each thread keeps, whatever became of them.
const FLOOD_KEPT: usize = 100;
const FLOOD_TIME: Duration = Duration::from_secs(3);
/// What the server may use of one processor while it has no descriptors, in hundredths.
const SHARE_MAX: u64 = 20;
/// When a newcomer must be served after a flood. A second is meant; the machine may have others to run.
const RECOVERY_MAX: Duration = Duration::from_secs(5);

/// What the connections of a flood heard.
#[derive(Debug, Default)]
struct Heard {
    begun: usize,
    greeted: usize,
    told: usize,
    nothing: usize,
}

impl Heard {
    fn add(&mut self, stream: &mut TcpStream) {
        let mut start = [0; 10];
        stream.set_nonblocking(true).unwrap();
        match stream.read(&mut start) {
            Ok(count) if start[..count].starts_with(b"220 ") => self.greeted += 1,
            Ok(10) if start == TOO_MANY.as_bytes() => self.told += 1,
            Ok(0) | Err(_) => self.nothing += 1,
            Ok(count) => panic!("{:?}", String::from_utf8_lossy(&start[..count])),
        }
    }
}

/// Connects again and again, in bursts, and keeps the newest; until it is told to stop.
fn flood(address: SocketAddr, stop: &AtomicBool) -> Heard {
    let (mut heard, mut kept) = (Heard::default(), VecDeque::new());
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..BURST {
            // Nobody may take it from the kernel, whose queue is then full.
            let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(100)) else { break };
            heard.begun += 1;
            kept.push_back(stream);
            if kept.len() > FLOOD_KEPT {
                heard.add(&mut kept.pop_front().unwrap());
            }
        }
        std::thread::sleep(BURST_PAUSE);
    }
    kept.iter_mut().for_each(|stream| heard.add(stream));
    heard
}

/// Floods a server for a while, and does something else meanwhile, again and again. What the flood heard, and what the server
/// used of a processor, in hundredths.
fn during_flood(server: &Server, mut meanwhile: impl FnMut()) -> (Heard, u64) {
    let stop = AtomicBool::new(false);
    let (begun, ticks) = (Instant::now(), server.ticks());
    std::thread::scope(|scope| {
        let floods: Vec<_> = (0..FLOOD_THREADS).map(|_| scope.spawn(|| flood(server.address(), &stop))).collect();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while begun.elapsed() < FLOOD_TIME {
                meanwhile();
                std::thread::sleep(Duration::from_millis(10));
            }
        }));
        let (used, time) = (server.ticks() - ticks, begun.elapsed());
        stop.store(true, Ordering::Relaxed);
        let mut sum = Heard::default();
        for heard in floods.into_iter().map(|flood| flood.join().unwrap()) {
            sum.begun += heard.begun;
            sum.greeted += heard.greeted;
            sum.told += heard.told;
            sum.nothing += heard.nothing;
        }
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (sum, used * 1000 / time.as_millis() as u64)
    })
}

/// How long it takes from now until a newcomer has been greeted.
#[track_caller]
fn recovery(server: &Server) -> Duration {
    let begun = Instant::now();
    loop {
        let mut client = server.connect_silently();
        // Where the kernel's queue is full it takes a connection that comes to nothing, or late.
        client.stream().set_read_timeout(Some(Duration::from_millis(250))).unwrap();
        match client.try_reply() {
            Ok(reply) if reply.starts_with("220 ") => break,
            Ok(reply) => assert!(reply.starts_with(TOO_MANY), "{reply}"),
            // Or told to go, and gone before it was read.
            Err(_) => {}
        }
        assert!(begun.elapsed() < PATIENCE, "nobody is served after the flood");
        std::thread::sleep(Duration::from_millis(5));
    }
    begun.elapsed()
}

#[test]
fn a_flood_beyond_the_limit_of_connections_harms_nobody_who_is_there() {
    let place = Place::new();
    let mut command = mailchute_by_shell("ulimit -n 100; exec \"$@\"");
    command.args(["--listen", "127.0.0.1:0", "--maildir"]).arg(place.maildir());
    let server = Server::ready(command);
    server.wait_for_line("room for ");
    let mut early: Vec<_> = (0..5).map(|_| server.connect()).collect();
    let mut delivered = 0;
    let (heard, share) = during_flood(&server, || {
        for client in &mut early {
            let reply = client.attempt(&text(delivered, 100));
            assert!(reply.starts_with("250 2.0.0 "), "a message of one who was there: {reply}");
            delivered += 1;
        }
    });
    let recovery = recovery(&server);
    tell(&format!("beyond the limit of connections: {heard:?}, {delivered} messages of those who were there"));
    tell(&format!("{share} % of a processor; a newcomer is served {recovery:?} after the flood"));
    assert!(heard.told > FLOOD_KEPT && heard.greeted > 0, "{heard:?}");
    assert!(recovery < RECOVERY_MAX, "{recovery:?}");
    assert_eq!((place.files("new").len() as u64, place.files("tmp").len()), (delivered, 0));
    server.stop();
}

/// A server with so few descriptors that only some of the flood get one; and those who are there.
fn short_of_descriptors(place: &Place) -> (Server, Vec<Client>) {
    let server = Server::start(place, &[]);
    let mut early: Vec<_> = (0..3).map(|_| server.connect()).collect();
    early[0].deliver(&text(1, 100));
    let limit = descriptors(&server) + 4;
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let lowered = Rlimit { current: Some(limit as u64), maximum };
    rustix::process::prlimit(Some(server.pid()), Resource::Nofile, lowered).unwrap();
    (server, early)
}

fn descriptors(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.pid().as_raw_nonzero())).unwrap().count()
}

#[test]
fn a_flood_without_descriptors_costs_little_and_harms_nobody_who_is_there() {
    let place = Place::new();
    let (server, mut early) = short_of_descriptors(&place);
    let mut said = 0;
    let (heard, share) = during_flood(&server, || {
        for client in &mut early {
            client.say("NOOP", "250 ");
            said += 1;
        }
        // A message needs a descriptor itself.
        let reply = early[0].attempt(&text(2, 100));
        assert!(["250 2.0.0 ", "451 4.3.", "452 4.3.1 "].iter().any(|start| reply.starts_with(start)), "{reply}");
    });
    let recovery = recovery(&server);
    tell(&format!("without descriptors: {heard:?}, {said} commands of those who were there"));
    tell(&format!("{share} % of a processor; a newcomer is served {recovery:?} after the flood"));
    assert!(heard.told > FLOOD_KEPT && heard.greeted < FLOOD_KEPT, "there was no lack: {heard:?}");
    assert!(share < SHARE_MAX, "it does not rest: {share} % of a processor");
    assert!(recovery < RECOVERY_MAX, "{recovery:?}");
    // A disk that failed for want of a descriptor may need a moment to be trusted again.
    until("mail is taken again", || early[1].attempt(&text(3, 100)).starts_with("250 "));
    until("all is in new/", || place.files("tmp").is_empty());
    server.stop();
}

#[test]
fn without_descriptors_newcomers_are_told_so() {
    let place = Place::new();
    let (server, mut early) = short_of_descriptors(&place);
    // Those that there is room for are greeted, the others hear why they are not.
    let mut crowd: Vec<_> = (0..200).map(|_| server.connect_silently()).collect();
    let replies: Vec<_> = crowd.iter_mut().map(|client| client.try_reply().unwrap()).collect();
    let greeted = replies.iter().filter(|reply| reply.starts_with("220 ")).count();
    let told = replies.iter().filter(|reply| reply.starts_with(TOO_MANY)).count();
    assert!(greeted + told == 200 && (1..10).contains(&greeted), "{greeted} greeted, {told} told");
    server.wait_for_line("no room for a newcomer");
    let lines = server.log().lines().filter(|line| line.contains("no room for a newcomer")).count();
    assert!(lines < 3, "{lines} lines in a second or two");
    early[0].say("NOOP", "250 ");
    drop(crowd);
    assert!(recovery(&server) < RECOVERY_MAX);
    server.stop();
}

// ---- one address -----------------------------------------------------------------------------------------------------

/// The variable that tells a test of this program that it runs in a network of its own.
const OWN_NETWORK: &str = "MAILCHUTE_TEST_OWN_NETWORK";
/// Addresses there that are not loopback's: two of IPv4, and of IPv6 two in one network of 64 bits and one in another.
const ADDRESSES: [&str; 5] =
    ["10.99.0.1/32", "10.99.0.2/32", "fd99:0:0:1::1/128", "fd99:0:0:1::2/128", "fd99:0:0:2::1/128"];

/// Whether we run in a network of our own, with [`ADDRESSES`]. Where not, the test `name` is run once more in one, if that is
/// allowed.
#[track_caller]
fn in_own_network(name: &str) -> bool {
    if std::env::var_os(OWN_NETWORK).is_none() {
        let probe = Command::new("unshare").args(["--net", "ip", "link", "set", "lo", "up"]).output();
        if !probe.as_ref().is_ok_and(|output| output.status.success()) {
            skip(&format!("{name}: a network of its own can't be had: {probe:?}"));
            return false;
        }
        let mut command = Command::new("unshare");
        command.arg("--net").arg(std::env::current_exe().unwrap()).args(["--exact", name]);
        let output = command.args(["--nocapture", "--test-threads=1"]).env(OWN_NETWORK, "yes").output().unwrap();
        let text = [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return false;
    }
    let ip = |arguments: &[&str]| assert!(Command::new("ip").args(arguments).status().unwrap().success());
    ip(&["link", "set", "lo", "up"]);
    for address in ADDRESSES {
        let quick: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
        ip(&[&["address", "add", address, "dev", "lo"], quick].concat());
    }
    true
}

/// A client with this address of its own.
fn connect_from(own: &str, server: &str) -> Client {
    let (own, server): (IpAddr, SocketAddr) = (own.parse().unwrap(), server.parse().unwrap());
    let family = if own.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let stream = socket(family, SocketType::STREAM, None).unwrap();
    bind(&stream, &SocketAddr::new(own, 0)).unwrap();
    connect(&stream, &server).unwrap();
    Client::new(stream.into())
}

/// Connects `count` times, and fails unless exactly `fitting` are greeted, which are given, and the others told 421.
#[track_caller]
fn crowd(own: &str, server: &str, count: usize, fitting: usize) -> Vec<Client> {
    let mut clients: Vec<_> = (0..count).map(|_| connect_from(own, server)).collect();
    let mut greeted = Vec::new();
    for mut client in clients.drain(..) {
        let reply = client.try_reply().unwrap();
        if reply.starts_with("220 ") {
            greeted.push(client);
        } else {
            assert!(reply.starts_with(TOO_MANY), "{reply}");
            client.ended();
        }
    }
    assert_eq!(greeted.len(), fitting, "{own}");
    greeted
}

/// Waits until a newcomer with this address is greeted.
#[track_caller]
fn fits_again(own: &str, server: &str) -> Client {
    let mut fitting = None;
    until("there is room again", || {
        let mut client = connect_from(own, server);
        let greeted = client.try_reply().unwrap().starts_with("220 ");
        fitting = greeted.then_some(client);
        greeted
    });
    fitting.unwrap()
}

#[test]
fn one_address_or_network_has_its_share_of_connections() {
    if !in_own_network("one_address_or_network_has_its_share_of_connections") {
        return;
    }
    let place = Place::short();
    let path = place.path().join("socket");
    let listen = |places: &[&str], options: &[&str]| {
        let mut command = mailchute();
        for place in places {
            command.args(["--listen", place]);
        }
        command.args(options).arg("--maildir").arg(place.maildir());
        Server::ready(command)
    };
    let unix = format!("unix:{}", path.display());
    let server = listen(&["0.0.0.0:0", "[::]:0", &unix], &["--max-connections-per-ip", "3"]);
    let port = |index: usize| server.places[index].parse::<SocketAddr>().unwrap().port();
    let (ipv4, ipv6) = (format!("10.99.0.1:{}", port(0)), format!("[fd99:0:0:1::1]:{}", port(1)));

    // Each IPv4 address has its own share, and who was sent away takes none of it.
    let mut first = crowd("10.99.0.1", &ipv4, 20, 3);
    let second = crowd("10.99.0.2", &ipv4, 4, 3);
    first.pop().unwrap().say("QUIT", "221 ");
    first.push(fits_again("10.99.0.1", &ipv4));
    crowd("10.99.0.1", &ipv4, 2, 0);
    // However a connection ends.
    for client in &mut first {
        rustix::net::sockopt::set_socket_linger(client.stream(), Some(Duration::ZERO)).unwrap();
    }
    drop(first);
    let mut again: Vec<_> = (0..3).map(|_| fits_again("10.99.0.1", &ipv4)).collect();
    crowd("10.99.0.1", &ipv4, 2, 0);
    again[0].deliver(&text(1, 100));

    // Of IPv6 it is a network's.
    let one = crowd("fd99:0:0:1::1", &ipv6, 2, 2);
    let two = crowd("fd99:0:0:1::2", &ipv6, 3, 1);
    let other = crowd("fd99:0:0:2::1", &ipv6, 4, 3);

    // This machine's own have no limit.
    let loopback = crowd("127.0.0.1", &format!("127.0.0.1:{}", port(0)), 100, 100);
    let loopback6 = crowd("::1", &format!("[::1]:{}", port(1)), 100, 100);
    let unix: Vec<_> = (0..100)
        .map(|_| {
            let mut client = Client::over(UnixStream::connect(&path).unwrap());
            client.expect("220 ");
            client
        })
        .collect();
    drop((second, one, two, other, loopback, loopback6, unix));
    server.stop();

    // Without the option there are 50.
    let server = listen(&["10.99.0.1:0"], &[]);
    crowd("10.99.0.2", &server.places[0], 60, 50);
    server.stop();
}

// ---- memory ----------------------------------------------------------------------------------------------------------

/// As many as there may be by default.
const CONNECTIONS: usize = 1000;
/// Those in the midst of a message at most, as many as files may be open.
const WITHIN: usize = 128;
/// With default options the bound may be so high, in MiB.
const BOUND_MAX: u64 = 24;

/// The bound in MiB that a server announced.
fn bound(server: &Server) -> u64 {
    let line = server.wait_for_line("memory");
    let before = line.split(" MiB").next().unwrap();
    before.rsplit(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("no figure in {line}"))
}

/// Gives a message the longest list of the longest paths, as far as there is memory for them. How many recipients it has.
fn hold_recipients(client: &mut Client<UnixStream>, name: &str) -> usize {
    client.say(&format!("EHLO {name}"), "250-");
    if !client.say(&format!("MAIL FROM:<{}@{name}>", "f".repeat(250)), "").starts_with("250 ") {
        return 0;
    }
    let local_part = "r".repeat(250);
    let mut recipients = 0;
    // Some at a time, as long as all of them fit.
    for group in 0..100 {
        let lines: String = (0..10).map(|index| format!("RCPT TO:<{local_part}{group}.{index}@{name}>\r\n")).collect();
        client.send(lines);
        let accepted = (0..10).filter(|_| client.expect("").starts_with("250 ")).count();
        recipients += accepted;
        if accepted < 10 {
            break;
        }
    }
    recipients
}

/// As many clients as there may be, each of which has the server hold what it can; and how many recipients these have.
fn hold_all(path: &Path) -> (Vec<Client<UnixStream>>, usize) {
    // The longest name that a peer may have.
    let name = [&"n".repeat(63)[..]; 4].join(".")[..250].to_owned();
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| Client::over(UnixStream::connect(path).unwrap())).collect();
    for client in &mut clients {
        client.stream().set_read_timeout(Some(PATIENCE)).unwrap();
        client.expect("220 ");
    }
    // Those who ask and don't read, until the kernel takes no more replies, which then wait, as do further commands. What is
    // asked leaves the recipients be, where there are some; the other is answered with the longest reply.
    let buffer: usize = fs::read_to_string("/proc/sys/net/core/wmem_default").unwrap().trim().parse().unwrap();
    let hello = format!("EHLO {name}\r\n");
    let [helps, hellos] = ["HELP\r\n", &hello].map(|line| line.repeat(buffer / line.len()) + &"x".repeat(2000));
    let mut sum = 0;
    for (index, client) in clients.iter_mut().enumerate() {
        let recipients = hold_recipients(client, &name);
        sum += recipients;
        if index < WITHIN && recipients > 0 {
            client.say("DATA", "354 ");
            client.send("a line that waits for the end of its message\r\n".repeat(1300));
            continue;
        }
        let stream = client.stream();
        stream.set_nonblocking(true).unwrap();
        let written = stream.write(if recipients > 0 { &helps } else { &hellos }.as_bytes());
        let good = written.as_ref().map_or_else(|error| error.kind() == ErrorKind::WouldBlock, |&count| count > 0);
        assert!(good, "{written:?}");
    }
    (clients, sum)
}

/// Waits until a server has done all that it can.
fn until_quiet(server: &Server) {
    let (mut ticks, mut since) = (server.ticks(), Instant::now());
    until("the server is done", || {
        let now = server.ticks();
        if now > ticks + 1 {
            (ticks, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_millis(500)
    });
}

#[test]
fn the_worst_that_all_connections_do_stays_within_the_announced_memory() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    if limit.maximum.is_some_and(|maximum| maximum < 2 * CONNECTIONS as u64) {
        return skip("the worst case of memory: too few descriptors may be open here");
    }
    let place = Place::short();
    let path = place.path().join("socket");
    let mut command = mailchute();
    command.args(["--listen", &format!("unix:{}", path.display()), "--maildir"]).arg(place.maildir());
    let server = Server::ready(command);
    let bound = bound(&server);
    let idle = server.memory("VmRSS");
    // Twice, as what the first time leaves behind counts, too.
    for _ in 0..2 {
        let begun = Instant::now();
        let (clients, recipients) = hold_all(&path);
        until_quiet(&server);
        let (memory, most, there) = (server.memory("VmRSS"), server.memory("VmHWM"), descriptors(&server));
        tell(&format!(
            "{there} descriptors, {recipients} recipients, after {:?}: {memory} KiB resident, at most {most}, of which \
             {idle} while idle; announced are {bound} MiB",
            begun.elapsed()
        ));
        // Where this takes long the longest idle ones go, as long as the server is crowded.
        assert!(there > CONNECTIONS * 9 / 10, "many were closed: {there} descriptors");
        assert!(most <= bound * 1024, "{most} KiB, and announced are {bound} MiB");
        assert!(memory * 2 >= bound * 1024, "{memory} KiB: this is not the worst, or the bound is too high");
        drop(clients);
        until("all are gone", || descriptors(&server) < CONNECTIONS / 10);
    }
    assert!(bound <= BOUND_MAX, "{bound} MiB");
    server.stop();
}
