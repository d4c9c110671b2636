"""How much each term of a trained program tells, on lesions pasted into normal calibration frames.

    python tools/weigh_terms.py RUN DATA [--preset quick] [--repeats 3]

RUN is the folder `BUNDLE.run` of a finished training, DATA what it was trained on. For every term
of the score: AUROC of calibration frames with a pasted lesion against the same frames without. For
every term of the map, and for every mix of them in steps of a quarter: AUROC of lesion pixels
inside each pasted frame, mean over frames. No test image is opened.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ccdstream.frames import View
from ccdstream.view import HYPERKVASIR, whole_frame
from trainer.backbone import make_backbone
from trainer.calibrate import batches, standardise, valid_cells
from trainer.config import load_config
from trainer.data import find_data, load_views
from trainer.detectors.igd import Igd
from trainer.export import Program
from trainer.metrics import auroc
from trainer.sampling import Pool
from trainer.synthetic import paste_lesion
from trainer.train import scales


def load_program(run: Path, preset: str) -> Program:
    """The program of a finished run of IGD, before standardisation."""
    config = load_config(preset)
    detectors = {}
    for scale in scales(config):
        igd = Igd(make_backbone(scale.backbone)[0], scale.igd, scale.size_px)
        saved = torch.load(run / f"igd_{scale.name}.pt", weights_only=True)
        igd.load_state_dict(saved["modules"]["igd"])
        detectors[scale.name] = igd
    return Program(
        detectors.get("global"),
        detectors.get("local"),
        config.program,
        local_size_px=config.local_size_px,
    ).eval()


def with_lesions(pool: Pool, seed: int) -> tuple[Pool, torch.Tensor]:
    """The pool with a lesion in every frame, and the masks, bool [N, H, W]."""
    rng = np.random.default_rng(seed)
    images, masks = [], []
    field = whole_frame((256, 256))
    for image, valid in zip(pool.images.numpy(), pool.valid.numpy(), strict=True):
        view = View(image.transpose(1, 2, 0), valid, field)
        pasted, mask = paste_lesion(view.image, view.valid, rng)
        images.append(pasted.transpose(2, 0, 1))
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


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    program = load_program(arguments.run, arguments.preset)
    views = load_views(find_data(arguments.data).calibration, HYPERKVASIR)
    pool = Pool(torch.from_numpy(views.images), torch.from_numpy(views.valid))
    standardise(program, pool)
    normal, _ = terms(program, pool)
    cells = valid_cells(pool.valid)
    lesion_parts, lesion_maps, lesion_masks = [], [], []
    for seed in range(arguments.repeats):
        pasted, masks = with_lesions(pool, seed)
        part, anomaly_map = terms(program, pasted)
        lesion_parts.append(part)
        lesion_maps.append(anomaly_map)
        lesion_masks.append(F.avg_pool2d(masks.float().unsqueeze(1), 4).squeeze(1) >= 0.5)
    parts, maps, masks = map(torch.cat, (lesion_parts, lesion_maps, lesion_masks))
    valid = cells.repeat(arguments.repeats, 1, 1)
    print(f"{len(parts)} pasted lesions in {len(normal)} calibration frames")
    print("| term of the score | AUROC, with a lesion against without |\n| --- | --- |")
    for index, name in enumerate(program.parts):
        print(f"| {name} | {auroc(normal[:, index].numpy(), parts[:, index].numpy()):.3f} |")
    print(f"| equal weights | {auroc(normal.mean(1).numpy(), parts.mean(1).numpy()):.3f} |")
    print(f"\n| {' | '.join(program.map_parts)} | pixel AUROC |")
    print("| --- " * (len(program.map_parts) + 1) + "|")
    steps = [0.0, 0.25, 0.5, 0.75, 1.0]
    for weights in itertools.product(steps, repeat=len(program.map_parts)):
        if sum(weights) == 1:
            mixed = (maps * torch.tensor(weights).view(1, -1, 1, 1)).sum(dim=1)
            shown = " | ".join(f"{w:g}" for w in weights)
            print(f"| {shown} | {pixel_auroc(mixed, masks, valid):.3f} |")


if __name__ == "__main__":
    main()
