"""The section `teacher`."""

import re
from pathlib import Path
from typing import Literal

from clipgs.config.fields import Section, recipe_setting, section, setting

PICTURES = {"splats": "renders", "meshes": "views"}  # what is pictured, as keys name it, and the pictures' folder
SMALL_TEACHER = "clipgs-small"  # what the model that `teacher.name: train` trains is called


class SmallTeacher(Section):
    """The small teacher of `name: train` (64 pixels, 12 M parameters), trained on renders of the training split."""

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


class Teacher(Section):
    """The frozen CLIP model of open_clip in whose embedding space CLIP-GS is trained."""

    name: str = recipe_setting("teacher.name", "name", assumed=True, min_length=1)
    """This model of open_clip is the teacher. local-dir:FOLDER loads one from a folder, and `train` trains a small one
    on these objects."""
    pretrained: str | None = setting("laion2b_s9b_b144k", "tag or path", assumed=True, min_length=1)
    """The weights are given by a tag of open_clip, or by a .safetensors or .pt file. `train` and local-dir have their
    own."""
    images: Literal["splats", "meshes"] = setting("splats", "name")
    """The teacher sees renders of the splats (`splats`) or views of the meshes (`meshes`)."""
    precision: Literal["auto", "float32", "bfloat16"] = setting("auto", "name", assumed=True)
    """The teacher computes in this precision. `auto` takes bfloat16 on CUDA and float32 on a CPU."""
    batch: int = setting(256, "images", runtime=True, ge=1, le=65_536)
    """A GPU encodes this many images at once, or fewer if its memory is too small."""
    small: SmallTeacher = section(SmallTeacher)

    @property
    def slug(self) -> str:
        """Folder of its features under `features/`: the name and the tag, or the file's name."""
        if self.name == "train":
            return SMALL_TEACHER
        scheme, _, place = self.name.rpartition(":")
        name = Path(place).resolve().name if scheme == "local-dir" else place
        tag = "" if scheme or not self.pretrained else f"-{Path(self.pretrained).name}"
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", name + tag).strip("-.") or "teacher"
