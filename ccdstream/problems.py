"""What was wrong with a recording: counted while it is decoded, and in words."""

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Problems:
    """What was wrong with a recording, counted while it is decoded and complete at its end."""

    decoded: int = 0
    """Frames that were handed out."""
    corrupt_packets: int = 0
    """Packets that the container marks as damaged or that the decoder refused."""
    corrupt_frames: int = 0
    """Pictures that the decoder marks as damaged. They are handed out: part of them is true."""
    skipped_frames: int = 0
    """Pictures that were in the file and could not be decoded."""
    missing_frames: int = 0
    """Pictures that are not in the file, by the gaps in an otherwise even clock, or by the
    container's own count."""
    size_changes: int = 0
    """How often the size of the picture changed; frames are scaled to the first size."""
    colour_changes: int = 0
    """How often matrix or range changed; frames are converted to the first ones."""
    missing_pts: int = 0
    """Frames without a time of their own; each follows the one before it."""
    non_monotonic: int = 0
    """Frames whose time was not after the one before, moved by a tick to come after it."""
    clock_jumps: int = 0
    """How often the clock was set anew; the frames behind go on where those before it ended."""
    demux_errors: int = 0
    """How often a spot of the file could not be read."""
    truncated: bool = False
    """Whether the recording breaks off before its announced end, or could not be read to it."""

    unread_recording: bool = False
    """Whether another recording follows in the file, which is not read."""

    def as_dict(self) -> dict[str, int | bool]:
        """The counts by name."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """What a person should know, one sentence a problem, and the worst first: what was not
        seen, then what was seen damaged, then what was put right. Empty for a sound recording."""
        told: tuple[tuple[int, str], ...] = (
            (self.truncated, "the recording breaks off before its announced end"),
            (self.unread_recording, "another recording follows in the same file, and is not read"),
            (self.missing_frames, "{} frame{s} {are} missing, by the gaps in clock or index"),
            (self.skipped_frames, "{} frame{s} could not be decoded"),
            (self.demux_errors, "the file could not be read in {} place{s}"),
            (self.corrupt_frames, "{} frame{s} {are} shown though partly damaged"),
            (self.corrupt_packets, "{} packet{s} of the file {are} damaged"),
            (self.clock_jumps, "the clock of the file jumped {} time{s}; closed up"),
            (self.non_monotonic, "{} frame{s} had a time no later than the one before"),
            (self.missing_pts, "{} frame{s} had no time and follow{v} the one before"),
            (self.size_changes, "the picture changed size {} time{s}; scaled to the first size"),
            (self.colour_changes, "the colour tags changed {} time{s}; converted to the first"),
        )
        return [
            text.format(
                count,
                s="" if count == 1 else "s",
                are="is" if count == 1 else "are",
                v="s" if count == 1 else "",
            )
            for count, text in told
            if count
        ]
