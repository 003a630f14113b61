/** What a request does when it does not go at once: against a server that answers as told. */

import assert from "node:assert/strict";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { once } from "node:events";
import { test } from "node:test";
import { ConnectionFailed, Orchestra, OrchestraError } from "@orchestra/client";

type Answer = (request: IncomingMessage, response: ServerResponse) => void;

async function answering(answers: Answer[], use: (orchestra: Orchestra, seen: IncomingMessage[]) => Promise<void>) {
  const seen: IncomingMessage[] = [];
  const server = createServer((request, response) => {
    const answer = answers[Math.min(seen.length, answers.length - 1)];
    seen.push(request);
    answer?.(request, response);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no address");
  const baseUrl = `http://127.0.0.1:${address.port}/`;
  try {
    await use(new Orchestra({ baseUrl, apiKey: "orc_test", maxRetries: 3, timeoutMs: 5_000 }), seen);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

const problem = (status: number, code: string, headers: Record<string, string> = {}): Answer => (_, response) => {
  response.writeHead(status, { "content-type": "application/problem+json", ...headers });
  response.end(JSON.stringify({ type: `/docs/errors/${code}`, title: "t", status, code, detail: "d" }));
};
const fine: Answer = (_, response) => {
  response.writeHead(202, { "content-type": "application/json" }).end(JSON.stringify({ id: "task_1" }));
};
const broken: Answer = (request) => request.socket.destroy();

test("what passes is tried again, under the same name", async () => {
  const busy = problem(503, "overloaded", { "retry-after": "0" });
  await answering([broken, busy, problem(429, "overloaded", { "retry-after": "0" }), fine], async (orchestra, seen) => {
    assert.equal((await orchestra.tasks.cancel("task_1")).id, "task_1");
    assert.equal(seen.length, 4);
    const names = new Set(seen.map((request) => request.headers["idempotency-key"]));
    assert.equal(names.size, 1);
    assert.match(String([...names][0]), /^[0-9a-f-]{36}$/);
    assert.equal(seen[0]?.headers.authorization, "Bearer orc_test");
  });
});

test("a request with a name keeps it", async () => {
  await answering([fine], async (orchestra, seen) => {
    await orchestra.tasks.cancel("task_1", "why not", { idempotencyKey: "mine" });
    assert.equal(seen[0]?.headers["idempotency-key"], "mine");
  });
});

test("what is refused is not tried again", async () => {
  await answering([problem(422, "invalid-request")], async (orchestra, seen) => {
    await assert.rejects(orchestra.tasks.get("task_1"), (error: unknown) => {
      assert.ok(error instanceof OrchestraError);
      assert.deepEqual([error.status, error.code, error.detail], [422, "invalid-request", "d"]);
      return true;
    });
    assert.equal(seen.length, 1);
  });
});

test("trying again has an end", async () => {
  await answering([broken], async (orchestra, seen) => {
    await assert.rejects(orchestra.tasks.get("task_1"), ConnectionFailed);
    assert.equal(seen.length, 4);
  });
  await answering([problem(503, "lagging", { "retry-after": "0" })], async (orchestra, seen) => {
    await assert.rejects(orchestra.tasks.get("task_1"), { code: "lagging" });
    assert.equal(seen.length, 4);
  });
});

test("the server says when to come back", async () => {
  await answering([problem(503, "overloaded", { "retry-after": "1" }), fine], async (orchestra) => {
    const began = Date.now();
    await orchestra.tasks.get("task_1");
    assert.ok(Date.now() - began >= 1_000);
  });
});

test("a signal ends a call, and a wait between attempts", async () => {
  await answering([problem(503, "overloaded", { "retry-after": "60" })], async (orchestra, seen) => {
    const signal = AbortSignal.timeout(200);
    await assert.rejects(orchestra.tasks.get("task_1", { signal }), { name: "TimeoutError" });
    assert.equal(seen.length, 1);
  });
});

test("an answer of something else in between is an error with its status", async () => {
  const page: Answer = (_, response) => response.writeHead(418).end("<html>");
  await answering([page], async (orchestra) => {
    await assert.rejects(orchestra.tasks.get("task_1"), { status: 418, code: "unknown", detail: "<html>" });
  });
});
