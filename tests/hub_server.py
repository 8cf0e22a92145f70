"""A server that speaks as much of the Hub's API as `huggingface_hub` uses to push and to load, over real sockets.

    with HubServer() as hub:
        ... HF_ENDPOINT=hub.url ... hub.repos["model", "ada/x"].files ... hub.fail("commit", status=429) ...

Without Xet, as with HF_HUB_DISABLE_XET=1: files that the server wants as `lfs` go up by PUT, the others stand in the
commit. A commit is taken whole or not at all. Tokens: `writer` may write, `reader` may not, others are unknown.
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".jpg", ".pt", ".pth")
EMPTY = "0" * 40


@dataclass
class Repository:
    private: bool = False
    commits: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def sha(self) -> str:
        return self.commits[-1] if self.commits else EMPTY


class HubServer:
    def __init__(self):
        self.repos: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}  # large files, also those that no commit names yet
        self.puts: Counter[str] = Counter()  # by the sha256 of what was sent
        self.requests: list[str] = []
        self.faults: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, step: str, times: int = 10_000, after: int = 0, **how: Any) -> None:
        """At `create`, `preupload`, `batch`, `put` or `commit`: answers `status`, or drops the connection; `after` so
        many that it lets through."""
        self.faults.append({"step": step, "times": times, "after": after} | how)

    def fault(self, step: str) -> dict[str, Any] | None:
        with self.lock:
            for fault in self.faults:
                if fault["step"] == step and fault["times"] > 0:
                    if fault["after"] > 0:
                        fault["after"] -= 1
                        return None
                    fault["times"] -= 1
                    return fault
        return None


ROUTES = [
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", r"/api/(models|datasets)/(.+?)/preupload/(.+)", "preupload"),
    ("POST", r"/api/(models|datasets)/(.+?)/commit/(.+)", "commit"),
    ("POST", r"/api/(models|datasets)/(.+?)/paths-info/(.+)", "paths"),
    ("GET", r"/api/(models|datasets)/(.+?)/tree/([^/]+)(?:/(.*))?", "tree"),
    ("GET", r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/(.+))?", "info"),
    ("POST", r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/objects/([0-9a-f]{64})", "put"),
    ("POST", r"/verify", "verify"),
    ("GET", r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
]
READS = ("info", "tree", "paths", "resolve")


def handler_of(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.route("GET")

        def do_HEAD(self) -> None:
            self.route("GET")

        def do_POST(self) -> None:
            self.route("POST")

        def do_PUT(self) -> None:
            self.route("PUT")

        def route(self, method: str) -> None:
            address = urlsplit(self.path)
            self.query = parse_qs(address.query)
            path = unquote(address.path)
            hub.requests.append(f"{self.command} {path}")
            for wanted, pattern, name in ROUTES:
                found = re.fullmatch(pattern, path) if method == wanted else None
                if found is None:
                    continue
                fault = hub.fault(name)
                if fault and "status" not in fault:  # the connection goes before the body is read
                    self.close_connection = True
                    self.connection.close()
                    return
                self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if fault:
                    return self.send(fault["status"], fault.get("body", {"error": fault.get("error", "ordered")}))
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                if name not in (*READS, "put", "validate") and token not in ("writer", "reader"):
                    return self.send(401, {"error": "Invalid username or password."})
                if name in ("create", "commit", "preupload", "batch") and token == "reader":
                    return self.send(403, {"error": "You don't have the rights"})
                with hub.lock:
                    getattr(self, name)(*found.groups())
                return
            self.send(404, {"error": f"no such address: {method} {path}"})

        def send(self, status: int, content: Any, **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def repository(self, kind: str | None, name: str) -> Repository | None:
            found = hub.repos.get(("dataset" if kind and kind.startswith("dataset") else "model", name))
            if found is None:
                self.send(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return found

        # -- writing --

        def create(self) -> None:
            given = json.loads(self.body)
            key = given.get("type") or "model", f"{given['organization']}/{given['name']}"
            url = f"{hub.url}/{'datasets/' * (key[0] == 'dataset')}{key[1]}"
            if key in hub.repos:
                return self.send(409, {"error": "You already created this repo", "url": url})
            hub.repos[key] = Repository(private=given.get("visibility") == "private" or bool(given.get("private")))
            self.send(200, {"url": url, "name": key[1], "id": key[1]})

        def validate(self) -> None:
            self.send(200, {"errors": [], "warnings": []})

        def preupload(self, kind: str, name: str, revision: str) -> None:
            if repo := self.repository(kind, name):
                files = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                        "shouldIgnore": False,
                        "oid": oid_of(file["path"], repo.files[file["path"]]) if file["path"] in repo.files else None,
                    }
                    for file in json.loads(self.body)["files"]
                ]
                self.send(200, {"files": files})

        def batch(self, kind: str | None, name: str) -> None:
            objects = []
            for one in json.loads(self.body)["objects"]:
                to = {"upload": {"href": f"{hub.url}/objects/{one['oid']}"}, "verify": {"href": f"{hub.url}/verify"}}
                objects.append(one if one["oid"] in hub.objects else one | {"actions": to})
            self.send(200, {"transfer": "basic", "objects": objects})

        def put(self, oid: str) -> None:
            hub.puts[oid] += 1
            if hashlib.sha256(self.body).hexdigest() != oid:
                return self.send(400, {"error": "other bytes than announced"})
            hub.objects[oid] = self.body
            self.send(200, {})

        def verify(self) -> None:
            known = json.loads(self.body)["oid"] in hub.objects
            self.send(200 if known else 404, {})

        def commit(self, kind: str, name: str, revision: str) -> None:
            repo = self.repository(kind, name)
            if repo is None:
                return
            lines = [json.loads(line) for line in self.body.splitlines()]
            parent = lines[0]["value"].get("parentCommit")
            if parent is not None and parent != repo.sha:
                return self.send(412, {"error": "A commit has happened since. Please refresh and try again."})
            files = dict(repo.files)
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    if value["oid"] not in hub.objects:
                        return self.send(400, {"error": f"{value['path']} was not uploaded"})
                    files[value["path"]] = hub.objects[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            repo.files = files
            repo.messages.append(lines[0]["value"]["summary"])
            repo.commits.append(hashlib.sha1(self.body).hexdigest())
            url = f"{hub.url}/{'datasets/' * (kind == 'datasets')}{name}/commit/{repo.sha}"
            self.send(200, {"commitUrl": url, "commitOid": repo.sha, "pullRequestUrl": None})

        # -- reading --

        def info(self, kind: str, name: str, revision: str | None) -> None:
            if repo := self.repository(kind, name):
                siblings = [{"rfilename": path} for path in sorted(repo.files)]
                known = {"id": name, "sha": repo.sha, "private": repo.private, "siblings": siblings, "tags": []}
                self.send(200, known | {"downloads": 0, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z"})

        def tree(self, kind: str, name: str, revision: str, folder: str | None) -> None:
            if repo := self.repository(kind, name):
                start = f"{folder}/" if folder else ""
                inside = [path for path in sorted(repo.files) if path.startswith(start)]
                is_deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
                entries = [
                    entry(path, repo.files[path]) for path in inside if is_deep or "/" not in path[len(start) :]
                ]
                depth = {start + path[len(start) :].split("/")[0] for path in inside if "/" in path[len(start) :]}
                if is_deep:
                    depth = {path[: m.start()] for path in inside for m in re.finditer("/", path)}
                folders = [{"type": "directory", "path": path, "oid": EMPTY, "size": 0} for path in sorted(depth)]
                if not inside and folder:
                    return self.send(404, {"error": "no such folder"}, X_Error_Code="EntryNotFound")
                self.send(200, [*folders, *entries])

        def paths(self, kind: str, name: str, revision: str) -> None:
            if repo := self.repository(kind, name):
                is_json = self.headers.get("Content-Type", "").startswith("application/json")
                wanted = json.loads(self.body)["paths"] if is_json else parse_qs(self.body.decode())["paths"]
                found = [entry(path, repo.files[path]) for path in wanted if path in repo.files]
                folders = [path for path in wanted if any(name.startswith(f"{path}/") for name in repo.files)]
                found += [{"type": "directory", "path": path, "oid": EMPTY, "size": 0} for path in folders]
                self.send(200, found)

        def resolve(self, kind: str | None, name: str, revision: str, path: str) -> None:
            repo = self.repository(kind, name)
            if repo is None:
                return
            if path not in repo.files:
                return self.send(
                    404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=repo.sha
                )
            content, status, more = repo.files[path], 200, {}
            part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if part:
                start, end = int(part[1]), min(int(part[2] or len(content) - 1), len(content) - 1)
                more = {"Content_Range": f"bytes {start}-{end}/{len(content)}"}
                content, status = content[start : end + 1], 206
            oid = oid_of(path, repo.files[path])
            self.send(status, content, ETag=f'"{oid}"', X_Repo_Commit=repo.sha, Accept_Ranges="bytes", **more)

    return Handler


def oid_of(path: str, content: bytes) -> str:
    if path.endswith(LFS_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path: str, content: bytes) -> dict[str, Any]:
    oid = oid_of(path, content)
    large = {"lfs": {"oid": oid, "size": len(content), "pointerSize": 134}} if path.endswith(LFS_SUFFIXES) else {}
    return {"type": "file", "path": path, "oid": oid[:40], "size": len(content)} | large
