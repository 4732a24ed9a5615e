//! The commands, and what they say when they cannot.

use std::process::{Command, Stdio};

use crate::edge::{Authority, Folder};
use crate::harness::{Database, Relay, crm_relay};

const NOBODY: &str = "postgresql://relay:secret@127.0.0.1:1/crm";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn install_may_be_run_again_and_uninstall_leaves_nothing() {
    let database = Database::create().await;
    let triggers = "select count(*) from pg_trigger where not tgisinternal";
    let before = database
        .value(
            "select coalesce(sum(oid::bigint), 0) from pg_trigger where tgname like '!crm_relay%'",
        )
        .await;
    let again = crm_relay(&database.url(), &["install"]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert!(
        text(&again.stdout).contains("public.escrows: watched as escrows"),
        "{}",
        text(&again.stdout)
    );
    let after = database
        .value(
            "select coalesce(sum(oid::bigint), 0) from pg_trigger where tgname like '!crm_relay%'",
        )
        .await;
    assert_eq!(before, after, "triggers that stand are left alone");
    let gone = crm_relay(&database.url(), &["uninstall"]);
    assert!(gone.status.success(), "{}", text(&gone.stderr));
    assert_eq!(database.value(triggers).await, "0");
    assert_eq!(
        database
            .value("select count(*) from pg_namespace where nspname = 'crm_relay'")
            .await,
        "0"
    );
    assert_eq!(
        database
            .value("select count(*) from pg_class where relacl::text like '%crm_relay%'")
            .await,
        "0"
    );
    database
        .execute("insert into leads (first_name) values ('still works')")
        .await;
}

#[tokio::test]
async fn install_says_table_by_table_what_it_found() {
    let database = Database::bare().await;
    database
        .execute("create table leads (id uuid primary key, first_name text)")
        .await;
    let installed = crm_relay(&database.url(), &["install"]);
    let told = text(&installed.stdout);
    assert!(told.contains("public.escrows: no such table"), "{told}");
    assert!(told.contains("public.leads: watched as leads; expected columns that it does not have: owner_id, user_id"), "{told}");
    database
        .execute("insert into leads values (gen_random_uuid(), 'x')")
        .await;
    assert_eq!(
        database
            .value("select count(*) from crm_relay.change")
            .await,
        "1"
    );
}

#[tokio::test]
async fn a_dry_run_prints_the_sql_and_changes_nothing() {
    let database = Database::bare().await;
    let dry = crm_relay(&database.url(), &["install", "--dry-run"]);
    assert!(dry.status.success());
    assert_eq!(
        database
            .value("select count(*) from pg_namespace where nspname = 'crm_relay'")
            .await,
        "0"
    );
    // what it printed does the same by psql
    let mut psql = Command::new("psql")
        .args(["-q", "-v", "ON_ERROR_STOP=1", "-d", &database.url()])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(
        &mut psql.stdin.take().unwrap(),
        &[&dry.stdout[..], b";"].concat(),
    )
    .unwrap();
    assert!(psql.wait().unwrap().success());
    assert_eq!(
        database
            .value("select version from crm_relay.setting")
            .await,
        crm_relay::journal::SCHEMA_VERSION.to_string()
    );
}

#[tokio::test]
async fn a_newer_schema_is_left_alone() {
    let database = Database::create().await;
    database
        .execute("update crm_relay.setting set version = version + 1")
        .await;
    let refused = crm_relay(&database.url(), &["install"]);
    assert_eq!(refused.status.code(), Some(1));
    let newer = crm_relay::journal::SCHEMA_VERSION + 1;
    assert!(
        text(&refused.stderr).contains(&format!("version {newer} is installed, newer")),
        "{}",
        text(&refused.stderr)
    );
}

#[tokio::test]
async fn what_cannot_be_watched_is_refused_with_what_would_be_right() {
    let database = Database::create().await;
    database.execute("create view seen as select 1 as id; create table keyless (a int); create table team (id int primary key)").await;
    for (table, told) in [
        ("seen", "is not a table"),
        ("keyless", "has no primary key"),
        ("team", "no module may be called team"),
        ("crm_relay.change", "never watched"),
        ("nowhere", "does not exist"),
        ("leads; drop table leads", "syntax"),
    ] {
        let refused = crm_relay(&database.url(), &["watch", table]);
        assert_eq!(refused.status.code(), Some(1), "{table}");
        let error = text(&refused.stderr);
        assert!(
            error.contains(told) || error.contains("invalid name"),
            "{table}: {error}"
        );
    }
}

#[test]
fn every_bad_setting_is_named_and_the_exit_code_is_2() {
    let refused = Command::new(env!("CARGO_BIN_EXE_crm-relay"))
        .arg("serve")
        .env_remove("DATABASE_URL")
        .envs([
            ("RELAY_LISTEN", "nowhere"),
            ("RELAY_LOG_FORMAT", "xml"),
            ("RELAY_NO_AUTH", "maybe"),
        ])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    for name in [
        "DATABASE_URL",
        "RELAY_LISTEN",
        "RELAY_LOG_FORMAT",
        "RELAY_NO_AUTH",
    ] {
        assert!(
            text(&refused.stderr).contains(name),
            "{}",
            text(&refused.stderr)
        );
    }
    assert_eq!(crm_relay(NOBODY, &["dance"]).status.code(), Some(2));
}

#[test]
fn a_command_without_postgres_says_where_and_why_and_exits_with_3() {
    for command in [
        &["install"][..],
        &["uninstall"],
        &["watch", "leads"],
        &["doctor"],
    ] {
        let refused = crm_relay(NOBODY, command);
        let error = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(3), "{error}");
        assert!(
            error.contains("127.0.0.1:1/crm")
                && error.contains("refused")
                && !error.contains("secret"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn serve_waits_for_postgres_with_backoff() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = listener.local_addr().unwrap().to_string();
    drop(listener);
    let relay = Relay::begin(NOBODY, |command| {
        command.env("RELAY_LISTEN", &listen);
    });
    for wait in ["again_in_ms=100", "again_in_ms=200", "again_in_ms=400"] {
        relay.logged(wait).await;
    }
    assert!(relay.logs().contains("127.0.0.1:1/crm"));
    assert!(!relay.logs().contains("secret"), "{}", relay.logs());
    // until it has seen Postgres once it can tell nobody anything
    match tokio_tungstenite::connect_async(format!("ws://{listen}/ws")).await {
        Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => {
            assert_eq!(answer.status(), 503);
            assert!(answer.headers().contains_key("retry-after"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_demo_needs_a_database_of_its_own_and_leaves_it_as_it_was() {
    let database = Database::create().await;
    let refused = crm_relay(&database.url(), &["demo", "--listen", "127.0.0.1:0"]);
    assert_eq!(refused.status.code(), Some(1));
    let told = text(&refused.stderr);
    assert!(
        told.contains("public.escrows") && told.contains("crm_relay"),
        "{told}"
    );

    let empty = Database::bare().await;
    let mut demo = Command::new(env!("CARGO_BIN_EXE_crm-relay"))
        .args(["demo", "--listen", "127.0.0.1:0"])
        .env("DATABASE_URL", empty.url())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(demo.stdout.take().unwrap()));
    let ready = lines.next().unwrap().unwrap();
    assert!(ready.starts_with("ready http://127.0.0.1:"), "{ready}");
    assert_eq!(
        empty.value("select count(*) >= 12 from listings").await,
        "t"
    );
    let interrupted = Command::new("kill")
        .args(["-INT", &demo.id().to_string()])
        .status()
        .unwrap();
    assert!(interrupted.success());
    assert!(demo.wait().unwrap().success());
    let left = "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 where n.nspname in ('public', 'crm_relay')";
    assert_eq!(empty.value(left).await, "0");
}

#[tokio::test]
async fn installing_again_holds_up_nobody_who_writes() {
    let database = Database::create().await;
    let open = database.connect().await;
    open.batch_execute("begin; insert into leads (first_name) values ('open')")
        .await
        .unwrap();
    let url = database.url();
    let install = tokio::task::spawn_blocking(move || crm_relay(&url, &["install"]));
    while !install.is_finished() {
        database
            .execute("set statement_timeout = '2s'; insert into escrows (display_id) values ('x')")
            .await;
    }
    let installed = install.await.unwrap();
    assert!(installed.status.success(), "{}", text(&installed.stderr));
    open.batch_execute("commit").await.unwrap();
}

#[tokio::test]
async fn whoever_owns_the_tables_and_may_create_roles_can_install() {
    let database = Database::bare().await;
    let owner = format!("owner_{}", uuid::Uuid::new_v4().simple());
    database
        .execute(&format!("create role {owner} login createrole; grant all on schema public to {owner}; grant create on database {} to {owner}; set role {owner}", database.name()))
        .await;
    database.execute(include_str!("../../deploy/crm.sql")).await;
    let url = database
        .url()
        .replace("//postgres@", &format!("//{owner}@"));
    for arguments in [
        &["install"][..],
        &["install"],
        &["watch", "teams"],
        &["unwatch", "teams"],
    ] {
        let done = crm_relay(&url, arguments);
        assert!(
            done.status.success(),
            "{arguments:?}: {}",
            text(&done.stderr)
        );
    }
    database.execute("insert into contacts (id, phone) values ('00000000-0000-4000-8000-00000000000c', '1'); insert into clients (contact_id) select id from contacts; update contacts set phone = '2'").await;
    database.execute("reset role").await;
    let told = "select string_agg(action, ' ' order by seq) from crm_relay.change";
    assert_eq!(database.value(told).await, "created updated");
    let gone = crm_relay(&url, &["uninstall"]);
    assert!(gone.status.success(), "{}", text(&gone.stderr));
    database
        .execute(&format!("drop owned by {owner}; drop role {owner}"))
        .await;
}

/// `crm-relay health` for a relay there, which is asked as its own settings say.
fn health(address: &str, more: &[(&str, &str)]) -> (Option<i32>, String) {
    let asked = Command::new(env!("CARGO_BIN_EXE_crm-relay"))
        .arg("health")
        .env("RELAY_LISTEN", address)
        .envs(more.iter().copied())
        .output()
        .unwrap();
    (
        asked.status.code(),
        text(&asked.stdout) + &text(&asked.stderr),
    )
}

#[tokio::test]
async fn health_says_whether_the_relay_is_ready_and_why_not() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let address = format!("127.0.0.1:{port}");
    let (code, told) = health(&address, &[]);
    assert_eq!(code, Some(1), "{told}");
    assert!(
        told.contains("does not answer") && told.contains("refused"),
        "{told}"
    );
    let listen = |command: &mut tokio::process::Command| {
        command.env("RELAY_LISTEN", &address);
    };
    let relay = Relay::begin(NOBODY, listen);
    relay.logged("not reading the journal").await;
    let (code, told) = health(&address, &[]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("503") && told.contains("unready"), "{told}");
    drop(relay);

    let database = Database::create().await;
    let relay = Relay::start(&database.url()).await;
    let everywhere = relay.address().replace("127.0.0.1", "0.0.0.0");
    for address in [relay.address(), &everywhere] {
        assert_eq!(
            health(address, &[]),
            (Some(0), "{\"status\":\"ready\"}\n".to_owned())
        );
    }
    let folder = Folder::new();
    let (certificate, key) = Authority::new().sign("live.crm.example");
    let (certificate, key) = (folder.write("pem", &certificate), folder.write("key", &key));
    let files = [
        ("RELAY_TLS_CERT", certificate.as_str()),
        ("RELAY_TLS_KEY", key.as_str()),
    ];
    let relay = Relay::with(&database.url(), |command| {
        command.envs(files);
    })
    .await;
    let (code, told) = health(relay.address(), &files);
    assert_eq!((code, told.as_str()), (Some(0), "{\"status\":\"ready\"}\n"));
    assert_eq!(health("nowhere", &[]).0, Some(2));
}

#[tokio::test]
async fn a_table_that_comes_under_watch_is_read_all_the_while_and_holds_no_other_up() {
    let database = Database::create().await;
    database
        .execute("create table notes (id uuid primary key)")
        .await;
    let other = database.connect().await;
    other
        .batch_execute("set lock_timeout = '50ms'")
        .await
        .unwrap();
    let does = async |what: &str| other.batch_execute(what).await.is_ok();
    let (reads, writes) = (
        "select from notes",
        "insert into notes values (gen_random_uuid())",
    );
    let writes_elsewhere = "insert into leads (first_name) values ('x')";
    for (step, may_read) in [("watch", true), ("unwatch", false)] {
        database
            .execute(&format!("begin; select crm_relay.{step}('notes')"))
            .await;
        assert_eq!(does(reads).await, may_read, "{step}");
        assert!(!does(writes).await, "{step}");
        assert!(does(writes_elsewhere).await, "{step}");
        database.execute("commit").await;
        assert!(does(writes).await, "{step}");
    }
}
