"""A small checkpoint that is whole, and a copy of it to be spoilt file by file."""

import shutil
from pathlib import Path

import pytest

from tests import tiny_text


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "model"
    tiny_text.checkpoint(folder)
    return folder


@pytest.fixture
def spoilt(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "model")
