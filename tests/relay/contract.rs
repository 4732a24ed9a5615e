//! The frames against relay/asyncapi.yaml, the one place where their schemas stand. Everything that a
//! test hears of the relay comes by [`frame`], so a frame that is not as its schema says fails whichever
//! test heard it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use crm_relay::protocol;
use jsonschema::Validator;
use serde_json::{Value, json};

use crate::harness::{Client, Database, Relay, now, token, token_of};

const DOCUMENT: &str = include_str!("../../relay/asyncapi.yaml");

/// What the document says of one message.
struct Message {
    schema: Validator,
    /// As they are written there: digits count, and YAML would read 395000.00 as 395000.
    examples: Vec<Value>,
    is_clients: bool,
}

static MESSAGES: LazyLock<BTreeMap<String, Message>> = LazyLock::new(|| {
    let document: Value = serde_saphyr::from_str(DOCUMENT).expect("YAML");
    let operations = document["operations"].as_object().unwrap().values();
    let received = operations
        .filter(|operation| operation["action"] == "receive")
        .flat_map(|operation| operation["messages"].as_array().unwrap());
    let received: BTreeSet<&str> = received
        .map(|message| message["$ref"].as_str().unwrap())
        .map(|reference| reference.rsplit('/').next().unwrap())
        .collect();
    let names = document["channels"]["ws"]["messages"].as_object().unwrap();
    let message = |name: &String| {
        let schema = json!({
            "$schema": "http://json-schema.org/draft-07/schema#",
            "$ref": format!("#/components/schemas/{name}"),
            "components": document["components"],
        });
        Message {
            schema: jsonschema::validator_for(&schema).expect("a schema"),
            examples: examples(name),
            is_clients: received.contains(name.as_str()),
        }
    };
    names
        .keys()
        .map(|name| (name.clone(), message(name)))
        .collect()
});

/// The examples of a message, each of which is a line of its own.
fn examples(name: &str) -> Vec<Value> {
    let (_, messages) = DOCUMENT.split_once("\n  messages:\n").unwrap();
    let (_, after) = messages
        .split_once(&format!("\n      name: {name}\n"))
        .unwrap();
    let (own, _) = after.split_once("\n      name: ").unwrap_or((after, ""));
    let written = own
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- payload: "));
    written
        .map(|text| serde_json::from_str(text).expect("JSON"))
        .collect()
}

/// The name of the message that a frame is.
fn name_of(frame: &Value) -> &str {
    match (&frame["action"], &frame["type"]) {
        (Value::String(action), _) => action,
        (_, Value::String(kind)) if kind == "TRANSACTION" => "transaction",
        (_, Value::String(kind)) => kind,
        _ => "a frame without a type",
    }
}

/// Why a frame is not as its schema says; None if it is.
fn complaint(frame: &Value, is_clients: bool) -> Option<String> {
    let name = name_of(frame);
    let Some(message) = MESSAGES
        .get(name)
        .filter(|known| known.is_clients == is_clients)
    else {
        return Some(format!("relay/asyncapi.yaml knows no {name}: {frame}"));
    };
    let wrong = message.schema.validate(frame).err()?;
    Some(format!(
        "{}: {wrong}, by relay/asyncapi.yaml: {frame}",
        wrong.instance_path()
    ))
}

/// A frame of the relay's, as its schema says that it must be.
pub fn frame(text: &str) -> Value {
    let frame = serde_json::from_str(text).expect("frames are JSON");
    if let Some(complaint) = complaint(&frame, false) {
        panic!("{complaint}");
    }
    frame
}

/// A client that notes what it says and hears.
struct Witness {
    client: Client,
    noted: Vec<Value>,
}

impl Witness {
    async fn connect(relay: &Relay) -> Witness {
        let client = Client::silent(relay).await;
        Witness {
            client,
            noted: Vec::new(),
        }
    }

    async fn say(&mut self, frame: Value) {
        self.noted.push(frame.clone());
        self.client.send(frame).await;
    }

    /// Hears all until a frame of this name came; returns that one.
    async fn hear(&mut self, name: &str) -> Value {
        loop {
            let frame = self.client.next_frame().await;
            self.noted.push(frame.clone());
            if name_of(&frame) == name {
                return frame;
            }
        }
    }
}

const MARIA: &str = "0b2f6c1e-5d3a-4c8b-9a7e-1f2d3c4b5a69";
const JOHN: &str = "3c9d7e10-8f4b-4a26-b5c3-6d7e8f9a0b1c";
const TEAM: &str = "70000000-0000-4000-8000-000000000001";
const OTHER_TEAM: &str = "70000000-0000-4000-8000-000000000002";
const LISTING: &str = "5d1f0c9e-2b4a-4e6d-8c7b-9a0b1c2d3e4f";
const ANOTHER: &str = "6e2a1d0f-3c5b-4f7e-9d8c-ab1c2d3e4f50";
const CLIENT: &str = "1a2b3c4d-5e6f-4a7b-8c9d-0e1f2a3b4c5d";
const CONTACT: &str = "2b3c4d5e-6f7a-4b8c-9d0e-1f2a3b4c5d6e";

/// A morning at a small CRM: everything that is said and heard.
async fn morning() -> Vec<Value> {
    let database = Database::bare().await;
    database
        .execute(&format!(
            "create table users (id uuid primary key, role text, team_id uuid);
             create table listings (
               id uuid primary key, owner_id uuid, team_id uuid, list_price numeric(12,2), listing_status text,
               version int not null default 1, last_modified_by uuid, created_by uuid
             );
             create table contacts (id uuid primary key, phone text);
             create table clients (id uuid primary key, owner_id uuid, contact_id uuid);
             insert into users values ('{MARIA}', 'agent', '{TEAM}'), ('{JOHN}', 'agent', '{TEAM}');
             insert into listings values ('{LISTING}', '{JOHN}', '{TEAM}', 400000, 'active', 7, '{JOHN}', '{JOHN}')"
        ))
        .await;
    let installed = crate::harness::crm_relay(&database.url(), &["install"]);
    assert!(installed.status.success());
    database
        .execute(&format!(
            "insert into contacts values ('{CONTACT}', '555-0100');
             insert into clients values ('{CLIENT}', '{MARIA}', '{CONTACT}')"
        ))
        .await;
    let relay = Relay::guarded(&database.url(), |_| {}).await;
    let (listing, team, client) = (
        format!("listings:{LISTING}"),
        format!("team:{TEAM}"),
        format!("clients:{CLIENT}"),
    );

    let mut maria = Witness::connect(&relay).await;
    maria
        .say(json!({"type": "hello", "token": token(MARIA), "transactions": true}))
        .await;
    maria.hear("welcome").await;
    let rooms = json!([listing, team, format!("team:{OTHER_TEAM}")]);
    maria
        .say(json!({"type": "subscribe", "id": 1, "rooms": rooms}))
        .await;
    let cursor = maria.hear("subscribed").await["cursor"].clone();

    let set = |what: &str, id: &str| {
        format!(
            "update listings set {what}, version = version + 1, last_modified_by = '{JOHN}' where id = '{id}'"
        )
    };
    database.execute(&set("list_price = 395000", LISTING)).await;
    maria.hear("updated").await;
    database
        .execute(&format!(
            "insert into listings values ('{ANOTHER}', '{MARIA}', '{TEAM}', 610000.5, 'draft', 1, null, '{MARIA}')"
        ))
        .await;
    maria.hear("created").await;
    let both = [
        set("listing_status = 'pending'", LISTING),
        set("listing_status = 'active'", ANOTHER),
    ];
    database.execute(&both.join(";")).await;
    maria.hear("transaction").await;
    database
        .execute(&format!("delete from listings where id = '{ANOTHER}'"))
        .await;
    maria.hear("deleted").await;
    // out of her sight
    database
        .execute(&set(&format!("team_id = '{OTHER_TEAM}'"), LISTING))
        .await;
    for _ in ["by its own room", "by her team's"] {
        let frame = maria.client.next_frame().await;
        maria.noted.push(frame);
    }

    maria
        .say(json!({"type": "subscribe", "id": 2, "rooms": [client], "snapshot": true}))
        .await;
    maria.hear("snapshot").await;
    database
        .execute("update contacts set phone = '555-0199'")
        .await;
    maria.hear("updated").await;
    maria
        .say(json!({"type": "subscribe", "id": "again", "rooms": [team], "since": cursor}))
        .await;
    maria.hear("subscribed").await;
    maria
        .say(json!({"type": "unsubscribe", "id": 4, "rooms": [client]}))
        .await;
    maria.hear("unsubscribed").await;
    let of_another_database = "00000000.7423:7423:.990";
    maria
        .say(json!({"type": "subscribe", "id": 5, "rooms": [team, "lists:1"], "since": of_another_database}))
        .await;
    maria.hear("subscribed").await;
    maria
        .say(json!({"type": "subscribe", "id": 6, "rooms": [team], "since": "yesterday"}))
        .await;
    maria.hear("error").await;
    database.execute("truncate listings").await;
    maria.hear("resync").await;
    maria
        .say(json!({"type": "token", "token": token(MARIA)}))
        .await;
    maria.hear("token_accepted").await;
    maria.say(json!({"type": "ping", "id": 7})).await;
    maria.hear("pong").await;
    relay.signal("TERM");
    maria.hear("draining").await;

    let impatient = Relay::guarded(&database.url(), |command| {
        command.env("RELAY_HEARTBEAT", "1s");
    })
    .await;
    let mut john = Witness::connect(&impatient).await;
    // five seconds more are granted
    let short = token_of(&json!({"id": JOHN, "exp": now() - 1}));
    john.say(json!({"type": "hello", "token": short})).await;
    john.hear("heartbeat").await;
    john.hear("token_expiring").await;
    [maria.noted, john.noted].concat()
}

/// A frame with what differs each time left out.
fn lasting(frame: &Value) -> Value {
    const EACH_TIME: [&str; 10] = [
        "token",
        "session",
        "expiresAt",
        "since",
        "cursor",
        "txid",
        "seq",
        "timestamp",
        "reconnectAfterMs",
        "heartbeatSeconds",
    ];
    match frame {
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| {
                let is_told = value.is_string() || value.is_number();
                let value = match EACH_TIME.contains(&name.as_str()) && is_told {
                    true => json!("each time another"),
                    false => lasting(value),
                };
                (name.clone(), value)
            });
            Value::Object(members.collect())
        }
        Value::Array(items) => items.iter().map(lasting).collect(),
        other => other.clone(),
    }
}

#[tokio::test]
async fn every_example_is_a_frame_that_was_sent() {
    let noted = morning().await;
    for frame in &noted {
        eprintln!("NOTED {frame}");
    }
    for (name, message) in &*MESSAGES {
        assert!(!message.examples.is_empty(), "{name} has no example");
        let of_this_name: Vec<_> = noted
            .iter()
            .filter(|frame| name_of(frame) == name)
            .collect();
        for example in &message.examples {
            let is_told = of_this_name
                .iter()
                .any(|frame| lasting(frame) == lasting(example));
            let sent: Vec<_> = of_this_name.iter().map(|frame| frame.to_string()).collect();
            assert!(
                is_told,
                "{name}: {example}\nwhat was sent:\n{}",
                sent.join("\n")
            );
            assert_eq!(complaint(example, message.is_clients), None);
        }
    }
    for frame in &noted {
        let is_clients = MESSAGES[name_of(frame)].is_clients;
        assert_eq!(complaint(frame, is_clients), None);
    }
}

#[test]
fn no_frame_of_the_relay_may_have_a_member_more_or_one_less_than_its_schema_says() {
    for (name, message) in MESSAGES.iter().filter(|(_, message)| !message.is_clients) {
        let mut more = message.examples[0].clone();
        more["surprise"] = json!(1);
        assert!(complaint(&more, false).is_some(), "{more}");
        // each member that all examples have is needed, but for an error's id
        for member in message.examples[0].as_object().unwrap().keys() {
            let mut less = message.examples[0].clone();
            less.as_object_mut().unwrap().remove(member);
            let may_miss = match (name.as_str(), member.as_str()) {
                ("error", "id") | ("subscribed", "denied") => true,
                (_, "rooms") => less["action"].is_string(),
                _ => false,
            };
            assert_eq!(complaint(&less, false).is_none(), may_miss, "{less}");
        }
    }
}

/// Every frame that can be made of one value, or none, for each of these members.
fn every(members: &[(&str, &[Value])]) -> Vec<Value> {
    let mut frames = vec![json!({})];
    for (name, values) in members {
        let with_one = |frame: &Value| {
            let with = |value: &Value| {
                let mut frame = frame.clone();
                frame[name] = value.clone();
                frame
            };
            values.iter().map(with).collect::<Vec<_>>()
        };
        let more: Vec<_> = frames.iter().flat_map(with_one).collect();
        frames.extend(more);
    }
    frames
}

#[test]
fn the_relay_takes_what_the_schema_takes_and_nothing_else() {
    let kinds = [
        "hello",
        "subscribe",
        "unsubscribe",
        "token",
        "ping",
        "welcome",
    ];
    let (mut good, mut bad) = (0, 0);
    for frame in every(&[
        ("type", &kinds.map(Value::from)),
        (
            "id",
            &[
                json!(1),
                json!("a"),
                json!(-1.5e3),
                json!(true),
                json!({}),
                json!([1]),
            ],
        ),
        (
            "rooms",
            &[
                json!([]),
                json!(["leads:1", "x"]),
                json!([1]),
                json!("leads:1"),
            ],
        ),
        ("since", &[json!("x"), json!(5)]),
        ("snapshot", &[json!(true), json!(false), json!("yes")]),
        ("transactions", &[json!(true), json!(1)]),
        ("token", &[json!("x"), json!({})]),
    ]) {
        let read = protocol::read(&frame.to_string());
        assert_eq!(
            read.is_ok(),
            complaint(&frame, true).is_none(),
            "{frame}: {read:?}"
        );
        *(if read.is_ok() { &mut good } else { &mut bad }) += 1;
    }
    assert!(good > 1000 && bad > 1000, "{good} {bad}");
}

/// The frames that a document shows, which may run over lines.
fn shown(document: &str) -> Vec<String> {
    let mut frames = Vec::new();
    for (start, _) in document.match_indices("{\"type\":") {
        let (mut depth, mut in_text) = (0, false);
        let end = document[start..].char_indices().find(|&(_, c)| {
            in_text ^= c == '"';
            depth += match c {
                '{' if !in_text => 1,
                '}' if !in_text => -1,
                _ => 0,
            };
            depth == 0
        });
        let (end, _) = end.expect("a whole frame");
        frames.push(document[start..=start + end].to_owned());
    }
    frames
}

/// What a document leaves out by `…`, as this example of the same message has it.
fn fill_in(value: &mut Value, example: &Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                fill_in(member, &example[name.as_str()]);
            }
        }
        Value::Array(items) => {
            for (place, item) in items.iter_mut().enumerate() {
                fill_in(item, &example[place]);
            }
        }
        Value::String(text) if text.contains('…') => *value = example.clone(),
        _ => {}
    }
}

#[test]
fn every_frame_that_a_document_shows_is_as_its_schema_says() {
    let mut names = BTreeSet::new();
    for document in ["README.md", "relay/PROTOCOL.md"] {
        let path = format!("{}/{document}", env!("CARGO_MANIFEST_DIR"));
        for text in shown(&std::fs::read_to_string(path).unwrap()) {
            let left_out = text.replace("[…]", "\"…\"").replace("{…}", "\"…\"");
            let frame: Value = serde_json::from_str(&left_out)
                .unwrap_or_else(|error| panic!("{document}: {error}: {text}"));
            let message = &MESSAGES[name_of(&frame)];
            let is_good = message.examples.iter().any(|example| {
                let mut frame = frame.clone();
                fill_in(&mut frame, example);
                complaint(&frame, message.is_clients).is_none()
            });
            assert!(
                is_good,
                "{document}: {text}: {:?}",
                complaint(&frame, message.is_clients)
            );
            names.insert(name_of(&frame).to_owned());
        }
    }
    assert!(names.len() > 15, "{names:?}");
}

#[tokio::test]
async fn the_document_is_served() {
    let database = Database::create().await;
    let relay = Relay::start(&database.url()).await;
    assert_eq!(
        relay.get("/asyncapi.yaml", "").await,
        (200, DOCUMENT.to_owned())
    );
}
