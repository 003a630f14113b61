// Verifies messages of webhooks with the library that the standard's authors publish: one JSON object a line on standard
// input, with the secret, the headers and the body. Says how many were good, and ends badly if one was not, or if one that
// was changed on the way was taken all the same.
import { createInterface } from "node:readline";
import { Webhook } from "standardwebhooks";

let good = 0;
for await (const line of createInterface({ input: process.stdin })) {
  const { secret, headers, body } = JSON.parse(line);
  const webhook = new Webhook(secret);
  webhook.verify(body, headers);
  for (const changed of [
    [body.replace("type", "typo"), headers],
    [body, { ...headers, "webhook-id": `${headers["webhook-id"]}0` }],
    [body, { ...headers, "webhook-timestamp": String(Number(headers["webhook-timestamp"]) + 1) }],
  ]) {
    let taken = true;
    try {
      webhook.verify(...changed);
    } catch {
      taken = false;
    }
    if (taken) throw new Error(`what was changed is taken: ${line}`);
  }
  good += 1;
}
console.log(good);
