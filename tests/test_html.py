"""The HTML page in a real browser: no error, no network, axe finds nothing, sliders work, prints, looks as it did."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from advisor.report import charts, omissions, units
from advisor.report.rendering import render
from advisor.types import Evidence, Grid, Report

HERE = Path(__file__).parent
STORED = HERE / "fixtures" / "reports"
SCREENS = HERE / "golden" / "screens"
NAMES = sorted(path.stem for path in STORED.glob("*.json"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
PHONE, DESK = 390, 1000
LARGEST = 1_000_000
SHRUNK = 4
"""screenshots are kept at this fraction of their size"""
TOLERANCE = 0.02
"""of a screenshot: of its height, and mean difference of its brightness; a missing chart is 0.03, other fonts 0.025"""

browser_test = pytest.mark.skipif(
    not (CHROMIUM and DRIVER) and os.environ.get("CI") != "true",
    reason="needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)",
)


def load(name: str) -> Report:
    return Report.model_validate_json((STORED / f"{name}.json").read_text(encoding="utf-8"))


# ---------------------------------------------------------------- without a browser


@pytest.mark.parametrize("name", NAMES)
def test_page_is_one_small_file_that_loads_nothing(name: str) -> None:
    page = render(load(name), "html")
    assert len(page.encode()) < LARGEST
    head = page[: page.index('<script type="application/json"')]
    assert not re.search(r"<(link|img|iframe|object|embed)\b|\bsrc=|@import|url\(", head)
    assert "default-src 'none'" in page


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_of_every_chart_is_in_a_table_too(name: str) -> None:
    report = load(name)
    page = render(report, "html")
    told = page[: page.index("<script")]
    figures: list[float | None] = []
    for option in charts.options(report):
        figures += [option["ttft"], option["itl"], option["rate"], option["memory"]]
    for point in report.roofline:
        figures += [point.flops_per_byte, point.tflops]
    for item in charts.predicted(report):
        figures += [item["expected"], item["measured"]]
    for layer in charts.layers(report):
        figures.append(layer["score"])
    for figure in figures:
        assert f">{units.figure(figure)}" in told
    for flip in report.plan.flips:
        assert flip.then in told


def test_evidence_has_the_source_of_both_sides() -> None:
    report = load("plan-only")
    compared = {"condition": "traffic.concurrency > gpu.memory_gib", "left": 32, "right": 79.6, "holds": False}
    finding = report.findings[0].model_copy(update={"evidence": (Evidence.model_validate(compared),)})
    page = render(report.model_copy(update={"findings": (finding,)}), "html")
    assert "<td>flag; right side: profiles/gpus/h100-sxm-80gb</td>" in page


def test_library_is_the_one_that_its_readme_names() -> None:
    folder = Path(charts.__file__).parent / "assets"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    notice = (folder / "plot.min.js").read_text(encoding="utf-8")[:2000]
    named = re.search(r"@observablehq/plot@([\d.]+)", readme)
    assert named
    assert f"Observable Plot {named[1]}, Copyright" in notice
    assert "ISC licence: Permission to use" in " ".join(notice.replace("\n", " ").split())


# ---------------------------------------------------------------- in the browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    assert CHROMIUM and DRIVER, "CI must have chromium and chromedriver"
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--force-device-scale-factor=1",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = {}
    for name in NAMES:
        made[name] = folder / f"{name}.html"
        made[name].write_text(render(load(name), "html"), encoding="utf-8")
    return made


def show(browser: Any, page: Path, *, width: int = DESK, scheme: str = "light", script: bool = True) -> None:
    """Open a page and wait until it is drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    browser.get_log("browser")
    browser.get(page.as_uri())
    if script:
        drawn = "return document.documentElement.dataset.drawn === 'yes'"
        WebDriverWait(browser, 10).until(lambda driver: driver.execute_script(drawn))


def violations(browser: Any) -> list[str]:
    """What axe finds, each with the elements."""
    browser.execute_script((HERE / "assets" / "axe.min.js").read_text(encoding="utf-8"))
    return browser.execute_async_script(  # type: ignore[no-any-return]
        "const done = arguments[0]; axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', "
        "'best-practice']}).then(r => done(r.violations.map(v => v.id + ': ' + v.nodes.map(n => n.html).join(' '))))"
    )


@pytest.mark.slow
@browser_test
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("width", "scheme"), [(DESK, "light"), (DESK, "dark"), (PHONE, "light"), (PHONE, "dark")])
def test_page_has_no_error_loads_nothing_fits_and_is_accessible(
    browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    show(browser, pages[name], width=width, scheme=scheme)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    empty = (
        "return [...document.querySelectorAll('[data-chart]')].filter(c => !c.querySelector('svg')).map(c => c.dataset.chart)"
    )
    assert browser.execute_script(empty) == []
    assert not browser.execute_script(
        "return /NaN|undefined/.test([...document.querySelectorAll('svg')].map(s => s.outerHTML).join())"
    )
    assert violations(browser) == []


@pytest.mark.slow
@browser_test
@pytest.mark.parametrize("name", NAMES)
def test_page_looks_as_it_did(browser: Any, pages: dict[str, Path], name: str) -> None:
    """Set UPDATE_GOLDEN=1 to keep the screenshots anew, and look at them."""
    from PIL import Image, ImageChops, ImageStat

    looks = [(DESK, "light")] + ([(DESK, "dark"), (PHONE, "light")] if name == "applied" else [])
    for width, scheme in looks:
        show(browser, pages[name], width=width, scheme=scheme)
        height = browser.execute_script("return document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        image = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("L")
        image = image.resize((width // SHRUNK, height // SHRUNK), Image.Resampling.BOX)
        path = SCREENS / f"{name}-{'phone' if width == PHONE else 'desk'}-{scheme}.png"
        if os.environ.get("UPDATE_GOLDEN"):
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, optimize=True)
        golden = Image.open(path)
        assert abs(image.height / golden.height - 1) < TOLERANCE, path.name
        # blurred, so that a line of text a few pixels lower counts little and a missing chart much
        size = (golden.width // 8, golden.height // 8)
        difference = ImageChops.difference(image.resize(size, Image.Resampling.BOX), golden.resize(size, Image.Resampling.BOX))
        assert ImageStat.Stat(difference).mean[0] / 255 < TOLERANCE, path.name


def table_now(browser: Any) -> list[list[str]]:
    cells = "[...row.querySelectorAll('td')].map(cell => cell.textContent)"
    return browser.execute_script(  # type: ignore[no-any-return]
        f"return [...document.querySelectorAll('#what-if-table tbody tr')].map(row => {cells})"
    )


def expected_at(grid: Grid, at: int) -> list[list[str]]:
    found = []
    for series in grid.series:
        cache = series.kv_cache_gib[at]
        memory = series.memory_gib
        needed = None if cache is None else memory.weights + memory.runtime + cache + (series.activations_gib[at] or 0)
        numbers = (series.ttft_ms[at], series.itl_ms[at], series.output_tokens_per_s[at])
        found.append([*map(units.figure, numbers), units.given(series.max_concurrency[at]), units.figure(needed)])
    return found


@pytest.mark.slow
@browser_test
def test_sliders_move_table_answer_and_charts(browser: Any, pages: dict[str, Path]) -> None:
    grid = load("plan-only").grid
    assert grid
    show(browser, pages["plan-only"])
    seen = set()
    for c, i, o in ((4, 1, 1), (0, 1, 1), (7, 0, 2), (7, 3, 2), (2, 2, 0)):
        for axis, value in (("concurrency", c), ("isl", i), ("osl", o)):
            browser.execute_script(
                f"const s = document.getElementById('what-if-{axis}'); s.value = {value}; s.dispatchEvent(new Event('input'))"
            )
        at = (c * len(grid.isl) + i) * len(grid.osl) + o
        rows = table_now(browser)
        assert [row[:5] for row in rows] == expected_at(grid, at)
        best = [n for n, row in enumerate(rows) if row[5].startswith("best here")]
        assert best == [grid.best[at]] if grid.best[at] is not None else best == []
        answer = browser.execute_script("return document.getElementById('what-if-answer').textContent")
        assert f"{grid.concurrency[c]:,} concurrent" in answer
        assert ("still the best" in answer) == (grid.best[at] == 1)
        changed = browser.execute_script("return document.getElementById('what-if-answer').classList.contains('changed')")
        assert changed == (grid.best[at] != 1)
        assert browser.execute_script("return [...document.querySelectorAll('td.now')].map(c => +c.dataset.load)") == [at]
        seen.add(browser.execute_script("return document.querySelector('[data-chart=what-if-options] svg').outerHTML"))
    assert len(seen) == 5
    browser.execute_script("document.getElementById('what-if-reset').click()")
    assert [row[:5] for row in table_now(browser)] == expected_at(grid, (4 * len(grid.isl) + 1) * len(grid.osl) + 1)
    assert browser.get_log("browser") == []


@pytest.mark.slow
@browser_test
def test_sliders_work_from_the_keyboard_and_speak(browser: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    grid = load("plan-only").grid
    assert grid
    show(browser, pages["plan-only"])
    slider = browser.find_element(By.ID, "what-if-concurrency")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert slider.get_attribute("aria-valuetext") == f"{grid.concurrency[5]:,}"
    assert f"{grid.concurrency[5]:,} concurrent" in browser.find_element(By.ID, "what-if-answer").text
    slider.send_keys(Keys.HOME)
    assert slider.get_attribute("aria-valuetext") == "1"


@pytest.mark.slow
@browser_test
def test_numbers_of_the_script_are_those_of_the_program(browser: Any, pages: dict[str, Path]) -> None:
    """At every load of the grid the table as moved reads as Python would write it."""
    grid = load("plan-only").grid
    assert grid
    show(browser, pages["plan-only"])
    shape = (len(grid.concurrency), len(grid.isl), len(grid.osl))
    found = browser.execute_script(
        """
        const [cs, is, os] = arguments[0], all = [];
        const set = (axis, value) => {
          const slider = document.getElementById(`what-if-${axis}`);
          slider.value = value;
          slider.dispatchEvent(new Event("input"));
        };
        for (let c = 0; c < cs; c++) for (let i = 0; i < is; i++) for (let o = 0; o < os; o++) {
          set("concurrency", c); set("isl", i); set("osl", o);
          all.push([...document.querySelectorAll("#what-if-table tbody tr")].map(
            row => [...row.querySelectorAll("td")].slice(0, 5).map(cell => cell.textContent)));
        }
        return all;
        """,
        shape,
    )
    assert found == [expected_at(grid, at) for at in range(shape[0] * shape[1] * shape[2])]


@pytest.mark.slow
@browser_test
@pytest.mark.parametrize("name", NAMES)
def test_page_says_everything_without_javascript(browser: Any, pages: dict[str, Path], name: str) -> None:
    report = load(name)
    try:
        show(browser, pages[name], script=False)
        text = " ".join(browser.find_element("tag name", "body").text.split())
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert report.plan.verdict in text
    for memory in (report.plan.baseline.memory_gib, report.plan.expected.memory_gib):
        for part in (memory.weights, memory.kv_cache, memory.activations, memory.runtime):
            assert units.figure(part) in text
    for item in (
        *report.plan.shortfall,
        *(one.reason for one in omissions.left_out(report)),
        *(f.then for f in report.plan.flips),
    ):
        assert " ".join(item.split()) in text
    for change in report.changes:
        for figure in change.accuracy:
            assert units.figure(figure.value, 4) in text
    if report.grid:
        assert "Which option wins where" in text


@pytest.mark.slow
@browser_test
def test_hostile_text_runs_nothing(browser: Any, tmp_path: Path) -> None:
    from test_report_hostile import ATTACKS, poison

    for name, attack in ATTACKS.items():
        page = tmp_path / "page.html"
        page.write_text(render(poison(load("applied"), attack), "html"), encoding="utf-8")
        show(browser, page)
        assert browser.get_log("browser") == [], name
        assert browser.execute_script("return document.scripts.length") == 3
        # an alert that had opened would make the driver raise UnexpectedAlertPresentException at the calls above


@pytest.mark.slow
@browser_test
@pytest.mark.parametrize("name", NAMES)
def test_page_prints_on_a4(browser: Any, pages: dict[str, Path], name: str) -> None:
    show(browser, pages[name])
    settings = {"preferCSSPageSize": True, "printBackground": True}
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", settings)["data"])
    boxes = {tuple(round(float(n)) for n in box.split()) for box in re.findall(rb"/MediaBox \[([\d. ]+)\]", pdf)}
    assert boxes <= {(0, 0, 595, 842), (0, 0, 596, 842)}
    assert 2 <= len(re.findall(rb"/Type /Page\b", pdf)) <= 20
