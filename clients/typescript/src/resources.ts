/** Campaigns, budgets and usage. */

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
export type Dimension = "team" | "project" | "environment" | "taskType" | "model" | "customer" | "day";
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
