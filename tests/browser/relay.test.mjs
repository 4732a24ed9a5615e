// The client in Node, with npm's ws, against the real relay; and the files that the relay serves.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { connect } from "crm-relay";
import { Heard, PEOPLE, api, demo, edit, until } from "./page.mjs";

const { ana } = PEOPLE;
let relay;

before(async () => (relay = await demo("127.0.0.1:0", { RELAY_THROTTLE: "0" })));
after(async () => assert.equal(await relay?.stop(), 0, "the demo takes away what it brought"));

/** As any program beside the CRM might. */
const sql = (text) => execFileSync(`${process.env.PG_BIN}/psql`, ["-qX", "-v", "ON_ERROR_STOP=1", "-c", text, process.env.DATABASE_URL]);

/** A client of the real relay that ends with its test. */
function client(t, options) {
  const made = connect(`${relay.url}ws`, { WebSocket: Heard, ...options });
  const errors = [];
  made.on("error", (error) => errors.push(error));
  t.after(() => {
    made.close();
    assert.deepEqual(errors, []);
  });
  return made;
}

/** A subscriber, once it is live. */
async function listen(made, room, options) {
  const frames = [];
  await new Promise((live) => made.subscribe(room, (frame) => frames.push(frame), { ...options, live }));
  return frames;
}

const listing = async (at = 0) => (await api(relay.url, `listings?user=${ana.id}`))[at];

/** Sets prices one after the other; as the relay will tell them. */
async function prices(from, count, record) {
  let { version } = record;
  for (let step = 0; step < count; step++) {
    ({ version } = await edit(relay.url, ana.id, "listings", { id: record.id, version }, { list_price: from + step }));
  }
  return Array.from({ length: count }, (_, step) => from + step);
}

const told = (frames) => frames.filter(({ action }) => action).map(({ data }) => Number(data.list_price));

test("a record comes as it is, and then each change of it", async (t) => {
  const made = client(t);
  const record = await listing();
  const frames = await listen(made, `listings:${record.id}`, { snapshot: true });
  await until(() => frames.length, (length) => length === 1);
  assert.equal(frames[0].data.property_address, record.property_address);
  const wanted = await prices(700_000, 20, record);
  await until(() => frames.length, (length) => length === 21);
  assert.deepEqual(told(frames), wanted);
});

test("what happens while the relay is gone comes when it is back, whole, in order and once", async (t) => {
  const made = client(t);
  const record = await listing(1);
  const frames = await listen(made, `listings:${record.id}`);
  const statuses = [];
  made.on("status", (status) => statuses.push(status));
  const team = await listen(made, ana.rooms[1]);
  const before = await prices(800_000, 3, record);
  await api(relay.url, "break/relay", { method: "POST" });
  await until(() => statuses[0], Boolean);
  const meanwhile = await until(() => listing(1).catch(() => undefined), Boolean);
  const missed = await prices(810_000, 3, meanwhile);
  await until(() => made.status, (status) => status === "connected");
  const later = await prices(820_000, 3, await listing(1));
  const wanted = [...before, ...missed, ...later];
  await until(() => frames.length, (length) => length >= wanted.length);
  assert.deepEqual([told(frames), told(team)], [wanted, wanted]);
  assert.deepEqual([statuses[0], statuses.at(-1)], ["reconnecting", "connected"]);
});

test("what was committed together comes together, where that is asked for", async (t) => {
  const frames = await listen(client(t, { transactions: true }), `user:${ana.id}/listings`);
  const apart = await listen(client(t), `user:${ana.id}/listings`);
  sql(`update listings set list_price = list_price + 1 where listing_agent_id = '${ana.id}'`);
  await until(() => [frames.length, apart.length], ([one, many]) => one === 1 && many > 1);
  assert.equal(frames[0].type, "TRANSACTION");
  assert.deepEqual(frames[0].events.map(({ seq }) => seq), apart.map(({ seq }) => seq));
});

test("an import that is too much to be told row by row is a resync", async (t) => {
  const leads = await listen(client(t), `user:${ana.id}/leads`);
  await api(relay.url, `leads/import?user=${ana.id}`, { method: "POST" });
  await until(() => leads.length, Boolean);
  assert.deepEqual(leads, [{ type: "resync", rooms: [{ room: `user:${ana.id}/leads`, reason: "too_many_changes" }] }]);
});

test("a room that can be none is denied, and the others of its frame are live", async (t) => {
  const made = client(t);
  const record = await listing();
  const bad = [];
  made.subscribe("nothing:1", (frame) => bad.push(frame));
  await listen(made, `listings:${record.id}`);
  assert.deepEqual(bad, [{ type: "revoked", rooms: ["nothing:1"], reason: "bad_room" }]);
});

for (const count of [10, 100]) {
  test(`${count} connections at once each see an edit`, async (t) => {
    const record = await listing(2);
    const all = await Promise.all(Array.from({ length: count }, () => listen(client(t), `listings:${record.id}`)));
    const wanted = await prices(900_000 + count, 1, record);
    await until(() => all.filter((frames) => frames.length).length, (length) => length === count);
    for (const frames of all) assert.deepEqual(told(frames), wanted);
  });
}

test("each file is served as it is, with a tag by which it is not sent again", async () => {
  for (const name of ["client", "react", "status"]) {
    const first = await fetch(`${relay.url}${name}.js`);
    assert.equal(first.status, 200);
    assert.equal(await first.text(), readFileSync(new URL(`../../relay/web/${name}.js`, import.meta.url), "utf8"));
    assert.equal(first.headers.get("content-type"), "text/javascript; charset=utf-8");
    assert.equal(first.headers.get("cache-control"), "no-cache");
    assert.equal(first.headers.get("access-control-allow-origin"), "*");
    const tag = first.headers.get("etag");
    for (const known of [tag, `"other", W/${tag}`, "*"]) {
      const again = await fetch(`${relay.url}${name}.js`, { headers: { "if-none-match": known } });
      assert.deepEqual([again.status, again.headers.get("etag"), await again.text()], [304, tag, ""], known);
    }
    const other = await fetch(`${relay.url}${name}.js`, { headers: { "if-none-match": '"other"' } });
    assert.equal(other.status, 200);
    const head = await fetch(`${relay.url}${name}.js`, { method: "HEAD" });
    assert.deepEqual([head.status, head.headers.get("etag")], [200, tag]);
  }
});

test("under its versioned name a file is kept for a year; another version is not there", async () => {
  const plain = await fetch(`${relay.url}client.js`);
  const versioned = await fetch(new URL(plain.headers.get("content-location"), relay.url));
  assert.equal(versioned.headers.get("cache-control"), "public, max-age=31536000, immutable");
  assert.equal(await versioned.text(), await plain.text());
  assert.equal((await fetch(`${relay.url}client-0000000000000000.js`)).status, 404);
});
