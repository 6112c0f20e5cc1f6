"""Which implementation runs, who says so, and what happens when it fails."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

import ferrum_array as fa
import ferrum_ops
from ferrum_ops import explain, fast_paths, registry, use_fast_paths
from ferrum_ops.registry import Op, Row, op_names, register

F32 = frozenset({(fa.float32,)})


def fast(x: fa.Tensor) -> str:
    return "fast"


def faster(x: fa.Tensor) -> str:
    return "faster"


def small(x: fa.Tensor) -> str | None:
    return None if x.size <= 4 else f"takes at most 4 elements, got {x.size}"


def failing(x: fa.Tensor) -> str:
    raise RuntimeError("the kernel failed")


@pytest.fixture
def op() -> Iterator[Op[str]]:
    """An op of its own, which is forgotten after the test."""
    made: Op[str] = Op("an_op_of_the_tests")
    made.reference(lambda x: "reference")
    yield made
    del registry._ops[made.name]
    for kind in registry._KINDS:
        registry._rows.pop((made.name, kind), None)


def row(name: str, load: str, **more: object) -> Row:
    known: dict[str, object] = {"device": "cpu", "dtypes": F32, **more}
    return Row("an_op_of_the_tests", name, load=f"{__name__}:{load}", **known)  # type: ignore[arg-type] # drawn together


def call(op: Op[str], x: fa.Tensor, *features: str) -> str:
    return op(x.device, (x.dtype,), features, x)


def why(op: Op[str], x: fa.Tensor, *features: str) -> registry.Explanation:
    return explain(lambda: call(op, x, *features))


def test_the_first_row_that_covers_a_call_runs(op: Op[str]) -> None:
    x = fa.ones(3)
    assert call(op, x) == "reference"
    register(row("small", "faster", when=f"{__name__}:small"), row("plain", "fast", features=frozenset({"window"})))
    assert call(op, x) == "faster"
    assert call(op, fa.ones(5)) == "fast"
    assert call(op, x, "window") == "fast"
    assert call(op, x, "softcap") == "reference"
    assert call(op, fa.ones(3, dtype=fa.float16)) == "reference"


def test_explain_gives_every_reason(op: Op[str]) -> None:
    register(
        row("small", "faster", when=f"{__name__}:small"),
        row("window", "fast", features=frozenset({"window"})),
        row("second", "fast"),
        row("half", "fast", dtypes=frozenset({(fa.float16,)})),
        row("absent", "fast", missing=lambda: "there is no such processor"),
    )
    table = why(op, fa.ones(5))
    assert table.runs == "window"
    assert dict(table.others) == {
        "small": "takes at most 4 elements, got 5",
        "second": "window comes first",
        "half": "does not take float32",
        "absent": "there is no such processor",
        "reference": "window covers the call",
    }
    assert why(op, fa.ones(5), "window", "softcap").runs == "reference"
    assert dict(why(op, fa.ones(5), "window", "softcap").others)["window"] == "does not cover softcap"
    text = repr(table)
    assert "an_op_of_the_tests on cpu, float32" in text
    assert "runs  window" in text
    assert "takes at most 4 elements, got 5" in text
    with use_fast_paths(False):
        off = why(op, fa.ones(5))
    assert off.runs == "reference"
    assert {reason for _, reason in off.others} == {"fast paths are switched off"}


def test_what_explain_says_is_what_runs(op: Op[str]) -> None:
    register(row("small", "faster", when=f"{__name__}:small"), row("fast", "fast"))
    names = {"small": "faster", "fast": "fast", "reference": "reference"}
    for x in (fa.ones(2), fa.ones(9), fa.ones(2, dtype=fa.float64)):
        assert names[why(op, x).runs] == call(op, x)


def test_one_switch_turns_all_off_in_this_thread_alone(op: Op[str]) -> None:
    register(row("fast", "fast"))
    x = fa.ones(3)
    found: list[str] = []
    with use_fast_paths(False):
        assert not fast_paths()
        assert call(op, x) == "reference"
        other = threading.Thread(target=lambda: found.append(call(op, x)))
        other.start()
        other.join()
    assert found == ["fast"]
    assert call(op, x) == "fast"


def test_the_environment_turns_all_off() -> None:
    script = "import ferrum_ops; print(ferrum_ops.fast_paths())"
    for value, said in (("0", "False"), ("1", "True")):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={"FERRUM_FAST_PATHS": value, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == said


def test_a_failing_kernel_is_an_error_and_not_a_second_try(op: Op[str]) -> None:
    register(row("failing", "failing"))
    with pytest.raises(RuntimeError, match="the kernel failed"):
        call(op, fa.ones(3))


def test_a_row_that_cannot_be_loaded_is_an_error(op: Op[str]) -> None:
    register(row("lost", "no_such_function"))
    with pytest.raises(AttributeError, match="no_such_function"):
        call(op, fa.ones(3))


def test_bad_rows_are_refused(op: Op[str]) -> None:
    register(row("fast", "fast"))
    with pytest.raises(ValueError, match="already has an implementation 'fast'"):
        register(row("fast", "faster"))
    with pytest.raises(ValueError, match="kinds of device are"):
        register(row("other", "fast", device="tpu"))
    with pytest.raises(ValueError, match="there is no op 'nothing'"):
        register(Row("nothing", "other", "cpu", F32))


def test_explain_checks_the_arguments_and_does_no_work() -> None:
    with pytest.raises(ValueError, match="eps must be finite"):
        explain(ferrum_ops.layer_norm, fa.ones(3), eps=-1.0)
    with pytest.raises(TypeError, match="'abs' does not choose among implementations"):
        explain(fa.abs, fa.ones(3))
    with pytest.raises(TypeError, match=r"op must be the function, for example .*, got 'rms_norm'"):
        explain("rms_norm", fa.ones(3))  # type: ignore[arg-type]  # wrong on purpose
    huge = fa.broadcast_to(fa.ones(1), (1 << 40,))  # any work on it would take all memory
    assert explain(ferrum_ops.layer_norm, huge, eps=1.0).op == "layer_norm"


def test_ops_are_named_as_they_are_exported() -> None:
    assert set(op_names()) <= set(ferrum_ops.__all__)
