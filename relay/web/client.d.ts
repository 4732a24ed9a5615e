/**
 * The browser client of crm-relay. The frames are those of `relay/PROTOCOL.md`.
 *
 * ```js
 * const relay = connect("wss://crm.example/ws", { token: () => auth.freshToken() });
 * const stop = relay.subscribe("listings:5d1f…", (event) => …, { snapshot: true });
 * ```
 */

/**
 * Connects, and stays connected until {@link Relay.close}. A lost connection is taken up again after 1, 2,
 * 4, 8 s and then every 8 s (each up to a quarter more or less), at once when the network or the tab comes
 * back, and at the moment that the relay tells when it stops. Subscriptions go on where they were.
 *
 * @param url `ws:`, `wss:`, `http:` or `https:`; relative to the page where there is one.
 * @throws TypeError if the url cannot be read or there is no WebSocket class.
 */
export function connect(url: string | URL, options?: Options): Relay;

export interface Options {
  /**
   * The token, or who gets a fresh one: called for each connection, and a minute before the old one ends.
   * Null or undefined: nobody is signed in. What it throws, or does not answer within 30 s, is tried again
   * later. After a 4401 it is called again, at most three times in a row; then the status is `unauthorized`.
   * A text cannot be renewed: at its end the status is `unauthorized`.
   */
  token?: string | (() => string | null | undefined | Promise<string | null | undefined>);
  /** Whether what was committed together comes as one {@link Transaction}. Default: false. */
  transactions?: boolean;
  /** The class to connect with, where there is none of that name: npm's `ws` in Node 20. */
  WebSocket?: new (url: string) => any;
}

/**
 * - `connecting`: for the first time
 * - `connected`
 * - `reconnecting`: lost; the next attempt is made at {@link Relay.retryAt}
 * - `offline`: the same, and the browser has no network; or closed
 * - `unauthorized`: no good token, or disconnected by an administrator; no further attempt is made
 */
export type Status = "connecting" | "connected" | "reconnecting" | "offline" | "unauthorized";

export interface Relay {
  readonly status: Status;
  /** When the next attempt is made, in milliseconds since 1970; undefined if none is waited for. */
  readonly retryAt: number | undefined;
  /**
   * Calls `handler` with every frame of a room, until the function that is returned is called; calling
   * that again does nothing. Any number of subscribers share one connection, and those of one room one
   * subscription at the relay. They share the frames, too: change none. What is wanted or no longer wanted
   * within 25 ms is asked for at once, and what the relay calls too much a second later again.
   *
   * @typeParam Data the record's columns, for a room of one module.
   * @param room `<module>:<record id>`, or `user:<id>`, `team:<id>`, `broker:<id>`, each also with `/<module>`.
   * @throws TypeError if a snapshot is asked for of a room of many records; Error after {@link close}.
   */
  subscribe<Data = Record<string, any>>(
    room: string,
    handler: (frame: Frame<Data>) => void,
    options?: Subscription,
  ): () => void;
  /** Each change of the status or of when the next attempt is. Returns the function that ends it. */
  on(name: "status", listener: (status: Status, retryAt: number | undefined) => void): () => void;
  /**
   * What a subscriber or the token's function threw, and what the relay calls an error (with its `code`;
   * nothing is to be done about `rate_limited`). Without a listener these go to `console.error`.
   */
  on(name: "error", listener: (error: unknown) => void): () => void;
  /** Ends it for good: no timer, listener, socket or subscriber is left. May be called again. */
  close(): void;
}

export interface Subscription {
  /**
   * The record's present state first, as a {@link Snapshot}, and again after each {@link Resync}. Record
   * rooms only. A snapshot goes to all subscribers of the room: what follows continues it.
   */
  snapshot?: boolean;
  /** Called once, as soon as every later change will come: what is fetched from then on has no gap. */
  live?: () => void;
}

/** What a subscriber is given. `Transaction` only with the option of that name. */
export type Frame<Data = Record<string, any>> = Change<Data> | Snapshot<Data> | Resync | Revoked | Transaction<Data>;

export interface Change<Data = Record<string, any>> {
  /** Such as `LISTING_UPDATED`. */
  type: `${string}_${"CREATED" | "UPDATED" | "DELETED"}`;
  module: string;
  action: "created" | "updated" | "deleted";
  recordId: string;
  /** The part of the record that changed, such as `contacts` of a client. */
  part?: string;
  /** Created: the whole record; updated: the changed columns; deleted: the record as it last was. */
  data: Partial<Data>;
  /** Updated: what the same columns held before. */
  previous?: Partial<Data>;
  /** Who made the change, or null where that is not certain. */
  userId: string | null;
  timestamp: string;
  txid: string;
  seq: string;
  cursor?: string;
  /** The scope rooms that it came by. */
  rooms?: string[];
  /** So many changes in one, because they came too quickly. */
  coalesced?: number;
  /** The record entered (`created`) or left (`deleted`) the room, and lives on. */
  reason?: "moved";
}

export interface Snapshot<Data = Record<string, any>> {
  type: "snapshot";
  room: string;
  module: string;
  recordId: string;
  /** Null if there is no such record. */
  data: Data | null;
  seq: string | null;
  cursor?: string;
}

/** Not everything could be told: fetch anew. With `snapshot` the next frame is that. */
export interface Resync {
  type: "resync";
  rooms: { room: string; reason: "cursor_too_old" | "epoch_changed" | "too_many_changes" | "truncated" | "access_changed" }[];
}

/** The room is not, or no longer, to be seen; this was its last frame. */
export interface Revoked {
  type: "revoked";
  rooms: string[];
  reason: "access_lost" | "forbidden" | "bad_room" | "too_many_rooms";
}

/** More than one change of this room, committed together. */
export interface Transaction<Data = Record<string, any>> {
  type: "TRANSACTION";
  txid: string;
  cursor: string;
  events: Change<Data>[];
}
