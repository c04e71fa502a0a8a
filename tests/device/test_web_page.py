"""The page that decodes in the browser, in headless Chromium."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_support import tool

import nnr_codec
from conformance import on_factors
from conformance.models import digits
from conformance.web.__main__ import make

pytestmark = pytest.mark.sanitizer  # these compile: not for every run

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")

from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

SECONDS = 60


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for program in ("chromium", "chromedriver", "clang", "clang++", "wasm-ld"):
        if tool(program) is None:
            pytest.skip(f"no {program}")
    if not Path("/usr/include/wasm32-wasi").is_dir():
        pytest.skip("no C library for WebAssembly (wasi-libc)")
    folder = tmp_path_factory.mktemp("site")
    make(folder, with_training=False)
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = tool("chromium")
    profile = tmp_path_factory.mktemp("profile")
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(tool("chromedriver")))
    driver.set_window_size(1280, 1000)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, address: str) -> Any:
    """The page, when it has fetched its first stream; it must leave no error in the console."""
    browser.get(f"{address}?rate=0")
    assert state(browser) == "done"
    yield browser
    assert browser.get_log("browser") == []


def state(browser: Any) -> str:
    def ended(_: Any) -> Any:
        found = browser.execute_script("return document.body.dataset.state")
        return found if found in ("done", "failed") else None

    found: str = WebDriverWait(browser, SECONDS, 0.05).until(ended)
    return found


def text(browser: Any, selector: str) -> str:
    found: str = browser.find_element(By.CSS_SELECTOR, selector).text
    return found


def open_file(browser: Any, path: Path) -> str:
    browser.execute_script("document.body.dataset.state = ''")
    browser.find_element(By.ID, "file").send_keys(str(path))
    return state(browser)


def outputs(browser: Any) -> Any:
    """What the network says of what is on the paper."""
    script = "return document.body.dataset.outputs"
    return json.loads(
        WebDriverWait(browser, SECONDS).until(lambda _: browser.execute_script(script))
    )


def test_layers_as_they_arrive(page: Any, site: Path) -> None:
    stream = site / "layers.nnr"
    sizes = nnr_codec.open(stream).info().quality_layers
    rows = page.find_elements(By.CSS_SELECTOR, "#layers tbody tr")
    assert len(rows) == len(sizes) == 3
    for quality, row in enumerate(rows, 1):
        right = digits.accuracy(nnr_codec.decode(stream, quality=quality))
        count = f"{sum(sizes[:quality]) / 1000:.1f} kB"
        assert row.text == f"{quality} of 3 {count} {right:.1f} %"
    assert len(page.find_elements(By.CSS_SELECTOR, "#tensors tbody tr")) == 17
    total = f"{stream.stat().st_size / 1000:.1f} kB"
    assert text(page, "#bytes") == f"{total} of {total}"
    assert text(page, "#message").startswith("Complete: 17 tensors in ")


def test_a_digit_of_the_test_set(page: Any, site: Path) -> None:
    page.find_elements(By.CSS_SELECTOR, "#samples button")[1].click()
    images, labels = digits.load_test_set()
    wanted = digits.logits(nnr_codec.decode(site / "layers.nnr"), images[1:2])[0]
    WebDriverWait(page, SECONDS).until(lambda _: np.allclose(outputs(page), wanted, atol=1e-4))
    assert text(page, "#answers .best").splitlines()[0] == str(labels[1])


def test_a_digit_that_is_drawn(page: Any) -> None:
    before = outputs(page)
    page.find_element(By.ID, "clear").click()
    paper = page.find_element(By.ID, "paper")
    drawing = ActionChains(page, duration=20).move_to_element_with_offset(paper, 0, -90)
    drawing.click_and_hold().move_by_offset(0, 90).move_by_offset(0, 90).release().perform()
    WebDriverWait(page, SECONDS).until(lambda _: outputs(page) != before)
    assert text(page, "#answers .best").splitlines()[0] == "1"


def test_files(page: Any, site: Path, tmp_path: Path) -> None:
    data = (site / "layers.nnr").read_bytes()
    files = {"cut": data[:-1], "damaged": data[:4000] + b"\0" + data[4001:], "none": b"nothing"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert open_file(page, tmp_path / "cut") == "done"
    assert text(page, "#message") == "The file is cut: 2 quality layers are whole."
    for name in ("damaged", "none"):
        assert open_file(page, tmp_path / name) == "failed"
        assert text(page, "#message").startswith("This cannot be decoded: byte ")
    assert open_file(page, site / "plain.nnr") == "done"
    assert text(page, "#accuracy") == "99.7 %"
    other = nnr_codec.encode({"w": np.ones((3, 4), np.float16), "n": np.arange(5)}).data or b""
    (tmp_path / "other.nnr").write_bytes(other)
    assert open_file(page, tmp_path / "other.nnr") == "done"
    assert "%" not in text(page, "#accuracy")


def test_a_slow_line(browser: Any, address: str, site: Path) -> None:
    """Tensors are there, and the first layer answers, long before the end."""
    browser.get(f"{address}?rate=16000")
    outputs(browser)
    assert browser.execute_script("return document.body.dataset.state") == "fetching"
    received = float(text(browser, "#bytes").split()[0])
    first = nnr_codec.open(site / "layers.nnr").info().quality_layers[0]
    assert first / 1000 - 0.1 < received < 0.6 * (site / "layers.nnr").stat().st_size / 1000
    assert state(browser) == "done"


def test_layers_of_factors(page: Any, tmp_path: Path) -> None:
    """Factors are refined; products would have to be made anew, and are refused."""
    chosen = nnr_codec.options.DecompositionOptions("lr", rank=0.9, carriage="factors")
    options = nnr_codec.EncodeOptions(qp=-30, quality_layers=3, decomposition=chosen)
    path = tmp_path / "factors.nnr"
    path.write_bytes(nnr_codec.encode(on_factors.NETWORK, options=options).data or b"")
    assert open_file(page, path) == "done"
    right = digits.accuracy(nnr_codec.decode(path))
    assert text(page, "#accuracy") == f"{right:.1f} %"
    page.find_element(By.ID, "factorized").click()
    page.find_element(By.ID, "file").clear()
    assert open_file(page, path) == "failed"
    assert "an update of weights in factors" in text(page, "#message")


def test_on_a_phone(page: Any) -> None:
    page.set_window_size(500, 900)
    widths = page.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    page.set_window_size(1280, 1000)
    assert widths[0] <= widths[1]
