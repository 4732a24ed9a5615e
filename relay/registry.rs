//! The registry: which modules are watched, and what their record ids look like.

use std::sync::Arc;

use rustc_hash::FxHashMap;

/// One watched table, a row of `crm_relay.module`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name in rooms and events, such as `listings`.
    pub name: Arc<str>,
    /// Its name in event types, such as `LISTING`.
    pub event: String,
    /// The columns that make a record's id.
    pub key_columns: Vec<String>,
    /// What the id must look like.
    pub key: KeyForm,
    /// Columns whose change alone is no event.
    pub quiet_columns: Vec<String>,
    /// Columns that decide who may see a record.
    pub access_columns: Vec<String>,
    /// Whether it says who users are: then it has no rooms, and its changes tell whom to ask again.
    pub is_narrow: bool,
    /// The module on whose records it depends, too, who may see this one's.
    pub access_of: Option<String>,
    /// Key, access and hidden columns that the table no longer has.
    pub missing: Vec<String>,
    /// Whether its rows are parts of another module's records: then it has no rooms of its own.
    pub is_part: bool,
}

/// How Postgres prints a record's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyForm {
    /// Lower case, with hyphens.
    Uuid,
    /// Decimal digits, within the bounds of the type, which has this many bits.
    Integer(u32),
    /// Any text.
    Text,
    /// A JSON array of this many texts.
    Composite(usize),
}

/// Longest record id, in bytes; more does not fit into the journal's index.
pub const LONGEST_ID: usize = 2000;

impl KeyForm {
    /// From the names that `format_type` gives to the types of the key columns.
    ///
    /// Types not named here count as text: an id that does not cast to them names a record that
    /// cannot exist, and its room stays silent.
    pub fn of(types: &[String]) -> KeyForm {
        match types {
            [one] => match one.as_str() {
                "uuid" => KeyForm::Uuid,
                "smallint" => KeyForm::Integer(16),
                "integer" => KeyForm::Integer(32),
                "bigint" => KeyForm::Integer(64),
                _ => KeyForm::Text,
            },
            several => KeyForm::Composite(several.len()),
        }
    }

    /// What an id of this form is, for people.
    pub fn name(self) -> String {
        match self {
            KeyForm::Uuid => "a uuid in lower case".to_owned(),
            KeyForm::Integer(_) => "a whole number".to_owned(),
            KeyForm::Text => "a text".to_owned(),
            KeyForm::Composite(columns) => format!("a JSON array of {columns} texts"),
        }
    }

    /// Whether Postgres would print an id of this form exactly so.
    pub fn fits(self, id: &str) -> bool {
        if id.len() > LONGEST_ID {
            return false;
        }
        match self {
            KeyForm::Uuid => {
                uuid::Uuid::try_parse(id).is_ok_and(|uuid| uuid.hyphenated().to_string() == id)
            }
            KeyForm::Integer(bits) => id.parse::<i64>().is_ok_and(|number| {
                number.to_string() == id && (bits == 64 || (number >> (bits - 1)) == (number >> 63))
            }),
            KeyForm::Text => !id.is_empty() && !id.contains('\0'),
            KeyForm::Composite(columns) => {
                serde_json::from_str::<Vec<String>>(id).is_ok_and(|texts| {
                    texts.len() == columns
                        && serde_json::to_string(&texts).is_ok_and(|again| again == id)
                })
            }
        }
    }
}

/// All watched modules by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Registry {
    modules: FxHashMap<Arc<str>, Arc<Module>>,
}

/// The scopes of rooms that hold many records.
const SCOPES: [&str; 3] = ["user", "team", "broker"];

impl Registry {
    /// Of these modules.
    pub fn of(modules: impl IntoIterator<Item = Module>) -> Registry {
        Registry {
            modules: modules
                .into_iter()
                .map(|module| (module.name.clone(), Arc::new(module)))
                .collect(),
        }
    }

    /// A module by its name.
    pub fn module(&self, name: &str) -> Option<&Arc<Module>> {
        self.modules.get(name)
    }

    /// All of them.
    pub fn modules(&self) -> impl Iterator<Item = &Module> {
        self.modules.values().map(Arc::as_ref)
    }

    /// Whether who may see records of another module depends on those of this one.
    pub fn has_heirs(&self, name: &str) -> bool {
        let mut modules = self.modules.values();
        modules.any(|module| module.access_of.as_deref() == Some(name))
    }

    /// Whether a room of this name can ever hold anything: `<module>:<record id>`, `<scope>:<id>` or
    /// `<scope>:<id>/<module>`, the id written as Postgres prints it.
    pub fn has_room(&self, room: &str) -> bool {
        let Some((name, id)) = room.split_once(':') else {
            return false;
        };
        let own = |name: &str| {
            self.module(name)
                .filter(|module| !module.is_part && !module.is_narrow)
        };
        if SCOPES.contains(&name) {
            let (id, module) = id
                .split_once('/')
                .map_or((id, None), |(id, module)| (id, Some(module)));
            return KeyForm::Text.fits(id)
                && id.len() <= 255
                && module.is_none_or(|module| own(module).is_some());
        }
        own(name).is_some_and(|module| module.key.fits(id))
    }
}

/// The rooms that somebody asks for. They are looked up for each room of each event that may concern them, a
/// thousand times for everybody who comes back: in a sorted list, as most ask for a few, and a hash of each
/// room costs more than to compare it with those.
#[derive(Debug, Clone)]
pub struct RoomSet<'a>(Vec<&'a str>);

impl<'a> RoomSet<'a> {
    /// These, each once.
    pub fn of(rooms: impl IntoIterator<Item = &'a String>) -> RoomSet<'a> {
        let mut rooms: Vec<&str> = rooms.into_iter().map(String::as_str).collect();
        rooms.sort_unstable();
        rooms.dedup();
        RoomSet(rooms)
    }

    /// Whether a room is one of them.
    pub fn has(&self, room: &str) -> bool {
        self.get(room).is_some()
    }

    /// The one of them that is this room.
    pub fn get(&self, room: &str) -> Option<&'a str> {
        Some(self.0[self.0.binary_search(&room).ok()?])
    }

    /// All of them, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &'a str> {
        self.0.iter().copied()
    }

    /// All but these of them, which are sorted.
    #[must_use]
    pub fn without(mut self, rooms: &[&str]) -> RoomSet<'a> {
        self.0.retain(|room| rooms.binary_search(room).is_err());
        self
    }
}

/// Whether a room is a scope's, which holds many records.
pub fn is_scope(room: &str) -> bool {
    room.split_once(':')
        .is_some_and(|(name, _)| SCOPES.contains(&name))
}

/// Whether a room is a scope's room, or one of its rooms of a single module.
pub fn within(room: &str, scope: &str) -> bool {
    room.strip_prefix(scope)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a room can hold records of a module: a record's room, or a scope's of all modules or of
/// this one.
pub fn holds(room: &str, module: &str) -> bool {
    let Some((name, id)) = room.split_once(':') else {
        return false;
    };
    if SCOPES.contains(&name) {
        id.split_once('/').is_none_or(|(_, only)| only == module)
    } else {
        name == module
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, types: &[&str], is_part: bool) -> Module {
        Module {
            name: name.into(),
            event: name.to_uppercase(),
            key_columns: vec!["id".to_owned()],
            key: KeyForm::of(&types.iter().map(|&t| t.to_owned()).collect::<Vec<_>>()),
            quiet_columns: Vec::new(),
            access_columns: Vec::new(),
            is_narrow: false,
            access_of: None,
            missing: Vec::new(),
            is_part,
        }
    }

    #[test]
    fn a_room_is_named_exactly_as_postgres_prints_the_key() {
        let registry = Registry::of([
            module("listings", &["uuid"], false),
            module("notes", &["bigint"], false),
            module("small", &["smallint"], false),
            module("visits", &["uuid", "date"], false),
            module("contacts", &["uuid"], true),
        ]);
        let long = "9".repeat(300);
        for (room, good) in [
            ("listings:5d1f0000-0000-4000-8000-00000000000a", true),
            ("listings:5D1F0000-0000-4000-8000-00000000000A", false),
            ("listings:5d1f000000004000800000000000000a", false),
            ("listings:", false),
            ("listings", false),
            ("", false),
            (":", false),
            ("nothing:1", false),
            ("contacts:5d1f0000-0000-4000-8000-00000000000a", false),
            ("notes:42", true),
            ("notes:-42", true),
            ("notes:042", false),
            ("notes:9223372036854775808", false),
            ("small:32767", true),
            ("small:32768", false),
            ("small:-32768", true),
            (r#"visits:["a","2026-01-01"]"#, true),
            (r#"visits:["a", "2026-01-01"]"#, false),
            (r#"visits:["a"]"#, false),
            ("team:7", true),
            ("team:7/listings", true),
            ("team:7/contacts", false),
            ("team:7/nothing", false),
            ("team:/listings", false),
            (&format!("team:{long}"), false),
        ] {
            assert_eq!(registry.has_room(room), good, "{room}");
        }
    }

    #[test]
    fn a_set_of_rooms_has_those_and_no_others() {
        let asked = ["listings:2", "listings:1", "team:7", "listings:1"].map(str::to_owned);
        let rooms = RoomSet::of(&asked);
        let all: Vec<&str> = rooms.iter().collect();
        assert_eq!(all, ["listings:1", "listings:2", "team:7"]);
        assert!(rooms.has("team:7") && !rooms.has("team:70") && !rooms.has("listings:"));
        let rest = rooms.without(&["listings:1", "team:7"]);
        let rest: Vec<&str> = rest.iter().collect();
        assert_eq!(rest, ["listings:2"]);
    }
}
