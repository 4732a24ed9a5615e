import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { browser, demo } from "./page.mjs";

let relay, chromium, page;
const faults = [];

before(async () => {
  relay = await demo();
  chromium = await browser();
});

after(async () => {
  await chromium?.close();
  if (relay) assert.equal(await relay.stop(), 0, "the demo takes away what it brought");
});

/** The page, both panes live, a module shown. */
async function open(module, options) {
  page = await chromium.newPage(options);
  page.setDefaultTimeout(15_000);
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
  await page.goto(relay.url);
  for (const side of ["left", "right"]) await live(side);
  await page.getByRole("tab", { name: module }).click();
}

const live = (side) => page.locator(`#${side} .status[data-state="live"]`).waitFor();
const cell = (side, place, column) => page.locator(`#${side} tbody tr`).nth(place).locator(`[data-column="${column}"]`);

async function edit(at, value) {
  await at.getByRole("button").click();
  await at.locator("input").fill(value);
  await at.locator("input").press("Enter");
}

test("an edit on one side is seen on the other, with who made it and what was there", async () => {
  await open("listings");
  assert.equal(await cell("right", 0, "list_price").innerText(), "$489,000");
  await edit(cell("left", 0, "list_price"), "479500");
  const seen = cell("right", 0, "list_price");
  await seen.filter({ hasText: "$479,500" }).waitFor();
  assert.match(await seen.getAttribute("class"), /changed/);
  assert.match(await seen.innerText(), /Ana Kessler, was \$489,000/);
  assert.doesNotMatch(await cell("right", 0, "property_address").getAttribute("class"), /changed/);
  await cell("left", 0, "list_price").filter({ hasText: "$479,500" }).waitFor();
  await page.close();
});

test("every module is live, also a client's phone, which lives in contacts", async () => {
  for (const [module, column, value] of [
    ["escrows", "title_company", "Blue Lake Title"],
    ["leads", "phone", "775-555-0999"],
    ["clients", "phone", "775-555-0888"],
    ["appointments", "location", "Café at the bridge"],
  ]) {
    await open(module);
    await edit(cell("right", 0, column), value);
    await cell("left", 0, column).filter({ hasText: value }).waitFor();
    await page.close();
  }
});

test("a record that becomes private leaves the colleague's screen, and comes back", async () => {
  await open("leads");
  const rows = page.locator("#right tbody tr");
  const count = await rows.count();
  const own = await page.locator("#left tbody tr").count();
  const lead = cell("left", 0, "is_private").locator("input");
  await lead.check();
  await page.waitForFunction(([n]) => document.querySelectorAll("#right tbody tr").length === n, [count - 1]);
  assert.equal(await page.locator("#left tbody tr").count(), own, "its owner keeps it");
  await lead.uncheck();
  await page.waitForFunction(([n]) => document.querySelectorAll("#right tbody tr").length === n, [count]);
  await page.close();
});

test("somebody of another team sees other records", async () => {
  await open("listings");
  const addresses = (side) => page.locator(`#${side} [data-column="property_address"]`).allInnerTexts();
  const first = await addresses("left");
  await page.locator("#right select.user").selectOption({ label: "Carla Lindqvist, Lakeside" });
  await live("right");
  const other = await addresses("right");
  assert.ok(first.length > 3 && other.length > 3);
  assert.deepEqual(first.filter((address) => other.includes(address)), []);
  await page.locator("#right select.user").selectOption({ label: "Edith Moreau, broker" });
  await live("right");
  assert.ok((await addresses("right")).length >= first.length + other.length - 2);
  await page.close();
});

test("a value that the database refuses is told and not shown", async () => {
  await open("listings");
  await edit(cell("left", 1, "list_price"), "plenty");
  await page.locator("#left .notice").filter({ hasText: "invalid input syntax" }).waitFor();
  assert.match(await cell("left", 1, "list_price").innerText(), /^\$/);
  faults.length = 0; // the browser logs the refused request
  await page.close();
});

test("what is typed is shown as text, never run", async () => {
  await open("listings");
  const text = `<img src=x onerror="document.title='run'"> "x" 😀 שלום`;
  await edit(cell("left", 2, "property_address"), text);
  await cell("right", 2, "property_address").filter({ hasText: text }).waitFor();
  assert.equal(await page.title(), "crm-relay demo");
  await page.close();
});

test("after a restart of the relay the page is live again by itself", async () => {
  await open("listings");
  const { host } = new URL(relay.url);
  await relay.stop();
  await page.locator('#left .status[data-state="reconnecting"]').waitFor();
  relay = await demo(host);
  for (const side of ["left", "right"]) await live(side);
  await edit(cell("left", 0, "list_price"), "455000");
  await cell("right", 0, "list_price").filter({ hasText: "$455,000" }).waitFor();
  faults.length = 0; // the browser logs each attempt that found nobody
  await page.close();
});

test("on a phone nothing is wider than the screen, in light and in dark", async () => {
  for (const colorScheme of ["light", "dark"]) {
    await open("escrows", { viewport: { width: 390, height: 844 }, colorScheme });
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
    await page.close();
  }
  assert.deepEqual(faults, []);
});
