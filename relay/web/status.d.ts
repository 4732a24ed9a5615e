import type { Relay } from "./client.js";

/**
 * `<relay-status>`: green while connected, amber with a countdown while reconnecting, grey when offline or
 * signed out; the words are read out when they change.
 *
 * ```js
 * document.querySelector("relay-status").relay = relay;
 * ```
 *
 * Attribute `compact`: the dot alone; the words stay for screen readers. CSS variables: `--relay-connected`,
 * `--relay-reconnecting`, `--relay-offline`, `--relay-dot-size`; parts: `dot`, `text`, `countdown`.
 * `data-status` holds the {@link Relay.status}.
 */
export class RelayStatus extends HTMLElement {
  /** Whose status is shown. */
  relay: Relay | undefined;
}

declare global {
  interface HTMLElementTagNameMap {
    "relay-status": RelayStatus;
  }
}
