"""The section `teacher`."""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from clipgs.config.fields import Section, recipe_setting, section, setting

PICTURES = {"splats": "renders", "meshes": "views"}  # what is pictured, as keys name it, and the pictures' folder
SMALL_TEACHER = "clipgs-small"  # what the model that `teacher.name: train` trains is called
_MOST_SLUG = 120  # characters of a model's name in those of files and folders


def as_tag(text: str) -> str:
    """A tag of weights as open_clip looks it up: of two spellings, the features are the same."""
    return text.lower().replace("-", "_")


def _is_tag(pretrained: str) -> bool:
    return not re.search(r"[/.\\~]", pretrained)  # as every path of a file of weights has


class SmallTeacher(Section):
    """The small teacher of `name: train` (64 pixels, 3.5 M parameters), trained on renders of the training split."""

    steps: int = setting(300, "steps", assumed=True, ge=1, le=1_000_000)
    """The small teacher trains for this many steps of AdamW. Use 2,000 for thousands of objects."""
    batch: int = setting(64, "objects", assumed=True, ge=2, le=65_536)
    """A step has this many objects, all with different texts. Use 256 for thousands of objects."""
    category_steps: float = setting(0.5, "fraction", assumed=True, ge=0, le=1)
    """In this share of the steps the text is the category instead of the caption."""
    view_weight: float = setting(0.0, "weight", assumed=True, ge=0)
    """The loss adds this times a contrast between two images of each object, which tells objects of one text apart."""
    learning_rate: float = setting(1e-3, "learning rate", assumed=True, gt=0)
    """The learning rate of AdamW rises to this value, and then falls along a cosine."""
    weight_decay: float = setting(0.1, "factor", assumed=True, ge=0)
    """AdamW decays matrices, but no vectors and biases, by this factor times the learning rate."""
    max_objects: int = setting(10_000, "objects", assumed=True, ge=2)
    """The small teacher trains on at most this many objects, chosen by a hash of the uid."""


class Preprocess(Section):
    """How pictures are prepared, where the weights do not tell. `preprocess: TAG` is short for the tag."""

    tag: str | None = setting(None, "tag", assumed=True, min_length=1)
    """The weights are of this tag of the model, or were trained from it: its preprocessing counts."""
    mean: list[Annotated[float, Field(ge=0, le=1)]] | None = setting(
        None, "0 to 1", assumed=True, min_length=3, max_length=3
    )
    """This mean is taken from red, green and blue. [0, 0, 0] takes nothing."""
    std: list[Annotated[float, Field(gt=0, le=1)]] | None = setting(
        None, "0 to 1", assumed=True, min_length=3, max_length=3
    )
    """Red, green and blue are then divided by this."""
    interpolation: Literal["bicubic", "bilinear"] | None = setting(None, "name", assumed=True)
    """Pictures of another size are resized in this way."""
    resize_mode: Literal["shortest", "longest", "squash"] | None = setting(None, "name", assumed=True)
    """Pictures that are not square are cut (`shortest`), padded (`longest`) or squashed."""

    def stated(self) -> dict[str, Any]:
        """What is set, but for the tag, by open_clip's names."""
        return {name: value for name, value in self.model_dump().items() if name != "tag" and value is not None}


class Teacher(Section):
    """The frozen CLIP model of open_clip in whose embedding space CLIP-GS is trained."""

    name: str = recipe_setting("teacher.name", "name", assumed=True, min_length=1)
    """This model of open_clip is the teacher. local-dir:FOLDER loads one from a folder, and `train` trains a small one
    on these objects."""
    pretrained: str | None = setting("laion2b_s9b_b144k", "tag or path", assumed=True, min_length=1)
    """The weights are given by a tag of open_clip, or by a .safetensors or .pt file. `train` and local-dir have their
    own."""
    preprocess: Preprocess = section(Preprocess)
    tokenizer: str | None = setting(None, "path", assumed=True, min_length=1)
    """This folder holds the files of the tokenizer, and the config.json of the text tower, of a model that has these
    from Hugging Face. null looks into the folder of local-dir, and then into the hub's cache."""
    images: Literal["splats", "meshes"] = setting("splats", "name")
    """The teacher sees renders of the splats (`splats`) or views of the meshes (`meshes`)."""
    precision: Literal["auto", "float32", "bfloat16"] = setting("auto", "name", assumed=True)
    """The teacher computes in this precision. `auto` takes bfloat16 on CUDA and float32 on a CPU."""
    batch: int = setting(256, "images", runtime=True, ge=1, le=65_536)
    """A GPU encodes this many images at once, or fewer if its memory is too small."""
    small: SmallTeacher = section(SmallTeacher)

    @field_validator("preprocess", mode="before")
    @classmethod
    def _name_of_a_tag(cls, value: Any) -> Any:
        return {"tag": value} if isinstance(value, str) else value or {}

    @field_validator("pretrained")
    @classmethod
    def _spelling_of_a_tag(cls, value: str | None) -> str | None:
        return as_tag(value) if value and _is_tag(value) else value

    @property
    def slug(self) -> str:
        """Folder of its features under `features/`: the name and the tag, or the name of a file, folder or repository.

        These have a hash of their path too: the hub calls all its files by the same name, and what a name of a folder
        may not hold is lost.
        """
        if self.name == "train":
            return SMALL_TEACHER
        scheme, _, place = self.name.partition(":")
        weights = self.pretrained or ""
        if scheme == "local-dir":
            path, name = str(Path(place)), Path(place).resolve().name
        elif place:
            path = name = place
        else:
            path = "" if _is_tag(weights) else str(Path(weights))
            name = f"{self.name}-{Path(weights).name}"
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:_MOST_SLUG].strip("-.") or "teacher"
        return f"{name}-{hashlib.sha256(path.encode()).hexdigest()[:8]}" if path else name
