// The browser's side of relay/PROTOCOL.md; its promises: client.d.ts.

/** @import { connect as Connect, Status, Subscription } from "./client.js" */
/**
 * `sent`: asked for on this socket; `live`: answered; `since`: where it resumes, null: it cannot;
 * `seen`: greatest `seq` by record and part; `wants`: a snapshot; `record`: the last one, kept current.
 * @typedef {{ name: string, subs: Set<Subscription & { handler: Function, waiting: boolean }>,
 *   seen: Map<string, bigint>, sent?: boolean, live?: boolean, since?: string | null, wants?: boolean,
 *   record?: any }} Room
 */

const LONGEST_WAIT = 8000;
const TOKEN_WITHIN = 30000;
const WELCOME_WITHIN = 10000;
const PONG_WITHIN = 5000;
// the relay counts frames
const GATHER = 25;
const RATE_WAIT = 1000;
const FRESH_TOKENS = 3;
// the relay closes a connection for which too much waits
const SNAPSHOTS_AT_ONCE = 100;
const WAKERS = ["online", "offline", "pageshow", "visibilitychange", "resume"];

const keyOf = (/** @type {any} */ { module, recordId, part }) => JSON.stringify([module, recordId, part]);

/** @type {typeof Connect} */
export const connect = (url, { token, transactions, WebSocket: Socket = globalThis.WebSocket } = {}) => {
  if (!Socket) throw new TypeError("no WebSocket here: connect(url, { WebSocket }) takes npm's ws");
  const address = new URL(url, globalThis.location?.href).href.replace(/^http/, "ws");

  /** @type {Map<string, Room>} */
  const rooms = new Map();
  /** @type {Map<unknown, { part: Set<Room>, snapshot?: boolean }>} what is yet to be answered */
  const requests = new Map();
  /** @type {Set<Room>} those whose snapshot is under way */
  const asking = new Set();
  /** @type {Map<string, Room>} those that nobody wants; the relay does not know yet */
  const leaving = new Map();
  /** @type {Record<string, Set<Function>>} */
  const listeners = { status: new Set(), error: new Set() };
  /** @type {any} */
  let socket;
  /** @type {any} the welcome, while connected */
  let session;
  /** @type {any} ends a silence, or a wait */
  let timer;
  /** @type {Status} */
  let status = "connecting";
  /** @type {number | undefined} */
  let retryAt;
  /** @type {string | undefined} */
  let cursor;
  /** @type {number | undefined} what the relay wants: no earlier */
  let comeBackIn;
  let welcomedAt = Infinity;
  let attempts = 0;
  let refusals = 0;
  let turn = 0;
  let lastId = 0;
  /** @type {any} while it runs nothing is asked */
  let resting;
  let pending = false;
  let full = false;
  let closed = false;

  /** Later: who listens may close, or is yet to come. */
  const report = (/** @type {unknown} */ error) =>
    queueMicrotask(() => {
      if (!listeners.error.size) console.error(error);
      listeners.error.forEach(async (listener) => listener(error));
    });

  /** What is given to us may throw. */
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
    for (const listener of listeners.status) call(listener, now, at);
  };
  const away = () => (globalThis.navigator?.onLine === false ? "offline" : "reconnecting");

  const send = (/** @type {object} */ frame) => socket.send(JSON.stringify(frame));

  const after = (/** @type {number} */ ms, /** @type {() => void} */ run) => {
    clearTimeout(timer);
    timer = setTimeout(run, ms);
  };
  /** Something must be heard within so many milliseconds. */
  const listen = (ms = session ? session.heartbeatSeconds * 1500 : WELCOME_WITHIN) => after(ms, lost);

  const fail = (/** @type {unknown} */ error) => {
    lost();
    report(error);
  };

  /** @param {(known?: string) => void} use @param {(error: unknown) => void} failed */
  const fetchToken = async (use, failed) => {
    const mine = turn;
    try {
      const known = typeof token === "function" ? await token() : token;
      if (mine === turn) use(known ?? undefined);
    } catch (error) {
      if (mine === turn) failed(error);
    }
  };

  const open = () => {
    comeBackIn = undefined;
    listen(TOKEN_WITHIN);
    if (status !== "connecting") tell(away());
    fetchToken((known) => {
      socket = new Socket(address);
      listen();
      socket.onopen = () => send({ type: "hello", token: known, transactions });
      socket.onmessage = (/** @type {any} */ { data }) => {
        listen();
        try {
          hear(JSON.parse(data));
        } catch (error) {
          // what it meant comes by resuming
          fail(error);
        }
      };
      socket.onclose = (/** @type {any} */ { code }) => lost(code);
      // the close tells; npm's ws throws what nobody hears
      socket.onerror = () => {};
    }, fail);
  };

  /** Lets go of the socket and what was under way on it. */
  const drop = () => {
    turn++;
    clearTimeout(timer);
    clearTimeout(resting);
    session = resting = undefined;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
      socket = undefined;
    }
    pending = false;
    for (const set of [requests, asking, leaving]) set.clear();
    for (const room of rooms.values()) {
      // the cursor counts for live rooms; others keep what they were asked with
      if (room.live) room.since = cursor;
      room.sent = room.live = false;
    }
  };

  const lost = (code = 1006) => {
    drop();
    // welcomed and closed at once is no success
    if (Date.now() - welcomedAt >= LONGEST_WAIT) attempts = refusals = 0;
    welcomedAt = Infinity;
    const refused = code === 4401 && (typeof token !== "function" || ++refusals > FRESH_TOKENS);
    if (refused || code === 4403) return tell("unauthorized");
    const backoff = Math.min(1000 * 2 ** attempts++, LONGEST_WAIT) * (0.75 + Math.random() / 2);
    if (code === 4429 || code === 4508) comeBackIn ??= backoff;
    const wait = comeBackIn ?? (code === 4401 && refusals === 1 ? 0 : backoff);
    after(wait, open);
    tell(away(), Date.now() + wait);
  };

  /** The network, the tab or the machine is back, or the network gone. */
  const wake = (/** @type {Event} */ { type }) => {
    attempts = 0;
    if (socket) {
      // is anybody there still?
      if (session) send({ type: "ping", id: ++lastId });
      listen(PONG_WITHIN);
    } else if (retryAt && type === "offline") {
      tell(type, retryAt);
    } else if (retryAt && comeBackIn === undefined && (type === "online" || globalThis.document?.visibilityState !== "hidden")) {
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

  /** Tells who was not told yet that nothing is missed from now on. */
  const begin = (/** @type {Room} */ room) => {
    for (const sub of room.subs) {
      call(sub.live);
      sub.live = undefined;
    }
  };

  /** Nobody waits for its snapshot. */
  const shown = (/** @type {Room} */ room) => {
    asking.delete(room);
    room.wants = false;
    for (const sub of room.subs) sub.waiting = false;
  };

  const deliver = (/** @type {any} */ frame) => {
    /** @type {Map<Room, any[]>} */
    const due = new Map();
    for (const event of frame.events ?? [frame]) {
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
    for (const [room, news] of due) give(room, news.length > 1 ? { ...frame, events: news } : news[0]);
  };

  /** Not everything could be told; `answer`: no snapshot either. */
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
          room.sent = room.live = true;
          begin(room);
          if (room.since === null) resync(room, "epoch_changed");
          room.since = undefined;
        }
        for (const { room, reason } of frame.resync ?? []) resync(asked(room), reason, request?.snapshot);
        return soon();
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
        if (typeof token === "function") fetchToken((known) => known && send({ type: "token", token: known }), report);
        return;
      case "draining":
        comeBackIn = frame.reconnectAfterMs;
        return;
      case "error":
        if (frame.code === "rate_limited") rest(RATE_WAIT);
        // nothing of it was heeded
        for (const room of request?.part ?? []) {
          asking.delete(room);
          if (rooms.get(room.name) !== room) leaving.set(room.name, room);
          room.sent = room.live;
          if (frame.code === "bad_cursor") room.since = null;
        }
        soon();
        return report(Object.assign(new Error(`the relay says ${frame.code}: ${frame.message}`), { code: frame.code }));
      default:
        if (frame.txid) deliver(frame);
    }
  };

  const rest = (/** @type {number} */ ms) => {
    clearTimeout(resting);
    resting = setTimeout(() => {
      resting = undefined;
      if (pending) flush();
    }, ms);
  };

  /** Asks for what is wanted, when the running code is done; not too often. */
  const soon = () => {
    if (!pending && !resting) queueMicrotask(flush);
    pending = true;
  };

  const flush = () => {
    pending = false;
    /** @type {Room[]} */
    const shows = [];
    /** @type {Map<unknown, Room[]>} by where they resume */
    const groups = new Map();
    let places = session?.limits.rooms;
    for (const room of rooms.values()) {
      if (room.sent) (room.subs.size ? places-- : leaving.set(room.name, room));
      if (room.subs.size) continue;
      rooms.delete(room.name);
      asking.delete(room);
    }
    if (!session) return;
    rest(GATHER);
    let left = 0;
    for (const room of rooms.values()) {
      const asks = room.wants && !room.since && !asking.has(room) && asking.size < SNAPSHOTS_AT_ONCE;
      if (!room.sent) {
        if (places < 1) left++;
        if (places < 1 || (room.wants && !asks && !room.since)) continue;
        places--;
        room.sent = true;
        if (!asks) groups.set(room.since, [...(groups.get(room.since) ?? []), room]);
      }
      if (asks) {
        asking.add(room);
        shows.push(room);
      }
    }
    if (left && !full) report(new Error(`${left} rooms wait: the relay allows ${session.limits.rooms} a connection`));
    full = left > 0;
    const gone = [...leaving.values()].filter(({ name }) => !rooms.get(name)?.sent);
    gone.forEach(({ name }) => leaving.delete(name));
    ask("unsubscribe", gone);
    for (const [since, list] of groups) ask("subscribe", list, { since: since ?? undefined });
    ask("subscribe", shows, { snapshot: true });
  };

  /** In as many frames as the names need. */
  const ask = (/** @type {string} */ type, /** @type {Room[]} */ list, more = {}) => {
    if (!list.length) return;
    const id = ++lastId;
    const frame = { type, id, ...more, rooms: list.map(({ name }) => name) };
    const half = list.length >> 1;
    // a character takes up to three bytes
    if (half && JSON.stringify(frame).length * 3 > session.limits.frameBytes) {
      ask(type, list.slice(0, half), more);
      return ask(type, list.slice(half), more);
    }
    requests.set(id, { ...more, part: new Set(list) });
    send(frame);
  };

  // captured: not all bubble
  for (const type of WAKERS) globalThis.addEventListener?.(type, wake, true);
  open();

  return {
    get status() {
      return status;
    },
    get retryAt() {
      return retryAt;
    },
    subscribe(name, handler, { snapshot = false, live } = {}) {
      if (closed) throw new Error("this relay is closed");
      if (snapshot && /^(user|team|broker):/.test(name)) throw new TypeError(`no snapshot: ${name} holds many records`);
      /** @type {Room} */
      const room = rooms.get(name) ?? { name, subs: new Set(), seen: new Map() };
      rooms.set(name, room);
      const sub = { handler, snapshot, live, waiting: snapshot };
      room.subs.add(sub);
      if (snapshot && !room.record) room.wants = true;
      queueMicrotask(() => {
        if (room.live) begin(room);
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
      closed = true;
      drop();
      for (const type of WAKERS) globalThis.removeEventListener?.(type, wake, true);
      for (const room of rooms.values()) room.subs.clear();
      rooms.clear();
      tell("offline");
      for (const set of Object.values(listeners)) set.clear();
    },
  };
};
