"""Objects in a store: s3://bucket/… and gs://bucket/…, through Arrow's file systems.

Address and keys are those of the stores' own tools. S3: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL,
AWS_REGION or AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID …, ~/.aws, a machine's role. Google:
GOOGLE_APPLICATION_CREDENTIALS, a machine's role, STORAGE_EMULATOR_HOST. Keys never stand in a recipe
and never in an error. A path names an object, a folder (all below it) or a glob.
An object's hash is made of its URL, its size and its time of change, as hashing its content would read
it over the network twice; an object written again is another one, even with the same content.
Cost: a listing asks once a thousand objects; opening one asks twice (is it the same still, and its size).
"""

import fnmatch
import glob
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as arrow_fs
import xxhash

from bessemer.data.sources.parts import Input
from bessemer.errors import DataError

_SCHEMES = ("s3", "gs")
_TRIES = 3
_CONNECT_S, _REQUEST_S = 10, 20
_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")


def is_remote(path_text: str) -> bool:
    return path_text.split("://")[0] in _SCHEMES and "://" in path_text


def find_objects(what: str, url: str) -> list[Input]:
    """The objects of a URL, in order of their names. None at all is a DataError."""
    scheme, path = _split(what, url)
    try:
        system = _file_system(scheme)
        found = system.get_file_info(path)
        if found.type == arrow_fs.FileType.File:
            files = [found]
        else:
            has_magic = found.type == arrow_fs.FileType.NotFound and glob.has_magic(path)
            folder = _fixed_part(path) if has_magic else path
            listing = system.get_file_info(
                arrow_fs.FileSelector(folder, recursive=True, allow_not_found=True)
            )
            files = [info for info in listing if info.is_file and not _is_hidden(info.path[len(folder) :])]
            if has_magic:
                files = [info for info in files if _matches(info.path.split("/"), path.split("/"))]
    except OSError as error:
        raise _unreachable(what, url, error) from error
    if not files:
        raise DataError(
            f"{what}: no object at {url}",
            found="an empty folder, or no such name",
            wanted="at least one object",
            fix="check the URL; for all names that begin alike write `s3://bucket/begin*`",
        )
    return sorted((_input(scheme, info) for info in files), key=lambda entry: entry.name)


def open_object(entry: Input, what: str) -> tuple[BinaryIO, bool]:
    """(its bytes, whether it is the object that was listed)."""
    assert entry.url is not None
    scheme, path = _split(what, entry.url)
    try:
        system = _file_system(scheme)
        info = system.get_file_info(path)
        is_same = info.is_file and _input(scheme, info).xxh3_128 == entry.xxh3_128
        return system.open_input_file(path) if is_same else pa.BufferReader(b""), is_same
    except OSError as error:
        raise _unreachable(what, entry.url, error) from error


def without_secrets(text: str) -> str:
    """An error's text as a user may paste it anywhere."""
    for name in _SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return re.sub(r"//[^/@\s]+@", "//***@", text)


def _split(what: str, url: str) -> tuple[str, str]:
    """(scheme, "bucket/key")."""
    scheme, _, path = url.partition("://")
    if "@" in path.split("/")[0]:
        raise DataError(
            f"{what}: a URL must not hold keys",
            found=without_secrets(url),
            wanted="a bucket's name behind ://",
            fix="put the keys into the store's own environment variables or its configuration file",
        )
    if not path.split("/")[0]:
        raise DataError(
            f"{what}: {url} names no bucket",
            found=url,
            wanted=f"{scheme}://bucket/name",
            fix="write the bucket's name behind ://",
        )
    return scheme, path.rstrip("/")


def _file_system(scheme: str) -> Any:
    # Made anew for each use: it costs 1 ms, and is not shared between a process and its children.
    if scheme == "gs":
        host = _host(os.environ.get("STORAGE_EMULATOR_HOST"))
        return arrow_fs.GcsFileSystem(
            retry_time_limit=timedelta(seconds=_REQUEST_S), anonymous=bool(host), **host
        )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    host = _host(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))
    return arrow_fs.S3FileSystem(
        region=region or ("us-east-1" if host else None),
        connect_timeout=_CONNECT_S,
        request_timeout=_REQUEST_S,
        retry_strategy=arrow_fs.AwsStandardS3RetryStrategy(max_attempts=_TRIES),
        **host,
    )


def _host(url: str | None) -> dict[str, str]:
    """Another server than the store's own, if one is named."""
    if not url:
        return {}
    parts = urlsplit(url if "://" in url else f"http://{url}")
    return {
        "scheme": parts.scheme,
        "endpoint_override": parts.netloc.rpartition("@")[2] + parts.path.rstrip("/"),
    }


def _input(scheme: str, info: Any) -> Input:
    url = f"{scheme}://{info.path}"
    digest = xxhash.xxh3_128_hexdigest(f"{url}\0{info.size}\0{info.mtime_ns}".encode())
    return Input(Path(info.path), url, info.size, info.mtime_ns, digest, url=url)


def _fixed_part(path: str) -> str:
    """The folder above the first name with a wildcard."""
    names = path.split("/")
    first = next(number for number, name in enumerate(names) if glob.has_magic(name))
    return "/".join(names[:first])


def _matches(names: list[str], wanted: list[str]) -> bool:
    """`*` and `?` stay inside a name, `**` is any number of folders, as in paths of files."""
    if not wanted:
        return not names
    if wanted[0] == "**":
        return bool(names) and (
            len(wanted) == 1 or any(_matches(names[skipped:], wanted[1:]) for skipped in range(len(names)))
        )
    return bool(names) and fnmatch.fnmatchcase(names[0], wanted[0]) and _matches(names[1:], wanted[1:])


def _is_hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in relative.split("/"))


def _unreachable(what: str, url: str, error: OSError) -> DataError:
    scheme = url.split("://")[0]
    names = {
        "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or ~/.aws), AWS_REGION, AWS_ENDPOINT_URL",
        "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    }
    return DataError(
        f"{what}: cannot read {url}",
        found=without_secrets(" ".join(str(error).split()))[:400],
        wanted="a bucket that answers and may be read",
        fix=f"check the name, and {names[scheme]}",
    )
