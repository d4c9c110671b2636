"""What a bundle's manifest says of how it was made."""

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ccdstream.frames import View
from ccdstream.quality import QualityLimits, measure
from ccdstream.view import Profile, whole_frame
from trainer.backbone import Start
from trainer.compute import Compute
from trainer.config import TrainConfig
from trainer.data import Item, Views, content_hash
from trainer.export import FRAME_PX, MAP_SIZE, Program

PARITY = {
    "score_abs": 0.05,
    "map_abs": 0.25,
    "calibrated_abs": 0.02,
    "calibrated_mean": 0.005,
    "alert_flips": 0.02,
    "map_correlation": 0.99,
}
"""How far from the golden outputs an engine may be; see `ccdstream.engine.parity`. The first two in
units of the standard deviation of calibration frames (score) and pixels (map)."""
_TERMS = {
    "hk_": "HyperKvasir, CC BY 4.0",
    "kvasirv1_": "Kvasir v1, research and education",
    "cp_child": "CP-CHILD, believed CC BY 4.0",
    "lag": "LAG, academic use only, not to be passed on",
}
"""Terms of the public sets that an index.csv's `source` names, by the source's first letters."""


def manifest_of(
    program: Program,
    config: TrainConfig,
    *,
    profile: Profile,
    command: str,
    views: dict[str, Views],
    starts: dict[str, Start],
    compute: Compute,
) -> dict[str, Any]:
    """Everything but the calibration and the files.

    Args:
        views: "train", "calibration" and "pretrain" -> what was made of the data.
        starts: scale -> where its backbone's weights came from.
    """
    return {
        "name": config.name,
        "commit": code_commit(),
        "command": command,
        "input_size": [FRAME_PX, FRAME_PX],
        "map_size": [MAP_SIZE, MAP_SIZE],
        "parts": list(program.parts),
        "profile": profile.to_dict(),
        "quality": _quality(views["train"], views["calibration"]).to_dict(),
        "alert": config.as_dict()["alert"],
        "parity": PARITY,
        "licences": sorted({start.licence for start in starts.values() if start.licence}),
        "figures": {},
        "training": {
            "config": config.as_dict(),
            "data": [_described(name, some.items) for name, some in views.items()],
            "backbones": {scale: start.description for scale, start in starts.items()},
            "machine": f"{platform.machine()}, {compute.description}, "
            f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
            f"Python {platform.python_version()}",
        },
    }


def _quality(*several: Views) -> QualityLimits:
    field = whole_frame((FRAME_PX, FRAME_PX))
    return QualityLimits.fit(
        [
            measure(View(image.transpose(1, 2, 0), valid, field))
            for views in several
            for image, valid in zip(views.images, views.valid, strict=True)
        ]
    )


def _described(name: str, items: Sequence[Item]) -> dict[str, Any]:
    sources: dict[str, int] = {}
    for item in items:
        sources[item.source] = sources.get(item.source, 0) + 1
    return {
        "name": name,
        "count": len(items),
        "sources": sources,
        "licences": sorted({terms_of(source) for source in sources}),
        "sha256": content_hash(items),
    }


def terms_of(source: str) -> str:
    """Under which terms the images of a source may be used, as far as it is known."""
    return next((t for start, t in _TERMS.items() if source.startswith(start)), "not stated")


def code_commit() -> str:
    """The commit this code is at, with "+changes" where files differ; "unknown" outside git."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip()
