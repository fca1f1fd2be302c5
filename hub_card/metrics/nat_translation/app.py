"""The page of the metric's Space: translations and references, one a line, to scores."""

import evaluate
import gradio

metric = evaluate.load("nat_translation.py")


def score(predictions: str, references: str) -> dict:
    try:
        return metric.compute(predictions=predictions.splitlines(), references=references.splitlines())
    except ValueError as error:
        return {"error": str(error)}


lines = [gradio.Textbox(label=f"{name}, one a line", lines=5) for name in ("Translations", "References")]
page = gradio.Interface(score, lines, gradio.JSON(), title=metric.name, description=metric.description)

if __name__ == "__main__":
    page.launch()
