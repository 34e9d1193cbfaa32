#!/usr/bin/env bash
# pytest's monkeypatch and torch's settings: what a test has set and put back is gone.
#
# Library:   torch 2.15.0, pytest 9.2.0, Python 3.11
# Expected:  after MonkeyPatch.undo() a setting of torch._inductor.config is what it was, as
#            an attribute of any other module is.
# Seen:      a config module of torch keeps its values apart and answers by __getattr__;
#            monkeypatch takes what is to be put back from the target's own __dict__, where
#            there is none.  So undo() deletes the setting, and whatever reads it later in
#            the process, the next compilation first, raises AttributeError("… does not
#            exist").  config.patch({name: value}), torch's own, puts it back.
# Exit:      0 while this holds, 1 once it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv  # which heeds no pip constraints of the machine
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" \
  torch==2.15.0 pytest==9.2.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import types

import pytest
import torch._inductor.config as config

usual = types.ModuleType("usual")
usual.setting = 1
with pytest.MonkeyPatch.context() as patch:
    patch.setattr(usual, "setting", 2)
assert usual.setting == 1

before = config.cpp.cxx
with config.patch({"cpp.cxx": ("other",)}):
    assert config.cpp.cxx == ("other",)
assert config.cpp.cxx == before
print(f"torch's own patch: back to {before}")

for owner, name in ((config, "max_autotune"), (config.cpp, "cxx")):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, getattr(owner, name))
    try:
        after = getattr(owner, name)
    except AttributeError as error:
        print(f"monkeypatch: {error}")
        assert "does not exist" in str(error)
    else:
        raise SystemExit(f"{name}: put back now: {after}")
PYTHON
