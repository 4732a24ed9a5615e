//! What the kernel says of processes, and which of them run where.

use std::fs;
use std::process::Command;
use std::time::Duration;

/// Where what is measured runs.
pub const SERVER: &str = "0";
/// Where Postgres and the load generator run meanwhile.
pub const LOAD: &str = "1";
/// Both, for what is measured together with Postgres.
pub const SHARED: &str = "0,1";

/// `/proc` counts in hundredths of a second on every Linux that Rust runs on.
const TICK: Duration = Duration::from_millis(10);

/// Processor time of a process and its children, all their threads, since they began.
pub fn cpu(pid: u32) -> Duration {
    family(pid).into_iter().map(ticks).sum::<u32>() * TICK
}

/// Processor time of this process alone.
pub fn own_cpu() -> Duration {
    ticks(std::process::id()) * TICK
}

/// Memory of a process and its children, shared pages by share, in KiB.
pub fn pss(pid: u32) -> f64 {
    family(pid).into_iter().map(pss_of).sum()
}

/// Binds a process, its children and its threads to cores.
pub fn bind(pid: u32, cores: &str) {
    for pid in family(pid) {
        let done = Command::new("taskset")
            .args([
                "--all-tasks",
                "--cpu-list",
                "--pid",
                cores,
                &pid.to_string(),
            ])
            .output();
        // one that has ended meanwhile needs no core
        if let Err(error) = done {
            panic!(
                "taskset --cpu-list {cores} --pid {pid}: {error}; it is in the package util-linux"
            );
        }
    }
}

/// A process and all that descend from it.
fn family(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        let tasks = fs::read_dir(format!("/proc/{}/task", found[next]));
        for task in tasks.into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
        next += 1;
    }
    found
}

fn ticks(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // the name may hold blanks; what follows it begins with the third field
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let number = |place: usize| {
        fields
            .split_whitespace()
            .nth(place)
            .and_then(|field| field.parse::<u32>().ok())
    };
    number(11).unwrap_or(0) + number(12).unwrap_or(0)
}

fn pss_of(pid: u32) -> f64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0.0)
}
