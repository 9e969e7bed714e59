"""The sum of several forms of one parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cockpit_lite.probes.per_sample.forms.chunks import Chunks
from cockpit_lite.probes.per_sample.forms.dense import Dense
from cockpit_lite.probes.per_sample.forms.form import Form
from cockpit_lite.probes.per_sample.forms.outer_products import OuterProducts
from cockpit_lite.probes.per_sample.forms.table import Rows, Sum


def add(forms: Sequence[Form]) -> Form:
    """Return the form of the sum: the same samples passed through the same parameter several times.

    Cross terms are kept: further uses are further positions of one form, not further norms.
    """
    if len(forms) == 1:
        return forms[0]
    forms = [form.whole() if isinstance(form, Chunks) else form for form in forms]
    shape, batch_size = forms[0].shape, forms[0].batch_size
    outers = [form for form in forms if isinstance(form, OuterProducts)]
    tables = [form for form in forms if isinstance(form, Rows)]
    same_groups = len({form.inputs.shape[1] for form in outers}) == 1
    if len(outers) + len(tables) == len(forms) and (same_groups or not outers):
        outer = (
            OuterProducts(torch.cat([form.inputs for form in outers], 2), torch.cat([form.deltas for form in outers], 2), shape)
            if outers
            else None
        )
        table = (
            Rows(
                torch.cat([form.samples for form in tables]),
                torch.cat([form.rows for form in tables]),
                torch.cat([form.values for form in tables]),
                batch_size,
                shape,
            )
            if tables
            else None
        )
        if outer is None or table is None:
            return outer or table  # type: ignore[return-value]  # one of them is there
        if outer.inputs.shape[1] == 1 and len(shape) == 2:
            return Sum(table, outer)
    total = forms[0].gradients().clone()
    for form in forms[1:]:
        total += form.gradients()
    return Dense(total)
