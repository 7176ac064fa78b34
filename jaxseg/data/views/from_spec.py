"""The choice of the view rule for a detector's `InputSpec`.

To add another kind of view, write a file beside this one and add a line here.
"""

from jaxseg.data.views.placed import PlacedRule
from jaxseg.data.views.stretched import StretchedRule
from jaxseg.data.views.view import ViewRule
from jaxseg.structures import InputSpec


def view_rule(spec: InputSpec) -> ViewRule:
    """Returns the rule that turns pictures into a detector's inputs.

    Raises:
        ValueError: the spec contradicts itself.
    """
    return StretchedRule(spec) if spec.resize.rule == "stretch" else PlacedRule(spec)
