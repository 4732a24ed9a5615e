// Compressed frames (RFC 7692) with those who know them best: Chromium, npm's ws, Python's websockets.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { after, before, test } from "node:test";
import { Heard, PEOPLE, api, browser, demo, edit, until } from "./page.mjs";

const { ana } = PEOPLE;
const PYTHON = fileURLToPath(new URL("../../target/python/bin/python", import.meta.url));
const SCRIPT = fileURLToPath(new URL("deflate.py", import.meta.url));
let relay, listing;
// so many that the request is worth compressing, too
const many = (id) => [`listings:${id}`, ...Array.from({ length: 30 }, (_, at) => `leads:20000000-0000-4000-8000-${String(at).padStart(12, "0")}`)];
const AGREED = /^permessage-deflate; server_no_context_takeover; client_no_context_takeover/;

before(async () => {
  relay = await demo("127.0.0.1:0", { RELAY_THROTTLE: "0" });
  listing = (await api(relay.url, `listings?user=${ana.id}`))[0];
});
after(async () => assert.equal(await relay?.stop(), 0));

/** Sets the price of the listing; what each of its subscribers must be told. */
async function price(list_price) {
  const now = (await api(relay.url, `listings?user=${ana.id}`)).find(({ id }) => id === listing.id);
  await edit(relay.url, ana.id, "listings", now, { list_price, description: "A house with a view. ".repeat(40) + list_price });
}

const WS = () => relay.url.replace("http", "ws") + "ws";

test("npm's ws: what it compresses is heard, what it hears it can unpack", async () => {
  const socket = new Heard(WS(), { perMessageDeflate: { threshold: 0 } });
  const heard = [];
  socket.on("message", (text) => heard.push(JSON.parse(text)));
  await new Promise((open, fail) => socket.on("open", open).on("error", fail));
  assert.match(socket.extensions, /permessage-deflate/);
  socket.send(JSON.stringify({ type: "hello" }));
  socket.send(JSON.stringify({ type: "subscribe", id: 1, rooms: many(listing.id) }));
  await until(() => heard.length, (length) => length === 2);
  const before = socket._socket.bytesRead;
  await price(611_000);
  const [, , event] = await until(() => heard, ({ length }) => length === 3);
  assert.equal(Number(event.data.list_price), 611_000);
  assert.ok(socket._socket.bytesRead - before < 0.6 * JSON.stringify(event).length);
  socket.close();
});

test("Chromium", async (t) => {
  const chromium = await browser();
  t.after(() => chromium.close());
  const page = await chromium.newPage();
  const cdp = await page.context().newCDPSession(page);
  await cdp.send("Network.enable");
  const agreed = new Promise((told) => cdp.on("Network.webSocketHandshakeResponseReceived", ({ response }) => told(response.headers)));
  await page.goto(relay.url);
  const headers = await agreed;
  assert.match(headers["Sec-WebSocket-Extensions"] ?? headers["sec-websocket-extensions"], AGREED);
  const heard = page.evaluate((rooms) => new Promise((told) => {
    const socket = new WebSocket(`ws://${location.host}/ws`);
    socket.onopen = () => {
      socket.send(JSON.stringify({ type: "hello" }));
      socket.send(JSON.stringify({ type: "subscribe", id: 1, rooms }));
    };
    socket.onmessage = ({ data }) => {
      const frame = JSON.parse(data);
      if (frame.type === "subscribed") document.title = socket.extensions;
      if (frame.type === "LISTING_UPDATED") told(frame);
    };
  }), many(listing.id));
  await until(() => page.title(), (title) => AGREED.test(title));
  await price(622_000);
  assert.equal(Number((await heard).data.list_price), 622_000);
});

for (const window of ["", "12"]) {
  test(`Python's websockets${window && ", with a smaller window"}`, async () => {
    const child = spawn(PYTHON, [SCRIPT, WS(), window, ...many(listing.id)], { stdio: ["ignore", "pipe", "inherit"] });
    const lines = [];
    createInterface({ input: child.stdout }).on("line", (line) => lines.push(line));
    const ended = new Promise((done) => child.once("exit", done));
    await until(() => lines.length, (length) => length === 3);
    assert.match(lines[0], AGREED);
    assert.equal(lines[0].includes("server_max_window_bits=12"), window === "12");
    assert.equal(JSON.parse(lines[2]).rooms.length, 31, "what it compressed was read");
    await price(633_000 + Number(window));
    assert.equal(await ended, 0);
    assert.equal(Number(JSON.parse(lines.at(-1)).data.list_price), 633_000 + Number(window));
  });
}
