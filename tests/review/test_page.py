"""The page in a real Chromium: reviewed by keyboard, the server killed in the middle, two reviewers at once."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raymat.matting import METHODS
from raymat.nodule import Channel
from raymat.review.decisions import Decisions
from tests.support.nodules import draw_nodule, write_dataset
from tests.support.servers import free_port

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]

TOKEN = "token-of-the-test"
HEADS = "#mosaic .kind, #mosaic .head"  # of the groups and columns of small images
DEADLINE_MS = 240_000  # a machine may be slow; nothing here waits for a fixed time


@contextlib.contextmanager
def serving(store, port: int) -> Iterator[subprocess.Popen]:
    """`raymat review` in a process of its own, ended by SIGKILL unless it is dead already."""
    command = [sys.executable, "-m", "raymat", "review", store.root, "--port", str(port), "--token", TOKEN]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        while "http://" not in (line := process.stdout.readline()):
            assert line, "the server ended before it served"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Reviewer:
    """A person before a browser window of their own."""

    def __init__(self, browser, port: int, name: str) -> None:
        self.faults: list[str] = []
        self.page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        self.page.set_default_timeout(DEADLINE_MS)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.goto(f"http://127.0.0.1:{port}/?token={TOKEN}")
        self.page.fill("#name", name)
        self.page.keyboard.press("Enter")

    def sees(self, nodule_id: str) -> None:
        self.page.wait_for_selector(f'body[data-nodule="{nodule_id}"]')

    def says(self, words: str) -> None:
        self.page.get_by_text(words).first.wait_for()

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)

    def red(self, shows: str) -> int:
        """How many pixels are coloured in the large pane that shows this ("axial matte", say)."""
        count = """(canvas) => {
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            let n = 0;
            for (let i = 0; i < data.length; i += 4) n += data[i] > data[i + 2] + 60;
            return n;
        }"""
        return self.page.locator(f'#focus canvas[data-shows="{shows}"]').evaluate(count)

    def picture(self, selector: str, number: int) -> str:
        return self.page.locator(selector).nth(number).evaluate("(canvas) => canvas.toDataURL()")


def texts(page, selector: str) -> list[str]:
    """The texts of what is on the page, those that are empty left out."""
    found = page.locator(selector).evaluate_all("(all) => all.map((one) => one.innerText)")
    return [" ".join(text.split()) for text in found if text.strip()]


def name(number: int) -> str:
    return f"case-{number:03d}"


def review_with_the_server_killed(browser, tmp_path: Path, count: int) -> None:
    """Two reviewers decide a number of nodules; the server is killed in the middle."""
    half = count // 2
    store = write_dataset(tmp_path / "dataset", [draw_nodule(n) for n in range(count)])
    port = free_port()
    keys = {
        "Ada": ["x" if n % 7 == 3 else str(1 + n % 8) for n in range(count)],
        "Ben": ["x" if n % 5 == 3 else str(1 + n % 8) for n in range(count)],
    }
    with serving(store, port) as server:
        reviewers = {who: Reviewer(browser, port, who) for who in keys}

        def decide(numbers: range) -> None:
            for number in numbers:
                for who, reviewer in reviewers.items():
                    reviewer.sees(name(number))
                    reviewer.press(keys[who][number])

        decide(range(half))
        for reviewer in reviewers.values():
            reviewer.sees(name(half))
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        for who, reviewer in reviewers.items():
            reviewer.press(keys[who][half])
            reviewer.says("the server does not answer")
            assert reviewer.page.locator("body").get_attribute("data-nodule") == name(half)
        assert len(Decisions(store).all()) == 2 * half
    with serving(store, port):
        decide(range(half + 1, count))
        for reviewer in reviewers.values():
            reviewer.says(f"{count} of {count} decided by you")
            reviewer.says("All nodules are decided")
        reviewers["Ada"].press("u")
        reviewers["Ada"].says(f"{count - 1} of {count} decided by you")
        reviewers["Ada"].says(f"{count - 1} reviewed by both")
        reviewers["Ada"].press(keys["Ada"][count - 1])
        reviewers["Ada"].says(f"{count} of {count} decided by you")
        assert not [fault for reviewer in reviewers.values() for fault in reviewer.faults]
    found = Decisions(store)
    assert len(found.all()) == 2 * count + 2  # one taken back and made again
    labels = {
        who: ["reject" if key == "x" else METHODS[int(key) - 1] for key in pressed] for who, pressed in keys.items()
    }
    for who, expected in labels.items():
        assert [found.current()[name(n)][who].label for n in range(count)] == expected


def test_two_reviewers_with_the_server_killed_in_the_middle(browser, tmp_path):
    review_with_the_server_killed(browser, tmp_path, 10)


@pytest.mark.soak
def test_fifty_nodules_by_two_reviewers_with_the_server_killed_in_the_middle(browser, tmp_path, soaked):
    review_with_the_server_killed(browser, tmp_path, max(10, soaked(50)))


def test_windows_slices_flicker_and_filters_do_what_their_keys_say(browser, tmp_path):
    nodules = [draw_nodule(0), draw_nodule(1, outcome="rejected"), draw_nodule(2)]
    store = write_dataset(tmp_path / "dataset", nodules)
    port = free_port()
    with serving(store, port):
        reviewer = Reviewer(browser, port, "Cy")
        page = reviewer.page
        reviewer.sees(name(0))
        assert page.locator("#mosaic canvas").count() == 27
        assert page.locator("#mosaic .column.score .head").inner_text().startswith("1 CF")

        # Side by side: image, then matte. The matte is coloured and goes while space is held.
        assert reviewer.red("axial image") > 0  # a reader's contour is yellow
        reviewer.press("c")
        assert reviewer.red("axial matte") > reviewer.red("axial image") == 0
        page.keyboard.down(" ")
        assert reviewer.red("axial matte") == 0
        page.keyboard.up(" ")
        assert reviewer.red("axial matte") > 0
        reviewer.press("[")
        reviewer.press("b")
        assert page.locator("#focus canvas").count() == 3

        # One slice on for every axial image, large and small; the coronal ones keep theirs but for the cross-hair.
        before = [reviewer.picture("#mosaic canvas", n) for n in range(27)]
        reviewer.press("ArrowUp")
        after = [reviewer.picture("#mosaic canvas", n) for n in range(27)]
        assert [a != b for a, b in zip(before, after, strict=True)] == [True, False, False] * 9
        reviewer.press("m")
        assert page.locator("#level").input_value() == "40"
        assert all(
            a != b for a, b in zip(after, (reviewer.picture("#mosaic canvas", n) for n in range(27)), strict=True)
        )

        reviewer.press("f")
        page.wait_for_selector("#flicker.on")
        deadline = time.monotonic() + DEADLINE_MS / 1000
        seen = set()
        while len(seen) < 2:
            seen.add(reviewer.red("axial matte") > 0)
            assert time.monotonic() < deadline
        reviewer.press("f")

        # A decision against the score is found by its filter.
        reviewer.press("ArrowRight")
        reviewer.sees(name(1))
        reviewer.says("score: rejected")
        reviewer.press("4")
        reviewer.sees(name(2))
        page.select_option("#filter", "against")
        reviewer.sees(name(1))
        reviewer.says("you: IF")
        page.select_option("#filter", "undecided")
        reviewer.says("of 2, patient")
        page.select_option("#filter", "split")
        reviewer.says("no nodule matches this filter")
        assert not reviewer.faults
        assert Path(store.path("review")).is_dir()


def test_keys_choose_among_the_mattes_of_the_datasets_kind_and_the_others_can_be_looked_at(browser, tmp_path):
    nodules = [replace(draw_nodule(n), kind="calibrated", method="cf+") for n in range(3)]
    store = write_dataset(tmp_path / "dataset", nodules)
    port = free_port()
    with serving(store, port):
        reviewer = Reviewer(browser, port, "Dee")
        page = reviewer.page
        reviewer.sees(name(0))
        assert texts(page, HEADS) == [
            "image",
            *("calibrated: keys 1 to 4", "1 CF+ 0.60", "2 KNN+ 0.55", "3 LB+ 0.50", "4 IF+ 0.45"),
            *("membership: to compare", "CF 0.80", "KNN 0.75", "LB 0.70", "IF 0.65"),
        ]
        assert texts(page, ".column.score .head") == ["1 CF+ 0.60"]
        assert texts(page, ".column.beside .head") == texts(page, ".group.other .column.beside .head") == ["CF 0.80"]
        reviewer.says("score: CF+")
        reviewer.says("best membership: CF")
        reviewer.says("keys 1 to 4 choose")
        assert texts(page, "#focused") == ["1 CF+, calibrated, score 0.60"]

        # A matte of the other kind is shown by the mouse or by keys, and chosen by none.
        calibrated = reviewer.picture('#focus canvas[data-shows="axial matte"]', 0)
        page.locator('.column[data-matte="7"] .head').click()
        assert texts(page, "#focused") == ["IF, membership, score 0.65"]
        assert reviewer.picture('#focus canvas[data-shows="axial matte"]', 0) != calibrated
        reviewer.press(".")
        assert texts(page, "#focused") == ["1 CF+, calibrated, score 0.60"]
        reviewer.press(",")
        assert texts(page, "#focused") == ["IF, membership, score 0.65"]
        reviewer.press("5")
        reviewer.says("Only keys 1 to 4 choose: in this dataset alpha is of the kind calibrated")
        assert page.locator("body").get_attribute("data-nodule") == name(0)

        reviewer.press("2")
        reviewer.sees(name(1))
        reviewer.press("x")
        reviewer.sees(name(2))
        assert not reviewer.faults
    made = [(d.nodule_id, d.label, d.kind) for d in Decisions(store).all()]
    assert made == [(name(0), "knn+", "calibrated"), (name(1), "reject", "calibrated")]


def test_a_dataset_of_any_kind_has_a_key_for_every_matte(browser, tmp_path):
    store = write_dataset(tmp_path / "dataset", [draw_nodule(0, methods=("cf", "knn", "cf+"))])
    port = free_port()
    with serving(store, port):
        reviewer = Reviewer(browser, port, "Eve")
        reviewer.sees(name(0))
        assert texts(reviewer.page, HEADS) == [
            "image",
            *("membership: keys 1 to 2", "1 CF 0.80", "2 KNN 0.75"),
            *("calibrated: key 3", "3 CF+ 0.70"),
        ]
        assert texts(reviewer.page, ".column.beside") == []
        reviewer.press("3")
        reviewer.says("you: CF+")
        assert not reviewer.faults
    assert [(d.label, d.kind) for d in Decisions(store).all()] == [("cf+", "any")]


def test_a_key_shows_another_channel_in_a_window_of_its_own(browser, tmp_path):
    pet = Channel("PET", np.full((20, 32, 32), 3.0, np.float32), 0.0, 12.0)
    pet.image[8:12, 12:20, 12:20] = 9.0
    about = {"image_channel": {"name": "CT", "intensity_range": [-1000.0, 400.0]}}
    nodules = [replace(n, channels=[pet], metadata=n.metadata | about) for n in map(draw_nodule, range(2))]
    store = write_dataset(tmp_path / "dataset", nodules)
    port = free_port()
    with serving(store, port):
        reviewer = Reviewer(browser, port, "Flo")
        page = reviewer.page
        reviewer.sees(name(0))
        assert texts(page, "#channels button") == ["CT", "PET p"]
        assert texts(page, HEADS)[0] == "CT"
        first = reviewer.picture("#mosaic canvas", 0)
        reviewer.press("p")
        assert texts(page, HEADS)[0] == "PET"
        assert [page.locator(f"#{field}").input_value() for field in ("level", "width")] == ["6", "12"]
        assert not page.locator('[data-window="lung"]').is_visible()
        assert reviewer.picture("#mosaic canvas", 0) != first
        # It stays for the next nodule; back on CT the window is the one of before.
        reviewer.press("ArrowRight")
        reviewer.sees(name(1))
        assert texts(page, HEADS)[0] == "PET"
        reviewer.press("ArrowLeft")
        reviewer.sees(name(0))
        page.locator("#channels button").first.click()
        assert reviewer.picture("#mosaic canvas", 0) == first
        assert not reviewer.faults
