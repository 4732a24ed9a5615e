//! The relay's HTTP side: the accept loop, the routes, the way from a request to a connection.
//!
//! warp answers every route. The loop around it is ours, because `TCP_NODELAY`, the time a client may
//! take for its headers, the bound on connections and an orderly stop belong to the socket. After the
//! handshake the raw socket is taken back from hyper: warp's own WebSocket keeps about 136 KiB of
//! buffers for each connection.

mod console;
mod handshake;
pub mod origin;
pub mod places;
pub mod proxy;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::Request;
use hyper::body::{Body, Incoming};
use hyper::upgrade::{OnUpgrade, Parts};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use warp::http::{HeaderMap, StatusCode, header};
use warp::reply::Response;
use warp::{Filter, Reply};

use crate::canary::Canary;
use crate::config::Config;
use crate::connection::{Arrived, Connection, Shared};
use crate::gate::Gate;
use crate::history::History;
use crate::inquiries::Inquiries;
use crate::metrics::{self, Metrics};
use crate::policy::{Placement, Policy};
use crate::reader::{Reader, Readiness, Told};
use crate::registry::Registry;
use crate::rooms::{Bounds, Command, Judges, Rooms, Survey};
use crate::socket::Socket;
use crate::throttle::Throttle;
use crate::tls::Identity;
use crate::token::{Keys, Secret};
use crate::web;

use handshake::{extension, handshake, offered, switching};
use places::{Places, Turns, network};
use proxy::Trusted;

pub use handshake::is_loopback;

/// How long a client may take for the headers of a request.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);

/// How long a request may take from there to its answer, its body included: whoever is silent in the
/// middle of one must not hold a place for long.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How long connections may take to end when the relay stops.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Sockets whose request is yet to come or to be answered; WebSockets are counted by themselves, so
/// that health is told also when no place is left.
const REQUESTS: usize = 1024;

/// How long a socket may wait for others whose request is to be answered.
const PLACE_WITHIN: Duration = Duration::from_millis(200);

/// Of one address, so that one that is slow on purpose does not take all.
const REQUESTS_OF_AN_ADDRESS: usize = REQUESTS / 2;

/// Subscribes of one user that are under way at once; more wait.
const SUBSCRIBES_OF_A_USER: usize = 2;

/// Commands that may wait for the task that owns the rooms.
const COMMANDS: usize = 1024;

/// Sessions in Postgres for those who come back, for those who subscribe, for what is to be told and who may
/// still be where they are, to place records, and
/// for operators.
const HISTORY: usize = 4;
const SUBSCRIBING: usize = 4;
const JUDGING: usize = 2;
const PLACEMENT: usize = 2;
const CONSOLE: usize = 1;

/// How long a peer may leave what we sent unacknowledged.
const PEER_TIMEOUT: Duration = Duration::from_secs(60);

/// Routes beside the relay's own.
pub type Routes = warp::filters::BoxedFilter<(Response,)>;

/// Where a request came from.
#[derive(Debug, Clone, Copy)]
struct Peer(SocketAddr);

/// The ways in.
pub struct Doors {
    /// Where clients come.
    pub listener: TcpListener,
    /// Who the relay says that it is to them; None: it speaks plainly, to a proxy perhaps.
    pub identity: Option<Arc<Identity>>,
    /// Where operators come, if they have a door of their own.
    pub admin: Option<TcpListener>,
    /// Whose tokens are good; None: nobody needs one.
    pub keys: Option<Keys>,
}

/// Serves until `stop` is done, then says goodbye to every connection. `ready` is called once, when
/// the journal is read for the first time.
pub async fn serve(
    config: Config,
    doors: Doors,
    more: Option<Routes>,
    ready: impl FnOnce(),
    stop: impl Future<Output = ()>,
) -> std::io::Result<()> {
    let (commands, obeyed) = mpsc::channel(COMMANDS);
    let (cursor, reached) = watch::channel(Arc::from(""));
    let (readiness, mut is_ready) = watch::channel(Readiness::Unready {
        reason: "not connected to Postgres yet",
        details: "not connected to Postgres yet".to_owned(),
    });
    let (registry, watched) = watch::channel(Arc::new(Registry::default()));
    let stopping = CancellationToken::new();
    let tasks = TaskTracker::new();

    let bounds = Bounds {
        recent_bytes: config.recent_bytes,
        flood_changes: config.flood_changes,
        rooms: config.max_rooms,
    };
    let look = Arc::new(Notify::new());
    let metrics = Metrics::default();
    let mut rooms = Rooms::new(cursor, look.clone(), bounds).counted_by(metrics.clone());
    let asking = |purpose, sessions| Inquiries::new(config.database.clone(), purpose, sessions);
    let policy = || Policy::new(asking("judging", JUDGING), asking("policy", SUBSCRIBING));
    let gate = doors.keys.map(|keys| Gate::new(keys, Arc::new(policy())));
    if let Some(gate) = &gate {
        let (now, asked_now) = mpsc::channel(1);
        let (later, asked_later) = mpsc::channel(1);
        rooms = rooms.judged_by(Judges { now, later });
        for asked in [asked_now, asked_later] {
            tokio::spawn(gate.policy().clone().serve(asked, commands.clone()));
        }
    }
    let (told, news) = mpsc::channel(COMMANDS);
    let rooms = tokio::spawn(rooms.run(obeyed, news));
    let (read, throttled) = mpsc::channel(COMMANDS);
    let throttle = Throttle::new(config.throttle);
    let throttling = tokio::spawn(throttle.run(throttled, told));
    let placement = Placement::new(asking("placement", PLACEMENT));
    let mut reader = Reader::new(
        config.database.clone(),
        placement.clone(),
        read,
        Told {
            readiness,
            registry,
            cursor: reached.clone(),
            metrics: metrics.clone(),
        },
        look,
    );
    // of the demo's throwaway database nobody takes care
    if more.is_none() {
        reader = reader.modest();
    }
    let reading = tokio::spawn(reader.run());

    let (silent, silence) = watch::channel(None);
    let canary = config.canary.map(|every| {
        let (database, rooms) = (config.database.clone(), commands.clone());
        let canary = Canary::new(database, rooms, metrics.clone(), silent);
        let mut is_ready = is_ready.clone();
        tokio::spawn(async move {
            let ready = is_ready.wait_for(|readiness| *readiness == Readiness::Ready);
            if ready.await.is_ok() {
                canary.run(every).await;
            }
        })
    });
    let rooms_know = commands.clone();
    let shared = Arc::new(Shared {
        rooms: commands,
        cursor: reached,
        history: Arc::new(History::new(
            asking("history", HISTORY),
            placement,
            watched.clone(),
        )),
        gate,
        registry: watched,
        heartbeat: config.heartbeat,
        queue_bytes: config.queue_bytes,
        limits: config.limits(),
        users: Places::new(config.max_connections_per_user),
        subscribing: Turns::new(SUBSCRIBES_OF_A_USER),
        metrics: metrics.clone(),
        stopping: stopping.clone(),
    });
    let trusted = Arc::new(config.trusted_proxies.clone());
    let places = Arc::new(Semaphore::new(config.max_connections));
    let status = Arc::new(Status {
        readiness: is_ready.clone(),
        silence,
        cursor: shared.cursor.clone(),
        registry: shared.registry.clone(),
        database: config.database.target(),
        places: places.clone(),
        most: config.max_connections,
        token: config.admin_token.clone(),
        metrics,
        rooms: shared.rooms.clone(),
        gate: shared.gate.clone(),
        inquiries: asking("console", CONSOLE),
        admin: (doors.admin.as_ref()).and_then(|admin| admin.local_addr().ok()),
        tasks: tasks.clone(),
        stopping: stopping.clone(),
    });
    let upgrades = Upgrades {
        tasks: tasks.clone(),
        places,
        addresses: Places::new(config.max_connections_per_address),
        trusted: trusted.clone(),
    };
    let own = ws(&config, shared, upgrades).or(health(status.clone(), false));
    let own = own.unify().or(console::routes(status.clone(), false));
    let own = own.unify().or(web::routes()).unify().boxed();
    let service = match more {
        Some(more) => warp::service(own.or(more).unify().boxed()),
        None => warp::service(own),
    };
    let closing = CancellationToken::new();
    let mut open = JoinSet::new();
    let door = |listener, identity| Door {
        listener,
        identity,
        requests: Arc::new(Semaphore::new(REQUESTS)),
        addresses: Places::new(REQUESTS_OF_AN_ADDRESS),
        trusted: trusted.clone(),
        tasks: tasks.clone(),
        closing: closing.clone(),
        stopping: stopping.clone(),
    };
    open.spawn(door(doors.listener, doors.identity).stand_open(service));
    if let Some(listener) = doors.admin {
        let own = health(status.clone(), true).or(console::routes(status, true));
        let service = warp::service(own.unify());
        open.spawn(door(listener, None).stand_open(service));
    }

    let mut stop = std::pin::pin!(stop);
    let mut ready = Some(ready);
    loop {
        tokio::select! {
            Ok(_) = is_ready.wait_for(|readiness| *readiness == Readiness::Ready), if ready.is_some() => {
                if let Some(ready) = ready.take() {
                    ready();
                }
            }
            () = &mut stop => break,
        }
    }
    closing.cancel();
    while open.join_next().await.is_some() {}
    tracing::info!(connections = tasks.len(), "stopping");
    if let Some(canary) = canary {
        canary.abort();
    }
    // what was read is told, also what a throttle holds back; then everybody is told to go
    reading.abort();
    let farewell = async {
        let _ = reading.await;
        let _ = throttling.await;
        let (told, all_told) = oneshot::channel();
        if rooms_know.send(Command::Drain { told }).await.is_ok() {
            let _ = all_told.await;
        }
        stopping.cancel();
        tasks.close();
        tasks.wait().await;
    };
    if tokio::time::timeout(STOP_WITHIN, farewell).await.is_err() {
        stopping.cancel();
        tracing::warn!(
            connections = tasks.len(),
            "left behind: they did not end in time"
        );
    }
    rooms.abort();
    tracing::info!("stopped");
    Ok(())
}

/// A listener, and who comes in by it.
struct Door {
    listener: TcpListener,
    identity: Option<Arc<Identity>>,
    requests: Arc<Semaphore>,
    addresses: Arc<Places<IpAddr>>,
    trusted: Arc<Trusted>,
    tasks: TaskTracker,
    closing: CancellationToken,
    stopping: CancellationToken,
}

impl Door {
    /// Lets in who comes, until it is closed.
    async fn stand_open<S: Service>(self, service: S) {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = self.closing.cancelled() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // such as no file descriptor left: those who are here stay, new ones wait a little
                    tracing::error!(%error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // when all come at once, after a restart, those behind wait in the system's queue
            let request = self.requests.clone().acquire_owned();
            let request = tokio::select! {
                request = tokio::time::timeout(PLACE_WITHIN, request) => request,
                () = self.closing.cancelled() => return,
            };
            let Ok(Ok(request)) = request else {
                tracing::warn!(%peer, at_most = REQUESTS, "dropped: too many requests at once");
                continue;
            };
            let whose = network(peer.ip());
            let place = match self.trusted.has(peer.ip()) {
                true => None,
                false => match self.addresses.take(&whose) {
                    Some(place) => Some(place),
                    None => {
                        tracing::warn!(%peer, at_most = REQUESTS_OF_AN_ADDRESS, "dropped: too many requests of one address at once");
                        continue;
                    }
                },
            };
            let identity = self.identity.clone();
            let (service, stopping) = (service.clone(), self.stopping.clone());
            self.tasks.spawn(async move {
                tune(&stream, peer);
                match identity {
                    None => answer(stream, peer, service, stopping).await,
                    Some(identity) => {
                        let handshake = TlsAcceptor::from(identity.config()).accept(stream);
                        match tokio::time::timeout(HEADERS_WITHIN, handshake).await {
                            Ok(Ok(stream)) => answer(stream, peer, service, stopping).await,
                            Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
                            Err(_) => tracing::debug!(%peer, "no TLS handshake in time"),
                        }
                    }
                }
                drop((request, place));
            });
        }
    }
}

/// What answers requests.
trait Service:
    tower_service::Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send>
    + Clone
    + Send
    + 'static
{
}

impl<S> Service for S where
    S: tower_service::Service<
            Request<Incoming>,
            Response = Response,
            Error = Infallible,
            Future: Send,
        > + Clone
        + Send
        + 'static
{
}

fn tune(stream: &TcpStream, peer: SocketAddr) {
    let socket = socket2::SockRef::from(stream);
    let tuned = stream.set_nodelay(true).and_then(|()| {
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(PEER_TIMEOUT))?;
        socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(PEER_TIMEOUT))
    });
    if let Err(error) = tuned {
        tracing::debug!(%peer, %error, "could not tune the socket");
    }
}

/// Answers the requests of one socket; an upgrade takes the socket along.
async fn answer<S: Service>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    service: S,
    stopping: CancellationToken,
) {
    let serving = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        let has_body = !request.body().is_end_stream();
        let answer = service.clone().call(request);
        async move {
            let answer = tokio::time::timeout(ANSWER_WITHIN, answer).await;
            answer.unwrap_or_else(|_| Ok(late(has_body)))
        }
    });
    let mut connection = std::pin::pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS_WITHIN)
            .serve_connection(TokioIo::new(stream), serving)
            .with_upgrades()
    );
    let served = tokio::select! {
        served = &mut connection => served,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "a request ended badly");
    }
}

/// The answer to a request that has waited for long enough.
fn late(has_body: bool) -> Response {
    let seconds = ANSWER_WITHIN.as_secs();
    if has_body {
        let why = format!("the request and its answer took more than {seconds} s");
        return plain_reply(StatusCode::REQUEST_TIMEOUT, &why);
    }
    not_now(&format!("no answer within {seconds} s"))
}

/// What a request needs to become a connection: a task and a place, one of all and one of its address.
struct Upgrades {
    tasks: TaskTracker,
    places: Arc<Semaphore>,
    addresses: Arc<Places<IpAddr>>,
    trusted: Arc<Trusted>,
}

/// What operators are told by.
struct Status {
    readiness: watch::Receiver<Readiness>,
    /// What is wrong with the canary, if anything is.
    silence: watch::Receiver<Option<String>>,
    cursor: watch::Receiver<Arc<str>>,
    registry: watch::Receiver<Arc<Registry>>,
    database: String,
    places: Arc<Semaphore>,
    most: usize,
    token: Option<Secret>,
    metrics: Metrics,
    rooms: mpsc::Sender<Command>,
    gate: Option<Gate>,
    inquiries: Inquiries,
    /// Where operators come.
    admin: Option<SocketAddr>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl Status {
    /// Whether these are an operator's headers.
    fn is_operator(&self, headers: &HeaderMap) -> bool {
        let (Some(token), (Some(given), _)) = (&self.token, offered(headers)) else {
            return false;
        };
        token.0.ct_eq(given.as_bytes()).into()
    }

    fn connections(&self) -> usize {
        self.most - self.places.available_permits()
    }

    async fn metrics(&self) -> Response {
        // where the rooms are too busy to answer, what is counted is told still
        if let Some(survey) = Survey::of(&self.rooms, 0).await {
            self.metrics.survey(&survey);
        }
        let is_ready = *self.readiness.borrow() == Readiness::Ready;
        self.metrics.ready.set(is_ready.into());
        self.metrics.connections.set(self.connections() as i64);
        let mut reply = self.metrics.text().into_response();
        let of = header::HeaderValue::from_static(metrics::CONTENT_TYPE);
        reply.headers_mut().insert(header::CONTENT_TYPE, of);
        reply
    }

    fn readiness(&self, with_details: bool) -> Response {
        let unready = match &*self.readiness.borrow() {
            Readiness::Ready => self.silence.borrow().clone(),
            Readiness::Unready { details, .. } if with_details => Some(details.clone()),
            Readiness::Unready { reason, .. } => Some((*reason).to_owned()),
        };
        let (status, mut body) = match unready {
            None => (StatusCode::OK, json!({"status": "ready"})),
            Some(reason) => (
                StatusCode::SERVICE_UNAVAILABLE,
                json!({"status": "unready", "reason": reason}),
            ),
        };
        if with_details {
            body["database"] = self.database.as_str().into();
            body["cursor"] = (**self.cursor.borrow()).into();
            body["connections"] = self.connections().into();
            let registry = self.registry.borrow();
            let mut modules: Vec<&str> = registry.modules().map(|module| &*module.name).collect();
            modules.sort_unstable();
            body["modules"] = modules.into();
        }
        json_reply(status, &body)
    }
}

/// Whether it lives, and whether it is ready; for operators with details and metrics.
fn health(status: Arc<Status>, is_admin: bool) -> Routes {
    let read = || warp::get().or(warp::head()).unify();
    let healthz = warp::path!("healthz")
        .and(read())
        .map(|| json_reply(StatusCode::OK, &json!({"status": "alive"})));
    let known = status.clone();
    let readyz = warp::path!("readyz")
        .and(read())
        .and(warp::header::headers_cloned())
        .map(move |headers: HeaderMap| known.readiness(is_admin || known.is_operator(&headers)));
    let metrics = warp::path!("metrics")
        .and(read())
        .and(warp::header::headers_cloned())
        .then(move |headers: HeaderMap| {
            let status = status.clone();
            async move {
                if !is_admin && !status.is_operator(&headers) {
                    return for_operators();
                }
                status.metrics().await
            }
        });
    healthz.or(readyz).unify().or(metrics).unify().boxed()
}

/// The way to become a connection.
fn ws(config: &Config, shared: Arc<Shared>, upgrades: Upgrades) -> Routes {
    let members = Arc::new(AtomicU64::new(0));
    let is_open = shared.gate.is_none();
    let refused = shared.metrics.handshakes_refused.clone();
    let origins = Arc::new(config.allowed_origins.clone());
    let deflates = config.deflate;
    let upgrades = Arc::new(upgrades);
    let ws = warp::path!("ws")
        .and(warp::get())
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<OnUpgrade>())
        .and(warp::ext::get::<Peer>())
        .map(
            move |headers: HeaderMap, upgrade: Option<OnUpgrade>, Peer(peer): Peer| match handshake(
                &headers, &origins, is_open,
            ) {
                Ok(accept) => {
                    let Some(upgrade) = upgrade else {
                        return plain_reply(
                            StatusCode::BAD_REQUEST,
                            "this HTTP connection cannot be upgraded; use HTTP/1.1",
                        );
                    };
                    // nothing is known of tables and history yet, so nothing true could be told
                    if shared.cursor.borrow().is_empty() {
                        return not_now("not ready yet: Postgres is still to be reached");
                    }
                    let Ok(place) = upgrades.places.clone().try_acquire_owned() else {
                        tracing::warn!(%peer, "refused: no place left, see RELAY_MAX_CONNECTIONS");
                        return not_now("no place left for another connection");
                    };
                    let client = upgrades.trusted.client(peer.ip(), &headers);
                    let Some(of_address) = upgrades.addresses.take(&network(client)) else {
                        tracing::warn!(%client, "refused: too many connections of one address, see RELAY_MAX_CONNECTIONS_PER_ADDRESS");
                        let mut reply = not_now("too many connections of your address");
                        *reply.status_mut() = StatusCode::TOO_MANY_REQUESTS;
                        return reply;
                    };
                    let member = members.fetch_add(1, Ordering::Relaxed);
                    let (token, subprotocol) = offered(&headers);
                    let extension = extension(&headers).filter(|_| deflates);
                    let arrived = Arrived {
                        peer: client,
                        member,
                        token,
                        compresses: extension.is_some(),
                    };
                    let serving = upgraded(upgrade, shared.clone(), arrived);
                    upgrades.tasks.spawn(async move {
                        serving.await;
                        drop((place, of_address));
                    });
                    switching(&accept, subprotocol, extension)
                }
                Err((status, why)) => {
                    tracing::info!(%peer, %status, why, "handshake refused");
                    let mut reply = plain_reply(status, &why);
                    if status == StatusCode::UPGRADE_REQUIRED {
                        reply.headers_mut().insert(
                            "sec-websocket-version",
                            header::HeaderValue::from_static("13"),
                        );
                        reply.headers_mut().insert(
                            header::UPGRADE,
                            header::HeaderValue::from_static("websocket"),
                        );
                    }
                    reply
                }
            },
        )
        .map(move |reply: Response| {
            if reply.status() != StatusCode::SWITCHING_PROTOCOLS {
                let status = reply.status().as_u16().to_string();
                refused.of([status.into()]).inc();
            }
            reply
        });
    ws.boxed()
}

/// Takes the socket back from hyper and serves it. Boxed, so that the handshake's state is gone by then.
fn upgraded(upgrade: OnUpgrade, shared: Arc<Shared>, arrived: Arrived) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        if let Some((socket, early)) = Box::pin(take_back(upgrade, arrived.peer)).await {
            Connection::new(shared, socket, arrived).run(early).await;
        }
    })
}

/// The socket, and what came right behind the handshake.
async fn take_back(upgrade: OnUpgrade, peer: IpAddr) -> Option<(Socket, Bytes)> {
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            tracing::debug!(%peer, %error, "gone before the handshake was done");
            return None;
        }
    };
    match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(Parts { io, read_buf, .. }) => Some((Socket::from(io.into_inner()), read_buf)),
        Err(upgraded) => match upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>() {
            Ok(Parts { io, read_buf, .. }) => {
                let (stream, session) = io.into_inner().into_inner();
                Some((Socket::secure(stream, session), read_buf))
            }
            Err(_) => {
                tracing::error!(%peer, "the upgraded connection is no TCP socket");
                None
            }
        },
    }
}

/// The answer to somebody who is no operator.
fn for_operators() -> Response {
    let mut reply = plain_reply(
        StatusCode::UNAUTHORIZED,
        "for operators: on RELAY_ADMIN_LISTEN, or with RELAY_ADMIN_TOKEN as Authorization: Bearer",
    );
    let scheme = header::HeaderValue::from_static("Bearer");
    reply.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
    reply
}

/// The answer to a handshake that may be tried again.
fn not_now(why: &str) -> Response {
    let mut reply = plain_reply(StatusCode::SERVICE_UNAVAILABLE, why);
    let headers = reply.headers_mut();
    headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("5"));
    reply
}

fn json_reply(status: StatusCode, body: &serde_json::Value) -> Response {
    warp::reply::with_status(warp::reply::json(body), status).into_response()
}

fn plain_reply(status: StatusCode, body: &str) -> Response {
    warp::reply::with_status(format!("{body}\n"), status).into_response()
}
