#!/usr/bin/env python3
"""Makes models.py from the OpenAPI document, a TypedDict for every schema, and the blocking client from the other.

usage: generate.py [--check]
"""

import json
import keyword
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
DOCUMENT = HERE / "../../web/openapi.json"
PACKAGE = HERE / "src/orchestra_client"
MODELS = PACKAGE / "models.py"
ASYNCHRONOUS, BLOCKING = PACKAGE / "_asynchronous.py", PACKAGE / "_blocking.py"
# From the asynchronous client to the blocking one, in this order.
WORDS = [
    ("The client, asynchronous. The blocking one in _blocking.py is made from this file by generate.py.",
     "The client, blocking. Made by generate.py from _asynchronous.py: change that."),
    ("import asyncio\n", "import time\n"),
    ("asyncio.sleep", "time.sleep"),
    ("async def ", "def "), ("async for ", "for "), ("async with ", "with "), ("await ", ""),
    ("__aiter__", "__iter__"), ("__aenter__", "__enter__"), ("__aexit__", "__exit__"),
    ("aclose", "close"), ("aread", "read"), ("aiter_text", "iter_text"), ("aiter_bytes", "iter_bytes"),
    ("AsyncGenerator", "Generator"), ("AsyncIterator", "Iterator"), ("Generator[Event, None]", "Generator[Event, None, None]"),
    ("Generator[bytes, None]", "Generator[bytes, None, None]"),
    ("httpx.AsyncClient", "httpx.Client"), ("Async", ""),
]
PRIMITIVES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}


def reference(path):
    return path.rsplit("/", 1)[-1]


def type_of(schema):
    """The Python type of a schema, as source."""
    if "$ref" in schema:
        return f'"{reference(schema["$ref"])}"'
    if "enum" in schema:
        return f"Literal[{', '.join(repr(value) for value in schema['enum'])}]"
    for any_of in ("oneOf", "anyOf"):
        if any_of in schema:
            return union(type_of(option) for option in schema[any_of])
    kind = schema.get("type")
    if isinstance(kind, list):
        return union(type_of({**schema, "type": one}) for one in kind)
    if kind == "array":
        return f"list[{type_of(schema['items'])}]"
    if kind == "object" and not schema.get("properties"):
        more = schema.get("additionalProperties")
        return f"dict[str, {type_of(more) if isinstance(more, dict) and more else 'Any'}]"
    return PRIMITIVES.get(kind, "Any")


def union(types):
    return " | ".join(dict.fromkeys(types)).replace('" | None', '" | None')


def quoted(annotation):
    """The annotation as a forward reference, where it names another model."""
    return annotation.replace('"', "") if '"' in annotation else annotation


def words(text, indent):
    text = " ".join(text.split()).replace("\\", "\\\\").replace('"""', "'''")
    return f'{indent}"""{text}"""\n' if text else ""


def model(name, schema):
    properties = schema.get("properties")
    if not properties:
        annotation = quoted(type_of(schema))
        return f"{name}: TypeAlias = {annotation!r}\n" + words(schema.get("description", ""), "")
    required = set(schema.get("required", []))

    def field(key, value):
        annotation = quoted(type_of(value))
        return annotation if key in required else f"NotRequired[{annotation}]"

    if all(key.isidentifier() and not keyword.iskeyword(key) for key in properties):
        lines = [f"class {name}(TypedDict):\n", words(schema.get("description", ""), "    ")]
        for key, value in properties.items():
            lines.append(f"    {key}: {field(key, value)}\n")
            lines.append(words(value.get("description", ""), "    "))
        return "".join(lines)
    fields = "".join(f"        {key!r}: {field(key, value)!r},\n" for key, value in properties.items())
    return f'{name} = TypedDict(\n    "{name}",\n    {{\n{fields}    }},\n)\n' + words(schema.get("description", ""), "")


def models(document):
    parts = [
        '"""What the interface takes and answers. Made by generate.py from web/openapi.json: change that."""\n\n'
        "from __future__ import annotations\n\n"
        "from typing import Any, Literal, NotRequired, TypeAlias, TypedDict\n"
    ]
    schemas = document["components"]["schemas"]
    parts += [model(name, schema) for name, schema in sorted(schemas.items())]
    return "\n\n".join(parts)


def blocking(text):
    for word, instead in WORDS:
        text = text.replace(word, instead)
    return text


def main():
    made = {
        MODELS: models(json.loads(DOCUMENT.read_text())),
        BLOCKING: blocking(ASYNCHRONOUS.read_text()),
    }
    for file, text in made.items():
        if "--check" not in sys.argv[1:]:
            file.write_text(text)
        elif not file.exists() or file.read_text() != text:
            raise SystemExit(f"{file.name} is not what it is made from; run clients/python/generate.py")


if __name__ == "__main__":
    main()
