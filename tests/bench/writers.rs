//! What capturing costs the writer: `pgbench`, by turns with the relay's triggers and without. Commits are flushed to
//! disk, as where data counts; what is left without that says what the trigger's own work is.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio_postgres::{Client, NoTls};

use crate::figure::{Figure, Goal, Other, median};
use crate::{plot, table};

const PART: &str = "writers";
const NAME: &str = "bench_writers";

/// A table of 22 columns, ten thousand rows of it; a hundred escrows whose five jsonb columns have 33 KB each, and
/// a hundred of the same 44 columns that have little in them.
const ROWS: &str = "
create table public.deals (
  id uuid primary key default gen_random_uuid(), first_name text, last_name text, email text, phone text, source text,
  status text not null default 'new', notes text, price numeric(12,2), number_of_contacts int not null default 0,
  next_follow_up_date date, owner_id uuid, team_id uuid, broker_id uuid, is_private boolean not null default false,
  access_level varchar not null default 'team', version int not null default 1, created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(), last_modified_by uuid, created_by uuid, is_archived boolean not null default false
) with (fillfactor = 70);
insert into public.deals (id, first_name, last_name, email, phone, source, notes, price, owner_id, team_id, broker_id, last_modified_by, created_by)
select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 'Maria', 'Lopez ' || n, 'maria.lopez.' || n || '@example.com', '555-010-' || n,
       'referral', 'Prefers calls in the afternoon', 450000 + n, gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), gen_random_uuid()
  from generate_series(0, 9999) n;
insert into public.escrows (id, purchase_price, people, timeline, checklists, documents, clients)
select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 1, large, large, large, large, large
  from generate_series(0, 99) n
 cross join lateral (
   select jsonb_agg(jsonb_build_object('id', i, 'done', i % 3 = 0, 'due', date '2026-11-01' + i % 60,
            'task', (array['Order the appraisal', 'Collect the disclosures', 'Schedule the inspection', 'Wire the deposit', 'Sign the addendum'])[1 + i % 5],
            'by', (array['Maria Lopez', 'John Smith', 'Ann Baker'])[1 + i % 3],
            'note', 'Waiting for the other side; called twice on ' || (date '2026-10-01' + (i + n) % 50))) as large
     from generate_series(1, 200) i) as made;
insert into public.escrows (id, purchase_price, people, checklists, notes, property_address, display_address, city, state, zip_code, escrow_officer_name, escrow_officer_email)
select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 450000, '[]', jsonb_build_array(jsonb_build_object('id', 1, 'done', false)), 'Prefers calls in the afternoon',
       n || ' Main Street', n || ' Main Street, Reno', 'Reno', 'NV', '89501', 'Ann Baker', 'ann.baker@example.com'
  from generate_series(100, 199) n";

/// As the CRM edits a record.
const EDIT: &str = "updated_at = now(), version = version + 1, last_modified_by = '00000000-0000-4000-8000-00000000000a'";

/// The least that a trigger in PL/pgSQL can do for a journal: both images, in a table without index, partitions
/// and rights, and the doorbell.
const LEAST: &str = "
create table public.plain (seq bigint generated always as identity, txid xid8 default pg_current_xact_id(), module text, old_image json, new_image json);
create function public.plain() returns trigger language plpgsql as $$ begin
  insert into public.plain (module, old_image, new_image) values (tg_argv[0], row_to_json(old), row_to_json(new));
  if not pg_try_advisory_xact_lock_shared('crm_relay.setting'::regclass::oid::int, 2) then
    perform pg_notify('plain', tg_argv[0]);
  end if;
  return null;
end $$;
create trigger plain after update on public.deals for each row execute function public.plain('deals');
alter table public.deals disable trigger plain";

/// The relay's trigger.
const OURS: &str = "!crm_relay";

/// A before trigger that edits a large column of the same length, and what the journal must say then.
const BEHIND: &str = "
create function public.behind() returns trigger language plpgsql as
  $$ begin new.people := replace(new.people::text, 'Maria Lopez', 'Maria Gomez')::jsonb; return new; end $$;
create trigger behind before update on public.escrows for each row execute function public.behind();
update public.escrows set purchase_price = purchase_price + 1;
drop trigger behind on public.escrows;
drop function public.behind()";
const MISSED: &str = "
select count(*) from public.escrows e
 where not exists (select from crm_relay.change c
                    where c.record_id = e.id::text and c.new_image -> 'people' is not null
                      and (c.new_image ->> 'people')::jsonb = e.people and (c.old_image ->> 'people')::jsonb <> e.people)";

/// What is written.
#[derive(Clone, Copy)]
struct Work {
    table: &'static str,
    script: &'static str,
    clients: u32,
    /// How statements are sent: `prepared`, or `extended`, as the `pg` of Node does.
    protocol: &'static str,
}

const ONE: &str = "\\set n random(0, 9999)
update public.deals set price = price + 1, {EDIT} where id = ('00000000-0000-4000-8000-' || lpad(:n::text, 12, '0'))::uuid;";
const RECORD: &str = "\\set n random(100, 199)
update public.escrows set purchase_price = purchase_price + 1, {EDIT} where id = ('00000000-0000-4000-8000-' || lpad(:n::text, 12, '0'))::uuid;";
const THOUSAND: &str = "\\set n random(0, 8999)
update public.deals set price = price + 1, {EDIT}
 where id between ('00000000-0000-4000-8000-' || lpad(:n::text, 12, '0'))::uuid and ('00000000-0000-4000-8000-' || lpad((:n + 999)::text, 12, '0'))::uuid;";
const WIDE: &str = "\\set n random(0, 99)
update public.escrows set purchase_price = purchase_price + 1, {EDIT} where id = ('00000000-0000-4000-8000-' || lpad(:n::text, 12, '0'))::uuid;";

/// Throughput of one row by eight and by one, of a record as the CRM has them, the time of a thousand at once, a wide
/// row and its WAL, and how many changes of a large column were missed. A relay runs, but for one line.
pub async fn run(quick: bool) -> Vec<Figure> {
    let (rounds, seconds) = if quick { (2, 1) } else { (7, 8) };
    let ground = Ground::new().await;
    let one = Work {
        table: "deals",
        script: ONE,
        clients: 8,
        protocol: "prepared",
    };
    let mut figures = Vec::new();

    ground.flush(true).await;
    let alone = ground.by_turns(one, OURS, rounds, seconds).await;
    let mut relay = ground.relay().await;
    let beside = ground.by_turns(one, OURS, rounds, seconds).await;
    figures.push(beside.throughput("one row of 22 columns, 8 clients", Some(0.75)));
    figures.push(alone.throughput("the same without a relay", None));
    let as_node = Work {
        protocol: "extended",
        ..one
    };
    let unprepared = ground.by_turns(as_node, OURS, rounds, seconds).await;
    figures.push(unprepared.throughput("the same, parsed each time, as Node's pg does", None));
    ground.slow_disk(true).await;
    let slow = ground.by_turns(one, OURS, rounds, seconds).await;
    figures.push(slow.throughput("the same on a disk that takes 5 ms to flush", None));
    ground.slow_disk(false).await;
    let one_client = Work { clients: 1, ..one };
    let by_one = ground.by_turns(one_client, OURS, rounds, seconds).await;
    figures.push(by_one.throughput("one row of 22 columns, 1 client", Some(0.88)));
    let record = Work {
        table: "escrows",
        script: RECORD,
        ..one
    };
    let record = ground.by_turns(record, OURS, rounds, seconds).await;
    figures.push(record.throughput("a record of 44 columns, 8 clients", None));
    // what any journal costs here
    ground
        .sql("alter table public.deals disable trigger \"!crm_relay\"")
        .await;
    let least = ground.by_turns(one, "plain", rounds, seconds).await;
    let least_by_one = ground.by_turns(one_client, "plain", rounds, seconds).await;
    ground
        .sql("alter table public.deals disable trigger plain")
        .await;
    figures.push(least.throughput("8 clients, the least that a journal can be", None));
    figures.push(least_by_one.throughput("1 client, the least that a journal can be", None));
    let bars: Vec<_> = [
        ("8 clients, the relay's", median(&beside.on)),
        ("the least journal", median(&least.on)),
        ("no trigger", median(&beside.off)),
        ("1 client, the relay's", median(&by_one.on)),
        ("the least journal", median(&least_by_one.on)),
        ("no trigger", median(&by_one.off)),
    ]
    .into_iter()
    .map(|(name, rate)| (name.to_owned(), rate))
    .collect();
    let drawn = plot::bars(
        "Writers: one row of 22 columns in a transaction",
        "transactions a second",
        &bars,
    );
    std::fs::write(table::place(quick, "writers.svg"), drawn).expect("a plot");

    let thousand = Work {
        script: THOUSAND,
        clients: 1,
        ..one
    };
    let thousand = ground.by_turns(thousand, OURS, rounds, seconds).await;
    figures.push(thousand.time("one statement over 1,000 rows", 6.0));

    let wide = Work {
        table: "escrows",
        script: WIDE,
        ..one
    };
    let wide = ground.by_turns(wide, OURS, rounds, seconds).await;
    figures.push(wide.throughput("a price of a row with five 33 KB columns", Some(0.50)));
    figures.push(wide.wal("WAL of such an edit", 2.0));

    ground.flush(false).await;
    let beside = ground.by_turns(one, OURS, rounds, seconds).await;
    figures.push(beside.throughput("22 columns, 8 clients, commits not flushed", None));
    let by_one = ground.by_turns(one_client, OURS, rounds, seconds).await;
    figures.push(by_one.throughput("22 columns, 1 client, commits not flushed", None));

    ground.sql("truncate crm_relay.change").await;
    ground
        .sql("delete from public.escrows where people = '[]'")
        .await;
    ground.sql(BEHIND).await;
    let missed: i64 = ground
        .client
        .query_one(MISSED, &[])
        .await
        .expect("the journal")
        .get(0);
    figures.push(Figure {
        part: PART,
        what: "changes of a large column by a before trigger that were missed, of 100".to_owned(),
        value: missed as f64,
        runs: vec![missed as f64],
        unit: "",
        against: None,
        goal: Some(Goal::AtMost(0.0)),
    });
    relay.kill().await.expect("the relay's end");
    figures
}

/// A database with the relay's schema, and rows to write to.
struct Ground {
    client: Client,
    url: String,
    scripts: PathBuf,
}

impl Ground {
    async fn new() -> Ground {
        let server =
            std::env::var("DATABASE_URL").expect("DATABASE_URL, as deploy/postgres.sh sets it");
        let any = session(&server).await;
        for statement in [
            format!("drop database if exists {NAME} with (force)"),
            format!("create database {NAME}"),
        ] {
            any.batch_execute(&statement)
                .await
                .expect("a database of its own");
        }
        let (server, _) = server
            .rsplit_once('/')
            .expect("DATABASE_URL ends with a database");
        let url = format!("{server}/{NAME}");
        let scripts =
            std::env::temp_dir().join(format!("crm-relay-writers-{}", std::process::id()));
        std::fs::create_dir_all(&scripts).expect("a directory for pgbench's scripts");
        let client = session(&url).await;
        let ground = Ground {
            client,
            url,
            scripts,
        };
        ground.sql(include_str!("../../deploy/crm.sql")).await;
        ground.sql(ROWS).await;
        let installed = Command::new(relay())
            .arg("install")
            .env("DATABASE_URL", &ground.url)
            .output();
        let installed = installed.await.expect("target/release/crm-relay, built");
        assert!(
            installed.status.success(),
            "crm-relay install: {}",
            String::from_utf8_lossy(&installed.stderr)
        );
        ground.sql("select crm_relay.watch('public.deals')").await;
        ground.sql(LEAST).await;
        ground.sql("vacuum analyze").await;
        ground
    }

    async fn sql(&self, statements: &str) {
        let done = self.client.batch_execute(statements).await;
        done.unwrap_or_else(|error| panic!("{error:?} of {statements}"));
    }

    /// Whether commits wait for the disk, as they do unless somebody says otherwise.
    async fn flush(&self, is_flushed: bool) {
        let set = |name: &str| match is_flushed {
            true => format!("alter system set {name} = on"),
            false => format!("alter system reset {name}"),
        };
        self.sql(&set("fsync")).await;
        self.sql(&set("full_page_writes")).await;
        self.sql("select pg_reload_conf()").await;
        self.until("current_setting('fsync')::bool", is_flushed)
            .await;
    }

    /// Whether each flush of the WAL takes five milliseconds more, which writers that flush together share.
    async fn slow_disk(&self, is_slow: bool) {
        let set = |name: &str, value: u32| match is_slow {
            true => format!("alter system set {name} = {value}"),
            false => format!("alter system reset {name}"),
        };
        self.sql(&set("commit_delay", 5000)).await;
        self.sql(&set("commit_siblings", 0)).await;
        self.sql("select pg_reload_conf()").await;
        self.until("current_setting('commit_delay')::int > 0", is_slow)
            .await;
    }

    async fn until(&self, asked: &str, is_so: bool) {
        let asked = format!("select {asked}");
        while self
            .client
            .query_one(&asked, &[])
            .await
            .expect("a setting")
            .get::<_, bool>(0)
            != is_so
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A relay that has read what there is.
    async fn relay(&self) -> Child {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = free.local_addr().expect("its number");
        drop(free);
        let relay = Command::new(relay())
            .args(["serve", "--no-auth", "--listen", &address.to_string()])
            .env("DATABASE_URL", &self.url)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("target/release/crm-relay, built");
        // whoever sleeps there holds this lock, see crm_relay.ring()
        let asleep = "select from pg_locks where locktype = 'advisory' and objid = 2 and mode = 'ExclusiveLock' and granted
                        and classid = 'crm_relay.setting'::regclass";
        while self
            .client
            .query(asleep, &[])
            .await
            .expect("the locks")
            .is_empty()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        relay
    }

    /// Off, on, off, on.
    async fn by_turns(&self, work: Work, trigger: &str, rounds: usize, seconds: u32) -> Turns {
        let script = self.scripts.join("script.sql");
        std::fs::write(&script, work.script.replace("{EDIT}", EDIT)).expect("pgbench's script");
        let mut turns = Turns::default();
        for _ in 0..rounds {
            for (state, rates, wal) in [
                ("disable", &mut turns.off, &mut turns.wal_off),
                ("enable", &mut turns.on, &mut turns.wal_on),
            ] {
                let table = work.table;
                self.sql(&format!(
                    "alter table {table} {state} trigger \"{trigger}\""
                ))
                .await;
                self.sql(&format!("vacuum {table}")).await;
                self.sql("truncate crm_relay.change").await;
                let before = self.wal().await;
                let (count, rate) = self.pgbench(work, &script, seconds).await;
                wal.push((self.wal().await - before) / count / 1024.0);
                rates.push(rate);
            }
        }
        turns
    }

    /// Bytes of WAL that there ever were.
    async fn wal(&self) -> f64 {
        let asked = "select (pg_current_wal_insert_lsn() - '0/0')::float8";
        self.client
            .query_one(asked, &[])
            .await
            .expect("the WAL's end")
            .get(0)
    }

    /// Transactions, and those of a second.
    async fn pgbench(&self, work: Work, script: &Path, seconds: u32) -> (f64, f64) {
        let bin = std::env::var("PG_BIN").expect("PG_BIN, as deploy/postgres.sh sets it");
        let output = Command::new(Path::new(&bin).join("pgbench"))
            .args(["--no-vacuum", "--protocol", work.protocol, "--jobs", "1"])
            .args([
                "--client",
                &work.clients.to_string(),
                "--time",
                &seconds.to_string(),
                "--file",
            ])
            .arg(script)
            .arg(&self.url)
            .output();
        let output = output.await.expect("pgbench");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "pgbench: {errors}");
        let number = |before: &str| {
            let rest = told.split_once(before).map(|(_, rest)| rest.trim_start());
            let digits = rest.and_then(|rest| {
                rest.split(|it: char| !it.is_ascii_digit() && it != '.')
                    .next()
            });
            digits
                .and_then(|digits| digits.parse::<f64>().ok())
                .unwrap_or_else(|| panic!("{before} in {told}"))
        };
        (number("transactions actually processed:"), number("tps ="))
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scripts);
    }
}

/// Transactions a second, and KB of WAL of each, by round.
#[derive(Default)]
struct Turns {
    off: Vec<f64>,
    on: Vec<f64>,
    wal_off: Vec<f64>,
    wal_on: Vec<f64>,
}

impl Turns {
    fn throughput(&self, what: &str, least: Option<f64>) -> Figure {
        figure(what, "/s", &self.on, &self.off, least.map(Goal::AtLeast))
    }

    fn time(&self, what: &str, most: f64) -> Figure {
        let ms = |rates: &[f64]| rates.iter().map(|rate| 1000.0 / rate).collect::<Vec<_>>();
        figure(
            what,
            "ms",
            &ms(&self.on),
            &ms(&self.off),
            Some(Goal::AtMost(most)),
        )
    }

    /// No ratio: what it may be is said in KB.
    fn wal(&self, what: &str, most: f64) -> Figure {
        Figure {
            against: None,
            what: format!("{what} (without triggers {:.2})", median(&self.wal_off)),
            ..figure(
                what,
                "KB",
                &self.wal_on,
                &self.wal_off,
                Some(Goal::AtMost(most)),
            )
        }
    }
}

fn figure(what: &str, unit: &'static str, on: &[f64], off: &[f64], goal: Option<Goal>) -> Figure {
    Figure {
        part: PART,
        what: what.to_owned(),
        value: median(on),
        runs: on.to_vec(),
        unit,
        against: Some(Other {
            name: "triggers off".to_owned(),
            value: median(off),
            runs: off.to_vec(),
        }),
        goal,
    }
}

fn relay() -> PathBuf {
    std::env::var_os("CRM_RELAY")
        .map_or_else(|| PathBuf::from("target/release/crm-relay"), PathBuf::from)
}

async fn session(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("a session in Postgres");
    tokio::spawn(connection);
    client
}
