// <relay-status>: a dot that says how the connection is, with words for those who do not see it. What can
// be set: status.d.ts.

/** @import { Relay, Status } from "./client.js" */
/** @import { RelayStatus as Element } from "./status.js" */

/** @type {Record<Status | "unknown", [string, string]>} */
const STATES = {
  unknown: ["offline", "Not connected"],
  connecting: ["reconnecting", "Connecting"],
  connected: ["connected", "Live"],
  reconnecting: ["reconnecting", "Reconnecting"],
  offline: ["offline", "Offline"],
  unauthorized: ["offline", "Signed out"],
};

const STYLE = `
:host { display: inline-flex; align-items: center; gap: 0.45em; white-space: nowrap; }
:host([hidden]) { display: none; }
[part="dot"] { width: var(--relay-dot-size, 0.65em); height: var(--relay-dot-size, 0.65em); border-radius: 50%;
  flex: none; background: var(--relay-offline, #8a94a3); transition: background 0.2s; }
.connected { background: var(--relay-connected, #12a150) !important; }
.reconnecting { background: var(--relay-reconnecting, #f5a524) !important; animation: breathe 1.2s ease-in-out infinite; }
:host([compact]) .words { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
[part="countdown"] { font-variant-numeric: tabular-nums; }
@keyframes breathe { 50% { opacity: 0.45; } }
@media (prefers-reduced-motion: reduce) { .reconnecting { animation: none; } }
`;

/** Where pages are rendered by a server there are no elements, and it may be imported all the same. */
const Base = globalThis.HTMLElement ?? class {};

/** @implements {Element} */
export class RelayStatus extends Base {
  /** @type {Relay | undefined} */
  #relay;
  /** @type {(() => void) | undefined} */
  #stop;
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #clock;
  #dot = document.createElement("span");
  #text = document.createElement("span");
  #countdown = document.createElement("span");

  constructor() {
    super();
    const style = new CSSStyleSheet();
    style.replaceSync(STYLE);
    const root = this.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [style];
    this.#dot.part.add("dot");
    this.#text.part.add("text");
    this.#text.setAttribute("role", "status");
    this.#countdown.part.add("countdown");
    // read aloud every second it would be a torment
    this.#countdown.ariaHidden = "true";
    const words = document.createElement("span");
    words.className = "words";
    words.append(this.#text, this.#countdown);
    root.append(this.#dot, words);
    // set before the element was defined
    const early = Object.getOwnPropertyDescriptor(this, "relay");
    if (early) {
      Reflect.deleteProperty(this, "relay");
      this.relay = early.value;
    }
  }

  get relay() {
    return this.#relay;
  }

  set relay(relay) {
    this.disconnectedCallback();
    this.#relay = relay;
    if (this.isConnected) this.connectedCallback();
  }

  connectedCallback() {
    this.#stop = this.#relay?.on("status", () => this.#show());
    this.#show();
  }

  disconnectedCallback() {
    this.#stop?.();
    clearInterval(this.#clock);
    this.#stop = this.#clock = undefined;
  }

  #show() {
    const status = this.#relay?.status ?? "unknown";
    const [look, words] = STATES[status];
    this.dataset.status = status;
    this.title = words;
    this.#dot.className = look;
    if (this.#text.textContent !== words) this.#text.textContent = words;
    this.#count();
    const counts = this.#relay?.retryAt !== undefined;
    if (counts) this.#clock ??= setInterval(() => this.#count(), 1000);
    else {
      clearInterval(this.#clock);
      this.#clock = undefined;
    }
  }

  #count() {
    const at = this.#relay?.retryAt;
    this.#countdown.textContent = at === undefined ? "" : ` in ${Math.max(0, Math.ceil((at - Date.now()) / 1000))} s`;
  }
}

const { customElements: known } = globalThis;
if (!known?.get("relay-status")) known?.define("relay-status", RelayStatus);
