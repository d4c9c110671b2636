"""A picture of clips over time: the score, the threshold, where lesions are, and the alerts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ccdstream.errors import OutputError, show_path
from trainer.clips import Clip

MOST_CLIPS = 40
"""More would make a picture that no program opens; the figures have them all."""
_COLUMNS = 1200
"""Points of a curve, about one a pixel: of the frames between two, the highest is drawn."""


def draw_timelines(path: Path, clips: Sequence[Clip], enter: float) -> None:
    """Write a PNG with a row for each of the first `MOST_CLIPS` clips.

    Raises:
        OutputError: it cannot be written.
    """
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure  # not pyplot: it would look for a screen

    shown = clips[:MOST_CLIPS]
    figure = Figure(figsize=(14, 0.9 + 1.7 * len(shown)), layout="constrained")
    rows = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, clip in zip(rows, shown, strict=True):
        starts = clip.seconds
        ends = starts + clip.shown * float(clip.time_base)
        for frames, colour, label in (
            (clip.visible, "#7fbf7f", "marked lesion in view"),
            (~clip.informative, "#c8c8c8", "uninformative"),
        ):
            for first, last in runs_of(frames):
                axes.axvspan(starts[first], ends[last], color=colour, lw=0, alpha=0.6, label=label)
                label = "_"  # once in the legend
        for number, alert in enumerate(clip.alerts):
            axes.hlines(
                1.04,
                alert.start_s,
                alert.end_s,
                color="#c02020",
                lw=3,
                label="_" if number else "alert",
            )
        axes.plot(*_thinned(starts, clip.smoothed), color="#1f3f7f", lw=0.9, label="score")
        axes.axhline(enter, color="#c02020", lw=0.7, ls="--", label="alert threshold")
        axes.set_xlim(starts[0], ends[-1])
        axes.set_ylim(0, 1.08)
        axes.set_title(show_path(clip.video.name), fontsize=9, loc="left", parse_math=False)
        axes.set_ylabel("smoothed score", fontsize=8)
    rows[-1].set_xlabel("stream time in seconds")
    named: dict[str, Artist] = {}  # one legend for all clips, and off their curves
    for axes in rows:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    figure.legend(
        named.values(), named.keys(), fontsize=8, loc="outside upper right", ncols=len(named)
    )
    try:
        figure.savefig(path, format="png", dpi=90)
    except OSError as error:
        raise OutputError(
            f"cannot write {show_path(path)}: {error.strerror or error}. "
            "Check that the folder is writable and has room, or choose another --output."
        ) from error


def runs_of(frames: np.ndarray) -> list[tuple[int, int]]:
    """(first, last) of each run of True in bool [T]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], frames.astype(np.int8), [0]])))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _thinned(seconds: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most about `_COLUMNS` points of a curve: the highest of every few."""
    step = max(1, len(scores) // _COLUMNS)
    highest = [
        start + int(scores[start : start + step].argmax()) for start in range(0, len(scores), step)
    ]
    return seconds[highest], scores[highest]
