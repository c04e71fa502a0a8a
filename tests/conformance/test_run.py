"""Judging decoders that are commands: good ones, bad ones, and ones that are no decoders at all."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from conformance import run
from conformance.suite import decoder_output
from conformance.suite.cases import CORPUS, Case, ExpectedTensor, find_cases
from conformance.suite.decoder_output import read_output
from conformance.suite.decoders import command
from conformance.suite.judging import DISAGREEMENT, FAIL, NOT_RUN, PASS, Outcome, Verdict, judge
from conformance.suite.summary import cause_of, checked_against, failures
from conformance.suite.tools_used import tools_of

ROOT = Path(__file__).parents[2]
PYTHON = shlex.quote(sys.executable)
EDUCATIONAL = f"{PYTHON} {ROOT}/spec/educational_decoder.py {{in}} {{out}} --parents {{parents}}"
PLAIN = CORPUS / "features" / "shape_7"
INVALID = CORPUS / "invalid" / "terminating_bin"


def shell(script: str, seconds: float = 60.0, case: Path = PLAIN) -> Outcome:
    """What a command does that is this script of sh, $1 being the stream and $2 the output."""
    decoder = command(f"sh -c {shlex.quote(script)} - {{in}} {{out}}", seconds)
    (found,) = find_cases([str(case)])
    return decoder(found.stream, found.parents)


def tensors(names: dict[str, np.ndarray], folder: Path) -> Path:
    """A folder as README.md describes it."""
    folder.mkdir()
    entries = []
    for i, (name, values) in enumerate(names.items()):
        (folder / f"{i}").write_bytes(values.tobytes())
        shape = list(values.shape)
        entries.append({"name": name, "dtype": values.dtype.name, "shape": shape, "file": f"{i}"})
    (folder / "tensors.json").write_text(json.dumps(entries))
    return folder


def right_values() -> np.ndarray:
    from conformance.generator.building import ramp

    return np.array(ramp(7), np.float32) / 4


def test_educational_decoder_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = [
        "update_t1_h1_dq1",
        "names",
        "block_dc_ls_bn_bi_dq1",
        "invalid/name_t*",
        "data/hist_tca_3",
    ]
    assert run.main([*wanted, "--decoder", EDUCATIONAL, "--strict", "--jobs", "2"]) == 0
    assert "6 cases: 6 pass, 0 fail" in capsys.readouterr().out


def test_own_decoder_as_a_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # not where a checkout hides the installed package
    code = "import sys; from nnr_codec.cli.decode import main; sys.exit(main())"
    decoder = f"{PYTHON} -c {shlex.quote(code)} {{in}} -o {{out}} -q --parent={{parents}}"
    assert run.main(["update_t1_h1_dq1", "invalid/empty", "--decoder", decoder, "--strict"]) == 0
    assert "2 pass" in capsys.readouterr().out


def test_a_folder_of_raw_tensors(tmp_path: Path) -> None:
    folder = tensors({"w": right_values()}, tmp_path / "out")
    outcome = shell(f"cp -r {folder} $2")
    (case,) = find_cases([str(PLAIN)])
    assert judge(case, outcome, strict=True).status == PASS


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ("echo one; echo broken >&2; exit 3", "refused", "broken (exit code 3)"),
        ("exit 1", "refused", "no message"),
        ("kill -SEGV $$", "crash", "signal 11"),
        ("exit 139", "crash", "signal 11"),
        ("exit 255", "refused", "no message (exit code 255)"),  # main() returned -1
        ("true", "garbage", "no file out.npz"),
        ("echo no archive > $2", "garbage", "cannot be read"),
        ("head -c 100 $1 > $2", "garbage", "cannot be read"),
        ("mkdir $2", "garbage", "no file tensors.json"),
        ("mkdir $2; echo '{' > $2/tensors.json", "garbage", "cannot be read"),
        ("mkdir $2; echo '[1]' > $2/tensors.json", "garbage", "cannot be read"),
        ("mkdir $2; echo '[{\"name\": 1}]' > $2/tensors.json", "garbage", "cannot be read"),
    ],
)
def test_what_a_command_does(script: str, kind: str, words: str) -> None:
    outcome = shell(script)
    assert outcome.kind == kind
    assert words in outcome.detail


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "object"},
        {"dtype": "float32", "shape": [8]},
        {"dtype": "float32", "shape": [-1, 3]},
        {"file": "absent"},
        {"file": "../../.."},
    ],
)
def test_a_folder_that_is_wrong(entry: dict[str, object], tmp_path: Path) -> None:
    folder = tensors({"w": right_values()}, tmp_path / "out")
    entries = json.loads((folder / "tensors.json").read_text())
    (folder / "tensors.json").write_text(json.dumps([{**entries[0], **entry}]))
    assert shell(f"cp -r {folder} $2").kind == "garbage"


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.array([{}], object))
    assert shell(f"cp {tmp_path}/a.npz $2").kind == "garbage"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("mkfifo $2", "not a regular file"),
        ("ln -s /dev/zero $2", "not a regular file"),
        ("mkdir $2; mkfifo $2/tensors.json", "not a regular file"),
        ("mkdir $2; ln -s /dev/zero $2/tensors.json", "not a regular file"),
        ("truncate -s 1T $2", "bytes"),
        ("mkdir $2; truncate -s 1T $2/tensors.json", "bytes"),
    ],
)
def test_outputs_without_an_end(script: str, words: str) -> None:
    """Reading them would take forever, or all memory."""
    outcome = shell(script)
    assert outcome.kind == "garbage"
    assert words in outcome.detail


@pytest.mark.parametrize("file", ["/dev/zero", "pipe", "/dev/stdin"])
def test_tensors_without_an_end(file: str, tmp_path: Path) -> None:
    entry = {"name": "w", "dtype": "float32", "shape": [1], "file": file}
    (tmp_path / "list").write_text(json.dumps([entry]))
    outcome = shell(f"mkdir $2; mkfifo $2/pipe; cp {tmp_path}/list $2/tensors.json")
    assert outcome.kind == "garbage"
    assert "not a regular file" in outcome.detail or "no file" in outcome.detail


def test_files_of_a_tensor_count_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_output, "MAX_OUTPUT_BYTES", 1000)
    (tmp_path / "data").write_bytes(bytes(400))
    entries = [
        {"name": f"w{i}", "dtype": "float32", "shape": [100], "file": "data"} for i in range(3)
    ]
    (tmp_path / "tensors.json").write_text(json.dumps(entries[:2]))
    assert list(read_output(tmp_path).tensors) == ["w0", "w1"]
    (tmp_path / "tensors.json").write_text(json.dumps(entries))
    assert "200 are allowed" in read_output(tmp_path).detail


@pytest.mark.parametrize(
    "kind",
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
)
def test_damaged_archives(kind: int, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("w.npy", np.random.default_rng(0).bytes(5000))
    data = bytearray(path.read_bytes())
    for place in range(40, 90):
        damaged = data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
        path.write_bytes(damaged)
        assert read_output(path).kind == "garbage"
    encrypted = data[:6] + b"\1" + data[7:]
    path.write_bytes(encrypted)
    assert read_output(path).kind == "garbage"


@pytest.mark.parametrize("text", ["(" * 5000, "-" * 9000 + "1", "{'descr': '<f4', 'shape': (3L,"])
def test_headers_of_arrays_that_are_no_python(text: str, tmp_path: Path) -> None:
    header = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("w.npy", header)
    assert read_output(tmp_path / "a.npz").kind == "garbage"


def test_an_archive_that_grows(tmp_path: Path) -> None:
    """A megabyte that inflates to a gigabyte is not inflated."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", bytes(2**28 + 1))
    assert "are allowed" in read_output(tmp_path / "a.npz").detail


def test_time_out() -> None:
    outcome = shell("sleep 600 & sleep 600", seconds=0.5)
    assert (outcome.kind, outcome.detail) == ("time-out", "no result in 0.5 s")


def test_updates_are_not_run_without_parents() -> None:
    outcome = shell("exit 1", case=CORPUS / "features" / "update_t1_h0_dq0")
    (case,) = find_cases(["update_t1_h0_dq0"])
    assert judge(case, outcome).status == NOT_RUN


def expecting(evidence: str, values: np.ndarray | None = None) -> Case:
    from conformance.suite.cases import describe

    found = None if values is None else tuple(describe({"w": values}))
    error = "invalid" if values is None else None
    return Case("a/b", Path("s"), "", "", evidence, tensors=found, error=error)


@pytest.mark.parametrize(("evidence", "status"), [("peer", FAIL), ("text", DISAGREEMENT)])
def test_only_evidence_judges(evidence: str, status: str) -> None:
    outcomes = [Outcome("refused"), Outcome("crash"), Outcome("time-out"), Outcome("garbage")]
    outcomes += [Outcome("tensors", {}), Outcome("tensors", {"w": np.zeros(3, np.float32)})]
    case = expecting(evidence, np.ones(3, np.float32))
    assert {judge(case, outcome).status for outcome in outcomes} == {status}
    assert {judge(case, outcome, strict=True).status for outcome in outcomes} == {FAIL}
    accepted = judge(expecting(evidence), Outcome("tensors", {}))
    assert accepted.status == status


def test_a_crash_is_no_refusal() -> None:
    case = expecting("peer")
    assert judge(case, Outcome("refused")).status == PASS
    assert judge(case, Outcome("crash")).status == FAIL
    assert judge(case, Outcome("time-out")).status == FAIL


@pytest.mark.parametrize(
    ("values", "status", "strict"),
    [
        (np.array([1, -0.0], np.float32), PASS, PASS),
        (np.array([1, 0.0], np.float32), FAIL, FAIL),
        (np.array([1, -0.0], np.float64), PASS, FAIL),
        (np.array([1 + 2**-30, -0.0], np.float64), PASS, FAIL),
        (np.array([1, -0.0], np.float16), FAIL, FAIL),
        (np.array([1, 0], np.int64), FAIL, FAIL),
        (np.array([[1, -0.0]], np.float32), FAIL, FAIL),
    ],
)
def test_bits_and_types(values: np.ndarray, status: str, strict: str) -> None:
    case = expecting("peer", np.array([1, -0.0], np.float32))
    outcome = Outcome("tensors", {"w": values})
    assert judge(case, outcome).status == status
    assert judge(case, outcome, strict=True).status == strict


def test_names_factors_and_order() -> None:
    one, two = np.ones(1, np.float32), np.zeros(1, np.float32)
    case = expecting("peer", one)
    assert case.tensors is not None
    factor = ExpectedTensor("w_G", "float32", (1,), case.tensors[0].sha256, factor=True)
    both = Case("a/b", Path("s"), "", "", "peer", tensors=(factor, *case.tensors))

    def status(**found: np.ndarray) -> str:
        return judge(both, Outcome("tensors", found)).status

    assert status(w=one) == status(w_G=one, w=one) == status(w=one, w_G=one) == PASS
    assert status(w=one, w_G=two) == status(w=one, more=one) == status(w_G=one) == FAIL


def test_exit_codes_and_output(capsys: pytest.CaptureFixture[str]) -> None:
    refusing = "false {in} {out} {parents}"
    assert run.main(["shape_7", "invalid/e*", "--decoder", refusing]) == 1
    out = capsys.readouterr().out
    assert "FAIL         features/shape_7: refused: no message" in out
    assert "it exercises: tensor_dimensions 7; section 6" in out
    assert run.main(["layer_parameters", "--decoder", refusing]) == 0
    out = capsys.readouterr().out
    assert "DISAGREEMENT features/layer_parameters" in out
    assert "(E24, E38)" in out
    assert run.main(["layer_parameters", "--decoder", refusing, "--strict"]) == 1
    capsys.readouterr()
    assert run.main(["shape_7", "invalid/empty", "--json", "--decoder", refusing]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"pass": 1, "fail": 1, "disagreement": 0, "not run": 0}
    assert [case["status"] for case in found["cases"]] == ["fail", "pass"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["no_such_case"],
        ["--decoder", "decode {in}"],
        ["--decoder", "decode '{in} {out}"],
        ["--decoder", "/no/such/program {in} {out}", "shape_7"],
    ],
)
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("conformance.run: ")
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--timeout", "x"], ["--nonsense"]])
def test_options_out_of_range(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.main(arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"evidence": "hearsay"},
        {"error": "invalid"},
        {"tensors": 3},
        {"tensors": [{"name": "w"}]},
        {"parents": ["absent.nnr"]},
        {"extra": 1},
        {"exercises": None},
    ],
)
def test_damaged_cases(
    change: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data" / "case"
    shutil.copytree(PLAIN, folder)
    known = json.loads((folder / "case.json").read_text())
    known = {key: value for key, value in {**known, **change}.items() if value is not None}
    (folder / "case.json").write_text(json.dumps(known))
    assert run.main([str(folder)]) == 2
    assert "case" in capsys.readouterr().err


def test_the_first_difference_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = right_values()
    values[[3, 5]] = 9
    folder = tensors({"w": values}, tmp_path / "out")
    decoder = f"sh -c 'cp -r {folder} $1' - {{out}} {{in}}"
    assert run.main(["shape_7", "--decoder", decoder]) == 1
    wanted = f"element [3] of 'w' is 9.0, expected {right_values()[3]}, the first of 2"
    assert f"'w' has other values; {wanted}" in capsys.readouterr().out


def test_a_reader_that_stops() -> None:
    """As head does: no traceback."""
    done = subprocess.run(
        f"{PYTHON} -m conformance.run --decoder 'false {{in}} {{out}}' features | head -2",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[1].startswith("FAIL")
    assert done.stderr == ""


def test_coverage_tells_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["shape_7", "--coverage"]) == 1
    out = capsys.readouterr().out
    assert "NOT EXERCISED  sign, base: 0: 0" in out
    assert run.main(["shape_7", "--coverage", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["items"]["significance: 0: 1"] == ["features/shape_7"]
    assert ["sign, base", "0: 0"] in found["missing"]


def test_invalid_case_is_caught_by_a_decoder_that_accepts(tmp_path: Path) -> None:
    folder = tensors({"w": right_values()}, tmp_path / "out")
    (case,) = find_cases([str(INVALID)])
    verdict = judge(case, shell(f"cp -r {folder} $2", case=INVALID), strict=True)
    assert (verdict.status, verdict.detail) == (FAIL, "accepted; it must be refused (invalid)")


@pytest.mark.parametrize(
    "says",
    [
        "Traceback (most recent call last):\n  File x\nValueError: bad",
        "thread 'main' panicked at src/main.rs:3:5:\nindex out of bounds",
        'Exception in thread "main" java.lang.RuntimeException\n\tat Main.main',
        "panic: x\n\ngoroutine 1 [running]:\nmain.main()",
        "Error: x\n    at Object.<anonymous>\n\nNode.js v20.1.0",
    ],
)
def test_errors_that_nobody_handled_are_no_refusals(says: str) -> None:
    outcome = shell(f"printf %s {shlex.quote(says)} >&2; exit 1", case=INVALID)
    assert outcome.kind == "crash"
    assert outcome.detail.endswith(says.splitlines()[-1])


def test_failures_are_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    script = "case $1 in *integers*) exit 0;; esac; echo no codebook at byte ${#1} >&2; exit 3"
    decoder = f"sh -c {shlex.quote(script)} - {{in}} {{out}}"
    names = ["codebook_egk_0", "codebook_egk_1", "integers", "align"]
    cases = find_cases(names)
    assert run.main(["--decoder", decoder, *names]) == 1
    first, *_, codebooks, integers, counts = capsys.readouterr().out.splitlines()
    assert first == checked_against(cases)
    assert f"{len(cases)} cases, checked against NNCodec 2.1.3: with " in first
    assert codebooks.split(maxsplit=2)[0] == "2"
    names = "features/codebook_egk_0, features/codebook_egk_1"
    assert f"refused: no codebook at byte …: {names}" in codebooks
    assert integers.split(maxsplit=2)[0] == "1"
    assert "garbage: " in integers
    assert counts == "4 cases: 1 pass, 3 fail, 0 disagreement, 0 not run"


def test_causes() -> None:
    (case,) = find_cases([str(PLAIN)])
    details = {
        "'a 1' is missing; 'b' has other values": "a tensor is missing",
        "'a' is not expected": "a tensor too many",
        "'a' has the shape (3,), expected (4,)": "another shape",
        "'a' is float64, expected float32": "another element type",
        "'a' has other values; first at 3": "other values",
        "accepted; it must be refused (invalid)": "accepted what must be refused",
        "time-out: no result in 60 s": "time-out: no result in … s",
    }
    for detail, cause in details.items():
        assert cause_of(Verdict(case, FAIL, detail)) == cause
    verdicts = [Verdict(case, FAIL, "'a' is missing")] * 7 + [Verdict(case, PASS)]
    (line,) = failures(verdicts)
    assert line.startswith(f"   7 fail         section {case.section}, a tensor is missing: ")
    assert line.endswith(", …")


def test_tools_of_a_stream() -> None:
    (case,) = find_cases(["features/random_01"])
    tools = tools_of(case.stream.read_bytes())
    assert {"profile 0", "BLOCK", "DC", "codebooks"} <= set(tools)
    assert ", ".join(tools) in case.exercises
    assert tools_of(case.stream.read_bytes()[:9]) == ["profile 0"]
