//! Plots as SVG, as few lines as do.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::compare::Outcome;

/// Writes a plot of first tokens at each load, and of each figure over the loads.
pub fn write(folder: &Path, outcomes: &[Outcome]) -> Result<()> {
    let loaded: Vec<_> = outcomes.iter().filter_map(|of| Some((of.load?, of))).collect();
    std::fs::create_dir_all(folder)?;
    for (load, outcome) in &loaded {
        let chart = Chart {
            title: format!("Time to first token at x{load}"),
            x: "ms",
            y: "% of requests",
            is_log: true,
            series: outcome
                .reports
                .iter()
                .map(|(name, report)| {
                    let point = |per_cent| (report.ttft.percentile_ms(per_cent), per_cent as f64);
                    (*name, (1..=99).map(point).collect())
                })
                .collect(),
        };
        chart.write(&folder.join(format!("ttft-x{load}.svg")))?;
    }
    for (file, title, y, figure) in FIGURES {
        let chart = Chart {
            title: title.into(),
            x: "load",
            y,
            is_log: true,
            series: over(&loaded, figure),
        };
        chart.write(&folder.join(file))?;
    }
    println!("plots written: {}", folder.display());
    Ok(())
}

type Figure = fn(&crate::compare::Figures) -> f64;

const FIGURES: [(&str, &str, &str, Figure); 3] = [
    ("reuse.svg", "Prompt tokens found in a cache", "%", |of| of.reuse),
    ("ttft-mean.svg", "Mean time to first token", "ms", |of| of.ttft_mean),
    ("tpot-p99.svg", "Time per token, p99", "ms", |of| of.tpot_p99),
];

type Series = (&'static str, Vec<(f64, f64)>);

fn over(loaded: &[(f64, &Outcome)], figure: Figure) -> Vec<Series> {
    let mut series: Vec<Series> = Vec::new();
    for (load, outcome) in loaded {
        for (name, figures) in outcome.figures() {
            let point = (*load, figure(&figures));
            match series.iter_mut().find(|(of, _)| *of == name) {
                Some((_, points)) => points.push(point),
                None => series.push((name, vec![point])),
            }
        }
    }
    series
}

struct Chart {
    title: String,
    x: &'static str,
    y: &'static str,
    /// Whether x grows by factors.
    is_log: bool,
    series: Vec<Series>,
}

impl Chart {
    fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.svg()?).with_context(|| path.display().to_string())
    }

    fn svg(&self) -> Result<String> {
        let points = || self.series.iter().flat_map(|(_, points)| points);
        let low = points().map(|(x, _)| *x).fold(f64::INFINITY, f64::min);
        let high = points().map(|(x, _)| *x).fold(0.0, f64::max);
        let top = round_up(points().map(|(_, y)| *y).fold(0.0, f64::max));
        let scale = |x: f64| if self.is_log { x.ln() } else { x };
        let at_x = |x: f64| LEFT + (scale(x) - scale(low)) / (scale(high) - scale(low)) * WIDTH;
        let at_y = |y: f64| TOP + HEIGHT - y / top * HEIGHT;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 400\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"720\" height=\"400\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"20\" font-size=\"15\">{}</text>\n",
            self.title
        );
        for step in 0..=4 {
            let y = top * f64::from(step) / 4.0;
            let (at, right) = (at_y(y), LEFT + WIDTH);
            writeln!(svg, "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#ddd\"/>")?;
            writeln!(
                svg,
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{y}</text>",
                LEFT - 6.0,
                at + 4.0
            )?;
        }
        for x in ticks(low, high) {
            let at = at_x(x);
            writeln!(svg, "<text x=\"{at:.1}\" y=\"372\" text-anchor=\"middle\">{x}</text>")?;
        }
        writeln!(
            svg,
            "<text x=\"{}\" y=\"390\" text-anchor=\"middle\">{}</text>",
            LEFT + WIDTH / 2.0,
            self.x
        )?;
        writeln!(svg, "<text x=\"{}\" y=\"34\" text-anchor=\"end\">{}</text>", LEFT - 6.0, self.y)?;
        for (number, ((name, points), color)) in self.series.iter().zip(COLORS).enumerate() {
            let width = if number == 0 { 3 } else { 1 };
            let line: Vec<_> =
                points.iter().map(|(x, y)| format!("{:.1},{:.1}", at_x(*x), at_y(*y))).collect();
            let line = line.join(" ");
            writeln!(
                svg,
                "<polyline points=\"{line}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{width}\"/>"
            )?;
            let (x, y) = (LEFT + WIDTH + 12.0, TOP + 14.0 + 18.0 * number as f64);
            writeln!(svg, "<text x=\"{x}\" y=\"{y}\" fill=\"{color}\">{name}</text>")?;
        }
        svg.push_str("</svg>\n");
        Ok(svg)
    }
}

/// Returns the numbers 1, 2 and 5 times a power of ten from `low` to `high`.
fn ticks(low: f64, high: f64) -> impl Iterator<Item = f64> {
    let all = (-3..9).flat_map(|power| [1.0, 2.0, 5.0, 4.0].map(|times| times * 10f64.powi(power)));
    // A four only beside a one and a two, as loads go.
    all.filter(move |tick| (low..=high).contains(tick))
        .filter(move |tick| high <= 4.0 || (tick / 4.0).log10().fract() != 0.0)
}

fn round_up(value: f64) -> f64 {
    let unit = 10f64.powf(value.max(1e-9).log10().floor());
    [1.0, 2.0, 4.0, 8.0, 10.0]
        .map(|times| times * unit)
        .into_iter()
        .find(|top| *top >= value)
        .unwrap_or(value)
}

const LEFT: f64 = 60.0;
const TOP: f64 = 44.0;
const WIDTH: f64 = 500.0;
const HEIGHT: f64 = 310.0;
const COLORS: [&str; 8] =
    ["#0060c0", "#909090", "#c0c000", "#c06000", "#008040", "#60c0ff", "#e00060", "#8000c0"];
