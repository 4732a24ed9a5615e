//! An event: what one change is to those who see it, and the frames that carry it.
//!
//! Knows nothing of rooms' members or sockets. The text of a frame is put together once, however
//! many connections get it.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use crate::change::{Action, Change};
use crate::diff::{self, BadImage, Columns, Difference};
use crate::frame::{self, Frame};
use crate::order;
use crate::registry::Module;
use crate::snapshot::Place;
use crate::standing::{Heir, Standing};

/// What stands in the place of a value that is not told, as JSON.
pub const UNTOLD: &str = "\"…\"";

/// What a connection may get of a change, by which of its rooms the record was in and is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum View {
    /// It has a room that the record is still in: the change as it is.
    Stayed,
    /// All its rooms have lost the record: a `deleted` with the key alone.
    Left,
    /// All its rooms have gained the record: a `created` with the whole record.
    Entered,
    /// Some lost it and some gained it: the change as it is.
    Crossed,
}

/// In which of a change's rooms somebody is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    stayed: bool,
    left: bool,
    entered: bool,
}

impl Seen {
    /// In a room that the record was in before, or is in after, or both; None for neither.
    pub fn of(before: bool, after: bool) -> Option<Seen> {
        (before || after).then_some(Seen {
            stayed: before && after,
            left: before && !after,
            entered: after && !before,
        })
    }

    /// The same for somebody who may see the record before, or after, or both.
    pub fn by(self, before: bool, after: bool) -> Option<Seen> {
        let was = self.stayed || self.left;
        let is = self.stayed || self.entered;
        Seen::of(was && before, is && after)
    }

    /// Takes another of their rooms into account.
    pub fn add(&mut self, other: Seen) {
        self.stayed |= other.stayed;
        self.left |= other.left;
        self.entered |= other.entered;
    }

    /// What they may get.
    pub fn view(self) -> View {
        match self {
            Seen { stayed: true, .. } => View::Stayed,
            Seen {
                left: true,
                entered: true,
                ..
            } => View::Crossed,
            Seen { left: true, .. } => View::Left,
            Seen { .. } => View::Entered,
        }
    }
}

impl Event {
    /// The transaction that made it.
    pub fn txid(&self) -> u64 {
        match self {
            Event::Changed(changed) => changed.txid,
            Event::Truncated { txid, .. }
            | Event::UserChanged { txid, .. }
            | Event::Disconnected { txid, .. } => *txid,
        }
    }
}

/// One change, or a whole module's upheaval.
#[derive(Debug)]
pub enum Event {
    /// A record changed.
    Changed(Box<Changed>),
    /// More happened to the module's records than can be told one by one.
    Truncated {
        /// The module.
        module: Arc<str>,
        /// The transaction that did it.
        txid: u64,
        /// When.
        changed_at: SystemTime,
    },
    /// What decides what a user may see has changed: their team, role or activity.
    UserChanged {
        /// The user; None: anybody's may have.
        user: Option<String>,
        /// The scope rooms whose records may have changed with it.
        rooms: Vec<String>,
        /// The transaction that did it.
        txid: u64,
    },
    /// An administrator throws a user out.
    Disconnected {
        /// The user.
        user: String,
        /// When.
        at: SystemTime,
        /// The transaction that did it.
        txid: u64,
    },
}

/// A record's change, ready to be encoded for any view of it.
#[derive(Debug)]
pub struct Changed {
    /// The record's room, such as `listings:5d1f…`.
    pub record_room: String,
    /// The scope rooms that the record was in before and is in after.
    pub stayed_in: Arc<[String]>,
    /// The scope rooms that it left.
    pub left: Vec<String>,
    /// The scope rooms that it entered.
    pub entered: Vec<String>,
    /// The transaction.
    pub txid: u64,
    /// The number in the journal.
    pub seq: u64,
    /// When the row changed.
    pub changed_at: SystemTime,
    /// Of an update the columns that changed and are not quiet.
    pub columns: Vec<String>,
    /// Of an update: whether it changed who may see the record.
    pub changes_access: bool,
    /// How many changes a throttle made one of.
    coalesced: u32,
    change: Change,
    watched: Arc<Module>,
    body: String,
    place: Arc<Place>,
    /// The frame for those who know it by its record's room alone, which is what most of them do.
    plain: OnceLock<Frame>,
}

/// What a change means to those who see it; None if nothing but quiet columns changed.
///
/// `module` is the record's, `quiet` are the columns of the changed table whose change alone is no
/// event, `place` is where the batch begins that the change came in.
pub fn of(
    change: Change,
    module: &Arc<Module>,
    quiet: &[String],
    place: &Arc<Place>,
) -> Result<Option<Event>, BadImage> {
    if change.action == Action::Truncated {
        return Ok(Some(Event::Truncated {
            module: change.module,
            txid: change.txid,
            changed_at: change.changed_at,
        }));
    }
    let mut columns = Vec::new();
    let body = match change.action {
        Action::Updated => {
            let old = change.old_image.as_deref();
            let Some(found) = diff::difference(old, change.new_image.as_deref(), quiet)? else {
                return Ok(None);
            };
            let body = body(&found);
            columns = found.columns;
            columns.retain(|column| !quiet.contains(column));
            body
        }
        Action::Deleted => ["\"data\":", whole(change.old_image.as_deref())?].concat(),
        _ => ["\"data\":", whole(change.new_image.as_deref())?].concat(),
    };
    let scopes = |standing: &Option<Arc<Standing>>| {
        let scopes = standing.as_ref().map(|standing| standing.scopes.clone());
        scopes.unwrap_or_default()
    };
    let (before, after) = (scopes(&change.before), scopes(&change.after));
    let (stayed_in, left, entered) = match change.action {
        Action::Created => (after, Vec::new(), Vec::new()),
        Action::Deleted => (before, Vec::new(), Vec::new()),
        _ if before == after => (after, Vec::new(), Vec::new()),
        _ => {
            let (left, stayed) = before
                .iter()
                .cloned()
                .partition(|room| !after.contains(room));
            let entered = after.iter().filter(|room| !before.contains(room));
            (Vec::into(stayed), left, entered.cloned().collect())
        }
    };
    Ok(Some(Event::Changed(Box::new(Changed {
        record_room: [&change.module, ":", &change.record_id].concat(),
        stayed_in,
        left,
        entered,
        txid: change.txid,
        seq: change.seq,
        changed_at: change.changed_at,
        changes_access: (columns.iter()).any(|column| module.access_columns.contains(column)),
        columns,
        coalesced: 1,
        watched: module.clone(),
        body,
        place: place.clone(),
        plain: OnceLock::new(),
        change,
    }))))
}

/// What a change of the table of users means: nobody sees it, but it may decide what they see.
pub fn of_user(change: Change) -> Event {
    let rooms = |standing: &Option<Arc<Standing>>| -> HashSet<String> {
        let standing = standing.iter();
        standing
            .flat_map(|standing| standing.rooms().cloned())
            .collect()
    };
    Event::UserChanged {
        rooms: (&rooms(&change.before) ^ &rooms(&change.after))
            .into_iter()
            .collect(),
        user: (change.action != Action::Truncated).then_some(change.record_id),
        txid: change.txid,
    }
}

/// What an update's frame says of it.
fn body(found: &Difference) -> String {
    let [data, previous] = ["\"data\":", ",\"previous\":"];
    [data, &found.data, previous, &found.previous].concat()
}

/// An image as it goes out: one that is no JSON object must not.
fn whole(image: Option<&str>) -> Result<&str, BadImage> {
    let image = image.unwrap_or("{}");
    diff::each(image, |_, _| true)?;
    Ok(image)
}

impl Changed {
    /// All its rooms, with what being in each of them means.
    pub fn rooms(&self) -> impl Iterator<Item = (&str, Seen)> {
        let [stayed, left, entered] =
            [(true, true), (true, false), (false, true)].map(|(before, after)| Seen {
                stayed: before && after,
                left: before && !after,
                entered: after && !before,
            });
        (std::iter::once(&self.record_room).chain(self.stayed_in.iter()))
            .map(move |room| (room.as_str(), stayed))
            .chain((self.left.iter()).map(move |room| (room.as_str(), left)))
            .chain((self.entered.iter()).map(move |room| (room.as_str(), entered)))
    }

    /// How the record stood before and stands after, each where it was there.
    pub fn standings(&self) -> (Option<&Arc<Standing>>, Option<&Arc<Standing>>) {
        (self.change.before.as_ref(), self.change.after.as_ref())
    }

    /// The records whose access may have changed with it.
    pub fn heirs(&self) -> &[Heir] {
        &self.change.heirs
    }

    /// The frame for those with this view; `rooms` are the scope rooms that it is for.
    pub fn frame(&self, view: View, rooms: &[&str]) -> Frame {
        if view == View::Stayed && rooms.is_empty() {
            return self.plain.get_or_init(|| self.encode(view, rooms)).clone();
        }
        self.encode(view, rooms)
    }

    fn encode(&self, view: View, rooms: &[&str]) -> Frame {
        frame::text(self.text(view, rooms).as_bytes())
    }

    /// The same frame without values, put together without reading them: of an update the names of the
    /// columns that changed and are not quiet, of what came or went none.
    pub fn outline(&self, view: View, rooms: &[&str]) -> String {
        let names = self.columns.iter().map(|name| (name.as_str(), UNTOLD));
        let body = format!("\"data\":{}", diff::object(names));
        let action = match view {
            View::Stayed | View::Crossed => self.change.action,
            View::Left => Action::Deleted,
            View::Entered => Action::Created,
        };
        self.put_together(action, &body, view, rooms)
    }

    /// The text of that frame.
    pub fn text(&self, view: View, rooms: &[&str]) -> String {
        let moved;
        let (action, body) = match view {
            View::Stayed | View::Crossed => (self.change.action, self.body.as_str()),
            View::Left => {
                moved = format!("\"data\":{}", self.key());
                (Action::Deleted, moved.as_str())
            }
            View::Entered => {
                moved = format!(
                    "\"data\":{}",
                    self.change.new_image.as_deref().unwrap_or("{}")
                );
                (Action::Created, moved.as_str())
            }
        };
        self.put_together(action, body, view, rooms)
    }

    fn put_together(&self, action: Action, body: &str, view: View, rooms: &[&str]) -> String {
        let change = &self.change;
        let mut text = String::with_capacity(body.len() + 512);
        text.push_str("{\"type\":\"");
        self.push_kind(&mut text, action);
        text.push_str(&format!(
            "\",\"module\":\"{}\",\"action\":\"{}\",\"recordId\":{}",
            change.module,
            action.name(),
            diff::quoted(&change.record_id),
        ));
        if let Some((part, _)) = &change.part {
            text.push_str(&format!(",\"part\":\"{part}\""));
        }
        text.push(',');
        text.push_str(body);
        text.push_str(&format!(
            ",\"userId\":{},\"timestamp\":\"{}\",\"txid\":\"{}\",\"seq\":\"{}\",\"cursor\":\"{}\"",
            change
                .actor
                .as_deref()
                .map_or("null".to_owned(), diff::quoted),
            humantime::format_rfc3339_millis(change.changed_at),
            change.txid,
            change.seq,
            self.place.text,
        ));
        if !rooms.is_empty() {
            text.push_str(&format!(",\"rooms\":{}", serde_json::Value::from(rooms)));
        }
        if self.coalesced > 1 {
            text.push_str(&format!(",\"coalesced\":{}", self.coalesced));
        }
        if matches!(view, View::Left | View::Entered) {
            text.push_str(",\"reason\":\"moved\"");
        }
        text.push('}');
        text
    }

    /// Such as `LISTING_UPDATED`.
    pub fn kind(&self) -> String {
        let mut kind = String::new();
        self.push_kind(&mut kind, self.change.action);
        kind
    }

    fn push_kind(&self, text: &mut String, action: Action) {
        text.push_str(&self.watched.event);
        text.push('_');
        let start = text.len();
        text.push_str(action.name());
        text[start..].make_ascii_uppercase();
    }

    /// Who made it, where that is certain.
    pub fn actor(&self) -> Option<&str> {
        self.change.actor.as_deref()
    }

    /// The record's module.
    pub fn module(&self) -> &Arc<str> {
        &self.change.module
    }

    /// What happened.
    pub fn action(&self) -> Action {
        self.change.action
    }

    /// How many changes a throttle made this one of.
    pub fn coalesced(&self) -> u32 {
        self.coalesced
    }

    /// The part of the record that changed.
    pub fn part(&self) -> Option<&str> {
        self.change.part.as_ref().map(|(part, _)| part.as_str())
    }

    /// This update and a later one of the same row as one, or None if the row is again as it was.
    pub fn join(self, later: Changed) -> Result<Option<Changed>, BadImage> {
        let Some(change) = order::merge(&[&self.change, &later.change])? else {
            return Ok(None);
        };
        let (old, new) = (change.old_image.as_deref(), change.new_image.as_deref());
        let Some(found) = diff::difference(old, new, &[])? else {
            return Ok(None);
        };
        let body = body(&found);
        let known =
            |column: &String| self.columns.contains(column) || later.columns.contains(column);
        Ok(Some(Changed {
            columns: found.columns.into_iter().filter(known).collect(),
            coalesced: self.coalesced + later.coalesced,
            body,
            place: self.place,
            plain: OnceLock::new(),
            change,
            ..later
        }))
    }

    /// Where the batch begins that the change came in, or the first of those that it was made of.
    pub fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// Tells an earlier place: that of what is still held back.
    pub fn not_past(&mut self, place: &Arc<Place>) {
        self.place = place.clone();
    }

    /// Where the batch begins that the change came in.
    pub fn cursor(&self) -> &str {
        &self.place.text
    }

    /// Bytes of the frame's images, in the longest of its views.
    pub fn length(&self) -> usize {
        let image = self.change.new_image.as_ref().map_or(0, String::len);
        self.body.len().max(image)
    }

    /// Bytes that it keeps in memory, about.
    pub fn size(&self) -> usize {
        2 * self.body.len() + self.change.image_bytes() + 1024
    }

    /// The key columns alone; of a part's record, which is not in the image, its id.
    fn key(&self) -> String {
        let image = self
            .change
            .old_image
            .as_deref()
            .or(self.change.new_image.as_deref());
        image
            .and_then(|image| Columns::of(image).ok())
            .map_or("{}".to_owned(), |columns| {
                columns.only(&self.watched.key_columns)
            })
    }
}

/// Several events of one transaction as one frame, for connections that asked for it.
pub fn transaction_frame(txid: u64, cursor: &str, frames: &[Frame]) -> Frame {
    let mut text = format!(
        "{{\"type\":\"TRANSACTION\",\"txid\":\"{txid}\",\"cursor\":\"{cursor}\",\"events\":["
    )
    .into_bytes();
    for (place, one) in frames.iter().enumerate() {
        if place > 0 {
            text.push(b',');
        }
        text.extend_from_slice(one.payload());
    }
    text.extend_from_slice(b"]}");
    frame::text(&text)
}
