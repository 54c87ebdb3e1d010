"""Every alert rule fires on what it is for, once however many scrape targets tell it, and not on what is well."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.harness import ROOT

ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
DAY = 1500
"""Minutes: somewhat more than a day."""
GPU = 'node="beast",device="GPU-0",name="RTX"'
TOKENS = 'model="m",node="beast",dialect="openai_chat"'
Series = dict[str, str]

# By alert: series that must set it off, series that must not, and the minute at which both are looked at. `a+bxn` is a
# value that rises by b in each of n minutes.
CASES: dict[str, tuple[Series, Series, int]] = {
    "HelexaNodeLost": (
        {'helexa_node_up{node="a",instance="g1"}': "1x2 0x10", 'helexa_node_up{node="a",instance="g2"}': "1x12"},
        {'helexa_node_up{node="a"}': "1x12"},
        10,
    ),
    "HelexaDeviceOut": (
        {f'helexa_device_state{{{GPU},state="quarantined",instance="{i}"}}': "1x10" for i in "ab"},
        {f'helexa_device_state{{{GPU},state="ready"}}': "1x10"},
        5,
    ),
    "HelexaWorkerCrashes": (
        {f"helexa_worker_restarts_total{{{GPU}}}": "0x3 1 2 3 4x20"},
        {f"helexa_worker_restarts_total{{{GPU}}}": "0x3 1x23"},
        12,
    ),
    "HelexaNoCapacity": (
        {'helexa_rejections_total{model="m",reason="no_capacity"}': "0+1x20"},
        {'helexa_rejections_total{model="m",reason="invalid_value"}': "0+1x20"},
        10,
    ),
    "HelexaSlowFirstToken": (
        {f'helexa_time_to_first_token_seconds_bucket{{{TOKENS},le="{le}"}}': values for le, values in (
            ("8", "0x20"), ("16", "0+10x20"), ("+Inf", "0+10x20"))},
        {f'helexa_time_to_first_token_seconds_bucket{{{TOKENS},le="{le}"}}': values for le, values in (
            ("8", "0+99x20"), ("16", "0+100x20"), ("+Inf", "0+100x20"))},
        15,
    ),
    "HelexaErrors": (
        {f'helexa_requests_total{{{TOKENS},outcome="{outcome}"}}': values for outcome, values in (
            ("ok", "0+90x20"), ("worker_died", "0+10x20"))},
        {f'helexa_requests_total{{{TOKENS},outcome="{outcome}"}}': values for outcome, values in (
            ("ok", "0+90x20"), ("client_gone", "0+10x20"), ("worker_died", "0+1x20"))},
        15,
    ),
    "HelexaPrefixHitsCollapsed": (
        {f"helexa_prompt_tokens_total{{{TOKENS}}}": f"0+100x{DAY}",
         f"helexa_cached_tokens_total{{{TOKENS}}}": f"0+80x{DAY - 60} {80 * (DAY - 60)}+5x60"},
        {f"helexa_prompt_tokens_total{{{TOKENS}}}": f"0+100x{DAY}",
         f"helexa_cached_tokens_total{{{TOKENS}}}": f"0+80x{DAY - 60} {80 * (DAY - 60)}+60x60"},
        DAY,
    ),
    "HelexaSlowDecode": (
        {f"helexa_decode_tokens_per_second_count{{{TOKENS}}}": f"0+1x{DAY}",
         f"helexa_decode_tokens_per_second_sum{{{TOKENS}}}": f"0+40x{DAY - 60} {40 * (DAY - 60)}+10x60"},
        {f"helexa_decode_tokens_per_second_count{{{TOKENS}}}": f"0+1x{DAY}",
         f"helexa_decode_tokens_per_second_sum{{{TOKENS}}}": f"0+40x{DAY - 60} {40 * (DAY - 60)}+30x60"},
        DAY,
    ),
    "HelexaSwapping": (
        {f'helexa_worker_loads_total{{{GPU},instance="{i}"}}': "0+1x80" for i in "ab"},
        {f'helexa_worker_loads_total{{{GPU},instance="{i}"}}': "0x10 1x20 2+1x13 15x37" for i in "ab"},
        70,
    ),
    "HelexaPartlyOnCpu": (
        {f'helexa_model_cpu_layers{{node="beast",model="m",instance="{i}"}}': "13x20" for i in "ab"},
        {'helexa_model_cpu_layers{node="beast",model="m"}': "0x20"},
        10,
    ),
    "HelexaDiskNearlyFull": (
        {'helexa_disk_bytes{node="beast",folder="/m"}': f"{2e12:.0f}x20",
         'helexa_disk_free_bytes{node="beast",folder="/m"}': f"{9e10:.0f}x20"},
        {'helexa_disk_bytes{node="beast",folder="/m"}': f"{1e11:.0f}x20",
         'helexa_disk_free_bytes{node="beast",folder="/m"}': f"{6e9:.0f}x20"},
        10,
    ),
}  # fmt: skip


def firing(alert: str, series: Series, minute: int, count: int) -> dict[str, Any]:
    """Return a test for promtool: at that minute so many alerts of the name fire."""
    return {
        "interval": "1m",
        "input_series": [{"series": s, "values": v} for s, v in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)',
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": "{}", "value": count}],
            }
        ],
    }


@pytest.mark.needs_prometheus
def test_each_alert_fires_once_for_its_trouble_and_never_without_it(tmp_path: Path) -> None:
    rules = [r["alert"] for g in yaml.safe_load(ALERTS.read_text())["groups"] for r in g["rules"]]
    assert sorted(rules) == sorted(CASES)
    tests = []
    for alert, (trouble, well, minute) in CASES.items():
        tests += [firing(alert, trouble, minute, 1), firing(alert, well, minute, 0)]
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
