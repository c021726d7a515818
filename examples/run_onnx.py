"""Detect objects with a file of `rankdet export`: python run_onnx.py detector.onnx IMAGE ...

Needs numpy, pillow and onnxruntime. All that is to be known stands in the file's metadata.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=onnxruntime.get_available_providers())
about = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
least = np.array([-1 if t is None else t for t in about["thresholds"]], np.float32)
for name in sys.argv[2:]:
    image = ImageOps.exif_transpose(Image.open(name)).convert("RGB")
    scale = min(about["shorter"] / min(image.size), about["longer"] / max(image.size))
    width, height = (max(1, int(side * scale + 0.5)) for side in image.size)
    columns, rows = (-(-side // about["divisor"]) * about["divisor"] for side in (width, height))
    padded = np.full((rows, columns, 3), about["fill"], np.uint8)
    padded[:height, :width] = image.resize((width, height), Image.Resampling.BILINEAR)
    inputs = {"images": padded.transpose(2, 0, 1)[None], "sizes": np.array([[height, width]])}
    boxes, scores, labels = (output[0] for output in session.run(None, inputs))
    boxes *= np.tile([image.width / width, image.height / height], 2)
    for box, score, label in zip(boxes, scores, labels, strict=True):
        if label >= 0 and score >= least[label]:
            print(json.dumps([name, about["classes"][label], float(score), box.tolist()]))
