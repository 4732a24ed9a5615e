// Builds the app for the React of REACT: 18, its own, or 19, which is that of the tests around it; each in a
// folder of its own.

import { fileURLToPath } from "node:url";

const version = process.env.REACT ?? "18";
const around = (name) => fileURLToPath(new URL(`../node_modules/${name}`, import.meta.url));

export default {
  resolve: { alias: version === "18" ? {} : { react: around("react"), "react-dom": around("react-dom") } },
  build: { outDir: `dist/${version}`, emptyOutDir: true },
  logLevel: "error",
};
