import json

import pytest

from clipgs import config as configuration
from clipgs.core.errors import ClipgsError
from clipgs.evaluation.gallery import gallery


def rows(count, **over):
    return [
        {"uid": f"u{i}", "group": f"g{i // 2}", "split": "test" if i % 3 else "train", "caption": f"A mug {i % 4}. ",
         "category": "mug", "sha256": f"{i:064x}", **over}
        for i in range(count)
    ]  # fmt: skip


def settings(**keys):
    return configuration.check({"evaluation": keys}).evaluation


def test_the_gallery_is_the_split_by_uid_whatever_the_order_of_rows():
    made = gallery(rows(12), settings(), 36)
    assert made.uids == [f"u{i}" for i in sorted(map(str, range(12))) if int(i) % 3]
    assert made == gallery(rows(12)[::-1], settings(), 36)
    assert gallery(rows(12), settings(split="all"), 36).about()["objects"] == 12
    assert gallery(rows(12), settings(split="all", per="group"), 36).uids == ["u0", "u10", "u2", "u4", "u6", "u8"]


def test_captions_that_say_the_same_are_one():
    listed = rows(6, split="test")
    listed[1]["caption"] = "a  MUG 0"
    made = gallery(listed, settings(), 36)
    assert made.about()["captions"] == len(made.captions) == 4
    assert made.of_caption == [[0, 1, 4], [2], [3], [5]]
    assert made.captions == [0, 2, 3, 5]
    assert made.caption_of == [0, 0, 1, 2, 0, 3]


def test_the_hash_covers_all_that_decides():
    base = gallery(rows(9), settings(), 36).manifest()
    assert base == json.loads(json.dumps(base))
    others = [gallery(rows(9), settings(seed=1), 36), gallery(rows(9), settings(split="all"), 36)]
    for key in ("caption", "group", "category", "sha256"):
        changed = rows(9)
        changed[1][key] = "another"
        others.append(gallery(changed, settings(), 36))
    hashes = {other.manifest()["sha256"] for other in others}
    assert len(hashes) == 6
    assert base["sha256"] not in hashes
    assert gallery(rows(9), settings(resamples=7), 36).manifest() == base


def test_one_object_is_no_gallery():
    with pytest.raises(ClipgsError, match=r"split validation has 0 objects.*evaluation\.split"):
        gallery(rows(9), settings(split="validation"), 36)
