//! Flushes that do not make the event loop wait: Linux's kernel-side AIO (`io_submit(2)`, not POSIX `aio_fsync`).
//!
//! Since Linux 4.18 the kernel runs `fsync` and `fdatasync` in its own workers and tells an eventfd when one ends. This
//! takes no threads of ours, nor io_uring, which many boards lack and many container engines forbid. The structures are
//! those of `linux/aio_abi.h`. All `unsafe` of the crate is in this file, so two small things follow that need some.

use crate::fs::{Disk, Flush, Ticket};
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// Requests handed over, or ends fetched, by one system call.
const BATCH: usize = 64;
const IOCB_CMD_FSYNC: u16 = 2;
const IOCB_CMD_FDSYNC: u16 = 3;
const IOCB_FLAG_RESFD: u32 = 1;

/// A request, as `struct iocb`. What a flush does not have is 0, and has one field here for several.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Iocb {
    data: u64,
    key_and_rw_flags: u64,
    opcode: u16,
    priority: i16,
    file: u32,
    buf_octets_offset_reserved: [u64; 4],
    flags: u32,
    event: u32,
}

/// The end of a request, as `struct io_event`: the request's data, its address, the result, a second result.
type IoEvent = [u64; 4];

/// No field is aligned to more octets than stand before it: as nothing is added between them, each is where it belongs.
const _: () = assert!(size_of::<Iocb>() == 64);

/// What the result of an event says: an error is its number, below 0.
fn result_of(event: i64) -> io::Result<()> {
    let errno = i32::try_from(event.wrapping_neg()).unwrap_or(libc::EIO);
    if errno > 0 { Err(io::Error::from_raw_os_error(errno)) } else { Ok(()) }
}

/// An AIO context with the eventfd it reports to. Once its queues have grown to what is used, nothing is allocated.
/// Dropping it waits until the flushes under way have ended: so does `io_destroy`. Their results are lost.
pub(crate) struct Aio {
    /// `aio_context_t`, as wide as a `long` of the kernel's interface.
    context: libc::c_ulong,
    /// What becomes readable when flushes end, for edge-triggered polling: each end is an edge, so nobody has to read.
    pub(crate) event: OwnedFd,
    /// Requests that the kernel took and whose ends were not fetched.
    in_flight: usize,
    queued: VecDeque<Iocb>,
    /// Ends that are still to be told, among them those of requests that the kernel did not take.
    ended: VecDeque<(Ticket, io::Result<()>)>,
    /// Whether the last call fetched all ends there were.
    drained: bool,
}

impl Aio {
    /// Makes a context with room for `in_flight` flushes, or somewhat more; what is queued beyond waits for its turn.
    /// It fails where the kernel has no AIO, a filter forbids it, or the machine's `fs.aio-max-nr` is used up.
    pub(crate) fn new(in_flight: usize) -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mut context: libc::c_ulong = 0; // or the call refuses it
        // SAFETY: the kernel writes one aio_context_t, as wide as a c_ulong, through the pointer during the call.
        if unsafe { libc::syscall(libc::SYS_io_setup, in_flight.max(1), &raw mut context) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let (queued, ended) = (VecDeque::with_capacity(in_flight), VecDeque::with_capacity(in_flight));
        Ok(Self { context, event, in_flight: 0, queued, ended, drained: false })
    }

    pub(crate) fn queue(&mut self, what: Flush<'_, Disk>, ticket: Ticket) {
        let (opcode, file) = match what {
            Flush::File(file) => (IOCB_CMD_FDSYNC, file.as_raw_fd()),
            Flush::Directory(directory) => (IOCB_CMD_FSYNC, directory.as_raw_fd()),
        };
        // Only its number: were the file closed and the number used again, another one would be flushed in its place.
        let (file, event) = (file as u32, self.event.as_raw_fd() as u32);
        self.queued.push_back(Iocb { data: ticket, opcode, file, flags: IOCB_FLAG_RESFD, event, ..Iocb::default() });
    }

    pub(crate) fn submit(&mut self) -> bool {
        while !self.queued.is_empty() {
            let wanted = self.queued.len().min(BATCH);
            let mut requests = self.queued.iter_mut();
            let mut pointers = [(); BATCH].map(|()| requests.next().map_or(ptr::null_mut(), ptr::from_mut));
            // SAFETY: the first `wanted` (at most BATCH) pointers are those of requests in the queue, which stays as
            // it is during the call and may be written (the kernel sets the key). The kernel copies a request before
            // the call returns and keeps a reference to its file, so neither has to outlive the call. A flush moves
            // no memory of this process, so that even a wrong descriptor can't harm it.
            let taken = unsafe { libc::syscall(libc::SYS_io_submit, self.context, wanted, pointers.as_mut_ptr()) };
            let error = io::Error::last_os_error();
            // The kernel stops at a request that it can't take. The next round begins with it and learns why.
            if let Ok(taken @ 1..) = usize::try_from(taken) {
                self.in_flight += taken;
                self.queued.drain(..taken);
            } else if error.raw_os_error() == Some(libc::EAGAIN) && self.in_flight > 0 {
                // Those under way will make room. Were there none, nothing would ever bring us back here.
                break;
            } else {
                self.ended.extend(self.queued.pop_front().map(|request| (request.data, Err(error))));
            }
        }
        !self.ended.is_empty()
    }

    pub(crate) fn ended(&mut self) -> Option<(Ticket, io::Result<()>)> {
        if self.ended.is_empty() && !std::mem::take(&mut self.drained) {
            let mut events = [IoEvent::default(); BATCH];
            let (least, timeout) = (0 as libc::c_long, ptr::null::<libc::timespec>());
            // SAFETY: the kernel writes at most BATCH events through the pointer, during the call, and `events` has
            // room for them; any octets are a valid IoEvent. As no event is asked for at least, the call does not wait,
            // although the missing timeout means "without end".
            let count = unsafe {
                libc::syscall(libc::SYS_io_getevents, self.context, least, BATCH, events.as_mut_ptr(), timeout)
            };
            let count = usize::try_from(count).unwrap_or(0);
            self.in_flight = self.in_flight.saturating_sub(count);
            self.ended.extend(events.iter().take(count).map(|&[data, _, result, _]| (data, result_of(result as i64))));
            // An end that comes from now on brings an edge of its own.
            self.drained = (1..BATCH).contains(&count);
            self.submit();
        }
        self.ended.pop_front()
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: the context is ours and not used afterwards; no flush under way points to our memory.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

/// What a service manager opened for this process (`sd_listen_fds(3)`): to be asked once, before anything else is open.
pub(crate) fn handed_over() -> impl Iterator<Item = rustix::io::Result<OwnedFd>> {
    let number = |name| crate::config::number::<u32>(&std::env::var(name).ok()?);
    let count = number("LISTEN_FDS").filter(|_| number("LISTEN_PID") == Some(std::process::id()));
    (3..).take(count.unwrap_or(0) as usize).map(|file| {
        // SAFETY: a descriptor that is open was left to us, as these variables say; nobody else here knows its number.
        let (asked, owned) = unsafe { (BorrowedFd::borrow_raw(file), || OwnedFd::from_raw_fd(file)) };
        rustix::io::fcntl_setfd(asked, rustix::io::FdFlags::CLOEXEC).map(|()| owned())
    })
}

/// Has glibc give back the memory that it keeps for itself; what other allocators keep is little.
pub(crate) fn trim_heap() {
    // SAFETY: it locks what it works on, and what is in use stays as it is.
    #[cfg(target_env = "gnu")]
    let _ = unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
#[path = "../tests/unit/sys.rs"]
mod tests;
