from __future__ import annotations

import re

import pytest

from cockpit_lite.report import build_report
from cockpit_lite.report.markdown import code, escaped
from tests.report.cases import RULES, alert


def test_the_findings_come_first_and_the_rest_is_folded(make_run):
    run = make_run(alerts=(alert(where=("0.weight",)),), not_measured={"gradient_noise_scale": "the batch holds one sample"})
    text = build_report(run, RULES).to_markdown()
    in_order = [
        "## Training report: a-run",
        "Net · SGD · 40 steps",
        "**1 error in 40 steps. It is loss-rises (CL901) at step 12 in 0.weight.**",
        "### 🔴 loss-rises (error, `CL901`)",
        "Step 12, in `0.weight`. The loss rose from 2.3 to 9.1.",
        "**What to do.** Divide `lr` by 10.",
        "### Story",
        "1. **Steps 0 to",
        "<summary>Not checked: 2</summary>",
        "gradient\\_noise\\_scale was not measured, because the batch holds one sample",
        "| `loss` | 0.0575 | 39 | exact |",
        "What measuring cost is not known",
    ]
    places = [text.find(part) for part in in_order]
    assert -1 not in places, in_order[places.index(-1)]
    assert places == sorted(places)
    assert text.count("<details>") == text.count("</details>") == 2


def test_text_of_a_log_formats_nothing_and_calls_nobody(make_run):
    hostile = "</details><img src=x> **b** [l](http://e.org) @someone #12 | ` \x1b[2J\n# head"
    info = {"model": hostile, "status": "running"}
    run = make_run(
        alerts=(alert(name=hostile, where=(hostile,), cause=hostile, advice=hostile),), info=info, layers=(hostile,), final=None
    )
    text = build_report(run, RULES).to_markdown()
    plain = re.sub(r"(`+) .*? \1|`[^`\n]*`", "", text)  # in code nothing means anything
    assert not re.search(r"(?<!\\)<(?!/?(details|summary)>)", plain)
    assert not re.search(r"(?<!\\)\*\*b", plain)
    assert not re.search(r"(?<!\\)\[l", plain)
    assert not re.search(r"@someone|http://", plain)
    assert [line for line in text.splitlines() if line.startswith("# ")] == []
    assert "\x1b" not in text
    assert text.count("\n<details>") == text.count("\n</details>")


@pytest.mark.parametrize("name", ["a`b", "``", "`", "a``b`c"])
def test_code_holds_any_backquotes(name):
    shown = code(name)
    fence = re.match("`+", shown).group()
    assert shown == f"{fence} {name} {fence}"
    assert fence not in re.findall("`+", name)


def test_a_bar_does_not_end_the_cell_of_a_table():
    assert escaped("a|b") == r"a\|b"
    assert code("a|b") == r"`a\|b`"


def test_a_run_without_steps_says_why(make_run):
    text = build_report(make_run(steps=0), RULES).to_markdown()
    assert "- optimizer.step() was never called inside the with block" in text
    assert "### Story" not in text
