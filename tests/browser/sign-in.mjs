// Signs in through an identity provider in a real browser, with the real program, across two sites.
//
//   node tests/browser/sign-in.mjs target/debug/orchestra target/debug/examples/identity DIR
//
// DIR gets the screenshots. The provider is at 127.0.0.1 and the server at localhost: for a browser, two sites.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [program, provider, out] = process.argv.slice(2);
if (!program || !provider || !out) {
  console.error("usage: node sign-in.mjs PROGRAM PROVIDER DIR");
  process.exit(2);
}
/** How long anything that should happen may take. */
const PATIENCE = 30_000;
const wrong = [];
const check = (holds, what) => {
  if (!holds) wrong.push(what);
  console.log(`${holds ? "ok  " : "FAIL"} ${what}`);
};
const free = async () => {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  return port;
};

const children = [];
const start = (file, args, options = {}) => {
  const child = spawn(file, args, { stdio: ["ignore", "pipe", "inherit"], ...options });
  children.push(child);
  return child;
};
const lines = (child) => createInterface({ input: child.stdout })[Symbol.asyncIterator]();
const late = setTimeout(() => { console.error("it takes too long"); process.exit(1); }, 4 * PATIENCE);

const folder = await mkdtemp(join(tmpdir(), "orchestra-sign-in-"));
await mkdir(out, { recursive: true });
let browser;
try {
  const said = {};
  const words = lines(start(provider, ["infra", "apps"]));
  while (!said.secret) {
    const { value, done } = await words.next();
    if (done) throw new Error("the provider ended");
    const at = value.indexOf(" ");
    said[value.slice(0, at)] = value.slice(at + 1);
  }
  const port = await free();
  const base = `http://localhost:${port}`;
  const config = join(folder, "orchestra.toml");
  const rule = (group, team, role) => `[[oidc.map]]\ngroup = "${group}"\nteam = "${team}"\nrole = "${role}"\n`;
  await writeFile(config, `public_url = "${base}"\n[oidc]\nissuer = "${said.issuer}"\nclient_id = "${said.client}"\n`
    + `client_secret_env = "SECRET_OF_THE_PROVIDER"\nlabel = "Acme"\n`
    + rule("infra", "platform", "admin") + rule("apps", "mobile", "viewer"));
  const environment = { PATH: process.env.PATH, HOME: folder, SECRET_OF_THE_PROVIDER: said.secret };
  const args = ["serve", "--listen", `127.0.0.1:${port}`, "--data", join(folder, "data"), "--config", config];
  const server = lines(start(program, args, { env: environment }));
  for (;;) {
    const { value, done } = await server.next();
    if (done) throw new Error("the server ended");
    if (value.startsWith("Orchestra listens on ")) break;
  }

  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
  });
  for (const [look, viewport] of [["desktop", { width: 1280, height: 900 }], ["phone", { width: 420, height: 860 }]]) {
    const context = await browser.newContext({ viewport });
    context.setDefaultTimeout(PATIENCE);
    const page = await context.newPage();
    const complaints = [];
    page.on("console", (message) => {
      // What the provider's own site lacks, an icon say, is not ours to mend.
      const { url } = message.location();
      if (url.startsWith(new URL(said.issuer).origin)) return;
      if (["error", "warning"].includes(message.type())) complaints.push(`${message.text()} ${url}`);
    });
    const wide = () => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);

    await page.goto(`${base}/tasks?status=failed`);
    await page.screenshot({ path: join(out, `${look}-sign-in-with.png`), fullPage: true });
    check(await wide() <= 0, `${look}: the sign-in page is no wider than the window`);
    await page.getByRole("link", { name: "Sign in with Acme" }).click();
    await page.waitForURL(`${base}/tasks?status=failed`);
    await page.getByRole("heading", { name: "Tasks", level: 1 }).waitFor();
    check(true, `${look}: signed in, and where one wanted to go`);
    const cookies = await context.cookies(base);
    const session = cookies.find((cookie) => cookie.name === "orchestra_session");
    check(session?.httpOnly && session?.sameSite === "Strict", `${look}: the session's cookie is strict`);
    check(!cookies.some((cookie) => cookie.name === "orchestra_sign_in"), `${look}: nothing is left of the way there`);
    check(await wide() <= 0, `${look}: the page is no wider than the window`);

    // A link on another site, to somebody who is signed in.
    await page.goto(`${said.issuer}/keys`);
    await page.evaluate((to) => { location.href = to; }, `${base}/tasks?status=succeeded`);
    await page.waitForURL(`${base}/tasks?status=succeeded`);
    await page.getByRole("heading", { name: "Tasks", level: 1 }).waitFor();
    check(true, `${look}: a link from elsewhere arrives signed in`);

    check(await page.getByRole("link", { name: "People" }).count() === 1, `${look}: an admin of the team sees its people`);
    await page.getByRole("link", { name: "People" }).click();
    await page.waitForURL(`${base}/people`);
    await page.screenshot({ path: join(out, `${look}-people-of-the-team.png`), fullPage: true });
    await page.getByLabel("Team").selectOption("mobile");
    await page.getByRole("button", { name: "Switch" }).click();
    await page.waitForURL(`${base}/tasks`);
    check(await page.getByRole("link", { name: "People" }).count() === 0, `${look}: and a viewer of another does not`);
    await page.locator("#connection[data-state=live]").waitFor();
    await page.screenshot({ path: join(out, `${look}-other-team.png`), fullPage: true });
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.waitForURL(`${base}/sign-in`);
    await page.goto(`${base}/tasks`);
    check(new URL(page.url()).pathname === "/sign-in", `${look}: signed out`);
    check(complaints.length === 0, `${look}: the browser has nothing to complain about ${complaints.join(" | ")}`);
    await context.close();
  }
} catch (error) {
  wrong.push(String(error));
  console.error(error);
} finally {
  clearTimeout(late);
  await browser?.close();
  for (const child of children) child.kill("SIGTERM");
  await rm(folder, { recursive: true, force: true });
}
if (wrong.length > 0) {
  console.error(`\n${wrong.length} wrong:\n- ${wrong.join("\n- ")}`);
  process.exit(1);
}
console.log("\nPeople get in and out.");
