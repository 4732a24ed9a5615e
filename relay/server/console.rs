//! The console: a page for operators, and what it shows.
//!
//! The page itself holds nothing and is given to anybody; on the clients' address it asks for the admin
//! token, by which everything else is answered. `GET /console/feed` tells line after line what passes
//! ([`crate::feed`]) and once a second how the relay is, as server-sent events, to be read by `fetch`: a
//! token has no place in a URL. `GET /console/verify` tells what the trigger check finds.
//!
//! Changes are told by ids and names of columns. Values are told to who also brings the token of a CRM user
//! whom the policy calls `system_admin`, as long as it does and the token is good.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use futures::stream::poll_fn;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use warp::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use warp::reply::Response;
use warp::sse::Event;
use warp::{Filter as _, Reply};

use super::{Routes, Status, for_operators, is_loopback, json_reply, plain_reply};
use crate::event::UNTOLD;
use crate::feed::{Filter, SHOWN_A_SECOND, Seen, Tally, Viewer, WAITING};
use crate::gate::Admitted;
use crate::reader::Readiness;
use crate::rooms::{Command, Survey};

/// Where the token of a CRM user comes.
const USER_TOKEN: &str = "crm-authorization";

/// Lines that wait for one console; with more the feed waits, and then is sampled.
const LINES: usize = 16;

/// How often it is asked whether values may still be told.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// How often rooms and connections are named, in seconds.
const NAME_EVERY: u64 = 3;

/// How many of each.
const NAMED: usize = 50;

/// Nothing but the page's own files; nobody may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const FILES: [(&str, &str, &str); 3] = [
    ("", "text/html", include_str!("../web/console/index.html")),
    (
        "console.css",
        "text/css",
        include_str!("../web/console/console.css"),
    ),
    (
        "console.js",
        "text/javascript",
        include_str!("../web/console/console.js"),
    ),
];

/// Says in the page that it asks for the token.
const LOGIN: &str = " data-login";

/// The routes of the console at one of the relay's doors.
pub(super) fn routes(status: Arc<Status>, is_admin: bool) -> Routes {
    let door = Arc::new(Door { status, is_admin });
    let known = door.clone();
    let files = warp::path("console")
        .and(
            warp::path::end()
                .map(String::new)
                .or(warp::path!(String))
                .unify(),
        )
        .and(warp::get().or(warp::head()).unify())
        .and_then(move |name: String| {
            let file = known.file(&name).ok_or_else(warp::reject::not_found);
            async move { file }
        });
    let known = door.clone();
    let feed = warp::path!("console" / "feed")
        .and(warp::get())
        .and(warp::query())
        .and(warp::header::headers_cloned())
        .then(move |filter, headers| {
            let door = known.clone();
            async move {
                match door.refusal(&headers) {
                    Some(refusal) => refusal,
                    None => door.feed(filter, &headers).await,
                }
            }
        });
    let verify = warp::path!("console" / "verify")
        .and(warp::get())
        .and(warp::header::headers_cloned())
        .then(move |headers: HeaderMap| {
            let door = door.clone();
            async move {
                match door.refusal(&headers) {
                    Some(refusal) => refusal,
                    None => door.verify().await,
                }
            }
        });
    feed.or(verify).unify().or(files).unify().boxed()
}

/// Where an operator comes in.
struct Door {
    status: Arc<Status>,
    is_admin: bool,
}

impl Door {
    fn file(&self, name: &str) -> Option<Response> {
        // where there is no token, nobody could log in
        if !self.is_admin && self.status.token.is_none() {
            return None;
        }
        let (_, kind, text) = FILES.iter().find(|(known, ..)| *known == name)?;
        // behind the operators' own door nobody logs in
        let text = match self.is_admin {
            true => text.replacen(LOGIN, "", 1),
            false => (*text).to_owned(),
        };
        let mut reply = text.into_response();
        let kind = format!("{kind}; charset=utf-8");
        for (name, value) in [
            (header::CONTENT_TYPE, kind.as_str()),
            (header::CACHE_CONTROL, "no-cache"),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
        ] {
            set(&mut reply, name, value);
        }
        Some(reply)
    }

    /// What those are answered who are no operators.
    fn refusal(&self, headers: &HeaderMap) -> Option<Response> {
        if !self.is_admin {
            return (!self.status.is_operator(headers)).then(for_operators);
        }
        // without a token the loopback address is the only guard: a page of a foreign name that resolves to
        // it (DNS rebinding) sends that name
        let host = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        let is_loopback_address = self.status.admin.is_some_and(is_loopback_address);
        if is_loopback_address && !is_loopback(host.unwrap_or_default()) {
            let why = "Host must be a loopback name, as RELAY_ADMIN_LISTEN is a loopback address";
            return Some(plain_reply(StatusCode::FORBIDDEN, why));
        }
        None
    }

    async fn feed(&self, filter: Filter, headers: &HeaderMap) -> Response {
        // a field that is left empty asks for everything
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let filter = Filter {
            module: given(filter.module),
            room: given(filter.room),
            user: given(filter.user),
        };
        let (admitted, why) = match self.who(headers).await {
            Ok(admitted) => (admitted, None),
            Err(why) => (None, Some(why)),
        };
        let user = admitted.as_ref().map(|admitted| &*admitted.bearer.who.user);
        tracing::info!(values = user.is_some(), user, "an operator watches");
        let begin = json!({
            "values": user.is_some(),
            "why": why,
            "shownASecond": SHOWN_A_SECOND,
            "version": env!("CARGO_PKG_VERSION"),
            "database": self.status.database,
        });
        let (to, lines) = mpsc::channel(LINES);
        let watching = Watching {
            status: self.status.clone(),
            tally: Arc::default(),
            told: Told::default(),
            admitted,
            lines: to,
        };
        let stopping = self.status.stopping.clone();
        self.status.tasks.spawn(async move {
            tokio::select! {
                _ = watching.run(filter, begin) => {}
                () = stopping.cancelled() => {}
            }
        });
        let mut lines = lines;
        let lines = poll_fn(move |context| {
            lines
                .poll_recv(context)
                .map(|line| line.map(Ok::<_, Infallible>))
        });
        let mut reply = warp::sse::reply(lines).into_response();
        set(&mut reply, header::CACHE_CONTROL, "no-store");
        // nginx would keep lines back
        set(
            &mut reply,
            HeaderName::from_static("x-accel-buffering"),
            "no",
        );
        reply
    }

    /// Whose token lets this operator see values, if they brought one; why they do not, if it does not.
    async fn who(&self, headers: &HeaderMap) -> Result<Option<Admitted>, String> {
        let Some(given) = headers.get(USER_TOKEN) else {
            return Ok(None);
        };
        let Some(gate) = &self.status.gate else {
            return Err(
                "without authentication there is no token that lets one see values".to_owned(),
            );
        };
        let token = given
            .to_str()
            .ok()
            .and_then(|text| text.strip_prefix("Bearer "));
        let admitted = gate.admit(token.map(str::trim)).await;
        let admitted = admitted.map_err(|refused| refused.to_string())?;
        match gate.policy().is_admin(&admitted.bearer.who).await {
            Ok(true) => Ok(Some(admitted)),
            Ok(false) => Err("the token's user is no system_admin".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn verify(&self) -> Response {
        let found = self
            .status
            .inquiries
            .ask(async |journal| journal.verify().await);
        match found.await {
            Ok(rows) => {
                let rows: Vec<_> = rows.into_iter().map(RawValue::from_string).collect();
                let rows: Vec<_> = rows.into_iter().flatten().collect();
                let mut reply = warp::reply::json(&json!({"rows": rows})).into_response();
                set(&mut reply, header::CACHE_CONTROL, "no-store");
                reply
            }
            Err(error) => {
                let told = json!({"error": error.to_string()});
                json_reply(StatusCode::SERVICE_UNAVAILABLE, &told)
            }
        }
    }
}

/// One console that is open.
struct Watching {
    status: Arc<Status>,
    tally: Arc<Tally>,
    told: Told,
    /// Whose token lets them see values.
    admitted: Option<Admitted>,
    lines: mpsc::Sender<Event>,
}

/// What of the tally was told already.
#[derive(Default)]
struct Told {
    passed: u64,
    shown: u64,
    missed: u64,
    changes: u64,
    deliveries: u64,
    lag: u64,
}

impl Watching {
    /// Tells until nobody listens; None then.
    async fn run(mut self, filter: Filter, begin: Value) -> Option<Infallible> {
        let (to, mut seen) = mpsc::channel(WAITING);
        let bearer = self
            .admitted
            .as_ref()
            .map(|admitted| admitted.bearer.clone());
        let viewer = Viewer::new(filter, bearer, to, self.tally.clone());
        self.status.rooms.send(Command::Watch(viewer)).await.ok()?;
        self.say("begin", begin).await?;
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked = Instant::now();
        for number in 0.. {
            // until the second is over
            loop {
                tokio::select! {
                    one = seen.recv() => match one {
                        Some(one) => self.show(one).await?,
                        None => {
                            // there was no place
                            self.say("end", json!({"why": "too many consoles are open"})).await?;
                            return None;
                        }
                    },
                    _ = second.tick() => break,
                    () = self.lines.closed() => return None,
                }
            }
            if self.admitted.is_some() && asked.elapsed() >= ASK_AGAIN {
                asked = Instant::now();
                self.ask_again().await;
            }
            let named = if number % NAME_EVERY == 0 { NAMED } else { 0 };
            let survey = Survey::of(&self.status.rooms, named).await;
            let second = self.second(survey, named > 0);
            self.say("second", second).await?;
        }
        None
    }

    async fn say(&self, name: &'static str, data: Value) -> Option<()> {
        let line = Event::default().event(name).data(data.to_string());
        self.lines.send(line).await.ok()
    }

    async fn show(&self, seen: Seen) -> Option<()> {
        let is_good = (self.admitted.as_ref())
            .is_some_and(|admitted| admitted.expires_at > SystemTime::now());
        let frame = if seen.values && is_good {
            RawValue::from_string(seen.frame).ok()
        } else {
            without_values(&seen.frame)
        };
        // what is no JSON is none of ours
        let Some(frame) = frame else {
            return Some(());
        };
        let text = format!(
            "{{\"receivers\":{},\"lagMs\":{:.1},\"frame\":{frame}}}",
            seen.receivers,
            seen.lag.as_secs_f64() * 1000.0,
        );
        let line = Event::default().event("change").data(text);
        self.lines.send(line).await.ok()
    }

    /// Whether values may still be told: a role can be taken away, and a token ends.
    async fn ask_again(&mut self) {
        let (Some(admitted), Some(gate)) = (&self.admitted, &self.status.gate) else {
            return;
        };
        let asked = gate.policy().is_admin(&admitted.bearer.who);
        let is_still = timeout(ASK_AGAIN, asked).await;
        if admitted.expires_at <= SystemTime::now() || !matches!(is_still, Ok(Ok(true))) {
            self.admitted = None;
        }
    }

    /// How the last second was, and how everything is.
    fn second(&mut self, survey: Option<Survey>, with_names: bool) -> Value {
        let tally = &self.tally;
        let since = |counter: &std::sync::atomic::AtomicU64, told: &mut u64| {
            let now = counter.load(Ordering::Relaxed);
            now - std::mem::replace(told, now)
        };
        let changes = since(&tally.changes, &mut self.told.changes);
        let lag = since(&tally.lag, &mut self.told.lag);
        let slowest = tally.slowest.swap(0, Ordering::Relaxed);
        let status = &self.status;
        let mut told = json!({
            "passed": since(&tally.passed, &mut self.told.passed),
            "shown": since(&tally.shown, &mut self.told.shown),
            "missed": since(&tally.missed, &mut self.told.missed),
            "changes": changes,
            "deliveries": since(&tally.deliveries, &mut self.told.deliveries),
            "lagMs": (changes > 0).then(|| lag as f64 / changes as f64 / 1000.0),
            "slowestMs": (changes > 0).then_some(slowest as f64 / 1000.0),
            "values": self.admitted.is_some() && !tally.is_blind.load(Ordering::Relaxed),
            "connections": status.connections(),
            "unready": match &*status.readiness.borrow() {
                Readiness::Ready => None,
                Readiness::Unready { details, .. } => Some(details.clone()),
            },
        });
        let Some(survey) = survey else {
            return told;
        };
        told["rooms"] = survey.rooms.into();
        told["subscriptions"] = survey.subscriptions.into();
        told["queueBytes"] = survey.queue_bytes.into();
        told["longestQueueBytes"] = survey.longest_queue_bytes.into();
        told["unjudged"] = survey.unjudged.into();
        if with_names {
            let crowded = survey.crowded.iter();
            let crowded =
                crowded.map(|(room, members)| json!({"room": &**room, "members": members}));
            told["crowded"] = crowded.collect();
            let present = survey.present.iter().map(|one| {
                json!({
                    "connection": one.session,
                    "user": one.user,
                    "rooms": one.rooms,
                    "queueBytes": one.queue_bytes,
                })
            });
            told["present"] = present.collect();
        }
        told
    }
}

/// A frame with the names of columns alone; None if it is no frame.
fn without_values(frame: &str) -> Option<Box<RawValue>> {
    let mut frame: Value = serde_json::from_str(frame).ok()?;
    let untold: Value = serde_json::from_str(UNTOLD).ok()?;
    for images in ["data", "previous"] {
        let Some(image) = frame.get_mut(images) else {
            continue;
        };
        match image.as_object_mut() {
            Some(columns) => columns
                .values_mut()
                .for_each(|value| *value = untold.clone()),
            None => *image = untold.clone(),
        }
    }
    serde_json::value::to_raw_value(&frame).ok()
}

fn is_loopback_address(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

fn set(reply: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        reply.headers_mut().insert(name, value);
    }
}
