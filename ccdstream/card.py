"""What a bundle is, for people: `describe` for a terminal, `card` as a model card; and which come
with ccdstream.

Both are made from the manifest alone, and say of what it does not tell that it is not stated or not
measured. The card follows Mitchell et al., "Model Cards for Model Reporting", FAccT 2019: details,
intended use, factors, metrics, data, figures, caveats. It is Markdown.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ccdstream.bundle import Bundle, load_bundle
from ccdstream.errors import BundleError
from ccdstream.fuse import extrapolation
from ccdstream.packaged import PACKAGED, Packaged

MAIN_FIGURES = ("image AUROC", "pixel AUROC", "IoU", "alert rate")
"""Those that `describe` shows."""
OF_BUNDLE = "bundle"
"""What a row of figures is of where it is not of a baseline."""

_SETTINGS = ("preset", "detector", "scales", "profile", "seed", "global_size_px", "local_size_px")
"""Of the training's configuration; the sizes of its stages are a table."""
_STAGE_OF = {"igd": "igd", "msssim_ae": "autoencoder", "dae": "autoencoder", "fanogan": "fanogan"}
"""Detector -> the end of the names of its stages: a configuration holds those of the others too."""
_NEVER = (
    "hospitals, endoscopes and video processors other than those of the data named above",
    "narrow-band imaging and other virtual chromoendoscopy, and dye",
    "capsule endoscopy, and organs other than the colon",
    "inflammatory disease, bleeding, resection sites and scars",
    "children",
    "whole procedures, and live use during one",
    "sensitivity by patient: the public data name neither patients nor procedures",
    "any clinical use: no clinician has worked with it, and nobody has shown that it helps",
)
_LIMITS = (
    "Instruments, water, bubbles, stool, retroflexion and another scope's colours are unusual too.",
    "A figure of whole images partly measures the kind of view and the recorder: read it beside "
    "the baselines under it, which see no tissue. Figures of pixels suffer less from that.",
    "Frames of one procedure may lie on both sides of a split, except where groups of "
    "near-duplicates say otherwise.",
    "Its scores are ranks among its own calibration frames; those of two bundles are not to be "
    "compared frame by frame.",
)


def describe(bundle: Bundle) -> str:
    """What a bundle is, for a terminal: a line a fact, the long tables of its manifest left out."""
    manifest = bundle.manifest
    training = dict(manifest["training"])
    data = training.pop("data", [])
    calibration_frames = manifest["calibration"]["frames"]
    facts = [
        ("model", bundle.model_id),
        ("folder", str(bundle.path)),
        ("made", f"{manifest['created']} by ccdstream {manifest['version']}"),
        ("commit", manifest["commit"]),
        ("command", manifest["command"]),
        *(("file", f"{name}, {e['bytes']} bytes") for name, e in manifest["files"].items()),
        ("map", "{} x {} cells".format(*bundle.map_size)),
        ("parts", ", ".join(bundle.parts)),
        ("profile", _short(bundle.profile)),
        ("calibration", f"{calibration_frames} normal frames"),
        ("alert", _short(bundle.alert)),
        ("quality", _short(bundle.quality)),
        ("parity", _short(bundle.parity)),
        *(("data", _short(entry)) for entry in (data if isinstance(data, list) else [data])),
        *((f"training {key}", _short(value)) for key, value in training.items()),
        *(("figures", _main_figures(entry)) for entry in manifest["figures"].values()),
        *([] if manifest["figures"] else [("figures", "not measured")]),
        ("card", f"ccdstream model card {shlex.quote(str(bundle.path))}"),
        *(("licence", _short(licence)) for licence in manifest["licences"]),
        ("notice", manifest["notice"]),
    ]
    width = max(len(label) for label, _ in facts)
    labels = [label for label, _ in facts]
    return "\n".join(
        # a label once for all the lines that it stands for
        f"{'' if row and label == labels[row - 1] else label:<{width}}  {_short(text)}"
        for row, (label, text) in enumerate(facts)
    )


def card(bundle: Bundle) -> str:
    """The model card of a bundle, as Markdown that ends with a newline."""
    manifest = bundle.manifest
    sections = {
        f"Model card: {_text(bundle.model_id)}": _what_it_is(manifest),
        "How it was made": _how_it_was_made(bundle),
        "Whose student it is": _student(manifest),
        "Training data and terms": _data(manifest),
        "Calibration, and what a score means": _calibration(bundle),
        "Figures": _figures(manifest, lambda kind: kind != "speed"),
        "Engines and speed": _engines(bundle),
        "Known limits": [f"- {limit}" for limit in (*_LIMITS, *_too_few(bundle))],
        "Never tested on": [
            "No figure above tells anything of:",
            "",
            *(f"- {what}" for what in _NEVER),
        ],
    }
    return "\n".join(
        line
        for rank, (title, lines) in enumerate(sections.items())
        if lines
        for line in (f"{'##' if rank else '#'} {title}", "", *lines, "")
    )


def packaged_bundles() -> list[dict[str, Any]]:
    """Every bundle of the package: {name, id, bytes, purpose, speed, student, problem}.

    `id`, `bytes` and `student` are None where `problem` says why; a damaged bundle is listed, too.
    """
    return [_packaged(bundle) for bundle in PACKAGED]


def packaged_table(listed: Sequence[Mapping[str, Any]]) -> str:
    """What `packaged_bundles` gives, as lines of text."""
    rows = [("name", "size", "speed", "made for", "model")]
    for one in listed:
        size = "-" if one["bytes"] is None else f"{one['bytes'] / 1e6:.1f} MB"
        model = one["problem"] or one["id"] + (", a student" if one["student"] else "")
        rows.append((one["name"], size, one["speed"], one["purpose"], model))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _packaged(one: Packaged) -> dict[str, Any]:
    listed: dict[str, Any] = {
        "name": one.name,
        "id": None,
        "bytes": None,
        "purpose": one.purpose,
        "speed": one.speed,
        "student": None,
        "problem": "",
    }
    if not one.shipped:
        return listed | {"problem": "not in this installation"}
    try:
        bundle = load_bundle(one.path)
    except BundleError as error:  # what is wrong is what a list is for, too
        return listed | {"problem": str(error)}
    return listed | {
        "id": bundle.model_id,
        "bytes": sum(entry["bytes"] for entry in bundle.manifest["files"].values()),
        "student": bool(bundle.manifest.get("student")),
    }


# -- the sections of a card -----------------------------------------------------------------------


def _what_it_is(manifest: Mapping[str, Any]) -> list[str]:
    return [
        f"**{_text(manifest['notice'])}**",
        "",
        "It marks, in frames of white-light colonoscopy, what is **unusual against the normal "
        "frames that it was trained on**, and how unusual: a score for a frame and a map over its "
        "field of view. It learned from normal frames, where its stages say so with synthetic "
        "lesions pasted in, and from no real lesion: it is no detector of polyps or of any "
        "disease. What it marks may be one, or stool, an instrument or another scope's colours, "
        "and what it does not mark is not thereby normal.",
        "",
        "Made for research on recordings: for looking where a frame differs from normal ones, and "
        "for comparing methods. Not for diagnosis, screening, or decisions about a patient.",
    ]


def _how_it_was_made(bundle: Bundle) -> list[str]:
    manifest = bundle.manifest
    training = manifest["training"]
    config = training.get("config")
    config = config if isinstance(config, dict) else {}
    settings = [f"{key} {_text(config[key])}" for key in _SETTINGS if key in config]
    starts = training.get("backbones")
    starts = starts if isinstance(starts, dict) else {}
    others = training.keys() - {"config", "data", "backbones", "machine"}
    return [
        f"- made {_text(manifest['created'])} by ccdstream {_text(manifest['version'])}, "
        f"commit {_code(manifest['commit'])}",
        f"- command: {_code(manifest['command'])}",
        f"- machine: {_text(training.get('machine', 'not stated'))}",
        f"- settings: {', '.join(settings) or 'not stated'}; all of them are in the manifest",
        *(f"- start weights, {_text(scale)}: {_text(start)}" for scale, start in starts.items()),
        *([] if starts else ["- start weights: not stated"]),
        f"- licences of start weights: {_listed(manifest['licences'])}",
        f"- terms of the score: {', '.join(map(_text, bundle.parts)) or 'not named'}",
        *(f"- {_text(key)}: {_told(training[key])}" for key in sorted(others)),
        *_stages(config, student=bool(manifest.get("student"))),
    ]


def _stages(config: Mapping[str, Any], *, student: bool) -> list[str]:
    """The stages of a training as a table; nothing where the configuration names none. It holds a
    student's settings whether there was one or not."""
    taken = _STAGE_OF.get(str(config["detector"])) if "detector" in config else None
    of_others = {end for end in _STAGE_OF.values() if taken is not None and end != taken}
    rows = []
    for name, stage in config.items():
        if not isinstance(stage, dict) or name.rpartition("_")[2] in of_others:
            continue
        if name == "student" and not student:
            continue
        lengths = {
            key: stage[key] for key in stage if key.endswith(("steps", "epochs")) and stage[key]
        }
        if not lengths or "learning_rate" not in stage:
            continue
        losses = {k: v for k, v in stage.items() if k.endswith("_weight") and v}
        rows.append((
            _text(name),
            _told(lengths),
            _text(stage.get("batch_size", "not stated")),
            _text(stage["learning_rate"]),
            _told({k.removesuffix("_weight"): v for k, v in losses.items()}) if losses else "",
        ))  # fmt: skip
    head = ("stage", "length", "batch", "learning rate", "weights of its losses")
    return ["", *_table(head, rows)] if rows else []


def _student(manifest: Mapping[str, Any]) -> list[str]:
    student = manifest.get("student")
    if not student:
        return []
    facts = student if isinstance(student, dict) else {"student of": student}
    return [
        "It was trained to give what another bundle gives. How well it follows says nothing of how "
        "right either is.",
        "",
        *(f"- {_text(key.replace('_', ' '))}: {_told(value)}" for key, value in facts.items()),
    ]


def _data(manifest: Mapping[str, Any]) -> list[str]:
    data = manifest["training"].get("data")
    rows = [
        (
            _text(entry.get("name", "not named")),
            _text(entry.get("count", "not stated")),
            _told(entry.get("sources", "not stated")),
            _listed(entry.get("licences")),
            _code(str(entry.get("sha256", "not stated"))[:12]),
        )
        for entry in (data if isinstance(data, list) else [])
        if isinstance(entry, dict)
    ]
    if not rows:
        return ["Not stated."]
    return [
        *_table(("set", "frames", "sources", "terms", "sha256 begins"), rows),
        "",
        "The bundle holds no picture of anybody: its golden frames are rendered. Whoever passes it "
        "on, or trains on, is bound by the terms of the data as far as they reach.",
    ]


def _calibration(bundle: Bundle) -> list[str]:
    frames = bundle.calibration["frames"]
    last = max(bundle.calibration["score"]["fraction"], default=0.0)
    return [
        f"A calibrated score is the share of {frames} normal calibration frames, held out of the "
        f"training, that score lower. Above {last:.3f}, beyond the last of them, an exponential "
        "tail is assumed. The map is calibrated in the same way, by pixel.",
        "",
        "Alerts over time, thresholds on the smoothed calibrated score:",
        "",
        *(f"- {_text(_named(key))}: {_text(value)}" for key, value in bundle.alert.items()),
    ]


def _too_few(bundle: Bundle) -> list[str]:
    """That alerts open beyond the calibration frames, where they do."""
    said = extrapolation(bundle.calibration["frames"], bundle.alert["enter"])
    return [] if said is None else [said]


def _figures(manifest: Mapping[str, Any], wanted: Callable[[str], bool]) -> list[str]:
    entries = [entry for entry in manifest["figures"].values() if wanted(entry["kind"])]
    lines = [
        line
        for entry in sorted(entries, key=lambda entry: (entry["kind"], entry["data"]["name"]))
        for line in _measured(entry)
    ]
    return lines[:-1] or ["Not measured."]


def _measured(entry: Mapping[str, Any]) -> list[str]:
    """An entry of the manifest's figures: where they come from, and a table."""
    engine, data, rows = entry["engine"], entry["data"], entry["rows"]
    counts = ", ".join(f"{count} {_text(name)}" for name, count in data["counts"].items())
    sets = list(dict.fromkeys(row["set"] for row in rows))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        cells.setdefault((row["figure"], row["of"]), {})[row["set"]] = _estimate(row)
    order = {figure: rank for rank, figure in enumerate(dict.fromkeys(f for f, _ in cells))}
    table = [
        (
            f"**{_text(figure)}**" if of == OF_BUNDLE else f"{_text(of.replace('_', ' '))} alone",
            *(values.get(name, "") for name in sets),
        )
        for (figure, of), values in sorted(
            cells.items(), key=lambda cell: (order[cell[0][0]], cell[0][1] != OF_BUNDLE)
        )
    ]
    return [
        f"**{_text(data['name'])}** ({counts or 'counts not stated'}; sha256 begins "
        f"{_code(data['sha256'][:12])}): {_code(entry['command'])}, {_text(entry['created'])}, "
        f"commit {_code(entry['commit'])}, {_text(engine['name'])} {_text(engine['version'])} on "
        f"{_text(engine['device'])} in {_text(engine['precision'])}, {_text(entry['machine'])}. "
        "In brackets 95 % intervals, n how many values a figure rests on; under a figure in bold, "
        "what trivial baselines give on the same frames.",
        "",
        *_table(("", *map(_text, sets)), table),
        "",
        *(f"- {_text(note)}" for note in entry["notes"]),
        *([""] if entry["notes"] else []),
    ]


def _engines(bundle: Bundle) -> list[str]:
    return [
        "An engine is used only where it gives the golden outputs in the bundle within these "
        "limits (`ccdstream model verify`):",
        "",
        *(f"- {_text(_named(key))}: {_text(value)}" for key, value in bundle.parity.items()),
        "",
        "Speed:",
        "",
        *_figures(bundle.manifest, lambda kind: kind == "speed"),
    ]


# -- words ----------------------------------------------------------------------------------------


def _main_figures(entry: Mapping[str, Any]) -> str:
    """The figures of an entry that matter most, on one line."""
    rows = [r for r in entry["rows"] if r["of"] == OF_BUNDLE and r["figure"] in MAIN_FIGURES]
    by_set = {
        name: ", ".join(f"{r['figure']} {_interval(r)}" for r in rows if r["set"] == name)
        for name in dict.fromkeys(row["set"] for row in rows)
    }
    told = "; ".join(f"{name}: {figures}" for name, figures in by_set.items())
    return f"{entry['data']['name']}, {entry['created']}: {told or _short(entry['kind'])}"


def _interval(row: Mapping[str, Any]) -> str:
    """A value with its 95 % interval in brackets, where it has one."""
    value = _number(row["value"])
    if row.get("low") is None:
        return value
    return f"{value} ({_number(row['low'])}-{_number(row['high'])})"


def _estimate(row: Mapping[str, Any]) -> str:
    """The same, and how many values it rests on."""
    return _interval(row) + ("" if row.get("n") is None else f", n {_number(row['n'])}")


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _named(key: str) -> str:
    """A key as words, its unit in brackets."""
    words = key.replace("_", " ")
    return f"{words[:-2]} (s)" if key.endswith("_s") else words


def _told(value: object) -> str:
    """Any value of the manifest on one line of Markdown, figures with their intervals."""
    if isinstance(value, dict):
        if isinstance(value.get("value"), int | float) and "low" in value and "high" in value:
            return _text(_estimate(value))
        inner = (f"{_text(key)} {_told(each)}" for key, each in value.items())
        return ", ".join(inner) or "none"
    if isinstance(value, list):
        return ", ".join(map(_told, value)) or "none"
    return _text(value)


def _listed(values: object) -> str:
    return "; ".join(map(_told, values)) if isinstance(values, list) and values else "not stated"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _text(value: object) -> str:
    """A value as Markdown text on one line that says what the value is and nothing more."""
    return "".join(f"\\{char}" if char in "\\`*[]<>|" else char for char in _short(value))


def _code(value: object) -> str:
    """A value as code, which Markdown does not read."""
    return f"`{_short(value).replace('`', chr(39))}`"


def _short(value: object) -> str:
    """A value of the manifest on one line that a terminal shows as it is."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    printable = (char if char.isprintable() else " " for char in str(value))
    return " ".join("".join(printable).split())
