"""JSON Schema of what other programs read, against what real runs write."""

import copy
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ccdstream.batch import SCHEMA as BATCH_SCHEMA
from ccdstream.bundle import Bundle
from ccdstream.engine.select import SelectedEngine
from ccdstream.recording import OutputFiles, RunOptions, run
from ccdstream.report.alerts import SCHEMA as ALERT_SCHEMA
from ccdstream.report.audit import LIVE_SCHEMA
from ccdstream.report.audit import SCHEMA as RUN_SCHEMA
from tests.commands import bright_between, ccdstream

DRAFT = "https://json-schema.org/draft/2020-12/schema"
Json = dict[str, Any]


def schema(name: str) -> Json:
    """The schema of documents that say `name` of themselves."""
    file = name.removeprefix("ccdstream.").replace("/", "-") + ".json"
    found: Json = json.loads((files("ccdstream.report") / "schemas" / file).read_text("utf-8"))
    return found


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        schema(name), format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )


RUNS: dict[str, Json] = {
    "whole": {},
    "stretch": {"start_s": 0.5, "end_s": 2.5},
    "without-video": {"video": "none"},
    "clips": {"video": "clips"},
    "chapters": {"video": "chapters", "start_s": 0.5},
}


@pytest.fixture(scope="module", params=RUNS, ids=list(RUNS))
def left(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    bundle: Bundle,
    engine: SelectedEngine,
) -> Path:
    """A folder with what a run left of a recording with an alert."""
    folder = tmp_path_factory.mktemp(request.param)
    recording = bright_between(folder / "in.mp4", 10, 69, 80)
    options = RunOptions(**RUNS[request.param])
    run(recording, OutputFiles(folder, "in"), bundle=bundle, engine=engine, options=options)
    return folder


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Json:
    """The record of a batch in which one input is done, one was, and one fails."""
    folder = tmp_path_factory.mktemp("batch")
    bright_between(folder / "a.mp4", -1, -1, 12)
    flags = ("-o", folder / "out", "--model", bundle.path, "--video", "none")
    assert ccdstream("run", folder, *flags).exit_code == 0
    bright_between(folder / "b.mp4", -1, -1, 12)
    (folder / "c.mp4").write_bytes(b"no video")
    assert ccdstream("run", folder, *flags).exit_code == 1
    record: Json = json.loads((folder / "out" / "batch.json").read_text())
    assert [row["status"] for row in record["inputs"]] == ["already_done", "done", "failed"]
    return record


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Json:
    """The record of a live session that recorded."""
    folder = tmp_path_factory.mktemp("session")
    clip = bright_between(folder / "a.mp4", 5, 20, 30)
    flags = ("-o", folder / "out", "--model", bundle.path, "--record", "a.mp4", "--pre", "1")
    assert ccdstream("live", "--device", clip, "--pace", *flags).exit_code == 0
    record: Json = json.loads((folder / "out" / "live.run.json").read_text())
    assert record["source"]["mode"] and record["recording"]["clips"]
    return record


@pytest.fixture(scope="module")
def documents(left: Path, batch: Json, session: Json) -> dict[str, list[Json]]:
    """By the name of their schema: what the run left, a batch, and a live session."""
    lines = (left / "in.alerts.jsonl").read_text().splitlines()
    assert lines, "a run without an alert tests nothing"
    return {
        ALERT_SCHEMA: [json.loads(line) for line in lines],
        RUN_SCHEMA: [json.loads((left / "in.run.json").read_text())],
        BATCH_SCHEMA: [batch],
        LIVE_SCHEMA: [session],
    }


NAMES = pytest.mark.parametrize("name", [ALERT_SCHEMA, RUN_SCHEMA, BATCH_SCHEMA, LIVE_SCHEMA])


@NAMES
def test_a_schema_is_one_of_draft_2020_12_and_carries_its_version(name: str) -> None:
    found = schema(name)
    jsonschema.Draft202012Validator.check_schema(found)
    assert found["$schema"] == DRAFT
    kind, version = name.removeprefix("ccdstream.").split("/")
    assert found["$id"] == f"urn:ccdstream:schema:{kind}:{version}"
    assert found["properties"]["schema"] == {"const": name}


@NAMES
def test_what_a_run_writes_is_valid_by_the_schema_that_it_names(
    name: str, documents: dict[str, list[Json]]
) -> None:
    for document in documents[name]:
        assert document["schema"] == name and "$schema" not in document
        assert [e.message for e in validator(name).iter_errors(document)] == []


def undescribed(document: Any, described: Json, place: str = "") -> Iterator[str]:
    """Keys of a document of which its schema says nothing."""
    if isinstance(document, list):
        for number, each in enumerate(document):
            yield from undescribed(each, described.get("items", {}), f"{place}/{number}")
    if not isinstance(document, dict) or described.get("additionalProperties"):
        return
    for key, value in document.items():
        if key not in described.get("properties", {}):
            yield f"{place}/{key}"
        else:
            yield from undescribed(value, described["properties"][key], f"{place}/{key}")


@NAMES
def test_every_key_that_a_run_writes_is_described(
    name: str, documents: dict[str, list[Json]]
) -> None:
    for document in documents[name]:
        assert list(undescribed(document, schema(name))) == []


def broken(document: Json, described: Json) -> Iterator[tuple[str, Json]]:
    """The document without each key that must be there, at any depth."""
    for key in described.get("required", []):
        without = copy.deepcopy(document)
        del without[key]
        yield key, without
    for key, inner in described.get("properties", {}).items():
        value = document.get(key)
        if isinstance(value, dict):
            for name, changed in broken(value, inner):
                yield f"{key}/{name}", {**document, key: changed}
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for name, changed in broken(value[0], inner["items"]):
                yield f"{key}/0/{name}", {**document, key: [changed, *value[1:]]}


@NAMES
def test_a_document_that_lacks_a_key_is_not_valid(
    name: str, documents: dict[str, list[Json]]
) -> None:
    valid = validator(name)
    cases = list(broken(documents[name][0], schema(name)))
    assert len(cases) > 15
    assert [key for key, document in cases if valid.is_valid(document)] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", "ccdstream.alert/2"), ("alert", 0), ("finding", "polyp"), ("start", "1.5"),
        ("duration_s", -0.1), ("start_pts", 1.5), ("time_base", "1/0"), ("peak_score", 1.2),
        ("peak_raw", "0.5"), ("box", [1, 2, 3]), ("box", [1, 2, 0, 4]), ("clock", 13),
        ("clock", "left"), ("frames", 0), ("model", None),
    ],
)  # fmt: skip
def test_a_wrong_value_in_an_alert_is_not_valid(
    key: str, value: object, documents: dict[str, list[Json]]
) -> None:
    assert not validator(ALERT_SCHEMA).is_valid({**documents[ALERT_SCHEMA][0], key: value})


@pytest.mark.parametrize(
    ("box", "clock"), [(None, None), ([-3, 0, 40, 20], "centre"), ([0, 0, 1, 1], 12)]
)
def test_an_alert_with_or_without_a_region_is_valid(
    box: object, clock: object, documents: dict[str, list[Json]]
) -> None:
    alert = {**documents[ALERT_SCHEMA][0], "box": box, "clock": clock, "peak_raw": None}
    assert validator(ALERT_SCHEMA).is_valid(alert)


def test_the_lines_that_json_prints_are_valid_too(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bright_between(Path("in.mp4"), 10, 69, 80)
    flags = ("--json", "--quiet", "--video", "none")
    result = ccdstream("run", "in.mp4", *flags, "--model", bundle.path)
    (line,) = map(json.loads, result.stdout.splitlines())
    assert line["recording"] == "in.mp4"
    assert list(undescribed(line, schema(ALERT_SCHEMA))) == []
    assert validator(ALERT_SCHEMA).is_valid(line)
