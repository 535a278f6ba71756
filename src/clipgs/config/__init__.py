"""The configuration: every setting typed, checked and documented, one module a section.

`config.yaml` and the overlays in `configs/` are read by `read`. A wrong key or value is one line that names the key,
what is allowed and the nearest right name. A key marked `runtime` (device, workers, limits, places) cannot change a
result, so it is in no stage's settings and changing it reruns nothing.
"""

from clipgs.config.ablations import Ablations as Ablations
from clipgs.config.caption import Caption as Caption
from clipgs.config.caption import Coca as Coca
from clipgs.config.catalog import WHERE_PATTERN as WHERE_PATTERN
from clipgs.config.catalog import Catalog as Catalog
from clipgs.config.catalog import Curation as Curation
from clipgs.config.catalog import Downloads as Downloads
from clipgs.config.document import schema as schema
from clipgs.config.document import to_yaml as to_yaml
from clipgs.config.encoder import Encoder as Encoder
from clipgs.config.evaluation import Evaluation as Evaluation
from clipgs.config.fields import Section as Section
from clipgs.config.fit import Fit as Fit
from clipgs.config.meshes import Meshes as Meshes
from clipgs.config.pack import Pack as Pack
from clipgs.config.points import PointCloud as PointCloud
from clipgs.config.read import PROJECT_FILE as PROJECT_FILE
from clipgs.config.read import check as check
from clipgs.config.read import merge as merge
from clipgs.config.read import read as read
from clipgs.config.read import read_layers as read_layers
from clipgs.config.read import setting_names as setting_names
from clipgs.config.render import Render as Render
from clipgs.config.report import Report as Report
from clipgs.config.sections import Config as Config
from clipgs.config.teacher import PICTURES as PICTURES
from clipgs.config.teacher import SMALL_TEACHER as SMALL_TEACHER
from clipgs.config.teacher import SmallTeacher as SmallTeacher
from clipgs.config.teacher import Teacher as Teacher
from clipgs.config.training import Augmentation as Augmentation
from clipgs.config.training import Training as Training
from clipgs.config.views import Views as Views
from clipgs.config.workers import Workers as Workers
