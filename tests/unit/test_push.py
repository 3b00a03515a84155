"""`tsugi export --push`: what a hub is sent, by a stand-in that records it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tsugi_cli.finetune.push import push
from tsugi_kpool.errors import MachineError

FILES = {"adapter_config.json": b"{}", "README.md": b"# mine", "adapter_model.safetensors": bytes(300)}


class Hub(ThreadingHTTPServer):
    """The calls of the hub's API that an upload of small files needs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.heard: list[tuple[str, str | None, bytes]] = []
        self.full = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *arguments: object) -> None:
        """Nobody reads it."""

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.heard.append((self.path, self.headers.get("Authorization"), body))
        if self.path == "/api/repos/create":
            self._answer({"url": f"{self.server.address}/me/mine", "id": "1"})
        elif "/preupload/" in self.path:
            asked = [each["path"] for each in json.loads(body)["files"]]
            usual = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self._answer({"files": [{"path": path, **usual} for path in asked]})
        elif "/commit/" in self.path and self.server.full:
            self._answer({"error": "storage limit reached"}, 403)
        else:
            found = {"commitUrl": f"{self.server.address}/me/mine/commit/{'0' * 40}", "commitOid": "0" * 40}
            self._answer({**found, "hookOutput": ""})

    def _answer(self, body: object, code: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "adapter"
    made.mkdir()
    for name, content in FILES.items():
        (made / name).write_bytes(content)
    return made


@pytest.mark.timeout(120)
def test_all_files_arrive_in_one_commit_of_a_private_repository(hub, folder):
    push(folder, "me/mine")
    heard = {path.rpartition("/api/")[2]: (who, body) for path, who, body in hub.heard}
    assert json.loads(heard["repos/create"][1]) | {"visibility": "private"} == json.loads(heard["repos/create"][1])
    who, body = heard["models/me/mine/commit/main"]
    assert who == "Bearer hf_mine"
    parts = [json.loads(line) for line in body.decode().splitlines()]
    sent = {
        each["value"]["path"]: base64.b64decode(each["value"]["content"]) for each in parts if each["key"] == "file"
    }
    assert sent == FILES


@pytest.mark.timeout(120)
def test_a_hub_that_takes_no_files_is_told_in_one_line(hub, folder):
    hub.full = True
    with pytest.raises(MachineError, match=r"--push me/mine: .*is whole") as told:
        push(folder, "me/mine")
    assert "\n" not in str(told.value)
