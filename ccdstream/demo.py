"""The synthetic procedure as files: a video with sound, and the truth about it.

The pictures are `sample`'s; here they are written down. A test bed, not evidence of accuracy.
"""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from ccdstream import sample
from ccdstream.encode import PcmAudio, StreamInfo, VideoSink
from ccdstream.frames import Colour
from ccdstream.report.files import Together, write_text


def truth_path(video: Path) -> Path:
    """Where the truth of a sample lies: `truth.json` beside it, with the video's stem in front."""
    return video.with_name(f"{video.stem}.truth.json")


def write_sample(
    video: Path,
    options: sample.SampleOptions,
    *,
    overwrite: bool = False,
    on_frame: Callable[[int], None] = lambda _: None,
) -> None:
    """Write the sample procedure to `video` and its truth beside it: both whole, or neither.

    Args:
        on_frame: called after every frame with how many there are.

    Raises:
        OutputError: a file exists already or cannot be written.
    """
    stream = StreamInfo(
        size=options.size,
        time_base=options.time_base,
        average_rate=Fraction(options.rate),
        colour=Colour("bt601", full_range=False),
    )
    sound = PcmAudio(sample.AUDIO_RATE_HZ, sample.audio_blocks(options))
    truths = []
    with Together(overwrite=overwrite) as results:
        # the truth's place first, so that an existing one is refused before anything is drawn
        truth_place, video_place = results.place(truth_path(video)), results.place(video)
        with VideoSink(video_place, stream, audio=sound) as sink:
            for frame, truth in sample.frames(options):
                sink.write(frame)
                truths.append(truth)
                on_frame(len(truths))
        write_text(truth_place, json.dumps(sample.truth_document(options, truths)) + "\n")
