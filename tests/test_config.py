"""Configurations: presets, files and settings, each on top of the one before; nothing unknown."""

from pathlib import Path

import pytest

from ccdstream.errors import ConfigError
from trainer.config import PRESETS, load_config


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_loads(preset: str) -> None:
    assert load_config(preset).preset == preset


def test_the_paper_preset_is_the_papers() -> None:
    config = load_config("paper")
    stage = config.global_pretrain
    assert (config.global_backbone.name, stage.projection_dim) == ("resnet18", 128)
    assert (stage.learning_rate, stage.batch_size, stage.temperature) == (0.01, 32, 0.2)
    assert (stage.epochs, stage.steps, stage.strong) == (2000, 0, "permutation")
    assert (config.global_size_px, config.program.patch_stride_px) == (256, 16)


def test_a_setting_wins_over_a_file_and_a_file_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("seed = 3\n[local_igd]\nsteps = 5\nrho = 0.5\n")
    config = load_config("smoke", file, ["local_igd.steps=7", "local_backbone.weights=none"])
    assert (config.seed, config.local_igd.steps, config.local_igd.rho) == (3, 7, 0.5)
    assert config.local_backbone.weights == "none"
    assert config.local_igd.batch_size == load_config("smoke").local_igd.batch_size


def test_one_weight_of_a_table_can_be_set_and_the_others_stay() -> None:
    weights = load_config("quick", None, ["program.map_weights.local_gaussian=1"]).program
    assert weights.map_weights["local_gaussian"] == 1.0
    assert weights.map_weights["lesion"] == 1.0


@pytest.mark.parametrize(
    ("preset", "strong"), [("paper-liu", "permutation"), ("paper-lag", "rotation")]
)
def test_the_papers_other_sets_have_their_preset(preset: str, strong: str) -> None:
    config = load_config(preset)
    assert config.global_pretrain.strong == config.local_pretrain.strong == strong
    assert config.profile == "none"
    assert config.global_pretrain.position_weight == 1.0
    size = 64 if preset == "paper-liu" else 256
    assert (config.global_size_px, config.local_size_px) == (size, size)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "local_igd.stpes=5",
            "unknown key local_igd.stpes. Did you mean local_igd.steps? Known keys",
        ),
        ("sead=5", "unknown key sead. Did you mean seed? Known keys: alert, checkpoint_every_s"),
        ("seed", "has no '='. Write --set KEY=VALUE"),
        ("seed=x", "seed must be int, got 'x'"),
        ("seed=true", "seed must be int, got True"),
        ("local_igd.steps=-1", "local_igd.steps must be 0 or more, got -1"),
        ("global_igd.batch_size=0", "global_igd.batch_size must be 1 or more, got 0"),
        ("program.local_top_fraction=1.5", "local_top_fraction must be from 0 to 1, got 1.5"),
        ("local_pretrain.temperature=0", "local_pretrain.temperature must be above 0, got 0.0"),
        ("local_igd.learning_rate=nan", "local_igd.learning_rate must be above 0, got nan"),
        (
            "pretrain.strong=rotation",
            "unknown key pretrain. Did you mean global_pretrain or local_pretrain?",
        ),
        ("=3", "names no key"),
        (
            "local_igd=4",
            "local_igd is a table, got 4. Set one of its keys, as local_igd.batch_size",
        ),
        ("local_pretrain.strong=blur", "must be one of none, permutation, rotation"),
        ("program.score_weights.colour=red", "program.score_weights is a table of numbers"),
        ("local_igd.train_backbone=1", "local_igd.train_backbone must be true or false, got 1"),
    ],
)
def test_a_wrong_setting_says_what_is_known(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"--set") as error:
        load_config("smoke", None, [setting])
    assert message in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        ["alert.enter=0.5", "alert.leave=0.9"],
        ["alert.leave=0.999"],  # above the preset's
        ["alert.leave=0"],
        ["alert.enter=0", "alert.leave=0"],
    ],
    ids=str,
)
def test_an_alert_rule_that_no_command_would_take_is_refused_before_the_training(
    settings: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("\n".join(settings))
    for given in ((None, settings), (file, [])):
        with pytest.raises(ConfigError, match=r"alert\.leave is .* Expected 0 < leave <= enter"):
            load_config("quick", *given)


def test_an_alert_may_close_at_the_score_that_it_opens_at() -> None:
    alert = load_config("smoke", None, ["alert.enter=0.5", "alert.leave=0.5"]).alert
    assert (alert.leave, alert.enter) == (0.5, 0.5)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"Known presets: smoke, brief, quick, paper, paper-liu, paper-lag\."
    ):
        load_config("huge")


@pytest.mark.parametrize("content", [None, b"= 3", b"\xff\xfe"], ids=["missing", "no", "bytes"])
def test_a_file_that_is_not_toml_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "mine.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_config("smoke", file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
