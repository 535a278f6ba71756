"""The stages `embed-images` and `embed-texts`."""

from clipgs.config import Config


def embed_images(config: Config, shard: str, threads: int) -> None:
    """Encodes all images of a shard's objects with the teacher; see `features.embed_images`."""
    from clipgs.teacher import features

    features.embed_images(config, shard, threads)


def embed_texts(config: Config, shard: str, threads: int) -> None:
    """Encodes a shard's captions with the teacher; see `features.embed_texts`."""
    from clipgs.teacher import features

    features.embed_texts(config, shard, threads)
