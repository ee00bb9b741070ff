"""The browser: a server that gives out one job and takes one result, and Chromium as the device."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.artifact import Artifact, Format, Scheme
from edgekit.data import Rows
from edgekit.devices import agent, browser, exchange
from edgekit.devices.browser import Browser, serve
from edgekit.devices.device import Device, open_device
from edgekit.devices.exchange import Exchange, offer
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import DeviceError, UsageError
from edgekit.export import export_artifact
from edgekit.model import Model, identify, load_model
from tests.tiny import tiny_checkpoint, tiny_texts

RESULT = json.dumps({"agent": 1, "passes": {}, "error": "stop here"}).encode()


def test_names_and_what_they_promise() -> None:
    wasm, webgpu = open_device("browser"), open_device("browser:webgpu")
    assert (wasm.name, wasm.timed, wasm.formats) == ("browser", True, ("onnx", "tflite"))
    assert (webgpu.name, webgpu.timed) == ("browser:webgpu", False)
    with pytest.raises(UsageError, match="write browser or browser:webgpu"):
        open_device("browser:firefox")


def test_what_is_missing_comes_with_the_mend(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install your system's package chromium" in str(Browser().missing())
    with pytest.raises(DeviceError, match=r"no npm here .* install npm$"):
        Browser().set_up()
    chrome = tmp_path / "chromium-1200" / "chrome-linux64" / "chrome"
    chrome.parent.mkdir(parents=True)
    chrome.touch()
    assert "edgekit devices setup browser" in str(Browser().missing())


def test_a_set_up_that_fails_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{npm.parent}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(DeviceError, match=r"failed \(code ENOTFOUND\); check the network"):
        Browser().set_up()
    left = [path.name for path in (tmp_path / "cache" / "devices").iterdir()]
    assert [name for name in left if not name.endswith(".lock")] == []


@pytest.mark.parametrize(
    "where",
    ["", "0.0.0.0", "wlan0", "1.2.3", "::1", "10.0.0.1:", "10.0.0.1:x", "10.0.0.1:99999", "a;b"],
)
def test_serve_listens_on_one_address_only(where: str) -> None:
    if where == "10.0.0.1:":  # no port is any port
        assert serve(where, print).port == 0
        return
    with pytest.raises(UsageError, match="give one of this machine's"):
        serve(where, print)


@pytest.fixture
def offered(tmp_path: Path) -> Iterator[Exchange]:
    (tmp_path / "model.onnx").write_bytes(b"model")
    (tmp_path / "secret").write_bytes(b"secret")
    files = {"": b"<html>", "job.json": b"{}", "model.onnx": tmp_path / "model.onnx"}
    with offer(files, "127.0.0.1") as found:
        yield found


def ask(url: str, body: bytes | None = None) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, body, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def raw(offered: Exchange, request: bytes) -> int:
    """The status that a request is answered with, sent byte for byte."""
    host, port = offered.url.split("/")[2].split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status


def test_the_files_of_the_table_and_no_others(offered: Exchange) -> None:
    assert ask(offered.url) == (200, b"<html>")
    assert ask(offered.url + "model.onnx") == (200, b"model")
    for name in (
        "secret",
        "../secret",
        "%2e%2e/secret",
        "model.onnx/",
        "/etc/passwd",
        "?",
        "result",
    ):
        assert ask(offered.url + name)[0] == 404
    path = f"/{offered.token}/../secret"
    assert raw(offered, f"GET {path} HTTP/1.0\r\n\r\n".encode()) == 404


def test_who_does_not_know_the_token_finds_nothing(offered: Exchange) -> None:
    base = offered.url.removesuffix(f"{offered.token}/")
    for path in ("", "job.json", "model.onnx", "x/job.json", f"{offered.token[:-1]}/job.json"):
        assert ask(base + path)[0] == 404
    assert ask(f"{base}{offered.token}")[0] == 404
    assert ask(f"{base}x{offered.token[1:]}/result", RESULT)[0] == 404
    assert raw(offered, b"GET /\xff\xfe/job.json HTTP/1.0\r\n\r\n") == 404
    assert not offered.done.is_set()


def test_each_job_has_a_token_of_its_own() -> None:
    tokens = set()
    for _ in range(3):
        with offer({}, "127.0.0.1") as found:
            tokens.add(found.token)
    assert len(tokens) == 3 and min(map(len, tokens)) >= 22


def test_one_result_is_taken_and_no_second(offered: Exchange) -> None:
    assert ask(offered.url + "result", RESULT)[0] == 204
    assert offered.done.wait(5)
    assert offered.result == RESULT
    assert ask(offered.url + "result", RESULT.replace(b"stop", b"go"))[0] == 409
    assert offered.result == RESULT


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"error": null}', b"\xff", b'{"passes": 1}'])
def test_what_is_no_result_is_refused(body: bytes, offered: Exchange) -> None:
    assert ask(offered.url + "result", body)[0] == 400
    assert not offered.done.is_set()


def test_the_size_of_a_result_is_bounded_before_it_is_read(offered: Exchange) -> None:
    def post(length: str) -> int:
        head = f"POST /{offered.token}/result HTTP/1.0\r\n{length}\r\n"
        return raw(offered, head.encode())

    assert post(f"Content-Length: {exchange.MOST_RESULT_BYTES + 1}\r\n") == 413
    assert post("Content-Length: -1\r\n") == 411
    assert post("") == 411


def test_a_page_that_goes_away_is_noticed(offered: Exchange) -> None:
    host, port = offered.url.split("/")[2].split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"GET /{offered.token}/alive HTTP/1.0\r\n\r\n".encode())
        assert connection.recv(100)
        assert not offered.lost.is_set()
    assert offered.lost.wait(10)


def test_the_page_and_the_agent_are_of_one_version() -> None:
    page = (Path(browser.__file__).parent / "page" / "agent.js").read_text()
    assert f"const VERSION = {agent.VERSION};" in page


@pytest.fixture(scope="module")
def ready() -> Browser:
    """The device, set up; skips where it cannot be had."""
    found = Browser()
    try:
        found.set_up()
    except DeviceError as error:
        pytest.skip(str(error))
    if found.missing() is not None:
        pytest.skip(f"browser: {found.missing()}")
    return found


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    return load_model(identify(str(tiny_checkpoint(folder, "bert"))))


def both(
    model: Model, artifact: Artifact, device: Device, passes: Sequence[Pass], threads: int = 1
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The browser's result and the host's."""
    assert model.preprocessor is not None
    rows = model.preprocessor.encode(Rows(texts=tuple(tiny_texts(8, longest=3))))
    there = run_agent(artifact, rows, passes, threads=threads, device=device, timeout=300)
    return there, run_agent(artifact, rows, passes, threads=1)


ONNX = [
    Pass("alone", "outputs"),
    Pass("batched", "outputs", batch=3),
    Pass("padded", "outputs", [5, 1], width=16),
    Pass("latency", "latency", [0, 3], seconds=0.1),
]
TFLITE = [Pass("alone", "outputs"), Pass("padded", "outputs", [5, 1], width=16), ONNX[-1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "scheme", "threads"),
    [
        ("onnx", "fp32", 2),
        ("onnx", "int8-dynamic", 1),
        ("tflite", "fp32", 1),
        ("tflite", "int8-dynamic", 2),
    ],
)
def test_chromium_answers_as_the_host_does(
    format: Format, scheme: Scheme, threads: int, bert: Model, ready: Browser, tmp_path: Path
) -> None:
    artifact = export_artifact(bert, tmp_path, format, scheme, (8, 16))
    passes = ONNX if format == "onnx" else TFLITE
    there, here = both(bert, artifact, ready, passes, threads)
    # In int8 a last bit can decide to which integer a zero point is rounded.
    tolerance = 1e-4 if scheme == "fp32" else 0.1
    for each in passes[:-1]:
        found, wanted = (r["passes"][each.name] for r in (there, here))
        np.testing.assert_allclose(found["outputs"], wanted["outputs"], atol=tolerance)
        assert found["widths"] == wanted["widths"]
    latency = there["passes"]["latency"]
    assert min(latency["samples"]) > 0 and set(latency["rows"]) == {0, 3}
    assert len(latency["samples"]) == len(latency["widths"]) == len(latency["rows"])
    assert there["fingerprint"]["threads"] == threads
    assert there["fingerprint"]["runtime"].split()[0] in ("onnxruntime-web", "@litertjs/core")
    assert {"start", "imported", "loaded", "peak"} <= set(there["memory"]) & set(here["memory"])
    assert threads > 1 or 0 < there["memory"]["start"] < there["memory"]["peak"]
    assert there["load_seconds"] > 0 and there["first_run_seconds"] > 0


@pytest.mark.slow
def test_answers_for_each_token_are_aligned(ready: Browser, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", "bert", "token-classification")
    model = load_model(identify(str(checkpoint)))
    artifact = export_artifact(model, tmp_path, "onnx", "fp32")
    there, here = both(model, artifact, ready, ONNX[:3])
    for name in ("alone", "batched", "padded"):
        found, wanted = (r["passes"][name]["outputs"] for r in (there, here))
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_webgpu_answers_as_the_host_does(
    format: Format, bert: Model, ready: Browser, tmp_path: Path
) -> None:
    artifact = export_artifact(bert, tmp_path, format, "fp32", (8, 16))
    there, here = both(bert, artifact, Browser("webgpu"), [Pass("alone", "outputs")])
    found, wanted = (r["passes"]["alone"]["outputs"] for r in (there, here))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    if format == "tflite":
        assert there["coverage"]["fully_accelerated"]


@pytest.mark.slow
def test_a_damaged_file_is_one_sentence(bert: Model, ready: Browser, tmp_path: Path) -> None:
    artifact = export_artifact(bert, tmp_path, "onnx", "fp32")
    artifact.path.write_bytes(artifact.path.read_bytes()[:4000])
    with pytest.raises(DeviceError, match=r"^model\.onnx does not run on onnxruntime \(browser\)"):
        both(bert, artifact, ready, ONNX[:1])


def chromium_processes() -> list[int]:
    """Those that this run of the suite started for the device."""
    sign = str(Path(tempfile.gettempdir()) / "edgekit-browser-")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if sign.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def in_the_middle(work: Callable[[], object], act: Callable[[], bool]) -> None:
    """Run ``work``; meanwhile call ``act`` until it says that it has acted."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not act():
            time.sleep(0.2)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        work()
    finally:
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "sentence"),
    [("--type=renderer", "the page that ran .* is gone"), ("--headless", "Chromium ended with")],
)
def test_chromium_that_dies_is_noticed_and_cleared_up(
    part: str, sentence: str, bert: Model, ready: Browser, tmp_path: Path
) -> None:
    artifact = export_artifact(bert, tmp_path, "onnx", "fp32")
    long = [Pass("latency", "latency", [0], seconds=60, precision=-1)]
    started = time.monotonic()

    def kill() -> bool:
        # Not before the page is there and at work.
        victims = [pid for pid in chromium_processes() if part in command(pid)]
        if time.monotonic() - started < 5 or not victims:
            return False
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        return True

    with pytest.raises(DeviceError, match=sentence):
        in_the_middle(lambda: both(bert, artifact, ready, long), kill)
    assert time.monotonic() - started < 40
    assert chromium_processes() == []


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


@pytest.mark.slow
def test_a_timeout_ends_chromium(bert: Model, ready: Browser, tmp_path: Path) -> None:
    artifact = export_artifact(bert, tmp_path, "onnx", "fp32")
    assert bert.preprocessor is not None
    rows = bert.preprocessor.encode(Rows(texts=("a card",)))
    long = [Pass("latency", "latency", [0], seconds=60, precision=-1)]
    with pytest.raises(DeviceError, match="did not finish within 4 s in Chromium"):
        run_agent(artifact, rows, long, threads=1, device=ready, timeout=4)
    assert chromium_processes() == []


@pytest.mark.slow
def test_a_served_job_is_done_by_whoever_opens_the_address(
    bert: Model, ready: Browser, tmp_path: Path
) -> None:
    """Another Chromium stands for the phone."""
    program = browser._program()
    assert program is not None
    artifact = export_artifact(bert, tmp_path, "onnx", "fp32")
    opened: list[subprocess.Popen[bytes]] = []

    def open_it(text: str) -> None:
        address = next(word for word in text.split() if word.startswith("http"))
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        opened.append(
            subprocess.Popen(
                [program, "--headless", "--no-sandbox", "--disable-gpu", profile, address],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    try:
        there, here = both(bert, artifact, serve("127.0.0.1", open_it), ONNX)
    finally:
        for process in opened:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(tmp_path / "profile", ignore_errors=True)
    found, wanted = (r["passes"]["alone"]["outputs"] for r in (there, here))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert len(opened) == 1 and "HeadlessChrome" in there["fingerprint"]["browser"]


@pytest.mark.slow
def test_an_address_of_another_machine_is_refused(
    bert: Model, ready: Browser, tmp_path: Path
) -> None:
    artifact = export_artifact(bert, tmp_path, "onnx", "fp32")
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1"):
        both(bert, artifact, serve("192.0.2.1", lambda text: None), ONNX[:1])
