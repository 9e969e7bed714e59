"""Which feature of training is tested inside of what: each cell is a test, or the reason why there is none.

The page of the documentation is made of it: ``python -m tests.framework_table``.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Because(str):
    """Why something is not covered; completes the sentence."""


_ALL = (
    "accumulation",
    "clipping",
    "bf16",
    "fp16",
    "compile",
    "compile fullgraph",
    "activation checkpointing",
    "resume",
    "scheduler",
    "averaged weights",
    "validation",
    "torch.func",
    "DDP",
    "FSDP2",
)
_ONE_RUN = "tests/test_distributed.py::test_readings_are_those_of_one_process"
_SCRIPT = Because("the script cannot say which processes train together: each would watch its own part")
_SHARDED = Because("it shards on accelerators only; fully_shard() by hand is the plain loop's")
_FUNC = Because("it calls backward itself")
_TOGETHER = "tests/integrations/test_several_processes.py::test_processes_measure_together"

_LIGHTNING = "tests/integrations/test_lightning.py"
_LIGHTNING_CASE = f"{_LIGHTNING}::test_training_is_the_same"
_HUGGINGFACE = "tests/integrations/test_huggingface.py"
_HUGGINGFACE_CASE = f"{_HUGGINGFACE}::test_training_is_the_same"

#: where people train -> feature -> the test, or Because
TABLE: dict[str, dict[str, str]] = {
    "plain loop": {
        **{feature: f"tests/test_frameworks.py::test_a_plain_loop[{feature}]" for feature in _ALL},
        "DDP": f"{_ONE_RUN}[2-usual]",
        "FSDP2": f"{_ONE_RUN}[2-sharded blocks]",
    },
    "cockpit-lite run": {
        **{feature: f"tests/test_frameworks.py::test_a_script[{feature}]" for feature in _ALL},
        "DDP": _SCRIPT,
        "FSDP2": _SCRIPT,
    },
    "Lightning, automatic": {
        "accumulation": f"{_LIGHTNING_CASE}[accumulation]",
        "clipping": f"{_LIGHTNING_CASE}[clipping]",
        "bf16": f"{_LIGHTNING_CASE}[bfloat16]",
        "fp16": Because("Lightning has it on accelerators only"),
        "compile": f"{_LIGHTNING_CASE}[compile]",
        "compile fullgraph": f"{_LIGHTNING_CASE}[compile fullgraph]",
        "activation checkpointing": f"{_LIGHTNING_CASE}[activation checkpointing]",
        "resume": f"{_LIGHTNING}::test_checkpoints_hold_nothing_of_ours[automatic]",
        "scheduler": f"{_LIGHTNING_CASE}[automatic]",
        "averaged weights": f"{_LIGHTNING_CASE}[averaged weights]",
        "validation": f"{_LIGHTNING}::test_validation_is_recorded",
        "torch.func": _FUNC,
        "DDP": f"{_TOGETHER}[lightning]",
        "FSDP2": f"{_TOGETHER}[lightning sharded]",
    },
    "Lightning, manual": {
        "accumulation": f"{_LIGHTNING_CASE}[manual accumulation]",
        "clipping": f"{_LIGHTNING_CASE}[manual clipping]",
        "bf16": f"{_LIGHTNING_CASE}[manual bfloat16]",
        "fp16": Because("Lightning has it on accelerators only"),
        "compile": f"{_LIGHTNING_CASE}[manual compile]",
        "compile fullgraph": f"{_LIGHTNING_CASE}[manual compile fullgraph]",
        "activation checkpointing": f"{_LIGHTNING_CASE}[manual activation checkpointing]",
        "resume": f"{_LIGHTNING}::test_checkpoints_hold_nothing_of_ours[manual]",
        "scheduler": f"{_LIGHTNING_CASE}[manual scheduler]",
        "averaged weights": f"{_LIGHTNING_CASE}[manual averaged weights]",
        "validation": f"{_LIGHTNING_CASE}[manual]",
        "torch.func": Because("gradients that no backward() makes have no loss that could be seen"),
        "DDP": f"{_TOGETHER}[lightning manual]",
        "FSDP2": f"{_TOGETHER}[lightning manual sharded]",
    },
    "Hugging Face Trainer": {
        "accumulation": f"{_HUGGINGFACE_CASE}[accumulation]",
        "clipping": f"{_HUGGINGFACE_CASE}[language model]",
        "bf16": f"{_HUGGINGFACE_CASE}[bfloat16]",
        "fp16": Because("the Trainer has it on accelerators only"),
        "compile": f"{_HUGGINGFACE_CASE}[compile]",
        "compile fullgraph": Because("the Trainer has no setting for it"),
        "activation checkpointing": f"{_HUGGINGFACE_CASE}[gradient checkpointing]",
        "resume": f"{_HUGGINGFACE}::test_a_checkpoint_is_gone_on_from",
        "scheduler": f"{_HUGGINGFACE_CASE}[language model]",
        "averaged weights": Because("the Trainer has none"),
        "validation": f"{_HUGGINGFACE_CASE}[classifier]",
        "torch.func": _FUNC,
        "DDP": f"{_TOGETHER}[huggingface]",
        "FSDP2": _SHARDED,
    },
    "Accelerate": {
        **{feature: f"{_HUGGINGFACE}::test_accelerate[{feature}]" for feature in _ALL},
        "fp16": Because("Accelerate has it on accelerators only"),
        "torch.func": _FUNC,
        "DDP": f"{_TOGETHER}[accelerate]",
        "FSDP2": _SHARDED,
    },
}


def missing_tests() -> list[str]:
    """Return the tests that are named and are not there: no such function, or no such case in its file."""
    missing = []
    for cell in sorted({cell for row in TABLE.values() for cell in row.values() if not isinstance(cell, Because)}):
        file, _, rest = cell.partition("::")
        name, _, case = rest.rstrip("]").partition("[")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        known = texts | set(_ALL) if "features.FEATURES" in (ROOT / file).read_text(encoding="utf-8") else texts
        if name not in functions or (case and re.sub(r"^\d+-", "", case) not in known):  # so many processes
            missing.append(cell)
    return missing


def page() -> str:
    """Return the table as a page of the documentation."""
    columns = list(_ALL)
    lines = [
        "# Frameworks and features",
        "",
        "Each check mark is a test of the readings; nearly all also compare the training, watched and not, to the bit (not:",
        "validation in Lightning, DDP and FSDP2 inside frameworks).",
        "",
        "| | " + " | ".join(TABLE) + " |",
        "|---|" + "---|" * len(TABLE),
    ]
    notes: list[str] = []
    for column in columns:
        cells = []
        for row in TABLE.values():
            cell = row[column]
            if isinstance(cell, Because):
                if cell not in notes:
                    notes.append(cell)
                cells.append(f"not covered ({notes.index(cell) + 1})")
            else:
                cells.append("✓")
        lines.append(f"| {column} | " + " | ".join(cells) + " |")
    lines += ["", "Not covered, because", ""]
    lines += [f"{number}. {note}." for number, note in enumerate(notes, 1)]
    lines += ["", "## The tests", ""]
    for place, row in TABLE.items():
        lines += [f"**{place}**", ""]
        lines += [f"- {column}: `{row[column]}`" for column in columns if not isinstance(row[column], Because)]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    (ROOT / "docs" / "frameworks.md").write_text(page(), encoding="utf-8")
