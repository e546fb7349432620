"""A stand-in for the W&B server, to test online logging and its faults on loopback (wandb 0.31).

    server = MockServer().start()      # WANDB_BASE_URL=server.url, and WANDB_API_KEY: any 40 letters or digits
    server.fail = 500                  # answers everything with this status; 0: hangs up; None: works again
    server.runs["ID"].history          # also .files["media/audio/....wav"], .config

Takes metrics, config, files (so audio) and resumed runs; no artifacts, so no tables.
"""

import gzip
import json
import re
import sys
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass
class Run:
    config: dict = field(default_factory=dict)
    history: list = field(default_factory=list)  # a dict for each step
    files: dict = field(default_factory=dict)  # path: bytes


class MockServer(ThreadingHTTPServer):
    daemon_threads = True
    fail = None

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs = defaultdict(Run)
        self.requests = []  # (method, path or GraphQL operation, status)

    def start(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def answer(self, operation, variables):
        name, known = variables.get("name"), variables.get("name") in self.runs
        project = {"name": variables.get("project") or "project", "entity": {"name": "me"}}
        if operation == "UpsertBucket":
            config = json.loads(variables.get("config") or "{}")
            self.runs[name].config.update({k: v["value"] for k, v in config.items() if k != "_wandb"})
            bucket = {"id": name, "name": name, "displayName": name, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": not known}}
        if operation == "RunResumeStatus":
            if not known:
                return None
            rows = self.runs[name].history
            bucket = {"id": name, "name": name, "displayName": name, "config": "{}", "wandbConfig": '{"t": 1}'}
            bucket |= {"historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0, "eventsTail": "[]"}
            bucket |= {"historyTail": json.dumps([json.dumps(r) for r in rows[-1:]])}
            bucket |= {"summaryMetrics": json.dumps({"_step": rows[-1]["_step"]} if rows else {})}
            return {"model": {"bucket": bucket, "entity": project["entity"]}}
        if operation == "CreateRunFiles":
            run = variables["run"]
            files = [{"name": f, "uploadUrl": f"{self.url}/upload/{run}/{f}"} for f in variables["files"]]
            return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}
        return {"viewer": {"id": "me", "entity": "me", "username": "me"}} if operation == "Viewer" else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def read(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def handle_request(self):
        body, status, data, what = self.read(), self.server.fail, {}, self.path
        runs = self.server.runs
        if self.path == "/graphql":
            call = json.loads(body)
            what = re.search(r"(?:query|mutation)\s+(\w+)", call["query"])[1]
            data = None if status is not None else {"data": self.server.answer(what, call.get("variables") or {})}
        elif status is None and (stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)):
            lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            runs[stream[1]].history += map(json.loads, lines)
        elif status is None and (upload := re.fullmatch(r"/upload/([^/]+)/(.+)", self.path)):
            runs[upload[1]].files[unquote(upload[2])] = body
        self.server.requests.append((self.command, what, 200 if status is None else status))
        if status == 0:
            self.close_connection = True
            return
        answer = json.dumps(data).encode()
        self.send_response(status or 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = handle_request
