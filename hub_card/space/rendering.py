"""From the passes to HTML, styled by `style.css`. Every text from outside is escaped."""

import html
import math
from collections.abc import Iterable
from itertools import count, repeat

from passes import END, Candidate, Token, Translation, WordByWord

# Lower bounds of the probabilities that share a colour, most certain first; `style.css` has one class for each.
STEPS = (0.9, 0.7, 0.5, 0.3, 0.0)
STEP_NAMES = ("over 90 %", "70–90", "50–70", "30–50", "under 30 %")


def show_token(token: Token, turn: int | None = None) -> str:
    """A chip: colour and bar show the probability; in pass `turn` a frame also shows that it was masked before.

    `turn` also delays its appearance.
    """
    step = next(number for number, bound in enumerate(STEPS) if token.prob >= bound)
    masked = turn is not None and token.masked
    classes = ["chip", f"p{step}"] + ["masked"] * masked
    title, text = f"{100 * token.prob:.0f} %", html.escape(token.text.strip()) or "␣"
    if masked:
        title += ", masked before this pass"
    if token.text == END:
        title, text = f"end of the sentence, {title}", "<i>end</i>"
    replaced = ""
    if masked and token.replaced is not None:
        replaced = f"<del>{'end' if token.replaced == END else html.escape(token.replaced.strip())}</del>"
    style = f"--p:{token.prob:.2f}" + ("" if turn is None else f";--turn:{turn}")
    return f'<span class="{" ".join(classes)}" style="{style}" title="{title}">{replaced}<b>{text}</b></span>'


def show_tokens(tokens: list[Token], turns: Iterable[int | None]) -> str:
    """Chips in a row; the pieces of a word stay together."""
    words: list[list[str]] = []
    for token, turn in zip(tokens, turns, strict=False):
        if not words or token.text.startswith(" ") or token.text == END:
            words.append([])
        words[-1].append(show_token(token, turn))
    groups = "".join(f'<span class="word">{"".join(word)}</span>' for word in words)
    return f'<p class="chips" lang="en">{groups}</p>'


def show_passes(passes: list[list[Token]], seconds: list[float] | None = None) -> str:
    """One row per pass: its number, how much was masked, its time, and the tokens after it."""
    rows = []
    for turn, tokens in enumerate(passes):
        masked = sum(token.masked for token in tokens)
        spent = "" if seconds is None else f"<span>{milliseconds(seconds[turn])}</span>"
        head = f"<header><b>Pass {turn + 1}</b><span>{masked} of {len(tokens)} masked</span>{spent}</header>"
        rows.append(f'<li class="pass" style="--turn:{turn}">{head}{show_tokens(tokens, repeat(turn))}</li>')
    return f'<ol class="passes">{"".join(rows)}</ol>'


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.1f} ms"


def show_times(name: str, unit: str, other: float, seconds: list[float], longest: float) -> str:
    """A bar of one segment for each pass or step, as long as its share of `longest` seconds."""
    parts = [f'<i class="other" style="width:{100 * other / longest:.2f}%" title="encoder {milliseconds(other)}"></i>']
    for number, spent in enumerate(seconds, start=1):
        title = f"{unit} {number}: {milliseconds(spent)}"
        parts.append(f'<i style="width:{100 * spent / longest:.2f}%" title="{title}"></i>')
    plural = unit if len(seconds) == 1 else {"pass": "passes"}.get(unit, f"{unit}s")
    label = f"<b>{name}</b> {len(seconds)} {plural}, {milliseconds(other + sum(seconds))}"
    return f'<div class="times"><span>{label}</span><div class="bar">{"".join(parts)}</div></div>'


def show_legend() -> str:
    chips = [
        f'<span class="chip p{step}" style="--p:{bound + 0.1:.1f}"><b>{name}</b></span>'
        for step, (bound, name) in enumerate(zip(STEPS, STEP_NAMES, strict=True))
    ]
    chips.append('<span class="chip masked p1" style="--p:.8"><b>was masked</b></span>')
    chips.append('<span class="chip masked p1" style="--p:.8"><del>old</del><b>new</b></span>')
    return f'<div class="legend"><span>How sure:</span>{"".join(chips)}</div>'


def show_candidate(candidate: Candidate, chosen: bool) -> str:
    """A card: the final tokens of one length, with its passes collapsed."""
    mark = '<b class="chosen">chosen</b>' if chosen else ""
    mean = candidate.mean_log_prob
    return (
        f'<div class="card{" best" * chosen}"><header><b>{candidate.length} tokens</b>'
        f'<span title="mean log-probability {mean:.2f}">{100 * math.exp(mean):.0f} % sure</span>'
        f"{mark}</header>{show_tokens(candidate.passes[-1], repeat(None))}"
        f"<details><summary>its passes</summary>{show_passes(candidate.passes)}</details></div>"
    )


def render(result: Translation, teacher: WordByWord | None = None) -> str:
    """The whole result as HTML; every text in it is escaped."""
    best, total = result.candidates[0], result.other_seconds + sum(result.pass_seconds)
    longest = total if teacher is None else max(total, teacher.other_seconds + sum(teacher.step_seconds))
    text = html.escape(result.text) or "<em>(empty)</em>"
    parts = [f'<p class="final" id="final-text" lang="en">{text}</p>']
    times = show_times("JM-NAT:", "pass", result.other_seconds, result.pass_seconds, longest)
    if teacher is not None:
        times += show_times("Word by word:", "step", teacher.other_seconds, teacher.step_seconds, longest)
    passes = f'<section id="best"><h3>All words at once</h3>{show_passes(best.passes, result.pass_seconds)}</section>'
    if teacher is not None:
        chips, text = show_tokens(teacher.tokens, count()), html.escape(teacher.text)
        passes += '<section id="teacher"><h3>The teacher, one word after the other</h3>'
        passes += f'{chips}<p class="text" lang="en">{text}</p></section>'
    piece = "pass" if teacher is None else "pass or token"
    times += f'<p class="note">Grey: reading the sentence. Blue: one piece for each {piece}.</p>'
    parts += [times, show_legend(), f'<div class="columns">{passes}</div>']
    cards = "".join(show_candidate(candidate, candidate is best) for candidate in result.candidates)
    rule = "Chosen by how sure it is" + result.consensus * " and how much it has in common with the others" + "."
    note = f'<p class="note">{rule}</p>' if len(result.candidates) > 1 else ""
    parts.append(
        f'<section id="lengths"><h3>Lengths that were tried</h3>{note}<div class="cards">{cards}</div></section>'
    )
    return f'<div class="jmnat">{"".join(parts)}</div>'


def render_message(text: str) -> str:
    return f'<div class="jmnat"><p class="message" role="alert">{html.escape(text)}</p></div>'
