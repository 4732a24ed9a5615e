// The console: what passes and how the relay is, read from `/console/feed` by fetch, so that a token goes in a
// header and never in a URL. Tokens are kept for this tab alone, in sessionStorage.

/** Seconds that the graphs show. */
const SECONDS = 300;
/** Most changes that the page holds. */
const ROWS = 250;
/** Waits between two attempts to reach the relay, in ms. */
const AGAIN = [500, 1000, 2000, 4000, 8000];

/**
 * @typedef {{
 *   passed: number, shown: number, missed: number, changes: number, deliveries: number,
 *   lagMs: number | null, slowestMs: number | null, values: boolean, connections: number, unready: string | null,
 *   rooms?: number, subscriptions?: number, queueBytes?: number, longestQueueBytes?: number, unjudged?: number,
 *   crowded?: {room: string, members: number}[],
 *   present?: {connection: string, user: string | null, rooms: number, queueBytes: number}[],
 * }} Second
 * @typedef {{receivers: number, lagMs: number, frame: Record<string, any>}} Change
 */

/** @type {(id: string) => any} */
const by = (id) => document.getElementById(id);
const store = {
  /** @param {string} name */
  get: (name) => sessionStorage.getItem(`crm-relay.${name}`) ?? "",
  /** @param {string} name @param {string} value */
  set: (name, value) => (value ? sessionStorage.setItem(`crm-relay.${name}`, value) : sessionStorage.removeItem(`crm-relay.${name}`)),
};
const asksForToken = document.documentElement.hasAttribute("data-login");

/** An element with these properties and children. @param {string} name @param {Record<string, any>} [is] @param {...(Node | string)} children */
function element(name, is = {}, ...children) {
  const made = Object.assign(document.createElement(name), is);
  made.append(...children);
  return made;
}

// ---------------------------------------------------------------------------------------------- numbers

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
/** @param {number} count */
const number = (count) => whole.format(count);
/** @param {number} size */
function bytes(size) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let at = 0;
  for (; size >= 1024 && at < units.length - 1; at++) size /= 1024;
  return `${at && size < 10 ? size.toFixed(1) : whole.format(size)} ${units[at]}`;
}
/** @param {number} ms */
const time = (ms) => (ms < 10 ? `${ms.toFixed(1)} ms` : ms < 10_000 ? `${whole.format(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

// ---------------------------------------------------------------------------------------------- graphs

/**
 * A graph of two numbers over the last minutes; where there was none the line is cut.
 * @param {string} title @param {[string, (second: Second) => number | null | undefined][]} lines @param {(value: number) => string} told
 */
function graph(title, lines, told) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${SECONDS - 1} 60`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const path = (/** @type {string} */ name) => {
    const made = document.createElementNS(svg.namespaceURI, "path");
    made.setAttribute("class", name);
    svg.append(made);
    return made;
  };
  const [area, ...strokes] = ["area", "second", "first"].map(path);
  const now = element("div", { className: "now" });
  const second = element("b");
  const most = element("span");
  const card = element("section", { className: "card graph" }, element("h2", {}, title), now, svg, element("div", { className: "also" }, second, most));
  by("console").querySelector(".graphs").append(card);
  return (/** @type {(Second | null)[]} */ seconds) => {
    const values = lines.map(([, of]) => seconds.map((one) => (one ? (of(one) ?? null) : null)));
    const top = Math.max(1e-9, ...values.flat().map((value) => value ?? 0));
    const from = SECONDS - seconds.length;
    const draw = (/** @type {(number | null)[]} */ line) => {
      let text = "";
      line.forEach((value, at) => {
        if (value === null) return;
        const isNew = at === 0 || line[at - 1] === null;
        text += `${isNew ? "M" : "L"}${from + at} ${(58 - (value / top) * 55).toFixed(1)}`;
        // one alone is a dot
        if (isNew && (at === line.length - 1 || line[at + 1] === null)) text += "h0.6";
      });
      return text;
    };
    strokes[1].setAttribute("d", draw(values[0]));
    strokes[0].setAttribute("d", draw(values[1]));
    const filled = values[0].map((value) => value ?? 0);
    area.setAttribute("d", filled.length > 1 ? `M${from} 60L${draw(filled).slice(1)}L${SECONDS - 1} 60Z` : "");
    const last = values.map((line) => line.at(-1) ?? null);
    now.textContent = last[0] === null ? "–" : told(last[0]);
    second.textContent = `${lines[1][0]} ${last[1] === null ? "–" : told(last[1])}`;
    most.textContent = `top ${told(top < 1e-6 ? 0 : top)}`;
    svg.setAttribute("aria-label", `${title}: now ${now.textContent}, ${second.textContent}; in the last five minutes at most ${told(top)}`);
  };
}

const draw = [
  graph("Changes a second", [["changes", (one) => one.changes], ["deliveries", (one) => one.deliveries]], number),
  graph("Lag, capture to outbox", [["mean", (one) => one.lagMs], ["slowest", (one) => one.slowestMs]], time),
  graph("Waiting in queues", [["all", (one) => one.queueBytes], ["longest", (one) => one.longestQueueBytes]], bytes),
  graph("Connections", [["connections", (one) => one.connections], ["rooms", (one) => one.rooms]], number),
];

/** @type {(Second | null)[]} null: nothing was heard. */
const seconds = [];

/** @param {Second | null} second */
function keep(second) {
  seconds.push(second);
  if (seconds.length > SECONDS) seconds.shift();
  for (const one of draw) one(seconds);
}

// ---------------------------------------------------------------------------------------------- changes

const events = by("events");
/** @type {HTMLFormElement} */
const filter = by("filter");
/** A field of it. @param {string} name */
const wanted = (name) => /** @type {HTMLInputElement} */ (filter.elements.namedItem(name));
let paused = false;
/** What came and is yet to be put on the page: at once, however many they are. @type {string[]} */
let arrived = [];
let drawing = 0;

/** With uuids shortened. @param {string} id */
const short = (id) => id.replace(/([0-9a-f]{8})-[0-9a-f-]{23}([0-9a-f]{4})/g, "$1…$2");

/** A button that watches a room, with its frames. @param {string} room @param {string} [text] */
function watching(room, text = room) {
  const button = element("button", { type: "button", className: "link", title: `watch ${room}` }, text);
  button.addEventListener("click", () => {
    wanted("module").value = "";
    wanted("user").value = "";
    wanted("room").value = room;
    wanted("raw").checked = true;
    refilter();
    by("feed-title").scrollIntoView({ block: "nearest" });
  });
  return button;
}

/** One value of a row, shortened. @param {unknown} value */
function value(value) {
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return text.length > 40 ? `${text.slice(0, 40)}…` : text;
}

/** @param {string} line */
function row(line) {
  /** @type {Change} */
  const { receivers, lagMs, frame } = JSON.parse(line);
  const item = element("li");
  item.dataset.action = frame.action;
  if (wanted("raw").checked) {
    item.className = "raw";
    // as it came, digit for digit: what JavaScript reads of a number may be another
    item.append(element("pre", {}, line.slice(line.indexOf('"frame":') + '"frame":'.length, -1)));
    return item;
  }
  const when = frame.timestamp ? new Date(frame.timestamp) : new Date();
  const moment = `${when.toLocaleTimeString("en-GB")}.${String(when.getMilliseconds()).padStart(3, "0")}`;
  const fields = element("span", { className: "fields" });
  if (frame.action === "updated") {
    Object.entries(frame.data ?? {}).forEach(([name, now], at) => {
      if (at) fields.append(", ");
      fields.append(element("b", {}, name));
      if (now !== "…") fields.append(element("i", {}, ` ${value(frame.previous?.[name])} → ${value(now)}`));
    });
  } else {
    const count = Object.keys(frame.data ?? {}).length;
    fields.append(element("i", {}, count ? `${count} fields` : frame.action === "truncated" ? "its rooms fetch anew" : ""));
  }
  if (frame.coalesced) fields.append(element("i", {}, ` (${frame.coalesced} as one)`));
  fields.title = fields.textContent;
  const room = `${frame.module}:${frame.recordId}`;
  const record = frame.recordId === undefined ? frame.module : watching(room, `${frame.module}:${short(frame.recordId)}`);
  item.append(
    element("time", { dateTime: when.toISOString(), title: `lag ${time(lagMs)}` }, moment),
    element("span", { className: "action" }, frame.action),
    element("span", { className: "record" }, record),
    fields,
    element("span", { className: "by", title: frame.userId ?? "" }, frame.userId ? `by ${short(frame.userId)}` : "by somebody"),
    element("span", { className: "to", title: `${number(receivers)} connections got it, ${time(lagMs)} after the trigger saw it` }, `→ ${number(receivers)}`),
  );
  return item;
}

/** Says that some are not on the page. @param {string} text */
function gap(text) {
  events.prepend(element("li", { className: "gap" }, text));
}

function show() {
  drawing = 0;
  const lines = arrived;
  arrived = [];
  const rows = document.createDocumentFragment();
  for (const line of lines.reverse()) rows.append(row(line));
  events.prepend(rows);
  while (events.childElementCount > ROWS) events.lastElementChild.remove();
  by("nothing").hidden = events.childElementCount > 0;
}

/** @param {string} line */
function change(line) {
  if (paused) return;
  arrived.push(line);
  // a page that nobody sees is not drawn
  if (arrived.length > ROWS) arrived.shift();
  drawing ||= requestAnimationFrame(show);
}

by("pause").addEventListener("click", () => {
  paused = !paused;
  by("pause").setAttribute("aria-pressed", String(paused));
  by("pause").textContent = paused ? "Go on" : "Pause";
  if (paused) gap("paused");
});

// ---------------------------------------------------------------------------------------------- how it is

/** @param {string} state @param {string} text */
function state(state, text) {
  by("state").dataset.state = state;
  if (by("state").textContent !== text) by("state").textContent = text;
}

/** Rows of a table, in the place of those that are there, with the focus where it was. @param {HTMLElement} body @param {(Node | string)[][]} rows @param {number} numbers from which column on there are numbers */
function fill(body, rows, numbers) {
  const at = [...body.querySelectorAll("button")].indexOf(/** @type {HTMLButtonElement} */ (document.activeElement));
  body.replaceChildren(...rows.map((cells) => element("tr", {}, ...cells.map((cell, place) => element("td", { className: place >= numbers ? "number" : "" }, cell)))));
  if (at >= 0) body.querySelectorAll("button")[at]?.focus({ preventScroll: true });
}

/** @param {Second} second */
function second(second) {
  keep(second);
  events.ariaBusy = "false";
  state(second.unready === null ? "ready" : "unready", second.unready === null ? "ready" : `not ready: ${second.unready}`);
  seeing(second.values);
  const { passed, shown, missed } = second;
  by("sample").textContent = passed > shown ? `showing ${number(shown)} of ${number(passed)}` : passed ? `${number(passed)} a second` : "";
  by("sample").className = passed > shown ? "some" : "";
  if (missed && !paused) gap(`${number(missed)} were not taken in time and are not shown`);
  by("room-count").textContent = second.rooms === undefined ? "" : number(second.rooms);
  by("connection-count").textContent = number(second.connections);
  if (second.crowded) {
    fill(by("rooms"), second.crowded.map(({ room, members }) => [watching(room, short(room)), number(members)]), 1);
    by("known-rooms").replaceChildren(...second.crowded.map(({ room }) => element("option", { value: room })));
    const modules = new Set(second.crowded.map(({ room }) => room.split(":")[0]).filter((name) => !["user", "team", "broker"].includes(name)));
    by("modules").replaceChildren(...[...modules].sort().map((value) => element("option", { value })));
  }
  if (second.present) {
    const present = second.present.map(({ connection, user, rooms, queueBytes }) => [
      element("span", { title: user ?? "" }, user === null ? "–" : short(user)),
      element("span", { title: connection }, connection.slice(0, 8)),
      number(rooms),
      bytes(queueBytes),
    ]);
    fill(by("connections"), present, 2);
  }
}

/** @param {boolean} sees */
function seeing(sees) {
  by("seeing").textContent = sees ? "shown" : "hidden";
}

// ---------------------------------------------------------------------------------------------- the feed

/** Whoever may ask. */
function headers() {
  /** @type {Record<string, string>} */
  const sent = {};
  if (store.get("admin")) sent.authorization = `Bearer ${store.get("admin")}`;
  if (store.get("user")) sent["crm-authorization"] = `Bearer ${store.get("user")}`;
  return sent;
}

/** The lines of a stream of server-sent events. @param {ReadableStream<Uint8Array>} body */
async function* lines(body) {
  let kept = "";
  // @ts-ignore a stream can be iterated
  for await (const text of body.pipeThrough(new TextDecoderStream())) {
    kept += text;
    const blocks = kept.split("\n\n");
    kept = blocks.pop() ?? "";
    for (const block of blocks) {
      const [, name] = /^event: ?(.*)$/m.exec(block) ?? [];
      const [, data] = /^data: ?(.*)$/m.exec(block) ?? [];
      if (name && data) yield [name, data];
    }
  }
}

/** Of the feed that is read now. @type {AbortController | undefined} */
let reading;
/** Attempts in vain. */
let tries = 0;

/** Reads the feed, again and again, until another filter or token is wanted. */
async function read() {
  reading?.abort();
  const mine = (reading = new AbortController());
  const query = new URLSearchParams();
  for (const name of ["module", "room", "user"]) {
    const given = wanted(name).value.trim();
    if (given) query.set(name, given);
  }
  // until what is wanted is what comes
  events.ariaBusy = "true";
  while (!mine.signal.aborted) {
    try {
      const answer = await fetch(`/console/feed?${query}`, { headers: headers(), signal: mine.signal, cache: "no-store" });
      if (answer.status === 401) return logout("that is not the admin token");
      if (!answer.ok || !answer.body) throw new Error(`the relay answers ${answer.status}`);
      for await (const [name, data] of lines(answer.body)) {
        tries = 0;
        if (name === "change") change(data);
        else if (name === "second") second(JSON.parse(data));
        else if (name === "begin") begin(JSON.parse(data));
        else if (name === "end") throw new Error(JSON.parse(data).why);
      }
      throw new Error("the relay ended the feed");
    } catch (error) {
      if (mine.signal.aborted) return;
      state("away", `${/** @type {Error} */ (error).message}; trying again`);
      keep(null);
      await new Promise((done) => setTimeout(done, AGAIN[Math.min(tries++, AGAIN.length - 1)]));
    }
  }
}

/** @param {{values: boolean, why: string | null, version: string, database: string}} told */
function begin({ values, why, version, database }) {
  by("about").textContent = `${database} · version ${version}`;
  seeing(values);
  by("why").hidden = why === null;
  by("why").textContent = why ?? "";
  if (why === null) return;
  store.set("user", "");
  by("values").open = true;
}

/** Another filter: what was shown is of the one before. */
function refilter() {
  events.replaceChildren();
  arrived = [];
  by("nothing").hidden = false;
  const kept = new URLSearchParams(/** @type {any} */ ([...new FormData(filter)].filter(([, given]) => given)));
  history.replaceState(null, "", kept.size ? `#${kept}` : location.pathname);
  read();
}

// ---------------------------------------------------------------------------------------------- who looks

/** @param {string} [why] */
function logout(why) {
  reading?.abort();
  store.set("admin", "");
  store.set("user", "");
  by("console").hidden = true;
  by("login").hidden = false;
  by("logout").hidden = by("values").hidden = true;
  state("away", "not connected");
  const notice = by("login").querySelector(".notice");
  notice.hidden = !why;
  notice.textContent = why ?? "";
  by("admin-token").focus();
}

function open() {
  by("login").hidden = true;
  by("console").hidden = by("values").hidden = false;
  by("logout").hidden = !asksForToken;
  read();
}

by("login").querySelector("form").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  store.set("admin", by("admin-token").value.trim());
  by("admin-token").value = "";
  open();
});
by("logout").addEventListener("click", () => logout());
by("values").querySelector("form").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  store.set("user", by("user-token").value.trim());
  by("user-token").value = "";
  by("values").open = false;
  read();
});
by("values").querySelector("form").addEventListener("reset", () => {
  store.set("user", "");
  by("values").open = false;
  read();
});
document.addEventListener("keydown", ({ key }) => {
  if (key !== "Escape" || !by("values").open) return;
  by("values").open = false;
  by("values").querySelector("summary").focus();
});

filter.addEventListener("submit", (event) => event.preventDefault());
filter.addEventListener("change", refilter);
filter.addEventListener("reset", () => setTimeout(refilter));
for (const [name, given] of new URLSearchParams(location.hash.slice(1))) {
  const field = wanted(name);
  if (field?.type === "checkbox") field.checked = true;
  else if (field) field.value = given;
}

by("check").addEventListener("click", async () => {
  const findings = by("findings");
  by("check").disabled = true;
  try {
    const answer = await fetch("/console/verify", { headers: headers(), cache: "no-store" });
    if (answer.status === 401) return logout("that is not the admin token");
    const { rows, error } = await answer.json();
    if (error) findings.replaceChildren(element("p", { className: "empty" }, error));
    else if (!rows.length) findings.replaceChildren(element("p", { className: "empty good" }, "Nothing is wrong."));
    else {
      findings.replaceChildren(...rows.map((/** @type {unknown} */ found) => {
        const cells = Object.entries(found instanceof Object ? found : { finding: found });
        return element("dl", {}, ...cells.filter(([, text]) => text !== null).flatMap(([name, text]) => [
          element("dt", {}, name),
          element("dd", {}, typeof text === "string" ? text : JSON.stringify(text)),
        ]));
      }));
    }
  } catch (error) {
    findings.replaceChildren(element("p", { className: "empty" }, String(/** @type {Error} */ (error).message)));
  } finally {
    by("check").disabled = false;
  }
});

for (const one of draw) one(seconds);
if (asksForToken && !store.get("admin")) logout();
else open();
