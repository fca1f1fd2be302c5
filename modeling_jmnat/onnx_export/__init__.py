"""Writing a model as ONNX graphs; this file can be imported without the packages that writing needs."""

PACKAGES = ("onnx", "onnxscript")  # needed for writing graphs, not for running them


def exporter():
    """The function `export_onnx`; raises ValueError if a package that it needs is not installed."""
    try:
        from .export import export_onnx
    except ImportError as error:
        raise ValueError(f"ONNX graphs cannot be written ({error}): pip install 'modeling-jmnat[bench]'") from None
    return export_onnx
