"""One module for each command: its `main(argv=None)` is what `jmnat NAME` and the scripts in run_scripts/ call."""

COMMANDS = {
    "translate": "Translate a file or standard input line by line.",
    "serve": "Serve a model over HTTP, with the routes of LibreTranslate.",
    "prepare": "Turn parallel text into the data that training reads.",
    "train": "Train a JM-NAT.",
    "train-teacher": "Train an autoregressive teacher.",
    "init": "Make the start of a JM-NAT from an autoregressive model such as an opus-mt.",
    "distill": "Translate the training set with a teacher.",
    "convert-teacher": "Turn an opus-mt or another autoregressive model into a JM-NAT: all of the above and scores.",
    "evaluate": "Translate a test set and score it.",
    "tune": "Choose how a model decodes by BLEU on validation text.",
    "average-checkpoints": "Average checkpoints of one training into one model.",
    "plot": "Draw learning curves, or BLEU against latency, sentence length or noise.",
    "export-onnx": "Write a model as ONNX graphs, which are faster on a CPU.",
    "publish": "Build a folder that loads without this package, and push it to the Hub.",
    "convert-fairseq": "Turn a fairseq checkpoint into a model folder.",
    "finetune-example": "Fine-tune the shipped model with the trainers of Transformers.",
    "reproduce": "Run the paper's experiments.",
    "benchmark": "Time JM-NAT against its teacher on a CPU.",
    "benchmark-gpu": "Time JM-NAT against its teacher on a GPU.",
    "benchmark-training": "Measure how fast JM-NAT trains.",
}
