"""An encoder (BERT and its kin) has no cache and no chat: it embeds, alike alone and in company."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from appliance.engines.llamacpp.engine import LlamaCppEngine
from appliance.engines.llamacpp.params import LlamaCppParams
from appliance.errors import BadRequest, PromptTooLong
from tests.engines.chat.vocab import SHARED

from . import tiny_models
from .conftest import ask, run

pytestmark = pytest.mark.model
VOCABULARY = SHARED / "vocab" / "ggml-vocab-bert-bge.gguf"


@pytest.fixture
def encoder(tmp_path: Path) -> LlamaCppParams:
    pytest.importorskip("llama_cpp")
    if not VOCABULARY.is_file():
        pytest.skip("the real vocabularies are not here (../shared/vocab)")
    path = tiny_models.bert(tmp_path / "bert.gguf", VOCABULARY)
    return LlamaCppParams(path, context_window=128, slots=4, embeddings=True)


async def test_an_encoder_embeds_texts_in_order_and_refuses_what_it_cannot_do(
    encoder: LlamaCppParams,
) -> None:
    texts = ["A cat sat on the mat.", "", "Größe", "word " * 60, "A cat sat on the mat."]
    async with LlamaCppEngine(encoder) as engine:
        together = await engine.embed(texts)
        singly = [(await engine.embed([text]))[0] for text in texts]
        with pytest.raises(PromptTooLong, match=r"text is too long: \d+ tokens > 128 maximum"):
            await engine.embed(["word " * 200])
        with pytest.raises(BadRequest, match="does not generate"):
            await run(engine, ask("Hello"))
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-5) for vector in together)
    assert together[0] == pytest.approx(together[4], abs=1e-4)
    assert together[0] != pytest.approx(together[3], abs=1e-2)
    for alone, beside in zip(singly, together, strict=True):
        assert alone == pytest.approx(beside, abs=1e-4)
