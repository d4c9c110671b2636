"""Small videos for tests, made by PyAV: every kind of recording, and every kind of damage.

Frame k of `make_video` is one flat grey, `level(k)`, so that a test can say which frame it got
(`index_of`). A test that looks at pixels gives its own pictures.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from random import Random

import av
import numpy as np
from av.stream import Disposition

from ccdstream.encode import repeatable_x264
from ccdstream.frames import Frame

Planes = tuple[np.ndarray, np.ndarray, np.ndarray]

ALL_B = {"g": "50", "bf": "16", "b_strategy": "0", "sc_threshold": "0"}
"""x264 options: as many B-frames as there can be."""


def level(k: int) -> int:
    """Luma of frame k: 32 levels, six apart."""
    return 32 + 6 * (k % 32)


def index_of(luma: np.ndarray) -> int:
    """Which frame (modulo 32) has this luma."""
    return round((float(luma.mean()) - 32) / 6)


def flat(k: int, size: tuple[int, int]) -> Planes:
    """uint8 [H, W] and twice [ceil(H / 2), ceil(W / 2)]: frame k as `make_video` makes it."""
    height, width = size
    grey = np.full(((height + 1) // 2, (width + 1) // 2), 128, np.uint8)
    return np.full(size, level(k), np.uint8), grey, grey


def textured(k: int, size: tuple[int, int]) -> Planes:
    """As `flat`, but with something to compress: noise that moves by a pixel a frame."""
    height, width = size
    noise = np.random.default_rng(0).integers(40, 200, (height + 64, width + 64), dtype=np.uint8)
    moved = noise[k % 64 : k % 64 + height, k % 64 : k % 64 + width]
    chroma = np.ascontiguousarray(moved[::2, ::2])
    return np.ascontiguousarray(moved), chroma, 255 - chroma


def picture(planes: Planes) -> av.VideoFrame:
    """A yuv420p picture of these planes."""
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, "yuv420p")
    for plane, source in zip(frame.planes, planes, strict=True):
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        rows[:, : plane.width] = source
    return frame


@contextmanager
def _usual_priority() -> Iterator[None]:
    """Undo what SVT-AV1 does for root: it gives the thread that opens it, and all that this starts
    later, priority over every other program."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def make_video(
    path: Path,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (48, 64),
    frames: int = 12,
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    rate: Fraction | int = 25,
    format: str | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    picture_of: Callable[[int], av.VideoFrame] | None = None,
    tags: tuple[int, int, int, int] | None = None,
    sample_aspect_ratio: Fraction | None = None,
    display: tuple[float, bool, bool] | None = None,
    audio: str | None = None,
    audio_rate: int = 48_000,
    audio_start_s: float = 0.0,
    beep_s: float = 0.2,
    cover: bool = False,
    metadata: dict[str, str] | None = None,
) -> Path:
    """A video of `frames` frames at `pts` (0, 1, 2 ... where not given) of `time_base`.

    Args:
        picture_of: the picture of frame k; `flat` where not given.
        tags: (primaries, transfer, matrix, range) by the code points of ISO/IEC 23091-2.
        display: (degrees counterclockwise, mirrored left to right, mirrored top to bottom).
        audio: a codec. Silence as long as the video, with a beep from `beep_s` on, counted from
            `audio_start_s`.
        cover: a cover picture comes before the video stream.
    """
    pts = range(frames) if pts is None else pts
    options = dict(options or {})
    if codec == "libx265":
        options.setdefault("x265-params", "log-level=none")
    elif codec == "libx264":  # so that what is damaged is the same each time
        params = [*repeatable_x264().values(), options.get("x264-params", "")]
        options["x264-params"] = ":".join(filter(None, params))
    with (
        _usual_priority(),
        av.open(str(path), "w", format=format, container_options=container_options) as container,
    ):
        container.metadata.update(metadata or {})
        art = _add_cover(container) if cover else None
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.time_base = stream.codec_context.time_base = time_base
        if tags is not None:
            context = stream.codec_context
            context.color_primaries, context.color_trc = tags[0], tags[1]
            context.colorspace, context.color_range = tags[2], tags[3]
        if sample_aspect_ratio is not None:
            stream.codec_context.sample_aspect_ratio = sample_aspect_ratio
        if display is not None:
            stream.set_display_rotation(*display)
        events = []
        sound = None
        if audio is not None:
            sound = container.add_stream(audio, rate=audio_rate, layout="mono")
            seconds = float((pts[-1] - pts[0]) * time_base) + 0.04
            for frame in _beep(seconds, audio_rate, audio_start_s, beep_s):
                events.append((float(frame.pts * frame.time_base), sound, frame))
        for k, time in enumerate(pts):
            frame = picture_of(k) if picture_of else picture(flat(k, size))
            frame.pts, frame.time_base = time, time_base
            if tags is not None:
                frame.colorspace, frame.color_range = tags[2], tags[3]
            events.append((float(time * time_base), stream, frame))
        if art is not None:
            container.mux(art)
        for _, target, frame in sorted(events, key=lambda event: event[0]):
            container.mux(target.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            container.mux(sound.encode(None))
    return path


def _add_cover(container: av.container.OutputContainer) -> av.Packet:
    art = container.add_stream("mjpeg", rate=25)
    art.width = art.height = 32
    art.pix_fmt = "yuvj420p"
    art.disposition = Disposition.attached_pic
    frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 255, np.uint8), format="rgb24")
    frame.pts = 0
    return [*art.encode(frame), *art.encode(None)][0]


def _beep(seconds: float, rate: int, start_s: float, beep_s: float) -> list[av.AudioFrame]:
    t = np.arange(int(seconds * rate)) / rate
    loud = (t >= beep_s) & (t < beep_s + 0.1)
    wave = np.where(loud, 20_000 * np.sin(2 * np.pi * 1000 * t), 0).astype(np.int16)
    frames = []
    for begin in range(0, len(wave), 1024):
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(wave[np.newaxis, begin : begin + 1024]), "s16", "mono"
        )
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = begin + round(start_s * rate)
        frames.append(frame)
    return frames


def beep_time(path: Path) -> float | None:
    """When the beep starts, in seconds of the file's clock; None where there is none."""
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            wave = np.abs(frame.to_ndarray().astype(float)).max(axis=0)
            full = 1.0 if frame.format.name.startswith(("flt", "dbl")) else 32768.0
            full *= 65536 if frame.format.name.startswith("s32") else 1
            loud = np.flatnonzero(wave > 0.2 * full)
            if len(loud):
                return float(frame.pts * frame.time_base) + loud[0] / frame.sample_rate
    return None


def packets_of(path: Path, kind: str) -> list[tuple[Fraction, bytes]]:
    """(time, bytes) of every packet of the first stream of `kind`."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(stream) if p.size]


def times_of(path: Path) -> list[Fraction]:
    """When each video frame of a file is shown, in order, by its packets alone."""
    return sorted(time for time, _ in packets_of(path, "video"))


def remux(
    source: Path,
    path: Path,
    edit: Callable[[av.Packet, int], av.Packet | None],
    format: str | None = None,
) -> Path:
    """Copy the video packets of `source`, each as `edit(packet, k)` gives it; None drops one."""
    with av.open(str(source)) as read, av.open(str(path), "w", format=format) as write:
        stream = write.add_stream_from_template(read.streams.video[0], opaque=True)
        write.start_encoding()
        for k, packet in enumerate(p for p in read.demux(video=0) if p.size):
            edited = edit(packet, k)
            if edited is not None:
                edited.stream = stream
                write.mux(edited)
    return path


def cut(source: Path, path: Path, share: float) -> Path:
    """The first `share` of the bytes of `source`."""
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def flip_bits(source: Path, path: Path, *, seed: int, flips: int = 30) -> Path:
    """`source` with single bits flipped between 10 % and 70 % of its bytes."""
    data = bytearray(source.read_bytes())
    random = Random(seed)
    for _ in range(flips):
        data[random.randrange(len(data) // 10, len(data) * 7 // 10)] ^= 1 << random.randrange(8)
    path.write_bytes(data)
    return path


def busy_video(path: Path, frames: int = 50, **options: object) -> Path:
    """With something in every packet, so that damage hits something."""
    return make_video(
        path, frames=frames, picture_of=lambda k: picture(textured(k, (48, 64))), **options
    )


def indices(frames: list[Frame]) -> list[int]:
    return [index_of(frame.y) for frame in frames]
