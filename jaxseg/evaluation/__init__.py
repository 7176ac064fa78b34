"""From a detector's output to pictures' masks, COCO's results and COCO's metrics."""

from jaxseg.evaluation.evaluator import evaluate

__all__ = ["evaluate"]
