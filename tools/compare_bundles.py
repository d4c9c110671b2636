"""How well one bundle follows another: ranks of scores, and maps, over labelled test images.

    python tools/compare_bundles.py REFERENCE STUDENT DATA [--set NAME ...]

For each test set of DATA, and for all together: Spearman's correlation of the two bundles' scores,
the share of frames on which their alerts agree, and the mean over frames of the correlation of
their maps over valid cells. Of unclean frames a student learned from about half, without their
label: those that it never saw are told apart. For measuring: nothing may be chosen by these.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ccdstream.bundle import Bundle, load_bundle
from ccdstream.engine.select import open_engine
from ccdstream.errors import CcdstreamError
from ccdstream.fuse import Calibration
from ccdstream.packaged import find_model
from ccdstream.view import Profile
from trainer.calibrate import valid_cells
from trainer.data import find_data, load_views
from trainer.evaluate import test_sets
from trainer.items import Item
from trainer.lessons import Answers, answer, is_food
from trainer.metrics import map_correlations, spearman
from trainer.train import pool_of


def sets_of(data: Path, only: Sequence[str] | None) -> dict[str, list[Item]]:
    """The test images by set; of unclean ones apart what a student may have learned from."""
    sets: dict[str, list[Item]] = {}
    for name, items in test_sets(find_data(data), only).items():
        if items[0].label != "unclean":
            sets[name] = items
            continue
        for suffix, seen in ((" learned from", True), (" never seen", False)):
            if some := [item for item in items if is_food(item) is seen]:
                sets[name + suffix] = some
    return sets


def row(name: str, bundles: Sequence[Bundle], said: Sequence[Answers], valid: np.ndarray) -> str:
    """A line of the table."""
    scores = [each.scores.numpy() for each in said]
    alerts = [
        Calibration.from_dict(bundle.calibration["score"]).apply(raw) >= bundle.alert["enter"]
        for bundle, raw in zip(bundles, scores, strict=True)
    ]
    maps = map_correlations(said[0].maps.numpy(), said[1].maps.numpy(), valid)
    agree = (alerts[0] == alerts[1]).mean()
    return (
        f"| {name} | {len(valid)} | {spearman(*scores):.3f} | {agree:.1%} | {np.nanmean(maps):.3f} "
        f"| {np.nanquantile(maps, 0.05):.3f} |"
    )


def compare(bundles: Sequence[Bundle], data: Path, only: Sequence[str] | None) -> None:
    """Print the table."""
    profiles = [Profile.from_dict(bundle.profile) for bundle in bundles]
    engines = [open_engine(bundle, device="cpu") for bundle in bundles]
    print(f"{bundles[1].model_id} against {bundles[0].model_id}\n")
    print("| images | n | Spearman | alerts agree | map correlation, mean | its 5 % quantile |")
    print("| --- | --- | --- | --- | --- | --- |")
    answers: tuple[list[Answers], list[Answers]] = ([], [])
    counted: list[np.ndarray] = []
    for name, items in sets_of(data, only).items():
        pools = [pool_of(load_views(items, profile)) for profile in profiles]
        valid = np.logical_and(*(valid_cells(pool.valid).numpy() for pool in pools))
        said = [answer(engine, pool) for engine, pool in zip(engines, pools, strict=True)]
        print(row(name, bundles, said, valid), flush=True)
        counted.append(valid)
        for kept, one in zip(answers, said, strict=True):
            kept.append(one)
    joined = [
        Answers(torch.cat([a.scores for a in each]), torch.cat([a.maps for a in each]))
        for each in answers
    ]
    print(row("all", bundles, joined, np.concatenate(counted)))


def main() -> int:
    """Compare the bundles that are named; 1 where one cannot be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reference", help="folder, or name of a packaged one")
    parser.add_argument("student", help="likewise")
    parser.add_argument("data", type=Path)
    parser.add_argument("--set", dest="sets", action="append", help="a test set; all if not given")
    arguments = parser.parse_args()
    try:
        names = (arguments.reference, arguments.student)
        bundles = [load_bundle(find_model(name).path) for name in names]
        compare(bundles, arguments.data, arguments.sets)
    except CcdstreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
