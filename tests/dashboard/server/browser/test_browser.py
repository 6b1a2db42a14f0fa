"""The dashboard as a person meets it, in Chromium: on a real search over the built-in detector, on an empty study, on
one where nothing meets the bounds, and on one that runs meanwhile.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sparsevit.dashboard.figures import FIGURES
from sparsevit.dashboard.optuna_notes import CONFIG, PICTURE, PLOTS
from sparsevit.dashboard.server.pages import load_pages

MOST_BYTES = 2_000_000
WIDTH = 390
"""Of a phone, pixels."""

STATES = ("digits", "empty", "none feasible", "running")


@pytest.mark.parametrize("study", STATES)
def test_every_page_of_every_kind_of_study(visit: Any, study: str) -> None:
    from playwright.sync_api import expect

    page = visit.go("", study)
    for slug, shown in load_pages().items():
        page.get_by_role("link", name=shown.title, exact=True).click()
        expect(page.locator("h1")).to_have_text(f"{study}: {shown.title.lower()}")
        expect(page.locator("h2")).to_have_count(len(shown.sections))
        figures = sum(len(section.figures) for section in shown.sections) + (slug == "compare")
        expect(visit.drawn()).to_have_count(figures)
        expect(page.locator(".js-plotly-plot")).to_have_count(figures)
        expect(page.get_by_role("link", name=shown.title, exact=True)).to_have_class("here")
    assert visit.largest() < MOST_BYTES


def test_on_a_phone_at_night_nothing_sticks_out(phone: Any) -> None:
    from playwright.sync_api import expect

    page = phone.go("", "digits")
    for shown in load_pages().values():
        page.get_by_role("link", name=shown.title, exact=True).click()
        expect(page.locator("h1")).to_have_text(f"digits: {shown.title.lower()}")
        expect(page.locator(".js-plotly-plot .main-svg, .tiles").first).to_be_attached()
        assert page.evaluate("document.documentElement.scrollWidth") == WIDTH
    for link in page.locator("nav a").all():
        box = link.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= WIDTH
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 28)"


def test_the_slider_picks_and_the_button_downloads(visit: Any) -> None:
    from playwright.sync_api import expect

    page = visit.go("front", "digits")
    chosen, slider = page.locator("#picked h3"), page.get_by_role("slider")
    first = chosen.inner_text()
    slider.focus()
    slider.press("Home")
    expect(chosen).not_to_have_text(first)
    number, ratios = re.fullmatch(r"trial (\d+): (\S+)", chosen.inner_text()).groups()  # type: ignore[union-attr]
    with page.expect_download() as waited:
        page.get_by_role("link", name="Download its finetune config").click()
    config = Path(waited.value.path()).read_text()
    assert waited.value.suggested_filename == f"finetune_digits_trial{number}.py"
    compile(config, "finetune.py", "exec")
    assert ratios in config


def test_hover_shows_a_trial_with_its_bars(visit: Any) -> None:
    from playwright.sync_api import expect

    page = visit.go("front", "digits")
    page.locator(".scatterlayer .trace .point").last.hover(force=True)
    expect(page.locator(".hovertext").first).to_contain_text(re.compile(r"0(\.\d)?/.*[▁▂▃▄▅▆▇█]", re.DOTALL))


def test_trials_show_up_while_one_watches(visit: Any, served: Any) -> None:
    from playwright.sync_api import expect

    page = visit.go("overview", "running")
    facts = page.locator(".facts")
    expect(facts).to_contain_text("0of 40 trials")
    expect(page.locator(".js-plotly-plot .point")).to_have_count(0)
    page.evaluate("window.stayed = true")
    served.second.add(served.running, 12, seed=5)
    expect(facts).to_contain_text("12of 40 trials")
    expect(page.locator(".js-plotly-plot .point")).to_have_count(12)
    assert page.evaluate("window.stayed")


def test_windows_of_an_image_and_a_configuration(visit: Any) -> None:
    from playwright.sync_api import expect

    page = visit.go("windows", "digits")
    tiles = page.locator(".tiles figure")
    expect(tiles).to_have_count(7)
    expect(tiles.first).to_contain_text("detections")
    assert page.locator(".picture img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 200
    picture = page.locator(".picture img").first.get_attribute("src")
    page.locator("#windows-image").fill("1")
    page.locator("#windows-image").press("Enter")
    expect(page.locator(".picture img").first).not_to_have_attribute("src", picture)
    page.locator("#windows-of").click()
    page.get_by_text("dense", exact=True).last.click()
    expect(tiles.nth(1)).to_contain_text("keeps 256 of 256 windows")
    assert page.locator(".box").count() > 0


def test_studies_side_by_side(visit: Any) -> None:
    from playwright.sync_api import expect

    page = visit.go("compare", "running")
    legend = page.locator(".legendtext")
    expect(legend.filter(has_text="digits (predicted)")).to_have_count(1)
    page.get_by_role("link", name="digits", exact=True).click()
    expect(page.locator("h1")).to_have_text("digits: compare")


def test_a_page_of_ones_own(visit: Any) -> None:
    from playwright.sync_api import expect

    page = visit.go("overview", "digits")
    page.get_by_role("link", name="Mine").click()
    expect(page.locator("h1")).to_have_text("digits: mine")
    expect(visit.drawn()).to_have_count(2)


def test_optuna_dashboard_beside_it(visit: Any) -> None:
    from playwright.sync_api import expect

    page = visit.go("overview", "digits")
    with visit.context.expect_page() as opened:
        page.get_by_role("link", name="Optuna").click()
    beside = opened.value
    visit.watch(beside)
    beside.get_by_text("1. digits").click()
    expect(beside.get_by_text("Pareto Front")).to_be_visible()
    expect(beside.get_by_text("predicted latency (ms)").first).to_be_visible()
    for name in PLOTS:
        expect(beside.locator(".gtitle", has_text=FIGURES[name].title)).to_have_count(1)
    beside.goto(f"{visit.root}/dashboard/studies/1/note")
    expect(beside.get_by_text("Latencies are of cpu")).to_be_visible()
    best = beside.request.get(f"{visit.root}/api/studies/1?after=0").json()["best_trials"]
    confirmed = next(one["number"] for one in best if len(one["artifacts"]) == 2)
    beside.goto(f"{visit.root}/dashboard/studies/1/trials?numbers={confirmed}")
    expect(beside.get_by_text("As a config to finetune")).to_be_visible()
    for name in (CONFIG, PICTURE):
        expect(beside.get_by_text(name).first).to_be_visible()
    expect(beside.locator("img[src^='/artifacts/']").first).to_have_js_property("complete", True)
