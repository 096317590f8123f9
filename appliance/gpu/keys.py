"""The metadata of a GGUF file with its architecture's prefix understood, each value checked."""

from __future__ import annotations

from appliance.errors import ModelBroken
from appliance.gpu import gguf
from appliance.gpu.gguf import GgufHeader, Skipped


class Keys:
    """Reads keys of one file: a missing, wrong or absurd one is `ModelBroken` by name."""

    def __init__(self, header: GgufHeader) -> None:
        self._header = header
        self.architecture = header.architecture

    def broken(self, reason: str) -> ModelBroken:
        path = self._header.path
        return ModelBroken(
            f"{path.name} {reason}",
            hint="convert it again with a current llama.cpp",
            details={"path": str(path), "reason": reason},
        )

    def raw(self, key: str) -> gguf.Value | None:
        return self._header.metadata.get(f"{self.architecture}.{key}")

    def text(self, key: str) -> str:
        value = self._header.metadata.get(key)
        return value if isinstance(value, str) else ""

    def items(self, key: str) -> int | None:
        """How many items the array at this full key has."""
        value = self._header.metadata.get(key)
        if isinstance(value, Skipped):
            return value.items
        return len(value) if isinstance(value, tuple) else None

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.raw(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 40:
            raise self.broken(f"has no usable {self.architecture}.{key} ({value!r})")
        return value

    def per_layer(self, key: str, il: int, n_layer: int, default: int) -> int:
        """A key that is one number or one per layer (`get_key_or_arr`)."""
        value = self.raw(key)
        if not isinstance(value, tuple):
            return self.integer(key, default)
        if len(value) < n_layer:
            raise self.broken(f"has {len(value)} items in {key}, {n_layer} layers")
        item = value[il]
        if not isinstance(item, int) or not 0 <= item < 1 << 40:
            raise self.broken(f"has {item!r} in {key}")
        return int(item)

    def head_length(self, which: str, is_sliding: bool) -> int:
        """Elements of one head's key or value; `n_embd / n_head` only where the file is silent."""
        heads = self.per_layer("attention.head_count", 0, 1, 0)
        full = self.integer("embedding_length") // heads if heads else 0
        if heads or self.architecture == "plamo2":
            full = self.integer(f"attention.{which}_length", full)
        return self.integer(f"attention.{which}_length_swa", full) if is_sliding else full
