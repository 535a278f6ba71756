#!/usr/bin/env bash
# transformers 5.24.0 (tokenizers 0.23.3, huggingface_hub 2.4.0) and tokenizer.json of T5, Gemma, XLM-R. 2026-11-28.
#
# Expected: AutoTokenizer.from_pretrained(FOLDER) reads a text as the folder's tokenizer.json says, as transformers 4 does
# and as `tokenizers.Tokenizer.from_file` does: the file holds the normaliser, for instance one that lowers all letters.
# True: if tokenizer_config.json names T5Tokenizer, GemmaTokenizer or XLMRobertaTokenizer, the vocabulary is taken from the
# file, and of its normaliser at most a character map of SentencePiece (Precompiled). The rest (Lowercase, NFKC, Replace)
# is replaced by what the class brings, so "A MUG" and "a mug" become other tokens. There is no error and no warning.
# The same file under the class PreTrainedTokenizerFast is read as it says.
# It matters for models that were trained on normalised texts: what they make of a text changes with the major version of
# transformers, in silence. 5.0.0 does so for T5Tokenizer and GemmaTokenizer; 4.45 to 4.57 read as the files say.
# A remedy: after loading, put `model`, `normalizer` and `pre_tokenizer` of Tokenizer.from_file into `backend_tokenizer`.
#
# Prints what was seen; ends with 0 while that is so, and with 1 when it changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  transformers==5.24.0 tokenizers==0.23.3 huggingface_hub==2.4.0
cat > "$folder/seen.py" <<'PY'
import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
BLANK = "\u2581"
ROLES = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def save(folder, name):
    """A small tokenizer that lowers all letters, of the model that the class wants: BPE for Gemma, else Unigram."""
    roles = ROLES | ({} if name == "T5Tokenizer" else {"bos_token": "<s>"})
    special = list(roles.values())
    if name == "GemmaTokenizer":
        words = {word: place for place, word in enumerate([*special, BLANK, *LETTERS, "mu", "mug"])}
        tokenizer = Tokenizer(models.BPE(words, [("m", "u"), ("mu", "g")], unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", BLANK)])
    else:
        scores = [(word, 0.0) for word in special] + [(BLANK + word, -2.0) for word in ("", "a", "mug")]
        scores += [(letter, -6.0) for letter in LETTERS]
        tokenizer = Tokenizer(models.Unigram(scores, special.index("<unk>"), byte_fallback=False))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(special)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **roles}))


as_described = True
for name in ("T5Tokenizer", "GemmaTokenizer", "XLMRobertaTokenizer", "PreTrainedTokenizerFast"):
    folder = Path(sys.argv[1]) / name
    save(folder, name)
    said = Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded = AutoTokenizer.from_pretrained(str(folder))
    found = loaded.convert_ids_to_tokens(loaded("A MUG", add_special_tokens=False).input_ids)
    expected = said.encode("A MUG", add_special_tokens=False).tokens
    print(f"{name}: the file says {' '.join(expected)}, transformers reads {' '.join(found)}")
    as_described &= (found == expected) == (name == "PreTrainedTokenizerFast")
    as_described &= "mug" in expected[-1]
sys.exit(not as_described)
PY
"$folder/venv/bin/python" "$folder/seen.py" "$folder" 2> "$folder/said" || { cat "$folder/said" >&2; exit 1; }
