//! What a soak writes down: samples of the relay, a table of them, a picture of its memory.

use std::fmt::Write;
use std::time::Instant;

use super::{World, read};

/// What the relay is at one moment.
pub struct Sample {
    pub second: u64,
    pub rss: u64,
    pss: u64,
    files: usize,
    threads: u64,
    cpu: f64,
    backends: u64,
    journal: u64,
    connections: u64,
    changes: f64,
    deliveries: f64,
    /// Sorted.
    lags: Vec<u32>,
}

pub const HEADER: &str = "second,rss_kib,pss_kib,files,threads,cpu_percent,backends_kib,journal_kib,connections,changes_per_s,deliveries_per_s,lag_p50_ms,lag_p99_ms,lag_max_ms";

impl Sample {
    pub fn line(&self) -> String {
        format!(
            "{},{},{},{},{},{:.1},{},{},{},{:.0},{:.0},{:.2},{:.2},{:.2}",
            self.second,
            self.rss,
            self.pss,
            self.files,
            self.threads,
            self.cpu,
            self.backends,
            self.journal,
            self.connections,
            self.changes,
            self.deliveries,
            milliseconds(&self.lags, 0.5),
            milliseconds(&self.lags, 0.99),
            milliseconds(&self.lags, 1.0)
        )
    }
}

/// A quantile of sorted microseconds.
fn milliseconds(sorted: &[u32], quantile: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = (last as f64 * quantile).round() as usize;
    f64::from(sorted.get(at).copied().unwrap_or_default()) / 1000.0
}

/// A number of `/proc/<pid>/<file>`, by its name.
pub fn number(pid: u32, file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
    number.map_or(0, |number| number.parse().unwrap())
}

pub fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

/// Processor time of the relay, in hundredths of a second.
pub fn cpu(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Looks at the relay while time goes on.
pub struct Watch {
    pub pid: u32,
    pub session: tokio_postgres::Client,
    pub looked: Instant,
    pub cpu: u64,
    pub changes: u64,
    pub deliveries: u64,
}

impl Watch {
    pub async fn sample(&mut self, world: &World) -> Sample {
        let pid = self.pid;
        let sql = "select coalesce((select string_agg(pid::text, ' ') from pg_stat_activity where application_name like 'crm-relay %'), ''), (select sum(pg_total_relation_size(format('crm_relay.change_%s', slot)))::bigint / 1024 from generate_series(0, 9) slot)";
        let row = self.session.query_one(sql, &[]).await.unwrap();
        let backends = row.get::<_, String>(0);
        let backends = backends.split(' ').filter_map(|pid| pid.parse().ok());
        let past = self.looked.elapsed().as_secs_f64();
        self.looked = Instant::now();
        let since = |was: &mut u64, is: u64| {
            let more = is - *was;
            *was = is;
            more as f64 / past
        };
        let mut lags = std::mem::take(&mut *world.lags.lock().unwrap());
        lags.sort_unstable();
        Sample {
            second: world.began.elapsed().as_secs(),
            rss: number(pid, "smaps_rollup", "Rss"),
            pss: number(pid, "smaps_rollup", "Pss"),
            files: open_files(pid),
            threads: number(pid, "status", "Threads"),
            cpu: since(&mut self.cpu, cpu(pid)),
            // what they hold for themselves
            backends: backends
                .map(|pid| number(pid, "smaps_rollup", "Pss_Anon"))
                .sum(),
            journal: row.get::<_, i64>(1) as u64,
            connections: read(&world.connected),
            changes: since(&mut self.changes, read(&world.changes)),
            deliveries: since(&mut self.deliveries, read(&world.deliveries)),
            lags,
        }
    }
}

pub fn mean(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    samples.iter().map(of).sum::<f64>() / samples.len() as f64
}

/// The table for `tests/README.md`: a line for each quarter.
pub fn by_quarters(samples: &[Sample]) -> String {
    let mut text = String::from(
        "| quarter | RSS, MiB | PSS, MiB | open files | threads | CPU | its sessions in Postgres, MiB | journal, MiB | connections | changes/s | deliveries/s | p50 | p99 | longest |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for (number, quarter) in samples.chunks(samples.len().div_ceil(4)).enumerate() {
        let of = |of: fn(&Sample) -> f64| mean(quarter, of);
        let most = |of: fn(&Sample) -> u64| quarter.iter().map(of).max().unwrap_or_default();
        let mut lags: Vec<u32> = quarter.iter().flat_map(|one| one.lags.clone()).collect();
        lags.sort_unstable();
        writeln!(
            text,
            "| {} | {:.1} | {:.1} | {:.0} | {} | {:.0} % | {:.1} | {:.0} | {:.0} | {:.0} | {:.0} | {:.1} ms | {:.1} ms | {:.0} ms |",
            number + 1,
            of(|one| one.rss as f64) / 1024.0,
            of(|one| one.pss as f64) / 1024.0,
            of(|one| one.files as f64),
            most(|one| one.threads),
            of(|one| one.cpu),
            of(|one| one.backends as f64) / 1024.0,
            of(|one| one.journal as f64) / 1024.0,
            of(|one| one.connections as f64),
            of(|one| one.changes),
            of(|one| one.deliveries),
            milliseconds(&lags, 0.5),
            milliseconds(&lags, 0.99),
            milliseconds(&lags, 1.0),
        )
        .unwrap();
    }
    text
}

/// Memory over time as a picture.
pub fn plot(samples: &[Sample]) -> String {
    let (left, top, width, height) = (60.0, 40.0, 800.0, 260.0);
    let seconds = samples.last().map_or(1, |last| last.second).max(1) as f64;
    let most = samples.iter().map(|one| one.rss).max().unwrap_or(1) as f64 / 1024.0;
    // five lines at whole tens of MiB
    let step = (most * 1.1 / 5.0 / 10.0).ceil() * 10.0;
    let x = |second: f64| left + second / seconds * width;
    let y = |mib: f64| top + height - mib / (5.0 * step) * height;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 900 350\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"900\" height=\"350\" fill=\"white\"/>\n<text x=\"{left}\" y=\"22\" font-size=\"14\">Memory of the relay under steady traffic, MiB over minutes</text>\n"
    );
    for line in 0..=5 {
        let mib = f64::from(line) * step;
        let y = y(mib);
        let (right, label) = (left + width, left - 8.0);
        writeln!(svg, "<path d=\"M{left} {y:.1}H{right}\" stroke=\"#ddd\"/><text x=\"{label}\" y=\"{:.1}\" text-anchor=\"end\">{mib}</text>", y + 4.0).unwrap();
    }
    for part in 0..=4 {
        let second = seconds * f64::from(part) / 4.0;
        let (x, bottom) = (x(second), top + height);
        writeln!(svg, "<path d=\"M{x:.1} {top}V{bottom}\" stroke=\"#ddd\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.0}</text>", bottom + 18.0, second / 60.0).unwrap();
    }
    type Of = fn(&Sample) -> u64;
    let lines: [(&str, &str, Of); 2] = [
        ("resident (RSS)", "#1f5fa8", |one| one.rss),
        ("proportional (PSS)", "#c8641b", |one| one.pss),
    ];
    for (number, (name, colour, of)) in lines.into_iter().enumerate() {
        let points: Vec<String> = samples
            .iter()
            .map(|one| {
                format!(
                    "{:.1},{:.1}",
                    x(one.second as f64),
                    y(of(one) as f64 / 1024.0)
                )
            })
            .collect();
        let label = left + number as f64 * 160.0;
        write!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.3\"/>\n<text x=\"{label}\" y=\"342\" fill=\"{colour}\">{name}</text>\n", points.join(" ")).unwrap();
    }
    svg.push_str("</svg>\n");
    svg
}
