"""What the first measurement of dear instruments takes, guessed from what they need: where a budget is tight they wait for it.

In training steps of the net, forward, backward and update. Measured on five nets (benchmarks, Curvature) a search for eigenvalues
took 14 to 39 of them while everything was cold, all that goes by sampled labels 3 to 6, the tangent kernel of a batch 4 to 6, the
batch at other weights 3 to 6. A guess that is wrong moves the first measurement, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cockpit_lite.instrument import CURVATURE, PROBE_BATCH, REPLAY, SAMPLED_CURVATURE, Instrument

#: Need -> training steps that the first measurement takes of all instruments together that have it; the first need counts.
TRAINING_STEPS = {SAMPLED_CURVATURE: 5.0, CURVATURE: 25.0, PROBE_BATCH: 5.0, REPLAY: 5.0}


def first_costs(instruments: Iterable[Instrument], account: Callable[[Instrument], str]) -> list[tuple[float, frozenset[str]]]:
    """Return what can wait: training steps, and the budget accounts that are measured with them for the first time.

    Only what is in no smaller preset than "full" can, and takes passes of its own: everything else belongs to the first step.
    """
    lots: dict[str, set[str]] = {}
    cannot_wait = set()
    for instrument in instruments:
        need = next((need for need in TRAINING_STEPS if need in instrument.needs), None)
        if need is None or instrument.preset != "full":
            cannot_wait.add(account(instrument))
        else:
            lots.setdefault(need, set()).add(account(instrument))
    found = [(TRAINING_STEPS[need], frozenset(accounts - cannot_wait)) for need, accounts in lots.items()]
    return [(steps, accounts) for steps, accounts in found if accounts]
