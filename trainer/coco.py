"""Clips as COCO files: what the frames show, and what the product says of them.

Predictions are those of `ccdstream run --also coco`; `ccdstream.report.coco` says what they mean.
A frame is `STEM_NUMBER`, counted from 0, in both files. Every frame is listed, those without a
lesion too; a lesion's `unique_id` is `STEM_LESION`. Boxes are [x, y, width, height], in pixels.
"""

from collections.abc import Sequence
from typing import Any

from ccdstream.report.coco import frame_name, prediction
from trainer.clips import Clip


def ground_truth(clips: Sequence[Clip]) -> dict[str, Any]:
    """What the frames show: a COCO document with the keys images, annotations and categories.

    Beyond COCO, an image says at what time of its video it is shown (`seconds`).
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for clip in clips:
        height, width = clip.size
        for index, lesions in enumerate(clip.lesions):
            images.append(
                {
                    "id": len(images) + 1,
                    "file_name": f"{frame_name(clip.video.stem, index)}.jpg",
                    "width": width,
                    "height": height,
                    "seconds": float(clip.seconds[index]),
                }
            )
            annotations += [
                {
                    "id": len(annotations) + number,
                    "image_id": len(images),
                    "category_id": 1,
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "unique_id": f"{clip.video.stem}_{lesion}",
                }
                for number, (lesion, box) in enumerate(lesions, 1)
            ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "lesion"}],
    }


def predictions(clips: Sequence[Clip]) -> list[dict[str, Any]]:
    """What the product says: one box a frame, none on uninformative frames; COCO's result form."""
    return [
        prediction(
            clip.video.stem,
            index,
            score=float(clip.scores[index]),
            box=clip.regions[index],
            size=clip.size,
        )
        for clip in clips
        for index in range(len(clip))
        if clip.informative[index]
    ]
