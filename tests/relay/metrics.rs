//! What is counted: each metric moves with what it counts, and nobody but operators sees it.

use std::io::Write;
use std::process::{Command as Program, Stdio};

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::doorbell::{is_so, lock};
use crate::harness::{Client, DEADLINE, Database, Relay, bare_socket, connect, masked, token};

const TOKEN: &str = "the operator of the tests";
const ANN: &str = "00000000-0000-4000-8000-00000000000a";
const BEA: &str = "00000000-0000-4000-8000-00000000000b";
const ONE: &str = "00000000-0000-4000-8000-000000000001";
const TWO: &str = "00000000-0000-4000-8000-000000000002";

async fn text(relay: &Relay) -> String {
    let operator = format!("Authorization: Bearer {TOKEN}\r\n");
    let (status, text) = relay.get("/metrics", &operator).await;
    assert_eq!(status, 200, "{text}");
    text
}

/// What a metric with these labels is now; 0 where it is not there yet.
async fn value(relay: &Relay, metric: &str) -> f64 {
    let text = text(relay).await;
    let mut lines = text.lines();
    let found = lines.find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    found.map_or(0.0, |value| value.parse().unwrap())
}

/// Waits until a metric is as it should be.
async fn until(relay: &Relay, metric: &str, is_right: impl Fn(f64) -> bool) {
    let right = async { while !is_right(value(relay, metric).await) {} };
    if timeout(DEADLINE, right).await.is_err() {
        panic!("{metric} is not right in {}", text(relay).await);
    }
}

/// A relay that asks for tokens and keeps little, and a database with two leads of Ann.
async fn counted() -> (Database, Relay) {
    let database = Database::create().await;
    let leads = format!(
        "insert into users (id, email, first_name, last_name) values
           ('{ANN}', 'ann', '', ''), ('{BEA}', 'bea', '', '');
         insert into leads (id, owner_id) values ('{ONE}', '{ANN}'), ('{TWO}', '{ANN}')"
    );
    database.execute(&leads).await;
    let relay = Relay::guarded(&database.url(), |command| {
        command
            .env("RELAY_ADMIN_TOKEN", TOKEN)
            .env("RELAY_QUEUE_BYTES", "200000")
            .env("RELAY_RECENT_BYTES", "1")
            .env("RELAY_THROTTLE", "100ms");
    })
    .await;
    (database, relay)
}

#[tokio::test]
async fn what_happens_on_the_way_of_a_change_is_counted() {
    let (database, relay) = counted().await;
    until(&relay, "crm_relay_journal_bytes", |bytes| bytes > 0.0).await;
    until(&relay, "process_resident_memory_bytes", |bytes| bytes > 1e6).await;
    until(&relay, "process_start_time_seconds", |began| began > 1.7e9).await;
    until(&relay, "crm_relay_ready", |ready| ready == 1.0).await;
    let version = format!(
        "crm_relay_build_info{{version=\"{}\"}}",
        env!("CARGO_PKG_VERSION")
    );
    until(&relay, &version, |one| one == 1.0).await;

    let mut client = Client::of(&relay, ANN).await;
    client
        .subscribe(&[format!("leads:{ONE}"), format!("user:{ANN}")])
        .await;
    let mut other = Client::of(&relay, ANN).await;
    other.subscribe(&[format!("leads:{ONE}")]).await;
    until(&relay, "crm_relay_connections", |there| there == 2.0).await;
    until(&relay, "crm_relay_rooms", |rooms| rooms == 2.0).await;
    until(&relay, "crm_relay_subscriptions", |rooms| rooms == 3.0).await;

    // while it looks by itself nobody rings
    is_so(&database, &lock(2, true)).await;
    let update = format!("update leads set status = 'warm' where id = '{ONE}'");
    database.execute(&update).await;
    for client in [&mut client, &mut other] {
        assert_eq!(client.next_event().await["type"], "LEAD_UPDATED");
    }
    let changes = "crm_relay_changes_total{module=\"leads\",action=\"updated\"}";
    assert_eq!(value(&relay, changes).await, 1.0);
    assert_eq!(value(&relay, "crm_relay_deliveries_total").await, 2.0);
    assert_eq!(
        value(&relay, "crm_relay_capture_to_outbox_seconds_count").await,
        1.0
    );
    assert!(value(&relay, "crm_relay_capture_to_outbox_seconds_sum").await > 0.0);
    until(&relay, "crm_relay_batch_changes_sum", |changes| {
        changes == 1.0
    })
    .await;
    until(&relay, "crm_relay_doorbells_total", |rings| rings >= 1.0).await;
    assert_eq!(
        value(&relay, "crm_relay_safety_poll_finds_total").await,
        0.0
    );

    // of four edits in a hurry the first goes at once, and the others as one
    for step in 1..=4 {
        let update = format!("update leads set number_of_contacts = {step} where id = '{ONE}'");
        database.execute(&update).await;
    }
    until(&relay, "crm_relay_coalesced_changes_total", |merged| {
        merged > 0.0
    })
    .await;

    let lost = format!("update leads set owner_id = '{BEA}' where id = '{ONE}'");
    database.execute(&lost).await;
    until(&relay, "crm_relay_revoked_rooms_total", |rooms| {
        rooms == 2.0
    })
    .await;

    // a trigger that no longer rings, and a relay that does not know it
    database
        .execute("update crm_relay.setting set doorbell = 'never'")
        .await;
    database
        .execute(&format!("delete from leads where id = '{ONE}'"))
        .await;
    until(&relay, "crm_relay_safety_poll_finds_total", |found| {
        found == 1.0
    })
    .await;
    database
        .execute("update crm_relay.setting set doorbell = 'always'")
        .await;

    let lose = "select pg_terminate_backend(pid) from pg_stat_activity
                 where datname = current_database() and pid <> pg_backend_pid()
                   and application_name like 'crm-relay%'";
    database.execute(lose).await;
    until(&relay, "crm_relay_postgres_reconnects_total", |times| {
        times >= 1.0
    })
    .await;
}

async fn begin(database: &Database) -> Relay {
    let url = database.url();
    Relay::with(&url, |command| {
        command.env("RELAY_ADMIN_TOKEN", TOKEN);
    })
    .await
}

#[tokio::test]
async fn what_was_told_before_a_relay_began_is_remembered_unless_it_is_too_much() {
    for (while_open, source) in [(10, "memory"), (4100, "journal")] {
        let database = Database::create().await;
        let room = format!("leads:{TWO}");
        let relay = begin(&database).await;
        let mut client = Client::connect(&relay).await;
        let cursor = client.subscribe(&[&room]).await["cursor"].clone();
        drop(relay);
        let open = connect(&database.url()).await;
        open.batch_execute("begin; insert into leads default values")
            .await
            .unwrap();
        let told = format!("insert into leads select from generate_series(1, {while_open})");
        database.execute(&told).await;
        let relay = begin(&database).await;
        let mut client = Client::connect(&relay).await;
        let answer = client.resume(&[&room], cursor.as_str().unwrap()).await;
        assert!(answer.get("resync").is_none(), "{answer}");
        let resumes = format!("crm_relay_resumes_total{{source=\"{source}\"}}");
        assert_eq!(value(&relay, &resumes).await, 1.0, "{while_open}");
    }
}

#[tokio::test]
async fn how_clients_come_back_is_counted() {
    let (database, relay) = counted().await;
    let mut client = Client::of(&relay, ANN).await;
    let room = format!("user:{ANN}");
    let cursor = client.subscribe(&[&room]).await["cursor"].clone();
    let cursor = cursor.as_str().unwrap();
    client.resume(&[&room], cursor).await;
    let resumes = |source| format!("crm_relay_resumes_total{{source=\"{source}\"}}");
    assert_eq!(value(&relay, &resumes("memory")).await, 1.0);
    // memory holds next to nothing, so what is older is read from the journal
    for step in 1..=3 {
        let update = format!("update leads set status = '{step}' where id = '{TWO}'");
        database.execute(&update).await;
        client.next_event().await;
    }
    client.resume(&[&room], cursor).await;
    assert_eq!(value(&relay, &resumes("journal")).await, 1.0);
    let (_, rest) = cursor.split_once('.').unwrap();
    client
        .resume(
            &[&room, &format!("leads:{TWO}")],
            &format!("0badbeef.{rest}"),
        )
        .await;
    assert_eq!(value(&relay, &resumes("resync")).await, 1.0);
    let resyncs = "crm_relay_resyncs_total{reason=\"epoch_changed\"}";
    assert_eq!(value(&relay, resyncs).await, 2.0);
}

#[tokio::test]
async fn how_connections_end_is_counted() {
    let (database, relay) = counted().await;
    let closes = |by, code| format!("crm_relay_closes_total{{by=\"{by}\",code=\"{code}\"}}");
    for (frame, by, code) in [
        (
            Message::text(r#"{"type":"hello","token":"none"}"#),
            "relay",
            "4401",
        ),
        (Message::Close(None), "client", "1000"),
    ] {
        let mut client = Client::silent(&relay).await;
        client.send_raw(frame).await;
        until(&relay, &closes(by, code), |times| times == 1.0).await;
    }
    let refused = "crm_relay_tokens_refused_total{reason=\"malformed\"}";
    until(&relay, refused, |times| times == 1.0).await;
    let mut client = Client::of(&relay, ANN).await;
    client
        .send(json!({"type": "token", "token": token(BEA)}))
        .await;
    let refused = "crm_relay_tokens_refused_total{reason=\"other_user\"}";
    until(&relay, refused, |times| times == 1.0).await;
    // a code of one's own makes no series of its own
    let mut socket = bare_socket(&relay).await;
    socket
        .write_all(&masked(8, &4242_u16.to_be_bytes()))
        .await
        .unwrap();
    until(&relay, &closes("client", "other"), |times| times == 1.0).await;
    drop(bare_socket(&relay).await);
    until(&relay, &closes("network", "1006"), |times| times == 1.0).await;
    let foreign = "Origin: https://elsewhere.example\r\n";
    assert_eq!(relay.get("/ws", foreign).await.0, 403);
    let refused = "crm_relay_handshakes_refused_total{status=\"403\"}";
    assert_eq!(value(&relay, refused).await, 1.0);

    // one who does not read
    let mut socket = bare_socket(&relay).await;
    let said = [
        json!({"type": "hello", "token": token(ANN)}),
        json!({"type": "subscribe", "id": 1, "rooms": [format!("leads:{TWO}")]}),
    ];
    for frame in said {
        socket
            .write_all(&masked(1, frame.to_string().as_bytes()))
            .await
            .unwrap();
    }
    until(&relay, "crm_relay_subscriptions", |rooms| rooms == 1.0).await;
    let mut waited: f64 = 0.0;
    let filled = async {
        for step in 0.. {
            let filling =
                format!("update leads set notes = repeat('{step:04} ', 10000) where id = '{TWO}'");
            database.execute(&filling).await;
            waited = waited.max(value(&relay, "crm_relay_queue_bytes").await);
            if value(&relay, &closes("relay", "4508")).await > 0.0 {
                return;
            }
            if waited > 0.0 && step % 10 == 0 {
                let longest = value(&relay, "crm_relay_longest_queue_bytes").await;
                assert!(longest <= 300_000.0, "{longest}");
            }
        }
    };
    timeout(DEADLINE * 2, filled).await.expect("it is too slow");
    assert!(waited > 50_000.0, "{waited}");
}

#[tokio::test]
async fn metrics_are_for_operators() {
    let database = Database::create().await;
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_ADMIN_TOKEN", TOKEN);
    })
    .await;
    for headers in ["", "Authorization: Bearer the operator of the tests?\r\n"] {
        let (status, body) = relay.get("/metrics", headers).await;
        assert_eq!(status, 401);
        assert!(!body.contains("crm_relay_ready"), "{body}");
    }
    // where nobody is an operator by a token, none is
    let relay = Relay::start(&database.url()).await;
    assert_eq!(
        relay.get("/metrics", "Authorization: Bearer \r\n").await.0,
        401
    );
}

#[tokio::test]
async fn prometheus_s_own_linter_finds_nothing() {
    let (database, relay) = counted().await;
    let mut client = Client::of(&relay, ANN).await;
    client.subscribe(&[format!("leads:{ONE}")]).await;
    let update = format!("update leads set status = 'warm' where id = '{ONE}'");
    database.execute(&update).await;
    client.next_event().await;
    let metrics = text(&relay).await;
    let mut linter = Program::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, of Debian's package prometheus, as tests/run.sh installs it");
    linter
        .stdin
        .take()
        .unwrap()
        .write_all(metrics.as_bytes())
        .unwrap();
    let found = linter.wait_with_output().unwrap();
    let said = [found.stdout, found.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(
        found.status.success() && said.is_empty(),
        "{said}\n{metrics}"
    );
}
