"""As much of Google's JSON interface as reading asks for: `python google_store.py FOLDER`.

A process of its own, as Arrow's reader of such stores waits for it without letting other threads run.
"""

import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit


class Google(BaseHTTPRequestHandler):
    objects: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        asked = parse_qs(parts.query)
        name = unquote(parts.path).partition("/o/")[2] or unquote(parts.path).removeprefix("/data/")
        if parts.path == "/storage/v1/b/data/o":
            begin = asked["prefix"][0] if "prefix" in asked else ""
            items = [self.about(name) for name in sorted(self.objects) if name.startswith(begin)]
            self.answer(json.dumps({"kind": "storage#objects", "items": items}).encode())
        elif name not in self.objects:
            self.answer(b"{}", 404)
        elif asked.get("alt") == ["media"] or parts.path.startswith("/data/"):
            begin = re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))
            assert begin is not None
            self.answer(self.objects[name][int(begin[1]) :], 206 if "Range" in self.headers else 200)
        else:
            self.answer(json.dumps(self.about(name)).encode())

    def about(self, name: str) -> dict[str, str]:
        size, time = str(len(self.objects[name])), "2026-01-02T03:04:05.678Z"
        return {"kind": "storage#object", "bucket": "data", "name": name, "size": size, "generation": "1",
                "updated": time, "timeCreated": time}  # fmt: skip

    def answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-goog-generation", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    Google.objects = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), Google) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
