/** The client against a running server. */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { after, before, test } from "node:test";
import { type Event, OrchestraError, TaskFailed } from "@orchestra/client";
import { Cutter, House, PAYLOAD } from "./house.js";

let house: House;
before(async () => {
  house = await House.open();
});
after(() => house.close());

const revisions = (events: Event[]) => events.map((event) => event.revision);
const upTo = (last: number) => Array.from({ length: last + 1 }, (_, index) => index);

test("a task is run to its end", async () => {
  const orchestra = house.client();
  const kinds: string[] = [];
  const task = await orchestra.tasks.run(PAYLOAD, { onEvent: (event) => kinds.push(event.type) });
  assert.equal(task.status, "succeeded");
  assert.equal(task.team, "platform");
  assert.ok(task.usage.costUsd > 0);
  assert.equal(kinds[0], "created");
  assert.ok(kinds.includes("delta") && kinds.at(-1) === "succeeded", kinds.join());
  assert.match(await orchestra.tasks.diff(task.id), /^\+hello$/m);
  assert.deepEqual(await orchestra.tasks.get(task.id), task);
});

test("a failure has a type and a code", async () => {
  await assert.rejects(house.client().tasks.run({ ...PAYLOAD, task: "Change nothing" }), (error: unknown) => {
    assert.ok(error instanceof TaskFailed);
    assert.equal(error.code, "nothing-to-push");
    assert.equal(error.task.status, "failed");
    assert.ok(error.failure?.hint);
    return true;
  });
});

test("a refusal has a type, a code and the fields", async () => {
  await assert.rejects(house.client().tasks.create({ ...PAYLOAD, team: "no team!" }), (error: unknown) => {
    assert.ok(error instanceof OrchestraError);
    assert.equal(error.code, "invalid-request");
    assert.deepEqual(error.errors.map((field) => field.pointer), ["/team"]);
    return true;
  });
  const stranger = house.client({ apiKey: "orc_test_none_none" });
  await assert.rejects(stranger.tasks.list().page(), { code: "unauthenticated", status: 401 });
  await assert.rejects(house.client().tasks.get("task_none"), { code: "not-found", status: 404 });
});

test("a stream that is cut goes on without gap or repeat", async () => {
  const cutter = await Cutter.before(house.url, [700, 3_000, 10, 1_500, 4_000, 900]);
  try {
    const { id } = await house.client().tasks.create({ ...PAYLOAD, task: "Take some steps" });
    const through = house.client({ baseUrl: cutter.url });
    const seen: Event[] = [];
    for await (const event of through.tasks.events(id)) {
      if (event.type === "delta") continue;
      seen.push(event as Event);
      if (event.type === "succeeded") break;
    }
    assert.ok(cutter.connections > 6, `${cutter.connections} connections`);
    const last = seen.at(-1);
    assert.ok(last && last.revision > 20);
    assert.deepEqual(revisions(seen), upTo(last.revision));
    // From the middle on, and only that.
    const rest: Event[] = [];
    for await (const event of through.tasks.events(id, { after: 10 })) {
      if (event.type !== "delta") rest.push(event as Event);
      if (event.type === "succeeded") break;
    }
    assert.deepEqual(revisions(rest), upTo(last.revision).slice(11));
  } finally {
    await cutter.close();
  }
});

test("a stream goes on after the server was killed and came back", async () => {
  const orchestra = house.client({ maxRetries: 20 });
  const { id } = await orchestra.tasks.create({ ...PAYLOAD, task: "Take some steps" });
  const seen: Event[] = [];
  let killed: Promise<void> | undefined;
  for await (const event of orchestra.tasks.events(id)) {
    if (event.type === "delta") continue;
    seen.push(event as Event);
    if (event.type === "tool-finished") killed ??= house.tell("kill").then(() => house.tell("start"));
    if (["succeeded", "failed"].includes(event.type)) break;
  }
  await killed;
  assert.ok(killed);
  assert.equal(seen.at(-1)?.type, "succeeded");
  assert.deepEqual(revisions(seen), upTo(seen.length - 1));
});

test("a request under the same name is done once", async () => {
  const orchestra = house.client();
  const named = { idempotencyKey: crypto.randomUUID() };
  const tasks = await Promise.all(Array.from({ length: 8 }, () => orchestra.tasks.create(PAYLOAD, named)));
  assert.equal(new Set(tasks.map((task) => task.id)).size, 1);
  await assert.rejects(orchestra.tasks.create({ ...PAYLOAD, task: "Other" }, named), { code: "idempotency-key-reused" });
});

test("a task is spoken to, cancelled and retried", async () => {
  const orchestra = house.client();
  const { id } = await orchestra.tasks.create({ ...PAYLOAD, task: "Take long" });
  const kinds = new Set<string>();
  for await (const event of orchestra.tasks.events(id)) {
    kinds.add(event.type);
    if (event.type === "tool-called") await orchestra.tasks.message(id, "Hurry up");
    if (event.type === "steered") await orchestra.tasks.cancel(id, "not needed");
    if (event.type === "cancelled") break;
  }
  assert.ok(kinds.has("steered") && kinds.has("cancel-requested"), [...kinds].join());
  await assert.rejects(orchestra.tasks.wait(id), { name: "TaskFailed", code: "cancelled" });
  // It may have been taken up before the answer was written.
  assert.ok(["queued", "preparing", "running"].includes((await orchestra.tasks.retry(id)).status));
  await orchestra.tasks.cancel(id);
});

test("lists come page by page, without gap or repeat", async () => {
  const orchestra = house.client();
  const all: string[] = [];
  for await (const task of orchestra.tasks.list({ team: "platform", limit: 2 })) all.push(task.id);
  assert.ok(all.length >= 5);
  assert.equal(new Set(all).size, all.length);
  const first = await orchestra.tasks.list({ limit: 2 }).page();
  assert.deepEqual(first.data.map((task) => task.id), all.slice(0, 2));
});

test("campaigns, budgets, usage and the log", async () => {
  const orchestra = house.client();
  const budget = await orchestra.budgets.set("project:platform/infra", { perDay: { maxUsd: 5 } });
  assert.equal(budget.perDay.maxUsd, 5);
  assert.deepEqual((await orchestra.budgets.list("platform")).map((one) => one.scope), [
    "team:platform",
    "project:platform/infra",
  ]);
  const usage = await orchestra.usage.report({ groupBy: ["team", "model"], team: "platform" });
  assert.equal(usage.groups[0]?.team, "platform");
  assert.ok(usage.total.costUsd > 0);
  assert.match(await orchestra.usage.csv({ groupBy: ["team"] }), /^team,tasks,/);
  const campaign = await orchestra.campaigns.create({
    name: "Hello", repos: ["acme/api"], task: "Take long", model: PAYLOAD.model, team: "platform", budget: { maxUsd: 2 },
  });
  assert.equal((await orchestra.campaigns.get(campaign.id)).name, "Hello");
  assert.equal((await orchestra.campaigns.cancel(campaign.id)).id, campaign.id);
  for await (const event of orchestra.events({ type: "budget-set" })) {
    assert.equal(event.stream, "ledger-platform");
    break;
  }
});

test("keys are issued, used, rotated and revoked", async () => {
  const orchestra = house.client();
  const named = { idempotencyKey: crypto.randomUUID() };
  const issued = await orchestra.keys.create({ name: "ci", team: "platform", scopes: ["tasks:read"] }, named);
  assert.ok(issued.key?.startsWith("orc_"));
  const again = await orchestra.keys.create({ name: "ci", team: "platform", scopes: ["tasks:read"] }, named);
  assert.deepEqual([again.id, again.key], [issued.id, null]);
  const holder = house.client({ apiKey: issued.key ?? "" });
  assert.ok((await holder.tasks.list().page()).data.length > 0);
  await assert.rejects(holder.tasks.create(PAYLOAD), { code: "forbidden" });
  const rotated = await orchestra.keys.rotate(issued.id, 0);
  assert.notEqual(rotated.key, issued.key);
  await assert.rejects(holder.tasks.list().page(), { code: "unauthenticated" });
  await orchestra.keys.revoke(issued.id);
  assert.equal((await orchestra.keys.get(issued.id)).status, "revoked");
});

test("the audit says who did what", async () => {
  const orchestra = house.client();
  const kinds = new Set<string>();
  for await (const entry of orchestra.audit.list({ limit: 50 })) kinds.add(entry.kind);
  assert.ok(kinds.has("task") && kinds.has("key-issued"), [...kinds].join());
  assert.ok((await orchestra.audit.csv({ limit: 5 })).split("\r\n").length > 2);
});

test("the record is signed and taken away", async () => {
  const orchestra = house.client();
  const signed = await orchestra.audit.checkpoint();
  const newest = await orchestra.audit.checkpoints({ limit: 1 }).page();
  assert.equal(newest.data[0]?.position, signed.position);
  assert.ok((await orchestra.audit.key()).publicKey);
  let text = "";
  const decoder = new TextDecoder();
  for await (const piece of orchestra.audit.export({ content: false })) text += decoder.decode(piece, { stream: true });
  const lines = text.trimEnd().split("\n").map((line) => JSON.parse(line) as object);
  assert.ok(lines.length > signed.position, `${lines.length} lines`);
  for await (const piece of orchestra.audit.export()) {
    assert.ok(piece.length > 0);
    break;
  }
});

test("plans are set, bills are read, and no month is closed before its time", async () => {
  const orchestra = house.client();
  const month = new Date().toISOString().slice(0, 7);
  const plans = await orchestra.billing.setPlan("platform", { effectiveFrom: `${month}-01`, markUpBasisPoints: 1_000 });
  assert.deepEqual(await orchestra.billing.plans("platform"), plans);
  assert.equal((await orchestra.billing.periods("platform"))[0]?.period, month);
  const bill = await orchestra.billing.bill(month, { team: "platform" });
  assert.ok(bill.totals.billableUsd > 0 && bill.lines.length === bill.totals.lines);
  const first = await orchestra.billing.bill(month, { team: "platform", limit: 1 });
  assert.deepEqual(first.lines, bill.lines.slice(0, 1));
  const csv = await orchestra.billing.csv(month, { team: "platform" });
  assert.equal(csv.trimEnd().split("\r\n").length, bill.totals.lines + 1);
  await assert.rejects(orchestra.billing.close(month, "platform"), { code: "conflict" });
  const hook = await orchestra.webhooks.create({ url: "https://example.com/hook", events: ["task.*"], team: "platform" });
  await assert.rejects(orchestra.billing.push(month, hook.id, "platform"), { code: "invalid-request" });
  await orchestra.webhooks.remove(hook.id);
});

test("words are erased", async () => {
  const orchestra = house.client();
  const { id } = await orchestra.tasks.run(PAYLOAD);
  await orchestra.tasks.eraseContent(id);
  assert.equal((await orchestra.tasks.get(id)).task, "[erased]");
  await assert.rejects(orchestra.campaigns.eraseContent("campaign_none"), { code: "not-found" });
});

test("a webhook is made, changed and removed", async () => {
  const orchestra = house.client();
  const made = await orchestra.webhooks.create({ url: "https://example.com/hook", events: ["task.succeeded"], team: "platform" });
  assert.ok(made.secret?.startsWith("whsec_"));
  assert.equal((await orchestra.webhooks.change(made.id, { description: "Ours" })).description, "Ours");
  const all = [];
  for await (const webhook of orchestra.webhooks.list()) all.push(webhook.id);
  assert.deepEqual(all, [made.id]);
  await orchestra.webhooks.remove(made.id);
  await assert.rejects(orchestra.webhooks.get(made.id), { code: "not-found" });
});

test("the example of the README runs", async () => {
  const env = { ...process.env, ORCHESTRA_URL: house.url, ORCHESTRA_API_KEY: house.adminKey };
  const { stdout } = await promisify(execFile)(process.execPath, [new URL("readme.js", import.meta.url).pathname], { env });
  assert.match(stdout, /^succeeded orchestra\/\S+ 0\.\d+$/m);
});
