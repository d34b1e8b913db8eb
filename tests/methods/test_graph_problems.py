"""Which methods learn which graph problems in which settings."""

from __future__ import annotations

import pytest

from maskcl.methods import EWC, HAT, MAS, Piggyback
from maskcl.problems import Graphs, Link, Node, Regression, Vision
from maskcl.settings import CLASS, DOMAIN, SETTINGS, TASK, TIME

METHODS = [HAT(), Piggyback(), MAS(reduction="batch"), EWC(reduction="batch")]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_link_prediction_has_no_classes_to_divide_tasks_by(method):
    problem = Link(prediction=True)
    for setting in (TASK, CLASS):
        (reason,) = [
            r for r in method.not_supported_reasons(problem, setting) if "link prediction" in r
        ]
        assert f"the {setting.name} setting" in reason
    for setting in (DOMAIN, TIME):
        reasons = method.not_supported_reasons(problem, setting)
        assert reasons == method.not_supported_reasons(Vision(), setting)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_classification_is_refused_where_images_are_alone(method):
    for problem in (Node(), Link(), Graphs()):
        for setting in SETTINGS.values():
            found = method.not_supported_reasons(problem, setting)
            assert found == method.not_supported_reasons(Vision(), setting)


@pytest.mark.parametrize("kind", [MAS, EWC])
@pytest.mark.parametrize("problem", [Node(), Node(fanouts=(2,)), Link(), Regression(Node())])
def test_exact_importances_are_refused_where_messages_mix_samples(kind, problem):
    for setting in SETTINGS.values():
        (reason,) = kind().not_supported_reasons(problem, setting)
        assert kind.__name__ in reason
        assert problem.name in reason
        assert 'reduction="batch"' in reason


@pytest.mark.parametrize("kind", [MAS, EWC])
def test_exact_importances_of_whole_graphs_are_legal(kind):
    for setting in SETTINGS.values():
        assert kind().not_supported_reasons(Graphs(), setting) == []
        assert kind().not_supported_reasons(Regression(Graphs()), setting) == []
