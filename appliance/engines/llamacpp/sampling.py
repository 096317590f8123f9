"""From logits to a token: greedy in numpy, everything else by llama.cpp's sampler chain in C.

Greedy needs no chain: `argmax` over the logits is an order of magnitude cheaper than building
the 12-byte candidate array the chain wants. Penalties and biases change the argmax, so they use
the chain too. Order in the chain as in llama.cpp's own server: bias, penalties, top-k, top-p,
min-p, temperature, draw.
"""

from __future__ import annotations

import secrets
from ctypes import byref
from dataclasses import dataclass

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from appliance.engines.chat.constraint import Constraint
from appliance.engines.llamacpp.binding import Context, Floats
from appliance.engines.llamacpp.vocab import Vocab
from appliance.types import Sampling, TokenLogprob

DEFAULT_TEMPERATURE = 0.7
DEFAULT_TOP_K = 40
DEFAULT_TOP_P = 0.95
DEFAULT_MIN_P = 0.05
PENALTY_WINDOW_TOKENS = 256
"""How far back penalties look: beyond it, repeating a word is ordinary language."""


@dataclass(frozen=True, slots=True)
class Settled:
    """`Sampling` with every default filled in."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    logit_bias: tuple[tuple[int, float], ...]

    @property
    def is_plain_greedy(self) -> bool:
        return (
            (self.temperature <= 0 or self.top_k == 1)
            and self.repeat_penalty == 1
            and self.presence_penalty == 0
            and self.frequency_penalty == 0
            and not self.logit_bias
        )


def settle(sampling: Sampling) -> Settled:
    """Fill in the defaults; without a seed, one is drawn."""

    def either(value: float | None, default: float) -> float:
        return default if value is None else value

    return Settled(
        temperature=either(sampling.temperature, DEFAULT_TEMPERATURE),
        top_k=DEFAULT_TOP_K if sampling.top_k is None else sampling.top_k,
        top_p=either(sampling.top_p, DEFAULT_TOP_P),
        min_p=either(sampling.min_p, DEFAULT_MIN_P),
        repeat_penalty=either(sampling.repeat_penalty, 1.0),
        presence_penalty=either(sampling.presence_penalty, 0.0),
        frequency_penalty=either(sampling.frequency_penalty, 0.0),
        seed=secrets.randbits(32) if sampling.seed is None else sampling.seed & 0xFFFFFFFF,
        logit_bias=tuple(sampling.logit_bias.items()),
    )


class Sampler:
    """Draws the tokens of one sequence; `close` frees the C chain.

    Under a constraint it draws first and asks about that one token; only when it is refused does
    it build the mask and draw again among what is allowed. (A grammar as the first link of the
    chain would test the whole vocabulary for every token: 26 ms instead of 0.25, measured.)
    """

    def __init__(self, vocab: Vocab, settled: Settled) -> None:
        self._greedy = settled.is_plain_greedy
        self._chain = None if self._greedy else _build_chain(vocab, settled)

    def draw(self, context: Context, index: int, constraint: Constraint | None) -> int:
        """A token by the logits at batch index `index`. The chain has accepted it, the constraint
        has not yet."""
        if self._chain is None:
            return _greedy(context.logits(index), constraint)
        if constraint is None:
            # llama_sampler_sample accepts what it draws.
            return int(lib.llama_sampler_sample(self._chain, context.handle, index))
        logits = context.logits(index)
        token = constraint.settle(
            self._apply(logits), lambda mask: self._apply(_masked(logits, mask))
        )
        lib.llama_sampler_accept(self._chain, token)
        return token

    def accept(self, token: int) -> None:
        """A token that was not drawn but forced; penalties must know of it."""
        if self._chain is not None:
            lib.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        if self._chain is not None:
            lib.llama_sampler_free(self._chain)
            self._chain = None

    def _apply(self, logits: Floats) -> int:
        """Run the chain over these logits without accepting."""
        candidates = np.zeros(len(logits), dtype=_CANDIDATE)
        candidates["id"] = np.arange(len(logits), dtype=np.int32)
        candidates["logit"] = logits
        array = lib.llama_token_data_array(
            data=candidates.ctypes.data_as(lib.llama_token_data_p),
            size=len(candidates),
            selected=-1,
            sorted=False,
        )
        lib.llama_sampler_apply(self._chain, byref(array))
        return int(array.data[array.selected].id)


_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama_token_data of llama.h."""


def _greedy(logits: Floats, constraint: Constraint | None) -> int:
    token = int(logits.argmax())
    if constraint is None:
        return token
    return constraint.settle(token, lambda mask: int(_masked(logits, mask).argmax()))


def _masked(logits: Floats, mask: NDArray[np.int32]) -> Floats:
    """A copy with everything forbidden at minus infinity."""
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    allowed = bits[: len(logits)].view(bool)
    return np.where(allowed, logits, np.float32(-np.inf))


def _build_chain(vocab: Vocab, settled: Settled) -> object:
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())

    def add(sampler: object) -> None:
        lib.llama_sampler_chain_add(chain, sampler)

    if settled.logit_bias:
        biases = (lib.llama_logit_bias * len(settled.logit_bias))()
        for entry, (token, bias) in zip(biases, settled.logit_bias, strict=True):
            entry.token, entry.bias = token, bias
        add(lib.llama_sampler_init_logit_bias(vocab.size, len(biases), biases))
    if (settled.repeat_penalty, settled.frequency_penalty, settled.presence_penalty) != (1, 0, 0):
        add(
            lib.llama_sampler_init_penalties(
                vocab.size,
                PENALTY_WINDOW_TOKENS,
                settled.repeat_penalty,
                settled.frequency_penalty,
                settled.presence_penalty,
            )
        )
    if settled.temperature <= 0:
        add(lib.llama_sampler_init_greedy())
        return chain
    if settled.top_k > 0:
        add(lib.llama_sampler_init_top_k(settled.top_k))
    if settled.top_p < 1:
        add(lib.llama_sampler_init_top_p(settled.top_p, 1))
    if settled.min_p > 0:
        add(lib.llama_sampler_init_min_p(settled.min_p, 1))
    add(lib.llama_sampler_init_temp(settled.temperature))
    add(lib.llama_sampler_init_dist(settled.seed))
    return chain


def logprob_of(vocab: Vocab, logits: Floats, token: int, alternatives: int) -> TokenLogprob:
    """Natural-log probability of `token` under the model itself (before temperature), and the
    `alternatives` likeliest tokens with theirs."""
    peak = float(logits.max())
    total = peak + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))

    top: tuple[tuple[str, float], ...] = ()
    if alternatives > 0:
        count = min(alternatives, len(logits))
        likeliest = np.argpartition(logits, -count)[-count:]
        likeliest = likeliest[np.argsort(-logits[likeliest])]
        top = tuple(
            (vocab.text_of(int(which)), float(logits[which]) - total) for which in likeliest
        )
    return TokenLogprob(vocab.text_of(token), float(logits[token]) - total, top)
