//! The DATA decoder in octets a second, beside its reference and beside a search that stores nothing.
//!
//! Lines of one length are what base64 has; `mixed` is 0 to 151 octets, as written by hand. Read in packets of one TCP
//! segment or of one read buffer.

#[path = "../tests/data/reference.rs"]
#[allow(dead_code, reason = "the tests ask more of it")]
mod reference;

use criterion::{BenchmarkId, Criterion, Throughput};
use mailchute::smtp::data::{DataDecoder, Framing, LineEnd};
use memchr::memmem;
use reference::Reference;
use std::hint::black_box;
use std::time::Duration;

const MESSAGE_OCTETS: usize = 64 * 1024;
const TERMINATOR: &[u8] = b"\r\n.\r\n";

/// Data whose `dots`-th lines begin with a stuffed dot, if not 0.
fn data(mut length: impl FnMut() -> usize, dots: usize) -> Vec<u8> {
    let mut data = Vec::new();
    for line in 1.. {
        let length = length();
        if data.len() + length + 2 + TERMINATOR.len() > MESSAGE_OCTETS {
            break;
        }
        let end = data.len() + length;
        if dots != 0 && line % dots == 0 {
            data.extend_from_slice(b"..");
        }
        data.resize(end.max(data.len()), b'a');
        data.extend_from_slice(b"\r\n");
    }
    data.truncate(data.len() - 2);
    data.extend_from_slice(TERMINATOR);
    data
}

fn decode(data: &[u8], packet: usize, line_end: LineEnd, content: &mut Vec<u8>) -> bool {
    content.clear();
    let mut decoder = DataDecoder::new(Framing::Dot, line_end, false);
    let mut ended = false;
    for input in data.chunks(packet) {
        (.., ended) = decoder.decode(input, &mut |run: &[u8]| content.extend_from_slice(run));
    }
    assert!(ended);
    ended
}

fn benchmark(criterion: &mut Criterion) {
    let mut random = 0x9e37_79b9_u32;
    let mut mixed = move || {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        (random % 152) as usize
    };
    let mut inputs = Vec::new();
    for (dots, dots_name) in [(0, "no dots"), (10, "dot every 10th"), (1, "dots")] {
        for length in [10, 76, 998] {
            inputs.push((format!("{length}, {dots_name}"), data(|| length, dots)));
        }
        inputs.push((format!("mixed, {dots_name}"), data(&mut mixed, dots)));
    }

    let mut content = Vec::with_capacity(2 * MESSAGE_OCTETS);
    let terminator = memmem::Finder::new(TERMINATOR);
    let mut group = criterion.benchmark_group("data");
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800)).sample_size(20);
    for (name, data) in &inputs {
        group.throughput(Throughput::Bytes(data.len() as u64));
        for packet in [1460, MESSAGE_OCTETS] {
            for (line_end, end_name) in [(LineEnd::Lf, "LF"), (LineEnd::Crlf, "CRLF")] {
                group.bench_function(BenchmarkId::new(format!("decoder, {end_name}, {packet}"), name), |bencher| {
                    bencher.iter(|| decode(black_box(data), packet, line_end, &mut content));
                });
            }
        }
        group.bench_function(BenchmarkId::new("reference, LF", name), |bencher| {
            bencher.iter(|| {
                let mut reference = Reference::new(Framing::Dot, LineEnd::Lf, false);
                reference.stored = std::mem::take(&mut content);
                reference.stored.clear();
                reference.decode(black_box(data));
                assert!(reference.ended);
                content = reference.stored;
            });
        });
        group.bench_function(BenchmarkId::new("memmem", name), |bencher| {
            bencher.iter(|| terminator.find(black_box(data)));
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    benchmark(&mut criterion);
    criterion.final_summary();
}
