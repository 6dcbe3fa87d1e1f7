"""A Hub on a free port of this machine, as huggingface_hub speaks to it: repositories of commits, tags, files, LFS.

What it answers is what the Hub's own API answers (https://huggingface.co/docs/hub/api) to what is asked here.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_writes"
READS = "hf_reads"  # a token that may not write
LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "other")


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], message: str) -> str:
        self.messages.append(message)
        oid = hashlib.sha1(f"{self.branches}{self.messages}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches["main"] = oid
        return oid

    def find(self, revision: str) -> str | None:
        found = self.branches.get(revision) or self.tags.get(revision) or revision
        return found if found in self.commits else None

    @property
    def files(self) -> dict[str, bytes]:
        """Those of the main branch."""
        return self.commits[self.branches["main"]]


class LocalHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.uploaded: dict[str, bytes] = {}  # LFS objects by their SHA-256
        self.asked: list[str] = []


class RefusedError(Exception):
    def __init__(self, status: int, message: str, code: str = "", **more: str):
        self.status, self.message, self.code, self.more = status, message, code, more


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LocalHub
    routes = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "put"),
        ("GET|HEAD", r"/lfs/(?P<oid>[0-9a-f]{64})", "blob"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/tag/(?P<revision>[^/]+)", "tag"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/refs", "refs"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)", "tree"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?", "info"),
        ("GET|HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def answer(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {unquote(path)}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        for method, pattern, name in self.routes:
            if self.command in method.split("|") and (match := re.fullmatch(pattern, path)):
                known = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                try:
                    getattr(self, name)(**known)
                except RefusedError as error:
                    headers = {"X-Error-Message": error.message, "X-Error-Code": error.code}
                    self.send(json.dumps({"error": error.message, **error.more}).encode(), error.status, headers)
                return
        self.send(b"{}", 404)

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass

    def send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def tell(self, value: Any) -> None:
        self.send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    @property
    def token(self) -> str | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if given not in (TOKEN, READS, None):
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return given

    def writable(self) -> None:
        if self.token is None:
            raise RefusedError(401, "Invalid username or password.")
        if self.token != TOKEN:
            raise RefusedError(403, "Forbidden: you must use a token with write access")

    def opened(self, repo: str) -> Repository:
        found = self.server.repositories.get(repo)
        if found is None or (found.private and self.token is None):
            raise RefusedError(401 if self.token is None else 404, "Repository not found", "RepoNotFound")
        return found

    def files_at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        found = self.opened(repo)
        if (oid := found.find(revision)) is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid, found.commits[oid]

    def create(self) -> None:
        self.writable()
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        url = f"{self.server.url}/{repo}"
        if repo in self.server.repositories:
            raise RefusedError(409, "You already created this model repo", url=url)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.repositories[repo] = Repository(bool(private))
        self.server.repositories[repo].commit({".gitattributes": b""}, "initial commit")
        self.tell({"url": url, "name": repo})

    def validate(self) -> None:
        """As the Hub does with a license it does not know."""
        head = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        metadata = yaml.safe_load(head[1]) if head else {}
        licence = metadata.get("license")
        if licence is not None and licence not in LICENCES:
            errors = [{"message": f'"license" must be one of [{", ".join(LICENCES)}]'}]
            self.send(json.dumps({"errors": errors, "warnings": []}).encode(), 400)
        else:
            self.tell({"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        """How each file is to come, and what is there by its name: what has not changed need not come."""
        self.writable()
        _, files = self.files_at(repo, revision)
        told = []
        for path in (file["path"] for file in json.loads(self.body)["files"]):
            kind, name = ("lfs", _sha256) if path.endswith(".safetensors") else ("regular", _blob)
            one = {"path": path, "uploadMode": kind, "shouldIgnore": False}
            told.append(one | ({"oid": name(files[path])} if path in files else {}))
        self.tell({"files": told})

    def batch(self, repo: str) -> None:
        self.writable()
        self.opened(repo)
        objects = []
        for one in json.loads(self.body)["objects"]:
            href = f"{self.server.url}/lfs/{one['oid']}"
            actions = {} if one["oid"] in self.server.uploaded else {"actions": {"upload": {"href": href}}}
            objects.append({**one, **actions})
        self.tell({"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise RefusedError(400, "not what was announced")
        self.server.uploaded[oid] = self.body
        self.send(b"")

    def blob(self, oid: str) -> None:
        self.send(self.server.uploaded[oid])

    def commit(self, repo: str, revision: str) -> None:
        self.writable()
        _, files = self.files_at(repo, revision)
        files, message = dict(files), ""
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.uploaded[value["oid"]]
        oid = self.opened(repo).commit(files, message)
        self.tell({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{repo}/commit/{oid}"})

    def tag(self, repo: str, revision: str) -> None:
        self.writable()
        oid, _ = self.files_at(repo, revision)
        tag = json.loads(self.body)["tag"]
        if tag in self.opened(repo).tags:
            raise RefusedError(409, "Tag already exists")
        self.opened(repo).tags[tag] = oid
        self.tell({})

    def refs(self, repo: str) -> None:
        found = self.opened(repo)
        told = {
            kind: [{"name": name, "ref": f"refs/{place}/{name}", "targetCommit": oid} for name, oid in named.items()]
            for kind, place, named in (("branches", "heads", found.branches), ("tags", "tags", found.tags))
        }
        self.tell({**told, "converts": []})

    def info(self, repo: str, revision: str = "main") -> None:
        oid, files = self.files_at(repo, revision)
        siblings = [{"rfilename": path} for path in files]
        self.tell({"id": repo, "modelId": repo, "sha": oid, "private": self.opened(repo).private, "siblings": siblings})

    def tree(self, repo: str, revision: str) -> None:
        _, files = self.files_at(repo, revision)
        told = []
        for path, content in files.items():
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
            if path.endswith(".safetensors"):
                entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
            told.append(entry)
        self.tell(told)

    def resolve(self, repo: str, revision: str, path: str) -> None:
        oid, files = self.files_at(repo, revision)
        if path not in files:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        content = files[path]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{_blob(content)}"'}
        if path.endswith(".safetensors"):
            large = _sha256(content)
            headers |= {"X-Linked-Etag": f'"{large}"', "X-Linked-Size": str(len(content))}
            elsewhere = self.server.url.replace("127.0.0.1", "localhost")  # large files come from another host
            self.send(b"", 302, {**headers, "Location": f"{elsewhere}/lfs/{large}"})
        else:
            self.send(content, headers=headers)


def _blob(content: bytes) -> str:
    """What git calls a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def running_hub() -> Iterator[LocalHub]:
    with LocalHub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
