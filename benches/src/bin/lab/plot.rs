//! Bars as SVG, one picture per mode.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::figures::short;
use crate::judge::{self, BUSY};
use crate::rows::{self, Metric, Row};
use crate::run::{Measured, Report, Table};

const WIDTH: u32 = 1_200;
const COLUMNS: usize = 3;
/// Pixels of one bar with its gap, of a panel's title, of names on the left, of figures on the right.
const BAR: i32 = 19;
const TITLE: i32 = 34;
const NAMES: i32 = 118;
const FIGURES: i32 = 74;
const HEAD: u32 = 30;

const WEIR: RGBColor = RGBColor(0, 114, 178);
const KERNEL: RGBColor = RGBColor(190, 190, 190);
const RIVAL: RGBColor = RGBColor(230, 159, 0);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Writes `MODE.svg` for each mode into `dir`.
pub fn write(report: &Report, dir: &Path) -> Result<()> {
    for table in &report.tables {
        let path = dir.join(format!("{}.svg", table.mode.name()));
        // Its errors borrow the backend.
        draw(report, table, &path).map_err(|error| anyhow!("{}: {error}", path.display()))?;
    }
    Ok(())
}

fn draw(report: &Report, table: &Table, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let panels: Vec<(Row, &Measured)> = table
        .rows
        .iter()
        .filter(|measured| !measured.samples.is_empty())
        .filter_map(|measured| Some((rows::named(&measured.row)?, measured)))
        .collect();
    if panels.is_empty() {
        return Ok(());
    }
    let lines = panels.len().div_ceil(COLUMNS);
    let panel = TITLE + BAR * report.variants.len() as i32 + 12;
    let height = HEAD + lines as u32 * panel as u32;
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let machine = &report.machine;
    let head = format!(
        "{} | {}, {} cores, {} GiB | Linux {} | {} | * the load was the limit",
        table.mode.name(),
        machine.cpu,
        machine.cores,
        machine.memory_gib,
        machine.kernel,
        machine.date
    );
    root.draw(&Text::new(head, (10, 10), ("sans-serif", 16)))?;
    let (_, body) = root.split_vertically(HEAD);
    for ((row, measured), area) in panels.iter().zip(body.split_evenly((lines, COLUMNS))) {
        bars(report, row, measured, &area)?;
    }
    root.present()?;
    Ok(())
}

fn bars(
    report: &Report,
    row: &Row,
    measured: &Measured,
    area: &Area<'_>,
) -> Result<(), Box<dyn std::error::Error>> {
    let (width, _) = area.dim_in_pixel();
    let room = f64::from(width as i32 - NAMES - FIGURES);
    let better = if row.metric.higher_is_better() {
        ""
    } else {
        ", less is better"
    };
    let title = format!("{}, {}{better}", row.what, row.metric.unit());
    area.draw(&Text::new(title, (10, 8), ("sans-serif", 15)))?;
    let most = report
        .variants
        .iter()
        .filter_map(|column| judge::spread(measured, &column.label, |s| s.value))
        .fold(0.0, |most, spread| f64::max(most, spread.high));
    let right = ("sans-serif", 14)
        .into_text_style(area)
        .pos(Pos::new(HPos::Right, VPos::Top));
    for (n, column) in report.variants.iter().enumerate() {
        let Some(spread) = judge::spread(measured, &column.label, |s| s.value) else {
            continue;
        };
        let y = TITLE + BAR * n as i32;
        let x = |value: f64| NAMES + (room * value / most.max(f64::MIN_POSITIVE)) as i32;
        let color = match (column.is_weir, column.is_rival) {
            (true, _) => WEIR,
            (_, true) => RIVAL,
            _ => KERNEL,
        };
        area.draw(&Text::new(
            column.label.clone(),
            (NAMES - 6, y),
            right.clone(),
        ))?;
        let bar = [(NAMES, y), (x(spread.median), y + BAR - 5)];
        area.draw(&Rectangle::new(bar, color.filled()))?;
        let middle = y + (BAR - 5) / 2;
        let whisker = vec![(x(spread.low), middle), (x(spread.high), middle)];
        area.draw(&PathElement::new(whisker, BLACK))?;
        let used = judge::median(measured, &column.label, |s| s.lb_used);
        let rate = matches!(row.metric, Metric::Rate | Metric::Bulk);
        let star = if rate && used.is_some_and(|used| used < BUSY) {
            " *"
        } else {
            ""
        };
        let figure = format!("{}{star}", short(spread.median));
        area.draw(&Text::new(
            figure,
            (x(spread.high) + 5, y),
            ("sans-serif", 14),
        ))?;
    }
    Ok(())
}
