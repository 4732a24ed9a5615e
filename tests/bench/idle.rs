//! Ten thousand who are there while nothing happens.

use std::time::Duration;

use crate::figure::{Figure, Goal, median};
use crate::ground::Ground;
use crate::load::Patience;
use crate::machine;
use crate::plot;
use crate::server::{Kind, Server};
use crate::table;

const CONNECTIONS: usize = 10_000;
const KINDS: [Kind; 5] = [
    Kind::Relay,
    Kind::Ws,
    Kind::SocketIo,
    Kind::Nchan,
    Kind::Nats,
];

/// Memory of each connection.
pub async fn run(quick: bool) -> Vec<Figure> {
    let runs = if quick { 1 } else { 5 };
    let ground = Ground::new().await;
    ground.bind(machine::LOAD).await;
    let mut found: Vec<(Kind, bool, f64)> = Vec::new();
    let mut deflating = Vec::new();
    for _ in 0..runs {
        let server = Server::start(Kind::Relay, &ground, machine::SERVER, &[]).await;
        let first = server.deflating(10, Patience::Orderly(1));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = server.pss();
        let crowd = server.deflating(CONNECTIONS, Patience::Orderly(64));
        tokio::time::sleep(Duration::from_secs(2)).await;
        let each = (server.pss() - before) / CONNECTIONS as f64;
        drop((first, crowd));
        eprintln!("  relay, with deflate          {each:.2} KiB each, in rooms of their own");
        deflating.push(each);
        for kind in KINDS {
            // a record each is what the relay's goal is held to; one record for all is told beside it
            for together in if quick {
                &[false][..]
            } else {
                &[false, true][..]
            } {
                let server = Server::start(kind, &ground, machine::SERVER, &[]).await;
                let room = |number| if *together { 0 } else { number };
                let (first, _) = server.crowd(10, room, Patience::Orderly(1));
                tokio::time::sleep(Duration::from_secs(1)).await;
                let before = server.pss();
                let (crowd, _) = server.crowd(CONNECTIONS, room, Patience::Orderly(64));
                tokio::time::sleep(Duration::from_secs(2)).await;
                let each = (server.pss() - before) / CONNECTIONS as f64;
                drop((first, crowd));
                eprintln!(
                    "  {:<28} {each:.2} KiB each, in {}",
                    kind.name(),
                    if *together {
                        "one room"
                    } else {
                        "rooms of their own"
                    }
                );
                found.push((kind, *together, each));
            }
        }
    }
    let of = |kind: Kind, together: bool| {
        let its = found
            .iter()
            .filter(|(whose, in_one, _)| *whose == kind && *in_one == together);
        its.map(|(_, _, each)| *each).collect::<Vec<_>>()
    };
    let bars: Vec<_> = KINDS
        .iter()
        .map(|&kind| (kind.name().to_owned(), median(&of(kind, false))))
        .collect();
    let drawn = plot::bars(
        "Memory of an idle connection, 10,000 of them, a record each",
        "KiB",
        &bars,
    );
    std::fs::write(table::place(quick, "memory.svg"), drawn).expect("a plot");

    let mut figures = Vec::new();
    for (together, what) in [(false, "a record each"), (true, "all in one room")] {
        let relay = of(Kind::Relay, together);
        if relay.is_empty() {
            continue;
        }
        figures.push(Figure::alone(
            "idle",
            what,
            "KiB",
            relay.clone(),
            Some(Goal::AtMost(4.0)),
        ));
        for kind in &KINDS[1..] {
            figures.push(
                Figure::alone("idle", what, "KiB", relay.clone(), None)
                    .beside(kind.name(), of(*kind, together)),
            );
        }
    }
    figures.push(Figure::alone(
        "idle",
        "with deflate negotiated, a record each",
        "KiB",
        deflating,
        Some(Goal::AtMost(5.0)),
    ));
    figures
}
