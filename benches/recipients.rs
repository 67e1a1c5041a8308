//! Looking recipients up, in tables of 100, 10,000 and 100,000 lines: no slower in a long one but for the caches of the
//! processor, which is why it is asked for recipients all over the table, in no order.
//!
//! Maildirs are not looked at, as in a server that has them open.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use mailchute::Config;
use mailchute::recipients::Recipients;
use mailchute::smtp::address::Path;
use mailchute::smtp::command::LENIENT;

const RECIPIENTS: usize = 4096;

/// Of ten lines, one is an alias of the line before.
fn table(lines: usize) -> String {
    let mut table = "@catchall.example /srv/mail/catchall/\n".to_owned();
    for number in 1..lines {
        let _ = match number % 10 {
            0 => writeln!(table, "alias{number}@example.org user{}@example.org", number - 1),
            _ => writeln!(table, "user{number}@example.org /srv/mail/user{number}/"),
        };
    }
    table
}

fn benchmark(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("recipients");
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800)).sample_size(20);
    let file = std::env::temp_dir().join(format!("mailchute-bench-{}", std::process::id()));
    for lines in [100, 10_000, 100_000] {
        std::fs::write(&file, table(lines)).unwrap();
        let mut recipients = Recipients::load(&Config { recipients: Some(file.clone()), ..Config::default() }).unwrap();
        // Multiples of a prime that divides none of these numbers: every line in turn, far from the one before.
        let ten = |index: usize| index * 7919 % (lines / 10 - 1) * 10 + 10;
        type Ask<'a> = (&'a str, bool, &'a dyn Fn(usize) -> String);
        let asks: [Ask<'_>; 5] = [
            ("present", true, &|index| format!("User{}@example.org", ten(index) - 1)),
            ("tagged", true, &|index| format!("user{}+tag@example.org", ten(index) - 1)),
            ("by alias", true, &|index| format!("alias{}@example.org", ten(index))),
            ("by domain", true, &|index| format!("user{index}@catchall.example")),
            ("absent", false, &|index| format!("nobody{index}@example.org")),
        ];
        let mut take = |destination: &str| {
            black_box(destination);
        };
        for (name, found, address) in asks {
            let addresses: Vec<_> = (0..RECIPIENTS).map(|index| format!("<{}>", address(index))).collect();
            let paths = addresses.iter().map(|it| Path::forward(it, LENIENT).unwrap().0);
            let mut paths = paths.collect::<Vec<_>>().into_iter().cycle();
            group.bench_function(BenchmarkId::new(name, lines), |bencher| {
                bencher.iter(|| {
                    let path = paths.next().unwrap();
                    let answer = recipients.resolve(&path, &mut |_, _| Ok(()), &mut take);
                    assert_eq!(answer.is_ok(), found, "{}", path.as_str());
                });
            });
        }
    }
    let _ = std::fs::remove_file(file);
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    benchmark(&mut criterion);
    criterion.final_summary();
}
