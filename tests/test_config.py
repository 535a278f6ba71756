import json

import pytest
import yaml

from clipgs import config as configuration
from clipgs.core.errors import UsageError

SMALLER = (
    "views",
    "fit",
    "render",
    "teacher",
    "encoder",
    "training",
    "evaluation",
)  # sections in which the demo's settings differ


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
    settings = [configuration.stage_settings(config, stage) for stage in configuration.STAGES]
    assert configuration.from_settings(*settings, configuration.runtime_settings(config)) == config


def test_a_runtime_key_is_in_no_stages_settings():
    plain = configuration.check({})
    other = configuration.check({"output": "elsewhere", "device": "cpu", "workers": {"threads": 3}, "cache": "c"})
    for stage in configuration.STAGES:
        assert configuration.stage_settings(plain, stage) == configuration.stage_settings(other, stage)


def test_every_key_reaches_a_stage_or_the_run():
    config = configuration.check({})
    layers = [configuration.stage_settings(config, stage) for stage in configuration.STAGES]
    reached = configuration.merge(*(json.loads(layer) for layer in [*layers, configuration.runtime_settings(config)]))
    for key in set(configuration.setting_names()) - {"fit.preset"}:  # it stands for other keys, which do
        value = reached
        for part in key.split("."):
            assert part in value, f"{key} changes nothing"
            value = value[part]


def test_config_yaml_says_what_the_code_says(checkout):
    """config.yaml is written by the code: every key, its unit and meaning, and the default where the demo's differs."""
    text = (checkout / "config.yaml").read_text()
    values = yaml.safe_load(text)
    defaults = yaml.safe_load(configuration.to_yaml())

    def differing(ours, theirs):
        return {
            key: differing(value, theirs[key]) if isinstance(value, dict) and value else value
            for key, value in ours.items()
            if value != theirs[key]
        }

    overrides = differing(values, defaults)
    assert text.endswith("\n\n" + configuration.to_yaml(overrides))
    assert set(overrides) == set(SMALLER)  # fewer and smaller, and nothing else
    configuration.check(values)


def test_a_preset_gives_what_is_null_and_no_more():
    steps = {name: preset["steps"] for name, preset in configuration.FIT_PRESETS.items()}
    assert steps["paper"] == 5_000
    for name in steps:
        assert configuration.check({"fit": {"preset": name, "steps": None}}).fit.steps == steps[name]
        assert configuration.check({"fit": {"preset": name, "steps": 7}}).fit.steps == 7
    # the same numbers are the same settings, by whichever name
    fast = configuration.check({"fit": {"preset": "fast"}})
    spelled = configuration.check({"fit": configuration.FIT_PRESETS["fast"]})
    assert configuration.stage_settings(fast, "fit") == configuration.stage_settings(spelled, "fit")
    assert configuration.stage_settings(fast, "fit") != configuration.stage_settings(configuration.check({}), "fit")


def test_overlays_are_valid(checkout):
    overlays = sorted((checkout / "configs").glob("*.yaml"))
    assert overlays
    for overlay in overlays:
        config = configuration.read(checkout / "config.yaml", overlay)
        # as many as the paper's splats have
        assert 10_000 <= config.fit.gaussians <= 20_000
        assert config.fit.steps == 5_000


def test_real_work_does_not_inherit_the_demos_settings(checkout):
    demo = yaml.safe_load((checkout / "config.yaml").read_text())
    defaults = yaml.safe_load(configuration.to_yaml())
    smaller = [(section, key) for section in SMALLER for key in demo[section]
               if demo[section][key] != defaults[section][key] and key != "small"]  # fmt: skip
    assert smaller
    for overlay in (checkout / "configs").glob("*.yaml"):
        values = yaml.safe_load(overlay.read_text())
        for section, key in smaller:
            assert key in values[section], f"{overlay.name} must set {section}.{key}"


def test_the_schema_names_every_section():
    schema = json.loads(configuration.schema())
    assert set(schema["properties"]) == set(configuration.Config.model_fields)
