//! Everybody comes back at once.

use std::time::Duration;

use crate::figure::{Figure, Goal};
use crate::ground::{Ground, Pace, change};
use crate::load::Patience;
use crate::machine;
use crate::server::{Kind, Server};
use crate::statements;

const CLIENTS: usize = 10_000;

/// After a restart of the relay, in which changes were missed: each brings a token of its own and the
/// cursor that it had, and asks for a record of its own.
pub async fn run(quick: bool) -> Vec<Figure> {
    // after which nobody waits any longer
    let (runs, within) = if quick { (1, 20) } else { (5, 60) };
    let ground = Ground::new().await;
    ground.bind(machine::LOAD).await;
    let (mut seconds, mut soon) = (Vec::new(), Vec::new());
    let (mut journal, mut all) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let before = Server::start(Kind::Relay, &ground, machine::SERVER, &[]).await;
        let (crowd, _) = before.crowd(1, |_| 0, Patience::Orderly(1));
        let cursor = crowd
            .greeting
            .split(r#""cursor":""#)
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        let cursor = cursor
            .expect("a cursor in what answers a subscribe")
            .to_owned();
        drop((crowd, before));
        let url = ground.url(Kind::Relay.side());
        change(url, 1000, 1000, Pace::Saturated)
            .join()
            .expect("the writer");
        let server = Server::start(Kind::Relay, &ground, machine::SERVER, &[]).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let session = ground.session(Kind::Relay.side()).await;
        statements::count(&session).await;
        let (crowd, done) = server.storm(CLIENTS, &cursor, Duration::from_secs(within));
        let live = done.len();
        let last = match live == CLIENTS {
            true => done[CLIENTS - 1].as_secs_f64(),
            false => f64::INFINITY,
        };
        let early = done.iter().filter(|after| after.as_secs() < 10).count();
        let (of_journal, _) = statements::like(&session, "%from crm_relay.change %").await;
        let (of_all, _) = statements::like(&session, "%").await;
        statements::rest(&session).await;
        statements::tell(&session).await;
        assert!(of_all > 0.0, "no statement was counted");
        eprintln!(
            "  {early} live within 10 s, {live} within {within} s, all after {last:.1} s; {of_journal} journal queries, {of_all} statements"
        );
        seconds.push(last);
        soon.push(early as f64);
        journal.push(of_journal * 100.0 / live.max(1) as f64);
        all.push(of_all / live.max(1) as f64);
        drop(crowd);
    }
    vec![
        Figure::alone(
            "storm",
            "live within 10 s",
            "",
            soon,
            Some(Goal::AtLeast(CLIENTS as f64)),
        ),
        Figure::alone(
            "storm",
            "all live after",
            "s",
            seconds,
            Some(Goal::AtMost(10.0)),
        ),
        Figure::alone(
            "storm",
            "journal queries per 100 who are live",
            "",
            journal,
            Some(Goal::AtMost(1.0)),
        ),
        Figure::alone(
            "storm",
            "statements of any kind for each of them",
            "",
            all,
            None,
        ),
    ]
}
