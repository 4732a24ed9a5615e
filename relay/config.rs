//! Settings: by flag, by environment or by a TOML file, in that order of precedence.
//!
//! All of them are read before any is complained of, so that every bad one is named at once.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;

use crate::connection::Limits;
use crate::postgres::Database;
use crate::server::origin::Origin;
use crate::server::proxy::Trusted;
use crate::tls;
use crate::token::{self, Secret, Source};

/// The settings as given; each is a text until all are there. Some are secret, so none is shown.
#[derive(Clone, Default, Args)]
pub struct Given {
    /// TOML file with settings named like these flags, with underscores
    #[arg(long, env = "RELAY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The CRM's database, such as postgresql://relay@db:5432/crm
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// Address to listen on [default: 127.0.0.1:7420]
    #[arg(long, env = "RELAY_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Certificate chain of the listener, PEM; with it the relay speaks TLS
    #[arg(long, env = "RELAY_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<String>,
    /// Key of that certificate, PEM
    #[arg(long, env = "RELAY_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<String>,
    /// Networks of proxies whose X-Forwarded-For is believed, separated by commas [default: none]
    #[arg(long, env = "RELAY_TRUSTED_PROXIES", value_name = "NETWORKS")]
    pub trusted_proxies: Option<String>,
    /// Address for operators: readiness with details, metrics, console [default: none]
    #[arg(long, env = "RELAY_ADMIN_LISTEN", value_name = "ADDRESS")]
    pub admin_listen: Option<String>,
    /// Token for operators, at least 16 bytes, as Authorization: Bearer [default: none]
    #[arg(
        long,
        env = "RELAY_ADMIN_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub admin_token: Option<String>,
    /// File with that token
    #[arg(long, env = "RELAY_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: Option<String>,
    /// Origins of pages that may connect, such as https://*.crm.example, separated by commas [default: same origin only]
    #[arg(long, env = "RELAY_ALLOWED_ORIGINS", value_name = "ORIGINS")]
    pub allowed_origins: Option<String>,
    /// Secret of tokens signed by HS256, HS384 or HS512, at least 32 bytes
    #[arg(
        long,
        env = "RELAY_JWT_SECRET",
        value_name = "SECRET",
        hide_env_values = true
    )]
    pub jwt_secret: Option<String>,
    /// File with such a secret; with two, a line each, while one takes the place of the other
    #[arg(long, env = "RELAY_JWT_SECRET_FILE", value_name = "FILE")]
    pub jwt_secret_file: Option<String>,
    /// File or https URL of the keys (JWKS) of tokens signed by RS, PS, ES or EdDSA
    #[arg(long, env = "RELAY_JWKS", value_name = "FILE|URL")]
    pub jwks: Option<String>,
    /// What a token's aud must name [default: anything]
    #[arg(long, env = "RELAY_JWT_AUDIENCE", value_name = "TEXT")]
    pub jwt_audience: Option<String>,
    /// What a token's iss must be [default: anything]
    #[arg(long, env = "RELAY_JWT_ISSUER", value_name = "TEXT")]
    pub jwt_issuer: Option<String>,
    /// Claims that may name the user, separated by commas; the first that is there does [default: id,sub]
    #[arg(long, env = "RELAY_JWT_USER_CLAIMS", value_name = "NAMES")]
    pub jwt_user_claims: Option<String>,
    /// Serve everybody who reaches a loopback address, without tokens
    #[arg(long, env = "RELAY_NO_AUTH", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub no_auth: Option<String>,
    /// Log filter, such as info or crm_relay=debug [default: info]
    #[arg(long, env = "RELAY_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// Log format, text or json [default: text]
    #[arg(long, env = "RELAY_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Bytes that may wait for one connection before it is closed as too slow [default: 16777216]
    #[arg(long, env = "RELAY_QUEUE_BYTES", value_name = "BYTES")]
    pub queue_bytes: Option<String>,
    /// Shortest time between two updates of one field of a record; 0 sends each [default: 1s]
    #[arg(long, env = "RELAY_THROTTLE", value_name = "TIME")]
    pub throttle: Option<String>,
    /// Write a row and see it arrive once in so long, longer than the throttle [default: none]
    #[arg(long, env = "RELAY_CANARY", value_name = "TIME")]
    pub canary: Option<String>,
    /// After so long without another frame comes a heartbeat, whole seconds [default: 25s]
    #[arg(long, env = "RELAY_HEARTBEAT", value_name = "TIME")]
    pub heartbeat: Option<String>,
    /// Bytes of recent events kept in memory for clients that come back [default: 33554432]
    #[arg(long, env = "RELAY_RECENT_BYTES", value_name = "BYTES")]
    pub recent_bytes: Option<String>,
    /// Changes of one transaction that a scope room gets before it is told to fetch anew [default: 500]
    #[arg(long, env = "RELAY_FLOOD_CHANGES", value_name = "COUNT")]
    pub flood_changes: Option<String>,
    /// Compress frames for clients that offer permessage-deflate [default: true]
    #[arg(long, env = "RELAY_DEFLATE", value_name = "BOOL")]
    pub deflate: Option<String>,
    /// Most connections at once [default: 20000]
    #[arg(long, env = "RELAY_MAX_CONNECTIONS", value_name = "COUNT")]
    pub max_connections: Option<String>,
    /// Most connections of one address at once [default: 2000]
    #[arg(long, env = "RELAY_MAX_CONNECTIONS_PER_ADDRESS", value_name = "COUNT")]
    pub max_connections_per_address: Option<String>,
    /// Most connections of one user at once [default: 200]
    #[arg(long, env = "RELAY_MAX_CONNECTIONS_PER_USER", value_name = "COUNT")]
    pub max_connections_per_user: Option<String>,
    /// Most rooms of one connection [default: 1000]
    #[arg(long, env = "RELAY_MAX_ROOMS", value_name = "COUNT")]
    pub max_rooms: Option<String>,
    /// Most frames a second of one connection, ten seconds' worth at once [default: 300]
    #[arg(long, env = "RELAY_MAX_FRAMES", value_name = "COUNT")]
    pub max_frames: Option<String>,
    /// Most subscribes a second of one connection, ten seconds' worth at once [default: 100]
    #[arg(long, env = "RELAY_MAX_SUBSCRIBES", value_name = "COUNT")]
    pub max_subscribes: Option<String>,
}

/// Where the database is, for commands that need nothing else.
#[derive(Clone, Default, Args)]
pub struct GivenDatabase {
    /// TOML file with settings
    #[arg(long, env = "RELAY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The CRM's database, such as postgresql://dba@db:5432/crm
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Option<String>,
}

impl GivenDatabase {
    /// The database.
    pub fn database(&self) -> Result<Database, BadSettings> {
        let given = Given {
            config: self.config.clone(),
            database_url: self.database_url.clone(),
            ..Given::default()
        };
        given.database()
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// The settings of a relay that serves.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the CRM is.
    pub database: Database,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Origins besides the relay's own.
    pub allowed_origins: Vec<Origin>,
    /// Certificate and key; None: plain.
    pub tls: Option<tls::Files>,
    /// Proxies that are believed.
    pub trusted_proxies: Trusted,
    /// Where operators come.
    pub admin_listen: Option<SocketAddr>,
    /// By what they are known elsewhere.
    pub admin_token: Option<Secret>,
    /// Whose tokens are trusted; None: everybody is served, without.
    pub tokens: Option<token::Settings>,
    /// Filter of the log.
    pub log: String,
    /// Format of the log.
    pub log_format: LogFormat,
    /// Bound of each connection's outbox.
    pub queue_bytes: usize,
    /// Shortest time between two updates of one field of a record.
    pub throttle: Duration,
    /// How often the canary beats; None: there is none.
    pub canary: Option<Duration>,
    /// Longest silence towards a client.
    pub heartbeat: Duration,
    /// Bound of the memory of recent events.
    pub recent_bytes: usize,
    /// Bound of what one transaction sends to one scope room.
    pub flood_changes: usize,
    /// Whether frames are compressed for clients that offer it.
    pub deflate: bool,
    /// Bound of the number of connections.
    pub max_connections: usize,
    /// The same for one address.
    pub max_connections_per_address: usize,
    /// The same for one user.
    pub max_connections_per_user: usize,
    /// Bound of the number of one connection's rooms.
    pub max_rooms: usize,
    /// Bound of the number of its frames in a second.
    pub max_frames: u32,
    /// Bound of the number of its subscribes in a second.
    pub max_subscribes: u32,
}

impl Config {
    /// What one connection may do.
    pub fn limits(&self) -> Limits {
        Limits {
            rooms: self.max_rooms,
            frames: self.max_frames,
            subscribes: self.max_subscribes,
        }
    }
}

/// Everything that is wrong with the settings.
#[derive(Debug)]
pub struct BadSettings(pub Vec<String>);

impl fmt::Display for BadSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bad setting{}:",
            self.0.len(),
            if self.0.len() == 1 { "" } else { "s" }
        )?;
        self.0.iter().try_for_each(|bad| write!(f, "\n  {bad}"))
    }
}

impl std::error::Error for BadSettings {}

impl Given {
    /// Fills in what the TOML file says where neither flag nor environment does; complaints go to `bad`.
    fn with_file(&self, bad: &mut Vec<String>) -> Given {
        let mut given = self.clone();
        let Some(path) = &self.config else {
            return given;
        };
        let read = std::fs::read_to_string(path).map_err(|error| error.to_string());
        let table = match read.and_then(|text| {
            text.parse::<toml::Table>()
                .map_err(|error| error.to_string())
        }) {
            Ok(table) => table,
            Err(error) => {
                bad.push(format!(
                    "config (RELAY_CONFIG): {}: {error}",
                    path.display()
                ));
                return given;
            }
        };
        let mut fields: BTreeMap<&str, &mut Option<String>> = BTreeMap::from([
            ("database_url", &mut given.database_url),
            ("listen", &mut given.listen),
            ("allowed_origins", &mut given.allowed_origins),
            ("jwt_secret", &mut given.jwt_secret),
            ("jwt_secret_file", &mut given.jwt_secret_file),
            ("jwks", &mut given.jwks),
            ("jwt_audience", &mut given.jwt_audience),
            ("jwt_issuer", &mut given.jwt_issuer),
            ("jwt_user_claims", &mut given.jwt_user_claims),
            ("no_auth", &mut given.no_auth),
            ("log", &mut given.log),
            ("log_format", &mut given.log_format),
            ("queue_bytes", &mut given.queue_bytes),
            ("throttle", &mut given.throttle),
            ("canary", &mut given.canary),
            ("deflate", &mut given.deflate),
            ("heartbeat", &mut given.heartbeat),
            ("recent_bytes", &mut given.recent_bytes),
            ("flood_changes", &mut given.flood_changes),
            ("max_connections", &mut given.max_connections),
            (
                "max_connections_per_address",
                &mut given.max_connections_per_address,
            ),
            (
                "max_connections_per_user",
                &mut given.max_connections_per_user,
            ),
            ("max_rooms", &mut given.max_rooms),
            ("max_frames", &mut given.max_frames),
            ("max_subscribes", &mut given.max_subscribes),
            ("tls_cert", &mut given.tls_cert),
            ("tls_key", &mut given.tls_key),
            ("trusted_proxies", &mut given.trusted_proxies),
            ("admin_listen", &mut given.admin_listen),
            ("admin_token", &mut given.admin_token),
            ("admin_token_file", &mut given.admin_token_file),
        ]);
        for (name, value) in table {
            let text = match value {
                toml::Value::String(text) => text,
                other => other.to_string(),
            };
            match fields.get_mut(name.as_str()) {
                Some(Some(_)) => {}
                Some(field) => **field = Some(text),
                None => bad.push(format!(
                    "{}: there is no setting \"{name}\"",
                    path.display()
                )),
            }
        }
        given
    }

    /// The database alone, for commands that need nothing else.
    pub fn database(&self) -> Result<Database, BadSettings> {
        let mut bad = Vec::new();
        let database = database(&self.with_file(&mut bad), &mut bad);
        match database {
            Some(database) if bad.is_empty() => Ok(database),
            _ => Err(BadSettings(bad)),
        }
    }

    /// Whose tokens are trusted, and how; for commands that serve nobody.
    pub fn tokens(&self) -> Result<token::Settings, BadSettings> {
        let mut bad = Vec::new();
        let tokens = tokens(&self.with_file(&mut bad), &mut bad);
        if tokens.is_none() && bad.is_empty() {
            bad.push("jwt_secret (RELAY_JWT_SECRET): missing; it must be the secret that the relay trusts".to_owned());
        }
        match tokens {
            Some(tokens) if bad.is_empty() => Ok(tokens),
            _ => Err(BadSettings(bad)),
        }
    }

    /// Where it listens, and whether it speaks TLS there, for who asks how it is.
    pub fn listening(&self) -> Result<(SocketAddr, bool), BadSettings> {
        let mut bad = Vec::new();
        let given = self.with_file(&mut bad);
        let listen = listen(&given, &mut bad);
        if bad.is_empty() {
            return Ok((listen, given.tls_cert.is_some()));
        }
        Err(BadSettings(bad))
    }

    /// The settings of a relay that serves, or everything that is wrong with them.
    pub fn serving(&self) -> Result<Config, BadSettings> {
        let mut bad = Vec::new();
        let given = self.with_file(&mut bad);
        let database = database(&given, &mut bad);
        let listen = listen(&given, &mut bad);
        let no_auth = match given.no_auth.as_deref().unwrap_or("false") {
            "1" | "true" | "yes" | "on" => true,
            "" | "0" | "false" | "no" | "off" => false,
            other => {
                bad.push(format!(
                    "no_auth (RELAY_NO_AUTH): \"{other}\"; it must be true or false"
                ));
                false
            }
        };
        if no_auth && !listen.ip().is_loopback() {
            bad.push(format!(
                "no_auth (RELAY_NO_AUTH): only on a loopback address such as 127.0.0.1, but listen (RELAY_LISTEN) is {listen}"
            ));
        }
        let tokens = tokens(&given, &mut bad);
        if no_auth && tokens.is_some() {
            bad.push("no_auth (RELAY_NO_AUTH): with a secret or keys for tokens it contradicts itself; leave out one or the other".to_owned());
        }
        if !no_auth && tokens.is_none() && !bad.iter().any(|bad| bad.starts_with("no_auth")) {
            bad.push("jwt_secret (RELAY_JWT_SECRET): missing, and so is jwks (RELAY_JWKS); one of them must say whose tokens are trusted, or --no-auth serve everybody on a loopback address".to_owned());
        }
        let allowed_origins = listed(&given.allowed_origins)
            .filter_map(|text| {
                let origin = Origin::of(text.trim_end_matches('/'));
                if origin.is_none() {
                    bad.push(format!(
                        "allowed_origins (RELAY_ALLOWED_ORIGINS): \"{text}\"; each must be like https://crm.example or https://*.crm.example"
                    ));
                }
                origin
            })
            .collect();
        let trusted_proxies = listed(&given.trusted_proxies)
            .filter_map(|text| {
                let address = || text.parse::<std::net::IpAddr>().map(IpNet::from);
                let network = text.parse().or_else(|_| address());
                if network.is_err() {
                    bad.push(format!(
                        "trusted_proxies (RELAY_TRUSTED_PROXIES): \"{text}\"; each must be an address or a network such as 10.0.0.0/8"
                    ));
                }
                network.ok()
            })
            .collect();
        let tls = match (&given.tls_cert, &given.tls_key) {
            (Some(certificate), Some(key)) => Some(tls::Files {
                certificate: certificate.into(),
                key: key.into(),
            }),
            (None, None) => None,
            (Some(_), None) => {
                bad.push("tls_key (RELAY_TLS_KEY): missing, beside tls_cert (RELAY_TLS_CERT); both must be given, or neither".to_owned());
                None
            }
            (None, Some(_)) => {
                bad.push("tls_cert (RELAY_TLS_CERT): missing, beside tls_key (RELAY_TLS_KEY); both must be given, or neither".to_owned());
                None
            }
        };
        let admin_listen = given.admin_listen.is_some().then(|| {
            parsed(
                "admin_listen (RELAY_ADMIN_LISTEN)",
                &given.admin_listen,
                "127.0.0.1:7421",
                "an address and a port, such as 127.0.0.1:7421",
                &mut bad,
            )
        });
        let mut admin_token = given.admin_token.clone();
        if let Some(path) = &given.admin_token_file {
            match std::fs::read_to_string(path) {
                Ok(_) if admin_token.is_some() => bad.push("admin_token (RELAY_ADMIN_TOKEN): given beside admin_token_file (RELAY_ADMIN_TOKEN_FILE); it must be one of them".to_owned()),
                Ok(text) => admin_token = Some(text.trim().to_owned()),
                Err(error) => bad.push(format!(
                    "admin_token_file (RELAY_ADMIN_TOKEN_FILE): {path}: {error}"
                )),
            }
        }
        let admin_token = admin_token.map(|token| {
            if token.len() < 16 {
                bad.push(format!(
                    "admin_token (RELAY_ADMIN_TOKEN): {} bytes; it must be at least 16 that nobody can guess",
                    token.len()
                ));
            }
            Secret(token.into_bytes())
        });
        let log = given.log.clone().unwrap_or_else(|| "info".to_owned());
        if let Err(error) = log.parse::<tracing_subscriber::EnvFilter>() {
            bad.push(format!(
                "log (RELAY_LOG): \"{log}\": {error}; it must be like info or crm_relay=debug"
            ));
        }
        let log_format = match given.log_format.as_deref().unwrap_or("text") {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => {
                bad.push(format!(
                    "log_format (RELAY_LOG_FORMAT): \"{other}\"; it must be text or json"
                ));
                LogFormat::Text
            }
        };
        let queue_bytes = parsed(
            "queue_bytes (RELAY_QUEUE_BYTES)",
            &given.queue_bytes,
            "16777216",
            "a number of bytes",
            &mut bad,
        );
        let throttle: humantime::Duration = parsed(
            "throttle (RELAY_THROTTLE)",
            &given.throttle,
            "1s",
            "a time such as 1s or 250ms, or 0",
            &mut bad,
        );
        let canary = given.canary.as_ref().map(|_| {
            let canary: humantime::Duration = parsed(
                "canary (RELAY_CANARY)",
                &given.canary,
                "10s",
                "a time such as 10s",
                &mut bad,
            );
            Duration::from(canary)
        });
        // what the throttle holds back would look late
        if let Some(canary) = canary.filter(|it| *it < Duration::from_secs(1) || *it <= *throttle) {
            bad.push(format!(
                "canary (RELAY_CANARY): {canary:?}; it must be at least 1s, and longer than the throttle, {throttle}"
            ));
        }
        let heartbeat: humantime::Duration = parsed(
            "heartbeat (RELAY_HEARTBEAT)",
            &given.heartbeat,
            "25s",
            "a time of whole seconds such as 25s",
            &mut bad,
        );
        if heartbeat.as_secs() == 0 || heartbeat.subsec_nanos() > 0 {
            bad.push(format!(
                "heartbeat (RELAY_HEARTBEAT): {heartbeat}; it must be whole seconds, at least one"
            ));
        }
        let recent_bytes = parsed(
            "recent_bytes (RELAY_RECENT_BYTES)",
            &given.recent_bytes,
            "33554432",
            "a number of bytes",
            &mut bad,
        );
        let flood_changes = parsed(
            "flood_changes (RELAY_FLOOD_CHANGES)",
            &given.flood_changes,
            "500",
            "a number of changes",
            &mut bad,
        );
        let deflate = parsed(
            "deflate (RELAY_DEFLATE)",
            &given.deflate,
            "true",
            "true or false",
            &mut bad,
        );
        let max_connections = parsed(
            "max_connections (RELAY_MAX_CONNECTIONS)",
            &given.max_connections,
            "20000",
            "a number of connections",
            &mut bad,
        );
        let max_connections_per_address = parsed(
            "max_connections_per_address (RELAY_MAX_CONNECTIONS_PER_ADDRESS)",
            &given.max_connections_per_address,
            "2000",
            "a number of connections",
            &mut bad,
        );
        let max_connections_per_user = parsed(
            "max_connections_per_user (RELAY_MAX_CONNECTIONS_PER_USER)",
            &given.max_connections_per_user,
            "200",
            "a number of connections",
            &mut bad,
        );
        let max_rooms = parsed(
            "max_rooms (RELAY_MAX_ROOMS)",
            &given.max_rooms,
            "1000",
            "a number of rooms",
            &mut bad,
        );
        let max_frames = parsed(
            "max_frames (RELAY_MAX_FRAMES)",
            &given.max_frames,
            "300",
            "a number of frames",
            &mut bad,
        );
        let max_subscribes = parsed(
            "max_subscribes (RELAY_MAX_SUBSCRIBES)",
            &given.max_subscribes,
            "100",
            "a number of subscribes",
            &mut bad,
        );
        for (name, count) in [
            ("max_rooms (RELAY_MAX_ROOMS)", max_rooms),
            ("max_frames (RELAY_MAX_FRAMES)", max_frames as usize),
            (
                "max_subscribes (RELAY_MAX_SUBSCRIBES)",
                max_subscribes as usize,
            ),
        ] {
            if count == 0 {
                bad.push(format!("{name}: 0; it must be at least 1"));
            }
        }
        match database {
            Some(database) if bad.is_empty() => Ok(Config {
                tls,
                trusted_proxies: Trusted(trusted_proxies),
                admin_listen,
                admin_token,
                max_connections_per_address,
                max_connections_per_user,
                max_rooms,
                max_frames,
                max_subscribes,
                database,
                listen,
                allowed_origins,
                tokens,
                log,
                log_format,
                queue_bytes,
                throttle: throttle.into(),
                canary,
                heartbeat: heartbeat.into(),
                recent_bytes,
                flood_changes,
                deflate,
                max_connections,
            }),
            _ => Err(BadSettings(bad)),
        }
    }
}

fn listen(given: &Given, bad: &mut Vec<String>) -> SocketAddr {
    parsed(
        "listen (RELAY_LISTEN)",
        &given.listen,
        "127.0.0.1:7420",
        "an address and a port, such as 127.0.0.1:7420",
        bad,
    )
}

/// What is written between commas.
fn listed(text: &Option<String>) -> impl Iterator<Item = &str> {
    let parts = text.as_deref().unwrap_or_default().split(',');
    parts.map(str::trim).filter(|part| !part.is_empty())
}

/// Whose tokens are trusted, if there is anything about it.
fn tokens(given: &Given, bad: &mut Vec<String>) -> Option<token::Settings> {
    let mut secrets: Vec<Secret> = Vec::new();
    let mut secret = |name: &str, text: &str, bad: &mut Vec<String>| {
        let secret = Secret(text.as_bytes().to_vec());
        if text.len() < token::SHORTEST_SECRET {
            bad.push(format!(
                "{name}: {} bytes; it must be at least {} that nobody can guess, such as openssl rand -base64 48 prints",
                text.len(),
                token::SHORTEST_SECRET
            ));
        }
        secrets.push(secret);
    };
    if let Some(text) = &given.jwt_secret {
        secret("jwt_secret (RELAY_JWT_SECRET)", text, bad);
    }
    if let Some(path) = &given.jwt_secret_file {
        let name = "jwt_secret_file (RELAY_JWT_SECRET_FILE)";
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
                if lines.is_empty() || lines.len() > 2 {
                    bad.push(format!(
                        "{name}: {path} has {} lines; it must have one secret, or two",
                        lines.len()
                    ));
                }
                for line in lines {
                    secret(name, line, bad);
                }
            }
            Err(error) => bad.push(format!("{name}: {path}: {error}")),
        }
    }
    if given.jwt_secret.is_some() && given.jwt_secret_file.is_some() {
        bad.push("jwt_secret (RELAY_JWT_SECRET): given beside jwt_secret_file (RELAY_JWT_SECRET_FILE), which may hold two; it must be one of them".to_owned());
    }
    let jwks = given.jwks.as_deref().and_then(|text| {
        let source = Source::of(text);
        let complain = |why: String| bad.push(format!("jwks (RELAY_JWKS): \"{text}\": {why}"));
        source.map_err(complain).ok()
    });
    let is_any =
        given.jwt_secret.is_some() || given.jwt_secret_file.is_some() || given.jwks.is_some();
    let user_claims = given.jwt_user_claims.as_deref().unwrap_or("id,sub");
    let user_claims: Vec<String> = user_claims
        .split(',')
        .map(|name| name.trim().to_owned())
        .collect();
    if user_claims.iter().any(String::is_empty) {
        bad.push("jwt_user_claims (RELAY_JWT_USER_CLAIMS): an empty name; it must be names of claims such as id,sub".to_owned());
    }
    is_any.then(|| token::Settings {
        secrets,
        jwks,
        audience: given.jwt_audience.clone(),
        issuer: given.jwt_issuer.clone(),
        user_claims,
    })
}

fn database(given: &Given, bad: &mut Vec<String>) -> Option<Database> {
    let Some(url) = &given.database_url else {
        bad.push(
            "database_url (DATABASE_URL): missing; it must be like postgresql://relay@db:5432/crm"
                .to_owned(),
        );
        return None;
    };
    Database::of(url)
        .map_err(|error| bad.push(format!("database_url ({error})")))
        .ok()
}

fn parsed<T: std::str::FromStr>(
    name: &str,
    given: &Option<String>,
    default: &str,
    expected: &str,
    bad: &mut Vec<String>,
) -> T
where
    T::Err: fmt::Display,
{
    let text = given.as_deref().unwrap_or(default);
    match (text.trim().parse(), default.parse()) {
        (Ok(value), _) => value,
        (Err(error), Ok(default)) => {
            bad.push(format!(
                "{name}: \"{text}\": {error}; it must be {expected}"
            ));
            default
        }
        (Err(_), Err(error)) => unreachable!("the default of {name} must parse: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> Given {
        Given {
            database_url: Some("postgresql://relay@db/crm".to_owned()),
            no_auth: Some("true".to_owned()),
            ..Given::default()
        }
    }

    #[test]
    fn the_defaults_serve_a_loopback_address() {
        let config = given().serving().unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:7420");
        assert_eq!(config.database.target(), "db:5432/crm");
    }

    #[test]
    fn every_bad_setting_is_named_at_once() {
        let bad = Given {
            database_url: None,
            listen: Some("7420".to_owned()),
            log_format: Some("xml".to_owned()),
            queue_bytes: Some("-1".to_owned()),
            allowed_origins: Some("crm.example".to_owned()),
            ..given()
        };
        let told = bad.serving().unwrap_err().to_string();
        for name in [
            "DATABASE_URL",
            "RELAY_LISTEN",
            "RELAY_LOG_FORMAT",
            "RELAY_QUEUE_BYTES",
            "RELAY_ALLOWED_ORIGINS",
        ] {
            assert!(told.contains(name), "{told}");
        }
        assert!(told.starts_with("5 bad settings"), "{told}");
    }

    #[test]
    fn without_tokens_only_a_loopback_address_is_served() {
        let open = Given {
            listen: Some("0.0.0.0:7420".to_owned()),
            ..given()
        };
        assert!(
            open.serving()
                .unwrap_err()
                .to_string()
                .contains("RELAY_NO_AUTH")
        );
        let closed = Given {
            no_auth: None,
            ..given()
        };
        let told = closed.serving().unwrap_err().to_string();
        assert!(told.contains("RELAY_JWT_SECRET"), "{told}");
        let both = Given {
            jwt_secret: Some("x".repeat(32)),
            ..given()
        };
        let told = both.serving().unwrap_err().to_string();
        assert!(told.contains("RELAY_NO_AUTH"), "{told}");
    }

    #[test]
    fn a_secret_that_can_be_guessed_is_refused_and_none_is_ever_shown() {
        let with = |secret: &str| Given {
            no_auth: None,
            jwt_secret: Some(secret.to_owned()),
            ..given()
        };
        let told = with("hunter2").serving().unwrap_err().to_string();
        assert!(
            told.contains("RELAY_JWT_SECRET") && !told.contains("hunter2"),
            "{told}"
        );
        let secret = "correct horse battery staple 1234";
        let config = with(secret).serving().unwrap();
        assert!(!format!("{config:?}").contains("horse"), "{config:?}");
    }

    #[test]
    fn a_file_fills_in_what_neither_flag_nor_environment_says() {
        let file = std::env::temp_dir().join(format!("crm-relay-{}.toml", uuid::Uuid::new_v4()));
        std::fs::write(
            &file,
            "listen = \"127.0.0.1:1\"\nqueue_bytes = 5\nlog = \"warn\"\n",
        )
        .unwrap();
        let with_file = Given {
            config: Some(file.clone()),
            log: Some("debug".to_owned()),
            ..given()
        };
        let config = with_file.serving().unwrap();
        assert_eq!(
            (
                config.listen.port(),
                config.queue_bytes,
                config.log.as_str()
            ),
            (1, 5, "debug")
        );
        std::fs::write(&file, "lisen = 1").unwrap();
        assert!(
            with_file
                .serving()
                .unwrap_err()
                .to_string()
                .contains("lisen")
        );
        std::fs::remove_file(file).unwrap();
    }
}
