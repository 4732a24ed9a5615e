//! One room, a thousand who are in it.

use std::time::{Duration, Instant};

use crate::figure::{Figure, Goal, median, percentile};
use crate::ground::{Ground, Pace, change};
use crate::load::Patience;
use crate::machine;
use crate::plot::{self, Scale};
use crate::server::{Kind, Server};
use crate::table;

const SUBSCRIBERS: usize = 1000;
const SATURATED: usize = 500;

/// How long nothing may come before somebody is taken for dead.
const PATIENCE: Duration = Duration::from_secs(10);

/// As fast as one writer can.
pub async fn saturated(quick: bool) -> Vec<Figure> {
    const KINDS: [Kind; 7] = [
        Kind::Relay,
        Kind::Ws,
        Kind::SocketIo,
        Kind::Nchan,
        Kind::Nats,
        Kind::BareOne,
        Kind::BareEight,
    ];
    let runs = if quick { 1 } else { 5 };
    let found = measure(&KINDS, runs, SATURATED, Pace::Saturated).await;
    let rates = |kind: Kind| {
        found
            .of(kind)
            .map(|run| run.frames as f64 / run.cpu)
            .collect::<Vec<_>>()
    };
    let bars: Vec<_> = KINDS
        .iter()
        .map(|&kind| (kind.name().to_owned(), median(&rates(kind))))
        .collect();
    let drawn = plot::bars(
        "Fan-out to 1,000 subscribers, as fast as one writer can",
        "changes delivered to a subscriber, per second of the server's own processor",
        &bars,
    );
    std::fs::write(table::place(quick, "fan_out.svg"), drawn).expect("a plot");

    let relay = rates(Kind::Relay);
    let beside = |kind: Kind, goal| {
        Figure::alone(
            "fan_out",
            "frames per CPU-second",
            "/CPU-s",
            relay.clone(),
            goal,
        )
        .beside(kind.name(), rates(kind))
    };
    let load: Vec<f64> = found
        .0
        .iter()
        .map(|run| run.frames as f64 / run.load)
        .collect();
    vec![
        beside(Kind::Ws, Some(Goal::AtLeast(5.0))),
        beside(Kind::SocketIo, Some(Goal::AtLeast(5.0))),
        beside(Kind::Nchan, Some(Goal::AtLeast(4.0))),
        beside(Kind::Nats, None),
        beside(Kind::BareEight, Some(Goal::AtLeast(0.8))),
        beside(Kind::BareOne, None),
        Figure::alone(
            "fan_out",
            "the load generator itself, writer included",
            "/CPU-s",
            load,
            None,
        ),
    ]
}

/// Twenty changes a second.
pub async fn paced(quick: bool) -> Vec<Figure> {
    const KINDS: [Kind; 6] = [
        Kind::Relay,
        Kind::BareOne,
        Kind::Ws,
        Kind::SocketIo,
        Kind::Nchan,
        Kind::Nats,
    ];
    let (runs, changes) = if quick { (1, 80) } else { (5, 200) };
    let found = measure(
        &KINDS,
        runs,
        changes,
        Pace::Every(Duration::from_millis(50)),
    )
    .await;
    let costs = |kind: Kind| {
        found
            .of(kind)
            .map(|run| run.cpu * 1e6 / run.frames as f64)
            .collect::<Vec<_>>()
    };
    let late = |kind: Kind, share: f64| {
        found
            .of(kind)
            .map(|run| percentile(&run.latencies, share))
            .collect::<Vec<_>>()
    };
    let lines: Vec<_> = KINDS
        .iter()
        .map(|&kind| {
            let all: Vec<f64> = found
                .of(kind)
                .flat_map(|run| run.latencies.iter().copied())
                .collect();
            (kind.name().to_owned(), plot::distribution(&all))
        })
        .collect();
    let drawn = plot::curves(
        "From the change to the last of 1,000 subscribers, 20 changes a second",
        ("ms", Scale::Linear),
        ("% of changes", Scale::Linear),
        &lines,
    );
    std::fs::write(table::place(quick, "latency.svg"), drawn).expect("a plot");

    let figure = |what: &str, unit, relay: Vec<f64>, kind: Kind, other: Vec<f64>, goal| {
        Figure::alone("paced", what, unit, relay, goal).beside(kind.name(), other)
    };
    let mut figures = Vec::new();
    for &kind in &KINDS[1..] {
        let goal = (kind == Kind::BareOne).then_some(Goal::AtMost(1.15));
        figures.push(figure(
            "CPU per frame",
            "µs",
            costs(Kind::Relay),
            kind,
            costs(kind),
            goal,
        ));
    }
    for &kind in &KINDS[2..] {
        let goal = Some(Goal::AtMost(1.0));
        figures.push(figure(
            "p99, against p50",
            "ms",
            late(Kind::Relay, 0.99),
            kind,
            late(kind, 0.5),
            goal,
        ));
    }
    for &kind in &KINDS[1..] {
        figures.push(figure(
            "p50",
            "ms",
            late(Kind::Relay, 0.5),
            kind,
            late(kind, 0.5),
            None,
        ));
        figures.push(figure(
            "p99",
            "ms",
            late(Kind::Relay, 0.99),
            kind,
            late(kind, 0.99),
            None,
        ));
    }
    figures
}

struct Run {
    kind: Kind,
    frames: usize,
    /// CPU-seconds of the server, and of this process.
    cpu: f64,
    load: f64,
    /// From each change to its last subscriber, ms.
    latencies: Vec<f64>,
}

struct Runs(Vec<Run>);

impl Runs {
    fn of(&self, kind: Kind) -> impl Iterator<Item = &Run> {
        self.0.iter().filter(move |run| run.kind == kind)
    }
}

/// By turns: each of them once, then all again.
async fn measure(kinds: &[Kind], runs: usize, changes: usize, pace: Pace) -> Runs {
    let ground = Ground::new().await;
    ground.bind(machine::LOAD).await;
    let mut found = Vec::new();
    for _ in 0..runs {
        for &kind in kinds {
            let server = Server::start(kind, &ground, machine::SERVER, &[]).await;
            let (mut crowd, _) = server.crowd(SUBSCRIBERS, |_| 0, Patience::Orderly(64));
            // what a server does once, at its first changes, is not what is measured
            for changes in [20, changes] {
                let (cpu, load, began) = (server.cpu(), own(), Instant::now());
                let writer = change(
                    server.url(),
                    1,
                    changes,
                    if changes == 20 { Pace::Saturated } else { pace },
                );
                let heard = crowd.count(changes, PATIENCE);
                let changed = writer.join().expect("the writer");
                // what it does after the last frame is its work, too
                tokio::time::sleep(Duration::from_millis(50)).await;
                let (cpu, load) = (server.cpu() - cpu, own() - load);
                assert_eq!(heard.frames, changes * SUBSCRIBERS, "{kind:?} lost frames");
                if changes == 20 {
                    continue;
                }
                let latencies = changed
                    .iter()
                    .zip(&heard.whole)
                    .map(|(from, to)| (*to - *from).as_secs_f64() * 1e3)
                    .collect();
                eprintln!(
                    "  {:<28} {:>9.0} frames per CPU-second, {:.2} CPU-s in {:.2} s; load {:.2} CPU-s; {} B a frame",
                    kind.name(),
                    heard.frames as f64 / cpu,
                    cpu,
                    began.elapsed().as_secs_f64(),
                    load,
                    heard.bytes / heard.frames.max(1),
                );
                found.push(Run {
                    kind,
                    frames: heard.frames,
                    cpu,
                    load,
                    latencies,
                });
            }
        }
    }
    Runs(found)
}

fn own() -> f64 {
    // this thread and the writer's; the servers are children
    machine::own_cpu().as_secs_f64()
}
