"""Recordings made to do harm: time and memory stay within bounds."""

import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from ccdstream.decode import VideoSource
from ccdstream.errors import VideoDecodeError
from ccdstream.picture import MAX_PIXELS
from tests.hostile import box, cost, mp4, uint32
from tests.videos import make_video


@pytest.mark.parametrize(
    ("timescale", "delta"),
    [(2**31 - 1, 1), (1, 2**31 - 1), (0, 1), (2**32 - 1, 2**32 - 1), (1, 2**32 - 1)],
)
def test_absurd_clocks_end_in_frames_at_rising_times(
    tmp_path: Path, jpeg: bytes, timescale: int, delta: int
) -> None:
    path = tmp_path / "clock.mp4"
    path.write_bytes(
        mp4(jpeg * 10, samples=10, sample_bytes=len(jpeg), timescale=timescale, delta=delta)
    )
    with VideoSource(path) as source:
        times = [frame.pts for frame in source]
    assert len(times) == 10
    assert all(a < b < 2**62 for a, b in pairwise(times))


def _grown(jpeg: bytes, height: int, width: int) -> bytes:
    """`jpeg` with another size in its header."""
    head = b"\xff\xc0\x00\x11\x08"
    assert head in jpeg
    at = jpeg.index(head) + len(head)
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :] + bytes(4_000_000)


@pytest.mark.parametrize(("height", "width"), [(60_000, 60_000), (4320, 8192), (65_500, 500)])
def test_a_picture_whose_header_claims_a_huge_size_is_not_made(
    tmp_path: Path, jpeg: bytes, height: int, width: int
) -> None:
    path = tmp_path / "huge.mp4"
    path.write_bytes(mp4(_grown(jpeg, height, width), size=(height, width)))
    count, told = cost(path)
    assert count == 0 and len(told) == 1


def test_a_picture_beyond_the_limit_is_named_with_its_size(tmp_path: Path) -> None:
    path = make_video(
        tmp_path / "8k.mkv", size=(4320, 8192), frames=1, options={"preset": "ultrafast"}
    )
    with pytest.raises(VideoDecodeError) as caught:
        VideoSource(path)
    assert str(caught.value) == (
        f"{path} has pictures of 8192x4320; up to {MAX_PIXELS} pixels are decoded, such as "
        "4096x2304. Scale the recording down first."
    )


def test_a_decoder_that_keeps_all_the_pictures_it_may_stays_within_memory(tmp_path: Path) -> None:
    """The largest picture that is decoded, and sixteen to refer to."""
    path = make_video(
        tmp_path / "4k.mkv",
        size=(2304, 4096),
        frames=24,
        options={"preset": "ultrafast", "x264-params": "ref=16:bframes=3:threads=2"},
    )
    count, told = cost(path)
    assert (count, told) == (24, [])


def _recursive(kind: bytes) -> bytes:
    """Matroska elements of unknown size within each other."""
    head = bytes.fromhex("1a45dfa3a34286810142f7810142f2810442f381084282886d6174726f736b61")
    head += bytes.fromhex("42878104428581021853806701ffffffffffffff")
    return head + (kind + bytes.fromhex("01ffffffffffffff")) * 100_000


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda jpeg: bytes(100_000_000),
    "ones": lambda jpeg: b"\xff" * 100_000_000,
    "atom-of-2**63": lambda jpeg: (
        box(b"ftyp", b"isom", bytes(4)) + struct.pack(">I4sQ", 1, b"moov", 2**63 - 1) + bytes(1000)
    ),
    "media-of-2**63": lambda jpeg: (
        box(b"ftyp", b"isom", bytes(4)) + struct.pack(">I4sQ", 1, b"mdat", 2**63 + 5) + bytes(1000)
    ),
    "nested-boxes": lambda jpeg: (
        box(b"ftyp", b"isom", bytes(4))
        + b"".join(struct.pack(">I4s", 80_008 - 8 * k, b"moov") for k in range(10_000))
    ),
    "nested-tracks-of-matroska": lambda jpeg: _recursive(bytes.fromhex("1654ae6b")),
    "nested-tags-of-matroska": lambda jpeg: _recursive(bytes.fromhex("67c8")),
    "nested-chapters-of-matroska": lambda jpeg: _recursive(b"\xb6"),
    "only-headers": lambda jpeg: mp4(b""),
    "all-samples-it-may": lambda jpeg: mp4(jpeg, samples=10_000_000, sample_bytes=1),
    "metadata": lambda jpeg: mp4(
        jpeg, user_data=box(b"udta", box(b"\xa9nam", b"\xc3\x50\0\0" + b"x" * 50_000_000))
    ),
    "many-tags": lambda jpeg: mp4(
        jpeg,
        user_data=box(
            b"udta", *(box(b"\xa9" + uint32(k)[1:], b"\0\4\0\0abcd") for k in range(30_000))
        ),
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_ends_in_frames_or_one_line_within_time_and_memory(
    tmp_path: Path, jpeg: bytes, kind: str
) -> None:
    path = tmp_path / "hostile.bin"
    path.write_bytes(HOSTILE[kind](jpeg))
    count, told = cost(path)
    assert count == 1 or len(told) == 1


@pytest.mark.parametrize("name", ["a.ts", "a.mkv"])
def test_a_recording_that_is_followed_by_nothing_but_zeros_ends(tmp_path: Path, name: str) -> None:
    """As on a disk that was full."""
    path = make_video(tmp_path / name)
    with open(path, "ab") as file:
        file.truncate(path.stat().st_size + 30_000_000)
    count, _ = cost(path)
    assert count >= 11
