"""Tools around arrays: pandas, Matplotlib, IPython, rich, joblib, pickle, Hypothesis, safetensors."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import hypothesis
import hypothesis.extra.array_api
import joblib
import numpy as np
import pytest
import rich.console
import safetensors.numpy
from IPython.core.formatters import DisplayFormatter

import ferrum_array as fa
from ferrum_models import random_model
from tests.doors.same import numbers

X = numbers(12, 4)


@pytest.mark.door("pandas")
def test_frames_and_series_are_made_from_tensors_and_read(device: fa.Device) -> None:
    if device.kind == "cuda":
        pytest.skip("not run: device memory is copied by t.numpy() alone")
    pd = pytest.importorskip("pandas", reason="not run: needs pandas")
    x = fa.asarray(X, device=device)
    frame = pd.DataFrame(x, columns=list("abcd"))
    assert frame.shape == (12, 4)
    assert np.array_equal(frame.to_numpy(), X)
    assert pd.Series(x[:, 0]).sum() == pytest.approx(float(fa.sum(x[:, 0])), rel=1e-5)
    assert fa.all(fa.asarray(frame, device=device) == x)
    assert fa.asarray(frame["a"], device=device).shape == (12,)


@pytest.mark.door("Matplotlib")
def test_tensors_are_drawn(device: fa.Device) -> None:
    if device.kind == "cuda":
        pytest.skip("not run: device memory is copied by t.numpy() alone")
    plt = pytest.importorskip("matplotlib.pyplot", reason="not run: needs Matplotlib")
    x = fa.asarray(X, device=device)
    figure, axes = plt.subplots(2, 3)
    (line,) = axes[0, 0].plot(x[:, 0], x[:, 1])
    assert np.array_equal(line.get_ydata(), X[:, 1])
    image = axes[0, 1].imshow(x)
    assert np.array_equal(np.asarray(image.get_array()), X)
    axes[0, 2].hist(x[:, 0])
    axes[1, 0].scatter(x[:, 0], x[:, 1], c=x[:, 2])
    axes[1, 1].errorbar(x[:, 0], x[:, 1], yerr=fa.abs(x[:, 2]))
    axes[1, 2].bar(fa.arange(12, device=device), x[:, 0])
    figure.canvas.draw()
    plt.close(figure)


@pytest.mark.door("IPython, Jupyter")
def test_notebooks_show_tensors_and_models(device: fa.Device) -> None:
    shown, _ = DisplayFormatter().format(fa.asarray([1.0, 2.0], device=device))
    assert shown["text/plain"].startswith("Tensor([1., 2.]")
    tiny = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8}
    model = random_model({**tiny, "num_hidden_layers": 1, "num_attention_heads": 2})
    shown, _ = DisplayFormatter().format(model)
    assert "f32[9,8]" in shown["text/plain"]
    assert "<details" in shown["text/html"]


@pytest.mark.door("rich")
def test_rich_prints_tensors(device: fa.Device) -> None:
    written = io.StringIO()
    rich.console.Console(file=written, width=100).print({"x": fa.asarray([1.0, 2.0], device=device)})
    assert "Tensor([1., 2.]" in written.getvalue()


@pytest.mark.door("pickle, joblib")
def test_tensors_survive_files_and_processes(device: fa.Device, tmp_path: Path) -> None:
    x = fa.asarray(X, device=device)
    joblib.dump(x, tmp_path / "x")
    for again in (pickle.loads(pickle.dumps(x)), joblib.load(tmp_path / "x")):
        assert again.device is device
        assert fa.all(again == x)
    sums = joblib.Parallel(n_jobs=2, backend="threading")(joblib.delayed(fa.sum)(row) for row in x)
    assert fa.all(fa.stack(sums) == fa.stack([fa.sum(row) for row in x]))
    assert joblib.hash(x) == joblib.hash(fa.asarray(x, copy=True))
    assert joblib.hash(x) != joblib.hash(x + 1.0)


@pytest.mark.door("Hypothesis")
@hypothesis.settings(max_examples=20)
@hypothesis.given(hypothesis.strategies.data())
def test_hypothesis_draws_tensors(data: hypothesis.strategies.DataObject) -> None:
    xps = hypothesis.extra.array_api.make_strategies_namespace(fa)
    x = data.draw(xps.arrays(xps.real_dtypes(), xps.array_shapes()))
    assert type(x) is fa.Tensor


@pytest.mark.door("safetensors")
def test_safetensors_reads_and_writes_the_same_files(device: fa.Device, tmp_path: Path) -> None:
    x = fa.asarray(X, device=device)
    fa.io.save_safetensors({"x": x}, tmp_path / "ours.safetensors")
    assert np.array_equal(safetensors.numpy.load_file(tmp_path / "ours.safetensors")["x"], X)
    safetensors.numpy.save_file({"x": X}, tmp_path / "theirs.safetensors")
    read = fa.io.load_safetensors(tmp_path / "theirs.safetensors", device=device)["x"]
    assert read.device is device
    assert fa.all(read == x)
