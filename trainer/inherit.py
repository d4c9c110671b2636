"""A student that takes over what its reference reads from frozen features, and leaves the rest.

Where a reference has a localiser and a Gaussian on a frozen backbone beside its CCD and IGD, these
cost a few percent of the whole and draw the map. A student that runs them as they are has the
reference's map and, but for what IGD adds, its score. `trainer/EXPERIMENTS.md` compares it with a
network that learns both, and with one that learns what IGD adds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from ccdstream.bundle import Bundle
from trainer.backbone import fold_batch_norm, make_backbone
from trainer.config import BackboneConfig, FeaturesConfig, LocaliserConfig, ProgramConfig
from trainer.detectors.features import Features
from trainer.export import Program

_PREFIX = "features."


@dataclass(frozen=True, eq=False)
class Inheritance:
    """What is taken over, and what it counts."""

    features: Features
    """Batch norms folded, as they run in the reference."""
    score_weights: Mapping[str, float]
    """Weight of each of its terms in the reference's score, once standardised."""

    def program(self) -> Program:
        """The student's program, to be standardised: a term weighs what it weighs in the
        reference."""
        config = ProgramConfig(score_weights=dict(self.score_weights), map_weights={"lesion": 1.0})
        return Program(None, None, config, features=self.features)


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
    weights = dict(zip(bundle.parts, values["part_weights"].tolist(), strict=True))
    return Inheritance(features, {term: weights[term] for term in features.terms})


def _initialisers(bundle: Bundle) -> dict[str, Tensor]:
    """The constants of a bundle's program by the names of the network's parameters, float32."""
    model = onnx.load(bundle.program)
    return {
        one.name.removesuffix(".half"): torch.tensor(numpy_helper.to_array(one)).float()
        for one in model.graph.initializer
    }
