"""Any runs on one page: what can be compared is, the rest is refused; listening is blind; votes add up."""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest

from commands.cli import main
from conf.study import BASE_METHOD
from report.study import listen
from report.study.of_runs import build_study_from_runs
from report.study.paired import sign_test
from report.study.votes import VOTE_QUESTIONS, RaterVotes, find_majority, read_votes, tally_votes
from tests.helpers.browser_pages import launched, until, visit
from tests.helpers.synthetic_run import XSS
from tests.helpers.synthetic_study import make_trial

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two methods, two seeds, with audio of four prompts, the first of which sounds like the base's."""
    root = tmp_path_factory.mktemp("runs")
    return [make_trial(root, method, seed, audio=True, prompts=8) for method in ("gated", "sft") for seed in (0, 1)]


# --- runs as a study


def test_runs_that_differ_in_their_seed_alone_are_one_method_and_the_first_is_the_baseline(
    runs: list[Path],
) -> None:
    study = build_study_from_runs([runs[3], *runs])
    assert [(cell.method, cell.seed) for cell in study.cells] == [
        ("sft", 1),
        ("sft", 0),
        ("gated", 0),
        ("gated", 1),
    ]
    assert study.baseline == "sft" and study.name == "sft and gated"
    assert build_study_from_runs(runs[:2]).baseline == BASE_METHOD, (
        "a single method is held against what it began with"
    )


def test_methods_of_one_name_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    def run(name: str, alpha: float, **more: Any) -> Path:
        return make_trial(
            tmp_path, "gated", 0, name=name, prompts=2, settings={"algo": {"gate": {"alpha": alpha}}, **more}
        )

    three = [
        run("a", 0.9),
        run("b", 0.5),
        run("c", 0.9, log={"rollouts_every": 5}, run={"seed": 1, "name": "c", "root": "x"}),
    ]
    assert [cell.method for cell in build_study_from_runs(three).cells] == [
        "gated algo.gate.alpha=0.9", "gated algo.gate.alpha=0.9", "gated algo.gate.alpha=0.5"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"judge": {"scale_hi": 4.0}}, r"judge\.scale_hi must be the same in all runs: 4\.0, but 5\.0 in "),
        (
            {"data": {"test": "/data/other.jsonl"}},
            r'data\.test must be the same in all runs: "/data/other\.jsonl", but ',
        ),
        ({}, r"must differ in its settings or in run\.seed=0 from "),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_with_the_rule(
    tmp_path: Path, change: dict[str, Any], rule: str
) -> None:
    first, other = (
        make_trial(tmp_path, "gated", 0, name=name, prompts=2, settings=settings)
        for name, settings in (("a", {}), ("b", change))
    )
    with pytest.raises(ValueError, match=rule):
        build_study_from_runs([first, other])


def test_noise_in_training_is_a_method_of_its_own_for_nothing_held_out_has_it(tmp_path: Path) -> None:
    both = [
        make_trial(tmp_path, "gated", 0, name=f"noise{noise}", prompts=2, settings={"judge": {"noise": noise}})
        for noise in (0.0, 0.5)
    ]
    assert [cell.method for cell in build_study_from_runs(both).cells] == [
        "gated judge.noise=0.0",
        "gated judge.noise=0.5",
    ]


def test_the_same_prompts_in_another_place_and_other_workers_are_no_difference(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).write_text("the same rows")
    both = [
        make_trial(tmp_path, method, 0, prompts=2, settings={"data": {"test": str(tmp_path / place)}, "judge": {"workers": count}})
        for method, place, count in (("gated", "x", 1), ("sft", "y", 2))
    ]  # fmt: skip
    assert len(build_study_from_runs(both).cells) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one finished run or more, or --votes FILE"),
        (["/nowhere"], "/nowhere: not a run directory"),
        (["RUN", "--listen", "base", "/nowhere"], "--listen: must be base or one of the runs: got /nowhere"),
        (["RUN", "--listen", "RUN", "RUN"], "--listen: must name two sides"),
        (["RUN", "--pairs", "0"], "--pairs: must be from 1 to 200: got 0"),
        (["RUN", "--to", "RUN"], "--to: must not be a run directory"),
        (["--votes", "/nowhere"], "/nowhere: must be a readable file"),
        (["RUN", "--votes", "/nowhere"], "--votes: stands without runs"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(
    arguments: list[str], message: str, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(runs[0]) if argument == "RUN" else argument for argument in arguments]
    to = [] if "--to" in given else ["--to", str(tmp_path / "out")]
    before = sorted(path.name for path in runs[0].iterdir())
    assert main(["compare", *given, *to]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == [] and sorted(path.name for path in runs[0].iterdir()) == before


def test_a_run_that_is_not_finished_is_named(tmp_path: Path) -> None:
    run = make_trial(tmp_path, "gated", 0, prompts=2)
    (run / "report.html").unlink()
    with pytest.raises(ValueError, match="must have come to its end"):
        build_study_from_runs([run])


def test_compare_writes_the_page_the_tables_and_the_listening_page(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *map(str, runs), "--to", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "main  gated   2 " in shown and "gated against sft, which the page hides" in shown
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "compare.html",
        "compare.csv",
        "cells.csv",
        "listen.html",
        "versions.json",
    }


def test_runs_without_audio_have_no_listening_page_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_trial(tmp_path, "gated", 0, prompts=2)
    assert main(["compare", str(run), "--to", str(tmp_path / "out")]) == 0
    assert "no listening page: nothing to listen to" in capsys.readouterr().err
    assert not (tmp_path / "out" / "listen.html").exists()


# --- what is listened to


def opened(data: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(b64decode(data["key"])))


def listening(runs: list[Path], wanted: list[str] | None = None, most: int = 24, seed: int = 0) -> dict[str, Any]:
    return dict(listen.build_listening_data(*listen.choose_sides(build_study_from_runs(runs), wanted), most, seed))


def test_pairs_are_the_same_prompt_and_seed_and_those_that_sound_alike_are_left_out(runs: list[Path]) -> None:
    data = listening(runs, ["base", str(runs[2])])
    assert sorted(outcome["item"] for outcome in data["items"]) == [
        f"row-00{n}/{seed}" for n, seed in product((1, 2, 3), (0, 1))
    ]
    assert data["notes"] == ["2 pairs sound the same on both sides and are left out"]
    key = opened(data)
    assert (key["left"], key["right"], len(key["swapped"])) == (BASE_METHOD, "sft", 6)
    for place, (item, swap) in enumerate(zip(data["items"], key["swapped"], strict=True)):
        row, seed = item["item"].split("/")
        run = runs[2 + int(seed)]
        for side, when in (("a", "after" if swap else "before"), ("b", "before" if swap else "after")):
            sound = b64encode((run / f"samples/{when}_{row}.ogg").read_bytes()).decode()
            assert data["audio"][f"{place}{side}"] == f"data:audio/ogg;base64,{sound}"


def test_the_order_and_the_sides_are_drawn_from_the_seed(runs: list[Path]) -> None:
    assert listening(runs) == listening(runs)
    drawn = {
        json.dumps([listening(runs, seed=seed)["items"], opened(listening(runs, seed=seed))["swapped"]])
        for seed in range(8)
    }
    assert len(drawn) == 8
    assert {swap for seed in range(8) for swap in opened(listening(runs, seed=seed))["swapped"]} == {
        True,
        False,
    }


def test_the_page_names_no_side_outside_its_key(runs: list[Path]) -> None:
    data = listening(runs)
    hidden = json.dumps({name: value for name, value in data.items() if name not in ("key", "audio")})
    assert not re.search(r"gated|sft|base|before|after|left_|swapped", hidden)


def test_a_page_holds_no_more_pairs_than_asked_for(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    few = listening(runs, ["base", str(runs[0])], most=2)
    assert len(few["items"]) == 2 and "2 of 6 pairs are here" in few["notes"]
    monkeypatch.setattr(listen, "LISTENING_BUDGET_BYTES", 30_000)
    assert 0 < len(listening(runs, ["base", str(runs[0])])["items"]) < 6


# --- votes


def voted(
    rater: str, votes: dict[str, str], left: str = "base", right: str = "gated", page: str = "0" * 16
) -> RaterVotes:
    lines = [{"item": item, "question": "overall", "vote": vote} for item, vote in votes.items()]
    return RaterVotes.model_validate(
        {
            "format": "wavgate-votes-2",
            "page": page,
            "rater": rater,
            "left": left,
            "right": right,
            "votes": lines,
        }
    )


@pytest.mark.parametrize(
    ("said", "most"),
    [
        ("lll", "left"), ("llr", "left"), ("lrr", "right"), ("llt", "left"), ("ltt", "tie"), ("lrt", "tie"),
        ("lr", "tie"), ("l", "left"), ("ls", "left"), ("lss", "left"), ("ss", "skip"), ("", "skip"), ("lt", "tie"),
    ],
)  # fmt: skip
def test_a_pair_goes_to_who_has_more_than_half_of_those_who_voted(said: str, most: str) -> None:
    words: dict[str, Any] = {"l": "left", "r": "right", "t": "tie", "s": "skip"}
    assert find_majority([words[letter] for letter in said]) == most


def test_several_raters_are_put_together_and_tested_without_ties() -> None:
    three = [
        voted("a", {"1": "right", "2": "right", "3": "tie", "4": "left", "5": "skip"}),
        voted("b", {"1": "right", "2": "left", "3": "tie", "4": "left", "5": "skip"}),
        voted("c", {"1": "right", "2": "right", "3": "left", "4": "skip", "5": "skip", "6": "right"}),
    ]
    tallies = tally_votes([(Path(item.rater), item) for item in three])
    assert [tally.question for tally in tallies] == list(VOTE_QUESTIONS)
    overall = tallies[-1]
    assert (overall.wins, overall.losses, overall.ties, overall.unvoted) == (1, 3, 1, 1)
    assert overall.share == 0.25 and overall.p == sign_test(1, 3) == 0.625
    assert (tallies[0].wins, tallies[0].share, tallies[0].p) == (0, None, 1.0)


def test_votes_about_other_sides_or_of_one_rater_twice_are_refused() -> None:
    first = (Path("a.json"), voted("a", {}))
    with pytest.raises(ValueError, match=r"b\.json: must be about base and gated as in a\.json: got base and sft"):
        tally_votes([first, (Path("b.json"), voted("b", {}, right="sft"))])
    with pytest.raises(ValueError, match=r"b\.json: every file must be another rater's: 'a' is in a\.json too"):
        tally_votes([first, (Path("b.json"), voted("a", {}))])


def test_a_prompt_counts_once_whatever_number_of_its_seeds_was_heard() -> None:
    votes = voted("a", {"p/0": "left", "p/1": "left", "p/2": "right", "q/x/0": "left", "q/x/1": "tie"})
    overall = tally_votes([(Path("a"), votes)])[-1]
    assert (overall.wins, overall.losses, overall.ties) == (1, 0, 1)


def test_votes_of_another_page_are_refused() -> None:
    with pytest.raises(ValueError, match=r"b\.json: must be of page 0000000000000000 as a\.json: got 1111"):
        tally_votes([(Path("a.json"), voted("a", {})), (Path("b.json"), voted("b", {}, page="1" * 16))])


@pytest.mark.parametrize("rater", ["a\n raters: all", "\x1b[2J", "\u2028", ""])
def test_a_rater_without_a_name_to_print_is_refused(rater: str) -> None:
    with pytest.raises(ValueError, match="rater"):
        voted(rater, {})


def test_sides_are_dealt_half_and_half(runs: list[Path]) -> None:
    for seed in range(8):
        swapped = opened(listening(runs, ["base", str(runs[0])], seed=seed))["swapped"]
        assert sum(swapped) == 3 and len(swapped) == 6
        assert sum(opened(listening(runs, ["base", str(runs[0])], most=3, seed=seed))["swapped"]) in (1, 2)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (
            '{"format": "wavgate-votes-2", "page": "0123456789abcdef", "rater": "a", "left": null, "right": null, "votes": []}',
            "was saved midway, without the sides",
        ),
        ("not json", "v.json: Invalid JSON"),
        ('{"format": "x"}', "v.json: format: "),
        (
            '{"format": "wavgate-votes-2", "page": "0123456789abcdef", "rater": "a", "left": "x", "right": "y", "votes": [{"item": "1", "question": "overall", "vote": "both"}]}',
            "v.json: votes.0.vote: ",
        ),
        (
            '{"format": "wavgate-votes-2", "page": "0123456789abcdef", "rater": "a", "left": "x", "right": "y", "votes": [{"item": "1", "question": "overall", "vote": "tie"}, {"item": "1", "question": "overall", "vote": "left"}]}',
            "a pair must have one vote per question: 1, overall has more",
        ),
    ],
)
def test_a_file_that_the_page_did_not_save_is_named(tmp_path: Path, text: str, rule: str) -> None:
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(rule)):
        read_votes(tmp_path / "v.json")


# --- in a browser


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    with launched() as browser:
        yield browser


def test_a_study_page_is_ready_and_answers_to_pointer_and_keys(
    chromium: "Browser", runs: list[Path], tmp_path: Path
) -> None:
    assert main(["compare", *map(str, runs), "--to", str(tmp_path)]) == 0
    with visit(chromium, tmp_path / "compare.html") as tab:
        assert tab.locator("#methods tbody tr").count() == 3
        assert tab.locator("#pareto g[data-method]").count() == 3
        tab.select_option("select[name=measure]", "eq")
        assert "acoustic axis" in tab.inner_text("#measures") and "more is better" in tab.inner_text("#measures")
        tab.locator("#pareto g[data-method=sft]").focus()
        assert tab.locator(".faded").count() > 0
        assert tab.locator("[data-method=sft].faded").count() == 0
        lines = tab.locator("#curves svg.overlay").first
        lines.focus()
        tab.keyboard.press("Home")
        assert "step 1: gated" in str(lines.get_attribute("aria-valuetext"))
        tab.set_viewport_size({"width": 380, "height": 800})
        assert tab.evaluate("document.documentElement.scrollWidth") <= 380


def test_a_plot_of_a_study_is_saved_as_a_picture_with_its_colours_and_names(
    chromium: "Browser", runs: list[Path], tmp_path: Path
) -> None:
    assert main(["compare", *map(str, runs), "--to", str(tmp_path)]) == 0
    names = {"base", "gated", "sft"}
    with visit(chromium, tmp_path / "compare.html") as tab:
        for place, drawn, methods in (("#pareto", "circle", names), ("#curves", "path", names - {"base"})):
            with tab.expect_download() as saved:
                tab.locator(f"{place} button.save").first.click()
            picture = ElementTree.parse(saved.value.path())
            parts = list(picture.iter())
            assert (
                saved.value.suggested_filename.endswith(".svg") and parts[0].tag == "{http://www.w3.org/2000/svg}svg"
            )
            assert methods <= {part.text for part in parts if part.tag.endswith("}text")}
            colours = {part.get("fill", "") + part.get("stroke", "") for part in parts if part.tag.endswith(drawn)}
            assert len(colours) > 1 and all("rgb" in colour for colour in colours)


def test_text_from_the_runs_stays_text(chromium: "Browser", tmp_path: Path) -> None:
    hostile = [
        make_trial(tmp_path, "m", 0, name=f"run{n}", prompts=4, settings={"algo": {"name": text}})
        for n, text in enumerate(XSS)
    ]
    assert main(["compare", *map(str, hostile), "--to", str(tmp_path / "out")]) == 0
    with visit(chromium, tmp_path / "out" / "compare.html") as tab:
        assert tab.title() == f"{len(XSS)} methods · WavGate study"
        assert XSS[0] in tab.inner_text("#methods") and tab.locator("script").count() == 2
        assert tab.locator("img, iframe, object, embed, svg[onload]").count() == 0


def press(tab: "Page", keys: str) -> None:
    for key in keys:
        tab.keyboard.press(key)


def test_listening_is_by_key_can_be_undone_and_goes_on_after_a_reload(
    chromium: "Browser", runs: list[Path], tmp_path: Path
) -> None:
    page = listen.write_listening_page(
        *listen.choose_sides(build_study_from_runs(runs), ["base", str(runs[0])]), tmp_path, 3, 1
    )
    with visit(chromium, page) as tab:
        count = tab.locator(".count")
        assert count.inner_text() == "pair 1 of 3, question 1 of 3: helpfulness"
        press(tab, "a1a")
        assert count.inner_text().endswith("helpfulness"), "no vote before both were heard"
        until(tab, "document.querySelector('audio[data-side=a]').currentTime > 0")
        press(tab, "2at")
        assert count.inner_text() == "pair 1 of 3, question 3 of 3: overall"
        press(tab, "u")
        assert count.inner_text() == "pair 1 of 3, question 2 of 3: naturalness"
        press(tab, "bb")
        assert count.inner_text() == "pair 2 of 3, question 1 of 3: helpfulness"
        tab.wait_for_timeout(500)  # a page's storage reaches the browser's own process a little later
        tab.reload()
        tab.wait_for_selector("html[data-ready-ms]", state="attached")
        assert count.inner_text() == "pair 2 of 3, question 1 of 3: helpfulness", "the browser keeps the votes"
        shown = tab.inner_text("body")
        assert "base" not in shown and "gated" not in shown


def test_the_sides_are_told_after_the_last_vote_and_the_file_adds_up(
    chromium: "Browser", runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left, right = listen.choose_sides(build_study_from_runs(runs), ["base", str(runs[0])])
    page = listen.write_listening_page(left, right, tmp_path, 3, 2)
    swapped = opened(dict(listen.build_listening_data(left, right, 3, 2)))["swapped"]
    with visit(chromium, page) as tab:
        tab.fill("input", "ab")
        press(tab, "xx")  # into the name
        with tab.expect_download() as early:
            tab.click("button[data-save]")
        midway = early.value.path().read_text()
        assert "base" not in midway and "gated" not in midway and '"left": null' in midway
        tab.locator("h1").click()
        for swap in swapped:  # always for the base, except that the last question is a tie
            press(tab, "12" + ("b" if swap else "a") * 2 + "t")
        assert "You compared base with gated" in tab.inner_text("main")
        row = tab.locator("tbody tr").first.all_inner_texts()[0].split("\t")
        assert row == ["helpfulness", "2", "0", "0", "0", "100.0 %", "0.5000"], "three pairs of two prompts"
        press(tab, "u")
        assert tab.locator("tbody tr").count() == 3, "no way back once the sides are known"
        with tab.expect_download() as download:
            tab.click("button[data-save]")
        assert download.value.suggested_filename == "votes-abxx.json"
        download.value.save_as(tmp_path / "abxx.json")
    votes = read_votes(tmp_path / "abxx.json")
    assert (votes.rater, votes.left, votes.right, len(votes.votes)) == ("abxx", "base", "gated", 9)
    assert {vote.vote for vote in votes.votes if vote.question != "overall"} == {"left"}
    capsys.readouterr()
    assert main(["compare", "--votes", str(tmp_path / "abxx.json")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"helpfulness +2 +0 +0 +0 +100\.0% +0\.5000", shown)
    assert re.search(r"overall +0 +0 +2 +0 +- +1\.0000", shown)
