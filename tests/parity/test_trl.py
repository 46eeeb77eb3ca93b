"""Our objectives equal TRL's on the same tensors. TRL is no dependency: it is asked in its own environment, where that was made."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / "benchmarks" / ".envs" / "trl" / "bin" / "python"
SCRIPT = ROOT / "benchmarks" / "peers" / "trl_parity.py"


@pytest.mark.skipif(not PYTHON.exists(), reason="TRL's environment is not there: bash benchmarks/peers/setup.sh trl")
def test_objectives_equal_those_of_trl() -> None:
    command = [str(PYTHON), str(SCRIPT), "--source", str(ROOT / "src")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.stdout, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["above"] == [], {name: found["differences"][name] for name in found["above"]}
    assert done.returncode == 0, done.stderr[-2000:]
    compared = found["differences"]
    for loss_type in ("grpo", "dr_grpo", "dapo"):
        for level in ("token", "sequence"):
            assert {f"{loss_type}, {level} ratio, beta {beta}" for beta in (0.0, 0.05)} <= compared.keys()
    assert {"dpo, sigmoid", "dpo, hinge", "dpo, ipo"} <= compared.keys()
