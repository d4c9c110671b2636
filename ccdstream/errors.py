"""Errors that the person running ccdstream can act on.

CcdstreamError
├── VideoOpenError      the input cannot be opened or holds no video
├── VideoDecodeError    the input opened, but nothing in it can be decoded
├── ImageError          a still image cannot be read
├── OutputError         a result cannot be written, or is there already
├── BundleError         the model bundle is missing, damaged or not for this version
├── EngineError         no engine on this machine can run the bundle as asked
├── DataError           the training or evaluation data is missing or not usable
└── ConfigError         a configuration key or value is not known

Anything else that escapes is a bug and keeps its traceback.
"""

import os


class CcdstreamError(Exception):
    """Base of every error with a message meant for the user. The CLI prints it and exits with 1."""


class VideoOpenError(CcdstreamError):
    """The input cannot be opened, or holds no video stream."""


class VideoDecodeError(CcdstreamError):
    """The input opened, but nothing in it can be decoded."""


class ImageError(CcdstreamError):
    """A still image cannot be read."""


class OutputError(CcdstreamError):
    """A result cannot be written, or is there already."""


class BundleError(CcdstreamError):
    """The model bundle is missing, damaged, or not for this version of ccdstream."""


class EngineError(CcdstreamError):
    """No engine on this machine can run the bundle as asked."""


class DataError(CcdstreamError):
    """The training or evaluation data is missing or not usable."""


class ConfigError(CcdstreamError):
    """A configuration key or value is not known."""


def show_path(path: str | os.PathLike[str]) -> str:
    """`path` as it stands in a message: one line, whatever the file is called.

    A plain name is shown as it is. One with a newline, another control character, bytes that are
    no text or a blank at either end is quoted with escapes, so that a message stays one line and
    the name can still be told.
    """
    text = os.fspath(path)
    return text if text.isprintable() and text and text == text.strip() else repr(text)


def reason_of(error: BaseException) -> str:
    """The system's or FFmpeg's words for `error`, on one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())
