// Takes the example out of the README, so that it is compiled and run as it stands there.
import { readFileSync, writeFileSync } from "node:fs";

const [, example] = /```ts\n([^]*?)```/.exec(readFileSync("README.md", "utf8")) ?? [];
if (!example) throw new Error("the README has no example");
writeFileSync("test/readme.ts", example);
