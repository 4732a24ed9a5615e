// Listings, as the CRM's frontend shows them: a list by react-query, kept right by the bridge, and one
// record by the hook. `?merge` patches the cache in place; `relay` is the relay's address.

import { QueryClient, QueryClientProvider, useQuery } from "@tanstack/react-query";
import { connect } from "crm-relay";
import { RelayProvider, useRecord, useRelayQueries, useRelayStatus } from "crm-relay/react";
import "crm-relay/status";
import { StrictMode, useEffect, useRef, useState, version } from "react";
import { createRoot } from "react-dom/client";

const asked = new URLSearchParams(location.search);
const user = asked.get("user");
const client = new QueryClient({ defaultOptions: { queries: { staleTime: Infinity, refetchOnWindowFocus: false } } });
const relay = connect(asked.get("relay"));
const merge = asked.has("merge") || undefined;

window.fetched = 0;
window.isFetching = () => client.isFetching() > 0;
async function listings() {
  window.fetched += 1;
  return (await fetch(`/api/listings?user=${user}`)).json();
}

function Dot() {
  const dot = useRef(null);
  useEffect(() => {
    dot.current.relay = relay;
  }, []);
  return <relay-status ref={dot} />;
}

function Listings({ onChoose }) {
  const { data = [] } = useQuery({ queryKey: ["listings", "list"], queryFn: listings });
  useRelayQueries(client, asked.get("rooms").split(","), { merge });
  return (
    <ul>
      {data.map(({ id, property_address, list_price }) => (
        <li key={id} data-id={id}>
          <button onClick={() => onChoose(id)}>{property_address}</button> <span>{list_price}</span>
        </li>
      ))}
    </ul>
  );
}

function Listing({ id }) {
  const { record, changed, by } = useRecord("listings", id);
  if (!record) return <p>…</p>;
  return (
    <article data-id={id}>
      <h1>{record.property_address}</h1>
      <output>{record.list_price}</output>
      <small>{"list_price" in changed ? `${by} was ${changed.list_price}` : ""}</small>
    </article>
  );
}

function App() {
  const [chosen, choose] = useState(null);
  const [shown, show] = useState(true);
  const status = useRelayStatus();
  Object.assign(window, { choose, show });
  return (
    <>
      <p id="status">{status}</p>
      <p id="version">{version}</p>
      <Dot />
      {shown && <Listings onChoose={choose} />}
      {shown && chosen && <Listing id={chosen} />}
      {shown && chosen && <Listing id={chosen} />}
    </>
  );
}

createRoot(document.querySelector("#root")).render(
  <StrictMode>
    <RelayProvider relay={relay}>
      <QueryClientProvider client={client}>
        <App />
      </QueryClientProvider>
    </RelayProvider>
  </StrictMode>,
);
