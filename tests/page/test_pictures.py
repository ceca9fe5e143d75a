"""README's pictures as Chromium draws them: nothing leaves its panel or lies on something else."""

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ops

PICTURES = sorted((Path(__file__).parents[2] / "ops" / "pictures").glob("tokenfleet-*.svg"))
BOXES_OF_TEXTS = (
    "[...document.querySelectorAll('text')].map(e => [e.textContent, e.getBBox()]).map(([t, b]) => "
    "({text: t, left: b.x, right: b.x + b.width, top: b.y, bottom: b.y + b.height}))"
)
BOXES_OF_PANELS = (
    "[...document.querySelectorAll('rect[stroke]')].map(e => e.getBBox()).map(b => "
    "({left: b.x, right: b.x + b.width, top: b.y, bottom: b.y + b.height}))"
)

Box = dict[str, Any]  # Any: a text and numbers


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_every_text_lies_in_one_panel_and_on_no_other(browser: Any, picture: Path) -> None:
    page = browser.new_page()
    page.goto(picture.as_uri())
    heading, *texts = page.evaluate(BOXES_OF_TEXTS)
    panels = page.evaluate(BOXES_OF_PANELS)

    assert heading["text"].startswith("tokenfleet / ") and len(panels) > 3
    assert [text["text"] for text in texts if sum(_holds(panel, text) for panel in panels) != 1] == []
    assert [(a["text"], b["text"]) for n, a in enumerate(texts) for b in texts[:n] if _overlap(a, b)] == []
    page.close()


def _holds(panel: Box, text: Box) -> bool:
    return bool(
        panel["left"] <= text["left"] and text["right"] <= panel["right"]
        and panel["top"] <= text["top"] and text["bottom"] <= panel["bottom"]
    )  # fmt: skip


def _overlap(a: Box, b: Box) -> bool:
    return bool(
        a["left"] < b["right"] and b["left"] < a["right"] and a["top"] + 2 < b["bottom"] and b["top"] + 2 < a["bottom"]
    )
