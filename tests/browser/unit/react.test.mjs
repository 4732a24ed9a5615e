// React 19 in jsdom; React 18 is in app/, in a real browser.

import assert from "node:assert/strict";
import { test } from "node:test";
import { QueryClient, QueryObserver } from "@tanstack/react-query";
import { bridgeQueries, kindOf, mergeRecord, RelayProvider, useRecord, useRelayQueries, useRelayStatus } from "crm-relay/react";
import { JSDOM } from "jsdom";
import { change, settled, snapshot } from "./fake.mjs";

const { window } = new JSDOM("<main></main>");
Object.assign(globalThis, { window, document: window.document, IS_REACT_ACT_ENVIRONMENT: true });
Object.defineProperty(globalThis, "navigator", { value: window.navigator, configurable: true });
const { act, createElement: h, StrictMode, version } = await import("react");
const { createRoot } = await import("react-dom/client");

/** A relay that only counts who is there; its frames come from the test. */
function fakeRelay() {
  const subs = new Set();
  const watchers = new Set();
  return {
    status: "connected",
    subs,
    watchers,
    subscribe(room, handler, options = {}) {
      const sub = { room, handler, options };
      subs.add(sub);
      return () => subs.delete(sub);
    },
    on(_name, listener) {
      this.ons = (this.ons ?? 0) + 1;
      watchers.add(listener);
      return () => watchers.delete(listener);
    },
    become(status) {
      this.status = status;
      for (const watcher of watchers) watcher(status);
    },
    say(room, ...frames) {
      for (const sub of subs) if (sub.room === room) frames.forEach((frame) => sub.handler(frame));
    },
    live: () => subs.forEach(({ options }) => options.live?.()),
  };
}

async function mount(relay, view) {
  const root = createRoot(document.querySelector("main"));
  const render = (shown) => act(async () => root.render(h(StrictMode, null, h(RelayProvider, { relay }, shown))));
  await render(view);
  return { render, unmount: () => act(async () => root.unmount()) };
}

test("React 19 is what runs here", () => assert.match(version, /^19\./));

test("useRecord gives the live record, what just changed, by whom, and the status", async () => {
  const relay = fakeRelay();
  let seen;
  const View = ({ id }) => ((seen = useRecord("listings", id)), null);
  const { render, unmount } = await mount(relay, h(View, { id: "1" }));
  assert.deepEqual(seen, { record: undefined, changed: {}, by: null, at: undefined, denied: undefined, status: "connected" });
  assert.equal(relay.subs.size, 1, "StrictMode mounts twice and leaves one");
  await act(async () => relay.say("listings:1", snapshot(4, { id: "1", price: 4, beds: 2 }), change(5)));
  assert.deepEqual([seen.record, seen.changed, seen.by], [{ id: "1", price: 5, beds: 2 }, { price: 4 }, "ana"]);
  const { ons } = relay;
  await act(async () => relay.become("reconnecting"));
  assert.equal(relay.ons, ons, "a render listens to nothing anew");
  assert.equal(seen.status, "reconnecting");
  await act(async () => relay.say("listings:1", change(6, { action: "deleted", data: { id: "1" }, previous: undefined })));
  assert.equal(seen.record, null);
  await act(async () => relay.say("listings:1", { type: "revoked", rooms: ["listings:1"], reason: "access_lost" }));
  assert.deepEqual([seen.record, seen.denied], [undefined, "access_lost"]);
  await render(h(View, { id: "2" }));
  assert.deepEqual([...relay.subs].map(({ room }) => room), ["listings:2"]);
  assert.deepEqual([seen.record, seen.denied], [undefined, undefined]);
  await render(h(View, { id: null }));
  assert.equal(relay.subs.size, 0);
  await unmount();
  assert.equal(relay.watchers.size, 0);
});

test("a record is never shown under another's id, not for one render", async () => {
  const relay = fakeRelay();
  const shown = [];
  const View = ({ id }) => (shown.push([id, useRecord("listings", id).record?.id]), null);
  const { render, unmount } = await mount(relay, h(View, { id: "1" }));
  await act(async () => relay.say("listings:1", snapshot(4)));
  await render(h(View, { id: "2" }));
  await unmount();
  assert.deepEqual(shown.filter(([id, of]) => of && of !== id), []);
});

test("a client's phone comes from its part, and does not cover what the client has itself", async () => {
  const relay = fakeRelay();
  let seen;
  const View = ({ id }) => ((seen = useRecord("clients", id)), null);
  const { render, unmount } = await mount(relay, h(View, { id: "1" }));
  const part = { part: "contacts", data: { phone: "2", updated_at: "later" }, previous: { phone: "1", updated_at: "x" } };
  await act(async () => relay.say("clients:1", snapshot(4, { id: "1", updated_at: "own" }, "clients:1"), change(5, part)));
  assert.deepEqual(seen.record, { id: "1", updated_at: "own", phone: "2" });
  await render(h(View, { id: "2" }));
  await act(async () => relay.say("clients:2", snapshot(4, { id: "2" }, "clients:2")));
  assert.deepEqual(seen.record, { id: "2" }, "and stays with that client");
  await unmount();
});

test("a transaction's changes are one", async () => {
  const relay = fakeRelay();
  let seen;
  const View = () => ((seen = useRecord("listings", "1")), null);
  const { unmount } = await mount(relay, h(View));
  const events = [change(4), change(5, { data: { price: 5, beds: 3 }, previous: { price: 4, beds: 2 } })];
  await act(async () => relay.say("listings:1", snapshot(3), { type: "TRANSACTION", txid: "9", cursor: "c", events }));
  assert.deepEqual([seen.record, seen.changed], [{ id: "1", price: 5, beds: 3 }, { price: 3, beds: 2 }]);
  await unmount();
});

test("mounting and unmounting a thousand times leaves nothing", async () => {
  const relay = fakeRelay();
  const client = new QueryClient();
  const View = () => {
    useRelayStatus();
    useRecord("listings", "1");
    useRelayQueries(client, ["team:7", "user:ana"]);
    return null;
  };
  const { render, unmount } = await mount(relay, h(View));
  for (let times = 0; times < 1000; times++) await render(times % 2 ? h(View) : null);
  assert.deepEqual([relay.subs.size, relay.watchers.size], [3, 2]);
  await unmount();
  assert.deepEqual([relay.subs.size, relay.watchers.size], [0, 0]);
});

test("without a provider it says what is missing", async (t) => {
  t.mock.method(console, "error", () => {});
  const View = () => (useRelayStatus(), null);
  const root = createRoot(document.querySelector("main"), { onUncaughtError: () => {} });
  await assert.rejects(async () => act(async () => root.render(h(View))), /RelayProvider/);
  await act(async () => root.unmount());
});

test("which queries an event is about", () => {
  const id = "5d1f0c9e-0000-4000-8000-000000000001";
  const other = "5d1f0c9e-0000-4000-8000-000000000002";
  for (const [key, kind] of [
    [["listings"], "list"],
    [["listings", "list", { status: "active" }], "list"],
    [["listings", { page: 2 }], "list"],
    [["listings", "user", other], "list"],
    [["listings", id], "detail"],
    [["listing", id, "documents"], "detail"],
    [["listings", "detail", id], "detail"],
    [["listings", other], undefined],
    [["listings", "detail", other], undefined],
    [["escrows", id], undefined],
    [["me"], undefined],
  ]) {
    assert.equal(kindOf(key, { module: "listings", recordId: id }), kind, JSON.stringify(key));
  }
  assert.equal(kindOf(["history", "5"], { module: "histories", recordId: "5" }), "detail");
});

test("an event that is older than the cached record changes nothing; a part brings only what is joined", () => {
  const record = { version: 8, price: 5, phone: "1", updated_at: "a" };
  assert.equal(mergeRecord(record, change(1, { data: { price: 4, version: 7 } })), record);
  assert.equal(mergeRecord(record, change(1, { data: { price: 6, version: 9 } })).price, 6);
  assert.deepEqual(mergeRecord(record, change(1, { part: "contacts", data: { phone: "2", fax: "3", updated_at: "b" } })), { ...record, phone: "2" });
});

/** A cache with a few answers in it, and how often each was fetched since. */
async function cache(t, options) {
  const relay = fakeRelay();
  const client = new QueryClient({ defaultOptions: { queries: { staleTime: Infinity, gcTime: Infinity } } });
  const fetched = {};
  const answers = {
    list: [["listings", "list"], { data: [{ id: "1", price: 4 }, { id: "2", price: 4 }], total: 2 }],
    pages: [["listings", "pages"], { pages: [[{ id: "1", price: 4 }], [{ id: "3", price: 4 }]], pageParams: [0, 1] }],
    one: [["listings", "detail", "1"], { listing: { id: "1", price: 4 } }],
    leads: [["leads"], [{ id: "1", price: 4 }]],
    me: [["me"], { id: "1", price: 4 }],
  };
  const watched = Object.entries(answers).map(([name, [queryKey, data]]) => {
    const queryFn = () => ((fetched[name] = (fetched[name] ?? -1) + 1), data);
    return new QueryObserver(client, { queryKey, queryFn }).subscribe(() => {});
  });
  await settled();
  const stop = bridgeQueries(relay, client, ["team:7", "listings:1"], options);
  t.after(() => {
    stop();
    watched.forEach((unwatch) => unwatch());
    client.clear();
  });
  const read = (name) => client.getQueryData(answers[name][0]);
  const gathered = async () => {
    t.mock.timers.tick(50);
    await settled();
    return fetched;
  };
  return { relay, client, read, gathered, stop, answers };
}

const NONE = { list: 0, pages: 0, one: 0, leads: 0, me: 0 };

test("by default an event fetches its record and its lists anew, once for many, and nothing else", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { relay, gathered } = await cache(t);
  assert.deepEqual(await gathered(), NONE);
  for (let seq = 5; seq < 500; seq++) relay.say("team:7", change(seq));
  assert.deepEqual(await gathered(), { ...NONE, list: 1, pages: 1, one: 1 });
});

test("what was fetched before the rooms were live is fetched again, as after a resync", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { relay, gathered } = await cache(t, { modules: ["listings"] });
  relay.live();
  assert.deepEqual(await gathered(), { ...NONE, list: 1, pages: 1, one: 1 });
  relay.say("team:7", { type: "resync", rooms: [{ room: "team:7", reason: "truncated" }] });
  assert.deepEqual(await gathered(), { ...NONE, list: 2, pages: 2, one: 2 });
});

test("with merge a change is patched into details and lists, and nothing is fetched", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { relay, read, gathered, answers } = await cache(t, { merge: true });
  const before = read("list");
  relay.say("team:7", change(5));
  assert.deepEqual(read("list"), { data: [{ id: "1", price: 5 }, { id: "2", price: 4 }], total: 2 });
  assert.deepEqual(read("pages").pages, [[{ id: "1", price: 5 }], [{ id: "3", price: 4 }]]);
  assert.deepEqual(read("one"), { listing: { id: "1", price: 5 } });
  assert.equal(before.data[0].price, 4, "what was given out before is left as it was");
  assert.equal(read("list").data[1], before.data[1], "and what did not change is the same object");
  relay.say("team:7", change(6, { action: "deleted", recordId: "3" }));
  assert.deepEqual(read("pages").pages, [[{ id: "1", price: 5 }], []]);
  assert.deepEqual(await gathered(), NONE);
  assert.equal(read("leads"), answers.leads[1]);
});

test("with merge what no patch can know is fetched: new and moved records, deleted details, what merge declines", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { relay, gathered } = await cache(t, { merge: (record, event) => ("odd" in event.data ? undefined : mergeRecord(record, event)) });
  relay.say("team:7", change(5, { action: "created", recordId: "9" }));
  assert.deepEqual(await gathered(), { ...NONE, list: 1, pages: 1 });
  relay.say("team:7", change(6, { action: "deleted", reason: "moved" }));
  assert.deepEqual(await gathered(), { ...NONE, list: 2, pages: 2, one: 1 });
  relay.say("team:7", change(7, { data: { odd: 1 } }));
  assert.deepEqual(await gathered(), { ...NONE, list: 3, pages: 3, one: 2 });
});

test("with merge an answer under way is not trusted: it may be older than the change", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { relay, client, gathered } = await cache(t, { merge: true });
  let release;
  let count = 0;
  const queryFn = () => (count++ ? { id: "1", price: 5 } : new Promise((done) => (release = () => done({ id: "1", price: 4 }))));
  const unwatch = new QueryObserver(client, { queryKey: ["listing", "1"], queryFn }).subscribe(() => {});
  relay.say("team:7", change(5));
  await gathered();
  assert.equal(count, 1, "the first answer is waited for");
  release();
  await settled();
  await gathered();
  assert.deepEqual([count, client.getQueryData(["listing", "1"])], [2, { id: "1", price: 5 }]);
  unwatch();
});

test("with merge a refetch under way is not trusted either", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { relay, client, gathered } = await cache(t, { merge: true });
  const releases = [];
  const answers = [4, 4, 5].map((price) => ({ id: "1", price }));
  const queryFn = () => new Promise((done) => releases.push(() => done(answers.shift())));
  const queryKey = ["listing", "1"];
  const unwatch = new QueryObserver(client, { queryKey, queryFn }).subscribe(() => {});
  releases[0]();
  await settled();
  void client.refetchQueries({ queryKey });
  relay.say("team:7", change(5));
  releases[1]();
  await gathered();
  releases[2]?.();
  await settled();
  assert.deepEqual([releases.length, client.getQueryData(queryKey)], [3, { id: "1", price: 5 }]);
  unwatch();
});

test("a bridge that was ended fetches nothing any more, and may be ended twice", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  const { relay, gathered, stop } = await cache(t);
  relay.say("team:7", change(5));
  stop();
  stop();
  assert.deepEqual(await gathered(), NONE);
  assert.equal(relay.subs.size, 0);
});
