"""The server as clients see it: a process at 127.0.0.1, requests as LibreTranslate's clients send them."""

import http.client
import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest

from modeling_jmnat.documents.html import read_html
from modeling_jmnat.documents.placeholders import same_placeholders, translate_guarded
from modeling_jmnat.inference.loading import load_translator
from modeling_jmnat.pipeline import JMNatTranslationPipeline
from tests.helpers.teacher_samples import random_lines
from tests.helpers.translation_samples import load_script, tiny_student, tiny_tokenizer
from tests.serving.load import measure, measure_clients, post, running_server

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
TEXTS = [line.strip() for line in random_lines(24, seed=8)]
LANGUAGES = {"source": "de", "target": "en"}
MAX_BYTES, MAX_CHARACTERS = 3000, 500


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    student = tiny_student(tokenizer)
    student.config.source_language, student.config.target_language = "de", "en"
    student.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pipe(model):
    return JMNatTranslationPipeline(*load_translator(model, "cpu"))


@pytest.fixture(scope="module")
def port(model):
    limits = ["--max_body_bytes", str(MAX_BYTES), "--max_characters", str(MAX_CHARACTERS)]
    with running_server("--model", model, "--device", "cpu", *limits) as (_, port):
        yield port


def ask(port, method="POST", path="/translate", body=None, **headers) -> tuple[int, object, dict]:
    """Status, JSON and headers of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    kinds = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, kinds)
    response = connection.getresponse()
    return response.status, json.loads(response.read()), dict(response.headers)


def ask_json(port, **fields):
    return ask(port, body=json.dumps({**LANGUAGES, **fields}), Content_Type="application/json")[:2]


def translation(pipe, text):
    return pipe(text)[0]["translation_text"]


def test_a_client_of_libretranslate(port, pipe):
    libretranslatepy = pytest.importorskip("libretranslatepy")
    client = libretranslatepy.LibreTranslateAPI(f"http://127.0.0.1:{port}/", api_key="of no use")
    assert client.languages() == [
        {"code": "de", "name": "German", "targets": ["en"]},
        {"code": "en", "name": "English", "targets": []},
    ]
    for text in (TEXTS[0], "ä & ß = 100 %\n  zweite Zeile"):
        assert client.translate(text, "de", "en") == translation(pipe, text)
    with pytest.raises(urllib.error.HTTPError) as refused:
        client.translate("x", "fr", "en")
    sentence = "Invalid request: fr to en is not supported, only de to en"
    assert json.loads(refused.value.read()) == {"error": sentence}


def test_json_and_forms_of_every_kind_get_the_same_answer(port, pipe):
    text = "ein großes haus & ü"
    expected = (200, {"translatedText": translation(pipe, text)})
    assert ask_json(port, q=text) == expected
    fields = {"q": text, **LANGUAGES}
    form = "application/x-www-form-urlencoded"
    raw = "&".join(f"{name}={value.replace('&', '%26')}" for name, value in fields.items()).encode()
    parts = "".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
    )
    for kind, path, body in (
        (form, "/translate", urllib.parse.urlencode(fields)),
        (form, "/translate", raw),
        ("multipart/form-data; boundary=x", "/translate", f"{parts}--x--\r\n".encode()),
        ("application/json; charset=utf-8", "/translate", json.dumps(fields, ensure_ascii=False).encode()),
        ("", "/translate?" + urllib.parse.urlencode(fields), None),
    ):
        assert ask(port, path=path, body=body, Content_Type=kind)[:2] == expected, kind
    several = urllib.parse.urlencode([("q", TEXTS[0]), ("q", TEXTS[1]), *LANGUAGES.items()])
    texts = [translation(pipe, each) for each in TEXTS[:2]]
    assert ask(port, body=several, Content_Type=form)[:2] == (200, {"translatedText": texts})


def test_lists_alternatives_and_the_language(port, pipe):
    records = pipe(TEXTS[:2], num_return_sequences=3)
    texts = [list(dict.fromkeys(record["translation_text"] for record in of_text)) for of_text in records]
    status, found = ask_json(port, q=TEXTS[:2], alternatives=2, source="auto", target="EN_us")
    assert status == 200
    assert found == {
        "translatedText": [of_text[0] for of_text in texts],
        "alternatives": [of_text[1:] for of_text in texts],
        "detectedLanguage": [{"language": "de", "confidence": 0.0}] * 2,
    }
    one = {name: values[0] for name, values in found.items()}
    assert ask_json(port, q=TEXTS[0], alternatives="2", source="auto") == (200, one)
    _, most = ask_json(port, q=TEXTS[0], alternatives=10**30)
    candidates = pipe.model.generation_config.num_length_candidates
    assert len(most["alternatives"]) < (candidates or 1)
    assert ask_json(port, q=["", TEXTS[0]]) == (200, {"translatedText": ["", texts[0][0]]})


def test_html_keeps_its_markup(port, pipe):
    text = f"<p class='x'>{TEXTS[0]}</p><script>if (a < b) x()</script> <br>{TEXTS[1]} &amp; <code>a</code>"
    status, found = ask_json(port, q=text, format="html", alternatives=1)
    assert status == 200
    assert found["alternatives"] == []
    assert found["translatedText"].startswith(f"<p class='x'>{translation(pipe, TEXTS[0])}</p><script>if (a < b) x()")
    assert found["translatedText"].count("<code>a</code>") == 1


@pytest.mark.parametrize(
    "text", ["<p>Hallo {{ name }}, du hast %d Nachrichten.</p>", "<b>%s</b> von <i>%s</i> (%d%%)"]
)
def test_html_keeps_its_placeholders(port, pipe, text):
    """As in a document: whatever the model makes of it, they come out as they went in."""
    document = read_html(text)
    translations, _ = translate_guarded(document.texts, lambda texts: [translation(pipe, each) for each in texts])
    status, found = ask_json(port, q=text, format="html")
    assert (status, found["translatedText"]) == (200, document.write(translations))
    assert same_placeholders(text, found["translatedText"])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "missing q parameter"),
        ({"q": ""}, "missing q parameter"),
        ({"q": "a", "target": ""}, "missing target parameter"),
        ({"q": 5}, "q must be a text or a list of texts"),
        ({"q": ["a", None]}, "q must be a text or a list of texts"),
        ({"q": "a", "source": ["de"]}, "source must be a language code"),
        ({"q": "a", "target": "de"}, "de to de is not supported, only de to en"),
        ({"q": "a", "format": "pdf"}, "format 'pdf' is not supported, only text and html"),
        ({"q": "a", "alternatives": "many"}, "alternatives must be an integer"),
        ({"q": ["a" * 300, "b" * 201]}, "request (501) exceeds text limit (500)"),
        ({"q": "\ud800"}, "a text to translate has a lone surrogate at character 1"),
        (
            {"q": "<b title='\ud800'>a</b>", "format": "html"},
            "a text to translate has a lone surrogate at character 11",
        ),
        ({"q": "a", "source": "\ud800"}, "\\ud800 to en is not supported, only de to en"),
        ({"q": [""] * 501}, "request (501) exceeds text limit (500)"),
    ],
)
def test_bad_requests_get_one_sentence(port, fields, sentence):
    status, answer = ask_json(port, **fields)
    assert status == 400
    assert list(answer) == ["error"]
    assert answer["error"].startswith(f"Invalid request: {sentence}")


def test_bad_bodies_and_addresses(port):
    for body in ("[]", "{", "5", "[" * 2000, b"\xff"):
        status, answer, _ = ask(port, body=body, Content_Type="application/json")
        assert (status, answer) == (400, {"error": "Invalid request: the body must be a JSON object"})
    status, answer, _ = ask(port, body=b"q=\xff", Content_Type="application/x-www-form-urlencoded")
    assert (status, answer) == (400, {"error": "Invalid request: the form is not UTF-8"})
    assert ask(port, path="/translate?q=%FF&source=de&target=en")[:2] == (status, answer)
    assert ask(port, path="/nothing")[:2] == (404, {"error": "Not Found"})
    assert ask(port, "GET")[:2] == (405, {"error": "Method Not Allowed"})


@pytest.mark.parametrize("header", ["Content-Length: 100000000", "Transfer-Encoding: chunked"])
def test_a_long_body_is_refused_without_being_read(port, header):
    """The client sends a part, is answered, and finds the connection closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        part = b"a" * (MAX_BYTES + 1)
        chunk = part if "Length" in header else b"%x\r\n%s\r\n" % (len(part), part)
        head = f"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{header}\r\n\r\n"
        client.sendall(head.encode() + chunk)
        answer = b""
        while received := client.recv(4096):
            answer += received
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b'{"error":"the request is longer than 3000 bytes: send less text at a time"}')


def test_pages_for_clients_and_operators(port):
    settings = ask(port, "GET", "/frontend/settings")[1]
    assert (settings["charLimit"], settings["keyRequired"]) == (MAX_CHARACTERS, False)
    assert settings["language"]["source"] == {"code": "de", "name": "German"}
    assert ask(port, "GET", "/health")[:2] == (200, {"status": "ok"})
    before, after = metrics(port), (ask_json(port, q="ein haus"), metrics(port))[1]
    assert after['jmnat_requests_total{status="200"}'] == before.get('jmnat_requests_total{status="200"}', 0) + 1
    assert after["jmnat_characters_total"] == before["jmnat_characters_total"] + len("ein haus")
    assert after["jmnat_request_seconds_count"] == before["jmnat_request_seconds_count"] + 1
    assert after["jmnat_waiting_requests"] == 0


def metrics(port) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        lines = [line for line in page.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_nothing_is_lost_or_mixed_up_under_load(port, pipe):
    expected = [translation(pipe, text) for text in TEXTS]
    assert len(set(expected)) > 8
    answers, _, _ = measure_clients(port, TEXTS, 8)
    assert answers == expected
    assert metrics(port)["jmnat_batch_requests_sum"] > metrics(port)["jmnat_batch_requests_count"], "none was shared"


def test_the_load_test_measures_every_way(model):
    rows = measure(model, "torch", TEXTS[:6], [1, 4], device="cpu")
    names = ["generate in a loop", "pipeline in a loop", "server, 1 client", "server, 4 clients"]
    assert [row["name"] for row in rows] == names
    assert all(row["lost"] == row["other_text"] == 0 < row["p50_ms"] <= row["p99_ms"] for row in rows)


def test_requests_beyond_the_queue_get_503(model):
    options = ["--max_waiting", "1", "--batch_tokens", "1", "--num_iterations", "60", "--device", "cpu"]
    with running_server("--model", model, *options) as (_, port):
        found = []

        def client():
            found.append(ask(port, body=json.dumps({**LANGUAGES, "q": TEXTS}), Content_Type="application/json"))

        threads = [threading.Thread(target=client) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        assert ask(port, "GET", "/health")[0] == 200, "other pages are answered meanwhile"
        for thread in threads:
            thread.join()
    statuses = sorted(status for status, _, _ in found)
    assert 200 in statuses
    assert 503 in statuses
    for status, answer, headers in found:
        if status == 503:
            assert answer == {"error": "1 requests are waiting already: try again in 1 s"}
            assert headers["retry-after"] == "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_accepted_requests_are_answered_before_it_stops(model, pipe, number):
    options = ["--batch_tokens", "1", "--device", "cpu"]
    with running_server("--model", model, *options) as (process, port):
        connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(6)]
        body = json.dumps({**LANGUAGES, "q": TEXTS})
        for connection in connections:
            connection.request("POST", "/translate", body, {"Content-Type": "application/json"})
        while metrics(port)["jmnat_batch_requests_count"] + metrics(port)["jmnat_waiting_requests"] < 6:
            time.sleep(0.01)
        process.send_signal(number)
        answers = [json.loads(connection.getresponse().read()) for connection in connections]
        for connection in connections:
            connection.close()
        assert process.wait(30) == 0
    expected = [translation(pipe, text) for text in TEXTS]
    assert answers == [{"translatedText": expected}] * 6
    with pytest.raises(OSError, match="refused"):
        post(http.client.HTTPConnection("127.0.0.1", port), {})


def test_languages_may_be_codes_of_any_kind(model):
    app = pytest.importorskip("modeling_jmnat.serving.app")
    run = pytest.importorskip("modeling_jmnat.serving.run")
    for languages in (["de_DE", "en_XX"], ["DE", "en-gb"]):
        server = run.load_server(model, app.Limits(100, 1000, 1, 0.0), "torch", "cpu", languages)
        server.batcher.close()
        for source, target in (languages, ("de", "en")):
            fields = {"q": "ein haus", "source": source, "target": target}
            assert app.check_fields(fields, server.languages, 100).texts == ["ein haus"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--languages", "de"], "languages='de' must be two codes, of source and target: give --languages de en"),
        (["--host", "no such host"], "cannot listen on host=no such host port=5000"),
        (["--max_waiting", "0"], "max_waiting=0 must be at least 1"),
        (["--batch_wait", "-1"], "batch_wait=-1.0 must be from 0 to 10 seconds"),
        (["--num_iterations", "0"], "num_iterations=0"),
        (["--backend", "onnx"], "holds no translator.onnx"),
    ],
)
def test_what_cannot_be_served_gets_one_sentence(model, capsys, options, sentence):
    with pytest.raises(SystemExit) as stopped:
        load_script("serve").main(["--model", model, *options])
    assert stopped.value.code == 1
    assert f"error: {sentence}" in capsys.readouterr().err.splitlines()[-1].replace(f"{model} ", "")


def test_a_trained_model_that_names_no_languages_is_asked_for_them(tmp_path, capsys):
    tokenizer = tiny_tokenizer()
    for part in (tiny_student(tokenizer), tokenizer):
        part.save_pretrained(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        load_script("serve").main(["--model", str(tmp_path), "--device", "cpu"])
    assert stopped.value.code == 1
    assert "must be two codes, of source and target: give --languages de en" in capsys.readouterr().err


def test_a_port_in_use_gets_one_sentence(model, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit):
            load_script("serve").main(["--model", model, "--device", "cpu", "--port", str(port)])
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith(f"error: cannot listen on host=127.0.0.1 port={port}, choose others: ")
