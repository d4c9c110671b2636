"""What was wrong with a recording, in words."""

from dataclasses import fields

from ccdstream.problems import Problems


def test_the_worst_is_said_first_and_nothing_is_left_out() -> None:
    every = {each.name: True if each.type is bool else 2 for each in fields(Problems)}
    said = Problems(**every).sentences()
    assert len(said) == len(every) - 1  # frames that were decoded are no problem
    starts = ("the recording breaks off", "another recording", "2 frames are missing")
    assert [sentence.startswith(start) for sentence, start in zip(said, starts, strict=False)] == [
        True
    ] * len(starts)
    assert "colour tags" in said[-1]
    assert Problems(decoded=9).sentences() == []
