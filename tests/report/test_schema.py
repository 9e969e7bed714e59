"""The published schema: every report fits it, and nothing is written that it does not tell of."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cockpit_lite.report import build_report
from tests.report.cases import RULES, alert, record

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text(encoding="utf-8"))

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}


def faults(value: Any, schema: dict[str, Any], at: str = "$", root: dict[str, Any] | None = None) -> list[str]:
    """Check as much of JSON Schema as our files use, strictly: a field that the schema does not name is a fault."""
    root = schema if root is None else root
    if "$ref" in schema:
        return faults(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], at, root)
    if "oneOf" in schema:
        return [] if sum(not faults(value, one, at, root) for one in schema["oneOf"]) == 1 else [f"{at}: not one of the kinds"]
    if "const" in schema and value != schema["const"]:
        return [f"{at}: {value!r} is not {schema['const']!r}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{at}: {value!r} is none of {schema['enum']}"]
    wanted = schema.get("type", [])
    types = tuple(one for name in ([wanted] if isinstance(wanted, str) else wanted) for one in TYPES[name])
    if types and (not isinstance(value, types) or isinstance(value, bool)):
        return [f"{at}: {value!r} is no {wanted}"]
    if isinstance(value, (int, float)) and not schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf):
        return [f"{at}: {value!r} is out of range"]
    found = []
    if isinstance(value, list):
        found += [fault for index, item in enumerate(value) for fault in faults(item, schema["items"], f"{at}[{index}]", root)]
    elif isinstance(value, dict) and "properties" in schema:
        found += [f"{at}: no {name}" for name in schema["required"] if name not in value]
        found += [f"{at}: {name} is not in the schema" for name in value if name not in schema["properties"]]
        for name, part in schema["properties"].items():
            found += faults(value[name], part, f"{at}.{name}", root) if name in value else []
    elif isinstance(value, dict) and isinstance(schema.get("additionalProperties"), dict):
        found += [
            fault for name, item in value.items() for fault in faults(item, schema["additionalProperties"], f"{at}.{name}", root)
        ]
    return found


@pytest.fixture
def reports(make_run):
    bad = alert(where=("0.weight",), evidence={"loss": math.nan, "limits": [1.0, 2.0]}, confidence=0.5)
    cost = {"share": 0.04, "measuring_seconds": 1.0, "training_seconds": 25.0, "instruments": {"hessian_trace": 0.5}}
    broken = make_run(steps=5, folder="nan")
    record(broken, "loss", [math.nan] * 5)
    record(broken, "grad_norm/0.weight", [math.inf] * 5)
    return [
        build_report(run, RULES).to_dict()
        for run in (
            make_run(
                alerts=(bad, alert("CL902", "noise-dominates", "warning", 3, until=9)),
                final={"status": "completed", "cost": cost},
                not_measured={"x": "why"},
                folder="found",
            ),
            make_run(steps=0, final=None, folder="empty"),
            make_run(steps=1, folder="one"),
            broken,
        )
    ]


def test_every_report_fits_the_schema(reports):
    assert [faults(json.loads(json.dumps(report)), SCHEMA) for report in reports] == [[]] * 4
    for name in ("findings", "phases", "passed", "not_checked", "not_measured", "last_values", "layers"):
        assert any(report[name] for report in reports)  # else nothing of it was checked


def test_the_check_sees_what_is_wrong(reports):
    report = reports[0]
    assert faults({**report, "steps": -1}, SCHEMA) == ["$.steps: -1 is out of range"]
    assert faults({**report, "worst": "fatal"}, SCHEMA) != []
    assert faults({**report, "score": 7}, SCHEMA) == ["$: score is not in the schema"]
    assert faults({**report, "last_values": [{"name": "loss", "step": 3, "value": "nan", "how": ""}]}, SCHEMA) != []
    assert faults({name: value for name, value in report.items() if name != "cost"}, SCHEMA) == ["$: no cost"]


def test_a_validator_says_the_same(reports):
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install 'cockpit-lite[test]'")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    validator = jsonschema.Draft202012Validator(SCHEMA)
    assert [list(validator.iter_errors(json.loads(json.dumps(report)))) for report in reports] == [[]] * 4
    assert not validator.is_valid({**reports[0], "worst": "fatal"})
