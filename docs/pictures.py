"""Pictures of the built pages as a phone and a desk show them, and what overflows on them.

    sphinx-build -W docs docs/_build/html && python docs/pictures.py docs/_build/html --out pictures

Needs Chromium. Every page is loaded at 390 and at 1280 pixels, in light and in dark; the exit
status is 1 if one is wider than its window.
"""

from __future__ import annotations

import argparse
import functools
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WIDTHS = (390, 1280)
THEMES = ("light", "dark")
HEIGHT = 2400
FRAME = "_picture.html"

# A window is never as narrow as a phone; a frame in it can be. What scrolls by itself is excepted.
HARNESS = """<!doctype html><meta charset="utf-8">
<style>body {{ margin: 0; overflow: hidden }}</style>
<iframe id="page" src="{page}" width="{width}" height="{height}" style="border: 0"></iframe>
<script>
page.onload = () => {{
  const inner = page.contentDocument, root = inner.documentElement
  inner.body.dataset.theme = "{theme}"
  const scrolls = ".sidebar-drawer, .toc-drawer, .formula, .table-wrapper, pre"
  const wide = [...inner.querySelectorAll("body *")].filter(
    e => e.getBoundingClientRect().right > {width} + 1 && !e.closest(scrolls))
  const names = wide.slice(0, 3).map(
    e => e.tagName.toLowerCase() + ": " + e.textContent.trim().slice(0, 40))
  document.body.dataset.found = `${{root.scrollWidth}} ${{names.join(" | ")}}`
}}
</script>"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """An address of the pages on this machine; frames of files may not be looked into."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def browse(browser: str, address: str, *options: str) -> str:
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000"]
    done = subprocess.run(
        [*command, *options, address], capture_output=True, text=True, timeout=120
    )
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("html", type=Path, help="folder of the built pages")
    parser.add_argument("--out", type=Path, help="write the pictures here")
    parser.add_argument(
        "--pages", nargs="+", help="such as index.html (default: all but the API's)"
    )
    args = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("There is no chromium here.")
    every = sorted(str(path.relative_to(args.html)) for path in args.html.rglob("*.html"))
    usual = [page for page in every if not page.startswith(("_", "generated", "genindex"))]
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    too_wide = 0
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as address:
        shutil.copytree(args.html, folder, dirs_exist_ok=True)
        for page in args.pages or usual:
            for width in WIDTHS:
                for theme in THEMES if args.out is not None else THEMES[:1]:
                    shown = HARNESS.format(page=page, width=width, height=HEIGHT, theme=theme)
                    (Path(folder) / FRAME).write_text(shown)
                    size = f"--window-size={max(width, 520)},{HEIGHT}"
                    dom = browse(browser, f"{address}/{FRAME}", size, "--dump-dom")
                    found = re.search(r'data-found="(\d+) ([^"]*)"', dom)
                    if found is None:
                        sys.exit(f"{page}: it was not loaded")
                    if int(found[1]) > width:
                        too_wide += theme == "light"
                        print(f"{page}: {found[1]} pixels in a window of {width}: {found[2]}")
                    if args.out is not None:
                        name = f"{page.removesuffix('.html').replace('/', '-')}-{width}-{theme}.png"
                        picture = f"--screenshot={(args.out / name).resolve()}"
                        browse(browser, f"{address}/{FRAME}", size, picture)
    print(f"{too_wide} pages are wider than their window")
    sys.exit(1 if too_wide else 0)


if __name__ == "__main__":
    main()
