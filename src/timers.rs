//! Deadlines of connections: a wheel of slots, each a list that is linked through the connections' own keys.
//!
//! Arming, moving and cancelling cost a few loads and stores, whatever the number of connections, and nothing is
//! allocated once the table of links has grown to the most connections there were. A slot's turn is a hint: whoever
//! finds that the deadline has moved on arms the key again, so that activity on a connection costs nothing here.

use std::time::{Duration, Instant};

/// How exact the wheel is.
const TICK: Duration = Duration::from_millis(250);

/// Slots of the wheel: with [`TICK`] about two minutes. A deadline further away is looked at once a round.
const SLOTS: usize = 512;

/// No key.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    /// The slot that the key is in, or [`NONE`].
    slot: u32,
    previous: u32,
    next: u32,
}

/// The wheel.
#[derive(Debug)]
pub struct Timers {
    start: Instant,
    /// Ticks whose slots were emptied.
    done: u64,
    heads: [u32; SLOTS],
    links: Vec<Link>,
    armed: usize,
    /// No slot before that of this tick is in use.
    soonest: u64,
}

impl Timers {
    /// An empty wheel that begins to turn at `start`.
    pub const fn new(start: Instant) -> Self {
        Self { start, done: 0, heads: [NONE; SLOTS], links: Vec::new(), armed: 0, soonest: u64::MAX }
    }

    /// Has `key` looked at when `deadline` has passed, and at most a quarter of a second later.
    pub fn arm(&mut self, key: usize, deadline: Instant) {
        self.cancel(key);
        if self.links.len() <= key {
            self.links.resize(key + 1, Link { slot: NONE, previous: NONE, next: NONE });
        }
        let last = self.done + SLOTS as u64 - 1;
        let tick = (self.tick(deadline) + 1).clamp(self.done + 1, last);
        let slot = (tick % SLOTS as u64) as usize;
        let (Some(head), Ok(name)) = (self.heads.get_mut(slot), u32::try_from(key)) else { return };
        let next = std::mem::replace(head, name);
        if let Some(link) = self.links.get_mut(key) {
            *link = Link { slot: slot as u32, previous: NONE, next };
        }
        if let Some(link) = self.links.get_mut(next as usize) {
            link.previous = name;
        }
        self.armed += 1;
        self.soonest = self.soonest.min(tick);
    }

    /// Forgets `key`.
    pub fn cancel(&mut self, key: usize) {
        let Some(link) = self.links.get_mut(key) else { return };
        let Link { slot, previous, next } = std::mem::replace(link, Link { slot: NONE, previous: NONE, next: NONE });
        if slot == NONE {
            return;
        }
        self.armed -= 1;
        if let Some(link) = self.links.get_mut(previous as usize) {
            link.next = next;
        } else if let Some(head) = self.heads.get_mut(slot as usize) {
            *head = next;
        }
        if let Some(link) = self.links.get_mut(next as usize) {
            link.previous = previous;
        }
    }

    /// The next key whose slot has passed by `now`; it is armed no more.
    pub fn expired(&mut self, now: Instant) -> Option<usize> {
        let current = self.tick(now);
        while self.armed > 0 && self.done < current {
            let slot = ((self.done + 1) % SLOTS as u64) as usize;
            match self.heads.get(slot) {
                Some(&key) if key != NONE => {
                    self.cancel(key as usize);
                    return Some(key as usize);
                }
                _ => self.done += 1,
            }
        }
        self.done = self.done.max(current);
        if self.soonest <= current {
            let in_use = |tick: &u64| self.heads.get((tick % SLOTS as u64) as usize).is_some_and(|&head| head != NONE);
            self.soonest = (self.done + 1..=self.done + SLOTS as u64).find(in_use).unwrap_or(u64::MAX);
        }
        None
    }

    /// How long from `now` until [`expired`](Self::expired) may find a key; `None` when none is armed.
    pub fn next(&self, now: Instant) -> Option<Duration> {
        if self.armed == 0 {
            return None;
        }
        let ticks = u32::try_from(self.soonest).unwrap_or(u32::MAX);
        Some((self.start + TICK * ticks).saturating_duration_since(now))
    }

    fn tick(&self, instant: Instant) -> u64 {
        let passed = instant.saturating_duration_since(self.start);
        u64::try_from(passed.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX)
    }
}
