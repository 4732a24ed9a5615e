// Random interleavings of all that may happen to a connection, against a relay that keeps a history: at
// the end every subscriber has seen its room's history, without a gap, in order and nothing twice.

import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { connect } from "../../../relay/web/client.js";
import { settled } from "./fake.mjs";

const RUNS = 3000;
const STEPS = 160;
const RECORDS = ["1", "2", "3", "4"];
const ROOMS = [...RECORDS.map((id) => `listings:${id}`), "team:odd", "team:even"];

/** Mulberry32: the same run for the same seed. */
function random(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

const teamOf = (id) => (Number(id) % 2 ? "team:odd" : "team:even");
const holds = (room, { recordId }) => room === `listings:${recordId}` || room === teamOf(recordId);

/**
 * A relay with one client at a time. Cursors are numbers of changes told, `first` the oldest that it can serve;
 * `refusing` so many of the frames that come next are too many.
 */
class Relay {
  history = [];
  epoch = 0;
  first = 0;
  refusing = 0;

  cursor = (position = this.history.length) => `${this.epoch}.${position}`;

  frame(change, rooms) {
    const scopes = rooms.filter((room) => room === teamOf(change.recordId));
    const cursor = this.cursor(this.history.indexOf(change));
    return { ...change, cursor, ...(scopes.length && { rooms: scopes }) };
  }

  commit(change) {
    const seq = String(this.history.length + 1);
    this.history.push({ module: "listings", action: "updated", data: { [change.part ?? "own"]: seq }, seq, txid: seq, ...change });
    this.socket?.tell(this.history.at(-1));
  }

  snapshot(room) {
    const recordId = room.split(":")[1];
    const last = this.history.filter((change) => change.recordId === recordId && !change.part).at(-1);
    return { type: "snapshot", room, module: "listings", recordId, data: { id: recordId, ...last?.data }, seq: last?.seq ?? null, cursor: this.cursor() };
  }

  answer(socket, { type, id, rooms, since, snapshot }) {
    if (type === "hello") return [{ type: "welcome", heartbeatSeconds: 25, limits: { rooms: 5, frameBytes: 150 } }];
    if (this.refusing && /subscribe$/.test(type)) {
      this.refusing--;
      // who is refused an unsubscribe has more rooms than it knows
      if (type === "unsubscribe") socket.excess = true;
      return [{ type: "error", id, code: "rate_limited", message: "too many" }];
    }
    if (type === "unsubscribe") {
      rooms.forEach((room) => socket.rooms.delete(room));
      return [{ type: "unsubscribed", id, rooms }];
    }
    if (type !== "subscribe") return [{ type: "pong", id, cursor: this.cursor() }];
    rooms.forEach((room) => socket.rooms.add(room));
    assert.ok(socket.excess || socket.rooms.size <= 5, "the client keeps to the limit");
    if (snapshot) return [{ type: "subscribed", id, rooms, cursor: this.cursor() }, ...rooms.map((room) => this.snapshot(room))];
    if (!since) return [{ type: "subscribed", id, rooms, cursor: this.cursor() }];
    const [epoch, position] = since.split(".").map(Number);
    const reason = epoch !== this.epoch ? "epoch_changed" : position < this.first ? "cursor_too_old" : undefined;
    if (reason) return [{ type: "subscribed", id, rooms, cursor: this.cursor(), resync: rooms.map((room) => ({ room, reason })) }];
    const missed = this.history.slice(position).filter((change) => rooms.some((room) => holds(room, change)));
    return [{ type: "subscribed", id, rooms, cursor: since }, ...missed.map((change) => this.frame(change, rooms))];
  }
}

/** What is said waits on the way, in both directions, until the run lets it arrive. */
function socketOf(relay) {
  return class {
    rooms = new Set();
    there = [];
    back = [];

    constructor() {
      this.fresh = true;
      relay.socket = this;
    }
    send(text) {
      this.there.push(JSON.parse(text));
    }
    close() {
      if (relay.socket === this) relay.socket = undefined;
    }
    tell(change) {
      const rooms = [...this.rooms].filter((room) => holds(room, change));
      if (rooms.length) this.back.push(relay.frame(change, rooms));
    }
    step(toRelay) {
      if (this.fresh) {
        this.fresh = false;
        this.onopen();
      } else if (toRelay && this.there.length) {
        this.back.push(...relay.answer(this, this.there.shift()));
      } else if (this.back.length) {
        this.onmessage({ data: JSON.stringify(this.back.shift()) });
      }
    }
    idle() {
      return !this.fresh && !this.there.length && !this.back.length;
    }
  };
}

/** One who watches a room and checks each frame against the history. */
class Watcher {
  view = null;
  /** What must come next, once it is known: a place in the room's history. */
  next = undefined;

  constructor(client, relay, room, snapshot) {
    Object.assign(this, { relay, room, snapshot });
    this.stop = client.subscribe(room, (frame) => this.hear(frame), { snapshot, live: () => (this.liveAt = relay.history.length) });
  }

  own() {
    return this.relay.history.filter((change) => holds(this.room, change));
  }

  hear(frame) {
    const own = this.own();
    if (frame.type === "resync") {
      this.next = undefined;
      this.resynced = true;
      this.liveAt = this.relay.history.length;
      this.waits = this.snapshot;
      if (!this.snapshot) this.view = null;
    } else if (frame.type === "snapshot") {
      const seq = Number(frame.seq ?? 0);
      this.waits = false;
      this.view = { ...frame.data };
      // a part has an order of its own, so after a snapshot only the record's own changes are counted
      this.next = seq;
    } else {
      assert.ok(this.liveAt !== undefined, "nothing comes before live");
      assert.ok(!this.snapshot || this.view || this.resynced, "nothing comes before the snapshot");
      const place = own.findIndex(({ seq }) => seq === frame.seq);
      if (this.view) {
        Object.assign(this.view, frame.data);
        if (frame.part || this.waits) return;
        const skipped = own.filter(({ seq, part }) => !part && Number(seq) > this.next && Number(seq) < Number(frame.seq));
        assert.deepEqual(skipped, [], `${this.room}: a change is missing before ${frame.seq}`);
        assert.ok(Number(frame.seq) > this.next, `${this.room}: ${frame.seq} after ${this.next}`);
        this.next = Number(frame.seq);
        return;
      }
      // the connection's cursor may be older than this room, if another is still catching up: so is what it brings
      if (Number(frame.seq) <= this.liveAt) return;
      if (this.next !== undefined) assert.equal(place, this.next, `${this.room}: ${frame.seq} out of order`);
      else assert.ok(own.slice(0, place).every(({ seq }) => Number(seq) <= this.liveAt), `${this.room}: a change is missing before ${frame.seq}`);
      this.next = place + 1;
    }
  }

  /** When all is quiet. */
  check() {
    const own = this.own();
    if (this.snapshot || this.view) {
      const last = own.filter(({ part }) => !part).at(-1);
      assert.equal(this.view?.own, last?.data.own, `${this.room}: the view is the record`);
      return;
    }
    assert.ok(this.liveAt !== undefined, `${this.room}: never live`);
    const missing = own.slice(this.next ?? 0).filter(({ seq }) => this.next !== undefined || Number(seq) > this.liveAt);
    assert.deepEqual(missing, [], `${this.room}: the end is missing`);
  }
}

async function run(seed) {
  const dice = random(seed);
  Math.random = random(-seed); // the client's jitter
  const pick = (list) => list[Math.floor(dice() * list.length)];
  const relay = new Relay();
  const client = connect("ws://relay/ws", { WebSocket: socketOf(relay) });
  const errors = [];
  client.on("error", (error) => /rooms wait|rate_limited/.test(error.message) || errors.push(error));
  let watchers = [];
  const can = {
    commit: () => relay.commit({ recordId: pick(RECORDS), ...(dice() < 0.2 && { part: "contacts" }) }),
    step: () => relay.socket?.step(dice() < 0.5),
    watch: () => {
      const room = pick(ROOMS);
      if (watchers.length < 8) watchers.push(new Watcher(client, relay, room, room.startsWith("listings") && dice() < 0.5));
    },
    leave: () => watchers.splice(Math.floor(dice() * watchers.length), 1)[0]?.stop(),
    heartbeat: () => relay.socket?.rooms.size && relay.socket.back.push({ type: "heartbeat", cursor: relay.cursor() }),
    cut: () => {
      const { socket } = relay;
      relay.socket = undefined;
      socket?.onclose?.({ code: 1006 });
    },
    prune: () => (relay.first = Math.max(relay.first, relay.history.length - 3)),
    restore: () => {
      can.cut();
      relay.epoch++;
      relay.history.splice(-3);
    },
    refuse: () => (relay.refusing = 3),
    pass: () => mock.timers.tick(dice() < 0.2 ? 1000 : 25),
    wait: () => relay.socket || mock.timers.tick(10_000),
  };
  /** Until nothing is on the way and nothing is waited for. */
  const quiet = async () => {
    for (let passed = 0; passed < 1500 || !relay.socket?.idle(); ) {
      can.wait();
      relay.socket?.step(true);
      await settled();
      if (!relay.socket?.idle()) continue;
      mock.timers.tick(500);
      passed += 500;
      await settled();
    }
  };
  const deck = Object.entries({ commit: 6, step: 24, watch: 3, leave: 2, heartbeat: 2, cut: 1, prune: 0.2, restore: 0.1, refuse: 0.3, pass: 6, wait: 3 })
    .flatMap(([name, weight]) => Array(weight * 10).fill(name));
  try {
    for (let step = 0; step < STEPS; step++) {
      can[pick(deck)]();
      await settled();
    }
    // more than the limit would wait for a place
    while (new Set(watchers.map(({ room }) => room)).size > 5) watchers.pop().stop();
    await settled();
    relay.refusing = 0;
    await quiet();
    watchers.forEach((watcher) => watcher.check());
    assert.deepEqual(errors, []);
    const wanted = new Set(watchers.map(({ room }) => room));
    assert.deepEqual(relay.socket.rooms, wanted, "the relay's rooms are those that are wanted");
    watchers.forEach(({ stop }) => stop());
    await quiet();
    assert.equal(relay.socket.rooms.size, 0);
  } finally {
    client.close();
  }
  return relay.history.length;
}

test(`in ${RUNS} random runs each subscriber sees its room's history whole, in order and once`, async () => {
  mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const given = Number(process.env.SEED);
  for (let seed = given || 1; seed <= (given || RUNS); seed++) {
    await run(seed).catch((error) => {
      error.message = `SEED=${seed}: ${error.message}`;
      throw error;
    });
  }
});
