"""The choice of the view rule for a detector's `InputSpec`.

To add another kind of view, write a file beside this one and add a line here.
"""

from jaxseg.data.views.placed import PlacedRule
from jaxseg.data.views.stretched import StretchedRule
from jaxseg.data.views.view import ViewRule
from jaxseg.structures import Canvas, InputSpec


def view_rule(spec: InputSpec, canvas: Canvas = "shapes") -> ViewRule:
    """Returns the rule that turns pictures into a detector's inputs.

    Args:
        spec: the input that the detector requires.
        canvas: what pictures that keep their proportions are padded to, see `PlacedRule`. Detectors
            that take no other inputs than `spec.input_sizes` have "shapes" in any case.

    Raises:
        ValueError: the spec contradicts itself.
    """
    if spec.resize.rule == "stretch":
        return StretchedRule(spec)
    return PlacedRule(spec, canvas if spec.size_divisor else "shapes")
