//! `crm-relay tail`: what happens, as it happens, a line for each event; from the database, without a relay.
//!
//! It says what a relay would make events of: a transaction's changes as their images tell their order,
//! without those of quiet columns alone. Rooms are as clients name them, and besides a whole module by its
//! name. It needs the rights of `crm_relay_audit`.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::sync::Arc;

use clap::{Args, ColorChoice};

use crate::audit::{self, json, table};
use crate::change::{Action, Change};
use crate::config::{BadSettings, GivenDatabase};
use crate::follow::{self, Follower, Interrupted, Listener};
use crate::inquiries::Inquiries;
use crate::journal::{Entry, Filter};
use crate::order;
use crate::policy::Placement;
use crate::postgres::Database;
use crate::registry::{self, Registry, RoomSet};
use crate::terminal::{Style, shortened, visible, visible_json};

/// About how many characters of fields a line has.
const WIDEST: usize = 200;

/// What `tail` is asked.
#[derive(Args)]
pub struct Tail {
    #[command(flatten)]
    at: GivenDatabase,
    /// Rooms such as listings:5d1f…, team:7 or team:7/leads, or modules such as listings [default: all]
    #[arg(value_name = "ROOM")]
    rooms: Vec<String>,
    /// Begin with what happened since: so long ago, such as 10m, or a date or time, in UTC unless it says otherwise
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// One JSON object a line, as `audit --format json` writes it
    #[arg(long)]
    json: bool,
    /// Colours: auto heeds NO_COLOR and whether it is a terminal
    #[arg(long, value_name = "WHEN", default_value_t = ColorChoice::Auto)]
    color: ColorChoice,
}

impl Tail {
    /// Prints until it is ended, or nobody reads it any more.
    pub async fn run(self) -> anyhow::Result<()> {
        let database = self.at.database()?;
        let journal = follow::open(&database, "tail").await?;
        let registry = Arc::new(journal.registry().await.map_err(Interrupted::from)?);
        let wanted = Wanted::of(self.rooms, &registry)?;
        let since = audit::moment(&journal, "since", self.since.as_deref()).await?;
        let from = match since {
            Some(_) => None,
            None => Some(journal.present().await.map_err(Interrupted::from)?),
        };
        let filter = Filter {
            since,
            ..wanted.filter()
        };
        let lines = Lines {
            database: &database,
            placement: (wanted.has_scopes())
                .then(|| Placement::new(Inquiries::new(database.clone(), "tail", 1))),
            wanted,
            registry,
            unknown: HashSet::new(),
            style: Style::of(self.color),
            is_json: self.json,
        };
        drop(journal);
        Ok(Follower::new(&database, filter, from, lines)
            .go_on()
            .await?)
    }
}

/// Whose events are wanted.
struct Wanted {
    /// Of these rooms; with none of these and no modules: all.
    rooms: HashSet<String>,
    /// Of these modules.
    modules: HashSet<String>,
}

impl Wanted {
    fn of(names: Vec<String>, registry: &Registry) -> Result<Wanted, BadSettings> {
        let mut bad = Vec::new();
        let (modules, rooms): (HashSet<_>, HashSet<_>) = (names.into_iter())
            .filter(|name| {
                let is_module = registry.module(name).is_some_and(|module| !module.is_part);
                let is_good = is_module || registry.has_room(name);
                if !is_good {
                    bad.push(format!("\"{name}\": {}", complaint(name, registry)));
                }
                is_good
            })
            .partition(|name| !name.contains(':'));
        match bad.is_empty() {
            true => Ok(Wanted { rooms, modules }),
            false => Err(BadSettings(bad)),
        }
    }

    fn has_scopes(&self) -> bool {
        self.rooms.iter().any(|room| registry::is_scope(room))
    }

    /// What need not be read at all is left out where names tell it.
    fn filter(&self) -> Filter {
        if self.has_scopes() || (self.rooms.is_empty() && self.modules.is_empty()) {
            return Filter::default();
        }
        let records: Vec<(&str, &str)> = (self.rooms.iter())
            .filter_map(|room| room.split_once(':'))
            .collect();
        let modules = (records.iter().map(|(module, _)| *module))
            .chain(self.modules.iter().map(String::as_str))
            .collect::<HashSet<_>>();
        let ids = records.iter().map(|(_, id)| (*id).to_owned());
        Filter {
            modules: Some(modules.into_iter().map(str::to_owned).collect()),
            records: self.modules.is_empty().then(|| ids.collect()),
            ..Filter::default()
        }
    }

    fn has(&self, change: &Change, registry: &Registry) -> bool {
        if self.rooms.is_empty() && self.modules.is_empty()
            || self.modules.contains(&*change.module)
        {
            return true;
        }
        // who users are is told in no room
        if (registry.module(&change.module)).is_none_or(|module| module.is_narrow) {
            return false;
        }
        let rooms = RoomSet::of(&self.rooms);
        match change.action {
            Action::Truncated => (rooms.iter()).any(|room| registry::holds(room, &change.module)),
            _ => change.concerns(&rooms),
        }
    }
}

/// What is wrong with the name of a room.
fn complaint(name: &str, registry: &Registry) -> String {
    let module = name.split(':').next().unwrap_or_default();
    match registry.module(module) {
        Some(module) if module.is_part => {
            "it is watched as a part of other records; name those that it belongs to".to_owned()
        }
        Some(module) if module.is_narrow => {
            format!(
                "its records have no rooms; name the module, {module}",
                module = module.name
            )
        }
        Some(module) => format!(
            "no record has such an id; it must be {}, as Postgres prints it",
            module.key.name()
        ),
        None => {
            let all = registry.modules().filter(|module| !module.is_part);
            let mut all: Vec<&str> = all.map(|module| &*module.name).collect();
            all.sort_unstable();
            format!(
                "it must be a watched module ({}), a record of one, such as listings:5d1f…, or a scope, such as user:7, team:7, broker:7 or team:7/leads",
                all.join(", ")
            )
        }
    }
}

/// Prints events.
struct Lines<'a> {
    database: &'a Database,
    wanted: Wanted,
    registry: Arc<Registry>,
    /// Modules that were looked for and are not watched.
    unknown: HashSet<Arc<str>>,
    /// Knows scope rooms; None where nobody asks for them.
    placement: Option<Placement>,
    style: Style,
    is_json: bool,
}

impl Listener for Lines<'_> {
    async fn take(
        &mut self,
        entries: Vec<Entry>,
        _begins: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Interrupted> {
        self.know(&entries).await?;
        let mut sessions = HashMap::with_capacity(entries.len());
        let mut changes = Vec::with_capacity(entries.len());
        for entry in entries {
            let session = (entry.db_user, entry.db_role, entry.application);
            sessions.insert(entry.change.seq, session);
            changes.push(entry.change);
        }
        // images that do not tell an order are told as they came
        let mut changes = order::relink(changes.clone()).unwrap_or(changes);
        if let Some(placement) = &self.placement {
            let is_narrow = |change: &Change| {
                let module = self.registry.module(&change.module);
                module.is_some_and(|module| module.is_narrow)
            };
            if changes.iter().any(is_narrow) {
                placement.forget();
            }
            placement.place(&mut changes, &self.registry).await?;
        }
        changes.retain(|change| self.wanted.has(change, &self.registry));
        for change in changes {
            let (db_user, db_role, application) = sessions.remove(&change.seq).unwrap_or_default();
            let entry = Entry {
                change,
                db_user,
                db_role,
                application,
            };
            self.event(&entry, out)?;
        }
        Ok(())
    }
}

impl Lines<'_> {
    /// Looks which tables are watched, when there is a module that was not when it looked last.
    async fn know(&mut self, entries: &[Entry]) -> Result<(), Interrupted> {
        for Entry { change, .. } in entries {
            if self.registry.module(&change.module).is_none()
                && self.unknown.insert(change.module.clone())
            {
                let journal = follow::open(self.database, "tail").await?;
                self.registry = Arc::new(journal.registry().await?);
            }
        }
        Ok(())
    }

    fn event(&self, entry: &Entry, out: &mut Vec<u8>) -> std::io::Result<()> {
        let change = &entry.change;
        let part = change.part.as_ref();
        let part = part.map_or(&*change.module, |(part, _)| part);
        let quiet = self.registry.module(part);
        let quiet = quiet.map_or(&[][..], |module| &module.quiet_columns);
        let mut fields = audit::fields(entry);
        fields.retain(|field| !quiet.contains(&field.name));
        if fields.is_empty() && change.action == Action::Updated {
            return Ok(());
        }
        if self.is_json {
            return json::line(entry, out);
        }
        let mut told: Vec<String> = Vec::new();
        let mut width = 0;
        for field in &fields {
            let (was, is) = shortened(
                field.was.as_deref().map(visible_json).as_deref(),
                field.is.as_deref().map(visible_json).as_deref(),
            );
            width += field.name.len() + was.iter().chain(&is).map(String::len).sum::<usize>();
            if width > WIDEST && !told.is_empty() {
                told.push(format!("and {} more", fields.len() - told.len()));
                break;
            }
            let change = self.style.change(was.as_deref(), is.as_deref());
            told.push(format!("{} {change}", visible(&field.name)));
        }
        let line = format!(
            "{} {} {} {} {}",
            self.style.aside(&table::time(change.changed_at)),
            self.style.head(&table::record(entry)),
            change.action.name(),
            visible(change.actor.as_deref().unwrap_or("-")),
            told.join(", ")
        );
        writeln!(out, "{}", line.trim_end())
    }
}
