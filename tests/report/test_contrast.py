"""Colours of the pages against what they are drawn on: WCAG 2, computed from the style in use."""

import re

import pytest

from report.run.page import ASSET_FOLDER

TEXT = ("ink", "soft", "good", "bad", "warn")
LINES = ("c0", "c1", "c2", "c3", "c4", "c5", "c6", "pad", "note", "soft")
STYLE = "".join((ASSET_FOLDER / name).read_text() for name in ("page.css", "study.css", "listen.css"))


def themes() -> list[dict[str, str]]:
    """Light and dark, by the names of their colours."""
    blocks = re.findall(r":root \{(.*?)\}", (ASSET_FOLDER / "page.css").read_text(), re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks]


def channels(colour: str) -> list[float]:
    return [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]


def luminance(colour: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(colour: str, ground: str, opacity: float = 1.0) -> float:
    front, back = channels(colour), channels(ground)
    seen = [opacity * f + (1 - opacity) * b for f, b in zip(front, back, strict=True)]
    low, high = sorted((luminance(seen), luminance(back)))
    return (high + 0.05) / (low + 0.05)


def opacities() -> dict[str, float]:
    """Of every rule that is drawn paler, but those that step back while another is looked at."""
    rules = re.findall(r"([^{}]+)\{[^{}]*?(?<!-)opacity: ([\d.]+)", STYLE)
    return {name.strip(): float(value) for name, value in rules if "faded" not in name and "disabled" not in name}


def test_black_on_white_is_21_to_1() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("ground", ["page", "card"])
@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_text_has_a_contrast_of_four_and_a_half(theme: dict[str, str], ground: str) -> None:
    assert {
        name: round(contrast(theme[name], theme[ground]), 2)
        for name in TEXT
        if contrast(theme[name], theme[ground]) < 4.5
    } == {}


@pytest.mark.parametrize("ground", ["page", "card"])
@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_lines_legends_and_marks_have_a_contrast_of_three(theme: dict[str, str], ground: str) -> None:
    assert {
        name: round(contrast(theme[name], theme[ground]), 2)
        for name in LINES
        if contrast(theme[name], theme[ground]) < 3
    } == {}


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_what_is_drawn_paler_keeps_a_contrast_of_three(theme: dict[str, str]) -> None:
    pale = {rule: value for rule, value in opacities().items() if value < 1 and "head" not in rule}
    assert pale, "the rules are found"
    low = {
        (rule, name): round(contrast(theme[name], theme["card"], value), 2)
        for rule, value in pale.items()
        for name in ("c0", "c1", "c2", "c3", "c4", "c5", "c6")
        if contrast(theme[name], theme["card"], value) < 3
    }
    assert low == {}
