"""One engine for several trainers, each in a thread of its own and with an adapter of its own.

Whoever asks for a step waits until everyone who has running requests asks as well; then one step advances all of them
in one batch. A trainer that updates its weights, or waits for an environment, has no running requests and holds nobody
up. All computing is done one after the other: a step, or one trainer's turn (`turn`), which goes first.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace

from chatgrpo.inference.activation_tape import ActivationTape
from chatgrpo.inference.adapters import LoraAdapter
from chatgrpo.inference.admission import ROLLOUT_PATIENCE
from chatgrpo.inference.engine import GenerationRequest, TokenEvent
from chatgrpo.inference.shared_base import SharedBase
from chatgrpo.inference.torch_engine import TorchEngine


class SharedEngine:
    """On the fast path: `base` must have fused weights."""

    def __init__(self, base: SharedBase, *, max_batch_size: int) -> None:
        self.base = base
        self._engine = TorchEngine(
            base.loaded.model,
            base.loaded.template,
            max_batch_size=max_batch_size,
            weights=base.weights,
            patience=ROLLOUT_PATIENCE,
        )
        self._changed = threading.Condition()
        self._members: dict[str, MemberEngine] = {}
        self._counting = threading.Lock()
        self._num_turns_wanted = 0
        self._failure: BaseException | None = None

    def join(self, name: str, adapter: LoraAdapter) -> MemberEngine:
        """An engine that speaks with `adapter`, whose tensors its trainer changes in place."""
        with self._changed:
            assert name not in self._members
            self._engine.set_adapter(name, adapter)
            member = self._members[name] = MemberEngine(self, name, adapter)
            return member

    def leave(self, name: str) -> None:
        with self._changed:
            if self._members.pop(name, None) is not None:
                self._engine.drop_adapter(name)
            self._changed.notify_all()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Within it nobody else computes."""
        with self._counting:
            self._num_turns_wanted += 1
        with self._changed:
            with self._counting:
                self._num_turns_wanted -= 1
            try:
                yield
            finally:
                self._changed.notify_all()

    def _everyone_waits(self) -> bool:
        return not self._num_turns_wanted and all(
            member.waits and not member.mail for member in self._members.values() if member.has_work
        )

    def _step(self) -> None:
        try:
            events = self._engine.step()
        except BaseException as error:
            # What the engine holds is lost for all of them.
            self._failure = error
            raise
        finally:
            self._changed.notify_all()
        for event in events:
            name, _, request_id = event.request_id.partition("|")
            self._members[name].hear(replace(event, request_id=request_id))


class MemberEngine:
    """Implements `Engine` for one trainer's thread."""

    def __init__(self, shared: SharedEngine, name: str, adapter: LoraAdapter) -> None:
        self._shared, self._name, self._adapter = shared, name, adapter
        self._running: set[str] = set()
        self.mail: list[TokenEvent] = []
        self.waits = False
        self.weight_version = 0

    @property
    def has_work(self) -> bool:
        return bool(self._running)

    def add(self, request: GenerationRequest) -> None:
        continues = None if request.continues is None else self._global(request.continues)
        with self._shared._changed:
            self._shared._engine.add(
                replace(request, request_id=self._global(request.request_id), continues=continues, adapter=self._name)
            )
            self._running.add(request.request_id)

    def cancel(self, request_id: str) -> None:
        with self._shared._changed:
            self._shared._engine.cancel(self._global(request_id))
            self._running.discard(request_id)
            self._shared._changed.notify_all()

    def step(self) -> list[TokenEvent]:
        shared = self._shared
        with shared._changed:
            self.waits = True
            try:
                while self._running and not self.mail:
                    if shared._failure is not None:
                        raise RuntimeError("the shared engine failed") from shared._failure
                    if shared._everyone_waits():
                        shared._step()
                    else:
                        shared._changed.wait()
            finally:
                self.waits = False
            heard, self.mail = self.mail, []
            return heard

    def hear(self, event: TokenEvent) -> None:
        self.mail.append(event)
        if event.finish_reason is not None:
            self._running.discard(event.request_id)

    def weights_changed(self, version: int, *, same: bool = False) -> None:
        """The adapter's tensors were updated in place, or with `same` were not; nothing of it may be running."""
        assert not self.has_work, "weights may change only between generations"
        with self._shared._changed:
            self.weight_version = version
            if same:
                return
            self._adapter = LoraAdapter(self._adapter.layers)
            self._shared._engine.set_adapter(self._name, self._adapter)

    def close(self) -> None:
        """`SharedEngine.leave` forgets it."""

    @contextlib.contextmanager
    def recording(self, tape: ActivationTape | None) -> Iterator[None]:
        """As `TorchEngine.recording`, for what this member asks."""
        with contextlib.ExitStack() as stack:
            with self._shared._changed:
                stack.enter_context(self._shared._engine.recording(tape, self._name))
            yield

    def _global(self, request_id: str) -> str:
        return f"{self._name}|{request_id}"
