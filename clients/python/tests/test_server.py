"""The client against a running server."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import Cutter, House
from orchestra_client import AsyncOrchestra, Orchestra, OrchestraError, TaskFailed
from orchestra_client.models import Event, KeyRequest, TaskRequest

PAYLOAD: TaskRequest = {
    "repo": "acme/api",
    "task": "Say hello",
    "model": "claude-sonnet-4-6",
    "team": "platform",
    "budget": {"maxUsd": 2.00},
}


def client(house: House, url: str | None = None, max_retries: int = 4) -> Orchestra:
    return Orchestra(url or house.url, house.admin_key, max_retries=max_retries)


def about(task: str) -> TaskRequest:
    return {**PAYLOAD, "task": task}


def test_a_task_is_run_to_its_end(house: House) -> None:
    with client(house) as orchestra:
        kinds: list[str] = []
        task = orchestra.tasks.run(PAYLOAD, on_event=lambda event: kinds.append(event["type"]))
        assert task["status"] == "succeeded" and task["team"] == "platform"
        assert task["usage"]["costUsd"] > 0
        assert kinds[0] == "created" and "delta" in kinds and kinds[-1] == "succeeded"
        assert "\n+hello\n" in orchestra.tasks.diff(task["id"])
        assert orchestra.tasks.get(task["id"]) == task


def test_a_failure_has_a_type_and_a_code(house: House) -> None:
    with pytest.raises(TaskFailed) as failed:
        client(house).tasks.run(about("Change nothing"))
    assert failed.value.code == "nothing-to-push"
    assert failed.value.task["status"] == "failed"
    assert failed.value.failure and failed.value.failure["hint"]


def test_a_refusal_has_a_type_a_code_and_the_fields(house: House) -> None:
    with pytest.raises(OrchestraError) as refused:
        client(house).tasks.create({**PAYLOAD, "team": "no team!"})
    assert refused.value.code == "invalid-request"
    assert [field["pointer"] for field in refused.value.errors] == ["/team"]
    with pytest.raises(OrchestraError) as refused:
        Orchestra(house.url, "orc_test_none_none").tasks.list().page()
    assert (refused.value.status, refused.value.code) == (401, "unauthenticated")


def test_a_stream_that_is_cut_goes_on_without_gap_or_repeat(house: House) -> None:
    cutter = Cutter(house.url, [700, 3_000, 10, 1_500, 4_000, 900])
    task = client(house).tasks.create(about("Take some steps"))
    through = client(house, cutter.url)
    seen: list[Event] = []
    for event in through.tasks.events(task["id"]):
        if event["type"] != "delta":
            seen.append(event)
        if event["type"] == "succeeded":
            break
    assert cutter.connections > 6
    assert len(seen) > 20
    assert [event["revision"] for event in seen] == list(range(len(seen)))
    rest = []
    for event in through.tasks.events(task["id"], after=10):
        if event["type"] != "delta":
            rest.append(event["revision"])
        if event["type"] == "succeeded":
            break
    assert rest == list(range(11, len(seen)))
    cutter.close()


def test_an_asynchronous_stream_goes_on_after_the_server_was_killed_and_came_back(house: House) -> None:
    async def follow() -> None:
        async with AsyncOrchestra(house.url, house.admin_key, max_retries=20) as orchestra:
            task = await orchestra.tasks.create(about("Take some steps"))
            seen: list[Event] = []
            crash: asyncio.Task[None] | None = None

            async def kill_and_start() -> None:
                for command in ("kill", "start"):
                    await asyncio.to_thread(house.tell, command)

            async for event in orchestra.tasks.events(task["id"]):
                if event["type"] == "delta":
                    continue
                seen.append(event)
                if event["type"] == "tool-finished" and crash is None:
                    crash = asyncio.create_task(kill_and_start())
                if event["type"] in ("succeeded", "failed"):
                    break
            assert crash is not None
            await crash
            assert seen[-1]["type"] == "succeeded"
            assert [event["revision"] for event in seen] == list(range(len(seen)))

    asyncio.run(follow())


def test_a_request_under_the_same_name_is_done_once(house: House) -> None:
    orchestra, name = client(house), str(uuid.uuid4())
    with ThreadPoolExecutor(8) as pool:
        tasks = pool.map(lambda _: orchestra.tasks.create(PAYLOAD, idempotency_key=name)["id"], range(8))
        assert len(set(tasks)) == 1
    with pytest.raises(OrchestraError, match="idempotency-key-reused"):
        orchestra.tasks.create(about("Other"), idempotency_key=name)


def test_a_task_is_spoken_to_cancelled_and_retried(house: House) -> None:
    orchestra = client(house)
    task = orchestra.tasks.create(about("Take long"))
    kinds = set()
    for event in orchestra.tasks.events(task["id"]):
        kinds.add(event["type"])
        if event["type"] == "tool-called":
            orchestra.tasks.message(task["id"], "Hurry up")
        if event["type"] == "steered":
            orchestra.tasks.cancel(task["id"], "not needed")
        if event["type"] == "cancelled":
            break
    assert {"steered", "cancel-requested"} <= kinds
    with pytest.raises(TaskFailed, match="cancelled"):
        orchestra.tasks.wait(task["id"])
    # It may have been taken up before the answer was written.
    assert orchestra.tasks.retry(task["id"])["status"] in {"queued", "preparing", "running"}
    orchestra.tasks.cancel(task["id"])


def test_lists_come_page_by_page_without_gap_or_repeat(house: House) -> None:
    orchestra = client(house)
    every = [task["id"] for task in orchestra.tasks.list(team="platform", limit=2)]
    assert len(every) >= 5 and len(set(every)) == len(every)
    first, cursor = orchestra.tasks.list(limit=2).page()
    assert [task["id"] for task in first] == every[:2] and cursor


def test_campaigns_budgets_usage_and_the_log(house: House) -> None:
    orchestra = client(house)
    budget = orchestra.budgets.set("project:platform/infra", {"perDay": {"maxUsd": 5}})
    assert budget["perDay"].get("maxUsd") == 5
    assert [one["scope"] for one in orchestra.budgets.list("platform")] == ["team:platform", "project:platform/infra"]
    usage = orchestra.usage.report(["team", "model"], team="platform")
    assert usage["groups"][0].get("team") == "platform" and usage["total"]["costUsd"] > 0
    assert orchestra.usage.csv(["team"]).startswith("team,tasks,")
    campaign = orchestra.campaigns.create(
        {"name": "Hello", "repos": ["acme/api"], "task": "Take long", "model": PAYLOAD["model"], "team": "platform"}
    )
    assert orchestra.campaigns.get(campaign["id"])["name"] == "Hello"
    assert orchestra.campaigns.cancel(campaign["id"])["id"] == campaign["id"]
    event = next(orchestra.events(types=["budget-set"]))
    assert event["stream"] == "ledger-platform"


def test_keys_are_issued_used_rotated_and_revoked(house: House) -> None:
    orchestra, name = client(house), str(uuid.uuid4())
    wanted: KeyRequest = {"name": "ci", "team": "platform", "scopes": ["tasks:read"]}
    issued = orchestra.keys.create(wanted, idempotency_key=name)
    assert issued["key"] and issued["key"].startswith("orc_")
    again = orchestra.keys.create(wanted, idempotency_key=name)
    assert (again["id"], again["key"]) == (issued["id"], None)
    holder = Orchestra(house.url, issued["key"])
    assert holder.tasks.list().page()[0]
    with pytest.raises(OrchestraError, match="forbidden"):
        holder.tasks.create(PAYLOAD)
    assert orchestra.keys.rotate(issued["id"], 0)["key"] != issued["key"]
    with pytest.raises(OrchestraError, match="unauthenticated"):
        holder.tasks.list().page()
    orchestra.keys.revoke(issued["id"])
    assert orchestra.keys.get(issued["id"])["status"] == "revoked"


def test_the_audit_says_who_did_what(house: House) -> None:
    orchestra = client(house)
    kinds = {entry["kind"] for entry in orchestra.audit.list(limit=50)}
    assert {"task", "key-issued"} <= kinds
    assert len(orchestra.audit.csv(limit=5).splitlines()) > 1


def test_the_record_is_signed_and_taken_away(house: House) -> None:
    orchestra = client(house)
    signed = orchestra.audit.checkpoint()
    assert orchestra.audit.checkpoints(limit=1).page()[0][0]["position"] == signed["position"]
    assert orchestra.audit.key()["publicKey"]
    exported = b"".join(orchestra.audit.export(content=False))
    assert len([json.loads(line) for line in exported.splitlines()]) > signed["position"]
    with pytest.raises(OrchestraError, match="unauthenticated"):
        next(Orchestra(house.url, "orc_test_none_none").audit.export())

    async def export() -> int:
        async with AsyncOrchestra(house.url, house.admin_key) as asked:
            return sum([len(piece) async for piece in asked.audit.export()])

    assert asyncio.run(export()) > 0


def test_plans_are_set_bills_are_read_and_no_month_is_closed_before_its_time(house: House) -> None:
    orchestra = client(house)
    month = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m")
    plans = orchestra.billing.set_plan("platform", {"effectiveFrom": f"{month}-01", "markUpBasisPoints": 1_000})
    assert orchestra.billing.plans("platform") == plans
    assert orchestra.billing.periods("platform")[0]["period"] == month
    bill = orchestra.billing.bill(month, team="platform")
    assert bill["totals"]["billableUsd"] > 0 and len(bill["lines"]) == bill["totals"]["lines"]
    assert orchestra.billing.bill(month, team="platform", limit=1)["lines"] == bill["lines"][:1]
    csv = orchestra.billing.csv(month, team="platform")
    assert len(csv.splitlines()) == bill["totals"]["lines"] + 1
    with pytest.raises(OrchestraError, match="conflict"):
        orchestra.billing.close(month, team="platform")
    hook = orchestra.webhooks.create({"url": "https://example.com/hook", "events": ["task.*"], "team": "platform"})
    with pytest.raises(OrchestraError, match="invalid-request"):
        orchestra.billing.push(month, hook["id"], team="platform")
    orchestra.webhooks.remove(hook["id"])


def test_words_are_erased(house: House) -> None:
    orchestra = client(house)
    task = orchestra.tasks.run(PAYLOAD)
    orchestra.tasks.erase_content(task["id"])
    assert orchestra.tasks.get(task["id"])["task"] == "[erased]"
    with pytest.raises(OrchestraError, match="not-found"):
        orchestra.campaigns.erase_content("campaign_none")


def test_a_webhook_is_made_changed_and_removed(house: House) -> None:
    orchestra = client(house)
    made = orchestra.webhooks.create({"url": "https://example.com/hook", "events": ["task.succeeded"], "team": "platform"})
    assert made["secret"] and made["secret"].startswith("whsec_")
    assert orchestra.webhooks.change(made["id"], {"description": "Ours"}).get("description") == "Ours"
    assert [webhook["id"] for webhook in orchestra.webhooks.list()] == [made["id"]]
    orchestra.webhooks.remove(made["id"])
    with pytest.raises(OrchestraError, match="not-found"):
        orchestra.webhooks.get(made["id"])


def test_the_example_of_the_readme_runs(house: House) -> None:
    readme = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
    example = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert example
    source = str(pathlib.Path(__file__).parents[1] / "src")
    env = {**os.environ, "PYTHONPATH": source, "ORCHESTRA_URL": house.url, "ORCHESTRA_API_KEY": house.admin_key}
    done = subprocess.run([sys.executable, "-c", example[1]], env=env, capture_output=True, text=True, check=False)
    assert re.match(r"succeeded orchestra/\S+ 0\.\d+\n", done.stdout), done.stderr
