//! The rows, as people and as programs read them.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
}

/// What is measured, in which unit, and which way is better.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    name: &'static str,
    unit: &'static str,
    better: &'static str,
}

impl Metric {
    pub const fn lower(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, better: "lower" }
    }

    pub const fn higher(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, better: "higher" }
    }
}

struct Row {
    workload: String,
    metric: Metric,
    ours: f64,
    peer: Option<(&'static str, f64)>,
    /// The ratio to the peer that is aimed at, or a figure of our own where there is no peer.
    target: Option<f64>,
}

impl Row {
    /// Tells whether what is aimed at was reached, if anything is.
    fn is_met(&self) -> Option<bool> {
        let figure = self.ours / self.peer.map_or(1.0, |(_, peer)| peer);
        let is_lower = self.metric.better == "lower";
        self.target.map(|target| if is_lower { figure <= target } else { figure >= target })
    }
}

impl Table {
    pub fn row(
        &mut self,
        workload: &str,
        metric: Metric,
        ours: f64,
        peer: Option<(&'static str, f64)>,
        target: Option<f64>,
    ) {
        self.rows.push(Row { workload: workload.to_owned(), metric, ours, peer, target });
    }

    pub fn print(&self) {
        println!(
            "{:<32} {:<30} {:>10} {:>10} {:<20} {:>6} {:>6}",
            "workload", "metric", "ours", "peer", "", "ratio", "target"
        );
        for row in &self.rows {
            let (name, peer) = row.peer.map_or(("", String::new()), |(name, v)| (name, figure(v)));
            let ratio =
                row.peer.map_or(String::new(), |(_, peer)| format!("{:.2}", row.ours / peer));
            let bound = if row.metric.better == "lower" { "<=" } else { ">=" };
            let target = row.target.map_or(String::new(), |target| format!("{bound} {target}"));
            let verdict = row.is_met().map_or("", |is_met| if is_met { "met" } else { "MISSED" });
            let metric = format!("{} [{}]", row.metric.name, row.metric.unit);
            let ours = figure(row.ours);
            let line = format!(
                "{:<32} {metric:<30} {ours:>10} {peer:>10} {name:<20} {ratio:>6} {target:>6}",
                row.workload
            );
            println!("{}", format!("{line} {verdict}").trim_end());
        }
    }

    pub fn write(&self, path: &str) -> Result<()> {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "workload": row.workload, "metric": row.metric.name, "unit": row.metric.unit,
                    "better": row.metric.better, "ours": row.ours,
                    "peer": row.peer.map(|(_, v)| v), "peer_name": row.peer.map(|(name, _)| name),
                    "target": row.target,
                })
            })
            .collect();
        if let Some(folder) = Path::new(path).parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, serde_json::to_string_pretty(&rows)?)?;
        println!("written: {path}");
        Ok(())
    }
}

fn figure(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}
