// The client on real sockets, against a server that says what the relay says of tokens, access and stopping.

import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import WebSocket, { WebSocketServer } from "ws";
import { connect } from "../../../relay/web/client.js";
import { ROOM, change, listen } from "./fake.mjs";

/** A server that takes the tokens of a set, and a client of it; `next` is the next frame that was said. */
async function start(t, valid, options) {
  const server = new WebSocketServer({ port: 0, host: "127.0.0.1" });
  await once(server, "listening");
  const heard = [];
  const waiting = [];
  const hear = (frame) => (waiting.length ? waiting.shift()(frame) : heard.push(frame));
  const next = async (type) => {
    const frame = heard.shift() ?? (await new Promise((done) => waiting.push(done)));
    assert.equal(frame.type, type);
    return frame;
  };
  const state = { server, next, socket: undefined, say: (...frames) => frames.forEach((frame) => state.socket.send(JSON.stringify(frame))) };
  server.on("connection", (socket) => {
    state.socket = socket;
    socket.on("message", (data) => {
      const frame = JSON.parse(data);
      hear(frame);
      const good = !("token" in frame) || valid.has(frame.token);
      if (!good) return socket.close(4401);
      if (frame.type === "hello") state.say({ type: "welcome", protocol: 1, heartbeatSeconds: 25, limits: { rooms: 1000, frameBytes: 65536 } });
      if (frame.type === "token") state.say({ type: "token_accepted", expiresAt: "2026-11-22T23:05:13Z" });
      if (frame.type === "subscribe") state.say({ type: "subscribed", id: frame.id, rooms: frame.rooms, cursor: frame.since ?? "c1" });
    });
    socket.on("close", (code) => hear({ type: "close", code }));
  });
  const relay = connect(`ws://127.0.0.1:${server.address().port}/ws`, { WebSocket, ...options });
  const status = (wanted) => relay.status === wanted || new Promise((done) => relay.on("status", (now) => now === wanted && done()));
  t.after(() => {
    relay.close();
    server.close();
    for (const socket of server.clients) socket.terminate();
  });
  return Object.assign(state, { relay, status });
}

test("a token is renewed on the open connection before it ends", async (t) => {
  const tokens = ["t1", "t2"];
  const { next, say } = await start(t, new Set(tokens), { token: async () => tokens.shift() });
  assert.equal((await next("hello")).token, "t1");
  say({ type: "token_expiring", expiresAt: "2026-11-22T22:50:13Z" });
  assert.equal((await next("token")).token, "t2");
});

test("a token that has ended is replaced on another connection, which goes on where it was", async (t) => {
  const tokens = ["t1", "t2"];
  const valid = new Set(tokens);
  const state = await start(t, valid, { token: () => tokens.shift() });
  const { frames } = listen(state.relay);
  await state.next("hello");
  await state.next("subscribe");
  state.say(change(5));
  valid.delete("t1");
  state.socket.close(4401);
  await state.next("close");
  assert.equal((await state.next("hello")).token, "t2");
  assert.equal((await state.next("subscribe")).since, "c5");
  state.say(change(5), change(6), { type: "revoked", rooms: [ROOM], reason: "access_lost" });
  while (frames.length < 3) await new Promise(setImmediate);
  assert.deepEqual(frames.map(({ seq, type }) => seq ?? type), ["5", "6", "revoked"]);
});

test("a user whom no token lets in is unauthorized, and one who was thrown out does not come back", async (t) => {
  const refused = await start(t, new Set(), { token: "bad" });
  await refused.status("unauthorized");
  assert.equal((await refused.next("hello")).token, "bad");
  const thrown = await start(t, new Set(["good"]), { token: () => "good" });
  await thrown.status("connected");
  thrown.socket.close(4403);
  await thrown.status("unauthorized");
  assert.equal(thrown.relay.retryAt, undefined);
});

test("a relay that drains is come back to at the moment that it told", async (t) => {
  const state = await start(t, new Set());
  listen(state.relay);
  await state.next("hello");
  await state.next("subscribe");
  const from = Date.now();
  state.say({ type: "draining", reconnectAfterMs: 120 });
  state.socket.close(1001);
  await state.next("close");
  await state.next("hello");
  const took = Date.now() - from;
  assert.ok(took >= 119 && took < 740, `after ${took} ms, not after the usual 750 or more`);
  assert.equal((await state.next("subscribe")).since, "c1");
});

test("close ends the connection properly, also one that is not up yet", async (t) => {
  const up = await start(t, new Set());
  await up.next("hello");
  up.relay.close();
  assert.equal((await up.next("close")).code, 1005);
  const { relay } = await start(t, new Set());
  relay.close();
});
