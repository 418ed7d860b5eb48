"""A web server on this machine that has one file, and the faults that it is told to have."""

import contextlib
import dataclasses
import hashlib
import http.server
import threading
from collections.abc import Iterator

from jaxseg.data.download import RemoteFile


@dataclasses.dataclass
class Behaviour:
    """What the server does. cut: bytes after which it drops each connection; ranges: whether it can begin in the middle;
    log: of each request the Range header, or "HEAD"."""

    content: bytes
    cut: int | None = None
    ranges: bool = True
    log: list = dataclasses.field(default_factory=list)
    url: str = ""

    def remote(self, name: str, *, content: bytes | None = None) -> RemoteFile:
        """The file by that name, which should be `content`; default: what the server has."""
        content = self.content if content is None else content
        return RemoteFile(f"{self.url}/{name}", len(content), hashlib.sha256(content).hexdigest())


@contextlib.contextmanager
def file_server(content: bytes) -> Iterator[Behaviour]:
    """Serves `content` under every name, until the end of the block."""
    behaviour = Behaviour(content)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            behaviour.log.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and behaviour.ranges else 0
            body = behaviour.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(behaviour.content) - 1}/{len(behaviour.content)}"
                )
            self.end_headers()
            self.wfile.write(body[: behaviour.cut])

        def do_HEAD(self):
            behaviour.log.append("HEAD")
            self.send_response(200)
            self.send_header("Content-Length", str(len(behaviour.content)))
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        behaviour.url = f"http://127.0.0.1:{httpd.server_port}"
        yield behaviour
        httpd.shutdown()
