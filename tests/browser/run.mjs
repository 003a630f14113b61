// Starts a dashboard over a scripted world and looks at it in a real browser.
//
//   node tests/browser/run.mjs target/debug/examples/dashboard DIR
//
// DIR gets the screenshots. Ends as dashboard.mjs ends, and takes the server with it.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const [program, out] = process.argv.slice(2);
if (!program || !out) {
  console.error("usage: node run.mjs PROGRAM DIR");
  process.exit(2);
}
/** How long the server may take to say where it is. */
const PATIENCE = 30_000;

const server = spawn(program, { stdio: ["ignore", "pipe", "inherit"] });
server.on("error", (error) => {
  console.error(`${program} does not start: ${error.message}`);
  process.exit(1);
});
const late = setTimeout(() => {
  console.error(`${program} did not say where it listens within ${PATIENCE / 1000} s`);
  server.kill("SIGKILL");
}, PATIENCE);

const said = {};
for await (const line of createInterface({ input: server.stdout })) {
  const [name, value] = line.split(" ");
  said[name] = value;
  if (said.url && said.key && said.task) break;
}
clearTimeout(late);
if (!said.task) {
  console.error(`${program} ended before it said where it listens`);
  process.exit(1);
}

const test = fileURLToPath(new URL("dashboard.mjs", import.meta.url));
const given = ["--url", said.url, "--key", said.key, "--task", said.task, "--out", out, "--until-final"];
const browser = spawn(process.execPath, [test, ...given], { stdio: "inherit" });
const [code] = await once(browser, "exit");
// Asked first, so that it removes its folder.
const ended = once(server, "exit");
server.kill("SIGTERM");
const force = setTimeout(() => server.kill("SIGKILL"), PATIENCE);
await ended;
clearTimeout(force);
process.exit(code ?? 1);
