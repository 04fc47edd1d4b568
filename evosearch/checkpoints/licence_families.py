"""Families of licences, and conflicts between the licences of models that are merged.

A merge is a derived work of all its parents, so the terms of all of them apply to it together. Licences are the hub's
names, as model cards state them. The table is a small one: what is not in it is not known, and is said to be.
This is a help to find questions, not legal advice.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal

Family = Literal["permissive", "share-alike", "non-commercial", "no derivatives", "own terms", "unknown"]

_NAMES: Mapping[Family, str] = {
    "permissive": (
        "apache-2.0 mit bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear isc unlicense wtfpl zlib bsl-1.0 cc0-1.0 "
        "cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 pddl odc-by afl-3.0 ecl-2.0 ncsa artistic-2.0 postgresql ms-pl "
        "cdla-permissive-1.0 cdla-permissive-2.0 openmdw-1.0"
    ),
    "share-alike": (
        "gpl gpl-2.0 gpl-3.0 agpl-3.0 lgpl lgpl-2.1 lgpl-3.0 mpl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 osl-3.0 gfdl "
        "cc-by-sa-3.0 cc-by-sa-4.0 odbl cdla-sharing-1.0 lgpl-lr"
    ),
    "non-commercial": (
        "cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 intel-research "
        "fair-noncommercial-research-license h-research apple-amlr"
    ),
    "no derivatives": "cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0",
    "own terms": (
        "llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma openrail openrail++ creativeml-openrail-m "
        "bigscience-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m deepfloyd-if-license "
        "grok2-community apple-ascl"
    ),
}
FAMILIES: Mapping[str, Family] = {name: family for family, names in _NAMES.items() for name in names.split()}

# Licences under which a licensee may place the whole, although both are share-alike: (from, to)
_COMPATIBLE = {
    *(("lgpl-2.1", "gpl-2.0"), ("lgpl-2.1", "gpl-3.0"), ("lgpl-3.0", "gpl-3.0"), ("lgpl-3.0", "agpl-3.0")),
    *(("gpl-3.0", "agpl-3.0"), ("mpl-2.0", "gpl-2.0"), ("mpl-2.0", "gpl-3.0"), ("mpl-2.0", "agpl-3.0")),
    *(("mpl-2.0", "lgpl-2.1"), ("mpl-2.0", "lgpl-3.0"), ("cc-by-sa-4.0", "gpl-3.0")),
}


def family_of(licence: str) -> Family:
    """Return the family of a licence by the hub's name; `unknown` if it is not in the table."""
    return FAMILIES.get(licence.lower(), "unknown")


def licence_warnings(licences: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return what a merge of models has to observe: restrictions, conflicts, and what is not known.

    Args:
        licences: Model → its licences in lower case; empty if its card states none.
    """
    named = [(model, licence) for model, stated in licences.items() for licence in dict.fromkeys(stated)]
    found = [f"{model}: no licence is stated; ask its authors" for model, stated in licences.items() if not stated]
    for model, licence in named:
        found += [f"{model}: {text}" for text in [_single(licence)] if text]
    for (one, first), (other, second) in combinations(named, 2):
        text = _pair(first, second)
        if text and one != other:
            found.append(f"{one} and {other}: {text}")
    return tuple(dict.fromkeys(found))


def merged_licence(licences: Mapping[str, Sequence[str]]) -> str | None:
    """Return the licence of the merge if all models state the same single one; None otherwise."""
    stated = {tuple(dict.fromkeys(each)) for each in licences.values()}
    only = stated.pop() if len(stated) == 1 else ()
    return only[0] if len(only) == 1 and family_of(only[0]) != "no derivatives" else None


def _single(licence: str) -> str | None:
    return {
        "no derivatives": f"{licence} does not permit derived works to be shared, and a merge is one",
        "non-commercial": f"{licence} permits no commercial use, which then holds for the merge",
        "own terms": f"{licence} has its own terms on use, names and sharing, which then hold for the merge",
        "unknown": f"{licence} is not known to evosearch; read it",
    }.get(family_of(licence))


def _pair(first: str, second: str) -> str | None:
    """Return why two licences conflict; None if they are not known to."""
    families = {family_of(first), family_of(second)}
    sharing = [one for one in (first, second) if _shares_alike(one)]
    if first == second or not sharing:
        if families == {"own terms"} and first != second:
            return f"the terms of {first} and of {second} hold together, and may contradict each other"
        return None
    if len(sharing) == 2 and not {(first, second), (second, first)} & _COMPATIBLE:
        return f"conflict: {first} and {second} each demand that the merge is under their own licence"
    other = next((one for one in (first, second) if one != sharing[0]), "")
    if len(sharing) == 1 and family_of(other) in ("own terms", "non-commercial", "no derivatives"):
        return f"conflict: {sharing[0]} permits no further restrictions, and {other} adds some"
    return None


def _shares_alike(licence: str) -> bool:
    return family_of(licence) == "share-alike" or "-nc-sa-" in licence
