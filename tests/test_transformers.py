"""Hugging Face Trainer: the loss is seen, a run resumes, RCA stops it; a plain one is warned."""

import importlib
import json
import logging
import sys

import pytest
import torch
from torch.utils.data import Dataset

from resilient_optim import ARS
from tests.helpers import CALM, bits, optimizer_bits
from tests.snippets import run_example

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments  # noqa: E402

from resilient_optim.integrations import transformers as integration  # noqa: E402
from resilient_optim.integrations.transformers import (  # noqa: E402
    ObservesLoss,
    ResilientTrainer,
    ResilientTrainerCallback,
    unwrap,
)

pytestmark = [
    # torch's own complaint about a loader that pins memory without a GPU
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
]

SIZE = 24


class Tokens(Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.rows = torch.randint(0, 20, (SIZE, 8), generator=generator)

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def language_model():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=20, n_positions=8, n_layer=1, n_embd=16, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)  # with its dropout: a resumed run has to restore the generators


class Plain(torch.nn.Module):
    """A model without keyword arguments: the Trainer itself divides by the micro-batches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(20, 20)

    def forward(self, input_ids, labels):
        logits = self.table(input_ids)
        return {"loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def calm(model):
    return ARS(adamw(model), **CALM)


def trainer(tmp_path, kind=ResilientTrainer, model=None, make=None, callbacks=(), ars=None, **args):
    model = language_model() if model is None else model
    defaults = {
        "per_device_train_batch_size": 4, "num_train_epochs": 2, "logging_steps": 1,
        "report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True,
        "learning_rate": 0.01,
    }  # fmt: skip
    options = {"optimizers": (None if make is None else make(model), None)}
    if ars is not None:
        options["ars"] = ars
    return kind(
        model,
        TrainingArguments(str(tmp_path), **(defaults | args)),
        train_dataset=Tokens(),
        eval_dataset=Tokens(),
        callbacks=list(callbacks),
        **options,
    )


def run(*args, **kwargs):
    running = trainer(*args, **kwargs)
    running.train()
    return running


def logged(running, key="loss"):
    return [entry[key] for entry in running.state.log_history if key in entry]


def seen(running):
    return unwrap(running.optimizer).loss_buffer.losses.values.tolist()


def test_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = run_example(integration)
    assert unwrap(example["trainer"].optimizer).counters["observed"] == 8
    assert example["callback"].rca.reading.step == 8


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("build", [language_model, Plain])
def test_quiet_run_is_the_base_optimizers_and_sees_what_is_logged(tmp_path, accumulate, build):
    args = {"gradient_accumulation_steps": accumulate}
    plain = run(tmp_path, Trainer, build(), adamw, **args)
    wrapped = run(tmp_path, ResilientTrainer, build(), calm, **args)
    ars = unwrap(wrapped.optimizer)
    assert ars.counters["observed"] == 12 / accumulate
    assert ars.counters["touched"] == ars.counters["unobserved"] == 0
    assert bits(wrapped.model) == bits(plain.model)
    assert optimizer_bits(ars) == optimizer_bits(plain.optimizer)
    assert seen(wrapped) == pytest.approx(logged(plain), rel=1e-4)
    assert 2.0 < seen(wrapped)[0] < 4.0  # not the sum of the micro-batches: log(20) is 3.0


def test_epoch_that_ends_amid_an_accumulation(tmp_path):
    wrapped = run(tmp_path, gradient_accumulation_steps=4)  # of six micro-batches: 4 + 2
    assert seen(wrapped) == pytest.approx(logged(wrapped), rel=1e-4)
    assert len(seen(wrapped)) == wrapped.state.global_step >= 2


def test_optimizer_of_the_trainer_is_wrapped(tmp_path):
    args = {"weight_decay": 0.1, "adam_beta2": 0.9}
    plain = run(tmp_path, Trainer, **args)
    wrapped = run(tmp_path, ars=CALM, **args)
    assert bits(wrapped.model) == bits(plain.model)
    assert len(unwrap(wrapped.optimizer).param_groups) == 2
    assert unwrap(wrapped.optimizer).config.z_threshold == CALM["z_threshold"]
    given = run(tmp_path, make=adamw)
    assert unwrap(given.optimizer).last.reason == "start-up"


def test_mixin_for_a_trainer_of_ones_own(tmp_path):
    class Mine(Trainer):
        def compute_loss(self, *args, **kwargs):
            return 2.0 * super().compute_loss(*args, **kwargs)

    class MyTrainer(ObservesLoss, Mine):
        pass

    plain, wrapped = run(tmp_path, Mine, make=adamw), run(tmp_path, MyTrainer, make=calm)
    assert seen(wrapped) == pytest.approx(logged(plain), rel=1e-4)
    assert bits(wrapped.model) == bits(plain.model)
    with pytest.raises(TypeError, match="optimizer must hold an ARS, got AcceleratedOptimizer"):
        run(tmp_path, MyTrainer, make=adamw)


def test_plain_trainer_is_warned_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "resilient_optim"):
        running = run(tmp_path, Trainer, make=calm)
    told = [r.message for r in caplog.records if r.name.startswith("resilient_optim")]
    assert len(told) == 1 and "without a loss" in told[0]
    assert unwrap(running.optimizer).counters["unobserved"] == 12


def test_metrics_are_logged_with_the_loss(tmp_path):
    class Without(ResilientTrainer):
        logs_metrics = False

    running = run(tmp_path)
    assert logged(running, "ars/observed") == list(range(1, 13))
    assert logged(running, "ars/loss") == pytest.approx(logged(running), rel=1e-4)
    assert "ars/loss" not in running.evaluate()
    assert logged(run(tmp_path, Without), "ars/loss") == []


def test_nan_is_seen_though_the_trainer_hides_it(tmp_path):
    class Broken(ResilientTrainer):
        calls = 0

        def compute_loss(self, *args, **kwargs):
            Broken.calls += 1
            return super().compute_loss(*args, **kwargs) * (torch.nan if self.calls == 3 else 1.0)

    running = run(tmp_path, Broken, max_grad_norm=0.0)
    assert unwrap(running.optimizer).counters["nonfinite"] == 1
    assert all(torch.isfinite(p).all() for p in running.model.parameters())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_run_is_the_run_that_was_not_interrupted(tmp_path, accumulate):
    def start(**kwargs):
        callback = ResilientTrainerCallback("loss", min_values=99)
        running = trainer(
            tmp_path, callbacks=[callback], gradient_accumulation_steps=accumulate,
            num_train_epochs=4, save_strategy="epoch",
        )  # fmt: skip
        running.train(**kwargs)
        return running, callback

    whole, callback = start()
    checkpoint = tmp_path / f"checkpoint-{12 // accumulate}"
    assert json.loads((checkpoint / "trainer_state.json").read_text())["epoch"] == 2.0
    resumed, second = start(resume_from_checkpoint=str(checkpoint))
    assert bits(resumed.model) == bits(whole.model)
    assert bits(resumed.optimizer.state_dict()) == bits(whole.optimizer.state_dict())
    assert unwrap(resumed.optimizer).counters == unwrap(whole.optimizer).counters
    assert bits(second.rca.state_dict()) == bits(callback.rca.state_dict())
    assert second.rca.reading.step == 24 / accumulate
    assert unwrap(whole.optimizer).counters["damped"] > 0


def test_run_interrupted_amid_an_accumulation_leaves_nothing_behind(tmp_path):
    class Interrupted(ResilientTrainer):
        calls = 0

        def training_step(self, *args, **kwargs):
            self.calls += 1
            if self.calls == 4:
                raise KeyboardInterrupt
            return super().training_step(*args, **kwargs)

    running = trainer(tmp_path, Interrupted, make=calm, gradient_accumulation_steps=2)
    with pytest.raises(KeyboardInterrupt):
        running.train()
    running.train()
    assert seen(running)[1:] == pytest.approx(logged(running), rel=1e-4)


def test_stops_on_the_logged_loss(tmp_path):
    def still(model):
        return ARS(torch.optim.SGD(model.parameters(), lr=0.0), **CALM)

    callback = ResilientTrainerCallback("loss")
    args = {"model": Plain(), "make": still, "learning_rate": 0.0, "num_train_epochs": 50}
    running = run(tmp_path, callbacks=[callback], **args)
    assert callback.rca.reading.recommendation == "stop"
    assert 12 <= running.state.global_step < 300
    # The next run starts anew.
    running.args.max_steps = 5
    running.train()
    assert callback.rca.reading.step == 5


def test_stops_on_an_evaluation_metric(tmp_path):
    class Level(ResilientTrainer):
        def evaluate(self, *args, **kwargs):
            self.log({"eval_score": 1.0 + (self.state.epoch if self.rises else 0.0)})
            return {"eval_score": 0.0}

    for rises in (True, False):
        Level.rises = rises
        callback = ResilientTrainerCallback("eval_score", mode="max", min_values=15)
        running = run(
            tmp_path, Level, callbacks=[callback], num_train_epochs=30, eval_strategy="epoch"
        )
        assert running.state.epoch == 30 if rises else 15 <= running.state.epoch < 30


def test_what_is_refused_and_what_is_told(tmp_path, caplog):
    with pytest.raises(TypeError, match="stop_on must be a key of the log, got 3"):
        ResilientTrainerCallback(3)
    with pytest.raises(TypeError, match="nonsense must be a setting"):
        ResilientTrainerCallback(nonsense=1)
    with pytest.raises(ValueError, match="mode must be one of"):
        ResilientTrainerCallback(mode="up")
    with pytest.raises(TypeError, match="ars must be a dict of arguments of ARS, got 3"):
        trainer(tmp_path, ars=3)
    with pytest.raises(ValueError, match="ars must be None beside an optimizer that is an ARS"):
        trainer(tmp_path, make=calm, ars={"seed": 1})
    with caplog.at_level(logging.WARNING, "resilient_optim"):
        callback = ResilientTrainerCallback("eval_los", train_on="train_loss")
        run(tmp_path, callbacks=[callback], max_steps=2)
    assert "stop_on must be a key that the Trainer logs in mid-run, got 'eval_los'" in caplog.text
    assert (
        "train_on must be a key that the Trainer logs in mid-run, got 'train_loss'" in caplog.text
    )


def test_missing_framework_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, integration.__name__)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install \"resilient-optim\[transformers\]\""):
        importlib.import_module(integration.__name__)
