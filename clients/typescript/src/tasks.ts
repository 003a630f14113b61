/** Tasks: submitting them, following them, and what can be asked of them. */

import { TaskFailed } from "./errors.js";
import { type Delta, type Event, type FollowOptions, follow } from "./events.js";
import type { components, paths } from "./generated.js";
import type { CallOptions, Http, NamedCallOptions } from "./http.js";
import { Pages } from "./pages.js";

type Schemas = components["schemas"];

/** A task. */
export type Task = Schemas["Task"];
/** What a caller asks for. */
export type TaskRequest = Schemas["TaskRequest"];
/** Secrets, for one task only. Held in memory by the server, never stored. */
export type Credentials = Schemas["CredentialsRequest"];
/** Which tasks to list. */
export type TaskFilter = NonNullable<paths["/v1/tasks"]["get"]["parameters"]["query"]>;

export interface RunOptions extends NamedCallOptions {
  /** Called with every event and every piece of text, in order. */
  onEvent?: (event: Event | Delta) => void;
}

/** Events after which a task has come to its end, for this time. */
const ENDS = new Set(["succeeded", "failed", "cancelled"]);

export class Tasks {
  readonly #http: Http;

  constructor(http: Http) {
    this.#http = http;
  }

  #path(id: string, rest = ""): string {
    return `/v1/tasks/${encodeURIComponent(id)}${rest}`;
  }

  /** Submits a task. Durable when it returns; `events` says what becomes of it. */
  create(task: TaskRequest, options: NamedCallOptions = {}): Promise<Task> {
    return this.#http.json({ method: "POST", path: "/v1/tasks", body: task, ...options });
  }

  get(id: string, options: CallOptions = {}): Promise<Task> {
    return this.#http.json({ method: "GET", path: this.#path(id), ...options });
  }

  /** Tasks, newest first. */
  list(filter: TaskFilter = {}, options: CallOptions = {}): Pages<Task> {
    return new Pages(this.#http, { method: "GET", path: "/v1/tasks", query: filter, ...options });
  }

  /** Asks for a task to be stopped. */
  cancel(id: string, reason?: string, options: NamedCallOptions = {}): Promise<Task> {
    const body = reason === undefined ? {} : { reason };
    return this.#http.json({ method: "POST", path: this.#path(id, "/cancel"), body, ...options });
  }

  /** Starts a new attempt at a task that failed or was cancelled. New credentials may come along. */
  retry(id: string, credentials?: Credentials, options: NamedCallOptions = {}): Promise<Task> {
    const body = credentials === undefined ? {} : { credentials };
    return this.#http.json({ method: "POST", path: this.#path(id, "/retry"), body, ...options });
  }

  /** Erases the words of a task that is over for good. They may be gone only a while later. */
  async eraseContent(id: string, options: CallOptions = {}): Promise<void> {
    await this.#http.text({ method: "DELETE", path: this.#path(id, "/content"), ...options });
  }

  /** Speaks to the running agent. */
  message(id: string, message: string, options: NamedCallOptions = {}): Promise<Task> {
    return this.#http.json({ method: "POST", path: this.#path(id, "/messages"), body: { message }, ...options });
  }

  /** Replaces the secrets of a task. */
  credentials(id: string, credentials: Credentials, options: CallOptions = {}): Promise<Task> {
    return this.#http.json({ method: "PUT", path: this.#path(id, "/credentials"), body: credentials, ...options });
  }

  /** The unified diff of what was, or would be, pushed. */
  diff(id: string, options: CallOptions = {}): Promise<string> {
    const headers = { accept: "text/x-diff" };
    return this.#http.text({ method: "GET", path: this.#path(id, "/diff"), headers, ...options });
  }

  /** What happened and what happens, without gap or repeat across cut connections, until the loop is left. */
  events(id: string, options: FollowOptions = {}): AsyncGenerator<Event | Delta, void> {
    return follow(this.#http, { method: "GET", path: this.#path(id, "/events") }, options);
  }

  /** Waits for a task's end, from this event on. Throws `TaskFailed` unless it succeeded. */
  async wait(id: string, options: FollowOptions & Pick<RunOptions, "onEvent"> = {}): Promise<Task> {
    for await (const event of this.events(id, options)) {
      options.onEvent?.(event);
      if (!ENDS.has(event.type)) continue;
      const task = await this.get(id, options);
      // An end of an attempt before the one that is going on now is none.
      if (task.status === "succeeded") return task;
      if (task.status === "failed" || task.status === "cancelled") throw new TaskFailed(task);
    }
    throw new Error("a stream of events ended by itself");
  }

  /** Submits a task and waits for its end. Throws `TaskFailed` unless it succeeded. */
  async run(task: TaskRequest, options: RunOptions = {}): Promise<Task> {
    const { id } = await this.create(task, options);
    return this.wait(id, { signal: options.signal, ...(options.onEvent && { onEvent: options.onEvent }) });
  }
}
