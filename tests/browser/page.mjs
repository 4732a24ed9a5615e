// What a browser test needs: the demo, running, and pages of it in Chromium.

import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const RELAY = new URL("../../target/debug/crm-relay", import.meta.url).pathname;
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync"];

/** Starts `crm-relay demo` and waits until it says that it is ready. */
export async function demo(listen = "127.0.0.1:0") {
  const child = spawn(RELAY, ["demo", "--listen", listen], { stdio: ["ignore", "pipe", "inherit"] });
  const ended = new Promise((done) => child.once("exit", done));
  for await (const line of createInterface({ input: child.stdout })) {
    if (line.startsWith("ready ")) {
      const stop = async () => {
        child.kill("SIGTERM");
        return ended;
      };
      return { url: line.slice("ready ".length), stop };
    }
  }
  throw new Error("the demo ended before it was ready");
}

export function browser() {
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS });
}
