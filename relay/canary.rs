//! The canary: proof that nothing is lost on the way from a commit to a client's outbox.
//!
//! Now and then it writes a row to `crm_relay.canary`, through the same trigger as any other, and waits in
//! that row's room like a client. What it waits for goes the whole way: journal, doorbell, reader, order,
//! rooms. The socket is not part of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use uuid::Uuid;

use crate::frame;
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::postgres::{ConnectError, Database, Session, chain};
use crate::rooms::{Beginning, Command, Enter, ITSELF, Subscribe};

/// How long a beat may take: twice what the poll that covers everything takes to find it.
const HEARD_WITHIN: Duration = Duration::from_secs(10);

/// Why a beat was not heard.
#[derive(Debug, Error)]
enum Silence {
    #[error("it could not be written: {0}")]
    Connect(#[from] ConnectError),
    #[error("it could not be written: {}", chain(.0))]
    Write(#[from] tokio_postgres::Error),
    #[error("it was written and did not arrive within {} s", HEARD_WITHIN.as_secs())]
    Lost,
    #[error("the rooms are gone")]
    Stopped,
}

/// Writes, and listens.
pub struct Canary {
    database: Database,
    rooms: mpsc::Sender<Command>,
    /// This one's row.
    id: Uuid,
    outbox: Arc<Outbox>,
    metrics: Metrics,
    /// What is wrong, if anything is.
    silence: watch::Sender<Option<String>>,
}

impl Canary {
    /// Listens in these rooms; `silence` holds what is wrong, if anything is.
    pub fn new(
        database: Database,
        rooms: mpsc::Sender<Command>,
        metrics: Metrics,
        silence: watch::Sender<Option<String>>,
    ) -> Canary {
        Canary {
            database,
            rooms,
            id: Uuid::new_v4(),
            outbox: Arc::new(Outbox::new(1 << 20)),
            metrics,
            silence,
        }
    }

    /// Beats once in `every`, until the rooms are gone. Begins once the reader is ready, so that no start
    /// counts as a loss.
    pub async fn run(self, every: Duration) {
        if self.perch().await.is_err() {
            return;
        }
        let mut beats = interval(every);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut session = None;
        let mut beat = 0;
        loop {
            beats.tick().await;
            beat += 1;
            let began = Instant::now();
            let heard = match timeout(HEARD_WITHIN, self.beat(&mut session, beat)).await {
                Ok(heard) => heard,
                Err(_) => Err(Silence::Lost),
            };
            match heard {
                Ok(()) => {
                    let lag = began.elapsed();
                    self.metrics.canary_lag.observe(lag.as_secs_f64());
                    self.metrics.canary("heard").inc();
                    let lag_ms = lag.as_secs_f64() * 1000.0;
                    tracing::info!(beat, lag_ms, "the canary was heard");
                    self.silence.send_replace(None);
                }
                Err(Silence::Stopped) => return,
                Err(silence) => {
                    // whatever the session is in the middle of is not gone on with
                    session = None;
                    self.metrics.canary("missed").inc();
                    tracing::warn!(beat, reason = %silence, "the canary was not heard");
                    let reason = format!("the canary was not heard: {silence}");
                    self.silence.send_replace(Some(reason));
                }
            }
        }
    }

    /// Takes its place in its row's room.
    async fn perch(&self) -> Result<(), Silence> {
        let enter = Enter {
            member: ITSELF,
            session: self.id,
            outbox: self.outbox.clone(),
            transactions: false,
            bearer: None,
            welcome: frame::text(b"{}"),
        };
        let (reply, answered) = oneshot::channel();
        let subscribe = Subscribe {
            member: ITSELF,
            rooms: vec![format!("crm_relay_canary:{}", self.id)],
            granted: None,
            from: Beginning::Now,
            id: Value::Null,
            denied: Vec::new(),
            reply,
        };
        for command in [
            Command::Enter(Box::new(enter)),
            Command::Subscribe(Box::new(subscribe)),
        ] {
            let sent = self.rooms.send(command).await;
            sent.map_err(|_| Silence::Stopped)?;
        }
        answered.await.map_err(|_| Silence::Stopped)?;
        Ok(())
    }

    /// Writes one and waits until it is here.
    async fn beat(&self, session: &mut Option<Session>, beat: u64) -> Result<(), Silence> {
        let writes = match session {
            Some(writes) => writes,
            none => {
                let opened = self.database.session("canary").await?;
                // what earlier ones left behind; others that live write again
                let old = "delete from crm_relay.canary where written_at < clock_timestamp() - interval '1 day'";
                opened.client.batch_execute(old).await?;
                none.insert(opened)
            }
        };
        let write = format!(
            "insert into crm_relay.canary (relay, beat) values ('{}', {beat})
             on conflict (relay) do update set beat = excluded.beat, written_at = excluded.written_at",
            self.id
        );
        writes.client.batch_execute(&write).await?;
        let sought = format!("\"beat\":{beat},");
        let mut frames = VecDeque::new();
        loop {
            let mut found = false;
            while self.outbox.take(&mut frames) {
                for frame in frames.drain(..) {
                    self.outbox.written(frame.size(), 1);
                    found |= String::from_utf8_lossy(frame.payload()).contains(&sought);
                }
            }
            if found {
                return Ok(());
            }
            if self.outbox.closed().is_some() {
                return Err(Silence::Stopped);
            }
            self.outbox.filled().await;
        }
    }
}
