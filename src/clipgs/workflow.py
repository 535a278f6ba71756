"""What the Snakefile needs: the checked configuration, the plan of shards, paths, settings and resources.

Snakemake reads the workflow in every job, so nothing here imports torch.
"""

import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from clipgs.catalog.excluded import excluded_digests
from clipgs.catalog.shards import plan
from clipgs.config import PICTURES, Config, check
from clipgs.core.devices import visible_gpus
from clipgs.core.errors import RUN_ARGUMENTS, ClipgsError, UsageError, advice
from clipgs.core.files import owner, sha256_of
from clipgs.core.lists import counted
from clipgs.core.processes import usable_cores
from clipgs.core.seeds import json_digest
from clipgs.encoder import weights_file
from clipgs.evaluation import rows
from clipgs.operate import checks, started
from clipgs.operate.lock import OutputLock, describe, holder
from clipgs.operate.reasons import TARGETS
from clipgs.operate.retry import retries
from clipgs.operate.screen import Read, Screen
from clipgs.stages import OF_RULE, RUNTIME, STAGES, may_lack, runtime_settings, stage_settings
from clipgs.teacher.hub import TOKENIZER_FILES, matches
from clipgs.teacher.names import SMALL_FILES, VOCABULARY, at_home
from clipgs.training.runs import begun_shards
from clipgs.triplets.captions import listed_digest, located

# In the environment of a job: the configuration of the run that it belongs to, and the number of the run's shards.
FROZEN, COUNT = "CLIPGS_CONFIG", "CLIPGS_SHARDS"


class Resources(NamedTuple):
    """Cores and GPUs of the rules' jobs."""

    threads: int  # of a job that has the machine alone
    mesh_threads: int  # of one that reads meshes
    fit_threads: int  # of one that fits or renders
    gpu_threads: int  # of one that has a GPU for itself, beside others on the other GPUs
    one_gpu: int
    render_gpu: int
    train_gpus: int


def share(cores: int, shards: int, gpus: int, on_cluster: bool) -> Resources:
    """How jobs share the cores and GPUs of a machine.

    With several shards, one is fitted on a GPU while the last is rendered and the meshes of the next are read. At 256
    pixels, these shares of the cores keep the three equally fast. On a cluster a job asks for one GPU if the
    configuration says cuda, and the scheduler chooses which.
    """
    fit = meshes = cores
    if gpus and shards > 1:
        fit = max(1, cores // (5 * gpus))
        meshes = max(1, cores - 2 * gpus * fit)
    return Resources(
        threads=cores,
        mesh_threads=meshes,
        fit_threads=fit,
        gpu_threads=max(1, cores // max(1, gpus)),
        one_gpu=int(gpus > 0 or on_cluster),
        render_gpu=int(on_cluster),
        train_gpus=gpus or int(on_cluster),
    )


class Run:
    """A configuration and its plan: the names that the rules use.

    Args:
        count: of the shards that a job's run has: objects may come to the source while it works.

    Raises:
        ClipgsError: the configuration or the source is wrong.
    """

    def __init__(self, config: Config, count: int | None = None) -> None:
        self.config = config
        self.plan = plan(config)
        self.shards = self.plan.shards[:count]
        # Those that a training began with: new objects do not restart one that runs or is finished.
        self.run_shards = self._begun(config, "train")
        self.teacher_shards = self._begun(config, "teacher")
        captions = listed_digest(located(config))
        self._captions = {"captions": captions} if captions else {}
        self._excluded = excluded_digests(config)
        self._retries = retries(config)
        self._lock: OutputLock | None = None
        self.files: list[str] = []  # the overlays and single values that gave Snakemake the configuration
        self.values: dict[str, Any] = {}
        self.snakefile = Path("Snakefile")
        self.named: Callable[[], set[str]] = set  # the targets of this run: known once the workflow is read

    def of(self, stage: str) -> str:
        """What the result of a stage depends on, as one string: the only param of its rule."""
        more: dict[str, str] = {}  # files are looked at for their own stage alone: this is read in every job
        trained = self.config.teacher.name == "train"  # its files are the workflow's own
        match stage:
            case "objects":
                more = {"curation": self.plan.curation_digest}
            case "caption":
                judge = self.teacher if self.config.caption.uses_teacher else []
                more = self._captions | state_of([*self.coca, *judge])
            case "embed-images" if not trained:
                more = state_of(self.picture_teacher)
            case "embed-texts" if not trained:
                more = state_of(self.teacher)
            case "report":
                more = self._shown_ablations
        return stage_settings(self.config, stage, **more)

    def of_shard(self, stage: str) -> Callable[[Any], str]:
        """As `of`, for a stage whose shards also depend on labels, exclusions or retries."""

        def settings(wildcards: Any) -> str:
            shard, more = wildcards.shard, {}
            if stage == "label":
                more["labels"] = self.plan.label_digests.get(shard, "")
            elif stage == "pack" and shard in self._excluded:
                more["excluded"] = self._excluded[shard]
            elif shard in self._retries.get(stage, {}):
                more["retry"] = str(self._retries[stage][shard])
            return stage_settings(self.config, stage, **more)

        return settings

    def of_row(self, stage: str) -> Callable[[Any], str]:
        """As `of`, of a stage that works on a row and a seed of the ablation, or on a seed alone."""
        return lambda wildcards: self._of_training(stage, self._config_of(wildcards))

    def of_train(self, wildcards: Any) -> str:
        """As `of`, of the stage `train`; a function, because a plan without a training may have settings that forbid
        one."""
        return self._of_training("train", self.config)

    @staticmethod
    def _of_training(stage: str, config: Config) -> str:
        views, count = config.training.views, config.views.count
        with fatal(2):
            if views > count:
                raise ClipgsError(
                    f"config: training.views = {views}, but an object has {count} pictures (views.count); "
                    f"set training.views to {count} or less"
                )
        return stage_settings(config, stage)

    def _config_of(self, wildcards: Any) -> Config:
        seed = int(wildcards.seed)
        row = getattr(wildcards, "row", None)
        return rows.of_start(self.config, seed) if row is None else rows.of_row(self.config, row, seed)

    def shards_of_row(self, wildcards: Any) -> Sequence[str]:
        """As `run_shards`, of a row and a seed, or of a seed's point encoder."""
        return self._begun(self._config_of(wildcards), "train")

    def _begun(self, config: Config, stage: str) -> Sequence[str]:
        begun = begun_shards(config, stage)
        return begun if begun and set(begun) <= set(self.shards) else self.shards

    def start_of(self, wildcards: Any) -> list[str]:
        """What the rows of a seed start from: the user's checkpoint, or the point encoder's model."""
        model = self.out(f"ablations/points/runs/{rows.START}{wildcards.seed}/model.safetensors")
        return self.first_weights if rows.has_uni3d(self.config) else [model]

    def trained_row(self, wildcards: Any) -> list[str]:
        """The model that a row's evaluation needs. That of Uni3D as it is: the first weights of the other rows."""
        if wildcards.row == "uni3d":
            return self.start_of(wildcards)
        return [self.out(f"runs/{rows.ABLATION}{wildcards.row}-s{wildcards.seed}/model.safetensors")]

    @property
    def ablation_rows(self) -> list[str]:
        """The names of the ablation's evaluations."""
        seeds = self.config.ablations.seeds
        return [f"{rows.ABLATION}{row}-s{seed}" for row in rows.chosen(self.config) for seed in seeds]

    def out(self, name: str) -> str:
        """A file of the output."""
        return os.path.join(self.config.output, name)

    def of_run(self, name: str) -> str:
        """A file of the configured run."""
        return self.out(f"runs/{self.config.training.run}/{name}")

    def of_evaluation(self, name: str) -> str:
        """A file of the configured run's evaluation."""
        return self.out(f"evaluation/{self.config.training.run}/{name}")

    def features(self, name: str) -> str:
        """A file of the teacher's features."""
        return self.out(f"features/{self.config.teacher.slug}/{name}")

    def all_features(self, shards: Sequence[str]) -> list[str]:
        """The features of shards: of their pictures and their captions."""
        return [self.features(f"{kind}/{shard}.safetensors") for kind in ("images", "texts") for shard in shards]

    @property
    def small_teacher(self) -> list[str]:
        """The files of the teacher that is trained here."""
        return [self.out(f"teacher/{name}") for name in SMALL_FILES]

    @property
    def teacher(self) -> list[str]:
        """The files of the teacher; none if its weights are given by a tag."""
        teacher = self.config.teacher
        if teacher.name == "train":
            return self.small_teacher
        tokens = files_in(teacher.tokenizer) if teacher.tokenizer else []
        return model_files(teacher.name, teacher.pretrained) + tokens

    @property
    def picture_teacher(self) -> list[str]:
        """As `teacher`, without the files that only texts depend on."""
        if self.config.teacher.name == "train":
            return self.small_teacher
        files = model_files(self.config.teacher.name, self.config.teacher.pretrained)
        return [file for file in files if not matches(Path(file).name, (*TOKENIZER_FILES, VOCABULARY))]

    @property
    def first_weights(self) -> list[str]:
        """The file of weights that the encoder starts from, where the user has one: itself, or in a run's folder."""
        weights = self.config.encoder.weights
        return files_of(str(weights_file(weights))) if weights else []

    @property
    def lists(self) -> list[str]:
        """The user's lists of classes and of prompts."""
        return files_of(self.config.evaluation.classes, self.config.evaluation.templates)

    @property
    def baselines(self) -> list[str]:
        """The user's files of other people's models."""
        return files_of(*self.config.evaluation.baselines.model_dump().values())

    @property
    def coca(self) -> list[str]:
        """The user's files of the model that writes captions."""
        coca = self.config.caption.coca
        return model_files(coca.name, coca.pretrained) if self.config.caption.uses_coca else []

    @property
    def pictures(self) -> list[str]:
        """The files of a shard's pictures, as the teacher sees them."""
        folder = PICTURES[self.config.teacher.images]
        return [self.out(f"{folder}/{{shard}}.tar"), self.out(f"{folder}/{{shard}}.parquet")]

    @property
    def asked_pictures(self) -> list[str]:
        """The pictures for image queries that the teacher has not encoded, of every shard that keeps them."""
        folders = {PICTURES[what] for what in self.config.evaluation.pictures}
        folders -= {PICTURES[self.config.teacher.images], *self.config.temporary}
        return [self.out(f"{folder}/{shard}.tar") for folder in sorted(folders) for shard in self.shards]

    @property
    def lost(self) -> set[str]:
        """Files that have gone though their checksums are there: Snakemake removes those of a job that then fails.

        It does not miss one while what was made of it is there, so that what a changed setting should have replaced
        would pass for done. Bundles may have been removed on purpose, and go together with a table: they count where
        they were set aside.
        """
        bundles, output = {stage.bundle for stage in STAGES.values()}, self.config.output_path
        gone = {file for file in map(owner, output.rglob("*.check")) if file is not None and not file.exists()}
        lost = (file for file in gone if file.suffix not in bundles or file.with_name(f"{file.name}.damaged").exists())
        return {self.out(str(file.relative_to(output))) for file in lost if not may_lack(self.config, file)}

    @property
    def ablations(self) -> str:
        """The table of the ablations."""
        return self.out("evaluation/ablations.json")

    @property
    def _shown_ablations(self) -> dict[str, str]:
        # The page shows the table where there is one. It must not be an input: a page would train dozens of models.
        try:
            return {"shown": sha256_of(Path(self.ablations))}
        except OSError:
            return {}

    def asked_ablations(self, wildcards: Any) -> list[str]:
        """The table of the ablations, where the page is made in the same run."""
        return [self.ablations] if {"ablations", self.ablations} & self.named() else []

    def hold(self) -> None:
        """Locks the output, or refuses to run while another run holds it; writes down the configuration."""
        with fatal(1):
            self._lock = OutputLock(self.config.output_path)
            started.write(self.config, self.files, self.values, self.snakefile)

    def release(self) -> None:
        """Releases the output."""
        if self._lock is not None:
            self._lock.release()

    def remember(self) -> None:
        """Writes down the configuration of a run that had nothing to do, where that can be written."""
        if self._lock is None and self.config.output_path.is_dir():
            with suppress(ClipgsError, OSError), OutputLock(self.config.output_path):
                started.write(self.config, self.files, self.values, self.snakefile)


def hold_output(workflow: Any, run: Run) -> None:
    """Makes Snakemake hold the output of a run from before its first job to its end.

    Not by `onstart`, `onsuccess` and `onerror`: Snakemake ignores those of a module that another workflow imports.

    Raises:
        UsageError: the workflow imports clipgs for another output too.
    """
    if (other := getattr(workflow, "clipgs_run", run)).config.output != run.config.output:
        raise UsageError(
            f"one workflow makes one output, this one makes {other.config.output} and {run.config.output}; "
            "import clipgs once, and run Snakemake once for each output"
        )
    again, workflow.clipgs_run = hasattr(workflow, "clipgs_run"), run  # each `use rule` reads the Snakefile again
    if again:
        return
    execute = workflow.execute

    def holding(*arguments: Any, **named: Any) -> Any:
        run, onstart = workflow.clipgs_run, workflow._onstart

        def start(log: Any) -> None:
            run.hold()
            onstart(log)

        workflow._onstart = start
        try:
            done = execute(*arguments, **named)
            if not workflow.dryrun:  # known only now
                run.remember()
            return done
        finally:
            run.release()

    workflow.execute = holding


def tell(found: checks.Findings) -> None:
    """Writes notes and errors, a line each. An error ends Snakemake."""
    sys.stderr.writelines(f"clipgs: note: {note}\n" for note in found.notes)
    sys.stderr.writelines(f"clipgs: {error}\n" for error in found.errors)
    if found.errors:
        raise SystemExit(2)


def check_plan(workflow: Any) -> None:
    """Lets Snakemake miss lost files, and checks what the planned jobs need before the first of them starts.

    Snakemake has no hook there that a dry run calls too, so this replaces the method that plans.
    """
    build = workflow._build_dag
    # Another workflow that imports this one may give the rules other names.
    stages = {workflow.modifier.modify_rulename(rule): stage for rule, stage in OF_RULE.items()}

    def build_and_check() -> None:
        workflow.dag.forcefiles |= workflow.clipgs_run.lost
        build()
        # Without an executor nothing will run: a summary, a graph.
        if workflow.executor_plugin is None or workflow.touch:
            return
        finished = (job for job in workflow.dag.jobs if job.rule.name in stages and not workflow.dag.needrun(job))
        unknown = [job for job in finished if workflow.persistence.metadata(job.output[0]) is None]
        tell(checks.Findings([], unrecorded(workflow.clipgs_run.config, unknown)))
        shards: dict[str, list[str]] = {}
        for job in workflow.dag.needrun_jobs():
            if stage := stages.get(job.rule.name):
                shards.setdefault(stage.name, []).extend(filter(None, [job.wildcards_dict.get("shard")]))
        # Where the jobs run on other machines, Snakemake uses threads here. Older versions do not tell a dry run.
        away = not workflow.local_exec or workflow.execution_settings.use_threads
        away = away or (workflow.dryrun and workflow.resource_settings.nodes is not None)
        run = workflow.clipgs_run
        with fatal(2):
            tell(checks.of_jobs(run.config, checks.Jobs(shards, run.plan, workflow.dryrun, not away)))

    workflow._build_dag = build_and_check


def unrecorded(config: Config, jobs: Sequence[Any]) -> list[str]:
    """A note on finished jobs that Snakemake knows only by the times of their files.

    Its record is in the folder that it runs in, under the names that the output's files have there.
    """
    if not jobs:
        return []
    origin = started.origin(config)
    elsewhere = "they were made in another folder, or under another name of the output"
    return [
        f"Snakemake has no record of {counted(len(jobs), 'finished job')} (the first: {jobs[0].output[0]}), so changed "
        f"settings do not make them again; {origin or elsewhere}. Run there and under that name, or make them again "
        "with --forceall"
    ]


def files_of(*settings: Any) -> list[str]:
    """The files among the values of settings that name one: an edited file is another input."""
    paths = (at_home(value) for value in settings if isinstance(value, str))
    return [str(path) for path in paths if path.is_file()]


def model_files(name: str, pretrained: str | None) -> list[str]:
    """The user's files of a model of open_clip: a changed file is another model."""
    return files_in(name.removeprefix("local-dir:")) if name.startswith("local-dir:") else files_of(pretrained)


def state_of(files: Sequence[str]) -> dict[str, str]:
    """The user's files of a model as part of a stage's settings: Snakemake itself sees only files that are newer.

    Sizes and times count, not bytes: this is read in every job, and weights have gigabytes.
    """
    states = [(Path(file), os.stat(file)) for file in files]
    found = [[file.name, state.st_size, state.st_mtime_ns] for file, state in states]
    return {"files": json_digest(found)[:16]} if found else {}


def files_in(folder: str) -> list[str]:
    """The files of a model and its tokenizer in a folder."""
    suffixes = (".json", ".safetensors", ".pt", ".pth", ".bin", ".model")
    tokens = ("merges.txt", "vocab.txt", VOCABULARY)  # of tokenizers, as `.model`
    files = sorted(at_home(folder).glob("*"))
    return [str(path) for path in files if path.suffix in suffixes or path.name in tokens]


@contextmanager
def fatal(code: int) -> Iterator[None]:
    """Ends Snakemake with one line for an error of ours: its own message would name a line of the Snakefile."""
    try:
        yield
    except (ClipgsError, OSError) as error:
        hint = advice(error) if isinstance(error, OSError) else ""
        sys.stderr.write(f"clipgs: {error}{hint}\n")
        raise SystemExit(code) from None


def start(workflow: Any, values: dict[str, Any]) -> tuple[Run, Resources]:
    """Reads the configuration and plans, for Snakemake's `workflow` object; prepares the environment of the commands.

    Every job reads the workflow again. It gets the configuration of its run through the environment, so that editing a
    file does not affect queued jobs. Nor do new objects: a job over all shards takes those of its run.
    """
    main = workflow.is_main_process
    frozen, count = (None, None) if main else map(os.environ.get, (FROZEN, COUNT))
    with fatal(2), _speaking(main):
        run = Run(check(json.loads(frozen) if frozen else values), int(count) if count else None)
    config = run.config
    run.named = lambda: set(workflow.dag_settings.targets)
    if main:
        Screen.RUN = Read(config, run.plan, tuple(map(workflow.modifier.modify_rulename, TARGETS)))
        first = not hasattr(workflow, "clipgs_run")  # a module is read once for each `use rule`
        with fatal(2):
            hold_output(workflow, run)
        settings = workflow.config_settings
        run.files, run.values = [_shown(file) for file in settings.configfiles], dict(settings.config)
        run.snakefile = Path(workflow.main_snakefile)
        # With --directory it is not known where the command was typed.
        folder = None if workflow.overwrite_workdir is None else Path.cwd()
        named = started.arguments_of(run.files, run.values, run.snakefile, folder)
        os.environ[RUN_ARGUMENTS] = shlex.join(named)
        if first:
            tell(checks.Findings(checks.of_names(config).errors, [*run.plan.notes, *notes(config)]))
            check_plan(workflow)
    os.environ |= {
        FROZEN: config.model_dump_json(),
        COUNT: str(len(run.shards)),
        # Commands get what changes no result (places, device, limits) here: no rule depends on it.
        RUNTIME: runtime_settings(config),
        # The commands are those of the Python that runs Snakemake, even if its environment is not activated.
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]),
    }
    return run, _resources(workflow, config, len(run.shards))


def notes(config: Config) -> list[str]:
    """What the user should know before the first job."""
    found = []
    if config.recipe == "demo" and config.catalog.source != "procedural":
        found.append(
            f"recipe: demo fits {config.fit.gaussians:,} Gaussians at {config.views.pixels} pixels, for a first look; "
            'for real work write in your file: recipe: "paper" (or "fast")'
        )
    if busy := holder(config.output_path):
        found.append(f"a run works on {config.output}: {describe(busy)}")
    return found


def _shown(file: Path) -> str:
    """A file as the user may have named it: Snakemake makes it absolute."""
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


@contextmanager
def _speaking(main: bool) -> Iterator[None]:
    """Shows the log: reading the annotations of a large source for the first time takes minutes."""
    log, speaker = logging.getLogger("clipgs"), logging.StreamHandler()
    log.setLevel(logging.INFO)
    if main:
        log.addHandler(speaker)
    try:
        yield
    finally:
        log.removeHandler(speaker)


def _resources(workflow: Any, config: Config, shards: int) -> Resources:
    # The executor is not known yet. Snakemake gives those of clusters a number of jobs, and no cores but in a dry run.
    asked = workflow.resource_settings
    local = asked.nodes is None or asked.cores not in (None, 1)
    # With more cores than there are, Snakemake would start jobs that wait for each other and fill the memory.
    if local and workflow._cores is not None:
        workflow.register_resource("_cores", min(workflow._cores, usable_cores()))
    gpus: list[str] = []
    if local and config.device != "cpu":
        gpus = visible_gpus()
        if "gpu" in workflow.global_resources:  # --resources gpu=N uses the first N
            gpus = gpus[: workflow.global_resources["gpu"].value]
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if local and "gpu" not in workflow.global_resources:
        workflow.register_resource("gpu", len(gpus))
    cores = config.workers.threads or workflow._cores or 1
    return share(cores, shards, len(gpus), on_cluster=config.device == "cuda" and not local)
