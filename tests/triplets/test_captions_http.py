"""Captions by a vision-language model on a server: what is made of its answers, and that none is asked for twice."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from clipgs import config as configuration
from clipgs.config import Http
from clipgs.core.bundles import TarWriter, read_table, tar_objects, write_table
from clipgs.core.errors import ClipgsError, ObjectError, UsageError
from clipgs.core.runner import stage_schema
from clipgs.splats.pictures import from_image, read_all, to_webp
from clipgs.stages import path, runtime_settings, stage_settings
from clipgs.teacher import features
from clipgs.teacher import model as teacher
from clipgs.triplets import chat, stages
from clipgs.triplets.captions_http import caption_of
from clipgs.triplets.chat import Answer
from tests.catalog.server import Fault
from tests.packed_world import OK, VIEWS, picture
from tests.triplets.chat_server import ChatServer, completion
from tests.triplets.test_captions_written import blank, with_catalog


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(chat, "FIRST_PAUSE_SECONDS", 0.02)


@pytest.fixture
def server():
    with ChatServer() as made:
        yield made


def config_of(world, server, http=(), **settings):
    asked = {"address": server.address, "model": "vlm", "views": 2, "per_minute": 60_000.0, **dict(http)}
    caption = {"captioner": "http", "http": asked, **settings}
    return world.config(cache=str(world.folder / "cache"), caption=caption)


def caption(world, server, http=(), **settings):
    """Captions of the shard by uid, made by the stage with the tiny teacher."""
    config = config_of(world, server, http, **settings)
    if config.caption.uses_teacher:
        features.embed_images(config, "00000", 1)
    stages.caption(config, "00000", 1)
    return {row["uid"]: row for row in read_table(path(config, "captions", "00000", ".parquet"))}


def says(*texts):
    """A reply that gives these texts one after the other to each set of pictures."""
    asked: dict[str, int] = {}

    def reply(fields):
        key = json.dumps(fields["messages"])
        number = asked[key] = asked.get(key, -1) + 1
        return completion(texts[number % len(texts)])

    return reply


# --- answers ---------------------------------------------------------------------------------------------------------

PLAIN = "A red mug with a white handle."


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        f"  {PLAIN}\n",
        f'"{PLAIN}"',
        f"\u201c{PLAIN}\u201d",
        f"**{PLAIN}**",
        f"`{PLAIN}`",
        "A **red** mug with a *white* handle.",
        f"Caption: {PLAIN}",
        f'**Caption:** "{PLAIN}"',
        f"**Caption:**\n{PLAIN}",
        f"# Caption\n\n{PLAIN}",
        f"## Caption\n{PLAIN}",
        f"Sure! Here's a caption for the object: {PLAIN}",
        f"Here\u2019s the description:\n\n{PLAIN}\n\nLet me know if you need more!",
        "A red mug\nwith a white handle.",
        f"1. {PLAIN}\n2. A red cup.",
        f"Here are some captions:\n- {PLAIN}\n- A red cup.",
        f"```\n{PLAIN}\n```",
        f"<think>Is it a mug?\n\nYes.</think>\n\n{PLAIN}",
        f"The user wants a caption: a mug?\n</think>\n{PLAIN}",
        f"\u25c1think\u25b7hm\u25c1/think\u25b7{PLAIN}",
        f"<|begin_of_box|>{PLAIN}<|end_of_box|>",
        f"{PLAIN}<|im_end|>",
        f"{PLAIN}</s>",
    ],
)
def test_the_caption_is_found_in_what_the_model_says(text):
    assert caption_of(Answer(text, "stop", None)) == PLAIN


@pytest.mark.parametrize(
    "text",
    [
        "A 2*2*2 cube of bricks.",
        'A sign that says "STOP" in the game\'s style.',
        '"STOP" on a sign beside "GO"',
        "A mug: red, with a handle.",
        "A board game \u201cSorry!\u201d in its box.",
        "Unfortunate statue of a king.",
        "here_be_dragons, a map.",
    ],
)
def test_a_caption_keeps_its_own_signs(text):
    assert caption_of(Answer(text, None, None)) == text


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer("", "stop", None), "has no words"),
        (Answer(" \n...\n", "stop", None), "has no words"),
        (Answer("<think>a mug, or", "length", None), "was cut before a sentence ended; raise caption.http.max_tokens"),
        (Answer("A red mug with a", "length", None), "was cut before a sentence ended"),
        (Answer("A mug.", "content_filter", None), "it refused to answer"),
        (Answer("", "stop", "I cannot help with that"), "it refused to answer"),
        (Answer("I'm sorry, but I can't help with that.", "stop", None), r"refused to answer \(I'm sorry, but"),
        (Answer("I\u2019m really sorry, no.", "stop", None), "it refused to answer"),
        (Answer("As an AI, I do not see pictures.", "stop", None), "it refused to answer"),
        (Answer("I cannot see any pictures.", "stop", None), "it refused to answer"),
    ],
)
def test_what_is_no_caption_is_said(answer, reason):
    with pytest.raises(ObjectError, match=reason):
        caption_of(answer)


def test_a_caption_that_was_cut_ends_with_its_last_sentence():
    assert caption_of(Answer(f"{PLAIN} It stands on 3.5 mm of", "length", None)) == PLAIN
    assert caption_of(Answer(PLAIN, "length", None)) == PLAIN


# --- the stage -------------------------------------------------------------------------------------------------------


def test_the_teacher_chooses_among_the_candidates_and_all_is_kept(world, server):
    with_catalog(world, dict.fromkeys("abc"))
    server.reply = says("A red mug.", "A blue cup.", '"A red mug."')
    rows = caption(world, server, {"candidates": 3, "prompt": "What is it?"})
    assert list(rows) == ["a", "b", "c"]
    row = rows["b"]
    assert (row["status"], row["model"], row["prompt"]) == ("ok", "vlm", "What is it?")
    assert row["source"] == "vlm, chosen by the teacher"
    assert row["candidates"] == ["A red mug.", "A blue cup."]
    judge = teacher.load(world.config())
    images = judge.encode_images(read_all(tar_objects(world.output / "renders" / "00000.tar")["b"]))
    expected = (judge.encode_texts(row["candidates"]) @ images.T).mean(1)
    assert torch.allclose(torch.tensor(row["scores"]), expected, atol=1e-3)  # the features are float16
    assert row["caption"] == row["candidates"][int(np.argmax(row["scores"]))]
    assert row["score"] == pytest.approx(max(row["scores"]), abs=1e-6)
    assert len(server.requests) == 9


def test_one_candidate_needs_no_teacher(world, server):
    with_catalog(world, dict.fromkeys("abc"))
    world.settings["teacher"] = {"name": "train"}
    for row in caption(world, server, {"candidates": 1}).values():
        assert (row["caption"], row["candidates"], row["source"]) == ("A red mug.", ["A red mug."], "vlm")
        assert (row["score"], row["scores"]) == (None, [])
    with pytest.raises(
        UsageError, match=r"caption\.http\.candidates needs a teacher.*set caption\.http\.candidates to 1"
    ):
        config_of(world, server)
    with pytest.raises(UsageError, match=r"caption\.min_score needs a teacher"):
        config_of(world, server, {"candidates": 1}, min_score=0.1)


def test_pictures_that_show_something_are_sent_evenly_spread(world, server):
    files = [to_webp(picture(seed), 90) for seed in (1, 2, 3)]
    world.add_shard("00000", {"a": "x", "b": "x"}, {"a": [files[0], to_webp(blank(), 90), *files[1:]],
                                                   "b": [to_webp(blank(), 90)] * VIEWS})  # fmt: skip
    with_catalog(world, dict.fromkeys("ab"))
    rows = caption(world, server, {"candidates": 1})
    assert rows["b"]["error"] == f"none of its {VIEWS} pictures shows anything"
    assert rows["a"]["status"] == "ok"
    (_,) = server.requests
    first, last = server.pictures(0)
    assert np.array_equal(from_image(first), from_image(files[0]))
    assert np.array_equal(from_image(last), from_image(files[2]))


def test_an_object_without_a_caption_is_a_failed_row(world, server):
    with_catalog(world, {**dict.fromkeys("abc"), "gone": None})
    answers = {"a": completion("I'm sorry, I can't."), "b": completion("A", "length"), "c": completion("A red mug.")}
    places = {}

    def reply(fields):
        url = fields["messages"][0]["content"][1]["image_url"]["url"]
        return answers["abc"[places.setdefault(url, len(places))]]

    server.reply = reply
    rows = caption(world, server, {"candidates": 1, "parallel": 1})
    assert rows["a"]["error"] == "vlm wrote no caption: it refused to answer (I'm sorry, I can't.)"
    assert rows["b"]["error"].startswith("vlm wrote no caption: its answer was cut before a sentence ended")
    assert (rows["c"]["status"], rows["c"]["caption"]) == ("ok", "A red mug.")
    assert rows["gone"]["error"] == "no pictures of it in renders/00000.tar"


def test_a_candidate_that_is_refused_leaves_the_others(world, server):
    with_catalog(world, {"a": None})
    server.faults = [Fault(status=400)]
    server.reply = says("A red mug.", "")
    row = caption(world, server, {"candidates": 3})["a"]
    assert (row["caption"], row["candidates"]) == ("A red mug.", ["A red mug."])


def test_a_wrong_token_ends_the_stage_with_one_line(world, server):
    with_catalog(world, dict.fromkeys("abc"))
    server.always = Fault(status=401)
    with pytest.raises(ClipgsError, match="set the environment variable OPENAI_API_KEY") as error:
        caption(world, server, {"candidates": 1, "parallel": 1})
    assert "\n" not in str(error.value)
    assert len(server.requests) <= 2
    assert not path(world.config(), "captions", "00000", ".parquet").exists()


def test_a_stage_that_is_made_again_asks_only_what_is_new(world, server):
    with_catalog(world, dict.fromkeys("abc"))
    server.reply = says("A red mug.", "A blue cup.")
    first = caption(world, server, {"candidates": 2})
    assert len(server.requests) == 6
    same = {"max_characters": 100, "min_score": -1.0}
    again = caption(world, server, {"candidates": 2, "parallel": 1, "retries": 1, "per_minute": 9e3}, **same)
    assert [row["caption"] for row in again.values()] == [row["caption"] for row in first.values()]
    assert len(server.requests) == 6
    caption(world, server, {"candidates": 3})
    assert len(server.requests) == 9
    caption(world, server, {"candidates": 3, "prompt": "What is it?"})
    assert len(server.requests) == 18


def test_cap3d_where_listed_and_the_server_elsewhere(world, server):
    with_catalog(world, {"a": None, "b": None})
    listed = world.folder / "listed.csv"
    listed.write_text("a,A mug of Cap3D.\n")
    rows = caption(world, server, {"candidates": 1}, captioner="cap3d", cap3d=str(listed), fallback="http")
    assert (rows["a"]["caption"], rows["a"]["source"], rows["a"]["model"]) == ("A mug of Cap3D.", "Cap3D", None)
    assert (rows["b"]["caption"], rows["b"]["source"], rows["b"]["model"]) == ("A red mug.", "vlm", "vlm")


# --- settings --------------------------------------------------------------------------------------------------------


def test_only_what_changes_an_answer_is_in_the_stages_settings():
    def settings(caption=None, **http):
        given = {"captioner": "http", "http": {"model": "vlm", **http}, **(caption or {})}
        return stage_settings(configuration.check({"caption": given}), "caption")

    runtime = {"address": "http://other/v1", "token_variable": "T", "parallel": 1, "per_minute": 1.0, "retries": 0,
               "timeout_seconds": 1.0}  # fmt: skip
    assert set(runtime) == {name for name, field in Http.model_fields.items() if field.json_schema_extra["runtime"]}
    plain = settings()
    assert settings(**runtime) == settings({"coca": {"views": 3}}) == plain
    for other in ({"model": "x"}, {"prompt": "x"}, {"views": 1}, {"candidates": 2}, {"extra": {"seed": 1}}):
        assert settings(**other) != plain
    assert set(json.loads(plain)) == {"stage", "version", "caption", "views", "teacher"}
    assert set(json.loads(settings(candidates=1))["teacher"]) == {"images"}


@pytest.mark.parametrize("captioner", ["catalog", "cap3d", "coca", "consensus"])
def test_captions_of_others_do_not_depend_on_the_server(captioner):
    def settings(**http):
        given = {"captioner": captioner, "cap3d": "x.csv", "http": http}
        return stage_settings(configuration.check({"caption": given}), "caption")

    assert "http" not in json.loads(settings())["caption"]
    assert settings() == settings(model="vlm", prompt="x")


@pytest.mark.parametrize(
    ("http", "words"),
    [
        ({}, r"caption\.http\.model: `http` needs the name"),
        ({"model": "m", "extra": {"n": 2}}, r"caption\.http\.extra = .*: must not hold n"),
        ({"model": "m", "temperature": 3}, r"caption\.http\.temperature = 3"),
    ],
)
def test_a_wrong_setting_is_one_line(http, words):
    with pytest.raises(UsageError, match=words) as error:
        configuration.check({"caption": {"captioner": "http", "http": http}})
    assert "\n" not in str(error.value)


# --- 500 objects -----------------------------------------------------------------------------------------------------


def with_objects(world, count):
    """Objects with a picture of their own each; their uids."""
    uids = [f"{number:03d}" for number in range(count)]
    with_catalog(world, dict.fromkeys(uids))
    with TarWriter(world.output / "renders" / "00000.tar") as tar:
        for number, uid in enumerate(uids):
            tar.add(f"{uid}/00.webp", to_webp(picture(number), 90))
    write_table(world.output / "renders" / "00000.parquet", [{"uid": uid, **OK} for uid in uids], stage_schema())
    return uids


def numbered(fields):
    """A caption of its own for each picture."""
    url = fields["messages"][0]["content"][1]["image_url"]["url"]
    return completion(f"A mug number {hashlib.sha256(url.encode()).hexdigest()[:8]}.")


def started(config):
    """A job of captions in a process of its own."""
    command = [sys.executable, "-m", "clipgs", "caption", "00000", "--settings", stage_settings(config, "caption")]
    environment = {**os.environ, "CLIPGS_RUNTIME": runtime_settings(config)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def works_on(job, folder):
    """Whether a process has a file of the folder open."""
    opened = Path(f"/proc/{job.pid}/fd")
    try:
        return any(os.readlink(file).startswith(str(folder)) for file in opened.iterdir())
    except OSError:  # closed meanwhile
        return False


def test_two_jobs_at_once_share_the_answers(world, server, tmp_path):
    """Of two outputs with the same pictures and one cache: nothing is asked twice, and nobody lacks a caption."""
    uids = with_objects(world, 60)
    server.reply = numbered
    server.faults = [Fault(status=429), Fault(cut_after=20), Fault(status=500)]
    server.hold_at = 5  # until both are at work
    configs = [config_of(world, server, {"candidates": 1, "timeout_seconds": 20.0})]
    configs.append(configs[0].model_copy(update={"output": str(tmp_path / "other")}))
    shutil.copytree(world.output, tmp_path / "other")
    jobs = [started(config) for config in configs]
    end = time.monotonic() + 60
    while not all(works_on(job, world.folder / "cache") for job in jobs) and time.monotonic() < end:
        time.sleep(0.05)
    server.go_on(None)
    assert [job.wait(60) for job in jobs] == [0, 0]
    assert len(server.answered) == 60
    assert set(server.answered.values()) == {1}
    tables = [read_table(path(config, "captions", "00000", ".parquet")) for config in configs]
    assert [row["uid"] for row in tables[0] if row["status"] == "ok"] == uids
    assert tables[0] == tables[1]


@pytest.mark.timeout(180)
def test_of_500_objects_none_is_asked_twice_that_was_answered(world):
    """A tenth of the requests fail, and the job is killed twice."""
    uids = with_objects(world, 500)
    with ChatServer(failure_rate=0.1) as server:
        server.reply = numbered
        config = config_of(world, server, {"candidates": 1})
        for hold_at in (150, 320):
            server.go_on(hold_at)
            job = started(config)
            assert server.held.wait(60)
            # An answer that is still on its way to the disk is lost with the process, whatever the process does.
            end = time.monotonic() + 10
            while len([*(world.folder / "cache").rglob("*.json")]) < hold_at and time.monotonic() < end:
                time.sleep(0.01)
            job.kill()
            job.wait()
        server.go_on(None)
        stages.caption(config, "00000", 1)
        assert len(server.answered) == 500
        assert set(server.answered.values()) == {1}
        assert len(server.requests) > 530
    rows = read_table(path(config, "captions", "00000", ".parquet"))
    assert [row["uid"] for row in rows] == uids
    assert {row["status"] for row in rows} == {"ok"}
    assert len({row["caption"] for row in rows}) == 500
