import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { publint } from "publint";
import { formatMessage } from "publint/utils";

const WEB = new URL("../../../relay/web/", import.meta.url);
const HERE = new URL("../", import.meta.url);
const read = (path) => readFileSync(new URL(path, WEB), "utf8");
const pkg = JSON.parse(read("package.json"));

test("the client is at most 5 KiB, gzipped", () => {
  const size = gzipSync(read("client.js"), { level: 9 }).length;
  assert.ok(size <= 5 * 1024, `it is ${size} bytes`);
});

test("the client depends on nothing", () => {
  assert.doesNotMatch(read("client.js"), /^\s*(import|export .* from)\b/m);
  assert.equal(pkg.dependencies, undefined);
});

test("the modules are what their types say", () => {
  try {
    execFileSync("node_modules/.bin/tsc", ["-p", "."], { cwd: HERE, encoding: "utf8" });
  } catch ({ stdout }) {
    assert.fail(stdout);
  }
});

test("the npm package holds the modules and their types and nothing else", () => {
  const told = execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], { cwd: WEB, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
  const packed = JSON.parse(told);
  const [{ files }] = Array.isArray(packed) ? packed : Object.values(packed);
  const names = ["client", "react", "status"].flatMap((name) => [`${name}.d.ts`, `${name}.js`]);
  assert.deepEqual(files.map(({ path }) => path).sort(), [...names, "package.json"].sort());
});

test("publint finds nothing to say about the npm package", async () => {
  const { messages } = await publint({ pkgDir: WEB.pathname, pack: false });
  assert.deepEqual(messages.map((message) => formatMessage(message, pkg)), []);
});

test("each module may be imported where there is no page, as when a server renders it", async () => {
  for (const name of ["crm-relay", "crm-relay/react", "crm-relay/status"]) assert.ok(await import(name), name);
});

test("package and relay have one version", () => {
  const [, version] = /^version = "(.*)"$/m.exec(read("../../Cargo.toml"));
  assert.equal(pkg.version, version);
});
