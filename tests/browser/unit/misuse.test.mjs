// What a page, a clock, a network or a server may do at the worst moment.

import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { ROOM, Socket, change, gathered, happens, listen, settled, snapshot, start, tick } from "./fake.mjs";

/** Much later nothing has been tried any more. */
async function nothingIsLeft(relay, token) {
  const calls = token?.mock.callCount();
  const tried = Socket.all.length;
  happens("online");
  await tick(120_000);
  await settled();
  assert.deepEqual([Socket.all.length, token?.mock.callCount(), relay.status, relay.retryAt], [tried, calls, "offline", undefined]);
}

test("a token that never comes is asked for again after 30 s", async (t) => {
  const token = mock.fn(() => new Promise(() => {}));
  const { relay } = start(t, { token });
  await tick(29_999);
  assert.deepEqual([token.mock.callCount(), relay.status], [1, "connecting"]);
  await tick(1);
  assert.equal(relay.status, "reconnecting");
  await tick(1000);
  assert.equal(token.mock.callCount(), 2);
});

test("a token that comes when it was given up opens no second socket", async (t) => {
  const waiting = [];
  start(t, { token: () => new Promise((done) => waiting.push(done)) });
  await tick(30_000);
  await tick(1000);
  waiting.forEach((done, at) => done(`t${at}`));
  await settled();
  assert.equal(Socket.all.length, 1);
  Socket.last.accept();
  assert.equal(Socket.last.sent[0].token, "t1");
});

test("a token that fails when it was given up ends no later connection", async (t) => {
  const answers = [() => new Promise((_, fail) => (late = fail)), () => "t2"];
  let late;
  const { relay, errors } = start(t, { token: () => answers.shift()() });
  await tick(30_000);
  await tick(1000);
  await Socket.last.welcome();
  late(new Error("too late"));
  await settled();
  assert.deepEqual([relay.status, errors], ["connected", []]);
});

test("a token that cannot be renewed leaves the connection, and its end fetches another", async (t) => {
  const answers = [() => "t1", () => { throw new Error("no cookie"); }, () => "t3"];
  const { relay, errors } = start(t, { token: () => answers.shift()() });
  await settled();
  await Socket.last.welcome();
  Socket.last.say({ type: "token_expiring" });
  await settled();
  assert.deepEqual([errors[0].message, relay.status], ["no cookie", "connected"]);
  await tick(9000);
  Socket.last.end(4401);
  await tick(0);
  Socket.last.accept();
  assert.equal(Socket.last.sent[0].token, "t3");
});

test("nobody signed in says hello without a token", async (t) => {
  start(t, { token: async () => null });
  await settled();
  Socket.last.accept();
  assert.deepEqual(Socket.last.sent, [{ type: "hello" }]);
});

test("who closes when the token cannot be had is not connected again", async (t) => {
  const token = mock.fn(() => Promise.reject(new Error("no cookie")));
  const { relay } = start(t, { token });
  relay.on("error", () => relay.close());
  await settled();
  await nothingIsLeft(relay, token);
});

test("who closes when the status changes is not connected again, whichever change it is", async (t) => {
  for (const at of ["connected", "reconnecting", "offline", "retrying", "unauthorized"]) {
    await t.test(at, async (t) => {
      const { relay } = start(t, { token: "t" });
      if (at === "connected") relay.on("status", () => relay.close());
      await Socket.last.welcome();
      if (at === "reconnecting" || at === "unauthorized") relay.on("status", () => relay.close());
      Socket.last.end(at === "unauthorized" ? 4403 : 1006);
      if (at === "offline" || at === "retrying") relay.on("status", () => relay.close());
      if (at === "offline") happens("offline");
      if (at === "retrying") await tick(1000);
      relay.close();
      await nothingIsLeft(relay);
    });
  }
});

test("who closes in a subscriber hears nothing more of the same frame", async (t) => {
  const { relay } = start(t);
  const heard = [];
  const live = () => (heard.push("live"), relay.close());
  relay.subscribe(ROOM, () => heard.push("frame"), { live, snapshot: true });
  relay.subscribe("listings:2", () => heard.push("other"), { live: () => heard.push("other live") });
  await Socket.last.welcome();
  const [fresh, shows] = Socket.last.said("subscribe");
  Socket.last.say({ type: "subscribed", id: shows.id, rooms: shows.rooms, cursor: "c1" }, snapshot(4), change(5));
  Socket.last.say({ type: "subscribed", id: fresh.id, rooms: fresh.rooms, cursor: "c1" });
  assert.deepEqual(heard, ["live"]);
  await nothingIsLeft(relay);
});

test("who subscribes while a frame is handed on hears the next one", async (t) => {
  const { relay } = start(t);
  const late = [];
  relay.subscribe(ROOM, ({ seq }) => seq === "5" && late.push(listen(relay), listen(relay, "listings:2")));
  (await Socket.last.welcome()).grant();
  Socket.last.say(change(5), change(6));
  await gathered();
  Socket.last.grant();
  Socket.last.say(change(7, { recordId: "2" }));
  assert.deepEqual(late.map((one) => one.seqs()), [["6"], ["7"]]);
});

test("who subscribes anew when a room is revoked is in it as if for the first time", async (t) => {
  const { relay } = start(t);
  const again = [];
  relay.subscribe(ROOM, ({ type }) => type === "revoked" && again.push(listen(relay)));
  (await Socket.last.welcome()).grant();
  Socket.last.say({ type: "revoked", rooms: [ROOM], reason: "access_lost" });
  await gathered();
  assert.deepEqual(Socket.last.grant("c1").map(({ rooms }) => rooms), [[ROOM]]);
  Socket.last.say(change(5));
  assert.deepEqual(again[0].seqs(), ["5"]);
});

test("one room with and without a snapshot is one room: each hears what follows, nothing twice", async (t) => {
  const { relay } = start(t);
  const plain = listen(relay);
  const shown = listen(relay, ROOM, { snapshot: true });
  await Socket.last.welcome();
  assert.deepEqual(Socket.last.grant().map(({ rooms, snapshot }) => [rooms, snapshot]), [[[ROOM], true]]);
  Socket.last.say(change(3), snapshot(3), change(4));
  assert.deepEqual([plain.seqs(), shown.seqs()], [["3", "3", "4"], ["3", "4"]]);
});

test("a resync during a resume: what was told before the connection ended again is not forgotten", async (t) => {
  const { relay } = start(t);
  const shown = listen(relay, ROOM, { snapshot: true });
  (await Socket.last.welcome()).grant("c1");
  Socket.last.say(snapshot(3));
  Socket.last.end();
  await tick(1000);
  (await Socket.last.welcome()).grant("c8", { resync: [{ room: ROOM, reason: "cursor_too_old" }] });
  Socket.last.end(); // before the snapshot came
  await tick(2000);
  await Socket.last.welcome();
  assert.deepEqual(Socket.last.grant("c9").map(({ since }) => since), ["c8"]);
  await gathered();
  assert.equal(Socket.last.grant("c9")[0].snapshot, true);
  Socket.last.say(snapshot(9), change(10));
  assert.deepEqual(shown.seqs(), ["3", "resync", "9", "10"]);
});

test("what is not of the contract is told and ends the connection, which resumes", async (t) => {
  const bad = ["no JSON", "null", '{"type":"subscribed","id":1}', '{"type":"resync"}', '{"txid":"1","seq":"x"}'];
  for (const data of bad) {
    await t.test(data, async (t) => {
      const { relay, errors } = start(t);
      const one = listen(relay);
      (await Socket.last.welcome()).grant("c1");
      Socket.last.onmessage({ data });
      await settled();
      assert.equal(errors.length, 1);
      assert.deepEqual([relay.status, Socket.last.closed], ["reconnecting", true]);
      await tick(1000);
      await Socket.last.welcome();
      assert.equal(Socket.last.grant("c1")[0].since, "c1");
      Socket.last.say(change(5));
      assert.deepEqual(one.seqs(), ["5"]);
    });
  }
});

test("a frame of a kind that is not known yet is passed over", async (t) => {
  const { relay, errors } = start(t);
  (await Socket.last.welcome()).say({ type: "news", rooms: "x" }, {});
  await settled();
  assert.deepEqual([relay.status, errors], ["connected", []]);
});

test("an attempt from before the network came back has 5 s more, and the next one follows after 1", async (t) => {
  const { relay } = start(t);
  for (const seconds of [1, 2, 4]) {
    Socket.last.end();
    await tick(seconds * 1000);
  }
  happens("online");
  assert.equal(Socket.all.length, 4, "no second one beside it");
  await tick(4999);
  assert.ok(!Socket.last.closed);
  await tick(1);
  assert.ok(Socket.last.closed);
  assert.equal(relay.retryAt - Date.now(), 1000);
});

test("a clock that is set forth or back delays no attempt by more than the longest wait", async (t) => {
  for (const jump of [-31_536_000_000, 31_536_000_000]) {
    await t.test(`${jump / 1000} s`, async (t) => {
      start(t);
      await Socket.last.welcome();
      const { now } = Date;
      Date.now = () => now.call(Date) + jump;
      for (let times = 0; times < 6; times++) {
        Socket.last.end();
        const tried = Socket.all.length;
        await tick(8000);
        assert.equal(Socket.all.length, tried + 1);
        await Socket.last.welcome();
        await tick(9000);
        assert.ok(!Socket.last.closed);
      }
    });
  }
});

test("close while the socket is opening says no hello", async (t) => {
  const { relay } = start(t);
  relay.close();
  Socket.last.accept().say({ type: "welcome" });
  assert.deepEqual([Socket.last.closed, Socket.last.sent], [true, []]);
  await nothingIsLeft(relay);
});

test("a class that throws is told, and tried again", async (t) => {
  let works = false;
  class Picky extends Socket {
    constructor(url) {
      if (!works) throw new Error("insecure");
      super(url);
    }
  }
  const { relay, errors } = start(t, { WebSocket: Picky });
  await settled();
  assert.deepEqual([errors[0].message, relay.status], ["insecure", "reconnecting"]);
  works = true;
  await tick(1000);
  await Socket.last.welcome();
  assert.equal(relay.status, "connected");
});
