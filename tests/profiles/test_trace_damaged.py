"""Of a file that is cut off or damaged all that is sound is read, and said; what is no trace is one clear line."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest
from traces import content, device_trace, written

from fastvicreg.errors import UserError
from fastvicreg.profiles.trace import blocks
from fastvicreg.profiles.trace.events import read_trace

DAMAGED = {
    "empty": b"",
    "text": b"not json at all",
    "number": b"42",
    "other": b'{"a": [1, 2], "b": {"c": "d"}}',
    "no events": b'{"traceEvents": []}',
    "strings": b'["a", "b"]',
    "only flows": b'{"traceEvents": [{"ph": "s", "id": 1, "ts": 3}]}',
    "gzip of text": gzip.compress(b"hello"),
    "comma": b'{"traceEvents": [{"ph": "X", "cat": "cpu_op",, "name": "a"}]}',
    "brace": b'{"traceEvents": [{"ph": "X"}}}]}',
    "binary": bytes(range(256)) * 4,
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_is_no_trace_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path / "bad.json", DAMAGED[kind])
    with pytest.raises(UserError) as refused:
        read_trace(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.77, 0.97])
@pytest.mark.parametrize("packed", [False, True], ids=["json", "gz"])
@pytest.mark.parametrize("block", [200, 1 << 20])
def test_a_file_that_was_cut_off_is_read_up_to_the_cut(
    share: float, packed: bool, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    source = device_trace(30).write(tmp_path / ("whole.json" + ".gz" * packed))
    path = written(tmp_path / "cut.json", source.read_bytes()[: int(source.stat().st_size * share)])
    whole, found = content(read_trace(source)), read_trace(path)
    assert 10 < len(found.kind_N) < len(whole)
    assert content(found) == [event for event in whole if event in set(content(found))]
    assert any("cut off" in fault for fault in found.faults)
    assert any(f"{len(found.kind_N):,} events" in fault for fault in found.faults)


@pytest.mark.parametrize("packed", [False, True], ids=["json", "gz"])
def test_a_file_that_ends_before_its_first_event_is_refused(packed: bool, tmp_path: Path) -> None:
    whole = device_trace().write(tmp_path / ("whole.json" + ".gz" * packed)).read_bytes()
    with pytest.raises(UserError, match=r"cut off|no trace|damaged"):
        read_trace(written(tmp_path / "cut.json", whole[: 40 if packed else 150]))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("block", [500, 1 << 20])
def test_of_a_damaged_gzip_file_what_comes_before_the_damage_is_read(
    share: float, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    writer = device_trace(60)
    for number, event in enumerate(writer.events):
        event["args"] = event.get("args", {}) | {"noise": f"{hash((number, 7)) * 2654435761 % 2**61:x}"}
    source = writer.write(tmp_path / "whole.json.gz")
    whole, at = source.read_bytes(), int(source.stat().st_size * share)
    path = written(tmp_path / "bad.json.gz", whole[:at] + b"\xff" * 64 + whole[at + 64 :])
    everything, found = content(read_trace(source)), read_trace(path)
    sound = [event for event in content(found) if event in set(everything)]
    assert len(sound) > (share - 0.1) * len(everything)
    assert len(found.kind_N) - len(sound) < 5  # what the damage itself was unpacked into
    (fault,) = (line for line in found.faults if "damaged" in line)
    assert f"what follows the first {len(found.kind_N):,} events is missing" in fault


@pytest.mark.parametrize("where", range(0, 100, 7))
def test_a_changed_byte_of_a_gzip_file_is_noticed(where: int, tmp_path: Path) -> None:
    whole = bytearray(device_trace(20).write(tmp_path / "whole.json.gz").read_bytes())
    whole[20 + where * (len(whole) - 20) // 100] ^= 0xFF
    try:
        found = read_trace(written(tmp_path / "bad.json.gz", bytes(whole)))
    except UserError as error:
        assert re.search(r"damaged|cut off|is no trace", str(error))  # noqa: PT017
    else:
        assert any("damaged" in line or "cut off" in line for line in found.faults)


def test_a_wrong_checksum_costs_nothing_but_a_line(tmp_path: Path) -> None:
    source = device_trace().write(tmp_path / "whole.json.gz")
    whole = bytearray(source.read_bytes())
    whole[-8] ^= 1
    found = read_trace(written(tmp_path / "bad.json.gz", bytes(whole)))
    assert content(found) == content(read_trace(source))
    assert found.faults == ("the gzip file is damaged (incorrect data check): some events may be wrong.",)


@pytest.mark.parametrize("closed", [True, False])
def test_deeper_nesting_than_a_decoder_follows_costs_its_event_alone(closed: bool, tmp_path: Path) -> None:
    event = '{"ph": "X", "cat": "cpu_op", "name": "aten::add", "pid": 1, "tid": 1, "ts": 1.0, "dur": 60}'
    nested = '{"ph": "X", "odd": ' + "[" * 3000 + "]" * 3000 * closed + "}"
    path = written(tmp_path / "deep.json", f'{{"traceEvents": [{event}, {nested}, {event}]}}'.encode())
    found = read_trace(path)
    assert len(found.kind_N) == (2 if closed else 1)
    assert any("cut off" in fault for fault in found.faults) != closed
