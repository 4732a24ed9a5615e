// The client in Node against a relay that asks for tokens: who somebody is, what they may see, and its end.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { connect } from "crm-relay";
import WebSocket from "ws";
import { LISTINGS, PEOPLE, listing, office, token } from "./office.mjs";
import { Heard, until } from "./page.mjs";

const { ana, ben, carla } = PEOPLE;
let crm;

before(async () => (crm = await office()));
after(() => crm?.close());

/** A class of sockets; `came` is what they heard. */
function keeping(came) {
  return class extends Heard {
    constructor(url) {
      super(url);
      came.push({ type: "open" });
      this.on("message", (data) => came.push(JSON.parse(data)));
      this.on("close", (code) => came.push({ type: "close", code }));
    }
  };
}

/** A client with the tokens that `fresh` makes; `came` is what its sockets heard. */
function client(t, fresh) {
  const came = [];
  const statuses = [];
  const asked = t.mock.fn(fresh);
  const relay = connect(`${crm.url}ws`, { WebSocket: keeping(came), token: asked });
  relay.on("status", (status) => statuses.push(status));
  relay.on("error", (error) => assert.fail(error));
  t.after(() => relay.close());
  const has = (type) => until(() => came.filter((frame) => frame.type === type).at(-1), Boolean);
  return { relay, came, statuses, asked, has, is: (status) => until(() => relay.status, (now) => now === status) };
}

/** A subscriber, once it is live or denied. */
async function listen(relay, room, options) {
  const frames = [];
  await new Promise((done) => relay.subscribe(room, (frame) => (frames.push(frame), done()), { ...options, live: done }));
  return frames;
}

let price = 500_000;
/** Sets another price; as the relay will tell it. */
async function edit(id, more = "") {
  price += 1;
  await crm.sql(`update listings set list_price = ${price}, version = version + 1, last_modified_by = '${ana.id}' ${more} where id = '${id}'`);
  return price;
}
const prices = (frames) => frames.filter(({ action }) => action).map(({ data }) => data.list_price);
const seen = (frames, value) => until(() => prices(frames), (all) => all.includes(value));

test("a token that ends is renewed on the open connection, and nothing is interrupted", async (t) => {
  const lives = [-3, 900]; // the first is good for two seconds more
  const { relay, came, statuses, asked, has } = client(t, async () => token(ben, lives.shift()));
  const frames = await listen(relay, `listings:${LISTINGS.ana}`);
  await has("token_expiring");
  const { expiresAt } = await has("token_accepted");
  assert.ok(Date.parse(expiresAt) > Date.now() + 600_000);
  // longer than the first one would have lasted
  await until(() => Date.now(), (now) => now > Date.parse(came.find(({ type }) => type === "welcome").expiresAt) + 1000);
  const after = await edit(LISTINGS.ana);
  await seen(frames, after);
  assert.deepEqual([asked.mock.callCount(), statuses, came.filter(({ type }) => type === "open").length], [2, ["connected"], 1]);
});

test("a token that nobody renews ends the connection, which comes back with a fresh one, without a gap", async (t) => {
  const answers = [() => token(ben, -3), () => null, () => token(ben)];
  const { relay, came, statuses, has } = client(t, () => answers.shift()());
  const frames = await listen(relay, `listings:${LISTINGS.ana}`);
  const wanted = [];
  let back;
  relay.on("status", (status) => (back = status));
  do wanted.push(await edit(LISTINGS.ana));
  while (back !== "connected");
  wanted.push(await edit(LISTINGS.ana));
  await seen(frames, wanted.at(-1));
  assert.deepEqual(prices(frames), wanted);
  assert.equal((await has("close")).code, 4401);
  assert.deepEqual([[...new Set(statuses)], came.filter(({ type }) => type === "open").length], [["connected", "reconnecting"], 2]);
});

test("a token that is none is asked for again, and then it is unauthorized", async (t) => {
  const { relay, came, asked, is } = client(t, () => "none");
  await is("unauthorized");
  assert.deepEqual([asked.mock.callCount(), came.filter(({ code }) => code === 4401).length, relay.retryAt], [4, 4, undefined]);
});

test("another user's token is the end", async (t) => {
  const tokens = [token(ben, -3), token(ana)];
  const { relay, has, is } = client(t, () => tokens.shift());
  await is("connected");
  await is("unauthorized");
  assert.deepEqual([(await has("close")).code, relay.retryAt], [4403, undefined]);
});

test("who is thrown out by an administrator stays out", async (t) => {
  const { relay, came, has, is } = client(t, () => token(carla));
  const frames = await listen(relay, `listings:${LISTINGS.carla}`);
  const other = client(t, () => token(ben));
  const others = await listen(other.relay, `listings:${LISTINGS.ana}`);
  await crm.sql(`select crm_relay.disconnect('${carla.id}')`);
  await is("unauthorized");
  assert.equal((await has("close")).code, 4403);
  await edit(LISTINGS.carla);
  await seen(others, await edit(LISTINGS.ana));
  assert.deepEqual([frames, relay.retryAt, came.filter(({ type }) => type === "open").length], [[], undefined, 1]);
});

test("what may not be seen is denied as what is not there, and the others of the frame are live", async (t) => {
  const { relay } = client(t, () => token(ben));
  const rooms = [`listings:${LISTINGS.secret}`, `listings:${LISTINGS.none}`, carla.rooms[1]];
  const denied = await Promise.all(rooms.map((room) => listen(relay, room)));
  const own = await listen(relay, `listings:${LISTINGS.ana}`, { snapshot: true });
  assert.deepEqual(denied.map(([{ type, reason }]) => [type, reason]), rooms.map(() => ["revoked", "forbidden"]));
  await until(() => own[0]?.type, (type) => type === "snapshot");
});

test("a record that becomes private is revoked, without a byte of what it became, and may be had again", async (t) => {
  const { relay, came } = client(t, () => token(ben));
  const room = `listings:${LISTINGS.ana}`;
  const frames = await listen(relay, room, { snapshot: true });
  const team = await listen(relay, ben.rooms[1]);
  await until(() => frames.length, Boolean);
  const hidden = await edit(LISTINGS.ana, ", is_private = true");
  await until(() => frames.at(-1), ({ type }) => type === "revoked");
  assert.equal(frames.at(-1).reason, "access_lost");
  await until(() => team.at(-1), (frame) => frame?.action === "deleted" && frame.reason === "moved");
  await edit(LISTINGS.ana, ", is_private = false");
  const again = await listen(relay, room);
  await seen(again, await edit(LISTINGS.ana));
  assert.equal(frames.at(-1).type, "revoked", "it was over with that");
  assert.doesNotMatch(JSON.stringify(came), new RegExp(`"list_price":${hidden}`));
});

test("who changes teams is told that what they may see has changed", async (t) => {
  const { relay } = client(t, () => token(ben));
  const own = await listen(relay, ben.rooms[0]);
  const room = await listen(relay, `listings:${LISTINGS.ana}`);
  await crm.sql(`update users set team_id = null where id = '${ben.id}'`);
  t.after(() => crm.sql(`update users set team_id = '${ben.rooms[1].slice(5)}' where id = '${ben.id}'`));
  await until(() => room.at(-1)?.type, (type) => type === "revoked");
  await until(() => own.at(-1), (frame) => frame?.type === "resync");
  assert.deepEqual(own.at(-1).rooms, [{ room: ben.rooms[0], reason: "access_changed" }]);
});

for (const [how, end] of [["is drained", "stop"], ["dies", "kill"]]) {
  test(`a relay that ${how} is come back to, and what happened meanwhile is told, in order and once`, async (t) => {
    const { relay, came, is } = client(t, () => token(ben));
    const frames = await listen(relay, `listings:${LISTINGS.ana}`);
    const wanted = [await edit(LISTINGS.ana)];
    await seen(frames, wanted[0]);
    await crm.relay[end]();
    wanted.push(await edit(LISTINGS.ana), await edit(LISTINGS.ana));
    await is("reconnecting");
    await crm.again();
    wanted.push(await edit(LISTINGS.ana));
    await is("connected");
    await seen(frames, wanted.at(-1));
    assert.deepEqual(prices(frames), wanted);
    assert.equal(came.some(({ type }) => type === "draining"), how === "is drained");
  });
}

test("more than the relay takes at once is asked for again until all of it is there", async (t) => {
  const strict = await office({ RELAY_MAX_SUBSCRIBES: "1" });
  t.after(() => strict.close());
  const errors = [];
  const relay = connect(`${strict.url}ws`, { WebSocket, token: () => token(ben) });
  relay.on("error", ({ code }) => errors.push(code));
  t.after(() => relay.close());
  const told = new Set();
  // ten are allowed at once
  for (let count = 0; count < 30; count++) {
    listen(relay, `listings:${listing(count)}`).then(() => told.add(count));
    await new Promise((done) => setTimeout(done, 30));
  }
  const frames = await listen(relay, `listings:${LISTINGS.ana}`);
  await until(() => told.size, (size) => size === 30);
  await strict.sql(`update listings set list_price = 1 where id = '${LISTINGS.ana}'`);
  await seen(frames, 1);
  assert.ok(errors.length > 0 && errors.every((code) => code === "rate_limited"), errors.join());
});
