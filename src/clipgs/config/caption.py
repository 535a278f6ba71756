"""The section `caption`."""

from typing import Literal

from clipgs.config.fields import Section, section, setting


class Coca(Section):
    """The model that writes captions of pictures, for `coca` and `consensus`."""

    name: str = setting(
        "coca_ViT-L-14", "name", "of a CoCa of open_clip, or local-dir:FOLDER", assumed=True, min_length=1
    )
    pretrained: str = setting(
        "mscoco_finetuned_laion2b_s13b_b90k",
        "tag or path",
        "open_clip's tag, or a .safetensors or .pt file; local-dir brings its own",
        assumed=True,
        min_length=1,
    )
    views: int = setting(8, "pictures", "of an object that it sees, spread over all that show it", assumed=True, ge=1)
    candidates: int = setting(5, "captions", "it writes of each of them", assumed=True, ge=1, le=100)
    top_p: float = setting(
        0.9, "probability", "the next word is drawn from the likeliest that sum up to it", assumed=True, gt=0, le=1
    )


class Caption(Section):
    """Where the text of a triplet comes from."""

    captioner: Literal["catalog", "cap3d", "coca", "consensus"] = setting(
        "catalog",
        "name",
        "catalog: the source's own text; cap3d: a CSV of captions; coca: a model writes some of the pictures and keeps "
        "what it likes best; consensus: what the teacher likes best",
    )
    cap3d: str | None = setting(
        None, "path or URL", "CSV of uid and caption, as Cap3D publishes it; with or without a header"
    )
    fallback: Literal["catalog", "fail", "coca", "consensus"] = setting(
        "catalog", "name", "what an object gets that the CSV does not list: another captioner's text, or a failed row"
    )
    max_characters: int = setting(300, "characters", "longer captions are cut at a word", assumed=True, ge=16)
    min_score: float | None = setting(
        None,
        "cosine",
        "a caption is marked where the teacher finds it less like the object's pictures, in the mean; null: not judged",
        assumed=True,
        ge=-1,
        le=1,
    )
    coca: Coca = section(Coca)

    @property
    def writer(self) -> str | None:
        """Which of `coca` and `consensus` writes captions of pictures, if any."""
        name = self.fallback if self.captioner == "cap3d" else self.captioner
        return name if name in ("coca", "consensus") else None

    @property
    def uses_teacher(self) -> bool:
        """The teacher scores captions, against the features of the pictures."""
        return self.writer == "consensus" or self.min_score is not None
