//! What a message costs in the protocol beside its text: commands, replies, ids and names.

use std::hint::black_box;
use std::time::{Duration, SystemTime};

use criterion::{BenchmarkId, Criterion};
use mailchute::smtp::command::Command;
use mailchute::smtp::reply::Reply;
use mailchute::smtp::trace::MessageIds;

/// Lines as people's programs send them, and some that cost most. Their ends are not the parser's.
const COMMANDS: [(&str, &[u8]); 9] = [
    ("EHLO", b"EHLO mail.example.com"),
    ("MAIL", b"MAIL FROM:<sender@example.com>"),
    ("MAIL with parameters", b"MAIL FROM:<sender@example.com> SIZE=12345 BODY=8BITMIME SMTPUTF8"),
    ("RCPT", b"RCPT TO:<user@example.com>"),
    ("RCPT, quoted", b"RCPT TO:<\"a quoted \\\" local part\"@[IPv6:2001:db8::1]>"),
    ("DATA", b"DATA"),
    ("BDAT", b"BDAT 1048576 LAST"),
    ("unknown", b"GET / HTTP/1.1"),
    ("QUIT", b"QUIT"),
];

const REPLIES: [(&str, Reply); 3] =
    [("short", Reply::TIMED_OUT), ("usual", Reply::STORAGE_FAILED), ("long", Reply::UTF8_NOT_ANNOUNCED)];

fn benchmark(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("command");
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800)).sample_size(20);
    for strict in [false, true] {
        let name = if strict { "strict" } else { "lenient" };
        for (verb, line) in COMMANDS {
            group.bench_function(BenchmarkId::new(name, verb), |bencher| {
                bencher.iter(|| Command::parse(black_box(line), strict).is_ok());
            });
        }
    }
    group.finish();

    let mut place = Vec::with_capacity(4096);
    let mut group = criterion.benchmark_group("write");
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800)).sample_size(20);
    for (name, reply) in REPLIES {
        group.bench_function(BenchmarkId::new("reply", name), |bencher| {
            bencher.iter(|| {
                place.clear();
                black_box(reply).write(&mut place);
                black_box(place.len())
            });
        });
    }
    // The unique part of a file's name, which is also in the reply, the log and the `Received` line.
    let (mut ids, now) = (MessageIds::new(0x56f1_065b_4fd9_a960, std::process::id()), SystemTime::now());
    group.bench_function(BenchmarkId::new("Maildir name", "seconds.id"), |bencher| {
        bencher.iter(|| {
            place.clear();
            let id = ids.next(black_box(now));
            place.extend_from_slice(id.unique_name.as_bytes());
        });
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    benchmark(&mut criterion);
    criterion.final_summary();
}
