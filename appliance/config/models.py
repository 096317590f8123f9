"""`[models.NAME]`: one entry per model, whose keys depend on its `engine`."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from appliance.config.units import ByteSize, Section, subsection
from appliance.types import Sampling

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
"""Element type of the KV cache, in llama.cpp's words."""


class SamplingConfig(Section):
    """How tokens are drawn where a request does not say."""

    temperature: float | None = Field(None, ge=0, le=5, description="0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1, description="Nucleus: share of probability.")
    top_k: int | None = Field(None, ge=0, le=1_000_000, description="Most likely tokens; 0: all.")
    min_p: float | None = Field(
        None, ge=0, le=1, description="Least share of the best token's probability."
    )
    repeat_penalty: float | None = Field(
        None, gt=0, le=10, description="Divides the logits of tokens already used; 1: none."
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="As OpenAI defines it.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="As OpenAI defines it.")
    seed: int | None = Field(None, ge=0, le=2**32 - 1, description="Same seed, same answer.")
    max_tokens: int | None = Field(None, ge=1, le=1_000_000, description="Tokens of one answer.")
    stop: tuple[str, ...] = Field((), max_length=16, description="Strings that end an answer.")

    def to_sampling(self) -> Sampling:
        return Sampling(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repeat_penalty=self.repeat_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            stop=self.stop,
        )


class Prices(Section):
    """What a provider bills, in micro-dollars per million tokens (3 dollars are 3000000)."""

    input_micro_usd: int = Field(0, ge=0, le=10**9, description="Per million prompt tokens.")
    output_micro_usd: int = Field(0, ge=0, le=10**9, description="Per million generated tokens.")
    cache_read_micro_usd: int = Field(
        0, ge=0, le=10**9, description="Per million prompt tokens read from the cache."
    )
    cache_write_micro_usd: int = Field(
        0, ge=0, le=10**9, description="Per million prompt tokens written to the cache."
    )
    read_on: datetime.date | None = Field(
        None, description="Day these prices were read from the provider's page."
    )


class _Model(Section):
    """What every engine's entry has."""

    description: str = Field("", description="For people; shown by `appliance models`.")
    context_window: int = Field(
        4_096, ge=256, le=16_777_216, description="Tokens of prompt and answer in one sequence."
    )
    slots: int = Field(4, ge=1, le=1_024, description="Sequences generated at the same time.")
    quality: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Expected share of work done right, before anything was learned.",
    )
    tools: bool = Field(True, description="Whether it may be given tools.")
    sampling: SamplingConfig = subsection(SamplingConfig, "Defaults for its answers.")


class _Placed(_Model):
    """What every entry has that takes memory of this machine."""

    devices: tuple[str, ...] = Field(
        (), description='Cards it may be on, by index or UUID, or "cpu"; empty: any card.'
    )
    exclusive: bool = Field(False, description="Its cards hold nothing else while it is loaded.")
    keep_resident: bool = Field(
        False, description="Loaded at start and never unloaded to make room."
    )
    priority: int = Field(
        0, ge=-100, le=100, description="Higher is placed first and unloaded last."
    )
    idle_unload_s: float = Field(
        0.0, ge=0, le=31_536_000, description="Unload after this many idle seconds; 0: when needed."
    )
    start_timeout_s: float = Field(
        120.0, gt=0, le=7_200, description="Seconds a start may take before it counts as failed."
    )


class LlamaCppModel(_Placed):
    """A GGUF file run by llama.cpp in a process of ours."""

    engine: Literal["llamacpp"]
    file: str = Field(
        min_length=1,
        description="A name in models/manifest.toml, or a GGUF path (relative: below models_dir).",
    )
    context_window_min: int = Field(
        0,
        ge=0,
        le=16_777_216,
        description="Placement may shrink the window down to this; 0: never shrink.",
    )
    slots_min: int = Field(
        1, ge=1, le=1_024, description="Placement may go down to this many slots."
    )
    kv_type: KvType = Field("f16", description="Element type of the KV cache.")
    kv_types_allowed: tuple[KvType, ...] = Field(
        (), description="Smaller types placement may take instead, best first."
    )
    gpu_layers: Literal["auto"] | Annotated[int, Field(ge=0, le=1_000)] = Field(
        "auto",
        description="Layers on GPUs: exactly so many; auto: all, or as many as fit the machine.",
    )
    batch_tokens: int = Field(
        512, ge=32, le=8_192, description="Tokens computed in one pass (llama.cpp's ubatch)."
    )
    threads: int = Field(
        0,
        ge=0,
        le=4_096,
        description="CPU threads of this model; 0: its share of [gpu] cpu_threads.",
    )
    embeddings: bool = Field(False, description="An embedding model: embeds, never generates.")
    adapters: Mapping[str, str] = Field(
        default_factory=dict, description="LoRA adapters by name: GGUF path below models_dir."
    )
    chat_template_file: str = Field(
        "", description="Jinja template used instead of the file's own; empty: the file's own."
    )


class VllmModel(_Placed):
    """A Hugging Face folder served by `vllm serve` on loopback."""

    engine: Literal["vllm"]
    folder: str = Field(
        min_length=1, description="Hugging Face folder (relative: below models_dir)."
    )
    command: tuple[str, ...] = Field(
        ("vllm", "serve"),
        min_length=1,
        description="Program that serves; --model, --port and the like are appended.",
    )
    extra_args: tuple[str, ...] = Field((), description="Further arguments, appended last.")
    environment: Mapping[str, str] = Field(
        default_factory=dict, description="Further environment of the server; never secrets."
    )
    tensor_parallel: int = Field(
        1, ge=1, le=64, description="Cards it is split over, an equal share on each."
    )
    kv_cache_bytes: ByteSize = Field(
        0, description="VRAM for its KV cache; 0: enough for slots × context_window."
    )
    embeddings: bool = Field(False, description="An embedding model: embeds, never generates.")
    start_timeout_s: float = Field(
        900.0, gt=0, le=7_200, description="Seconds a start may take before it counts as failed."
    )


class _Provider(_Model):
    """What every entry has that somebody else runs."""

    images: bool = Field(False, description="Whether it reads images.")
    thinking: bool = Field(False, description="Whether it can be asked to think first.")
    max_output_tokens: int = Field(
        4_096, ge=1, le=10_000_000, description="Most tokens of one answer."
    )
    prices: Prices = subsection(Prices, "What it bills.")
    request_timeout_s: float = Field(
        600.0, gt=0, le=7_200, description="Seconds one call may take, all in all."
    )


class RemoteModel(_Provider):
    """A model behind any OpenAI-compatible server. One on loopback counts as local."""

    engine: Literal["remote"]
    base_url: str = Field(description="The server's root, such as http://10.0.0.5:8000/v1.")
    model: str = Field(min_length=1, description="The model's name there.")
    key_env: str = Field("", description="Environment variable that holds its key; empty: no key.")
    key_credential: str = Field(
        "", description="systemd credential that holds its key, looked for first."
    )
    embeddings: bool = Field(False, description="An embedding model: embeds, never generates.")

    _url = field_validator("base_url")(lambda value: check_url(value))

    @property
    def is_local(self) -> bool:
        return is_loopback_url(self.base_url)


class ClaudeModel(_Provider):
    """A Claude model. Without a key the entry stands, and is never chosen."""

    engine: Literal["claude"]
    model: str = Field(min_length=1, description="The model's id at the provider.")
    base_url: str = Field("https://api.anthropic.com", description="The API's root.")
    key_env: str = Field(
        "ANTHROPIC_API_KEY", description="Environment variable that holds the key."
    )
    key_credential: str = Field(
        "anthropic-api-key", description="systemd credential that holds the key, looked for first."
    )
    context_window: int = Field(
        200_000, ge=256, le=16_777_216, description="Tokens of prompt and answer in one sequence."
    )
    max_output_tokens: int = Field(
        64_000, ge=1, le=10_000_000, description="Most tokens of one answer."
    )
    slots: int = Field(8, ge=1, le=1_024, description="Calls at the same time.")
    quality: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Expected share of work done right, before anything was learned.",
    )
    images: bool = Field(True, description="Whether it reads images.")
    thinking: bool = Field(True, description="Whether it can be asked to think first.")
    takes_sampling: bool = Field(
        False, description="Whether it takes temperature, top_p and top_k; newer ones refuse them."
    )
    takes_forced_tools: bool = Field(
        False,
        description="Whether a tool call can be demanded of it; newer ones refuse the request.",
    )

    _url = field_validator("base_url")(lambda value: check_url(value))

    @property
    def is_local(self) -> bool:
        """Never: a stand-in on loopback is still treated as the cloud."""
        return False


class ScriptedModel(_Model):
    """Replies, delays and faults replayed from a file, or a server asked word for word.

    For demonstrations and tests; never used unless configured.
    """

    engine: Literal["scripted"]
    script: str = Field("", description="File of replies (relative: beside config.toml).")
    base_url: str = Field("", description="Server requests are forwarded to, instead of a file.")
    load_s: float = Field(0.0, ge=0, le=600, description="Seconds it pretends to take to load.")
    vram_bytes: ByteSize = Field(0, description="Bytes it pretends to take while loaded.")


ModelConfig: TypeAlias = Annotated[
    LlamaCppModel | VllmModel | RemoteModel | ClaudeModel | ScriptedModel,
    Field(discriminator="engine"),
]


def reached(name: str, model: ModelConfig) -> RemoteModel | ClaudeModel | None:
    """The entry as something reached over the network: itself, or, of a scripted one with a
    `base_url`, the server it forwards to (its model there has the entry's name). None for what
    runs here."""
    if isinstance(model, RemoteModel | ClaudeModel):
        return model
    if isinstance(model, ScriptedModel) and model.base_url:
        kept = {"description", "context_window", "slots", "quality", "tools", "sampling"}
        entry = {key: getattr(model, key) for key in kept}
        return RemoteModel.model_validate(
            {"engine": "remote", "base_url": model.base_url, "model": name, **entry}
        )
    return None


def check_url(value: str) -> str:
    """The URL without a slash at its end. Raises `ValueError` if it is none, or holds a secret."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("write a URL such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise ValueError("a URL holds no password; name the key with key_env or key_credential")
    return value.rstrip("/")


def is_loopback_url(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def leaves_machine(model: ModelConfig) -> bool:
    """Whether what this model is asked goes to another machine."""
    if isinstance(model, RemoteModel | ClaudeModel):
        return not model.is_local
    if isinstance(model, ScriptedModel):
        return bool(model.base_url) and not is_loopback_url(model.base_url)
    return False


def is_cloud(model: ModelConfig) -> bool:
    """Whether this model is treated as one of the cloud: what leaves the machine, and Claude
    wherever it is reached."""
    return leaves_machine(model) or isinstance(model, ClaudeModel)
