//! Once the memory for it is there, neither a recipient that is looked up nor a message allocates anything.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unsafe_code)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Client, Place, text};
use mailchute::fs::SyncMode;
use mailchute::recipients::Recipients;
use mailchute::smtp::address::Path;
use mailchute::smtp::command::LENIENT;
use mailchute::smtp::reply::Reply;
use mailchute::{Config, EventLoop};

/// The system's allocator, which counts.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u32> = const { Cell::new(0) };
    /// Whether this thread is a server's.
    static SERVES: Cell<bool> = const { Cell::new(false) };
}

/// Those of the server's thread.
static BY_SERVER: AtomicU64 = AtomicU64::new(0);

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    BY_SERVER.fetch_add(SERVES.get().into(), Ordering::SeqCst);
}

// SAFETY: all is done by the system's allocator; counting allocates nothing and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as our caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as our caller promised.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, octets: usize) -> *mut u8 {
        count();
        // SAFETY: as our caller promised.
        unsafe { System.realloc(memory, layout, octets) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u32 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

#[test]
fn looking_up_allocates_nothing_once_warm() {
    assert!(allocations(|| drop(vec![1; 1000])) > 0, "nothing is counted");
    let place = Place::new();
    let file = place.path().join("table");
    let table = "alice@example.org /srv/alice\n@b.example /srv/all, /srv/more\nlist@example.org alice@example.org\n\
                 full@example.org reply 452 4.2.2 Mailbox full\nspam@example.org reject\ntwice@example.org reply 450 x for 1\n";
    std::fs::write(&file, table).unwrap();
    let domains = vec!["example.org".to_owned(), "*.example".to_owned()];
    let config = Config { domains, mailboxes: Some("/srv".into()), recipients: Some(file), ..Config::default() };
    let mut recipients = Recipients::load(&config).unwrap();
    let local_parts = ["ALICE", "alice+tag", "alice+none", "List", "full", "spam+tag", "twice", "bob", "postmaster"];
    let special = ["\"a b/c\"", "\"b\\ob\"", "a%b", "ø", "nobody", "nobody+tag"];
    let local_parts = local_parts.into_iter().chain(special);
    let domains = ["", "@Example.ORG", "@example.org.", "@b.example", "@c.example", "@other.org", "@[192.0.2.1]"];
    let addresses: Vec<_> =
        local_parts.flat_map(|local_part| domains.map(|domain| format!("<{local_part}{domain}>"))).collect();
    let mut found = 0;
    let mut look_all_up = |found: &mut u32| {
        for address in &addresses {
            let (path, _) = Path::forward(address, LENIENT).unwrap();
            let mut exists = |destination: &str, _| match destination.contains("none") || destination.contains("nobody")
            {
                true => Err(Reply::NO_SUCH_MAILBOX),
                false => Ok(()),
            };
            let _ = recipients.resolve(&path, &mut exists, &mut |_| *found += 1);
        }
    };
    look_all_up(&mut found);
    let warm = allocations(|| look_all_up(&mut found));
    assert!(found > 50, "{found}");
    assert_eq!(warm, 0);
}

/// Over one connection, then over one for each. The server logs as the program does by default.
#[test]
fn a_message_allocates_nothing_once_warm() {
    let log = env_logger::Target::Pipe(Box::new(io::sink()));
    env_logger::Builder::new().filter_level(log::LevelFilter::Info).target(log).init();
    for sync in [SyncMode::Journal, SyncMode::Always, SyncMode::Never] {
        let place = Place::new();
        let listen = Some(vec!["127.0.0.1:0".parse().map(mailchute::config::Place::Tcp).unwrap()]);
        let event_loop = EventLoop::start(Config {
            maildir: place.maildir(),
            listen,
            sync,
            journal_octets: 1 << 20,
            ..Config::default()
        })
        .unwrap();
        let (address, stop) = (event_loop.places()[0].clone(), event_loop.stopper());
        let server = std::thread::spawn(move || {
            SERVES.set(true);
            event_loop.run()
        });
        let connect = || {
            let mut client = Client::new(TcpStream::connect(&address).unwrap());
            client.expect("220 ");
            client.say("EHLO c", "250");
            client
        };
        let deliver = |connections: u64, messages: u64| {
            for _ in 0..connections {
                let mut client = connect();
                (0..messages).for_each(|number| drop(client.deliver(&text(number, 1000))));
                client.say("QUIT", "221 ");
                client.ended();
            }
        };
        // A crowd at once, whose lists are longer than all that follow. The date is kept for a second, the disk is asked once a
        // second: no matter.
        deliver(1, 400);
        std::thread::scope(|scope| drop([(); 40].map(|()| scope.spawn(|| deliver(1, 20)))));
        deliver(50, 1);
        assert_eq!(place.maildir().join(".mailchute-journal.0").exists(), sync == SyncMode::Journal);
        let before = BY_SERVER.load(Ordering::SeqCst);
        assert!(before > 0, "nothing is counted");
        deliver(1, 1000);
        let over_one = BY_SERVER.load(Ordering::SeqCst) - before;
        deliver(1000, 1);
        let over_many = BY_SERVER.load(Ordering::SeqCst) - before - over_one;
        assert_eq!((over_one, over_many), (0, 0), "{sync:?}");
        stop().unwrap();
        server.join().unwrap().unwrap();
    }
}
