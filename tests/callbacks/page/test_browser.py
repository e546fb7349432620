"""The page in a real browser, from disk: sounds are decoded and played, filters work, the console stays empty."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from audio_diffusion.callbacks.page.page import write_page


@pytest.mark.slow
def test_a_browser_plays_the_sounds_and_filters_them(
    require: Callable[[str], None], make_run_folder: Callable[..., Path]
) -> None:
    require("chromium")
    from playwright.sync_api import expect, sync_playwright

    one = make_run_folder("one", rounds=12)
    two = make_run_folder("two", rounds=2, lr=0.2)
    path = one.parent / "both.html"
    write_page([one, two], path)
    flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport={"width": 390, "height": 844})
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: wrong.append(request.url) if ".wav" not in request.url else None)
        page.goto(path.as_uri())

        # filters: 8 of 12 rounds of one run and both of the other, in 6 slots; then a label, a run and steps
        count = page.locator("#count")
        expect(count).to_have_text("60 of 84 sounds")
        page.select_option("#by-label", "kick")
        expect(count).to_have_text("20 of 84 sounds")
        page.select_option("#by-run", "0")
        page.select_option("#density", "all")
        expect(page.locator(".clip")).to_have_count(24)
        page.select_option("#from-step", "50")
        page.select_option("#by-slot", "005_kick")
        assert page.locator(".clip b").all_text_contents() == ["50", "55", "60"]

        # a sound, and the next by keyboard: played to the end
        page.evaluate("""() => {
            window.ended = [];
            document.getElementById("audio").addEventListener("ended", (e) => window.ended.push(e.target.duration));
        }""")
        page.locator(".clip").first.click()
        page.wait_for_function("window.ended.length === 1")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.wait_for_function("window.ended.length === 2")
        assert page.evaluate("window.ended") == [0.25, 0.25]
        expect(page.locator("#playing")).to_have_text("one · kick · slot 005 · step 55")
        page.keyboard.press("x")
        expect(page.locator("#playing")).to_have_text("one · kick · slot 005 · step 50")

        # everything back; a sound that is gone is named; the page is no wider than a phone
        page.get_by_role("button", name="Reset").click()
        expect(count).to_have_text("60 of 84 sounds")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert wrong == []
        (one / "samples" / "step_00000005" / "000_clap.wav").unlink()
        page.locator(".clip").first.click()
        expect(page.locator("#playing")).to_contain_text("samples/step_00000005/000_clap.wav is missing")
        browser.close()
