"""A model that knows nothing: tokens drawn at random, with a taste, under a constraint."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

import numpy as np

from appliance.engines.chat.constraint import Constraint
from appliance.engines.chat.turnplan import ChatPlan
from appliance.types import Delta, Message, StopReason
from tests.engines.chat.vocab import RealVocab


@dataclass
class Answer:
    text: str
    tokens: int
    rejections: int
    message: Message
    reason: StopReason
    deltas: list[Delta]
    mask_us: list[float] = field(default_factory=list)


def draw_tokens(
    constraint: Constraint,
    vocab: RealVocab,
    rng: random.Random,
    max_tokens: int,
    mask_us: list[float] | None = None,
    favourites: tuple[int, ...] = (),
) -> tuple[list[int], int]:
    """Tokens and how many draws were refused. Half of the draws go to `favourites`, if any."""
    tokens: list[int] = []
    rejections = 0
    while len(tokens) < max_tokens and not constraint.is_complete:
        forced = constraint.forced_tokens()
        if forced:
            token = forced[0]
        elif favourites and rng.random() < 0.5:
            token = rng.choice(favourites)
        else:
            token = rng.randrange(len(vocab.tokens))
        while not constraint.check(token):
            rejections += 1
            started = time.perf_counter()
            mask = constraint.mask()
            if mask_us is not None:
                mask_us.append((time.perf_counter() - started) * 1e6)
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            assert len(allowed), "the mask allows nothing"
            wanted = [token for token in favourites if token in set(allowed.tolist())]
            if wanted and rng.random() < 0.5:
                token = rng.choice(wanted)
            else:
                token = int(allowed[rng.randrange(len(allowed))])
        constraint.accept(token)
        tokens.append(token)
    return tokens, rejections


def answer(
    plan: ChatPlan,
    vocab: RealVocab,
    constraint: Constraint,
    rng: random.Random,
    max_tokens: int,
    mask_us: list[float] | None = None,
    favourites: tuple[int, ...] = (),
) -> Answer:
    tokens, rejections = draw_tokens(constraint, vocab, rng, max_tokens, mask_us, favourites)
    data = b"".join(vocab.tokens[token] for token in tokens if token not in vocab.end_ids)
    text = data.decode("utf-8", "replace")
    deltas = plan.parser.feed(text)
    ended = StopReason.END_TURN if constraint.is_complete else StopReason.MAX_TOKENS
    last, message, reason = plan.parser.finish(ended)
    return Answer(text, len(tokens), rejections, message, reason, deltas + last)
