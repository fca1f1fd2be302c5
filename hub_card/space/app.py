"""A page to type a German sentence and watch how JM-NAT translates it: all words at once, refined in k passes.

`python app.py` shows the model beside it in the repository, or MODEL=folder-or-Hub-id. TEACHER=folder-or-Hub-id adds
the translation of an autoregressive model, one word after the other.
"""

import os
from functools import lru_cache

import gradio as gr
from passes import (
    HERE,
    MAX_CANDIDATES,
    MAX_CHARACTERS,
    MAX_PASSES,
    check_size,
    load,
    model_name,
    translate,
    translate_word_by_word,
)
from rendering import render, render_message

EXAMPLES = [
    "Meine Schwester wohnt seit zwei Jahren in Hamburg.",
    "Wenn es morgen regnet, bleiben wir zu Hause.",
    "Speichern Sie das Dokument, bevor Sie es drucken.",
    "Er hat mir gesagt, dass er morgen nicht kommen kann.",
]
INTRODUCTION = """# Watch a translation being mended

Most translators write one word after the other. This one, JM-NAT, predicts **all English words at once**, then masks
those it is least sure of and predicts them again, in k passes.
"""
MAX_WAITING = 64  # requests; further ones are told to come back later
MAX_SESSIONS = 256  # whose settings Gradio remembers, each some 60 kB; this page has none, and each API call is one
REMASKING = {"neighbours together": True, "words one by one": False}
# On a phone the result lies below the options.
SHOW_RESULT = """() => {
    const result = document.querySelector("#result");
    if (result.getBoundingClientRect().top > 0.6 * window.innerHeight) result.scrollIntoView({behavior: "smooth"});
}"""


@lru_cache(maxsize=2)
def loaded(name: str):
    """Model and tokenizer, after one translation to warm up."""
    model, tokenizer = load(name)
    model.generate(**tokenizer("Hallo.", return_tensors="pt").to(model.device))
    return model, tokenizer


def answer(text: str, num_passes: int, num_candidates: int, remasking: str) -> str:
    """HTML of the passes, or of one sentence that says what the user should change."""
    try:
        result = translate(*loaded(model_name()), text, num_passes, num_candidates, REMASKING[remasking])
    except ValueError as error:
        return render_message(str(error))
    if not os.environ.get("TEACHER"):
        return render(result)
    try:
        return render(result, translate_word_by_word(*loaded(os.environ["TEACHER"]), text))
    except ValueError as error:  # it may read less at a time
        return render(result) + render_message(f"Word by word: {error}")


def fit(text: str, *options) -> list[dict]:
    """Whether the text is short enough; checked before a request waits for others, and without tokenising."""
    try:
        check_size(text)
    except ValueError as error:
        return [gr.validate(False, str(error)), *(gr.validate(True, "") for _ in options)]
    return [gr.validate(True, "") for _ in (text, *options)]


def build(adjacent: bool) -> gr.Blocks:
    """The page; `adjacent` selects masking neighbours together as the initial choice."""
    with gr.Blocks(title="JM-NAT: watch a translation being mended", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=280):
                text = gr.Textbox(
                    EXAMPLES[0],
                    label="German sentence",
                    lines=1,
                    max_lines=6,
                    max_length=MAX_CHARACTERS,
                    elem_id="text",
                )
                gr.Examples(EXAMPLES, text, label="Or take one of these")
            with gr.Column(scale=2, min_width=280):
                passes = gr.Slider(1, MAX_PASSES, 4, step=1, label="Passes (k)", elem_id="passes")
                lengths = gr.Slider(1, MAX_CANDIDATES, 4, step=1, label="Lengths tried at once (C)", elem_id="lengths")
                remasking = gr.Radio(
                    list(REMASKING),
                    value=next(name for name, value in REMASKING.items() if value == adjacent),
                    label="What is masked again",
                )
                button = gr.Button("Translate", variant="primary", elem_id="translate")
        result = gr.HTML(elem_id="result")
        translated = gr.on(
            [button.click, text.submit],
            answer,
            [text, passes, lengths, remasking],
            result,
            api_name="translate",
            validator=fit,
            show_progress="minimal",
        )
        translated.then(None, js=SHOW_RESULT)
    return page.queue(max_size=MAX_WAITING)


def main() -> None:
    for name in filter(None, (model_name(), os.environ.get("TEACHER"))):
        loaded(name)
    fonts = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=["monospace"]).set(
        body_text_color_subdued="*neutral_600",  # the theme's colour is too pale to read
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
    )
    model, _ = loaded(model_name())
    build(model.generation_config.remask_adjacent).launch(
        theme=theme, css_paths=HERE / "style.css", footer_links=["gradio"], state_session_capacity=MAX_SESSIONS
    )


if __name__ == "__main__":
    main()
