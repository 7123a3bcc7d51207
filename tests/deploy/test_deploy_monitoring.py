"""Dashboard and alerts ask for metrics that a worker has, with labels that they have."""

import json
import re
from pathlib import Path

import yaml

from workers.metrics import PrometheusMetrics

REPOSITORY = Path(__file__).resolve().parents[2]
MONITORING = REPOSITORY / "deploy" / "monitoring"
USED = re.compile(r"(runyard_\w+?)(_bucket|_count|_sum)?(?:\{([^}]*)\})?(?=[\[\)\s>=,]|$)")
GROUPED = re.compile(r"\bby \(([^)]*)\)")


def defined() -> dict[str, tuple[str, set[str]]]:
    """Metric → type, labels, of the registry itself (with which tests/metrics compares the page of the docs)."""
    made = {}
    for collector in set(PrometheusMetrics().registry._collector_to_names):
        name = collector._name + ("_total" if collector._type == "counter" else "")
        made[name] = (collector._type, set(collector._labelnames))
    return made


def expressions() -> list[str]:
    board = json.loads((MONITORING / "dashboard.json").read_text())
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    return [
        *(target["expr"] for panel in board["panels"] for target in panel["targets"]),
        *(rule["expr"] for group in rules["groups"] for rule in group["rules"]),
    ]


def test_every_name_and_label_is_defined() -> None:
    metrics = defined()
    assert len(metrics) >= 8
    for expression in expressions():
        asked = USED.findall(expression)
        for name, suffix, selected in asked:
            assert name in metrics, expression
            kind, labels = metrics[name]
            assert bool(suffix) == (kind == "histogram"), expression
            assert set(re.findall(r"(\w+)\s*=~?", selected)) <= labels, expression
            for group in GROUPED.findall(expression):
                assert set(re.findall(r"\w+", group)) - {"le"} <= labels, expression


def test_every_metric_is_shown() -> None:
    shown = {name for expression in expressions() for name, _, _ in USED.findall(expression)}
    assert shown == set(defined())


def test_every_phase_that_is_asked_for_is_defined() -> None:
    page = (REPOSITORY / "docs" / "reference" / "metrics.md").read_text()
    phases = set(re.findall(r"^\| `(\w+)` \| ", page.partition("Phases")[2], re.MULTILINE))
    asked = {phase for each in expressions() for phase in re.findall(r'phase="(\w+)"', each)}
    assert asked
    assert asked <= phases


def test_every_alert_says_what_to_do() -> None:
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
    assert all({"summary", "description"} <= set(rule["annotations"]) for rule in rules)
    assert len({rule["alert"] for rule in rules}) == len(rules)
