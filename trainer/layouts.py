"""A folder in; which of the known layouts it has, and the labelled items in it, out.

Tried in this order:

1. A file: one recording of a normal procedure. `trainer.recordings` says which of its frames. A
   recording with a truth beside it (`trainer.truth`) that marks lesions is refused, here and below.
2. `index.csv`: one row an image with the columns path, label, split and, where known, source,
   position_box (1 where the scope-guide inset is there) and group (of near-duplicates).
3. `data.json` beside `images/`: the lists of MedIAnomaly (Cai et al.), which holds LAG and others;
   {"train": {"0": names}, "test": {"0": names, "1": names}}, 0 for normal.
4. `train_set/` and, where there, `test_set/normal_test/` and `test_set/abnormal_test/`: the layout
   of the CCD authors, of "Colon_AD_public" and of their LAG. Liu et al.'s frames are not public;
   the code published for them reads the same `train_set/`, so frames laid out like that will do.
5. HyperKvasir's own tree, `labeled-images/lower-gi-tract/...` and `segmented-images/` with
   `images/` and `masks/`, or one of them: normal are cecum, ileum and bbps-2-3, abnormal the
   segmented polyps, unclean bbps-0-1 and impacted-stool. Other classes are left out. The paper
   trains on 1,600 normals and tests on 500; its choice is not published, ours is fixed by names
   and pictures.
6. LAG's own tree, `non_glaucoma/image/` and `suspicious_glaucoma/image/`: 2,343 normals to train
   and 800 to test, as in the paper, whose choice is not published either.
7. `train/` and, where there, `calibration/`, `patches/` (pre-training only), all normal, and
   `test/`: normal too, but for subfolders whose names say otherwise. An `index.csv` in the folder
   above that lists these files adds its source, group and position_box. `train/` and
   `calibration/` may hold recordings instead of images; those in `test/` are passed over.
8. Any other folder of normal images, or of recordings of normal procedures, searched recursively.
   A folder of both is refused: stills saved from a recording would calibrate what it trained.

The lesion mask of `x/images/name.jpg` is `x/masks/name.png`, or `.jpg`, where that file exists.
Without calibration frames a part of train is held out. What is held out or chosen is fixed by the
file names and the pictures alone, and near-duplicates stay on one side. Only 5 and 6 look into test
images here, since they choose them.
"""

import csv
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ccdstream.errors import DataError, show_path
from trainer import recordings
from trainer.images import grouped, hold_out
from trainer.items import (
    FEWEST_FRAMES,
    IMAGE_SUFFIXES,
    LABELS,
    SPLITS,
    Item,
    Problem,
    Progress,
    are,
    counted,
    named,
)
from trainer.truth import find_truth, read_truth

HYPERKVASIR_NORMAL = ("cecum", "ileum", "bbps-2-3")
HYPERKVASIR_UNCLEAN = ("bbps-0-1", "impacted-stool")
HYPERKVASIR_COUNTS = (1600, 500)
"""Normals to train on (a part of them calibrates) and to test on; Tian et al. 2021, section 3."""
LAG_COUNTS = (2343, 800)
"""The same for LAG; Tian et al. 2021, section 3."""

SAYS_ABNORMAL = frozenset({
    "abnormal", "adenoma", "adenomas", "anomalous", "anomaly", "cancer", "carcinoma", "colitis",
    "diseased", "glaucoma", "lesion", "lesions", "mask", "masks", "pathological", "pathology",
    "polyp", "polyps", "tumor", "tumors", "tumour", "tumours", "ungood",
})  # fmt: skip
"""Words of a file or folder name that no normal frame should bear."""
SAYS_NOT = frozenset({"free", "negative", "no", "non", "not", "without"})
"""Beside such a word it says the opposite: non_glaucoma, polyp-free."""
MASK_FOLDERS = frozenset({"annotation", "ground_truth", "mask", "masks"})


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder holds."""

    layout: str
    """How it was understood, on one line."""
    items: list[Item]
    problems: list[Problem]
    """Why it cannot be trained on as it is."""


def recognise(data: Path, *, progress: Progress | None = None) -> Found:
    """The items of a folder, or of one recording.

    Args:
        progress: told after every recording that was looked through.

    Raises:
        DataError: nothing is there, or the list in it cannot be understood.
    """
    if data.is_file():
        return _recordings([data], data.parent, data.parent, data.name, progress)
    if not data.is_dir():
        raise DataError(
            f"no data folder at {show_path(data)}. Give a folder of normal frames or recordings, "
            "or one with an index.csv."
        )
    if (data / "index.csv").is_file():
        return _index(data / "index.csv")
    if (data / "data.json").is_file() and (data / "images").is_dir():
        return _medianomaly(data)
    if (data / "train_set").is_dir():
        return _authors(data)
    if _lower_gi_tract(data) or _segmented_images(data):
        return _hyperkvasir(data)
    if classes := _lag_classes(data):
        return _lag(data, *classes)
    if (data / "train").is_dir() or (data / "calibration").is_dir():
        return _split_folders(data, progress)
    return _plain(data, progress)


# -- lists ----------------------------------------------------------------------------------------


def _index(index: Path) -> Found:
    items = list(_read_index(index).values())
    there, problems = _there(items, index)
    return Found("index.csv", there, problems)


def _there(items: Sequence[Item], listing: Path) -> tuple[list[Item], list[Problem]]:
    absent = [item.path for item in items if not item.path.is_file()]
    if not absent:
        return list(items), []
    message = (
        f"{show_path(listing)} lists {counted(len(absent), 'file')} that {are(len(absent))} not "
        f"there: {named(absent)}. Copy what is missing, or remove it from the list."
    )
    gone = set(absent)
    return [item for item in items if item.path not in gone], [
        Problem("absent", message, tuple(absent))
    ]


def _read_index(index: Path) -> dict[Path, Item]:
    """The items that an index.csv lists, by path; they need not be there."""
    with index.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"path", "label", "split"} - set(reader.fieldnames or ())
        if missing:
            raise DataError(
                f"{index} lacks the columns {', '.join(sorted(missing))}. "
                "Expected path, label, split and, where known, source, position_box, group."
            )
        rows = list(reader)
    items = {}
    for line, row in enumerate(rows, start=2):
        for column, known in (("label", LABELS), ("split", SPLITS)):
            if row[column] not in known:
                raise DataError(
                    f"{index}, line {line}: {column} is {row[column]!r}. "
                    f"Expected one of {', '.join(known)}."
                )
        path = index.parent / row["path"]
        items[path] = Item(
            path=path,
            label=row["label"],
            split=row["split"],
            source=row.get("source") or path.parent.name,
            group=row.get("group") or row["path"],
            position_box={"1": True, "0": False}.get(row.get("position_box") or ""),
            mask=_mask_of(path),
        )
    return items


def _medianomaly(folder: Path) -> Found:
    listing = folder / "data.json"
    try:
        document = json.loads(listing.read_text(encoding="utf-8"))
        lists = [
            (label, split, list(map(str, document[split][key])))
            for label, split, key in (
                ("normal", "train", "0"),
                ("normal", "test", "0"),
                ("abnormal", "test", "1"),
            )
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{show_path(listing)} is not a list of MedIAnomaly: {error!r}. "
            'Expected {"train": {"0": [names]}, "test": {"0": [names], "1": [names]}}.'
        ) from error
    items = [
        Item(folder / "images" / name, label, split, source=folder.name, group=f"images/{name}")
        for label, split, names in lists
        for name in names
    ]
    there, problems = _there(items, listing)
    held, more = _calibrated(there, folder)
    return Found("MedIAnomaly's: data.json beside images/", held, problems + more)


# -- trees of public sets -------------------------------------------------------------------------


def _authors(folder: Path) -> Found:
    """train_set/ and test_set/, as CCD's and IGD's loaders read them."""
    items = [
        _item(path, folder, label, split)
        for label, split, subfolder in (
            ("normal", "train", "train_set"),
            ("normal", "test", "test_set/normal_test"),
            ("abnormal", "test", "test_set/abnormal_test"),
        )
        for path in images_below(folder / subfolder)
    ]
    held, problems = _calibrated(items, folder)
    return Found(
        "the CCD authors' (Colon_AD_public): train_set/, test_set/",
        held,
        _named_abnormal(items, folder.parent) + problems,
    )


def _lower_gi_tract(folder: Path) -> Path | None:
    candidates = [folder / "labeled-images" / "lower-gi-tract", folder / "lower-gi-tract"]
    candidates += [folder] if folder.name == "lower-gi-tract" else []
    return next((path for path in candidates if path.is_dir()), None)


def _segmented_images(folder: Path) -> Path | None:
    candidates = [folder / "segmented-images"]
    candidates += [folder] if folder.name == "segmented-images" else []
    return next((path for path in candidates if (path / "images").is_dir()), None)


def _hyperkvasir(folder: Path) -> Found:
    lower, segmented = _lower_gi_tract(folder), _segmented_images(folder)

    def of_classes(names: Iterable[str], label: str) -> list[Item]:
        return [
            replace(_item(path, folder, label, "test"), source=f"hk_{name}")
            for name in names
            for below in (lower.glob(f"*/{name}") if lower else ())
            for path in images_below(below)
        ]

    normal, problems = grouped(of_classes(HYPERKVASIR_NORMAL, "normal"), folder)
    chosen = _chosen(normal, *HYPERKVASIR_COUNTS)
    unclean = of_classes(HYPERKVASIR_UNCLEAN, "unclean")
    polyps = [
        replace(_item(path, folder, "abnormal", "test"), source="hk_segmented")
        for path in (images_below(segmented / "images") if segmented else ())
    ]
    layout = (
        f"HyperKvasir's folder tree: {len(chosen)} of {len(normal)} normals "
        f"({', '.join(HYPERKVASIR_NORMAL)}), {len(polyps)} segmented polyps, "
        f"{len(unclean)} unclean; other classes are left out"
    )
    return Found(layout, chosen + unclean + polyps, problems)


def _lag_classes(folder: Path) -> tuple[Path, Path | None] | None:
    """The folders of normal and of glaucoma images, if this is LAG's tree."""
    by_name = {
        re.sub(r"[\s-]+", "_", path.name.lower()): path
        for path in folder.iterdir()
        if path.is_dir()
    }
    normal = by_name.get("non_glaucoma")
    if normal is None:
        return None
    return normal, by_name.get("suspicious_glaucoma", by_name.get("glaucoma"))


def _lag(folder: Path, normal: Path, abnormal: Path | None) -> Found:
    def pictures(of_class: Path, label: str) -> list[Item]:
        own = of_class / "image"  # beside it lie attention_map/ and label/
        return [
            replace(_item(path, folder, label, "test"), source="lag")
            for path in images_below(own if own.is_dir() else of_class)
        ]

    candidates, problems = grouped(pictures(normal, "normal"), folder)
    chosen = _chosen(candidates, *LAG_COUNTS)
    glaucoma = pictures(abnormal, "abnormal") if abnormal else []
    layout = f"LAG's folder tree: {len(chosen)} normals, {len(glaucoma)} glaucoma"
    return Found(layout, chosen + glaucoma, problems)


def _chosen(items: Sequence[Item], train: int, test: int) -> list[Item]:
    """`train` and `test` of normal `items`, by group; of fewer, all, in about that proportion.

    Groups come in the order of the SHA-256 of their first file name, which is as good as random
    and the same everywhere. Those that fit go to test until it is full, then to train.
    """
    if len(items) < train + test:
        test = round(len(items) * test / (train + test))
        train = len(items)  # what does not fit into test
    groups = defaultdict(list)
    for item in items:
        groups[item.group].append(item)
    ordered = sorted(
        groups.values(),
        key=lambda members: hashlib.sha256(
            min(item.path.name for item in members).encode("utf-8", "surrogateescape")
        ).digest(),
    )
    to_test: list[Item] = []
    to_train: list[Item] = []
    for members in ordered:
        if len(to_test) + len(members) <= test:
            to_test += members
        elif len(to_train) + len(members) <= train:
            to_train += [replace(item, split="train") for item in members]
    return to_test + hold_out(sorted(to_train, key=lambda item: item.path.as_posix()))


# -- folders of one's own -------------------------------------------------------------------------


def _split_folders(folder: Path, progress: Progress | None) -> Found:
    if not (folder / "train").is_dir():
        raise DataError(
            f"{folder} holds calibration/ but no train/. Put the frames to train on into train/."
        )
    above = folder.parent / "index.csv"
    listed = _read_index(above) if above.is_file() else {}
    found = {
        split: _normal_below(folder / subfolder, folder, split, listed)
        for subfolder, split in (
            ("train", "train"),
            ("calibration", "calibration"),
            ("patches", "pretrain"),
        )
    }
    problems = [problem for _, _, several in found.values() for problem in several]
    items = []
    said = "train/, calibration/, patches/, test/, where there"
    for split, (stills, videos, _) in found.items():
        if videos:
            normal, marked = _without_marked(videos)
            sampled, more = recordings.sample_all(normal, progress=progress)
            problems += marked + more
            said += f"; {split}: {recordings.said(sampled)}"
            if split == "train" and not (folder / "calibration").is_dir():
                items += recordings.held_out(sampled, folder, folder.name)
            else:
                for one in sampled:
                    items += recordings.items_of(one, folder, split, folder.name)
        elif split == "train" and not (folder / "calibration").is_dir():
            held, more = _calibrated(stills, folder)
            items += held
            problems += more
        else:
            items += stills
    items += _test_below(folder / "test", folder, listed)
    return Found(said, items, _named_abnormal(items, folder.parent) + problems)


def _normal_below(
    subfolder: Path, folder: Path, split: str, listed: dict[Path, Item]
) -> tuple[list[Item], list[Path], list[Problem]]:
    """Images, recordings, and the problem of having both."""
    stills = [
        replace(listed[path], split=split)
        if path in listed
        else _item(path, folder, "normal", split)
        for path in images_below(subfolder)
    ]
    videos = recordings.recordings_below(subfolder)
    if stills and videos:
        return stills, [], [_mixed(subfolder, len(stills), videos)]
    return stills, videos, []


def _test_below(test: Path, folder: Path, listed: dict[Path, Item]) -> list[Item]:
    """Normal, abnormal where a folder below test/ is named so or stands beside normal/ or good/."""
    paths = images_below(test)
    firsts = {path.relative_to(test).parts[0].lower() for path in paths}
    normal = firsts & {"normal", "good"}
    items = []
    for path in paths:
        folders = [part.lower() for part in path.relative_to(test).parts[:-1]]
        if MASK_FOLDERS & set(folders):
            continue
        label = "normal"
        if "unclean" in folders:
            label = "unclean"
        elif normal and folders:
            label = "normal" if folders[0] in normal else "abnormal"
        elif any(says_abnormal(part) for part in folders):
            label = "abnormal"
        known = listed.get(path)
        items.append(replace(known, split="test") if known else _item(path, folder, label, "test"))
    return items


def _plain(folder: Path, progress: Progress | None) -> Found:
    images, videos = images_below(folder), recordings.recordings_below(folder)
    if videos and not images:
        return _recordings(videos, folder, folder.parent, folder.name, progress)
    items = [_item(path, folder, "normal", "train") for path in images]
    problems = [_mixed(folder, len(images), videos)] if videos else []
    if any(path.is_dir() for path in folder.rglob("masks")):
        message = (
            f"{folder} holds a folder of lesion masks, so its images are not all normal. "
            "List them in an index.csv, or give a folder of normal frames only."
        )
        problems.append(Problem("named abnormal", message))
    else:
        problems += _named_abnormal(items, folder.parent)
    held, more = _calibrated(items, folder)
    return Found("a folder of normal images", held, problems + more)


def _recordings(
    paths: Sequence[Path],
    folder: Path,
    named_from: Path,
    source: str,
    progress: Progress | None,
) -> Found:
    normal, problems = _without_marked(paths)
    sampled, more = recordings.sample_all(normal, progress=progress)
    problems += more
    items = recordings.held_out(sampled, folder, source)
    layout = f"recordings of normal procedures: {recordings.said(sampled)}"
    if sampled and not items:
        message = f"not one frame to train on: {layout}. Expected lit, sharp frames of mucosa."
        problems.append(Problem("few", message, tuple(paths)))
    beside = sum(len(one.pts) for one in sampled) - len(items)
    if beside:
        layout += f"; a stretch of time calibrates, and {beside} frames beside it are not used"
    return Found(layout, items, _named_abnormal(items, named_from) + problems)


def _without_marked(paths: Sequence[Path]) -> tuple[list[Path], list[Problem]]:
    """The recordings that no file beside them calls abnormal, and the problem of the others."""
    normal: list[Path] = []
    marked: dict[Path, Path] = {}  # recording: its truth
    problems = []
    for path in paths:
        try:
            truth = find_truth(path)
            if truth is not None and any(read_truth(truth).frames or ()):
                marked[path] = truth
            else:
                normal.append(path)
        except DataError as error:
            problems.append(Problem("truth", str(error), (path,)))
    if marked:
        message = (
            f"{counted(len(marked), 'recording')} to train on "
            f"{'shows' if len(marked) == 1 else 'show'} lesions, which are marked in "
            f"{named(list(marked.values()))}. Only normal procedures train and calibrate: move "
            "such recordings away."
        )
        problems.append(Problem("marked", message, tuple(marked)))
    return normal, problems


def _mixed(folder: Path, images: int, videos: Sequence[Path]) -> Problem:
    message = (
        f"{show_path(folder)} holds both {counted(images, 'image')} and "
        f"{counted(len(videos), 'recording')}, and stills saved from a recording would lie on both "
        "sides of the calibration. Give a folder of one kind."
    )
    return Problem("mixed", message, tuple(videos))


# -- what the layouts share -----------------------------------------------------------------------


def images_below(folder: Path) -> list[Path]:
    """The image files under `folder`, in order; none where there is no such folder."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")  # macOS leaves "._name.jpg" beside name.jpg
        and path.is_file()
    )


def says_abnormal(name: str) -> bool:
    """Whether a word of `name` says that it is no normal frame."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    return any(
        word in SAYS_ABNORMAL and not SAYS_NOT & {*words[max(0, i - 1) : i], *words[i + 1 : i + 2]}
        for i, word in enumerate(words)
    )


def _named_abnormal(items: Sequence[Item], named_from: Path) -> list[Problem]:
    """Frames to train or calibrate with that are called abnormal, by any part of their paths below
    `named_from`."""
    paths = {item.path: None for item in items if item.split in ("train", "calibration")}
    strange = [
        path
        for path in paths
        if any(says_abnormal(part) for part in path.relative_to(named_from).parts)
    ]
    if not strange:
        return []
    message = (
        f"{counted(len(strange), 'file')} to train on {are(len(strange))} named as abnormal: "
        f"{named(strange)}. Only normal frames train and calibrate: move the others away. If these "
        "are normal, rename them, or list all images with their labels in an index.csv."
    )
    return [Problem("named abnormal", message, tuple(strange))]


def _item(path: Path, folder: Path, label: str, split: str) -> Item:
    """A group of its own, of the source that the folder is called."""
    group = path.relative_to(folder).as_posix()
    return Item(path, label, split, source=folder.name, group=group, mask=_mask_of(path))


def _mask_of(image: Path) -> Path | None:
    if image.parent.name != "images":
        return None
    masks = image.parent.parent / "masks"
    candidates = (masks / f"{image.stem}{suffix}" for suffix in (".png", ".jpg"))
    return next((mask for mask in candidates if mask.is_file()), None)


def _calibrated(items: Sequence[Item], folder: Path) -> tuple[list[Item], list[Problem]]:
    """`items` with a part of train held out for calibration, by near-duplicate group.

    Too few of them to train and to calibrate stay as they are, and whoever counts refuses them.
    """
    train, problems = grouped([item for item in items if item.split == "train"], folder)
    held = hold_out(train) if len(train) >= 2 * FEWEST_FRAMES else train
    return [item for item in items if item.split != "train"] + held, problems
