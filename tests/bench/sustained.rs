//! Many changes a second for long, and how far behind their frames are.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::figure::{Figure, Goal, percentile};
use crate::ground::{Ground, alone, record, session};
use crate::load::Patience;
use crate::machine;
use crate::plot::{self, Scale};
use crate::server::{Kind, Server};
use crate::table;

const RECORDS: usize = 1000;
const WRITERS: usize = 4;
/// Rows of a transaction.
pub const ROWS: usize = 10;

/// A twentieth more than the goal is asked for, so that what is late is late and not missing.
const ROWS_A_SECOND: f64 = 8400.0;

/// One subscriber of each of a thousand records, on cores shared with Postgres.
pub async fn run(quick: bool) -> Vec<Figure> {
    let lasts = Duration::from_secs(if quick { 10 } else { 300 });
    let ground = Ground::new().await;
    ground.bind(machine::SHARED).await;
    let server = Server::start(Kind::Relay, &ground, machine::SHARED, &[]).await;
    let (mut crowd, _) = server.crowd(RECORDS, |number| number, Patience::Orderly(64));
    // who may see a record is asked at its first change and then remembered for minutes
    let first = write(server.url(), 0..RECORDS, Until::Done(RECORDS / ROWS));
    let heard = crowd.listen(RECORDS, Duration::from_secs(60), |_| {});
    first.join().expect("a writer");
    assert_eq!(heard, RECORDS, "frames were lost");
    let pause = Duration::from_secs_f64(ROWS as f64 * WRITERS as f64 / ROWS_A_SECOND);
    let (cpu, began) = (server.cpu(), Instant::now());
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let mine = writer * RECORDS / WRITERS..(writer + 1) * RECORDS / WRITERS;
            write(server.url(), mine, Until::Over(lasts, pause))
        })
        .collect();
    let mut lags: Vec<(f64, f64)> = Vec::new();
    let mut each = |frame: &[u8]| {
        if let Some(lag) = lag(frame) {
            lags.push((began.elapsed().as_secs_f64(), lag));
        }
    };
    let mut heard = 0;
    while !writers.iter().all(|writer| writer.is_finished()) {
        heard += crowd.listen(usize::MAX, Duration::from_millis(500), &mut each);
    }
    let written: usize = writers
        .into_iter()
        .map(|writer| writer.join().expect("a writer"))
        .sum();
    let rows = written * ROWS;
    heard += crowd.listen(rows - heard, Duration::from_secs(10), &mut each);
    let took = lags.last().map_or(f64::NAN, |(at, _)| *at);
    let cpu = (server.cpu() - cpu) / took;
    assert_eq!(heard, rows, "frames were lost");
    let all: Vec<f64> = lags.iter().map(|(_, lag)| *lag).collect();
    let stretches = 10;
    let each: Vec<f64> = (0..stretches)
        .map(|number| {
            let (from, to) = (
                took * f64::from(number) / f64::from(stretches),
                took * f64::from(number + 1) / f64::from(stretches),
            );
            let its: Vec<f64> = lags
                .iter()
                .filter(|(at, _)| (from..to).contains(at))
                .map(|(_, lag)| *lag)
                .collect();
            percentile(&its, 0.99)
        })
        .collect();
    eprintln!(
        "  {:.0} rows/s for {took:.0} s, {cpu:.2} cores of the relay; lag p50 {:.1} ms, p99 {:.1} ms; of each tenth {each:.1?}",
        rows as f64 / took,
        percentile(&all, 0.5),
        percentile(&all, 0.99)
    );
    let points = each
        .iter()
        .enumerate()
        .map(|(number, lag)| (took * (number as f64 + 0.5) / f64::from(stretches), *lag))
        .collect();
    let drawn = plot::curves(
        "Lag of 8,400 changes a second",
        ("s", Scale::Linear),
        ("ms, p99", Scale::Linear),
        &[("relay".to_owned(), points)],
    );
    std::fs::write(table::place(quick, "sustained.svg"), drawn).expect("a plot");
    vec![
        Figure::alone(
            "sustained",
            "rows that came through",
            "rows/s",
            vec![rows as f64 / took],
            Some(Goal::AtLeast(8000.0)),
        ),
        Figure::alone(
            "sustained",
            "lag p99, from before the statement",
            "ms",
            vec![percentile(&all, 0.99)],
            Some(Goal::AtMost(100.0)),
        ),
        Figure::alone(
            "sustained",
            "lag p99 of the last tenth",
            "ms",
            vec![each[9]],
            None,
        )
        .beside("the first tenth", vec![each[0]]),
        Figure::alone(
            "sustained",
            "cores that the relay used",
            "",
            vec![cpu],
            None,
        ),
    ]
}

/// How long a writer goes on.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// So many transactions, as fast as can be.
    Done(usize),
    /// So long, one in each pause; who is late makes up for it.
    Over(Duration, Duration),
}

/// Changes ten records in a transaction, each with the moment at which it was asked for; tells how many
/// transactions there were.
pub fn write(
    url: String,
    records: std::ops::Range<usize>,
    until: Until,
) -> std::thread::JoinHandle<usize> {
    std::thread::spawn(move || {
        alone(async move {
            let session = session(&url).await;
            let update = "update public.listings set property_address = $2, version = version + 1, updated_at = now() where id = any($1::text[]::uuid[])";
            let update = session.prepare(update).await.expect("an update");
            let began = Instant::now();
            let mut number = 0;
            loop {
                match until {
                    Until::Done(transactions) if number == transactions => return number,
                    Until::Done(_) => {}
                    Until::Over(lasts, _) if began.elapsed() >= lasts => return number,
                    Until::Over(_, pause) => {
                        tokio::time::sleep_until((began + pause * number as u32).into()).await
                    }
                }
                let first = number * ROWS;
                let ids: Vec<String> = (first..first + ROWS)
                    .map(|row| record(records.start + row % records.len()))
                    .collect();
                session
                    .execute(&update, &[&ids, &format!("at {}", now())])
                    .await
                    .expect("a change");
                number += 1;
            }
        })
    })
}

/// Microseconds.
fn now() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a clock")
        .as_micros()
}

/// Ms since the change of this frame was asked for.
fn lag(frame: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(frame).ok()?;
    let at: u128 = text
        .split(r#""property_address":"at "#)
        .nth(1)?
        .split('"')
        .next()?
        .parse()
        .ok()?;
    Some((now() - at) as f64 / 1e3)
}
