"""The explanation of a finding: the docstring of its rule, cut into paragraphs, lists and code.

Only what the rules' docstrings use is understood: paragraphs, ``- `` lists, indented code and backquotes.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Literal

from cockpit_lite.diagnosis.rule import Rule

_BULLET = re.compile(r"[-*] +")
_CODE = re.compile(r"``(.+?)``|`([^`]+)`")


@dataclass(frozen=True)
class Block:
    """A paragraph or code (``lines`` has one entry), or a list (one entry an item)."""

    kind: Literal["paragraph", "code", "list"]
    lines: tuple[str, ...]


def explanation(rule: Rule) -> str:
    """Return the rule's own docstring; one that it merely inherits explains nothing."""
    return inspect.cleandoc(type(rule).__doc__ or "")


def blocks(text: str) -> list[Block]:
    r"""Cut an explanation into blocks.

    >>> [block.kind for block in blocks("Why::\n\n    code\n\n- one\n- two\n  more")]
    ['paragraph', 'code', 'list']
    """
    found: list[Block] = []
    for part in re.split(r"\n\s*\n", text.strip("\n")):
        lines = part.splitlines()
        if all(line.startswith("    ") for line in lines):
            code = inspect.cleandoc("\n" + part)
            if found and found[-1].kind == "code":  # a blank line inside code
                found[-1] = Block("code", (found[-1].lines[0] + "\n\n" + code,))
            else:
                found.append(Block("code", (code,)))
            continue
        paragraph: list[str] = []
        items: list[str] = []
        for line in map(str.strip, lines):
            if _BULLET.match(line):
                items.append(_BULLET.sub("", line, count=1))
            elif items:
                items[-1] += " " + line
            else:
                paragraph.append(line)
        if paragraph:
            sentence = " ".join(paragraph)
            found.append(Block("paragraph", (sentence[:-1] if sentence.endswith("::") else sentence,)))
        if items:
            found.append(Block("list", tuple(items)))
    return found


def code_spans(text: str) -> list[tuple[bool, str]]:
    """Split text at backquotes, double or single, into ``(is code, text)`` pieces.

    >>> code_spans("set ``lr`` to `0.1`")
    [(False, 'set '), (True, 'lr'), (False, ' to '), (True, '0.1')]
    """
    pieces = _CODE.split(text)  # text, double quoted, single quoted, text, ...
    return [(bool(index % 3), piece) for index, piece in enumerate(pieces) if piece]
