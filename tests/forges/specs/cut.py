#!/usr/bin/env python3
"""Cuts an OpenAPI description down to what requests to the used operations must look like.

    cut.py FULL.json USED.json > CUT.json

USED.json maps each used path to its methods. References are put in place, texts and examples are dropped, and so are the
answers: they are what the stand-ins make up, and what is checked is what Orchestra sends.
"""
import json
import sys

DROPPED = {"description", "examples", "example", "externalDocs", "x-github", "summary", "tags", "title", "deprecated"}


def main():
    full = json.load(open(sys.argv[1], encoding="utf-8"))
    used = json.load(open(sys.argv[2], encoding="utf-8"))

    def target(reference):
        at = full
        for step in reference.removeprefix("#/").split("/"):
            at = at[step.replace("~1", "/").replace("~0", "~")]
        return at

    def plain(value, names=False):
        """Without references and texts. `names`: the keys are names of fields, which may be called `description`."""
        if isinstance(value, list):
            return [plain(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value and not names:
            return plain(target(value["$ref"]))
        return {
            key: plain(item, names=key == "properties" and not names)
            for key, item in value.items()
            if names or (key not in DROPPED and not key.startswith("x-"))
        }

    paths = {}
    for path, methods in used.items():
        paths[path] = {}
        for method in methods:
            operation = full["paths"][path][method]
            cut = {"operationId": operation.get("operationId")}
            parameters = full["paths"][path].get("parameters", []) + operation.get("parameters", [])
            cut["parameters"] = [plain(parameter) for parameter in parameters]
            if "requestBody" in operation:
                body = plain(operation["requestBody"])
                body["content"] = {kind: at for kind, at in body["content"].items() if kind == "application/json"}
                cut["requestBody"] = body
            cut["responses"] = {}
            paths[path][method] = cut
    info = {key: full["info"].get(key) for key in ("title", "version")}
    json.dump({"openapi": full["openapi"], "info": info, "paths": paths}, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
