"""What is trained: methods by name, the images that they see, and networks."""

from collections.abc import Mapping, Sequence

from study.methods.ablations import ABLATIONS
from study.methods.compared import COMPARED
from study.methods.latent import LATENT
from study.methods.method import Method
from study.methods.wrapped import WRAPPED

__all__ = ["GROUPS", "METHODS", "Method", "chosen"]

METHODS: Mapping[str, Method] = {**COMPARED, **ABLATIONS, **LATENT, **WRAPPED}
"""All methods by their names, in the order of the table."""

_NAMES = (*METHODS,)
GROUPS: Mapping[str, tuple[str, ...]] = {
    "main": (*COMPARED,),
    "table2": _NAMES[_NAMES.index("cooperative") : _NAMES.index("separate") + 1],
    "latent": (*LATENT,),
    "wrapped": (*WRAPPED,),
    "all": (*COMPARED, *ABLATIONS),
}
"""Several methods by one name; `all` are those that train any network."""


def chosen(names: Sequence[str]) -> list[str]:
    """Spell groups out, each method once and in the order of the table."""
    wanted = {name for given in names for name in GROUPS.get(given, (given,))}
    return [name for name in METHODS if name in wanted]
