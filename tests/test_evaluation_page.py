"""The page is whole by itself, says what the document says, and shows what is given."""

import base64
import copy
import html
import re
from html.parser import HTMLParser
from typing import Any

import cv2
import numpy as np
import pytest

from ccdstream import NOTICE
from trainer.evaluation_page import LESION_RGB, MEANING, Example, Examples, draw, page
from trainer.localisation import FIGURES

FIGURE = {"value": 0.8125, "low": 0.75, "high": 0.875, "n": 9}
FIVE = {"mean": 0.31, "spread": 0.02, "values": [0.31] * 5}


def figures_of_a_map(value: float) -> dict[str, Any]:
    one = FIGURE | {"value": value}
    return {
        **dict.fromkeys(("auroc", "auroc_pooled", "pro", "iou", "dice"), one),
        "oracle": {"threshold": 1.0, "iou": FIGURE | {"value": 0.4321}, "dice": one},
        "paper_groups": {"iou": FIVE, "oracle_iou": FIVE},
    }


def evaluation() -> dict[str, Any]:
    return {
        "created": "2026-01-02T03:04:05+00:00",
        "version": "0.1.0",
        "versions": {"numpy": "2.0"},
        "bundle": {
            "name": "made <b>",
            "model_id": "made-0123",
            "program_sha256": "ab" * 32,
            "commit": "c0ffee",
        },
        "engine": {"name": "brightness", "device": "cpu", "version": "1.0"},
        "data": {"folder": "frames", "calibration_sha256": "cd" * 32, "test_sha256": "ef" * 32},
        "counts": {"calibration": 8, "normal": 4, "polyp": 5},
        "notes": ["3 polyp images & more."],
        "image": {
            "polyp": {
                "all": {"auroc": FIGURE, "average_precision": FIGURE, "normal": 4, "abnormal": 5},
                "with_position_box": None,
            }
        },
        "pixel": {
            "quantile": 0.9,
            "pro_fpr": 0.3,
            "thresholds": {"bundle": 1.0, "redness": 1.0},
            "sets": {
                "polyp": {
                    "images": 5,
                    "regions": 6,
                    "without_mask": 0,
                    "lesions_out_of_sight": 0,
                    "lesion_shown": 1.0,
                    "paper_group_images": 1,
                    "maps": {
                        "bundle": figures_of_a_map(0.7777),
                        "redness": figures_of_a_map(0.6666),
                    },
                }
            },
        },
        "alerts": {
            "fraction": 0.95,
            "rates": {"calibration": FIGURE, "normal": FIGURE, "polyp": FIGURE},
        },
        "baselines": {"polyp": {"image_width": 0.9012, "position_box": None}},
        "baselines_with_position_box": {"polyp": None},
    }


SCORES = {
    "calibration": np.arange(8.0),
    "normal": np.arange(4.0),
    "polyp": np.arange(5.0) + 2,
}


def picture() -> np.ndarray:
    return np.full((256, 512, 3), 90, np.uint8)


def made(document: dict[str, Any] | None = None, scores: Any = None) -> str:
    examples = [Examples("polyp best", (Example("score 0.999, IoU 0.81", "a/b.jpg", picture()),))]
    return page(document or evaluation(), SCORES if scores is None else scores, 6.0, examples)


class Reader(HTMLParser):
    """The tags, checked to be closed in order, and the text of each table row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append("")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "tr" in self.open:
            self.rows[-1] += data + " "


def test_it_needs_nothing_but_itself() -> None:
    text = made()

    tags = Reader(text).tags
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        for name in ("src", "href", "srcset", "action", "style"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in text and "@import" not in text and "http" not in text


def test_it_says_what_a_score_means_and_what_this_is_not() -> None:
    text = made()

    assert text.count(NOTICE) == 2
    assert (
        html.escape(MEANING) in text
        and "unusual" in MEANING
        and "normal training frames" in MEANING
    )


def test_figures_stand_beside_their_baselines() -> None:
    rows = Reader(made()).rows

    auroc = next(row for row in rows if row.startswith("Image AUROC "))
    assert "0.812" in auroc and "0.750 to 0.875" in auroc and "image width 0.901" in auroc
    assert "position box 0." not in auroc, "a cue that is not known has no figure"
    iou = next(row for row in rows if row.startswith("IoU, label-free threshold "))
    assert "0.778" in iou and "redness 0.667" in iou
    precision = next(row for row in rows if row.startswith("Image average precision"))
    assert "chance 0.556" in precision
    boxed = next(row for row in rows if "with position box" in row)
    assert "not measured" in boxed


def test_oracle_figures_are_called_so_and_stay_out_of_the_headline() -> None:
    reader = Reader(made())
    with_oracle = [row for row in reader.rows if "0.432" in row]

    assert with_oracle and all(
        row.startswith("IoU, oracle threshold") or row.startswith("redness") for row in with_oracle
    )
    headline = made().split("<h2>Where in the image</h2>")[0]
    assert "0.432" not in headline and "oracle" not in headline.split("</style>")[1]


def test_it_says_what_was_measured_on_what() -> None:
    text = made()

    for fact in ("made-0123", "ab" * 32, "c0ffee", "brightness 1.0 on cpu", "cd" * 32, "ef" * 32,
                 "2026-01-02T03:04:05+00:00",
                 "ccdstream 0.1.0, numpy 2.0", "8 calibration, 4 normal"):  # fmt: skip
        assert fact in text


def test_names_from_outside_are_text() -> None:
    text = made()

    assert "made &lt;b&gt;" in text and "<b>&" not in text
    assert "3 polyp images &amp; more." in text


def test_pictures_are_inside() -> None:
    encoded = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', made())

    assert len(encoded) == 1
    shown = cv2.imdecode(np.frombuffer(base64.b64decode(encoded[0]), np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None and shown.shape == (256, 512, 3)
    assert abs(int(shown.mean()) - 90) <= 1


def test_roc_passes_through_its_corners() -> None:
    text = made(scores={"normal": np.array([0.0, 1.0]), "polyp": np.array([1.0, 2.0])})

    points = re.search(r'<polyline class="curve" points="([^"]+)"', text)
    assert points is not None
    corners = [tuple(map(float, point.split(","))) for point in points[1].split()]
    left, right = corners[0][0], corners[-1][0]
    bottom, top = corners[0][1], corners[-1][1]
    middle_x, middle_y = (left + right) / 2, (bottom + top) / 2
    assert corners == [(left, bottom), (left, middle_y), (middle_x, top), (right, top)]


def test_histogram_marks_what_alerts() -> None:
    scores = {"calibration": np.array([0.0, 0.0, 9.0]), "normal": np.array([8.0, 9.0])}
    document = evaluation() | {"image": {}}

    text = made(document, scores)

    assert text.count('class="bar high"') == 3  # one bar of calibration, two of normal
    assert text.count('class="bar"') == 1


@pytest.mark.parametrize(
    "scores",
    [
        {"calibration": np.full(8, 3.0)},
        {"calibration": np.full(8, 9.0)},
    ],
    ids=["below the line", "above it"],
)
def test_without_abnormal_images_alert_rates_are_left(scores: Any) -> None:
    document = evaluation() | {"image": {}, "baselines": {}, "counts": {"calibration": 8}}
    document["pixel"] = document["pixel"] | {"sets": {}}

    text = made(document, scores)

    Reader(text)
    assert "alert rates only" in text and "<polyline" not in text


def test_calibration_frames_are_the_folders_and_promise_no_rate() -> None:
    text = made()

    assert "by construction" not in text
    assert "about 5 % of the frames that the bundle was calibrated on" in text
    assert "calibration frames of the data folder, which may be others" in text


def test_sets_without_a_lesion_in_sight_are_not_measured() -> None:
    document = copy.deepcopy(evaluation())
    maps = document["pixel"]["sets"]["polyp"]["maps"]
    maps |= {name: dict.fromkeys(FIGURES) for name in maps}

    rows = Reader(made(document)).rows

    assert any(row.startswith("IoU, oracle threshold") and "not measured" in row for row in rows)


def test_a_view_is_drawn_beside_its_heatmap() -> None:
    lesion = np.zeros((256, 256), bool)
    lesion[100:140, 60:120] = True
    counted = np.ones((256, 256), bool)
    counted[200:] = False
    fraction = np.where(counted, np.linspace(0, 1, 256)[None], np.nan)

    shown = draw(np.full((3, 256, 256), 80, np.uint8), fraction, counted, ~counted & False, lesion)

    assert shown.shape == (256, 512, 3)
    assert tuple(shown[100, 90]) == tuple(shown[100, 256 + 90]) == LESION_RGB
    assert tuple(shown[50, 50]) == (80, 80, 80) and tuple(shown[230, 300]) == (40, 40, 40)
    assert shown[50, 256 + 250, 0] > shown[50, 256 + 60, 0], "warm where the map is high"
