//! The doctor: break it, see it named, run the mend that it printed, see it gone.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;
use tokio::time::timeout;

use crate::harness::{Cluster, DEADLINE, Database, Pooler, Relay, connect, crm_relay};

/// What the doctor finds, but for what it always notes; with its exit code.
fn examined(url: &str) -> (Vec<Value>, i32) {
    let said = crm_relay(url, &["doctor", "--json"]);
    let told = String::from_utf8_lossy(&said.stdout);
    let errors = String::from_utf8_lossy(&said.stderr);
    let mut findings: Vec<Value> =
        serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told} {errors}"));
    findings.retain(|it| it["code"] != "journal_size" && it["code"] != "relay_missing");
    (findings, said.status.code().unwrap())
}

/// Those with this code, about this object if one is named.
fn found(url: &str, code: &str, object: &str) -> Vec<Value> {
    let (mut findings, _) = examined(url);
    findings.retain(|it| {
        it["code"] == code && it["object"].as_str().is_some_and(|it| it.contains(object))
    });
    findings
}

/// Runs what was printed as a person would: a command in a shell, SQL in psql.
fn mend(url: &str, finding: &Value) {
    let mend = finding["mend"].as_str().unwrap();
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_crm-relay"));
    let path = format!(
        "{}:{}",
        binary.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let mut program = match mend.starts_with("crm-relay ") {
        true => Command::new("sh"),
        false => Command::new("psql"),
    };
    if !mend.starts_with("crm-relay ") {
        program.args(["-q", "-v", "ON_ERROR_STOP=1", "-d", url]);
    }
    let mut running = program
        .env("DATABASE_URL", url)
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut typed = running.stdin.take().unwrap();
    writeln!(typed, "{mend}").unwrap();
    drop(typed);
    let done = running.wait_with_output().unwrap();
    assert!(
        done.status.success(),
        "{mend}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// Breaks, sees each named, mends it, and sees that all is well again.
async fn heals(database: &Database, broken: &str, codes: &[&str]) {
    database.execute(broken).await;
    let url = database.url();
    for code in codes {
        let (findings, exit) = examined(&url);
        let of_code: Vec<&Value> = findings.iter().filter(|it| it["code"] == *code).collect();
        assert!(
            !of_code.is_empty(),
            "{code} is not among {findings:?} after {broken}"
        );
        let is_wrong = findings.iter().any(|it| it["severity"] == "wrong");
        assert_eq!(exit, i32::from(is_wrong), "{findings:?}");
        for finding in of_code {
            for field in ["object", "what", "why", "mend"] {
                assert!(
                    finding[field].as_str().is_some_and(|it| !it.is_empty()),
                    "{finding}"
                );
            }
            mend(&url, finding);
        }
    }
    assert_eq!(examined(&url), (Vec::new(), 0), "after {broken}");
}

#[tokio::test]
async fn a_trigger_that_does_not_do_its_work_is_named_and_mended() {
    let database = Database::create().await;
    for (broken, codes) in [
        ("drop trigger \"!crm_relay\" on listings", &["trigger_missing"][..]),
        ("drop trigger \"!crm_relay_truncate\" on leads", &["trigger_missing"]),
        ("alter table listings disable trigger \"!crm_relay\"", &["trigger_disabled"]),
        ("alter table listings enable replica trigger \"!crm_relay\"", &["trigger_disabled"]),
        (
            "create or replace trigger \"!crm_relay\" after insert on listings for each row execute function crm_relay.capture('listings')",
            &["trigger_changed"],
        ),
        (
            "create or replace trigger \"!crm_relay\" after insert or update or delete on listings for each row execute function crm_relay.capture('leads')",
            &["trigger_changed"],
        ),
        (
            "drop trigger \"!crm_relay\" on listings;
             create constraint trigger \"!crm_relay\" after insert or update or delete on listings deferrable for each row execute function crm_relay.capture('listings')",
            &["trigger_changed"],
        ),
        ("alter trigger \"!crm_relay\" on listings rename to mine", &["trigger_missing", "trigger_doubled"]),
        (
            "create function edits() returns trigger language plpgsql as 'begin update listings set city = ''x'' where id = new.id; return null; end';
             create trigger \" first\" after insert on listings for each row execute function edits()",
            &["trigger_late"],
        ),
        (
            "create table visits (id int, place text, primary key (id, place)) partition by list (place);
             create table visits_a partition of visits for values in ('a');
             select crm_relay.watch('visits');
             alter table visits_a disable trigger \"!crm_relay\"",
            &["trigger_disabled"],
        ),
        (
            &format!("alter database {} set session_replication_role = replica", database.name()),
            &["replication_role"],
        ),
        (
            "set allow_system_table_mods = on; insert into pg_subscription_rel (srsubid, srrelid, srsubstate) values (0, 'leads'::regclass, 'r')",
            &["replication_role"],
        ),
    ] {
        heals(&database, broken, codes).await;
    }
    database
        .execute("insert into listings (city) values ('y')")
        .await;
    let told = "select string_agg(concat(action, ' ', new_image ->> 'city'), ', ' order by seq) from crm_relay.change where module = 'listings'";
    assert_eq!(database.value(told).await, "created y, updated x");
}

#[tokio::test]
async fn a_table_that_is_gone_or_was_replaced_is_named_and_mended() {
    let database = Database::create().await;
    for (broken, code) in [
        ("drop table appointments", "table_gone"),
        (
            "alter table clients rename to clients_old; create table clients (like clients_old including all)",
            "table_swapped",
        ),
        (
            "create table copy (like listings including all); drop table listings; alter table copy rename to listings",
            "table_gone",
        ),
        (
            "revoke select on escrows from crm_relay_snapshot",
            "right_missing",
        ),
        (
            "revoke select (owner_id) on leads from crm_relay_policy",
            "right_missing",
        ),
    ] {
        heals(&database, broken, &[code]).await;
    }
    let watched = "select string_agg(relation::text, ' ' order by module) from crm_relay.module where module in ('clients', 'contacts', 'listings')";
    assert_eq!(database.value(watched).await, "clients contacts listings");
}

#[tokio::test]
async fn a_column_that_is_gone_changed_or_should_be_hidden_is_named_and_mended() {
    let database = Database::create().await;
    database
        .execute(
            "create table notes (id int primary key, body text, margin text, team_id int);
             select crm_relay.watch('notes', hidden_columns => '{margin}');
             insert into notes values (1, 'a', 'secret', 1); insert into leads (first_name) values ('x')",
        )
        .await;
    for (broken, codes) in [
        (
            "alter table leads rename column owner_id to holder_id",
            &["column_gone"][..],
        ),
        (
            "alter table notes rename column margin to gain",
            &["column_gone"],
        ),
        (
            "alter table notes rename column id to note_id",
            &["column_gone"],
        ),
        (
            "alter table escrows drop column updated_at",
            &["column_gone"],
        ),
        (
            "alter table notes alter column team_id type bigint",
            &["column_retyped"],
        ),
        (
            "alter table clients rename column contact_id to person_id",
            &["column_gone"],
        ),
        (
            "alter table leads add column reset_token text; update leads set reset_token = 'secret'",
            &["column_open"],
        ),
        (
            "alter table notes add column created_by text",
            &["column_new"],
        ),
        (
            "update leads set source = 'secret'; update crm_relay.module set hidden_columns = hidden_columns || '{source}' where module = 'leads'",
            &["hidden_journaled"],
        ),
    ] {
        heals(&database, broken, codes).await;
    }
    database
        .execute("insert into notes values (2, 'b', 'secret', 1)")
        .await;
    let secrets =
        "select count(*) from crm_relay.change where concat(old_image, new_image) like '%secret%'";
    assert_eq!(database.value(secrets).await, "0");
    let decides =
        "select 'holder_id' = any (access_columns) from crm_relay.module where module = 'leads'";
    assert_eq!(database.value(decides).await, "t");
}

#[tokio::test]
async fn a_function_that_is_not_as_it_was_installed_is_named_and_mended() {
    let database = Database::create().await;
    for (broken, code) in [
        (
            "drop function crm_relay.changes_since(text)",
            "function_missing",
        ),
        (
            "alter function crm_relay.image(anyelement) owner to postgres",
            "function_owner",
        ),
        (
            "alter function crm_relay.capture() reset search_path",
            "function_search_path",
        ),
        (
            "alter function crm_relay.may_see_row(jsonb, text, json) reset search_path",
            "function_search_path",
        ),
        (
            "create or replace function crm_relay.ring(module text, doorbell text) returns void language plpgsql set search_path = pg_catalog, pg_temp as 'begin end'",
            "function_changed",
        ),
        (
            "grant execute on function crm_relay.record_now(text, text) to public",
            "function_public",
        ),
        (
            "revoke execute on function crm_relay.may_see_row(jsonb, text, json) from crm_relay_serve",
            "policy_unasked",
        ),
    ] {
        heals(&database, broken, &[code]).await;
    }
}

#[tokio::test]
async fn a_policy_that_says_the_same_to_everybody_is_named_and_mended() {
    let database = Database::create().await;
    database
        .execute(
            "insert into users (email, first_name, last_name) values ('a', 'a', 'a'), ('b', 'b', 'b'), ('c', 'c', 'c');
             insert into leads (owner_id) select id from users",
        )
        .await;
    let rule = |name: &str, body: &str| {
        format!(
            "create or replace function crm_relay.{name} language sql stable set search_path = pg_catalog, pg_temp as '{body}'"
        )
    };
    let sees = "may_see_row(principal jsonb, module text, image json) returns boolean";
    for (broken, code) in [
        (rule(sees, "select true"), "policy_open"),
        (rule(sees, "select false"), "policy_closed"),
        (rule(sees, "select null::boolean"), "policy_closed"),
        (rule(sees, "select 1 / 0 > 0"), "policy_raises"),
        // what only the relay's role cannot do: asked as a superuser it would work
        (
            rule(sees, "select count(*) > 0 from public.leads"),
            "policy_raises",
        ),
        (
            rule(
                "may_enter(principal jsonb, room text) returns boolean",
                "select true",
            ),
            "policy_open",
        ),
        (
            rule(
                "principal(claims jsonb) returns jsonb",
                "select null::jsonb",
            ),
            "policy_closed",
        ),
        (
            rule("principal(claims jsonb) returns jsonb", "select claims"),
            "policy_open",
        ),
        (
            rule(
                "rooms_of(module text, image json) returns text[]",
                "select array[1 / 0]::text[]",
            ),
            "policy_raises",
        ),
    ] {
        heals(&database, &broken, &[code]).await;
    }
    // one that opens some records to all of the CRM is a rule like any other
    database
        .execute(&rule(
            sees,
            "select crm_relay.usual_may_see_row(principal, module, image) or principal is not null and image ->> ''is_private'' = ''false''",
        ))
        .await;
    assert_eq!(examined(&database.url()), (Vec::new(), 0));
}

#[tokio::test]
async fn settings_that_do_not_go_together_are_named_and_mended() {
    let cluster = Cluster::start().await;
    let url = cluster.url();
    let again = async |settings: &[&str]| {
        let session = connect(&url).await;
        for setting in settings {
            let set = format!("alter system set {setting}");
            session.batch_execute(&set).await.unwrap();
        }
        cluster.crash();
        cluster.start_again();
    };
    again(&[
        "max_prepared_transactions = 5",
        "wal_level = logical",
        "max_locks_per_transaction = 32",
        "synchronous_commit = off",
        "session_replication_role = replica",
    ])
    .await;
    for (code, severity) in [
        ("doorbell_two_phase", "wrong"),
        ("wal_level", "note"),
        ("max_locks", "note"),
        ("commits_late", "note"),
        ("replication_role", "wrong"),
    ] {
        let findings = found(&url, code, "");
        assert_eq!(findings.len(), 1, "{code}: {:?}", examined(&url));
        assert_eq!(findings[0]["severity"], severity);
        mend(&url, &findings[0]);
    }
    again(&[]).await;
    assert_eq!(examined(&url), (Vec::new(), 0));
    again(&["max_prepared_transactions = 0"]).await;
    mend(&url, &found(&url, "doorbell_never", "")[0]);
    assert_eq!(examined(&url), (Vec::new(), 0));
}

#[tokio::test]
async fn a_role_that_has_more_than_its_job_needs_is_named_and_mended() {
    let cluster = Cluster::start().await;
    let url = cluster.url();
    let session = connect(&url).await;
    for (broken, code) in [
        ("alter role crm_relay_image login", "role_unsafe"),
        ("grant pg_read_all_data to crm_relay_capture", "role_unsafe"),
        (
            "alter role crm_relay_snapshot nobypassrls; alter table leads enable row level security",
            "row_security",
        ),
        (
            "alter role postgres in database postgres set session_replication_role = replica",
            "replication_role",
        ),
    ] {
        session.batch_execute(broken).await.unwrap();
        let findings = found(&url, code, "");
        assert!(!findings.is_empty(), "{broken}: {:?}", examined(&url));
        findings.iter().for_each(|finding| mend(&url, finding));
        assert_eq!(examined(&url), (Vec::new(), 0), "after {broken}");
    }
}

#[tokio::test]
async fn whoever_may_not_look_is_told_so_and_what_to_grant() {
    let cluster = Cluster::start().await;
    let owner = cluster.url();
    let session = connect(&owner).await;
    session
        .batch_execute("create role dba login")
        .await
        .unwrap();
    let dba = owner.replace("//postgres@", "//dba@");
    for code in ["unchecked", "sessions_unseen"] {
        let (findings, exit) = examined(&dba);
        assert_eq!(exit, 1);
        let codes: Vec<&Value> = findings.iter().map(|it| &it["code"]).collect();
        assert_eq!(codes, [code], "{findings:?}");
        mend(&owner, &findings[0]);
    }
    assert_eq!(examined(&dba), (Vec::new(), 0));
}

#[tokio::test]
async fn who_locks_the_relays_tables_does_not_hold_up_the_doctor() {
    let database = Database::create().await;
    let holder = database.connect().await;
    for table in ["setting", "change_3"] {
        holder
            .batch_execute(&format!("begin; lock table crm_relay.{table}"))
            .await
            .unwrap();
        let (findings, exit) = examined(&database.url());
        assert_eq!(exit, 1);
        let is_told = |it: &Value| {
            it["code"] == "unchecked" && it["what"].as_str().unwrap().contains("lock timeout")
        };
        assert!(
            !findings.is_empty() && findings.iter().all(is_told),
            "{findings:?}"
        );
        holder.batch_execute("rollback").await.unwrap();
        mend(&database.url(), &findings[0]);
        assert_eq!(examined(&database.url()), (Vec::new(), 0));
    }
}

#[tokio::test]
async fn what_holds_the_journal_back_is_named_and_mended() {
    let cluster = Cluster::start().await;
    let url = cluster.url();
    let session = connect(&url).await;
    // who opened a transaction before what is due was written, and went away
    let idle = connect(&url).await;
    idle.batch_execute("set application_name = 'forgotten'; begin; select pg_current_xact_id()")
        .await
        .unwrap();
    session
        .batch_execute(
            "update crm_relay.setting set retention = '1 hour';
             insert into crm_relay.change (slot, module, action, db_user, db_role, application, changed_at)
             select (crm_relay.slot(now(), '1 hour') + 5) % 10, 'leads', 'truncated', 'x', 'x', 'x', now() - interval '2 hours'",
        )
        .await
        .unwrap();
    // the doctor calls old what is older than a minute, which a test has no time for
    let old = session
        .query_one(
            "select severity, what, mend from crm_relay.verify_sessions(old => '0 s') where code = 'transaction_old'",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(old.get::<_, &str>(0), "wrong");
    assert!(old.get::<_, &str>(1).contains("forgotten"), "{old:?}");
    assert!(
        old.get::<_, &str>(2)
            .starts_with("select pg_terminate_backend(")
    );

    let due = found(&url, "slot_due", "crm_relay.change_");
    assert!(
        due[0]["what"].as_str().unwrap().contains("forgotten"),
        "{due:?}"
    );
    mend(&url, &due[0]);
    assert_eq!(examined(&url), (Vec::new(), 0));
    assert!(idle.batch_execute("select 1").await.is_err());

    session
        .batch_execute(
            "insert into crm_relay.change (slot, txid, module, action, db_user, db_role, application)
             values (0, '999999999', 'leads', 'truncated', 'x', 'x', 'x')",
        )
        .await
        .unwrap();
    mend(&url, &found(&url, "journal_foreign", "crm_relay.change")[0]);
    assert_eq!(examined(&url), (Vec::new(), 0));
}

#[tokio::test]
async fn a_prepared_transaction_that_was_forgotten_is_named_and_mended() {
    let cluster = Cluster::start().await;
    let session = connect(&cluster.url()).await;
    session
        .batch_execute("alter system set max_prepared_transactions = 2")
        .await
        .unwrap();
    cluster.crash();
    cluster.start_again();
    let session = connect(&cluster.url()).await;
    session
        .batch_execute("update crm_relay.setting set doorbell = 'never'")
        .await
        .unwrap();
    session
        .batch_execute(
            "begin; insert into leads (first_name) values ('x'); prepare transaction 'it''s lost'",
        )
        .await
        .unwrap();
    let old =
        "select mend from crm_relay.verify_sessions(old => '0 s') where code = 'transaction_old'";
    let mended: String = session.query_one(old, &[]).await.unwrap().get(0);
    session.batch_execute(&mended).await.unwrap();
    assert!(session.query_opt(old, &[]).await.unwrap().is_none());
}

#[tokio::test]
async fn notifications_that_nobody_takes_are_named_with_who_most_likely_holds_them() {
    let cluster = Cluster::start().await;
    let url = cluster.url();
    let listener = connect(&url).await;
    for sql in [
        "set application_name = 'deaf'; listen something",
        "begin; select 1",
    ] {
        listener.batch_execute(sql).await.unwrap();
    }
    let session = connect(&url).await;
    let ring = "select count(pg_notify('something', repeat('x', 7900) || i)) from generate_series(1, 2000) i";
    let filled = async {
        while found(&url, "notifications_held", "").is_empty() {
            for _ in 0..5 {
                session.batch_execute(ring).await.unwrap();
            }
        }
    };
    timeout(DEADLINE, filled).await.expect("nobody takes them");
    let held = found(&url, "notifications_held", "session");
    assert!(
        held[0]["what"].as_str().unwrap().contains("deaf"),
        "{held:?}"
    );
    assert_eq!(held[0]["severity"], "note");
    mend(&url, &held[0]);
    let emptied = async {
        while !found(&url, "notifications_held", "").is_empty() {
            session.batch_execute(ring).await.unwrap();
        }
    };
    timeout(DEADLINE, emptied).await.expect("it is taken");
}

#[tokio::test]
async fn a_table_of_another_owner_is_named() {
    let database = Database::create().await;
    let url = database.url();
    let owner = format!("\"{} owner\"", database.name());
    let apart = format!("create role {owner}; alter table leads owner to {owner}");
    database.execute(&apart).await;
    let named = found(&url, "owners_apart", "leads");
    let what = named[0]["what"].as_str().unwrap();
    assert!(what.contains("listings"), "{what}");
    database
        .execute(&format!(
            "alter table leads owner to current_user; drop role {owner}"
        ))
        .await;
    assert_eq!(examined(&url), (Vec::new(), 0));
}

#[tokio::test]
async fn who_holds_a_lock_of_the_relays_is_named() {
    let database = Database::create().await;
    let url = database.url();
    for lock in [
        "'crm_relay.setting'::regclass::oid::int, 1",
        "'crm_relay.setting'::regclass::oid::int, 2",
        "'crm_relay.setting'::regclass::oid::int, 3",
        "hashtextextended('crm_relay.install', 0)",
    ] {
        let holder = database.connect().await;
        holder
            .batch_execute(&format!(
                "set application_name = 'stranger'; select pg_advisory_lock({lock})"
            ))
            .await
            .unwrap();
        let held = found(&url, "lock_held", "session");
        assert_eq!(held.len(), 1, "{lock}");
        assert!(
            held[0]["what"].as_str().unwrap().contains("stranger"),
            "{held:?}"
        );
        mend(&url, &held[0]);
        assert_eq!(examined(&url), (Vec::new(), 0));
    }
}

#[tokio::test]
async fn relays_of_two_versions_are_named_and_so_is_none() {
    let database = Database::create().await;
    let url = database.url();
    let codes = || String::from_utf8_lossy(&crm_relay(&url, &["doctor"]).stdout).into_owned();
    assert!(codes().contains("[relay_missing]") && codes().contains("nothing is wrong"));
    let _relay = Relay::start(&url).await;
    assert!(!codes().contains("[relay_missing]"));
    let older = database.connect().await;
    older
        .batch_execute("set application_name = 'crm-relay reader 0.0.9'")
        .await
        .unwrap();
    let versions = found(&url, "relay_versions", database.name());
    let what = versions[0]["what"].as_str().unwrap();
    assert!(
        what.contains("0.0.9") && what.contains(env!("CARGO_PKG_VERSION")),
        "{what}"
    );
    mend(&url, &versions[0]);
    assert_eq!(examined(&url), (Vec::new(), 0));
}

#[tokio::test]
async fn a_schema_that_is_missing_or_of_another_version_is_named_and_mended() {
    let database = Database::bare().await;
    heals(&database, "select 1", &["not_installed"]).await;
    heals(
        &database,
        "update crm_relay.setting set version = version - 1",
        &["schema_version"],
    )
    .await;
    database
        .execute("update crm_relay.setting set version = version + 1")
        .await;
    let (findings, exit) = examined(&database.url());
    assert_eq!((&findings[0]["code"], exit), (&"schema_version".into(), 1));
    let mend = findings[0]["mend"].as_str().unwrap();
    assert!(mend.contains("a later one"), "{mend}");
}

#[tokio::test]
async fn a_pooler_between_is_named_and_the_way_past_it() {
    let database = Database::create().await;
    let pooler = Pooler::start(&database).await;
    let unheard = found(&pooler.url(), "doorbell_unheard", "");
    assert_eq!(unheard.len(), 1, "{:?}", examined(&pooler.url()));
    let mend = unheard[0]["mend"].as_str().unwrap();
    let direct = mend
        .split_whitespace()
        .find_map(|word| word.strip_prefix("DATABASE_URL="));
    assert_eq!(direct, Some(&*database.url()), "{mend}");
    assert_eq!(examined(direct.unwrap()), (Vec::new(), 0));
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_named() {
    let database = Database::create().await;
    let ahead = Command::new("faketime")
        .args(["-f", "+90s", env!("CARGO_BIN_EXE_crm-relay"), "doctor"])
        .env("DATABASE_URL", database.url())
        .output()
        .expect("faketime, which tests/run.sh installs");
    let told = String::from_utf8_lossy(&ahead.stdout).into_owned();
    assert_eq!(ahead.status.code(), Some(1), "{told}");
    assert!(
        told.contains("[clock_skew]") && told.contains("s behind this machine's"),
        "{told}"
    );
    assert_eq!(examined(&database.url()), (Vec::new(), 0));
}

#[test]
fn every_finding_is_documented_and_tried() {
    let read = |path: &str| {
        std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    };
    let (sql, rust, document) = (
        read("sql/65_verify.sql"),
        read("relay/doctor.rs"),
        read("sql/README.md"),
    );
    let here = include_str!("doctor.rs");
    let is_code = |word: &&str| {
        word.contains('_') && word.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    };
    let mut codes: Vec<&str> = Vec::new();
    // the first of the six texts of a finding; the severity comes next
    let words: Vec<&str> = sql.split('\'').collect();
    for pair in words.windows(3) {
        if pair[1].trim().starts_with(',')
            || pair[1].contains("end,")
            || pair[1].contains("then")
            || pair[1].contains("else")
        {
            codes.extend(
                Some(pair[0])
                    .filter(is_code)
                    .filter(|_| matches!(pair[2], "wrong" | "note")),
            );
        }
    }
    for rest in rust.split("Finding::wrong(").skip(1) {
        codes.extend(rest.split('"').nth(1).filter(is_code));
    }
    codes.sort_unstable();
    codes.dedup();
    assert!(codes.len() > 30, "{codes:?}");
    for code in codes {
        assert!(
            document.contains(&format!("| `{code}` |")),
            "sql/README.md has no {code}"
        );
        let is_tried = [
            format!("\"{code}\""),
            format!("[{code}]"),
            format!("'{code}'"),
        ];
        assert!(
            is_tried.iter().any(|quoted| here.contains(quoted)),
            "{code} is not tried"
        );
    }
}
