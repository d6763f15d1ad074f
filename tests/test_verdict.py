"""The sentences with which a result opens: each by its rule, none without its numbers."""

import pytest
import torch

import consilience as cs
from consilience.report.verdict import verdict


def record(**changes):
    rows = {
        "grad_cam": {"fit": 0.5, "fresh": 0.5, "stderr": 0.05},
        "saliency": {"fit": 0.1, "fresh": 0.01, "stderr": 0.04},
        "consensus": {"fit": 0.8, "fresh": 0.7, "stderr": 0.03},
    }
    contrasts = {name: {"fit": 1.0, "fresh": 0.8, "stderr": None} for name in rows}
    base = {
        "objective": "posterior",
        "methods": ["grad_cam", "saliency", "deeplift"],
        "failed": {"deeplift": "no"},
        "criteria": {"faithfulness_correlation": rows, "contrast": contrasts},
        "differences": {"faithfulness_correlation": {"best_single": "grad_cam", "low": 0.1, "high": 0.3}},
        "posterior": {"certain_positive": 5, "certain_negative": 2, "certain_of": 20, "certain_unit": "column"},
    }
    return base | changes


def test_what_is_explained_is_said_with_its_error_and_beside_the_best_single_method():
    first = verdict([record()])[0]
    assert first == (
        "Posterior explains 49% ± 4% of what masks do on fresh draws; the best single method, grad_cam, 25% (certainly less)."
    )


@pytest.mark.parametrize(
    "low, high, words",
    [
        (-0.3, -0.1, "certainly more"),
        (-0.1, 0.1, "not decided"),
        (1e-16, 2e-16, "grad_cam, 25% (the same)."),
        (None, None, "grad_cam, 25%."),
    ],
)
def test_a_difference_is_decided_by_its_interval(low, high, words):
    changed = {"faithfulness_correlation": {"best_single": "grad_cam", "low": low, "high": high}}
    assert words in verdict([record(differences=changed)])[0]


def test_what_is_certain_is_counted():
    said = verdict([record()])[1]
    assert "5 of 20 parts (each a column) raise the score, 2 lower it" in said
    none = {"certain_positive": 0, "certain_negative": 0, "certain_of": 20, "certain_unit": "element"}
    assert verdict([record(posterior=none)])[1].startswith("No part of the input is certain")
    assert "an element" in verdict([record(posterior=none)])[1]
    assert not any("certain at" in sentence for sentence in verdict([record(posterior=None)]))


def test_mute_and_blind_methods_are_named_and_failed_ones_are_not():
    said = verdict([record()])
    assert "Not known to be better than a uniform map: saliency." in said
    changed = record()
    changed["criteria"]["contrast"]["grad_cam"] = {"fresh": 0.01}
    assert "Nearly the same for every output: grad_cam." in verdict([changed])
    assert "deeplift" not in " ".join(said)


def test_nothing_explained_is_said_plainly():
    changed = record()
    changed["criteria"]["faithfulness_correlation"]["consensus"] = {"fresh": 0.05, "stderr": 0.05}
    assert verdict([changed])[0].startswith("Posterior explains nothing of what masks do")


def test_several_inputs_are_averaged():
    other = record()
    other["criteria"]["faithfulness_correlation"]["consensus"] = {"fresh": 0.5, "stderr": 0.03}
    said = verdict([record(), other])
    assert said[0].startswith("Posterior explains 37% on average")
    assert "certainly better for 2 of 2 inputs" in said[0]


def test_damaged_records_are_silent():
    assert verdict([]) == []
    assert verdict([{}]) == []
    assert verdict([{"criteria": None, "methods": "x", "posterior": []}]) == []


def test_a_result_opens_with_its_verdict_everywhere(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    r = cs.explain(net, torch.randn(1, 6), fresh_draws=8)
    first = r.record(0)["verdict"][0]
    assert str(r).splitlines()[1] == first
    assert first.split(";")[0] in r.report(tmp_path / "page.html").read_text()
    assert cs.load(r.save(tmp_path / "run")).record(0)["verdict"][0] == first


def test_without_an_error_nothing_is_called_mute_or_unexplained():
    """Too few fresh draws for a standard error: that is not knowing, and not a finding."""
    rows = {name: {"fit": 0.8, "fresh": 0.7, "stderr": None} for name in ("grad_cam", "saliency", "consensus")}
    said = verdict([record(criteria={"faithfulness_correlation": rows})])
    assert said and not any("explains nothing" in each or "uniform" in each for each in said)


def test_exact_masks_are_no_fresh_draws_and_leave_nothing_uncertain():
    seen = {"masks": {"fit": 6, "fresh": 6, "exact": "these are all masks of these sizes"}}
    exact = record(draws=seen)
    for row in exact["criteria"]["faithfulness_correlation"].values():
        row["stderr"] = 0.0
    for said in (verdict([exact]), verdict([exact, exact])):
        assert "of what all masks that there are do" in said[0] and "±" not in said[0]
        assert "fresh" not in said[0] and "95 %" not in said[1] and "By all masks that there are" in said[1]
    assert "signs of the others" not in verdict([exact])[1]


def test_no_error_is_said_to_be_zero_and_no_object_is_spelled_out():
    fine = record(objective="Infidelity(features=None, share=(0.1, 0.2))")
    fine["criteria"]["faithfulness_correlation"]["consensus"] = {"fresh": 0.99, "stderr": 0.001}
    assert verdict([fine])[0].startswith("The consensus explains 98% ± 0.2% of")
    assert "Infidelity" not in verdict([fine])[0]


def test_where_all_signs_are_certain_there_are_no_others():
    every = {"certain_positive": 13, "certain_negative": 7, "certain_of": 20, "certain_unit": "column"}
    assert verdict([record(posterior=every)])[1].endswith("7 lower it; the order among these is not.")


def test_a_certain_loss_is_told_and_one_output_has_no_others():
    worse = record(differences={"faithfulness_correlation": {"best_single": "grad_cam", "low": -0.3, "high": -0.1}})
    assert "certainly better for 1 and certainly worse for 1 of 2 inputs" in verdict([record(), worse])[0]
    single = record(settings={"outputs": "one output"})
    single["criteria"]["contrast"]["grad_cam"] = {"fresh": 0.01}
    assert "Nearly the same for every input: grad_cam." in verdict([single])
