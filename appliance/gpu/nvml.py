"""The edge to NVML: the only importer of pynvml. Blocking; called from the prober's own thread.

Each card is read on its own, so that one that has fallen off the bus does not hide the others.
What a driver does not offer (MIG, power, process lists) is None, not an error.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml as nvml

from appliance.gpu.types import Health

T = TypeVar("T")

MAX_EVENTS = 64
"""Xids taken from the queue in one reading; a storm must not hold the reading up."""

_OPTIONAL = (
    nvml.NVML_ERROR_NOT_SUPPORTED,
    nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    nvml.NVML_ERROR_NO_PERMISSION,
    nvml.NVML_ERROR_INSUFFICIENT_SIZE,
    nvml.NVML_ERROR_INVALID_ARGUMENT,
    nvml.NVML_ERROR_NOT_FOUND,
)
_XID_EVENTS = nvml.nvmlEventTypeXidCriticalError
_HEALTH = {
    nvml.NVML_ERROR_GPU_IS_LOST: Health.LOST,
    nvml.NVML_ERROR_RESET_REQUIRED: Health.RESET_REQUIRED,
}
_NEEDS_RESET = frozenset(
    {nvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET, nvml.NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET}
)


class NvmlUnavailable(Exception):
    """No library, no driver, or one that does not match: there are no cards to speak of."""


@dataclass(frozen=True, slots=True)
class CardReading:
    """One card as NVML told it. `error` is set, and the rest is None, when it would not."""

    index: int
    uuid: str
    name: str
    total_bytes: int | None
    used_bytes: int | None
    free_bytes: int | None
    processes: tuple[tuple[int, int | None], ...] = ()
    is_mig: bool = False
    temperature_c: int | None = None
    power_mw: int | None = None
    power_limit_mw: int | None = None
    utilisation_pct: int | None = None
    compute_capability: tuple[int, int] | None = None
    error: Health | None = None
    reason: str = ""
    xids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    driver_version: str
    cuda_version: str
    cards: tuple[CardReading, ...]


class NvmlSession:
    """NVML from init to shutdown. Every method may block for as long as the driver likes."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._identity: dict[int, tuple[str, str]] = {}
        self._events: Any = None
        self._driver = ("", "")

    def open(self) -> None:
        """Initialise and find the cards. Raises `NvmlUnavailable`."""
        try:
            nvml.nvmlInitWithFlags(0)
            self._driver = (nvml.nvmlSystemGetDriverVersion(), _cuda_version())
            self._handles = [_handle(index) for index in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:
            raise NvmlUnavailable(str(error)) from error
        self._subscribe()

    def close(self) -> None:
        try:
            nvml.nvmlShutdown()
        except nvml.NVMLError as error:
            raise NvmlUnavailable(str(error)) from error

    def read(self) -> Reading:
        xids = self._drain_events()
        cards = tuple(
            self._read_card(index, handle, xids.get(index, ()))
            for index, handle in enumerate(self._handles)
        )
        return Reading(*self._driver, cards)

    def _read_card(self, index: int, handle: Any, xids: tuple[int, ...]) -> CardReading:
        uuid, name = self._identity.get(index, (f"gpu-{index}", "unknown"))
        try:
            handle = handle or nvml.nvmlDeviceGetHandleByIndex(index)
            uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
            self._identity[index] = (uuid, name)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            error, reason = _recovery(handle)
            return CardReading(
                index=index,
                uuid=uuid,
                name=name,
                total_bytes=int(memory.total),
                used_bytes=int(memory.used),
                free_bytes=int(memory.free),
                processes=_processes(handle),
                is_mig=bool(_maybe(lambda: nvml.nvmlDeviceGetMigMode(handle)[0])),
                temperature_c=_maybe(
                    lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
                ),
                power_mw=_maybe(lambda: int(nvml.nvmlDeviceGetPowerUsage(handle))),
                power_limit_mw=_maybe(lambda: int(nvml.nvmlDeviceGetEnforcedPowerLimit(handle))),
                utilisation_pct=_maybe(lambda: int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
                compute_capability=_maybe(
                    lambda: _pair(nvml.nvmlDeviceGetCudaComputeCapability(handle))
                ),
                error=error,
                reason=reason,
                xids=xids,
            )
        except nvml.NVMLError as failure:
            return CardReading(
                index=index,
                uuid=uuid,
                name=name,
                total_bytes=None,
                used_bytes=None,
                free_bytes=None,
                error=_HEALTH.get(failure.value, Health.UNKNOWN),
                reason=str(failure),
                xids=xids,
            )

    def _subscribe(self) -> None:
        """Ask for Xids; a card that is sick, or has no events, just tells none."""
        self._events = _maybe(nvml.nvmlEventSetCreate)
        for handle in self._handles:
            if handle is None or self._events is None:
                continue
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlDeviceRegisterEvents(handle, _XID_EVENTS, self._events)

    def _drain_events(self) -> dict[int, tuple[int, ...]]:
        """Xids since the last reading, by card index. Waits for none."""
        xids: dict[int, tuple[int, ...]] = {}
        if self._events is None:
            return xids
        for _ in range(MAX_EVENTS):
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError:
                break
            index = self._index_of(event.device)
            if index is not None and event.eventType & _XID_EVENTS:
                xids[index] = (*xids.get(index, ()), int(event.eventData))
        return xids

    def _index_of(self, device: Any) -> int | None:
        """Which card an event is of, by its address: a lost card would not tell its index."""
        address = _address(device)
        known = (n for n, handle in enumerate(self._handles) if _address(handle) == address)
        return next(known, None)


def _handle(index: int) -> Any:
    """A card's handle; None for one that is lost already, which is asked again at each reading."""
    try:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        if error.value in _HEALTH:
            return None
        raise


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value if handle is not None else None


def _maybe(read: Callable[[], T]) -> T | None:
    """The value, or None where this driver or card does not offer it."""
    try:
        return read()
    except nvml.NVMLError as error:
        if error.value in _OPTIONAL:
            return None
        raise


def _processes(handle: Any) -> tuple[tuple[int, int | None], ...]:
    listed = _maybe(lambda: nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)) or []
    return tuple(
        (int(entry.pid), None if entry.usedGpuMemory is None else int(entry.usedGpuMemory))
        for entry in listed
    )


def _recovery(handle: Any) -> tuple[Health | None, str]:
    """NVML's own recovery action, where the driver offers it (R550 and later)."""
    fields = _maybe(
        lambda: nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    )
    if not fields or fields[0].nvmlReturn != nvml.NVML_SUCCESS:
        return None, ""
    action = int(fields[0].value.uiVal)
    if action in _NEEDS_RESET:
        return Health.RESET_REQUIRED, "the driver asks for a reset of this card"
    if action == nvml.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT:
        return Health.RESET_REQUIRED, "the driver asks for a reboot"
    if action == nvml.NVML_GPU_RECOVERY_ACTION_DRAIN_P2P:
        return Health.DRAINING, "the driver asks to drain this card"
    return None, ""


def _cuda_version() -> str:
    number = _maybe(nvml.nvmlSystemGetCudaDriverVersion_v2)
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""


def _pair(values: Any) -> tuple[int, int]:
    major, minor = values
    return int(major), int(minor)
