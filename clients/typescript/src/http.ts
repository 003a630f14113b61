/** One request: with a time limit, tried again where that is safe and may help, and no more often than is said here. */

import { ConnectionFailed, OrchestraError } from "./errors.js";
import type { components } from "./generated.js";

export interface Options {
  /** Where the server is, such as `https://orchestra.example.com`. */
  baseUrl: string;
  /** `orc_…`. */
  apiKey: string;
  /** How often a request is tried again after the first time; 4 when absent. */
  maxRetries?: number;
  /** The longest that one attempt may take, in milliseconds; 60,000 when absent. A stream may last for ever. */
  timeoutMs?: number;
  /** In place of the built-in `fetch`. */
  fetch?: typeof fetch;
}

export interface CallOptions {
  /** Ends the call; the promise is rejected with the signal's reason. */
  signal?: AbortSignal | undefined;
}

export interface NamedCallOptions extends CallOptions {
  /** The name under which the request is done once; a new one when absent. Keep it to repeat the request later. */
  idempotencyKey?: string | undefined;
}

export type Query = Readonly<Record<string, string | number | undefined | null>>;

export interface Call extends NamedCallOptions {
  method: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  path: string;
  query?: Query | undefined;
  body?: unknown;
  headers?: Readonly<Record<string, string>>;
}

/** The first wait, in milliseconds; it doubles. */
const FIRST_WAIT = 250;
/** The longest wait, in milliseconds, whatever the server asks for. */
const LONGEST_WAIT = 60_000;
/** Where doubling ends, in milliseconds. */
const LONGEST_BACKOFF = 8_000;
/** Statuses after which the same request may go well. */
const PASSING = new Set([429, 502, 503, 504]);

/** Waits, unless the signal says otherwise. */
export function sleep(milliseconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}

/** How long to wait before the next attempt: what the server says, else a random part of a growing span. */
export function wait(attempt: number, retryAfter: string | null, now = Date.now(), random = Math.random()): number {
  if (retryAfter) {
    const seconds = /^\d+$/.test(retryAfter.trim()) ? Number(retryAfter) * 1000 : Date.parse(retryAfter) - now;
    // A little later than asked for, and not all callers at once.
    if (Number.isFinite(seconds)) return Math.min(Math.max(seconds, 0) + random * FIRST_WAIT, LONGEST_WAIT);
  }
  return (0.5 + random / 2) * Math.min(FIRST_WAIT * 2 ** attempt, LONGEST_BACKOFF);
}

async function problem(response: Response): Promise<OrchestraError> {
  const text = await response.text().catch(() => "");
  try {
    const body: unknown = JSON.parse(text);
    if (typeof body === "object" && body !== null && "code" in body) {
      return new OrchestraError(response.status, body as Partial<components["schemas"]["Problem"]>);
    }
  } catch {
    // Something before the server has answered.
  }
  return new OrchestraError(response.status, { detail: text.slice(0, 200) });
}

/** Sends requests of one caller to one server. */
export class Http {
  readonly #base: string;
  readonly #key: string;
  readonly #retries: number;
  readonly #timeout: number;
  readonly #fetch: typeof fetch;

  constructor(options: Options) {
    this.#base = options.baseUrl.replace(/\/+$/, "");
    this.#key = options.apiKey;
    this.#retries = options.maxRetries ?? 4;
    this.#timeout = options.timeoutMs ?? 60_000;
    this.#fetch = options.fetch ?? globalThis.fetch.bind(globalThis);
  }

  /** How often something is tried again before it is given up. */
  get retries(): number {
    return this.#retries;
  }

  /** The answer's JSON. */
  async json<T>(call: Call): Promise<T> {
    return (await this.#send(call, (response) => response.json())) as T;
  }

  /** The answer's text. */
  text(call: Call): Promise<string> {
    return this.#send(call, (response) => response.text());
  }

  /** One attempt at an answer that goes on for ever. The time limit holds for its beginning alone. */
  async open(call: Call, signal: AbortSignal): Promise<Response> {
    const limit = new AbortController();
    const timer = setTimeout(() => limit.abort(new DOMException("no answer in time", "TimeoutError")), this.#timeout);
    try {
      const response = await this.#fetch(this.#url(call), this.#init(call, AbortSignal.any([signal, limit.signal])));
      if (!response.ok) throw await problem(response);
      return response;
    } finally {
      clearTimeout(timer);
    }
  }

  #url({ path, query }: Call): string {
    const parameters = new URLSearchParams();
    for (const [name, value] of Object.entries(query ?? {})) {
      if (value !== undefined && value !== null) parameters.append(name, String(value));
    }
    const text = parameters.toString();
    return this.#base + path + (text ? `?${text}` : "");
  }

  #init(call: Call, signal: AbortSignal): RequestInit {
    const headers: Record<string, string> = { accept: "application/json", ...call.headers };
    headers["authorization"] = `Bearer ${this.#key}`;
    if (call.idempotencyKey !== undefined) headers["idempotency-key"] = call.idempotencyKey;
    const init: RequestInit = { method: call.method, headers, signal, redirect: "error" };
    if (call.body !== undefined) {
      headers["content-type"] = "application/json";
      init.body = JSON.stringify(call.body);
    }
    return init;
  }

  async #send<T>(call: Call, read: (response: Response) => Promise<T>): Promise<T> {
    // Every POST has a name, so that an attempt whose answer was lost may be repeated.
    const named =
      call.method === "POST" ? { ...call, idempotencyKey: call.idempotencyKey ?? crypto.randomUUID() } : call;
    for (let attempt = 0; ; attempt += 1) {
      call.signal?.throwIfAborted();
      const limit = AbortSignal.timeout(this.#timeout);
      const signal = call.signal ? AbortSignal.any([call.signal, limit]) : limit;
      let failed: unknown;
      let retryAfter: string | null = null;
      try {
        const response = await this.#fetch(this.#url(named), this.#init(named, signal));
        if (response.ok) return await read(response);
        retryAfter = response.headers.get("retry-after");
        const refused = await problem(response);
        if (!PASSING.has(refused.status) && refused.code !== "request-in-progress") throw refused;
        failed = refused;
      } catch (error) {
        call.signal?.throwIfAborted();
        if (error instanceof OrchestraError) throw error;
        failed = error;
      }
      if (attempt >= this.#retries) {
        if (failed instanceof OrchestraError) throw failed;
        throw new ConnectionFailed(`${call.method} ${call.path}: no answer in ${attempt + 1} attempts`, { cause: failed });
      }
      await sleep(wait(attempt, retryAfter), call.signal);
    }
  }
}
