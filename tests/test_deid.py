"""What may be shown: no border, no text that lasts, nothing out of body in focus, no names."""

import csv
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from ccdstream.decode import VideoSource
from ccdstream.deid import (
    OUTSIDE_MARGIN_S,
    SAMPLES,
    Deidentifier,
    blurred,
    deidentified,
    find_burned_in,
)
from ccdstream.frames import Colour, DeviceFrame, FieldOfView, Frame, Scored
from ccdstream.gpu.transfer import frame_to_device
from ccdstream.pipeline import Judged
from ccdstream.pseudonym import Alias
from ccdstream.view import HYPERKVASIR, NONE, find_field, whole_frame
from tests.bundles import write_toy_bundle
from tests.commands import ccdstream, everything_in, refusal, results_of, start
from tests.scopes import SMALL, SMALL_BOX, burned_in, frame_of, scene, tissue, wandering
from tests.test_schemas import schema, undescribed, validator
from tests.videos import make_video

RATE = 10
SCORED = Scored(0.5, np.zeros(2, np.float32), np.zeros((64, 64), np.float32))
FIELD = find_field(frame_of(scene(size=SMALL, box=SMALL_BOX)).y)


def written(image: np.ndarray, text: str, at: tuple[int, int], size: float = 0.5) -> np.ndarray:
    """The image with white text; `at` is its left end on the base line."""
    drawn = image.copy()
    cv2.putText(drawn, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, (245, 245, 245), 1)
    return drawn


def strokes(text: str, at: tuple[int, int], size: float = 0.5) -> np.ndarray:
    """bool [H, W]: where that text is."""
    drawn: np.ndarray = written(np.zeros((*SMALL, 3), np.uint8), text, at, size)[..., 0] > 128
    return drawn


def video_of(path: Path, images: Iterator[np.ndarray], frames: int, **options: Any) -> Path:
    kept = list(images)
    return make_video(
        path,
        size=SMALL,
        frames=frames,
        rate=RATE,
        time_base=Fraction(1, RATE),
        picture_of=lambda k: av.VideoFrame.from_ndarray(kept[k], format="rgb24").reformat(
            format="yuv420p"
        ),
        options={"preset": "ultrafast", "crf": "12"},
        **options,
    )


# -- frames ---------------------------------------------------------------------------------------


def judged(frame: Frame, *quality: str, field: FieldOfView = FIELD) -> Judged:
    return Judged(frame, frame.seconds, field, 0.8, quality, SCORED)


def deidentifier(burned: np.ndarray | None = None) -> Deidentifier:
    return Deidentifier(SMALL, np.zeros(SMALL, bool) if burned is None else burned)


def test_the_border_is_black_whatever_is_written_there_and_the_tissue_is_as_it_was() -> None:
    plain = frame_of(scene(size=SMALL, box=SMALL_BOX))
    inked = frame_of(written(scene(size=SMALL, box=SMALL_BOX), "DOE", (2, 20)))
    assert (plain.y != inked.y).any()
    shown = deidentifier().blanked(inked, FIELD)
    expected = deidentifier().blanked(plain, FIELD)
    for plane in ("y", "u", "v"):
        np.testing.assert_array_equal(getattr(shown, plane), getattr(expected, plane))
    x, y, width, height = SMALL_BOX
    assert (shown.y[:y] == 16).all() and (shown.y[:, :x] == 16).all()
    assert (shown.y[y + height :] == 16).all() and (shown.y[:, x + width :] == 16).all()
    middle = (slice(y + 8, y + height - 8), slice(x + width // 3, x + 2 * width // 3))
    np.testing.assert_array_equal(shown.y[middle], inked.y[middle])
    assert (shown.pts, shown.colour) == (inked.pts, inked.colour)


@pytest.mark.parametrize("full_range", [False, True])
def test_black_is_the_black_of_the_frames_range(full_range: bool) -> None:
    colour = Colour("bt601", full_range=full_range)
    frame = frame_of(scene(size=SMALL, box=SMALL_BOX), colour)
    shown = deidentifier().blanked(frame, FIELD)
    assert (shown.y[0, 0], shown.u[0, 0], shown.v[0, 0]) == (0 if full_range else 16, 128, 128)


def test_a_picture_without_a_border_keeps_its_edges() -> None:
    frame = frame_of(tissue(SMALL))
    shown = deidentifier().blanked(frame, whole_frame(SMALL))
    np.testing.assert_array_equal(shown.y, frame.y)


def test_a_frame_in_which_nothing_is_lit_is_black() -> None:
    """A recorder's first page: white text on black, before the field of view is known."""
    frame = frame_of(written(np.zeros((*SMALL, 3), np.uint8), "DOE JANE", (60, 120)))
    assert deidentifier().blanked(frame, whole_frame(SMALL)).y.max() == 16


def test_where_the_picture_has_just_become_smaller_its_new_border_is_black() -> None:
    x, y, width, height = 120, 60, 200, 170
    small = written(scene(size=SMALL, box=(x, y, width, height)), "DOE", (50, 100))
    shown = deidentifier().blanked(frame_of(small), FIELD)  # the field is still the large one
    outside = np.ones(SMALL, bool)
    outside[y : y + height, x : x + width] = False
    assert (shown.y[outside] == 16).all()
    assert shown.y[y + height // 2, x + width // 2] > 60


def test_what_is_burned_in_is_black_in_luma_and_colour() -> None:
    burned = np.zeros(SMALL, bool)
    burned[101:120, 151:200] = True
    frame = frame_of(scene(size=SMALL, box=SMALL_BOX))
    shown = deidentifier(burned).blanked(frame, FIELD)
    assert (shown.y[burned] == 16).all()
    assert (shown.u[50:60, 75:100] == 128).all() and (shown.v[50:60, 75:100] == 128).all()
    assert shown.y[125, 175] == frame.y[125, 175]


def test_a_blurred_frame_has_no_more_than_its_cells() -> None:
    """What differs within cells only is the same when blurred."""
    frame = frame_of(np.full((*SMALL, 3), 90, np.uint8))
    noise = np.random.default_rng(0).permuted(np.repeat([60, 120], SMALL[0] * SMALL[1] // 2))
    noisy = replace(frame, y=noise.reshape(SMALL).astype(np.uint8))
    assert float(blurred(noisy).y.std()) < 2 < 25 < float(noisy.y.std())
    faces = [written(scene(size=SMALL, box=SMALL_BOX), t, (90, 150), 0.8) for t in ("DOE", "ROE")]
    one, other = (blurred(frame_of(face)).y.astype(int) for face in faces)
    assert abs(one - other).max() <= 6


def kinds(quality: list[tuple[str, ...]], rate: int = RATE) -> str:
    """ "b" for each frame that is blurred, "." for each that is not, of these qualities."""
    image = scene(size=SMALL, box=SMALL_BOX)
    frames = [frame_of(image, pts=k, rate=rate) for k in range(len(quality))]
    sharp = deidentifier().blanked(frames[0], FIELD).y
    shown = list(deidentifier().shown(judged(f, *q) for f, q in zip(frames, quality, strict=True)))
    assert [j.frame.pts for j in shown] == list(range(len(quality)))
    return "".join("." if np.array_equal(j.frame.y, sharp) else "b" for j in shown)


OUT = ("out_of_body",)


def test_out_of_body_frames_are_blurred_and_so_is_a_second_before_and_after() -> None:
    assert OUTSIDE_MARGIN_S == 1.0
    found = kinds([()] * 20 + [OUT] + [()] * 20)
    assert found == "." * 10 + "b" * 20 + "." * 11


def test_a_recording_that_begins_in_the_room_is_blurred_from_its_first_frame() -> None:
    assert kinds([OUT] * 3 + [()] * 15) == "b" * 12 + "." * 6
    assert kinds([("blurred",)] * 3 + [()] * 5) == "bbb....."
    assert kinds([()] * 5) == "....."


def test_after_out_of_body_what_tells_nothing_stays_blurred() -> None:
    quality = [()] * 12 + [OUT] + [()] * 5 + [("too_dark",)] * 15 + [()] * 15
    assert kinds(quality) == "..b" + "b" * 39 + "." * 6
    assert kinds([()] * 3 + [("too_dark",)] * 15 + [()] * 3) == "." * 21


def test_few_frames_wait_however_high_the_rate() -> None:
    def source() -> Iterator[Judged]:
        for k in range(400):
            pulled.append(k)
            yield judged(frame_of(image, pts=k, rate=1000))

    image, pulled = scene(size=SMALL, box=SMALL_BOX), list[int]()
    for given, _ in enumerate(deidentifier().shown(source())):
        assert len(pulled) - given <= 65
    assert len(pulled) == 400


def test_the_original_goes_no_farther_and_what_is_said_of_it_stays() -> None:
    frame = frame_of(written(scene(size=SMALL, box=SMALL_BOX), "DOE", (2, 20)))
    device = frame_to_device(frame, __import__("torch").device("cpu"))
    assert isinstance(device, DeviceFrame)

    @contextmanager
    def route() -> Iterator[Iterator[Judged]]:
        yield iter([judged(frame), replace(judged(frame, "blurred"), frame=device)])

    with deidentified(route(), deidentifier()) as frames:
        one, other = frames
    assert isinstance(one.frame, Frame) and isinstance(other.frame, Frame)
    assert (one.frame.y[:20, :60] == 16).all()
    np.testing.assert_array_equal(one.frame.y, other.frame.y)
    assert one.scored is SCORED and one.field is FIELD and other.quality == ("blurred",)


# -- what is burned in ----------------------------------------------------------------------------


def found_in(path: Path, profile: Any = NONE, **span: Any) -> Any:
    with VideoSource(path, **span) as source:
        return find_burned_in(source, profile, **span)


@pytest.fixture(scope="module")
def procedure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tissue that moves, 12 s long, with an inset and text, a name among it."""

    def decorate(image: np.ndarray, index: int) -> None:
        burned_in(image, index)
        image[:] = written(image, NAME, NAME_AT)

    path = tmp_path_factory.mktemp("procedure") / "in.mp4"
    return video_of(path, wandering(120, decorate=decorate), 120)


NAME, NAME_AT = "DOE JANE 12.03.1950", (120, 160)


def test_text_that_stays_while_the_tissue_moves_is_found_and_little_else(procedure: Path) -> None:
    found = found_in(procedure)
    assert found.told and found.warnings() == [] and found.samples >= 48
    assert found.mask[strokes(NAME, NAME_AT)].all()
    with VideoSource(procedure) as source:
        shown = Deidentifier(SMALL, found.mask).blanked(next(iter(source)), FIELD)
    assert (shown.y[195:262, 30:118] == 16).mean() > 0.95  # the inset, though it moves inside
    x, y, width, height = SMALL_BOX
    right = found.mask[y + 10 : y + height - 10, 300 : x + width - 10]
    assert right.mean() < 0.05


def test_a_recording_that_is_itself_still_gives_a_warning_and_what_the_profile_says(
    tmp_path: Path,
) -> None:
    image = written(scene(size=SMALL, box=SMALL_BOX), NAME, NAME_AT)
    path = video_of(tmp_path / "still.mp4", iter([image] * 40), 40)
    found = found_in(path)
    assert not found.told and not found.mask.any()
    (warning,) = found.warnings()
    assert "moves too little" in warning and "Look at the video before" in warning
    assert found_in(path, HYPERKVASIR).mask.mean() > 0.05


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tissue that moves, 12 s long, with nothing burned in."""
    return video_of(tmp_path_factory.mktemp("bare") / "in.mp4", wandering(120), 120)


def test_a_place_of_the_profile_in_which_nothing_lasts_is_not_blanked(bare: Path) -> None:
    found = found_in(bare, HYPERKVASIR)
    assert found.told and found.warnings() == []
    assert found.blanked_fraction == pytest.approx(found.mask.sum() / FIELD_PX, rel=0.1)
    assert found.blanked_fraction < 0.03


FIELD_PX = SMALL_BOX[2] * SMALL_BOX[3] * 0.92
"""Pixels of the octagon, about."""


def test_little_in_a_place_of_the_profile_is_blanked_itself_but_not_the_place(
    tmp_path: Path,
) -> None:
    """A short line of text in the column of text, and one in the place of the inset."""
    lines = (("DOE", (36, 110)), ("ROE", (64, 230)))

    def decorate(image: np.ndarray, _: int) -> None:
        for line in lines:
            image[:] = written(image, *line)

    path = video_of(tmp_path / "in.mp4", wandering(120, decorate=decorate), 120)
    found = found_in(path, HYPERKVASIR)
    for line in lines:
        assert found.mask[strokes(*line)].mean() > 0.98
    assert found.blanked_fraction < 0.08


def test_the_place_of_an_inset_is_blanked_wholly_where_one_fills_most_of_it(
    procedure: Path,
) -> None:
    """Also what of the place it leaves free: an inset of another day may be larger."""
    plain, known = found_in(procedure), found_in(procedure, HYPERKVASIR)
    x, y, _, height = SMALL_BOX
    place = (slice(y + round(0.6 * height), y + height - 30), slice(x + 60, x + 122))
    assert known.mask[place].all() and not plain.mask[place].all()
    assert 0.15 < plain.blanked_fraction < known.blanked_fraction < 0.4


def test_much_that_is_blanked_gives_a_warning_with_its_share(procedure: Path) -> None:
    found = found_in(procedure, HYPERKVASIR)
    assert replace(found, blanked_fraction=0.25).warnings() == []
    (warning,) = replace(found, blanked_fraction=0.413).warnings()
    assert "blanks 41 % of the field of view" in warning and "lesion" in warning


def test_a_field_that_is_left_too_soon_to_tell_does_not_bring_in_the_profile(
    tmp_path: Path,
) -> None:
    """The picture is smaller in the first two seconds: fewer views than tell anything."""
    small = (90, 50, 180, 160)
    images = [*wandering(15, box=small, seed=1), *wandering(150)]
    path = video_of(tmp_path / "in.mp4", iter(images), len(images))
    found = found_in(path, HYPERKVASIR)
    assert found.told and found.blanked_fraction < 0.03


def test_a_long_recording_is_searched_by_seeking_all_over_its_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decorate(image: np.ndarray, index: int) -> None:
        if index >= 50:  # the text comes late
            image[:] = written(image, NAME, NAME_AT)

    path = video_of(tmp_path / "long.mp4", wandering(120, decorate=decorate), 120)
    monkeypatch.setattr("ccdstream.deid.SEEK_FROM_S", 1.0)
    opened: list[float] = []
    real = VideoSource.__init__

    def counted(self: VideoSource, path: Path, **options: Any) -> None:
        opened.append(options.get("start_s") or 0.0)
        real(self, path, **options)

    monkeypatch.setattr(VideoSource, "__init__", counted)
    found = found_in(path)
    assert len(opened) > 60 and max(opened) > 11
    assert found.mask[strokes(NAME, NAME_AT)].mean() > 0.98


def test_only_the_stretch_that_is_asked_for_is_searched(tmp_path: Path) -> None:
    def decorate(image: np.ndarray, index: int) -> None:
        if index >= 70:
            image[:] = written(image, NAME, NAME_AT)

    path = video_of(tmp_path / "in.mp4", wandering(140, decorate=decorate), 140)
    there = strokes(NAME, NAME_AT)
    assert found_in(path, start_s=7.0, end_s=14.0).mask[there].mean() > 0.98
    assert found_in(path, start_s=0.0, end_s=6.9).mask[there].mean() < 0.1


@pytest.mark.parametrize("said_s", [None, 0.0])
def test_a_recording_that_says_nothing_true_of_its_length_is_searched_in_few_frames(
    tmp_path: Path, said_s: float | None
) -> None:
    plain = np.full((*SMALL, 3), 120, np.uint8)
    path = video_of(tmp_path / "in.mp4", (plain for _ in range(1000)), 1000)
    with VideoSource(path) as source:
        source.duration_s = said_s
        found = find_burned_in(source, NONE)
    assert SAMPLES < found.samples < 3 * SAMPLES


def test_the_search_ends_when_it_is_stopped(procedure: Path) -> None:
    with VideoSource(procedure) as source:
        found = find_burned_in(source, NONE, stopped=lambda: True)
        assert (found.samples, found.told) == (0, False)
        assert len(list(source)) == 120  # the source stands where it stood


# -- runs -----------------------------------------------------------------------------------------

SECRET = "QZXDOE"
DATE = "19500312"
PLANTED = {
    "title": f"{SECRET} title {DATE}",
    "artist": f"{SECRET} artist",
    "comment": f"{SECRET} comment",
    "creation_time": "1950-03-12T10:11:12.000000Z",
    "location": "+48.1234+011.5678/",
    "com.apple.quicktime.location.ISO6709": "+48.1234+011.5678+500/",
    "com.example.ward": f"{SECRET} ward",
}


def traces(folder: Path, *words: str) -> list[str]:
    """Files below a folder that hold, or are called by, one of these words: as UTF-8 or UTF-16."""
    forms = [form for w in words for form in (w.encode(), w.encode("utf-16-le"))]
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if any(w in str(path.relative_to(folder)) for w in words)
        or (path.is_file() and any(form in path.read_bytes() for form in forms))
    ]


def planted(path: Path) -> Path:
    """A recording with a name and a date wherever a file can hold one, and an alert of the toy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scenes = [scene(size=SMALL, box=SMALL_BOX, inside=tissue(SMALL, seed=k)) for k in range(3)]
    dark, bright = (
        [
            written(np.minimum(image * gain, 255).astype(np.uint8), "DO", (1, 150))
            for image in scenes
        ]
        for gain in (0.4, 1.7)
    )
    plain = path.with_name("plain.mp4")
    video_of(plain, iter(dark * 5 + bright * 10 + dark * 5), 60, audio="aac")
    with (
        av.open(str(plain)) as read,
        av.open(str(path), "w", format="mov", options={"movflags": "+use_metadata_tags"}) as write,
    ):
        write.metadata.update(PLANTED)
        copies = {
            stream.index: write.add_stream_from_template(stream, opaque=True)
            for stream in read.streams
        }
        for stream in copies.values():
            stream.metadata.update({"handler_name": f"{SECRET} handler", "language": "ger"})
        write.set_chapters(
            [{"id": 1, "start": 0, "end": 3000, "time_base": Fraction(1, 1000),
              "metadata": {"title": f"{SECRET} chapter"}}]
        )  # fmt: skip
        for packet in read.demux():
            if packet.size:
                packet.stream = copies[packet.stream.index]
                write.mux(packet)
    plain.unlink()
    data = path.read_bytes()
    for word in (f"{SECRET} title", f"{SECRET} handler", f"{SECRET} chapter", "+48.1234"):
        assert word.encode() in data, f"{word} is not planted"
    return path


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "toy"
    write_toy_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("planted") / "in.mov")


@pytest.fixture
def here(tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, in a folder that is called by a name: a batch of two, one below."""
    root = tmp_path / f"{SECRET}-{DATE}"
    for path in (root / f"{SECRET}_{DATE}.mov", root / f"ward-{SECRET}" / f"{SECRET}2.mov"):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(recording, path)
    monkeypatch.chdir(tmp_path)
    return root


@pytest.fixture
def run(here: Path, toy: Path) -> Callable[..., Any]:
    return lambda *arguments: ccdstream("run", "--model", toy, *arguments)


def the_only(folder: Path, ending: str) -> Path:
    (path,) = folder.glob(f"*.{ending}")
    return path


def test_nothing_that_a_file_says_of_itself_reaches_a_result_without_being_asked_for(
    tmp_path: Path, recording: Path, run: Callable[..., Any]
) -> None:
    assert run(recording, "-o", "out", "-q").exit_code == 0
    out = tmp_path / "out"
    words = (SECRET, "+48.1234", "011.5678", "ISO6709", "1950-03-12", DATE)
    assert traces(out, *words) == []
    with av.open(str(out / "in.overlay.mp4")) as container:
        said = {**container.metadata, **container.streams.video[0].metadata}
        said |= container.streams.audio[0].metadata
        assert "creation_time" not in said and said.get("language", "und") == "und"
        kinds_of = [stream.type for stream in container.streams]
        assert sorted(kinds_of) == ["audio", "data", "video"]  # data: the titles of our chapters


def test_keep_metadata_copies_what_the_file_says_of_itself_into_the_video(
    tmp_path: Path, recording: Path, run: Callable[..., Any]
) -> None:
    assert run(recording, "-o", "out", "-q", "--keep-metadata").exit_code == 0
    with av.open(str(tmp_path / "out/in.overlay.mp4")) as container:
        kept = dict(container.metadata)
        assert {key: kept.get(key) for key in PLANTED} == PLANTED
        for stream in (container.streams.video[0], container.streams.audio[0]):
            assert stream.metadata["handler_name"] == f"{SECRET} handler"
            assert stream.metadata["language"] == "ger"
        assert SECRET not in kept["encoder"]
    record = json.loads((tmp_path / "out/in.run.json").read_text())
    assert record["options"]["keep_metadata"] is True


def test_deid_leaves_no_name_and_no_date_in_any_byte_or_file_name_of_one_recording(
    tmp_path: Path, here: Path, run: Callable[..., Any]
) -> None:
    source = here / f"{SECRET}_{DATE}.mov"
    os.utime(source, ns=(0, DATE_NS))
    result = run(source, "--deid", "--json")
    assert result.exit_code == 0, result.stderr
    out = tmp_path / "ccdstream-deid"
    name = the_only(out, "run.json").name.removesuffix(".run.json")
    assert everything_in(out) == results_of(name)
    digest = __import__("hashlib").sha256(source.read_bytes()).hexdigest()
    words = (SECRET, "+48.1234", "1950-03-12", DATE, str(DATE_NS), str(DATE_NS // 10**9), digest)
    assert traces(out, *words, str(source.stat().st_size)) == []
    assert f"{SECRET}_{DATE}" in result.stderr  # whoever sits there may know
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines and {line["recording"] for line in lines} == {name}
    assert "DOE" not in result.stdout
    with av.open(str(out / f"{name}.overlay.mp4")) as container:
        assert [stream.type for stream in container.streams if stream.type != "data"] == ["video"]
    record = json.loads((out / f"{name}.run.json").read_text())
    assert record["command"] == [] and record["input"]["bytes"] is None
    assert name in (out / f"{name}.report.html").read_text()
    assert name.upper() in (out / f"{name}.alerts.edl").read_text().upper()


DATE_NS = 1_234_567_890_123_456_789


def test_the_map_lies_beside_the_results_for_its_owner_alone_and_tells_who_is_who(
    tmp_path: Path, here: Path, run: Callable[..., Any]
) -> None:
    assert run(here, "-r", "-o", "out", "--deid", "-q").exit_code == 0
    path = tmp_path / "out.names.csv"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    rows = list(csv.reader(path.read_text().splitlines()))
    names = {value: original for kind, value, original in rows if kind == "name"}
    assert set(names.values()) == {str(p) for p in here.rglob("*.mov")}
    assert {p.name.removesuffix(".run.json") for p in (tmp_path / "out").glob("*.run.json")} == (
        set(names)
    )


def test_deid_of_a_folder_leaves_no_name_of_file_or_folder_nor_why_one_failed(
    tmp_path: Path, here: Path, run: Callable[..., Any]
) -> None:
    (here / f"{SECRET}-broken.mp4").write_text("no video")
    result = run(here, tmp_path / f"absent-{SECRET}.mp4", "-r", "-o", "out", "--deid", "--json")
    assert result.exit_code == 1
    out = tmp_path / "out"
    assert traces(out, SECRET, DATE) == []
    assert not [path for path in out.iterdir() if path.is_dir()]
    batch = json.loads((out / "batch.json").read_text())
    assert batch["counts"]["done"] == 2 and batch["counts"]["failed"] == 2
    assert batch["command"] == []
    reasons = {row["status"]: row["reason"] for row in batch["inputs"]}
    assert reasons["failed"].startswith("reason withheld here, as it may name the recording; ")
    names = [row["name"] for row in batch["inputs"]]
    assert names == sorted(names)
    assert f"{SECRET}-broken" in result.stderr
    assert SECRET not in result.stdout and '"recording": "rec-' in result.stdout


def test_a_folder_without_recordings_is_not_named_either(
    tmp_path: Path, here: Path, run: Callable[..., Any]
) -> None:
    (tmp_path / f"empty-{SECRET}").mkdir()
    result = run(here, f"empty-{SECRET}", "-o", "out", "--deid", "-q", "--video", "none")
    assert result.exit_code == 1 and f"empty-{SECRET}" in result.stderr
    assert traces(tmp_path / "out", SECRET) == []


def test_a_rerun_with_deid_finds_what_is_done_though_the_time_of_the_recording_changed(
    tmp_path: Path, here: Path, run: Callable[..., Any]
) -> None:
    out = tmp_path / "out"

    def again(*more: object) -> dict[str, int]:
        assert run(here, "-r", "-o", out, "--deid", "-q", "--video", "none", *more).exit_code == 0
        counts: dict[str, int] = json.loads((out / "batch.json").read_text())["counts"]
        return {status: number for status, number in counts.items() if number}

    assert again() == {"done": 2}
    assert again() == {"already_done": 2}
    os.utime(here / f"{SECRET}_{DATE}.mov", (1, 1))
    assert again() == {"already_done": 2}
    gone = sorted(out.glob("*.run.json"))[0].name.split(".")[0]
    for path in out.glob(f"{gone}.*"):
        path.unlink()
    assert again() == {"done": 1, "already_done": 1}
    with (here / f"{SECRET}_{DATE}.mov").open("ab") as file:
        file.write(b"\0\0\0\x08free")
    assert again() == {"done": 1, "already_done": 1}


def test_one_recording_that_is_done_is_left_alone_with_deid_too(
    here: Path, run: Callable[..., Any]
) -> None:
    source = here / f"{SECRET}_{DATE}.mov"
    assert run(source, "--deid", "-q", "--video", "none").exit_code == 0
    result = run(source, "--deid", "--video", "none")
    assert result.exit_code == 0 and "is done already" in result.stderr


def test_scores_and_alerts_are_the_same_to_the_bit_with_and_without_deid(
    tmp_path: Path, here: Path, run: Callable[..., Any]
) -> None:
    source = here / f"{SECRET}_{DATE}.mov"
    assert run(source, "-o", "plain", "-q").exit_code == 0
    assert run(source, "-o", "deid", "-q", "--deid").exit_code == 0
    for ending in ("scores.csv", "alerts.jsonl", "alerts.csv", "alerts.vtt"):
        plain = (tmp_path / "plain" / f"{SECRET}_{DATE}.{ending}").read_bytes()
        assert the_only(tmp_path / "deid", ending).read_bytes() == plain
    assert (tmp_path / "plain" / f"{SECRET}_{DATE}.alerts.jsonl").read_bytes()


def test_no_picture_of_the_report_or_the_video_shows_the_border(
    tmp_path: Path, here: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ccdstream.report import gallery

    seen: list[Frame] = []
    jpeg_of = gallery.jpeg_of
    monkeypatch.setattr(gallery, "jpeg_of", lambda f, **k: (seen.append(f), jpeg_of(f, **k))[1])
    assert run(here / f"{SECRET}_{DATE}.mov", "-o", "out", "-q", "--deid").exit_code == 0
    assert seen and all((frame.y[138:153, 1:22] == 16).all() for frame in seen)
    with av.open(str(the_only(tmp_path / "out", "overlay.mp4"))) as container:
        for picture in container.decode(video=0):
            assert picture.to_ndarray()[138:153, 1:22].max() < 40  # where "DO" stood


def test_every_form_that_goes_with_deid_holds_the_pseudonym_alone(
    tmp_path: Path, here: Path, run: Callable[..., Any]
) -> None:
    out = tmp_path / "new" / "out"
    forms = ("--also", "coco", "--also", "parquet", "--video", "side-by-side")
    result = run(here / f"{SECRET}_{DATE}.mov", "-o", out, "--deid", "-q", *forms)
    assert result.exit_code == 0, result.stderr
    name = the_only(out, "run.json").name.removesuffix(".run.json")
    assert traces(out, SECRET, DATE) == []
    predictions = json.loads((out / f"{name}.coco.json").read_text())
    assert predictions and predictions[0]["image_id"].startswith(f"{name}_")
    assert (out / f"{name}.scores.parquet").is_file()
    with av.open(str(out / f"{name}.side-by-side.mp4")) as container:
        for picture in container.decode(video=0):
            luma = picture.to_ndarray(format="gray")
            assert luma.shape == (SMALL[0], 2 * SMALL[1])
            for left in (0, SMALL[1]):
                assert luma[138:153, left + 1 : left + 22].max() < 40  # where "DO" stood


def test_the_record_and_the_page_say_how_much_is_missing_and_what_black_and_blurred_mean(
    tmp_path: Path, here: Path, run: Callable[..., Any]
) -> None:
    source = here / f"{SECRET}_{DATE}.mov"
    assert run(source, "-o", "out", "-q", "--deid").exit_code == 0
    record = json.loads(the_only(tmp_path / "out", "run.json").read_text())
    share = record["deid"]["blanked_fraction"]
    assert 0 < share < 1 and record["deid"]["samples"] > 40
    assert list(validator("ccdstream.run/1").iter_errors(record)) == []
    assert not list(undescribed(record, schema("ccdstream.run/1")))
    text = the_only(tmp_path / "out", "report.html").read_text()
    (said,) = (line for line in text.splitlines() if 'id="deidentified"' in line)
    for words in (
        "De-identified",
        "Black in the",
        f"({100 * share:.0f} % of the field)",
        "Blurred",
    ):
        assert words in said
    assert run(source, "-o", "plain", "-q").exit_code == 0
    assert json.loads(the_only(tmp_path / "plain", "run.json").read_text())["deid"] is None
    assert 'id="deidentified"' not in the_only(tmp_path / "plain", "report.html").read_text()


@pytest.mark.parametrize("many", [False, True], ids=["one", "batch"])
def test_the_end_says_where_the_names_lie_and_to_look_unless_it_is_to_be_quiet(
    here: Path, run: Callable[..., Any], many: bool
) -> None:
    what = (here, "-r") if many else (here / f"{SECRET}_{DATE}.mov",)
    ends = ["out.names.csv holds the names", "Look at every report before you share it."]
    loud = run(*what, "-o", "out", "--deid", "--video", "none")
    assert [loud.stderr.count(end) for end in ends] == [1, 1]
    assert "apart from the results" in loud.stderr
    quiet = run(*what, "-o", "out", "--deid", "--video", "none", "-q", "--overwrite")
    assert [quiet.stderr.count(end) for end in ends] == [0, 0]
    video = run(*what, "-o", "out", "--deid", "--overwrite")
    assert "Look at every video before you share it." in video.stderr


@pytest.mark.parametrize("many", [False, True], ids=["one", "batch"])
def test_a_folder_with_results_under_other_names_is_refused_before_any_work(
    tmp_path: Path, here: Path, run: Callable[..., Any], many: bool
) -> None:
    what = (here, "-r") if many else (here / f"{SECRET}_{DATE}.mov",)
    for other in (
        *("Muster_Anna.run.json", "ward/Muster.overlay.mp4", "rec-0123456789ab.scores.csv"),
        *("batch.json", "ward/batch.json"),  # all that a batch leaves that was killed early
    ):
        out = tmp_path / other.replace("/", "-")
        (out / other).parent.mkdir(parents=True)
        (out / other).write_text('{"options": {"deid": false}}')
        before = everything_in(tmp_path)
        said = refusal(run(*what, "-o", out, "--deid", "--overwrite"))
        assert Path(other).name in said and "choose an empty --output" in said
        assert everything_in(tmp_path) == before


@pytest.mark.parametrize("many", [False, True], ids=["one", "batch"])
def test_results_with_names_do_not_come_to_lie_beside_those_without(
    tmp_path: Path, here: Path, run: Callable[..., Any], many: bool
) -> None:
    what = (here, "-r") if many else (here / f"{SECRET}_{DATE}.mov",)
    flags = ("-o", "out", "-q", "--video", "none")
    assert run(*what, *flags, "--deid").exit_code == 0
    before = everything_in(tmp_path)
    said = refusal(run(*what, *flags, "--overwrite"))
    assert said.startswith("out holds de-identified results, as ")
    assert said.endswith(" says: add --deid, or choose another --output.")
    assert everything_in(tmp_path) == before


def test_results_of_a_key_that_is_gone_are_not_mixed_with_those_of_a_new_one(
    tmp_path: Path, here: Path, run: Callable[..., Any]
) -> None:
    source = here / f"{SECRET}_{DATE}.mov"
    assert run(source, "-o", "out", "-q", "--deid", "--video", "none").exit_code == 0
    (tmp_path / "notes.txt").write_text("not a result")
    (tmp_path / "notes.txt").rename(tmp_path / "out" / "notes.txt")
    assert run(here, "-r", "-o", "out", "-q", "--deid", "--video", "none").exit_code == 0
    (tmp_path / "out.names.csv").unlink()
    before = everything_in(tmp_path)
    said = refusal(run(here, "-r", "-o", "out", "-q", "--deid", "--video", "none"))
    assert "rec-" in said and "choose an empty --output" in said
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("many", [False, True], ids=["one", "batch"])
def test_that_text_could_not_be_looked_for_is_said_under_quiet_too(
    tmp_path: Path, toy: Path, many: bool
) -> None:
    folder = tmp_path / "still"
    folder.mkdir()
    image = written(scene(size=SMALL, box=SMALL_BOX), NAME, NAME_AT)
    path = video_of(folder / "still.mp4", iter([image] * 20), 20)
    what = folder if many else path
    out = tmp_path / "out"
    result = ccdstream("run", "--model", toy, what, "-o", out, "-q", "--deid", "--video", "none")
    assert result.exit_code == 0
    assert "warning: still.mp4: text inside the picture could not be looked for" in result.stderr


def test_options_that_do_not_go_together_are_wrong_usage_and_leave_nothing(
    tmp_path: Path, here: Path, run: Callable[..., Any]
) -> None:
    source = here / f"{SECRET}_{DATE}.mov"
    before = everything_in(tmp_path)
    for arguments, why in (
        (("--deid", "--keep-metadata"), "choose one"),
        (("--deid-map", "m.csv"), "is for --deid"),
        (("--deid", "-o", "out", "--deid-map", "out/m.csv"), "among the results"),
        (("--deid", "--deid-map", source), "is an input"),
    ):
        result = run(source, *arguments)
        assert result.exit_code == 2, arguments
        assert why in " ".join(result.stderr.replace("│", " ").split())
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("video", ["chapters", "clips"])
def test_videos_that_are_copied_as_they_are_do_not_go_with_deid(video: Any) -> None:
    import typer

    from ccdstream.recording import RunOptions
    from ccdstream.run_cli import _names_of

    with pytest.raises(typer.BadParameter, match="copies the recording's pictures as they are"):
        _names_of(RunOptions(video=video, deid=True), [Path("a.mp4")], None, None)


def test_what_is_copied_as_it_is_does_not_go_with_deid_in_code_either(
    recording: Path, tmp_path: Path
) -> None:
    from ccdstream.recording import OutputFiles, RunOptions
    from ccdstream.recording import run as analyse_recording

    for options in (
        RunOptions(deid=True, video="clips"),
        RunOptions(deid=True, video="chapters"),
        RunOptions(deid=True, keep_metadata=True),
    ):
        with pytest.raises(ValueError, match="deid takes away"):
            analyse_recording(
                recording,
                OutputFiles(tmp_path, "x"),
                bundle=None,  # type: ignore[arg-type]
                engine=None,  # type: ignore[arg-type]
                options=options,
                alias=Alias("rec-0", bytes(32)),
            )


def test_a_pseudonym_and_deid_go_together(toy: Path, recording: Path, tmp_path: Path) -> None:
    from ccdstream.recording import OutputFiles, RunOptions
    from ccdstream.recording import run as analyse_recording

    with pytest.raises(ValueError, match="goes with"):
        analyse_recording(
            recording,
            OutputFiles(tmp_path, "x"),
            bundle=None,  # type: ignore[arg-type]
            engine=None,  # type: ignore[arg-type]
            options=RunOptions(deid=True),
        )


def test_a_batch_that_is_killed_and_run_again_ends_in_the_same_pseudonyms(
    tmp_path: Path, here: Path, toy: Path, run: Callable[..., Any]
) -> None:
    arguments = (here, "-r", "-o", "out", "--deid", "-q", "--video", "none")
    process = start("run", "--model", toy, *arguments)
    names = tmp_path / "out.names.csv"
    while not names.exists() and process.poll() is None:
        os.sched_yield()
    process.kill()
    process.communicate()
    before = names.read_bytes()
    assert run(*arguments).exit_code == 0
    assert names.read_bytes() == before
    assert len(list((tmp_path / "out").glob("*.run.json"))) == 2
    assert traces(tmp_path / "out", SECRET) == []
