//! Servers as processes of their own, and what they cost.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::load::read_reply;

/// A server that is killed when it is dropped.
pub struct Server {
    child: Child,
    /// From its start to its first greeting.
    pub start: Duration,
}

impl Server {
    /// Starts it and waits for its greeting.
    ///
    /// # Errors
    /// A program that can't be run, ends at once, or does not greet within a quarter of a minute.
    pub fn start(command: &mut Command, address: SocketAddr) -> Result<Self, String> {
        let begun = Instant::now();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| format!("{}: {error}", command.get_program().to_string_lossy()))?;
        let mut server = Self { child, start: Duration::ZERO };
        loop {
            if let Ok(mut stream) = TcpStream::connect(address) {
                let _ = stream.set_read_timeout(Some(Duration::from_secs(15)));
                read_reply(&mut stream).map_err(|error| format!("no greeting: {error}"))?;
                server.start = begun.elapsed();
                return Ok(server);
            }
            if let Ok(Some(status)) = server.child.try_wait() {
                return Err(format!("ended at once: {status}"));
            }
            if begun.elapsed() > Duration::from_secs(15) {
                return Err("does not listen".to_owned());
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(mut self) {
        if let Some(id) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address of this machine that nobody listens on.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

/// How long a process was on the processor, with all its threads.
pub fn processor_time(process: u32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    // To the nanosecond, but without the threads that ended.
    let nanos = threads.flatten().filter_map(|thread| {
        let times = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        times.split(' ').next()?.parse::<u64>().ok()
    });
    // With them, but in hundredths of a second.
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, behind_name) = stat.rsplit_once(") ")?;
    let ticks = behind_name.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok());
    Some(Duration::from_nanos(nanos.sum()).max(Duration::from_millis(ticks.sum::<u64>() * 10)))
}

/// Memory of a process that is resident, in KiB.
pub fn resident_kib(process: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
    rollup.lines().find_map(|line| line.strip_prefix("Rss:")?.trim().strip_suffix(" kB")?.parse().ok())
}

/// Has this process and those it starts open as many files as they may.
pub fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    // Root may go beyond.
    for wanted in [Some(65_536), maximum] {
        let maximum = wanted.max(maximum);
        if setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok() {
            return;
        }
    }
}
