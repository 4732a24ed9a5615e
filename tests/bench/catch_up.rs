//! What a relay has to read that was away.

use std::time::{Duration, Instant};

use crate::figure::{Figure, Goal};
use crate::ground::{Ground, Pace, change};
use crate::load::Patience;
use crate::machine;
use crate::server::{Kind, Server};
use crate::sustained::{ROWS, Until, write};

const WRITERS: usize = 4;

/// Its process is stopped while changes are committed that nobody is subscribed to; then it goes on, and a
/// change after them all comes to its one subscriber when they are done.
pub async fn run(quick: bool) -> Vec<Figure> {
    let (runs, changes) = if quick { (1, 100_000) } else { (5, 200_000) };
    let ground = Ground::new().await;
    ground.bind(machine::LOAD).await;
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let server = Server::start(Kind::Relay, &ground, machine::SERVER, &[]).await;
        let (mut crowd, _) = server.crowd(1, |_| 0, Patience::Orderly(1));
        server.signal("-STOP");
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                write(
                    server.url(),
                    1 + writer * 2000..1 + (writer + 1) * 2000,
                    Until::Done(changes / ROWS / WRITERS),
                )
            })
            .collect();
        for writer in writers {
            writer.join().expect("a writer");
        }
        change(server.url(), 1, 1, Pace::Saturated)
            .join()
            .expect("the last change");
        let (cpu, began) = (server.cpu(), Instant::now());
        server.signal("-CONT");
        let heard = crowd.count(1, Duration::from_secs(60));
        assert_eq!(heard.frames, 1, "the relay did not come back");
        let (took, cpu) = (began.elapsed().as_secs_f64(), server.cpu() - cpu);
        eprintln!("  {changes} changes in {took:.2} s, {cpu:.2} CPU-s of the relay");
        rates.push(changes as f64 / took);
        costs.push(changes as f64 / cpu);
    }
    vec![
        Figure::alone(
            "catch_up",
            "changes a second, in transactions of ten",
            "/s",
            rates,
            Some(Goal::AtLeast(100_000.0)),
        ),
        Figure::alone(
            "catch_up",
            "the same of the relay's own processor",
            "/CPU-s",
            costs,
            None,
        ),
    ]
}
