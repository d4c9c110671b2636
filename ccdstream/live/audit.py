"""What a session was -> the record that run.json holds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ccdstream import NOTICE, __version__
from ccdstream.alert import LIMITS
from ccdstream.bundle import Bundle
from ccdstream.doctor import versions
from ccdstream.engine.select import SelectedEngine
from ccdstream.live.journal import wall_clock
from ccdstream.live.records import Gap, Mode, Wanted
from ccdstream.live.session import LiveOptions, LiveResult
from ccdstream.quality import FLAGS as QUALITY_FLAGS


def live_record(
    result: LiveResult,
    *,
    command: Sequence[str],
    source: str,
    wanted: Wanted,
    mode: Mode | None,
    bundle: Bundle,
    engine: SelectedEngine,
    options: LiveOptions,
    gaps: Sequence[Gap],
    warnings: Sequence[str],
    outputs: Sequence[str],
    recording: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What live.run.json says.

    Args:
        command, source: to show, without a password.
        mode: by the latest connection; None where there was none.
        gaps: the first thousand at most; `counts` says how many there were.
        outputs: names of files, relative to the folder.
        recording: how it was asked for; None for none.
    """
    counts = asdict(result.counts)
    counts["uninformative_by_reason"] = {
        reason: result.uninformative[reason] for reason in QUALITY_FLAGS
    }
    dropped = {key.removeprefix("dropped_"): counts.pop(key) for key in sorted(counts)
               if key.startswith("dropped_")}  # fmt: skip
    return {
        "notice": NOTICE,
        "ccdstream": __version__,
        "versions": versions(),
        "command": list(command),
        "source": {"name": source, "asked": asdict(wanted), "mode": mode and asdict(mode)},
        "model": {
            "id": bundle.model_id,
            "name": bundle.name,
            "commit": bundle.manifest["commit"],
            "files": bundle.manifest["files"],
        },
        "engine": {"taken": engine.reason, "name": engine.name, "device": engine.device},
        "alert_rule": dict(bundle.alert),
        "alert_limits": LIMITS,
        "max_latency_s": options.max_latency_s,
        "started": wall_clock(result.started_wall_s),
        "ended": wall_clock(result.ended_wall_s),
        "ended_by": result.ended,
        "counts": counts,
        "dropped": dropped,
        "gaps": [asdict(gap) for gap in gaps],
        "delays_s": result.delays.summary(),
        "rate": {
            "captured_per_s": result.counts.captured / max(result.wall_s, 1e-9),
            "analysed_per_s": result.counts.analysed / max(result.wall_s, 1e-9),
        },
        "timing": {"wall_s": result.wall_s, "stream_s": result.stream_s},
        "recording": recording,
        "recorded": {name: asdict(each) for name, each in result.recorded.items()},
        "failures": dict(result.failures),
        "tracebacks": dict(result.tracebacks),
        "warnings": list(warnings),
        "outputs": sorted(outputs),
    }
