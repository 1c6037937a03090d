"""A server that speaks as much of the Hub's protocol as an upload of small files needs."""

import base64
import contextlib
import http.server
import json
import pathlib
import re
import threading
from collections.abc import Iterator

import huggingface_hub
import pytest
from huggingface_hub import constants


class Repositories:
    """What a server has received.

    Attributes:
        home: the folder that holds the files, as REPOSITORY/BRANCH/PATH.
        created: the requests for new repositories.
        commits: the headers of the commits, each with `branch` and `token`.
        pull_requests: the number of pull requests that were refused.
    """

    def __init__(self, home: pathlib.Path):
        self.home = home
        self.created: list[dict] = []
        self.commits: list[dict] = []
        self.pull_requests = 0


@contextlib.contextmanager
def hub_server(home: pathlib.Path) -> Iterator[Repositories]:
    """Lets huggingface_hub use a server of this process in place of the Hub."""
    state = Repositories(home)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int = 200, body: object = None, **headers: str) -> None:
            text = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_HEAD(self) -> None:
            name, branch, path = re.fullmatch(r"/(.*)/resolve/(\w+)/(.*)", self.path).groups()
            if (home / name / branch / path).is_file():
                commit = {"X_Repo_Commit": "a" * 40, "ETag": '"b"'}
                return self.answer(200, **commit)
            return self.answer(404, X_Error_Code="EntryNotFound")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            path, _, query = self.path.partition("?")
            if path == "/api/validate-yaml":
                return self.answer(200, {"warnings": [], "errors": []})
            if path == "/api/repos/create":
                given = json.loads(body)
                name = f"{given['organization']}/{given['name']}"
                if (home / name).exists():
                    return self.answer(409, {"url": f"{url}/{name}"}, X_Error_Message="It exists.")
                (home / name / "main").mkdir(parents=True)
                state.created.append(given)
                return self.answer(200, {"url": f"{url}/{name}"})
            name, action, branch = re.fullmatch(r"/api/models/(.*)/(\w+)/(\w+)", path).groups()
            if action == "branch":
                (home / name / branch).mkdir()
                return self.answer(200, {})
            if query == "create_pr=1":  # a pull request is not opened here
                state.pull_requests += 1
                return self.answer(403, X_Error_Message="No pull requests.")
            if action == "preupload":
                files = [one["path"] for one in json.loads(body)["files"]]
                plain = {"uploadMode": "regular", "shouldIgnore": False}
                return self.answer(200, {"files": [{"path": path, **plain} for path in files]})
            lines = [json.loads(line) for line in body.splitlines()]
            for value in (line["value"] for line in lines if line["key"] == "file"):
                file = home / name / branch / value["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(base64.b64decode(value["content"]))
            more = {"branch": branch, "token": self.headers.get("Authorization")}
            state.commits.append(lines[0]["value"] | more)
            done = {"success": True, "commitOid": "a" * 40, "commitUrl": f"{url}/{name}/commit/a"}
            return self.answer(200, done)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "ENDPOINT", url)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        huggingface_hub.close_session()  # of offline mode
        try:
            yield state
        finally:
            huggingface_hub.close_session()
            server.shutdown()
            thread.join()
            server.server_close()
