//! The deadlines.

use std::time::{Duration, Instant};

use mailchute::timers::Timers;

#[test]
fn keys_expire_in_order_and_not_early() {
    let start = Instant::now();
    let mut timers = Timers::default();
    let at = |milliseconds| start + Duration::from_millis(milliseconds);
    timers.arm(0, at(5_000));
    timers.arm(1, at(1_000));
    timers.arm(2, at(1_000));
    timers.cancel(2);
    timers.arm(3, at(1_000_000));
    assert_eq!(timers.expired(at(999)), None);
    assert!(timers.next(at(999)).is_some_and(|wait| wait <= Duration::from_millis(500)));
    assert_eq!(timers.expired(at(1_500)), Some(1));
    assert_eq!(timers.expired(at(1_500)), None);
    assert_eq!(timers.expired(at(5_500)), Some(0));
    assert_eq!(timers.expired(at(5_500)), None);
    assert_eq!(timers.expired(at(900_000)), None);
    assert_eq!(timers.expired(at(1_000_500)), Some(3));
    assert_eq!(timers.expired(at(1_000_500)), None);
    assert_eq!(timers.next(at(1_000_500)), None);
}
