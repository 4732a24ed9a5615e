//! crm-relay makes a PostgreSQL-backed CRM live: a row of a watched table changes, and a moment later
//! every browser that looks at that record shows it. The CRM's backend is not touched.
//!
//! # The way a change goes
//!
//! ```text
//!  CRM transaction ──▶ trigger ──▶ crm_relay.change (journal) ──┐ same transaction: both or neither
//!                         └─────▶ NOTIFY crm_relay (doorbell) ──┤
//!                                                               ▼
//!    doorbell (LISTEN) ─▶ reader (snapshot → snapshot) ─▶ diff ─▶ event ─▶ throttle ─▶ rooms ─▶ connections
//! ```
//!
//! One direction, one path, and each part is ignorant of those after it:
//!
//! | station | what it does | what it does not know |
//! |---|---|---|
//! | [`doorbell`], [`sleep`] | hears that something was committed; tells writers whether they must ring | what |
//! | [`journal`], [`reader`] | reads exactly what became visible since the last [`snapshot`]; keeps what a crash may still take back ([`unsettled`]) | sockets |
//! | [`order`], [`diff`] | bring a transaction's [`change`]s in order; tell which columns changed | I/O of any kind |
//! | [`event`] | what a change is to those who see it; its frames, each put together once | members of rooms |
//! | [`throttle`] | what waits a moment, so that a field does not flicker | members of rooms |
//! | [`rooms`] | who gets it, as far as they may see it; one task owns them all | Postgres and sockets |
//! | [`recent`], [`replay`] | what was told lately, and what of it a client missed that comes back | Postgres |
//! | [`outbox`], [`connection`] | what waits for one client and is written to its [`socket`] | other clients |
//!
//! Beside the way: [`token`] and [`gate`] (who somebody is), [`policy`] (what SQL says of who may see what,
//! by each record's [`standing`], remembered as [`answers`]), [`inquiries`] (the sessions by which it and the journal are asked),
//! [`gathering`] (what many ask at once, asked together),
//! [`subscription`] and [`history`] (what is asked for one who subscribes), [`protocol`] (what clients say), [`frame`] (RFC 6455),
//! [`deflate`] (RFC 7692), [`server`] (HTTP routes,
//! accept loop), [`registry`] (which tables are watched), [`schema`] (what `install` does), [`doctor`]
//! (what is wrong, and what mends it), [`config`] (settings), [`canary`] (proof that nothing is lost),
//! [`traffic`] (the log of events), [`metrics`] (what is counted), [`feed`] (what operators see
//! pass, in the console that [`server`] shows them), [`health`] (what a container asks of it), [`audit`]
//! and [`tail`] (the journal for people, which they [`follow`] without a relay and show in a
//! [`terminal`]), [`explain`] (why somebody did or did not get an event), [`web`] (the files for
//! browsers), [`demo`] (a small CRM to try it with).
//!
//! # Invariants
//!
//! 1. A change is captured in the CRM's own transaction: committed, it is in the journal; rolled back,
//!    also to a savepoint, there is no trace. The CRM never waits for the relay and never fails
//!    because of it.
//! 2. Nothing is lost and nothing is sent twice between journal and room. The position is a snapshot,
//!    clipped to what was read, with a witness; see [`snapshot`].
//! 3. A transaction's events stay together, in the order of their `seq`; transactions go by their
//!    greatest `seq`, which contradicts commit order for no record.
//! 4. A frame is encoded once, however many connections get it. Work per change grows with the members
//!    of its rooms and with nothing else.
//! 5. No queue is unbounded: see [`outbox`] for what happens to a client that does not keep up.
//! 6. Who cannot be given everything is told `resync`.
//! 7. Closed by default. Without a good token nothing is told. Each frame is judged by the record as it
//!    was before and as it is after the change, live, held back or replayed; what nobody has judged is
//!    not told. A grant is applied with everything that happened since the moment it was made. Hidden
//!    columns never leave Postgres.
//! 8. Loss of contact is seen: `/readyz` and the log tell it, and the reader comes back by itself.
//!
//! # Whose WebSocket
//!
//! The crates that were looked at (`tungstenite`, `fastwebsockets`, `yawc`) encode a frame for each
//! socket anew and keep buffers for each, so [`frame`] is our own: small, pure, compared with
//! tungstenite's decoder on the same bytes in `tests/frame.rs`, and fuzzed under `tests/fuzz`.

pub mod answers;
pub mod audit;
pub mod canary;
pub mod change;
pub mod config;
pub mod connection;
pub mod deflate;
pub mod demo;
pub mod diff;
pub mod doctor;
pub mod doorbell;
pub mod event;
pub mod explain;
pub mod feed;
pub mod follow;
pub mod frame;
pub mod gate;
pub mod gathering;
pub mod health;
pub mod history;
pub mod inquiries;
pub mod journal;
pub mod metrics;
pub mod order;
pub mod outbox;
pub mod policy;
pub mod postgres;
pub mod protocol;
pub mod rate;
pub mod reader;
pub mod recent;
pub mod registry;
pub mod replay;
pub mod rooms;
pub mod schema;
pub mod server;
pub mod sleep;
pub mod snapshot;
pub mod socket;
pub mod standing;
pub mod subscription;
pub mod tail;
pub mod terminal;
pub mod throttle;
pub mod tls;
pub mod token;
pub mod traffic;
pub mod unsettled;
pub mod web;
