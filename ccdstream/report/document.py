"""What the pages for people have in common: one HTML file that opens offline, and how it says it.

A content security policy allows the page's own script and style, by hash, and no more; it asks the
network for nothing. Everything that comes from outside (file names, tags, warnings) goes through
`safe` or `beside`.
"""

import base64
import hashlib
import html
import os
from collections.abc import Sequence
from importlib.resources import files
from urllib.parse import quote

import numpy as np

from ccdstream.timecode import short_time

Facts = tuple[str, Sequence[tuple[str, str]]]
"""A group of the facts: its title, and what is how."""


def document(
    title: str, body: str, *, style: str, script: str, sources: str = "", attributes: str = ""
) -> str:
    """A whole page.

    Args:
        title: as plain text.
        body: HTML of what stands in it, without the script.
        style, script: CSS and JavaScript.
        sources: directives of the policy that allow more than style and script, each ending "; ".
        attributes: of the body element, as HTML.
    """
    policy = (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; {sources}"
        f"script-src {_hash(script)}; style-src {_hash(style)}"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{safe(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="dark light">\n'
        '<meta name="referrer" content="no-referrer">\n<meta name="robots" content="noindex">\n'
        f"<title>{safe(title)}</title>\n<style>{style}</style>\n</head>\n"
        f"<body{' ' * bool(attributes)}{attributes}>\n{body}"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def text_of(name: str) -> str:
    """A file of this package, such as a style sheet."""
    return (files("ccdstream.report") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def facts(what: str, groups: Sequence[Facts]) -> str:
    """The section that says how it was done."""
    return (
        '<section class="facts" aria-labelledby="facts-title">\n'
        f'<h2 id="facts-title">Facts of {what}</h2>\n<div class="groups">\n'
        + "".join(
            f"<div><h3>{title}</h3>\n<dl>"
            + "".join(
                f"<div><dt>{safe(what)}</dt><dd>{safe(str(value))}</dd></div>"
                for what, value in rows
            )
            + "</dl></div>\n"
            for title, rows in groups
        )
        + "</div>\n</section>\n"
    )


def outline(height: np.ndarray, shown: np.ndarray, tall: int = 1000) -> str:
    """The SVG path around the columns that are shown, in a drawing that is `tall` high and has a
    unit for each column. None is lower than a hundredth, so that it can be seen.

    Args:
        height: float [columns], in [0, 1].
        shown: bool [columns].
    """
    tops = np.rint(tall * (1 - height)).astype(int).tolist()
    lowest = tall - max(tall // 100, 1)
    path = []
    for first, end in runs(shown):
        path.append(f"M{first} {tall}")
        column = first
        while column < end:
            after = column + 1
            while after < end and tops[after] == tops[column]:
                after += 1
            path.append(f"V{min(tops[column], lowest)}H{after}")
            column = after
        path.append(f"V{tall}Z")
    return "".join(path)


def runs(shown: np.ndarray) -> list[tuple[int, int]]:
    """First column and the one after the last, of each run of columns that are shown, bool
    [columns]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], shown, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


# -- words ----------------------------------------------------------------------------------------


def safe(text: str) -> str:
    """Text as HTML, also within an attribute."""
    return html.escape(text)


def beside(name: str) -> str:
    """The address of a file in the page's folder, or below it: `name` is relative to that."""
    return "./" + quote(os.fsencode(name))  # fsencode: a name may hold bytes that are no text


def counted(number: int, noun: str) -> str:
    """Such as "1 frame" and "2,000 frames"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def frames_in(frames: int, empty_s: float) -> str:
    """How many frames there are, and for how long there is none between them."""
    return counted(frames, "frame") + (f", none for {length(empty_s)}" if empty_s > 0 else "")


def percent(part: float, whole: float) -> str:
    """A share, to a tenth of a percent; "-" of nothing."""
    return f"{100 * part / whole:.1f} %" if whole > 0 else "-"


def length(seconds: float) -> str:
    """A length of time, to a tenth of a second where it is short."""
    return f"{seconds:.1f}\u00a0s" if seconds < 59.95 else short_time(seconds)
