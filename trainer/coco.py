"""Clips as COCO files: what the frames show, and what the product says of them.

For tools that score detectors, such as the TRUE-Colon protocol's package `true-colon` (arXiv
2608.13711):

    create_evaluator(id_source="pred_string", canonicalizer="stem_int_suffix", ...)

A frame is `STEM_NUMBER`, counted from 0, in both files. Every frame is listed, those without a
lesion too; a lesion's `unique_id` is `STEM_LESION`. Boxes are [x, y, width, height], in pixels.

The product scores frames, not boxes: a prediction is the score of a frame, smoothed and calibrated,
in the box where the frame is hottest, or in the whole frame where nothing stands out. So figures of
frames and lesions at IoU > 0 mean something; COCO's average precision of boxes hardly does.
"""

from collections.abc import Sequence
from typing import Any

from trainer.clips import Clip

LEAST_SCORE = 0.001
"""Predictions below it are left out, far below any threshold that is used."""


def frame_name(clip: Clip, index: int) -> str:
    """The name of a frame in both files."""
    return f"{clip.video.stem}_{index}"


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
                    "file_name": f"{frame_name(clip, index)}.jpg",
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
        {
            "image_id": frame_name(clip, index),
            "category_id": 1,
            "bbox": list(clip.pointed_at(index)),
            "score": float(clip.scores[index]),
        }
        for clip in clips
        for index in range(len(clip))
        if clip.scores[index] >= LEAST_SCORE
    ]
