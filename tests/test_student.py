"""A student: its lessons, its losses, and a training from a reference bundle to a bundle."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ccdstream.bundle import Bundle
from ccdstream.engine.select import open_engine
from ccdstream.errors import BundleError, ConfigError, OutputError
from ccdstream.view import Profile
from tests.bundles import toy_inputs, write_toy_bundle
from tests.commands import ccdstream, refusal
from tests.test_train import assert_same_networks, write_frames
from trainer.backbone import TinyNet
from trainer.calibrate import standardise
from trainer.config import ProgramConfig, StudentConfig, load_config
from trainer.data import find_data, load_views
from trainer.export import Program, prepare
from trainer.items import Item
from trainer.lessons import (
    Answers,
    Lessons,
    Look,
    Scale,
    Sources,
    augment,
    is_food,
    lesson_view,
    unclean_food,
)
from trainer.sampling import Pool
from trainer.student import Batch, Student, draw_batch, losses, train_student
from trainer.synthetic import paste_lesion
from trainer.train import pool_of

SMOKE = load_config("smoke", None, ["max_images=8", "student.views=40"])  # two chunks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_frames(folder)
    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_toy_bundle(tmp_path_factory.mktemp("reference") / "toy", licences=["its licence"])


@pytest.fixture(scope="module")
def student(data: Path, reference: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    output = tmp_path_factory.mktemp("model") / "student"
    made = train_student(data, output, reference.path, SMOKE, command="a test", say=lambda _: None)
    assert made is not None
    return made


# --- the bundle ----------------------------------------------------------------------------------


def test_the_bundle_says_whose_student_it_is_and_how_well_it_follows(
    student: Bundle, reference: Bundle
) -> None:
    said = student.manifest["student"]
    assert student.name == "toy-student"
    assert said["of"] == reference.model_id
    assert student.manifest["training"]["config"]["student"]["views"] == 40
    assert -1 <= said["spearman"] <= 1
    assert said["frames"] == 16
    assert (student.profile, student.alert) == (reference.profile, reference.alert)
    assert student.manifest["licences"] == ["its licence"]
    assert student.manifest["calibration"]["frames"] == 8


def test_the_exported_program_gives_what_the_network_gives_for_any_batch(
    student: Bundle, data: Path
) -> None:
    network = Student(TinyNet(), SMOKE.student.width, SMOKE.student.hidden_dim)
    run = student.path.with_name("student.run")
    network.load_state_dict(torch.load(run / "student.pt")["modules"]["student"])
    program = Program(network, None, ProgramConfig())
    prepare(program)
    held_out = find_data(data).calibration
    standardise(program, pool_of(load_views(held_out, Profile.from_dict(student.profile))))
    engine = open_engine(student, device="cpu")
    assert engine.parity.passed
    frames, valid = toy_inputs(3)
    with torch.no_grad():
        score, anomaly_map, _ = program(torch.from_numpy(frames), torch.from_numpy(valid))
    for rows in (slice(0, 1), slice(0, 3)):
        output = engine.run(frames[rows], valid[rows])
        np.testing.assert_allclose(output.score, score[rows], atol=1e-3)
        np.testing.assert_allclose(output.anomaly_map, anomaly_map[rows], atol=1e-3)


def test_what_pixels_that_are_not_valid_hold_changes_nothing(student: Bundle) -> None:
    engine = open_engine(student, device="cpu")
    frames, valid = toy_inputs(3)
    noise = np.random.default_rng(1).integers(0, 256, frames.shape, np.uint8)
    other = np.where(valid[:, None], frames, noise)
    before, after = engine.run(frames, valid), engine.run(other, valid)
    assert np.array_equal(before.score, after.score)
    assert np.array_equal(before.anomaly_map, after.anomaly_map)
    assert np.isfinite(before.score).all()  # also of the last one, which is nowhere valid


# --- a training, stopped and resumed -------------------------------------------------------------


def stop_at(text: str) -> Callable[[str], None]:
    def say(line: str) -> None:
        if line.startswith(text):
            raise StopIteration

    return say


def test_a_training_stopped_again_and_again_learns_the_same(
    student: Bundle, data: Path, reference: Bundle, tmp_path: Path
) -> None:
    asked, stops = 0, 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked in (1, 4)  # after the first of two chunks, and after the second step

    while True:
        try:
            train_student(
                data,
                tmp_path / "x",
                reference.path,
                SMOKE,
                command="",
                resume=stops > 0,
                say=stop_at("export"),
                on_progress=lambda _: None,
                stopped=stopped,
            )
        except KeyboardInterrupt:
            stops += 1
        except StopIteration:
            break
    assert stops == 2
    assert_same_networks(student.path.with_name("student.run"), tmp_path / "x.run", ["student"])


def test_a_damaged_chunk_of_answers_is_named(
    student: Bundle, data: Path, reference: Bundle, tmp_path: Path
) -> None:
    config = replace(SMOKE, student=replace(SMOKE.student, views=8, steps=1))
    arguments = (data, tmp_path / "x", reference.path, config)
    with pytest.raises(StopIteration):
        train_student(*arguments, command="", say=stop_at("export"), on_progress=lambda _: None)
    chunk = tmp_path / "x.run" / "lessons" / "000000.npz"
    chunk.write_bytes(chunk.read_bytes()[:1000])
    with pytest.raises(OutputError, match=r"000000\.npz does not hold .* Remove it"):
        train_student(*arguments, command="", resume=True, say=lambda _: None)


@pytest.mark.parametrize("case", ["missing", "student", "no bundle"])
def test_what_cannot_be_followed_is_refused_on_one_line(
    case: str, data: Path, student: Bundle, tmp_path: Path
) -> None:
    path, words = {
        "missing": (tmp_path / "none", "none"),
        "student": (student.path, "is a student itself, of toy-"),
        "no bundle": (data, "manifest.json"),
    }[case]
    result = ccdstream("train", data, "-o", tmp_path / "x", "--student", path, "--preset", "smoke")
    assert words in refusal(result)
    assert not (tmp_path / "x.run").exists()


def test_settings_that_do_not_fit_are_said_before_anything_is_read(
    data: Path, reference: Bundle, tmp_path: Path
) -> None:
    for setting, words in (
        ("student.backbone.blocks=3", "cuts efficientnet_lite0 alone"),
        ("student.epochs=0", "no steps and no epochs"),
    ):
        config = load_config("smoke", None, ["student.steps=0", setting])
        with pytest.raises(ConfigError, match=words):
            train_student(data, tmp_path / "x", reference.path, config, command="")
    with pytest.raises(BundleError):
        train_student(data, tmp_path / "x", tmp_path, SMOKE, command="")


# --- lessons -------------------------------------------------------------------------------------


def test_about_half_of_the_unclean_groups_are_food_and_always_the_same() -> None:
    items = [
        Item(Path(f"{n}.png"), label, "test", "x", f"g{n // 2}")
        for n in range(2000)
        for label in ("unclean", "normal")
    ]
    food = unclean_food(items)
    assert {item.label for item in food} == {"unclean"}
    groups = {item.group for item in food}
    assert not groups & {item.group for item in items if not is_food(item)}
    assert 450 < len(groups) < 550
    assert len(food) == 2 * len(groups)  # a group is never split
    assert [n for n in range(10) if f"g{n}" in groups] == PINNED
    assert unclean_food(items[::-1]) == food[::-1]


PINNED = [0, 4, 6, 9]


def pool(count: int, *, level: int = 120) -> Pool:
    """Noisy pictures with a corner that is not valid."""
    rng = np.random.default_rng(level)
    images = rng.integers(level - 20, level + 20, (count, 3, 256, 256)).astype(np.uint8)
    valid = np.ones((count, 256, 256), bool)
    valid[:, 150:, :100] = False
    images.transpose(0, 2, 3, 1)[~valid] = 0
    return Pool(torch.from_numpy(images), torch.from_numpy(valid))


def test_what_is_valid_moves_with_the_picture_and_the_rest_is_neutral() -> None:
    valid = pool(1).valid[0].numpy()
    image = np.where(valid[..., None], np.uint8(250), np.uint8(0)).repeat(3, axis=2)
    look = Look(as_it_is=0, gain=0, gamma=0, saturation=0, soft_p=0, noise_p=0, jpeg_p=0)
    areas = set()
    for seed in range(8):
        moved, inside = augment(image, valid, np.random.default_rng(seed), None, look)
        assert (moved[~inside] == 128).all()
        assert (moved[inside] > 120).mean() > 0.98  # the rim is interpolated
        assert inside.mean() >= 0.3
        areas.add(int(inside.sum()))
    assert len(areas) > 4


def test_a_view_depends_on_its_seed_alone_and_comes_from_every_source() -> None:
    sources = Sources(pool(3), pool(2, level=60), pool(2, level=200))
    config = StudentConfig(lesion_share=1.0, patch_share=0.3, unclean_share=0.3)
    pasted = []

    def paste(
        image: np.ndarray, valid: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        assert image.flags.c_contiguous and image.dtype == np.uint8 and valid.dtype == np.bool_
        pasted.append(image[valid].mean())
        return paste_lesion(image, valid, rng)

    for row in range(24):
        a, b = (lesson_view(sources, config, paste, np.random.default_rng((0, row))) for _ in "ab")
        assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])
    levels = np.array(pasted)
    assert (abs(levels - 120) < 20).any() and (abs(levels - 60) < 20).any()
    assert (levels < 160).all()  # nothing is pasted into an unclean frame
    assert 10 < len(pasted) < 2 * 24


def test_answers_are_told_in_deviations_over_valid_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    answers = Answers(
        5 + 2 * torch.randn(64, generator=generator),
        torch.randn(64, 64, 64, generator=generator) * 3 + 7,
    )
    valid = torch.zeros(64, 256, 256, dtype=torch.bool)
    valid[:, :128] = True
    answers.maps[:, 32:] = 1e6  # not valid
    told = Scale.of(answers, valid).apply(answers)
    cells = told.maps[:, :32]
    for values in (told.scores, cells):
        assert values.mean().item() == pytest.approx(0, abs=1e-4)
        assert values.std().item() == pytest.approx(1, abs=1e-4)


def test_a_mirrored_view_has_its_map_and_its_valid_pixels_mirrored() -> None:
    views = pool(6)
    ramp = torch.linspace(20, 230, 256).to(torch.uint8)
    images = ramp.expand(6, 3, 256, 256).clone()
    valid = torch.ones(6, 256, 256, dtype=torch.bool)
    valid[:, :, 200:] = False
    maps = torch.linspace(20, 230, 64).expand(6, 64, 64).to(torch.float16)
    lessons = Lessons(Pool(images, valid), Answers(torch.arange(6.0), maps))
    batch = draw_batch(lessons, 16, torch.Generator().manual_seed(0))
    mirrored = 0
    for x, inside, anomaly_map in zip(batch.x, batch.inside, batch.anomaly_map, strict=True):
        cells = torch.nn.functional.avg_pool2d(x.mean(0, keepdim=True), 4)[0] * 255
        counted = torch.nn.functional.avg_pool2d(inside, 4)[0] == 1
        assert counted.float().mean().item() == pytest.approx(200 / 256)
        assert (cells - anomaly_map)[counted].abs().max() < 0.07 * 230
        mirrored += bool(anomaly_map[0, 0] > anomaly_map[0, -1])
    assert 0 < mirrored < 16
    assert len(views) == 6


# --- losses and network --------------------------------------------------------------------------


def batch_of(count: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    inside = torch.ones(count, 1, 256, 256)
    inside[:, :, :, 128:] = 0
    return Batch(
        torch.rand(count, 3, 256, 256, generator=generator),
        inside,
        torch.tensor([0.0, 2.0, -1.0, 4.0])[:count],
        torch.randn(count, 64, 64, generator=generator),
    )


def test_losses_are_none_for_the_references_own_answers_and_see_only_what_is_valid() -> None:
    batch, config = batch_of(), StudentConfig()
    score, anomaly_map = batch.score[:, None], batch.anomaly_map[:, None].clone()
    anomaly_map[:, :, :, 32:] = 99.0
    exact = losses(score, anomaly_map, batch, config)
    assert exact["map"].item() == exact["score"].item() == 0
    assert exact["correlation"].item() == pytest.approx(0, abs=1e-5)
    backwards = losses(-score, -anomaly_map, batch, config)
    assert backwards["correlation"].item() == pytest.approx(2, abs=1e-5)
    assert backwards["ranking"] > exact["ranking"]


def test_losses_are_what_their_formulas_say() -> None:
    batch, config = batch_of(), StudentConfig(hot_weight=2.0)
    generator = torch.Generator().manual_seed(1)
    score = torch.randn(4, 1, generator=generator)
    got = torch.randn(4, 1, 64, 64, generator=generator)
    found = losses(score, got, batch, config)
    total = weights = 0.0
    wanted = batch.anomaly_map.double().numpy()[:, :, :32]
    given = got[:, 0].double().numpy()[:, :, :32]
    for frame, other in zip(wanted, given, strict=True):
        heat = (frame - frame.mean()) / frame.std()
        for z, t, s in zip(heat.ravel(), frame.ravel(), other.ravel(), strict=True):
            apart = abs(3 * np.arcsinh(t / 3) - 3 * np.arcsinh(s / 3))
            weight = 1 + 2 * min(max(z, 0), 3)
            total += weight * (0.5 * apart**2 if apart < 1 else apart - 0.5)
            weights += weight
    assert found["map"].item() == pytest.approx(total / weights, rel=1e-4)
    r = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(wanted, given, strict=True)]
    assert found["correlation"].item() == pytest.approx(1 - np.mean(r), rel=1e-3)
    pairs = [
        np.log1p(np.exp(-np.sign(t - u) * (s - v))) * min(abs(t - u), 1)
        for t, s in zip(batch.score.tolist(), score[:, 0].tolist(), strict=True)
        for u, v in zip(batch.score.tolist(), score[:, 0].tolist(), strict=True)
    ]
    assert found["ranking"].item() == pytest.approx(np.mean(pairs), rel=1e-4)


def test_frozen_layers_stay_and_the_rest_learns() -> None:
    torch.manual_seed(0)
    network = Student(TinyNet(), 8, 8, frozen_layers=3).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    batch = batch_of(2)
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    sum(losses(*network(batch.x, batch.inside), batch, StudentConfig()).values()).backward()
    optimiser.step()
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    frozen = {
        k for k in before if k.startswith(tuple(f"pyramid.backbone.layers.{n}." for n in "012"))
    }
    assert len(frozen) == 6
    assert not changed & frozen
    assert {"pyramid.backbone.layers.3.weight", "map_head.weight", "score_head.0.weight"} < changed


def test_a_part_that_is_not_valid_is_left_out_of_the_score() -> None:
    """Where it is far from what is valid, so that no convolution looks across."""
    torch.manual_seed(0)
    network = Student(TinyNet(), 8, 8).eval()
    x, inside = torch.randn(1, 3, 256, 256), torch.ones(1, 1, 256, 256)
    inside[..., 128:] = 0
    other = x.clone()
    other[..., 224:] = 5.0
    with torch.no_grad():
        a, b = network(x, inside)[0], network(other, inside)[0]
        c = network(other, torch.ones_like(inside))[0]
    assert torch.allclose(a, b, atol=1e-6)
    assert not torch.allclose(a, c, atol=1e-4)
