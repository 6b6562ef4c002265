//! Keeps the results in the documentation: as JSON, as a picture, and as text in benchmarks.md.

use std::path::Path;

use anyhow::{Context, anyhow};
use plotters::prelude::*;

use super::pods::WAYS;
use super::report::BenchReport;
use super::rounds::Rate;

/// Around the text in benchmarks.md that is replaced.
const BEGIN: &str = "<!-- cargo xtask bench begins -->\n";
const END: &str = "<!-- cargo xtask bench ends -->\n";
/// A bar each, in the order of [`WAYS`].
const COLOURS: [RGBColor; WAYS.len()] = [
    RGBColor(0x9a, 0xa0, 0xa6),
    RGBColor(0xc6, 0xca, 0xcf),
    RGBColor(0xe3, 0x74, 0x00),
    RGBColor(0xf6, 0xb2, 0x6b),
    RGBColor(0x1a, 0x73, 0xe8),
];

pub fn write(docs: &Path, report: &BenchReport) -> anyhow::Result<()> {
    let page = docs.join("benchmarks.md");
    let text = std::fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    let results = format!("![Rates as a part of direct loopback](benchmarks.svg)\n\n```text\n{report}```\n");
    std::fs::write(&page, replaced(&text, &results)?)?;
    std::fs::write(docs.join("benchmarks.json"), serde_json::to_string_pretty(report)? + "\n")?;
    plot(&docs.join("benchmarks.svg"), &report.rates)
}

/// The text with what is between the marks replaced.
fn replaced(text: &str, by: &str) -> anyhow::Result<String> {
    let (before, rest) = text.split_once(BEGIN).context("benchmarks.md has no mark where results begin")?;
    let (_, after) = rest.split_once(END).context("benchmarks.md has no mark where results end")?;
    Ok(format!("{before}{BEGIN}{by}{END}{after}"))
}

/// Groups of bars: each rate, each way, as a part of the direct one.
fn plot(file: &Path, rates: &[Rate]) -> anyhow::Result<()> {
    let failed = |error: &dyn std::fmt::Display| anyhow!("{}: {error}", file.display());
    let area = SVGBackend::new(file, (960, 420)).into_drawing_area();
    area.fill(&WHITE).map_err(|error| failed(&error))?;
    // A group takes a unit of the axis; between two groups a bar is left out.
    let bar = 1.0 / (WAYS.len() + 1) as f64;
    let highest =
        rates.iter().flat_map(|rate| &rate.ways).map(|way| way.of_direct.median).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..rates.len() as f64, 0.0..highest * 1.25)
        .map_err(|error| failed(&error))?;
    let name = |at: &f64| rates.get(*at as usize).map_or("", |rate| rate.name).to_owned();
    chart
        .configure_mesh()
        .disable_x_mesh()
        .y_desc("of direct loopback")
        .x_labels(rates.len())
        .x_label_offset(70)
        .x_label_formatter(&name)
        .draw()
        .map_err(|error| failed(&error))?;
    for (place, (way, colour)) in WAYS.into_iter().zip(COLOURS).enumerate() {
        let rectangle = |(group, rate): (usize, &Rate)| {
            let left = group as f64 + bar * (place as f64 + 0.5);
            Rectangle::new([(left, 0.0), (left + bar, rate.by(way).of_direct.median)], colour.filled())
        };
        chart
            .draw_series(rates.iter().enumerate().map(rectangle))
            .map_err(|error| failed(&error))?
            .label(way.label())
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .draw()
        .map_err(|error| failed(&error))?;
    area.present().map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let text = format!("a\n{BEGIN}old\n{END}b\n");
        assert_eq!(replaced(&text, "new\n").unwrap(), format!("a\n{BEGIN}new\n{END}b\n"));
        assert!(replaced("a\n", "new\n").is_err());
    }
}
