// Whether a frame that is not as relay/asyncapi.yaml says would be seen.

import assert from "node:assert/strict";
import { test } from "node:test";

import { complaint } from "./frames.mjs";

test("a frame is good as it is, and with a member more or less, or of another type, it is not", () => {
  const pong = { type: "pong", id: 1, cursor: "3f2a91c0.7423:7423:.990" };
  assert.equal(complaint(JSON.stringify(pong)), undefined);
  for (const wrong of [{ more: 1 }, { cursor: undefined }, { cursor: 5 }, { type: "bang" }]) {
    assert.ok(complaint(JSON.stringify({ ...pong, ...wrong })), JSON.stringify(wrong));
  }
});
