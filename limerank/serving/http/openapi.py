"""The API's description, generated from the routes and the messages that they take."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from limerank.serving.http.settings import Access
from limerank.serving.messages import MOST_ID, Message

REF = "#/components/schemas/{model}"
PROBLEM = {
    "description": "The error, as application/problem+json (RFC 9457).",
    "content": {
        "application/problem+json": {
            "schema": {
                "type": "object",
                "properties": {
                    "type": {"type": "string"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "detail": {"type": "string"},
                },
                "required": ["type", "title", "status"],
            }
        }
    },
}


@dataclass(frozen=True)
class Described:
    """The description of one route.

    Attributes:
        method, path: as clients call it.
        access: the access that a key needs; None: no key is needed.
        summary: one sentence.
        body: the messages that it takes, any one of them.
        query: query parameter -> its schema.
        answer: an example of an answer.
    """

    method: str
    path: str
    access: Access | None
    summary: str
    body: tuple[type[Message], ...] = ()
    query: tuple[tuple[str, dict[str, Any]], ...] = ()
    answer: Any = None


def describe(version: str, routes: Iterable[Described], *, open_: bool) -> dict[str, Any]:
    """An OpenAPI 3.1 description."""
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {}
    for route in routes:
        path = route.path.replace(":path}", "}")
        answers: dict[str, Any] = {"200": {"description": "The answer."}}
        if route.answer is not None:
            answers["200"]["content"] = {"application/json": {"example": route.answer}}
        answers["default"] = PROBLEM
        operation: dict[str, Any] = {
            "summary": route.summary,
            "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{path}").strip("_"),
            "responses": answers,
        }
        parameters = [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 1, "maxLength": MOST_ID},
            }
            for name in re.findall(r"{(\w+)}", path)
        ]
        parameters += [
            {"name": name, "in": "query", "schema": schema} for name, schema in route.query
        ]
        if parameters:
            operation["parameters"] = parameters
        if route.body:
            for model in route.body:
                schema = model.model_json_schema(ref_template=REF)
                schemas |= schema.pop("$defs", {})
                schemas[model.__name__] = schema
            refs = [{"$ref": REF.format(model=model.__name__)} for model in route.body]
            content = refs[0] if len(refs) == 1 else {"anyOf": refs}
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": content}},
            }
        if route.access is not None and not open_:
            operation["security"] = [{"key": []}]
            operation["description"] = f"Needs a key with {route.access} access."
        paths.setdefault(path, {})[route.method.lower()] = operation
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "limerank", "version": version},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if not open_:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return found


def reference(description: dict[str, Any]) -> str:
    """The description as a page in Markdown."""
    lines = [
        "# HTTP API",
        "",
        "Generated from the server's description (`/openapi.json`) by `make api`.",
    ]
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            lines += ["", f"## {method.upper()} {path}", "", operation["summary"]]
            if "description" in operation:
                lines += ["", operation["description"]]
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for schema in body.get("schema", {}).get("anyOf", [body.get("schema", {})]):
                if "$ref" in schema:
                    name = schema["$ref"].rsplit("/", 1)[1]
                    lines += ["", f"Body: [{name}](#{name.lower()})."]
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "query":
                    lines += ["", f"Query: `{parameter['name']}`, {_type(parameter['schema'])}."]
            example = operation["responses"]["200"].get("content", {}).get("application/json")
            if example:
                lines += ["", f"Answer, for example: `{json.dumps(example['example'])}`."]
    lines += ["", "## Bodies"]
    for name, schema in description["components"]["schemas"].items():
        lines += ["", f"### {name}", "", schema.get("description", ""), ""]
        lines += ["| field | type | meaning |", "| --- | --- | --- |"]
        for field, of in schema.get("properties", {}).items():
            needed = "Required. " if field in schema.get("required", []) else ""
            lines.append(
                f"| `{field}` | {_type(of)} | {needed}{of.get('description', '')}".rstrip() + " |"
            )
    return "\n".join(lines) + "\n"


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        parts = dict.fromkeys(_type(part) for part in schema["anyOf"])
        return " or ".join(part for part in parts if part != "null")
    kind: str = schema.get("type", "anything")
    if kind == "array":
        most = f", at most {schema['maxItems']:,}" if "maxItems" in schema else ""
        return f"list of {_type(schema.get('items', {}))}{most}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"object of {_type(values)}" if isinstance(values, dict) else "object"
    limits = [
        f"{word} {schema[key]:,}"
        for key, word in (("minimum", "from"), ("maximum", "to"))
        if key in schema and abs(schema[key]) < 1 << 40
    ]
    return " ".join([kind, *limits])
