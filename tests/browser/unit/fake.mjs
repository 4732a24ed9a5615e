// What the client's tests put in the place of a network, a window and a clock.

import { getEventListeners } from "node:events";
import { mock } from "node:test";
import { connect } from "../../../relay/web/client.js";

export const ROOM = "listings:1";

/** A socket whose other end is the test. */
export class Socket {
  static all = [];
  static get last() {
    return Socket.all.at(-1);
  }

  constructor(url) {
    Object.assign(this, { url, sent: [], open: false, closed: false });
    Socket.all.push(this);
  }

  send(text) {
    if (!this.open) throw new Error("sent before it was open");
    this.sent.push(JSON.parse(text));
  }

  close() {
    this.closed = true;
  }

  /** The relay has accepted. */
  accept() {
    this.open = true;
    this.onopen?.();
    return this;
  }

  /** The relay says something. */
  say(...frames) {
    for (const frame of frames) this.onmessage?.({ data: JSON.stringify(frame) });
    return this;
  }

  /** Accepted and welcomed. */
  async welcome(more) {
    this.accept().say({ type: "welcome", protocol: 1, heartbeatSeconds: 25, limits: { rooms: 1000, frameBytes: 65536 }, ...more });
    await settled();
    return this;
  }

  /** The relay, or the network, ends it. */
  end(code = 1006) {
    this.open = false;
    this.onclose?.({ code });
  }

  /** What was said so far of a type; and forgets it. */
  said(type) {
    const found = this.sent.filter((frame) => frame.type === type);
    this.sent = this.sent.filter((frame) => frame.type !== type);
    return found;
  }

  /** Answers the subscribes so far, all granted unless told otherwise. */
  grant(cursor = "c0", more = {}) {
    const asked = this.said("subscribe");
    for (const { id, rooms } of asked) this.say({ type: "subscribed", id, rooms, cursor, ...more });
    return asked;
  }
}

/** A window of which the client hears what the test lets happen. */
const events = new EventTarget();
globalThis.addEventListener = events.addEventListener.bind(events);
// Node's own takes no boolean here
globalThis.removeEventListener = (type, listener, capture) => events.removeEventListener(type, listener, { capture });
export const happens = (type) => events.dispatchEvent(new Event(type));
export const listeners = () =>
  ["online", "offline", "pageshow", "visibilitychange", "resume"].flatMap((type) => getEventListeners(events, type)).length;

/** Lets everything run that waits for nothing but its turn. */
export const settled = () => new Promise((done) => setImmediate(done));

export const tick = async (ms) => {
  mock.timers.tick(ms);
  await settled();
};

/** What a page wants within so long is asked for at once. */
export const gathered = () => tick(25);

/** A relay on fakes: no jitter, a clock that stands still; `context` is the test's. */
export function start(context, options = {}) {
  Socket.all = [];
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_000_000 });
  const random = mock.method(Math, "random", () => 0.5);
  const relay = connect("ws://relay/ws", { WebSocket: Socket, ...options });
  const statuses = [];
  const errors = [];
  relay.on("status", (status) => statuses.push(status));
  relay.on("error", (error) => errors.push(error));
  context.after(() => {
    relay.close();
    random.mock.restore();
    mock.timers.reset();
    delete globalThis.document;
  });
  return { relay, statuses, errors };
}

/** A subscriber that keeps what it is given. */
export function listen(relay, room = ROOM, options) {
  const frames = [];
  const stop = relay.subscribe(room, (frame) => frames.push(frame), options);
  return { frames, stop, seqs: () => frames.map((frame) => frame.seq ?? frame.type) };
}

export function change(seq, more = {}) {
  return {
    type: "LISTING_UPDATED", module: "listings", action: "updated", recordId: "1", data: { price: seq },
    previous: { price: seq - 1 }, userId: "ana", timestamp: "2026-11-22T22:50:13.123Z", txid: String(seq),
    seq: String(seq), cursor: `c${seq}`, ...more,
  };
}

export const snapshot = (seq, data = { id: "1", price: seq }, room = ROOM) => ({
  type: "snapshot", room, module: "listings", recordId: room.split(":")[1], data, seq: seq === null ? null : String(seq), cursor: `c${seq}`,
});
