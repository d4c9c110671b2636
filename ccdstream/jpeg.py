"""A frame as a JPEG, for the page of a live session and for reports."""

import cv2

from ccdstream.frames import Frame
from ccdstream.view import rgb_matrix

QUALITY = 85


def jpeg_of(frame: Frame, *, width: int | None = None, quality: int = QUALITY) -> bytes:
    """The frame as a baseline JPEG, in colours as a browser shows them.

    Args:
        frame: of any size and colour.
        width: pixels to scale it down to, in proportion; None, or wider than it is, keeps its size.
        quality: 1 to 100.
    """
    height, full = frame.size
    wide = full if width is None else min(width, full)
    tall = max(1, round(height * wide / full))
    how = cv2.INTER_AREA if wide < full else cv2.INTER_LINEAR
    planes = [
        plane if plane.shape == (tall, wide) else cv2.resize(plane, (wide, tall), interpolation=how)
        for plane in (frame.y, frame.u, frame.v)
    ]
    bgr = cv2.transform(cv2.merge(planes), rgb_matrix(frame.colour)[::-1].copy())
    written, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not written:
        raise ValueError(f"a picture of {wide}x{tall} pixels cannot be a JPEG")
    return jpeg.tobytes()
