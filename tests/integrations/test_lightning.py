"""The callback inside Lightning's own Trainer: the same training, to the bit, and its readings."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cockpit_lite import load_run
from cockpit_lite.run import Run
from tests.integrations.same import Outcome

lightning = pytest.importorskip("lightning", reason="needs cockpit-lite[lightning]")
pytestmark = pytest.mark.filterwarnings("default")  # Lightning has advice of its own

STEPS = 16  # 8 batches of 32 in two epochs


class Net(lightning.LightningModule):
    def __init__(self, manual: bool = False, fail_at: int = -1, feature: str = "") -> None:
        super().__init__()
        self.feature = feature
        self.net = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))
        self.automatic_optimization = not manual
        self.fail_at = fail_at
        if "compile" in feature:
            self.net.compile(backend="aot_eager", fullgraph=feature.endswith("fullgraph"))

    def forward(self, x: Tensor) -> Tensor:
        if self.feature == "checkpointing":
            return self.net[4](checkpoint(self.net[2:4], self.net[:2](x), use_reentrant=False))
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        if self.trainer.global_step == self.fail_at:
            raise RuntimeError("mine")
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        if not self.automatic_optimization:
            self.update_by_hand(loss, index)
        return loss

    def update_by_hand(self, loss: Tensor, index: int) -> None:
        optimizer = self.optimizers()
        if self.feature != "accumulation" or index % 2 == 0:
            optimizer.zero_grad()
        self.manual_backward(loss)
        if self.feature == "clipping":
            self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
        if self.feature != "accumulation" or index % 2 == 1:
            optimizer.step()
        if self.feature == "scheduler":
            self.lr_schedulers().step()

    def validation_step(self, batch: Any, index: int) -> None:
        x, y = batch
        outputs = self(x)
        self.log("val_loss", nn.functional.cross_entropy(outputs, y))
        self.log("val_acc", (outputs.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class Gan(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = nn.Linear(2, 10), nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1))
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        real = batch[0]
        first, second = self.optimizers()
        fake = self.generator(torch.randn(len(real), 2))
        loss = (
            nn.functional.softplus(self.discriminator(fake.detach())).mean()
            + nn.functional.softplus(-self.discriminator(real)).mean()
        )
        second.zero_grad()
        self.manual_backward(loss)
        second.step()
        loss = nn.functional.softplus(-self.discriminator(fake)).mean()
        first.zero_grad()
        self.manual_backward(loss)
        first.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters(), lr=1e-3) for part in (self.generator, self.discriminator)]


def fit(folder: Path, watched: bool, make: Callable[[], Any] = Net, shuffle: bool = True, **settings: Any) -> Outcome:
    from cockpit_lite.integrations.lightning import CockpitCallback

    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(256, 10), torch.randint(0, 3, (256,)))
    training = torch.utils.data.DataLoader(data, batch_size=32, shuffle=shuffle)
    validation = torch.utils.data.DataLoader(data, batch_size=128)
    model = make()
    callbacks = [CockpitCallback(run=folder / "run", budget=None)] if watched else []
    alone = settings.pop("validated_alone", False)
    if settings.pop("averaged", False):
        callbacks.append(lightning.pytorch.callbacks.StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1))
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=callbacks, default_root_dir=folder, **{"max_epochs": 2, **settings},
    )  # fmt: skip
    has_validation = hasattr(model, "validation_step") and type(model).__name__ == "Net"
    if alone:
        trainer.validate(model, validation, verbose=False)
    trainer.fit(model, training, validation if has_validation else None)
    if alone:
        trainer.validate(model, validation, verbose=False)
    return Outcome(model)


CASES: dict[str, dict[str, Any]] = {
    "automatic": {},
    "manual": {"make": lambda: Net(manual=True)},
    "two optimizers": {"make": Gan},
    "validated before and after": {"validated_alone": True},
    "accumulation": {"accumulate_grad_batches": 4},
    "clipping": {"gradient_clip_val": 0.1},
    "bfloat16": {"precision": "bf16-mixed"},
    "anomaly detection": {"detect_anomaly": True},
    "compile": {"make": lambda: Net(feature="compile")},
    "compile fullgraph": {"make": lambda: Net(feature="compile fullgraph")},
    "activation checkpointing": {"make": lambda: Net(feature="checkpointing")},
    "averaged weights": {"averaged": True},
    "manual accumulation": {"make": lambda: Net(manual=True, feature="accumulation")},
    "manual clipping": {"make": lambda: Net(manual=True, feature="clipping")},
    "manual scheduler": {"make": lambda: Net(manual=True, feature="scheduler")},
    "manual bfloat16": {"make": lambda: Net(manual=True), "precision": "bf16-mixed"},
    "manual compile": {"make": lambda: Net(manual=True, feature="compile")},
    "manual compile fullgraph": {"make": lambda: Net(manual=True, feature="compile fullgraph")},
    "manual activation checkpointing": {"make": lambda: Net(manual=True, feature="checkpointing")},
    "manual averaged weights": {"make": lambda: Net(manual=True), "averaged": True},
}


@pytest.mark.parametrize("case", CASES)
def test_training_is_the_same(case: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    plain, watched = fit(tmp_path, False, **CASES[case]), fit(tmp_path, True, **CASES[case])
    plain.assert_same(watched)
    run = load_run(tmp_path / "run")
    assert run.info["status"] == "completed"
    assert (tmp_path / "run" / "report.html").is_file()
    steps = {"accumulation": STEPS // 4, "two optimizers": 2 * STEPS, "manual accumulation": STEPS // 2}.get(case, STEPS)
    if case == "manual averaged weights":  # Lightning goes through a third epoch for batch normalisation, and steps are taken
        steps = STEPS + 8
    assert len(run.series("loss")[0]) == steps
    if "compile" in case:
        assert "norm_test" in run.not_measured
    else:
        assert "norm_test" in run.names, run.not_measured.get("norm_test")
    assert not [alert for alert in run.alerts if alert.severity == "error"], [str(alert) for alert in run.alerts]


def without_dropout() -> Net:
    model = Net()
    model.net[3].p = 0.0
    return model


def test_readings_are_those_of_the_same_loop_by_hand(tmp_path: Path) -> None:
    from cockpit_lite import Cockpit

    fit(tmp_path, True, make=without_dropout, shuffle=False, gradient_clip_val=0.1)
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(256, 10), torch.randint(0, 3, (256,)))
    training = torch.utils.data.DataLoader(data, batch_size=32)
    model = without_dropout()
    (optimizer,), (scheduler,) = model.configure_optimizers()
    with Cockpit(model, optimizer, run=tmp_path / "by hand", budget=None):
        for _ in range(2):
            for x, y in training:
                loss = nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
            scheduler.step()
    inside, by_hand = load_run(tmp_path / "run"), load_run(tmp_path / "by hand")
    for name in ("loss", "learning_rate", "grad_norm_clipped", "norm_test", "update_size"):
        first = inside.series(name), by_hand.series(name)
        np.testing.assert_array_equal(first[0][0][:8], first[1][0][:8], err_msg=name)
        np.testing.assert_allclose(first[0][1][:8], first[1][1][:8], rtol=1e-5, err_msg=name)


def test_validation_is_recorded(tmp_path: Path) -> None:
    fit(tmp_path, True)
    run: Run = load_run(tmp_path / "run")
    assert run.series("validation_loss")[0].tolist() == [7, 15]
    assert run.series("validation_accuracy")[0].tolist() == [7, 15]


def test_an_exception_passes_and_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mine"):
        fit(tmp_path, True, make=lambda: Net(fail_at=5))
    run = load_run(tmp_path / "run")
    assert run.info["status"] == "failed"
    assert "mine" in run.info["exception"]
    assert len(run.series("loss")[0]) == 5
    assert (tmp_path / "run" / "report.html").is_file()


def test_what_cannot_be_watched_is_trained_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, True)
    assert any("cannot be watched" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("optimization", ["automatic", "manual"])
def test_checkpoints_hold_nothing_of_ours(optimization: str, tmp_path: Path) -> None:
    from cockpit_lite.integrations.lightning import CockpitCallback

    model = Net(manual=optimization == "manual")
    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(64, 10), torch.randint(0, 3, (64,))), batch_size=32
    )
    callback = CockpitCallback(run=tmp_path / "run", budget=None)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path, callbacks=[callback]
    )
    trainer.fit(model, data, data)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    content = torch.load(checkpoint, weights_only=False)
    assert not [key for key in content["callbacks"] if "Cockpit" in key]
    # and one can go on from it, into a run of its own
    found = []
    for callbacks in ([], [CockpitCallback(run=tmp_path / "resumed", budget=None)]):
        resumed = lightning.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path,
            enable_checkpointing=False, callbacks=callbacks,
        )  # fmt: skip
        torch.manual_seed(0)  # for dropout
        found.append(Net(manual=optimization == "manual"))
        resumed.fit(found[-1], data, data, ckpt_path=checkpoint)
        assert resumed.global_step == 4
    assert len(load_run(tmp_path / "resumed").series("loss")[0]) == 2
    assert all(map(torch.equal, *(model.state_dict().values() for model in found)))
    assert not all(map(torch.equal, found[-1].state_dict().values(), content["state_dict"].values()))
