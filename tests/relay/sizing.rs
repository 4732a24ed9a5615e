//! What it takes: memory of a connection, processor time of a change and of a delivery, room of a change in the
//! journal. Figures for deploy/README.md, which tells how to run it.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Client, Database, Relay};
use crate::leak::memory;

const CONNECTIONS: usize = 2000;
const RECEIVERS: usize = 200;
const CHANGES: u32 = 2000;
const SEEN: &str = "00000000-0000-4000-8000-000000000001";
const UNSEEN: &str = "00000000-0000-4000-8000-000000000002";

/// Processor time that the relay has used, in user space and in the kernel.
pub fn used(relay: &Relay) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", relay.pid())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = fields.split(' ').collect();
    // utime and stime, in hundredths (proc(5)); the state is the first field here
    let hundredths: u64 = fields[11..13]
        .iter()
        .map(|field| field.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(hundredths * 10)
}

/// Edits a price so often, and waits until the relay has told them all to who watches.
async fn edit(database: &Database, id: &str, last: &mut Client) {
    for step in 0..CHANGES {
        let set = format!("list_price = {step}, version = version + 1, updated_at = now()");
        database
            .execute(&format!("update listings set {set} where id = '{id}'"))
            .await;
    }
    last.everything(database.client()).await;
}

#[tokio::test]
#[ignore = "a measurement"]
async fn measure_what_it_takes() {
    let database = Database::create().await;
    let insert = "insert into listings (id, property_address, description) values";
    let description = "repeat('A house with a view. ', 100)";
    for id in [SEEN, UNSEEN] {
        database
            .execute(&format!(
                "{insert} ('{id}', '1 Main Street', {description})"
            ))
            .await;
    }
    let relay = Relay::with(&database.url(), |command| {
        command.env("RELAY_MAX_CONNECTIONS_PER_ADDRESS", "10000");
    })
    .await;
    let mut last = Client::connect(&relay).await;
    let alone = memory(&relay);
    let mut clients = Vec::new();
    for number in 0..CONNECTIONS {
        let mut client = Client::connect(&relay).await;
        let lead = uuid::Uuid::new_v4();
        let rooms = json!([format!("leads:{lead}"), format!("team:{lead}")]);
        client
            .send(json!({"type": "subscribe", "id": number, "rooms": rooms}))
            .await;
        assert_eq!(client.next_event().await["type"], "subscribed");
        clients.push(client);
    }
    let full = memory(&relay);
    println!(
        "{} KiB alone, {full} KiB with {CONNECTIONS} connections of two rooms: {:.1} KiB each",
        alone,
        (full - alone) as f64 / CONNECTIONS as f64
    );
    drop(clients);

    let size = "select sum(pg_total_relation_size(relid)) from pg_partition_tree('crm_relay.change') where isleaf";
    let mut before = (
        used(&relay),
        database.value(size).await.parse::<i64>().unwrap(),
    );
    edit(&database, UNSEEN, &mut last).await;
    let after = (
        used(&relay),
        database.value(size).await.parse::<i64>().unwrap(),
    );
    let of_a_change = (after.0 - before.0) / CHANGES;
    println!("{of_a_change:?} of processor for a change that nobody sees");
    println!(
        "{} bytes of journal for an edit of a price",
        (after.1 - before.1) / i64::from(CHANGES)
    );

    let mut watching = Vec::new();
    for _ in 0..RECEIVERS {
        let mut client = Client::connect(&relay).await;
        client.subscribe(&[format!("listings:{SEEN}")]).await;
        watching.push(tokio::spawn(async move {
            for _ in 0..CHANGES {
                client.next_event().await;
            }
        }));
    }
    before.0 = used(&relay);
    edit(&database, SEEN, &mut last).await;
    for watching in watching {
        watching.await.unwrap();
    }
    let of_all = (used(&relay) - before.0) / CHANGES;
    let of_a_delivery = of_all.saturating_sub(of_a_change) / RECEIVERS as u32;
    println!("{of_all:?} for one that {RECEIVERS} see: {of_a_delivery:?} for a delivery");
}
