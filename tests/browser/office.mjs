// An office: the CRM's tables and people in a database of their own, a relay before it that asks for tokens,
// and a server of the app's pages, from whose origin alone the relay may be asked.

import { execFile } from "node:child_process";
import { createHmac } from "node:crypto";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { PEOPLE, RELAY, start } from "./page.mjs";

export { PEOPLE };
const SECRET = "what the CRM's backend signs its tokens with";
const DEPLOY = fileURLToPath(new URL("../../deploy/", import.meta.url));
const run = promisify(execFile);
let offices = 0;

export const listing = (number) => `11000000-0000-4000-8000-${String(number).padStart(12, "0")}`;
/** Whose which is: Ana and Ben are of one team, Carla is of another. `secret` is a private one of hers. */
export const LISTINGS = { ana: listing(1), ben: listing(2), carla: listing(3), secret: listing(11), none: listing(999) };

/** A token as the CRM's backend signs it. It counts for five seconds longer than it says. */
export function token(user, seconds = 900, more = {}) {
  const now = Math.floor(Date.now() / 1000);
  const parts = [{ alg: "HS256", typ: "JWT" }, { id: user.id, iat: now, exp: now + seconds, ...more }];
  const signed = parts.map((part) => Buffer.from(JSON.stringify(part)).toString("base64url")).join(".");
  return `${signed}.${createHmac("sha256", SECRET).update(signed).digest("base64url")}`;
}

/** `pages`: what the app answers, by path. */
export async function office(env = {}) {
  const pages = {};
  const name = `office_${process.pid}_${++offices}`;
  const server = new URL(process.env.DATABASE_URL);
  const database = new URL(server);
  database.pathname = name;
  const psql = async (url, ...more) => (await run(`${process.env.PG_BIN}/psql`, ["-qXAt", "-v", "ON_ERROR_STOP=1", ...more, url.href])).stdout.trim();
  await psql(server, "-c", `create database ${name}`);
  await psql(database, "-f", `${DEPLOY}crm.sql`, "-f", `${DEPLOY}crm_records.sql`);

  const app = createServer(({ url }, answer) => {
    const page = pages[url.split("?")[0]];
    answer.writeHead(page ? 200 : 404, { "content-type": "text/html; charset=utf-8" }).end(page);
  });
  await new Promise((done) => app.listen(0, "127.0.0.1", done));
  const origin = `http://127.0.0.1:${app.address().port}`;
  const settings = { DATABASE_URL: database.href, RELAY_JWT_SECRET: SECRET, RELAY_ALLOWED_ORIGINS: origin, RELAY_THROTTLE: "0", ...env };
  await run(RELAY, ["install"], { env: { ...process.env, ...settings } });

  let relay = await start("serve", "127.0.0.1:0", settings);
  const { url } = relay;
  return {
    url,
    origin,
    pages,
    sql: (text) => psql(database, "-c", text),
    get relay() {
      return relay;
    },
    /** Another relay at the place of the one that has ended. */
    again: async () => (relay = await start("serve", new URL(url).host, settings)),
    async close() {
      await relay.stop();
      app.close();
      await psql(server, "-c", `drop database ${name} with (force)`);
    },
  };
}
