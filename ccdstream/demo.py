"""The synthetic procedure as files: a video with sound, and the truth about it.

The pictures are `sample`'s; here they are written down. A test bed, not evidence of accuracy.
"""

import json
from collections.abc import Callable
from fractions import Fraction
from itertools import takewhile
from pathlib import Path

from ccdstream import sample
from ccdstream.encode import PcmAudio, StreamInfo, VideoSink
from ccdstream.frames import Colour
from ccdstream.report.files import refuse_existing, write_text


def truth_path(video: Path) -> Path:
    """Where the truth of a sample lies: `truth.json` beside it, with the video's stem in front."""
    return video.with_name(f"{video.stem}.truth.json")


def write_sample(
    video: Path,
    options: sample.SampleOptions,
    *,
    overwrite: bool = False,
    stopped: Callable[[], bool] = lambda: False,
    on_frame: Callable[[int], None] = lambda _: None,
) -> None:
    """Write the sample procedure to `video` and its truth beside it, each whole or not at all.

    Raises:
        OutputError: a file exists already or cannot be written.
    """
    truth = truth_path(video)
    if not overwrite:
        refuse_existing(video)
        refuse_existing(truth)
    stream = StreamInfo(
        size=options.size,
        time_base=options.time_base,
        average_rate=Fraction(options.rate),
        colour=Colour("bt601", full_range=False),
    )
    sound = PcmAudio(sample.AUDIO_RATE_HZ, sample.audio_blocks(options))
    kept = []
    with VideoSink(video, stream, audio=sound, overwrite=overwrite) as sink:
        for frame, found in takewhile(lambda _: not stopped(), sample.frames(options)):
            sink.write(frame)
            kept.append(found)
            on_frame(len(kept))
    write_text(truth, json.dumps(sample.truth_document(options, kept)) + "\n", overwrite=overwrite)
