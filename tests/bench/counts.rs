//! Does one thing of the way of an event so often, for counts.sh to count its instructions.

use std::hint::black_box;
use std::sync::Arc;
use std::time::SystemTime;

use crm_relay::change::{Action, Change};
use crm_relay::diff::{self, Columns};
use crm_relay::event::{self, Event, View};
use crm_relay::frame::{self, Decoder};
use crm_relay::outbox::Outbox;
use crm_relay::policy::{Credential, Question};
use crm_relay::protocol;
use crm_relay::registry::{KeyForm, Module};
use crm_relay::rooms::{
    Bearer, Beginning, Bounds, Command, Enter, Judges, Member, Rooms, Subscribe, Verdicts,
};
use crm_relay::snapshot::{Cursor, Place};
use crm_relay::standing::Standing;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

/// A row of 22 columns at this price, as the journal holds it.
fn image(price: u32) -> String {
    format!(
        r#"{{"id":"5d1f0c9e-1111-4000-8000-000000000001","display_id":"LST-2026-0042","property_address":"1420 Chester Ave","city":"Bakersfield","state":"CA","zip_code":"93301","list_price":{price}.00,"property_type":"single_family","bedrooms":4,"bathrooms":2.5,"square_feet":2140,"year_built":1987,"description":"Charming four bedroom home near downtown with a large yard.","features":["pool","garage"],"listing_status":"active","listing_date":"2026-03-02","owner_id":"a0000000-0000-4000-8000-000000000001","team_id":"70000000-0000-4000-8000-000000000001","commission":2.5,"created_at":"2026-03-02T17:22:11.123456+00:00","updated_at":"2026-03-19T08:11:54.44321+00:00","version":{price}}}"#
    )
}

fn updated() -> Change {
    let standing = Arc::new(Standing::of(
        0,
        "listings".into(),
        "{}",
        &[
            "user:a0000000-0000-4000-8000-000000000001",
            "team:70000000-0000-4000-8000-000000000001",
        ]
        .map(str::to_owned),
    ));
    Change {
        seq: 991_231,
        txid: 7_423_441,
        module: "listings".into(),
        action: Action::Updated,
        record_id: "5d1f0c9e-1111-4000-8000-000000000001".to_owned(),
        part: None,
        actor: Some("a0000000-0000-4000-8000-000000000001".to_owned()),
        changed_at: SystemTime::UNIX_EPOCH,
        depth: 1,
        old_image: Some(image(425_000)),
        new_image: Some(image(426_000)),
        record_image: None,
        before: Some(standing.clone()),
        after: Some(standing),
        heirs: Vec::new(),
    }
}

/// So many members, each in the room of a record of its own; the first one's outbox.
fn crowd(members: Member, place: &Cursor, standing: &Arc<Standing>) -> (Rooms, Arc<Outbox>) {
    let bounds = Bounds {
        recent_bytes: 0,
        flood_changes: 500,
        rooms: 1000,
    };
    let judge = || mpsc::channel(1).0;
    let cursor = watch::channel(Arc::from("")).0;
    let mut rooms = Rooms::new(cursor, Arc::default(), bounds).judged_by(Judges {
        now: judge(),
        later: judge(),
    });
    let place = Place::of(place.clone());
    rooms.obey(Command::BeginAnew {
        place: place.clone(),
        why: "epoch_changed",
        disconnected: Vec::new(),
    });
    rooms.obey(Command::Remember {
        since: place.clone(),
        until: place.clone(),
        past: Vec::new(),
    });
    let outboxes: Vec<Arc<Outbox>> = (0..members)
        .map(|_| Arc::new(Outbox::new(usize::MAX)))
        .collect();
    for (member, outbox) in (0..members).zip(&outboxes) {
        let who = Arc::new(Credential {
            number: member,
            user: member.to_string(),
            claims: "{}".to_owned(),
        });
        let question = Question {
            who: who.clone(),
            standing: standing.clone(),
        };
        rooms.obey(Command::Enter(Box::new(Enter {
            member,
            session: Uuid::nil(),
            outbox: outbox.clone(),
            transactions: false,
            bearer: Some(Bearer {
                who,
                issued_at: None,
            }),
            welcome: frame::text(b"{}"),
        })));
        rooms.obey(Command::Known(Verdicts {
            answers: vec![(question, true)],
            era: 0,
        }));
        rooms.obey(Command::Subscribe(Box::new(Subscribe {
            member,
            rooms: vec![format!(
                "listings:5d1f0c9e-1111-4000-8000-{:012}",
                member + 1
            )],
            granted: Some(place.cursor.clone()),
            from: Beginning::Now,
            id: Value::Null,
            denied: Vec::new(),
            reply: oneshot::channel().0,
        })));
    }
    (rooms, outboxes[0].clone())
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (what, times) = (arguments.next(), arguments.next());
    let what = what.expect("what to do");
    let times: u32 = times
        .and_then(|times| times.parse().ok())
        .expect("how often");
    let (old, new) = (image(425_000), image(426_000));
    let module = Arc::new(Module {
        name: "listings".into(),
        event: "LISTING".to_owned(),
        key_columns: vec!["id".to_owned()],
        key: KeyForm::Text,
        quiet_columns: vec!["updated_at".to_owned(), "version".to_owned()],
        access_columns: vec!["owner_id".to_owned()],
        is_narrow: false,
        access_of: None,
        missing: Vec::new(),
        is_part: false,
    });
    let place = "3f2a91c0.7423:7423:.990".parse().expect("a cursor");
    let place = Place::of(place);
    let change = updated();
    let told = || match event::of(change.clone(), &module, &module.quiet_columns, &place) {
        Ok(Some(Event::Changed(changed))) => changed,
        other => panic!("{other:?}"),
    };
    let changed = told();
    let created = frame::text(format!(r#"{{"data":{new},"previous":{old}}}"#).as_bytes());
    let standing = change.after.clone().expect("where it stands");
    let (mut rooms, outbox) = match what.as_str() {
        "crowd" => crowd(10_000, &place.cursor, &standing),
        _ => crowd(10, &place.cursor, &standing),
    };
    let mut taken = std::collections::VecDeque::new();
    let subscribe =
        br#"{"type":"subscribe","id":1,"rooms":["listings:5d1f0c9e-1111-4000-8000-000000000001"]}"#;
    let mut heard = vec![0x81, 0x80 | subscribe.len() as u8, 0, 0, 0, 0];
    heard.extend(subscribe);
    for _ in 0..times {
        match what.as_str() {
            "decode" => _ = black_box(Columns::of(black_box(&new))),
            "diff" => {
                _ = black_box(diff::difference(
                    Some(black_box(&old)),
                    Some(&new),
                    &module.quiet_columns,
                ))
            }
            "event" => _ = black_box(told()),
            "encode" => {
                _ = black_box(
                    changed.text(View::Stayed, &["team:70000000-0000-4000-8000-000000000001"]),
                )
            }
            "compress" => _ = black_box(frame::text(created.payload()).compressed().len()),
            "push" => {
                outbox.push(black_box(&created).clone());
                outbox.take(&mut taken);
                outbox.written(taken.drain(..).map(|frame| frame.size()).sum(), 1);
            }
            "tell" | "crowd" => {
                rooms.obey(Command::Publish {
                    events: vec![Event::Changed(told())],
                });
                outbox.take(&mut taken);
                assert!(!taken.is_empty(), "the event was not told");
                taken.clear();
            }
            "hear" => {
                let mut decoder = Decoder::new(protocol::LARGEST_MESSAGE);
                let found = |message| {
                    if let frame::Message::Text(text) = message {
                        _ = black_box(protocol::read(&text));
                    }
                    true
                };
                decoder
                    .decode(black_box(&heard), found)
                    .expect("a good frame");
            }
            other => {
                panic!(
                    "{other}: it must be decode, diff, event, encode, compress, push, tell, crowd or hear"
                )
            }
        }
    }
}
