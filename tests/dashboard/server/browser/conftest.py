"""A server over four studies, and visitors of it in the Chromium of this system."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import pytest

pytest.importorskip("dash")

from sparsevit.assets import asset
from sparsevit.dashboard.optuna_artifacts import ARTIFACTS
from sparsevit.dashboard.optuna_notes import annotate
from sparsevit.dashboard.server.serve import Access, build, make_server
from sparsevit.latency import timing
from sparsevit.latency.results import Timing
from sparsevit.search.run import search
from sparsevit.search.spec import StudySpec
from sparsevit.sparsity import Sparsity, windows_per_stage

DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
SECONDS = 30
"""How long something may take to show up, on a busy machine."""

FILLED = ":is(.point, .points path, .lines path, .hm image, .annotation-text)"
STUDY = """
name = "digits"
[supernet]
config = "builtin:digits/supernet.py"
checkpoint = "builtin:digits"
[target]
device = "cpu"
threads = 1
[latency]
max = "70%"
[accuracy]
images = 2
confirm_images = 3
[search]
sampler = "nsga2"
population = 6
trials = 8
confirm = 2
"""
OWN_PAGE = 'title = "Mine"\n[[section]]\nheading = "Two of them"\nfigures = ["front", "timeline"]\n'


class Visit:
    """One visitor of a server: a page of the browser, and what went wrong on it."""

    def __init__(self, browser: Any, root: str, **options: Any) -> None:
        self.root = root
        self.context = browser.new_context(**{"viewport": DESK} | options)
        self.context.set_default_timeout(1000 * SECONDS)
        self.wrong: list[str] = []
        self.page = self.context.new_page()
        self.watch(self.page)

    def watch(self, page: Any) -> None:
        """Keep what this page says from now on."""
        page.on("console", lambda one: self.wrong.append(f"{one.type}: {one.text}"))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("requestfailed", self._failed)
        page.on("response", lambda one: self.wrong.append(f"{one.url}: {one.status}") if one.status >= 400 else None)

    def _failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # what a page asks for as it is left
            self.wrong.append(f"{request.url}: {request.failure}")

    def go(self, slug: str, study: str | None = None) -> Any:
        self.page.goto(f"{self.root}/{slug}" + (f"?{urlencode({'study': study})}" if study else ""))
        self.page.locator("main h1").wait_for()
        return self.page

    def largest(self) -> int:
        """Bytes of the largest answer since the page was loaded: of scripts compressed, of all others in full."""
        sizes = "performance.getEntries().map(e => e.initiatorType == 'script' ? e.encodedBodySize : e.decodedBodySize)"
        return max(size for size in self.page.evaluate(sizes) if size)

    def drawn(self) -> Any:
        """The plots of the page that hold a mark, or say in words why there is none."""
        return self.page.locator(f".js-plotly-plot:has({FILLED})")


@dataclass(frozen=True)
class Served:
    """A server with four studies and a page of a user's own, and the databases behind it."""

    root: str
    second: Any
    running: Any


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Playwright drives this system's Chromium; where either is missing, what needs them is skipped."""
    driver = pytest.importorskip("playwright.sync_api", reason="Playwright for Python is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    driver.expect.set_options(timeout=1000 * SECONDS)
    with driver.sync_playwright() as playwright:
        # Chromium's sandbox does not work for root.
        started = playwright.chromium.launch(executable_path=chromium, chromium_sandbox=os.geteuid() != 0)
        yield started
        started.close()


@pytest.fixture(scope="session")
def served(browser: Any, make: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pytest.importorskip("mmdet", reason="the built-in detector needs mmdet")
    folder = tmp_path_factory.mktemp("browser")
    file = folder / "digits.toml"
    file.write_text(STUDY)
    spec = StudySpec.load(file, [f"storage.directory={folder / 'runs'}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "measure", known_ms)
        search(spec, then=lambda study, found, judge: annotate(study, found, judge, spec.folder()))

    others = make(folder / "others.db")
    others.study("empty")
    others.add(others.study("none feasible", max_ms=5.0), 6, max_ms=5.0)
    running = others.study("running", asked=40)
    others.run(running)

    shutil.copytree(asset("dashboards", "pages/1_overview.toml").parent, folder / "pages")
    (folder / "pages" / "8_mine.toml").write_text(OWN_PAGE)
    access = Access(port=0).checked()
    app = build(
        [spec.url(), others.url], {f"{spec.url()} digits": (spec, str(file), None)}, access,
        artifacts=spec.folder() / ARTIFACTS, pages=folder / "pages",
    )  # fmt: skip
    server = make_server(app, access)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Served(f"http://127.0.0.1:{server.port}", others, running)
    server.shutdown()
    thread.join()
    server.server_close()
    others.close()


@pytest.fixture
def visitor(browser: Any, served: Served) -> Iterator[Callable[..., Visit]]:
    """Makes visitors, as wide as asked for; whatever goes wrong on their pages fails the test."""
    visits: list[Visit] = []

    def come(**options: Any) -> Visit:
        visits.append(Visit(browser, served.root, **options))
        return visits[-1]

    yield come
    for one in visits:
        one.context.close()
    assert not [wrong for one in visits for wrong in one.wrong]


@pytest.fixture
def visit(visitor: Callable[..., Visit]) -> Visit:
    """A visitor with a desk."""
    return visitor()


@pytest.fixture
def phone(visitor: Callable[..., Visit]) -> Visit:
    """A visitor with a phone, at night."""
    return visitor(viewport=PHONE, has_touch=True, color_scheme="dark")


def known_ms(backbone: Any, target: Any, sparsities: Sequence[Sparsity], **_: Any) -> list[Timing]:
    """Latencies that are known, in place of the minute that measuring takes."""
    windows = windows_per_stage((448, 448))
    times = [20 + sum(kept / 4 for kept in Sparsity.of(one, backbone.depths).kept(windows)) for one in sparsities]
    return [Timing(ms, 0.99 * ms, 1.01 * ms, 20) for ms in times]
