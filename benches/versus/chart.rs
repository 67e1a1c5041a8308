//! The main figures as bars.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use crate::report::Results;
use crate::scenario::{
    Disk, KIB, Kind, MEGABYTES, MIB, MICROS, NEW_CONNECTIONS, RATE, Scenario, kept, large, pipelined,
};
use crate::servers::Server;

const PANELS: [(Disk, Kind, usize); 12] = [
    (Disk::Tmpfs, kept(1), RATE),
    (Disk::Tmpfs, kept(10), RATE),
    (Disk::Tmpfs, kept(100), RATE),
    (Disk::Tmpfs, kept(10), MICROS),
    (Disk::Tmpfs, pipelined(10), RATE),
    (Disk::Tmpfs, pipelined(10), MICROS),
    (Disk::Tmpfs, NEW_CONNECTIONS, RATE),
    (Disk::Tmpfs, large(10, 100 * KIB), MEGABYTES),
    (Disk::Tmpfs, large(2, 10 * MIB), MEGABYTES),
    (Disk::Journal, kept(10), RATE),
    (Disk::Journal, kept(100), RATE),
    (Disk::Tmpfs, Kind::Idle(10_000), 0),
];
const COLUMNS: usize = 2;
const WIDTH: u32 = 560;
const HEIGHT: u32 = 260;

/// Draws one panel for each of these that was measured.
pub fn draw(results: &Results, path: &Path) -> Result<(), Box<dyn Error>> {
    let measured: Vec<_> =
        PANELS.into_iter().filter(|&(disk, kind, _)| results.scenarios.contains(&Scenario { disk, kind })).collect();
    let rows = measured.len().div_ceil(COLUMNS).max(1);
    let root = SVGBackend::new(path, (WIDTH * COLUMNS as u32, HEIGHT * rows as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, (disk, kind, column)) in root.split_evenly((rows, COLUMNS)).iter().zip(measured) {
        panel(area, results, Scenario { disk, kind }, column)?;
    }
    root.present()?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// A bar for each server that was measured, with its median and a line from the least to the most.
fn panel(area: &Area<'_>, results: &Results, scenario: Scenario, column: usize) -> Result<(), Box<dyn Error>> {
    let columns = scenario.columns();
    let (name, places) = (columns[column].name, columns[column].decimals);
    let index = results.scenarios.iter().position(|it| *it == scenario).unwrap_or_default();
    let bars: Vec<(usize, f64)> = results
        .servers
        .iter()
        .enumerate()
        .map(|(number, server)| (number, results.median(scenario.disk, scenario.kind, *server, column)))
        .filter(|(_, value)| value.is_finite())
        .collect();
    let most = bars.iter().map(|&(number, _)| results.range(index, number, column).1).fold(f64::MIN_POSITIVE, f64::max);
    let caption = format!("{name} – {}", scenario.title());
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 14))
        .margin(8)
        // Left of 0 stand the names, right of the longest bar its figure.
        .build_cartesian_2d(-0.4 * most..1.2 * most, bars.len() as f64..0.0)?;
    for (row, &(number, value)) in bars.iter().enumerate() {
        let server = results.servers[number];
        let color = match server {
            _ if server.is_ours() => RGBColor(0x1f, 0x77, 0xb4),
            Server::Floor => RGBColor(0x99, 0x99, 0x99),
            _ => RGBColor(0xe0, 0x9f, 0x5e),
        };
        let (top, middle) = (row as f64, row as f64 + 0.45);
        chart.draw_series([Rectangle::new([(0.0, top + 0.1), (value, top + 0.8)], color.filled())])?;
        let (least, most_here) = results.range(index, number, column);
        chart.draw_series([PathElement::new([(least, middle), (most_here, middle)], BLACK)])?;
        let style = ("sans-serif", 12).into_font().color(&BLACK);
        chart.draw_series([Text::new(server.name(), (-0.39 * most, top + 0.2), style.clone())])?;
        let value = format!("{value:.places$}");
        chart.draw_series([Text::new(value, (most_here + 0.02 * most, top + 0.2), style)])?;
    }
    Ok(())
}
