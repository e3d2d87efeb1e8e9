"""Uploads to the hub, against a stub of its server on this machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import ConfigError, ResultError
from harness.deploy.hub_upload import push_to_hub


class Stub(BaseHTTPRequestHandler):
    """The parts of the hub that an upload uses; all files come inside the commit."""

    repositories: dict[str, dict[str, bytes]]
    private: dict[str, bool]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.headers.get("Authorization") != "Bearer secret":
            return self._answer(401, {"error": "Invalid user token."})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if name in self.repositories:
                return self._answer(409, {"error": "You already created this repo", "url": self._url(name)})
            self.repositories[name] = {}
            # The client's versions say it in two ways.
            self.private[name] = asked.get("private") is True or asked.get("visibility") == "private"
            return self._answer(200, {"url": self._url(name), "name": name})
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        _, _, _, owner, name, step, *_ = self.path.split("/")
        if step == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        lines = [json.loads(line) for line in body.splitlines()]
        for line in lines:
            if line["key"] == "file":
                self.repositories[f"{owner}/{name}"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"{self._url(f'{owner}/{name}')}/commit/abc"
        return self._answer(200, {"commitUrl": url, "commitOid": "abc", "success": True})

    def do_GET(self) -> None:
        self._answer(200, {"sha": "0", "id": "x/y", "siblings": []})

    def _url(self, name: str) -> str:
        return f"http://{self.headers['Host']}/{name}"

    def _answer(self, code: int, facts: Any) -> None:
        content = json.dumps(facts).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Stub]]]:
    """Start a stub; return its address and its class, which holds what was uploaded."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "secret")
    handler = type("Handler", (Stub,), {"repositories": {}, "private": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_upload(hub: tuple[str, type[Stub]], exported: Callable[[str], Any]) -> None:
    """A new private repository gets every file of the export, byte for byte; a second upload uses the same repository."""
    address, stub = hub
    folder: Path = exported("geep").folder
    assert push_to_hub(folder, "me/my-model", endpoint=address).endswith("me/my-model/commit/abc")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert stub.repositories == {"me/my-model": files} and stub.private == {"me/my-model": True}
    stub.repositories["me/my-model"].clear()
    push_to_hub(folder, "me/my-model", private=False, endpoint=address)
    assert stub.repositories == {"me/my-model": files} and stub.private == {"me/my-model": True}


def test_refused_uploads(
    hub: tuple[str, type[Stub]], exported: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong token, a name that cannot be, a server that does not answer and a folder that is no export: one line each."""
    address, stub = hub
    folder: Path = exported("geep").folder
    with pytest.raises(ConfigError, match="no/such/name.* cannot be uploaded .*OWNER/NAME"):
        push_to_hub(folder, "no/such/name", endpoint=address)
    with pytest.raises(ConfigError, match="'me/it' cannot be uploaded"):
        push_to_hub(folder, "me/it", endpoint="http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(ConfigError, match="'me/it' cannot be uploaded .*: the model is complete in"):
        push_to_hub(folder, "me/it", endpoint=address)
    with pytest.raises(ResultError, match="is no exported model"):
        push_to_hub(tmp_path, "me/it", endpoint=address)
    assert stub.repositories == {}
