"""The grid of ablations: every variant is sayable, made once, goes on after a stop."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ccdstream.errors import ConfigError, OutputError
from trainer.ablate import BATCH_SIZES, CCD_IGD, TABLES, failed, markdown, run_grid, variants
from trainer.config import TrainConfig, load_config, with_settings
from trainer.train import pretrain_steps

SMOKE = load_config("smoke")


def estimate(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 9}


class FakeMeasure:
    """Pretends to train; remembers what it was asked, and may fail or be stopped on one variant."""

    def __init__(self, *, fails: str = "", stops: str = "") -> None:
        self.asked: dict[str, TrainConfig] = {}
        self.shared: dict[str, Mapping[str, Path]] = {}
        self.fails, self.stops = fails, stops

    def __call__(
        self, config: TrainConfig, folder: Path, shared: Mapping[str, Path]
    ) -> dict[str, Any]:
        name = folder.name
        self.asked[name], self.shared[name] = config, shared
        if name == self.stops:
            raise KeyboardInterrupt
        if name == self.fails:
            raise ConfigError("no weights here")
        (folder / "bundle").mkdir(parents=True, exist_ok=True)
        (folder / "bundle.run").mkdir(exist_ok=True)
        for scale in ("global", "local"):
            (folder / "bundle.run" / f"pretrain_{scale}.pt").touch()
        figures = {"auroc": estimate(0.9), "iou": estimate(0.3)}
        return {
            "bundle": {"model_id": name},
            "data": {"folder": "data"},
            "counts": {"normal": 3, "polyp": 4},
            "image": {"polyp": {"all": figures}},
            "pixel": {"sets": {"polyp": {"maps": {"bundle": figures}}}},
        }


def grid(
    folder: Path, measure: FakeMeasure, *tables: str, base: TrainConfig = SMOKE
) -> dict[str, Any]:
    return run_grid(
        folder,
        base,
        measure,
        command="ccdstream ablate x",
        data_sha256="d",
        tables=tables,
        say=lambda _: None,
    )


@pytest.mark.parametrize("preset", ["smoke", "quick", "paper"])
def test_every_row_names_a_variant_whose_settings_are_known(preset: str) -> None:
    base = load_config(preset)
    known = variants(base)
    for table in TABLES:
        for row in table.rows:
            if row.variant is not None:
                with_settings(base, known[row.variant].settings)
    used = {row.variant for table in TABLES for row in table.rows}
    assert set(known) <= used, "a variant that no table shows"


def test_no_two_variants_are_the_same_training() -> None:
    base = load_config("quick")
    made = [with_settings(base, variant.settings).as_dict() for variant in variants(base).values()]
    assert all(a != b for index, a in enumerate(made) for b in made[:index])


@pytest.mark.parametrize("size", BATCH_SIZES)
def test_another_batch_size_sees_as_many_images(size: int) -> None:
    base = load_config("quick")
    config = with_settings(base, variants(base)[f"batch-{size}"].settings)
    for scale in ("global_pretrain", "local_pretrain"):
        seen, expected = (
            getattr(c, scale).batch_size * getattr(c, scale).steps for c in (config, base)
        )
        assert seen == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("preset", ["quick", "paper"])
def test_plain_contrast_takes_as_many_steps_as_with_strong_classes(preset: str) -> None:
    base = load_config(preset)
    simclr = with_settings(base, variants(base)["simclr-igd"].settings)
    for scale in ("global_pretrain", "local_pretrain"):
        assert pretrain_steps(getattr(simclr, scale), 1600) == pretrain_steps(
            getattr(base, scale), 1600
        )


def test_a_variant_that_several_tables_name_is_trained_once(tmp_path: Path) -> None:
    measure = FakeMeasure()
    document = grid(tmp_path, measure, "table1", "table2")
    assert list(measure.asked) == ["simclr-igd", "con-igd", "con-cla-igd", CCD_IGD, "rotnet-igd"]
    assert document["variants"]["rotnet-igd"]["figures"]["polyp"]["iou"]["value"] == 0.3
    assert measure.asked["simclr-igd"].local_pretrain.strong == "none"
    assert measure.asked["con-cla-igd"].local_pretrain.position_weight == 0


def test_a_pretraining_that_was_done_is_not_done_again(tmp_path: Path) -> None:
    measure = FakeMeasure()
    grid(tmp_path, measure, "table1", "table3")
    of_ccd = tmp_path / "variants" / CCD_IGD / "bundle.run"
    assert measure.shared["ccd-fanogan"] == {
        f"pretrain_{scale}.pt": of_ccd / f"pretrain_{scale}.pt" for scale in ("global", "local")
    }
    # rotations in place of permutations: nothing to share
    assert not measure.shared["rotnet-igd"]


def test_a_variant_that_is_the_base_already_is_not_trained_again(tmp_path: Path) -> None:
    measure = FakeMeasure()
    document = grid(tmp_path, measure, "figure2-batch", "table1", base=load_config("paper"))
    assert (CCD_IGD in measure.asked) != ("batch-32" in measure.asked)
    assert document["variants"][CCD_IGD] == document["variants"]["batch-32"]


def test_a_stopped_grid_goes_on_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        grid(tmp_path, FakeMeasure(stops="con-cla-igd"), "table1")
    text = (tmp_path / "ablation.md").read_text()
    assert text.count("not measured") == 6  # two rows of three figures
    document = grid(tmp_path, FakeMeasure(), "table1")
    assert "not measured" not in markdown(document)


def test_a_variant_that_cannot_be_trained_is_said_and_the_others_are_measured(
    tmp_path: Path,
) -> None:
    document = grid(tmp_path, FakeMeasure(fails="con-igd"), "table1")
    assert failed(document) == ["con-igd"]
    assert document["variants"]["con-igd"]["failed"] == "no weights here"
    assert "figures" in document["variants"][CCD_IGD]


def test_the_tables_stand_beside_the_papers(tmp_path: Path) -> None:
    document = grid(tmp_path, FakeMeasure(), "table2")
    text = (tmp_path / "ablation.md").read_text()
    assert text == markdown(document)
    assert "| RotNet + IGD | 0.276 | 0.900 (0.800-1.000) |" in text
    assert (
        "| U-Net (supervised) | 0.746 | another method | another method | another method |" in text
    )
    assert "`ccdstream ablate x`" in text and "Measured on data: 3 normal, 4 polyp images." in text
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "ablation.json").read_text()) == json.loads(json.dumps(document))


def test_a_grid_of_another_configuration_is_not_mixed_in(tmp_path: Path) -> None:
    grid(tmp_path, FakeMeasure(), "table2")
    with pytest.raises(OutputError, match="holds a grid of another configuration"):
        grid(tmp_path, FakeMeasure(), "table2", base=load_config("smoke", None, ["seed=1"]))
    other = ["program.local_top_fraction=0"]  # no checkpoint depends on it, every figure does
    with pytest.raises(OutputError, match="holds a grid of another configuration"):
        grid(tmp_path, FakeMeasure(), "table2", base=load_config("smoke", None, other))
    grid(tmp_path, FakeMeasure(), "table2", base=load_config("smoke", None, ["compute.device=cpu"]))


def test_an_unknown_table_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no table named 'table9'\. Known tables: table1, "):
        grid(tmp_path, FakeMeasure(), "table9")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "frame.jpg").touch()
    with pytest.raises(OutputError, match="is neither empty nor a grid"):
        grid(tmp_path, FakeMeasure(), "table2")
    assert [file.name for file in tmp_path.iterdir()] == ["frame.jpg"]
