import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { PEOPLE, api, browser, demo, edit as change, until } from "./page.mjs";

const { ana, ben, carla, edith } = PEOPLE;
const MODULES = ["escrows", "listings", "clients", "leads", "appointments"];
let relay, chromium;
/** What a console called an error, in any page, and no test expected. */
let faults = [];

before(async () => {
  relay = await demo();
  chromium = await browser();
});

after(async () => {
  await chromium?.close();
  if (relay) assert.equal(await relay.stop(), 0, "the demo takes away what it brought");
});

/** A page of its own browser profile, all its panes live; `user` for one who is alone in a tab. */
async function open(t, hash = "listings", { user, ...options } = {}) {
  const page = await chromium.newPage(options);
  page.setDefaultTimeout(15_000);
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
  await page.goto(`${relay.url}${user ? `?user=${user.id}` : ""}#${hash}`);
  await page.locator(".pane[data-live]").nth(user ? 0 : 1).waitFor();
  t.after(async () => {
    await page.close();
    assert.deepEqual(faults.splice(0), [], "no console error");
  });
  return page;
}

const pane = (page, at = 0) => page.locator(".pane").nth(at);
const row = (page, id, at) => pane(page, at).locator(`.list [data-id="${id}"]`);
const field = (page, column, at) => pane(page, at).locator(`[data-column="${column}"]`);
const dot = (page, status, at) => pane(page, at).locator(`relay-status[data-status="${status}"]`).waitFor();
const records = (module, user = ana) => api(relay.url, `${module}?user=${user.id}`);

async function type(box, value) {
  await box.getByRole("button").click();
  await box.locator("input, textarea").fill(value);
  await box.locator("input, textarea").press("Enter");
}

/** For a field of each module, a value that it does not have yet. */
const EDITS = { escrows: "title_company", listings: "property_address", clients: "phone", leads: "phone", appointments: "location" };

for (const module of MODULES) {
  test(`${module}: the same record in two tabs, edited in one and seen in the other`, async (t) => {
    const [{ id }] = await records(module);
    const one = await open(t, `${module}/${id}`, { user: ana });
    const other = await open(t, `${module}/${id}`, { user: ben });
    const value = `${module} 775`;
    await type(field(one, EDITS[module]), value);
    const seen = field(other, EDITS[module]);
    await seen.filter({ hasText: value }).waitFor();
    assert.match(await seen.getAttribute("class"), /changed/);
    await field(one, EDITS[module]).and(one.locator(":not(.pending)")).filter({ hasText: value }).waitFor();
  });
}

test("five modules in five tabs, edited in turn, are seen in five others", async (t) => {
  const pages = [];
  for (const module of MODULES) {
    const [, { id }] = await records(module);
    pages.push([EDITS[module], await open(t, `${module}/${id}`, { user: ana }), await open(t, `${module}/${id}`, { user: ben })]);
  }
  for (const round of ["first", "second"]) {
    for (const [column, one, other] of pages) {
      await type(field(one, column), `${round} time`);
      await field(other, column).filter({ hasText: `${round} time` }).waitFor();
    }
  }
});

test("a change glows and says who made it and from what, in list and detail; other fields do not", async (t) => {
  const { id } = (await records("listings"))[2];
  const page = await open(t, `listings/${id}`);
  const before = await field(page, "list_price", 1).getByRole("button").innerText();
  await type(field(page, "list_price"), "477500");
  const seen = field(page, "list_price", 1).and(page.locator(".changed"));
  await seen.filter({ hasText: "$477,500" }).waitFor();
  assert.equal(await seen.locator("small").innerText(), `Ana Kessler, was ${before}`);
  await row(page, id, 1).filter({ hasText: "$477,500" }).waitFor();
  assert.equal(await field(page, "bedrooms", 1).and(page.locator(".changed")).count(), 0);
  assert.match(await field(page, "list_price").locator("small").innerText(), /^you, was/);
});

test("an edit is shown at once and taken back if the CRM refuses it", async (t) => {
  const [{ id }] = await records("listings");
  const page = await open(t, `listings/${id}`);
  await page.route("**/api/listings/*", async (route) => {
    await asked;
    await route.continue();
  });
  let answer;
  const asked = new Promise((done) => (answer = done));
  const before = await field(page, "list_price").getByRole("button").innerText();
  await type(field(page, "list_price"), "plenty");
  await field(page, "list_price").and(page.locator(".pending")).filter({ hasText: "plenty" }).waitFor();
  answer();
  await pane(page).locator(".notice", { hasText: "Price was not saved: invalid input syntax" }).waitFor();
  assert.equal(await field(page, "list_price").getByRole("button").innerText(), before);
  expected(/422/);
});

/** What the browser itself logs of a refusal that the test wants. */
function expected(pattern) {
  assert.ok(faults.some((text) => pattern.test(text)), `${pattern} was expected`);
  faults = faults.filter((text) => !pattern.test(text));
}

test("two who edit one field: the second is asked whose value counts", async (t) => {
  for (const choice of ["theirs", "mine"]) {
    await t.test(choice, async (t) => {
      const { id } = (await records("escrows"))[0];
      const page = await open(t, `escrows/${id}`);
      const company = field(page, "title_company");
      await company.getByRole("button").click();
      await type(field(page, "title_company", 1), `Ben's ${choice}`);
      await company.locator(".hint", { hasText: `Ben Ruiz has just set this to Ben's ${choice}` }).waitFor();
      await company.locator("input").fill(`Ana's ${choice}`);
      await company.locator("input").press("Enter");
      const question = company.getByRole("group", { name: "Title company: whose value counts?" });
      await question.getByText("Ben Ruiz changed this while you were editing.").waitFor();
      await question.getByText(`TheirsBen's ${choice}`).waitFor();
      await question.getByText(`YoursAna's ${choice}`).waitFor();
      assert.ok(await question.locator(".theirs").evaluate((button) => button === document.activeElement), "the safe answer is at hand");
      await question.locator(`.${choice}`).click();
      const wanted = choice === "mine" ? "Ana's mine" : "Ben's theirs";
      await company.getByRole("button", { name: wanted }).waitFor();
      await field(page, "title_company", 1).filter({ hasText: wanted }).waitFor();
      assert.equal((await records("escrows"))[0].title_company, wanted);
      expected(/409/);
    });
  }
});

test("two who edit different fields of a record both have their way", async (t) => {
  const { id } = (await records("listings"))[1];
  const page = await open(t, `listings/${id}`);
  await field(page, "bedrooms").getByRole("button").click();
  await type(field(page, "list_price", 1), "433000");
  await field(page, "list_price").filter({ hasText: "$433,000" }).waitFor();
  await field(page, "bedrooms").locator("input").fill("5");
  await field(page, "bedrooms").locator("input").press("Enter");
  await field(page, "bedrooms", 1).and(page.locator(".changed")).getByText("5", { exact: true }).waitFor();
  await field(page, "list_price", 1).filter({ hasText: "$433,000" }).waitFor();
  expected(/409/);
});

test("all of it can be done by keyboard", async (t) => {
  const [{ id }] = await records("leads");
  const page = await open(t, "leads");
  await row(page, id).focus();
  await page.keyboard.press("Enter");
  await field(page, "source").getByRole("button").focus();
  await page.keyboard.press("Enter");
  await page.keyboard.type("By keyboard");
  await page.keyboard.press("Enter");
  await field(page, "source", 1).filter({ hasText: "By keyboard" }).waitFor();
  const focused = () => page.evaluate(() => document.activeElement.closest("[data-column]")?.dataset.column);
  assert.equal(await focused(), "source", "and the focus stays where it was");
  await page.keyboard.press("Enter");
  await page.keyboard.type("never");
  await page.keyboard.press("Escape");
  assert.equal(await field(page, "source").getByRole("button").innerText(), "By keyboard");
  await page.keyboard.press("Tab");
  assert.equal(await focused(), "status");
});

test("a record that becomes private leaves the colleague's screen, and comes back", async (t) => {
  const [{ id }] = await records("leads");
  const page = await open(t, `leads/${id}`);
  await row(page, id, 1).waitFor();
  await field(page, "is_private").getByRole("checkbox").check();
  await row(page, id, 1).waitFor({ state: "detached" });
  await pane(page, 1).getByText("Ben Ruiz does not see this record.").waitFor();
  assert.ok(await row(page, id).isVisible(), "its owner keeps it");
  await field(page, "is_private").getByRole("checkbox").uncheck();
  await row(page, id, 1).waitFor();
});

test("somebody of another team sees other records, a broker those of both", async (t) => {
  const page = await open(t);
  const titles = (at) => pane(page, at).locator(".list b").allInnerTexts();
  const become = async (label) => {
    await pane(page, 1).locator("select.user").selectOption({ label });
    await dot(page, "connected", 1);
  };
  const first = await titles(0);
  await become("Carla Lindqvist, Lakeside");
  const other = await until(() => titles(1), (list) => list.length > 3);
  assert.deepEqual(first.filter((title) => other.includes(title)), []);
  await become("Edith Moreau, broker");
  await until(() => titles(1), (list) => list.length >= first.length + other.length - 2);
});

test("a third person opens in a tab of their own, at the same record", async (t) => {
  const [{ id }] = await records("listings");
  const page = await open(t, `listings/${id}`);
  const [tab] = await Promise.all([page.waitForEvent("popup"), page.getByRole("link", { name: "Open Edith Moreau in a tab" }).click()]);
  await field(tab, "list_price").waitFor();
  assert.equal(await tab.locator(".pane").count(), 1);
  await type(field(tab, "list_price"), "500100");
  await field(page, "list_price").getByText("Edith Moreau, was").waitFor();
});

test("what is typed is shown as text, never run", async (t) => {
  const [{ id }] = await records("listings");
  const page = await open(t, `listings/${id}`);
  const text = `<img src=x onerror="document.title='run'"> "x" 😀 שלום`;
  await type(field(page, "property_address"), text);
  await field(page, "property_address", 1).filter({ hasText: text }).waitFor();
  await row(page, id, 1).filter({ hasText: text }).waitFor();
  assert.equal(await page.title(), "crm-relay demo");
});

test("ten edits in one second end with the last one", async (t) => {
  let record = (await records("listings"))[0];
  const page = await open(t, `listings/${record.id}`, { user: ben });
  for (let price = 510_000; price <= 519_000; price += 1000) {
    record = { id: record.id, ...(await change(relay.url, ana.id, "listings", record, { list_price: price })) };
  }
  await field(page, "list_price").filter({ hasText: "$519,000" }).waitFor();
});

const break_ = async (page, name) => {
  const menu = page.locator("#break");
  if (!(await menu.evaluate((element) => element.open))) await menu.locator("summary").click();
  await page.getByRole("button", { name }).click();
};

test("ten edits in ten seconds are each seen", async (t) => {
  const page = await open(t);
  await page.evaluate(() => {
    window.seen = new Set();
    const look = () => seen.add(document.querySelectorAll(".pane")[1].querySelector('[data-column="list_price"] button')?.innerText);
    new MutationObserver(look).observe(document.querySelector("main"), { subtree: true, childList: true });
  });
  await break_(page, "Edit 10 times in 10 s");
  await page.getByText("10 of 10").waitFor({ timeout: 20_000 });
  await page.waitForFunction(() => seen.size >= 10);
  const [{ list_price }] = await records("listings");
  await field(page, "list_price", 1).filter({ hasText: list_price.toLocaleString("en-US") }).waitFor();
});

test("the relay stops: the dot goes amber and green by itself, and an edit made meanwhile appears", async (t) => {
  const { id } = (await records("listings"))[3];
  const page = await open(t, `listings/${id}`);
  await break_(page, "Stop the relay for 5 s");
  for (const at of [0, 1]) await dot(page, "reconnecting", at);
  const words = () => pane(page).locator("relay-status").evaluate((dot) => dot.shadowRoot.textContent);
  await until(words, (text) => /^Reconnecting in \d s$/.test(text));
  await type(field(page, "list_price"), "466000");
  await field(page, "list_price").and(page.locator(".pending")).filter({ hasText: "$466,000" }).waitFor();
  for (const at of [0, 1]) await dot(page, "connected", at);
  await field(page, "list_price", 1).and(page.locator(".changed")).filter({ hasText: "$466,000" }).waitFor();
  await field(page, "list_price").and(page.locator(":not(.pending)")).waitFor();
  // the browser logs each attempt that found nobody
  faults = faults.filter((text) => !/WebSocket/.test(text));
});

test("Postgres restarts: nobody has to reload", async (t) => {
  const { id } = (await records("listings"))[3];
  const page = await open(t, `listings/${id}`);
  await break_(page, "Restart Postgres");
  await page.getByText("Postgres is back, and nobody had to reload.").waitFor();
  await type(field(page, "list_price"), "467000");
  await field(page, "list_price", 1).filter({ hasText: "$467,000" }).waitFor();
  await dot(page, "connected");
});

test("a thousand imported leads are there, on both sides", async (t) => {
  const page = await open(t, "leads");
  await break_(page, "Import 1,000 leads");
  for (const at of [0, 1]) {
    await pane(page, at).locator("h2", { hasText: /Leads 10\d\d/ }).waitFor();
    assert.equal(await pane(page, at).locator(".list li").count(), 200);
  }
});

test("without a network the dot is grey; with it, it is green at once and what was missed is there", async (t) => {
  const { id } = (await records("listings"))[4];
  const page = await open(t, `listings/${id}`, { user: ben });
  await page.context().setOffline(true);
  await dot(page, "offline");
  const record = (await records("listings"))[4];
  await change(relay.url, ana.id, "listings", record, { list_price: 488_000 });
  await page.context().setOffline(false);
  await dot(page, "connected");
  await field(page, "list_price").filter({ hasText: "$488,000" }).waitFor();
  faults = faults.filter((text) => !/WebSocket|ERR_INTERNET_DISCONNECTED/.test(text));
});

test("a page that was frozen, as on a laptop that slept, shows what was missed", async (t) => {
  const { id } = (await records("listings"))[4];
  const page = await open(t, `listings/${id}`, { user: ben });
  const cdp = await page.context().newCDPSession(page);
  await cdp.send("Page.setWebLifecycleState", { state: "frozen" });
  const record = (await records("listings"))[4];
  await change(relay.url, ana.id, "listings", record, { list_price: 489_000 });
  await cdp.send("Page.setWebLifecycleState", { state: "active" });
  await field(page, "list_price").filter({ hasText: "$489,000" }).waitFor();
});

for (const count of [10, 100]) {
  test(`${count} connections in one page each see an edit`, async (t) => {
    const record = (await records("listings"))[5];
    const page = await open(t, "listings", { user: ana });
    await page.evaluate(async ([room, count]) => {
      const { connect } = await import("/client.js");
      window.heard = 0;
      const lives = Array.from({ length: count }, () => new Promise((live) => {
        connect("/ws").subscribe(room, () => (window.heard += 1), { live });
      }));
      await Promise.all(lives);
    }, [`listings:${record.id}`, count]);
    await change(relay.url, ana.id, "listings", record, { list_price: 499_000 + count });
    await page.waitForFunction((count) => window.heard === count, count);
  });
}

test("another CRM in the place of the first, under two tabs: both fetch anew by themselves", async (t) => {
  const pages = [await open(t, "listings", { user: ana }), await open(t, "listings", { user: carla })];
  const { host } = new URL(relay.url);
  await relay.stop();
  for (const page of pages) await dot(page, "reconnecting");
  relay = await demo(host);
  for (const page of pages) await dot(page, "connected");
  const [record] = await records("listings", edith);
  await change(relay.url, edith.id, "listings", record, { list_price: 455_000 });
  await row(pages[0], record.id).filter({ hasText: "$455,000" }).waitFor();
  faults = faults.filter((text) => !/WebSocket|ERR_CONNECTION_REFUSED/.test(text));
});

test("the dot tells each status in words, counts down, and leaves nothing behind when it is taken away", async (t) => {
  const page = await open(t);
  const told = await page.evaluate(async () => {
    const listeners = new Set();
    const relay = { status: "connecting", retryAt: undefined, on: (_name, listener) => (listeners.add(listener), () => listeners.delete(listener)) };
    const dot = document.createElement("relay-status");
    const words = () => [dot.dataset.status, dot.shadowRoot.textContent, dot.shadowRoot.querySelector("[role=status]").textContent];
    document.body.append(dot);
    const seen = [words()];
    dot.relay = relay;
    for (const [status, retryIn] of [["connecting"], ["connected"], ["reconnecting", 4000], ["offline", 8000], ["unauthorized"]]) {
      Object.assign(relay, { status, retryAt: retryIn && Date.now() + retryIn });
      listeners.forEach((listener) => listener());
      seen.push(words());
    }
    dot.remove();
    seen.push(listeners.size);
    document.body.append(dot);
    seen.push(listeners.size);
    dot.relay = undefined;
    seen.push(listeners.size);
    dot.remove();
    return seen;
  });
  assert.deepEqual(told, [
    ["unknown", "Not connected", "Not connected"],
    ["connecting", "Connecting", "Connecting"],
    ["connected", "Live", "Live"],
    ["reconnecting", "Reconnecting in 4 s", "Reconnecting"],
    ["offline", "Offline in 8 s", "Offline"],
    ["unauthorized", "Signed out", "Signed out"],
    0, 1, 0,
  ]);
});
