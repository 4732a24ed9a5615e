// The relay's frames against relay/asyncapi.yaml, for the tests that run in Node.
// (tests/relay/contract.rs does the same for those in Rust.)

import { readFileSync } from "node:fs";
import { Ajv } from "ajv";
import addFormats from "ajv-formats";
import { parse } from "yaml";

const { components } = parse(readFileSync(new URL("../../relay/asyncapi.yaml", import.meta.url), "utf8"));
const ajv = new Ajv({ allowUnionTypes: true, strictRequired: false });
addFormats.default(ajv);
// where references expect them
ajv.addKeyword("components");
ajv.addSchema({ $id: "relay", components });

/** What is wrong with a frame that the relay sent, or undefined. */
export function complaint(text) {
  const frame = JSON.parse(text);
  const name = frame.action ?? frame.type.toLowerCase();
  const schema = ajv.getSchema(`relay#/components/schemas/${name}`);
  if (!schema) return `relay/asyncapi.yaml knows no ${name}: ${text}`;
  if (!schema(frame)) return `${ajv.errorsText(schema.errors)}: ${text}`;
}
