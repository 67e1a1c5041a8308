//! Deadlines of connections: one for each key.
//!
//! Arming and cancelling cost a store, and nothing is allocated once there is a place for the most connections there
//! were. When the soonest deadline has passed, all are looked at: at most four times a second, and for ten thousand
//! connections that is 160 KB. A key that expires is a hint: whoever finds that the deadline has moved on arms it again,
//! so that activity on a connection costs nothing here.

use std::time::{Duration, Instant};

/// How long looks are apart at least, so how exact deadlines are.
const TICK: Duration = Duration::from_millis(250);

/// The deadlines.
#[derive(Debug, Default)]
pub struct Timers {
    deadlines: Vec<Option<Instant>>,
    /// When all are looked at.
    look: Option<Instant>,
    /// The key that a look which found one goes on with.
    next_key: usize,
}

impl Timers {
    /// Has `key` looked at when `deadline` has passed, and at most a quarter of a second later.
    pub fn arm(&mut self, key: usize, deadline: Instant) {
        if self.deadlines.len() <= key {
            self.deadlines.resize(key + 1, None);
        }
        self.deadlines[key] = Some(deadline);
        self.look = Some(self.look.map_or(deadline, |look| look.min(deadline)));
    }

    /// Forgets `key`.
    pub fn cancel(&mut self, key: usize) {
        if let Some(deadline) = self.deadlines.get_mut(key) {
            *deadline = None;
        }
    }

    /// The next key whose deadline has passed by `now`; it is armed no more. To be asked until there is none.
    pub fn expired(&mut self, now: Instant) -> Option<usize> {
        if self.look.is_none_or(|look| look > now) {
            return None;
        }
        while let Some(deadline) = self.deadlines.get_mut(self.next_key) {
            self.next_key += 1;
            if deadline.take_if(|deadline| *deadline <= now).is_some() {
                return Some(self.next_key - 1);
            }
        }
        self.next_key = 0;
        self.look = self.deadlines.iter().flatten().min().map(|&soonest| soonest.max(now + TICK));
        None
    }

    /// How long from `now` until [`expired`](Self::expired) may find a key; `None` when there is none.
    pub fn next(&self, now: Instant) -> Option<Duration> {
        self.look.map(|look| look.saturating_duration_since(now))
    }
}
