"""What an index claims is added up wherever FFmpeg looks for it, and an excess is refused."""

import struct
from pathlib import Path

import pytest

from ccdstream import mp4_index
from ccdstream.decode import VideoSource
from ccdstream.errors import VideoOpenError
from tests.hostile import box, full_box, mp4, uint32
from tests.videos import make_video


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"samples": 80_000_000, "sample_bytes": 1}, "80000000 samples, and no recording has"),
        ({"samples": 2**32 - 1, "sample_bytes": 1}, "4294967295 samples, and no recording has"),
        ({"samples": 10**6, "sample_bytes": 1, "tracks": 50}, "50000000 samples, and no"),
        (
            {"edits": uint32(1001) + struct.pack(">IiI", 1, 0, 1 << 16) * 1001},
            "1001 edits, and no recording has more than 1000",
        ),
        ({"tracks": 1001}, "more than 1000 tracks"),
    ],
    ids=["billions", "all-that-fit", "in-many-tracks", "edits", "tracks"],
)
def test_an_index_that_claims_more_than_a_recording_holds_is_refused(
    tmp_path: Path, jpeg: bytes, claims: dict[str, int], reason: str
) -> None:
    path = tmp_path / "claims.mp4"
    path.write_bytes(mp4(jpeg, **claims))  # type: ignore[arg-type]
    with pytest.raises(VideoOpenError) as caught:
        VideoSource(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is refused: its index claims {reason}")
    assert message.endswith("The file is damaged, or made to harm: copy it again.")


@pytest.mark.parametrize("wrapped", [b"udta", b"wide", b"free"])
def test_claims_are_found_wherever_ffmpeg_looks_for_them(
    tmp_path: Path, jpeg: bytes, wrapped: bytes
) -> None:
    inner = mp4(jpeg, samples=80_000_000, sample_bytes=1)
    index = inner[inner.index(b"moov") - 4 : inner.index(b"mdat") - 4]
    path = tmp_path / "hidden.mp4"
    path.write_bytes(mp4(jpeg, user_data=box(wrapped, index[8:])))
    with pytest.raises(VideoOpenError, match="its index claims 80000001 samples"):
        VideoSource(path)


def test_a_fragment_that_claims_samples_without_a_byte_each_is_counted(
    tmp_path: Path, jpeg: bytes
) -> None:
    run = full_box(b"trun", uint32(30_000_000))
    fragment = box(b"moof", box(b"traf", full_box(b"tfhd", uint32(1)), run))
    path = tmp_path / "fragment.mp4"
    path.write_bytes(mp4(jpeg) + fragment)
    with pytest.raises(VideoOpenError, match="its index claims 30000001 samples"):
        VideoSource(path)


def test_a_compressed_index_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "packed.mov"
    path.write_bytes(box(b"ftyp", b"qt  ", bytes(4)) + box(b"moov", box(b"cmov", bytes(40))))
    with pytest.raises(VideoOpenError, match="a compressed index, whose size is not known"):
        VideoSource(path)


def test_an_index_is_not_walked_through_for_ever(
    tmp_path: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mp4_index, "MAX_BOXES", 100)
    path = tmp_path / "boxes.mp4"
    path.write_bytes(mp4(jpeg) + box(b"skip") * 90)
    with pytest.raises(VideoOpenError, match="its index claims more than 100 boxes"):
        VideoSource(path)


def test_a_box_too_short_for_its_numbers_does_not_make_up_for_an_excess(
    tmp_path: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mp4_index, "MAX_SAMPLES", 1000)
    path = tmp_path / "short.mp4"
    short = b"".join(box(b"stsz", b"") for _ in range(100))
    path.write_bytes(mp4(jpeg, samples=1100) + short.replace(b"stsz", b"stz2"))
    with pytest.raises(VideoOpenError, match="its index claims 1100 samples"):
        VideoSource(path)


def test_hours_of_uncompressed_sound_are_no_excess(tmp_path: Path, jpeg: bytes) -> None:
    """Where each sample is a tick long, FFmpeg has an entry a run and not a sample."""
    path = tmp_path / "sound.mov"
    path.write_bytes(mp4(b"\0\0", samples=400_000_000, sample_bytes=2, handler=b"soun"))
    with open(path, "rb", buffering=0) as file:
        assert mp4_index.claims_of(file, path.stat().st_size).excess == ""


@pytest.mark.parametrize("name", ["a.mp4", "f.mp4", "a.mov", "a.mkv", "a.avi", "a.ts"])
def test_a_usual_recording_claims_nothing_beyond_the_limits(tmp_path: Path, name: str) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    path = make_video(tmp_path / name, audio="aac" if codec == "libx264" else None, codec=codec)
    with open(path, "rb", buffering=0) as file:
        assert mp4_index.claims_of(file, path.stat().st_size).excess == ""
