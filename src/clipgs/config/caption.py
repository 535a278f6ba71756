"""The section `caption`."""

from typing import Literal

from clipgs.config.fields import Section, section, setting


class Coca(Section):
    """The model that writes captions for `coca` and `consensus`."""

    name: str = setting("coca_ViT-L-14", "name", assumed=True, min_length=1)
    """This CoCa model of open_clip writes the captions. local-dir:FOLDER loads one from a folder."""
    pretrained: str = setting("mscoco_finetuned_laion2b_s13b_b90k", "tag or path", assumed=True, min_length=1)
    """The weights are given by a tag of open_clip, or by a .safetensors or .pt file. local-dir has its own."""
    views: int = setting(8, "images", assumed=True, ge=1)
    """CoCa sees this many images of an object, spread evenly over all that show it."""
    candidates: int = setting(5, "captions", assumed=True, ge=1, le=100)
    """CoCa writes this many captions for each image."""
    top_p: float = setting(0.9, "probability", assumed=True, gt=0, le=1)
    """Each word is sampled from the most likely words that together reach this probability."""


class Caption(Section):
    """Where the caption of an object comes from."""

    captioner: Literal["catalog", "cap3d", "coca", "consensus"] = setting("catalog", "name")
    """`catalog` takes the source's own text, and `cap3d` a CSV of captions. `coca` and `consensus` let CoCa caption the
    images of `teacher.images`. CoCa picks the best caption with `coca`, the teacher with `consensus`."""
    cap3d: str | None = setting(None, "path or URL")
    """This CSV has a uid and a caption per row, as Cap3D publishes it. A header is optional. `cap3d` needs the CSV."""
    fallback: Literal["catalog", "fail", "coca", "consensus"] = setting("catalog", "name")
    """This captioner serves objects that the CSV does not list. `fail` records them as failed."""
    max_characters: int = setting(300, "characters", assumed=True, ge=16)
    """A longer caption is cut between two words."""
    min_score: float | None = setting(None, "cosine", assumed=True, ge=-1, le=1)
    """A caption is marked if its mean cosine with the teacher features of the object's images is lower. null means that
    no caption is marked."""
    coca: Coca = section(Coca)

    @property
    def writer(self) -> str | None:
        """Which of `coca` and `consensus` writes captions from images, if any."""
        name = self.fallback if self.captioner == "cap3d" else self.captioner
        return name if name in ("coca", "consensus") else None

    @property
    def uses_teacher(self) -> bool:
        """Whether the teacher scores captions, by the features of the images."""
        return self.writer == "consensus" or self.min_score is not None
