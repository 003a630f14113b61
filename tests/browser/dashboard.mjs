// The dashboard in a real browser: signs in, reads the list, watches a task, and looks at it as a person would.
//
//   node tests/browser/dashboard.mjs --url http://127.0.0.1:7070 --key orc_… --task task_… --out DIR
//
// The task should be going on while this runs: new timeline rows are waited for. Exits non-zero with what was wrong.
import { mkdir } from "node:fs/promises";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";

const { values: given } = parseArgs({
  options: {
    url: { type: "string" },
    key: { type: "string" },
    task: { type: "string" },
    out: { type: "string", default: "screenshots" },
    "until-final": { type: "boolean", default: false },
  },
});
for (const name of ["url", "key", "task"]) {
  if (!given[name]) {
    console.error(`--${name} is missing`);
    process.exit(2);
  }
}
const base = given.url.replace(/\/$/, "");
/** How long anything that should happen may take. */
const PATIENCE = 30_000;
const wrong = [];
const check = (holds, what) => {
  if (!holds) wrong.push(what);
  console.log(`${holds ? "ok  " : "FAIL"} ${what}`);
};

await mkdir(given.out, { recursive: true });
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
  ],
});

const looks = {
  "desktop-light": { viewport: { width: 1280, height: 900 }, colorScheme: "light" },
  "desktop-dark": { viewport: { width: 1280, height: 900 }, colorScheme: "dark" },
  "phone-light": { viewport: { width: 390, height: 844 }, colorScheme: "light", deviceScaleFactor: 2, isMobile: true, hasTouch: true },
  "phone-dark": { viewport: { width: 390, height: 844 }, colorScheme: "dark", deviceScaleFactor: 2, isMobile: true, hasTouch: true },
};

/** Opens a window that notes every complaint of the browser. */
async function open(look) {
  const context = await browser.newContext({ ...looks[look], reducedMotion: "reduce" });
  context.setDefaultTimeout(PATIENCE);
  // Said aloud, so that it is among the complaints whatever the browser itself says of it.
  await context.addInitScript(() => {
    addEventListener("securitypolicyviolation", (event) => {
      console.error(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`);
    });
  });
  const page = await context.newPage();
  const complaints = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(`${message.type()}: ${message.text()}`);
  });
  page.on("pageerror", (error) => complaints.push(`exception: ${error.message}`));
  return { context, page, complaints };
}

async function signIn(page) {
  await page.goto(`${base}/tasks`);
  check(new URL(page.url()).pathname === "/sign-in", "a visitor without a session is sent to the sign-in page");
  await page.getByLabel("API key").fill(given.key);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("heading", { name: "Tasks", level: 1 }).waitFor();
}

/** What a narrow screen, a keyboard and a screen reader ask of every page. */
async function basics(page, name) {
  const found = await page.evaluate(() => {
    const rgb = (text) => {
      const numbers = text.match(/[\d.]+/g)?.map(Number) ?? [0, 0, 0, 0];
      return { r: numbers[0], g: numbers[1], b: numbers[2], a: numbers[3] ?? 1 };
    };
    const luminance = ({ r, g, b }) => {
      const [x, y, z] = [r, g, b].map((part) => {
        const share = part / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const ground = (element) => {
      for (let at = element; at; at = at.parentElement) {
        const colour = rgb(getComputedStyle(at).backgroundColor);
        if (colour.a > 0.99) return colour;
      }
      return { r: 255, g: 255, b: 255 };
    };
    const faint = new Set();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      if (!walker.currentNode.data.trim() || !element.checkVisibility?.({ visibilityProperty: true })) continue;
      const [a, b] = [luminance(rgb(getComputedStyle(element).color)), luminance(ground(element))].sort((x, y) => y - x);
      const ratio = (a + 0.05) / (b + 0.05);
      if (ratio < 4.5) faint.add(`${element.tagName.toLowerCase()}.${element.className} ${ratio.toFixed(2)}`);
    }
    const fields = [...document.querySelectorAll("input:not([type=hidden]), select, textarea")];
    return {
      overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
      faint: [...faint],
      unlabelled: fields.filter((field) => !field.labels?.length && !field.getAttribute("aria-label")).map((field) => field.name),
      nameless: [...document.querySelectorAll("a, button")].filter((e) => !e.textContent.trim() && !e.getAttribute("aria-label")).length,
      images: [...document.querySelectorAll("img:not([alt]), svg[role=img]:not([aria-label])")].length,
      ids: [...document.querySelectorAll("[id]")].map((e) => e.id).filter((id, at, all) => all.indexOf(id) !== at),
      headings: document.querySelectorAll("h1").length,
      language: document.documentElement.lang,
    };
  });
  check(found.overflow <= 0, `${name}: no horizontal scroll (${found.overflow} px too wide)`);
  check(found.faint.length === 0, `${name}: text stands out from its ground ${found.faint.join(", ")}`);
  check(found.unlabelled.length === 0, `${name}: every field has a label ${found.unlabelled}`);
  check(found.nameless === 0 && found.images === 0, `${name}: links, buttons and images have names`);
  check(found.ids.length === 0, `${name}: ids are unique ${found.ids}`);
  check(found.headings === 1 && found.language === "en", `${name}: one main heading, and a language`);
}

const shot = (page, name) => page.screenshot({ path: `${given.out}/${name}.png`, fullPage: true });

try {
  // A line that breaks, in the middle of it all.
  {
    const { context, page, complaints } = await open("desktop-light");
    await signIn(page);
    await page.goto(`${base}/tasks/${given.task}`);
    const final = await page.locator(".task-head .chip").evaluate((chip) => /succeeded|failed|cancelled/.test(chip.className));
    if (!final) {
      await page.locator("#connection[data-state=live]").waitFor();
      const requests = [];
      page.on("request", (request) => {
        if (request.url().includes("/live")) requests.push(request.headers()["last-event-id"] ?? null);
      });
      const before = await page.locator("#timeline > li").count();
      await page.waitForFunction((before) => document.querySelectorAll("#timeline > li").length > before, before);
      await page.evaluate(() => document.getElementById("live")._htmx.sse.reader.cancel());
      const broken = await page.locator("#timeline > li").count();
      await page.waitForFunction((broken) => document.querySelectorAll("#timeline > li").length > broken, broken);
      check(requests.some((id) => id !== null && Number(id) >= before), `after a break the stream resumes where it was (${requests})`);
      const revisions = await page.locator("#timeline > li").evaluateAll((rows) => rows.map((row) => Number(row.id.slice(2))));
      check(revisions.every((revision, at) => at === 0 || revision === revisions[at - 1] + 1), "no gap and no repeat after the break");
    }
    check(complaints.length === 0, `after the break the browser has nothing to complain about ${complaints.join(" | ")}`);
    await context.close();
  }

  for (const look of Object.keys(looks)) {
    const { context, page, complaints } = await open(look);
    await page.goto(`${base}/sign-in`);
    await basics(page, `${look} sign-in`);
    await shot(page, `${look}-sign-in`);
    await signIn(page);
    const cookie = (await context.cookies()).find((cookie) => cookie.name === "orchestra_session");
    check(cookie?.httpOnly && cookie?.sameSite === "Strict", `${look}: the session's cookie is HttpOnly and SameSite=Strict`);
    await page.locator(`#row-${given.task}`).waitFor();
    await page.locator("#connection[data-state=live]").waitFor();
    await basics(page, `${look} list`);
    await shot(page, `${look}-list`);

    await page.getByRole("link", { name: "Budgets" }).click();
    await page.waitForURL("**/budgets");
    await page.getByRole("link", { name: "platform", exact: true }).click();
    await page.waitForURL("**/budgets?team=platform");
    check(await page.getByRole("heading", { name: "team:platform" }).count() === 1, `${look}: the team's budget is shown`);
    await basics(page, `${look} budgets`);
    await shot(page, `${look}-budgets`);

    // A key is made, shown once, and taken back.
    await page.getByRole("link", { name: "Keys", exact: true }).click();
    await page.waitForURL("**/keys");
    await page.getByText("New key").click();
    await page.getByLabel("Name").fill(`ci of ${look}`);
    await page.getByLabel("Team", { exact: true }).fill("platform");
    await page.getByLabel("tasks:read").check();
    await basics(page, `${look} keys`);
    await shot(page, `${look}-keys`);
    await page.getByRole("button", { name: "Issue the key" }).click();
    await page.getByRole("heading", { name: "A new key" }).waitFor();
    const text = await page.locator(".key-text").innerText();
    check(/^orc_live_[0-9a-z]{26}_[0-9a-f]{64}$/.test(text.trim()), `${look}: the key's text is shown`);
    await basics(page, `${look} key shown`);
    await shot(page, `${look}-key-shown`);
    await page.getByRole("link", { name: "To the keys" }).click();
    check(!(await page.content()).includes(text.trim()), `${look}: … and only once`);
    const reads = (key) => page.evaluate(async (key) => (await fetch("/v1/tasks", { headers: { authorization: `Bearer ${key}` }, credentials: "omit" })).status, key);
    check((await reads(text.trim())) === 200, `${look}: it opens the door`);
    await page.getByRole("button", { name: `Revoke ci of ${look}`, exact: true }).click();
    await page.getByRole("status").filter({ hasText: "Revoked" }).waitFor();
    // Refused requests stand in the browser's console: asked without a page that listens.
    const after = await context.request.get(`${base}/v1/tasks`, { headers: { authorization: `Bearer ${text.trim()}` } });
    check(after.status() === 401, `${look}: revoked, it does not`);
    await page.getByRole("link", { name: "People" }).click();
    await page.waitForURL("**/people");
    check(await page.getByText("(this session)").count() === 1, `${look}: the own session is marked among those that are open`);
    await basics(page, `${look} people`);
    await shot(page, `${look}-people`);

    // Usage, the audit and webhooks: read, narrowed, made.
    await page.getByRole("link", { name: "Usage" }).click();
    await page.waitForURL("**/usage");
    await basics(page, `${look} usage`);
    await shot(page, `${look}-usage`);
    await page.goto(`${base}/usage?team=platform&by=model`);
    check(await page.getByText("claude-sonnet-4-6").count() > 0, `${look}: a team's models have their lines`);
    await basics(page, `${look} usage of a team`);
    await shot(page, `${look}-usage-of-a-team`);
    await page.getByRole("link", { name: "Audit" }).click();
    await page.waitForURL("**/audit");
    check(await page.locator(".audit .entry").count() > 3, `${look}: what happened is in the audit`);
    const edges = await page.locator(".audit .entry .act").evaluateAll((acts) => acts.map((act) => act.getBoundingClientRect().left));
    check(new Set(edges).size === 1, `${look}: the rows of the audit stand under one another (${[...new Set(edges)]})`);
    check(await page.locator(".top [aria-current]").innerText() === "Audit", `${look}: the page's place is marked`);
    const [brand, out] = await Promise.all([".brand", ".visitor button"].map((one) => page.locator(one).boundingBox()));
    check(Math.abs(brand.y + brand.height / 2 - out.y - out.height / 2) < 4, `${look}: the way out is in the first line`);
    await basics(page, `${look} audit`);
    await shot(page, `${look}-audit`);
    await page.getByLabel("What").selectOption("act");
    await page.getByRole("button", { name: "Filter" }).click();
    await page.waitForURL("**/audit?category=act**");
    check(await page.locator(".audit .entry.of-act").count() === await page.locator(".audit .entry").count(), `${look}: acts alone`);
    await page.getByRole("link", { name: "Webhooks" }).click();
    await page.waitForURL("**/webhooks");
    await page.getByLabel("URL").fill("https://receiver.example/hook");
    await page.getByLabel("Team").fill("platform");
    await page.getByLabel("Description").fill(`for ${look}`);
    await basics(page, `${look} webhooks`);
    await shot(page, `${look}-webhooks`);
    await page.getByRole("button", { name: "Create" }).click();
    const secret = page.getByText(/^whsec_\S{20,}$/);
    await secret.waitFor();
    const hidden = (await secret.innerText()).trim();
    await basics(page, `${look} webhook made`);
    await shot(page, `${look}-webhook-made`);
    await page.getByRole("link", { name: "Webhooks" }).click();
    await page.getByRole("link", { name: `for ${look}` }).click();
    await page.getByRole("heading", { name: `for ${look}` }).waitFor();
    check(!(await page.content()).includes(hidden), `${look}: a webhook's secret is shown once`);
    await basics(page, `${look} webhook`);
    await shot(page, `${look}-webhook`);
    await page.getByRole("link", { name: "Tasks" }).click();

    await page.locator(`#row-${given.task} h2 a`).click();
    await page.waitForURL(`**/tasks/${given.task}`);
    await page.locator("#timeline > li").first().waitFor();
    const final = await page.locator(".task-head .chip").evaluate((chip) => /succeeded|failed|cancelled/.test(chip.className));
    if (!final) {
      const before = await page.locator("#timeline > li").count();
      await page.waitForFunction((before) => document.querySelectorAll("#timeline > li").length > before, before);
      check(true, `${look}: rows arrive while the page is open`);
    }
    const revisions = await page.locator("#timeline > li").evaluateAll((rows) => rows.map((row) => Number(row.id.slice(2))));
    check(revisions.every((revision, at) => at === 0 || revision === revisions[at - 1] + 1), `${look}: no gap and no repeat in the timeline`);
    await basics(page, `${look} task`);
    await shot(page, `${look}-task`);
    const tree = await page.locator("main").ariaSnapshot();
    check(/heading .*\[level=1\]/.test(tree) && /list/.test(tree), `${look}: a screen reader finds the heading and the timeline`);
    check(complaints.length === 0, `${look}: the browser has nothing to complain about ${complaints.join(" | ")}`);
    await context.close();
  }

  // The end of a task, as it is seen by somebody who watches it.
  if (given["until-final"]) {
    const { context, page, complaints } = await open("desktop-light");
    await signIn(page);
    await page.goto(`${base}/tasks/${given.task}`);
    const chip = page.locator(".task-head .chip");
    const over = /succeeded|failed|cancelled/.test(await chip.getAttribute("class"));
    await page.locator(".task-head .chip:is(.succeeded, .failed, .cancelled)").waitFor({ timeout: 240_000 });
    if (!over) {
      await page.locator("#connection[data-state=done]").waitFor();
      const again = [];
      page.on("request", (request) => again.push(request.url()));
      // Long enough for several of the extension's reconnects, had there been any.
      await page.waitForTimeout(3_000);
      check(again.length === 0, `a settled task asks for nothing more (${again})`);
    }
    check(await page.locator("#changes .file").count() > 0, "the changes appear without a reload");
    check(complaints.length === 0, `at the end the browser has nothing to complain about ${complaints.join(" | ")}`);
    await context.close();
  }

  if (given["until-final"]) {
    for (const look of Object.keys(looks)) {
      const { context, page } = await open(look);
      await signIn(page);
      await page.goto(`${base}/tasks/${given.task}`);
      await basics(page, `${look} final`);
      await shot(page, `${look}-final`);
      for (const path of ["/docs/errors/budget-exceeded", "/tasks/task_nope", `/tasks/${given.task}/diff`]) {
        await page.goto(base + path);
        await basics(page, `${look} ${path}`);
        await shot(page, `${look}-${path.split("/").at(-1)}`);
      }
      await context.close();
    }
  }

  // Reading needs no JavaScript.
  {
    const context = await browser.newContext({ ...looks["phone-light"], javaScriptEnabled: false });
    const page = await context.newPage();
    await page.goto(`${base}/sign-in`);
    await page.getByLabel("API key").fill(given.key);
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.goto(`${base}/tasks/${given.task}`);
    check(await page.locator("#timeline > li").count() > 0, "without JavaScript the timeline can be read");
    await context.close();
  }
} catch (error) {
  wrong.push(String(error));
  console.error(error);
} finally {
  await browser.close();
}
if (wrong.length > 0) {
  console.error(`\n${wrong.length} wrong:\n- ${wrong.join("\n- ")}`);
  process.exit(1);
}
console.log("\nThe dashboard stands.");
