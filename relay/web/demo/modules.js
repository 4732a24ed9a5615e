// How each module of the CRM is shown: its fields in the detail, and its line in the list.

const money = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD", maximumFractionDigits: 2, minimumFractionDigits: 0 });
const moment = new Intl.DateTimeFormat("en-US", { weekday: "short", month: "short", day: "numeric", hour: "numeric", minute: "2-digit" });

/** A value as people read it. */
export function words(value, kind) {
  if (value === null || value === undefined) return "";
  if (kind === "money") return Number.isFinite(Number(value)) ? money.format(value) : String(value);
  if (kind === "moment") return moment.format(new Date(value));
  if (kind === "flag") return value ? "yes" : "no";
  if (kind === "choice") return String(value).replaceAll("_", " ");
  return String(value);
}

export const numeric = (kind) => (kind === "money" || kind === "number" ? "number" : "");

const person = ({ first_name, last_name }) => [first_name, last_name].filter(Boolean).join(" ");
const PRIVATE = ["is_private", "Private", "flag"];

/** Fields: column, label, kind, choices. */
export const MODULES = {
  escrows: {
    label: "Escrows",
    fields: [
      ["property_address", "Property"],
      ["purchase_price", "Price", "money"],
      ["escrow_status", "Status", "choice", ["active", "pending", "closed", "cancelled"]],
      ["closing_date", "Closing", "date"],
      ["title_company", "Title company"],
      ["escrow_officer_name", "Escrow officer"],
      ["notes", "Notes", "text"],
      PRIVATE,
    ],
    line: (r) => ({ title: r.property_address, about: `${r.display_id}, closes ${r.closing_date}`, value: words(r.purchase_price, "money"), state: r.escrow_status }),
  },
  listings: {
    label: "Listings",
    fields: [
      ["property_address", "Property"],
      ["list_price", "Price", "money"],
      ["listing_status", "Status", "choice", ["draft", "coming_soon", "active", "pending", "sold"]],
      ["bedrooms", "Beds", "number"],
      ["bathrooms", "Baths", "number"],
      ["square_feet", "Square feet", "number"],
      ["description", "Description", "text"],
      PRIVATE,
    ],
    line: (r) => ({ title: r.property_address, about: `${r.city}, ${r.bedrooms} bd, ${r.bathrooms} ba`, value: words(r.list_price, "money"), state: r.listing_status }),
  },
  clients: {
    label: "Clients",
    fields: [
      ["first_name", "First name"],
      ["last_name", "Last name"],
      ["phone", "Phone"],
      ["email", "Email"],
      ["client_type", "Type", "choice", ["buyer", "seller", "investor"]],
      ["status", "Status", "choice", ["lead", "active", "past"]],
      PRIVATE,
    ],
    line: (r) => ({ title: person(r), about: r.phone ?? "", value: r.client_type, state: r.status }),
  },
  leads: {
    label: "Leads",
    fields: [
      ["first_name", "First name"],
      ["last_name", "Last name"],
      ["phone", "Phone"],
      ["email", "Email"],
      ["source", "Source"],
      ["status", "Status", "choice", ["new", "contacted", "qualified", "lost"]],
      ["notes", "Notes", "text"],
      PRIVATE,
    ],
    line: (r) => ({ title: person(r), about: r.phone ?? "", value: r.source, state: r.status }),
  },
  appointments: {
    label: "Appointments",
    fields: [
      ["title", "What"],
      ["start_time", "When", "moment"],
      ["location", "Where"],
      ["status", "Status", "choice", ["scheduled", "confirmed", "completed", "cancelled"]],
      ["description", "Description", "text"],
      PRIVATE,
    ],
    line: (r) => ({ title: r.title, about: r.location ?? "", value: words(r.start_time, "moment"), state: r.status }),
  },
};
