//! Two databases of the same small CRM: one with the relay's triggers, one with those that a user would
//! write for a peer.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};

use crate::{machine, statements};

/// Records and users of the CRM.
pub const RECORDS: usize = 10_000;

/// The databases.
pub struct Ground {
    server: String,
}

/// Whose triggers a database has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// crm-relay's.
    Relay,
    /// `pg_notify(row_to_json(new))`.
    Notify,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Side::Relay => "bench_relay",
            Side::Notify => "bench_notify",
        }
    }
}

impl Ground {
    /// Both databases, made anew.
    pub async fn new() -> Ground {
        let url =
            std::env::var("DATABASE_URL").expect("DATABASE_URL, as tests/bench/run.sh sets it");
        let (server, _) = url
            .rsplit_once('/')
            .expect("DATABASE_URL ends with a database");
        let ground = Ground {
            server: server.to_owned(),
        };
        let any = session(&url).await;
        statements::rest(&any).await;
        for side in [Side::Relay, Side::Notify] {
            let name = side.name();
            any.batch_execute(&format!("drop database if exists {name} with (force)"))
                .await
                .expect("no database of before");
            any.batch_execute(&format!("create database {name}"))
                .await
                .expect("a database");
            let database = ground.session(side).await;
            // vacuum wants to be alone in its statement
            for statement in include_str!("crm.sql").split_inclusive(";\n") {
                database
                    .batch_execute(statement)
                    .await
                    .expect("the CRM's tables");
            }
        }
        let notify = ground.session(Side::Notify).await;
        notify
            .batch_execute(include_str!("notify.sql"))
            .await
            .expect("the trigger by hand");
        let installed = Command::new(relay())
            .arg("install")
            .env("DATABASE_URL", ground.url(Side::Relay))
            .output();
        let installed =
            installed.expect("target/release/crm-relay, as tests/bench/run.sh builds it");
        assert!(
            installed.status.success(),
            "crm-relay install: {}",
            String::from_utf8_lossy(&installed.stderr)
        );
        ground
    }

    /// A session, which ends with the client.
    pub async fn session(&self, side: Side) -> Client {
        session(&self.url(side)).await
    }

    /// As `DATABASE_URL` wants it.
    pub fn url(&self, side: Side) -> String {
        format!("{}/{}", self.server, side.name())
    }

    /// Binds Postgres, and this process, to cores.
    pub async fn bind(&self, cores: &str) {
        let any = self.session(Side::Notify).await;
        let asked = "select split_part(pg_read_file('postmaster.pid'), e'\\n', 1)::int";
        let postmaster: i32 = any
            .query_one(asked, &[])
            .await
            .expect("the server's process id")
            .get(0);
        machine::bind(postmaster as u32, cores);
        machine::bind(std::process::id(), cores);
    }
}

/// A session on a database; panics if there is none to have.
pub async fn session(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("a session in Postgres");
    tokio::spawn(connection);
    client
}

/// The binary that is measured.
pub fn relay() -> PathBuf {
    std::env::var_os("CRM_RELAY")
        .map_or_else(|| PathBuf::from("target/release/crm-relay"), PathBuf::from)
}

/// Id of a record.
pub fn record(number: usize) -> String {
    format!("30000000-0000-4000-8000-{:012}", number % RECORDS)
}

/// Id of a user.
pub fn user(number: usize) -> String {
    format!("20000000-0000-4000-8000-{:012}", number % RECORDS)
}

/// How fast changes are made.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// Each when the one before is committed.
    Saturated,
    /// One in so long.
    Every(Duration),
}

/// Changes records by turns, one in a transaction, in a thread of its own; tells when each began.
pub fn change(
    url: String,
    records: usize,
    changes: usize,
    pace: Pace,
) -> std::thread::JoinHandle<Vec<Instant>> {
    std::thread::spawn(move || {
        alone(async move {
            let session = session(&url).await;
            let update = "update public.listings set list_price = list_price + 1, version = version + 1, updated_at = now() where id = $1::text::uuid";
            let update = session.prepare(update).await.expect("an update");
            let began = Instant::now();
            let mut at = Vec::with_capacity(changes);
            for number in 0..changes {
                if let Pace::Every(pause) = pace {
                    tokio::time::sleep_until((began + pause * number as u32).into()).await;
                }
                at.push(Instant::now());
                let record = record(number % records);
                session
                    .execute(&update, &[&record])
                    .await
                    .expect("a change");
            }
            at
        })
    })
}

/// Runs in a runtime of this thread.
pub fn alone<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(work)
}
