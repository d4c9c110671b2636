"""The paper's ablations and comparisons as a grid of trainings, each measured alike.

    table 1    the terms of eq. 1, one after the other
    figure 2   batch size and strong augmentation of the pre-training
    table 2    localisation
    table 3    detectors, with CCD's pre-training and without

and beside them what the released code does otherwise, and what a user would pick today. A variant
is a few settings on top of one base configuration; it is trained once, however many tables name it,
and a pre-training that several share is done once. What is there is not done again, so a stopped
grid goes on where it was. In the output folder:

    variants/NAME/          bundle, its run folder, and what `trainer.evaluate` writes
    ablation.json, .md      the tables, beside the paper's figures
    ablation.png            the same as a plot
    grid.json               of which configuration and data the grid is

Rows of other methods keep the paper's figure and are not measured.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ccdstream.bundle import load_bundle
from ccdstream.engine.base import BuildOptions, Device
from ccdstream.engine.select import open_engine
from ccdstream.errors import ConfigError, EngineError, OutputError
from trainer.augment import STRONG
from trainer.config import TrainConfig, with_settings
from trainer.data import content_hash, find_data
from trainer.evaluate import evaluate, test_sets
from trainer.runs import Progress, Say, say_on_stderr, say_progress
from trainer.train import Scale, scales, train

FORMAT = "ccdstream-ablation"
FORMAT_VERSION = 1
CCD_IGD = "ccd-igd"
"""The variant that every table has: the base configuration as it is."""
BATCH_SIZES = (16, 32, 64, 128)
"""Of figure 2; what the paper tried beyond 16, 32 and "larger" it does not say."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One training of the grid."""

    name: str
    settings: tuple[str, ...] = ()
    """`KEY=VALUE` on top of the base configuration."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table."""

    title: str
    variant: str | None
    """None: another method, which is not run."""
    paper: float | None = None
    """The paper's figure on HyperKvasir; None where it gives none."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table or figure of the paper, or of ours."""

    name: str
    title: str
    figure: str
    """What the paper's figures are of: "auroc" of images, or "iou"."""
    rows: tuple[Row, ...]


TABLES = (
    Table(
        "table1",
        "Table 1: terms of eq. 1, IGD",
        "auroc",
        (
            Row("contrastive only (SimCLR)", "simclr-igd", 0.913),
            Row("+ strong augmentation (eq. 2)", "con-igd", 0.937),
            Row("+ classification (eq. 3)", "con-cla-igd", 0.964),
            Row("+ position (eq. 4): CCD", CCD_IGD, 0.972),
        ),
    ),
    Table(
        "figure2-batch",
        "Figure 2, left: batch size of the pre-training, IGD",
        "auroc",
        tuple(Row(f"batch {size}", f"batch-{size}") for size in BATCH_SIZES),
    ),
    Table(
        "figure2-strong",
        "Figure 2, right: strong augmentation, IGD",
        "auroc",
        (
            Row("rotation", "strong-rotation"),
            Row("permutation", CCD_IGD),
            Row("cutout", "strong-cutout"),
            Row("Gaussian noise", "strong-noise"),
        ),
    ),
    Table(
        "table2",
        "Table 2: localisation",
        "iou",
        (
            Row("U-Net (supervised)", None, 0.746),
            Row("U-Net++ (supervised)", None, 0.743),
            Row("ResUNet (supervised)", None, 0.793),
            Row("SFA (supervised)", None, 0.611),
            Row("RotNet + IGD", "rotnet-igd", 0.276),
            Row("CAVGA-Ru", None, 0.349),
            Row("CCD + IGD", CCD_IGD, 0.372),
        ),
    ),
    Table(
        "table3",
        "Table 3: detectors on HyperKvasir",
        "auroc",
        (
            Row("DAE", "dae", 0.705),
            Row("OCGAN", None, 0.813),
            Row("f-AnoGAN", "fanogan", 0.907),
            Row("ADGAN", None, 0.913),
            Row("CAVGA-Ru", None, 0.928),
            Row("MS-SSIM", "msssim", 0.917),
            Row("IGD", "igd", 0.939),
            Row("RotNet + IGD", "rotnet-igd", 0.905),
            Row("CCD + MS-SSIM", "ccd-msssim", 0.945),
            Row("CCD + f-AnoGAN", "ccd-fanogan", 0.958),
            Row("CCD + IGD", CCD_IGD, 0.972),
        ),
    ),
    Table(
        "today",
        "What a user would pick today, on the same features",
        "auroc",
        (
            Row("PatchCore", "patchcore"),
            Row("PaDiM", "padim"),
            Row("CCD + PatchCore", "ccd-patchcore"),
            Row("CCD + PaDiM", "ccd-padim"),
        ),
    ),
    Table(
        "switches",
        "Where paper and released code differ, IGD",
        "auroc",
        (
            Row("CCD as configured", CCD_IGD),
            Row("negatives of the same strong class (eq. 2 literally)", "negatives-same"),
            Row("all strong classes of an image in a batch (CSI)", "negatives-all"),
            Row("frozen heads (released code)", "heads-frozen"),
            Row("whole frames with what is masked in them", "masks-shown"),
            Row("position in the global model too (paper)", "position-global"),
            Row("global model alone", "global-alone"),
            Row("patch model alone", "local-alone"),
        ),
    ),
)


def variants(base: TrainConfig) -> dict[str, Variant]:
    """Every training that `TABLES` name, by name."""
    no_pretraining = both("pretrain.steps=0", "pretrain.epochs=0")
    rotnet = both(
        "pretrain.strong=rotation",
        "pretrain.contrastive_weight=0",
        "pretrain.position_weight=0",
    )
    without = {
        "cla": both("pretrain.classification_weight=0"),
        "pos": both("pretrain.position_weight=0"),
    }
    listed = [
        Variant(CCD_IGD),
        Variant(
            "simclr-igd",
            (
                *both("pretrain.strong=none"),
                *without["cla"],
                *without["pos"],
                *_epochs_of_one_class(base),
            ),
        ),
        Variant("con-igd", (*without["cla"], *without["pos"])),
        Variant("con-cla-igd", without["pos"]),
        *(Variant(f"batch-{size}", _batch(base, size)) for size in BATCH_SIZES),
        *(
            Variant(f"strong-{name}", both(f"pretrain.strong={name}"))
            for name in ("rotation", "cutout", "noise")
        ),
        Variant("rotnet-igd", rotnet),
        Variant("igd", no_pretraining),
        # nothing else would teach its encoder
        Variant("dae", ("detector=dae", *no_pretraining, *both("autoencoder.train_backbone=true"))),
        *(
            Variant(f"{prefix}{name}", (f"detector={detector}", *settings))
            for name, detector in (
                ("fanogan", "fanogan"),
                ("msssim", "msssim_ae"),
                ("patchcore", "patchcore"),
                ("padim", "padim"),
            )
            for prefix, settings in (("", no_pretraining), ("ccd-", ()))
        ),
        Variant("negatives-same", both("pretrain.negatives=same_strong")),
        Variant("negatives-all", both("pretrain.negatives=all_strong", "pretrain.symmetric=true")),
        Variant("heads-frozen", both("pretrain.heads=frozen")),
        Variant("masks-shown", both("pretrain.min_valid=0")),
        Variant("position-global", ("global_pretrain.position_weight=1",)),
        Variant("global-alone", ("scales=global",)),
        Variant("local-alone", ("scales=local",)),
    ]
    return {variant.name: variant for variant in listed}


def both(*settings: str) -> tuple[str, ...]:
    """Settings of one scale, for both."""
    return tuple(f"{scale}_{setting}" for scale in ("global", "local") for setting in settings)


def _epochs_of_one_class(base: TrainConfig) -> tuple[str, ...]:
    """Epochs that make as many steps without strong classes as the base's make with them."""
    return tuple(
        f"{scale}_pretrain.epochs={pretrain.epochs * STRONG[pretrain.strong].classes}"
        for scale, pretrain in (("global", base.global_pretrain), ("local", base.local_pretrain))
        if not pretrain.steps
    )


def _batch(base: TrainConfig, size: int) -> tuple[str, ...]:
    """Another batch size for the same number of passes over the data."""
    settings = []
    for scale in ("global", "local"):
        pretrain = getattr(base, f"{scale}_pretrain")
        settings.append(f"{scale}_pretrain.batch_size={size}")
        if pretrain.steps:
            steps = max(1, round(pretrain.steps * pretrain.batch_size / size))
            settings.append(f"{scale}_pretrain.steps={steps}")
    return tuple(settings)


Measure = Callable[[TrainConfig, Path, Mapping[str, Path]], dict[str, Any]]
"""(configuration of a variant, its folder, checkpoints that it may start from) -> the evaluation of
its bundle, as `trainer.evaluate` describes it."""


def ablate(
    data: Path,
    output: Path,
    base: TrainConfig,
    *,
    command: str,
    tables: Sequence[str] = (),
    sets: Sequence[str] = (),
    device: Literal["auto"] | Device = "auto",
    say: Say = say_on_stderr,
    on_progress: Callable[[Progress], None] = say_progress,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train and measure every variant that the tables name, and write the tables to `output`.

    Args:
        command: what the user typed, for the manifests.
        tables: names of `TABLES`; all if none is given.
        sets: sets of test images to measure on (`trainer.evaluate`), normal ones aside; all if none
            is given.

    Returns:
        What ablation.json holds: see `run_grid`.

    Raises:
        ConfigError: a table that is not known.
        OutputError: `output` holds a grid of another configuration, or cannot be written.
        DataError: the data is missing or not usable.
    """

    wanted = ["normal", *sets] if sets else None

    def measure(config: TrainConfig, folder: Path, shared: Mapping[str, Path]) -> dict[str, Any]:
        file = folder / "evaluation.json"
        if file.exists():
            evaluation: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if wanted is None or set(wanted) <= set(evaluation["counts"]):
                return evaluation
        bundle_folder, run = folder / "bundle", folder / "bundle.run"
        if not bundle_folder.exists():
            if not (run / "config.json").exists():
                run.mkdir(parents=True, exist_ok=True)
                for name, checkpoint in shared.items():
                    shutil.copyfile(checkpoint, run / name)
            train(
                data,
                bundle_folder,
                config,
                command=command,
                resume=(run / "config.json").exists(),
                say=say,
                on_progress=on_progress,
                stopped=stopped,
            )
        bundle = load_bundle(bundle_folder)
        say(f"measuring {bundle.model_id}")
        engine = open_engine(bundle, device=device, build=BuildOptions("fp32", say=say))
        return evaluate(data, bundle, engine, folder, only=wanted, overwrite=True)

    found = find_data(data)
    test_sets(found, wanted)  # so that a set that is not there is said before anything is trained
    return run_grid(
        output,
        base,
        measure,
        command=command,
        data_sha256=content_hash(found.items),
        tables=tables,
        say=say,
    )


def run_grid(
    output: Path,
    base: TrainConfig,
    measure: Measure,
    *,
    command: str,
    data_sha256: str,
    tables: Sequence[str],
    say: Say,
) -> dict[str, Any]:
    """Measure every variant that the tables name; the tables are written anew after each.

    Returns:
        `format`, `format_version`, `command`, `data` {folder, counts} or null, `config`,
        `variants` {name:
        {settings, and model and figures {set: {auroc, pixel_auroc, iou}}, or failed}} and `tables`
        [{name, title, figure, rows [{title, variant, paper}]}]. A figure is {value, low, high, n}.

    Raises:
        ConfigError: a table that is not known.
        OutputError: `output` holds a grid of another configuration, or cannot be written.
    """
    chosen = _chosen(tables)
    grid = variants(base)
    names = dict.fromkeys(row.variant for table in chosen for row in table.rows if row.variant)
    _claim(output, base, data_sha256)
    document: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "command": command,
        "data": None,
        "config": base.as_dict(),
        "variants": {},
        "tables": [asdict(table) for table in chosen],
    }
    configs: dict[str, TrainConfig] = {}
    for number, name in enumerate(names, start=1):
        say(f"variant {number} of {len(names)}: {name}")
        result: dict[str, Any] = {"settings": list(grid[name].settings)}
        document["variants"][name] = result
        config = with_settings(base, grid[name].settings)
        if config in configs.values():  # as batch 32 is where the base has it already
            same = next(other for other, its in configs.items() if its == config)
            document["variants"][name] = document["variants"][same]
            continue
        configs[name] = config
        shared = _shared_checkpoints(output, grid, base, config)
        try:
            evaluation = measure(config, output / "variants" / name, shared)
        except (ConfigError, EngineError) as error:  # of this variant; others may still do
            say(f"{name} is not measured: {error}")
            result["failed"] = str(error)
        else:
            result |= _figures(evaluation)
            document["data"] = {
                "folder": evaluation["data"]["folder"],
                "counts": evaluation["counts"],
            }
        _write(output, document)
    return document


def failed(document: dict[str, Any]) -> list[str]:
    """The variants that could not be measured."""
    return [name for name, result in document["variants"].items() if "failed" in result]


def _chosen(names: Sequence[str]) -> list[Table]:
    known = {table.name: table for table in TABLES}
    if unknown := sorted(set(names) - set(known)):
        raise ConfigError(f"no table named {unknown[0]!r}. Known tables: {', '.join(known)}.")
    return [table for table in TABLES if not names or table.name in names]


def _claim(output: Path, base: TrainConfig, data_sha256: str) -> None:
    """Make the folder, or see that it is of the same grid."""
    asked = base.as_dict() | {"data": data_sha256}
    for key in ("compute", "checkpoint_every_s"):  # these change no figure
        del asked[key]
    text = json.dumps(asked, indent=2, sort_keys=True)
    file = output / "grid.json"
    try:
        if not file.exists():
            if output.exists() and any(output.iterdir()):
                raise OutputError(
                    f"{output} is neither empty nor a grid. Name another folder for the grid."
                )
            output.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        elif file.read_text(encoding="utf-8") != text:
            raise OutputError(
                f"{output} holds a grid of another configuration or other data. Name another "
                "folder, or remove it."
            )
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror}.") from error


def _shared_checkpoints(
    output: Path, grid: Mapping[str, Variant], base: TrainConfig, config: TrainConfig
) -> dict[str, Path]:
    """Pre-trainings that a finished variant has done with the very same configuration, by file
    name."""
    shared: dict[str, Path] = {}
    for other in grid.values():
        folder = output / "variants" / other.name
        if not (folder / "bundle").exists():
            continue
        theirs = with_settings(base, other.settings)
        done = {scale.name: _pretraining(theirs, scale) for scale in scales(theirs)}
        for scale in scales(config):
            file = folder / "bundle.run" / f"pretrain_{scale.name}.pt"
            if done.get(scale.name) == _pretraining(config, scale) and file.exists():
                shared.setdefault(file.name, file)
    return shared


def _pretraining(config: TrainConfig, scale: Scale) -> tuple[Any, ...]:
    """What a pre-training depends on, data aside."""
    size = config.global_size_px if scale.name == "global" else config.local_size_px
    return (scale.pretrain, scale.backbone, size, config.seed, config.profile, config.max_images)


def _figures(evaluation: dict[str, Any]) -> dict[str, Any]:
    figures = {}
    for name, image in evaluation["image"].items():
        pixel = evaluation["pixel"]["sets"][name]["maps"]["bundle"]
        figures[name] = {
            "auroc": image["all"] and image["all"]["auroc"],
            "pixel_auroc": pixel["auroc"],
            "iou": pixel["iou"],
        }
    return {"model": evaluation["bundle"]["model_id"], "figures": figures}


def markdown(document: dict[str, Any]) -> str:
    """The tables as text."""
    sets = sorted({s for v in document["variants"].values() for s in v.get("figures", {})})
    config, data = document["config"], document["data"]
    lines = ["# Ablation", "", f"`{document['command']}`", ""]
    lines.append(
        f"Each row is a training of {config['name']}, seed {config['seed']}; its settings are in "
        "ablation.json, its bundle, losses and full evaluation with trivial baselines under "
        "variants/."
    )
    if data is not None:
        counts = ", ".join(f"{count} {name}" for name, count in data["counts"].items())
        lines.append(f"Measured on {data['folder']}: {counts} images.")
    lines += [
        "The paper's figures are of its own full set and lengths of training, and may be of the "
        "best checkpoint on the test set; ours are of the last.",
        "",
    ]
    for table in document["tables"]:
        lines += [f"## {table['title']}", ""]
        lines.append(
            f"| | paper's {_SHOWN[table['figure']]} | "
            + " | ".join(f"{s}: {title}" for s in sets for title in _SHOWN.values())
            + " |"
        )
        lines.append("| --- " * (2 + len(sets) * len(_SHOWN)) + "|")
        for row in table["rows"]:
            result = document["variants"].get(row["variant"], {})
            cells = [
                "another method"
                if row["variant"] is None
                else _cell(result.get("figures", {}).get(s, {}).get(key))
                for s in sets
                for key in _SHOWN
            ]
            paper = "" if row["paper"] is None else f"{row['paper']:.3f}"
            lines.append(f"| {row['title']} | {paper} | " + " | ".join(cells) + " |")
        lines.append("")
    lines.append(
        "In brackets: 95 % intervals over near-duplicate groups of test images; one training each, "
        "so the spread between trainings is not in them. IoU at the label-free threshold."
    )
    return "\n".join(lines) + "\n"


_SHOWN = {"auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "iou": "IoU"}


def _cell(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "not measured"
    interval = ""
    if figure["low"] is not None:
        interval = f" ({figure['low']:.3f}-{figure['high']:.3f})"
    return f"{figure['value']:.3f}{interval}"


def _write(output: Path, document: dict[str, Any]) -> None:
    files = {
        "ablation.json": (json.dumps(document, indent=2) + "\n").encode(),
        "ablation.md": markdown(document).encode(),
        "ablation.png": _plot(document),
    }
    try:
        for name, content in files.items():
            part = output / f"{name}.part"
            part.write_bytes(content)
            os.replace(part, output / name)
    except OSError as error:
        raise OutputError(f"cannot write to {output}: {error.strerror}.") from error


def _plot(document: dict[str, Any]) -> bytes:
    """PNG: for every table its rows as points with intervals, and the paper's as crosses."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tables = document["tables"]
    heights = [1.2 + 0.32 * len(table["rows"]) for table in tables]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(tables), 1, height_ratios=heights)
    for index, table in enumerate(tables):
        axes = figure.add_subplot(grid[index])
        places = range(len(table["rows"]), 0, -1)
        for place, row in zip(places, table["rows"], strict=True):
            if row["paper"] is not None:
                axes.plot(row["paper"], place, "x", color="0.4")
            result = document["variants"].get(row["variant"], {})
            for shift, (name, colour) in enumerate(
                zip(sorted(result.get("figures", {})), _COLOURS, strict=False)
            ):
                estimate = result["figures"][name][table["figure"]]
                if estimate is not None:
                    at = place - 0.16 * shift
                    if estimate["low"] is not None:
                        axes.plot([estimate["low"], estimate["high"]], [at, at], color=colour)
                    axes.plot(estimate["value"], at, "o", color=colour, label=name)
        axes.set_yticks(list(places), [row["title"] for row in table["rows"]])
        axes.set_title(table["title"], fontsize=10, loc="left")
        axes.set_xlabel(_SHOWN[table["figure"]], fontsize=8)
        axes.grid(axis="x", alpha=0.3)
        handles, labels = _once(*axes.get_legend_handles_labels())
        if handles:
            axes.legend(handles, labels, fontsize=8)
    figure.suptitle("x: the paper, on its own full set", fontsize=8, x=0.99, ha="right")
    file = io.BytesIO()
    figure.savefig(file, dpi=110)
    return file.getvalue()


_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def _once(handles: Iterable[Any], labels: Iterable[str]) -> tuple[list[Any], list[str]]:
    first = {label: handle for handle, label in reversed(list(zip(handles, labels, strict=True)))}
    return list(first.values()), list(first)
