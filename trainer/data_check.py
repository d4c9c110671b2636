"""A data set in; what is in it, what is wrong with it, and what gives its labels away, out.

Goes on behind every bad file: what `train` would refuse at the first one, this lists to the end.
Each image is decoded once. No model is involved.

    exact duplicates     files of the same content
    near-duplicates      pairs in different splits whose difference hashes are close, the likest
                         first; those of low correlation are mostly alike by chance
    label leaks          AUROC of each cue of `trainer.baselines` alone, normal test images against
                         the abnormal ones of each source: a model's figure means something only
                         above these
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ccdstream.errors import DataError
from ccdstream.fuse import extrapolation
from ccdstream.view import NONE, rgb_of_frame
from trainer.baselines import Surface, surface_cues, surface_of
from trainer.config import load_config
from trainer.data import Dataset, Item, Progress, file_hash, read_image, read_mask, survey
from trainer.images import NEAR_DUPLICATE_BITS, difference_hash, near_duplicate_pairs
from trainer.items import FEWEST_FRAMES, NAMED_IN_A_MESSAGE, SMALLEST_SIDE_PX, counted
from trainer.recordings import views_at

LEAK_AUROC = 0.7
"""From here on a cue that knows nothing of tissue is pointed out: it puts seven of ten pairs of a
normal and an abnormal image in the right order."""
_PRESET = "quick"
"""That of `train` where none is given: its alert rule is what calibration frames are held to."""
_THUMBNAIL_PX = 32


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """What one decoding of an image tells."""

    size: tuple[int, int]
    bits: np.ndarray
    """bool [64], difference hash."""
    thumbnail: np.ndarray
    """float32 [1024], 32x32 grey with mean 0 and length 1."""
    content: str
    """SHA-256 of the file; of a frame, of its pixels."""
    surface: Surface


def check(data: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Everything that can be told of a data set before training on it, as plain JSON values.

    Args:
        data: whatever `find_data` takes.
        progress: told after every image.

    Returns:
        `data`, `layout`, `counts` [{split, label, source, images}], `refusals` [{kind, message,
        paths}], `unreadable` and `small` [path], `exact_duplicates` [{paths, splits}],
        `near_duplicates` {most_bits, by_splits {"a, b": pairs}, pairs [[path, path,
        correlation of their thumbnails]]}, `masks`
        {abnormal, with_mask, missing, other_size, empty, unreadable}, `leaks` {source: {cue: AUROC
        or None}}, `warnings` [line], `usable` (whether `train` would take it) and `verdict`. Paths
        are relative to the data's folder.

    Raises:
        DataError: there is nothing to look into, or its list cannot be understood.
    """
    dataset, problems = survey(data)
    seen = _look_at(dataset.items, progress)
    listed = {
        path for problem in problems if problem.kind == "unreadable" for path in problem.paths
    }
    broken = listed | {item.path for item in dataset.items if item not in seen}
    small = {path for problem in problems if problem.kind == "small" for path in problem.paths}
    small |= {item.path for item, one in seen.items() if min(one.size) < SMALLEST_SIDE_PX}
    near = _near_duplicates(dataset, seen)
    counts = Counter((item.split, item.label, item.source) for item in dataset.items)
    leaks = _leaks(seen)
    document: dict[str, Any] = {
        "data": str(data),
        "layout": dataset.layout,
        "counts": [
            {"split": split, "label": label, "source": source, "images": images}
            for (split, label, source), images in sorted(counts.items())
        ],
        "refusals": [
            {
                "kind": problem.kind,
                "message": problem.message,
                "paths": _relative(problem.paths, dataset),
            }
            for problem in problems
        ],
        "unreadable": _relative(sorted(broken), dataset),
        "small": _relative(sorted(small), dataset),
        "exact_duplicates": _exact_duplicates(dataset, seen),
        "near_duplicates": near,
        "masks": _masks(dataset, seen),
        "leaks": leaks,
        "warnings": _warnings(dataset),
        "usable": not problems,
    }
    return document | {"verdict": _verdict(document)}


def table(document: dict[str, Any]) -> str:
    """What `check` found, for people: the first few of every list."""
    anything = document["counts"] or document["unreadable"] or document["small"]
    lines = _found_in_words(document) if anything else []
    lines += [f"warning: {warning}" for warning in document["warnings"]]
    lines += [f"refused: {refusal['message']}" for refusal in document["refusals"]]
    where = ' (see "refused:" above)' if document["refusals"] else ""
    text = "\n".join([*lines, "", f"verdict: {document['verdict']}{where}"])
    # the odd bytes of a file name cannot be printed
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _found_in_words(document: dict[str, Any]) -> list[str]:
    lines = [f"layout: {document['layout']}", ""]
    counts = document["counts"]
    if counts:
        width = max(len(row["source"]) for row in counts)
        lines += [f"{'split':<12} {'label':<9} {'source':<{width}} images"]
        lines += [
            f"{row['split']:<12} {row['label']:<9} {row['source']:<{width}} {row['images']:6d}"
            for row in counts
        ]
        lines += [""]
    lines += _listed("unreadable", document["unreadable"])
    lines += _listed(f"smaller than {SMALLEST_SIDE_PX} px", document["small"])
    lines += _duplicates_in_words(document) + _masks_in_words(document["masks"])
    return lines + _leaks_in_words(document["leaks"])


# -- looking --------------------------------------------------------------------------------------


def _look_at(items: Sequence[Item], progress: Progress | None) -> dict[Item, _Seen]:
    """What each item shows; those that cannot be decoded are not in it."""
    seen: dict[Item, _Seen] = {}
    stills = [item for item in items if item.pts is None]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        looks = zip(stills, pool.map(_look_at_still, stills), strict=True)
        for done, (item, one) in enumerate(_and_frames(looks, items), start=1):
            if one is not None:
                seen[item] = one
            if progress is not None:
                progress(done, len(items))
    return seen


def _look_at_still(item: Item) -> _Seen | None:
    rgb = read_image(item.path)
    if rgb is None:
        return None
    return _seen(rgb, cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), file_hash(item.path), item)


def _and_frames(
    stills: Iterable[tuple[Item, _Seen | None]], items: Sequence[Item]
) -> Iterator[tuple[Item, _Seen | None]]:
    """The stills, and then the frames of every recording, decoded once."""
    yield from stills
    frames: dict[Path, dict[int, Item]] = defaultdict(dict)
    for item in items:
        if item.pts is not None:
            frames[item.path][item.pts] = item
    for path, of_pts in frames.items():
        for frame, _ in views_at(path, of_pts, NONE):
            rgb = rgb_of_frame(frame)
            content = hashlib.sha256(rgb.tobytes()).hexdigest()
            yield of_pts[frame.pts], _seen(rgb, frame.y, content, of_pts[frame.pts])


def _seen(rgb: np.ndarray, grey: np.ndarray, content: str, item: Item) -> _Seen:
    height, width = rgb.shape[:2]
    small = cv2.resize(grey, (_THUMBNAIL_PX, _THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    thumbnail = small.ravel() - small.mean(dtype=np.float32)
    thumbnail /= max(float(np.linalg.norm(thumbnail)), 1e-6)  # a flat picture is like nothing
    surface = surface_of(rgb, item)
    return _Seen((height, width), difference_hash(grey), thumbnail, content, surface)


# -- what is wrong --------------------------------------------------------------------------------


def _exact_duplicates(dataset: Dataset, seen: dict[Item, _Seen]) -> list[dict[str, Any]]:
    same = defaultdict(list)
    for item, one in seen.items():
        same[one.content].append(item)
    return [
        {
            "paths": [_name(item, dataset) for item in items],
            "splits": sorted({item.split for item in items}),
        }
        for items in same.values()
        if len(items) > 1
    ]


def _near_duplicates(dataset: Dataset, seen: dict[Item, _Seen]) -> dict[str, Any]:
    """Pairs across splits, the likest first."""
    items, looks = list(seen), list(seen.values())
    hashes = np.array([one.bits for one in looks]).reshape(len(items), 64)
    pairs = [
        (float(looks[i].thumbnail @ looks[j].thumbnail), items[i], items[j])
        for i, j in near_duplicate_pairs(hashes)
        if items[i].split != items[j].split
    ]
    by_splits = Counter(", ".join(sorted((one.split, other.split))) for _, one, other in pairs)
    return {
        "most_bits": NEAR_DUPLICATE_BITS,
        "by_splits": dict(sorted(by_splits.items())),
        "pairs": [
            [_name(one, dataset), _name(other, dataset), round(likeness, 3)]
            for likeness, one, other in sorted(pairs, key=lambda pair: -pair[0])
        ],
    }


def _masks(dataset: Dataset, seen: dict[Item, _Seen]) -> dict[str, Any]:
    """Of the abnormal test images."""
    abnormal = [item for item in dataset.test if item.label == "abnormal"]
    faults: dict[str, list[str]] = {
        "missing": [_name(item, dataset) for item in abnormal if item.mask is None],
        "other_size": [],
        "empty": [],
        "unreadable": [],
    }
    masked = [item for item in abnormal if item.mask is not None]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for item, mask in zip(masked, pool.map(_mask, masked), strict=True):
            if mask is None:
                faults["unreadable"].append(_name(item, dataset))
                continue
            size, empty = mask
            if item in seen and size != seen[item].size:
                faults["other_size"].append(_name(item, dataset))
            if empty:
                faults["empty"].append(_name(item, dataset))
    return {"abnormal": len(abnormal), "with_mask": len(masked), **faults}


def _mask(item: Item) -> tuple[tuple[int, int], bool] | None:
    """The size of an item's mask and whether nothing is on it; None where it cannot be read."""
    assert item.mask is not None
    try:
        mask = read_mask(item.mask)
    except DataError:
        return None  # `check` lists it
    height, width = mask.shape
    return (height, width), not mask.any()


def _leaks(seen: dict[Item, _Seen]) -> dict[str, dict[str, float | None]]:
    """By source of the abnormal test images; none where train or normal test images are missing."""
    train = [one.surface for item, one in seen.items() if item.split == "train"]
    normal, abnormal = [], defaultdict(list)
    for item, one in seen.items():
        if item.split == "test" and item.label == "normal":
            normal.append(one.surface)
        elif item.split == "test" and item.label == "abnormal":
            abnormal[item.source].append(one.surface)
    if not train or not normal:
        return {}
    return {source: surface_cues(train, normal, surfaces) for source, surfaces in abnormal.items()}


def _warnings(dataset: Dataset) -> list[str]:
    """What will be wrong with a bundle of these data, trained by the usual preset."""
    frames, enter = len(dataset.calibration), load_config(_PRESET).alert.enter
    if frames < FEWEST_FRAMES:
        return []  # refused
    said = extrapolation(frames, enter)
    return [] if said is None else [said]


def _verdict(document: dict[str, Any]) -> str:
    refusals = len(document["refusals"])
    if refusals:
        return f"train would refuse this data, for {counted(refusals, 'reason')}"
    masks, pairs = document["masks"], len(document["near_duplicates"]["pairs"])
    loud = {
        cue
        for cues in document["leaks"].values()
        for cue, value in cues.items()
        if value is not None and value >= LEAK_AUROC
    }
    remarks = [
        (len(document["unreadable"]), "test image", ("cannot", "cannot"), "be read"),
        (len(document["small"]), "test image", ("is", "are"), "too small"),
        (pairs, "near-duplicate pair", ("lies", "lie"), "across splits"),
        (len(masks["other_size"]), "mask", ("is", "are"), "not of the image's size"),
        (len(masks["unreadable"]), "mask", ("cannot", "cannot"), "be read"),
        (len(loud), "cue", ("gives", "give"), "the label away without looking at tissue"),
    ]
    said = "; ".join(
        f"{counted(count, noun)} {verbs[count > 1]} {what}"
        for count, noun, verbs, what in remarks
        if count
    )
    return "train can use this data" + (f", but {said}" if said else "")


# -- in words -------------------------------------------------------------------------------------


def _relative(paths: Iterable[Path], dataset: Dataset) -> list[str]:
    return [_below(path, dataset) for path in paths]


def _below(path: Path, dataset: Dataset) -> str:
    inside = path.is_relative_to(dataset.folder)
    return (path.relative_to(dataset.folder) if inside else path).as_posix()


def _name(item: Item, dataset: Dataset) -> str:
    return _below(item.path, dataset) + ("" if item.pts is None else f"@{item.pts}")


def _listed(what: str, names: Sequence[str]) -> list[str]:
    """A line that counts, and one for each of the first few."""
    more = len(names) - NAMED_IN_A_MESSAGE
    return [
        f"{what}: {len(names) or 'none'}",
        *(f"  {name}" for name in names[:NAMED_IN_A_MESSAGE]),
        *([f"  and {more} more"] if more > 0 else []),
    ]


def _duplicates_in_words(document: dict[str, Any]) -> list[str]:
    exact = [" = ".join(group["paths"]) for group in document["exact_duplicates"]]
    near = document["near_duplicates"]
    title = f"near-duplicates across splits (at most {near['most_bits']} of 64 bits differ)"
    by_splits = [f"  {pairs} of {splits}" for splits, pairs in near["by_splits"].items()]
    first, *pairs = _listed(title, [f"{a} ~ {b}, correlation {c:.2f}" for a, b, c in near["pairs"]])
    return [*_listed("exact duplicates", exact), first, *by_splits, *pairs]


def _masks_in_words(masks: dict[str, Any]) -> list[str]:
    if not masks["abnormal"]:
        return ["masks: no abnormal test images"]
    lines = [f"masks: {masks['with_mask']} of {masks['abnormal']} abnormal test images have one"]
    for fault in ("missing", "other_size", "empty", "unreadable"):
        if masks[fault] and len(masks[fault]) < masks["abnormal"]:
            lines += [f"  {line}" for line in _listed(fault.replace("_", " "), masks[fault])]
    return lines


def _leaks_in_words(leaks: dict[str, dict[str, float | None]]) -> list[str]:
    if not leaks:
        return ["label leaks: cannot be told without train, normal and abnormal test images"]
    sources = list(leaks)
    widths = [max(len(source), 6) for source in sources]
    lines = [
        "label leaks: AUROC of each cue alone, abnormal against normal test images "
        f"(0.5 says nothing; * from {LEAK_AUROC})",
        "  ".join([f"  {'':<18}", *(f"{s:>{w}}" for s, w in zip(sources, widths, strict=True))]),
    ]
    for cue in leaks[sources[0]]:
        values = [leaks[source][cue] for source in sources]
        cells = [
            f"{'not known' if v is None else f'{v:.2f}' + ('*' if v >= LEAK_AUROC else ' '):>{w}}"
            for v, w in zip(values, widths, strict=True)
        ]
        lines.append("  ".join([f"  {cue:<18}", *cells]))
    return lines
