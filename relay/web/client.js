// The browser's side of crm-relay: relay/PROTOCOL.md says what goes over the wire, client.d.ts what this
// module promises.

/** @import { connect as Connect, Frame, Status, Subscription } from "./client.js" */
/** @typedef {Subscription & { handler: (frame: Frame) => void, waiting: boolean }} Subscriber */
/**
 * `sent`: asked for on this socket; `live`: answered; `since`: where it resumes; `missed`: why it cannot;
 * `seen`: greatest `seq` by record and part; `wants`: a snapshot; `record`: the last one, kept current.
 * @typedef {{ name: string, subs: Set<Subscriber>, seen: Map<string, bigint>, sent?: boolean,
 *   live?: boolean, since?: string, missed?: string, wants?: boolean, record?: any }} Room
 */

const LONGEST_WAIT = 8000;
const WELCOME_WITHIN = 10000;
const PONG_WITHIN = 5000;
const FRESH_TOKENS = 3;
// the relay closes a connection for which too much waits
const SNAPSHOTS_AT_ONCE = 100;
const WAKERS = ["online", "offline", "pageshow", "visibilitychange", "resume"];
// not all of them bubble up from the document
const CAPTURED = { capture: true };

const utf8 = new TextEncoder();
const keyOf = (/** @type {any} */ { module, recordId, part }) => JSON.stringify([module, recordId, part]);

/** @type {typeof Connect} */
export const connect = (url, { token, transactions, WebSocket: Socket = globalThis.WebSocket } = {}) => {
  if (!Socket) throw new TypeError("no WebSocket here: connect(url, { WebSocket }) takes a class, such as that of npm's ws");
  const address = new URL(url, globalThis.location?.href);
  address.protocol = address.protocol.replace("http", "ws");

  /** @type {Map<string, Room>} */
  const rooms = new Map();
  /** @type {Map<unknown, { part: Set<Room>, shows: boolean }>} what is yet to be answered */
  const requests = new Map();
  /** @type {Set<Room>} those whose snapshot is under way */
  const asking = new Set();
  /** @type {Record<string, Set<Function>>} */
  const listeners = { status: new Set(), error: new Set() };
  /** @type {any} */
  let socket;
  /** @type {any} the welcome, while connected */
  let session;
  /** @type {any} */
  let retry;
  /** @type {any} */
  let silence;
  /** @type {Status} */
  let status = "connecting";
  /** @type {number | undefined} */
  let retryAt;
  /** @type {string | undefined} */
  let cursor;
  /** @type {number | undefined} what `draining` told */
  let comeBackIn;
  let welcomedAt = Infinity;
  let attempts = 0;
  let refusals = 0;
  let turn = 0;
  let lastId = 0;
  let patient = false;
  let flushing = false;
  let full = false;
  let closed = false;

  const report = (/** @type {unknown} */ error) => {
    if (!listeners.error.size) console.error(error);
    for (const listener of [...listeners.error]) {
      try {
        listener(error);
      } catch (worse) {
        console.error(worse);
      }
    }
  };

  /** Calls what was given to us: what it throws holds up nobody else. */
  const call = (/** @type {Function | undefined} */ given, /** @type {unknown[]} */ ...values) => {
    try {
      given?.(...values);
    } catch (error) {
      report(error);
    }
  };

  /** @param {Status} now @param {number} [at] */
  const tell = (now, at) => {
    if (now === status && at === retryAt) return;
    status = now;
    retryAt = at;
    for (const listener of [...listeners.status]) call(listener, now, at);
  };
  const away = () => (globalThis.navigator?.onLine === false ? "offline" : "reconnecting");

  const send = (/** @type {object} */ frame) => socket.send(JSON.stringify(frame));

  /** From now on something must be heard within so many milliseconds. */
  const listen = (ms = session ? Math.max(1, session.heartbeatSeconds) * 1500 : WELCOME_WITHIN) => {
    clearTimeout(silence);
    silence = setTimeout(lost, ms);
  };

  const open = async () => {
    clearTimeout(retry);
    retry = undefined;
    const mine = ++turn;
    if (status !== "connecting") tell(away());
    try {
      const known = typeof token === "function" ? await token() : token;
      if (mine !== turn) return;
      socket = new Socket(address.href);
      listen();
      socket.onopen = () => send({ type: "hello", token: known ?? undefined, transactions });
      socket.onmessage = (/** @type {any} */ { data }) => {
        listen();
        hear(JSON.parse(data));
      };
      socket.onclose = (/** @type {any} */ { code }) => lost(code);
      // the close tells what it was; npm's ws throws an error that nobody hears
      socket.onerror = () => {};
    } catch (error) {
      if (mine !== turn) return;
      report(error);
      lost();
    }
  };

  const renew = async () => {
    const mine = turn;
    try {
      const known = typeof token === "function" && (await token());
      if (known && mine === turn) send({ type: "token", token: known });
    } catch (error) {
      report(error);
    }
  };

  /** Lets go of the socket and of what was under way on it. */
  const drop = () => {
    turn++;
    clearTimeout(silence);
    clearTimeout(retry);
    retry = session = undefined;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
      socket = undefined;
    }
    requests.clear();
    asking.clear();
    for (const room of rooms.values()) {
      // the cursor counts for live rooms; the others keep what they were asked with
      if (room.live) room.since = cursor;
      room.sent = room.live = false;
    }
  };

  const lost = (code = 1006) => {
    drop();
    // to be welcomed and closed at once is no success
    if (Date.now() - welcomedAt >= LONGEST_WAIT) attempts = refusals = 0;
    welcomedAt = Infinity;
    const refused = code === 4401 && (typeof token !== "function" || ++refusals > FRESH_TOKENS);
    if (refused || code === 4403) return tell("unauthorized");
    const backoff = Math.min(1000 * 2 ** attempts++, LONGEST_WAIT) * (0.75 + Math.random() / 2);
    const wait = comeBackIn ?? (code === 4401 && refusals === 1 ? 0 : backoff);
    patient = comeBackIn !== undefined || code === 4429 || code === 4508;
    comeBackIn = undefined;
    retry = setTimeout(open, wait);
    tell(away(), Date.now() + wait);
  };

  /** The network, the tab or the machine has come back, or the network is gone. */
  const wake = (/** @type {Event} */ { type }) => {
    if (session) {
      // is anybody there still?
      send({ type: "ping", id: ++lastId });
      listen(PONG_WITHIN);
    } else if (retry && type === "offline") {
      tell("offline", retryAt);
    } else if (retry && !patient && (type === "online" || globalThis.document?.visibilityState !== "hidden")) {
      attempts = 0;
      open();
    }
  };

  const liveRoom = (/** @type {string} */ name) => {
    const room = rooms.get(name);
    return room?.live ? room : undefined;
  };

  const give = (/** @type {Room} */ room, /** @type {any} */ frame, toAll = false) => {
    for (const sub of [...room.subs]) {
      // an earlier one may have stopped it
      if (room.subs.has(sub) && (toAll || !sub.waiting)) call(sub.handler, frame);
    }
  };

  /** Tells a subscriber, once, that from now on nothing is missed. */
  const begin = (/** @type {Room} */ room, /** @type {Subscriber} */ sub) => {
    const { live } = sub;
    sub.live = undefined;
    if (room.subs.has(sub)) call(live);
  };

  /** Nobody waits for its snapshot any more. */
  const shown = (/** @type {Room} */ room) => {
    asking.delete(room);
    room.wants = false;
    for (const sub of room.subs) sub.waiting = false;
  };

  /** @param {any[]} events @param {any} [whole] */
  const deliver = (events, whole) => {
    /** @type {Map<Room, any[]>} */
    const due = new Map();
    for (const event of events) {
      // a record that moves leaves or enters scope rooms, never its own
      const names = event.reason === "moved" ? [] : [`${event.module}:${event.recordId}`];
      for (const name of names.concat(event.rooms ?? [])) {
        const room = liveRoom(name);
        const key = keyOf(event);
        const seq = BigInt(event.seq);
        if (!room || seq <= (room.seen.get(key) ?? -1n)) continue;
        room.seen.set(key, seq);
        if (room.record && !event.part) {
          const data = event.action === "deleted" ? null : { ...room.record.data, ...event.data };
          room.record = { ...room.record, data, seq: event.seq };
        }
        due.set(room, [...(due.get(room) ?? []), event]);
      }
    }
    for (const [room, news] of due) give(room, news.length > 1 ? { ...whole, events: news } : news[0]);
  };

  /** Not everything could be told; `answer`: to one who asked for the snapshot. */
  const resync = (/** @type {Room | undefined} */ room, /** @type {string} */ reason, answer = false) => {
    if (!room) return;
    if (reason === "epoch_changed") room.seen.clear();
    room.record = undefined;
    room.wants = [...room.subs].some((sub) => sub.snapshot);
    if (answer) shown(room);
    give(room, { type: "resync", rooms: [{ room: room.name, reason }] }, true);
    soon();
  };

  const revoke = (/** @type {Room | undefined} */ room, /** @type {string} */ reason) => {
    if (!room) return;
    rooms.delete(room.name);
    asking.delete(room);
    give(room, { type: "revoked", rooms: [room.name], reason }, true);
    room.subs.clear();
    soon();
  };

  const hear = (/** @type {any} */ frame) => {
    cursor = frame.cursor ?? cursor;
    const request = requests.get(frame.id);
    requests.delete(frame.id);
    const asked = (/** @type {string} */ name) => {
      const room = rooms.get(name);
      // one that was left and entered again is another
      return room && request?.part.has(room) ? room : undefined;
    };
    switch (frame.type) {
      case "welcome":
        session = frame;
        welcomedAt = Date.now();
        listen();
        tell("connected");
        return soon();
      case "subscribed":
        for (const { room, code } of frame.denied ?? []) revoke(asked(room), code);
        for (const room of frame.rooms.map(asked)) {
          if (!room || room.live) continue;
          room.live = true;
          for (const sub of [...room.subs]) begin(room, sub);
          if (room.missed) resync(room, room.missed);
          room.missed = undefined;
        }
        for (const { room, reason } of frame.resync ?? []) resync(asked(room), reason, request?.shows);
        return;
      case "snapshot": {
        const room = liveRoom(frame.room);
        if (!room) return;
        room.seen.set(keyOf(frame), BigInt(frame.seq ?? -1));
        room.record = frame;
        shown(room);
        give(room, frame);
        if (!asking.size) soon();
        return;
      }
      case "resync":
        for (const { room, reason } of frame.rooms) resync(liveRoom(room), reason);
        return;
      case "revoked":
        for (const room of frame.rooms) revoke(liveRoom(room), frame.reason);
        return;
      case "token_expiring":
        return void renew();
      case "draining":
        comeBackIn = frame.reconnectAfterMs;
        return;
      case "TRANSACTION":
        return deliver(frame.events, frame);
      case "error":
        report(Object.assign(new Error(`the relay says ${frame.code}: ${frame.message}`), { code: frame.code }));
        if (frame.code === "rate_limited") lost(4429);
        if (frame.code !== "bad_cursor") return;
        for (const room of request?.part ?? []) {
          room.sent = false;
          room.since = undefined;
          room.missed = "cursor_too_old";
        }
        return soon();
      default:
        if (frame.action) deliver([frame]);
    }
  };

  /** Compares what is wanted with what was asked for, once the running code is done with both. */
  const soon = () => {
    if (!flushing) queueMicrotask(flush);
    flushing = true;
  };

  const flush = () => {
    flushing = false;
    /** @type {Room[]} */
    const gone = [];
    /** @type {Room[]} */
    const shows = [];
    /** @type {Map<string | undefined, Room[]>} by where they resume */
    const groups = new Map();
    let places = session?.limits.rooms;
    for (const room of rooms.values()) {
      if (room.sent) (room.subs.size ? places-- : gone.push(room));
      if (room.subs.size) continue;
      rooms.delete(room.name);
      asking.delete(room);
    }
    if (!session) return;
    let left = 0;
    for (const room of rooms.values()) {
      const asks = room.wants && !asking.has(room) && asking.size < SNAPSHOTS_AT_ONCE;
      if (!room.sent) {
        if (places < 1) left++;
        if (places < 1 || (room.wants && !asks && !room.since)) continue;
        places--;
        room.sent = true;
        if (room.since || !asks) groups.set(room.since, [...(groups.get(room.since) ?? []), room]);
      }
      if (asks) {
        asking.add(room);
        shows.push(room);
      }
    }
    if (left && !full) report(new Error(`${left} rooms wait: the relay allows ${session.limits.rooms} a connection`));
    full = left > 0;
    ask("unsubscribe", gone);
    for (const [since, list] of groups) ask("subscribe", list, { since });
    ask("subscribe", shows, { snapshot: true });
  };

  /** Asks for rooms, in as many frames as their names need. */
  const ask = (/** @type {string} */ type, /** @type {Room[]} */ list, more = {}) => {
    const most = session.limits.frameBytes - JSON.stringify(more).length - 99;
    for (let start = 0, end = 0; start < list.length; start = end) {
      for (let bytes = 0; end < list.length; end++) {
        bytes += utf8.encode(JSON.stringify(list[end].name)).length + 1;
        if (bytes > most && end > start) break;
      }
      const part = list.slice(start, end);
      const id = ++lastId;
      requests.set(id, { part: new Set(part), shows: "snapshot" in more });
      send({ type, id, ...more, rooms: part.map((room) => room.name) });
    }
  };

  for (const type of WAKERS) globalThis.addEventListener?.(type, wake, CAPTURED);
  open();

  return {
    get status() {
      return status;
    },
    get retryAt() {
      return retryAt;
    },
    subscribe(name, handler, { snapshot = false, live } = {}) {
      if (closed) throw new Error("this relay is closed: connect() again");
      if (snapshot && /^(user|team|broker):/.test(name)) throw new TypeError(`a snapshot is of one record, ${name} holds many`);
      /** @type {Room} */
      const room = rooms.get(name) ?? { name, subs: new Set(), seen: new Map() };
      rooms.set(name, room);
      const sub = { handler, snapshot, live, waiting: snapshot };
      room.subs.add(sub);
      if (snapshot && !room.record) room.wants = true;
      queueMicrotask(() => {
        if (room.live) begin(room, sub);
        if (!sub.waiting || !room.record || !room.subs.has(sub)) return;
        sub.waiting = false;
        call(handler, room.record);
      });
      soon();
      return () => {
        if (room.subs.delete(sub)) soon();
      };
    },
    on(name, listener) {
      listeners[name].add(listener);
      return () => void listeners[name].delete(listener);
    },
    close() {
      if (closed) return;
      closed = true;
      drop();
      for (const type of WAKERS) globalThis.removeEventListener?.(type, wake, CAPTURED);
      for (const room of rooms.values()) room.subs.clear();
      rooms.clear();
      tell("offline");
      for (const set of Object.values(listeners)) set.clear();
    },
  };
};
