//! The demo: a small CRM to try the relay with, its page, and the API behind the page's fields.
//!
//! The API does what the CRM's backend does, a plain SQL update, and knows nothing of the relay:
//! what the page shows of an edit has come the whole way through trigger, journal and socket. Beside it
//! stand the means to break things on purpose.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use uuid::Uuid;
use warp::http::{HeaderMap, HeaderValue, StatusCode, header};
use warp::reply::Response;
use warp::{Filter, Reply};

use crate::postgres::{Database, chain};
use crate::server::{Routes, is_loopback};
use crate::web;

const TABLES: &str = include_str!("../deploy/crm.sql");
const RECORDS: &str = include_str!("../deploy/crm_records.sql");

/// The tables of the small CRM, those last that others refer to.
const TABLE_NAMES: [&str; 9] = [
    "appointments",
    "leads",
    "clients",
    "listings",
    "escrows",
    "contacts",
    "users",
    "teams",
    "brokers",
];

/// Which columns of each module the page may edit.
const EDITABLE: [(&str, &[&str]); 5] = [
    (
        "escrows",
        &[
            "property_address",
            "purchase_price",
            "escrow_status",
            "closing_date",
            "title_company",
            "escrow_officer_name",
            "notes",
            "is_private",
        ],
    ),
    (
        "listings",
        &[
            "property_address",
            "list_price",
            "listing_status",
            "bedrooms",
            "bathrooms",
            "square_feet",
            "description",
            "is_private",
        ],
    ),
    ("clients", &["status", "client_type", "is_private"]),
    (
        "leads",
        &[
            "first_name",
            "last_name",
            "phone",
            "email",
            "source",
            "status",
            "notes",
            "is_private",
        ],
    ),
    (
        "appointments",
        &["title", "location", "status", "description", "is_private"],
    ),
];

/// What of a client lives in its contact.
const CONTACT: &[&str] = &["first_name", "last_name", "email", "phone"];

/// Most bytes of an edit.
const LARGEST_EDIT: u64 = 65_536;

/// How long the relay stays away when it is stopped on purpose.
pub const AWAY_FOR: Duration = Duration::from_secs(5);

/// How many leads an import brings, with one statement.
const IMPORTED: i32 = 1000;

/// Why the demo does not start.
#[derive(Debug, Error)]
pub enum DemoError {
    /// It would have to touch what is somebody else's.
    #[error(
        "the demo brings a CRM of its own and needs a database without one; this one has {0}. Use an empty database, or: crm-relay install"
    )]
    NotEmpty(String),
    /// Postgres refused.
    #[error("{}", chain(.0))]
    Postgres(#[from] tokio_postgres::Error),
}

/// Creates the small CRM, if the database has none of its tables and no schema `crm_relay`.
pub async fn load(client: &Client) -> Result<(), DemoError> {
    let found: Option<String> = client
        .query_one(
            "select string_agg(format('%I.%I', n.nspname, c.relname), ', ')
               from pg_class c join pg_namespace n on n.oid = c.relnamespace
              where n.nspname = 'crm_relay' and c.relname = 'setting'
                 or n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')
                    and c.relkind in ('r', 'p', 'v', 'm', 'f') and c.relname = any ($1)",
            &[&TABLE_NAMES.as_slice()],
        )
        .await?
        .get(0);
    if let Some(found) = found {
        return Err(DemoError::NotEmpty(found));
    }
    let all = format!("begin;\n{TABLES}\n{RECORDS}\ncommit;");
    if let Err(error) = client.batch_execute(&all).await {
        client.batch_execute("rollback").await?;
        return Err(error.into());
    }
    Ok(())
}

/// Whether schema `crm_relay` is there.
pub async fn has_schema(client: &Client) -> Result<bool, DemoError> {
    let found = client
        .query_one("select to_regnamespace('crm_relay') is not null", &[])
        .await?;
    Ok(found.get(0))
}

/// Takes away what [`load`] brought.
pub async fn unload(client: &Client) -> Result<(), DemoError> {
    let names = TABLE_NAMES.map(|name| format!("public.{name}")).join(", ");
    Ok(client.batch_execute(&format!("drop table {names}")).await?)
}

/// The page and its API; `stop_relay` is told when somebody wants the relay gone for [`AWAY_FOR`].
pub fn routes(database: Database, stop_relay: Arc<Notify>) -> Routes {
    let html = page(
        "text/html; charset=utf-8",
        include_str!("web/demo/index.html"),
    );
    let css = page("text/css; charset=utf-8", include_str!("web/demo/demo.css"));
    let script = |text| page("text/javascript; charset=utf-8", text);
    let demo = script(include_str!("web/demo/demo.js"));
    let modules = script(include_str!("web/demo/modules.js"));
    let files = (warp::path::end().map(html))
        .or(warp::path!("demo.css").map(css))
        .unify()
        .or(warp::path!("demo.js").map(demo))
        .unify()
        .or(warp::path!("modules.js").map(modules))
        .unify()
        .and(warp::get())
        .map(|reply: Response| reply);

    let answering = move |headers, asked| answer(database.clone(), headers, asked);
    let reply = answering.clone();
    let users = warp::path!("api" / "users")
        .and(warp::get())
        .and(warp::header::headers_cloned())
        .then(move |headers| reply(headers, Asked::Users));
    let reply = answering.clone();
    let records = warp::path!("api" / String)
        .and(warp::get())
        .and(warp::query())
        .and(warp::header::headers_cloned())
        .then(move |module, Viewer { user }, headers| {
            reply(headers, Asked::Records { module, user })
        });
    let reply = answering.clone();
    let breaking = warp::path!("api" / "break" / String)
        .and(warp::post())
        .and(warp::header::headers_cloned())
        .then(move |what, headers| {
            let stop_relay = stop_relay.clone();
            reply(headers, Asked::Break { what, stop_relay })
        });
    let reply = answering.clone();
    let import = warp::path!("api" / "leads" / "import")
        .and(warp::post())
        .and(warp::query())
        .and(warp::header::headers_cloned())
        .then(move |Viewer { user }, headers| reply(headers, Asked::Import { user }));
    let edit = warp::path!("api" / String / String)
        .and(warp::patch())
        .and(warp::header::headers_cloned())
        .and(warp::body::content_length_limit(LARGEST_EDIT))
        .and(warp::body::json())
        .then(move |module, id, headers, edit| {
            answering(headers, Asked::Edit { module, id, edit })
        });
    (files.or(users).unify())
        .or(records)
        .unify()
        .or(breaking)
        .unify()
        .or(import)
        .unify()
        .or(edit)
        .unify()
        .boxed()
}

/// The CRM without its relay, as long as this is polled: the page and its API still answer, `/ws` is not
/// there.
pub async fn serve_alone(listener: TcpListener, routes: Routes) -> Infallible {
    let service = TowerToHyperService::new(warp::service(routes.or(web::routes()).unify()));
    let mut requests = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                let answering = hyper::server::conn::http1::Builder::new()
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service.clone());
                requests.spawn(answering);
            }
            Some(_) = requests.join_next() => {}
        }
    }
}

fn page(kind: &'static str, text: &'static str) -> impl Fn() -> Response + Clone {
    move || {
        let reply = warp::reply::with_header(text, header::CONTENT_TYPE, kind);
        warp::reply::with_header(reply, header::CACHE_CONTROL, "no-cache").into_response()
    }
}

#[derive(Deserialize)]
struct Viewer {
    user: String,
}

/// An edit of one record, as the CRM's frontend sends it.
#[derive(Deserialize)]
struct Edit {
    /// Who edits.
    user: String,
    /// The version that the user saw: another means that somebody was faster.
    version: i32,
    /// New values by column.
    fields: BTreeMap<String, Box<RawValue>>,
}

enum Asked {
    Users,
    Records {
        module: String,
        user: String,
    },
    Edit {
        module: String,
        id: String,
        edit: Edit,
    },
    Import {
        user: String,
    },
    Break {
        what: String,
        stop_relay: Arc<Notify>,
    },
}

/// What the API says when it cannot.
struct Refused(StatusCode, Value);

impl<E: std::error::Error> From<E> for Refused {
    fn from(error: E) -> Refused {
        refused(StatusCode::SERVICE_UNAVAILABLE, chain(&error))
    }
}

fn refused(status: StatusCode, why: String) -> Refused {
    Refused(status, json!({"error": why}))
}

async fn answer(database: Database, headers: HeaderMap, asked: Asked) -> Response {
    let (status, body) = match reply(&database, &headers, asked).await {
        Ok(body) => (StatusCode::OK, body),
        Err(Refused(status, body)) => (status, body),
    };
    warp::reply::with_status(warp::reply::json(&body), status).into_response()
}

async fn reply(database: &Database, headers: &HeaderMap, asked: Asked) -> Result<Value, Refused> {
    own_page(headers)?;
    // a session for each request: this is a demo, and Postgres may have been restarted since
    let session = database.session("demo api").await?;
    match asked {
        Asked::Users => users(&session.client).await,
        Asked::Records { module, user } => records(&session.client, &module, &user).await,
        Asked::Edit { module, id, edit } => change(&session.client, &module, &id, edit).await,
        Asked::Import { user } => import(&session.client, &user).await,
        Asked::Break { what, stop_relay } if what == "relay" => {
            stop_relay.notify_one();
            Ok(json!({"seconds": AWAY_FOR.as_secs()}))
        }
        Asked::Break { what, .. } if what == "postgres" => restart(&session.client).await,
        Asked::Break { what, .. } => Err(refused(
            StatusCode::NOT_FOUND,
            format!("\"{what}\" cannot be broken here; relay and postgres can"),
        )),
    }
}

/// Without tokens, a page from elsewhere must neither read nor write here.
fn own_page(headers: &HeaderMap) -> Result<(), Refused> {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let host = host.unwrap_or_default();
    // an origin that cannot be read is somebody else's
    let own = |origin: &HeaderValue| *origin == format!("http://{host}");
    let same = headers.get(header::ORIGIN).is_none_or(own);
    if is_loopback(host) && same {
        return Ok(());
    }
    let why = "only for the demo's own page, at a loopback address".to_owned();
    Err(refused(StatusCode::FORBIDDEN, why))
}

async fn users(client: &Client) -> Result<Value, Refused> {
    let sql = "select coalesce(json_agg(u order by u.place), '[]')::text
                 from (select u.id, u.first_name || ' ' || u.last_name as name, u.role, t.name as team,
                              u.team_id, u.broker_id, row_number() over (order by u.email) as place
                         from public.users u left join public.teams t on t.id = u.team_id
                        where u.is_active) u";
    Ok(serde_json::from_str(
        client.query_one(sql, &[]).await?.get(0),
    )?)
}

fn editable(module: &str) -> Result<&'static [&'static str], Refused> {
    let found = EDITABLE.iter().find(|(name, _)| *name == module);
    let unknown = || {
        refused(
            StatusCode::NOT_FOUND,
            format!("there is no module \"{module}\""),
        )
    };
    found.map(|(_, columns)| *columns).ok_or_else(unknown)
}

fn user_id(text: &str) -> Result<Uuid, Refused> {
    Uuid::parse_str(text).map_err(|error| {
        let why = format!("user must be the id of one, a uuid; {text:?} is none: {error}");
        refused(StatusCode::BAD_REQUEST, why)
    })
}

/// A query for a module's records, each as `record`; a client with its contact.
fn rows_of(module: &str) -> String {
    match module {
        "clients" => {
            "select to_jsonb(c) || jsonb_build_object('first_name', k.first_name, 'last_name', k.last_name,
                                                      'email', k.email, 'phone', k.phone) as record
               from public.clients c left join public.contacts k on k.id = c.contact_id"
                .to_owned()
        }
        other => format!("select to_jsonb(r) as record from public.{other} r"),
    }
}

/// A module's records, as far as a user may see them.
async fn records(client: &Client, module: &str, user: &str) -> Result<Value, Refused> {
    editable(module)?;
    let user = user_id(user)?;
    let rows = rows_of(module);
    let sql = format!(
        "with me as (select * from public.users where id = $1::text::uuid)
         select coalesce(json_agg(record order by record ->> 'created_at', record ->> 'id'), '[]')::text
           from ({rows}) rows, me
          where me.role = 'system_admin'
             or me.id::text = coalesce(record ->> 'owner_id', record ->> 'listing_agent_id', record ->> 'agent_id', record ->> 'user_id')
             or record ->> 'is_private' = 'false' and record ->> 'access_level' <> 'personal'
                and case me.role when 'broker' then me.broker_id::text = record ->> 'broker_id'
                                 else me.team_id::text = record ->> 'team_id' end"
    );
    Ok(serde_json::from_str(
        client.query_one(&sql, &[&user.to_string()]).await?.get(0),
    )?)
}

/// Updates one record as the CRM does: with `version + 1` and `last_modified_by`; of a client's name
/// and phone its contact alone.
async fn change(client: &Client, module: &str, id: &str, edit: Edit) -> Result<Value, Refused> {
    let columns = editable(module)?;
    let bad = |why: String| refused(StatusCode::UNPROCESSABLE_ENTITY, why);
    let (contact, own): (Vec<&str>, Vec<&str>) = edit
        .fields
        .keys()
        .map(String::as_str)
        .partition(|name| module == "clients" && CONTACT.contains(name));
    let is_own = |name: &&&str| columns.contains(*name);
    if let Some(other) = own.iter().find(|name| !is_own(name)) {
        return Err(bad(format!(
            "{module} has no field \"{other}\" that can be edited here; there are {}",
            columns.join(", ")
        )));
    }
    if contact.is_empty() == own.is_empty() {
        return Err(bad(
            "an edit has fields of the record, or of its contact".to_owned()
        ));
    }
    let set = |names: &[&str]| {
        let each = names.iter().map(|name| format!("{name} = given.{name}"));
        each.collect::<Vec<_>>().join(", ")
    };
    let fields = serde_json::to_string(&edit.fields)?;
    let updated = if own.is_empty() {
        let sql = format!(
            "update public.contacts k set {}, updated_at = now()
               from json_populate_record(null::public.contacts, $1::text::json) given, public.clients c
              where c.id::text = $2 and k.id = c.contact_id
             returning c.version",
            set(&contact)
        );
        client.query_opt(&sql, &[&fields, &id]).await
    } else {
        let sql = format!(
            "update public.{module} r
                set {}, updated_at = now(), version = r.version + 1, last_modified_by = $3::text::uuid
               from json_populate_record(null::public.{module}, $1::text::json) given
              where r.id::text = $2 and r.version = $4
             returning r.version",
            set(&own)
        );
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&fields, &id, &edit.user, &edit.version];
        client.query_opt(&sql, &values).await
    };
    match updated {
        Ok(Some(row)) => Ok(json!({"version": row.get::<_, i32>(0)})),
        Ok(None) => {
            let sql = format!(
                "select record::text from ({}) rows where record ->> 'id' = $1",
                rows_of(module)
            );
            let now = client.query_opt(&sql, &[&id]).await?;
            let now: Option<&str> = now.as_ref().map(|row| row.get(0));
            Err(Refused(
                StatusCode::CONFLICT,
                json!({
                    "error": format!("{module} {id} has no version {}: somebody was faster", edit.version),
                    "record": now.map(serde_json::from_str::<Value>).transpose()?,
                }),
            ))
        }
        Err(error) => match error.as_db_error() {
            Some(told) if *told.code() != SqlState::ADMIN_SHUTDOWN => {
                Err(bad(told.message().to_owned()))
            }
            _ => Err(error.into()),
        },
    }
}

/// Many leads with one statement, as a user's import does it.
async fn import(client: &Client, user: &str) -> Result<Value, Refused> {
    let sql = "insert into public.leads (first_name, last_name, phone, source, status, owner_id, user_id,
                                         created_by, team_id, broker_id)
               select 'Lead', lpad(n::text, 4, '0'), '775-555-' || lpad((n % 10000)::text, 4, '0'), 'import', 'new',
                      u.id, u.id, u.id, u.team_id, u.broker_id
                 from public.users u, generate_series(1, $2) n where u.id = $1::text::uuid";
    let user = user_id(user)?.to_string();
    let imported = client.execute(sql, &[&user, &IMPORTED]).await?;
    Ok(json!({"imported": imported}))
}

/// Restarts Postgres, where it is the throwaway one of `deploy/postgres.sh`, which tells by `PG_BIN`.
async fn restart(client: &Client) -> Result<Value, Refused> {
    let Some(programs) = std::env::var_os("PG_BIN") else {
        let why = "this Postgres is not the demo's own; deploy/demo.sh without DATABASE_URL brings one that may be restarted";
        return Err(refused(StatusCode::UNPROCESSABLE_ENTITY, why.to_owned()));
    };
    let row = client
        .query_one("select current_setting('data_directory')", &[])
        .await?;
    let data = std::path::PathBuf::from(row.get::<_, String>(0));
    let mut command = Command::new(std::path::Path::new(&programs).join("pg_ctl"));
    let owner = std::fs::metadata(&data)?;
    if owner.uid() != 0 && std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
        // Postgres refuses to run as root
        command.uid(owner.uid()).gid(owner.gid());
    }
    command
        .args(["restart", "-w", "-m", "fast", "-D"])
        .arg(&data)
        .arg("-l")
        .arg(data.join("log"))
        .current_dir(&data)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let ended = tokio::task::spawn_blocking(move || command.status()).await??;
    if ended.success() {
        return Ok(json!({"restarted": true}));
    }
    let why = format!(
        "pg_ctl restart ended with {ended}; its log is {}",
        data.join("log").display()
    );
    Err(refused(StatusCode::SERVICE_UNAVAILABLE, why))
}
