"""A small network that says what a reference bundle says, at a few percent of its cost.

`ccdstream train DATA -o OUT --student BUNDLE`: augmented views and the reference's answers
(`trainer.lessons`) -> student -> program -> calibration -> bundle. It learns the reference's score
and map and no label, as in knowledge distillation (Hinton et al., 2015) by regression. Where the
reference holds a fast part that can be taken over as it is (`trainer.inherit`), nothing is trained.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccdstream.bundle import Bundle, load_bundle, refuse_to_replace
from ccdstream.engine.select import open_engine
from ccdstream.errors import BundleError, ConfigError
from ccdstream.view import NONE, Profile
from trainer.backbone import Backbone, Normalise, Start, make_backbone
from trainer.calibrate import batches, standardise, valid_cells
from trainer.compute import Minimiser, open_compute
from trainer.config import ProgramConfig, StudentConfig, TrainConfig
from trainer.data import FEWEST_FRAMES, content_hash, find_data, load_views
from trainer.detectors.base import Detector, masked_mean
from trainer.export import FRAME_PX, MAP_SIZE, Program, prepare
from trainer.inherit import inheritance
from trainer.lessons import (
    Answers,
    Lessons,
    Paste,
    Scale,
    Sources,
    answer,
    augment,
    make_lessons,
    unclean_food,
)
from trainer.manifest import manifest_of
from trainer.metrics import map_correlations, spearman
from trainer.modes import evaluating
from trainer.pictures import plot_losses
from trainer.pretrain import cosine
from trainer.pyramid import Pyramid
from trainer.relief import render_lesion
from trainer.runs import Progress, Run, Say, say_on_stderr, say_progress
from trainer.sampling import Pool
from trainer.synthetic import paste_lesion
from trainer.train import compile_here, export_bundle, pool_of

_HIGHEST_CELLS = 82
"""Cells of the map whose mean the score sees: one in fifty."""
_HOTTEST = 3.0
"""Deviations above a frame's mean beyond which a cell counts no more than others that are hot."""
_LINEAR = 3.0
"""Deviations up to which an error counts as it is; beyond, relative to the value."""
_LIGHT, _NOISE = 0.05, 2 / 255
"""Photometric noise on what the student sees, which leaves the reference's answer as it is."""


class Student(Detector):
    """A fully convolutional network, and a score from what it pools.

    The score sees the mean over what is valid of the coarsest map and of the fine one, and of the
    predicted map its mean and that of its highest cells: a reference's score is not its map's
    maximum.
    """

    size_px = FRAME_PX
    terms = ("student",)
    map_terms = ("student",)

    def __init__(
        self, backbone: Backbone, width: int, hidden_dim: int, frozen_layers: int = 0
    ) -> None:
        """`frozen_layers`: leading layers of the backbone that are not trained."""
        super().__init__()
        self.pyramid = Pyramid(backbone, width)
        self.map_head = nn.Conv2d(width, 1, 1)
        self._coarsest = max(backbone.channels)
        pooled = backbone.channels[self._coarsest] + width + 2
        self.score_head = nn.Sequential(
            nn.Linear(pooled, hidden_dim), nn.ReLU6(), nn.Linear(hidden_dim, 1)
        )
        self._frozen = list(backbone.layers)[:frozen_layers]
        for layer in self._frozen:
            layer.requires_grad_(False)

    def train(self, mode: bool = True) -> "Student":
        """Train mode for what is trained: frozen layers keep their statistics."""
        super().train(mode)
        for layer in self._frozen:
            layer.eval()
        return self

    def forward(self, x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures float [N, 3, 256, 256] -> score float [N, 1], map float [N, 1, 64, 64]."""
        maps = self.pyramid.backbone.maps(x)
        fine = self.pyramid.join(maps)
        anomaly_map: Tensor = self.map_head(fine)
        cells = F.avg_pool2d(inside, FRAME_PX // MAP_SIZE)
        mean = masked_mean(anomaly_map, cells)[:, None]
        # cells that do not count take the mean, and so are not among the highest
        counted = torch.where(cells >= 0.5, anomaly_map, mean[:, :, None, None])
        highest = counted.flatten(1).topk(_HIGHEST_CELLS, dim=1).values.mean(dim=1, keepdim=True)
        pooled = [
            _pooled(maps[self._coarsest], F.avg_pool2d(inside, self._coarsest)),
            _pooled(fine, cells),
            mean,
            highest,
        ]
        score: Tensor = self.score_head(torch.cat(pooled, dim=1))
        return score, anomaly_map


def _pooled(maps: Tensor, inside: Tensor) -> Tensor:
    """Mean of each channel over what is valid: [N, C, H, W] and [N, 1, H, W] -> [N, C]."""
    total = (maps * inside).sum(dim=(2, 3))
    return total / inside.sum(dim=(2, 3)).clamp(min=1.0)


@dataclass(frozen=True, eq=False)
class Batch:
    """Views and what the reference says of them, in deviations from its mean."""

    x: Tensor
    """float [N, 3, 256, 256] in [0, 1]; neutral where not valid."""
    inside: Tensor
    """float [N, 1, 256, 256] of 0 and 1."""
    score: Tensor
    """float [N]."""
    anomaly_map: Tensor
    """float [N, 64, 64]."""


def draw_batch(lessons: Lessons, count: int, generator: torch.Generator) -> Batch:
    """Draw views with replacement, half of them mirrored with their maps, in a slightly other
    light."""
    device = generator.device
    chosen = torch.randint(len(lessons), (count,), generator=generator, device=device)
    mirrored = torch.rand(count, 1, 1, 1, generator=generator, device=device) < 0.5

    def turned(x: Tensor) -> Tensor:
        return torch.where(mirrored, x.flip(3), x)

    x = turned(lessons.views.images[chosen].float() / 255)
    inside = turned(lessons.views.valid[chosen, None]).float()
    light = torch.rand(count, 3, 1, 1, generator=generator, device=device) * 2 - 1
    noise = torch.randn(x.shape, generator=generator, device=device)
    x = (x * (1 + _LIGHT * light) + _NOISE * noise).clamp(0, 1)
    x = x * inside + (128 / 255) * (1 - inside)
    answers = lessons.answers
    return Batch(
        x, inside, answers.scores[chosen], turned(answers.maps[chosen, None].float())[:, 0]
    )


def losses(
    score: Tensor, anomaly_map: Tensor, batch: Batch, config: StudentConfig
) -> dict[str, Tensor]:
    """How far a student is from the reference, by name, before the weights.

    map and score: smooth L1 (Girshick, 2015, eq. 3) of c asinh(v / c), which leaves values about
    the normal ones as they are and takes the rest by their logarithm, so that a few frames far off
    do not outweigh all others; of the map over valid cells, hot ones weighing more. correlation:
    1 - Pearson's r of each frame's map. ranking: logistic loss of pairs in the batch (Burges et
    al., 2005), each weighing as much as the two scores differ, up to 1.

    Args:
        score: float [N, 1]. anomaly_map: float [N, 1, 64, 64].
    """
    counted = valid_cells(batch.inside[:, 0] > 0.5).float()
    wanted, got = batch.anomaly_map, anomaly_map[:, 0]
    heat, found = _standard(wanted, counted), _standard(got, counted)
    weight = counted * (1 + config.hot_weight * heat.clamp(0, _HOTTEST))
    apart = F.smooth_l1_loss(_softened(got), _softened(wanted), reduction="none")
    correlation = (heat * found).sum(dim=(1, 2)) / counted.sum(dim=(1, 2)).clamp(min=1)
    wanted_order = batch.score[:, None] - batch.score
    order = score - score[:, 0]
    pairs = F.softplus(-order * wanted_order.sign()) * wanted_order.abs().clamp(max=1)
    return {
        "map": (weight * apart).sum() / weight.sum().clamp(min=1),
        "correlation": (1 - correlation).mean(),
        "score": F.smooth_l1_loss(_softened(score[:, 0]), _softened(batch.score)),
        "ranking": pairs.mean(),
    }


def _softened(x: Tensor) -> Tensor:
    return _LINEAR * torch.asinh(x / _LINEAR)


def _standard(maps: Tensor, counted: Tensor) -> Tensor:
    """In deviations from each frame's mean over the cells that count, 0 in the others; float
    [N, h, w] each."""
    number = counted.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    centred = (maps - (maps * counted).sum(dim=(1, 2), keepdim=True) / number) * counted
    variance = centred.square().sum(dim=(1, 2), keepdim=True) / number
    return centred / (variance + 1e-6).sqrt()


def fit(student: Student, lessons: Lessons, config: StudentConfig, run: Run, *, seed: int) -> None:
    """Train `student` in place; AdamW (Loshchilov and Hutter, 2019), cosine schedule."""
    compute = run.compute
    count = compute.share(config.batch_size, "student.batch_size")
    steps = config.steps or config.epochs * max(1, len(lessons) // config.batch_size)
    compute.place(student)
    normalise = compute.place(Normalise())
    descent = Minimiser(
        torch.optim.AdamW(
            [p for p in student.parameters() if p.requires_grad],
            config.learning_rate,
            weight_decay=config.weight_decay,
        ),
        compute,
    )
    stage = run.stage("student", steps, {"student": student}, {"descent": descent})
    net = compute.compiled(student)
    here = Lessons(
        lessons.views.to(compute.device),
        Answers(lessons.answers.scores.to(compute.device), lessons.answers.maps.to(compute.device)),
    )
    student.train()
    for step, generator in stage.steps(seed):
        descent.set_learning_rate(cosine(config.learning_rate, step / steps))
        batch = draw_batch(here, count, generator)
        x = normalise(batch.x).contiguous(memory_format=torch.channels_last)
        with compute.autocast():
            score, anomaly_map = net(x, batch.inside)
        parts = losses(score.float(), anomaly_map.float(), batch, config)
        descent.minimise(
            parts["map"]
            + config.correlation_weight * parts["correlation"]
            + config.score_weight * parts["score"]
            + config.ranking_weight * parts["ranking"]
        )
        stage.report(parts)
    student.eval()


def either_lesion(
    image: np.ndarray, valid: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A lesion of one family or the other, pasted or rendered, as a localiser is taught on."""
    if rng.random() < 0.5:
        return paste_lesion(image, valid, rng)
    return render_lesion(image, valid, rng)


def train_student(
    data: Path,
    output: Path,
    reference: Path,
    config: TrainConfig,
    *,
    command: str,
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: bool = False,
    say: Say = say_on_stderr,
    on_progress: Callable[[Progress], None] = say_progress,
    stopped: Callable[[], bool] = lambda: False,
    paste: Paste = either_lesion,
) -> Bundle | None:
    """Make a student of the bundle `reference` with `data` and write its bundle to `output`.

    Arguments are those of `trainer.train.train`; the student has the reference's profile and its
    alert rule.

    Args:
        paste: pastes the lesions that the reference and the student see.

    Returns:
        The bundle; None in a process that is not the first.

    Raises:
        BundleError: there is no bundle at `reference`, or it is a student itself.
        DataError: the data is missing or not usable.
        ConfigError: backbone weights cannot be had, or settings that do not fit together.
        OutputError: `output` or its run folder exists, or cannot be written.
        EngineError: the reference does not run here.
    """
    started = time.monotonic()
    refuse_to_replace(output, overwrite)
    teacher = _teacher(reference)
    chosen = config.student
    with open_compute(config.compute) as compute:
        _check(config)
        compute.share(chosen.batch_size, "student.batch_size")
        torch.manual_seed(config.seed)
        taken = inheritance(teacher) if chosen.inherit else None
        if taken is None:
            backbone, start = make_backbone(chosen.backbone)
            student = Student(
                backbone, chosen.width, chosen.hidden_dim, chosen.frozen_layers * start.trained
            )
            program = Program(student, None, ProgramConfig())
        else:
            start = Start(f"frozen features of {teacher.model_id}", "")  # licences are its
            program = taken.program()
        dataset = find_data(
            data,
            progress=lambda done, total: (
                say(f"looked through {done} of {total} recordings") if compute.leads else None
            ),
        )
        limit = config.max_images or None
        items = {
            "train": dataset.train[:limit],
            "calibration": dataset.calibration[:limit],
            "pretrain": dataset.pretrain[:limit],
        }
        if taken is None:
            items["unclean"] = unclean_food(dataset.items)[:limit]
        with Run(
            output.with_name(output.name + ".run"),
            {
                "student": {k: v for k, v in asdict(chosen).items() if k != "name"},
                "seed": config.seed,
                "reference": teacher.model_id,
                "lesions": f"{paste.__module__}.{paste.__qualname__}",
                "data": content_hash([item for some in items.values() for item in some]),
            },
            resume=resume,
            say=say,
            on_progress=on_progress,
            stopped=stopped,
            checkpoint_every_s=config.checkpoint_every_s,
            compute=compute,
            tensorboard=tensorboard,
        ) as run:
            run.say(f"data: {dataset.layout}")
            if taken is None:
                run.say(
                    f"a student of {teacher.model_id}: {len(items['train'])} normal frames, "
                    f"{len(items['pretrain'])} more images and {len(items['unclean'])} unclean "
                    f"ones to learn from, {len(items['calibration'])} to calibrate with; "
                    f"on {compute.description}"
                )
                run.say(f"backbone: {chosen.backbone.name}, {start.description}")
            else:
                run.say(
                    f"a student of {teacher.model_id} that takes over its "
                    f"{' and '.join(taken.score_weights)}: nothing is trained; "
                    f"{len(items['calibration'])} normal frames to calibrate with"
                )
            profile = Profile.from_dict(teacher.profile)
            views = {
                name: load_views(
                    some, NONE if name == "pretrain" else profile, progress=run.reading(name)
                )
                for name, some in items.items()
            }
            held_out = pool_of(views["calibration"])
            engine = open_engine(teacher, device="cpu")
            said = answer(engine, held_out)
            if taken is None:
                lessons = make_lessons(
                    run,
                    Sources(*(pool_of(views[name]) for name in ("train", "pretrain", "unclean"))),
                    engine,
                    Scale.of(said, held_out.valid),
                    chosen,
                    paste,
                    seed=config.seed,
                )
                try:
                    fit(student, lessons, chosen, run, seed=config.seed)
                finally:  # a stopped run has its plot too
                    if compute.leads and run.metrics():
                        plot_losses(run)
            if not compute.leads:
                return None
            run.say("export: standardising, writing the program, calibrating")
            program.cpu()
            prepare(program)
            standardise(program, held_out)
            pasted = with_lesions(held_out, paste, seed=config.seed)
            figures = fidelity(
                _joined(answer(engine, pasted), said),
                _joined(_answer_of(program, pasted), _answer_of(program, held_out)),
                torch.cat([pasted.valid, held_out.valid]),
            )
            manifest = manifest_of(
                program,
                replace(config, name=chosen.name or f"{teacher.name}-student"),
                profile=profile,
                command=command,
                views=views,
                starts={"student": start},
                compute=compute,
            )
            bundle = export_bundle(
                program,
                held_out,
                _of_student(manifest, teacher, config, figures),
                output,
                overwrite,
                run.say,
            )
            compile_here(bundle, held_out, run.say)
            size = sum(file["bytes"] for file in bundle.manifest["files"].values())
            run.say(
                f"{output}: {size / 1e6:.1f} MB, {time.monotonic() - started:.0f} s; over "
                f"{figures['frames']} views that it did not learn from, its scores follow "
                f"{teacher.model_id} by a Spearman correlation of {figures['spearman']:.3f}, its "
                f"maps by a correlation of {figures['map_correlation']:.3f}. Next: ccdstream "
                f"evaluate DATA --model {output}"
            )
            return bundle


def _teacher(path: Path) -> Bundle:
    bundle = load_bundle(path)
    if student := bundle.manifest.get("student"):
        of = f", of {student['of']}" if isinstance(student, dict) and "of" in student else ""
        raise BundleError(
            f"{path} is a student itself{of}. Name the bundle that it follows instead."
        )
    if bundle.map_size != (MAP_SIZE, MAP_SIZE):
        height, width = bundle.map_size
        raise BundleError(
            f"{path} has maps of {height}x{width} cells. Expected {MAP_SIZE}x{MAP_SIZE}, as those "
            "of every bundle that ccdstream trains."
        )
    return bundle


def _check(config: TrainConfig) -> None:
    """See before anything is read that the settings fit together."""
    student = config.student
    if 0 < config.max_images < FEWEST_FRAMES:
        raise ConfigError(
            f"max_images is {config.max_images}. Expected 0 for all, or {FEWEST_FRAMES} or more."
        )
    if student.backbone.blocks and student.backbone.name != "efficientnet_lite0":
        raise ConfigError(
            "student.backbone.blocks cuts efficientnet_lite0 alone, and student.backbone.name is "
            f"{student.backbone.name}. Set it to 0."
        )
    if not (student.steps or student.epochs):
        raise ConfigError("student has no steps and no epochs. Set one of them.")


def with_lesions(pool: Pool, paste: Paste, *, seed: int) -> Pool:
    """Every view of `pool` in another light and place, with a lesion."""
    images, valid = [], []
    for number, (image, inside) in enumerate(
        zip(pool.images.numpy(), pool.valid.numpy(), strict=True)
    ):
        rng = np.random.default_rng((seed, 1, number))  # not those of the lessons
        frame = np.ascontiguousarray(image.transpose(1, 2, 0))
        frame, inside = augment(frame, inside, rng, paste)
        images.append(frame.transpose(2, 0, 1))
        valid.append(inside)
    return Pool(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(valid)))


@torch.no_grad()
def _answer_of(program: Program, pool: Pool) -> Answers:
    with evaluating(program):
        outputs = [program(frames, valid) for frames, valid in batches(pool)]
    return Answers(torch.cat([o[0] for o in outputs]), torch.cat([o[1] for o in outputs]))


def _joined(a: Answers, b: Answers) -> Answers:
    return Answers(torch.cat([a.scores, b.scores]), torch.cat([a.maps, b.maps]))


def fidelity(reference: Answers, student: Answers, valid: Tensor) -> dict[str, Any]:
    """How well a student follows: Spearman's correlation of the scores, and the mean over frames of
    Pearson's correlation of the maps over valid cells.

    Args:
        valid: bool [N, 256, 256], of the N views.
    """
    maps = map_correlations(
        reference.maps.numpy(), student.maps.numpy(), valid_cells(valid).numpy()
    )
    return {
        "spearman": round(spearman(reference.scores.numpy(), student.scores.numpy()), 4),
        "map_correlation": round(float(np.nanmean(maps)), 4),
        "frames": len(valid),
        "measured_on": "calibration frames, as they are and with a lesion in another light",
    }


def _of_student(
    manifest: dict[str, Any], teacher: Bundle, config: TrainConfig, figures: dict[str, Any]
) -> dict[str, Any]:
    """The manifest with what is the reference's, and whose student it is."""
    training = manifest["training"] | {
        "config": {
            "seed": config.seed,
            "max_images": config.max_images,
            "student": asdict(config.student),
        },
    }
    return manifest | {
        "student": {"of": teacher.model_id, **figures},
        "alert": teacher.alert,
        "licences": sorted({*manifest["licences"], *map(str, teacher.manifest["licences"])}),
        "training": training,
    }
