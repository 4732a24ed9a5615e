//! The log of events: one line each, and above a hundred in a second one line a second. Metrics count them
//! all.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use crate::change::Action;
use crate::event::Changed;
use crate::metrics::Metrics;

/// Events of one second that are logged one by one.
const LINES_A_SECOND: u32 = 100;

/// Counts events.
#[derive(Debug, Default)]
pub struct Traffic {
    metrics: Metrics,
    /// Of the metrics those that were needed so far.
    changes: HashMap<(Arc<str>, Action), Counter>,
    second: Second,
}

/// The events of the present second.
#[derive(Debug, Default)]
struct Second {
    began: Option<Instant>,
    events: u32,
    summed: u64,
    deliveries: usize,
    slowest: Duration,
}

impl Traffic {
    /// Counts in these metrics, too.
    pub fn counted_by(metrics: Metrics) -> Traffic {
        Traffic {
            metrics,
            ..Traffic::default()
        }
    }

    /// Logs an event, or counts it towards the second's sum.
    pub fn event(&mut self, changed: &Changed, receivers: usize) {
        let since_capture = SystemTime::now()
            .duration_since(changed.changed_at)
            .unwrap_or_default();
        let (module, action) = (changed.module(), changed.action());
        let counter = self.changes.entry((module.clone(), action));
        let counter = counter.or_insert_with(|| {
            let labels = [module.to_string().into(), action.name().into()];
            self.metrics.changes.of(labels)
        });
        counter.inc();
        let coalesced = changed.coalesced() - 1;
        self.metrics.told(since_capture, receivers, coalesced);
        let began = self.second.began;
        if began.is_none_or(|began| began.elapsed() >= Duration::from_secs(1)) {
            self.sum_up();
            self.second.began = Some(Instant::now());
        }
        let second = &mut self.second;
        second.events += 1;
        if second.events > LINES_A_SECOND {
            second.summed += 1;
            second.deliveries += receivers;
            second.slowest = second.slowest.max(since_capture);
            return;
        }
        tracing::info!(
            target: "crm_relay::event",
            kind = %changed.kind(),
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
        match self.second.began {
            Some(began) if self.second.summed > 0 => {
                tokio::time::sleep_until(began + Duration::from_secs(1)).await
            }
            _ => std::future::pending().await,
        }
    }

    /// Logs what was not logged one by one, and begins anew.
    pub fn sum_up(&mut self) {
        let second = std::mem::take(&mut self.second);
        if second.summed > 0 {
            tracing::info!(
                target: "crm_relay::event",
                events = second.summed,
                deliveries = second.deliveries,
                slowest_ms = second.slowest.as_secs_f64() * 1000.0,
                "more events in this second"
            );
        }
    }
}
