/** A whole server for a test file, and a proxy that cuts connections. */

import { spawn, type ChildProcessWithoutNullStreams } from "node:child_process";
import { createServer, type Server, type Socket, connect } from "node:net";
import { once } from "node:events";
import { createInterface, type Interface } from "node:readline";
import { Orchestra, type Options } from "@orchestra/client";

const ROOT = new URL("../../../", import.meta.url).pathname;
const PROGRAM = process.env["ORCHESTRA_PROGRAM"] ?? `${ROOT}target/debug/orchestra`;

/** The payload of a task when a test does not care. */
export const PAYLOAD = {
  repo: "acme/api",
  task: "Say hello",
  model: "claude-sonnet-4-6",
  team: "platform",
  budget: { maxUsd: 2.0 },
} as const;

export class House {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #lines: AsyncIterator<string>;
  readonly url: string;
  readonly adminKey: string;

  private constructor(child: ChildProcessWithoutNullStreams, lines: AsyncIterator<string>, said: string) {
    this.#child = child;
    this.#lines = lines;
    ({ url: this.url, adminKey: this.adminKey } = JSON.parse(said) as { url: string; adminKey: string });
  }

  static async open(): Promise<House> {
    const child = spawn("python3", [`${ROOT}clients/server.py`, PROGRAM], { stdio: ["pipe", "pipe", "inherit"] });
    const reader: Interface = createInterface({ input: (child as unknown as ChildProcessWithoutNullStreams).stdout });
    const lines = reader[Symbol.asyncIterator]();
    const { value, done } = await lines.next();
    if (done) throw new Error("the server did not start");
    return new House(child as unknown as ChildProcessWithoutNullStreams, lines, value);
  }

  client(options: Partial<Options> = {}): Orchestra {
    return new Orchestra({ baseUrl: this.url, apiKey: this.adminKey, ...options });
  }

  /** `kill` or `start`. */
  async tell(command: string): Promise<void> {
    this.#child.stdin.write(`${command}\n`);
    await this.#lines.next();
  }

  async close(): Promise<void> {
    const ended = once(this.#child, "exit");
    this.#child.stdin.end();
    await ended;
  }
}

/** Passes connections on to a server; cuts each of the first ones after so many bytes of answers. */
export class Cutter {
  readonly #server: Server;
  readonly #open = new Set<Socket>();
  connections = 0;

  private constructor(server: Server) {
    this.#server = server;
  }

  static async before(url: string, bytes: readonly number[]): Promise<Cutter> {
    const { hostname, port } = new URL(url);
    const server = createServer();
    const cutter = new Cutter(server);
    server.on("connection", (near) => {
      const limit = bytes[cutter.connections] ?? Number.POSITIVE_INFINITY;
      cutter.connections += 1;
      const far = connect(Number(port), hostname);
      let seen = 0;
      for (const socket of [near, far]) {
        cutter.#open.add(socket);
        socket.on("error", () => undefined);
        socket.on("close", () => cutter.#open.delete(socket));
      }
      near.pipe(far);
      far.on("data", (chunk: Buffer) => {
        const left = limit - seen;
        seen += chunk.length;
        if (seen < limit) {
          near.write(chunk);
          return;
        }
        // In the middle of whatever this is.
        near.write(chunk.subarray(0, left), () => near.resetAndDestroy());
        far.destroy();
      });
      far.on("end", () => near.end());
      near.on("close", () => far.destroy());
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return cutter;
  }

  get url(): string {
    const address = this.#server.address();
    if (address === null || typeof address === "string") throw new Error("the proxy does not listen");
    return `http://127.0.0.1:${address.port}`;
  }

  async close(): Promise<void> {
    for (const socket of this.#open) socket.destroy();
    this.#server.close();
    await once(this.#server, "close");
  }
}
