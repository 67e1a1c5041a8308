//! Looking a recipient up allocates nothing once the memory for it is there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unsafe_code)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::Place;
use mailchute::Config;
use mailchute::recipients::Recipients;
use mailchute::smtp::address::Path;
use mailchute::smtp::command::Syntax;
use mailchute::smtp::reply::Reply;

/// The system's allocator, which counts.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u32> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
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
            let (path, _) = Path::forward(address, Syntax { strict: false }).unwrap();
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
