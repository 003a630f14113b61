/** Reading server-sent events, however they are cut into pieces. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { frames, type Frame } from "../dist/events.js";

async function* pieces(bytes: Uint8Array, size: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

async function read(text: string, size: number): Promise<Frame[]> {
  const all: Frame[] = [];
  for await (const frame of frames(pieces(new TextEncoder().encode(text), size))) all.push(frame);
  return all;
}

test("the pieces do not matter", async () => {
  const text =
    ": connected\n\nid: 0\nevent: created\ndata: {\"a\":\"é€😀\"}\n\n: still here\n\nevent: delta\r\ndata: one\r\ndata:two\r\n\r\nid: 7\rdata: x\r\r";
  const whole: Frame[] = [
    { id: "0", event: "created", data: '{"a":"é€😀"}' },
    { id: undefined, event: "delta", data: "one\ntwo" },
    { id: "7", event: "message", data: "x" },
  ];
  for (let size = 1; size <= 40; size += 1) {
    const found = await read(`${text}id: 8\nevent: cut\ndata: off`, size);
    assert.deepEqual(found, whole, `in pieces of ${size}`);
  }
});
