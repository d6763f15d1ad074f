"""The file that an evaluation grows in, and what it is known by."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import socket
import time
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import consilience as cs
from consilience.card import Card
from consilience.evaluate import saving
from consilience.evaluate.evaluator import Evaluator
from consilience.measures import Measure
from consilience.results.evaluation import Evaluation
from consilience.results.fingerprint import digest
from consilience.results.lock import STALE, Lock

BARE = {"methods": ["saliency"], "objective": None}
TABLE = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


def net(slope=0.01):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.LeakyReLU(slope), nn.Linear(8, 3))


@dataclass(frozen=True)
class Breaks(Measure):
    """Raises, or is interrupted, in its second batch."""

    error: type[BaseException] = ZeroDivisionError
    name = "breaks"
    card = Card("1", "", "none", "", "", "")

    def __call__(self, task):
        if 2 in task.points.ids.tolist():
            raise self.error
        return torch.ones(len(task.points), len(task.names))


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("first", [True, False])
def test_a_measure_that_raises_leaves_whole_columns(tmp_path, error, first):
    """Every column has one number for each input judged, in the object and in the file, which goes on."""
    path, broken = tmp_path / "e.json", Breaks(error)
    measures = [broken, "gini_sparseness"] if first else ["gini_sparseness", broken]
    with pytest.raises(error):
        cs.evaluate(net(), TABLE.split(2), measures=measures, path=path, **BARE)
    found = cs.load(path)
    assert found.ids == [0, 1] and all(len(column) == 2 for column in found.values.values())
    meter = Evaluator(net(), measures=measures, **BARE)
    meter.update(TABLE[:2])
    before = meter.compute().to_dict()
    with pytest.raises(error):
        meter.update(TABLE[2:4])
    assert meter.compute().to_dict() == before
    with pytest.raises(error):  # the batch is asked for again, under the same ids
        meter.update(TABLE[2:4])


def test_it_is_written_every_few_seconds_and_at_the_end(tmp_path, monkeypatch):
    writes = []
    real = Evaluation.save
    monkeypatch.setattr(Evaluation, "save", lambda self, path: writes.append(len(self)) or real(self, path))
    options = {"measures": ["gini_sparseness"], **BARE}
    fresh = cs.evaluate(net(), TABLE.split(1), path=tmp_path / "a.json", **options)
    assert writes == [6]
    monkeypatch.setattr(saving, "EVERY", 0.0)
    monkeypatch.setattr(saving.time, "monotonic", lambda: 0.0)
    again = cs.evaluate(net(), TABLE.split(1), path=tmp_path / "b.json", **options)
    assert writes[1:] == [1, 2, 3, 4, 5, 6]
    for path in ("a.json", "b.json"):
        found = cs.load(tmp_path / path)
        for each in (fresh, again):
            assert found.ids == each.ids and found.digests == each.digests
            np.testing.assert_array_equal(found.values["gini_sparseness"], each.values["gini_sparseness"])
    cs.evaluate(net(), TABLE.split(1), path=tmp_path / "a.json", **options)
    assert len(writes) == 7  # nothing new: nothing written


# -- two writers -------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_and_loses_nothing(tmp_path):
    path = tmp_path / "e.json"
    options = {"measures": ["gini_sparseness"], "path": path, **BARE}

    def meanwhile():
        yield TABLE[:3]
        with pytest.raises(cs.InputError, match=rf"e\.json: another process writes.*process {os.getpid()} on .*remove"):
            cs.evaluate(net(), TABLE, **options)
        yield TABLE[3:]

    assert len(cs.evaluate(net(), meanwhile(), **options)) == 6
    assert len(cs.load(path)) == 6 and os.listdir(tmp_path) == ["e.json"]


def test_a_lock_that_was_left_behind_is_taken_over(tmp_path):
    """Of a process that is gone; of another machine after a time; one without content after seconds."""
    path, here = tmp_path / ".e.json.lock", socket.gethostname()
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    gone = {"pid": process.pid, "host": here, "since": "then", "token": "x"}
    away = {"pid": 1, "host": "elsewhere", "since": "then", "token": "x"}
    for content, age, free in (
        (gone, 0, True),
        ({**gone, "pid": os.getpid()}, STALE + 60, False),
        (away, 0, False),
        (away, STALE + 60, True),
        (None, STALE + 60, True),
    ):
        path.write_text("" if content is None else json.dumps(content))
        then = time.time() - age
        os.utime(path, (then, then))
        if free:
            with Lock(path, tmp_path / "e.json"):
                assert json.loads(path.read_text())["pid"] == os.getpid()
            assert not path.exists()
        else:
            with pytest.raises(cs.InputError, match="another process writes"):
                Lock(path, tmp_path / "e.json").__enter__()


def test_who_lost_the_lock_writes_no_more(tmp_path):
    path = tmp_path / "lock"
    with Lock(path, tmp_path / "e.json") as slow:
        slow.refresh()
        path.unlink()
        with Lock(path, tmp_path / "e.json") as other:
            with pytest.raises(cs.InputError, match=r"e\.json: another process took over"):
                slow.refresh()
            other.refresh()


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    asked = []

    def model(x):
        asked.append(len(x))
        return x

    for path, what in ((tmp_path / "file" / "e.json", "cannot be written"), (tmp_path, "is a folder"), ("", "empty")):
        with pytest.raises(cs.InputError, match=what):
            cs.evaluate(model, TABLE, methods=["feature_ablation"], measures="gini_sparseness", path=path)
    assert not asked


# -- what a model is known by ------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self, by, how=None, more=None):
        super().__init__()
        self.by, self.how, self.more, self._hidden = by, how, more, {"by": [by]}
        self.table = torch.ones(2)  # no buffer

    def forward(self, x):
        return self.by * x


def bent(by):
    return lambda x: by * x


def test_models_that_compute_something_else_have_another_digest():
    same = [
        (net(), net()),
        (Scaled(2), deepcopy(Scaled(2))),
        (Scaled(2, bent(3)), Scaled(2, bent(3))),
        (net().train(), net().eval()),
        (functools.partial(bent, 1), functools.partial(bent, 1)),
        (Scaled(2, more=object()), Scaled(2, more=object())),  # nothing plain: not seen
    ]
    for one, other in same:
        assert digest(one) == digest(other)
    changed = Scaled(2)
    changed.table[0] = 3
    hidden = Scaled(2)
    hidden._hidden["by"][0] = 5
    other = [
        (net(), net(0.9)),
        (nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3, stride=2)),
        (nn.BatchNorm1d(3), nn.BatchNorm1d(3, eps=1e-3)),
        (nn.Dropout(0.1), nn.Dropout(0.2)),
        (Scaled(2), Scaled(3)),
        (Scaled(2, bent(3)), Scaled(2, bent(4))),
        (Scaled(2), changed),
        (Scaled(2), hidden),
        (bent(1), bent(2)),
        (lambda x: x + 1, lambda x: x + 2),
        (functools.partial(bent, 1), functools.partial(bent, 2)),
        (Scaled(2).forward, Scaled(3).forward),
    ]
    for one, another in other:
        state = getattr(one, "state_dict", dict)()
        if isinstance(another, nn.Module):
            another.load_state_dict(state)
        assert digest(one) != digest(another), (one, another)


def test_a_model_in_a_circle_has_a_digest():
    model = Scaled(2)
    model.more = [model.by]
    model.more.append(model.more)
    assert digest(model) == digest(deepcopy(model)) != digest(Scaled(2))

    def itself(x):
        return itself(x - 1)

    assert len(digest(itself)) == 16


def test_an_evaluation_goes_on_with_the_same_model_only(tmp_path):
    options = {"measures": ["gini_sparseness"], "path": tmp_path / "e.json", **BARE}
    cs.evaluate(net(), TABLE[:3], **options)
    assert len(cs.evaluate(net(), TABLE, **options)) == 6
    with pytest.raises(cs.InputError, match="model"):
        cs.evaluate(net(0.9), TABLE, **options)
