"""The Hugging Face hub's names of licences."""

import re

# How names and addresses of licences are written, to the words of SPDX; in this order.
_SPELLINGS = {
    r"(creativecommons\.org/\w+/[\w-]+/[\d.]+)\S*": r"\1",  # without country and language
    r"creative\W?commons": " cc ",
    r"attribution": " by ",
    r"non\W?commercial": " nc ",
    r"share\W?alike": " sa ",
    r"no\W?deriv\w+": " nd ",
    r"public\W?domain|zero": " 0 ",
    r"lesser general public": " lgpl ",
    r"affero general public": " agpl ",
    r"general public": " gpl ",
    r"gplv": "gpl ",
}
_SILENT = frozenset(
    re.findall(
        r"\w+",
        "the a license licence licenses software version v gnu clause new revised modified simplified only or later "
        "international unported generic universal dedication http https www org opensource spdx html",
    )
)
_NAMES = {
    "0": "cc0-1.0",
    "cc 0": "cc0-1.0",
    "cc 0 1": "cc0-1.0",
    "mit": "mit",
    "apache 2": "apache-2.0",
    "bsd": "bsd",
    "bsd 2": "bsd-2-clause",
    "bsd 3": "bsd-3-clause",
    "gpl 2": "gpl-2.0",
    "gpl 3": "gpl-3.0",
    "lgpl 2.1": "lgpl-2.1",
    "lgpl 3": "lgpl-3.0",
    "agpl 3": "agpl-3.0",
    "mpl 2": "mpl-2.0",
    "odc by": "odc-by",
    "unlicense": "unlicense",
}
_VERSIONS = {  # of Creative Commons; the hub knows no others
    "by": ("2.0", "2.5", "3.0", "4.0"),
    "by-sa": ("3.0", "4.0"),
    "by-nc": ("2.0", "3.0", "4.0"),
    "by-nd": ("4.0",),
    "by-nc-sa": ("2.0", "3.0", "4.0"),
    "by-nc-nd": ("3.0", "4.0"),
}


def hub_license(name: str | None) -> str:
    """The hub's name of a licence; `other` if it has none, `unknown` for no licence.

    `name` is in words, as SPDX writes it, or the address of the licence. Objaverse writes Creative Commons licences
    without "CC" and version; without a version they are 4.0.
    """
    if name is None or not name.strip():
        return "unknown"
    text = name.lower().replace("_", " ")
    for pattern, words in _SPELLINGS.items():
        text = re.sub(pattern, words, text)
    found = {word.removesuffix(".0") for word in re.findall(r"\d+(?:\.\d+)?|[^\W\d]+", text)}
    return _HUB.get(frozenset(found - _SILENT), "other")


def _hub_names() -> dict[frozenset[str], str]:
    """The words of a licence in any order, to its name."""
    names = {frozenset(words.split()): name for words, name in _NAMES.items()}
    for terms, versions in _VERSIONS.items():
        for version in versions:
            words = frozenset([*terms.split("-"), version.removesuffix(".0")])
            names |= dict.fromkeys((words, words | {"cc"}), f"cc-{terms}-{version}")
        unversioned = frozenset(terms.split("-"))
        names |= dict.fromkeys((unversioned, unversioned | {"cc"}), f"cc-{terms}-4.0")
    return names


_HUB = _hub_names()
