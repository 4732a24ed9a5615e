// The demo's page: two panes, each a user of its own with a WebSocket of its own. A pane shows what
// it fetched and then only what comes through its socket; its own edits, too.

/** How each module's columns are shown: name, label, kind, choices. */
const MODULES = {
  escrows: [
    ["property_address", "Property"],
    ["purchase_price", "Price", "money"],
    ["escrow_status", "Status", "choice", ["active", "pending", "closed", "cancelled"]],
    ["closing_date", "Closing", "date"],
    ["title_company", "Title company"],
    ["is_private", "Private", "flag"],
  ],
  listings: [
    ["property_address", "Property"],
    ["list_price", "Price", "money"],
    ["listing_status", "Status", "choice", ["draft", "coming_soon", "active", "pending", "sold"]],
    ["bedrooms", "Beds", "number"],
    ["bathrooms", "Baths", "number"],
    ["is_private", "Private", "flag"],
  ],
  clients: [
    ["first_name", "First name"],
    ["last_name", "Last name"],
    ["phone", "Phone"],
    ["client_type", "Type", "choice", ["buyer", "seller", "investor"]],
    ["status", "Status", "choice", ["lead", "active", "past"]],
    ["is_private", "Private", "flag"],
  ],
  leads: [
    ["first_name", "First name"],
    ["last_name", "Last name"],
    ["phone", "Phone"],
    ["source", "Source"],
    ["status", "Status", "choice", ["new", "contacted", "qualified", "lost"]],
    ["is_private", "Private", "flag"],
  ],
  appointments: [
    ["title", "What"],
    ["start_time", "When", "moment"],
    ["location", "Where"],
    ["status", "Status", "choice", ["scheduled", "confirmed", "completed", "cancelled"]],
    ["is_private", "Private", "flag"],
  ],
};

const FRAMES_SHOWN = 30;
const MARKED_FOR_MS = 15_000;

const money = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD", maximumFractionDigits: 2, minimumFractionDigits: 0 });
const moment = new Intl.DateTimeFormat("en-US", { weekday: "short", month: "short", day: "numeric", hour: "numeric", minute: "2-digit" });

let users = [];
let shown = "listings";

function words(value, kind) {
  if (value === null || value === undefined) return "";
  if (kind === "money") return money.format(value);
  if (kind === "moment") return moment.format(new Date(value));
  if (kind === "flag") return value ? "yes" : "no";
  return String(value);
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

async function api(path, options) {
  const answer = await fetch(`api/${path}`, options);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error ?? answer.statusText);
  return body;
}

class Pane {
  constructor(root, user) {
    this.root = root;
    root.append(document.querySelector("#pane").content.cloneNode(true));
    this.part = (selector) => root.querySelector(selector);
    const choice = this.part("select.user");
    for (const one of users) {
      const team = one.role === "broker" ? "broker" : one.team;
      choice.append(element("option", { value: one.id, textContent: `${one.name}, ${team}` }));
    }
    choice.value = user.id;
    choice.addEventListener("change", () => this.become(users.find((one) => one.id === choice.value)));
    this.become(user);
  }

  /** Shows the CRM as this user sees it, on a fresh connection. */
  become(user) {
    this.user = user;
    const initials = this.part(".initials");
    initials.textContent = user.name.split(" ").map((part) => part[0]).join("");
    initials.style.setProperty("--hue", users.indexOf(user) * 73);
    this.records = Object.fromEntries(Object.keys(MODULES).map((module) => [module, new Map()]));
    this.part(".frames").replaceChildren();
    this.attempts = 0;
    this.connect();
    this.draw();
  }

  rooms() {
    const { id, role, team_id, broker_id } = this.user;
    return [`user:${id}`, role === "broker" ? `broker:${broker_id}` : `team:${team_id}`];
  }

  connect() {
    clearTimeout(this.again);
    if (this.socket) this.socket.onclose = this.socket.onmessage = null;
    this.socket?.close();
    this.status("connecting");
    const socket = new WebSocket(new URL("ws", location.href.replace(/^http/, "ws")));
    this.socket = socket;
    socket.onopen = () => socket.send(JSON.stringify({ type: "hello" }));
    // one frame after the other: what comes while records are fetched waits for them
    let turn = Promise.resolve();
    socket.onmessage = ({ data }) => {
      turn = turn
        .then(() => socket === this.socket && this.hear(JSON.parse(data)))
        .catch((error) => {
          this.say(error.message);
          socket.close();
        });
    };
    socket.onclose = () => {
      // 1, 2, 4, 8, 8 … s, each with jitter, so that not all come back at once
      const wait = Math.min(1000 * 2 ** this.attempts++, 8000) * (0.5 + Math.random() / 2);
      this.status("reconnecting");
      this.again = setTimeout(() => this.connect(), wait);
    };
  }

  status(state, text = state) {
    const status = this.part(".status");
    status.dataset.state = state;
    status.textContent = text;
  }

  say(text) {
    const notice = this.part(".notice");
    notice.textContent = text;
    notice.hidden = !text;
  }

  async hear(frame) {
    const frames = this.part(".frames");
    frames.prepend(element("li", { textContent: JSON.stringify(frame) }));
    while (frames.children.length > FRAMES_SHOWN) frames.lastChild.remove();
    switch (frame.type) {
      case "welcome":
        this.socket.send(JSON.stringify({ type: "subscribe", id: 1, rooms: this.rooms() }));
        break;
      case "subscribed":
        this.attempts = 0;
        await this.fetchAll();
        this.status("live");
        break;
      case "resync":
        await this.fetchAll();
        break;
      default:
        if (frame.recordId) await this.apply(frame);
    }
  }

  /**
   * Every record anew. The rooms are live by now, so a change that the answer does not hold yet comes
   * by the socket after it; one that it holds is told again, and the last one told is the newest.
   */
  async fetchAll() {
    const user = this.user;
    const names = Object.keys(MODULES);
    const all = await Promise.all(names.map((module) => api(`${module}?user=${user.id}`)));
    if (user !== this.user) return;
    names.forEach((module, place) => {
      this.records[module] = new Map(all[place].map((record) => [record.id, record]));
    });
    this.say("");
    this.draw();
  }

  async apply(event) {
    const records = this.records[event.module];
    const { recordId: id, action, data } = event;
    if (action === "deleted") {
      records.delete(id);
      if (event.module === shown) this.row(id)?.remove();
      this.part(".empty").hidden = this.records[shown].size > 0;
    } else if (action === "created") {
      // a client's name and phone are those of its contact, which is no part of this frame
      const known = event.module === "clients" ? await api(`clients?user=${this.user.id}`) : [];
      records.set(id, known.find((record) => record.id === id) ?? data);
      if (event.module === shown) {
        this.draw();
        this.row(id)?.classList.add("new");
      }
    } else if (records.has(id)) {
      Object.assign(records.get(id), data);
      if (event.module === shown) this.mark(event);
    }
    this.status("live", `live, ${Math.max(0, Date.now() - Date.parse(event.timestamp))} ms`);
  }

  row(id) {
    return this.part(`tr[data-id="${id}"]`);
  }

  /** Shows the new values of an update, with who made it and what was there before. */
  mark(event) {
    const by = users.find((one) => one.id === event.userId)?.name ?? "somebody";
    for (const [column, , kind] of MODULES[shown]) {
      if (!(column in event.data)) continue;
      const cell = this.row(event.recordId)?.querySelector(`[data-column="${column}"]`);
      if (!cell || cell.classList.contains("editing")) continue;
      this.fill(cell);
      cell.classList.remove("changed");
      void cell.offsetWidth; // so that the animation begins anew
      cell.classList.add("changed");
      const was = words(event.previous[column], kind);
      cell.append(element("small", { textContent: `${by}, was ${was || "empty"}` }));
      clearTimeout(cell.unmark);
      cell.unmark = setTimeout(() => {
        cell.classList.remove("changed");
        cell.querySelector("small")?.remove();
      }, MARKED_FOR_MS);
    }
  }

  draw() {
    const columns = MODULES[shown];
    this.part("thead tr").replaceChildren(
      ...columns.map(([, label, kind]) => element("th", { textContent: label, className: numeric(kind) })),
    );
    const rows = [...this.records[shown].values()].map((record) => {
      const row = element("tr");
      row.dataset.id = record.id;
      for (const [column, label, kind, choices] of columns) {
        const cell = element("td", { className: numeric(kind) });
        Object.assign(cell.dataset, { column, label });
        Object.assign(cell, { record, kind, choices });
        this.fill(cell);
        row.append(cell);
      }
      return row;
    });
    this.part("tbody").replaceChildren(...rows);
    this.part(".empty").hidden = rows.length > 0;
  }

  /** A cell at rest: its value, which a click turns into a field. */
  fill(cell) {
    const { record, kind } = cell;
    const { column, label } = cell.dataset;
    cell.classList.remove("editing");
    if (kind === "flag") {
      const box = element("input", { type: "checkbox", checked: record[column], ariaLabel: label });
      box.addEventListener("change", () => this.save(cell, box.checked));
      cell.replaceChildren(box);
      return;
    }
    const value = element("button", { type: "button", textContent: words(record[column], kind) });
    if (kind !== "moment") value.addEventListener("click", () => this.edit(cell));
    cell.replaceChildren(value);
  }

  edit(cell) {
    const { record, kind, choices } = cell;
    const { column, label } = cell.dataset;
    const field = choices
      ? element("select", {}, ...choices.map((choice) => element("option", { textContent: choice })))
      : element("input", { type: kind === "date" ? "date" : "text" });
    if (kind === "money" || kind === "number") field.inputMode = "decimal";
    field.ariaLabel = label;
    field.value = record[column] ?? "";
    const before = field.value;
    let done = false;
    const end = (save) => {
      if (done) return;
      done = true;
      const value = field.value;
      this.fill(cell);
      if (save && value !== before) this.save(cell, value === "" ? null : value);
    };
    field.addEventListener("blur", () => end(true));
    if (choices) field.addEventListener("change", () => end(true));
    field.addEventListener("keydown", ({ key }) => {
      if (key === "Enter") end(true);
      if (key === "Escape") end(false);
    });
    cell.classList.add("editing");
    cell.replaceChildren(field);
    field.focus();
    field.select?.();
  }

  /** As the CRM's own frontend would; the answer is not painted: the change comes by the socket. */
  async save(cell, value) {
    const { record } = cell;
    this.say("");
    try {
      await api(`${shown}/${record.id}`, {
        method: "PATCH",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ user: this.user.id, version: record.version, fields: { [cell.dataset.column]: value } }),
      });
    } catch (error) {
      this.say(`Not saved: ${error.message}`);
      this.fill(cell);
    }
  }
}

const numeric = (kind) => (kind === "money" || kind === "number" ? "number" : "");

users = await api("users");
const panes = [new Pane(document.querySelector("#left"), users[0]), new Pane(document.querySelector("#right"), users[1])];
const tabs = Object.keys(MODULES).map((module) => {
  const tab = element("button", { type: "button", role: "tab", textContent: module });
  tab.setAttribute("aria-selected", module === shown);
  tab.addEventListener("click", () => {
    shown = module;
    tabs.forEach((other) => other.setAttribute("aria-selected", other === tab));
    panes.forEach((pane) => pane.draw());
  });
  return tab;
});
document.querySelector("#modules").append(...tabs);
