"""An evaluation as a page for people: one HTML file that needs nothing else, and a sheet of maps.

In: the document of `trainer.evaluate`, the raw scores of every set, and the images to show. Out:
text and bytes. Charts are inline SVG and pictures data URIs, so the page opens without a network;
it runs no script. It judges nothing and computes no figure: what it says stands in the document.
"""

import base64
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ccdstream import NOTICE
from trainer.items import counted
from trainer.metrics import roc_curve

MEANING = (
    "A score says how unusual an image is against normal training frames: 0.95 means that 95 % of "
    "the bundle's normal calibration frames score lower. It does not say polyp, and it is no "
    "probability of disease."
)
LESION_RGB = (80, 255, 80)
PREDICTED_RGB = (255, 255, 255)
_JPEG_QUALITY = 88
_TILE_PX = 192
_CAPTION_PX = 18
_FONT = (cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)
_CAPTION_RGB = (230, 230, 230)
_LEGEND = (
    ("view beside heatmap", _CAPTION_RGB),
    ("green: marked lesion", LESION_RGB),
    ("white: largest part above the label-free threshold", PREDICTED_RGB),
)

Evaluation = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One image to show."""

    caption: str
    name: str
    """Its path in the data folder."""
    picture: np.ndarray
    """uint8 [H, 2 W, 3], RGB: the view, and its heatmap."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """A row of images that were chosen alike."""

    title: str
    members: tuple[Example, ...]


def draw(
    image: np.ndarray,
    fraction: np.ndarray,
    counted: np.ndarray,
    found: np.ndarray,
    lesion: np.ndarray | None,
) -> np.ndarray:
    """uint8 [H, 2 W, 3], RGB: a view beside its heatmap.

    The marked lesion is outlined in green, the largest unusual part in white.

    Args:
        image: uint8 [3, H, W], RGB.
        fraction: float [H, W], calibrated map in [0, 1]; anything where not counted.
        counted: bool [H, W]; other pixels are shown dark.
        found: bool [H, W], the largest connected part of the map above the threshold.
        lesion: bool [H, W], as marked; None where there is none.
    """
    view = np.ascontiguousarray(image.transpose(1, 2, 0))
    level = np.round(255 * np.where(counted, fraction, 0)).astype(np.uint8)
    heat = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    heat[~counted] = view[~counted] // 2
    for picture in (view, heat):
        _outline(picture, found, PREDICTED_RGB)
        if lesion is not None:
            _outline(picture, lesion, LESION_RGB)
    return np.hstack([view, heat])


def contact_sheet(rows: Sequence[Examples]) -> bytes:
    """PNG: what the outlines are, then the rows of examples, each image under its caption."""
    height, width = _TILE_PX + _CAPTION_PX, 2 * _TILE_PX
    columns = max((len(row.members) for row in rows), default=1)
    sheet = np.full((max(1, len(rows)) * height, columns * width, 3), 24, np.uint8)
    for row, examples in enumerate(rows):
        for column, example in enumerate(examples.members):
            tile = cv2.resize(example.picture, (width, _TILE_PX), interpolation=cv2.INTER_AREA)
            top, left = row * height, column * width
            sheet[top + _CAPTION_PX : top + height, left : left + width] = tile
            _caption(sheet, f"{examples.title}: {example.caption}", left, top, _CAPTION_RGB)
    sheet = np.vstack([_legend(sheet.shape[1]), sheet])
    return bytes(cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1])


def _legend(width: int) -> np.ndarray:
    """uint8 [H, width, 3], RGB: one line, or more where that is too long."""
    places = []
    left = top = 0
    for text, rgb in _LEGEND:
        long = cv2.getTextSize(text, *_FONT)[0][0] + 24
        if left and left + long > width:
            left, top = 0, top + _CAPTION_PX
        places.append((text, left, top, rgb))
        left += long
    strip = np.full((top + _CAPTION_PX, width, 3), 24, np.uint8)
    for place in places:
        _caption(strip, *place)
    return strip


def _caption(
    picture: np.ndarray, text: str, left: int, top: int, rgb: tuple[int, int, int]
) -> None:
    face, size, thickness = _FONT
    cv2.putText(picture, text, (left + 4, top + 13), face, size, rgb, thickness, cv2.LINE_AA)


def page(
    evaluation: Evaluation,
    scores: Mapping[str, np.ndarray],
    alert_at: float,
    examples: Sequence[Examples],
) -> str:
    """The page, as HTML.

    Args:
        evaluation: the document that `trainer.evaluate.evaluate` gives.
        scores: float [N] of each set, raw.
        alert_at: raw score from which an image counts as an alert.
        examples: the images to show.
    """
    bundle = evaluation["bundle"]
    title = f"Evaluation of {bundle['name']}"
    sections = [
        _section("Headline figures", _headline(evaluation)),
        _section("Image scores", _score_charts(evaluation, scores, alert_at)),
        _section("Where in the image", _pixel_table(evaluation)),
        _section("Alert rates", _alert_table(evaluation)),
        _section("Images and maps", _gallery(examples)),
        _section("Notes", _notes(evaluation)),
        _section("What was measured on what", _provenance(evaluation)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_safe(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<header>\n"
        f"<h1>{_safe(title)}</h1>\n"
        f'<p class="what">{_safe(bundle["model_id"])} on {_safe(evaluation["data"]["folder"])}, '
        f"{_safe(evaluation['created'][:10])}</p>\n"
        f'<p class="notice"><strong>{_safe(NOTICE)}</strong> {_safe(MEANING)}</p>\n'
        "</header>\n<main>\n" + "\n".join(sections) + "\n</main>\n"
        f"<footer>{_safe(NOTICE)}</footer>\n</body>\n</html>\n"
    )


# -- sections -------------------------------------------------------------------------------------


def _headline(evaluation: Evaluation) -> str:
    """The figures to quote, each on an axis from 0 to 1 with its baselines."""
    rows = []
    for name, image in evaluation["image"].items():
        cues = evaluation["baselines"][name]
        boxed_cues = evaluation["baselines_with_position_box"][name]
        maps = evaluation["pixel"]["sets"][name]["maps"]
        everything, boxed = image["all"], image["with_position_box"]
        chance = everything and everything["abnormal"] / (
            everything["abnormal"] + everything["normal"]
        )
        rows.append(_band(name, _counts_of(evaluation, name), 4))
        for title, figure, baselines in (
            ("Image AUROC", everything and everything["auroc"], cues),
            (
                "Image average precision",
                everything and everything["average_precision"],
                {"chance": chance},
            ),
            ("Image AUROC, with position box on both sides", boxed and boxed["auroc"], boxed_cues),
            *(
                (heading, *_figure_and_baselines(maps, key))
                for heading, key in (
                    ("Pixel AUROC, mean over images", "auroc"),
                    ("IoU, label-free threshold", "iou"),
                    ("Dice, label-free threshold", "dice"),
                )
            ),
        ):
            rows.append(_headline_row(title, figure, baselines or {}))
    if not rows:
        return "<p>No set of abnormal images was measured: there are alert rates only.</p>"
    return (
        '<p class="key"><span class="dot"></span> this bundle, with its 95 % interval '
        '<span class="tick"></span> a baseline that knows nothing of tissue</p>\n'
        '<table class="headline"><thead><tr><th>Figure</th><th>This bundle</th><th>0 to 1</th>'
        "<th>Baselines, strongest first</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>\n"
        "<p>A figure means something only where it lies above its baselines. IoU and Dice are of "
        "the lesion and the largest connected part (8 neighbours) of what lies above the "
        f"{evaluation['pixel']['quantile']:.2f} quantile of the pixels of normal calibration "
        "frames: no lesion had a say in that threshold.</p>"
    )


def _headline_row(
    title: str, figure: Mapping[str, Any] | None, baselines: Mapping[str, float | None]
) -> str:
    known = {name: value for name, value in baselines.items() if value is not None}
    strongest = sorted(known.items(), key=lambda item: -item[1])
    beside = ", ".join(
        f'<span class="nowrap">{_safe(_words(name))} {value:.3f}</span>'
        for name, value in strongest
    )
    return (
        f'<tr><th scope="row">{_safe(title)}</th><td class="value">{_figure(figure)}</td>'
        f'<td class="plot">{_strip(figure, known.values())}</td>'
        f'<td class="beside">{beside or "none"}</td></tr>'
    )


def _score_charts(evaluation: Evaluation, scores: Mapping[str, np.ndarray], alert_at: float) -> str:
    roc = [
        _chart(
            f"normal against {name}",
            _roc(scores["normal"], scores[name]),
            "AUROC " + _figure_text(evaluation["image"][name]["all"]["auroc"]),
        )
        for name in evaluation["image"]
        if "normal" in scores
    ]
    together = np.concatenate(list(scores.values()))
    low, high = np.quantile(together, (0.0, 0.995))
    edges = np.linspace(low, max(high, alert_at), 41)
    edges[-1] = max(edges[-1], edges[0] + 1e-6)
    shown = [
        _chart(
            f"{name} ({len(values)})",
            _histogram(values, edges, alert_at),
            f"{100 * evaluation['alerts']['rates'][name]['value']:.1f} % reach the alert line",
        )
        for name, values in scores.items()
    ]
    return (
        ("<h3>ROC</h3>" + _grid(roc) if roc else "")
        + "<h3>Raw scores by set</h3>"
        + _grid(shown)
        + "<p>Share of the images of each set by raw score, higher being more unusual; one axis "
        "for all sets, the last bar holds what lies beyond. The line is where the calibrated score "
        f"reaches {evaluation['alerts']['fraction']:.2f}, set on calibration frames alone.</p>"
    )


def _pixel_table(evaluation: Evaluation) -> str:
    pixel = evaluation["pixel"]
    sets: Mapping[str, Any] = pixel["sets"]
    if not sets:
        return "<p>No set of abnormal images was measured.</p>"
    rows = []
    for title, key in (
        ("Pixel AUROC, mean over images", "auroc"),
        ("Pixel AUROC, all pixels of a set together", "auroc_pooled"),
        (f"PRO, to a false positive rate of {pixel['pro_fpr']}", "pro"),
        ("IoU, label-free threshold", "iou"),
        ("Dice, label-free threshold", "dice"),
        ("IoU, oracle threshold", "oracle.iou"),
        ("Dice, oracle threshold", "oracle.dice"),
        ("IoU, label-free threshold, five groups as in the paper", "paper_groups.iou"),
        ("IoU, oracle threshold, five groups as in the paper", "paper_groups.oracle_iou"),
    ):
        for map_name in next(iter(sets.values()))["maps"]:
            own = map_name == "bundle"
            oracle = "oracle" in key
            cells = "".join(
                f"<td>{_figure(_at(one['maps'][map_name], key))}</td>" for one in sets.values()
            )
            rows.append(
                f'<tr class="{"own" if own else "base"}{" oracle" if oracle else ""}">'
                f'<th scope="row">{_safe(title if own else _words(map_name) + " alone")}</th>'
                f"{cells}</tr>"
            )
    about = "; ".join(
        f"{name}: {counted(one['images'], 'image')} with a marked lesion in sight, "
        f"{counted(one['regions'], 'region')}, groups of {one['paper_group_images']}"
        for name, one in sets.items()
    )
    return (
        '<div class="wide"><table class="figures"><thead><tr><th>Figure</th>'
        + "".join(f"<th>{_safe(name)}</th>" for name in sets)
        + f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>\n"
        "<p><strong>Oracle</strong> rows choose, with the lesion masks in hand, the one threshold "
        "of a set that gives the highest mean IoU. They say what a map could do at best and are "
        "not figures to quote. The five groups are disjoint, of 100 images or a fifth of what "
        "there is, drawn with a fixed seed: mean and standard deviation over groups. PRO takes "
        "false positives from the set's own images only.</p>\n"
        f"<p>{_safe(about)}.</p>"
    )


def _alert_table(evaluation: Evaluation) -> str:
    alerts = evaluation["alerts"]
    rows = "".join(
        f'<tr><th scope="row">{_safe(name)}</th><td class="value">{_percent(rate)}</td>'
        f'<td class="plot">{_strip(rate, ())}</td>'
        f'<td class="beside">{counted(rate["n"], "image")}</td></tr>'
        for name, rate in alerts["rates"].items()
    )
    return (
        '<table class="headline"><thead><tr><th>Set</th><th>Images that alert</th>'
        f"<th>0 to 100 %</th><th></th></tr></thead><tbody>{rows}</tbody></table>"
        f"<p>An image alerts where its calibrated score is {alerts['fraction']:.2f} or more. That "
        f"scale was set for about {100 * (1 - alerts['fraction']):.0f} % of the frames that the "
        "bundle was calibrated on to reach it. The row &ldquo;calibration&rdquo; is of the "
        "calibration frames of the data folder, which may be others, and few.</p>"
    )


def _gallery(examples: Iterable[Examples]) -> str:
    rows = "".join(
        f"<h3>{_safe(row.title)}</h3>"
        + '<div class="gallery">'
        + "".join(
            f'<figure><img src="{_data_uri(one.picture)}" alt="{_safe(one.name)}: view and heatmap"'
            f' width="{one.picture.shape[1]}" height="{one.picture.shape[0]}">'
            f"<figcaption>{_safe(one.caption)}<br><small>{_safe(one.name)}</small></figcaption>"
            "</figure>"
            for one in row.members
        )
        + "</div>"
        for row in examples
    )
    return (
        '<p class="key">View beside heatmap. <span class="lesion"></span> outline of the marked '
        'lesion <span class="found"></span> outline of the largest part of the map above the '
        "label-free threshold: unusual, whatever it is. Best, median and worst by IoU at that "
        "threshold; the choice uses the lesion masks.</p>" + rows
    )


def _notes(evaluation: Evaluation) -> str:
    notes = [
        *evaluation["notes"],
        "Intervals are 95 %, of a bootstrap that draws whole groups of near-duplicates; of alert "
        "rates of 0 and 100 % the exact binomial ones (Clopper-Pearson) on the number of groups.",
        "Pixels are those of the 256x256 view that are valid; lesion masks are cut to the view "
        "likewise.",
        "No patient is known in such sets: frames of one procedure may lie on both sides of a "
        "split except where groups say otherwise.",
    ]
    return "<ul>" + "".join(f"<li>{_safe(note)}</li>" for note in notes) + "</ul>"


def _provenance(evaluation: Evaluation) -> str:
    bundle, engine, data = evaluation["bundle"], evaluation["engine"], evaluation["data"]
    counts = ", ".join(f"{count} {name}" for name, count in evaluation["counts"].items())
    versions = ", ".join(
        f"{name} {number}"
        for name, number in {"ccdstream": evaluation["version"], **evaluation["versions"]}.items()
    )
    entries = {
        "Bundle": bundle["model_id"],
        "Program, SHA-256": bundle["program_sha256"],
        "Commit of the bundle": bundle["commit"],
        "Engine": f"{engine['name']} {engine['version']} on {engine['device']}",
        "Data folder": data["folder"],
        "Images": counts,
        "Calibration images, SHA-256": data["calibration_sha256"],
        "Test images, SHA-256": data["test_sha256"],
        "Measured": evaluation["created"],
        "Versions": versions,
    }
    return (
        "<dl>"
        + "".join(f"<dt>{_safe(k)}</dt><dd>{_safe(str(v))}</dd>" for k, v in entries.items())
        + "</dl>"
    )


# -- charts ---------------------------------------------------------------------------------------

_WIDTH, _LEFT, _RIGHT, _BOTTOM, _TOP = 300, 40, 10, 32, 8


def _roc(normal: np.ndarray, abnormal: np.ndarray) -> str:
    height = _WIDTH - _LEFT - _RIGHT + _TOP + _BOTTOM  # square axes
    false_rate, true_rate = roc_curve(normal, abnormal)
    x, y = _scale(0, 1, _LEFT, _WIDTH - _RIGHT), _scale(0, 1, height - _BOTTOM, _TOP)
    points = " ".join(f"{x(f):.1f},{y(t):.1f}" for f, t in zip(false_rate, true_rate, strict=True))
    area = f"{points} {x(1):.1f},{y(0):.1f} {x(0):.1f},{y(0):.1f}"
    return _svg(
        height,
        *(_line(x(v), y(0), x(v), y(1), "grid") for v in (0.25, 0.5, 0.75, 1)),
        *(_line(x(0), y(v), x(1), y(v), "grid") for v in (0.25, 0.5, 0.75, 1)),
        f'<polygon class="area" points="{area}"/>',
        _line(x(0), y(0), x(1), y(1), "chance"),
        _line(x(0), y(0), x(1), y(0), "axis"),
        _line(x(0), y(0), x(0), y(1), "axis"),
        f'<polyline class="curve" points="{points}"/>',
        *(_label(x(v), y(0) + 13, f"{v:g}", "middle") for v in (0, 0.5, 1)),
        *(_label(x(0) - 5, y(v) + 3.5, f"{v:g}", "end") for v in (0.5, 1)),
        _label((x(0) + x(1)) / 2, height - 3, "normal images above the score", "middle"),
        f'<text transform="translate(10 {(y(0) + y(1)) / 2:.1f}) rotate(-90)" '
        'text-anchor="middle">abnormal images above it</text>',
    )


def _histogram(values: np.ndarray, edges: np.ndarray, alert_at: float) -> str:
    height, left = 132, _RIGHT
    shares = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(values)
    x = _scale(float(edges[0]), float(edges[-1]), left, _WIDTH - _RIGHT)
    y = _scale(0, max(float(shares.max()), 1e-9), height - _BOTTOM, _TOP + 12)
    bars = [
        f'<rect class="bar{" high" if start >= alert_at else ""}" x="{x(start):.1f}" '
        f'y="{y(share):.1f}" width="{max(x(end) - x(start) - 0.8, 0.5):.1f}" '
        f'height="{y(0) - y(share):.1f}"/>'
        for start, end, share in zip(edges[:-1], edges[1:], shares, strict=True)
        if share
    ]
    inside = edges[0] <= alert_at <= edges[-1]
    return _svg(
        height,
        *bars,
        _line(x(edges[0]), y(0), x(edges[-1]), y(0), "axis"),
        *(_label(x(tick), y(0) + 13, f"{tick:g}", "middle") for tick in _ticks(edges)),
        _label((left + _WIDTH - _RIGHT) / 2, height - 3, "raw score", "middle"),
        _line(x(alert_at), y(0), x(alert_at), _TOP, "alert") if inside else "",
        _label(x(alert_at) + (4 if x(alert_at) < _WIDTH - 60 else -4), _TOP + 8, "alert",
               "start" if x(alert_at) < _WIDTH - 60 else "end") if inside else "",
    )  # fmt: skip


def _ticks(edges: np.ndarray) -> list[float]:
    """Round numbers within the edges, at most eight."""
    span = float(edges[-1] - edges[0])
    power = 10.0 ** np.floor(np.log10(span))
    step = next(s * power for s in (0.2, 0.5, 1, 2) if span / (s * power) <= 7)
    counts = np.arange(np.ceil(edges[0] / step), np.floor(edges[-1] / step) + 1)
    return [round(float(count * step), 9) + 0.0 for count in counts]  # + 0.0: -0 is 0


def _strip(figure: Mapping[str, Any] | None, baselines: Iterable[float]) -> str:
    """A figure, its interval and its baselines on an axis from 0 to 1."""
    width, height, margin = 200, 22, 5
    x, middle = _scale(0, 1, margin, width - margin), height / 2
    marks = [_line(x(0), middle, x(1), middle, "axis")]
    marks += [_line(x(v), middle - 4, x(v), middle + 4, "axis") for v in (0, 0.5, 1)]
    marks += [_line(x(v), middle - 7, x(v), middle + 7, "base") for v in baselines]
    if figure is not None:
        if figure["low"] is not None:
            marks.append(_line(x(figure["low"]), middle, x(figure["high"]), middle, "interval"))
        marks.append(f'<circle class="dot" cx="{x(figure["value"]):.1f}" cy="{middle}" r="4"/>')
    return _svg(height, *marks, width=width)


def _svg(height: float, *marks: str, width: float = _WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-hidden="true">'
        f"{''.join(marks)}</svg>"
    )


def _line(x0: float, y0: float, x1: float, y1: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_safe(text)}</text>'


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Maps [low, high] onto [start, end]."""
    slope = (end - start) / (high - low)
    return lambda value: start + (float(value) - low) * slope


# -- words ----------------------------------------------------------------------------------------


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{_safe(title)}</h2>\n{body}\n</section>"


def _band(name: str, about: str, columns: int) -> str:
    return (
        f'<tr class="band"><th colspan="{columns}" scope="rowgroup">{_safe(name)} '
        f"<span>{_safe(about)}</span></th></tr>"
    )


def _chart(title: str, svg: str, caption: str) -> str:
    return (
        f'<figure class="chart"><h4>{_safe(title)}</h4>{svg}'
        f"<figcaption>{_safe(caption)}</figcaption></figure>"
    )


def _grid(charts: Iterable[str]) -> str:
    return f'<div class="charts">{"".join(charts)}</div>'


def _counts_of(evaluation: Evaluation, name: str) -> str:
    counts = evaluation["counts"]
    normal = counts.get("normal")
    return counted(counts[name], "image") + (f" against {normal} normal" if normal else "")


def _figure_and_baselines(
    maps: Mapping[str, Any], key: str
) -> tuple[Mapping[str, Any] | None, dict[str, float | None]]:
    others = {name: _at(one, key) for name, one in maps.items() if name != "bundle"}
    return _at(maps["bundle"], key), {name: f and f["value"] for name, f in others.items()}


def _at(figures: Mapping[str, Any], key: str) -> Any:
    """The figure under a dotted key; None where nothing was measured."""
    found: Any = figures
    for part in key.split("."):
        found = found and found[part]
    return found


def _figure(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return '<span class="none">not measured</span>'
    if "spread" in figure:
        return f'<b>{figure["mean"]:.3f}</b> <span class="nowrap">± {figure["spread"]:.3f}</span>'
    interval = "" if figure["low"] is None else f"{figure['low']:.3f} to {figure['high']:.3f}"
    return f'<b>{figure["value"]:.3f}</b> <span class="nowrap">{interval}</span>'


def _figure_text(figure: Mapping[str, Any]) -> str:
    interval = "" if figure["low"] is None else f" ({figure['low']:.3f} to {figure['high']:.3f})"
    return f"{figure['value']:.3f}{interval}"


def _percent(rate: Mapping[str, Any]) -> str:
    interval = (
        "" if rate["low"] is None else f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f} %"
    )
    return f'<b>{100 * rate["value"]:.1f} %</b> <span class="nowrap">{interval}</span>'


def _words(name: str) -> str:
    return name.replace("_", " ")


def _safe(text: str) -> str:
    return html.escape(text)


def _data_uri(picture: np.ndarray) -> str:
    encoded = cv2.imencode(
        ".jpg",
        cv2.cvtColor(picture, cv2.COLOR_RGB2BGR),
        [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY],
    )[1]
    return "data:image/jpeg;base64," + base64.b64encode(bytes(encoded)).decode("ascii")


def _outline(picture: np.ndarray, mask: np.ndarray, rgb: tuple[int, int, int]) -> None:
    contours, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    cv2.drawContours(picture, contours, -1, rgb, 2)


_CSS = """
:root { --ink: #16232e; --soft: #5a6b78; --line: #dde4e9; --tint: #f4f7f9; --own: #0b6e8c;
  --base: #c2410c; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.5rem; background: #fff;
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", "Noto Sans", "DejaVu Sans", Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 3rem 0 1rem; padding-bottom: .4rem; border-bottom: 2px solid var(--ink);
  font-size: 1.25rem; }
h3 { margin: 1.8rem 0 .6rem; font-size: 1rem; }
h4 { margin: 0 0 .3rem; font-size: .9rem; font-weight: 600; }
p { max-width: 46rem; }
section > p { color: var(--soft); font-size: .9rem; }
.what { margin: .3rem 0 0; color: var(--soft); overflow-wrap: anywhere; }
.notice { max-width: none; margin: 1.4rem 0 0; padding: .8rem 1rem; background: var(--tint);
  border-left: 4px solid var(--own); font-size: .95rem; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; }
th, td { padding: .45rem .8rem .45rem 0; text-align: left; vertical-align: middle;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-size: .78rem; font-weight: 600; }
tbody th { font-weight: 400; }
.band th { padding-top: 1.3rem; font-size: 1rem; font-weight: 600; }
.band span { color: var(--soft); font-size: .85rem; font-weight: 400; padding-left: .4rem; }
.value { width: 13rem; white-space: nowrap; }
.value .nowrap, .figures td .nowrap { color: var(--soft); font-size: .85em; padding-left: .3rem; }
b { font-weight: 650; }
.nowrap { white-space: nowrap; }
.none { color: var(--soft); font-style: italic; }
.plot { width: 200px; min-width: 150px; }
.plot svg { display: block; width: 100%; }
.beside { color: var(--soft); font-size: .82rem; line-height: 1.4; }
.wide { overflow-x: auto; }
.figures td { white-space: nowrap; }
.figures .own th { font-weight: 600; }
.figures .own th, .figures .own td { border-bottom: 0; padding-top: .7rem; padding-bottom: .1rem; }
.figures .base th, .figures .base td { border-bottom: 0; padding-top: .1rem; padding-bottom: .1rem;
  color: var(--soft); }
.figures .base th { padding-left: 1rem; }
.figures .base b { font-weight: 400; }
.figures .own:not(:first-child) th, .figures .own:not(:first-child) td {
  border-top: 1px solid var(--line); }
.figures .oracle { background: #faf7f2; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr));
  gap: 1.4rem; }
.chart { margin: 0; max-width: 340px; break-inside: avoid; }
.chart svg { display: block; width: 100%; }
figcaption { color: var(--soft); font-size: .82rem; overflow-wrap: anywhere; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr));
  gap: 1rem; }
.gallery figure { margin: 0; break-inside: avoid; }
.gallery img { display: block; width: 100%; height: auto; border-radius: 3px; background: #000; }
.gallery figcaption { margin-top: .3rem; line-height: 1.35; }
svg text { fill: var(--soft); font-size: 10.5px; }
svg .axis { stroke: #a9b6bf; } svg .grid { stroke: #edf1f4; }
svg .chance { stroke: #a9b6bf; stroke-dasharray: 3 3; }
svg .curve { fill: none; stroke: var(--own); stroke-width: 2; stroke-linejoin: round; }
svg .area { fill: var(--own); opacity: .08; }
svg .bar { fill: #a9bccb; } svg .high { fill: var(--own); }
svg .alert { stroke: var(--base); stroke-width: 1.5; stroke-dasharray: 4 2; }
svg .base { stroke: var(--base); stroke-width: 1.6; }
svg .interval { stroke: var(--own); stroke-width: 4; stroke-linecap: round; opacity: .35; }
svg .dot { fill: var(--own); stroke: #fff; }
.key { color: var(--soft); font-size: .85rem; }
.key span { display: inline-block; vertical-align: middle; margin: 0 .25rem 0 .9rem; }
.key span:first-child { margin-left: 0; }
.key .dot { width: 9px; height: 9px; border-radius: 50%; background: var(--own); }
.key .tick { width: 2px; height: 14px; background: var(--base); }
.key .lesion, .key .found { width: 14px; height: 14px; border: 3px solid #50ff50;
  background: #51606b; outline: 3px solid #51606b; }
.key span.lesion { margin-left: .6rem; }
.key .found { border-color: #fff; }
ul { max-width: 46rem; padding-left: 1.2rem; font-size: .92rem; }
li { margin: .35rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.5rem; margin: 0;
  font-size: .88rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
footer { margin-top: 3rem; padding-top: .8rem; border-top: 1px solid var(--line);
  color: var(--soft); font-size: .85rem; }
@media (max-width: 640px) {
  body { padding: 1.3rem 1rem; }
  h1 { font-size: 1.5rem; }
  .headline thead { display: none; }
  .headline tr { display: grid; grid-template-columns: 1fr auto; align-items: center;
    column-gap: .8rem; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .headline .value { width: auto; }
  .headline th, .headline td { border: 0; padding: .1rem 0; }
  .headline .plot, .headline .beside, .headline .band th { grid-column: 1 / -1; width: 100%; }
  .figures { font-size: .8rem; }
  .figures td .nowrap { display: block; padding-left: 0; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 9.5pt;
    -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  h2 { margin-top: 1.8rem; } h2, h3, .key { break-after: avoid; } tr { break-inside: avoid; }
  .value { width: auto; } .plot { width: 120px; min-width: 120px; }
  .headline tbody th { min-width: 8.5rem; }
  .gallery { grid-template-columns: repeat(4, 1fr); gap: .6rem; }
  .gallery small { font-size: .7em; }
  .charts { grid-template-columns: repeat(3, 1fr); }
  .wide { overflow: visible; } h2 + .headline, dl { break-inside: avoid; }
}
"""
