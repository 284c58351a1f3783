"""The servers that builds read from."""

from making_postgres import postgres  # noqa: F401 (a fixture)
