import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { connect } from "../../../relay/web/client.js";
import { ROOM, Socket, change, gathered, happens, listen, listeners, settled, snapshot, start, tick } from "./fake.mjs";

test("says hello, and subscribes to what was asked for before the connection was up", async (t) => {
  const { relay, statuses } = start(t);
  listen(relay);
  listen(relay, "team:7");
  assert.equal(relay.status, "connecting");
  assert.equal(Socket.last.url, "ws://relay/ws");
  await Socket.last.accept();
  assert.deepEqual(Socket.last.sent, [{ type: "hello" }]);
  await Socket.last.welcome();
  assert.deepEqual(statuses, ["connected"]);
  assert.deepEqual(Socket.last.said("subscribe"), [{ type: "subscribe", id: 1, rooms: [ROOM, "team:7"] }]);
});

test("comes back after 1, 2, 4, 8 and then every 8 seconds", async (t) => {
  const { relay } = start(t);
  Socket.last.end();
  for (const seconds of [1, 2, 4, 8, 8, 8]) {
    const tried = Socket.all.length;
    assert.equal(relay.retryAt, Date.now() + seconds * 1000);
    await tick(seconds * 1000 - 1);
    assert.equal(Socket.all.length, tried);
    await tick(1);
    assert.equal(Socket.all.length, tried + 1, `after ${seconds} s`);
    assert.equal(relay.status, "reconnecting");
    Socket.last.end();
  }
});

test("each wait has up to a quarter of jitter", async (t) => {
  const { relay } = start(t);
  Math.random.mock.mockImplementation(() => 0);
  Socket.last.end();
  assert.equal(relay.retryAt, Date.now() + 750);
  await tick(750);
  Math.random.mock.mockImplementation(() => 0.999999);
  Socket.last.end();
  assert.equal(Math.round(relay.retryAt - Date.now()), 2500);
});

test("a connection that lasted begins again at 1 s, one that is welcomed and closed at once does not", async (t) => {
  const { relay } = start(t);
  for (const seconds of [1, 2, 4]) {
    await Socket.last.welcome();
    Socket.last.end();
    assert.equal(relay.retryAt - Date.now(), seconds * 1000);
    await tick(seconds * 1000);
  }
  await Socket.last.welcome();
  await tick(8000);
  Socket.last.end();
  assert.equal(relay.retryAt - Date.now(), 1000);
});

test("comes back at once when the network does, or the tab, or the machine", async (t) => {
  const { relay } = start(t);
  globalThis.document = { visibilityState: "visible" };
  for (const type of ["online", "visibilitychange", "resume", "pageshow"]) {
    Socket.last.end();
    const tried = Socket.all.length;
    happens(type);
    await settled();
    assert.equal(Socket.all.length, tried + 1, type);
    happens(type); // while one attempt runs, no second
    await settled();
    assert.equal(Socket.all.length, tried + 1, type);
    assert.equal(relay.retryAt, undefined);
  }
  await tick(60_000);
  Socket.last.end();
  const tried = Socket.all.length;
  globalThis.document.visibilityState = "hidden";
  happens("visibilitychange"); // the tab has gone
  await settled();
  assert.equal(Socket.all.length, tried);
});

test("tells when the browser has no network", async (t) => {
  const { relay } = start(t);
  const network = { onLine: false };
  const own = Object.getOwnPropertyDescriptor(globalThis, "navigator");
  Object.defineProperty(globalThis, "navigator", { value: network, configurable: true });
  t.after(() => (own ? Object.defineProperty(globalThis, "navigator", own) : delete globalThis.navigator));
  Socket.last.end();
  assert.equal(relay.status, "offline");
  network.onLine = true;
  happens("online");
  await settled();
  assert.equal(relay.status, "reconnecting");
  await Socket.last.welcome();
  assert.equal(relay.status, "connected");
});

test("a network that goes while waiting is told, and the wait goes on", async (t) => {
  const { relay, statuses } = start(t);
  Socket.last.end();
  const at = relay.retryAt;
  happens("offline");
  assert.deepEqual(statuses, ["reconnecting", "offline"]);
  assert.equal(relay.retryAt, at);
  await tick(1000);
  assert.equal(Socket.all.length, 2);
});

test("a heartbeat that does not come is a dead connection", async (t) => {
  const { relay } = start(t);
  const socket = await Socket.last.welcome({ heartbeatSeconds: 10 });
  await tick(14_999);
  socket.say({ type: "heartbeat", cursor: "c1" });
  await tick(14_999);
  assert.equal(relay.status, "connected");
  await tick(1);
  assert.equal(relay.status, "reconnecting");
  assert.ok(socket.closed, "and is let go");
});

test("a relay that accepts and says nothing is left after 10 s", async (t) => {
  start(t);
  Socket.last.accept();
  await tick(9_999);
  assert.ok(!Socket.last.closed);
  await tick(1);
  assert.ok(Socket.last.closed);
  await tick(1_000);
  assert.equal(Socket.all.length, 2);
});

test("a laptop that wakes asks whether anybody is there, and does not wait for long", async (t) => {
  const { relay } = start(t);
  const socket = await Socket.last.welcome();
  happens("resume");
  const [ping] = socket.said("ping");
  await tick(4_999);
  socket.say({ type: "pong", id: ping.id, cursor: "c1" });
  await tick(5_000);
  assert.equal(relay.status, "connected");
  happens("offline");
  await tick(5_000);
  assert.equal(relay.status, "reconnecting");
});

test("resumes all rooms by the last cursor of the connection", async (t) => {
  const { relay } = start(t);
  const one = listen(relay);
  const two = listen(relay, "listings:2");
  (await Socket.last.welcome()).grant("c1");
  Socket.last.say(change(5), { type: "heartbeat", cursor: "c6" });
  Socket.last.end();
  await tick(1000);
  await Socket.last.welcome();
  assert.deepEqual(Socket.last.grant("c7"), [{ type: "subscribe", id: 2, since: "c6", rooms: [ROOM, "listings:2"] }]);
  Socket.last.say(change(5), change(6), change(6), change(7, { recordId: "2" }));
  assert.deepEqual(one.seqs(), ["5", "6"]);
  assert.deepEqual(two.seqs(), ["7"]);
});

test("a room whose answer is outstanding keeps the cursor that it was asked with", async (t) => {
  const { relay } = start(t);
  listen(relay);
  (await Socket.last.welcome()).grant("c1");
  Socket.last.end();
  await tick(1000);
  await Socket.last.welcome(); // asked with c1, not answered
  listen(relay, "listings:2");
  await gathered();
  const [, second] = Socket.last.said("subscribe");
  Socket.last.say({ type: "subscribed", id: second.id, rooms: second.rooms, cursor: "c9" });
  Socket.last.end();
  await tick(2000);
  await Socket.last.welcome();
  const asked = Socket.last.said("subscribe").map(({ since, rooms }) => [since, rooms]);
  assert.deepEqual(asked, [["c1", [ROOM]], ["c9", ["listings:2"]]]);
});

test("a room that was never answered begins anew, since nothing was promised for it", async (t) => {
  const { relay } = start(t);
  listen(relay);
  await Socket.last.welcome();
  Socket.last.say({ type: "heartbeat", cursor: "c4" });
  Socket.last.end();
  await tick(1000);
  await Socket.last.welcome();
  assert.deepEqual(Socket.last.said("subscribe"), [{ type: "subscribe", id: 2, rooms: [ROOM] }]);
});

test("drops what it has by seq, for each module, record and part by itself, as 64 bit", async (t) => {
  const { relay } = start(t);
  const team = listen(relay, "team:7");
  (await Socket.last.welcome()).grant();
  const rooms = ["team:7"];
  Socket.last.say(
    change("9007199254740993", { rooms }), change("9007199254740992", { rooms }), change("9007199254740994", { rooms }),
    change(4, { rooms, recordId: "2" }), change(3, { rooms, part: "contacts" }), change(3, { rooms, part: "contacts" }),
    change(2, { rooms, module: "leads" }),
  );
  assert.deepEqual(team.seqs(), ["9007199254740993", "9007199254740994", "4", "3", "2"]);
});

test("what one room has seen says nothing of another: each is told what its own replay brings", async (t) => {
  const { relay } = start(t);
  const team = listen(relay, "team:7");
  (await Socket.last.welcome()).grant("c1");
  Socket.last.end();
  await tick(1000);
  listen(relay);
  await Socket.last.welcome();
  const asked = Socket.last.said("subscribe");
  const [resume, fresh] = [asked.find(({ since }) => since), asked.find(({ since }) => !since)];
  Socket.last.say({ type: "subscribed", id: fresh.id, rooms: fresh.rooms, cursor: "c4" }, change(5));
  Socket.last.say({ type: "subscribed", id: resume.id, rooms: resume.rooms, cursor: "c4" }, change(4, { rooms: ["team:7"] }), change(5, { rooms: ["team:7"] }));
  assert.deepEqual(team.seqs(), ["4", "5"]);
});

test("a frame goes to the subscribers of each room that it is for, once each", async (t) => {
  const { relay } = start(t);
  const record = listen(relay);
  const team = listen(relay, "team:7");
  const other = listen(relay, "team:8");
  (await Socket.last.welcome()).grant();
  Socket.last.say(change(5, { rooms: ["team:7"] }));
  assert.deepEqual([record.seqs(), team.seqs(), other.seqs()], [["5"], ["5"], []]);
});

test("a record that leaves a team has not left its own room", async (t) => {
  const { relay } = start(t);
  const record = listen(relay);
  const team = listen(relay, "team:7");
  (await Socket.last.welcome()).grant();
  Socket.last.say(change(5, { rooms: ["team:7"], action: "deleted", type: "LISTING_DELETED", reason: "moved", data: { id: "1" } }));
  assert.deepEqual(record.frames, []);
  assert.equal(team.frames[0].reason, "moved");
});

test("two subscribers of a room are one subscribe, and the last one to stop unsubscribes, once", async (t) => {
  const { relay } = start(t);
  const [one, two] = [listen(relay), listen(relay)];
  (await Socket.last.welcome()).grant();
  const late = listen(relay);
  await gathered();
  assert.deepEqual(Socket.last.said("subscribe"), []);
  Socket.last.say(change(5));
  assert.deepEqual([one, two, late].map((each) => each.seqs()), [["5"], ["5"], ["5"]]);
  one.stop();
  one.stop();
  late.stop();
  await gathered();
  assert.deepEqual(Socket.last.said("unsubscribe"), []);
  Socket.last.say(change(6));
  assert.deepEqual([one.seqs(), two.seqs()], [["5"], ["5", "6"]]);
  two.stop();
  two.stop();
  await gathered();
  assert.deepEqual(Socket.last.said("unsubscribe").map(({ rooms }) => rooms), [[ROOM]]);
  Socket.last.say(change(7));
  assert.deepEqual(two.seqs(), ["5", "6"]);
});

test("stopping and beginning again in one breath says nothing to the relay", async (t) => {
  const { relay } = start(t);
  const first = listen(relay);
  (await Socket.last.welcome()).grant();
  first.stop();
  const second = listen(relay);
  await settled();
  assert.deepEqual(Socket.last.sent.map(({ type }) => type), ["hello"]);
  Socket.last.say(change(5));
  assert.deepEqual([first.seqs(), second.seqs()], [[], ["5"]]);
});

test("a room that is left and entered again hears nothing of the first time", async (t) => {
  const { relay } = start(t);
  const first = listen(relay);
  (await Socket.last.welcome()).grant();
  first.stop();
  await gathered();
  const second = listen(relay);
  await gathered();
  Socket.last.say(change(5)); // sent before the relay heard of it
  Socket.last.grant("c5");
  Socket.last.say(change(6));
  assert.deepEqual(second.seqs(), ["6"]);
});

test("a room that was left while its answer was on the way stays left", async (t) => {
  const { relay } = start(t);
  const first = listen(relay);
  await Socket.last.welcome();
  first.stop();
  await gathered();
  assert.deepEqual(Socket.last.said("unsubscribe").map(({ rooms }) => rooms), [[ROOM]]);
  Socket.last.grant();
  Socket.last.say(change(5));
  Socket.last.end();
  await tick(1000);
  await Socket.last.welcome();
  assert.deepEqual(Socket.last.said("subscribe"), []);
});

test("live is called once, when nothing is missed any more", async (t) => {
  const { relay } = start(t);
  const calls = [];
  listen(relay, ROOM, { live: () => calls.push("first") });
  await Socket.last.welcome();
  assert.deepEqual(calls, []);
  Socket.last.grant();
  assert.deepEqual(calls, ["first"]);
  listen(relay, ROOM, { live: () => calls.push("second") });
  await settled();
  assert.deepEqual(calls, ["first", "second"]);
  Socket.last.end();
  await tick(1000);
  (await Socket.last.welcome()).grant();
  assert.deepEqual(calls, ["first", "second"]);
});

test("with a snapshot the record comes first and then what follows it", async (t) => {
  const { relay } = start(t);
  const shown = listen(relay, ROOM, { snapshot: true });
  await Socket.last.welcome();
  assert.equal(Socket.last.grant()[0].snapshot, true);
  Socket.last.say(change(8), snapshot(9), change(9), change(10));
  assert.deepEqual(shown.seqs(), ["9", "10"]);
});

test("after a snapshot its seq is the number to drop by, also if it is the lower one or none", async (t) => {
  const { relay } = start(t);
  const plain = listen(relay);
  (await Socket.last.welcome()).grant();
  Socket.last.say(change(5));
  listen(relay, ROOM, { snapshot: true });
  await gathered();
  assert.equal(Socket.last.grant()[0].snapshot, true);
  Socket.last.say(snapshot(3), change(3), change(4), snapshot(null), change(1));
  assert.deepEqual(plain.seqs(), ["5", "3", "4", null, "1"].map((seq) => seq ?? "snapshot"));
});

test("who asks for the snapshot of a record that is there already gets it as it is now, without asking", async (t) => {
  const { relay } = start(t);
  listen(relay, ROOM, { snapshot: true });
  (await Socket.last.welcome()).grant();
  Socket.last.say(snapshot(3, { id: "1", price: 3, beds: 2 }), change(4, { data: { price: 4 } }), change(5, { part: "contacts", data: { price: "other" } }));
  const late = listen(relay, ROOM, { snapshot: true });
  await settled();
  assert.deepEqual(Socket.last.said("subscribe"), []);
  assert.deepEqual(late.frames.map(({ type, data, seq }) => [type, data, seq]), [["snapshot", { id: "1", price: 4, beds: 2 }, "4"]]);
  Socket.last.say(change(6, { action: "deleted", type: "LISTING_DELETED", data: { id: "1" } }));
  const latest = listen(relay, ROOM, { snapshot: true });
  await settled();
  assert.equal(latest.frames[0].data, null);
});

test("a snapshot that was asked for and did not come is asked for again; who has it resumes", async (t) => {
  const { relay } = start(t);
  const plain = listen(relay);
  (await Socket.last.welcome()).grant("c1");
  const waits = listen(relay, ROOM, { snapshot: true });
  await gathered();
  Socket.last.grant("c2");
  Socket.last.end();
  await tick(1000);
  await Socket.last.welcome();
  const asked = Socket.last.grant("c3");
  await gathered();
  asked.push(...Socket.last.grant("c3"));
  assert.deepEqual(asked.map(({ since, snapshot }) => [since, snapshot]), [["c2", undefined], [undefined, true]]);
  Socket.last.say(change(3), snapshot(3), change(4));
  assert.deepEqual(plain.seqs(), ["3", "3", "4"]);
  assert.deepEqual(waits.seqs(), ["3", "4"]);
});

test("snapshots are asked for a hundred at a time", async (t) => {
  const { relay } = start(t);
  const all = Array.from({ length: 150 }, (_, n) => listen(relay, `listings:${n}`, { snapshot: true }));
  await Socket.last.welcome();
  const [{ rooms }] = Socket.last.grant();
  assert.equal(rooms.length, 100);
  for (const room of rooms) Socket.last.say(snapshot(1, {}, room));
  await gathered();
  const [rest] = Socket.last.grant();
  assert.equal(rest.rooms.length, 50);
  for (const room of rest.rooms) Socket.last.say(snapshot(1, {}, room));
  assert.ok(all.every(({ frames }) => frames.length === 1));
});

test("resync is handed on, with the one room that it is about, and the snapshot asked for again", async (t) => {
  const { relay } = start(t);
  const plain = listen(relay, "listings:2");
  const shown = listen(relay, ROOM, { snapshot: true });
  (await Socket.last.welcome()).grant();
  Socket.last.say(snapshot(5));
  Socket.last.say({ type: "resync", rooms: [{ room: ROOM, reason: "truncated" }, { room: "listings:2", reason: "truncated" }] });
  await gathered();
  assert.deepEqual(plain.frames, [{ type: "resync", rooms: [{ room: "listings:2", reason: "truncated" }] }]);
  assert.deepEqual(Socket.last.grant().map(({ rooms, snapshot }) => [rooms, snapshot]), [[[ROOM], true]]);
  Socket.last.say(snapshot(7));
  assert.deepEqual(shown.seqs(), ["5", "resync", "7"]);
});

test("a snapshot that cannot be read is told and not asked for in a circle", async (t) => {
  const { relay } = start(t);
  const shown = listen(relay, ROOM, { snapshot: true });
  (await Socket.last.welcome()).grant("c1", { resync: [{ room: ROOM, reason: "too_many_changes" }] });
  await gathered();
  assert.deepEqual(Socket.last.said("subscribe"), []);
  Socket.last.say(change(5));
  assert.deepEqual(shown.seqs(), ["resync", "5"]);
});

test("another epoch forgets the numbers to drop by, another reason keeps them", async (t) => {
  const { relay } = start(t);
  const plain = listen(relay);
  (await Socket.last.welcome()).grant();
  Socket.last.say(change(50), { type: "resync", rooms: [{ room: ROOM, reason: "too_many_changes" }] }, change(49));
  assert.deepEqual(plain.seqs(), ["50", "resync"]);
  Socket.last.end();
  await tick(1000);
  (await Socket.last.welcome()).grant("e1", { resync: [{ room: ROOM, reason: "epoch_changed" }] });
  Socket.last.say(change(7));
  assert.deepEqual(plain.seqs(), ["50", "resync", "resync", "7"]);
});

test("a cursor that the relay cannot read is of another epoch: a resync, and the numbers are forgotten", async (t) => {
  const { relay, errors } = start(t);
  const plain = listen(relay);
  (await Socket.last.welcome()).grant("c1");
  Socket.last.say(change(50));
  Socket.last.end();
  await tick(1000);
  await Socket.last.welcome();
  const [{ id }] = Socket.last.said("subscribe");
  Socket.last.say({ type: "error", id, code: "bad_cursor", message: "none" });
  await gathered();
  assert.equal(errors[0].code, "bad_cursor");
  assert.equal(Socket.last.grant("c2")[0].since, undefined);
  Socket.last.say(change(7));
  assert.deepEqual(plain.seqs(), ["50", "resync", "7"]);
  assert.deepEqual(plain.frames[1].rooms, [{ room: ROOM, reason: "epoch_changed" }]);
});

test("a room that is revoked or denied says so and is over, until somebody asks for it again", async (t) => {
  const { relay } = start(t);
  const one = listen(relay);
  const two = listen(relay, "listings:2");
  await Socket.last.welcome();
  const [{ id }] = Socket.last.said("subscribe");
  Socket.last.say({ type: "subscribed", id, rooms: [ROOM], denied: [{ room: "listings:2", code: "forbidden" }], cursor: "c1" });
  Socket.last.say({ type: "revoked", rooms: [ROOM], reason: "access_lost" }, change(5));
  assert.deepEqual(one.frames, [{ type: "revoked", rooms: [ROOM], reason: "access_lost" }]);
  assert.deepEqual(two.frames, [{ type: "revoked", rooms: ["listings:2"], reason: "forbidden" }]);
  one.stop();
  await gathered();
  assert.deepEqual(Socket.last.said("unsubscribe"), []);
  const again = listen(relay);
  await gathered();
  assert.deepEqual(Socket.last.grant().map(({ rooms }) => rooms), [[ROOM]]);
  Socket.last.say(change(6));
  assert.deepEqual([one.frames.length, again.seqs()], [1, ["6"]]);
});

test("whole transactions stay whole, each room's part of them", async (t) => {
  const { relay } = start(t, { transactions: true });
  const team = listen(relay, "team:7");
  const record = listen(relay);
  await Socket.last.welcome();
  assert.deepEqual(Socket.last.said("hello"), [{ type: "hello", transactions: true }]);
  Socket.last.grant();
  const rooms = ["team:7"];
  const events = [change(5, { rooms }), change(6, { rooms, recordId: "2" })];
  Socket.last.say({ type: "TRANSACTION", txid: "9", cursor: "c9", events }, { type: "TRANSACTION", txid: "9", cursor: "c9", events });
  assert.deepEqual(team.frames, [{ type: "TRANSACTION", txid: "9", cursor: "c9", events }]);
  assert.deepEqual(record.seqs(), ["5"]);
  Socket.last.end();
  await tick(1000);
  await Socket.last.welcome();
  assert.equal(Socket.last.said("subscribe")[0].since, "c9");
});

test("the token is asked for before each connection, and may take its time", async (t) => {
  let release;
  const { relay } = start(t, { token: mock.fn(() => new Promise((done) => (release = done))) });
  assert.equal(Socket.all.length, 0);
  release("one");
  await settled();
  Socket.last.accept();
  assert.deepEqual(Socket.last.sent, [{ type: "hello", token: "one" }]);
  Socket.last.end();
  await tick(1000);
  relay.close();
  release("two");
  await settled();
  assert.equal(Socket.all.length, 1, "closed meanwhile: no socket is opened for it");
});

test("a token that cannot be had is told and tried again", async (t) => {
  let works = false;
  const token = () => (works ? "good" : Promise.reject(new Error("no cookie")));
  const { relay, errors } = start(t, { token });
  await settled();
  assert.equal(errors[0].message, "no cookie");
  assert.equal(relay.status, "reconnecting");
  works = true;
  await tick(1000);
  Socket.last.accept();
  assert.deepEqual(Socket.last.sent, [{ type: "hello", token: "good" }]);
});

test("a token that ends is renewed on the open connection", async (t) => {
  let count = 0;
  const { errors } = start(t, { token: async () => `t${++count}` });
  await settled();
  await Socket.last.welcome();
  Socket.last.say({ type: "token_expiring", expiresAt: "2026-11-22T22:50:13Z" });
  await settled();
  assert.deepEqual(Socket.last.said("token"), [{ type: "token", token: "t2" }]);
  Socket.last.say({ type: "token_accepted", expiresAt: "2026-11-22T23:05:13Z" });
  assert.deepEqual([Socket.all.length, errors], [1, []]);
});

test("a fresh token that comes when the connection is gone is not said to another", async (t) => {
  const waiting = [];
  start(t, { token: () => new Promise((done) => waiting.push(done)) });
  waiting[0]("t1");
  await settled();
  await Socket.last.welcome();
  Socket.last.say({ type: "token_expiring" });
  Socket.last.end();
  await tick(1000);
  waiting[2]("t3");
  await settled();
  await Socket.last.welcome();
  waiting[1]("t2");
  await settled();
  assert.deepEqual([Socket.last.said("hello")[0].token, Socket.last.said("token")], ["t3", []]);
});

test("4401 asks for a fresh token: at once, then with a wait, three times; then it is unauthorized", async (t) => {
  const token = mock.fn(async () => "old");
  const { relay, statuses } = start(t, { token });
  await settled();
  Socket.last.accept().end(4401);
  for (const wait of [0, 2000, 4000]) {
    assert.equal(relay.retryAt - Date.now(), wait);
    await tick(wait);
    Socket.last.accept().end(4401);
  }
  assert.equal(relay.status, "unauthorized");
  assert.equal(statuses.filter((status) => status === "unauthorized").length, 1);
  happens("online");
  await tick(60_000);
  assert.deepEqual([token.mock.callCount(), Socket.all.length], [4, 4]);
});

test("4401 with a fresh token at hand goes on where it was", async (t) => {
  let count = 0;
  const { relay } = start(t, { token: () => `t${++count}` });
  await settled();
  const one = listen(relay);
  (await Socket.last.welcome()).grant("c1");
  for (let time = 0; time < 6; time++) {
    await tick(8000);
    Socket.last.end(4401);
    await tick(0);
    await Socket.last.welcome();
    assert.equal(Socket.last.grant("c1")[0].since, "c1");
  }
  Socket.last.say(change(2));
  assert.deepEqual([relay.status, one.seqs()], ["connected", ["2"]]);
});

test("a token that is only a text cannot become another: 4401 is the end", async (t) => {
  const { relay } = start(t, { token: "text" });
  await settled();
  Socket.last.accept().end(4401);
  assert.equal(relay.status, "unauthorized");
  await tick(60_000);
  assert.equal(Socket.all.length, 1);
});

test("4403 does not come back by itself", async (t) => {
  const { relay } = start(t, { token: () => "good" });
  await settled();
  await Socket.last.welcome();
  Socket.last.end(4403);
  happens("online");
  await tick(60_000);
  assert.deepEqual([relay.status, relay.retryAt, Socket.all.length], ["unauthorized", undefined, 1]);
});

test("every other code comes back by the usual wait", async (t) => {
  for (const code of [1000, 1001, 1002, 1006, 1007, 1009, 1011, 4400, 4408]) {
    await t.test(String(code), async (t) => {
      const { relay } = start(t);
      Socket.last.accept().end(code);
      assert.equal(relay.retryAt - Date.now(), 1000);
      happens("online");
      await settled();
      assert.equal(Socket.all.length, 2);
    });
  }
});

test("a relay that says it is too much is not asked again before the time", async (t) => {
  for (const code of [4429, 4508]) {
    await t.test(String(code), async (t) => {
      start(t);
      (await Socket.last.welcome()).end(code);
      happens("online");
      await tick(999);
      assert.equal(Socket.all.length, 1);
      await tick(1);
      assert.equal(Socket.all.length, 2);
    });
  }
});

test("draining tells each its own moment, and nothing makes it earlier or later", async (t) => {
  const { relay } = start(t);
  await Socket.last.welcome();
  Socket.last.say({ type: "draining", reconnectAfterMs: 1234 }).end(1001);
  assert.equal(relay.retryAt - Date.now(), 1234);
  happens("online");
  await tick(1233);
  assert.equal(Socket.all.length, 1);
  await tick(1);
  assert.equal(Socket.all.length, 2);
  Socket.last.end();
  assert.equal(relay.retryAt - Date.now(), 1000, "and it counts once");
});

test("more rooms than a frame holds are asked for in several", async (t) => {
  const { relay } = start(t);
  const names = Array.from({ length: 60 }, (_, n) => `listings:${"ü".repeat(40)}${n}`);
  names.forEach((name) => listen(relay, name));
  await Socket.last.welcome({ limits: { rooms: 1000, frameBytes: 1000 } });
  const frames = Socket.last.sent.filter(({ type }) => type === "subscribe");
  assert.ok(frames.length > 4);
  for (const frame of frames) assert.ok(Buffer.byteLength(JSON.stringify(frame)) <= 1000);
  assert.deepEqual(frames.flatMap(({ rooms }) => rooms), names);
});

test("more rooms than the relay allows wait until a place is free, and it is told once", async (t) => {
  const { relay, errors } = start(t);
  const all = Array.from({ length: 5 }, (_, n) => listen(relay, `listings:${n}`));
  await Socket.last.welcome({ limits: { rooms: 3, frameBytes: 65536 } });
  assert.deepEqual(Socket.last.grant().flatMap(({ rooms }) => rooms), ["listings:0", "listings:1", "listings:2"]);
  assert.deepEqual(errors.map(({ message }) => message), ["2 rooms wait: the relay allows 3 a connection"]);
  all[1].stop();
  await gathered();
  assert.deepEqual(Socket.last.sent.filter(({ type }) => type !== "hello").map(({ type, rooms }) => [type, rooms]),
    [["unsubscribe", ["listings:1"]], ["subscribe", ["listings:3"]]]);
  assert.equal(errors.length, 1);
});

test("a subscriber that throws is told and holds up nobody", async (t) => {
  const { relay, errors } = start(t);
  relay.subscribe(ROOM, () => { throw new Error("mine"); });
  const other = listen(relay);
  (await Socket.last.welcome()).grant();
  Socket.last.say(change(5), change(6));
  await settled();
  assert.deepEqual(errors.map(({ message }) => message), ["mine", "mine"]);
  assert.deepEqual(other.seqs(), ["5", "6"]);
});

test("what nobody listens to as an error goes to the console", async (t) => {
  const shown = t.mock.method(console, "error", () => {});
  Socket.all = [];
  const relay = connect("ws://relay/ws", { WebSocket: Socket });
  t.after(() => relay.close());
  relay.subscribe(ROOM, () => { throw new Error("mine"); });
  relay.on("status", () => { throw new Error("status"); });
  (await Socket.last.welcome()).grant();
  Socket.last.say(change(5));
  await settled();
  assert.deepEqual(shown.mock.calls.map(({ arguments: [error] }) => error.message), ["status", "mine"]);
});

test("a subscriber may stop another, itself or everything while it is called", async (t) => {
  const { relay } = start(t);
  const seen = [];
  const stops = [];
  stops.push(relay.subscribe(ROOM, () => { seen.push("first"); stops.forEach((stop) => stop()); }));
  stops.push(relay.subscribe(ROOM, () => seen.push("second")));
  relay.subscribe("listings:2", () => { seen.push("third"); relay.close(); });
  relay.subscribe("listings:2", () => seen.push("fourth"));
  const socket = await Socket.last.welcome();
  socket.grant();
  socket.say(change(5), change(6), change(7, { recordId: "2" }), change(8, { recordId: "2" }));
  assert.deepEqual(seen, ["first", "third"]);
});

test("after close nothing is left: no timer, no listener, no socket; and it may be said twice", async (t) => {
  for (const state of ["connecting", "connected", "waiting"]) {
    await t.test(state, async (t) => {
      const { relay, statuses } = start(t);
      const one = listen(relay);
      assert.equal(listeners(), 5);
      if (state !== "connecting") (await Socket.last.welcome()).grant();
      if (state === "waiting") Socket.last.end();
      relay.close();
      relay.close();
      one.stop();
      Socket.last.say(change(5)).end(1000);
      await tick(120_000);
      assert.equal(listeners(), 0);
      assert.ok(Socket.last.closed);
      assert.deepEqual([Socket.all.length, one.frames, statuses.at(-1)], [1, [], "offline"]);
      assert.throws(() => listen(relay), /closed/);
    });
  }
});

test("what cannot be is refused where it is asked", (t) => {
  const { relay } = start(t);
  assert.throws(() => listen(relay, "team:7", { snapshot: true }), /team:7 holds many/);
  assert.throws(() => connect("::", { WebSocket: Socket }), TypeError);
  assert.throws(() => connect("ws://relay/ws", { WebSocket: null }), /no WebSocket here/);
});

test("an address of the page will do", (t) => {
  globalThis.location = { href: "https://crm.example/listings/5" };
  t.after(() => delete globalThis.location);
  Socket.all = [];
  for (const [given, used] of [["/ws", "wss://crm.example/ws"], ["http://other/ws", "ws://other/ws"]]) {
    connect(given, { WebSocket: Socket }).close();
    assert.equal(Socket.last.url, used);
  }
});
