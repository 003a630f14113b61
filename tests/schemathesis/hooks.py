"""What the test tool is told of this interface that its document cannot say."""

import json
import os

import schemathesis

FOUND = json.loads(os.environ["ORCHESTRA_FOUND"])
# The keys that the run itself asks with: taken away or given a new text, every answer after that would be a 401.
KEPT = json.loads(os.environ["ORCHESTRA_KEPT"])


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """Half of the requests with an id in their path are about something that there is."""
    path = context.operation.path
    known = next((ids for prefix, ids in FOUND.items() if path.startswith(prefix)), None)
    if known and path_parameters:
        # The same request is about the same thing in every run.
        number = sum(map(ord, json.dumps(path_parameters, sort_keys=True, default=str)))
        if number % 2 == 0:
            name = next(iter(path_parameters))
            return {**path_parameters, name: known[number // 2 % len(known)]}
    return path_parameters


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.path_parameters and case.path_parameters.get("id") in KEPT:
        case.path_parameters["id"] = FOUND["/v1/keys/{id}"][0]


@schemathesis.hook
def filter_case(context, case):
    """HTTP drops the blanks around a header's value: one that is wrong for those alone arrives right."""
    return all(value == value.strip(" \t") for value in (case.headers or {}).values() if isinstance(value, str))
