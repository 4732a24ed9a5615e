// What a page does that wants much at once, and what the client does when the relay says that it is too much.

import assert from "node:assert/strict";
import { test } from "node:test";
import { ROOM, Socket, change, gathered, listen, settled, snapshot, start, tick } from "./fake.mjs";

/** The frames so far that the relay counts, as their rooms; and forgets them. */
const asked = (type = "subscribe") => Socket.last.said(type).map(({ rooms }) => rooms);

/** The relay has not heeded these. */
const refuse = (...frames) =>
  frames.forEach(({ id }) => Socket.last.say({ type: "error", id, code: "rate_limited", message: "too many subscribes; wait a little" }));

test("1,200 components that come and go within a second are a few dozen frames", async (t) => {
  const { relay } = start(t);
  await Socket.last.welcome({ limits: { rooms: 2000, frameBytes: 65536 } });
  for (let at = 0; at < 1200; at++) {
    const one = listen(relay, `listings:${at}`);
    if (at % 2) setTimeout(one.stop, 10);
    if (at % 12 === 0) await tick(10);
    await settled();
  }
  await tick(1000);
  const frames = Socket.last.said("subscribe");
  const left = new Set(frames.flatMap(({ rooms }) => rooms));
  for (const room of asked("unsubscribe").flat()) left.delete(room);
  assert.equal(left.size, 600);
  assert.ok(frames.length <= 50, `${frames.length} subscribes`);
});

test("a subscribe that was too many is told and sent again a second later, on the same connection", async (t) => {
  const { relay, errors, statuses } = start(t);
  const one = listen(relay);
  await Socket.last.welcome();
  refuse(...Socket.last.said("subscribe"));
  listen(relay, "listings:2");
  await tick(999);
  assert.deepEqual([errors.map(({ code }) => code), asked()], [["rate_limited"], []], "nor is anything else asked meanwhile");
  await tick(1);
  assert.deepEqual(Socket.last.said("subscribe").map(({ rooms, since }) => [rooms, since]), [[[ROOM, "listings:2"], undefined]]);
  Socket.last.say({ type: "subscribed", id: 2, rooms: [ROOM, "listings:2"], cursor: "c1" }, change(5));
  assert.deepEqual([one.seqs(), statuses], [["5"], ["connected"]]);
});

test("a resume that was too many resumes where it would have, whatever else was heard meanwhile", async (t) => {
  const { relay } = start(t);
  const one = listen(relay);
  (await Socket.last.welcome()).grant("c1");
  Socket.last.say(change(5));
  Socket.last.end();
  await tick(1000);
  const other = listen(relay, "listings:2");
  await Socket.last.welcome();
  const [resume, fresh] = Socket.last.said("subscribe");
  refuse(resume);
  Socket.last.say({ type: "subscribed", id: fresh.id, rooms: fresh.rooms, cursor: "c9" }, change(9, { recordId: "2" }));
  await tick(1000);
  assert.deepEqual(Socket.last.grant("c9").map(({ since, rooms }) => [since, rooms]), [["c5", [ROOM]]]);
  Socket.last.say(change(5), change(7), change(10));
  assert.deepEqual([one.seqs(), other.seqs()], [["5", "7", "10"], ["9"]]);
});

test("a resume that was too many keeps its cursor over another connection", async (t) => {
  const { relay } = start(t);
  listen(relay);
  (await Socket.last.welcome()).grant("c1");
  Socket.last.end();
  await tick(1000);
  await Socket.last.welcome();
  refuse(...Socket.last.said("subscribe"));
  Socket.last.say({ type: "heartbeat", cursor: "c7" });
  Socket.last.end(4429);
  await tick(2000);
  await Socket.last.welcome();
  assert.deepEqual(Socket.last.said("subscribe").map(({ since }) => since), ["c1"]);
});

test("a snapshot that was too many is asked for again, and the room stays live", async (t) => {
  const { relay } = start(t);
  const plain = listen(relay);
  (await Socket.last.welcome()).grant("c1");
  const shown = listen(relay, ROOM, { snapshot: true });
  await gathered();
  refuse(...Socket.last.said("subscribe"));
  Socket.last.say(change(5));
  await tick(1000);
  const again = Socket.last.grant("c5");
  assert.deepEqual(again.map(({ rooms, snapshot }) => [rooms, snapshot]), [[[ROOM], true]]);
  Socket.last.say(snapshot(5), change(6));
  assert.deepEqual([plain.seqs(), shown.seqs()], [["5", "5", "6"], ["5", "6"]]);
  plain.stop();
  shown.stop();
  await gathered();
  assert.deepEqual(asked("unsubscribe"), [[ROOM]]);
});

test("an unsubscribe that was too many is sent again, unless the room is wanted again", async (t) => {
  const { relay } = start(t);
  const all = [listen(relay), listen(relay, "listings:2")];
  (await Socket.last.welcome()).grant();
  all.forEach(({ stop }) => stop());
  await gathered();
  refuse(...Socket.last.said("unsubscribe"));
  const again = listen(relay, "listings:2");
  await tick(1000);
  assert.deepEqual([asked("unsubscribe"), Socket.last.grant("c5").map(({ rooms }) => rooms)], [[[ROOM]], [["listings:2"]]]);
  Socket.last.say(change(6, { recordId: "2" }));
  assert.deepEqual(again.seqs(), ["6"]);
  again.stop();
  await gathered();
  assert.deepEqual(asked("unsubscribe"), [["listings:2"]]);
});

test("a room whose unsubscribe was too many is left also when it is wanted again and must wait for a place", async (t) => {
  const { relay } = start(t);
  const first = listen(relay);
  (await Socket.last.welcome({ limits: { rooms: 1, frameBytes: 65536 } })).grant();
  first.stop();
  listen(relay, "listings:2");
  await gathered();
  refuse(...Socket.last.said("unsubscribe"));
  Socket.last.grant();
  listen(relay);
  await tick(1000);
  assert.deepEqual([asked("unsubscribe"), asked()], [[[ROOM]], []]);
});

test("a room that is live is left, whatever was refused in it meanwhile", async (t) => {
  const { relay } = start(t);
  const all = [listen(relay), listen(relay, "listings:2")];
  await Socket.last.welcome();
  const [plain] = Socket.last.said("subscribe");
  all.push(listen(relay, "listings:2", { snapshot: true }));
  await gathered();
  const [shows] = Socket.last.said("subscribe");
  refuse(plain); // and what came after it was heeded
  Socket.last.say({ type: "subscribed", id: shows.id, rooms: shows.rooms, cursor: "c1" });
  all.slice(1).forEach(({ stop }) => stop());
  await tick(1000);
  assert.deepEqual(asked("unsubscribe"), [["listings:2"]]);
  Socket.last.grant("c2");
  all.push(listen(relay, ROOM, { snapshot: true }));
  await gathered();
  refuse(...Socket.last.said("subscribe"));
  all.forEach(({ stop }) => stop());
  await tick(1000);
  assert.deepEqual(asked("unsubscribe"), [[ROOM]]);
});

test("a room that was left before it was refused is not asked for again", async (t) => {
  const { relay } = start(t);
  const one = listen(relay);
  await Socket.last.welcome();
  const first = Socket.last.said("subscribe");
  one.stop();
  await gathered();
  refuse(...first);
  await tick(5000);
  assert.deepEqual(asked(), []);
});
