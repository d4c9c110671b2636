"""What a manifest says of how a bundle was made: the limits of an informative frame."""

from dataclasses import replace
from pathlib import Path

import cv2
import pytest

from ccdstream import sample
from ccdstream.frames import View
from ccdstream.quality import QualityLimits, measure
from ccdstream.view import NONE, whole_frame
from trainer.data import load_views
from trainer.items import Item
from trainer.manifest import quality_limits


def test_close_looks_at_stills_widen_the_limits_of_an_informative_frame(tmp_path: Path) -> None:
    items = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), cv2.cvtColor(sample.still(number), cv2.COLOR_RGB2BGR))
        items.append(Item(path, "normal", "train", source="made", group=str(number)))
    views = load_views(items, NONE)
    field = whole_frame((256, 256))
    alone = QualityLimits.fit(
        [
            measure(View(image.transpose(1, 2, 0), valid, field))
            for image, valid in zip(views.images, views.valid, strict=True)
        ]
    )
    limits = quality_limits([views], NONE)
    assert limits.least_brightness < alone.least_brightness
    assert limits == quality_limits([views], NONE)
    # frames of recordings have no still to look at closely
    recorded = replace(views, items=tuple(replace(item, pts=0) for item in views.items))
    assert quality_limits([recorded], NONE) == alone


def test_views_of_nothing_measurable_say_so() -> None:
    with pytest.raises(ValueError, match="no frame to fit quality limits on"):
        quality_limits([load_views([], NONE)], NONE)
