"""The report: text stays text, nothing is asked for, gaps stay gaps, partial runs have a page."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

import report
from report import read
from report.records import Evaluation, Event, RolloutRecord
from report.run import browser, choose, curves, page, table
from store.lines import read_json_lines
from tests.helpers.browser_pages import launched, visit
from tests.helpers.synthetic_diagnostics import add_diagnostics
from tests.helpers.synthetic_judges import add_api_judges
from tests.helpers.synthetic_run import XSS, evaluation, make_run, write_lines

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MINUS, DASH = "\u2212", "\u2013"  # how the page writes them


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with 20 steps of 4 groups of 4, an API judge and hostile text, and its page."""
    run = add_diagnostics(add_api_judges(make_run(tmp_path_factory.mktemp("runs"))))
    assert report.write_run_page(run) == run / "report.html"
    return run


def data_of(run: Path) -> dict[str, Any]:
    """The data block of a page, as the page's script sees it."""
    text = (run / "report.html").read_text(encoding="utf-8")
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert block
    return dict(json.loads(block[1]))


# --- the file ---


def test_page_admits_only_its_own_script_and_style(run_dir: Path) -> None:
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert policy[1].startswith("default-src 'none'; ")
    assert "unsafe" not in policy[1] and "http" not in policy[1] and "*" not in policy[1]
    assert len(re.findall(r"'sha256-[A-Za-z0-9+/]{43}='", policy[1])) == 2


def test_page_names_no_address_outside_the_data(run_dir: Path) -> None:
    text = re.sub(
        r'(id="data">).*?(</script>)',
        r"\1\2",
        (run_dir / "report.html").read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    assert not re.findall(
        r"https?:|//[a-z]|url\(|@import|\bsrc=\"|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(",
        text,
    )


def test_data_block_holds_no_markup_and_gives_back_the_same_text(run_dir: Path) -> None:
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    assert text.count("<script") == 2 and text.count("</script") == 2
    last = data_of(run_dir)["rollouts"]["steps"][-1]
    replies = next(group for group in last["groups"] if group["group"] == 0)["replies"]
    assert [" ".join(word for word, _ in reply["said"]) for reply in replies] == [
        " ".join(line.split()) for line in XSS[:4]
    ]


@given(st.text())
def test_escaped_text_is_ascii_without_markup_and_survives(text: str) -> None:
    escaped = page.escape_json({"text": text})
    assert escaped.isascii() and not set("<>&") & set(escaped)
    assert json.loads(escaped)["text"] == text


def test_page_of_a_run_with_too_much_audio_and_text_keeps_to_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, steps=3, prompts=4, every=1)
    whole = len(page.render_page(page.collect_run_data(run)))
    for name, budget in (
        ("TOKEN_BUDGET_BYTES", 60_000),
        ("CLIP_BUDGET_BYTES", 50_000),
        ("SAMPLE_BUDGET_BYTES", 8_000),
    ):
        monkeypatch.setattr(browser, name, budget)
    data = page.collect_run_data(run)
    assert len(page.render_page(data)) < min(whole, 300_000)
    shown = data["rollouts"]
    assert isinstance(shown, dict)
    assert all(step["groups"] and step["left_out"] for step in shown["steps"])
    assert any("page budget" in note for note in shown["notes"])


# --- reading ---


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "versions.json", "metrics.jsonl", "evaluations.jsonl", "samples.jsonl", "events.jsonl"],
)
def test_missing_file_is_a_note_in_the_page(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path, steps=2, prompts=1, size=2)
    (run / name).unlink()
    report.write_run_page(run)
    assert f"{name} is not there" in json.dumps(data_of(run))


def test_empty_run_directory_has_a_page(tmp_path: Path) -> None:
    report.write_run_page(tmp_path)
    assert "rollouts/ has no step files" in json.dumps(data_of(tmp_path))


def test_missing_run_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run directory must exist"):
        report.write_run_page(tmp_path / "none")


@pytest.mark.parametrize("torn", ['{"step": 2, "reward/me', '{"step": 2, "lambda": "high"}', "\x00"])
def test_torn_last_line_is_left_out_and_said(tmp_path: Path, torn: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lambda": 0.5}\n' + torn)
    metric_rows = read.read_metric_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in metric_rows.rows] == [1]
    assert metric_rows.note and "line 2, the last, is left out" in metric_rows.note


def test_malformed_line_that_is_not_the_last_is_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", ['{"step": 1}', '{"step": 2, "lambda": "high"}', '{"step": 3}'])
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: lambda: "):
        read.read_metric_rows(tmp_path / "metrics.jsonl")


def test_line_separators_inside_a_string_do_not_split_a_line(tmp_path: Path) -> None:
    write_lines(tmp_path / "events.jsonl", ['{"time": 0, "kind": "x", "detail": "a\u2028b\u0085c"}'])
    assert len(read_json_lines(tmp_path / "events.jsonl", TypeAdapter(Event)).rows) == 1


def test_step_that_was_run_again_counts_once(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "metrics.jsonl",
        ['{"step": 1, "lambda": 1}', '{"step": 2, "lambda": 2}', '{"step": 2, "lambda": 3}'],
    )
    metric_rows = read.read_metric_rows(tmp_path / "metrics.jsonl")
    assert [row["lambda"] for row in metric_rows.rows] == [1, 3]
    assert metric_rows.note and "1 steps were run again" in metric_rows.note


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.ogg", "audio/../../x.ogg", "a\\..\\x.ogg", ""])
def test_audio_path_may_not_leave_the_run_directory(run_dir: Path, path: str) -> None:
    line = json.loads((run_dir / "rollouts/step_000001.jsonl").read_text(encoding="utf-8").split("\n")[0])
    with pytest.raises(ValidationError, match="inside the run directory"):
        RolloutRecord.model_validate(line | {"audio": path})


def test_audio_link_out_of_the_run_directory_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.ogg").write_bytes(b"x")
    run = tmp_path / "run"
    run.mkdir()
    (run / "a.ogg").symlink_to(tmp_path / "secret.ogg")
    assert read.read_clip(run, "a.ogg") == "a.ogg leads out of the run directory"


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"channels": "T"}, "one entry per id"),
        ({"weights": [1.0]}, "one entry per id"),
        ({"reward": None}, "either a reward or a reason"),
        ({"reward": float("nan")}, "finite"),
        ({"colour": 1}, "Extra inputs"),
    ],
)
def test_inconsistent_record_is_refused(run_dir: Path, change: dict[str, object], rule: str) -> None:
    lines = (run_dir / "rollouts/step_000001.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    line = next(record for record in map(json.loads, lines) if record["reward"] is not None)
    with pytest.raises(ValidationError, match=rule):
        RolloutRecord.model_validate(line | change)


def test_log_prob_that_is_not_a_number_becomes_null() -> None:
    row = json.loads(evaluation(0, "test", "before", 0.0)) | {"style_followed": float("nan")}
    assert Evaluation.model_validate(row).style_followed is None


# --- what is shown ---


def test_missing_value_is_null_and_not_zero() -> None:
    steps, columns = curves.rows_to_columns([{"step": 1, "a": 1.0}, {"step": 2}, {"step": 3, "a": None, "b": 2.0}])
    assert steps == [1, 2, 3]
    assert columns == {"a": [1.0, None, None], "b": [None, None, 2.0]}


def test_orchestration_is_the_rest_of_the_step_and_unknown_when_a_phase_is() -> None:
    phases = {"time/generate": 1.0, "time/judge": 2.0, "time/learn": 3.0, "time/sync": 0.5, "time/step": 7.0}
    _, columns = curves.rows_to_columns([{"step": 1, **phases}, {"step": 2, **phases, "time/sync": None}])
    assert columns["time/rest"] == [0.5, None]


def test_generation_is_cut_where_judging_was_hidden_behind_it() -> None:
    rows = [
        {"step": 1, "time/generate": 3.0, "time/judge_overlapped": 1.0},
        {"step": 2, "time/generate": 3.0},
    ]
    _, columns = curves.rows_to_columns(rows)
    assert columns["time/generate_alone"] == [2.0, 3.0], "an older run does not know its overlap"


def test_every_metric_is_drawn_somewhere(run_dir: Path) -> None:
    shown = data_of(run_dir)
    charts = shown["curves"]["panels"] + shown["curves"]["more"] + shown["judges"]["panels"]
    charts += [chart for part in ("learning", "gradients", "shifts") for chart in shown["diagnostics"][part]]
    names = {series["name"] for chart in charts for series in chart["series"]}
    rows = read.read_metric_rows(run_dir / "metrics.jsonl").rows
    names |= {name for row in rows for name in row if name.startswith("judge/missing_")}  # rare kinds: others
    names |= {"judge/latency_s"}  # the records tell p50 and p95
    names |= {"groups/dropped"}  # told by reason
    assert {name for row in rows for name in row} - {"step", "policy_version"} <= names


@given(st.lists(st.floats(1, 5), min_size=1), st.sampled_from([None, (1.0, 5.0)]))
def test_histogram_holds_every_value_once(values: list[float], scale: tuple[float, float] | None) -> None:
    edges = curves._compute_bin_edges(values, scale)
    assert sum(curves._compute_bin_shares(values, edges)) == pytest.approx(1)
    assert edges[0] <= min(values) and max(values) <= edges[-1] * (1 + 1e-12)


@pytest.mark.parametrize(
    ("said", "heard", "odd"),
    [
        ("Seven plus five.", "seven plus five", ([], [])),
        ("twelve", "shelf", (["twelve"], ["shelf"])),
        ("it is cold", "it is cold cold", ([], ["cold"])),
        ("a b c", "", (["a", "b", "c"], [])),
    ],
)
def test_words_without_a_counterpart_are_marked(said: str, heard: str, odd: tuple[list[str], list[str]]) -> None:
    left, right = browser.diff_words(said, heard)
    assert right is not None
    assert ([w for w, differs in left if differs], [w for w, differs in right if differs]) == odd


@given(st.lists(st.integers(), unique=True), st.integers(1, 20))
def test_spaced_keeps_the_ends_and_the_order(items: list[int], most: int) -> None:
    chosen = choose.pick_evenly_spaced(items, most)
    assert len(chosen) == min(most, len(items)) == len(set(chosen))
    assert chosen == [item for item in items if item in chosen]
    assert not items or chosen[-1] == items[-1]


@given(st.lists(st.lists(st.integers(1, 9), max_size=6), max_size=5), st.integers(0, 60))
def test_within_never_overspends(queues: list[list[int]], budget: int) -> None:
    taken = choose.take_within_budget(queues, lambda item: item, budget)
    assert sum(taken) <= budget
    assert budget < sum(map(sum, queues)) or sorted(taken) == sorted(item for queue in queues for item in queue)


def test_terminal_table_lines_up_and_gives_differences_in_points() -> None:
    rows = [
        Evaluation.model_validate_json(evaluation(step, "test", when, done))
        for step, when, done in ((0, "before", 0.0), (9, "after", 1.0))
    ]
    lines = table.format_table(rows)
    assert len({len(line) for line in lines}) == 1
    assert re.search(r"as heard +62\.0% +79\.0% +\+17\.0 pts", lines[1])
    assert table.format_table([]) == ["no evaluation of the test split"]


def test_difference_with_one_side_is_empty() -> None:
    before = Evaluation.model_validate_json(evaluation(0, "test", "before", 0.0))
    assert {row.cells()[1:] for row in table.build_before_after_rows(before, None)} == {("-", "")}
    assert {row.better for row in table.build_before_after_rows(before, None)} == {0}


# --- in a browser ---


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    with launched() as browser:
        yield browser


@pytest.fixture
def opened(chromium: "Browser", run_dir: Path) -> Iterator["Page"]:
    """The page of the whole run."""
    with visit(chromium, run_dir / "report.html") as tab:
        yield tab


def test_text_from_the_run_stays_text(opened: "Page") -> None:
    shown = opened.inner_text("#rollouts")
    assert XSS[0] in shown
    assert opened.title() == "demo · WavGate"
    assert opened.locator("script").count() == 2
    assert opened.locator("img, iframe, object, embed, svg[onload]").count() == 0
    assert XSS[0] in opened.inner_text("#samples") and XSS[2] in opened.inner_text("#events")


def test_judges_are_shown_with_hostile_names_as_text(opened: "Page") -> None:
    shown = opened.inner_text("#judges")
    assert all(text in shown for text in (*XSS[:4], "PAID", "acoustic / louder copy"))
    assert opened.title() == "demo · WavGate"
    assert opened.locator("#judges tr.paid").count() >= 1
    history = opened.locator("#judges svg.history").first
    assert "step 20 PAID 4.70" in str(history.get_attribute("aria-label"))
    titles = opened.locator("#judges figure h3").all_inner_texts()
    assert titles[:3] == ["Latency per verdict", "Missing by kind", "From the cache"]
    assert "Missing by length of audio" in titles and "Spread, acoustic" in titles


def test_diagnostics_are_drawn_and_a_cell_of_a_map_can_be_read(opened: "Page") -> None:
    titles = opened.locator("#diagnostics figure h3").all_inner_texts()
    assert titles[:2] == ["Lambda's two gates", "Groups"]
    assert titles[-2:] == ["Shift on the rollouts", "Shift on the reference answers"]
    drawn = opened.locator("#diagnostics svg.map").first
    assert "steps 1, 5, 10, 15, 20. embedding: " in str(drawn.get_attribute("aria-label"))
    assert drawn.locator("rect").count() == 31 * 5 and drawn.locator("rect.unknown").count() == 31
    cell = drawn.locator("rect").nth(2 * 5 + 4)
    cell.hover()
    figure = opened.locator("#diagnostics figure", has=opened.locator("svg.map")).first
    assert figure.locator(".where").inner_text() == "layer 1, step 20"
    message = str(cell.locator("title").text_content())
    assert message == f"layer 1, step 20: {figure.locator('.legend b').inner_text()}"


def test_a_chart_over_layers_answers_to_keys_with_their_names(opened: "Page") -> None:
    charts = opened.locator("#diagnostics figure", has_text="Gradient norm, by layer").locator("svg.plot")
    charts.focus()
    opened.keyboard.press("Home")
    assert str(charts.get_attribute("aria-valuetext")).startswith("embedding: text 0.")


@pytest.mark.parametrize(
    ("whole", "sentences"),
    [
        (
            True,
            ["verifiable/1", "No canaries were put", "No second judge was asked", "no endpoint was asked"],
        ),
        (False, ["no verdicts"]),
    ],
)
def test_run_without_an_api_judge_says_what_is_not_there(
    chromium: "Browser", tmp_path: Path, whole: bool, sentences: list[str]
) -> None:
    run = make_run(tmp_path, steps=2, prompts=1, size=2) if whole else tmp_path
    report.write_run_page(run)
    with visit(chromium, run / "report.html") as tab:
        shown = tab.inner_text("#judges")
        assert [sentence for sentence in sentences if sentence not in shown] == []


def test_run_without_diagnoses_says_so(chromium: "Browser", tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=2, prompts=1, size=2)
    report.write_run_page(run)
    with visit(chromium, run / "report.html") as tab:
        assert "No diagnosis was taken" in tab.inner_text("#diagnostics")


@pytest.mark.parametrize("place", [".reply audio", ".pair audio"])
def test_audio_plays(opened: "Page", place: str) -> None:
    state = opened.locator(place).first.evaluate(
        """async audio => {
            audio.muted = true;
            await audio.play();
            const moved = done => audio.addEventListener("timeupdate", () => audio.currentTime > 0 && done());
            await new Promise(moved);
            return [audio.duration, audio.currentTime, audio.readyState, audio.error];
        }"""
    )
    assert state[0] > 0.9 and state[1] > 0 and state[2] >= 2 and state[3] is None


def test_playhead_follows_the_audio_over_audio_tokens(opened: "Page") -> None:
    reply = opened.locator(".reply").first
    place = reply.evaluate(
        """async card => {
            const audio = card.querySelector("audio"), head = card.querySelector(".head");
            const known = done => audio.readyState ? done() : audio.addEventListener("loadedmetadata", done);
            await new Promise(known);
            audio.currentTime = audio.duration / 2;
            await new Promise(done => audio.addEventListener("seeked", () => requestAnimationFrame(done)));
            const tokens = card.querySelector(".strip").viewBox.baseVal.width;
            return [Number(head.getAttribute("x")), tokens, head.getAttribute("class")];
        }"""
    )
    assert 0.3 < place[0] / place[1] < 0.7 and place[2] == "head"


def test_replies_are_sorted_by_advantage_and_steps_and_prompts_can_be_picked(opened: "Page") -> None:
    def advantages() -> list[float]:
        actual = [
            text.replace(MINUS, "-") for text in opened.locator(".reply header span:last-child b").all_inner_texts()
        ]
        return [float(text) for text in actual if text != DASH]

    high = advantages()
    assert high == sorted(high, reverse=True)
    opened.select_option("select[name=order]", label="advantage, low first")
    assert advantages() == sorted(high)
    opened.select_option("select[name=step]", label="5 ♪")
    opened.select_option("select[name=prompt]", index=2)
    assert "add-0002 · policy version 4" in opened.inner_text("#rollouts")
    opened.click("text=next →")
    assert "add-0003 · policy version 4" in opened.inner_text("#rollouts")


def test_missing_value_is_a_gap_in_the_curve(opened: "Page") -> None:
    path = opened.locator("path[data-metric='loss/kl_text']").get_attribute("d")
    whole = opened.locator("path[data-metric='loss/kl_audio']").get_attribute("d")
    assert path and whole
    assert (path.count("M"), path.count("L")) == (2, 17)
    assert (whole.count("M"), whole.count("L")) == (1, 19)


def test_charts_and_tokens_answer_to_pointer_and_keys(opened: "Page") -> None:
    chart = opened.locator("#curves svg.plot").first
    chart.focus()
    opened.keyboard.press("Home")
    assert "step 1: lambda" in str(chart.get_attribute("aria-valuetext"))
    opened.keyboard.press("ArrowRight")
    assert "step 2: lambda" in str(chart.get_attribute("aria-valuetext"))
    strip = opened.locator(".strip").first
    strip.hover(position={"x": 2, "y": 8})
    read_out = opened.locator(".readout").first
    assert re.match(r"\d+: text, id \d+, log-prob \S+, mismatch \S+, weight [+\u2212]", read_out.inner_text())
    strip.focus()
    opened.keyboard.press("End")
    assert "end of turn" in read_out.inner_text()


def test_page_fits_a_narrow_window_and_dark_mode(opened: "Page") -> None:
    opened.set_viewport_size({"width": 380, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 380
    light = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    opened.emulate_media(color_scheme="dark")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") != light
