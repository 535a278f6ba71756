"""The section `teacher`."""

import re
from pathlib import Path
from typing import Literal

from clipgs.config.fields import Section, recipe_setting, section, setting

PICTURES = {"splats": "renders", "meshes": "views"}  # what is pictured, as keys name it, and the pictures' folder
SMALL_TEACHER = "clipgs-small"  # what the model that `teacher.name: train` trains is called


class SmallTeacher(Section):
    """The small model of `name: train`: about 64 px and 12 M parameters, trained on the training split's renders."""

    steps: int = setting(300, "steps", "of AdamW; for thousands of objects 2,000", assumed=True, ge=1, le=1_000_000)
    batch: int = setting(
        64, "objects", "a step, no two of one text; for thousands of objects 256", assumed=True, ge=2, le=65_536
    )
    category_steps: float = setting(
        0.5,
        "fraction",
        "of the steps that show objects with their category instead of the caption",
        assumed=True,
        ge=0,
        le=1,
    )
    learning_rate: float = setting(
        1e-3, "a step", "the highest; it rises, then falls along a cosine", assumed=True, gt=0
    )
    weight_decay: float = setting(0.1, "a step", "of weights, not of biases and norms", assumed=True, ge=0)
    max_objects: int = setting(
        10_000, "objects", "at most so many are learnt from, chosen by a hash of the uid", assumed=True, ge=2
    )


class Teacher(Section):
    """The frozen CLIP in whose space the splats shall lie: any model of open_clip, run once over all triplets."""

    name: str = recipe_setting(
        "teacher.name",
        "name",
        "of an open_clip model, or local-dir:FOLDER; train: a small one is trained on these objects",
        assumed=True,
        min_length=1,
    )
    pretrained: str | None = setting(
        "laion2b_s9b_b144k",
        "tag or path",
        "open_clip's tag, or a .safetensors or .pt file; train and local-dir bring their own",
        assumed=True,
        min_length=1,
    )
    images: Literal["splats", "meshes"] = setting(
        "splats", "name", "which pictures it sees: renders of the splats, or the views that these were fitted to"
    )
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "name", "auto: bfloat16 on CUDA, float32 on a CPU", assumed=True
    )
    batch: int = setting(
        256, "pictures", "at once on a GPU; fewer where memory runs out", runtime=True, ge=1, le=65_536
    )
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
