"""`bessemer schema`: the recipe's JSON Schema, for editors and for other programs."""

import argparse
import json
from typing import Any

HELP = "print the recipe's JSON Schema: every key, its type, default and what it affects"


def arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    from bessemer.recipe.schema import Recipe

    schema = Recipe.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def show(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1)
