"""Running a detector on images, and evaluating its detections with COCO's metrics."""
