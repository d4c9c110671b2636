"""The pictures of a live session, made beside it."""

import threading

from ccdstream.frames import FieldOfView, Frame
from ccdstream.live.gallery import MOST_WAITING, LiveGallery
from ccdstream.render import with_heat
from ccdstream.report.gallery import Gallery
from tests.test_gallery import FIELD, Ended, frame, fused


def fill(gallery: Gallery) -> None:
    for k in range(60):
        shown, score = frame(k, 40 + 2 * k), fused(k / 60, heat=k / 60)
        if k % 20 == 10:
            gallery.peak_so_far(shown, FIELD, score)
        gallery.add(shown, k / 10, score, "NORMAL")
        if k % 20 == 15:
            gallery.close(Ended(k // 20 + 1, k - 5, k / 60))


def test_it_shows_what_a_gallery_shows() -> None:
    plain = Gallery(start_s=0.0, heated=with_heat)
    fill(plain)
    with LiveGallery(start_s=0.0, heated=with_heat) as beside:
        fill(beside)
    assert beside.strip == plain.strip and len(plain.strip) == 12
    assert beside.peaks == plain.peaks and sorted(plain.peaks) == [1, 2, 3]
    assert (beside.line.score == plain.line.score).all()


def test_nobody_waits_for_a_picture() -> None:
    begun, gate = threading.Event(), threading.Event()

    def heated(shown: Frame, field: FieldOfView, heat: object) -> Frame:
        begun.set()
        assert gate.wait(60)
        return shown

    with LiveGallery(start_s=0.0, heated=heated) as gallery:
        gallery.peak_so_far(frame(0), FIELD, fused(0.5))
        gallery.close(Ended(1, 0, 0.5))
        assert begun.wait(60)
        for k in range(MOST_WAITING):
            gallery.add(frame(k), k / 10, fused(0.5), "NORMAL")
        assert not gallery.peaks and not gallery.strip, "they wait, and not their caller"
        gate.set()
    assert set(gallery.peaks) == {1} and gallery.strip


def test_what_fails_there_is_kept_and_costs_nothing_else() -> None:
    def broken(*_: object) -> Frame:
        raise ValueError("broken")

    with LiveGallery(start_s=0.0, heated=broken) as gallery:
        assert gallery.failed is None and gallery.traceback == ""
        gallery.peak_so_far(frame(0), FIELD, fused(0.5))
        gallery.close(Ended(1, 0, 0.5))
        for k in range(10 * MOST_WAITING):
            gallery.add(frame(k), k / 10, fused(0.5), "NORMAL")
    assert gallery.failed is not None
    assert "ValueError: broken (test_live_gallery.py, line " in gallery.failed
    assert gallery.failed.endswith("The report lacks pictures or scores.")
    assert "in broken" in gallery.traceback
    assert not gallery.peaks and len(gallery.strip) == 16, "of 8 seconds"
