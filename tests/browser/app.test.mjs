// A frontend as the CRM's is built, with Vite, React and react-query, at an origin of its own: with React 18, as
// the CRM has it, and with 19.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createServer, request } from "node:http";
import { after, before, test } from "node:test";
import { PEOPLE, api, browser, demo, edit, until } from "./page.mjs";

const REACTS = ["18", "19"];
const DIST = new URL("app/dist/", import.meta.url);
const TYPES = { html: "text/html", js: "text/javascript" };
const { ana, ben } = PEOPLE;

let relay, chromium, page, socket;
const faults = [];
/** The app's own server, for a React: its files, and the CRM's API behind the same origin. */
const appOf = (react) =>
  createServer(async ({ url, method }, answer) => {
    if (url.startsWith("/api/")) {
      return request(new URL(url, relay.url), { method }, (from) => {
        answer.writeHead(from.statusCode, from.headers);
        from.pipe(answer);
      }).end();
    }
    const path = url.split("?")[0].slice(1) || "index.html";
    const file = await readFile(new URL(`${react}/${path}`, DIST)).catch(() => undefined);
    answer.writeHead(file ? 200 : 404, { "content-type": TYPES[path.split(".").at(-1)] ?? "text/plain" }).end(file);
  });
const apps = REACTS.map(appOf);
const originOf = (react) => `http://127.0.0.1:${apps[REACTS.indexOf(react)].address().port}`;

before(async () => {
  await Promise.all(apps.map((app) => new Promise((done) => app.listen(0, "127.0.0.1", done))));
  relay = await demo("127.0.0.1:0", { RELAY_ALLOWED_ORIGINS: REACTS.map(originOf).join(), RELAY_THROTTLE: "0" });
  chromium = await browser();
});

after(async () => {
  await chromium?.close();
  await relay?.stop();
  apps.forEach((app) => app.close());
  assert.deepEqual(faults, []);
});

async function open(react, more = "") {
  page = await chromium.newPage();
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
  page.on("websocket", (opened) => (socket = opened));
  const relayAt = encodeURIComponent(`${relay.url}ws`);
  await page.goto(`${originOf(react)}/?user=${ben.id}&rooms=${ben.rooms}&relay=${relayAt}${more}`);
  await page.locator("#status", { hasText: "connected" }).waitFor();
  // the list is fetched, and once more when its rooms are live; what changes before that is answered is fetched again
  await page.waitForFunction(() => window.fetched >= 2 && !window.isFetching());
  await page.locator("li").first().waitFor();
}

const first = async () => (await api(relay.url, `listings?user=${ana.id}`))[0];
const row = (id) => page.locator(`li[data-id="${id}"] span`);

for (const react of REACTS) {
  test(`React ${react}: an event makes the list be fetched anew, once`, async () => {
    await open(react);
    assert.match(await page.locator("#version").innerText(), new RegExp(`^${react}\\.`));
    const before = await page.evaluate(() => window.fetched);
    const listing = await first();
    await edit(relay.url, ana.id, "listings", listing, { list_price: 411_000 });
    await row(listing.id).filter({ hasText: "411000" }).waitFor();
    assert.equal(await page.evaluate(() => window.fetched), before + 1);
    await page.close();
  });

  test(`React ${react}: with merge the list shows it and nothing is fetched`, async () => {
    await open(react, "&merge");
    const before = await page.evaluate(() => window.fetched);
    const listing = await first();
    await edit(relay.url, ana.id, "listings", listing, { list_price: 412_000 });
    await row(listing.id).filter({ hasText: "412000" }).waitFor();
    assert.equal(await page.evaluate(() => window.fetched), before);
    await page.close();
  });

  test(`React ${react}: useRecord shows the live record, what changed and by whom; two components are one subscribe`, async () => {
    await open(react);
    const listing = await first();
    await page.evaluate((id) => window.choose(id), listing.id);
    await page.locator("article output", { hasText: String(listing.list_price) }).nth(1).waitFor();
    await edit(relay.url, ana.id, "listings", listing, { list_price: 413_000 });
    for (const at of [0, 1]) {
      await page.locator("article output", { hasText: "413000" }).nth(at).waitFor();
      assert.equal(await page.locator("article small").nth(at).innerText(), `${ana.id} was ${listing.list_price}`);
    }
    await page.close();
    const [, rooms] = /rooms=(\d+)/.exec(await relay.logged(/disconnected .*rooms=3\b/));
    assert.equal(rooms, "3", "a user's, a team's and the record's");
  });

  test(`React ${react}: the dot is green in a page of React`, async () => {
    await open(react);
    await page.locator('relay-status[data-status="connected"]').waitFor();
    await page.close();
  });

  test(`React ${react}: mounted and unmounted a thousand times: nothing is left at the relay, and no heap`, async (t) => {
    await open(react);
    const listing = await first();
    await page.evaluate((id) => window.choose(id), listing.id);
    const cdp = await page.context().newCDPSession(page);
    const times = (count) => page.evaluate(async (count) => {
      const turn = () => new Promise((done) => { const { port1, port2 } = new MessageChannel(); port1.onmessage = done; port2.postMessage(0); });
      for (let time = 0; time < count; time++) {
        window.show(false);
        await turn();
        window.show(true);
        await turn();
      }
    }, count).then(() => page.locator("article output").first().waitFor()); // all was answered
    const heap = async () => {
      await cdp.send("HeapProfiler.collectGarbage");
      return (await cdp.send("Runtime.getHeapUsage")).usedSize;
    };
    await times(1000); // what is compiled and cached once
    const before = await heap();
    await times(1000);
    const grown = (await heap()) - before;
    t.diagnostic(`heap grew by ${grown} bytes`);
    // a subscriber alone that were left each time would be more
    assert.ok(grown < 200_000, `the heap grew by ${grown} bytes`);
    const rooms = new Set();
    const all = socket.waitForEvent("framereceived", ({ payload }) => {
      const frame = JSON.parse(payload);
      for (const room of frame.type === "unsubscribed" ? frame.rooms : []) rooms.add(room);
      return rooms.size === 3;
    });
    await page.evaluate(() => window.show(false));
    await all;
    // the relay tells how many rooms a connection had when it ended
    const past = relay.lines.length;
    await page.close();
    const last = await until(() => relay.lines.slice(past).find((line) => /disconnected/.test(line)), Boolean);
    assert.match(last, /rooms=0\b/);
  });
}
