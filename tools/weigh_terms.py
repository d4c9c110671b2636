"""How much each term of a trained program tells, on synthetic lesions in normal calibration frames.

    python tools/weigh_terms.py RUN DATA [--preset quick] [--repeats 2]

RUN is the folder `BUNDLE.run` of a finished training, DATA what it was trained on. Every
calibration frame gets a lesion, pasted in one repeat and rendered as relief in the next, and in
another copy a distractor. For every term of the score, and for mixes of their kinds: AUROC of the
frames with a lesion against those without, distractors included. For every term of the map, and for
mixes in steps of a quarter: AUROC of lesion pixels inside each frame with one, mean over frames. No
test image is opened.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ccdstream.view import HYPERKVASIR
from trainer.backbone import make_backbone
from trainer.calibrate import batches, standardise, valid_cells
from trainer.compute import Compute
from trainer.config import load_config
from trainer.data import find_data, load_views
from trainer.detectors.igd import Igd
from trainer.export import Program
from trainer.metrics import auroc
from trainer.relief import render_distractor, render_lesion
from trainer.sampling import Pool
from trainer.synthetic import paste_lesion
from trainer.train import fit_features, scales, untrained_features

Render = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]

KINDS = {
    "IGD": ("global_reconstruction", "global_gaussian", "local_reconstruction", "local_gaussian"),
    "lesion": ("lesion",),
    "frame": ("frame_distance",),
}
"""Terms that tell of the same thing share a weight."""


def load_program(run: Path, preset: str, train: Pool) -> Program:
    """The program of a finished run of IGD, before standardisation; `train`: its frames."""
    config = load_config(preset)
    detectors = {}
    for scale in scales(config):
        igd = Igd(make_backbone(scale.backbone)[0], scale.igd, scale.size_px)
        saved = torch.load(run / f"igd_{scale.name}.pt", weights_only=True)
        igd.load_state_dict(saved["modules"]["igd"])
        detectors[scale.name] = igd
    features = untrained_features(config, [])
    if features is not None:
        fit_features(features, train, Compute())
    if features is not None and features.localiser is not None:
        saved = torch.load(run / "localiser.pt", weights_only=True)["modules"]["mean"]
        mean = {name.removeprefix("module."): value for name, value in saved.items()}
        mean.pop("n_averaged")
        features.localiser.load_state_dict(mean)
    return Program(
        detectors.get("global"),
        detectors.get("local"),
        config.program,
        local_size_px=config.local_size_px,
        features=features,
    ).eval()


def changed(pool: Pool, render: Render, seed: int) -> tuple[Pool, torch.Tensor]:
    """The pool with something rendered in every frame, and where that is, bool [N, H, W]."""
    rng = np.random.default_rng(seed)
    images, masks = [], []
    for image, valid in zip(pool.images.numpy(), pool.valid.numpy(), strict=True):
        rendered, mask = render(np.ascontiguousarray(image.transpose(1, 2, 0)), valid, rng)
        images.append(rendered.transpose(2, 0, 1))
        masks.append(mask)
    return Pool(torch.from_numpy(np.stack(images)), pool.valid), torch.from_numpy(np.stack(masks))


@torch.no_grad()
def terms(program: Program, pool: Pool) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardised parts [N, k] and maps [N, m, 64, 64]."""
    parts, maps = zip(*(program.terms(f, v) for f, v in batches(pool)), strict=True)
    part, cell = torch.cat(parts), torch.cat(maps)
    return (
        (part - program.part_mean) / program.part_std,
        (cell - program.map_mean.view(1, -1, 1, 1)) / program.map_std.view(1, -1, 1, 1),
    )


def pixel_auroc(maps: torch.Tensor, masks: torch.Tensor, valid: torch.Tensor) -> float:
    """Mean over frames of the AUROC of lesion cells against the others, [N, 64, 64] each."""
    each = []
    for anomaly_map, mask, cells in zip(maps, masks, valid, strict=True):
        inside, outside = anomaly_map[mask & cells], anomaly_map[~mask & cells]
        if len(inside) and len(outside):
            each.append(auroc(outside.numpy(), inside.numpy()))
    return float(np.mean(each))


def quarters(count: int) -> list[tuple[float, ...]]:
    """All weights of `count` terms in steps of a quarter that make one."""
    steps = [0.0, 0.25, 0.5, 0.75, 1.0]
    return [w for w in itertools.product(steps, repeat=count) if sum(w) == 1]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    dataset = find_data(arguments.data)
    train, pool = (
        Pool(torch.from_numpy(views.images), torch.from_numpy(views.valid))
        for views in (
            load_views(items, HYPERKVASIR) for items in (dataset.train, dataset.calibration)
        )
    )
    program = load_program(arguments.run, arguments.preset, train)
    standardise(program, pool)
    without = torch.cat(
        [terms(program, pool)[0], terms(program, changed(pool, render_distractor, 0)[0])[0]]
    )
    lesion_parts, lesion_maps, lesion_masks = [], [], []
    for seed in range(arguments.repeats):
        with_one, masks = changed(pool, (paste_lesion, render_lesion)[seed % 2], seed)
        part, anomaly_map = terms(program, with_one)
        lesion_parts.append(part)
        lesion_maps.append(anomaly_map)
        lesion_masks.append(F.avg_pool2d(masks.float().unsqueeze(1), 4).squeeze(1) >= 0.5)
    parts, maps, masks = map(torch.cat, (lesion_parts, lesion_maps, lesion_masks))
    valid = valid_cells(pool.valid).repeat(arguments.repeats, 1, 1)
    print(f"{len(parts)} frames with a lesion, {len(without)} without, half of these distracted")
    print("| term of the score | AUROC, with a lesion against without |\n| --- | --- |")
    for index, name in enumerate(program.parts):
        print(f"| {name} | {auroc(without[:, index].numpy(), parts[:, index].numpy()):.3f} |")
    kinds = {
        kind: [program.parts.index(term) for term in members if term in program.parts]
        for kind, members in KINDS.items()
    }
    kinds = {kind: members for kind, members in kinds.items() if members}
    print(f"\n| {' | '.join(kinds)} | AUROC |")
    print("| --- " * (len(kinds) + 1) + "|")
    for weights in quarters(len(kinds)):
        normal, lesion = (
            torch.stack([of[:, at].mean(dim=1) for at in kinds.values()], dim=1)
            @ torch.tensor(weights)
            for of in (without, parts)
        )
        shown = " | ".join(f"{w:g}" for w in weights)
        print(f"| {shown} | {auroc(normal.numpy(), lesion.numpy()):.3f} |")
    print(f"\n| {' | '.join(program.map_parts)} | pixel AUROC |")
    print("| --- " * (len(program.map_parts) + 1) + "|")
    for weights in quarters(len(program.map_parts)):
        mixed = (maps * torch.tensor(weights).view(1, -1, 1, 1)).sum(dim=1)
        shown = " | ".join(f"{w:g}" for w in weights)
        print(f"| {shown} | {pixel_auroc(mixed, masks, valid):.3f} |")


if __name__ == "__main__":
    main()
