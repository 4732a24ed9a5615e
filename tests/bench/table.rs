//! The table that is printed, and the same as JSON.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::Part;
use crate::figure::{Figure, Goal};

/// Prints the lines of a part; nothing if it was not measured.
pub fn print(part: &Part, figures: &[Figure]) {
    if figures.is_empty() {
        return;
    }
    for (what, goal) in part.goals {
        println!("\n{what}\n  goal: {goal}");
    }
    println!(
        "  {:<62} {:>12} {:>12} {:>7} {:>8}  met",
        "", "relay", "other", "ratio", "goal"
    );
    for figure in figures {
        let name = match &figure.against {
            Some(other) => format!("{}, against {}", figure.what, other.name),
            None => figure.what.clone(),
        };
        let other = figure
            .against
            .as_ref()
            .map_or(String::new(), |other| number(other.value));
        let ratio = figure
            .ratio()
            .map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let goal = figure.goal.map_or(String::new(), |goal| match goal {
            Goal::AtLeast(least) => format!("≥ {least}"),
            Goal::AtMost(most) => format!("≤ {most}"),
        });
        let met = figure
            .is_met()
            .map_or("", |met| if met { "yes" } else { "NO" });
        let value = format!("{} {}", number(figure.value), figure.unit);
        println!("  {name:<62} {value:>12} {other:>12} {ratio:>7} {goal:>8}  {met}");
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        some if some >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Where figures and plots go: those of a quick run are nobody's reference.
pub fn place(quick: bool, name: &str) -> PathBuf {
    PathBuf::from(if quick { "target/bench" } else { "tests/bench" }).join(name)
}

/// Puts a part's figures into `figures.json`, in the place of those of before.
pub fn keep(part: &Part, figures: &[Figure], quick: bool) {
    let file = place(quick, "figures.json");
    let before = std::fs::read(&file)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let mut kept: Vec<Value> = before
        .and_then(|before| before["figures"].as_array().cloned())
        .unwrap_or_default();
    kept.retain(|figure| figure["part"] != part.name);
    kept.extend(figures.iter().map(|figure| {
        let mut line = serde_json::to_value(figure).expect("a figure is JSON");
        line["ratio"] = json!(figure.ratio());
        line["met"] = json!(figure.is_met());
        line
    }));
    // in the order of the table, whatever was measured when
    kept.sort_by_key(|figure| {
        crate::PARTS
            .iter()
            .position(|part| figure["part"] == part.name)
    });
    let all = json!({ "figures": kept, "machine": machine() });
    let text = serde_json::to_string_pretty(&all).expect("figures are JSON");
    std::fs::write(&file, text + "\n")
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let model = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    json!({
        "processor": model.map(|(_, name)| name),
        "cores": processors.lines().filter(|line| line.starts_with("processor")).count(),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        // two of it are the benchmark itself; with more, times are too long
        "load_average_when_written": read("/proc/loadavg").trim(),
    })
}
