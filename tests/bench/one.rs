//! One subscriber: what a change takes from its commit.

use std::time::{Duration, Instant};

use crate::figure::{Figure, Goal, percentile};
use crate::ground::{Ground, alone, record, session};
use crate::load::Patience;
use crate::machine;
use crate::plot::{self, Scale};
use crate::server::{Kind, Server};
use crate::table;

const KINDS: [Kind; 6] = [
    Kind::Relay,
    Kind::BareOne,
    Kind::Ws,
    Kind::SocketIo,
    Kind::Nchan,
    Kind::Nats,
];

/// From commit to frame, beside a bare bridge.
pub async fn run(quick: bool) -> Vec<Figure> {
    let (runs, changes) = if quick { (1, 200) } else { (5, 500) };
    let ground = Ground::new().await;
    ground.bind(machine::LOAD).await;
    let mut found: Vec<(Kind, Vec<f64>)> = Vec::new();
    for _ in 0..runs {
        for kind in KINDS {
            let server = Server::start(kind, &ground, machine::SERVER, &[]).await;
            let (mut crowd, _) = server.crowd(1, |_| 0, Patience::Orderly(1));
            let mut latencies = Vec::new();
            for changes in [50, changes] {
                let writer = commit(server.url(), changes);
                let heard = crowd.count(changes, Duration::from_secs(10));
                let committed = writer.join().expect("the writer");
                assert_eq!(heard.frames, changes, "{kind:?} lost frames");
                latencies = committed
                    .iter()
                    .zip(&heard.whole)
                    .map(|(from, to)| (*to - *from).as_secs_f64() * 1e3)
                    .collect();
            }
            eprintln!(
                "  {:<28} p50 {:.3} ms, p99 {:.3} ms",
                kind.name(),
                percentile(&latencies, 0.5),
                percentile(&latencies, 0.99)
            );
            found.push((kind, latencies));
        }
    }
    let of = |kind: Kind| {
        found
            .iter()
            .filter(move |(whose, _)| *whose == kind)
            .map(|(_, latencies)| latencies)
    };
    let lines: Vec<_> = KINDS
        .iter()
        .map(|&kind| {
            (
                kind.name().to_owned(),
                plot::distribution(&of(kind).flatten().copied().collect::<Vec<_>>()),
            )
        })
        .collect();
    let drawn = plot::curves(
        "From commit to frame, one subscriber",
        ("ms", Scale::Logarithmic),
        ("% of changes", Scale::Linear),
        &lines,
    );
    std::fs::write(table::place(quick, "one.svg"), drawn).expect("a plot");

    let late = |kind: Kind, share: f64| {
        of(kind)
            .map(|latencies| percentile(latencies, share))
            .collect::<Vec<_>>()
    };
    let mut figures = Vec::new();
    for (what, share, most) in [("p50", 0.5, 1.3), ("p99", 0.99, 2.0)] {
        for kind in &KINDS[1..] {
            let goal = (*kind == Kind::BareOne).then_some(Goal::AtMost(most));
            figures.push(
                Figure::alone("one", what, "ms", late(Kind::Relay, share), goal)
                    .beside(kind.name(), late(*kind, share)),
            );
        }
    }
    figures
}

/// Changes one record, a hundred times a second; tells when each commit was asked for.
fn commit(url: String, changes: usize) -> std::thread::JoinHandle<Vec<Instant>> {
    std::thread::spawn(move || {
        alone(async move {
            let session = session(&url).await;
            let update = "update public.listings set list_price = list_price + 1, version = version + 1, updated_at = now() where id = $1::text::uuid";
            let update = session.prepare(update).await.expect("an update");
            let record = record(0);
            let began = Instant::now();
            let mut at = Vec::with_capacity(changes);
            for number in 0..changes {
                tokio::time::sleep_until(
                    (began + Duration::from_millis(10) * number as u32).into(),
                )
                .await;
                session.batch_execute("begin").await.expect("a transaction");
                session
                    .execute(&update, &[&record])
                    .await
                    .expect("a change");
                at.push(Instant::now());
                session.batch_execute("commit").await.expect("a commit");
            }
            at
        })
    })
}
