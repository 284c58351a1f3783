"""Where a database is, and what of that may be shown: never its password.

The address of a server comes from the environment variable that the recipe names, so no recipe, manifest
or report holds it. Plain `postgresql://`, `mysql://` and `mariadb://` get the drivers that are installed
with Bessemer. A password may stand in the address, in its query (`?sslpassword=…`), and in what a driver
says; `Address.hidden` takes it out of any text, as it is and percent-encoded.
"""

import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from bessemer.errors import DataError

_DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mysql+pymysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",
    "mariadb+pymysql": "mysql+pymysql",
}
_WANTED = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or the same with mysql:// or mariadb://"
_SECRET = re.compile(r"pass(?!file)|pwd|secret|token", re.IGNORECASE)  # passfile is the name of a file
_ENCODE = "percent-encode user and password: @ as %40, / as %2F, : as %3A, ? as %3F, % as %25"
_SHOWN_OPTIONS = {"host", "port", "dbname", "service", "options", "unix_socket"}  # they choose what is read
_HIDDEN = "***"


@dataclass(frozen=True)
class Address:
    """Of a server, or of a SQLite file."""

    kind: str  # "postgresql", "mysql" or "sqlite"
    shown: str  # without password: what errors, manifests and reports may hold
    variable: str | None  # that holds it
    url: URL = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False, default=())

    def hidden(self, text: str) -> str:
        """The text without any secret of this address."""
        for secret in self.secrets:
            text = text.replace(secret, _HIDDEN)
        return text

    @property
    def public(self) -> str:
        """`shown` without the user: alike for all who read the same data."""
        return _public(self.url, with_user=False)


def file_address(path: Path) -> Address:
    return Address("sqlite", str(path), None, URL.create("sqlite", database=str(path)))


def server_address(what: str, variable: str) -> Address:
    """From the environment variable. `what` names the source in errors, which never show its value."""
    value = os.environ.get(variable, "").strip()
    if not value:
        raise DataError(
            f"{what}: the environment variable {variable} is not set",
            found="no value" if variable not in os.environ else "an empty value",
            wanted=f"the address of the database, such as {_WANTED}",
            fix=f"export {variable}=postgresql://… in the shell that starts this command",
        )
    url = _parsed(what, variable, value)
    typed = re.match(r"[^:/]*:([^@]*)@", value.partition("://")[2])  # encoded or not
    secrets = [typed[1] if typed else "", url.password or "", *(text for _, text in _secret_items(url))]
    return Address(url.get_backend_name(), _public(url, with_user=True), variable, url, _spellings(secrets))


def _parsed(what: str, variable: str, value: str) -> URL:
    scheme, separator, rest = value.partition("://")
    driver = _DRIVERS.get(scheme.lower())
    if not separator or (driver is None and not re.fullmatch(r"[\w+]+", scheme)):
        raise _unusable(what, variable, "no address with ://", "write it as in `wanted`")
    if driver is None:
        fix = "write `postgresql://` or `mysql://` with nothing after a +"
        if scheme.startswith("sqlite"):
            fix = "name a SQLite file as `path` instead of `url_env`"
        raise _unusable(what, variable, f"an address that begins with {scheme}://", fix)
    if rest.count("@") > 1:  # what follows the first would be taken for the host, and shown
        raise _unusable(what, variable, "an address with several @", _ENCODE)
    url = None
    with suppress(ArgumentError, ValueError):  # they say what could not be read: that may be the password
        url = make_url(f"{driver}://{rest}")
    if url is None:
        raise _unusable(what, variable, "an address that cannot be read", f"check the port; {_ENCODE}")
    return url


def _unusable(what: str, variable: str, found: str, fix: str) -> DataError:
    problem = f"{what}: the environment variable {variable} holds no address of a database that can be read"
    return DataError(problem, found=found, wanted=_WANTED, fix=fix)


def _secret_items(url: URL) -> list[tuple[str, str]]:
    items = [(name, text) for name, texts in url.normalized_query.items() for text in texts]
    return [(name, text) for name, text in items if _SECRET.search(name)]


def _public(url: URL, *, with_user: bool) -> str:
    safe = URL.create(
        url.get_backend_name(),
        username=url.username if with_user else None,
        host=url.host,
        port=url.port,
        database=url.database,
        query={name: url.query[name] for name in sorted(_SHOWN_OPTIONS & set(url.query))},
    )
    return safe.render_as_string(hide_password=False)


def _spellings(secrets: list[str]) -> tuple[str, ...]:
    """Each as it is, decoded and percent-encoded; the longest first, so that no end of one is left."""
    found = set()
    for secret in secrets:
        for text in (secret, unquote(secret)):
            found |= {text, quote(text), quote(text, safe=""), quote_plus(text)}
            found |= {repr(text)[1:-1], text.replace("'", "''")}  # in a message, and as SQL quotes it
    return tuple(sorted(found - {""}, key=lambda text: (-len(text), text)))
