"""The stages `embed-images` and `embed-texts`."""

from clipgs.config import Config


def embed_images(config: Config, shard: str, threads: int) -> None:
    """Puts all images of a shard's objects through the teacher; see `features.embed_images`."""
    from clipgs.teacher import features

    features.embed_images(config, shard, threads)


def embed_texts(config: Config, shard: str, threads: int) -> None:
    """Puts a shard's captions through the teacher; see `features.embed_texts`."""
    from clipgs.teacher import features

    features.embed_texts(config, shard, threads)
