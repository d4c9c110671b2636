"""Interlaced pictures without looking ahead; all else of `picture` is tested through `decode`."""

from pathlib import Path

import av
import numpy as np
import pytest

from ccdstream.picture import Deinterlacer, PromptDeinterlacer
from tests.videos import make_video, picture, textured

SIZE = (96, 128)


@pytest.fixture
def interlaced(tmp_path: Path) -> list[av.VideoFrame]:
    """Pictures of two fields, the second half a step later."""

    def fields(k: int) -> av.VideoFrame:
        upper, lower = textured(2 * k, SIZE), textured(2 * k + 1, SIZE)
        woven = [plane.copy() for plane in upper]
        for plane, other in zip(woven, lower, strict=True):
            plane[1::2] = other[1::2]
        return picture((woven[0], woven[1], woven[2]))

    options = {"x264-params": "interlaced=1:tff=1", "crf": "4"}
    path = make_video(tmp_path / "a.mkv", size=SIZE, picture_of=fields, options=options)
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def luma(frame: av.VideoFrame) -> np.ndarray:
    return frame.to_ndarray(format="gray").astype(float)


def test_every_picture_comes_back_at_once_and_nearly_as_with_a_look_ahead(
    interlaced: list[av.VideoFrame],
) -> None:
    assert all(frame.interlaced_frame for frame in interlaced)
    stored = [luma(frame) for frame in interlaced]
    prompt = PromptDeinterlacer("h264")
    at_once = [luma(prompt.of(frame)) for frame in interlaced]
    ahead = Deinterlacer("h264")
    finished = [out for k, frame in enumerate(interlaced) for out, _ in ahead.push(frame, k)]
    patient = [luma(frame) for frame in [*finished, *(out for out, _ in ahead.finish())]]
    assert len(at_once) == len(patient) == len(stored)
    for k in range(2, len(stored)):
        off = np.mean((at_once[k] - patient[k]) ** 2)
        assert off < 0.2 * np.mean((stored[k] - patient[k]) ** 2)


def test_progressive_pictures_are_given_back_as_they_are() -> None:
    prompt = PromptDeinterlacer("h264")
    frame = picture(textured(0, SIZE))
    assert prompt.of(frame) is frame


def test_a_picture_of_another_size_does_not_meet_the_one_before(
    interlaced: list[av.VideoFrame],
) -> None:
    prompt = PromptDeinterlacer("h264")
    prompt.of(picture(textured(0, (48, 64))))
    out = prompt.of(interlaced[0])
    assert (out.height, out.width) == SIZE and not out.interlaced_frame
