"""What a bundle's manifest says of how it was made."""

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccdstream.frames import View
from ccdstream.quality import QualityLimits, measure
from ccdstream.view import Profile, whole_frame
from trainer.backbone import Start
from trainer.compute import Compute
from trainer.config import TrainConfig
from trainer.data import Item, Views, content_hash
from trainer.export import FRAME_PX, MAP_SIZE, Program
from trainer.images import read_image
from trainer.pseudo_video import film, make_still

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
_STILLS = 150
"""About how many stills the pseudo-video is made of."""
_S_A_STILL, _FILM_RATE = 4.0, 0.5
"""How long it is for each of them, and frames a second that are looked at."""
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
        "quality": quality_limits([views["train"], views["calibration"]], profile).to_dict(),
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


def quality_limits(several: Sequence[Views], profile: Profile) -> QualityLimits:
    """What a frame keeps that is as good as normal ones: whole frames, and close looks at them.

    Stills are framed to show much, and a video comes closer: even mucosa that fills the picture has
    less contrast than any of them. So undisturbed frames of a pseudo-video of the stills count too.
    """
    field = whole_frame((FRAME_PX, FRAME_PX))
    measures = [
        measure(View(image.transpose(1, 2, 0), valid, field))
        for views in several
        for image, valid in zip(views.images, views.valid, strict=True)
    ]
    paths = [item.path for views in several for item in views.items if item.pts is None]
    pictures = map(read_image, paths[:: max(1, len(paths) // _STILLS)])
    stills = [make_still(picture, profile) for picture in pictures if picture is not None]
    if stills:
        seconds, chance = _S_A_STILL * len(stills), np.random.default_rng(0)
        close = film(stills, profile, chance, seconds=seconds, rate=_FILM_RATE)
        measures += [measure(frame.view) for frame in close if frame.clear]
    return QualityLimits.fit(measures)


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
