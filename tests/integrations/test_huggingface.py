"""The callback inside Hugging Face's own Trainer: the same training, to the bit, and its readings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cockpit_lite import load_run
from tests import features
from tests.integrations.same import Outcome

transformers = pytest.importorskip("transformers", reason="needs cockpit-lite[huggingface]")
pytest.importorskip("accelerate", reason="needs cockpit-lite[huggingface]")
pytestmark = pytest.mark.filterwarnings("default")  # the libraries have advice of their own

STEPS = 6


def language_model() -> Any:
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def classifier() -> Any:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=3
    )
    return transformers.BertForSequenceClassification(config)


def train(
    folder: Path, watched: bool, make: Any = language_model, fail_at: int = -1, checkpoint: str | None = None, **settings: Any
) -> Outcome:
    from cockpit_lite.integrations.huggingface import CockpitCallback, CockpitTrainer

    class Failing(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == fail_at:
                raise RuntimeError("mine")

    torch.manual_seed(0)
    model = make()
    tokens = torch.randint(50, (64, 16))
    labels = tokens if make is language_model else torch.randint(3, (64,))
    data = [{"input_ids": row, "labels": label} for row, label in zip(tokens, labels, strict=True)]
    arguments = transformers.TrainingArguments(
        str(folder / "output"), per_device_train_batch_size=8, max_steps=STEPS, report_to=[], use_cpu=True,
        eval_strategy="steps", eval_steps=3, disable_tqdm=True, logging_strategy="no", seed=3,
        **{"save_strategy": "no", **settings},
    )  # fmt: skip
    callbacks = [CockpitCallback(run=folder / "run", budget=None)] if watched else []
    trainer = CockpitTrainer(model, arguments, train_dataset=data, eval_dataset=data[:16], callbacks=[*callbacks, Failing()])
    trainer.train(resume_from_checkpoint=checkpoint)
    return Outcome(model)


CASES: dict[str, dict[str, Any]] = {
    "language model": {},
    "classifier": {"make": classifier},
    "label smoothing": {"make": classifier, "label_smoothing_factor": 0.1},
    "accumulation": {"gradient_accumulation_steps": 2},
    "bfloat16": {"make": classifier, "bf16": True},
    "language model in bfloat16": {"bf16": True},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "no clipping": {"max_grad_norm": 0.0},
    "compile": {"make": classifier, "torch_compile": True, "torch_compile_backend": "aot_eager"},
}


@pytest.mark.parametrize("case", CASES)
def test_training_is_the_same(case: str, tmp_path: Path) -> None:
    plain, watched = train(tmp_path, False, **CASES[case]), train(tmp_path, True, **CASES[case])
    plain.assert_same(watched)
    run = load_run(tmp_path / "run")
    assert run.info["status"] == "completed"
    assert len(run.series("loss")[0]) == STEPS
    assert run.series("validation_loss")[0].tolist() == [2, 5]
    if case == "compile":
        assert "norm_test" in run.not_measured
    else:
        assert "norm_test" in run.names, run.not_measured.get("norm_test")
    assert not [alert for alert in run.alerts if alert.severity == "error"], [str(alert) for alert in run.alerts]


def test_an_exception_passes_and_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mine"):
        train(tmp_path, True, fail_at=4)
    run = load_run(tmp_path / "run")
    assert run.info["status"] == "failed"
    assert len(run.series("loss")[0]) == 4
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_plain_trainer_that_fails_has_its_report_when_the_callback_goes(tmp_path: Path) -> None:
    from cockpit_lite.integrations.huggingface import CockpitCallback

    class Failing(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise RuntimeError("mine")

    arguments = transformers.TrainingArguments(
        str(tmp_path / "output"), per_device_train_batch_size=8, max_steps=3, report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    tokens = torch.randint(50, (16, 8))
    callback = CockpitCallback(run=tmp_path / "run", budget=None)
    trainer = transformers.Trainer(
        language_model(), arguments, train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        callbacks=[callback, Failing()],
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="mine"):
        trainer.train()
    assert load_run(tmp_path / "run").info["status"] == "running"
    callback._finish()  # as the interpreter does at its end
    assert load_run(tmp_path / "run").info["status"] == "completed"


def test_a_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 3}
    train(tmp_path, False, **settings)
    checkpoint = str(tmp_path / "output" / "checkpoint-3")
    plain = train(tmp_path, False, checkpoint=checkpoint, **settings)
    watched = train(tmp_path, True, checkpoint=checkpoint, **settings)
    plain.assert_same(watched)
    assert len(load_run(tmp_path / "run").series("loss")[0]) == STEPS - 3


@pytest.mark.parametrize("feature", [feature for feature in features.FEATURES if feature not in ("fp16", "torch.func")])
def test_accelerate(feature: str, tmp_path: Path) -> None:
    """A loop of one's own around accelerate: the wrapped optimizer is unwrapped, accumulated and skipped steps are told apart."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    from cockpit_lite import Cockpit

    def accelerator() -> Accelerator:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        precision = "bf16" if feature == "bf16" else "no"
        return Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=1 + (feature == "accumulation"))

    def watch(model: Any, optimizer: Any, **settings: Any) -> Cockpit:
        return Cockpit(model, optimizer, run=tmp_path / "run", budget=None, **settings)

    plain = Outcome(features.train(feature, accelerator=accelerator()))
    plain.assert_same(Outcome(features.train(feature, watch, accelerator())))
    run = load_run(tmp_path / "run")
    assert len(run.series("loss")[0]) == features.FEATURES[feature]
    if not feature.startswith("compile"):
        assert "norm_test" in run.names, run.not_measured.get("norm_test")
    assert not [alert for alert in run.alerts if alert.severity == "error"], [str(alert) for alert in run.alerts]
