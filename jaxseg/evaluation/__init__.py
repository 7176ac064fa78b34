"""From a detector's output to pictures' masks, COCO's results and COCO's metrics."""
