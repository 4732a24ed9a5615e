//! deploy/alerts.yml and deploy/grafana.json, before a real Prometheus: each alert is made to fire by the fault that
//! it is about, and each panel's queries find something.

use std::collections::BTreeSet;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::edge::Folder;
use crate::harness::{Client, DEADLINE, Database, Relay, bare_socket, masked, request, token};
use crate::reverse_proxy::free_port;

const ALERTS: &str = include_str!("../../deploy/alerts.yml");
const DASHBOARD: &str = include_str!("../../deploy/grafana.json");
const OPERATOR: &str = "the operator of the tests";
const ANN: &str = "00000000-0000-4000-8000-00000000000a";
const HANDSHAKE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const LEAD: &str = "00000000-0000-4000-8000-000000000001";

/// A Prometheus that looks twice a second, ended with its test.
struct Prometheus {
    _child: Child,
    address: String,
    folder: Folder,
    /// Alerts that fired so far.
    fired: BTreeSet<String>,
}

impl Prometheus {
    /// Minutes of the rules are seconds here.
    async fn begin(target: &str) -> Prometheus {
        let rules: Vec<String> = ALERTS
            .lines()
            .map(|line| match line.trim_start().strip_prefix("for: ") {
                Some(_) => "        for: 1s".to_owned(),
                None => line.replace("m])", "s])").replace("m]))", "s]))"),
            })
            .collect();
        let folder = Folder::new();
        folder.write("alerts.yml", &rules.join("\n"));
        folder.write("targets.json", &json!([{"targets": [target]}]).to_string());
        let settings = json!({
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
            "rule_files": ["alerts.yml"],
            "scrape_configs": [{
                "job_name": "crm-relay",
                "authorization": {"credentials": OPERATOR},
                "file_sd_configs": [{"files": ["targets.json"], "refresh_interval": "1s"}],
            }],
        });
        // JSON is YAML, too
        let settings = folder.write("prometheus.yml", &settings.to_string());
        let address = format!("127.0.0.1:{}", free_port());
        let child = Command::new("prometheus")
            .arg(format!("--config.file={settings}"))
            .arg(format!("--web.listen-address={address}"))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.0.join("data").display()
            ))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("prometheus, of Debian's package prometheus, as tests/run.sh installs it");
        let up = async { while TcpStream::connect(&address).await.is_err() {} };
        timeout(DEADLINE, up).await.expect("it listens");
        Prometheus {
            _child: child,
            address,
            folder,
            fired: BTreeSet::new(),
        }
    }

    async fn ask(&self, path: &str) -> Value {
        // the older HTTP, so that it comes in one piece
        let asked = format!("GET {path} HTTP/1.0\r\n\r\n");
        let (_, body) = request(&self.address, asked.as_bytes()).await;
        serde_json::from_str(&body).unwrap_or(Value::Null)
    }

    /// Names of alerts that fire now.
    async fn firing(&self) -> BTreeSet<String> {
        let told = self.ask("/api/v1/alerts").await;
        let alerts = told["data"]["alerts"].as_array();
        let firing = alerts
            .into_iter()
            .flatten()
            .filter(|alert| alert["state"] == "firing");
        let names = firing.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned());
        names.collect()
    }

    /// Waits until this one fires.
    async fn fires(&mut self, alert: &str) {
        let fires = async { while !self.firing().await.contains(alert) {} };
        let fires = timeout(DEADLINE * 2, fires).await;
        assert!(
            fires.is_ok(),
            "{alert} does not fire: {}",
            self.rules().await
        );
        self.fired.insert(alert.to_owned());
    }

    /// Waits until none fires any more.
    async fn calms_down(&mut self) {
        let quiet = async { while !self.firing().await.is_empty() {} };
        let quiet = timeout(DEADLINE * 2, quiet).await;
        assert!(quiet.is_ok(), "they go on: {:?}", self.firing().await);
    }

    async fn rules(&self) -> Value {
        self.ask("/api/v1/rules").await["data"]["groups"][0]["rules"].clone()
    }

    /// Whether a query finds something.
    async fn has(&self, query: &str) -> bool {
        let query: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let told = self.ask(&format!("/api/v1/query?query={query}")).await;
        assert_ne!(told["status"], "error", "{told}");
        (told["data"]["result"].as_array()).is_some_and(|found| !found.is_empty())
    }

    /// So that what fires next is about what happens next.
    async fn is_calm_about(&mut self, alert: &str) {
        assert!(
            !self.firing().await.contains(alert),
            "{alert} fires already"
        );
    }
}

/// The metrics of a relay of another version.
async fn other_version() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let metrics = "crm_relay_build_info{version=\"0.0.9\"} 1\n";
            let head = "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\r\n";
            // what it asks for does not matter, but it is to be read
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream
                .write_all(format!("{head}{metrics}").as_bytes())
                .await;
        }
    });
    address
}

/// Somebody who does not read.
async fn idler(relay: &Relay) -> tokio::net::TcpStream {
    let mut socket = bare_socket(relay).await;
    for frame in [
        json!({"type": "hello", "token": token(ANN)}),
        json!({"type": "subscribe", "id": 1, "rooms": [format!("leads:{LEAD}")]}),
    ] {
        let frame = masked(1, frame.to_string().as_bytes());
        socket.write_all(&frame).await.unwrap();
    }
    socket
}

/// A relay at this address, with little room, a canary and a door for operators.
async fn relay(database: &Database, listen: &str) -> Relay {
    Relay::guarded(&database.url(), |command| {
        command
            .env("RELAY_LISTEN", listen)
            .env("RELAY_ADMIN_TOKEN", OPERATOR)
            .env("RELAY_CANARY", "1s")
            .env("RELAY_QUEUE_BYTES", "100000")
            .env("RELAY_MAX_CONNECTIONS", "8");
    })
    .await
}

/// All names of alerts in deploy/alerts.yml.
fn alerts() -> BTreeSet<String> {
    let names = ALERTS
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    names.map(str::to_owned).collect()
}

#[tokio::test]
async fn each_alert_fires_by_the_fault_that_it_is_about_and_none_where_all_is_well() {
    let database = Database::create().await;
    let lead = format!(
        "insert into users (id, email, first_name, last_name) values ('{ANN}', 'ann', '', '');
         insert into leads (id, owner_id) values ('{LEAD}', '{ANN}')"
    );
    database.execute(&lead).await;
    let listen = format!("127.0.0.1:{}", free_port());
    let first = relay(&database, &listen).await;
    let mut prometheus = Prometheus::begin(&listen).await;

    // all is well
    let heard = r#"crm_relay_canary_beats_total{result="heard"} > 4"#;
    let well = async {
        while !prometheus.has(heard).await {
            assert_eq!(prometheus.firing().await, BTreeSet::new());
        }
    };
    timeout(DEADLINE * 2, well)
        .await
        .expect("the canary is heard");
    for rule in prometheus.rules().await.as_array().unwrap() {
        assert_eq!(rule["health"], "ok", "{rule}");
    }

    // a bell that does not ring
    prometheus.is_calm_about("CrmRelayBellMissed").await;
    let ring = "select pg_get_functiondef('crm_relay.ring(text, text)'::regprocedure)";
    let ring = database.value(ring).await;
    let mute = "create or replace function crm_relay.ring(module text, doorbell text) returns void
                language plpgsql set search_path = pg_catalog, pg_temp as 'begin end'";
    database.execute(mute).await;
    let update =
        format!("update leads set number_of_contacts = number_of_contacts + 1 where id = '{LEAD}'");
    database.execute(&update).await;
    prometheus.fires("CrmRelayBellMissed").await;
    database.execute(&ring).await;

    // a trigger that was switched off
    prometheus.is_calm_about("CrmRelayCanaryMissed").await;
    let trigger = "alter table crm_relay.canary disable trigger \"!crm_relay\"";
    database.execute(trigger).await;
    prometheus.fires("CrmRelayCanaryMissed").await;
    let trigger = trigger.replace("disable", "enable");
    database.execute(&trigger).await;

    // a transaction that is open for long after its edit
    prometheus.is_calm_about("CrmRelaySlow").await;
    let late = database.connect().await;
    late.batch_execute(&format!("begin; {update}; select pg_sleep(3); commit"))
        .await
        .unwrap();
    prometheus.fires("CrmRelaySlow").await;

    // a policy that does not answer
    prometheus.is_calm_about("CrmRelayPolicyWaits").await;
    let mut ann = Client::of(&first, ANN).await;
    ann.subscribe(&[format!("leads:{LEAD}")]).await;
    late.batch_execute("begin; lock table users in access exclusive mode")
        .await
        .unwrap();
    let hand_on = format!("update leads set owner_id = null where id = '{LEAD}'");
    database.execute(&hand_on).await;
    prometheus.fires("CrmRelayPolicyWaits").await;
    late.batch_execute("rollback").await.unwrap();
    database
        .execute(&format!(
            "update leads set owner_id = '{ANN}' where id = '{LEAD}'"
        ))
        .await;

    // history is another
    prometheus
        .is_calm_about("CrmRelayEverybodyFetchesAnew")
        .await;
    ann.subscribe(&[format!("user:{ANN}")]).await;
    // emptied by hand
    database.execute("truncate crm_relay.change").await;
    prometheus.fires("CrmRelayEverybodyFetchesAnew").await;
    drop(ann);

    // tokens that are no good
    prometheus.is_calm_about("CrmRelayTokensRefused").await;
    let refused = async {
        while !prometheus.firing().await.contains("CrmRelayTokensRefused") {
            let mut stranger = Client::silent(&first).await;
            let hello = Message::text(r#"{"type":"hello","token":"none"}"#);
            stranger.send_raw(hello).await;
            assert_eq!(stranger.closed().await, 4401);
        }
    };
    timeout(DEADLINE * 2, refused).await.expect("they are seen");
    prometheus.fires("CrmRelayTokensRefused").await;

    // clients that do not read, and no place for more
    prometheus.is_calm_about("CrmRelayFull").await;
    let mut idlers = Vec::new();
    for _ in 0..8 {
        idlers.push(idler(&first).await);
    }
    assert_eq!(first.get("/ws", HANDSHAKE).await.0, 503);
    prometheus.fires("CrmRelayFull").await;
    let slow = async {
        for step in 0.. {
            let fill =
                format!("update leads set notes = repeat('{step:04} ', 10000) where id = '{LEAD}'");
            database.execute(&fill).await;
            if prometheus.firing().await.contains("CrmRelayClientsTooSlow") {
                return;
            }
        }
    };
    timeout(DEADLINE * 2, slow).await.expect("they are seen");
    prometheus.fires("CrmRelayClientsTooSlow").await;
    drop(idlers);

    // a journal that is not pruned: this row is of last year
    prometheus.is_calm_about("CrmRelayJournalNotPruned").await;
    let old = "insert into crm_relay.change (slot, changed_at, txid, module, action, record_id, db_user, db_role, application, new_image)
               select crm_relay.slot(now() - interval '1 year', retention), now() - interval '1 year', '3', 'leads', 'created', 'old', '', '', '', '{}'
                 from crm_relay.setting";
    database.execute(old).await;

    // Postgres is lost, again and again; after each it is measured anew
    prometheus.is_calm_about("CrmRelayLosesPostgres").await;
    let lose = "select pg_terminate_backend(pid) from pg_stat_activity
                 where datname = current_database() and application_name like 'crm-relay reader%'";
    let lost = async {
        while !prometheus.firing().await.contains("CrmRelayLosesPostgres") {
            database.execute(lose).await;
            first.ready().await;
        }
    };
    timeout(DEADLINE * 2, lost).await.expect("it is seen");
    prometheus.fires("CrmRelayLosesPostgres").await;
    prometheus.fires("CrmRelayJournalNotPruned").await;
    database
        .execute("delete from crm_relay.change where record_id = 'old'")
        .await;

    // somebody holds the leader's lock
    prometheus.is_calm_about("CrmRelayLeaderSilent").await;
    let held = "select pg_advisory_lock('crm_relay.setting'::regclass::oid::int, 3)";
    let (got, ()) = tokio::join!(late.batch_execute(held), database.execute(lose));
    got.unwrap();
    prometheus.fires("CrmRelayLeaderSilent").await;
    late.batch_execute("select pg_advisory_unlock_all()")
        .await
        .unwrap();

    // its schema is not there
    prometheus.is_calm_about("CrmRelayNotReady").await;
    database
        .execute("alter schema crm_relay rename to away")
        .await;
    database.execute(lose).await;
    prometheus.fires("CrmRelayNotReady").await;
    database
        .execute("alter schema away rename to crm_relay")
        .await;
    first.ready().await;

    // it begins anew again and again, and at last does not
    prometheus.is_calm_about("CrmRelayRestarts").await;
    let mut begun = first;
    for restarts in 1..=3 {
        begun.signal("KILL");
        begun.stop_signalled().await;
        begun = relay(&database, &listen).await;
        let seen = format!("changes(process_start_time_seconds[5m]) == {restarts}");
        let seen = async { while !prometheus.has(&seen).await {} };
        timeout(DEADLINE, seen).await.expect("it is seen");
    }
    prometheus.fires("CrmRelayRestarts").await;
    prometheus.calms_down().await;

    // another one, of another version
    prometheus.is_calm_about("CrmRelayTwoVersions").await;
    let other = other_version().await;
    let targets = json!([{"targets": [listen, other]}]);
    prometheus
        .folder
        .write("targets.json", &targets.to_string());
    prometheus.fires("CrmRelayTwoVersions").await;
    prometheus.is_calm_about("CrmRelayDown").await;
    drop(begun);
    prometheus.fires("CrmRelayDown").await;

    assert_eq!(prometheus.fired, alerts());
}

/// What stands between the braces of a name, its labels' conditions and its range: the metrics of a query.
fn metrics(query: &str) -> BTreeSet<String> {
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words
        .filter(|word| word.starts_with("crm_relay_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn each_panel_of_the_dashboard_finds_something_and_each_metric_is_on_it() {
    let database = Database::create().await;
    database
        .execute(&format!(
            "insert into users (id, email, first_name, last_name) values ('{ANN}', 'ann', '', '');
             insert into leads (id, owner_id) values ('{LEAD}', '{ANN}')"
        ))
        .await;
    let relay = relay(&database, "127.0.0.1:0").await;
    let prometheus = Prometheus::begin(relay.address()).await;
    let mut ann = Client::of(&relay, ANN).await;
    ann.subscribe(&[format!("leads:{LEAD}")]).await;
    let mut stranger = Client::silent(&relay).await;
    let hello = Message::text(r#"{"type":"hello","token":"none"}"#);
    stranger.send_raw(hello).await;
    database
        .execute(&format!(
            "update leads set status = 'warm' where id = '{LEAD}'"
        ))
        .await;
    ann.next_event().await;

    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut shown = BTreeSet::new();
    let mut asked = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            shown.extend(metrics(query));
            let query = query
                .replace("$__rate_interval", "10s")
                .replace("$__range", "10s")
                .replace("$instance", ".*");
            assert!(!query.contains('$'), "{query}");
            let found = async { while !prometheus.has(&query).await {} };
            let found = timeout(DEADLINE, found).await;
            assert!(found.is_ok(), "{}: {query} finds nothing", panel["title"]);
            asked += 1;
        }
    }
    assert!(asked > 30, "{asked}");
    let without_part = |name: &String| name.trim_end_matches("_bucket").to_owned();
    let shown: BTreeSet<String> = shown.iter().map(without_part).collect();
    let defined = crm_relay::metrics::defined().into_iter();
    assert_eq!(shown, defined.map(|(name, ..)| name).collect());
}
