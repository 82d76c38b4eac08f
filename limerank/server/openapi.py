"""The API's description, made from the routes and the messages that they take."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from limerank.server.settings import Access

REF = "#/components/schemas/{model}"
PROBLEM = {
    "description": "What went wrong, as application/problem+json (RFC 9457).",
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
    """What the description says of one route.

    Attributes:
        method, path: as clients call it.
        access: what a key has to allow; None: no key is needed.
        summary: one sentence.
        body: the messages that it takes, any of them.
        query: parameter -> its schema.
        answer: example of an answer.
    """

    method: str
    path: str
    access: Access | None
    summary: str
    body: tuple[type[BaseModel], ...] = ()
    query: tuple[tuple[str, dict[str, Any]], ...] = ()
    answer: Any = None


def describe(version: str, routes: Iterable[Described], *, open_: bool) -> dict[str, Any]:
    """An OpenAPI 3.1 description."""
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {}
    for route in routes:
        path = route.path.replace(":path}", "}")
        answers: dict[str, Any] = {"200": {"description": "Done."}}
        if route.answer is not None:
            answers["200"]["content"] = {"application/json": {"example": route.answer}}
        answers["default"] = PROBLEM
        operation: dict[str, Any] = {
            "summary": route.summary,
            "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{path}").strip("_"),
            "responses": answers,
        }
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
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
            operation["description"] = f"Needs a key that may {route.access}."
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
