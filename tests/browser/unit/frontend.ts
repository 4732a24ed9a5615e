// Never run: what a frontend in TypeScript may write, and what it may not.

import { connect, type Change, type Frame, type Status } from "crm-relay";
import { bridgeQueries, useRecord } from "crm-relay/react";
import "crm-relay/status";
import { QueryClient } from "@tanstack/react-query";
import type { JSX } from "react";

const relay = connect("wss://crm.example/ws", { token: async () => "fresh", transactions: true });
const stop: () => void = relay.subscribe("listings:1", (frame) => {
  if (frame.type === "snapshot") frame.data?.["list_price"];
  else if (frame.type === "resync") frame.rooms[0].reason satisfies string;
  else if (frame.type === "revoked") frame.rooms satisfies string[];
  else if (frame.type === "TRANSACTION") frame.events satisfies Change[];
  else frame.previous?.["list_price"];
}, { snapshot: true, live: () => {} });
relay.on("status", (status, retryAt) => { status satisfies Status; retryAt satisfies number | undefined; });
relay.on("error", (error) => { error satisfies unknown; });
stop();

interface Listing { id: string; list_price: number }
relay.subscribe<Listing>("listings:1", (frame) => {
  if (frame.type === "snapshot") frame.data?.list_price satisfies number | undefined;
});
const show = (frame: Frame<Listing>) => void frame;
relay.subscribe("listings:1", show);
const { record, changed } = useRecord<Listing>("listings", "1");
record?.list_price satisfies number | undefined;
changed.list_price satisfies number | undefined;
bridgeQueries(relay, new QueryClient(), ["team:7"], { merge: true });
document.querySelector("relay-status")!.relay = relay;
({ relay, compact: true }) satisfies JSX.IntrinsicElements["relay-status"];

// @ts-expect-error: there is no such status
relay.on("status", (status: "asleep") => status);
// @ts-expect-error: nor such an event
relay.on("message", () => {});
// @ts-expect-error: a token is a text, or makes one
connect("/ws", { token: 7 });
// @ts-expect-error: one room at a time
relay.subscribe(["listings:1"], () => {});
// @ts-expect-error: the status is told, not set
relay.status = "connected";
