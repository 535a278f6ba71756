"""What a run is trained on, as a record of parts, and in words what differs between two such records.

A record has `settings` (values of the stage), `processes` (their number) and `data` (`TrainingData.inputs`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from clipgs.config import Config, Encoder
from clipgs.core.files import sha256_of
from clipgs.encoder import weights_file
from clipgs.stages import differences, stage_settings

Record = Mapping[str, Any]

EPOCHS = "training.epochs"  # a run goes on where this alone differs
# The name of the run changes no result, and the first weights are compared by their bytes.
_NO_PART = ("stage", "training.run", "encoder.weights")
_MOST_NAMED = 4


def run_record(config: Config, processes: int, data: Record) -> Record:
    """The record of a run. JSON gives it back as it was."""
    settings = _values(stage_settings(config, "train"))
    data = {**data, "first_weights": _first_weights(config.encoder)}
    return {"settings": settings, "processes": processes, "data": data}


def same_but_epochs(
    one: str,  # of `stage_settings`
    other: str,
) -> bool:
    """Whether two settings of training differ in nothing but the number of epochs."""
    return {**_values(one), EPOCHS: 0} == {**_values(other), EPOCHS: 0}


def _values(settings: str) -> dict[str, Any]:
    """Dotted key to value."""

    def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return found

    return {key: value for key, value in flat(json.loads(settings)).items() if key not in _NO_PART}


def _first_weights(encoder: Encoder) -> str | None:
    """SHA-256 of the file that the first weights are read from."""
    if encoder.initialisation == "none" or encoder.weights is None:
        return None
    return sha256_of(weights_file(encoder.weights))


def obstacles(old: Record, new: Record) -> str:
    """Why a run of the new record cannot go on from a state of the old one; empty where it can."""
    before, after = ({**record["settings"], EPOCHS: 0} for record in (old, new))
    found = differences(before, after)
    theirs, ours = old["data"], new["data"]
    for key in sorted((theirs | ours).keys() - {"shards"}):
        if theirs.get(key) != ours.get(key):
            found.append(f"the {key.replace('_', ' ')} changed")
    return _joined([*found, *_changed_shards(theirs["shards"], ours["shards"])])


def _changed_shards(old: Record, new: Record) -> list[str]:
    found = [f"shard {shard} is {'new' if shard in new else 'gone'}" for shard in sorted(old.keys() ^ new.keys())]
    for shard in sorted(old.keys() & new.keys()):
        before, after = old[shard], new[shard]
        if before["objects"] != after["objects"]:
            found.append(f"shard {shard} has {after['objects']} objects instead of {before['objects']}")
        elif others := [part for part in after if after[part] != before[part]]:
            found.append(f"shard {shard} has other {' and '.join(others)}")
    return found


def bridged(old: Record, new: Record, done: int, steps: int) -> list[str]:
    """What differs though the run goes on after `done` of its `steps` steps, and what it means for the result."""
    found = []
    if done < steps and (before := old["processes"]) != (after := new["processes"]):
        means = ["rounding"]
        own, other = (_normalised(new["settings"], processes) for processes in (after, before))
        if own != other:
            means.append(f"batch norms over {own} objects instead of {other}")
        if any(new["settings"][f"encoder.{key}"] for key in ("drop_path", "patch_dropout")):
            means.append("other draws of dropout")
        found.append(f"processes {before} -> {after}: later steps differ by {_joined(means, ', ')}")
    if (before := old["settings"][EPOCHS]) != (after := new["settings"][EPOCHS]):
        found.append(
            f"{EPOCHS} {before} -> {after}: the first {done} steps had the learning rates of {before} epochs, so the "
            "result is not that of a run from the start"
        )
    return found


def _normalised(settings: Mapping[str, Any], processes: int) -> int | None:
    """The number of objects whose statistics batch norms take together; None where they take none."""
    part = min(settings["training.micro_batch"], settings["training.batch"] // processes)
    return {"local": part, "sync": part * processes}.get(settings["encoder.batch_norm"])


def _joined(texts: Sequence[str], between: str = "; ") -> str:
    more = f" and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return between.join(texts[:_MOST_NAMED]) + more
