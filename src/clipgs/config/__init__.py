"""The configuration: every setting typed, checked and documented, one module a section.

`config.yaml` and the overlays in `configs/` are read by `read`. A wrong key or value is one line that names the key,
what is allowed and the nearest right name. A key marked `runtime` (device, workers, limits, places) cannot change a
result, so it is in no stage's settings and changing it reruns nothing.
"""

# ruff: noqa: F401 (the names of this package)
from clipgs.config.caption import Caption, Coca, Http
from clipgs.config.catalog import WHERE_PATTERN, Catalog, Curation, Downloads
from clipgs.config.document import schema, to_markdown, to_yaml
from clipgs.config.encoder import Encoder
from clipgs.config.evaluation import Evaluation
from clipgs.config.fields import Section
from clipgs.config.fit import Fit
from clipgs.config.meshes import Meshes
from clipgs.config.pack import Pack
from clipgs.config.points import PointCloud
from clipgs.config.read import PROJECT_FILE, check, merge, read, read_layers, setting_names
from clipgs.config.sections import Config
from clipgs.config.teacher import PICTURES, SMALL_TEACHER, SmallTeacher, Teacher
from clipgs.config.training import Augmentation, Training
from clipgs.config.views import Views
