"""The page asks the network for nothing and shows what it is given; the strip keeps its scale."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.lines import Line2D

from beatray.objectives.soft_targets import QUANTILES
from beatray.objectives.terms import MAX_TARGET_ENTROPY
from beatray.record import LEADS
from beatray.report import ecg, learning, loops, pictures
from beatray.report.build import Example, Material, build_report
from beatray.report.canvas import to_png, to_svg
from beatray.report.html import Picture, Section, page, write_report

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Checker(HTMLParser):
    """Collects references and checks that every tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    assert not checker.open
    return checker


def ramp_ecg() -> np.ndarray:
    """Twelve leads, each a slow wave of its own height."""
    time = np.arange(5000) / 500
    return np.stack([0.1 * (k + 1) * np.sin(2 * np.pi * time) for k in range(12)]).astype(np.float32)


def material() -> Material:
    generator = np.random.default_rng(0)
    lines = [{"step": s, "loss": 3.0 / (s + 1), "record/embedding_std": 0.9, "beat/loss": None} for s in range(50)]
    lines[7]["loss"] = float("nan")
    loop = generator.normal(size=(3, 300)).astype(np.float32)
    example = Example(
        "ludb/1", ramp_ecg(), np.array([250, 750]), np.array([[75, 575], [np.nan, np.nan]], np.float32), loop,
        [("view 1", loop * 0.5)],
    )  # fmt: skip
    return Material(
        title="A run <script>alert(1)</script>",
        lead=["5 < 6 & 7"],
        run={"method": "beat_ssl", "train": {"epochs": 3}},
        corpus={"recordings": 12},
        settings="a: <b>",
        licences=["ODC-By 1.0"],
        metrics=lines,
        similarities={"cosine": generator.random(100)},
        example=example,
        tracking=["mlflow ui --backend-store-uri sqlite:///x.db"],
    )


def test_the_page_is_whole_and_asks_for_nothing(tmp_path: Path) -> None:
    path = build_report(tmp_path / "deep" / "report.html", material())
    text = path.read_text(encoding="utf-8")
    found = checked(text)
    assert [r[:5] for r in found.references if not r.startswith("#")] == ["data:"] * found.tags.count("img")
    assert found.tags.count("img") == 4
    assert "script" not in found.tags and "link" not in found.tags
    assert not re.search(r"url\(|@import", text)
    assert "default-src 'none'" in text
    assert "5 &lt; 6 &amp; 7" in text and "train.epochs" in text and "ODC-By 1.0" in text
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_pictures_are_the_bytes_given() -> None:
    image = to_png(pictures.histograms({"x": [0.0, 1.0, np.nan]}, "value"), dpi=40)
    text = page("t", [], [Section("s", pictures=[Picture(image, 'a "quoted" name')])])
    inlined = re.search(r'src="data:image/png;base64,([^"]+)" alt="a &quot;quoted&quot; name"', text)
    assert inlined is not None and base64.b64decode(inlined.group(1)) == image


def test_the_course_of_soft_targets_is_drawn_from_the_metrics(tmp_path: Path) -> None:
    assert (learning.QUANTILES, learning.MAX_TARGET_ENTROPY) == (
        QUANTILES,
        MAX_TARGET_ENTROPY,
    )  # as training writes them
    lines: list[dict[str, object]] = [
        {"step": step, "loss": 1.0, "record/target_entropy": 0.6, "record/positive_mass": 0.5}
        | {f"record/raw_similarity_q{level:02d}": 0.9 + level / 1000 for level in QUANTILES}
        | {f"record/sharp_similarity_q{level:02d}": level / 100 for level in QUANTILES}
        for step in range(20)
    ]
    lines[3] |= {f"record/raw_similarity_q{level:02d}": None for level in QUANTILES}
    course = learning._target_course(lines)
    assert list(course) == ["record"] and course["record"]["raw"].shape == (20, 5)
    assert np.isnan(course["record"]["raw"][3]).all() and course["record"]["sharp"][3, 2] == 0.5
    figure = pictures.target_course(range(20), course, 0.9)
    raw, sharp, targets = figure.axes
    assert raw.get_title(loc="left") == "record: raw similarity" and len(raw.collections) == 2
    np.testing.assert_allclose(np.asarray(sharp.lines[0].get_ydata()), 0.5)
    assert [line.get_label() for line in targets.lines] == [
        "target entropy",
        "mass on the positive pair",
        "nearly uniform above",
    ]
    text = build_report(tmp_path / "report.html", Material("t", metrics=lines)).read_text()
    assert "Soft targets over optimizer steps: record" in text
    plain = build_report(tmp_path / "plain.html", Material("t", metrics=[{"step": s, "loss": 1.0} for s in range(9)]))
    assert "Soft targets" not in plain.read_text()


def test_every_score_of_validation_of_a_long_run_is_drawn() -> None:
    """3,100 steps in epochs of 31: a picture shows a third of the steps, and all hundred validations."""
    lines = [
        {"step": step, "loss": 1.0} | ({"validation_loss": 0.5} if step % 31 == 30 else {}) for step in range(3100)
    ]
    thinned = learning._thinned(lines, ["loss", "validation_loss", "absent"])
    assert sum("validation_loss" in line for line in thinned) == 100 and len(thinned) < 1200
    assert thinned[-1] == lines[-1] and [line["step"] for line in thinned] == sorted(line["step"] for line in thinned)
    assert learning._thinned(lines[:50], ["loss"]) == lines[:50] and learning._thinned([], ["loss"]) == []


def test_a_report_without_parts_leaves_their_sections_out(tmp_path: Path) -> None:
    text = build_report(tmp_path / "report.html", Material("empty")).read_text()
    assert checked(text).tags.count("section") == 0


def test_an_old_report_survives_a_failure(tmp_path: Path) -> None:
    path = write_report(tmp_path / "report.html", "first", [], [])
    with pytest.raises(AttributeError):
        write_report(path, "second", [], [None])  # type: ignore[list-item]
    assert "first" in path.read_text()


def test_the_strip_is_25_mm_per_second_and_10_mm_per_millivolt() -> None:
    signal = ramp_ecg()
    figure = ecg.twelve_lead_strip(signal, [250, 750], [[75, 575], [575, 1075]])
    axes = figure.axes[0]
    width_mm, height_mm = figure.get_size_inches() * 25.4
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert right - left == pytest.approx(width_mm) and high - low == pytest.approx(height_mm)
    traces = [line for line in axes.lines if isinstance(line, Line2D) and len(line.get_xdata()) > 1000]
    assert len(traces) == 13
    for trace, name in zip(traces, (*(n for row in zip(*ecg.COLUMNS, strict=True) for n in row), "II"), strict=True):
        x, y = np.asarray(trace.get_xdata()), np.asarray(trace.get_ydata())
        assert np.diff(x) == pytest.approx(25 / 500)
        first = round(x[0] * 500 / 25)
        lead = signal[LEADS.index(name), first : first + len(x)]
        assert np.ptp(y) == pytest.approx(10 * np.ptp(lead), abs=1e-4)
    marks = next(line for line in axes.lines if line.get_marker() == "v")
    assert list(marks.get_xdata()) == [12.5, 37.5]


def test_loops_lie_in_the_planes_cardiologists_read() -> None:
    to_left_feet_back = np.outer([1.0, 2.0, 3.0], np.linspace(0, 1, 5)).astype(np.float32)
    frontal, horizontal, sagittal = loops.vcg_loops(to_left_feet_back, []).axes
    tips = [panel.lines[-1].get_xydata()[-1].tolist() for panel in (frontal, horizontal, sagittal)]
    assert tips == [[1.0, 2.0], [1.0, 3.0], [3.0, 2.0]]
    assert frontal.yaxis_inverted() and sagittal.yaxis_inverted() and not horizontal.yaxis_inverted()


def test_best_median_worst() -> None:
    dice = np.array([0.5, np.nan, 0.9, 0.1, 0.7])
    assert ecg.best_median_worst(dice) == [("best", 2), ("median", 4), ("worst", 3)]
    assert ecg.best_median_worst(np.array([np.nan])) == []


def test_the_same_figure_gives_the_same_bytes() -> None:
    def draw() -> bytes:
        return to_svg(pictures.training_curves(range(9), {"loss": np.arange(9.0)}, {"loss": (3.0, "level")}))

    assert draw() == draw()


def test_running_median_follows_a_level_and_passes_over_gaps() -> None:
    values = np.full(200, 2.0)
    values[[3, 90]] = [50.0, np.nan]
    assert pictures.running_median(values) == pytest.approx(np.full(200, 2.0))
