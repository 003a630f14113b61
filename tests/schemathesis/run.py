#!/usr/bin/env python3
"""Holds a running server against its own OpenAPI document: requests that fit it, requests that do not, and what comes back.

Starts a whole server, gives it tasks and a campaign so that there is something to be found, and runs schemathesis with
an operator's key and with a team's. The seed is fixed, so that a run can be had again.

usage: run.py PROGRAM [EXAMPLES]
"""

import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Requests for each operation in each phase, unless told otherwise: about a minute and a half on two cores.
EXAMPLES = 12
SEED = 20261123
PATIENCE = 120
PAYLOAD = {"repo": "acme/api", "task": "Say hello", "model": "claude-sonnet-4-6", "team": "platform"}


class House:
    def __init__(self, program):
        self.child = subprocess.Popen(
            [sys.executable, ROOT / "clients/server.py", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        line = self.child.stdout.readline()
        if not line:
            raise SystemExit("run.py: the server did not start")
        said = json.loads(line)
        self.url, self.key = said["url"], said["adminKey"]

    def ask(self, method, path, body=None):
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"authorization": f"Bearer {self.key}", "content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def ended(self, task):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self.ask("GET", f"/v1/tasks/{task}")["status"] in ("succeeded", "failed", "cancelled"):
                return task
            time.sleep(0.1)
        raise SystemExit(f"run.py: {task} does not end")

    def close(self):
        self.child.stdin.close()
        self.child.wait()


def things(house):
    """Something of each kind, so that paths lead somewhere."""
    tasks = [house.ask("POST", "/v1/tasks", PAYLOAD | {"task": task})["id"] for task in ("Say hello", "Change nothing")]
    campaign = {key: value for key, value in PAYLOAD.items() if key != "repo"} | {"name": "C", "repos": ["acme/api"]}
    campaigns = [house.ask("POST", "/v1/campaigns", campaign)["id"]]
    webhook = {"url": "https://example.com/hook", "events": ["task.succeeded"], "team": "platform"}
    webhooks = [house.ask("POST", "/v1/webhooks", webhook)["id"]]
    spare = house.ask("POST", "/v1/keys", {"name": "spare", "team": "platform", "scopes": ["tasks:read"]})
    for task in tasks:
        house.ended(task)
    return {
        "/v1/tasks/{id}": tasks,
        "/v1/campaigns/{id}": campaigns,
        "/v1/webhooks/{id}": webhooks,
        "/v1/keys/{id}": [spare["id"]],
        "/v1/budgets/{scope}": ["team:platform", "project:platform/infra"],
        "/docs/errors/{code}": ["not-found", "sandbox-timeout"],
    }


def run(house, key, kept, found, examples):
    environment = os.environ | {
        "SCHEMATHESIS_HOOKS": "hooks",
        "PYTHONPATH": str(HERE),
        "ORCHESTRA_FOUND": json.dumps(found),
        "ORCHESTRA_KEY": key,
        "ORCHESTRA_KEPT": json.dumps(kept),
    }
    command = [
        pathlib.Path(sys.executable).parent / "schemathesis", "--config-file", HERE / "schemathesis.toml",
        "run", f"{house.url}/openapi.json", "--url", house.url, "--seed", str(SEED), "--max-examples", str(examples),
    ]
    return subprocess.run(command, env=environment, cwd=ROOT / "target", stdin=subprocess.DEVNULL).returncode


def main():
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    examples = int(sys.argv[2]) if len(sys.argv) == 3 else EXAMPLES
    house = House(os.path.abspath(sys.argv[1]))
    try:
        found = things(house)
        # Everything that a team can be given.
        scopes = ["tasks:*", "campaigns:*", "budgets:*", "usage:read", "audit:read", "keys:*", "webhooks:*",
                  "billing:*", "content:erase", "exports:*"]
        of_team = house.ask("POST", "/v1/keys", {"name": "team", "team": "platform", "scopes": scopes})
        keys = {"an operator's key": house.key, "a team's key": of_team["key"]}
        kept = [f"key_{key.split('_')[2]}" for key in keys.values()]
        failed = []
        for whose, key in keys.items():
            print(f"== with {whose}", flush=True)
            if run(house, key, kept, found, examples) != 0:
                failed.append(whose)
    finally:
        house.close()
    if failed:
        raise SystemExit(f"run.py: the interface is not as described, with {' and '.join(failed)}")


if __name__ == "__main__":
    main()
