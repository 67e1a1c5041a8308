//! Flushes that do not make the event loop wait: Linux's kernel-side AIO (`io_submit(2)`, not POSIX `aio_fsync`).
//!
//! Since Linux 4.18 the kernel runs `fsync` and `fdatasync` in its own workers and tells an eventfd when one ends. This
//! takes no threads of ours, nor io_uring, which many boards lack and many container engines forbid. The structures are
//! those of `linux/aio_abi.h`. All `unsafe` of the crate is in this file; elsewhere than on Linux it has none.

/// What a flush makes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushKind {
    /// Content, and what is needed to read it back (`fdatasync`).
    Data,
    /// Content and all that describes it; for a directory its names (`fsync`).
    All,
}

// libc knows no io_getevents for riscv32, whose kernel has it with another structure of time only.
#[cfg(all(target_os = "linux", not(target_arch = "riscv32")))]
pub use linux::Flusher;
#[cfg(not(all(target_os = "linux", not(target_arch = "riscv32"))))]
pub use none::Flusher;

#[cfg(all(target_os = "linux", not(target_arch = "riscv32")))]
mod linux {
    use super::FlushKind;
    use rustix::event::{EventfdFlags, eventfd};
    use std::collections::VecDeque;
    use std::io;
    use std::mem::{offset_of, size_of};
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
    use std::ptr;

    /// Requests handed over, or ends fetched, by one system call.
    const BATCH: usize = 64;
    const IOCB_CMD_FSYNC: u16 = 2;
    const IOCB_CMD_FDSYNC: u16 = 3;
    const IOCB_FLAG_RESFD: u32 = 1;

    /// A request, as `struct iocb`. Its pointers are 64 bits wide everywhere, so they are plain numbers here.
    #[derive(Clone, Copy, Default)]
    #[repr(C)]
    struct Iocb {
        data: u64,
        // The only fields whose order depends on the machine.
        #[cfg(target_endian = "little")]
        key: u32,
        rw_flags: u32,
        #[cfg(target_endian = "big")]
        key: u32,
        opcode: u16,
        priority: i16,
        file: u32,
        buf: u64,
        octets: u64,
        offset: i64,
        reserved: u64,
        flags: u32,
        event: u32,
    }

    /// The end of a request, as `struct io_event`.
    #[derive(Clone, Copy, Default)]
    #[repr(C)]
    struct IoEvent {
        data: u64,
        request: u64,
        result: i64,
        result2: i64,
    }

    const _: () = {
        assert!(size_of::<Iocb>() == 64 && size_of::<IoEvent>() == 32);
        assert!(offset_of!(Iocb, key) == if cfg!(target_endian = "little") { 8 } else { 12 });
        assert!(offset_of!(Iocb, opcode) == 16 && offset_of!(Iocb, file) == 20 && offset_of!(Iocb, buf) == 24);
        assert!(offset_of!(Iocb, flags) == 56 && offset_of!(Iocb, event) == 60);
        assert!(offset_of!(IoEvent, data) == 0 && offset_of!(IoEvent, result) == 16);
    };

    /// An AIO context with the eventfd it reports to. Once its queues have grown to what is used, nothing is allocated.
    ///
    /// Dropping it waits until the flushes under way have ended: so does `io_destroy`. Their results are lost.
    pub struct Flusher {
        /// `aio_context_t`, as wide as a `long` of the kernel's interface.
        context: libc::c_ulong,
        event: OwnedFd,
        in_flight: usize,
        in_flight_max: usize,
        queued: VecDeque<Iocb>,
        /// Ends that are still to be told, among them those of requests that the kernel did not take.
        ended: VecDeque<(u64, io::Result<()>)>,
        /// Whether the last call fetched all ends there were.
        drained: bool,
    }

    impl Flusher {
        /// Makes a context for up to `in_flight_max` flushes at a time; what is queued beyond that waits for its turn.
        ///
        /// # Errors
        /// `ENOSYS` or `EPERM` where the kernel has no AIO or a filter forbids it, `EAGAIN` when the machine's
        /// `fs.aio-max-nr` is used up, `ENOMEM`, `EMFILE`, `ENFILE`.
        pub fn new(in_flight_max: usize) -> io::Result<Self> {
            let in_flight_max = in_flight_max.max(1);
            let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let mut context: libc::c_ulong = 0; // or the call refuses it
            // SAFETY: the kernel writes one aio_context_t, as wide as a c_ulong, through the pointer during the call.
            if unsafe { libc::syscall(libc::SYS_io_setup, in_flight_max, &raw mut context) } < 0 {
                return Err(io::Error::last_os_error());
            }
            let (queued, ended) = (VecDeque::new(), VecDeque::new());
            Ok(Self { context, event, in_flight: 0, in_flight_max, queued, ended, drained: false })
        }

        /// What becomes readable when flushes end. Made for edge-triggered polling: each end is an edge of its own, so
        /// nobody has to read from it. Call [`ended`](Self::ended) until it returns `None`, then wait for the next edge.
        pub fn event(&self) -> BorrowedFd<'_> {
            self.event.as_fd()
        }

        /// Queues a flush. Keep `file` open until its end is told: only the number is kept here, and were it closed and
        /// used again before it is submitted, another file would be flushed in its place.
        pub fn queue(&mut self, file: BorrowedFd<'_>, kind: FlushKind, ticket: u64) {
            self.queued.push_back(Iocb {
                data: ticket,
                opcode: if kind == FlushKind::Data { IOCB_CMD_FDSYNC } else { IOCB_CMD_FSYNC },
                file: file.as_raw_fd() as u32,
                flags: IOCB_FLAG_RESFD,
                event: self.event.as_raw_fd() as u32,
                ..Iocb::default()
            });
        }

        /// Hands what is queued to the kernel, as far as the limit allows; the rest follows as others end. Returns
        /// whether ends are there already, as of those that were not taken, which is no event: ask
        /// [`ended`](Self::ended) then.
        pub fn submit(&mut self) -> bool {
            loop {
                let wanted = self.queued.len().min(BATCH).min(self.in_flight_max - self.in_flight);
                if wanted == 0 {
                    return !self.ended.is_empty();
                }
                let mut pointers = [ptr::null_mut::<Iocb>(); BATCH];
                for (pointer, request) in pointers.iter_mut().zip(self.queued.iter_mut().take(wanted)) {
                    *pointer = request;
                }
                // SAFETY: the first `wanted` (at most BATCH) pointers are those of requests in the queue, which stays as
                // it is during the call and may be written (the kernel sets `key`). The kernel copies a request before
                // the call returns and keeps a reference to its file, so neither has to outlive the call. A flush moves
                // no memory of this process, so that even a wrong descriptor can't harm it.
                let taken = unsafe { libc::syscall(libc::SYS_io_submit, self.context, wanted, pointers.as_mut_ptr()) };
                match usize::try_from(taken) {
                    // The kernel stops at a request that it can't take. The next round begins with it and learns why.
                    Ok(taken @ 1..) => {
                        self.in_flight += taken;
                        self.queued.drain(..taken);
                    }
                    _ => {
                        let error = io::Error::last_os_error();
                        // Those under way will make room. Were there none, nothing would ever bring us back here.
                        if error.raw_os_error() == Some(libc::EAGAIN) && self.in_flight > 0 {
                            return !self.ended.is_empty();
                        }
                        self.ended.extend(self.queued.pop_front().map(|request| (request.data, Err(error))));
                    }
                }
            }
        }

        /// The next flush that ended, with its ticket and result; `None` when no other has ended by now.
        pub fn ended(&mut self) -> Option<(u64, io::Result<()>)> {
            loop {
                if let Some(ended) = self.ended.pop_front() {
                    return Some(ended);
                }
                if std::mem::take(&mut self.drained) || !self.reap() {
                    return None;
                }
                self.submit();
            }
        }

        /// Fetches ends; false when there are none.
        fn reap(&mut self) -> bool {
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
            self.ended.extend(events.iter().take(count).map(|event| (event.data, result_of(event.result))));
            // An end that comes from now on brings an edge of its own.
            self.drained = (1..BATCH).contains(&count);
            count > 0
        }
    }

    /// What the result of an event says: an error is its number, below 0.
    pub(super) fn result_of(event: i64) -> io::Result<()> {
        let errno = i32::try_from(event.wrapping_neg()).unwrap_or(libc::EIO);
        if errno > 0 { Err(io::Error::from_raw_os_error(errno)) } else { Ok(()) }
    }

    impl Drop for Flusher {
        fn drop(&mut self) {
            // SAFETY: the context is ours and not used afterwards; no flush under way points to our memory.
            unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
        }
    }
}

/// The same names where there is nothing to call. No value of this `Flusher` can be made.
#[cfg(not(all(target_os = "linux", not(target_arch = "riscv32"))))]
mod none {
    use super::FlushKind;
    use std::io;
    use std::os::fd::BorrowedFd;

    pub enum Flusher {}

    impl Flusher {
        pub fn new(_: usize) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }
        pub fn event(&self) -> BorrowedFd<'_> {
            match *self {}
        }
        pub fn queue(&mut self, _: BorrowedFd<'_>, _: FlushKind, _: u64) {
            match *self {}
        }
        pub fn submit(&mut self) -> bool {
            match *self {}
        }
        pub fn ended(&mut self) -> Option<(u64, io::Result<()>)> {
            match *self {}
        }
    }
}

#[cfg(test)]
#[path = "../tests/unit/sys.rs"]
mod tests;
