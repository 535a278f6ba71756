"""The stages `teacher` and `train`."""

from clipgs.config import Config
from clipgs.core.devices import choose_device


def teacher(config: Config, threads: int) -> None:
    """Trains the small teacher on the training split's renders, captions and categories; see `small_teacher.make`."""
    from clipgs.training import small_teacher

    small_teacher.make(config, threads)


def train(config: Config, threads: int = 1) -> None:
    """Trains CLIP-GS on the training split of all shards, or resumes a killed run.

    Writes `runs/RUN/`: `model.safetensors` (of the step that is best on the validation split, or of the last),
    `config.yaml`, `README.md` (the model card), `metrics.jsonl`, `speed.jsonl` and `tensorboard/`. A killed run resumes
    from `state/`, also with another number of processes or more epochs. A state of other inputs is kept in
    `state.old/`. `inputs.json` says what the run is trained on.

    Raises:
        ClipgsError: inputs are missing or come from several teachers, there are fewer objects than in a batch or only
            one caption, or a loss or gradient is not finite; the text names the object.
    """
    from clipgs.training import distributed, trainer

    device = choose_device(config.device, config.workers.gpus)
    gpus = distributed.gpus_to_launch(config) if device == "cuda" else 1
    if gpus > 1:
        distributed.launch(config, gpus)
    else:
        trainer.train(config, device, threads)
