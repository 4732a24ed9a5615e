// The demo's page: panes, each a user with a connection of its own. A pane shows what it fetched and then
// what comes through its socket. An edit is shown at once, as pending, until it has come back that way.

import { connect } from "./client.js";
import "./status.js";
import { MODULES, numeric, words } from "./modules.js";

const FRAMES_SHOWN = 30;
const ROWS_SHOWN = 200;
const MARKED_FOR_MS = 15_000;

/** Everybody who may look at the CRM. */
let users = [];
/** What all panes show: a module, and one of its records. */
const place = { module: "listings", id: undefined };

function element(name, properties = {}, ...children) {
  const { dataset, ...rest } = properties;
  const made = Object.assign(document.createElement(name), rest);
  Object.assign(made.dataset, dataset);
  made.append(...children);
  return made;
}

const nameOf = (id) => users.find((user) => user.id === id)?.name ?? "somebody";

async function api(path, options) {
  const answer = await fetch(`api/${path}`, options).catch(() => {
    throw new Error("the CRM does not answer");
  });
  const body = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(body.error ?? answer.statusText), { status: answer.status, record: body.record });
  return body;
}

const patch = (user, module, id, version, fields) =>
  api(`${module}/${id}`, {
    method: "PATCH",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ user: user.id, version, fields }),
  });

class Pane {
  constructor(user) {
    this.root = document.querySelector("#pane").content.firstElementChild.cloneNode(true);
    document.querySelector("main").append(this.root);
    this.part = (selector) => this.root.querySelector(selector);
    const choice = this.part("select.user");
    for (const one of users) {
      choice.append(element("option", { value: one.id, textContent: `${one.name}, ${one.role === "broker" ? "broker" : one.team}` }));
    }
    choice.value = user.id;
    choice.addEventListener("change", () => this.become(users.find((one) => one.id === choice.value)));
    this.become(user);
  }

  /** Shows the CRM as this user sees it, on a connection of its own. */
  become(user) {
    this.relay?.close();
    this.user = user;
    this.root.setAttribute("aria-label", `As ${user.name} sees it`);
    const initials = this.part(".initials");
    initials.textContent = user.name.split(" ").map((part) => part[0]).join("");
    initials.style.setProperty("--hue", users.indexOf(user) * 73);
    this.records = Object.fromEntries(Object.keys(MODULES).map((module) => [module, new Map()]));
    /** Edits on their way, and marks of what others changed; by record and column. */
    this.pending = new Map();
    this.marks = new Map();
    this.editing = undefined;
    this.delay = "";
    this.part(".frames").replaceChildren();
    this.say("");

    const relay = connect("ws");
    this.relay = relay;
    this.part("relay-status").relay = relay;
    // one after the other: what comes while records are fetched waits for them
    let turn = Promise.resolve();
    const inTurn = (work) => {
      turn = turn.then(() => relay === this.relay && work()).catch((error) => this.say(error.message));
    };
    let last;
    const rooms = [`user:${user.id}`, user.role === "broker" ? `broker:${user.broker_id}` : `team:${user.team_id}`];
    const hear = (frame) => {
      if (frame === last) return; // it came by both rooms
      last = frame;
      this.log(frame);
      inTurn(() => (frame.action ? this.apply(frame) : this.fetchAll()));
    };
    let live = 0;
    for (const room of rooms) {
      relay.subscribe(room, hear, { live: () => ++live === rooms.length && inTurn(() => this.fetchAll()) });
    }
    this.draw();
  }

  say(text) {
    const notice = this.part(".notice");
    notice.textContent = text;
    notice.hidden = !text;
  }

  log(frame) {
    const frames = this.part(".frames");
    frames.prepend(element("li", { textContent: JSON.stringify(frame) }));
    while (frames.children.length > FRAMES_SHOWN) frames.lastChild.remove();
  }

  /**
   * Every record anew. The rooms are live by now, so a change that the answer does not hold yet comes by
   * the socket after it; one that it holds may be told again, and the last one told is the newest.
   */
  async fetchAll() {
    const { user } = this;
    const names = Object.keys(MODULES);
    const all = await Promise.all(names.map((module) => api(`${module}?user=${user.id}`)));
    if (user !== this.user) return;
    names.forEach((module, at) => (this.records[module] = new Map(all[at].map((record) => [record.id, record]))));
    for (const [key, edit] of this.pending) if (edit.saved) this.pending.delete(key);
    this.root.dataset.live = "";
    this.say("");
    this.draw();
  }

  async apply(event) {
    const records = this.records[event.module];
    const { recordId: id, action, data } = event;
    this.delay = `${Math.max(0, Date.now() - Date.parse(event.timestamp))} ms`;
    if (action === "deleted") {
      records.delete(id);
    } else if (action === "created") {
      // a client's name and phone are those of its contact, which is no part of this frame
      const known = event.module === "clients" ? await api(`clients?user=${this.user.id}`) : [];
      records.set(id, known.find((record) => record.id === id) ?? data);
      this.mark(id, "", {});
    } else if (records.has(id)) {
      const { id: _part, ...columns } = data;
      Object.assign(records.get(id), columns);
      for (const column of Object.keys(columns)) {
        this.pending.delete(`${id} ${column}`);
        this.mark(id, column, { by: event.userId, was: event.previous[column] });
      }
      this.mark(id, "", {});
    }
    if (event.module === place.module) this.drawSoon();
  }

  /** Remembers for a while that a field changed; by the column "" that the record did. */
  mark(id, column, news) {
    const key = `${id} ${column}`;
    clearTimeout(this.marks.get(key)?.timer);
    const timer = setTimeout(() => {
      this.marks.delete(key);
      this.drawSoon();
    }, MARKED_FOR_MS);
    this.marks.set(key, { ...news, timer, fresh: true });
  }

  /** A thousand changes at once are drawn once. */
  drawSoon() {
    this.drawing ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.drawing = undefined;
    this.part(".delay").textContent = this.delay;
    this.drawList();
    this.drawDetail();
    for (const mark of this.marks.values()) mark.fresh = false;
  }

  shown(record, column) {
    const edit = this.pending.get(`${record.id} ${column}`);
    return edit ? edit.value : record[column];
  }

  drawList() {
    const { module } = place;
    const { label, line } = MODULES[module];
    const records = [...this.records[module].values()];
    const heading = this.part(".list h2");
    heading.replaceChildren(label, element("span", { textContent: ` ${records.length}` }));
    this.part(".empty").hidden = records.length > 0 || !("live" in this.root.dataset);
    const more = this.part(".more");
    more.hidden = records.length <= ROWS_SHOWN;
    more.textContent = `and ${records.length - ROWS_SHOWN} more`;

    const list = this.part(".list ul");
    const focused = list.contains(document.activeElement) && document.activeElement.dataset.id;
    const scrolled = list.scrollTop;
    list.replaceChildren(
      ...records.slice(0, ROWS_SHOWN).map((record) => {
        const seen = new Proxy(record, { get: (target, column) => this.shown(target, column) });
        const { title, about, value, state } = line(seen);
        const row = element(
          "button",
          { type: "button", dataset: { id: record.id } },
          element("b", { textContent: title || "Unnamed" }),
          element("span", { className: "value", textContent: value ?? "" }),
          element("span", { className: "about", textContent: about }),
          element("span", { className: "chip", textContent: state.replaceAll("_", " "), dataset: { state } }),
        );
        if (record.id === place.id) row.setAttribute("aria-current", "true");
        if (this.marks.get(`${record.id} `)?.fresh) row.classList.add("arrives");
        row.addEventListener("click", () => go(module, record.id));
        return element("li", {}, row);
      }),
    );
    list.scrollTop = scrolled;
    if (focused) list.querySelector(`[data-id="${focused}"]`)?.focus();
  }

  drawDetail() {
    const { module, id } = place;
    const detail = this.part(".detail");
    const record = this.records[module].get(id);
    if (!record) {
      const gone = "live" in this.root.dataset && id;
      detail.replaceChildren(element("p", { className: "empty", textContent: gone ? `${this.user.name} does not see this record.` : "" }));
      detail.dataset.id = "";
      return;
    }
    const { fields, line } = MODULES[module];
    const shape = `${module} ${id}`;
    if (detail.dataset.id !== shape) {
      this.editing = undefined;
      detail.dataset.id = shape;
      detail.replaceChildren(
        element("h3"),
        element("div", { className: "fields" }, ...fields.map(([column]) => element("div", { className: "field", dataset: { column } }))),
      );
    }
    detail.querySelector("h3").textContent = line(record).title || "Unnamed";
    for (const field of fields) this.drawField(detail.querySelector(`[data-column="${field[0]}"]`), record, field);
  }

  drawField(box, record, field) {
    const [column, label, kind] = field;
    const key = `${record.id} ${column}`;
    const mark = this.marks.get(key);
    const pending = this.pending.get(key);
    const by = mark && (mark.by === this.user.id ? "you" : nameOf(mark.by));
    const told = mark && `${by}, was ${words(mark.was, kind) || "empty"}`;
    if (mark?.fresh) {
      box.classList.remove("changed");
      void box.offsetWidth; // so that the glow begins anew
    }
    box.classList.toggle("changed", Boolean(mark));
    box.classList.toggle("pending", Boolean(pending));
    if (this.editing?.key === key) {
      // what is being typed is left alone, and what happened to it meanwhile is said
      this.editing.hint.textContent = mark && mark.by !== this.user.id ? `${by} has just set this to ${words(record[column], kind) || "empty"}` : "";
      return;
    }
    if (pending?.conflict) return this.drawConflict(box, record, field, pending);
    const value = this.shown(record, column);
    const name = element("span", { className: "label", textContent: label });
    const note = element("small", { textContent: told ?? "" });
    const focused = box.contains(document.activeElement);
    if (kind === "flag") {
      const check = element("input", { type: "checkbox", checked: value, ariaLabel: label });
      check.addEventListener("change", () => this.save(record.id, field, record.version, record[column], check.checked));
      box.replaceChildren(name, check, note);
    } else {
      const text = words(value, kind);
      const button = element("button", { type: "button", textContent: text, className: numeric(kind) });
      button.ariaLabel = `${label}: ${text || "empty"}, edit`;
      if (kind === "moment") button.disabled = true;
      button.addEventListener("click", () => this.edit(box, record, field));
      box.replaceChildren(name, button, note);
    }
    if (focused) box.querySelector("button, input").focus();
  }

  edit(box, record, field) {
    const [column, label, kind, choices] = field;
    const input = choices
      ? element("select", {}, ...choices.map((choice) => element("option", { value: choice, textContent: choice.replaceAll("_", " ") })))
      : kind === "text" ? element("textarea", { rows: 3 }) : element("input", { type: kind === "date" ? "date" : "text" });
    if (numeric(kind)) input.inputMode = "decimal";
    input.ariaLabel = label;
    input.value = this.shown(record, column) ?? "";
    const before = input.value;
    const { id, version } = record;
    const base = record[column];
    const hint = element("small", { className: "hint" });
    hint.setAttribute("role", "status");
    const mine = { key: `${id} ${column}`, hint };
    const end = (keeps) => {
      if (this.editing !== mine) return;
      this.editing = undefined;
      if (keeps && input.value !== before) this.save(id, field, version, base, input.value === "" ? null : input.value);
      else this.draw();
    };
    const refocus = () => box.querySelector("button")?.focus();
    input.addEventListener("blur", ({ relatedTarget }) => {
      // a hand that goes to the other pane is another person's: this one is still typing
      const elsewhere = relatedTarget?.closest(".pane");
      if (!elsewhere || elsewhere === this.root) end(true);
    });
    if (choices) input.addEventListener("change", () => end(true));
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" && !(event.key === "Enter" && !(kind === "text" && event.shiftKey))) return;
      event.preventDefault();
      end(event.key === "Enter");
      refocus();
    });
    this.editing = mine;
    box.replaceChildren(element("span", { className: "label", textContent: label }), input, hint);
    input.focus();
    input.select?.();
  }

  /** As the CRM's own frontend would: shown at once, and taken back if the CRM refuses. */
  async save(id, field, version, base, value) {
    const [column, label, kind] = field;
    const { module } = place;
    const key = `${id} ${column}`;
    const edit = { value, base };
    this.pending.set(key, edit);
    this.say("");
    this.draw();
    try {
      const saved = await patch(this.user, module, id, version, { [column]: value });
      edit.saved = true;
      const record = this.records[module].get(id);
      // so that the next edit is not taken for a conflict with this one
      if (record?.version < saved.version) record.version = saved.version;
    } catch (error) {
      const now = error.record;
      if (now && String(now[column] ?? "") === String(base ?? "")) {
        // somebody changed another field of the record: both edits can stand
        return this.save(id, field, now.version, base, value);
      }
      if (now) {
        edit.conflict = now;
      } else {
        this.pending.delete(key);
        this.say(`${label} was not saved: ${error.message}`);
      }
      this.draw();
      if (now) this.part(`[data-column="${column}"] .theirs`)?.focus();
    }
  }

  drawConflict(box, record, field, edit) {
    const [column, label, kind] = field;
    const { conflict, value } = edit;
    const key = `${record.id} ${column}`;
    const theirs = words(conflict[column], kind) || "empty";
    const mine = words(value, kind) || "empty";
    const who = nameOf(conflict.last_modified_by);
    const keep = element("button", { type: "button", className: "theirs button", textContent: `Keep ${who.split(" ")[0]}’s` });
    const use = element("button", { type: "button", className: "mine button", textContent: "Use mine" });
    const settle = (work) => () => {
      this.pending.delete(key);
      work?.();
      this.draw();
      this.part(`[data-column="${column}"] button`)?.focus();
    };
    keep.addEventListener("click", settle());
    use.addEventListener("click", settle(() => this.save(record.id, field, conflict.version, conflict[column], value)));
    const question = element(
      "div",
      { className: "conflict" },
      element("p", { textContent: `${who} changed this while you were editing.` }),
      element("p", {}, element("span", { textContent: "Theirs" }), theirs),
      element("p", {}, element("span", { textContent: "Yours" }), mine),
      keep,
      use,
    );
    question.setAttribute("role", "group");
    question.setAttribute("aria-label", `${label}: whose value counts?`);
    box.replaceChildren(element("span", { className: "label", textContent: label }), question);
  }
}

/** Shows a module and a record in all panes, and says so in the address. */
function go(module, id) {
  Object.assign(place, { module, id });
  history.replaceState(null, "", `#${module}${id ? `/${id}` : ""}`);
  arrive();
}

function arrive() {
  document.querySelectorAll("#modules a").forEach((link) => {
    if (link.dataset.module === place.module) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
  const other = users.at(-1);
  const third = document.querySelector("#third");
  third.href = `?user=${other.id}${location.hash}`;
  third.textContent = `Open ${other.name} in a tab`;
  for (const pane of panes) pane.draw();
}

function readAddress() {
  const [module, id] = location.hash.slice(1).split("/");
  Object.assign(place, { module: module in MODULES ? module : "listings", id });
}

/** The buttons that break things; each says what happens. */
const BREAKS = {
  async relay(say) {
    const { seconds } = await api("break/relay", { method: "POST" });
    say(`The relay is gone for ${seconds} s. Edits still reach the CRM; watch the dots.`);
  },
  async postgres(say) {
    say("Postgres restarts…");
    await api("break/postgres", { method: "POST" });
    say("Postgres is back, and nobody had to reload.");
  },
  async edits(say) {
    const [{ user }] = panes;
    const [first] = await api(`listings?user=${user.id}`);
    go("listings", first.id);
    let { version } = first;
    for (let time = 1; time <= 10; time++) {
      const price = Number(first.list_price) + time * 1000;
      ({ version } = await patch(user, "listings", first.id, version, { list_price: price }));
      say(`${user.name} sets ${words(price, "money")}: ${time} of 10`);
      if (time < 10) await new Promise((done) => setTimeout(done, 1000));
    }
  },
  async import(say) {
    const [{ user }] = panes;
    go("leads");
    const { imported } = await api(`leads/import?user=${user.id}`, { method: "POST" });
    say(`${imported} leads, with one statement: too many to tell one by one, so each page was told to fetch.`);
  },
};

readAddress();
users = await api("users");
const chosen = users.find((user) => user.id === new URLSearchParams(location.search).get("user"));
/** @type {Pane[]} */
const panes = [];
panes.push(...(chosen ? [chosen] : users.slice(0, 2)).map((user) => new Pane(user)));
document.body.classList.toggle("alone", panes.length === 1);
document.querySelector("#third").hidden = panes.length === 1;
document.querySelector("#modules").append(
  ...Object.entries(MODULES).map(([module, { label }]) => element("a", { href: `#${module}`, textContent: label, dataset: { module } })),
);
addEventListener("hashchange", () => {
  readAddress();
  arrive();
});
for (const button of document.querySelectorAll("[data-break]")) {
  const status = document.querySelector("#break [role=status]");
  button.addEventListener("click", async () => {
    button.disabled = true;
    await BREAKS[button.dataset.break]((text) => (status.textContent = text)).catch((error) => (status.textContent = error.message));
    button.disabled = false;
  });
}
arrive();
