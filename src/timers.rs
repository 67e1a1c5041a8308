//! Deadlines of connections: one number for each key.
//!
//! Arming and cancelling cost a store, and nothing is allocated once there is a place for the most connections there
//! were. When the soonest deadline has passed, all are looked at: at most four times a second, and for ten thousand
//! connections that is 40 KB. A key that expires is a hint: whoever finds that the deadline has moved on arms it again,
//! so that activity on a connection costs nothing here.

use std::time::{Duration, Instant};

/// How exact deadlines are.
const TICK: Duration = Duration::from_millis(250);
/// The tick that never comes.
const NEVER: u32 = u32::MAX;

/// The deadlines.
#[derive(Debug)]
pub struct Timers {
    start: Instant,
    /// The tick by which each key's deadline has passed.
    ticks: Vec<u32>,
    /// No tick of a key is before this one.
    soonest: u32,
    /// The key that a look which found one goes on with.
    next_key: usize,
}

impl Timers {
    /// No deadlines; all that will be are after `start`.
    pub const fn new(start: Instant) -> Self {
        Self { start, ticks: Vec::new(), soonest: NEVER, next_key: 0 }
    }

    /// Has `key` looked at when `deadline` has passed, and at most a quarter of a second later.
    pub fn arm(&mut self, key: usize, deadline: Instant) {
        if self.ticks.len() <= key {
            self.ticks.resize(key + 1, NEVER);
        }
        let tick = self.tick(deadline).saturating_add(1);
        self.ticks[key] = tick;
        self.soonest = self.soonest.min(tick);
    }

    /// Forgets `key`.
    pub fn cancel(&mut self, key: usize) {
        if let Some(tick) = self.ticks.get_mut(key) {
            *tick = NEVER;
        }
    }

    /// The next key whose deadline has passed by `now`; it is armed no more. To be asked until there is none.
    pub fn expired(&mut self, now: Instant) -> Option<usize> {
        let current = self.tick(now);
        if self.soonest > current {
            return None;
        }
        while let Some(tick) = self.ticks.get_mut(self.next_key) {
            self.next_key += 1;
            if *tick <= current {
                *tick = NEVER;
                return Some(self.next_key - 1);
            }
        }
        self.next_key = 0;
        self.soonest = self.ticks.iter().copied().min().unwrap_or(NEVER);
        None
    }

    /// How long from `now` until [`expired`](Self::expired) may find a key; `None` when there is none.
    pub fn next(&self, now: Instant) -> Option<Duration> {
        (self.soonest < NEVER).then(|| (self.start + TICK * self.soonest).saturating_duration_since(now))
    }

    fn tick(&self, instant: Instant) -> u32 {
        let passed = instant.saturating_duration_since(self.start).as_millis() / TICK.as_millis();
        u32::try_from(passed).unwrap_or(NEVER)
    }
}
