/**
 * Event streams that survive their connections: after a cut the next one begins after the last event that was seen, so
 * that there is no gap, and what has been seen is not given again.
 */

import { ConnectionFailed, OrchestraError } from "./errors.js";
import type { components } from "./generated.js";
import { type Call, type CallOptions, type Http, sleep, wait } from "./http.js";

/** An event as stored. */
export type Event = components["schemas"]["Event"];
/** A piece of text while the model speaks. Not stored: what the pieces add up to arrives as an event. */
export interface Delta {
  type: "delta";
  text: string;
}

/** A frame of a stream of server-sent events. */
export interface Frame {
  id: string | undefined;
  event: string;
  data: string;
}

/** Longest silence before a connection counts as dead, in milliseconds: the server speaks every 15 seconds. */
const SILENCE = 45_000;
/** Most characters of one frame: an event has at most a mebibyte of data. */
const LONGEST_FRAME = 8 * 1024 * 1024;

/** The frames in a stream of bytes. A frame that was cut off in the middle is none. */
export async function* frames(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Frame, void> {
  const decoder = new TextDecoder();
  let buffer = "";
  let frame: { id: string | undefined; event: string; data: string[] } = { id: undefined, event: "message", data: [] };
  for await (const chunk of chunks) {
    buffer += decoder.decode(chunk, { stream: true });
    if (buffer.length > LONGEST_FRAME) throw new ConnectionFailed("a line of the stream has no end");
    // A carriage return at the end may be half of a line break.
    const lines = buffer.split(/\r\n|\n|\r(?!$)/);
    buffer = lines.pop() ?? "";
    for (const line of lines) {
      if (line === "") {
        if (frame.data.length > 0) yield { id: frame.id, event: frame.event, data: frame.data.join("\n") };
        frame = { id: undefined, event: "message", data: [] };
        continue;
      }
      const colon = line.indexOf(":");
      if (colon === 0) continue;
      const name = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (name === "data") frame.data.push(value);
      else if (name === "event") frame.event = value;
      else if (name === "id") frame.id = value;
    }
  }
}

async function* chunks(response: Response, touch: () => void): AsyncGenerator<Uint8Array, void> {
  if (!response.body) return;
  const reader = response.body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      touch();
      yield value;
    }
  } finally {
    // Whoever stops reading lets go of the connection.
    await reader.cancel().catch(() => undefined);
  }
}

export interface FollowOptions extends CallOptions {
  /** Goes on after this id: a task's revision, or a position of the log. From the beginning when absent. */
  after?: number | undefined;
}

/** Whether trying the same again may help. */
function passes(error: unknown): boolean {
  return !(error instanceof OrchestraError) || error.status === 429 || error.status >= 500;
}

/** Everything that a stream says, across connections, until the caller stops or the server refuses. */
export async function* follow(http: Http, call: Call, options: FollowOptions): AsyncGenerator<Event | Delta, void> {
  let last = options.after;
  let failures = 0;
  for (;;) {
    options.signal?.throwIfAborted();
    const connection = new AbortController();
    const stop = () => connection.abort(options.signal?.reason);
    options.signal?.addEventListener("abort", stop, { once: true });
    let silence: ReturnType<typeof setTimeout> | undefined;
    const touch = () => {
      clearTimeout(silence);
      silence = setTimeout(() => connection.abort(new ConnectionFailed("the stream fell silent")), SILENCE);
    };
    let failed: unknown = new ConnectionFailed("the connection ended");
    try {
      const headers: Record<string, string> = { accept: "text/event-stream" };
      if (last !== undefined) headers["last-event-id"] = String(last);
      const response = await http.open({ ...call, headers }, connection.signal);
      touch();
      for await (const frame of frames(chunks(response, touch))) {
        const data: unknown = JSON.parse(frame.data);
        if (frame.id === undefined) {
          if (frame.event === "delta") yield { type: "delta", text: (data as { text: string }).text };
          continue;
        }
        const id = Number(frame.id);
        if (last !== undefined && id <= last) continue;
        failures = 0;
        last = id;
        yield data as Event;
      }
    } catch (error) {
      failed = error;
    } finally {
      clearTimeout(silence);
      options.signal?.removeEventListener("abort", stop);
      connection.abort();
    }
    options.signal?.throwIfAborted();
    if (!passes(failed)) throw failed;
    failures += 1;
    if (failures > http.retries + 1) {
      throw new ConnectionFailed(`${call.path}: the stream was lost ${failures} times in a row`, { cause: failed });
    }
    await sleep(wait(failures - 1, null), options.signal);
  }
}
