"""Seeds and canonical JSON: equal values give equal numbers and equal text."""

import hashlib
import json
from typing import Any


def seed_of(seed: int, *parts: str) -> int:
    """A 64-bit seed that depends on the configured seed and on `parts` (stage, uid) alone."""
    digest = hashlib.sha256("\0".join([str(seed), *parts]).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on `text` alone: the first 48 bits of its SHA-256."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def json_digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON, 64 hex digits: equal values give the same."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
