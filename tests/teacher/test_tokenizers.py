import json

import open_clip
import pytest

from clipgs.core.errors import ClipgsError
from clipgs.teacher.tokenizers import FILE, PROBES, identity, restore, same_as_files

transformers = pytest.importorskip("transformers", reason="needs the extra hf")

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors  # noqa: E402

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,-'"
BLANK = "\u2581"  # of SentencePiece
# Class: its special tokens by their roles.
CLASSES = {
    "T5Tokenizer": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GemmaTokenizer": {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"},
    "XLMRobertaTokenizer": {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    "PreTrainedTokenizerFast": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
}


def save(folder, name, normalizer):
    """A folder of a small tokenizer as the hub has it: the model in one file, class and special tokens in another."""
    roles = CLASSES[name]
    special = list(roles.values())
    if name == "GemmaTokenizer":
        words = {word: place for place, word in enumerate([*special, BLANK, *LETTERS, "mu", "mug"])}
        tokenizer = Tokenizer(models.BPE(words, [("m", "u"), ("mu", "g")], unk_token="<unk>"))
        normalizer = normalizers.Sequence([normalizer, normalizers.Replace(" ", BLANK)])
    else:
        scores = [(word, 0.0) for word in special]
        scores += [(BLANK + word, -2.0) for word in ("", "a", "red", "mug")]
        scores += [(letter, -6.0 - place / 100) for place, letter in enumerate(LETTERS)]
        tokenizer = Tokenizer(models.Unigram(scores, special.index("<unk>"), byte_fallback=False))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens(special)
    end = roles["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(f"$A {end}", special_tokens=[(end, special.index(end))])
    folder.mkdir()
    tokenizer.save(str(folder / FILE))
    described = {"tokenizer_class": name, "add_bos_token": False, "add_eos_token": True, **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return folder


@pytest.fixture(params=CLASSES)
def lowering(request, tmp_path):
    """A folder of each class whose file lowers all letters."""
    return save(tmp_path / "tokenizer", request.param, normalizers.Lowercase())


def load(folder):
    return transformers.AutoTokenizer.from_pretrained(str(folder))


def words(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids)


def test_a_tokenizer_that_loses_its_normaliser_is_told(lowering):
    tokenizer = load(lowering)
    if words(tokenizer, "A MUG") == words(tokenizer, "a mug"):  # transformers 4; the file's own class in any
        same_as_files(tokenizer, lowering)
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()  # as if it were lost
    with pytest.raises(ClipgsError, match=r"tokenizer\.json: transformers .* reads .*; install transformers<5"):
        same_as_files(tokenizer, lowering)


def test_restored_it_reads_as_its_file_says(lowering):
    tokenizer = load(lowering)
    restore(tokenizer, lowering)
    said = Tokenizer.from_file(str(lowering / FILE))
    for text in PROBES:
        assert tokenizer(text, add_special_tokens=False).input_ids == said.encode(text, add_special_tokens=False).ids
    assert words(tokenizer, "A MUG") == words(tokenizer, "a mug")
    assert tokenizer("a mug").input_ids[-1] == tokenizer.eos_token_id  # as before


def test_open_clips_wrapper_is_restored_as_well(lowering):
    wrapped = open_clip.tokenizer.HFTokenizer(str(lowering), context_length=8)
    restore(wrapped, lowering)
    assert wrapped(["A MUG"]).tolist() == wrapped(["a mug"]).tolist()
    assert wrapped(["A MUG"]).shape == (1, 8)


def test_every_difference_of_case_accents_width_and_blanks_is_seen(tmp_path):
    """Each normaliser that families of teachers use is told from none."""
    plain = save(tmp_path / "plain", "PreTrainedTokenizerFast", normalizers.Sequence([]))
    for normalizer in (
        normalizers.Lowercase(),
        normalizers.NFKC(),
        normalizers.NFD(),
        normalizers.Replace(",", ""),
        normalizers.Strip(),
        normalizers.StripAccents(),
        normalizers.Prepend("a"),
    ):
        tokenizer = load(plain)
        same_as_files(tokenizer, plain)
        tokenizer.backend_tokenizer.normalizer = normalizer
        with pytest.raises(ClipgsError, match="and the file says"):
            same_as_files(tokenizer, plain)


def test_a_folder_without_the_file_and_one_that_cannot_be_read(tmp_path, lowering):
    tokenizer = load(lowering)
    same_as_files(tokenizer, tmp_path)
    (lowering / FILE).write_text("{")
    with pytest.raises(ClipgsError, match=r"tokenizer\.json cannot be read \(.*\); copy or download it again"):
        same_as_files(tokenizer, lowering)


def test_a_tokenizer_is_told_apart_by_its_vocabulary_and_by_what_it_reads(tmp_path):
    def of(folder, length=9, **options):
        made = open_clip.tokenizer.HFTokenizer(str(folder), context_length=length, **options)
        return identity(made, folder, options)

    one = save(tmp_path / "one", "PreTrainedTokenizerFast", normalizers.Lowercase())
    known = of(one)
    assert len(known.split(",")[0]) == 64
    assert known.endswith(", 9 tokens")
    same = save(tmp_path / "same", "PreTrainedTokenizerFast", normalizers.Lowercase())
    for name in ("README.md", "config.json", "spiece.model", "special_tokens_map.json"):  # what another copy may have
        (same / name).write_text("{}")
    assert of(same) == known
    upper = save(tmp_path / "upper", "PreTrainedTokenizerFast", normalizers.NFC())
    assert len({known, of(upper), of(one, 8), of(one, clean="canonicalize")}) == 4
    file = one / FILE
    file.write_text(file.read_text().replace('"mug"', '"jug"').replace(BLANK + "mug", BLANK + "jug"))
    assert of(one) != known


def test_open_clips_own_tokenizer_is_told_by_its_length_and_options():
    own = open_clip.SimpleTokenizer(context_length=64, clean="canonicalize")
    assert identity(own, None, {"clean": "canonicalize"}) == "open_clip, 64 tokens, clean canonicalize"
