import json

import pytest
import yaml

from clipgs import config as configuration
from clipgs.config import recipes
from clipgs.core.errors import UsageError
from clipgs.stages import STAGES, from_settings, runtime_settings, stage_settings


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fit": {"step": 3}}, ["fit.step is not a key", "did you mean fit.steps?", "allowed here", "gaussians"]),
        ({"fits": {}}, ["fits is not a key", "did you mean fit?"]),
        ({"fit": {"pixels": 3}}, ["did you mean views.pixels?"]),
        ({"steps": 3}, ["did you mean fit.steps?"]),
        ({"fit": {"steps": "many"}}, ["fit.steps", '"many"', "integer"]),
        ({"fit": {"steps": True}}, ["fit.steps", "integer"]),
        ({"fit": {"steps": 0}}, ["fit.steps", "greater than or equal to 1"]),
        ({"device": "cudaa"}, ["device", "did you mean cuda?"]),
        ({"fit": 3}, ["fit = 3"]),
        ({"catalog": {"folder": {"column": 1}}}, ["catalog.folder.column", "did you mean catalog.folder.columns?"]),
        ({"meshes": {"neutral_color": [1, 2]}}, ["meshes.neutral_color"]),
        ({"encoder": {"orders": "z"}}, ["encoder.orders", '"z"', "a valid list; write [z]"]),
        ({"training": {"batch": 1}}, ["training.batch = 1", "greater than or equal to 2", "contrasts"]),
        ({"teacher": {"small": {"batch": 1}}}, ["teacher.small.batch = 1", "greater than or equal to 2"]),
        ({"evaluation": {"few_shot": ["1-way 5-shot"]}}, ["evaluation.few_shot.0", "1-way", "way, 2 or more"]),
    ],
)
def test_a_wrong_key_or_value_is_one_line_with_the_remedy(values, words):
    with pytest.raises(UsageError) as error:
        configuration.check(values)
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_files_are_read_over_each_other(tmp_path):
    (tmp_path / "a.yaml").write_text("fit: {steps: 10, gaussians: 20}\n")
    (tmp_path / "b.yaml").write_text("fit: {steps: 11}\n")
    config = configuration.read(tmp_path / "a.yaml", tmp_path / "b.yaml")
    assert (config.fit.steps, config.fit.gaussians) == (11, 20)


def test_settings_that_came_as_text_are_read_by_their_type():
    """Snakemake's --config gives nested values as strings."""
    config = configuration.check(
        {
            "fit": {"steps": "60", "lr_means": "1e-3", "random_ground": "false", "schedule": "constant"},
            "meshes": {"neutral_color": ["0.5", "0.5", "0.5"]},
            "catalog": {"folder": {"path": "007", "manifest": "null"}},
        }
    )
    assert (config.fit.steps, config.fit.lr_means, config.fit.random_ground) == (60, 1e-3, False)
    assert config.meshes.neutral_color == (0.5, 0.5, 0.5)
    assert (config.catalog.folder.path, config.catalog.folder.manifest) == ("007", None)


@pytest.mark.parametrize(
    ("text", "words"), [("fit: [", "not YAML"), ("- a\n", "keys and values"), (None, "No such file")]
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, text, words):
    if text is not None:
        (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UsageError, match=words) as error:
        configuration.read(tmp_path / "a.yaml")
    assert "\n" not in str(error.value)


def test_the_settings_of_a_stage_and_of_the_run_give_the_configuration_back():
    config = configuration.check({"fit": {"steps": 7}, "output": "elsewhere", "views": {"pixels": 64}})
    settings = [stage_settings(config, stage) for stage in STAGES]
    assert from_settings(*settings, runtime_settings(config)) == config


def test_a_runtime_key_is_in_no_stages_settings():
    plain = configuration.check({})
    other = configuration.check({"output": "elsewhere", "device": "cpu", "workers": {"threads": 3}, "cache": "c"})
    for stage in STAGES:
        assert stage_settings(plain, stage) == stage_settings(other, stage)


def test_every_key_reaches_a_stage_or_the_run():
    config = configuration.check({})
    asks = configuration.check({"caption": {"captioner": "http", "http": {"model": "m"}}})
    layers = [stage_settings(config, stage) for stage in STAGES] + [stage_settings(asks, "caption")]
    reached = configuration.merge(*(json.loads(layer) for layer in [*layers, runtime_settings(config)]))
    for key in set(configuration.setting_names()):
        value = reached
        for part in key.split("."):
            assert part in value, f"{key} changes nothing"
            value = value[part]


def test_config_yaml_says_what_the_code_says(checkout):
    """config.yaml is written by the code: every key with its meaning and unit, and no value but the recipe's name."""
    text = (checkout / "config.yaml").read_text()
    assert text.endswith("\n\n" + configuration.to_yaml("demo"))
    assert configuration.check(yaml.safe_load(text)) == configuration.check({"recipe": "demo"})


def test_the_page_of_settings_has_each_key_with_its_type_default_and_meaning():
    text = configuration.to_markdown()
    for key in configuration.setting_names():
        assert f"```{{confval}} {key}\n:type: " in text
    for entry in (
        "catalog.shard_objects\n:type: integer, at least 1, at most 100000 (objects)\n:default: `1024`\n\nA new shard",
        'device\n:type: auto | cpu | cuda\n:default: `"auto"`\n',
        "cache\n:type: text or null (path)\n:default: `null`\n",
        "catalog.test_fraction\n:type: number, at least 0, under 0.5 (fraction)\n",
        "meshes.neutral_color\n:type: list, each: number (sRGB in [0, 1])\n:default: `[0.7, 0.7, 0.7]`\n",
        "temporary\n:type: list, each: points | views\n",
        "fit.steps\n:type: integer, at least 1, at most 100000 (steps)\n:default: `null`\n",
    ):
        assert f"```{{confval}} {entry}" in text
    assert "null means 1500 in demo and fast, 5000 in paper." in text
    # A key of a section stands below its heading, and before the headings inside it.
    teacher = text[text.index("\n## teacher\n") :]
    assert teacher.index("teacher.batch\n") < teacher.index("\n### teacher.preprocess\n")


def value_of(config, key):
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_gives_what_is_null_and_the_users_value_wins(name):
    """Of each key in turn: null and missing are the recipe's, a value stands, and the other keys stay the recipe's."""
    plain = configuration.check({"recipe": name})
    for key, values in recipes.KEYS.items():
        assert value_of(plain, key) == values[recipes.RECIPES.index(name)]
        *parents, last = key.split(".")
        for given in (None, values[recipes.PAPER]):
            nested = {last: given}
            for parent in reversed(parents):
                nested = {parent: nested}
            config = configuration.check({"recipe": name, **nested})
            assert value_of(config, key) == (given if given is not None else value_of(plain, key))
            assert all(value_of(config, other) == value_of(plain, other) for other in recipes.KEYS if other != key)


def test_the_same_numbers_are_the_same_settings_by_whichever_name():
    fast = configuration.check({"recipe": "fast"})
    spelled = configuration.check({"fit": recipes.values("fast")["fit"]})
    assert stage_settings(fast, "fit") == stage_settings(spelled, "fit")
    assert stage_settings(fast, "fit") != stage_settings(configuration.check({}), "fit")


def test_a_key_that_has_gone_says_what_to_write():
    with pytest.raises(UsageError, match=r"fit\.preset is no key any more: write `recipe: fast`"):
        configuration.check({"fit": {"preset": "fast"}})


def test_overlays_are_for_real_work_and_hold_only_what_is_theirs(checkout):
    overlays = sorted((checkout / "configs").glob("*.yaml"))
    assert overlays
    for overlay in overlays:
        values = yaml.safe_load(overlay.read_text())
        assert values["recipe"] == "paper"
        config = configuration.read(checkout / "config.yaml", overlay)
        given = set(names(values))
        assert not given & set(recipes.KEYS), "the recipe says it"
        # as many as the paper's splats have
        assert 10_000 <= config.fit.gaussians <= 20_000
        assert config.fit.steps == 5_000


def names(values, prefix=""):
    for key, value in values.items():
        yield from names(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]


def test_the_schema_names_every_section():
    schema = json.loads(configuration.schema())
    assert set(schema["properties"]) == set(configuration.Config.model_fields)
    validator_of = schema["$defs"]["Fit"]["properties"]["steps"]["anyOf"]
    assert {"type": "null"} in validator_of


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"encoder": {"texture": True, "refinement": False}}, "texture is read by a refinement block along patches"),
        ({"encoder": {"texture": True, "refinement_along": "gaussians"}}, "texture is read by a refinement block"),
        (
            {"encoder": {"patch_pooling": "weighted", "refinement_along": "gaussians"}},
            "patch_pooling = weighted has no",
        ),
        ({"training": {"image_loss": "multi_positive", "over_views": "sum"}}, "over_views = sum has no part in"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(settings, words):
    """Else a user compares two runs that are one."""
    with pytest.raises(UsageError, match=words):
        configuration.check(settings)
