//! How large the binary is, and how soon it is there.

use crate::figure::{Figure, Goal};
use crate::ground::{Ground, relay};
use crate::machine;
use crate::server::{Kind, Server};

/// Size as built, stripped; from exec until `/readyz` says 200.
pub async fn run(quick: bool) -> Vec<Figure> {
    let runs = if quick { 3 } else { 11 };
    let ground = Ground::new().await;
    ground.bind(machine::LOAD).await;
    let bytes = std::fs::metadata(relay()).expect("the binary").len();
    let mut started = Vec::new();
    for _ in 0..runs {
        let server = Server::start(Kind::Relay, &ground, machine::SERVER, &[]).await;
        started.push(server.started.as_secs_f64() * 1e3);
    }
    vec![
        Figure::alone(
            "start",
            "the binary, stripped",
            "MB",
            vec![bytes as f64 / 1e6],
            Some(Goal::AtMost(15.0)),
        ),
        Figure::alone(
            "start",
            "from exec to ready",
            "ms",
            started,
            Some(Goal::AtMost(300.0)),
        ),
    ]
}
