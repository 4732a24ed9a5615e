//! The schema in Postgres: what `install`, `uninstall` and `watch` do.
//!
//! The files of `sql/` are embedded, so that the binary and plain `psql -f sql/install.sql` do the
//! same.

use std::pin::pin;

use futures::future::{Either, select};
use thiserror::Error;

use crate::postgres::{ConnectError, Database, Said, Session, chain};

/// The schema, one subject a file, in the order of `sql/install.sql`.
const FILES: [&str; 13] = [
    include_str!("../sql/00_guard.sql"),
    include_str!("../sql/05_steps.sql"),
    include_str!("../sql/10_roles.sql"),
    include_str!("../sql/20_schema.sql"),
    include_str!("../sql/30_journal.sql"),
    include_str!("../sql/40_capture.sql"),
    include_str!("../sql/45_snapshot.sql"),
    include_str!("../sql/50_watch.sql"),
    include_str!("../sql/55_policy.sql"),
    include_str!("../sql/60_read.sql"),
    include_str!("../sql/62_canary.sql"),
    include_str!("../sql/65_verify.sql"),
    include_str!("../sql/70_version.sql"),
];
const DROP: &str = include_str!("../sql/80_drop.sql");
const UNWATCH_ALL: &str = "call crm_relay.unwatch_all()";

/// Why the schema is not as it was asked for.
#[derive(Debug, Error)]
pub enum SchemaError {
    /// Postgres cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Postgres refused; nothing of the failed step was kept.
    #[error("{message}{}", .hint.as_ref().map(|hint| format!("\n  {hint}")).unwrap_or_default())]
    Refused {
        /// What it said.
        message: String,
        /// What would be right.
        hint: Option<String>,
    },
}

impl From<tokio_postgres::Error> for SchemaError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(told) => SchemaError::Refused {
                message: told.message().to_owned(),
                hint: told.hint().map(str::to_owned),
            },
            None => SchemaError::Refused {
                message: chain(&error),
                hint: None,
            },
        }
    }
}

/// The SQL that `install` runs: the schema in one transaction, then the CRM's tables.
pub fn install_sql(crm_schema: &str, doorbell: Option<&str>) -> [String; 2] {
    let mut schema = String::from(
        "begin;\nset local search_path = pg_catalog, pg_temp;\nset local client_min_messages = warning;\nset local lock_timeout = '5s';\n",
    );
    for file in FILES {
        schema.push_str(file);
        schema.push('\n');
    }
    if let Some(mode) = doorbell {
        schema.push_str(&format!(
            "update crm_relay.setting set doorbell = {} where doorbell <> {0};\n",
            literal(mode)
        ));
    }
    schema.push_str("commit;\n");
    [
        schema,
        format!("call crm_relay.watch_crm({})", literal(crm_schema)),
    ]
}

/// Installs the schema and watches the CRM's tables; `tell` gets what was done, line by line.
pub async fn install(
    database: &Database,
    crm_schema: &str,
    doorbell: Option<&str>,
    tell: impl FnMut(String),
) -> Result<(), SchemaError> {
    let mut session = database.session("install").await?;
    run(&mut session, &install_sql(crm_schema, doorbell), tell).await
}

/// Unwatches every table and drops the schema with its journal.
pub async fn uninstall(database: &Database, tell: impl FnMut(String)) -> Result<(), SchemaError> {
    let mut session = database.session("uninstall").await?;
    run(
        &mut session,
        &[UNWATCH_ALL.to_owned(), DROP.to_owned()],
        tell,
    )
    .await
}

/// What `watch` may be told of a table; what is None follows from the table.
#[derive(Debug, Default)]
pub struct Watch {
    /// The table, as in SQL: `listings`, `sales."Deals"`.
    pub table: String,
    /// Name of the module in rooms and events.
    pub module: Option<String>,
    /// Name of the module in event types.
    pub event: Option<String>,
    /// The columns that make a record's id.
    pub key: Vec<String>,
    /// Columns that never leave the table.
    pub hidden: Vec<String>,
    /// The module whose records the rows are parts of.
    pub part_of: Option<String>,
    /// The column of that module's table that names a row of this one.
    pub part_link: Option<String>,
}

/// Watches one table more.
pub async fn watch(
    database: &Database,
    watch: &Watch,
    mut tell: impl FnMut(String),
) -> Result<(), SchemaError> {
    let mut session = database.session("watch").await?;
    let text = |value: &Option<String>| value.as_deref().map_or("null".to_owned(), literal);
    let list = |values: &[String]| match values {
        [] => "null".to_owned(),
        some => format!(
            "array[{}]",
            some.iter()
                .map(|value| literal(value))
                .collect::<Vec<_>>()
                .join(", ")
        ),
    };
    let command = format!(
        "select crm_relay.watch({}::regclass, module => {}, event => {}, key_columns => {}, hidden_columns => {}, part_of => {}, part_link => {})",
        literal(&watch.table),
        text(&watch.module),
        text(&watch.event),
        list(&watch.key),
        list(&watch.hidden),
        text(&watch.part_of),
        text(&watch.part_link),
    );
    let call = format!(
        "call crm_relay.in_short_transaction({}, {})",
        literal(&command),
        literal(&watch.table)
    );
    // names without a schema are looked up as the CRM would
    let path = "set search_path = public".to_owned();
    run(&mut session, &[path, call], &mut tell).await?;
    tell(format!("{}: watched", watch.table));
    Ok(())
}

/// Stops watching a table.
pub async fn unwatch(
    database: &Database,
    table: &str,
    mut tell: impl FnMut(String),
) -> Result<(), SchemaError> {
    let mut session = database.session("unwatch").await?;
    let command = format!("select crm_relay.unwatch({}::regclass)", literal(table));
    let call = format!(
        "call crm_relay.in_short_transaction({}, {})",
        literal(&command),
        literal(table)
    );
    run(
        &mut session,
        &["set search_path = public".to_owned(), call],
        &mut tell,
    )
    .await?;
    tell(format!("{table}: no longer watched"));
    Ok(())
}

/// Runs each statement and hands on the notices that it gives.
async fn run(
    session: &mut Session,
    statements: &[String],
    mut tell: impl FnMut(String),
) -> Result<(), SchemaError> {
    for statement in statements {
        let mut running = pin!(session.client.batch_execute(statement));
        let result = loop {
            match select(running.as_mut(), pin!(session.said.recv())).await {
                Either::Left((result, _)) => break result,
                Either::Right((Some(Said::Notice(notice)), _)) => tell(notice),
                Either::Right((Some(Said::Notified(_)), _)) => {}
                Either::Right((None, _)) => break running.await,
            }
        };
        while let Ok(said) = session.said.try_recv() {
            if let Said::Notice(notice) = said {
                tell(notice);
            }
        }
        result?;
    }
    Ok(())
}

/// A text as an SQL literal, whatever stands in it.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn psql_and_the_binary_run_the_same_files() {
        let psql = include_str!("../sql/install.sql");
        let included: Vec<&str> = psql
            .lines()
            .filter_map(|line| line.strip_prefix("\\ir "))
            .collect();
        assert_eq!(included.len(), super::FILES.len());
        for (name, embedded) in included.iter().zip(super::FILES) {
            let path = format!("{}/sql/{name}", env!("CARGO_MANIFEST_DIR"));
            assert_eq!(std::fs::read_to_string(path).unwrap(), embedded, "{name}");
        }
    }
}
