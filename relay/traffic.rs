//! The log of events: one line each, and above a hundred in a second one line a second.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::event::Changed;

/// Events of one second that are logged one by one.
const LINES_A_SECOND: u32 = 100;

/// Counts the events of the present second.
#[derive(Debug, Default)]
pub struct Traffic {
    began: Option<Instant>,
    events: u32,
    summed: u64,
    deliveries: usize,
    slowest: Duration,
}

impl Traffic {
    /// Logs an event, or counts it towards the second's sum.
    pub fn event(&mut self, changed: &Changed, receivers: usize) {
        let since_capture = SystemTime::now()
            .duration_since(changed.changed_at)
            .unwrap_or_default();
        if self
            .began
            .is_none_or(|began| began.elapsed() >= Duration::from_secs(1))
        {
            self.sum_up();
            self.began = Some(Instant::now());
        }
        self.events += 1;
        if self.events > LINES_A_SECOND {
            self.summed += 1;
            self.deliveries += receivers;
            self.slowest = self.slowest.max(since_capture);
            return;
        }
        tracing::info!(
            target: "crm_relay::event",
            kind = %changed.kind,
            record = %changed.record_room,
            txid = changed.txid,
            seq = changed.seq,
            receivers,
            since_capture_ms = since_capture.as_secs_f64() * 1000.0,
            "event"
        );
    }

    /// When a sum is due; never while there is none.
    pub async fn second_over(&self) {
        match self.began {
            Some(began) if self.summed > 0 => {
                tokio::time::sleep_until(began + Duration::from_secs(1)).await
            }
            _ => std::future::pending().await,
        }
    }

    /// Logs what was not logged one by one, and begins anew.
    pub fn sum_up(&mut self) {
        if self.summed > 0 {
            tracing::info!(
                target: "crm_relay::event",
                events = self.summed,
                deliveries = self.deliveries,
                slowest_ms = self.slowest.as_secs_f64() * 1000.0,
                "more events in this second"
            );
        }
        *self = Traffic::default();
    }
}
