//! Counts what is freed, so that it can be told how much memory something held.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which counts.
struct Counting;

thread_local! {
    static FREED: Cell<usize> = const { Cell::new(0) };
}

/// The octets that this thread frees meanwhile.
pub fn octets_freed(what: impl FnOnce()) -> usize {
    let before = FREED.get();
    what();
    FREED.get().wrapping_sub(before)
}

// SAFETY: all is done by the system's allocator; counting allocates nothing and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as our caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as our caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        FREED.set(FREED.get().wrapping_add(layout.size()));
        // SAFETY: as our caller promised.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, octets: usize) -> *mut u8 {
        // SAFETY: as our caller promised.
        unsafe { System.realloc(memory, layout, octets) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
