// Plain pages in Chromium, of an origin of their own, against a relay that asks for tokens: what people see when
// their token ends, a record is no longer theirs, the relay goes, the network goes, the machine sleeps.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { LISTINGS, PEOPLE, office, token } from "./office.mjs";
import { browser, until } from "./page.mjs";

const { ana, ben } = PEOPLE;
let crm, chromium;

/** A listing's price, and the types of the events so far. */
const page = (relay) => `<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>A listing</title><link rel="icon" href="data:,"></head>
<body><relay-status></relay-status> <output></output> <ol></ol>
<script type="module">
  import { connect } from "${relay}client.js";
  import "${relay}status.js";
  const output = document.querySelector("output");
  const relay = connect("${relay}ws", { token: () => window.freshToken() });
  document.querySelector("relay-status").relay = relay;
  relay.subscribe("listings:${LISTINGS.ana}", (event) => {
    if (event.data?.list_price) output.textContent = event.data.list_price;
    if (event.type === "revoked") output.textContent = "not yours to see";
    document.querySelector("ol").append(Object.assign(document.createElement("li"), { textContent: event.type }));
  }, { snapshot: true });
</script></body></html>`;

before(async () => {
  crm = await office();
  crm.pages["/"] = page(crm.url);
  chromium = await browser();
});

after(async () => {
  await chromium?.close();
  await crm?.close();
});

/** What a browser logs of itself when nobody answers. */
const NOBODY = /WebSocket|ERR_CONNECTION_REFUSED|ERR_INTERNET_DISCONNECTED/;

/** A tab of somebody; `came` is what its sockets heard, `tokens` how long the next ones last. */
async function open(t, user, tokens = []) {
  const tab = await chromium.newPage();
  tab.setDefaultTimeout(20_000);
  const faults = [];
  const came = [];
  tab.on("pageerror", (error) => faults.push(String(error)));
  tab.on("console", (message) => message.type() === "error" && !NOBODY.test(message.text()) && faults.push(message.text()));
  tab.on("websocket", (socket) => {
    came.push({ type: "open" });
    socket.on("framereceived", ({ payload }) => came.push(JSON.parse(payload)));
  });
  await tab.exposeFunction("freshToken", () => token(user, tokens.shift()));
  await tab.goto(crm.origin);
  await tab.evaluate(() => {
    const dot = document.querySelector("relay-status");
    window.dots = [dot.dataset.status];
    new MutationObserver(() => window.dots.push(dot.dataset.status)).observe(dot, { attributeFilter: ["data-status"] });
  });
  t.after(async () => {
    await tab.close();
    assert.deepEqual(faults, [], "no console error");
  });
  const shows = (text) => tab.locator("output", { hasText: String(text) }).waitFor();
  const dot = (status) => tab.locator(`relay-status[data-status="${status}"]`).waitFor();
  await dot("connected");
  await tab.locator("li", { hasText: "snapshot" }).first().waitFor();
  return Object.assign(tab, {
    came,
    shows,
    dot,
    told: () => tab.locator("li").allInnerTexts(),
    /** The statuses of the dot so far. */
    dots: () => tab.evaluate(() => [...new Set(window.dots)].filter((status) => status !== "connecting")),
    heard: (type) => until(() => came.filter((frame) => frame.type === type).length, Boolean),
  });
}

let price = 600_000;
async function edit(more = "") {
  price += 1;
  await crm.sql(`update listings set list_price = ${price}, version = version + 1, last_modified_by = '${ana.id}' ${more} where id = '${LISTINGS.ana}'`);
  return price;
}

test("the page of the README shows a record and what becomes of it", async (t) => {
  const [, readme] = /```html\n(.*?)```/s.exec(readFileSync(new URL("../../README.md", import.meta.url), "utf8"));
  crm.pages["/readme"] = readme.replaceAll("http://127.0.0.1:7420/", crm.url);
  const tab = await chromium.newPage();
  t.after(() => tab.close());
  await tab.exposeFunction("freshToken", () => token(ben));
  await tab.goto(`${crm.origin}/readme`);
  const shows = (text) => tab.locator("output", { hasText: String(text) }).waitFor();
  await shows(489_000);
  await tab.locator('relay-status[data-status="connected"]').waitFor();
  await shows(await edit());
});

test("a token ends and is renewed, and nobody sees anything of it", async (t) => {
  const tab = await open(t, ben, [-3]); // good for two seconds more
  await tab.heard("token_expiring");
  await tab.heard("token_accepted");
  const ends = Date.parse(tab.came.find(({ type }) => type === "welcome").expiresAt);
  await until(() => Date.now(), (now) => now > ends + 1000);
  await tab.shows(await edit());
  assert.deepEqual([await tab.dots(), tab.came.filter(({ type }) => type === "open").length], [["connected"], 1]);
});

test("a record that becomes private leaves the colleague's tab and stays in its owner's", async (t) => {
  const [own, other] = [await open(t, ana), await open(t, ben)];
  const value = await edit(", is_private = true");
  await other.shows("not yours to see");
  await own.shows(value);
  assert.ok(!JSON.stringify(other.came).includes(String(value)), "not one byte");
  await edit(", is_private = false");
});

for (const [how, end] of [["is drained", "stop"], ["is killed", "kill"]]) {
  test(`the relay ${how} under two tabs: their dots go amber and green by themselves, and an edit made meanwhile appears`, async (t) => {
    const tabs = [await open(t, ana), await open(t, ben)];
    await crm.relay[end]();
    for (const tab of tabs) await tab.dot("reconnecting");
    const value = await edit();
    await crm.again();
    for (const tab of tabs) {
      await tab.dot("connected");
      await tab.shows(value);
      assert.deepEqual(await tab.dots(), ["connected", "reconnecting"]);
      assert.deepEqual(await tab.told(), ["snapshot", "LISTING_UPDATED"], "resumed, not fetched anew");
      assert.equal(tab.came.some(({ type }) => type === "draining"), how === "is drained");
    }
  });
}

test("who was away for more than is told again sees the record as it is, by a resync", async (t) => {
  const [there, away] = [await open(t, ana), await open(t, ben)];
  await away.context().setOffline(true);
  await away.dot("offline");
  await crm.sql(`do $$ begin
    for price in 1..1100 loop
      update listings set list_price = price, version = version + 1 where id = '${LISTINGS.ana}';
      commit;
    end loop;
  end $$`);
  await there.shows("1100");
  await away.context().setOffline(false);
  await away.dot("connected");
  await away.shows("1100");
  assert.deepEqual(await away.told(), ["snapshot", "resync", "snapshot"]);
  await away.shows(await edit());
});

test("a laptop sleeps while the relay is replaced, wakes, and shows what was missed", async (t) => {
  const tab = await open(t, ben);
  const cdp = await tab.context().newCDPSession(tab);
  await cdp.send("Page.setWebLifecycleState", { state: "frozen" });
  await crm.relay.kill();
  const value = await edit();
  await crm.again();
  await cdp.send("Page.setWebLifecycleState", { state: "active" });
  await tab.shows(value);
  await tab.dot("connected");
});

test("who is thrown out sees a grey dot and that they are signed out", async (t) => {
  const tab = await open(t, ben);
  await crm.sql(`select crm_relay.disconnect('${ben.id}')`);
  await tab.dot("unauthorized");
  assert.equal(await tab.locator("relay-status").evaluate((dot) => dot.shadowRoot.textContent), "Signed out");
});
