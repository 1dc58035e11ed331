"""A step of ARS on a GPU without waiting for it: memory, decision and actuation stay there.

The host queues the kernels and goes on. What was decided arrives in pinned memory a step or more
later; nothing here waits for the device unless it is asked for the whole memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from . import distributed
from .actuation import ParamGroups, writable_gradients
from .decision import APPLY, DAMP, SKIP, Decision
from .delegation import without_momentum
from .kernels import PhiloxNoise, Table
from .loss_buffer import Array
from .memory import COUNTERS, Memory
from .policy import DefaultConfig


class DeviceGuard:
    """ARS's memory and judgement in the memory of a GPU.

    Args:
        base: the base optimizer; one that can leave a step out on the device (`found_inf`).
        config: settings of the default policy.
        memory: what is known of the run so far.
        seed: of the jitter.
    """

    def __init__(self, base: Optimizer, config: Any, memory: Memory, seed: int) -> None:
        groups = base.param_groups
        device: torch.device = next(p.device for group in groups for p in group["params"])
        self._build(config, device, PhiloxNoise(seed).key, memory, len(groups))

    def _build(
        self,
        config: DefaultConfig,
        device: torch.device,
        noise_key: int,
        memory: Memory,
        groups: int,
    ) -> None:
        self.config = config
        self.device = device
        self.noise_key = noise_key
        self._allocate(memory, groups)

    def _allocate(self, memory: Memory, groups: int) -> None:
        from .kernels import guard  # Triton is loaded only where it is used

        def empty(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        values = [getattr(self.config, name) for name in guard.SETTINGS]
        settings = [math.inf if value is None else float(value) for value in values]
        self.guard = guard.Guard(
            state=empty(len(memory.pack(1)[0]) - 2),
            first_lrs=empty(groups),
            proven_lrs=empty(groups),
            settings=torch.tensor(settings, dtype=torch.float64, device=self.device),
            lrs=empty(groups),
            told=empty(len(guard.TELLS) + 2),
            skip=empty(dtype=torch.float32),
            step_lrs=empty(groups, dtype=torch.float32),
            step=empty(dtype=torch.int64),
        )
        pinned = self.device.type == "cuda"
        self._arriving = torch.zeros(len(self.guard.told), dtype=torch.float64, pin_memory=pinned)
        self._told = self._arriving.numpy()
        self._loss = empty()
        self._no_sums, self._no_numels = empty(0), empty(0, dtype=torch.int64)
        self._no_factors = empty(0, dtype=torch.float32)
        self._lrs: list[float | None] = [None] * groups
        self._table: Table | None = None
        self._captured: list[tuple[Table, Tensor, Tensor]] = []
        self.load(memory)

    def __getstate__(self) -> tuple[Any, ...]:
        kept = self.config, self.device, self.noise_key
        return *kept, self.memory(), len(self.guard.lrs)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._build(*state)

    @staticmethod
    def is_being_captured() -> bool:
        """Whether a CUDA graph is being made of this very step."""
        return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()

    @staticmethod
    def refuse_capture(trying: bool) -> None:
        """Raise a RuntimeError if a good state is being tried: its steps are not to be replayed."""
        if trying:
            raise RuntimeError(
                "a CUDA graph must not be captured while ARS tries a good state; take steps until "
                "optimizer.last.reason is no longer 'probe', got one of these"
            )

    @property
    def tensors(self) -> list[Tensor]:
        """Where its memory is."""
        return [self.guard.state, self.guard.first_lrs, self.guard.proven_lrs]

    def load(self, memory: Memory, latest: Decision | None = None) -> None:
        """Take over a memory, in place: a captured CUDA graph goes on with it.

        Args:
            memory: to go on with.
            latest: what `latest` is to be until the next decision arrives.
        """
        packed = np.stack(memory.pack(len(self.guard.lrs)))
        self.guard.state.copy_(torch.from_numpy(packed[0, :-2]))
        self.guard.first_lrs.copy_(torch.from_numpy(packed[:, -2]))
        self.guard.proven_lrs.copy_(torch.from_numpy(packed[:, -1]))
        self._arriving.zero_()
        self.latest: Decision | None = latest
        self.counters = Counter(memory.counters)
        self.skips_in_a_row = memory.skips_in_a_row
        self.queued = memory.counters["observed"]
        self._begins = True

    def memory(self) -> Memory:
        """The memory as it is after all steps queued so far; waits for them."""
        return Memory.unpack(packed([tensor.cpu() for tensor in self.tensors]), self.config.history)

    def step(
        self,
        base: Any,
        loss: float | Tensor,
        process_group: Any,
        take: Callable[[], None],
    ) -> None:
        """Queue the judgement of a step and the step itself.

        Args:
            base: the base optimizer.
            loss: of the step, on any device.
            process_group: see `ARS`.
            take: the base optimizer's step.

        Raises:
            RuntimeError: a CUDA graph is being captured of what only a first step does.
        """
        new = without_momentum(base)
        if new and self.is_being_captured():
            raise RuntimeError(
                "parameters of SGD must have a momentum when a CUDA graph is captured, got "
                f"{len(new)} that have not stepped; take a step before the capture"
            )
        self._judge(base.param_groups, loss, process_group)
        self.queued += 1
        # SGD would go on with a momentum that nobody has written if its first step is left out.
        # Minus nothing plus the gradient is the gradient, to the bit: what torch begins with.
        for group, p in new:
            if not group["dampening"]:
                base.state[p]["momentum_buffer"] = torch.full_like(p.grad, -0.0)
        # A first gradient is not dampened: whether this is the first step is then decided here.
        if any(group["dampening"] for group, _ in new) and bool(self.guard.skip):
            return
        with self._carried_out(base):
            take()

    def _judge(self, groups: ParamGroups, loss: float | Tensor, process_group: Any) -> None:
        from .kernels import gate, guard, norm

        config = self.config
        acts_on_gradients = config.norm_guard or config.jitter_scale > 0.0
        table = self._table_of(writable_gradients(groups)) if acts_on_gradients else None
        sums, numels, phi, sigma = self._no_sums, self._no_numels, *[self._no_factors] * 2
        if table is not None:
            sums, _ = norm.square_sums(table)
            numels, phi, sigma = table.numel, self._phi, self._sigma
        observed, agreed = self._observed(loss), None
        if process_group is not False and distributed.ranks(process_group) > 1:
            both = torch.stack([observed, sums.sum().sqrt()])
            observed, agreed = distributed.mean_or_nan(both, process_group).unbind()
        self._see_lrs(groups)
        guard.judge_(
            self.guard,
            observed,
            sums,
            numels,
            phi,
            sigma,
            config.history,
            config.norm_guard,
            agreed,
        )
        if table is not None:
            gate.gate_(table, phi, sigma, self.noise_key, self.guard.step)
        self._arriving.copy_(self.guard.told, non_blocking=True)

    def _table_of(self, grads: list[Tensor]) -> Table | None:
        if not grads:
            return None
        capturing = self.is_being_captured()
        if self._table is None or not self._table.fits(grads):
            if capturing:  # the table would be copied at each replay, and be empty until then
                raise RuntimeError(
                    "gradients must stay where they are when a CUDA graph is captured, got others "
                    "than in the step before; use zero_grad(set_to_none=False) from there on"
                )
            is_captured = any(self._table is table for table, _, _ in self._captured)
            if self._table is None or is_captured or not self._table.follow(grads):
                self._table = Table.of(grads)
                self._phi = torch.ones(len(grads), dtype=torch.float32, device=self.device)
                self._sigma = torch.zeros_like(self._phi)
        if capturing:  # its replays read them, whatever other steps do meanwhile
            self._captured.append((self._table, self._phi, self._sigma))
        return self._table

    def _observed(self, loss: float | Tensor) -> Tensor:
        # Always the same memory: for another type the kernel would be compiled anew.
        if isinstance(loss, Tensor):
            scalar = loss if loss.dim() == 0 else loss.reshape(())
            return self._loss.copy_(scalar, non_blocking=True)
        return self._loss.fill_(loss)

    def _see_lrs(self, groups: ParamGroups) -> None:
        for i, group in enumerate(groups):
            lr, initial = group["lr"], group.get("initial_lr")
            if self._begins and isinstance(initial, float):  # see `memory.initial_lr`
                self.guard.proven_lrs[i].nan_to_num_(nan=initial)
            if isinstance(lr, Tensor):
                self.guard.lrs[i].copy_(lr.reshape(()), non_blocking=True)
                self._lrs[i] = None
            elif lr != self._lrs[i]:
                self.guard.lrs[i].fill_(lr)
                # What is captured is done at each replay, but not now.
                self._lrs[i] = None if self.is_being_captured() else lr
        self._begins = False

    @contextmanager
    def _carried_out(self, base: Any) -> Iterator[None]:
        """While the base steps: its learning rates are as decided, and so is whether it steps."""
        groups = base.param_groups
        before = [group["lr"] for group in groups]
        base.grad_scale, base.found_inf = None, self.guard.skip
        try:
            for group, lr in zip(groups, self.guard.step_lrs.unbind(), strict=True):
                group["lr"] = lr
            yield
        finally:
            del base.grad_scale, base.found_inf
            for group, lr in zip(groups, before, strict=True):
                group["lr"] = lr

    def look(self) -> None:
        """Bring `latest`, `counters` and `skips_in_a_row` up to what has arrived; never waits."""
        from .kernels import guard

        # The device writes upwards and this reads downwards: if both ends are equal, so is the step
        # that everything between them belongs to.
        last = float(self._told[-1])
        between = self._told[1:-1].tolist()
        if last == 0.0 or float(self._told[0]) != last:
            return
        told = dict(zip(guard.TELLS, between, strict=True))
        self.latest = _decision(told, guard.REASONS[int(told["reason"])], self.config.norm_guard)
        self.counters = Counter({name: int(told[name]) for name in COUNTERS})
        self.skips_in_a_row = int(told["skips_in_a_row"])
        self.queued = max(self.queued, int(told["step"]) + 1)  # replays of a CUDA graph count, too


def packed(tensors: list[Tensor]) -> list[Array]:
    """`Memory.pack` of what `DeviceGuard.tensors` held, brought to the host."""
    state, first_lrs, proven_lrs = (tensor.numpy() for tensor in tensors)
    pairs = zip(first_lrs, proven_lrs, strict=True)
    return [np.append(state, pair) for pair in pairs]


def _decision(told: dict[str, float], reason: str, measured: bool) -> Decision:
    damped = told["update_scale"] < 1.0 or told["grad_scale"] < 1.0
    action = SKIP if told["skip"] else DAMP if damped else APPLY
    return Decision(
        int(told["step"]), action, reason, told["loss"], told["grad_norm"] if measured else None,
        told["z"], told["rho"], told["psi"], told["phi"], told["chi"], told["update_scale"],
        told["grad_scale"], new_level=bool(told["new_level"]),
        abnormal_norm=bool(told["abnormal_norm"]),
    )  # fmt: skip
