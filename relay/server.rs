//! The relay's HTTP side: the accept loop, the routes, the way from a request to a connection.
//!
//! warp answers every route. The loop around it is ours, because `TCP_NODELAY`, the time a client may
//! take for its headers, the bound on connections and an orderly stop belong to the socket. After the
//! handshake the raw socket is taken back from hyper: warp's own WebSocket keeps about 136 KiB of
//! buffers for each connection.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use futures::future::BoxFuture;
use hyper::Request;
use hyper::body::{Body, Incoming};
use hyper::upgrade::{OnUpgrade, Parts};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use sha1::{Digest, Sha1};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use warp::http::{HeaderMap, StatusCode, header};
use warp::reply::Response;
use warp::{Filter, Reply};

use crate::config::Config;
use crate::connection::{Connection, Shared};
use crate::history::History;
use crate::reader::{Reader, Readiness, Told};
use crate::registry::Registry;
use crate::rooms::{Bounds, Command, Rooms};
use crate::throttle::Throttle;
use crate::web;

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

/// Commands that may wait for the task that owns the rooms.
const COMMANDS: usize = 1024;

/// How long a peer may leave what we sent unacknowledged.
const PEER_TIMEOUT: Duration = Duration::from_secs(60);

/// Routes beside the relay's own.
pub type Routes = warp::filters::BoxedFilter<(Response,)>;

/// Where a request came from.
#[derive(Debug, Clone, Copy)]
struct Peer(SocketAddr);

/// Serves until `stop` is done, then says goodbye to every connection. `ready` is called once, when
/// the journal is read for the first time.
pub async fn serve(
    config: Config,
    listener: TcpListener,
    more: Option<Routes>,
    ready: impl FnOnce(),
    stop: impl Future<Output = ()>,
) -> std::io::Result<()> {
    let (commands, obeyed) = mpsc::channel(COMMANDS);
    let (cursor, reached) = watch::channel(Arc::from(""));
    let (readiness, mut is_ready) = watch::channel(Readiness::Unready(
        "not connected to Postgres yet".to_owned(),
    ));
    let (registry, watched) = watch::channel(Arc::new(Registry::default()));
    let stopping = CancellationToken::new();
    let tasks = TaskTracker::new();

    let bounds = Bounds {
        recent_bytes: config.recent_bytes,
        flood_changes: config.flood_changes,
    };
    let rooms = tokio::spawn(Rooms::new(cursor, bounds).run(obeyed));
    let (news, throttled) = mpsc::channel(COMMANDS);
    let throttle = Throttle::new(config.throttle);
    let throttling = tokio::spawn(throttle.run(throttled, commands.clone()));
    let reader = Reader::new(
        config.database.clone(),
        news,
        Told {
            readiness,
            registry,
            cursor: reached.clone(),
        },
    );
    let reading = tokio::spawn(reader.run());

    let rooms_know = commands.clone();
    let shared = Shared {
        rooms: commands,
        cursor: reached,
        history: Arc::new(History::new(config.database.clone(), watched.clone())),
        registry: watched,
        heartbeat: config.heartbeat,
        queue_bytes: config.queue_bytes,
        stopping: stopping.clone(),
    };
    let upgrades = Upgrades {
        tasks: tasks.clone(),
        places: Arc::new(Semaphore::new(config.max_connections)),
    };
    let own = routes(&config, shared, is_ready.clone(), upgrades);
    let service = match more {
        Some(more) => warp::service(own.or(more).unify().boxed()),
        None => warp::service(own),
    };

    let mut stop = std::pin::pin!(stop);
    let mut ready = Some(ready);
    let requests = Arc::new(Semaphore::new(REQUESTS));
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => match requests.clone().try_acquire_owned() {
                    Ok(request) => {
                        let answering = answer(stream, peer, service.clone(), stopping.clone());
                        tasks.spawn(async move {
                            answering.await;
                            drop(request);
                        });
                    }
                    Err(_) => tracing::warn!(%peer, at_most = REQUESTS, "dropped: too many requests at once"),
                },
                Err(error) => {
                    // such as no file descriptor left: those who are here stay, new ones wait a little
                    tracing::error!(%error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Ok(_) = is_ready.wait_for(|readiness| *readiness == Readiness::Ready), if ready.is_some() => {
                if let Some(ready) = ready.take() {
                    ready();
                }
            }
            () = &mut stop => break,
        }
    }
    drop(listener);
    tracing::info!(connections = tasks.len(), "stopping");
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

/// Answers the requests of one socket; an upgrade takes the socket along.
async fn answer<S>(stream: TcpStream, peer: SocketAddr, service: S, stopping: CancellationToken)
where
    S: tower_service::Service<Request<Incoming>, Response = Response, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let socket = socket2::SockRef::from(&stream);
    let tuned = stream.set_nodelay(true).and_then(|()| {
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(PEER_TIMEOUT))?;
        socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(PEER_TIMEOUT))
    });
    if let Err(error) = tuned {
        tracing::debug!(%peer, %error, "could not tune the socket");
    }
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

/// What a request needs to become a connection: a task and a place.
struct Upgrades {
    tasks: TaskTracker,
    places: Arc<Semaphore>,
}

/// The relay's own routes.
fn routes(
    config: &Config,
    shared: Shared,
    readiness: watch::Receiver<Readiness>,
    upgrades: Upgrades,
) -> Routes {
    let read = || warp::get().or(warp::head()).unify();
    let healthz = warp::path!("healthz")
        .and(read())
        .map(|| json_reply(StatusCode::OK, &json!({"status": "alive"})));
    let readyz = warp::path!("readyz")
        .and(read())
        .map(move || match &*readiness.borrow() {
            Readiness::Ready => json_reply(StatusCode::OK, &json!({"status": "ready"})),
            Readiness::Unready(reason) => json_reply(
                StatusCode::SERVICE_UNAVAILABLE,
                &json!({"status": "unready", "reason": reason}),
            ),
        });
    let members = Arc::new(AtomicU64::new(0));
    let origins = Arc::new(config.allowed_origins.clone());
    let upgrades = Arc::new(upgrades);
    let ws = warp::path!("ws")
        .and(warp::get())
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<OnUpgrade>())
        .and(warp::ext::get::<Peer>())
        .map(
            move |headers: HeaderMap, upgrade: Option<OnUpgrade>, Peer(peer): Peer| match handshake(
                &headers, &origins,
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
                    let member = members.fetch_add(1, Ordering::Relaxed);
                    let serving = upgraded(upgrade, shared.clone(), peer, member);
                    upgrades.tasks.spawn(async move {
                        serving.await;
                        drop(place);
                    });
                    switching(&accept)
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
        );
    (healthz.or(readyz).unify())
        .or(ws)
        .unify()
        .or(web::routes())
        .unify()
        .boxed()
}

/// Takes the socket back from hyper and serves it. Boxed, so that the handshake's state is gone by then.
fn upgraded(
    upgrade: OnUpgrade,
    shared: Shared,
    peer: SocketAddr,
    member: u64,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let parts = match upgrade
            .await
            .map(|upgraded| upgraded.downcast::<TokioIo<TcpStream>>())
        {
            Ok(Ok(parts)) => parts,
            Ok(Err(_)) => return tracing::error!(%peer, "the upgraded connection is no TCP socket"),
            Err(error) => {
                return tracing::debug!(%peer, %error, "gone before the handshake was done");
            }
        };
        let Parts { io, read_buf, .. } = parts;
        Connection::new(shared, io.into_inner(), peer, member)
            .run(read_buf)
            .await;
    })
}

/// Checks a WebSocket handshake (RFC 6455, section 4.2.1) and where it comes from; returns the value
/// of `Sec-WebSocket-Accept`.
fn handshake(headers: &HeaderMap, origins: &[String]) -> Result<String, (StatusCode, String)> {
    let get = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let has = |name: &str, token: &str| {
        let values = headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok());
        values
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(token))
    };
    let host = get("host").unwrap_or_default();
    // without tokens the loopback address is the only guard: a page of a foreign name that resolves
    // to it (DNS rebinding) sends that name
    if !is_loopback(host) {
        return Err((
            StatusCode::FORBIDDEN,
            format!("Host is \"{host}\"; without authentication it must be a loopback name"),
        ));
    }
    if let Some(origin) = get("origin") {
        let authority = origin
            .split_once("://")
            .map_or("", |(_, authority)| authority);
        let same = !authority.is_empty() && authority.eq_ignore_ascii_case(host);
        if !same
            && !origins
                .iter()
                .any(|allowed| allowed.eq_ignore_ascii_case(origin))
        {
            return Err((
                StatusCode::FORBIDDEN,
                format!(
                    "origin \"{origin}\" is not allowed; RELAY_ALLOWED_ORIGINS lists those that are"
                ),
            ));
        }
    } else if headers.contains_key("origin") {
        return Err((StatusCode::FORBIDDEN, "the origin is unreadable".to_owned()));
    }
    if !has("upgrade", "websocket") || !has("connection", "upgrade") {
        return Err((
            StatusCode::UPGRADE_REQUIRED,
            "this is a WebSocket: connect with Upgrade: websocket".to_owned(),
        ));
    }
    if get("sec-websocket-version") != Some("13") {
        return Err((
            StatusCode::UPGRADE_REQUIRED,
            "Sec-WebSocket-Version must be 13".to_owned(),
        ));
    }
    let base64 = &base64::engine::general_purpose::STANDARD;
    let key = get("sec-websocket-key").unwrap_or_default().trim();
    if base64.decode(key).map_or(0, |nonce| nonce.len()) != 16 {
        return Err((
            StatusCode::BAD_REQUEST,
            "Sec-WebSocket-Key must be 16 bytes in base64".to_owned(),
        ));
    }
    let digest = Sha1::new()
        .chain_update(key)
        .chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11")
        .finalize();
    Ok(base64.encode(digest))
}

/// Whether a `Host` header names a loopback address.
pub fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn switching(accept: &str) -> Response {
    let mut reply = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = reply.headers_mut();
    headers.insert(
        header::UPGRADE,
        header::HeaderValue::from_static("websocket"),
    );
    headers.insert(
        header::CONNECTION,
        header::HeaderValue::from_static("Upgrade"),
    );
    if let Ok(accept) = header::HeaderValue::from_str(accept) {
        headers.insert("sec-websocket-accept", accept);
    }
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
