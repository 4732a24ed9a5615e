// What a browser test needs: the demo, running, and pages of it in Chromium.

import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

import WebSocket from "ws";
import { complaint } from "../contract/frames.mjs";

const TARGET = process.env.CARGO_TARGET_DIR ?? new URL("../../target", import.meta.url).pathname;
/** The daemon. */
export const RELAY = `${TARGET}/debug/crm-relay`;
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync"];

/** Whom the demo's CRM knows, each with the rooms of their screen. */
export const PEOPLE = Object.fromEntries(["ana", "ben", "carla", "dev", "edith"].map((name, at) => {
  const id = `a0000000-0000-4000-8000-00000000000${at + 1}`;
  const team = `team:70000000-0000-4000-8000-00000000000${at < 2 ? 1 : 2}`;
  return [name, { id, rooms: [`user:${id}`, name === "edith" ? "broker:b0000000-0000-4000-8000-000000000001" : team] }];
}));

/** Starts `crm-relay demo` and waits until it says that it is ready. */
export const demo = (listen = "127.0.0.1:0", env = {}) => start("demo", listen, env);

/** The same of `crm-relay serve`, beside a demo that has brought the tables. */
export const serve = (env) => start("serve", "127.0.0.1:0", env);

/** `crm-relay` with this command, once it is ready. `logged` waits for a line of its log. */
export async function start(command, listen, env) {
  const child = spawn(RELAY, [command, "--listen", listen], { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, ...env } });
  const ended = new Promise((done) => child.once("exit", (code) => done(code)));
  const lines = [];
  const waiting = new Set();
  createInterface({ input: child.stderr }).on("line", (line) => {
    lines.push(line);
    if (/ (WARN|ERROR) /.test(line)) console.log(line);
    for (const look of [...waiting]) look(line);
  });
  const logged = (pattern, within = 15_000) =>
    new Promise((done, fail) => {
      const found = lines.findLast((line) => pattern.test(line));
      if (found) return done(found);
      const timer = setTimeout(() => fail(new Error(`the log never said ${pattern}`)), within);
      const look = (line) => {
        if (!pattern.test(line)) return;
        clearTimeout(timer);
        waiting.delete(look);
        done(line);
      };
      waiting.add(look);
    });
  const output = createInterface({ input: child.stdout });
  const url = await new Promise((done, fail) => {
    output.on("line", (line) => line.startsWith("ready ") && done(line.slice("ready ".length)));
    child.once("error", fail);
    ended.then((code) => fail(new Error(`the ${command} ended with ${code} before it was ready: ${lines.at(-1)}`)));
  });
  const end = (signal) => {
    child.kill(signal);
    return ended;
  };
  return { url, logged, lines, stop: () => end("SIGTERM"), kill: () => end("SIGKILL") };
}

let frames = 0;
const complaints = [];

/** Every frame that a test hears of the relay must be as relay/asyncapi.yaml says; else the file fails. */
function hear(text) {
  frames++;
  const wrong = complaint(text);
  if (wrong) complaints.push(wrong);
}

/** Sockets of a client in Node; what they hear is looked at. */
export class Heard extends WebSocket {
  constructor(...how) {
    super(...how);
    this.on("message", (data) => hear(String(data)));
  }
}

// not in a hook, which would keep the others from their work
process.on("exit", () => {
  if (frames > 0 && complaints.length === 0) return;
  console.log(complaints[0] ?? "no frame was heard");
  process.exitCode = 1;
});

/** Chromium; what its pages hear is looked at. */
export async function browser() {
  const started = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS });
  const open = started.newPage.bind(started);
  started.newPage = async (options) => {
    const page = await open(options);
    page.on("websocket", (socket) => socket.on("framereceived", ({ payload }) => hear(payload)));
    return page;
  };
  return started;
}

/** The CRM's API as another program would use it. */
export async function api(url, path, options) {
  const answer = await fetch(`${url}api/${path}`, options);
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

export const edit = (url, user, module, { id, version }, fields) =>
  api(url, `${module}/${id}`, {
    method: "PATCH",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ user, version, fields }),
  });

/** Waits until something is so, and says what it was instead. */
export async function until(look, wanted, within = 15_000) {
  const end = Date.now() + within;
  let seen;
  do {
    seen = await look();
    if (wanted(seen)) return seen;
    await new Promise((done) => setTimeout(done, 20));
  } while (Date.now() < end);
  throw new Error(`after ${within} ms it was still ${JSON.stringify(seen)}`);
}
