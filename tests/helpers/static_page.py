"""The page of `hub_card/browser`, built for the shipped model, and a web server for it."""

import functools
import importlib.util
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "hub_card" / "de-en"
ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


def load_build():
    path = ROOT / "hub_card" / "browser" / "build.py"
    spec = importlib.util.spec_from_file_location("build_page", path)
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    return build


def build_page(folder: Path) -> None:
    """The page of the shipped model; the test is skipped where npm is missing or gets nothing."""
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="the extra `bench` is not installed")
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, by which the libraries of the page come: apt-get install npm")
    try:
        load_build().write_page(str(SHIPPED), folder)
    except ValueError as error:
        if str(error).startswith("npm does not get"):
            pytest.skip(str(error))
        raise


class Server:
    """Serves a folder at `address` until `stop`; `asked` are the paths that were asked for, `missing` gives 404."""

    def __init__(self, folder: Path, headers: dict[str, str] | None = None):
        server = self
        self.asked: list[str] = []
        self.missing: tuple[str, ...] = ()
        self.headers = headers or {}

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path)
                if any(name in self.path for name in server.missing):
                    self.send_error(404)
                else:
                    super().do_GET()

            def end_headers(self):
                for name, value in server.headers.items():
                    self.send_header(name, value)
                super().end_headers()

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}/"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
