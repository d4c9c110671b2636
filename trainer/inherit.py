"""A student that takes over its reference's frozen features, and learns only what else that says.

Where a reference reads a frozen backbone beside its CCD and IGD, that part costs a few percent of
the whole and draws the map. The student runs it as it is, so its map is the reference's; a small
head on the same features learns the rest of the score.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from ccdstream.bundle import Bundle
from trainer.backbone import Normalise, fold_batch_norm, make_backbone
from trainer.compute import Minimiser
from trainer.config import (
    BackboneConfig,
    FeaturesConfig,
    LocaliserConfig,
    ProgramConfig,
    StudentConfig,
)
from trainer.detectors.base import Detector
from trainer.detectors.features import Features
from trainer.export import FRAME_PX, Program
from trainer.pretrain import cosine
from trainer.runs import Run
from trainer.sampling import Pool

REST = "rest"
"""The term that stands for all that was not taken over."""
_PREFIX = "features."
_BATCH = 256
"""Views a step: the head sees vectors, not pictures."""
_NOISE = 0.1
"""Of what a step adds to the vectors, which are in units of normal frames' deviations."""


@dataclass(frozen=True, eq=False)
class Inheritance:
    """What is taken over, and what it counts in the reference's score."""

    features: Features
    """Batch norms folded, as they run in the reference."""
    terms: Mapping[str, tuple[float, float, float]]
    """(mean, deviation, weight) of each of its terms in the reference's score."""


def inheritance(bundle: Bundle) -> Inheritance | None:
    """What a student of `bundle` can take over.

    None where the reference has no localiser and Gaussian on a frozen backbone of their own, or a
    map that is more than the localiser's: such a reference is learned whole.
    """
    config = bundle.manifest["training"].get("config", {})
    if not {"features", "localiser", "global_backbone", "program"} <= config.keys():
        return None
    if config["features"]["encoder"] != "start" or not config["features"]["frame_gaussian"]:
        return None
    map_weights: Mapping[str, float] = config["program"]["map_weights"]
    if not config["localiser"]["steps"] or {k for k, w in map_weights.items() if w} != {"lesion"}:
        return None
    values = _initialisers(bundle)
    start = BackboneConfig(**config["global_backbone"] | {"weights": "none"})
    backbone, _ = make_backbone(start)  # what it holds is taken from the program
    features = Features(
        backbone, FeaturesConfig(**config["features"]), LocaliserConfig(**config["localiser"])
    ).eval()
    fold_batch_norm(features)
    kept = {
        key.removeprefix(_PREFIX): value for key, value in values.items() if key.startswith(_PREFIX)
    }
    counters = {k: v for k, v in features.state_dict().items() if k.endswith("batches_tracked")}
    features.load_state_dict(kept | counters)
    rows = zip(
        *(values[f"part_{kind}"].tolist() for kind in ("mean", "std", "weights")), strict=True
    )
    terms = dict(zip(bundle.parts, rows, strict=True))
    return Inheritance(features, {term: terms[term] for term in features.terms})


def _initialisers(bundle: Bundle) -> dict[str, Tensor]:
    """The constants of a bundle's program by the names of the network's parameters, float32."""
    model = onnx.load(bundle.program)
    return {
        one.name.removesuffix(".half"): torch.tensor(numpy_helper.to_array(one)).float()
        for one in model.graph.initializer
    }


class Heir(Detector):
    """The reference's frozen features as they are, and a head for the rest of its score."""

    size_px = FRAME_PX

    def __init__(self, features: Features, hidden_dim: int) -> None:
        super().__init__()
        assert features.gaussian is not None
        self.features = features.requires_grad_(False)
        self.terms = (*features.terms, REST)
        self.map_terms = features.map_terms
        self.rest = nn.Sequential(
            nn.Linear(len(features.gaussian.mean), hidden_dim), nn.ReLU6(), nn.Linear(hidden_dim, 1)
        )

    def forward(self, x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        assert self.features.gaussian is not None
        maps = self.features.backbone.maps(x)
        scores, pictures = self.features.read(maps, inside)
        rest = self.rest(self.features.gaussian.whitened(maps, inside))
        return torch.cat([scores, rest], dim=1), pictures


def heir_program(heir: Heir, terms: Mapping[str, tuple[float, float, float]]) -> Program:
    """The program of a student: each inherited term weighs what it weighs in the reference."""
    weights = {term: weight for term, (_, _, weight) in terms.items()}
    return Program(
        None,
        None,
        ProgramConfig(score_weights={**weights, REST: 1.0}, map_weights={"lesion": 1.0}),
        features=heir,
    )


def leave_rest_unscaled(program: Program) -> None:
    """After the terms were standardised: the rest was learned in the score's own units."""
    row = program.parts.index(REST)
    program.part_weights[row] = program.part_std[row]


@torch.no_grad()
def read(
    heir: Heir, views: Pool, terms: Mapping[str, tuple[float, float, float]]
) -> tuple[Tensor, Tensor]:
    """What the head sees of every view, float [N, D], and what the inherited terms add to the
    reference's score, float [N]."""
    features = heir.features
    assert features.gaussian is not None
    device = next(features.parameters()).device
    normalise = Normalise().to(device)
    mean, deviation, weight = torch.tensor(list(terms.values()), device=device).T
    vectors, known = [], []
    for start in range(0, len(views), 16):
        rows = slice(start, start + 16)
        inside = views.valid[rows, None].to(device).float()
        x = views.images[rows].to(device).float() / 255
        x = normalise(x * inside + (128 / 255) * (1 - inside))
        maps = features.backbone.maps(x.contiguous(memory_format=torch.channels_last))
        scores, _ = features.read(maps, inside)
        vectors.append(features.gaussian.whitened(maps, inside))
        known.append(((scores - mean) / deviation * weight).sum(dim=1))
    return torch.cat(vectors), torch.cat(known)


def fit_rest(
    heir: Heir,
    views: Pool,
    scores: Tensor,
    terms: Mapping[str, tuple[float, float, float]],
    config: StudentConfig,
    run: Run,
    *,
    seed: int,
) -> None:
    """Teach the head what the reference's `scores`, float [N], hold beside the inherited terms.

    Smooth L1 (Girshick, 2015, eq. 3) in deviations of that rest; AdamW, cosine schedule.
    """
    compute = run.compute
    compute.place(heir).eval()
    vectors, known = read(heir, views, terms)
    wanted = scores.to(known) - known
    spread = wanted.std().clamp(min=1e-6)
    descent = Minimiser(
        torch.optim.AdamW(
            heir.rest.parameters(), config.learning_rate, weight_decay=config.weight_decay
        ),
        compute,
    )
    stage = run.stage("student", config.rest_steps, {"rest": heir.rest}, {"descent": descent})
    for step, generator in stage.steps(seed):
        descent.set_learning_rate(cosine(config.learning_rate, step / config.rest_steps))
        count = compute.share(_BATCH, "the student's batch")
        rows = torch.randint(len(wanted), (count,), generator=generator, device=known.device)
        noise = torch.randn((count, vectors.shape[1]), generator=generator, device=known.device)
        found = heir.rest(vectors[rows] + _NOISE * noise)[:, 0]
        loss = F.smooth_l1_loss(found / spread, wanted[rows] / spread)
        descent.minimise(loss)
        stage.report({"rest": loss})
    heir.eval()
