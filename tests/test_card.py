"""A card says what the manifest says, of the rest that it is not told, and claims nothing more."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ccdstream import NOTICE
from ccdstream.bundle import PROGRAM, Bundle, load_bundle, record_figures
from ccdstream.card import card, describe
from tests.bundles import toy_manifest, write_toy_bundle
from tests.commands import ccdstream, refusal

TITLES = [
    "How it was made",
    "Training data and terms",
    "Calibration, and what a score means",
    "Figures",
    "Engines and speed",
    "Known limits",
    "Never tested on",
]
CONFIG = {
    "preset": "quick",
    "detector": "igd",
    "seed": 3,
    "global_pretrain": {
        "steps": 160,
        "epochs": 0,
        "batch_size": 32,
        "learning_rate": 0.005,
        "classification_weight": 1.0,
        "position_weight": 0.0,
    },
    "local_igd": {"steps": 0, "epochs": 9, "batch_size": 8, "learning_rate": 0.001},
    "global_fanogan": {"gan_steps": 150, "batch_size": 8, "learning_rate": 0.002},
    "local_autoencoder": {"steps": 450, "batch_size": 8, "learning_rate": 0.001},
    "student": {"steps": 0, "epochs": 5, "batch_size": 16, "learning_rate": 0.001},
}
TRAINING = {
    "config": CONFIG,
    "data": [
        {
            "name": "train",
            "count": 695,
            "sources": {"hk_cecum": 495, "other": 200},
            "licences": ["HyperKvasir, CC BY 4.0", "not stated"],
            "sha256": "9275d0ecfc39" + "0" * 52,
        }
    ],
    "backbones": {"global": "ImageNet weights, lite0.pth"},
    "machine": "x86_64, 2 threads",
    "losses": {"last": 0.25},
}


def sections(text: str) -> dict[str, str]:
    """The text under each heading of a card."""
    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {title: body.strip() for title, body in zip(parts[1::2], parts[2::2], strict=True)}


def entry_of(bundle: Bundle, rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "kind": "frames",
        "data": {"name": "frames", "sha256": "ab" * 32, "counts": {"normal": 110, "polyp": 498}},
        "created": "2026-02-01T00:00:00+00:00",
        "command": "ccdstream evaluate frames --record",
        "commit": "c0ffee",
        "version": "0.1.0",
        "machine": "a processor, 2 of 2 cores",
        "engine": {"name": "openvino", "version": "1", "device": "cpu", "precision": "fp32"},
        "program_sha256": bundle.sha256(PROGRAM),
        "rows": rows,
        "notes": ["IoU: above a quantile."],
        **changes,
    }


def row(figure: str, on: str, of: str, value: float, *more: float) -> dict[str, Any]:
    low, high, n = more or (None, None, None)
    return {"figure": figure, "set": on, "of": of, "value": value, "low": low, "high": high, "n": n}


ROWS = [
    row("image AUROC", "polyp", "bundle", 0.844, 0.778, 0.896, 608),
    row("image AUROC", "polyp", "image_width", 0.922),
    row("image AUROC", "cvc", "bundle", 0.809, 0.689, 0.918, 409),
    row("alert rate", "normal", "bundle", 0.064, 0.02, 0.1, 110),
]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_toy_bundle(
        tmp_path / "toy",
        training=TRAINING,
        licences=["Apache-2.0 (lite0)"],
        command="ccdstream train frames -o toy",
        commit="c0ffee",
    )


def test_every_section_is_there_and_the_notice_comes_first(bundle: Bundle) -> None:
    text = card(bundle)
    assert text.endswith("\n") and "\n\n\n" not in text
    by_title = sections(text)
    assert list(by_title) == [f"Model card: {bundle.model_id}", *TITLES]
    assert by_title[f"Model card: {bundle.model_id}"].startswith(f"**{NOTICE}**")
    for phrase in ("unusual against the normal", "no detector of polyps", "Not for diagnosis"):
        assert phrase in text


def test_it_says_how_the_bundle_was_made(bundle: Bundle) -> None:
    made = sections(card(bundle))["How it was made"]
    for fact in (
        "- made 2026-01-01T00:00:00+00:00 by ccdstream",
        "commit `c0ffee`",
        "- command: `ccdstream train frames -o toy`",
        "- machine: x86_64, 2 threads",
        "- settings: preset quick, detector igd, seed 3;",
        "- start weights, global: ImageNet weights, lite0.pth",
        "- licences of start weights: Apache-2.0 (lite0)",
        "- terms of the score: brightness, valid",
        "- losses: last 0.25",
    ):
        assert fact in made


def test_its_stages_are_those_of_its_detector_with_the_losses_that_count(bundle: Bundle) -> None:
    lines = sections(card(bundle))["How it was made"].splitlines()
    assert [line for line in lines if line.startswith("|")][2:] == [
        "| global_pretrain | steps 160 | 32 | 0.005 | classification 1.0 |",
        "| local_igd | epochs 9 | 8 | 0.001 |  |",
    ]


def test_it_says_which_data_under_which_terms(bundle: Bundle) -> None:
    data = sections(card(bundle))["Training data and terms"]
    assert (
        "| train | 695 | hk_cecum 495, other 200 | HyperKvasir, CC BY 4.0; not stated | "
        "`9275d0ecfc39` |"
    ) in data.splitlines()


def test_it_says_what_a_score_means_and_when_an_alert_opens(bundle: Bundle) -> None:
    meaning = sections(card(bundle))["Calibration, and what a score means"]
    assert "the share of 100 normal calibration frames" in meaning
    assert "Above 0.990, beyond the last of them" in meaning
    assert "- enter: 0.995" in meaning and "- min duration (s): 0.2" in meaning
    assert "- score abs: 0.0001" in sections(card(bundle))["Engines and speed"]


@pytest.mark.parametrize(("frames", "enter", "said"), [(100, 0.995, True), (199, 0.995, False)])
def test_too_few_calibration_frames_are_a_limit(
    tmp_path: Path, frames: int, enter: float, said: bool
) -> None:
    whole = toy_manifest()
    odd = write_toy_bundle(
        tmp_path / "toy",
        calibration=whole["calibration"] | {"frames": frames},
        alert=whole["alert"] | {"enter": enter},
    )
    line = (
        "- 100 calibration frames resolve scores up to 0.990; higher ones, and so alerts from "
        "0.995, are extrapolated. Give at least 199."
    )
    assert (line in sections(card(odd))["Known limits"].splitlines()) == said


def test_figures_stand_with_intervals_beside_baselines_and_where_they_come_from(
    bundle: Bundle,
) -> None:
    lines = sections(card(record_figures(bundle, entry_of(bundle, ROWS))))["Figures"].splitlines()
    for fact in (
        "**frames** (110 normal, 498 polyp; sha256 begins `abababababab`)",
        "`ccdstream evaluate frames --record`, 2026-02-01T00:00:00+00:00, commit `c0ffee`",
        "openvino 1 on cpu in fp32, a processor, 2 of 2 cores",
    ):
        assert fact in lines[0]
    assert [line for line in lines if line.startswith("|")] == [
        "|  | polyp | cvc | normal |",
        "| --- | --- | --- | --- |",
        "| **image AUROC** | 0.844 (0.778-0.896), n 608 | 0.809 (0.689-0.918), n 409 |  |",
        "| image width alone | 0.922 |  |  |",
        "| **alert rate** |  |  | 0.064 (0.020-0.100), n 110 |",
    ]
    assert lines[-1] == "- IoU: above a quantile."


def test_speed_stands_under_engines_and_is_not_measured_until_it_is(bundle: Bundle) -> None:
    assert sections(card(bundle))["Engines and speed"].endswith("Speed:\n\nNot measured.")
    assert sections(card(bundle))["Figures"] == "Not measured."
    speed = entry_of(bundle, [row("run, frames/s", "a.mp4", "bundle", 31.25)], kind="speed")
    by_title = sections(card(record_figures(bundle, speed)))
    assert "| **run, frames/s** | 31.2 |" in by_title["Engines and speed"]
    assert by_title["Figures"] == "Not measured."


def test_a_student_says_whose_and_how_well_it_follows(tmp_path: Path, bundle: Bundle) -> None:
    assert "Whose student it is" not in sections(card(bundle))
    follows = {"value": 0.97, "low": 0.96, "high": 0.98, "n": 122}
    student = {"teacher": "ccd-reference-0123", "agreement": {"spearman": follows}, "sets": ["a"]}
    text = card(write_toy_bundle(tmp_path / "student", student=student))
    told = sections(text)["Whose student it is"].splitlines()
    made = write_toy_bundle(tmp_path / "made", student=student, training=TRAINING)
    assert "| student | epochs 5 | 16 | 0.001 |  |" in card(made).splitlines()
    assert told[-3:] == [
        "- teacher: ccd-reference-0123",
        "- agreement: spearman 0.970 (0.960-0.980), n 122",
        "- sets: a",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {}},
        {"training": {"config": [], "data": "lost", "backbones": 7, "machine": None}},
        {"training": {"config": {"a": {"steps": 1}, "b": 2}, "data": [1, {}, {"sources": 3}]}},
        {"student": "another"},
        {"student": {"agreement": {"value": None, "low": 1, "high": [{}]}}},
        {"licences": [{"a": 1}]},
    ],
    ids=str,
)
def test_any_bundle_that_loads_has_a_card(tmp_path: Path, changes: dict[str, Any]) -> None:
    manifest = toy_manifest(**changes)
    assert manifest.keys() >= changes.keys()
    odd = write_toy_bundle(tmp_path / "toy", **changes)
    assert set(TITLES) <= sections(card(odd)).keys()
    assert describe(odd)


def test_what_is_not_told_is_said_to_be_not_stated(tmp_path: Path) -> None:
    by_title = sections(card(write_toy_bundle(tmp_path / "toy", training={})))
    made = by_title["How it was made"]
    for fact in ("machine", "settings", "start weights", "licences of start weights"):
        assert f"- {fact}: not stated" in made
    assert by_title["Training data and terms"] == "Not stated."


def test_a_manifest_cannot_write_markdown_of_its_own(tmp_path: Path) -> None:
    forged = {"name": "x | y\n# Approved", "count": 1, "licences": ["<b>[free](http://x)</b>"]}
    text = card(
        write_toy_bundle(tmp_path / "toy", training={"data": [forged]}, command="a`\n# Approved `b")
    )
    assert "x \\| y # Approved" in text and "`a' # Approved 'b`" in text
    assert "\\<b\\>\\[free\\](http://x)\\</b\\>" in text
    assert not re.search(r"^# Approved", text, flags=re.MULTILINE)


def test_show_mentions_the_card_and_the_main_figures_on_a_line_each(bundle: Bundle) -> None:
    lines = describe(record_figures(bundle, entry_of(bundle, ROWS))).splitlines()
    (figures,) = [line for line in lines if line.startswith("figures")]
    (hint,) = [line for line in lines if line.startswith("card")]
    assert figures.split(maxsplit=1)[1] == (
        "frames, 2026-02-01T00:00:00+00:00: polyp: image AUROC 0.844 (0.778-0.896); "
        "cvc: image AUROC 0.809 (0.689-0.918); normal: alert rate 0.064 (0.020-0.100)"
    )
    assert hint.split(maxsplit=1)[1] == f"ccdstream model card {bundle.path}"


def test_the_command_prints_the_card_or_writes_it_once(bundle: Bundle, tmp_path: Path) -> None:
    text = card(bundle)
    assert ccdstream("model", "card", bundle.path).stdout == text
    file = tmp_path / "card.md"
    written = ccdstream("model", "card", bundle.path, "-o", file)
    assert written.stdout == "" and str(file) in written.stderr
    assert file.read_text(encoding="utf-8") == text
    file.write_text("mine")
    assert "is there already" in refusal(ccdstream("model", "card", bundle.path, "-o", file))
    assert file.read_text() == "mine"
    assert ccdstream("model", "card", bundle.path, "-o", file, "--overwrite").exit_code == 0
    assert file.read_text(encoding="utf-8") == text


def test_the_packaged_bundles_card_tells_its_data_and_start_weights() -> None:
    default = load_bundle()
    text = card(default)
    assert default.model_id in text and str(default.calibration["frames"]) in text
    terms = json.dumps(default.manifest["training"]["data"])
    assert "HyperKvasir, CC BY 4.0" in text and "HyperKvasir, CC BY 4.0" in terms
    assert "not stated" not in text
