"""A hub of one model repository on this machine, as far as huggingface-hub asks for it."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from typing import Any

COMMIT = "a" * 40


class Hub:
    """Serves `me/tiny`. `cut`: the file in whose midst connections end."""

    def __init__(self) -> None:
        self.files = {
            "config.json": b"{}",
            "model.safetensors": bytes(range(256)) * 40,
            "pytorch_model.bin": b"pickle",
        }
        self.requests: list[tuple[str, str]] = []  # method, path
        self.tokens: set[str | None] = set()
        self.cut = ""

    def __enter__(self) -> Hub:
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None:
                pass

            def do_GET(self) -> None:
                hub.answer(self, True)

            def do_HEAD(self) -> None:
                hub.answer(self, False)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: http.server.BaseHTTPRequestHandler, with_body: bool) -> None:
        path = request.path.split("?")[0]
        self.requests.append((request.command, path))
        self.tokens.add(request.headers.get("Authorization"))
        headers = {"Content-Type": "application/json"}
        status = 200
        if path.startswith("/api/models/me/tiny/tree/"):
            data = json.dumps([self._entry(name) for name in self.files]).encode()
        elif path.startswith("/api/models/me/tiny"):
            siblings = [{"rfilename": name} for name in self.files]
            data = json.dumps({"id": "me/tiny", "sha": COMMIT, "siblings": siblings}).encode()
        elif path.startswith(f"/me/tiny/resolve/{COMMIT}/"):
            data = self.files[path.rsplit("/", 1)[1]]
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        else:
            data, status = b"", 404
            headers["X-Error-Code"] = "RepoNotFound"
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        if with_body:
            is_cut = self.cut and path.endswith("/" + self.cut)
            request.wfile.write(data[: len(data) // 2] if is_cut else data)
            request.close_connection = True

    def _entry(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        oid = hashlib.sha1(data).hexdigest()
        return {"type": "file", "oid": oid, "size": len(data), "path": name}
