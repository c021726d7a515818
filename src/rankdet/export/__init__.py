"""Writing a detector as one file for other runtimes: ONNX, TorchScript and PyTorch's pt2.

`rankdet.export.write.write_file` is the door. `graph` holds what is computed, `suppression` how
duplicates are removed, `formats` how each file is written and run, `verify` whether it does what
the model does.
"""
