//! A change: one row of the journal, as it was written in the CRM's own transaction.

use std::sync::Arc;
use std::time::SystemTime;

use crate::registry::RoomSet;
use crate::standing::{Heir, Standing};

/// What happened to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// It is new.
    Created,
    /// Some of its columns changed.
    Updated,
    /// It is gone.
    Deleted,
    /// More happened to its module than rows can say: a truncate, or a row too large to render.
    Truncated,
}

impl Action {
    /// As the journal and the events write it.
    pub fn name(self) -> &'static str {
        match self {
            Action::Created => "created",
            Action::Updated => "updated",
            Action::Deleted => "deleted",
            Action::Truncated => "truncated",
        }
    }

    /// From the journal's text.
    pub fn from_name(name: &str) -> Option<Action> {
        [
            Action::Created,
            Action::Updated,
            Action::Deleted,
            Action::Truncated,
        ]
        .into_iter()
        .find(|action| action.name() == name)
    }
}

/// One row of `crm_relay.change`.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Its number; within one record (and part) it only grows.
    pub seq: u64,
    /// The transaction that made it.
    pub txid: u64,
    /// The module of the record.
    pub module: Arc<str>,
    /// What happened.
    pub action: Action,
    /// The record's id; empty when truncated.
    pub record_id: String,
    /// The part of the record that changed and the id of its row; None for the record's own row.
    pub part: Option<(String, String)>,
    /// Who made it, where that is certain.
    pub actor: Option<String>,
    /// When the row changed.
    pub changed_at: SystemTime,
    /// How deep in triggers it was made: 1 for a statement of the CRM's own.
    pub depth: i16,
    /// The row before, a JSON object without hidden columns; of an update without what is large and
    /// unchanged.
    pub old_image: Option<String>,
    /// The row after, the same way.
    pub new_image: Option<String>,
    /// Of a part: the access columns of the record that it belongs to.
    pub record_image: Option<String>,
    /// How the record stood before; None where it was not there, and until somebody has looked.
    pub before: Option<Arc<Standing>>,
    /// How it stands after.
    pub after: Option<Arc<Standing>>,
    /// The records whose access may have changed with it.
    pub heirs: Vec<Heir>,
}

impl Change {
    /// Bytes of the row's images, before and after.
    pub fn image_bytes(&self) -> usize {
        let images = self.old_image.iter().chain(&self.new_image);
        images.map(String::len).sum()
    }

    /// Whether any of these rooms has to do with it.
    pub fn concerns(&self, rooms: &RoomSet<'_>) -> bool {
        let standings = self.before.iter().chain(&self.after);
        let mut scopes = standings.flat_map(|standing| standing.scopes.iter());
        let mut heirs = self.heirs.iter();
        self.action == Action::Truncated
            || heirs.any(|heir| {
                rooms.has(heir.room.as_str())
                    || heir.rooms.iter().any(|room| rooms.has(room.as_str()))
            })
            || rooms.has(format!("{}:{}", self.module, self.record_id).as_str())
            || scopes.any(|room| rooms.has(room.as_str()))
    }
}
