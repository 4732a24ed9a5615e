// crm-relay for React 18 and 19: hooks over the client, and the bridge to @tanstack/react-query 5. What each
// of them promises: react.d.ts.

import { createContext, createElement, useCallback, useContext, useEffect, useState, useSyncExternalStore } from "react";

/** @import * as Api from "./react.js" */
/** @import { Change, Frame, Relay } from "./client.js" */

/** @type {import("react").Context<Relay | undefined>} */
const Context = createContext(/** @type {Relay | undefined} */ (undefined));

/** @type {typeof Api.RelayProvider} */
export const RelayProvider = ({ relay, children }) => createElement(Context.Provider, { value: relay }, children);

/** @type {typeof Api.useRelay} */
export const useRelay = () => {
  const relay = useContext(Context);
  if (!relay) throw new Error("there is no relay here: <RelayProvider relay={connect(…)}> must be around this component");
  return relay;
};

/** @type {typeof Api.useRelayStatus} */
export const useRelayStatus = () => {
  const relay = useRelay();
  const watch = useCallback((/** @type {() => void} */ changed) => relay.on("status", changed), [relay]);
  return useSyncExternalStore(watch, () => relay.status, () => "connecting");
};

/**
 * What is known of a record: its own columns, those of its parts, and what the hook tells of both.
 * @typedef {{ own?: any, parts?: any, told: Omit<Api.LiveRecord<any>, "status"> }} Known
 */

/** @type {Known} */
const NOTHING = { told: { record: undefined, changed: {}, by: null, at: undefined, denied: undefined } };

/** @type {(known: Known, frame: Frame) => Known} */
const after = (known, frame) => {
  if (frame.type === "TRANSACTION") {
    const end = frame.events.reduce(after, known);
    const changed = Object.assign({}, ...frame.events.map(({ previous }) => previous).reverse());
    return { ...end, told: { ...end.told, changed } };
  }
  if ("room" in frame) return tell(known, frame.data, known.parts, { changed: {} });
  if ("reason" in frame && frame.type === "revoked") {
    return { told: { ...NOTHING.told, denied: frame.reason } };
  }
  if (!("action" in frame)) return known;
  const { action, part, data, previous = {}, userId: by, timestamp: at } = frame;
  const news = { changed: previous, by, at };
  if (part) return tell(known, known.own, { ...known.parts, ...data }, news);
  return tell(known, action === "deleted" ? null : { ...known.own, ...data }, known.parts, news);
};

/** A part's `updated_at` and the like do not cover the record's own. */
const tell = (/** @type {Known} */ known, /** @type {any} */ own, /** @type {any} */ parts, /** @type {object} */ news) => ({
  own,
  parts,
  told: { ...known.told, ...news, denied: undefined, record: own && { ...parts, ...own } },
});

/** @type {typeof Api.useRecord} */
export const useRecord = (module, id) => {
  const relay = useRelay();
  const status = useRelayStatus();
  const room = id == null ? undefined : `${module}:${id}`;
  const [state, setState] = useState({ room, known: NOTHING });
  useEffect(() => {
    if (!room) return;
    const hear = (/** @type {Frame} */ frame) =>
      setState((before) => ({ room, known: after(before.room === room ? before.known : NOTHING, frame) }));
    return relay.subscribe(room, hear, { snapshot: true });
  }, [relay, room]);
  // never one record under another's name, not for one frame
  return { ...(state.room === room ? state.known : NOTHING).told, status };
};

const UUID = /^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$/i;
const MODULES = ["escrows", "listings", "clients", "leads", "appointments"];
/** A flood of changes is one refetch. */
const GATHER_MS = 50;
/** Lists are found in `{ data: { items: […] } }` and `{ pages: [[…]] }`, not at any depth. */
const DEEPEST = 5;

const named = (/** @type {unknown} */ name, /** @type {string} */ module) =>
  name === module || name === module.replace(/ies$/, "y").replace(/s$/, "");

/** @type {typeof Api.kindOf} */
export const kindOf = ([name, ...rest], { module, recordId }) => {
  if (!named(name, module)) return undefined;
  const id = rest[0] === "detail" ? rest[1] : rest[0];
  if (String(id) === recordId) return "detail";
  return rest[0] === "detail" || UUID.test(String(id)) ? undefined : "list";
};

/** @type {typeof Api.mergeRecord} */
export const mergeRecord = (record, { part, data }) => {
  if (!part) return /** @type {any} */ (data).version < record.version ? record : { ...record, ...data };
  // columns that the CRM joins to the record; not the part's own version of what the record has, too
  const joined = Object.entries(data).filter(([column]) => column in record && column !== "updated_at");
  return { ...record, ...Object.fromEntries(joined) };
};

/**
 * A cached answer with the change in it, the same object if it does not hold the record; undefined if
 * `merge` does not know how.
 * @type {(value: any, event: Change, merge: Function, depth?: number) => any}
 */
const patch = (value, event, merge, depth = 0) => {
  if (value === null || typeof value !== "object" || depth > DEEPEST) return value;
  const isIt = (/** @type {any} */ one) => String(one?.id) === event.recordId;
  if (Array.isArray(value)) {
    if (event.action === "deleted" && value.some(isIt)) return value.filter((one) => !isIt(one));
    const patched = value.map((one) => patch(one, event, merge, depth + 1));
    if (patched.some((one, place) => one === undefined && value[place] !== undefined)) return undefined;
    return patched.some((one, place) => one !== value[place]) ? patched : value;
  }
  if (isIt(value)) return merge(value, event);
  for (const [name, one] of Object.entries(value)) {
    const patched = patch(one, event, merge, depth + 1);
    if (patched === undefined && one !== undefined) return undefined;
    if (patched !== one) return { ...value, [name]: patched };
  }
  return value;
};

/** @type {typeof Api.bridgeQueries} */
export const bridgeQueries = (relay, client, rooms, { merge, kind = kindOf, modules = MODULES } = {}) => {
  /** @type {Set<string>} */
  const stale = new Set();
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let gathering;
  const merges = merge === true ? mergeRecord : merge;

  const refetch = () => {
    gathering = undefined;
    const hashes = new Set(stale);
    stale.clear();
    for (const { queryHash, state } of client.getQueryCache().getAll()) {
      // a first answer under way is not asked for again, and it may be older: after it
      const first = state.data === undefined && state.fetchStatus === "fetching";
      if (first && hashes.delete(queryHash)) invalidate(queryHash);
    }
    void client.invalidateQueries({ predicate: ({ queryHash }) => hashes.has(queryHash) });
  };

  const invalidate = (/** @type {string} */ queryHash) => {
    stale.add(queryHash);
    gathering ??= setTimeout(refetch, GATHER_MS);
  };

  /** The cache with a change in it; undefined where only the server can tell. */
  const patched = (/** @type {any} */ { state }, /** @type {Change} */ event, /** @type {string} */ what) => {
    // an answer under way may be older than the change
    if (!merges || state.data === undefined || state.isInvalidated || state.fetchStatus !== "idle") return undefined;
    if (event.reason === "moved" || (event.action === "deleted" && what === "detail")) return undefined;
    const data = patch(state.data, event, merges);
    // where in a list a new record belongs, the server knows
    return data === state.data && (event.action === "created" || what === "detail") ? undefined : data;
  };

  const apply = (/** @type {Change} */ event) => {
    for (const query of client.getQueryCache().getAll()) {
      const what = kind(query.queryKey, event);
      if (!what) continue;
      const data = patched(query, event, what);
      if (data === undefined) invalidate(query.queryHash);
      else if (data !== query.state.data) client.setQueryData(query.queryKey, data);
    }
  };

  /** All that a room may hold, when it was not told what changed. */
  const forget = (/** @type {string} */ room) => {
    const scope = /^(?:user|team|broker):[^/]*(?:\/(.*))?$/.exec(room);
    const [module, recordId] = [room.slice(0, room.indexOf(":")), room.slice(room.indexOf(":") + 1)];
    for (const query of client.getQueryCache().getAll()) {
      const concerned = scope
        ? (scope[1] ? [scope[1]] : modules).some((name) => named(query.queryKey[0], name))
        : kind(query.queryKey, { module, recordId });
      if (concerned) invalidate(query.queryHash);
    }
  };

  /** @type {Frame | undefined} */
  let last;
  const stops = rooms.map((room) => {
    const hear = (/** @type {Frame} */ frame) => {
      if (frame === last) return; // it came by another of the rooms, too
      last = frame;
      if (frame.type === "TRANSACTION") frame.events.forEach(apply);
      else if ("action" in frame) apply(frame);
      else forget(room);
    };
    // what was fetched before this moment may have missed something
    return relay.subscribe(room, hear, { live: () => forget(room) });
  });
  return () => {
    clearTimeout(gathering);
    for (const stop of stops) stop();
  };
};

/** @type {typeof Api.useRelayQueries} */
export const useRelayQueries = (client, rooms, { merge, kind, modules } = {}) => {
  const relay = useRelay();
  const names = JSON.stringify([rooms, modules]);
  useEffect(() => {
    const [list, only] = JSON.parse(names);
    return bridgeQueries(relay, client, list, { merge, kind, modules: only ?? undefined });
  }, [relay, client, names, merge, kind]);
};
