"""From a folder of frames to a bundle that runs, is verified and evaluated: the smoke preset, its
whole frames at a quarter of their side.

The contract between the two packages: what `trainer` writes, `ccdstream` runs.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ccdstream import sample
from ccdstream.bundle import Bundle, load_bundle, record_figures
from ccdstream.cli import app
from ccdstream.engine.gpu import Gpu, Gpus
from ccdstream.engine.select import open_engine
from ccdstream.errors import ConfigError, DataError, EngineError, OutputError
from ccdstream.fuse import Calibration
from ccdstream.view import Profile
from tests.test_card import ROWS, entry_of
from trainer import train as training
from trainer.config import TrainConfig, load_config
from trainer.data import find_data, load_views
from trainer.evaluate import evaluate, table
from trainer.manifest import terms_of
from trainer.sampling import Pool

SMALL = ("max_images=8", "global_size_px=64")
SMOKE = load_config("smoke", None, SMALL)
SIZE = (144, 180)
ROOT = Path(__file__).parent.parent


def write_frames(folder: Path) -> None:
    """An index.csv data set of rendered frames: 8 to train, 8 to calibrate, 4 + 4 to test."""
    rows = []
    plan = [("normal", "train", 8), ("normal", "calibration", 8), ("normal", "test", 4)]
    number = 0  # four in a row are of one colon, which takes longer to make than its views
    for label, split, count in plan:
        for _ in range(count):
            name = f"normal/{split}/{number}.png"
            write_image(folder / name, sample.still(number, size=SIZE))
            rows.append((name, label, split, f"g{number}"))
            number += 1
    for _ in range(4):
        picture, mask = sample.lesion_still(number, size=SIZE)
        name = f"polyp/images/{number}.png"
        write_image(folder / name, picture)
        write_image(folder / f"polyp/masks/{number}.png", np.uint8(255) * mask)
        rows.append((name, "abnormal", "test", f"g{number}"))
        number += 1
    with (folder / "index.csv").open("w", newline="") as file:
        table_ = csv.writer(file)
        table_.writerow(("path", "label", "split", "group"))
        table_.writerows(rows)


def write_image(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bgr = picture[..., ::-1] if picture.ndim == 3 else picture
    assert cv2.imwrite(str(path), np.ascontiguousarray(bgr).astype(np.uint8))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_frames(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    output = tmp_path_factory.mktemp("model") / "smoke"
    return training.train(data, output, SMOKE, command="a test", say=lambda _: None)


def test_the_bundle_passes_its_own_parity_gate_and_says_what_made_it(bundle: Bundle) -> None:
    assert open_engine(bundle, device="cpu").parity.passed
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    assert manifest["command"] == "a test"
    assert manifest["training"]["config"]["global_backbone"]["name"] == "tiny"
    counts = {d["name"]: d["count"] for d in manifest["training"]["data"]}
    assert counts == {"train": 8, "calibration": 8, "pretrain": 0}
    assert manifest["calibration"]["frames"] == 8
    assert manifest["training"]["data"][0]["licences"] == ["not stated"]


@pytest.mark.parametrize(
    ("source", "terms"),
    [("hk_bbps-2-3", "HyperKvasir, CC BY 4.0"), ("mine", "not stated")],
)
def test_the_terms_of_known_sets_are_named(source: str, terms: str) -> None:
    assert terms_of(source) == terms


def test_calibration_frames_have_the_fractions_that_calibration_promises(
    bundle: Bundle, data: Path
) -> None:
    items = find_data(data).calibration
    views = load_views(items, Profile.from_dict(bundle.profile))
    output = open_engine(bundle, device="cpu").run(views.images, views.valid)
    curve = Calibration.from_dict(bundle.calibration["score"])
    fractions = np.sort(curve.apply(output.score))
    assert fractions[0] == pytest.approx(0, abs=0.02)
    assert fractions[-1] == pytest.approx(8 / 9, abs=0.01)
    # standardised on these frames, so their mean score is 0
    assert output.score.mean() == pytest.approx(0, abs=0.05)


def test_an_engine_scores_as_the_checkpoints_do_for_any_batch(bundle: Bundle, data: Path) -> None:
    views = load_views(find_data(data).train, Profile.from_dict(bundle.profile))
    engine = open_engine(bundle, device="cpu")
    whole = engine.run(views.images, views.valid)
    for rows in (slice(0, 1), slice(1, 3), slice(3, 8)):
        part = engine.run(views.images[rows], views.valid[rows])
        np.testing.assert_allclose(part.score, whole.score[rows], atol=1e-3)
        np.testing.assert_allclose(part.anomaly_map, whole.anomaly_map[rows], atol=5e-3)


def test_the_run_folder_tells_the_story(bundle: Bundle) -> None:
    run = bundle.path.with_name("smoke.run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    stages = {json.loads(line)["stage"] for line in lines}
    assert stages == {"pretrain_global", "pretrain_local", "igd_global", "igd_local"}
    assert (run / "losses.png").stat().st_size > 0


def test_resuming_a_finished_run_exports_again_with_other_thresholds(
    bundle: Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "onnx_program", lambda _: bundle.program.read_bytes())
    lines: list[str] = []
    config = replace(SMOKE, alert=replace(SMOKE.alert, enter=0.99))
    again = training.train(
        data, bundle.path, config, command="again", resume=True, overwrite=True, say=lines.append
    )
    assert sum("goes on at step" in line for line in lines) == 4
    assert again.alert["enter"] == 0.99
    assert any("alerts from 0.99, are extrapolated. Give at least 99." in line for line in lines)
    np.testing.assert_allclose(again.golden.score, bundle.golden.score, atol=1e-5)


def test_recorded_figures_stay_in_a_bundle_that_is_exported_again_as_it_was(
    bundle: Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "onnx_program", lambda _: bundle.program.read_bytes())
    copy = tmp_path / "smoke"
    shutil.copytree(bundle.path.with_name("smoke.run"), copy.with_name("smoke.run"))

    def export(config: TrainConfig) -> tuple[Bundle, list[str]]:
        lines: list[str] = []
        made = training.train(
            data, copy, config, command="", resume=True, overwrite=True, say=lines.append
        )
        assert made is not None
        return made, [line for line in lines if "recorded figures" in line]

    first, nothing = export(SMOKE)
    measured = record_figures(first, entry_of(first, ROWS)).manifest["figures"]
    again, kept = export(SMOKE)
    assert again.manifest["figures"] == measured != {} and nothing == kept == []

    other, dropped = export(replace(SMOKE, alert=replace(SMOKE.alert, enter=0.99)))
    assert other.manifest["figures"] == {}
    assert [line.startswith("recorded figures are dropped") for line in dropped] == [True]


STAGES = ("pretrain_global", "igd_global", "pretrain_local", "igd_local")


def assert_same_networks(a: Path, b: Path, stages: Sequence[str]) -> None:
    """Bit for bit, in the checkpoints of two run folders."""
    for stage in stages:
        ours, theirs = (
            torch.load(run / f"{stage}.pt", weights_only=True)["modules"] for run in (a, b)
        )
        assert ours.keys() == theirs.keys()
        for name in ours:
            for key, value in ours[name].items():
                assert torch.equal(value, theirs[name][key]), f"{stage} {name} {key}"


@pytest.mark.parametrize(
    ("scales", "stages"),
    [("both", STAGES), ("local", STAGES[2:])],
    ids=["both", "local-alone"],
)
def test_the_same_seed_trains_the_same_networks_whatever_else_is_trained(
    bundle: Bundle, data: Path, tmp_path: Path, scales: str, stages: Sequence[str]
) -> None:
    config = load_config("smoke", None, [*SMALL, f"scales={scales}"])
    with pytest.raises(StopIteration):
        training.train(
            data, tmp_path / "x", config, command="", say=_stop_at("export: standardising")
        )
    assert {file.stem for file in (tmp_path / "x.run").glob("*.pt")} == set(stages)
    assert_same_networks(bundle.path.with_name("smoke.run"), tmp_path / "x.run", stages)


def test_a_training_stopped_again_and_again_ends_bit_for_bit_as_an_undisturbed_one(
    bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    # within each of the stages, of 4, 6, 8 and 12 steps, and between them
    stop_after = (2, 4, 8, 10, 14, 18, 24)
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked in stop_after

    stops = 0
    while True:
        try:
            training.train(
                data,
                tmp_path / "x",
                SMOKE,
                command="",
                resume=stops > 0,
                say=_stop_at("export: standardising"),
                on_progress=lambda _: None,
                stopped=stopped,
            )
        except KeyboardInterrupt:
            stops += 1
        except StopIteration:
            break
    assert stops == len(stop_after)
    assert_same_networks(bundle.path.with_name("smoke.run"), tmp_path / "x.run", STAGES)


def test_two_processes_train_one_bundle(data: Path, tmp_path: Path) -> None:
    """As torchrun starts them, on gloo."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("-m", "ccdstream", "train", str(data), "-o", str(tmp_path / "two")),
            *("--preset", "smoke", "--set", "max_images=8", "--set", "scales=global"),
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("on cpu, fp32, 2 processes") == 1  # the first alone speaks
    assert done.stderr.count("pretrain_global 4/4") == 1
    bundle = load_bundle(tmp_path / "two")
    assert open_engine(bundle, device="cpu").parity.passed
    assert "2 processes" in bundle.manifest["training"]["machine"]


def test_pictures_of_reconstructions_lie_in_the_run_folder(bundle: Bundle) -> None:
    run = bundle.path.with_name("smoke.run")
    for scale in ("global", "local"):
        picture = cv2.imread(str(run / f"reconstructions_{scale}.png"))
        assert picture.shape == (3 * (24 + 192), 8 * 192, 3)
        assert picture[24:216].std() > 10


def test_settings_that_do_not_fit_are_said_before_anything_is_trained(
    data: Path, tmp_path: Path
) -> None:
    config = load_config("smoke", None, ["program.map_weights.colour=1"])
    with pytest.raises(ConfigError, match="map_weights names colour"):
        training.train(data, tmp_path / "x", config, command="", say=lambda _: None)
    assert not (tmp_path / "x.run").exists()


def test_a_grid_is_trained_and_measured_and_then_only_read(data: Path, tmp_path: Path) -> None:
    arguments = ["ablate", str(data), "-o", str(tmp_path / "grid"), "--preset", "smoke", "--json"]
    for setting in (*SMALL, "scales=global"):
        arguments += ["--set", setting]
    arguments += ["--table", "table2"]
    outcomes = []
    for _ in range(2):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.stderr
        outcomes.append(json.loads(result.stdout))
        lines = result.stderr.splitlines()
    assert outcomes[0] == outcomes[1]
    assert lines[:2] == ["variant 1 of 2: rotnet-igd", "variant 2 of 2: ccd-igd"]
    assert len(lines) == 3 and "ablation.md" in lines[2]
    for variant in outcomes[0]["variants"].values():
        assert 0 <= variant["figures"]["polyp"]["iou"]["value"] <= 1
    page = (tmp_path / "grid" / "variants" / "ccd-igd" / "evaluation.html").read_text()
    assert "not a medical device" in page.lower()


@pytest.mark.cuda
def test_a_gpu_trains_what_a_cpu_runs(data: Path, tmp_path: Path) -> None:
    config = load_config("smoke", None, ["max_images=8", "compute.device=cuda"])
    made = training.train(data, tmp_path / "gpu", config, command="", say=lambda _: None)
    assert made is not None
    assert open_engine(made, device="cpu").parity.passed
    assert "fp32" not in made.manifest["training"]["machine"]


def test_tensorboard_gets_the_losses_where_it_is_asked_for(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    config = load_config("smoke", None, [*SMALL, "scales=local"])
    with pytest.raises(StopIteration):
        training.train(
            data,
            tmp_path / "x",
            config,
            command="",
            tensorboard=True,
            say=_stop_at("export: standardising"),
        )
    assert list((tmp_path / "x.run" / "tensorboard").glob("events.*"))


class _Stop:
    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, line: str) -> None:
        if line.startswith(self.text):
            raise StopIteration


def _stop_at(text: str) -> _Stop:
    return _Stop(text)


def test_an_existing_bundle_is_refused_before_any_training(bundle: Bundle, data: Path) -> None:
    with pytest.raises(OutputError, match="is there already"):
        training.train(data, bundle.path, SMOKE, command="", say=lambda _: None)


def test_a_folder_without_frames_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        training.train(tmp_path, tmp_path / "x", SMOKE, command="", say=lambda _: None)
    assert not (tmp_path / "x.run").exists()


def test_evaluation_gives_every_figure_with_its_baselines(
    bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    engine = open_engine(bundle, device="cpu")
    document = evaluate(data, bundle, engine, tmp_path / "figures", resamples=20)
    text = table(document)
    for words in ("AUROC", "IoU", "polyp", "alert"):
        assert words in text
    assert (tmp_path / "figures" / "maps.png").stat().st_size > 0


def test_a_bundle_can_be_loaded_from_its_folder_alone(bundle: Bundle) -> None:
    assert load_bundle(bundle.path).model_id == bundle.model_id


def held_out(bundle: Bundle, data: Path) -> Pool:
    views = load_views(find_data(data).calibration, Profile.from_dict(bundle.profile))
    return Pool(torch.from_numpy(views.images), torch.from_numpy(views.valid))


def test_without_a_gpu_nothing_is_compiled_and_nothing_said(
    bundle: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "find_gpus", lambda: Gpus((), None, "no NVIDIA driver"))
    said: list[str] = []
    training.compile_here(bundle, held_out(bundle, data), said.append)
    assert said == []


@pytest.mark.parametrize("works", [True, False])
def test_a_training_ends_by_compiling_for_the_gpu_that_it_ran_on(
    bundle: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """The engine of the GPU is played by one of the CPU; the gate sees the calibration frames."""
    here = Gpus((Gpu("H", (9, 0), 2**36),), "13.0", "")
    monkeypatch.setattr(training, "find_gpus", lambda: here)
    opened: list[tuple[str, object]] = []

    def open_it(bundle: Bundle, *, device: str, build: Any = None, reference: Any = None) -> Any:
        opened.append((device, reference))
        if device == "cuda" and not works:
            raise EngineError("the GPU is busy")
        return open_engine(bundle, device="cpu", reference=reference)

    monkeypatch.setattr(training, "open_engine", open_it)
    said: list[str] = []
    training.compile_here(bundle, held_out(bundle, data), said.append)
    assert [device for device, _ in opened] == ["cpu", "cuda"] and opened[1][1] is not None
    if works:
        assert said[0].startswith("compiled for this machine: ") and "8 normal ones" in said[0]
    else:
        assert said == ["not compiled for this machine: the GPU is busy"]
