/**
 * crm-relay for React 18 and 19, StrictMode included, and for `@tanstack/react-query` 5.
 *
 * ```jsx
 * <RelayProvider relay={connect("/ws", { token })}>…</RelayProvider>
 *
 * const { record, changed, by, status } = useRecord("listings", id);
 * ```
 */

import type { QueryClient, QueryKey } from "@tanstack/react-query";
import type { HTMLAttributes, ReactElement, ReactNode, Ref } from "react";
import type { Change, Relay, Revoked, Status } from "./client.js";
import type { RelayStatus } from "./status.js";

declare module "react" {
  namespace JSX {
    interface IntrinsicElements {
      /** The dot; `relay` is set by React 19 only, by 18 through a ref. */
      "relay-status": HTMLAttributes<RelayStatus> & { ref?: Ref<RelayStatus>; relay?: Relay; compact?: boolean | "" };
    }
  }
}

/** Makes a relay known to the hooks within. Who connected it closes it. */
export function RelayProvider(props: { relay: Relay; children?: ReactNode }): ReactElement;

/** @throws Error outside of a {@link RelayProvider}. */
export function useRelay(): Relay;

/** The connection's status; renders again when it changes. */
export function useRelayStatus(): Status;

export interface LiveRecord<Data = Record<string, any>> {
  /** The record as it is; null if there is none; undefined until it is known, or when it may not be seen. */
  record: Data | null | undefined;
  /** The fields that the last change touched, with what they held before; empty before the first. */
  changed: Partial<Data>;
  /** Who made the last change; null where that is not certain. */
  by: string | null;
  /** When the last change was made, UTC; undefined before the first. */
  at: string | undefined;
  /** Why the record is not to be seen; undefined if it is. */
  denied: Revoked["reason"] | undefined;
  status: Status;
}

/**
 * A record, live. Any number of components may use the same one: it is subscribed to once, and no more
 * when the last of them is gone. Without an id nothing is subscribed to.
 */
export function useRecord<Data = Record<string, any>>(module: string, id: string | null | undefined): LiveRecord<Data>;

/** Fits a change into a cached record; undefined if that cannot be done here, and the query is to be fetched anew. */
export type Merge = (record: any, event: Change) => any;

/** What a query holds of an event's record: the record itself, a list it may be in, or nothing. */
export type Kind = (key: QueryKey, event: Pick<Change, "module" | "recordId">) => "detail" | "list" | undefined;

export interface Bridge {
  /**
   * Patch caches in place instead of fetching anew; `true` is {@link mergeRecord}. What no patch can know is
   * still fetched: where a new record belongs in a list, records that moved, answers under way.
   */
  merge?: true | Merge;
  /** Default: {@link kindOf}. */
  kind?: Kind;
  /** Modules whose queries a room of many records concerns. Default: the CRM's five. */
  modules?: string[];
}

/**
 * Keeps a query cache right: a change of one of the rooms invalidates the queries that hold its record and
 * the lists that may (gathered over 50 ms), as do a resync and the moment the rooms become live.
 *
 * @returns the function that ends it; calling that again does nothing.
 */
export function bridgeQueries(relay: Relay, client: QueryClient, rooms: string[], options?: Bridge): () => void;

/** {@link bridgeQueries} for as long as the component is mounted. `merge` and `kind` should be stable. */
export function useRelayQueries(client: QueryClient, rooms: string[], options?: Bridge): void;

/**
 * By the module's name or its singular: `["listings", id]`, `["listing", id, …]`, `["listings", "detail", id]`
 * are details, of that record only; every other key that begins so is a list.
 */
export const kindOf: Kind;

/** The changed columns over the cached ones; an event older than the cached `version` changes nothing. */
export const mergeRecord: Merge;
