//! Metrics, for `GET /metrics` in Prometheus's text format: each is defined once, here.
//!
//! Stations get a clone of [`Metrics`] and count as they go: what is counted for each event is an atomic
//! number, nothing is counted for each receiver. How much there is of something at a moment is looked
//! up when somebody asks ([`Metrics::survey`]).
//!
//! Names and units follow <https://prometheus.io/docs/practices/naming/>.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

use crate::journal::Size;
use crate::outbox::Close;
use crate::rooms::Survey;

/// The text's media type.
pub use prometheus_text::CONTENT_TYPE;

macro_rules! metrics {
    ($($field:ident: $kind:ty = $begin:expr, $name:literal, $help:literal;)*) => {
        /// All metrics; a clone counts the same.
        #[derive(Debug, Clone)]
        pub struct Metrics {
            $(#[doc = $help] pub $field: $kind,)*
            registry: Arc<Registry>,
        }

        impl Default for Metrics {
            fn default() -> Metrics {
                let mut registry = Registry::default();
                $(
                    let $field: $kind = $begin;
                    registry.register($name, $help, $field.clone());
                )*
                let metrics = Metrics { $($field,)* registry: Arc::new(registry) };
                metrics.begin();
                metrics
            }
        }

        /// Name, help and labels of each metric, as they are exposed.
        pub fn defined() -> Vec<(String, &'static str, Vec<&'static str>)> {
            let metrics = Metrics::default();
            vec![$((
                format!("{}{}", $name, suffix(metrics.$field.metric_type())),
                $help,
                metrics.$field.labels(),
            )),*]
        }
    };
}

metrics! {
    ready: Gauge = Gauge::default(), "crm_relay_ready",
        "1 while the journal is read and the doorbell heard, else 0";
    connections: Gauge = Gauge::default(), "crm_relay_connections",
        "WebSockets that are open";
    rooms: Gauge = Gauge::default(), "crm_relay_rooms",
        "Rooms that somebody is in";
    subscriptions: Gauge = Gauge::default(), "crm_relay_subscriptions",
        "Rooms of all connections, a room counted once for each that is in it";
    queue_bytes: Gauge = Gauge::default(), "crm_relay_queue_bytes",
        "Bytes that wait for all connections together";
    longest_queue_bytes: Gauge = Gauge::default(), "crm_relay_longest_queue_bytes",
        "Bytes that wait for the one connection for which most wait";
    unjudged: Gauge = Gauge::default(), "crm_relay_unjudged_transactions",
        "Transactions that wait until the policy has said who may see them";
    changes: Counters<2> = Counters::by(["module", "action"]), "crm_relay_changes",
        "Changes of records that were told, also where nobody was in their rooms";
    deliveries: Counter = Counter::default(), "crm_relay_deliveries",
        "Changes put into outboxes, a change counted once for each connection";
    lag: Histogram = Histogram::new(SECONDS), "crm_relay_capture_to_outbox_seconds",
        "From the moment at which the trigger saw a change, by the clock of Postgres, to the outboxes of its receivers; of what a throttle held back from its last change on";
    batch: Histogram = Histogram::new(exponential_buckets(1.0, 4.0, 9)), "crm_relay_batch_changes",
        "Changes that were read from the journal at once";
    coalesced: Counter = Counter::default(), "crm_relay_coalesced_changes",
        "Changes that the throttle made part of a later one";
    closes: Counters<2> = Counters::by(["by", "code"]), "crm_relay_closes",
        "Connections that ended, by who ended them (relay, client, network) and close code; 4508 is a client that was too slow";
    handshakes_refused: Counters<1> = Counters::by(["status"]), "crm_relay_handshakes_refused",
        "WebSocket handshakes that were refused, by HTTP status";
    tokens_refused: Counters<1> = Counters::by(["reason"]), "crm_relay_tokens_refused",
        "Tokens that were refused, by the reason that the log tells";
    resumes: Counters<1> = Counters::by(["source"]), "crm_relay_resumes",
        "Subscriptions that asked for what was missed: told from memory or journal, or (resync) that some rooms must be fetched anew";
    resyncs: Counters<1> = Counters::by(["reason"]), "crm_relay_resyncs",
        "Rooms of connections that had to be fetched anew, by reason";
    revoked: Counter = Counter::default(), "crm_relay_revoked_rooms",
        "Rooms taken from connections that may no longer see them";
    doorbells: Counter = Counter::default(), "crm_relay_doorbells",
        "Rings that were heard; those that came together are one";
    safety_poll_finds: Counter = Counter::default(), "crm_relay_safety_poll_finds",
        "Changes that the safety poll found and no bell had announced; must stay 0";
    reconnects: Counter = Counter::default(), "crm_relay_postgres_reconnects",
        "Times that the journal was read again after contact with Postgres was lost";
    leads: Gauge = Gauge::default(), "crm_relay_leads",
        "1 while this relay leads those of its database, else 0";
    led_past: Gauge = Gauge::default(), "crm_relay_led_past",
        "1 while the leading relay is silent and cannot be ended, so that this one looks by itself, else 0";
    journal_rows: Gauge = Gauge::default(), "crm_relay_journal_rows",
        "Rows of the journal, as the statistics of Postgres estimate them once a minute";
    journal_bytes: Gauge = Gauge::default(), "crm_relay_journal_bytes",
        "Size of the journal with its indexes, looked up once a minute";
    journal_oldest: Gauge = Gauge::default(), "crm_relay_journal_oldest_seconds",
        "Age of the oldest change in the journal, looked up once a minute; 0 where there is none";
    journal_retention: Gauge = Gauge::default(), "crm_relay_journal_retention_seconds",
        "How long changes are to be kept; those of a sixth longer may still be there";
    canary_beats: Counters<1> = Counters::by(["result"]), "crm_relay_canary_beats",
        "What the canary wrote, by whether it came back (heard) or not within ten seconds (missed); none without --canary";
    canary_lag: Histogram = Histogram::new(SECONDS), "crm_relay_canary_seconds",
        "From before the canary wrote until what it wrote was in its outbox, by the relay's clock alone";
    build: Build = Build, "crm_relay_build",
        "Which version this is; always 1";
    memory: Gauge = Gauge::default(), "process_resident_memory_bytes",
        "Resident memory of the process, where there is /proc";
    began: Gauge<f64, AtomicU64> = Gauge::default(), "process_start_time_seconds",
        "When the relay began, since 1970";
}

/// Bounds of the lag's buckets: a relay that does well is in the first ones.
const SECONDS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
];

impl Metrics {
    /// What can be told from the beginning; a counter that begins at 0 is one whose first step is seen.
    fn begin(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.began.set(now.unwrap_or_default().as_secs_f64());
        for close in Close::OF_THE_RELAY {
            self.closes
                .of(["relay".into(), close.code.to_string().into()]);
        }
        for source in ["memory", "journal", "resync"] {
            self.resumes.of([source.into()]);
        }
        for result in ["heard", "missed"] {
            self.canary(result);
        }
        for reason in [
            "epoch_changed",
            "cursor_too_old",
            "too_many_changes",
            "access_changed",
            "truncated",
        ] {
            self.resyncs.of([reason.into()]);
        }
        for status in ["403", "429", "503"] {
            self.handshakes_refused.of([status.into()]);
        }
    }

    /// A change was told to so many.
    pub fn told(&self, lag: Duration, receivers: usize, coalesced: u32) {
        self.lag.observe(lag.as_secs_f64());
        self.deliveries.inc_by(receivers as u64);
        self.coalesced.inc_by(u64::from(coalesced));
    }

    /// A connection ended.
    pub fn closed(&self, close: Option<Close>) {
        let (by, code): (_, Cow<str>) = match close {
            None => ("network", "1006".into()),
            Some(close) if close.is_by_client() => match close.code {
                1000 | 1001 | 1005 => ("client", close.code.to_string().into()),
                // it may say any number, and each would be kept
                _ => ("client", "other".into()),
            },
            Some(close) => ("relay", close.code.to_string().into()),
        };
        self.closes.of([by.into(), code]).inc();
    }

    /// Beats of the canary with this result.
    pub fn canary(&self, result: &'static str) -> Counter {
        self.canary_beats.of([result.into()])
    }

    /// So many rooms of connections had to be fetched anew.
    pub fn resynced(&self, reason: &str, rooms: usize) {
        let counter = self.resyncs.of([reason.to_owned().into()]);
        counter.inc_by(rooms as u64);
    }

    /// How much there is of what the rooms know.
    pub fn survey(&self, survey: &Survey) {
        self.rooms.set(survey.rooms as i64);
        self.subscriptions.set(survey.subscriptions as i64);
        self.queue_bytes.set(survey.queue_bytes as i64);
        self.longest_queue_bytes
            .set(survey.longest_queue_bytes as i64);
        self.unjudged.set(survey.unjudged as i64);
    }

    /// How much the journal holds.
    pub fn sized(&self, size: &Size) {
        self.journal_rows.set(size.rows);
        self.journal_bytes.set(size.bytes);
        self.journal_retention.set(size.retention_seconds);
        self.journal_oldest.set(size.oldest_seconds);
    }

    /// All of them, as text.
    pub fn text(&self) -> String {
        if let Some(memory) = memory() {
            self.memory.set(memory);
        }
        let mut text = String::new();
        // to write to a String does not fail
        let _ = prometheus_text::encode(&mut text, &self.registry);
        text
    }
}

/// Bytes of memory that the process has; None where there is no /proc.
fn memory() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// A counter for each combination of values of these labels. There must be few.
#[derive(Debug, Clone)]
pub struct Counters<const N: usize> {
    labels: [&'static str; N],
    family: Family<[(&'static str, Cow<'static, str>); N], Counter>,
}

impl<const N: usize> Counters<N> {
    fn by(labels: [&'static str; N]) -> Counters<N> {
        Counters {
            labels,
            family: Family::default(),
        }
    }

    /// The counter of these values, in the order of the labels.
    pub fn of(&self, values: [Cow<'static, str>; N]) -> Counter {
        let mut values = values.into_iter();
        let labels = self
            .labels
            .map(|label| (label, values.next().unwrap_or_default()));
        self.family.get_or_create_owned(&labels)
    }
}

impl<const N: usize> TypedMetric for Counters<N> {
    const TYPE: MetricType = MetricType::Counter;
}

impl<const N: usize> EncodeMetric for Counters<N> {
    fn encode(&self, encoder: MetricEncoder) -> fmt::Result {
        self.family.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }

    fn is_empty(&self) -> bool {
        self.family.is_empty()
    }
}

/// The version, as the label of a metric.
#[derive(Debug, Clone)]
pub struct Build;

impl EncodeMetric for Build {
    fn encode(&self, mut encoder: MetricEncoder) -> fmt::Result {
        encoder.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Info
    }
}

/// What a metric is told by.
trait Labelled {
    fn labels(&self) -> Vec<&'static str> {
        Vec::new()
    }
}

impl<N, A> Labelled for Gauge<N, A> {}
impl Labelled for Counter {}
impl Labelled for Histogram {}

impl<const N: usize> Labelled for Counters<N> {
    fn labels(&self) -> Vec<&'static str> {
        self.labels.to_vec()
    }
}

impl Labelled for Build {
    fn labels(&self) -> Vec<&'static str> {
        vec!["version"]
    }
}

/// What the format puts behind a name.
fn suffix(kind: MetricType) -> &'static str {
    match kind {
        MetricType::Counter => "_total",
        MetricType::Info => "_info",
        _ => "",
    }
}
