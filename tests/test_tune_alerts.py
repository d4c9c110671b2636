"""The tool that chooses when alerts open: replays, passages, its rule, and a run of the whole."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccdstream.alert import AlertRule
from ccdstream.bundle import load_bundle
from ccdstream.errors import DataError
from ccdstream.fuse import Calibration
from tests.bundles import ToyEngine, write_toy_bundle
from tests.pictures import save, write_index
from tests.scopes import scene, tissue
from tools import tune_alerts
from tools.tune_alerts import (
    FLAGS,
    KINDS,
    Figures,
    Found,
    Measured,
    Setting,
    Stream,
    choose,
    finds,
    measure_grid,
    passages,
    replay,
    settings,
    telling,
    watch,
)

SMALL = (144, 180)
IDENTITY = Calibration(np.array([0.0, 0.999]), np.array([0.0, 0.999]), 1.0)


def stream(raw: list[float], *, rate: float = 10.0, **changes: Any) -> Stream:
    """Frames of these scores; `changes` replace columns."""
    n = len(raw)
    nowhere = np.tile([-1, -1, 0, 0], (n, 1))
    columns: dict[str, Any] = {
        "seconds": np.arange(n) / rate,
        "raw": np.array(raw),
        "flags": np.zeros((n, len(FLAGS)), bool),
        "hot": nowhere,
        "still": np.zeros(n, int),
        "shot": np.zeros(n, int),
        "visible": np.zeros(n),
        "lesion": nowhere,
        "disturbed": np.zeros((n, len(KINDS)), bool),
        "clear": np.ones(n, bool),
    }
    return Stream(half=0, lesions="visible" in changes, **columns | changes)


def figures(**changes: Any) -> Figures:
    """Those of a setting that is neither good nor bad."""
    usual = Figures(
        minutes=10.0,
        false=3,
        false_any=8,
        passages=100,
        found=50,
        delay_median_s=0.3,
        delay_90_s=0.9,
        start_delay_median_s=0.1,
        at_once=0.3,
        before=0.1,
        points=0.5,
        alerts_a_passage=1.0,
        lost_s=0.6,
    )
    return replace(usual, **changes)


# -- the rule -------------------------------------------------------------------------------------


def test_the_rule_takes_the_least_lost_time_among_the_quiet() -> None:
    grid = [
        figures(),
        figures(lost_s=0.4),
        figures(lost_s=0.1, false=6),  # 0.6 a minute: too many that last
        figures(lost_s=0.1, false_any=11),  # too many of any length
        figures(lost_s=0.4, false_any=5),
        figures(lost_s=0.4, false_any=5),
    ]
    assert choose(grid) == 4


def test_the_limits_of_the_rule_are_included() -> None:
    assert choose([figures(), figures(lost_s=0.5, false=5, false_any=10)]) == 1


def test_without_a_quiet_setting_the_quietest_is_taken() -> None:
    grid = [figures(false=9, lost_s=0.1), figures(false=7), figures(false=7, false_any=7)]
    assert choose(grid) == 2
    assert not any(each.quiet for each in grid)


def test_leave_counts_normal_frames() -> None:
    one = settings(
        {
            "time_constant_s": [0.1],
            "enter": [0.98],
            "leave": [2.0],
            "min_duration_s": [0.2],
            "merge_gap_s": [1.0],
        }
    )
    assert one == [Setting(0.1, 0.98, 0.96, 0.2, 1.0)]
    assert len({*settings()}) == len(settings())
    assert all(0 < each.rule.leave <= each.rule.enter for each in settings())


# -- replay ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_frames_left_out_change_no_alert(seed: int) -> None:
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.normal(0, 0.4, 1500))
    one = stream((0.75 + 0.24 * np.sin(walk)).tolist())
    one.flags[rng.random(1500) < 0.15, 0] = True
    one.flags[300:450] = True  # longer than an alert is carried over
    observations = replay(one, IDENTITY, 0.2)
    rule = AlertRule(0.95, 0.85, float(rng.choice([0, 0.3])), float(rng.choice([0.25, 2.0])), 0.0)
    fewer = telling(observations, 0.85)
    assert len(fewer) < 0.9 * len(observations)
    full, quick = watch(observations, rule), watch(fewer, rule)
    assert full.alerts
    spans = [[(a.start_s, a.end_s, a.peak_s) for a in each.alerts] for each in (full, quick)]
    assert spans[0] == spans[1]
    assert full.alerting == quick.alerting


def test_flagged_frames_neither_open_nor_move_the_score() -> None:
    one = stream([0.1, 0.9, 0.1, 0.1])
    one.flags[1, FLAGS.index("blurred")] = True
    observations = replay(one, IDENTITY, 0.0)
    assert [each.score for each in observations] == pytest.approx([0.1, 0.1, 0.1, 0.1])
    assert [each.informative for each in observations] == [True, False, True, True]


# -- passages -------------------------------------------------------------------------------------


def test_passages_begin_undisturbed_and_end_with_view_or_shot() -> None:
    visible = np.array([0.0] * 5 + [0.3] * 10 + [0.2] * 2 + [0.9] * 20 + [0.9] * 3)
    shot = np.array([0] * 30 + [1] * 10)
    one = stream([0.0] * 40, visible=visible, shot=shot)
    one.disturbed[4:8, 0] = True
    # 0.8 to 1.4 s; 1.7 to 2.9 s, cut; 3.0 to 3.9 s
    assert [(p.first, p.last) for p in passages(one)] == [(8, 14), (17, 29), (30, 39)]
    one.disturbed[4:10, 0] = True  # 1.0 to 1.4 s is too short
    assert [p.first for p in passages(one)] == [17, 30]


def test_delays_run_to_the_state_that_is_shown() -> None:
    raw = [0.1] * 10 + [0.1] * 2 + [0.99] * 8 + [0.1] * 5 + [0.1] * 10 + [0.99] * 20 + [0.1] * 5
    visible = np.array([0.0] * 10 + [1.0] * 10 + [0.0] * 5 + [1.0] * 10 + [0.0] * 10 + [1.0] * 15)
    lesion = np.tile([100, 100, 20, 20], (60, 1))
    hot = np.tile([105, 105, 8, 8], (60, 1))
    hot[45:] = [10, 10, 8, 8]
    one = stream(raw, visible=visible, lesion=lesion, hot=hot)
    watched = watch(replay(one, IDENTITY, 0.0), AlertRule(0.9, 0.8, 0.3, 0.0, 0.0))
    first, second, third = finds(one, watched)
    assert (first.delay_s, first.start_delay_s) == pytest.approx((0.5, 0.2))
    assert (first.alerts, first.before, first.points) == (1, False, True)
    assert (second.delay_s, second.start_delay_s, second.alerts) == (None, None, 0)
    assert (third.delay_s, third.start_delay_s, third.before, third.points) == (0, 0, True, False)


def test_a_miss_and_a_long_delay_lose_a_second() -> None:
    found = [Found(0, delay, delay, 1, False, False) for delay in (0.2, 3.0, None, 0.0)]
    measured = Measured([(0, 0.5), (0, 0.49)], {0: 60.0, 1: 60.0}, found).figures()
    assert measured.lost_s == pytest.approx((0.2 + 1 + 1 + 0) / 4)
    assert (measured.false_a_minute, measured.false_any_a_minute) == (0.5, 1.0)
    assert (measured.found, measured.at_once) == (3, 0.5)


def test_false_alerts_are_counted_where_there_are_no_lesions() -> None:
    normal = stream([0.1] * 10 + [0.97] * 7 + [0.1] * 20 + [0.97] * 2 + [0.1] * 21)
    lesion = stream([0.97] * 30, visible=np.ones(30))
    (measured,) = measure_grid([normal, lesion], IDENTITY, [Setting(0.0, 0.95, 0.9, 0.0, 0.3)])
    assert measured.figures().minutes == pytest.approx(0.1)
    assert [round(seconds, 6) for _, seconds in measured.false] == [0.6, 0.1]
    assert (measured.figures().false, measured.figures().found) == (1, 1)


# -- the whole ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight normal stills to train on, and eight to calibrate with."""
    folder = tmp_path_factory.mktemp("data")
    rows: list[dict[str, object]] = []
    for number in range(16):
        name = f"{number}.png"
        inside = tissue(SMALL, number, smallest_px=8)
        save(folder / name, scene(size=SMALL, box=(12, 6, 156, 132), inside=inside))
        split = "calibration" if number % 2 else "train"
        group = f"{split} {number // 4}"
        rows.append({"path": name, "label": "normal", "split": split, "group": group})
    write_index(folder, rows)
    return folder


def test_a_group_of_stills_lies_in_one_half(data: Path) -> None:
    items = tune_alerts.find_data(data).calibration
    one, other = tune_alerts.halves_of(items, 0)
    assert sorted([*one, *other]) == list(range(8))
    assert not {items[n].group for n in one} & {items[n].group for n in other}
    with pytest.raises(DataError, match="one near-duplicate group"):
        tune_alerts.halves_of([items[0]], 0)


def test_it_scores_once_chooses_and_writes_what_it_printed(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_toy_bundle(tmp_path / "toy")
    engine = ToyEngine()
    monkeypatch.setattr(tune_alerts, "open_engine", lambda *_, **__: engine)
    monkeypatch.setattr(tune_alerts, "GRID", {k: v[:2] for k, v in tune_alerts.GRID.items()})
    options = ["--hours", "0.002", "--rate", "2", "--scores", str(tmp_path / "scores.npz")]

    def run(out: str) -> dict[str, Any]:
        argv = ["tune", str(tmp_path / "toy"), str(data), *options, "--out", str(tmp_path / out)]
        monkeypatch.setattr("sys.argv", argv)
        tune_alerts.main()
        return json.loads((tmp_path / out).read_text())

    first = run("one.json")
    assert sum(engine.batches) == 4 * 15  # two halves, with lesions and without, 7.2 s each
    printed = capsys.readouterr().out
    again = run("two.json")
    assert sum(engine.batches) == 4 * 15, "scores come from the file"
    assert again == first
    assert capsys.readouterr().out == printed
    assert json.dumps(first["chosen"]) in printed
    rows = {json.dumps(row["setting"]): row["figures"] for row in first["choosing"]}
    assert len(rows) == 2**5 + 1
    assert json.dumps(first["chosen"]) in rows
    assert "| undisturbed |" in printed
    with pytest.raises(SystemExit, match="is there already"):
        run("one.json")

    bundle = load_bundle(tmp_path / "toy")
    items = tune_alerts.find_data(data).calibration
    other = tune_alerts.key_of(bundle, items, hours=1)
    assert tune_alerts.load_streams(tmp_path / "scores.npz", other) is None
    (tmp_path / "scores.npz").write_bytes(b"no archive")
    with pytest.raises(SystemExit, match="holds no scores"):
        run("three.json")
