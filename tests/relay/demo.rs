//! The demo's API: what it refuses, and whom it does not let hold up others.

use serde_json::{Value, json};

use crate::harness::{Database, Relay};

async fn demo() -> (Database, Relay) {
    let database = Database::bare().await;
    let relay = Relay::demo(&database.url()).await;
    (database, relay)
}

/// What the API says was wrong.
fn error(body: &str) -> String {
    let body: Value = serde_json::from_str(body).unwrap();
    body["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_page_from_elsewhere_is_refused_also_where_its_origin_cannot_be_read() {
    let (_database, relay) = demo().await;
    let own = format!("Origin: http://{}\r\n", relay.address());
    assert_eq!(relay.get("/api/users", &own).await.0, 200);
    assert_eq!(relay.get("/api/users", "").await.0, 200);
    for origin in [
        &b"http://evil.example"[..],
        b"null",
        b"http://evil.example\xff",
    ] {
        let host = relay.address();
        let head =
            format!("GET /api/users HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nOrigin: ");
        let request = [head.as_bytes(), origin, b"\r\n\r\n"].concat();
        let (status, body) = relay.request(&request).await;
        assert_eq!(status, 403, "{body}");
        assert!(
            error(&body).contains("only for the demo's own page"),
            "{body}"
        );
    }
}

#[tokio::test]
async fn a_user_that_can_be_none_is_told_so() {
    let (database, relay) = demo().await;
    for user in ["%00", "nobody", "", "5d1f%27"] {
        let (status, body) = relay.get(&format!("/api/listings?user={user}"), "").await;
        assert_eq!(status, 400, "{body}");
        assert!(
            error(&body).starts_with("user must be the id of one"),
            "{body}"
        );
    }
    let user = database.value("select id from users limit 1").await;
    let (status, body) = relay.get(&format!("/api/listings?user={user}"), "").await;
    assert_eq!(status, 200, "{body}");
}

#[tokio::test]
async fn a_body_that_does_not_come_or_does_not_end_holds_up_nobody() {
    let (database, relay) = demo().await;
    let listing = database.value("select id from listings limit 1").await;
    let head = format!(
        "PATCH /api/listings/{listing} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n",
        relay.address()
    );
    // the relay ends the connection: its place is free
    let silent = format!("{head}Content-Length: 100\r\n\r\n{{");
    assert_eq!(relay.request(silent.as_bytes()).await.0, 408);
    let large = format!("{head}Content-Length: 65537\r\n\r\n");
    assert_eq!(relay.request(large.as_bytes()).await.0, 413);
    let endless = format!("{head}Transfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n");
    assert_eq!(relay.request(endless.as_bytes()).await.0, 411);
    let version = format!("select version from listings where id = '{listing}'");
    let edit = json!({
        "user": database.value("select id from users limit 1").await,
        "version": database.value(&version).await.parse::<i32>().unwrap(),
        "fields": {"list_price": 1},
    })
    .to_string();
    let whole = format!(
        "{head}Connection: close\r\nContent-Length: {}\r\n\r\n{edit}",
        edit.len()
    );
    let (status, body) = relay.request(whole.as_bytes()).await;
    assert_eq!(status, 200, "{body}");
}

/// Asks the demo to break something.
async fn break_it(relay: &Relay, what: &str, headers: &str) -> (u16, String) {
    let request = format!(
        "POST /api/break/{what} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}\r\n",
        relay.address()
    );
    relay.request(request.as_bytes()).await
}

#[tokio::test]
async fn a_page_from_elsewhere_breaks_nothing_and_what_cannot_break_is_told() {
    let (_database, relay) = demo().await;
    for what in ["relay", "postgres"] {
        let elsewhere = "Origin: http://evil.example\r\n";
        let (status, body) = break_it(&relay, what, elsewhere).await;
        assert_eq!(status, 403, "{body}");
    }
    let (status, body) = break_it(&relay, "everything", "").await;
    assert_eq!(status, 404);
    assert!(error(&body).contains("relay and postgres can"), "{body}");
    assert_eq!(relay.get("/healthz", "").await.0, 200);
}

#[tokio::test]
async fn while_the_relay_is_away_the_crm_answers_and_stopping_the_demo_leaves_nothing() {
    let (database, relay) = demo().await;
    assert_eq!(break_it(&relay, "relay", "").await.0, 200);
    relay.logged("stopped").await;
    assert_eq!(relay.get("/api/users", "").await.0, 200);
    assert_eq!(relay.get("/client.js", "").await.0, 200);
    assert_eq!(relay.get("/ws", "").await.0, 404, "there is no relay");
    relay.signal("TERM");
    let ended = relay.stop_signalled().await;
    assert!(ended.success(), "{ended}");
    let left = "select count(*) from pg_class where relname in ('listings', 'setting')";
    assert_eq!(database.value(left).await, "0");
}
