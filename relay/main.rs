//! The command `crm-relay`: parses, binds, and hands over.

use std::io::{ErrorKind, IsTerminal, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use crm_relay::audit::Audit;
use crm_relay::config::{BadSettings, Config, Given, LogFormat};
use crm_relay::demo;
use crm_relay::doctor;
use crm_relay::explain::Explain;
use crm_relay::follow::Interrupted;
use crm_relay::health;
use crm_relay::postgres::ConnectError;
use crm_relay::schema::{self, SchemaError, Watch};
use crm_relay::server::{self, Doors, Routes};
use crm_relay::tail::Tail;
use crm_relay::tls::Identity;
use crm_relay::token::Keys;
use crm_relay::token::issue::Issue;
use sd_notify::NotifyState;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// A change is many small pieces for a moment, and connections come and go by the thousand: the C library's
/// allocator took a third of the processor's time of a catch-up. Version 2, because 3 keeps more of what is let go of.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Makes a PostgreSQL-backed CRM live: each change of a record, pushed to every browser that looks at it
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 good, 1 something failed, 2 bad usage or settings, 3 could not reach Postgres"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve browsers: read the journal and push each change to its rooms
    #[command(
        after_help = "Example: DATABASE_URL=postgresql://relay@db/crm RELAY_JWT_SECRET=… crm-relay serve"
    )]
    Serve(Given),
    /// Ask the relay that listens on this machine whether it is ready
    #[command(
        after_help = "Example: RELAY_LISTEN=0.0.0.0:7420 crm-relay health (0: ready, 1: not)"
    )]
    Health(Given),
    /// Install the schema crm_relay and watch the CRM's tables; may be run again at any time
    #[command(
        after_help = "Example: DATABASE_URL=postgresql://postgres@db/crm crm-relay install --dry-run"
    )]
    Install(Install),
    /// Take away the triggers and the schema, with the journal; the CRM is left as it was
    #[command(
        after_help = "Example: DATABASE_URL=postgresql://postgres@db/crm crm-relay uninstall"
    )]
    Uninstall(Given),
    /// Watch one table more
    #[command(after_help = "Example: crm-relay watch 'sales.\"Deals\"' --module deals")]
    Watch(WatchTable),
    /// Stop watching a table; its changes so far stay in the journal
    #[command(after_help = "Example: crm-relay unwatch sales.notes")]
    Unwatch(UnwatchTable),
    /// Tell who changed what, when, from what to what
    #[command(
        after_help = "Example: crm-relay audit listings:5d1f0c9e-1111-4000-8000-000000000001 --since 7d"
    )]
    Audit(Audit),
    /// Print what happens as it happens, a line for each event, without a relay
    #[command(after_help = "Example: crm-relay tail listings team:7/leads --since 10m")]
    Tail(Tail),
    /// Tell why somebody did or did not get an event
    #[command(
        after_help = "Example: crm-relay explain --user 0b2f0c9e-1111-4000-8000-000000000001 --txid 7423"
    )]
    Explain(Explain),
    /// Print a token for development, signed with the secret of the settings
    #[command(
        after_help = "Example: RELAY_JWT_SECRET=dev-only-… crm-relay token --user 0b2f0c9e-1111-4000-8000-000000000001 --for 2h"
    )]
    Token(Box<Issue>),
    /// Print completions for a shell
    #[command(
        after_help = "Example: crm-relay completions bash > ~/.local/share/bash-completion/completions/crm-relay"
    )]
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Look for what is wrong, and say why it matters and what mends it
    #[command(
        after_help = "Example: DATABASE_URL=postgresql://postgres@db/crm crm-relay doctor --json\nExit codes: 0 nothing is wrong, 1 something is, 3 could not reach Postgres"
    )]
    Doctor(Doctor),
    /// Load a small CRM into an empty database and serve it with a page to try
    #[command(
        after_help = "Example: DATABASE_URL=postgresql://postgres@localhost/empty crm-relay demo (or deploy/demo.sh, which brings a database of its own)"
    )]
    Demo(Given),
}

#[derive(Args)]
struct Install {
    #[command(flatten)]
    given: Given,
    /// Print the SQL and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Schema of the CRM's tables
    #[arg(long, default_value = "public", value_name = "SCHEMA")]
    crm_schema: String,
    /// Whether writers ring [default: as it is; at first adaptive]
    #[arg(long, env = "RELAY_DOORBELL")]
    doorbell: Option<Doorbell>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Doorbell {
    /// Transactions with changes ring by NOTIFY while the relay sleeps
    Adaptive,
    /// Each transaction with changes rings by NOTIFY
    Always,
    /// The relay polls: for servers that use two-phase commit, which refuses NOTIFY
    Never,
}

#[derive(Args)]
struct WatchTable {
    #[command(flatten)]
    given: Given,
    /// The table, as in SQL
    table: String,
    /// Name in rooms and events [default: the table's, in lower case]
    #[arg(long)]
    module: Option<String>,
    /// Name in event types, such as LISTING [default: the module's, in upper case, in the singular]
    #[arg(long)]
    event: Option<String>,
    /// Columns that make a record's id, separated by commas [default: the primary key]
    #[arg(long, value_delimiter = ',', value_name = "COLUMNS")]
    key: Vec<String>,
    /// Columns that never leave the table, separated by commas [default: those named like secrets]
    #[arg(long, value_delimiter = ',', value_name = "COLUMNS")]
    hidden: Vec<String>,
    /// The module whose records the rows are parts of
    #[arg(long, requires = "part_link", value_name = "MODULE")]
    part_of: Option<String>,
    /// The column of that module's table that names a row of this one
    #[arg(long, requires = "part_of", value_name = "COLUMN")]
    part_link: Option<String>,
}

#[derive(Args)]
struct UnwatchTable {
    #[command(flatten)]
    given: Given,
    /// The table, as in SQL
    table: String,
}

#[derive(Args)]
struct Doctor {
    #[command(flatten)]
    given: Given,
    /// Print the findings as one JSON array
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("crm-relay: could not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        // a reader that has gone away, such as `head`, has seen enough
        Err(error) if is_reader_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crm-relay: {error:#}");
            exit_code(&error)
        }
    }
}

/// To standard output; a reader that has gone away, such as `head`, has seen enough.
fn print(line: String) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn is_reader_gone(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Interrupted::Output(error)) if error.kind() == ErrorKind::BrokenPipe)
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    let unreachable = |error: &ConnectError| matches!(error, ConnectError::Refused { .. });
    let refused = error
        .downcast_ref::<ConnectError>()
        .is_some_and(unreachable)
        || matches!(error.downcast_ref(), Some(SchemaError::Connect(error)) if unreachable(error))
        || matches!(error.downcast_ref(), Some(Interrupted::Connect(error)) if unreachable(error));
    if error.is::<BadSettings>() {
        ExitCode::from(2)
    } else if refused {
        ExitCode::from(3)
    } else {
        ExitCode::FAILURE
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(given) => {
            let config = given.serving()?;
            start_log(&config);
            let listener = bind(&config)?;
            serve(config, listener, None, stop_signal()?).await
        }
        Command::Health(given) => {
            let (listen, is_tls) = given.listening()?;
            print(health::ask(listen, is_tls).await?);
            Ok(())
        }
        Command::Install(Install {
            given,
            dry_run,
            crm_schema,
            doorbell,
        }) => {
            let doorbell = doorbell.map(|mode| match mode {
                Doorbell::Adaptive => "adaptive",
                Doorbell::Always => "always",
                Doorbell::Never => "never",
            });
            if dry_run {
                schema::install_sql(&crm_schema, doorbell)
                    .into_iter()
                    .for_each(print);
                return Ok(());
            }
            Ok(schema::install(&given.database()?, &crm_schema, doorbell, print).await?)
        }
        Command::Uninstall(given) => Ok(schema::uninstall(&given.database()?, print).await?),
        Command::Watch(WatchTable {
            given,
            table,
            module,
            event,
            key,
            hidden,
            part_of,
            part_link,
        }) => {
            let watch = Watch {
                table,
                module,
                event,
                key,
                hidden,
                part_of,
                part_link,
            };
            Ok(schema::watch(&given.database()?, &watch, print).await?)
        }
        Command::Unwatch(UnwatchTable { given, table }) => {
            Ok(schema::unwatch(&given.database()?, &table, print).await?)
        }
        Command::Audit(audit) => audit.run().await,
        Command::Tail(tail) => tail.run().await,
        Command::Explain(explain) => explain.run().await,
        Command::Token(token) => {
            print(token.issue()?);
            Ok(())
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "crm-relay", &mut script);
            print(String::from_utf8_lossy(&script).trim_end().to_owned());
            Ok(())
        }
        Command::Doctor(Doctor { given, json }) => {
            let findings = doctor::examine(&given.database()?).await?;
            print(doctor::report(&findings, json));
            Ok(doctor::verdict(&findings)?)
        }
        Command::Demo(mut given) => {
            given.no_auth.get_or_insert_with(|| "true".to_owned());
            let config = given.serving()?;
            start_log(&config);
            try_out(config).await
        }
    }
}

fn start_log(config: &Config) {
    let filter = tracing_subscriber::EnvFilter::new(&config.log);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

/// Listens with as long a queue as the system allows (`net.core.somaxconn`): whoever does not fit into it when all
/// come back at once is dropped, and TCP tries again after one second, three, seven (RFC 6298 section 5).
fn open(listen: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match listen {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // a port that connections of before still hold
    socket.set_reuseaddr(true)?;
    socket.bind(listen)?;
    socket.listen(u32::MAX)
}

fn bind(config: &Config) -> anyhow::Result<TcpListener> {
    let listen = config.listen;
    Ok(open(listen).map_err(|error| {
        BadSettings(vec![format!(
            "listen (RELAY_LISTEN): {listen}: {error}; it must be a free address of this machine"
        )])
    })?)
}

async fn serve(
    config: Config,
    listener: TcpListener,
    more: Option<Routes>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    // each connection is an open file, of which a shell allows 1024 and the system more
    let files = rlimit::increase_nofile_limit(u64::MAX)?;
    if files < config.max_connections as u64 + 100 {
        tracing::warn!(
            files,
            max_connections = config.max_connections,
            "the system allows fewer open files than connections"
        );
    }
    let address = listener.local_addr()?;
    let scheme = if config.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let ready = || {
        print(format!("ready {scheme}://{address}/"));
        tell_systemd(&[NotifyState::Ready]);
    };
    if let Some(within) = sd_notify::watchdog_enabled() {
        tokio::spawn(async move {
            let mut food = tokio::time::interval(within / 3);
            loop {
                food.tick().await;
                tell_systemd(&[NotifyState::Watchdog]);
            }
        });
    }
    let bad = |setting: &str, error: &dyn std::fmt::Display| {
        BadSettings(vec![format!("{setting}: {error}")])
    };
    let keys = match &config.tokens {
        Some(settings) => Some(
            Keys::open(settings)
                .await
                .map_err(|error| bad("jwks (RELAY_JWKS)", &error))?,
        ),
        None => None,
    };
    let identity = match config.tls.clone() {
        Some(files) => Some(Arc::new(Identity::read(files).map_err(|error| {
            bad("tls_cert (RELAY_TLS_CERT), tls_key (RELAY_TLS_KEY)", &error)
        })?)),
        None => None,
    };
    let admin = match config.admin_listen {
        Some(listen) => Some(open(listen).map_err(|error| {
            let why = format!("{listen}: {error}; it must be a free address of this machine");
            bad("admin_listen (RELAY_ADMIN_LISTEN)", &why)
        })?),
        None => None,
    };
    let doors = Doors {
        listener,
        identity,
        admin,
        keys,
    };
    server::serve(config, doors, more, ready, stop).await?;
    Ok(())
}

/// Does nothing where there is no systemd.
fn tell_systemd(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd could not be told");
    }
}

/// Done at SIGTERM or SIGINT.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // from elsewhere it asks a daemon to read its files again, which this one does by itself
    let is_end = std::io::stdin().is_terminal();
    Ok(async move {
        let mut signal = async move || loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = hangup.recv() => if is_end { return },
            }
        };
        signal().await;
        tell_systemd(&[NotifyState::Stopping]);
        // the second one: now
        tokio::spawn(async move {
            signal().await;
            std::process::exit(130);
        });
    })
}

/// The demo: loads the small CRM, serves it, and takes it away again.
async fn try_out(config: Config) -> anyhow::Result<()> {
    // from the first moment: a Ctrl-C while it loads must not leave half of it behind
    let stop = stop_signal()?;
    let listener = bind(&config)?;
    let database = config.database.clone();
    let session = database.session("demo").await?;
    demo::load(&session.client).await?;
    let tell = |line: String| tracing::info!("{line}");
    let served = match schema::install(&database, "public", None, tell).await {
        Ok(()) => serve_demo(config, listener, stop).await,
        Err(error) => Err(error.into()),
    };
    // what the demo brought it takes away, also when it failed
    let session = database.session("demo").await?;
    if demo::has_schema(&session.client).await? {
        schema::uninstall(&database, tell).await?;
    }
    demo::unload(&session.client).await?;
    served
}

/// Serves until `stop`; when somebody stops the relay on purpose, the CRM goes on without it for a while
/// and then another relay begins.
async fn serve_demo(
    config: Config,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let mut stop = std::pin::pin!(stop);
    let stop_relay = Arc::new(Notify::new());
    let routes = demo::routes(config.database.clone(), stop_relay.clone());
    let listener = listener.into_std()?;
    let listen = || TcpListener::from_std(listener.try_clone()?);
    loop {
        let mut done = false;
        let until = async {
            tokio::select! {
                () = &mut stop => done = true,
                () = stop_relay.notified() => {}
            }
        };
        serve(config.clone(), listen()?, Some(routes.clone()), until).await?;
        if done {
            return Ok(());
        }
        tokio::select! {
            () = &mut stop => return Ok(()),
            () = tokio::time::sleep(demo::AWAY_FOR) => {}
            never = demo::serve_alone(listen()?, routes.clone()) => match never {},
        }
    }
}
