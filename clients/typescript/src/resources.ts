/** Everything but tasks: campaigns, budgets, usage, keys, the audit and webhooks. */

import type { components, paths } from "./generated.js";
import type { CallOptions, Http, NamedCallOptions } from "./http.js";
import { Pages } from "./pages.js";
import type { Credentials } from "./tasks.js";

type Schemas = components["schemas"];

export type Campaign = Schemas["Campaign"];
export type CampaignRequest = Schemas["CampaignRequest"];
export type CampaignFilter = NonNullable<paths["/v1/campaigns"]["get"]["parameters"]["query"]>;
export type BudgetRequest = Schemas["ScopeBudgetRequest"];
export type Budget = Schemas["Budget"];
export type UsageReport = Schemas["Usage"];
export type Dimension = "team" | "project" | "environment" | "taskType" | "model" | "customer" | "day" | "month";
export type Key = Schemas["Key"];
export type IssuedKey = Schemas["IssuedKey"];
export type KeyRequest = Schemas["KeyRequest"];
export type AuditEntry = Schemas["AuditEntry"];
export type AuditFilter = Omit<NonNullable<paths["/v1/audit"]["get"]["parameters"]["query"]>, "cursor" | "format">;
export type Checkpoint = Schemas["CheckpointView"];
export type AuditKey = Schemas["AuditKey"];
export type BillingPlans = Schemas["BillingPlans"];
export type BillingPlanRequest = Schemas["BillingPlanRequest"];
export type BillingPeriod = Schemas["BillingPeriod"];
export type Bill = Schemas["Bill"];
export interface BillQuery {
  /** The key's own team when absent; an operator names one. */
  team?: string;
  /** Only the lines for this customer. */
  customer?: string;
}
export type Webhook = Schemas["Webhook"];
export type NewWebhook = Schemas["NewWebhook"];
export type WebhookRequest = Schemas["WebhookRequest"];
export type WebhookChange = Schemas["WebhookChange"];
export type WebhookSecret = Schemas["WebhookSecret"];
export type ReplayRequest = Schemas["WebhookReplayRequest"];
export type Delivery = Schemas["Delivery"];
export interface UsageQuery {
  groupBy?: readonly Dimension[];
  /** A day, or a time whose day (UTC) is meant; both ends are in. */
  from?: string;
  to?: string;
  team?: string;
}

/** One task over many repositories. */
export class Campaigns {
  readonly #http: Http;

  constructor(http: Http) {
    this.#http = http;
  }

  #path(id: string, rest = ""): string {
    return `/v1/campaigns/${encodeURIComponent(id)}${rest}`;
  }

  create(campaign: CampaignRequest, options: NamedCallOptions = {}): Promise<Campaign> {
    return this.#http.json({ method: "POST", path: "/v1/campaigns", body: campaign, ...options });
  }

  get(id: string, options: CallOptions = {}): Promise<Campaign> {
    return this.#http.json({ method: "GET", path: this.#path(id), ...options });
  }

  /** Campaigns, newest first. */
  list(filter: CampaignFilter = {}, options: CallOptions = {}): Pages<Campaign> {
    return new Pages(this.#http, { method: "GET", path: "/v1/campaigns", query: filter, ...options });
  }

  /** No further task is begun, and those that run are cancelled. */
  cancel(id: string, reason?: string, options: NamedCallOptions = {}): Promise<Campaign> {
    const body = reason === undefined ? {} : { reason };
    return this.#http.json({ method: "POST", path: this.#path(id, "/cancel"), body, ...options });
  }

  /** Does again what failed. New credentials may come along. */
  retry(id: string, credentials?: Credentials, options: NamedCallOptions = {}): Promise<Campaign> {
    const body = credentials === undefined ? {} : { credentials };
    return this.#http.json({ method: "POST", path: this.#path(id, "/retry"), body, ...options });
  }

  /** Erases the words of a campaign that is over, and of its tasks, for good. They may be gone only a while later. */
  async eraseContent(id: string, options: CallOptions = {}): Promise<void> {
    await this.#http.text({ method: "DELETE", path: this.#path(id, "/content"), ...options });
  }

  /** Replaces the secrets of a campaign and of all its tasks. */
  credentials(id: string, credentials: Credentials, options: CallOptions = {}): Promise<Campaign> {
    return this.#http.json({ method: "PUT", path: this.#path(id, "/credentials"), body: credentials, ...options });
  }
}

/** Caps of teams, projects, environments and task types, and where they stand. */
export class Budgets {
  readonly #http: Http;

  constructor(http: Http) {
    this.#http = http;
  }

  // A scope has slashes of its own.
  #path(scope: string): string {
    return `/v1/budgets/${scope.split("/").map(encodeURIComponent).join("/")}`;
  }

  /** A scope such as `team:platform` or `project:platform/infra`. */
  get(scope: string, options: CallOptions = {}): Promise<Budget> {
    return this.#http.json({ method: "GET", path: this.#path(scope), ...options });
  }

  /** A team's budgets; the key's own team when none is named. */
  async list(team?: string, options: CallOptions = {}): Promise<readonly Budget[]> {
    const call = { method: "GET", path: "/v1/budgets", query: { team }, ...options } as const;
    return (await this.#http.json<Schemas["BudgetList"]>(call)).data;
  }

  /** Gives a scope caps in place of those it had. */
  set(scope: string, budget: BudgetRequest, options: CallOptions = {}): Promise<Budget> {
    return this.#http.json({ method: "PUT", path: this.#path(scope), body: budget, ...options });
  }
}

/** Tokens and dollars. */
export class Usage {
  readonly #http: Http;

  constructor(http: Http) {
    this.#http = http;
  }

  #query({ groupBy, ...query }: UsageQuery) {
    return { ...query, groupBy: groupBy?.join(",") };
  }

  report(query: UsageQuery = {}, options: CallOptions = {}): Promise<UsageReport> {
    return this.#http.json({ method: "GET", path: "/v1/usage", query: this.#query(query), ...options });
  }

  /** The same as comma-separated values. */
  csv(query: UsageQuery = {}, options: CallOptions = {}): Promise<string> {
    const headers = { accept: "text/csv" };
    return this.#http.text({ method: "GET", path: "/v1/usage", query: this.#query(query), headers, ...options });
  }
}

/** API keys. */
export class Keys {
  readonly #http: Http;

  constructor(http: Http) {
    this.#http = http;
  }

  #path(id: string, rest = ""): string {
    return `/v1/keys/${encodeURIComponent(id)}${rest}`;
  }

  /** Issues a key. Its text is in the answer to the first request, and `null` in that to a repeat. */
  create(key: KeyRequest, options: NamedCallOptions = {}): Promise<IssuedKey> {
    return this.#http.json({ method: "POST", path: "/v1/keys", body: key, ...options });
  }

  get(id: string, options: CallOptions = {}): Promise<Key> {
    return this.#http.json({ method: "GET", path: this.#path(id), ...options });
  }

  /** Keys, newest first. */
  list(filter: { team?: string; limit?: number } = {}, options: CallOptions = {}): Pages<Key> {
    return new Pages(this.#http, { method: "GET", path: "/v1/keys", query: filter, ...options });
  }

  /** Gives a key a new text; the one before works on for a while. */
  rotate(id: string, overlapSeconds?: number, options: NamedCallOptions = {}): Promise<IssuedKey> {
    const body = overlapSeconds === undefined ? {} : { overlapSeconds };
    return this.#http.json({ method: "POST", path: this.#path(id, "/rotate"), body, ...options });
  }

  /** Revokes a key for good. `itself`: also if it is the key that asks. */
  async revoke(id: string, itself = false, options: CallOptions = {}): Promise<void> {
    const query = itself ? { self: "true" } : {};
    await this.#http.text({ method: "DELETE", path: this.#path(id), query, ...options });
  }
}

/** Who did what, when, on which repository, with which model, at what cost, with which outcome. */
export class Audit {
  readonly #http: Http;

  constructor(http: Http) {
    this.#http = http;
  }

  /** Rows, newest first. */
  list(filter: AuditFilter = {}, options: CallOptions = {}): Pages<AuditEntry> {
    return new Pages(this.#http, { method: "GET", path: "/v1/audit", query: filter, ...options });
  }

  /** The same as comma-separated values. */
  csv(filter: AuditFilter = {}, options: CallOptions = {}): Promise<string> {
    const headers = { accept: "text/csv" };
    return this.#http.text({ method: "GET", path: "/v1/audit", query: filter, headers, ...options });
  }

  /** Signed statements about the log, newest first. */
  checkpoints(filter: { limit?: number } = {}, options: CallOptions = {}): Pages<Checkpoint> {
    return new Pages(this.#http, { method: "GET", path: "/v1/audit/checkpoints", query: filter, ...options });
  }

  /** Signs the log as it stands. */
  checkpoint(options: NamedCallOptions = {}): Promise<Checkpoint> {
    return this.#http.json({ method: "POST", path: "/v1/audit/checkpoints", ...options });
  }

  /** What checkpoints are signed with: the public half. */
  key(options: CallOptions = {}): Promise<AuditKey> {
    return this.#http.json({ method: "GET", path: "/v1/audit/key", ...options });
  }

  /** The whole log as a file, piece by piece, for `orchestra audit verify`. `content: false` leaves the words out. */
  async *export({ content = true, signal }: CallOptions & { content?: boolean } = {}): AsyncGenerator<Uint8Array, void> {
    const ended = new AbortController();
    const until = signal ? AbortSignal.any([signal, ended.signal]) : ended.signal;
    const query = { content: String(content) };
    try {
      const response = await this.#http.open({ method: "GET", path: "/v1/audit/export", query }, until);
      const pieces = response.body?.getReader();
      if (!pieces) throw new Error("an export without a body");
      for (let piece = await pieces.read(); !piece.done; piece = await pieces.read()) yield piece.value;
    } finally {
      // Whoever stops in the middle wants no more of it.
      ended.abort();
    }
  }
}

/** What a team is billed. Months are written `2026-11`. */
export class Billing {
  readonly #http: Http;

  constructor(http: Http) {
    this.#http = http;
  }

  #plans(team: string): string {
    return `/v1/billing/plans/${encodeURIComponent(team)}`;
  }

  #period(period: string, rest = ""): string {
    return `/v1/billing/periods/${encodeURIComponent(period)}${rest}`;
  }

  /** A team's plans, every version. */
  plans(team: string, options: CallOptions = {}): Promise<BillingPlans> {
    return this.#http.json({ method: "GET", path: this.#plans(team), ...options });
  }

  /** Has a plan go from its first day on. */
  setPlan(team: string, plan: BillingPlanRequest, options: CallOptions = {}): Promise<BillingPlans> {
    return this.#http.json({ method: "PUT", path: this.#plans(team), body: plan, ...options });
  }

  /** The months in which anything was used, newest first; the key's own team when none is named. */
  async periods(team?: string, options: CallOptions = {}): Promise<readonly BillingPeriod[]> {
    const call = { method: "GET", path: "/v1/billing/periods", query: { team }, ...options } as const;
    return (await this.#http.json<Schemas["BillingPeriods"]>(call)).data;
  }

  /** A bill, with the first of its lines, or those behind `cursor`: the `nextCursor` of the page before. */
  bill(
    period: string,
    query: BillQuery & { cursor?: string; limit?: number } = {},
    options: CallOptions = {},
  ): Promise<Bill> {
    return this.#http.json({ method: "GET", path: this.#period(period), query: { ...query }, ...options });
  }

  /** Every line of a bill as comma-separated values. */
  csv(period: string, query: BillQuery = {}, options: CallOptions = {}): Promise<string> {
    const headers = { accept: "text/csv" };
    return this.#http.text({ method: "GET", path: this.#period(period), query: { ...query }, headers, ...options });
  }

  /** Closes a month for good. Asked again, it answers what was closed. */
  close(period: string, team?: string, options: NamedCallOptions = {}): Promise<BillingPeriod> {
    return this.#http.json({ method: "POST", path: this.#period(period, "/close"), query: { team }, ...options });
  }

  /** Sends a closed month's bill to a webhook that is told of bills. */
  push(period: string, webhook: string, team?: string, options: NamedCallOptions = {}): Promise<BillingPeriod> {
    const call = { path: this.#period(period, "/push"), query: { team }, body: { webhook } };
    return this.#http.json({ method: "POST", ...call, ...options });
  }
}

/** Where events are sent. */
export class Webhooks {
  readonly #http: Http;

  constructor(http: Http) {
    this.#http = http;
  }

  #path(id: string, rest = ""): string {
    return `/v1/webhooks/${encodeURIComponent(id)}${rest}`;
  }

  /** Makes a webhook. The secret that its messages are signed with is in the answer to the first request, and `null` in that to a
   * repeat. */
  create(webhook: WebhookRequest, options: NamedCallOptions = {}): Promise<NewWebhook> {
    return this.#http.json({ method: "POST", path: "/v1/webhooks", body: webhook, ...options });
  }

  get(id: string, options: CallOptions = {}): Promise<Webhook> {
    return this.#http.json({ method: "GET", path: this.#path(id), ...options });
  }

  list(filter: { team?: string; limit?: number } = {}, options: CallOptions = {}): Pages<Webhook> {
    return new Pages(this.#http, { method: "GET", path: "/v1/webhooks", query: filter, ...options });
  }

  change(id: string, change: WebhookChange, options: CallOptions = {}): Promise<Webhook> {
    return this.#http.json({ method: "PATCH", path: this.#path(id), body: change, ...options });
  }

  async remove(id: string, options: CallOptions = {}): Promise<void> {
    await this.#http.text({ method: "DELETE", path: this.#path(id), ...options });
  }

  /** Makes the secret anew; for a while messages are signed with both. */
  rotateSecret(id: string, overlapSeconds?: number, options: NamedCallOptions = {}): Promise<WebhookSecret> {
    const body = overlapSeconds === undefined ? {} : { overlapSeconds };
    return this.#http.json({ method: "POST", path: this.#path(id, "/secret"), body, ...options });
  }

  /** Sends a test, once for each attempt at this call, and answers what came of it. */
  test(id: string, options: CallOptions = {}): Promise<Delivery> {
    return this.#http.json({ method: "POST", path: this.#path(id, "/test"), ...options });
  }

  /** Sends again one message, or a part of the log. */
  replay(id: string, what: ReplayRequest, options: NamedCallOptions = {}): Promise<Webhook> {
    return this.#http.json({ method: "POST", path: this.#path(id, "/replay"), body: what, ...options });
  }

  deliveries(id: string, filter: { outcome?: string; limit?: number } = {}, options: CallOptions = {}): Pages<Delivery> {
    return new Pages(this.#http, { method: "GET", path: this.#path(id, "/deliveries"), query: filter, ...options });
  }
}
