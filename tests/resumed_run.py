"""A training program that keeps checkpoints, and what kills it: `python -m tests.resumed_run`.

It is started once and forks a process for each attempt, which knows nothing but what is on disk:
importing torch takes longer than a hundred steps. The arguments are a folder and the kills of each
run: `-` begins another run, `e7` is at the seventh operation on a file, `s12+0.002` two thousandths
of a second after the twelfth step.
"""

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from resilient_optim import ARS, Snapshots

with contextlib.suppress(ModuleNotFoundError):  # before anything is seeded: an import may draw
    import pytorch_optimizer
    import schedulefree

STEPS, NAN_WEIGHTS, NAN_BATCH, OUTLIER = 160, 70, 100, 120


def averaged(params):
    optimizer = schedulefree.AdamWScheduleFree(params, warmup_steps=10)
    optimizer.train()
    return optimizer


BASES = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2),
    "adamw-fused": lambda params: torch.optim.AdamW(params, lr=1e-2, fused=True),
    "amsgrad": lambda params: torch.optim.AdamW(params, lr=1e-2, amsgrad=True),
    "sgd": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9),
    "schedulefree": averaged,
    "lion": lambda params: pytorch_optimizer.Lion(params, lr=1e-3),
}


class Run:
    """Dropout, batch norm, a schedule of lr and betas, data from three random generators."""

    def __init__(self, directory, base="adamw", schedule=True, scaler=0, micro=1, seed=0):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 1)
        )
        made = BASES[base](self.model.parameters())
        settings = Snapshots(every=8, directory=str(directory))
        self.optimizer = ARS(made, model=self.model, snapshot=settings)
        self.attached = {}
        if schedule:
            self.attached["scheduler"] = torch.optim.lr_scheduler.OneCycleLR(
                self.optimizer, max_lr=1e-2, total_steps=STEPS + 1, cycle_momentum="adam" in base
            )
        if scaler:
            self.attached["scaler"] = torch.amp.GradScaler(
                "cpu", init_scale=2.0**scaler, growth_interval=10
            )
        self.optimizer.attach(**self.attached)
        self.micro, self.losses, self.after_step = micro, [], int

    def loss(self, index):
        x = torch.randn(16, 6) * (0.5 + random.random())
        y = x.sum(1, keepdim=True) + torch.from_numpy(np.random.randn(16, 1)).float() * 0.1
        if index == NAN_BATCH:
            x[0, 0] = torch.nan
        return (self.model(x) - y).square().mean() * (1e4 if index == OUTLIER else 1.0)

    def train(self, first, last, faults=True):
        """The loop as a user writes it, and somebody who overwrites a weight."""
        scaler, scheduler = self.attached.get("scaler"), self.attached.get("scheduler")
        for index in range(first, last):
            mean = 0.0
            for _ in range(self.micro):
                loss = self.loss(index if faults else -1) / self.micro
                (loss if scaler is None else scaler.scale(loss)).backward()
                mean += loss.item()
            if scaler is None:
                self.optimizer.step(mean)
            else:
                self.optimizer.report(mean)
                scaler.step(self.optimizer)
                scaler.update()
            self.optimizer.zero_grad()
            if scheduler is not None:
                scheduler.step()
            self.losses.append(mean)
            self.after_step()
            if faults and index == NAN_WEIGHTS:
                with torch.no_grad():
                    self.model[0].weight.fill_(torch.nan)
        return self

    def settle(self):
        """Wait until all that is to be written has been."""
        writer = self.optimizer._breaker.checkpoints._writer
        if writer is not None:
            writer.submit(int).result()
        return self

    def state(self):
        """Everything that must not depend on whether the run was killed."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "attached": {name: thing.state_dict() for name, thing in self.attached.items()},
            "counters": dict(self.optimizer.counters),
            "rng": [torch.get_rng_state(), np.random.random(), random.random()],
        }


class Loader:
    """A data loader that knows where it is, as torchdata's StatefulDataLoader does."""

    def __init__(self):
        self.taken = 0

    def state_dict(self):
        return {"taken": self.taken}

    def load_state_dict(self, state):
        self.taken = state["taken"]


def files(directory):
    """Names of the checkpoints, oldest first."""
    return sorted(path.name for path in Path(directory).glob("step*.pt"))


def _die_at(operation, folder):
    """Kill this process at an operation on a file in the folder, counted from 1."""
    seen = 0

    def hook(event, args):
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.scandir", "os.listdir", "os.mkdir"):
            if args and str(args[0]).startswith(folder):
                seen += 1
                if seen == operation:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _attempt(folder, kill, pipe):
    run = Run(f"{folder}/checkpoints")
    start = run.optimizer.resume()
    with open(f"{folder}/starts.txt", "a") as file:
        file.write(f"{start}\n")
    if kill.startswith("e"):
        _die_at(int(kill[1:]), f"{folder}/checkpoints")
    run.after_step = lambda: os.write(pipe, b".")
    run.train(start, STEPS)
    torch.save(run.state(), f"{folder}/result.pt")


def _until_done(folder, kills):
    """Attempts until one comes to an end; the last line of `starts.txt` says how many did not."""
    os.makedirs(folder)
    killed = 0
    for kill in (*kills, "none"):
        inlet, outlet = os.pipe()
        child = os.fork()
        if not child:
            os.close(inlet)
            try:
                _attempt(folder, kill, outlet)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        os.close(outlet)
        if kill.startswith("s"):
            steps, seconds = kill[1:].split("+")
            for _ in range(int(steps)):
                os.read(inlet, 1)
            time.sleep(float(seconds))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(inlet)
        if not os.WIFSIGNALED(status):
            assert status == 0, "an attempt failed"
            break
        killed += 1
    with open(f"{folder}/starts.txt", "a") as file:
        file.write(f"{killed}\n")


def main(folder, *kills):
    """Each run in a folder of its own, named by its number."""
    # Much of torch is imported only when it is first used: once for all attempts.
    Run(f"{folder}/warm").train(0, 20).settle()
    for number, part in enumerate(" ".join(kills).split("-")):
        _until_done(f"{folder}/{number}", part.split())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
