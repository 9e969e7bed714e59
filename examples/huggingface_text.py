"""Hugging Face: one callback more, a small GPT-2 from its configuration on text that every machine has: the source of argparse.

Needs ``pip install "cockpit-lite[huggingface]"``. Nothing is downloaded.

Usage: python examples/huggingface_text.py [STEPS]
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from cockpit_lite.integrations.huggingface import CockpitCallback

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
set_seed(0)
text = inspect.getsource(argparse).encode("ascii", "replace")
blocks = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()[: len(text) // 64 * 64].view(-1, 64)
rows = [{"input_ids": block, "labels": block} for block in blocks]

model = GPT2LMHeadModel(
    GPT2Config(vocab_size=128, n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
)
with tempfile.TemporaryDirectory() as output:
    arguments = TrainingArguments(
        output,
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        eval_strategy="steps",
        eval_steps=max(steps // 4, 1),
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    callback = CockpitCallback()
    Trainer(model, arguments, train_dataset=rows[:-64], eval_dataset=rows[-64:], callbacks=[callback]).train()

assert callback.cockpit is not None
print(f"The report of the run: {callback.cockpit.folder / 'report.html'}")
