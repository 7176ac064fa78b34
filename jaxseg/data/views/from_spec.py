"""Which rule of views a detector's `InputSpec` asks for.

Another kind of view would be a file beside this one and a line in it.
"""

from jaxseg.data.views.placed import PlacedRule
from jaxseg.data.views.stretched import StretchedRule
from jaxseg.data.views.view import ViewRule
from jaxseg.structures import InputSpec


def view_rule(spec: InputSpec) -> ViewRule:
    """The rule by which a detector sees pictures.

    Raises:
        ValueError: the spec contradicts itself.
    """
    return StretchedRule(spec) if spec.resize.rule == "stretch" else PlacedRule(spec)
