"""What was wrong is said in sentences, one a problem, and nothing is said of what was not."""

from ccdstream.problems import Problems


def test_a_sound_recording_has_no_sentence() -> None:
    assert Problems(decoded=1000).sentences() == []


def test_one_and_many_are_told_apart() -> None:
    assert Problems(missing_pts=1, corrupt_frames=2, demux_errors=1).sentences() == [
        "the file could not be read in 1 place",
        "2 frames are shown though partly damaged",
        "1 frame had no time and follows the one before",
    ]


def test_every_problem_has_a_sentence_of_its_own() -> None:
    kinds = [name for name in Problems().as_dict() if name != "decoded"]
    told = [Problems(**{name: 1}).sentences() for name in kinds]
    assert all(len(sentences) == 1 for sentences in told)
    assert len({sentences[0] for sentences in told}) == len(kinds)


def test_what_was_not_seen_is_said_before_what_was_put_right() -> None:
    said = Problems(colour_changes=1, missing_frames=2, unread_recording=True, truncated=True)
    starts = [sentence.split()[:2] for sentence in said.sentences()]
    assert starts == [["the", "recording"], ["another", "recording"], ["2", "frames"],
                      ["the", "colour"]]  # fmt: skip
