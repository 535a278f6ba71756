"""The section `teacher`."""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from clipgs.config.fields import Section, recipe_setting, section, setting

PICTURES = {"splats": "renders", "meshes": "views"}  # what is pictured, as keys name it, and the pictures' folder
SMALL_TEACHER = "clipgs-small"  # what the model that `teacher.name: train` trains is called


class SmallTeacher(Section):
    """The small teacher of `name: train` (64 pixels, 3.3 M parameters), trained on renders of the training split."""

    steps: int = setting(300, "steps", assumed=True, ge=1, le=1_000_000)
    """The small teacher trains for this many steps of AdamW. Use 2,000 for thousands of objects."""
    batch: int = setting(64, "objects", assumed=True, ge=2, le=65_536)
    """A step has this many objects, all with different texts. Use 256 for thousands of objects."""
    category_steps: float = setting(0.5, "fraction", assumed=True, ge=0, le=1)
    """In this share of the steps the text is the category instead of the caption."""
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

    @property
    def slug(self) -> str:
        """Folder of its features under `features/`: the name and the tag, or the file's name.

        A file or folder in another folder has a hash of its path too: the hub calls all its files by the same name.
        """
        if self.name == "train":
            return SMALL_TEACHER
        scheme, _, place = self.name.rpartition(":")
        path = Path(place if scheme == "local-dir" else "" if scheme else self.pretrained or "")
        name = path.resolve().name if scheme == "local-dir" else "-".join(filter(None, (place, path.name)))
        if path.parent != Path("."):
            name += "-" + hashlib.sha256(str(path).encode()).hexdigest()[:8]
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "teacher"
