"""The report: one HTML page that shows the triplets and the results, with pictures, plots and splats that turn.

The page is one file that opens from disk and needs no network: it contains its styles, script, pictures and splats. A
content security policy allows only that script and that style sheet, by their hashes. The markup has no event handlers,
the templates escape every text, and links use only http and https.
"""

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from clipgs import __version__
from clipgs.config import Config
from clipgs.report import sections
from clipgs.report.results import Pictures, Results, read_triplets
from clipgs.report.sections import Sources

# Id, heading, template and content of each section. Credit is last: it lists the objects that the others show.
SECTIONS = (
    ("splats", "Turn a splat", "splats.html", sections.splats),
    ("objects", "Objects", "objects.html", sections.objects),
    ("failures", "Failures", "failures.html", sections.failures),
    ("quality", "Quality", "quality.html", sections.quality),
    ("training", "Training", "training.html", sections.training),
    ("retrieval", "Retrieval", "retrieval.html", sections.retrieval),
    ("zero-shot", "Zero-shot classification", "zero-shot.html", sections.zero_shot),
    ("few-shot", "Few-shot classification", "tables.html", sections.few_shot),
    ("baselines", "Baselines", "tables.html", sections.baselines),
    ("ablations", "Ablations", "tables.html", sections.ablations),
    ("embedding", "The embedding", "embedding.html", sections.embedding),
    ("credit", "Credit", "credit.html", sections.credit),
)


def page(config: Config) -> str:
    """The page as HTML.

    Raises:
        ClipgsError: there are no packed triplets, or a file is damaged.
    """
    triplets = read_triplets(config)
    pictures = Pictures(config, {row["uid"]: row for row in triplets.packed})
    sources = Sources(config, triplets, pictures, Results(config.output_path))
    contents = [(name, heading, template, content(sources)) for name, heading, template, content in SECTIONS]
    assets = files("clipgs.report") / "assets"
    environment = Environment(
        loader=PackageLoader("clipgs.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(
        title=config.pack.title,
        version=__version__,
        style=Markup((assets / "page.css").read_text(encoding="utf-8")),
        script=Markup("".join((assets / name).read_text(encoding="utf-8") for name in ("viewer.js", "report.js"))),
        policy_hash=_policy_hash,
        tiles=sections.tiles(sources),
        small_teacher_runs=sections.small_teacher_runs(sources),
        sections=[section for section in contents if section[-1]],
    )


def _policy_hash(text: str) -> str:
    """The text's hash, as a content security policy writes it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
