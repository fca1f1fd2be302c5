"""Requests and answers of LibreTranslate's API, for its clients.

A request has `q` (a text or a list of texts), `source` and `target`, and optionally `format`, `alternatives` and
`api_key`, as JSON, as a form or as query parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import python_multipart  # noqa: F401  which Starlette asks for only when a form arrives
from starlette.datastructures import MultiDict
from starlette.exceptions import HTTPException
from starlette.requests import Request
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from ..pipeline import check_text

AUTO = "auto"
FORMATS = ("text", "html")


@dataclass(frozen=True)
class TranslationRequest:
    """A request that has been checked.

    Args:
        is_list: whether `q` was a list, so that the answer has lists.
        num_alternatives: number of translations wanted besides the best one.
        is_auto: whether the source language was `auto`.
    """

    texts: list[str]
    is_list: bool
    is_html: bool
    num_alternatives: int
    is_auto: bool


async def read_fields(request: Request, max_body_bytes: int) -> dict[str, Any]:
    """The fields of a request, of which at most `max_body_bytes` are read.

    Raises:
        HTTPException: 413 for a longer body, of which the rest is left unread; 400 for a body that is no JSON object.
    """
    too_long = HTTPException(
        413, f"the request is longer than {max_body_bytes} bytes: send less text at a time", {"Connection": "close"}
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_body_bytes:
        raise too_long
    num_read = 0

    async def receive():
        nonlocal num_read
        message = await request.receive()
        num_read += len(message.get("body", b""))
        if num_read > max_body_bytes:
            raise too_long
        return message

    limited = Request(request.scope, receive)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.endswith("json"):
        try:
            fields = await limited.json()
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise bad_request("the body must be a JSON object")
        return fields
    if kind == "multipart/form-data":
        form = (await limited.form(max_files=0)).multi_items()
    else:
        form = _read_form(await limited.body())
    values = MultiDict([*_read_form(request.scope["query_string"]), *form])
    fields = dict(values)
    if len(texts := values.getlist("q")) > 1:
        fields["q"] = texts
    return fields


def _read_form(body: bytes) -> list[tuple[str, str]]:
    """Fields of a form, whose characters need not be escaped (Starlette reads those as Latin-1)."""
    try:
        return parse_qsl(body.decode("utf-8"), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise bad_request("the form is not UTF-8") from None


def bad_request(sentence: str) -> HTTPException:
    readable = sentence.encode("utf-8", "backslashreplace").decode()  # it may quote a lone surrogate
    return HTTPException(400, f"Invalid request: {readable}")


def check_fields(fields: dict[str, Any], languages: Sequence[str], max_characters: int) -> TranslationRequest:
    """A request from its fields.

    Args:
        languages: source and target of the model.
        max_characters: limit of characters in all texts together; an empty text counts as one.

    Raises:
        HTTPException: status 400, with a sentence about the first invalid field.
    """
    for name in ("q", "source", "target"):
        if not fields.get(name):
            raise bad_request(f"missing {name} parameter")
    q = fields["q"]
    texts = q if isinstance(q, list) else [q]
    if not all(isinstance(text, str) for text in texts):
        raise bad_request("q must be a text or a list of texts")
    if (size := sum(max(1, len(text)) for text in texts)) > max_characters:
        raise bad_request(f"request ({size}) exceeds text limit ({max_characters})")
    try:
        for text in texts:
            check_text(text)
    except ValueError as error:
        raise bad_request(str(error)) from None
    source, target = (_language(fields[name], name) for name in ("source", "target"))
    if source not in (languages[0], AUTO) or target != languages[1]:
        raise bad_request(f"{source} to {target} is not supported, only {languages[0]} to {languages[1]}")
    markup = fields.get("format") or "text"
    if markup not in FORMATS:
        raise bad_request(f"format {markup!r} is not supported, only {' and '.join(FORMATS)}")
    return TranslationRequest(
        texts, isinstance(q, list), markup == "html", _alternatives(fields.get("alternatives")), source == AUTO
    )


def _language(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise bad_request(f"{name} must be a language code")
    return plain_code(value)


def plain_code(language: str) -> str:
    """`en` of `EN`, of `en-GB` and of `en_GB`."""
    return language.strip().lower().replace("_", "-").partition("-")[0]


def _alternatives(value: Any) -> int:
    try:
        return max(0, int(value or 0))
    except (TypeError, ValueError, OverflowError):
        raise bad_request("alternatives must be an integer") from None


def answer(request: TranslationRequest, translations: list[list[str]], source: str) -> dict[str, Any]:
    """The response to `POST /translate`.

    Args:
        translations: translations of each text, best first.
    """
    fields: dict[str, Any] = {"translatedText": [of_text[0] for of_text in translations]}
    if request.num_alternatives:
        fields["alternatives"] = [of_text[1:] for of_text in translations]
    if request.is_auto:  # nothing is detected: the model reads one language
        fields["detectedLanguage"] = [{"language": source, "confidence": 0.0}] * len(translations)
    return fields if request.is_list else {name: values[0] for name, values in fields.items()}


def describe_languages(languages: Sequence[str]) -> list[dict[str, Any]]:
    """The response to `GET /languages`."""
    source, target = languages
    return [{**describe_language(source), "targets": [target]}, {**describe_language(target), "targets": []}]


def describe_language(code: str) -> dict[str, str]:
    return {"code": code, "name": LANGUAGES.get(code, code).title()}


def frontend_settings(languages: Sequence[str], max_characters: int) -> dict[str, Any]:
    """The response to `GET /frontend/settings`."""
    return {
        "apiKeys": False,
        "charLimit": max_characters,
        "frontendTimeout": 500,
        "keyRequired": False,
        "language": dict(zip(("source", "target"), map(describe_language, languages), strict=True)),
        "suggestions": False,
        "supportedFilesFormat": [],
    }
