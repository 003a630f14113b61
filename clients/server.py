#!/usr/bin/env python3
"""A whole server for the tests of the clients: repositories, a scripted model and `orchestra serve`.

Prints one line of JSON once it serves: {"url", "adminKey"}. Then takes one command per line: `kill` ends the server as
a crash would, `start` starts it again on the same port and data; each answers {"done": ...}. When its input ends it
stops the tasks that still go on, ends everything it started and removes its folder.

usage: server.py PROGRAM
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

# Two cores may be shared with a build.
PATIENCE = 120
IMAGES = pathlib.Path(
    os.environ.get("ORCHESTRA_IMAGES")
    or pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "orchestra" / "images"
)


def bash(command):
    return {"text": "I run a command.", "tools": [{"name": "bash", "input": {"command": command}}]}


DONE = {"text": "It is done."}
SCRIPT = [
    {"match": "Change nothing", "turns": [{"text": "There is nothing to do."}]},
    {"match": "Take long", "turns": [bash("sleep 300"), DONE]},
    {
        "match": "Take some steps",
        "turns": [bash(f"echo {step} > step-{step}.txt; sleep 0.3") for step in range(8)] + [DONE],
    },
    {"match": "", "turns": [bash("echo hello > hello.txt"), DONE]},
]


def environment():
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("ORCHESTRA_") and not name.endswith("_API_KEY")
    }
    # Nobody's own git configuration.
    return clean | {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}


def git(*arguments, cwd):
    who = ["-c", "user.name=Tests", "-c", "user.email=tests@example.com", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *who, *arguments], cwd=cwd, check=True, env=environment(), stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)


def repository(folder, name):
    work = folder / "work"
    work.mkdir(parents=True)
    (work / "README.md").write_text("# A repository\n")
    git("init", ".", cwd=work)
    git("add", ".", cwd=work)
    git("commit", "-m", "Begin", cwd=work)
    bare = folder / "forge" / f"{name}.git"
    bare.parent.mkdir(parents=True)
    git("clone", "--bare", str(work), str(bare), cwd=folder)
    return folder / "forge"


def first_line(process, wanted):
    """The first line on its output for which `wanted` has an answer."""
    for line in process.stdout:
        found = wanted(line.strip())
        if found:
            return found
    raise SystemExit("server.py: the program ended before it served; its log is on stderr")


class House:
    def __init__(self, program):
        self.program = program
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="orchestra-clients-"))
        self.log = open(self.folder / "server.log", "ab")
        (self.folder / "script.json").write_text(json.dumps(SCRIPT))
        self.model = subprocess.Popen(
            [program, "scripted-model", "--script", self.folder / "script.json"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment(),
        )
        model = first_line(self.model, lambda line: line.startswith("http://") and line)
        forge = repository(self.folder, "acme/api")
        (self.folder / "orchestra.toml").write_text(
            f'default_forge = "local"\n'
            f'[models.anthropic]\nbase_url = "{model}"\nkey_required = false\napi_key_env = "NO_OPERATOR_KEY"\n'
            f'[forges.local]\nkind = "local"\nroot = "{forge}"\n'
            f'[sandbox]\nimages_dir = "{IMAGES}"\nmemory = "256MiB"\ncpus = 1.0\npids = 128\ndisk = "256MiB"\n'
            f'timeout = "10m"\n[retry]\nfirst_wait = "20ms"\n'
        )
        self.listen, self.key, self.server = "127.0.0.1:0", None, None
        self.start()

    def start(self):
        self.server = subprocess.Popen(
            [self.program, "serve", "--listen", self.listen, "--data", self.folder / "data",
             "--config", self.folder / "orchestra.toml"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment(),
        )

        def serving(line):
            if line.startswith("orc_"):
                self.key = line
            prefix = "Orchestra listens on "
            return line.startswith(prefix) and line[len(prefix):]

        self.url = first_line(self.server, serving)
        self.listen = self.url.removeprefix("http://")

    def kill(self):
        self.server.kill()
        self.server.wait()

    def ask(self, method, path):
        request = urllib.request.Request(self.url + path, method=method, headers={"authorization": f"Bearer {self.key}"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def going_on(self):
        tasks = self.ask("GET", "/v1/tasks?limit=200")["data"]
        return [task["id"] for task in tasks if task["status"] not in ("succeeded", "failed", "cancelled")]

    def end(self):
        try:
            if self.server.poll() is None:
                for task in self.going_on():
                    self.ask("POST", f"/v1/tasks/{task}/cancel")
                deadline = time.monotonic() + PATIENCE
                while self.going_on() and time.monotonic() < deadline:
                    time.sleep(0.05)
                self.server.send_signal(signal.SIGTERM)
                self.server.wait(PATIENCE)
        except (OSError, urllib.error.URLError, subprocess.TimeoutExpired) as error:
            print(f"server.py: {error}", file=sys.stderr)
            self.server.kill()
        self.model.kill()
        self.log.close()
        if os.environ.get("ORCHESTRA_KEEP"):
            print(f"server.py: kept {self.folder}", file=sys.stderr)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


def say(answer):
    print(json.dumps(answer), flush=True)


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    # Whoever ends this program by a signal wants the same order as at the end of its input.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    house = House(os.path.abspath(sys.argv[1]))
    try:
        say({"url": house.url, "adminKey": house.key})
        for line in sys.stdin:
            command = line.strip()
            if command == "kill":
                house.kill()
            elif command == "start":
                house.start()
            else:
                raise SystemExit(f"server.py: no such command: {command}")
            say({"done": command})
    finally:
        house.end()


if __name__ == "__main__":
    main()
