"""``buildrunner schema``: the JSON Schema of configs, for editors."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from buildrunner.errors import EXIT_SUCCESS

_EPILOG: Final = """\
Most editors take a schema for YAML files. With the YAML language server, write the output to a
file and name it in the first line of a config:

  buildrunner schema > cloudbuild.schema.json
  # yaml-language-server: $schema=cloudbuild.schema.json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--trigger", action="store_true", help="print the schema of triggers instead of builds"
    )


def run(args: argparse.Namespace) -> int:
    """Print the schema to stdout."""
    import json

    from buildrunner.spec.schema import build_schema, trigger_schema

    schema = trigger_schema() if args.trigger else build_schema()
    sys.stdout.write(json.dumps(schema, indent=2, ensure_ascii=False) + "\n")
    return EXIT_SUCCESS
