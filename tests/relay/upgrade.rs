//! From each earlier version to this one, and away again.
//!
//! `tests/sql/versions/` holds what earlier versions installed, and the schema as it is now, dumped:
//! `DUMP=1 deploy/postgres.sh run -- cargo test --test relay whatever_version` writes it anew.

use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::time::timeout;

use crate::harness::{DEADLINE, Database, crm_relay};

const CRM: &str = include_str!("../../deploy/crm.sql");
const VERSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sql/versions");
const INSTALLED: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/sql/versions/installed.sql"
);

fn succeeded(output: &Output) -> String {
    let (told, errors) = (&output.stdout, &output.stderr);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(errors)
    );
    String::from_utf8_lossy(told).into_owned()
}

/// The CRM, and what an earlier version installed.
async fn of_version(file: &std::path::Path) -> Database {
    let database = Database::bare().await;
    database.execute(CRM).await;
    let installed = Command::new("psql")
        .args(["-q", "-v", "ON_ERROR_STOP=1", "-d", &database.url(), "-f"])
        .arg(file)
        .output();
    succeeded(&installed.unwrap());
    database
}

/// Every earlier version, the first one first.
fn earlier_versions() -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(VERSIONS).unwrap();
    let mut versions: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    versions.retain(|path| path != std::path::Path::new(INSTALLED));
    versions.sort();
    let newest = crm_relay::journal::SCHEMA_VERSION;
    assert_eq!(
        versions.len(),
        newest as usize - 1,
        "each earlier version is here"
    );
    versions
}

/// The schema as `pg_dump` writes it, without what its own version adds; rights in any order.
fn dump(database: &Database, options: &[&str]) -> String {
    let bin = std::env::var("PG_BIN").expect("PG_BIN, as deploy/postgres.sh sets it");
    let dumped = Command::new(format!("{bin}/pg_dump"))
        .args(["--schema-only", "-d", &database.url()])
        .args(options)
        .output();
    let dumped = succeeded(&dumped.unwrap());
    let noise = ["--", "SET ", "SELECT pg_catalog.set_config", "\\"];
    let lines = dumped.lines().map(str::trim_end);
    let (mut rights, mut lines): (Vec<&str>, Vec<&str>) = lines
        .filter(|line| !line.is_empty() && !noise.iter().any(|noise| line.starts_with(noise)))
        .partition(|line| line.starts_with("GRANT ") || line.starts_with("REVOKE "));
    rights.sort_unstable();
    lines.append(&mut rights);
    lines.join("\n") + "\n"
}

#[tokio::test]
async fn whatever_version_one_comes_from_the_schema_is_the_same_and_nothing_is_lost() {
    let fresh = Database::create().await;
    let whole = dump(&fresh, &[]);
    let server = fresh
        .value("select current_setting('server_version_num')::int / 10000")
        .await;
    let now = format!(
        "-- crm_relay as PostgreSQL {server} dumps it\n{}",
        dump(&fresh, &["-n", "crm_relay"])
    );
    if std::env::var_os("DUMP").is_some() {
        std::fs::write(INSTALLED, &now).unwrap();
    }
    let committed = std::fs::read_to_string(INSTALLED).unwrap();
    if committed.lines().next() == now.lines().next() {
        let differs = now.lines().zip(committed.lines()).find(|(a, b)| a != b);
        assert!(
            now == committed,
            "tests/sql/versions/installed.sql is old: DUMP=1 writes it anew; {differs:?}"
        );
    }

    let rule = "create or replace function crm_relay.rooms_of(module text, image json) returns text[]
                language sql stable set search_path = pg_catalog, pg_temp as 'select array[''user:'' || module]'";
    for file in earlier_versions() {
        let database = of_version(&file).await;
        database.execute(rule).await;
        database
            .execute(
                "create table notes (id int primary key, body text, margin int);
                 select crm_relay.watch('notes', event => 'REMARK', hidden_columns => '{margin}');
                 update crm_relay.setting set retention = '3 days', doorbell = 'never';
                 insert into notes values (1, 'a', 7);
                 insert into leads (first_name) values ('x');
                 update leads set first_name = 'y'",
            )
            .await;
        let rows = "select string_agg(concat_ws(' ', seq, txid, module, action, record_id, old_image, new_image), '; ' order by seq) from crm_relay.change";
        let registry = "select concat_ws(' ', event, hidden_columns, chosen) from crm_relay.module where module = 'notes'";
        let settings =
            "select concat_ws(' ', install_id, retention, doorbell) from crm_relay.setting";
        let source = "select prosrc from pg_proc where oid = to_regprocedure('crm_relay.rooms_of(text, json)')";
        let mut before = Vec::new();
        for question in [rows, registry, settings, source] {
            before.push(database.value(question).await);
        }

        succeeded(&crm_relay(&database.url(), &["install"]));

        for (question, before) in [rows, registry, settings, source].into_iter().zip(before) {
            assert_eq!(database.value(question).await, before, "{}", file.display());
        }
        let goes_by = "select concat_ws(' ', doorbell, slot_seconds, marks) from crm_relay.module where module = 'notes'";
        assert_eq!(database.value(goes_by).await, "never 43200 {id}");
        database
            .execute("update notes set body = 'b', margin = 8")
            .await;
        assert_eq!(
            database
                .value("select new_image from crm_relay.change order by seq desc limit 1")
                .await
                .replace(' ', ""),
            r#"{"id":1,"body":"b"}"#
        );
        // without what was its own it is as one that never was another
        database
            .execute(
                "select crm_relay.unwatch('notes'); drop table notes;
                 drop function crm_relay.rooms_of(text, json)",
            )
            .await;
        succeeded(&crm_relay(&database.url(), &["install"]));
        let upgraded = dump(&database, &[]);
        let differs = upgraded.lines().zip(whole.lines()).find(|(a, b)| a != b);
        assert!(upgraded == whole, "{}: {differs:?}", file.display());
    }
}

#[tokio::test]
async fn an_upgrade_holds_up_nobody_who_writes() {
    for file in earlier_versions() {
        let database = of_version(&file).await;
        let open = database.connect().await;
        open.batch_execute("begin; insert into leads (first_name) values ('open')")
            .await
            .unwrap();
        let writers = Writers::start(&database, &[("escrows", "city"), ("listings", "city")]).await;
        let url = database.url();
        let install = tokio::task::spawn_blocking(move || crm_relay(&url, &["install"]));
        let before = writers.count();
        let meanwhile = async {
            while writers.count() < before + 100 {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, meanwhile)
            .await
            .expect("writers go on while it waits, or is done");
        open.batch_execute("commit").await.unwrap();
        succeeded(&install.await.unwrap());
        writers.stop().await;
        assert_eq!(
            database
                .value("select version from crm_relay.setting")
                .await,
            crm_relay::journal::SCHEMA_VERSION.to_string()
        );
    }
}

#[tokio::test]
async fn uninstalling_under_load_leaves_every_table_as_it_was_and_stalls_nobody() {
    let database = Database::bare().await;
    database.execute(CRM).await;
    let before = dump(&database, &[]);
    succeeded(&crm_relay(&database.url(), &["install"]));
    let writers = Writers::start(
        &database,
        &[
            ("escrows", "city"),
            ("leads", "first_name"),
            ("clients", "status"),
        ],
    )
    .await;
    // a long transaction on a table of its own
    let long = database.connect().await;
    long.batch_execute("begin; insert into listings (city) values ('open')")
        .await
        .unwrap();
    let url = database.url();
    let uninstall = tokio::task::spawn_blocking(move || crm_relay(&url, &["uninstall"]));
    // it comes to that table, waits shortly, lets others pass, and tries again
    let waits = "select coalesce(max(pid), 0)::text, coalesce(extract(epoch from max(clock_timestamp() - waitstart)) * 1000, 0)::int::text
                   from pg_locks where not granted and relation = 'listings'::regclass
                    and database = (select oid from pg_database where datname = current_database())";
    let (mut tries, mut waited) = (0, false);
    let came_again = async {
        while tries < 3 {
            assert!(
                !uninstall.is_finished(),
                "it cannot be done while a table is held"
            );
            let rows = database.client().simple_query(waits).await.unwrap();
            let (now, ms) = rows
                .iter()
                .find_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => Some((
                        row.get(0) != Some("0"),
                        row.get(1).unwrap().parse::<u32>().unwrap(),
                    )),
                    _ => None,
                })
                .unwrap();
            // its lock_timeout is 300 ms
            assert!(ms < 1000, "it waits for a lock for {ms} ms");
            tries += u32::from(now && !waited);
            waited = now;
        }
    };
    timeout(DEADLINE, came_again)
        .await
        .expect("it tries again and again");
    let written = writers.count();
    let go_on = async {
        while writers.count() < written + 50 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, go_on)
        .await
        .expect("writers of other tables go on");
    long.batch_execute("commit").await.unwrap();
    succeeded(&uninstall.await.unwrap());
    writers.stop().await;
    assert_eq!(
        dump(&database, &[]),
        before,
        "every table is exactly as before"
    );
}

/// Writers that fail the test when a statement of theirs takes two seconds.
struct Writers {
    written: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    async fn start(database: &Database, columns: &[(&str, &str)]) -> Writers {
        let (written, stop) = (Arc::<AtomicU32>::default(), Arc::<AtomicBool>::default());
        let mut tasks = Vec::new();
        for (table, column) in columns {
            let session = database.connect().await;
            session
                .batch_execute("set statement_timeout = '2s'")
                .await
                .unwrap();
            let write = format!(
                "insert into {table} ({column}) values ('x');
                 update {table} set {column} = 'y' where id = (select id from {table} limit 1)"
            );
            let (written, stop) = (written.clone(), stop.clone());
            tasks.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    session
                        .batch_execute(&write)
                        .await
                        .unwrap_or_else(|error| panic!("a writer was held up: {error:?}"));
                    written.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        Writers {
            written,
            stop,
            tasks,
        }
    }

    fn count(&self) -> u32 {
        self.written.load(Ordering::Relaxed)
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}
