// relay/asyncapi.yaml by AsyncAPI's own parser. (Its schemas, examples and all that the relay sends are
// held against each other in tests/relay/contract.rs.)

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

import { DiagnosticSeverity, Parser } from "@asyncapi/parser";

const text = await readFile(new URL("../../relay/asyncapi.yaml", import.meta.url), "utf8");

/** What the parser has against a document; hints are no matter. */
async function complaints(text) {
  const { diagnostics } = await new Parser().parse(text);
  return diagnostics
    .filter(({ severity }) => severity <= DiagnosticSeverity.Warning)
    .map(({ code, message, path, range }) => `${range.start.line + 1}: ${path.join("/")}: ${message} (${code})`);
}

test("relay/asyncapi.yaml is AsyncAPI 3.0", async () => {
  assert.deepEqual(await complaints(text), []);
});

for (const [right, wrong] of [
  ["action: send", "action: shout"],
  ["type: integer", "type: whole"],
]) {
  test(`with "${wrong}" in it it would not be`, async () => {
    const broken = text.replace(right, wrong);
    assert.notEqual(broken, text);
    assert.notDeepEqual(await complaints(broken), []);
  });
}
