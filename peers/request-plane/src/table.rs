//! The rows, as people and as programs read them.

use anyhow::Result;
use serde_json::{Value, json};

#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
}

struct Row {
    workload: String,
    metric: &'static str,
    unit: &'static str,
    better: &'static str,
    ours: f64,
    peer: Option<(&'static str, f64)>,
    /// The ratio to the peer that is aimed at, or a figure of our own where there is no peer.
    target: Option<f64>,
}

impl Table {
    #[expect(clippy::too_many_arguments, reason = "a row has these columns")]
    pub fn row(
        &mut self,
        workload: &str,
        metric: &'static str,
        unit: &'static str,
        better: &'static str,
        ours: f64,
        peer: Option<(&'static str, f64)>,
        target: Option<f64>,
    ) {
        let workload = workload.to_owned();
        self.rows.push(Row { workload, metric, unit, better, ours, peer, target });
    }

    pub fn print(&self) {
        println!(
            "{:<36} {:<18} {:>12} {:>12} {:<12} {:>7} {:>9}",
            "workload", "metric", "ours", "peer", "", "ratio", "target"
        );
        for row in &self.rows {
            let (name, peer) = row.peer.map_or(("", String::new()), |(name, v)| (name, figure(v)));
            let ratio =
                row.peer.map_or(String::new(), |(_, peer)| format!("{:.2}", row.ours / peer));
            let bound = if row.better == "lower" { "<=" } else { ">=" };
            let target = row.target.map_or(String::new(), |target| format!("{bound} {target}"));
            let metric = format!("{} [{}]", row.metric, row.unit);
            println!(
                "{:<36} {:<18} {:>12} {:>12} {:<12} {:>7} {:>9}",
                row.workload,
                metric,
                figure(row.ours),
                peer,
                name,
                ratio,
                target
            );
        }
    }

    pub fn write(&self, path: &str) -> Result<()> {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "workload": row.workload, "metric": row.metric, "unit": row.unit,
                    "better": row.better, "ours": row.ours, "peer": row.peer.map(|(_, v)| v),
                    "peer_name": row.peer.map(|(name, _)| name), "target": row.target,
                })
            })
            .collect();
        if let Some(folder) = std::path::Path::new(path).parent() {
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
