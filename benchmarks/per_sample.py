"""What per-sample statistics cost: time of the whole step over a plain one, and peak memory over that of a plain one.

Plain steps, steps watched by the engine and steps of BackPACK's extensions take turns, one of each a round, so that what else the
machine does is the same for all; the figure is the median over the rounds of a step's time over that of the plain step beside it.
Processor time is counted. The engine is timed by itself, without the rest of a cockpit.

Memory is counted by torch's profiler, which sees every allocation of the CPU: the greatest sum during one step, and the model and
its batch, which were there before.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from backpack import backpack, extend
from backpack.extensions import BatchGrad, BatchL2Grad, SumGradSquared, Variance
from torch import Tensor, nn
from torch.optim import SGD
from torch.profiler import ProfilerActivity, profile

from benchmarks.nets import Net, nets, resnet
from benchmarks.page import arguments, publish, table
from cockpit_lite.probes.per_sample import PerSampleProbe

MEMORY_TARGET = 1.15
#: What the engine is asked for -> (products, squares, target for the time).
OURS: Mapping[str, tuple[bool, bool, float]] = {
    "norms": (False, False, 1.3),
    "norms, squares": (False, True, 1.6),
    "norms, squares, products": (True, True, 1.9),
}
THEIRS: Mapping[str, Callable[[], Any]] = {
    "BackPACK BatchGrad": BatchGrad,
    "BackPACK BatchL2Grad": BatchL2Grad,
    "BackPACK SumGradSquared": SumGradSquared,
    "BackPACK Variance": Variance,
}

Step = Callable[[], None]


class Transformer(nn.Module):
    """Four encoder layers over embedded tokens and positions, and a class for every token."""

    def __init__(self, vocabulary: int = 256, width: int = 128, length: int = 64) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, nhead=4, dim_feedforward=4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=4)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits, shape (N, T, vocabulary)."""
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        return self.head(self.encoder(self.tokens(tokens) + self.positions(positions)))


def timed_nets() -> list[Net]:
    """Return the nets, with the transformer that the target names and a ResNet."""
    found = [net for net in nets() if "transformer" not in net.name]
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(256, (16, 65), generator=draw)
    transformer = Net("transformer, d 128, 4 layers, 64 tokens, batch 16", Transformer, tokens[:, :-1], tokens[:, 1:])
    images, classes = torch.randn(32, 3, 16, 16, generator=draw), torch.randint(10, (32,), generator=draw)
    return [*found[:2], transformer, *found[2:], Net("ResNet-18, width 32, 16 x 16 images, batch 32", resnet, images, classes)]


def plain_step(net: Net, model: nn.Module) -> Step:
    """Return a training step."""
    optimizer = SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(net.inputs).flatten(0, -2), net.targets.flatten()).backward()
        optimizer.step()

    return step


def our_step(net: Net, model: nn.Module, products: bool, squares: bool) -> Step:
    """Return a training step with statistics, each checked against the gradient."""
    optimizer, parameters = SGD(model.parameters(), lr=1e-3), dict(model.named_parameters())
    probe = PerSampleProbe(model, parameters)

    def step() -> None:
        optimizer.zero_grad()
        probe.start(products, squares, one_backward=True)
        loss = F.cross_entropy(model(net.inputs).flatten(0, -2), net.targets.flatten())
        probe.backward_begins()
        loss.backward()
        probe.backward_ends()
        gradient = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
        found = probe.statistics(products, gradient if products else None, gradient, squares)
        assert not found.not_covered, found.not_covered
        probe.stop()
        optimizer.step()

    return step


def their_step(net: Net, model: nn.Module, extension: Callable[[], Any]) -> Step:
    """Return a training step with a BackPACK extension; the results are thrown away after each."""
    model, loss_function = extend(model), extend(nn.CrossEntropyLoss())
    optimizer = SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        made = extension()
        with backpack(made):
            loss_function(model(net.inputs), net.targets).backward()
        for parameter in model.parameters():
            delattr(parameter, made.savefield)
        optimizer.step()

    return step


def steps(net: Net) -> tuple[dict[str, Step], dict[str, str], dict[str, float]]:
    """Return the steps that can be taken, the reasons of those that cannot, and the cost of the first step of ours in seconds."""
    torch.manual_seed(0)
    model = net.factory()
    model(net.inputs)  # gives lazy layers their shape
    possible: dict[str, Step] = {"plain": plain_step(net, copy.deepcopy(model))}
    impossible: dict[str, str] = {}
    first: dict[str, float] = {}
    for name, (products, squares, _) in OURS.items():
        possible[name] = our_step(net, copy.deepcopy(model), products, squares)
    for name, extension in THEIRS.items():
        if net.targets.dim() > 1:
            impossible[name] = "no rule for LayerNorm and attention"
            continue
        possible[name] = their_step(net, copy.deepcopy(model), extension)
    for name, step in list(possible.items()):
        start = time.process_time()
        try:
            step()
        except Exception as error:  # whatever BackPACK raises for a net that it does not know
            if name not in THEIRS:
                raise
            impossible[name] = type(error).__name__
            del possible[name]
        first[name] = time.process_time() - start
        gc.collect()
    return possible, impossible, first


def ratios(possible: Mapping[str, Step], seconds: float) -> tuple[dict[str, float], float]:
    """Return the median time of every step over that of the plain one, and the plain one's seconds."""
    for step in possible.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in possible}
    until = time.monotonic() + seconds
    while len(times["plain"]) < 5 or time.monotonic() < until:
        for name, step in possible.items():
            start = time.process_time()
            step()
            times[name].append(time.process_time() - start)
    plain = times["plain"]
    found = {name: statistics.median(a / b for a, b in zip(taken, plain, strict=True)) for name, taken in times.items()}
    return found, statistics.median(plain)


def peak(step: Step) -> int:
    """Return the greatest sum of bytes that were allocated and not yet freed during a step."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(_sums(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def _sums(changes: Iterator[int]) -> Iterator[int]:
    total = 0
    yield total
    for change in changes:
        total += change
        yield total


def main() -> None:
    """Measure all nets and write the section."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="of timing for each net (default 15)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, misses = [], []
    for net in timed_nets():
        possible, impossible, first = steps(net)
        found, plain = ratios(possible, options.seconds)
        # the state before the step: the model, and its batch
        there = sum(p.nbytes for p in net.factory().parameters() if not isinstance(p, nn.UninitializedParameter))
        there += net.inputs.nbytes + net.targets.nbytes
        memory = {name: there + peak(step) for name, step in possible.items()}
        for name in [*OURS, *THEIRS]:
            if name in impossible:
                rows.append([net.name, name, impossible[name], "", ""])
                continue
            more = memory[name] / memory["plain"]
            cost, space = f"{found[name]:.2f}", f"{more:.2f}"
            if name in OURS:
                target = OURS[name][2]
                cost = f"**{cost}** ({'met' if found[name] <= target else f'missed: {target}'})"
                space = f"**{space}** ({'met' if more <= MEMORY_TARGET else f'missed: {MEMORY_TARGET}'})"
                misses += [name] if found[name] > target or more > MEMORY_TARGET else []
            rows.append([net.name, name, cost, space, f"{first[name] / plain:.1f}" if name in OURS else ""])
        rows.append([net.name, "plain", f"{1e3 * plain:.2f} ms", f"{memory['plain'] / 2**20:.1f} MB", ""])
    header = ["net", "what", "time of the step over plain", "peak memory over plain", "first step of all"]
    body = f"""
Plain steps, steps with our statistics and steps with BackPACK's take turns; medians of the ratios of processor time (SGD, one
thread). All of ours include the check of every parameter against the gradient. Memory: the greatest sum of allocations during a
step by torch's profiler, and the model and its batch. The first step of all, over plain, includes the passes that ask the graph
which rows belong to which sample; a structure is asked once.

{table(header, rows)}

{REASONS if misses else ""}
"""
    with contextlib.suppress(BrokenPipeError):
        publish("per_sample", "Per-sample statistics", body, options.print_only)


REASONS = """Why targets are missed. Time of an MLP: its step is so short that some forty small operations and the Python calls
around them, which do not depend on the size of the layers, take a third of it. Of a step, module hooks that do nothing take about
0.035, with hooks in the graph of the three layers 0.07; the kernels of norms and checks one after the other, without anything
around them, 0.17, since each finds the caches full of the step's own matrices; the rest is telling layers and samples apart. Sums
of squares are one more product as large as the weight gradient, a quarter of this step, and inner products with the gradient
another one, or those between the samples. LSTM: its kernel keeps the gates and what was sent back through time, but not the
gradients before the gates, which are as large as these: to make them of it in a dozen passes over memory takes a fifth of the
step, the inner products between times an eighth; sums of squares need every sample's gradient. ResNet: in its first stages every
sample's gradient of a kernel is needed for the norms already, which is one more weight gradient, but as matrix products, which
take up to a third longer than the kernels of torch for it; with sums of squares in all stages. Transformer: at 64 tokens the
inner products between the positions of a sample, a fifth of the multiplications of the step in small matrices, take a quarter of
it (one half of each matrix is the other one again, but leaving that out saves a tenth of them only); the rest are small
operations, and the Python around them, which find the caches full of the step's own matrices.
Memory of an MLP: sums of squares are as large as the parameters, which alone is 1.4 times the memory of its step."""


if __name__ == "__main__":
    main()
