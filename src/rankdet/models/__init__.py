"""Models: from images to predictions, and from predictions to detections."""
