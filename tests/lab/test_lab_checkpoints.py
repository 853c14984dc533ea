"""The file of a checkpoint: what its checksums see, what it may name, and who else can read it."""

import hashlib
import io
import json

import pytest
import torch

from torchaca.lab import files
from torchaca.lab.experiment import UsageError

STATE = {"weights": torch.arange(64.0), "epochs": 3, "more": [1, (2, 0.5)]}


def saved(path, kind, monkeypatch):
    """A checkpoint of this kind, and its files."""
    if kind == "earlier version":
        torch.save(STATE, path)
    else:
        monkeypatch.setattr(files, "PART_BYTES", 600 if kind == "in parts" else files.PART_BYTES)
        files.save_state(path, STATE)
    return sorted(path.parent.iterdir())


@pytest.mark.parametrize("kind", ["with a sum", "in parts", "earlier version"])
def test_no_flip_and_no_cut_changes_a_number_without_a_word(kind, tmp_path, monkeypatch):
    path, refused = tmp_path / "row.pt", 0
    for file in saved(path, kind, monkeypatch):
        good = file.read_bytes()
        harmed = [good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :] for at in range(0, len(good), 31)]
        for content in (*harmed, *(good[:end] for end in range(0, len(good), 211))):
            file.write_bytes(content)
            try:
                found = files.load_state(path)
            except UsageError:
                refused += 1
            else:
                torch.testing.assert_close(found, STATE, rtol=0, atol=0)
        file.write_bytes(good)
    assert refused > 40
    torch.testing.assert_close(files.load_state(path), STATE, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["with a sum", "earlier version"])
def test_torch_reads_a_checkpoint_of_one_file(kind, tmp_path, monkeypatch):
    saved(tmp_path / "row.pt", kind, monkeypatch)
    torch.testing.assert_close(torch.load(tmp_path / "row.pt", weights_only=True), STATE, rtol=0, atol=0)


@pytest.mark.parametrize(
    "names",
    [["../secret.{sum}.0"], ["/etc/passwd"], [".."], [""], [3], "row.pt.{sum}.0", {"0": 1}, 3, None],
    ids=repr,
)
def test_a_list_of_parts_names_only_files_beside_it(names, tmp_path):
    secret = io.BytesIO()
    torch.save(STATE, secret)
    total = hashlib.sha256(secret.getvalue()).hexdigest()
    listed = json.dumps({"sha256": total, "parts": names}).replace("{sum}", total[:8])
    (tmp_path / "run").mkdir()
    (tmp_path / f"secret.{total[:8]}.0").write_bytes(secret.getvalue())
    (tmp_path / "run" / "row.pt").write_text(listed)
    with pytest.raises(UsageError, match=r"row\.pt does not read as a checkpoint"):
        files.load_state(tmp_path / "run" / "row.pt")


def test_a_checkpoint_in_parts_may_be_renamed_and_leaves_other_files_alone(tmp_path, monkeypatch):
    for name in ("row.pt.backup.1", "row.pt.0123abcd.txt", "other.pt.0123abcd.0"):
        (tmp_path / name).touch()
    (tmp_path / "row.pt.0123abcd.0").touch()  # a part of the checkpoint before
    (tmp_path / "row.pt.4711.tmp").touch()  # of a process that was killed
    saved(tmp_path / "row.pt", "in parts", monkeypatch)
    parts = {path.name for path in tmp_path.iterdir()}
    assert parts >= {"row.pt.backup.1", "row.pt.0123abcd.txt", "other.pt.0123abcd.0"}
    assert not parts & {"row.pt.0123abcd.0", "row.pt.4711.tmp"}
    (tmp_path / "row.pt").rename(tmp_path / "best.pt")
    torch.testing.assert_close(files.load_state(tmp_path / "best.pt"), STATE, rtol=0, atol=0)
