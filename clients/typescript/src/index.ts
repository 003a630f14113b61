/** Orchestra's REST interface and event streams, typed. */

import { Audit, Billing, Budgets, Campaigns, Keys, Usage, Webhooks } from "./resources.js";
import { type Event, type FollowOptions, follow } from "./events.js";
import type { paths } from "./generated.js";
import { Http, type Options } from "./http.js";
import { Tasks } from "./tasks.js";

export { ConnectionFailed, type Failure, type FailureCode, OrchestraError, type ProblemCode, TaskFailed } from "./errors.js";
export type { Delta, Event, FollowOptions } from "./events.js";
export type { components, operations, paths } from "./generated.js";
export type { CallOptions, NamedCallOptions, Options } from "./http.js";
export { type Page, Pages } from "./pages.js";
export * from "./resources.js";
export { type Credentials, type RunOptions, type Task, type TaskFilter, type TaskRequest, Tasks } from "./tasks.js";

/** Which events of the log to read. */
export type EventFilter = Omit<NonNullable<paths["/v1/events"]["get"]["parameters"]["query"]>, "after">;

/** A server, and a caller with a key. */
export class Orchestra {
  readonly tasks: Tasks;
  readonly campaigns: Campaigns;
  readonly budgets: Budgets;
  readonly usage: Usage;
  readonly keys: Keys;
  readonly audit: Audit;
  readonly billing: Billing;
  readonly webhooks: Webhooks;
  readonly #http: Http;

  constructor(options: Options) {
    this.#http = new Http(options);
    this.tasks = new Tasks(this.#http);
    this.campaigns = new Campaigns(this.#http);
    this.budgets = new Budgets(this.#http);
    this.usage = new Usage(this.#http);
    this.keys = new Keys(this.#http);
    this.audit = new Audit(this.#http);
    this.billing = new Billing(this.#http);
    this.webhooks = new Webhooks(this.#http);
  }

  /** The whole log as far as the key may read it, and what is added, without gap or repeat, until the loop is left. */
  async *events(filter: EventFilter = {}, options: FollowOptions = {}): AsyncGenerator<Event, void> {
    const call = { method: "GET", path: "/v1/events", query: filter } as const;
    // From the log's beginning: without a position, the server begins there too.
    for await (const event of follow(this.#http, call, options)) if (event.type !== "delta") yield event as Event;
  }
}
