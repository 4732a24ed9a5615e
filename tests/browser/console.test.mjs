// The console as an operator uses it, in Chromium, on a relay that asks for tokens; beside it a demo, which brings
// the CRM and edits it.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHmac } from "node:crypto";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { after, before, test } from "node:test";
import { connect } from "crm-relay";
import { Heard, PEOPLE, api, browser, demo, edit, serve, until } from "./page.mjs";

const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const SCREENS = new URL("screens/", import.meta.url).pathname;
const SECRET = "the secret of the tests, which is no secret";
const ADMIN = "the operator of the tests";
const BOSS = "a0000000-0000-4000-8000-0000000000ff";
const { ana, ben } = PEOPLE;
let crm, relay, chromium, operators;
/** How many the tests of its looks have made: each sets another value. */
let edits = 0;
/** What a page's own console called an error, and no test expected. */
let faults = [];

const sql = (text) => execFileSync(`${process.env.PG_BIN}/psql`, ["-qX", "-v", "ON_ERROR_STOP=1", "-c", text, process.env.DATABASE_URL]);

/** A good token of this user. */
function token(id) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const now = Math.floor(Date.now() / 1000);
  const signed = `${part({ alg: "HS256", typ: "JWT" })}.${part({ id, iat: now, exp: now + 900 })}`;
  return `${signed}.${createHmac("sha256", SECRET).update(signed).digest("base64url")}`;
}

function freePort() {
  return new Promise((done) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => done(port));
    });
  });
}

before(async () => {
  crm = await demo("127.0.0.1:0", { RELAY_THROTTLE: "0" });
  sql(`insert into users (id, email, first_name, last_name, role) values ('${BOSS}', 'boss', '', '', 'system_admin')`);
  const listen = `127.0.0.1:${await freePort()}`;
  operators = `http://${listen}/`;
  relay = await serve({ RELAY_JWT_SECRET: SECRET, RELAY_ADMIN_TOKEN: ADMIN, RELAY_ADMIN_LISTEN: listen, RELAY_THROTTLE: "0" });
  chromium = await browser();
});

after(async () => {
  await chromium?.close();
  await relay?.stop();
  await crm?.stop();
});

/** A page of its own browser profile. */
async function open(t, url, options = {}) {
  const page = await chromium.newPage(options);
  page.setDefaultTimeout(15_000);
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
  await page.goto(url);
  t.after(async () => {
    await page.close();
    assert.deepEqual(faults.splice(0), [], "no console error");
  });
  return page;
}

/** The console at the operators' door, live. */
async function live(t, hash = "", options) {
  const page = await open(t, `${operators}console${hash}`, options);
  await page.locator('#events[aria-busy="false"]').waitFor({ state: "attached" });
  return page;
}

async function login(page, password = ADMIN) {
  await page.getByLabel("Admin token").fill(password);
  await page.getByLabel("Admin token").press("Enter");
}

const listing = async (at = 0) => (await api(crm.url, `listings?user=${ana.id}`))[at];
const price = async (record, list_price) => edit(crm.url, ana.id, "listings", record, { list_price });
const rows = (page) => page.locator("#events li[data-action]");

/** Clients of the relay in these rooms. */
async function watch(t, user, rooms) {
  const client = connect(`${relay.url}ws`, { WebSocket: Heard, token: () => token(user.id) });
  await Promise.all(rooms.map((room) => new Promise((live) => client.subscribe(room, () => {}, { live }))));
  t.after(() => client.close());
}

test("at the clients' door the console asks for the admin token, refuses another, and forgets it with the tab", async (t) => {
  const page = await open(t, `${relay.url}console`);
  assert.ok(await page.locator("#console").isHidden());
  await login(page, "not the operator's");
  await page.getByText("that is not the admin token").waitFor();
  assert.match(faults.splice(0).join(), /401/, "what Chromium itself says of the refusal");
  await login(page);
  await page.locator('#state[data-state="ready"]').waitFor();
  assert.ok(!page.url().includes("operator"));
  await page.reload();
  await page.locator('#state[data-state="ready"]').waitFor();
  assert.deepEqual(await page.evaluate(() => [localStorage.length, document.cookie]), [0, ""]);
  const other = await open(t, `${relay.url}console`);
  await other.getByLabel("Admin token").waitFor();
  await page.getByRole("button", { name: "Log out" }).click();
  await page.getByLabel("Admin token").waitFor();
  assert.equal(await page.evaluate(() => sessionStorage.length), 0);
});

test("a change is seen as it passes, by ids and names of fields; values only with a system_admin's token", async (t) => {
  const page = await live(t);
  const record = await listing();
  await price(record, 123_456);
  const row = rows(page).first();
  await row.filter({ hasText: "list_price" }).waitFor();
  const text = await row.innerText();
  assert.match(text, /updated/);
  assert.match(text, new RegExp(`listings:${record.id.slice(0, 8)}`));
  assert.match(text, new RegExp(`by ${ana.id.slice(0, 8)}`));
  assert.doesNotMatch(await page.content(), /123456/);

  const bring = async (id, answered) => {
    if (!(await page.getByLabel("Their token").isVisible())) await page.locator("#values summary").click();
    await page.getByLabel("Their token").fill(token(id));
    await page.getByRole("button", { name: "Show values" }).click();
    await answered.waitFor();
    await page.locator('#events[aria-busy="false"]').waitFor({ state: "attached" });
  };
  await bring(ana.id, page.getByText("the token's user is no system_admin"));
  await price(await listing(), 234_567);
  await rows(page).nth(1).waitFor();
  assert.doesNotMatch(await page.content(), /234567/);
  await bring(BOSS, page.locator("#seeing", { hasText: "shown" }));
  await price(await listing(), 345_678);
  await rows(page).filter({ hasText: "345678" }).waitFor();
  assert.ok(!page.url().includes("eyJ"), "no token in a URL");
  await page.locator("#values summary").click();
  await page.getByRole("button", { name: "Hide them" }).click();
  await page.locator("#seeing", { hasText: "hidden" }).waitFor();
});

test("what is wanted is filtered by module, user and room, and a room can be watched raw", async (t) => {
  const page = await live(t, "#module=leads");
  const [lead] = await api(crm.url, `leads?user=${ana.id}`);
  const home = await listing(1);
  await price(home, 400_001);
  await edit(crm.url, ana.id, "leads", lead, { phone: "775-1" });
  await rows(page).filter({ hasText: `leads:${lead.id.slice(0, 8)}` }).waitFor();
  assert.equal(await rows(page).count(), 1);
  await page.getByLabel("Module").fill("");
  await page.getByLabel("Changed by user").fill(ben.id);
  await page.getByLabel("Changed by user").press("Enter");
  await until(() => rows(page).count(), (count) => count === 0);
  const [bens] = await api(crm.url, `leads?user=${ben.id}`);
  await page.locator('#events[aria-busy="false"]').waitFor({ state: "attached" });
  // who is not asked for, and then who is
  await price(await listing(1), 400_002);
  await edit(crm.url, ben.id, "leads", bens, { phone: "775-2" });
  await rows(page).filter({ hasText: `by ${ben.id.slice(0, 8)}` }).waitFor();
  assert.equal(await rows(page).count(), 1);

  await watch(t, ana, [`listings:${home.id}`]);
  await page.locator(`#rooms [title="watch listings:${home.id}"]`).click();
  assert.equal(await page.getByLabel("Room", { exact: true }).inputValue(), `listings:${home.id}`);
  await page.locator('#events[aria-busy="false"]').waitFor({ state: "attached" });
  await price(await listing(1), 400_003);
  await rows(page).waitFor();
  const frame = JSON.parse(await rows(page).first().locator("pre").innerText());
  assert.deepEqual([frame.type, frame.recordId, frame.data.list_price, frame.userId], ["LISTING_UPDATED", home.id, "…", ana.id]);
});

test("a thousand changes at once are sampled, and the console says so", async (t) => {
  const page = await live(t, "#module=leads");
  // it stands there for a second, and this process may be busy for as long
  await page.evaluate(() => {
    window.said = [];
    const sample = document.getElementById("sample");
    new MutationObserver(() => window.said.push(sample.textContent)).observe(sample, { childList: true });
  });
  sql("update leads set number_of_contacts = number_of_contacts + 1; insert into leads (owner_id) select '" + ana.id + "' from generate_series(1, 3000)");
  const said = await until(() => page.evaluate(() => window.said.filter(Boolean).join("; ")), (text) => /showing 100 of [\d,]{4,}/.test(text));
  t.diagnostic(said);
  assert.ok((await rows(page).count()) <= 250);
  await page.locator('#state[data-state="ready"]').waitFor();
});

test("rooms and connections are told with their counts, and the trigger check its findings", async (t) => {
  await watch(t, ana, [`user:${ana.id}`, `team:70000000-0000-4000-8000-000000000001`]);
  const page = await live(t);
  await page.locator(`#rooms [title="watch user:${ana.id}"]`).waitFor();
  await page.locator("#connections tr", { hasText: ana.id.slice(0, 8) }).filter({ hasText: "2" }).waitFor();
  sql('alter table appointments disable trigger "!crm_relay"');
  await page.getByRole("button", { name: "Run it" }).click();
  await page.locator("#findings dl", { hasText: "trigger_disabled" }).filter({ hasText: "crm-relay watch" }).waitFor();
});

test("all of it can be reached by the keyboard", async (t) => {
  const page = await live(t);
  const reached = new Set();
  for (let step = 0; step < 60; step++) {
    await page.keyboard.press("Tab");
    reached.add(await page.evaluate(() => {
      const at = document.activeElement;
      return at.id || at.name || at.textContent.trim();
    }));
  }
  for (const wanted of ["pause", "module", "room", "user", "raw", "Clear", "events", "check"]) {
    assert.ok(reached.has(wanted), `${wanted} is not among ${[...reached]}`);
  }
  await page.locator("#values summary").focus();
  await page.keyboard.press("Enter");
  await page.getByLabel("Their token").waitFor();
  await page.keyboard.press("Escape");
  assert.ok(await page.getByLabel("Their token").isHidden());
});

for (const [device, width, height] of [["laptop", 1440, 900], ["phone", 390, 844]]) {
  for (const colorScheme of ["light", "dark"]) {
    test(`on a ${device} in ${colorScheme}: nothing is wider than the screen, and axe finds nothing serious`, async (t) => {
      await watch(t, ana, [...ana.rooms, ...(await api(crm.url, `listings?user=${ana.id}`)).slice(0, 8).map(({ id }) => `listings:${id}`)]);
      await watch(t, ben, ben.rooms);
      const page = await live(t, "", { viewport: { width, height }, colorScheme, reducedMotion: "reduce", bypassCSP: true });
      const steps = process.env.SCREENS ? 16 : 3;
      const modules = [["listings", "list_price", 500_000], ["leads", "phone", "775-55"], ["clients", "phone", "775-56"], ["escrows", "title_company", "Sierra "]];
      for (let step = 0; step < steps; step++) {
        for (let one = 0; one <= step % 4; one++, edits++) {
          const [module, column, value] = modules[(step + one) % 4];
          const record = (await api(crm.url, `${module}?user=${ana.id}`))[one % 3];
          await edit(crm.url, one % 2 ? ben.id : ana.id, module, record, { [column]: typeof value === "number" ? value + edits : `${value}${edits}` });
        }
        await until(() => page.locator(".graph svg .first").first().getAttribute("d"), (d) => d.split("L").length > step);
      }
      await rows(page).nth(2).waitFor();
      await page.getByRole("button", { name: "Run it" }).click();
      await page.locator("#findings dl").first().waitFor();
      assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
      if (process.env.SCREENS) await page.screenshot({ fullPage: true, path: `${SCREENS}console-${width}-${colorScheme}.png` });
      await page.addScriptTag({ path: AXE });
      await page.locator("#values summary").click();
      const { violations } = await page.evaluate(() => axe.run());
      const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
      assert.deepEqual(serious.map(({ id, nodes }) => [id, nodes[0].html, nodes[0].failureSummary]), []);
    });
  }
}
